// SPDX-License-Identifier: Apache-2.0

//go:build integration

package apply_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/apply"
	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/internal/lab"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// inside is set for the copy of this test program that runs on a host of the lab.
const inside = "LOCKSTEP_ON_LAB_HOST"

const labBinary = "/usr/local/bin/lockstep"

// TestOnARealHost runs the tests below, whose names begin with OnHost, on a lab host that plays both roles.
func TestOnARealHost(t *testing.T) {
	if os.Getenv(inside) != "" {
		t.Skip("this is the lab host")
	}
	if err := lab.Check(); err != nil {
		t.Skipf("no lab: %v", err)
	}
	ctx := t.Context()
	binary := filepath.Join(t.TempDir(), "lockstep")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "../../cmd/lockstep").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	l, err := lab.Start(ctx, lab.Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	h := l.Host("nfs01")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{binary: labBinary, self: "/root/apply.test"} {
		if err := h.CopyTo(ctx, from, to); err != nil {
			t.Fatal(err)
		}
	}
	// To run a few: LOCKSTEP_ON_LAB_HOST_RUN=Rotation go test -tags integration …
	pattern, least := "^TestOnHost", 9
	if few := os.Getenv(inside + "_RUN"); few != "" {
		pattern, least = few, 1
	}
	out, err := h.Shell(ctx, "chmod 755 "+labBinary+" /root/apply.test; cd /root; "+inside+"=1 ./apply.test -test.v -test.run '"+pattern+"' -test.timeout 10m 2>&1")
	if err != nil {
		t.Errorf("on the host: %v", err) // the output is in it
	} else {
		t.Log(out)
	}
	if n := strings.Count(out, "--- PASS: TestOnHost"); n < least {
		t.Errorf("only %d tests passed on the host", n)
	}
}

// onHost skips a test that has to run on a lab host.
func onHost(t *testing.T) machines {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("runs on a lab host only, see TestOnARealHost")
	}
	m, err := host.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	m.System = installed{m.System}
	for _, name := range []string{"data", "mail"} {
		if err := os.MkdirAll("/srv/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return machines{m, m}
}

// installed makes the units run the lockstep of the host, not this test program.
type installed struct{ host.System }

func (s installed) Inspect(ctx context.Context, q host.Query) (host.Facts, error) {
	f, err := s.System.Inspect(ctx, q)
	f.Executable, f.Digest, f.Untrusted = labBinary, "1", ""
	return f, err
}

// root is somebody with a shell.
type root struct{ t *testing.T }

func (r root) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r root) Edit(p string, change func(string) string) {
	data, err := os.ReadFile(p)
	r.must(err)
	r.must(os.WriteFile(p, []byte(change(string(data))), 0o600))
}

func (r root) Chmod(p string, mode fs.FileMode) { r.must(os.Chmod(p, mode)) }

func (r root) Chown(p, owner string) {
	u, err := user.Lookup(owner)
	r.must(err)
	uid, err := strconv.Atoi(u.Uid)
	r.must(err)
	r.must(os.Chown(p, uid, -1))
}

func (r root) Remove(p string)  { r.must(os.RemoveAll(p)) }
func (r root) Stop(u string)    { r.shell("systemctl stop " + u) }
func (r root) Disable(u string) { r.shell("systemctl disable " + u) }

