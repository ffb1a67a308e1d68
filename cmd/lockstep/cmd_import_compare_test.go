// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// sersyncHost is a directory, an rsync daemon as sersync knows it, and a stand-in for sersync between them.
type sersyncHost struct {
	t               *testing.T
	src, dst, conf  string
	overflow, looks string
	daemon          *patient
	stop            func()
	stderr          *safeBuffer
	ended           chan int
	status          int
	stdout          string
}

// safeBuffer can be read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// confxml is what sersync reads. rest is what follows commonParams.
func confxml(source, address, module, params, rest string) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="ISO-8859-1"?>
<head version="2.5">
    <filter start="false"/>
    <inotify>
	<delete start="true"/>
	<createFolder start="true"/>
	<createFile start="true"/>
	<closeWrite start="true"/>
	<moveFrom start="true"/>
	<moveTo start="true"/>
	<attrib start="true"/>
	<modify start="true"/>
    </inotify>
    <sersync>
	<localpath watch="%s">
	    <remote ip="%s" name="%s"/>
	    <!--<remote ip="192.168.8.39" name="tongbu"/>-->
	</localpath>
	<rsync>
	    <commonParams params="%s"/>
	    %s
	</rsync>
    </sersync>
</head>
`, source, address, module, strings.ReplaceAll(params, `"`, "&quot;"), rest)
}

func newSersyncHost(t *testing.T, change func(confxml string) string, settings ...string) *sersyncHost {
	t.Helper()
	p := newPatient(t)
	configure(t, p, settings...)
	h := &sersyncHost{
		t: t, daemon: p, src: filepath.Join(p.dir, "data"), dst: p.backup, conf: filepath.Join(p.dir, "confxml.xml"),
		overflow: filepath.Join(p.dir, "overflow"), looks: filepath.Join(p.dir, "looks"), stop: func() {},
	}
	text := confxml(h.src, p.address, "data", "-az", fmt.Sprintf(`<auth start="true" users="lockstep" passwordfile="%s"/>
	    <userDefinedPort start="true" port="%d"/><!-- port=874 -->`, p.passwordFile, p.daemonPort))
	if change != nil {
		text = change(text)
	}
	write(t, h.conf, text, 0o644)
	return h
}

func (h *sersyncHost) write(name, content string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(h.src, name)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	write(h.t, filepath.Join(h.src, name), content, 0o644)
}

// start runs the stand-in until the test ends or stop is called, and returns when it has looked once.
func (h *sersyncHost) start() {
	h.t.Helper()
	script, err := filepath.Abs("testdata/sersync-stand-in.sh")
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command("sh", script, "-r", "-o", h.conf)
	cmd.Env = append(os.Environ(), "SERSYNC_OVERFLOW="+h.overflow, "SERSYNC_LOOKS="+h.looks)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.stop = sync.OnceFunc(func() {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
			h.t.Error(err)
		}
		cmd.Wait() //nolint:errcheck // it ends by our signal
	})
	h.t.Cleanup(h.stop)
	h.looked(1)
}

func (h *sersyncHost) look() int {
	text, err := os.ReadFile(h.looks)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1
	}
	return n
}

// looked waits until the stand-in has looked n times more.
func (h *sersyncHost) looked(n int) {
	h.t.Helper()
	want := h.look() + n
	h.until(fmt.Sprintf("look %d", want), func() bool { return h.look() >= want })
}

func (h *sersyncHost) until(what string, ok func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			text := ""
			if h.stderr != nil {
				text = h.stderr.String()
			}
			h.t.Fatalf("never: %s\n%s", what, text)
		}
	}
}

func (h *sersyncHost) onBackup(name string) bool {
	_, err := os.Lstat(filepath.Join(h.dst, name))
	return err == nil
}

