// SPDX-License-Identifier: Apache-2.0

//go:build integration

package replicate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// onMount puts a filesystem of its own at the source directory.
func (s *site) onMount(size string) {
	s.t.Helper()
	if os.Geteuid() != 0 {
		s.t.Skip("mounting needs root\nhint: run it with sudo")
	}
	if err := unix.Mount("lockstep-test", s.src, "tmpfs", 0, "size="+size); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = unix.Unmount(s.src, unix.MNT_DETACH) })
}

// C23 a and c: the source is unmounted, and another filesystem is mounted there.
func TestUnmountedSourceDeletesNothing(t *testing.T) {
	for _, backend := range []string{"inotify", "fanotify"} {
		t.Run(backend, func(t *testing.T) {
			s := newSite(t, func(p *pair.Pair) { p.Watch.Backend = backend })
			keep := filepath.Join(filepath.Dir(s.src), "keep") // a second mount of it keeps its content
			s.onMount("10m")
			s.do(os.Mkdir(keep, 0o755))
			s.do(unix.Mount(s.src, keep, "", unix.MS_BIND, ""))
			t.Cleanup(func() { _ = unix.Unmount(keep, unix.MNT_DETACH) })
			for i := range 50 {
				s.write(filepath.Join("d", string(rune('a'+i%26)), "f"), "x")
			}
			s.start()
			s.equal()
			for range 3 {
				// The agent must not keep the filesystem busy.
				s.do(unix.Unmount(s.src, 0))
				st := s.untilState(Held)
				if st.Hint == "" {
					t.Errorf("held without a hint: %s", st.Reason)
				}
				s.write("stray", "written into the mount point")
				s.until("looked again", func(st Status) bool { return strings.Contains(st.Reason, "provisioned") })
				if s.onBackup("stray") || !s.onBackup("d/a/f") {
					t.Fatal("the backup was touched")
				}
				s.rm("stray")
				s.onMount("5m") // another filesystem
				s.write("wrong", "1")
				s.until("it is still held", func(st Status) bool { return st.State == Held })
				time.Sleep(300 * time.Millisecond) // long enough for a batch, if there were one
				if s.onBackup("wrong") || !s.onBackup("d/a/f") {
					t.Fatal("the backup was touched")
				}
				s.do(unix.Unmount(s.src, 0))
				s.do(os.WriteFile(filepath.Join(keep, "meanwhile"), []byte(time.Now().String()), 0o644))
				s.do(unix.Mount(keep, s.src, "", unix.MS_BIND, ""))
				s.untilState(InStep)
				s.equal()
			}
			if st := s.untilState(InStep); st.Counters.Deleted != 0 {
				t.Errorf("%d entries were deleted", st.Counters.Deleted)
			}
		})
	}
}

// What was mounted below the source before the barrier was asked for is on the backup when it is passed.
func TestBarrierWaitsForAMount(t *testing.T) {
	for _, backend := range []string{"inotify", "fanotify"} {
		t.Run(backend, func(t *testing.T) {
			s := newSite(t, func(p *pair.Pair) { p.Watch.Backend = backend })
			s.onMount("10m")
			full := filepath.Join(filepath.Dir(s.src), "full")
			s.do(os.Mkdir(full, 0o755))
			s.do(unix.Mount("lockstep-test", full, "tmpfs", 0, "size=10m"))
			t.Cleanup(func() { _ = unix.Unmount(full, unix.MNT_DETACH) })
			s.do(os.WriteFile(filepath.Join(full, "f"), nil, 0o644))
			dirs := []string{"a", "b", "c", "d/e"}
			for _, dir := range dirs {
				s.mkdir(dir)
			}
			s.start()
			s.equal()
			for _, dir := range dirs {
				s.do(unix.Mount(full, s.path(dir), "", unix.MS_BIND, ""))
				t.Cleanup(func() { _ = unix.Unmount(s.path(dir), unix.MNT_DETACH) })
				s.wait()
				if !s.onBackup(dir + "/f") {
					t.Errorf("passed without %s/f", dir)
				}
			}
		})
	}
}

