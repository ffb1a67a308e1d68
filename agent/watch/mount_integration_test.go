// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package watch

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv(childEnv) == "" {
		t.Skip("mounting needs root\nhint: run it with sudo")
	}
}

func (f *fixture) mount(source, path, fstype string, flags uintptr, data string) {
	f.t.Helper()
	if err := unix.Mount(source, path, fstype, flags, data); err != nil {
		f.t.Fatalf("mount %s at %s: %v", fstype, path, err)
	}
	f.t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

func (f *fixture) unmount(path string) {
	f.t.Helper()
	f.do(unix.Unmount(path, 0))
}

func TestRootMountedOverAndUnmounted(t *testing.T) {
	t.Parallel()
	needRoot(t)
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.mkdir("a/b")
		f.watch(backend)
		f.sync()
		f.mount("tmpfs", f.path(""), "tmpfs", 0, "")
		f.until("lost", func() bool { return len(f.faults) == 1 && f.restored == 1 })
		f.untilCovered("a/b")
		f.mkdir("on/tmpfs")
		f.probe()
		// The watch must not keep the filesystem busy, nor go unnoticed that it is another one at the same path.
		f.unmount(f.path(""))
		f.mount("tmpfs", f.path(""), "tmpfs", 0, "")
		f.until("lost again", func() bool { return len(f.faults) == 2 && f.restored == 2 })
		f.probe()
		f.unmount(f.path(""))
		f.until("lost once more", func() bool { return len(f.faults) == 3 && f.restored == 3 })
		f.probe()
	})
}

func TestFilesystemIsNotKeptBusy(t *testing.T) {
	t.Parallel()
	needRoot(t)
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.mount("tmpfs", f.path(""), "tmpfs", 0, "")
		f.watch(backend)
		for i := range 20 {
			f.mkdir(fmt.Sprint(i, "/a/b"))
		}
		f.sync()
		f.unmount(f.path(""))
		f.untilFault(ErrRootLost)
	})
}

func TestMountBelowTheRootComesAndGoes(t *testing.T) {
	t.Parallel()
	needRoot(t)
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.mkdir("m/below", "early/below")
		f.mount("tmpfs", f.path("early"), "tmpfs", 0, "")
		f.mkdir("early/x")
		f.watch(backend)
		f.probe()
		f.mount("tmpfs", f.path("m"), "tmpfs", 0, "")
		f.untilCovered("m/below")
		f.mkdir("m/x/y")
		f.probe()
		f.unmount(f.path("m"))
		f.untilCovered("m/x/y")
		f.probe()
		f.unmount(f.path("early"))
		f.untilCovered("early/x")
		f.probe()
		f.wantFaults(0, 0)
	})
}

// A mount has no event, and is found by a look now and then; a cookie must not pass it.
func TestCookieDoesNotPassAMount(t *testing.T) {
	t.Parallel()
	needRoot(t)
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.mkdir("m/hidden", "../out/full/x")
		f.mount("tmpfs", f.path("../out/full"), "tmpfs", 0, "")
		f.mkdir("../out/full/x/y")
		f.watch(backend, func(_ *Options, tune *tuning) { tune.rootEvery = time.Hour })
		f.sync()
		for range 5 {
			f.mount(f.path("../out/full"), f.path("m"), "", unix.MS_BIND, "")
			f.seen("m/x/y")
			f.probe()
			f.unmount(f.path("m"))
			f.seen("m/hidden")
			f.probe()
		}
		f.mount("tmpfs", f.path(""), "tmpfs", 0, "")
		f.mkdir("on/top")
		f.seen("on/top")
		f.wantFaults(1, 1)
	})
}

// The kernel gives the numbers of a mount and of its filesystem to the next one: the table looks as before.
func TestAnotherFilesystemTakesThePlaceOfAMount(t *testing.T) {
	t.Parallel()
	needRoot(t)
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.mkdir("m")
		f.mount("tmpfs", f.path("m"), "tmpfs", 0, "")
		f.watch(backend, func(_ *Options, tune *tuning) { tune.rootEvery = time.Hour })
		f.sync()
		for i := range 5 {
			f.unmount(f.path("m"))
			f.mount("tmpfs", f.path("m"), "tmpfs", 0, "")
			dir := fmt.Sprint("m/", i)
			f.mkdir(dir)
			f.seen(dir)
			f.probe()
		}
	})
}

