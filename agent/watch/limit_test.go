// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv is set in a test binary that a test runs again in other circumstances.
const childEnv = "WATCH_TEST_CHILD"

// inChild runs the calling test again in a process that attr describes, and returns false in that process.
func inChild(t *testing.T, attr *syscall.SysProcAttr) bool {
	t.Helper()
	if os.Getenv(childEnv) != "" {
		return false
	}
	// A copy, because another user may not be let into the directory of the test binary.
	dir, err := os.MkdirTemp("", "watch-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "watch.test")
	data, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.WriteFile(exe, data, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EACCES):
		t.Skipf("cannot start a process so: %v", err)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("in the child:\n%s", out)
	}
	return true
}

// userNamespace gives the child limits of its own (namespaces(7), /proc/sys/user), without root.
func userNamespace() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}

func setUserLimit(t *testing.T, name string, n int) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/user/"+name, []byte(fmt.Sprint(n)), 0); err != nil {
		t.Skip(err)
	}
}

// TestKernelsWatchLimit meets the real limit, and then has it raised.
func TestKernelsWatchLimit(t *testing.T) {
	if inChild(t, userNamespace()) {
		return
	}
	setUserLimit(t, "max_inotify_watches", 20)
	f := newFixture(t)
	for i := range 20 {
		f.mkdir(fmt.Sprintf("d%d/sub", i))
	}
	f.watch("inotify")
	// Two of the 20 watches are for the cookies and for the witness.
	limit := f.untilLimit(func(e *LimitError) bool { return e.Unwatched == 41-18 })
	if limit.Sysctl != "user.max_inotify_watches" || limit.Have != 20 || limit.Need != 20+23 {
		t.Errorf("%+v", limit)
	}
	for i := range 20 {
		f.do(os.WriteFile(f.path(fmt.Sprintf("d%d/sub/f", i)), []byte("x"), 0o644))
	}
	events := f.sync()
	for i := range 20 {
		if p := fmt.Sprintf("d%d/sub/f", i); !covered(events, p) {
			t.Errorf("nothing covers %q; events:%s", p, describe(events))
		}
	}
	setUserLimit(t, "max_inotify_watches", limit.Need)
	f.until("restored", func() bool { return f.restored > 0 })
	f.probe()
}

func TestKernelsInstanceLimit(t *testing.T) {
	if inChild(t, userNamespace()) {
		return
	}
	setUserLimit(t, "max_inotify_instances", 0)
	_, err := New(Options{Root: t.TempDir(), Backend: "inotify"})
	if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), "hint: raise the sysctl user.max_inotify_instances, which is 0") {
		t.Error(err)
	}
}

// TestLastInstanceIsForTheWatch has none left for the witness.
func TestLastInstanceIsForTheWatch(t *testing.T) {
	if inChild(t, userNamespace()) {
		return
	}
	setUserLimit(t, "max_inotify_instances", 1)
	f := newFixture(t)
	f.mkdir("d")
	f.watch("inotify")
	f.probe()
	f.wantFaults(0, 0)
}

// TestDirectoriesThatCannotBeOpened has no descriptor for the directory of an event: it may have been any.
func TestDirectoriesThatCannotBeOpened(t *testing.T) {
	needFanotify(t)
	if inChild(t, &syscall.SysProcAttr{}) {
		return
	}
	f := newFixture(t)
	f.mkdir("d")
	f.do(touch(f.path("d/f")))
	f.do(touch(f.path("../out/cookie")))
	f.watch("fanotify", func(_ *Options, tune *tuning) { tune.rootEvery = time.Hour })
	f.sync()
	var limit unix.Rlimit
	f.do(unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	f.do(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}))
	f.do(os.Chmod(f.path("d/f"), 0o600))
	f.do(os.Rename(f.path("../out/cookie"), f.path("../cookies/cookie")))
	f.until("cookie", func() bool { return f.cookies["cookie"] })
	f.do(unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.faults) != 1 || !covered(f.events, "d/f") {
		t.Errorf("faults %v, events:%s", f.faults, describe(f.events))
	}
}

// TestAutoSaysWhyNotFanotify runs where fanotify needs a capability that is missing.
func TestAutoSaysWhyNotFanotify(t *testing.T) {
	if inChild(t, userNamespace()) {
		return
	}
	f := newFixture(t)
	f.mkdir("d")
	f.watch("auto")
	if info := f.w.Info(); info.Backend != "inotify" || !strings.Contains(info.Reason, "CAP_SYS_ADMIN") {
		t.Errorf("%+v", info)
	}
	f.probe()
	_, err := New(Options{Root: f.path(""), Backend: "fanotify"})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_SYS_ADMIN") {
		t.Error(err)
	}
}

func TestParseMounts(t *testing.T) {
	t.Parallel()
	const data = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 22 0:30 / /mnt/with\040space\134\011 rw - tmpfs tmpfs rw
37 22 0:31 /sub /bind rw shared:2 master:1 - nfs4 host:/x rw,vers=4.2
nonsense
38 22 0:32 / /no-type rw shared:3
`
	got := parseMounts(data)
	want := []mount{
		{22, "254:0", "/", "/", "ext4"},
		{36, "0:30", "/", "/mnt/with space\\\t", "tmpfs"},
		{37, "0:31", "/sub", "/bind", "nfs4"},
		{38, "0:32", "/", "/no-type", ""},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

// FuzzFanEvent holds that no input makes the parser read out of bounds or loop.
func FuzzFanEvent(f *testing.F) {
	f.Add([]byte("\x18\x00\x00\x00\x03\x00\x18\x00\x00\x40\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Add([]byte("\x3c\x00\x00\x00\x03\x00\x18\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00" +
		"\x02\x00\x24\x00fsidfsid\x08\x00\x00\x00\x01\x00\x00\x00handle12name\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for buf := data; len(buf) > 0; {
			e, rest, err := nextFanEvent(buf)
			if err != nil {
				return
			}
			if len(rest) >= len(buf) {
				t.Fatal("no progress")
			}
			if len(e.dir) != 0 {
				if h := fanHandle(string(e.dir)); h.Size() != len(e.dir)-fanDirHeader {
					t.Errorf("handle of %d bytes from %d", h.Size(), len(e.dir))
				}
			}
			if strings.IndexByte(string(e.name), 0) >= 0 {
				t.Errorf("name %q", e.name)
			}
			buf = rest
		}
	})
}