func (r root) shell(script string) string {
	r.t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// fileList describes every file that an apply could touch.
func fileList(t *testing.T) []string {
	t.Helper()
	var lines []string
	for _, dir := range []string{"/etc", "/var/lib/lockstep", "/usr/local", "/run/lockstep", "/run/lockstep-rsyncd", "/run/systemd/system"} {
		err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			line := fmt.Sprintf("%s %s", info.Mode(), p)
			// userdel and useradd keep copies, and rewrite these in an order of their own.
			if info.Mode().IsRegular() && !strings.HasPrefix(p, "/etc/passwd") && !strings.HasPrefix(p, "/etc/shadow") &&
				!strings.HasPrefix(p, "/etc/group") && !strings.HasPrefix(p, "/etc/gshadow") && p != "/etc/ld.so.cache" {
				line += fmt.Sprintf(" %d bytes", info.Size())
			}
			if !strings.HasSuffix(p, "-") && p != "/etc/.pwd.lock" {
				lines = append(lines, line)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return lines
}

func destroyAll(t *testing.T, m machines, names ...string) {
	t.Helper()
	for _, name := range names {
		for _, role := range []plan.Role{plan.Source, plan.Backup} {
			mustRun(t, m.source, plan.Destroy, role, plan.Request{Pair: plan.Definition{Name: name}})
		}
	}
}

func TestOnHostApplyTwiceThenDestroyLeavesNothing(t *testing.T) {
	m := onHost(t)
	r := root{t}
	before := fileList(t)
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	inSync(t, m, dataPair())
	if changes := mustExchange(t, m, plan.Request{Pair: dataPair()}); len(changes) > 0 {
		t.Errorf("second apply changed %v", changes)
	}
	if err := os.WriteFile("/srv/data/file", []byte("text"), 0o640); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file arrives", func() bool {
		text, err := os.ReadFile("/backup/data/file")
		return err == nil && string(text) == "text"
	})
	for unit, limit := range map[string]float64{"lockstep@data.service": 2.5, "lockstep-rsyncd.service": 4} {
		score := regexp.MustCompile(`level for \S+ ([0-9.]+)`).FindStringSubmatch(r.shell("systemd-analyze security --no-pager " + unit))
		if score == nil {
			t.Fatal("no score")
		}
		if n, err := strconv.ParseFloat(score[1], 64); err != nil || n > limit {
			t.Errorf("exposure of %s is %s", unit, score[1])
		}
		t.Logf("exposure of %s is %s", unit, score[1])
	}
	destroyAll(t, m, "data")
	if diff := cmp.Diff(before, fileList(t)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
	for _, p := range []string{"/srv/data/file", "/backup/data/file"} {
		if text, err := os.ReadFile(p); err != nil || string(text) != "text" {
			t.Errorf("%s: %q, %v", p, text, err)
		}
	}
	if out := r.shell("systemctl list-units --all --plain --no-legend 'lockstep*service'; pgrep -a rsync || true; getent passwd lockstep || true"); out != "" {
		t.Errorf("left running: %s", out)
	}
}

func TestOnHostEveryHandEditIsFoundAndHealed(t *testing.T) {
	m := onHost(t)
	defer destroyAll(t, m, "data")
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	for _, e := range handEdits(dataPair()) {
		t.Run(e.name, func(t *testing.T) {
			findsAndHeals(t, m, root{t}, dataPair(), e)
		})
	}
	t.Run("agent masked", func(t *testing.T) {
		findsAndHeals(t, m, root{t}, dataPair(), handEdit{role: plan.Source, object: "service", words: "is masked",
			do: func(hands) { root{t}.shell("systemctl mask --now lockstep@data.service") }})
	})
}

func TestOnHostKilledApplyIsMendedByTheNext(t *testing.T) {
	m := onHost(t)
	defer destroyAll(t, m, "data")
	definition := filepath.Join(t.TempDir(), "data.yaml")
	if err := os.WriteFile(definition, dataPair().Render(), 0o600); err != nil {
		t.Fatal(err)
	}
	killed := 0
	for i := range 12 {
		for _, role := range []string{"backup", "source"} {
			cmd := exec.Command(labBinary, "apply", "--role", role, "--json", "--definition", definition)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// The moment is what is tried: an apply takes some 50 to 400 ms.
			time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
			_ = cmd.Process.Kill()
			if err := cmd.Wait(); err != nil && !cmd.ProcessState.Exited() {
				killed++
			}
		}
		mustExchange(t, m, plan.Request{Pair: dataPair()})
		inSync(t, m, dataPair())
		if i%3 == 2 {
			destroyAll(t, m, "data")
		}
	}
	if killed < 5 {
		t.Errorf("only %d were killed before they ended", killed)
	}
}

func TestOnHostSeveralAppliesAtOnceTakeTurns(t *testing.T) {
	m := onHost(t)
	defer destroyAll(t, m, "data", "mail")
	type result struct {
		out []byte
		err error
	}
	results := make(chan result)
	names := []string{"data", "mail", "data", "mail"}
	for _, name := range names {
		cmd := exec.Command(labBinary, "apply", "--role", "backup")
		cmd.Stdin = bytes.NewReader(definition(name).Render())
		go func() {
			out, err := cmd.CombinedOutput()
			results <- result{out, err}
		}()
	}
	for range names {
		if r := <-results; r.err != nil {
			t.Errorf("%v\n%s", r.err, r.out)
		}
	}
	for _, name := range []string{"data", "mail"} {
		reply := mustRun(t, m.backup, plan.Read, plan.Backup, plan.Request{Pair: definition(name)})
		if diff := cmp.Diff(allInSync(plan.Backup, "daemon"), reply.Checks); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestOnHostRotationUnderLoadFailsNoTransfer(t *testing.T) {
	m := onHost(t)
	defer destroyAll(t, m, "data")
	r := root{t}
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	since := r.shell("date '+%Y-%m-%d %H:%M:%S'")
	stop := make(chan struct{})
	written := make(chan int)
	go func() {
		n := 0
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				written <- n
				return
			case <-ticker.C:
				if os.WriteFile(fmt.Sprintf("/srv/data/%d", n), []byte(strconv.Itoa(n)), 0o600) == nil {
					n++
				}
			}
		}
	}()
	for range 3 {
		mustExchange(t, m, plan.Request{Pair: dataPair(), Rotate: true})
	}
	close(stop)
	n := <-written
	eventually(t, "all files arrive", func() bool {
		names, err := os.ReadDir("/backup/data")
		return err == nil && len(slices.DeleteFunc(names, func(e fs.DirEntry) bool { _, err := strconv.Atoi(e.Name()); return err != nil })) == n
	})
	inSync(t, m, dataPair())
	if log := r.shell("journalctl -q -o cat -u lockstep@data --since '" + since + "' | grep -E 'level=(WARN|ERROR)' || true"); log != "" {
		t.Errorf("the agent complained:\n%s", log)
	}
	t.Logf("%d files written during three rotations", n)
	if n < 20 {
		t.Errorf("only %d files: that is no load", n)
	}
}

func TestOnHostAnotherPairsTransferIsNotInterrupted(t *testing.T) {
	m := onHost(t)
	defer destroyAll(t, m, "data", "mail")
	r := root{t}
	slow := definition("data", `transfer: {bandwidth_limit: "2m"}`)
	mustExchange(t, m, plan.Request{Pair: slow})
	r.shell("head -c 20M /dev/urandom >/srv/data/big")
	// The rsync that has the file open, of all that come and go.
	transfer := func() string {
		open, _ := filepath.Glob("/proc/[0-9]*/fd/*")
		for _, fd := range open {
			target, _ := os.Readlink(fd)
			pid := strings.Split(fd, "/")[2]
			if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); target == "/srv/data/big" && string(comm) == "rsync\n" {
				return pid
			}
		}
		return ""
	}
	eventually(t, "a transfer runs", func() bool { return transfer() != "" })
	pid, daemon := transfer(), r.shell("systemctl show -P MainPID lockstep-rsyncd")
	mustExchange(t, m, plan.Request{Pair: definition("mail")})
	mustExchange(t, m, plan.Request{Pair: definition("mail", "transfer: {parallel: 3}"), Rotate: true})
	destroyAll(t, m, "mail")
	if now := transfer(); now != pid || pid == "" {
		t.Errorf("transfer was process %q, is %q", pid, now)
	}
	if now := r.shell("systemctl show -P MainPID lockstep-rsyncd"); now != daemon {
		t.Errorf("daemon was process %s, is %s", daemon, now)
	}
	eventually(t, "the transfer ends", func() bool { return exec.Command("cmp", "-s", "/srv/data/big", "/backup/data/big").Run() == nil })
}

// A mount namespace of its own must neither hide an unmount from the agent nor keep the filesystem busy.
func TestOnHostSourceAndBackupCanBeUnmounted(t *testing.T) {
	m := onHost(t)
	defer destroyAll(t, m, "data")
	r := root{t}
	r.shell("mount -t tmpfs source /srv/data; mkdir -p /backup/data; mount -t tmpfs backup /backup/data")
	defer func() { _ = exec.Command("umount", "-l", "/srv/data", "/backup/data").Run() }()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	for _, p := range []struct{ path, unit string }{{"/backup/data", "lockstep-rsyncd"}, {"/srv/data", "lockstep@data"}} {
		mounted := func() bool {
			pid := r.shell("systemctl show -P MainPID " + p.unit)
			data, err := os.ReadFile("/proc/" + pid + "/mountinfo")
			return err == nil && strings.Contains(string(data), " "+p.path+" ")
		}
		if !mounted() {
			t.Errorf("%s does not see %s", p.unit, p.path)
		}
		// Busy only while a run reads or writes there.
		eventually(t, "umount "+p.path, func() bool { return exec.Command("umount", p.path).Run() == nil })
		if mounted() {
			t.Errorf("%s still sees %s", p.unit, p.path)
		}
		if p.path == "/backup/data" {
			r.shell("touch /srv/data/while-unmounted")
			eventually(t, "the daemon refuses", func() bool {
				out, _ := exec.Command(labBinary, "status", "data").Output()
				return strings.Contains(string(out), "the backup host refuses: nothing is mounted on /backup/data")
			})
			if _, err := os.Lstat("/backup/data/while-unmounted"); err == nil {
				t.Error("it was written below the mount point")
			}
			if reply := run(m.backup, plan.Plan, plan.Backup, plan.Request{Pair: dataPair()}); len(reply.Problems) != 1 {
				t.Errorf("plan: %v", problems(reply))
			}
		}
		r.shell("mount -t tmpfs again " + p.path)
		if !mounted() {
			t.Errorf("%s does not see %s mounted again", p.unit, p.path)
		}
	}
}

func TestOnHostServiceThatDoesNotStartIsTakenBack(t *testing.T) {
	m := onHost(t)
	r := root{t}
	before := fileList(t)
	r.shell("mv " + labBinary + " " + labBinary + ".away; printf '#!/bin/sh\\necho cannot run today; exit 78\\n' >" + labBinary + "; chmod 755 " + labBinary)
	_, err := exchange(m, plan.Request{Pair: dataPair()})
	r.shell("mv " + labBinary + ".away " + labBinary)
	if err == nil || !strings.Contains(err.Error(), "start lockstep@data.service") || !strings.Contains(err.Error(), "cannot run today") {
		t.Errorf("error: %v", err)
	}
	destroyAll(t, m, "data")
	if diff := cmp.Diff(before, fileList(t)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

func TestOnHostForeignDaemonOnThePortIsNamed(t *testing.T) {
	m := onHost(t)
	r := root{t}
	r.shell("printf 'port = 8730\\n[old]\\npath = /old\\n' >/etc/rsyncd.conf; systemctl start rsync")
	defer r.shell("systemctl stop rsync; rm /etc/rsyncd.conf")
	eventually(t, "the system's rsync listens", func() bool {
		found, err := m.backup.System.Inspect(t.Context(), host.Query{Port: 8730})
		return err == nil && found.Listener != nil
	})
	reply := apply.Run(t.Context(), m.backup, apply.Command{Verb: plan.Apply, Role: plan.Backup}, plan.Request{Protocol: 1, Pair: dataPair()})
	if len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0].String(), "rsync.service (rsync, process ") || reply.Changed {
		t.Errorf("%+v", reply.Problems)
	}
}