// The same filesystem is at the root again, and where the kernel tells no mount from the next, looks as it did.
func TestRootUnmountedAndMountedAtOnce(t *testing.T) {
	t.Parallel()
	needRoot(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skipf("%v\nhint: apt-get install e2fsprogs", err)
	}
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		image := f.path("../image")
		f.do(os.WriteFile(image, nil, 0o600))
		f.do(os.Truncate(image, 8<<20))
		run := func(name string, args ...string) {
			t.Helper()
			if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
				t.Skipf("%s %v: %v: %s", name, args, err, out)
			}
		}
		run("mkfs.ext4", "-q", image)
		mount := func() { run("mount", "-o", "loop", image, f.path("")) }
		mount()
		t.Cleanup(func() { _ = unix.Unmount(f.path(""), unix.MNT_DETACH) })
		f.mkdir("d")
		f.watch(backend, func(_ *Options, tune *tuning) { tune.unique, tune.rootEvery = false, time.Hour })
		f.sync()
		for i := range 3 {
			// It is busy while a child, between its fork and its exec, has a file of it open.
			waitFor(t, func() error { return unix.Unmount(f.path(""), 0) })
			mount()
			events := f.sync()
			f.mu.Lock()
			// More when a cookie was told of once more between the two.
			if len(f.faults) <= i || f.restored != len(f.faults) || !covered(events, "d") {
				t.Errorf("faults %v, restored %d, events:%s", f.faults, f.restored, describe(events))
			}
			f.mu.Unlock()
			f.probe()
		}
	})
}

// TestBindMountOfElsewhereBelowTheRoot writes to it by its path outside of the root.
func TestBindMountOfElsewhereBelowTheRoot(t *testing.T) {
	t.Parallel()
	needRoot(t)
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.mkdir("../out/x/y", "m")
		f.mount(f.path("../out/x"), f.path("m"), "", unix.MS_BIND, "")
		f.watch(backend)
		f.probe()
		f.do(os.WriteFile(f.path("../out/x/y/f"), nil, 0o644))
		f.do(os.WriteFile(f.path("../out/beside"), nil, 0o644))
		for _, e := range f.seen("m/y/f") {
			if !strings.HasPrefix(e.Path, "m/y/f") {
				t.Errorf("event for %q", e.Path)
			}
		}
	})
}

// TestOneDirectoryAtTwoPaths has a directory of the root mounted a second time below the root.
func TestOneDirectoryAtTwoPaths(t *testing.T) {
	t.Parallel()
	needRoot(t)
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.mkdir("a/sub", "again")
		f.mount(f.path("a"), f.path("again"), "", unix.MS_BIND, "")
		f.watch(backend)
		f.do(os.WriteFile(f.path("a/sub/f"), nil, 0o644))
		f.seen("a/sub/f", "again/sub/f")
		f.do(os.WriteFile(f.path("again/g"), nil, 0o644))
		f.seen("a/g", "again/g")
	})
}

func TestFileMountedBelowTheRoot(t *testing.T) {
	t.Parallel()
	needRoot(t)
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.do(touch(f.path("../out/file")))
		f.do(touch(f.path("file")))
		f.mount(f.path("../out/file"), f.path("file"), "", unix.MS_BIND, "")
		f.watch(backend)
		f.sync()
		f.do(os.WriteFile(f.path("../out/file"), []byte("changed"), 0o644))
		f.seen("file")
	})
}