// compare runs the comparison while during does, and ends it as Ctrl-C would.
func (h *sersyncHost) compare(during func(), args ...string) {
	h.t.Helper()
	ctx, interrupt := context.WithCancel(h.t.Context())
	defer interrupt()
	var out bytes.Buffer
	h.stderr = &safeBuffer{}
	h.ended = make(chan int, 1)
	argv := append([]string{"import", "sersync", h.conf, "--compare", "--settle", "1s", "--every", "100ms"}, args...)
	go func() { h.ended <- dispatch(ctx, stdio{strings.NewReader(""), &out, h.stderr}, argv) }()
	during()
	interrupt()
	h.status = <-h.ended
	h.stdout = out.String()
}

func (h *sersyncHost) says(text string) {
	h.t.Helper()
	h.until(text, func() bool { return strings.Contains(h.stderr.String(), text) })
}

func (h *sersyncHost) report() (r compareReport) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.stdout), &r); err != nil {
		h.t.Fatalf("%v\n%s", err, h.stdout)
	}
	return r
}

// What sersync's known faults leave behind is found and named with its cause, what it did send is not, and the backup is only
// read.
func TestCompareNamesWhatSersyncMisses(t *testing.T) {
	t.Parallel()
	h := newSersyncHost(t, nil)
	h.write("before/file", "1")
	h.write("a[1].txt", "1")
	h.write("a1.txt", "1")
	h.write("gone/deep/er", "1")
	h.start()
	if !h.onBackup("a[1].txt") {
		t.Fatal("the stand-in did not send at its start")
	}
	var before map[string]string
	h.compare(func() {
		h.write("live.txt", "sent at once")
		h.write("before/file", "changed")
		h.until("live.txt", func() bool { return h.onBackup("live.txt") })
		h.write(".env", "SECRET=1")
		for _, name := range []string{"a[1].txt", "gone"} {
			if err := os.RemoveAll(filepath.Join(h.src, name)); err != nil {
				t.Fatal(err)
			}
		}
		h.looked(2)
		write(t, h.overflow, "", 0o644)
		h.looked(2)
		h.write("lost/one", "1")
		h.write("lost/two", "2")
		h.write("before/file", "changed again")
		h.looked(2)
		if err := os.Remove(h.overflow); err != nil {
			t.Fatal(err)
		}
		h.says("not sent: lost/ (new)")
		h.says("not sent: before/file (contents)")
		h.says("not deleted: a[1].txt")
		h.says(`left out by filter "- .*": .env (new)`)
		h.stop()
		before = contents(t, h.dst)
	}, "--json")
	if h.status != exitDiffers {
		t.Errorf("status %d", h.status)
	}
	r := h.report()
	if r.Verdict != verdictDifferent || len(r.Pairs) != 1 || r.Pairs[0].Pair != "data" {
		t.Fatalf("%s", h.stdout)
	}
	got := map[string]string{}
	for _, d := range r.Pairs[0].Differences {
		if d.Cause == "time of a directory" {
			continue
		}
		got[d.Path] = strings.Join([]string{d.Action, d.Change, string(d.Cause), d.Rule, strconv.Itoa(d.Below)}, ", ")
	}
	want := map[string]string{
		"lost":        "send, new, missed, , 2",
		"before/file": "send, contents, missed, , 0",
		"a[1].txt":    "delete, only on the backup, unescaped name, , 0",
		".env":        `left out, new, hidden name, filter "- .*", 0`,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("found  %v\nwanted %v", got, want)
	}

	// For people; and with nothing else that writes, it is seen that the comparison does not.
	h.compare(func() { h.says("not deleted: a[1].txt") })
	for _, text := range []string{
		"lockstep would send, and sersync has not within 1s:\n    ", "new                lost/ with 2 below",
		"lockstep would delete on the backup", "sersync does not delete names with [", `by filter "- .*"`, "Verdict: different. When lockstep takes over, it sends ",
	} {
		if !strings.Contains(h.stdout, text) {
			t.Errorf("%q is missing in:\n%s", text, h.stdout)
		}
	}
	if after := contents(t, h.dst); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the backup was changed:\n%v\n%v", before, after)
	}
}