// What an unmount has taken from the source, or brought to light, is known when the barrier is passed; and it is not passed
// while deletions wait for an approval.
func TestBarrierWaitsForAnUnmount(t *testing.T) {
	for _, backend := range []string{"inotify", "fanotify"} {
		t.Run(backend, func(t *testing.T) {
			s := newSite(t, func(p *pair.Pair) { p.Watch.Backend = backend })
			s.write("m/hidden", "1")
			mount := func(name string) {
				t.Helper()
				s.do(unix.Mount("lockstep-test", s.path("m"), "tmpfs", 0, "size=1m"))
				s.write("m/"+name, name)
			}
			s.start()
			s.equal()
			mount("f")
			t.Cleanup(func() { _ = unix.Unmount(s.path("m"), unix.MNT_DETACH) })
			s.equal()
			if s.onBackup("m/hidden") || !s.onBackup("m/f") {
				t.Fatal("the barrier was passed without the mount")
			}

			// Another filesystem in its place, which has the same numbers.
			s.do(unix.Unmount(s.path("m"), 0))
			mount("g")
			s.equal()

			s.do(unix.Unmount(s.path("m"), 0))
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if lines, err := s.call(ctx, http.MethodPost, "/wait"); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("the barrier was passed while deletions are held: %s, %v", lines, err)
			}
			s.untilState(Held)
			if !s.onBackup("m/hidden") || !s.onBackup("m/g") {
				t.Error("what was hidden is not on the backup, or what is not mounted any more was deleted")
			}
			mount("g")
			s.equal()
		})
	}
}

// A bind mount has the device number of what is around it when it is of the same filesystem, as below the root of an NFS server's exports.
func TestUnmountedBindMountDeletesNothing(t *testing.T) {
	for _, backend := range []string{"inotify", "fanotify"} {
		t.Run(backend, func(t *testing.T) {
			s := newSite(t, func(p *pair.Pair) { p.Watch.Backend = backend })
			s.onMount("10m")
			s.write("home/f", "1")
			s.mkdir("exports/home")
			bind := func() {
				t.Helper()
				s.do(unix.Mount(s.path("home"), s.path("exports/home"), "", unix.MS_BIND, ""))
			}
			bind()
			t.Cleanup(func() { _ = unix.Unmount(s.path("exports/home"), unix.MNT_DETACH) })
			s.start()
			s.equal()
			s.do(unix.Unmount(s.path("exports/home"), 0))
			if st := s.untilState(Held); !strings.Contains(st.Reason, "exports/home") {
				t.Errorf("held because %s", st.Reason)
			}
			if !s.onBackup("exports/home/f") {
				t.Error("what is not mounted any more was deleted")
			}
			bind()
			s.untilState(InStep)
			s.equal()
		})
	}
}

// C16: a full disk on the backup host is told, and is no end.
func TestFullDiskOnTheBackup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root\nhint: run it with sudo")
	}
	s := newSite(t, nil)
	if err := unix.Mount("lockstep-test", s.dst, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(s.dst, unix.MNT_DETACH) })
	s.write("small", "1")
	s.start()
	s.equal()
	s.do(os.WriteFile(s.path("large"), make([]byte, 2<<20), 0o644))
	st := s.untilState(Failing)
	if st.Outage.Class != "no_space" || !strings.Contains(st.Reason, "full") {
		t.Errorf("%s, %+v", st.Reason, st.Outage)
	}
	s.do(unix.Mount("lockstep-test", s.dst, "tmpfs", unix.MS_REMOUNT, "size=10m"))
	s.equal()
	s.untilState(InStep)
}

// A stream of changes has come to its end: nothing that lockstep left there is in the way.
func TestSourceCanBeUnmountedAfterWaiting(t *testing.T) {
	s := newSite(t, func(*pair.Pair) {})
	keep := filepath.Join(filepath.Dir(s.src), "keep")
	s.onMount("10m")
	s.do(os.Mkdir(keep, 0o755))
	s.do(unix.Mount(s.src, keep, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(keep, unix.MNT_DETACH) })
	s.start()
	for i := range 5 {
		for j := range 50 {
			s.write(fmt.Sprintf("f%d-%d", i, j), "1")
			time.Sleep(2 * time.Millisecond)
		}
		s.wait()
		s.noneIn(s.src)
		for err := unix.Unmount(s.src, 0); err != nil; err = unix.Unmount(s.src, 0) { // the last job may be about to give its handle back
			if !errors.Is(err, unix.EBUSY) || t.Context().Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		s.do(unix.Mount(keep, s.src, "", unix.MS_BIND, ""))
		s.equal()
	}
}

// noneIn fails if some process has its working directory there.
func (s *site) noneIn(dir string) {
	s.t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range all {
		if cwd, _ := os.Readlink(link); cwd == dir {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
			s.t.Errorf("%q is in %s", name, dir)
		}
	}
}