// TestRootIsABindMount has a root whose filesystem is also mounted elsewhere, and seen there by another path.
func TestRootIsABindMount(t *testing.T) {
	t.Parallel()
	needRoot(t)
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.mkdir("../out/data/sub")
		f.mount(f.path("../out/data"), f.path(""), "", unix.MS_BIND, "")
		f.watch(backend)
		f.probe()
		f.do(os.WriteFile(f.path("../out/data/sub/f"), nil, 0o644))
		f.do(os.WriteFile(f.path("../out/not-in-it"), nil, 0o644))
		for _, e := range f.seen("sub/f") {
			if e.Path != "sub/f" {
				t.Errorf("event for %q", e.Path)
			}
		}
		f.do(os.Rename(f.path("../out/data/sub"), f.path("../out/gone")))
		f.do(os.WriteFile(f.path("../out/gone/f"), nil, 0o644))
		f.seen("sub")
	})
}

// TestOverlayFallsBack has a root on a filesystem whose file handles cannot be opened.
func TestOverlayFallsBack(t *testing.T) {
	t.Parallel()
	needRoot(t)
	f := newFixture(t)
	f.mkdir("../lower", "../upper", "../work")
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", f.path("../lower"), f.path("../upper"), f.path("../work"))
	if err := unix.Mount("overlay", f.path(""), "overlay", 0, data); err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(f.path(""), unix.MNT_DETACH) })
	f.mkdir("a/b")
	f.watch("auto")
	info := f.w.Info()
	t.Logf("%+v", info)
	if info.Backend != "inotify" || info.Reason == "" {
		t.Errorf("%+v", info)
	}
	f.probe()
}

// TestCapabilitiesThatFanotifyNeeds runs as nobody with some capabilities.
func TestCapabilitiesThatFanotifyNeeds(t *testing.T) {
	needRoot(t)
	for name, tt := range map[string]struct {
		caps []uintptr
		want string
	}{
		"both":                 {[]uintptr{unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH}, ""},
		"only SYS_ADMIN":       {[]uintptr{unix.CAP_SYS_ADMIN}, "CAP_DAC_READ_SEARCH"},
		"only DAC_READ_SEARCH": {[]uintptr{unix.CAP_DAC_READ_SEARCH}, "CAP_SYS_ADMIN"},
		"none":                 {nil, "CAP_SYS_ADMIN"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			if inChild(t, &syscall.SysProcAttr{
				Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
				AmbientCaps: tt.caps,
			}) {
				return
			}
			f := newFixture(t)
			f.watch("auto")
			info := f.w.Info()
			if tt.want == "" {
				if info.Backend != "fanotify" {
					t.Errorf("%+v", info)
				}
			} else if info.Backend != "inotify" || !strings.Contains(info.Reason, tt.want) {
				t.Errorf("%+v, want %s", info, tt.want)
			}
			f.probe()
		})
	}
}

// TestDirectoryThatMayNotBeRead is read by nobody, who is refused it, and then is not.
func TestDirectoryThatMayNotBeRead(t *testing.T) {
	needRoot(t)
	if inChild(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}) {
		return
	}
	f := newFixture(t)
	f.mkdir("closed/deep")
	f.do(os.Chmod(f.path("closed"), 0))
	f.watch("inotify")
	if info := f.w.Info(); info.Unreadable != 1 {
		t.Errorf("%+v", info)
	}
	f.do(os.Chmod(f.path("closed"), 0o755))
	f.seen("closed/deep")
	f.probe()
}

// TestStalledFanotifyLosesNothing has more events waiting than a queue with a limit would hold.
func TestStalledFanotifyLosesNothing(t *testing.T) {
	t.Parallel()
	needFanotify(t)
	f := newFixture(t)
	var once sync.Once
	stall, resume := make(chan struct{}), make(chan struct{})
	f.watch("fanotify", func(_ *Options, tune *tuning) {
		tune.stall = func() {
			select {
			case <-stall:
				once.Do(func() { <-resume })
			default:
			}
		}
	})
	close(stall)
	for i := range 20000 {
		f.do(os.WriteFile(f.path(fmt.Sprint("f", i)), nil, 0o644))
	}
	close(resume)
	events := f.sync()
	seen := map[string]bool{}
	for _, e := range events {
		seen[e.Path] = true
	}
	for i := range 20000 {
		if !seen[fmt.Sprint("f", i)] {
			t.Fatalf("f%d is not reported", i)
		}
	}
	if len(f.faults) > 0 {
		t.Errorf("faults %v", f.faults)
	}
}