// contents lists a tree with everything that a comparison could change by mistake.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		sys := st.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // of Linux
		text := ""
		if st.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(data)
		}
		all[path] = fmt.Sprint(st.Mode(), sys.Ctim, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Where sersync did its work, the verdict is that nothing will happen, and a script can go by the status.
func TestCompareOfEqualTrees(t *testing.T) {
	t.Parallel()
	for _, module := range []string{"write only = yes", "write only = no"} {
		t.Run(module, func(t *testing.T) {
			t.Parallel()
			h := newSersyncHost(t, nil, module)
			for i := range 20 {
				h.write(fmt.Sprintf("dir%d/file", i), "1")
			}
			h.start()
			h.stop()
			h.compare(func() { h.until("its end", func() bool { return len(h.ended) > 0 }) }, "--for", "4s")
			if h.status != exitOK || !strings.Contains(h.stdout, "Verdict: the same.") {
				t.Errorf("status %d\n%s", h.status, h.stdout)
			}
		})
	}
}

// A comparison may take longer than --settle: what differs in the only one may be on its way or lost.
func TestCompareOnceDoesNotCallADifferenceTheSame(t *testing.T) {
	t.Parallel()
	began := time.Now()
	once := func(found map[string]*difference) *shadow {
		s := &shadow{settle: time.Second, Began: began, Last: began.Add(time.Minute), Comparisons: 1}
		s.take(s.Last, found)
		return s
	}
	s := once(nil)
	if s.finish(); s.Verdict != verdictSame {
		t.Errorf("without a difference: %s", s.Verdict)
	}
	found := func() map[string]*difference {
		return map[string]*difference{"delete a": {Path: "a", Action: toDelete}}
	}
	s = once(found())
	if s.finish(); s.Verdict != verdictUnknown {
		t.Errorf("with one: %s", s.Verdict)
	}
	s.Last = s.Last.Add(time.Second)
	s.take(s.Last, found())
	if s.finish(); s.Verdict != verdictDifferent {
		t.Errorf("with one that stays: %s", s.Verdict)
	}
}

// Deletions that are off in confxml.xml are no difference: both leave what is only on the backup.
func TestCompareWithDeletionsOff(t *testing.T) {
	t.Parallel()
	h := newSersyncHost(t, func(s string) string {
		return strings.Replace(s, `<delete start="true"/>`, `<delete start="false"/>`, 1)
	})
	h.write("file", "1")
	h.start()
	h.stop()
	write(t, filepath.Join(h.dst, "older"), "1", 0o644)
	h.compare(func() { h.says("kept: older") }, "--json")
	if r := h.report(); h.status != exitOK || r.Verdict != verdictSame || len(r.Pairs[0].Differences) == 0 || r.Pairs[0].Differences[0].Action != toKeep {
		t.Errorf("status %d\n%s", h.status, h.stdout)
	}
}

// A module that refuses deletions, which such a sersync never asks for, is compared all the same.
func TestCompareWithAModuleThatRefusesDeletions(t *testing.T) {
	t.Parallel()
	h := newSersyncHost(t, func(s string) string {
		return strings.Replace(s, `<delete start="true"/>`, `<delete start="false"/>`, 1)
	}, "refuse options = delete")
	h.write("file", "1")
	h.start()
	h.stop()
	h.write("missed", "1")
	h.compare(func() { h.says("not sent: missed (new)") }, "--json")
	if r := h.report(); h.status != exitDiffers || r.Verdict != verdictDifferent || r.Pairs[0].Failed > 0 {
		t.Errorf("status %d\n%s", h.status, h.stdout)
	}
}

// What no waiting can mend ends the comparison with what to do.
func TestCompareWithAWrongPassword(t *testing.T) {
	t.Parallel()
	h := newSersyncHost(t, nil)
	write(t, h.daemon.passwordFile, "wrong\n", 0o600)
	h.compare(func() { h.says("hint: ") })
	if text := h.stderr.String(); h.status != exitFailure || !strings.Contains(text, "compare pair \"data\"") {
		t.Errorf("status %d\n%s", h.status, text)
	}
	if !strings.Contains(h.stdout, "Verdict: unknown") {
		t.Error(h.stdout)
	}
}
