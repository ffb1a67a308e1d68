// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestEventsFlowBeforeTheFirstWalkEnds writes to a watched directory while the others are still being added.
func TestEventsFlowBeforeTheFirstWalkEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i := range 300 {
		f.mkdir(fmt.Sprintf("%d/a/b/c", i))
	}
	var added atomic.Int64
	var seen atomic.Bool
	early := make(chan struct{})
	f.each = func(e Event) {
		if e.Path == "early" && !seen.Swap(true) {
			close(early)
		}
	}
	progress := 0
	f.start("inotify", func(o *Options, tune *tuning) {
		o.Progress = func(dirs int) { progress = dirs }
		tune.add = func(string) error {
			if added.Add(1) == 50 {
				return os.WriteFile(f.path("early"), nil, 0o644)
			}
			if !seen.Load() {
				time.Sleep(time.Millisecond) // the walk must not end first
			}
			return nil
		}
	})
	select {
	case <-early:
	case <-time.After(patience):
		t.Fatal("no event")
	}
	select {
	case <-f.w.Ready():
		t.Error("ready before the event came")
	default:
	}
	select {
	case <-f.w.Ready():
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	if n := f.w.Info().Directories; n != 1201 {
		t.Errorf("%d directories, want 1201", n)
	}
	f.probe()
	f.stop()
	if progress != 1201 {
		t.Errorf("progress ended with %d directories", progress)
	}
}

// TestTreeThatChangesDuringTheFirstWalk does random things between the additions of directories. What is there
// when all is watched is found by the first full batch; a mirror that begins so must then be equal.
func TestTreeThatChangesDuringTheFirstWalk(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			for i := range 5 {
				for _, d := range []string{"s/t/u", "t/s/x", "u/y", "x/x/x", "y/u/t"} {
					f.mkdir(fmt.Sprintf("d%d/%s", i, d), fmt.Sprintf("../out/d%d/%s", i, d))
				}
			}
			rnd := rand.New(rand.NewPCG(seed, 5))
			m := mirror{root: f.path(""), paths: map[string]state{}}
			ready := false
			f.each = func(e Event) {
				if ready {
					m.apply(e)
				}
			}
			f.watch("inotify", func(_ *Options, tune *tuning) {
				tune.add = func(string) error {
					if !f.isReady() {
						f.randomOp(rnd)
					}
					return nil
				}
			})
			f.mu.Lock()
			ready = true
			m.apply(Event{Tree: true})
			f.mu.Unlock()
			f.sync()
			want := snapshot(t, f.path(""))
			for path, st := range want {
				st.ino = 0
				want[path] = st
			}
			f.mu.Lock()
			diff := cmp.Diff(want, m.paths, cmp.AllowUnexported(state{}))
			f.mu.Unlock()
			if diff != "" {
				t.Errorf("the mirror differs (-disk +mirror):\n%s", diff)
			}
			f.probe()
		})
	}
}

func (f *fixture) isReady() bool {
	if f.w == nil {
		return false
	}
	select {
	case <-f.w.Ready():
		return true
	default:
		return false
	}
}

// TestExcludedDirectoriesHaveNoWatch counts them, before and after the excludes change.
func TestExcludedDirectoriesHaveNoWatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exclude = mustExclude(t, "cache/", "*.tmp")
	for i := range 10 {
		f.mkdir(fmt.Sprintf("%d/cache/a/b", i), fmt.Sprintf("%d/keep.tmp/a", i))
	}
	f.watch("inotify")
	count := func(want int) {
		t.Helper()
		f.sync()
		if n := f.w.Info().Directories; n != want {
			t.Errorf("%d directories watched, want %d", n, want)
		}
	}
	count(1 + 10)
	f.do(f.command("inotify", []string{"exclude", "cache/"}))
	f.untilCovered("0/keep.tmp/a")
	count(1 + 30)
	f.do(f.command("inotify", []string{"exclude", "cache/", "keep.tmp", "5"}))
	count(1 + 9)
	f.probe()
}

func TestLocalFilesystemsAreNotBlind(t *testing.T) {
	t.Parallel()
	if s := blindness(t.TempDir()); s != "" {
		t.Skipf("the directory for temporary files is none: %s", s)
	}
	if s := blindness("/proc"); s != "" {
		t.Error(s)
	}
}

// Where countsLinks says so, a directory has two links and one for each directory in it.
func TestDirectoriesCountTheirLinks(t *testing.T) {
	t.Parallel()
	for _, where := range []string{t.TempDir(), "/dev/shm"} {
		if !countsLinks(where) {
			continue
		}
		top, err := os.MkdirTemp(where, "lockstep-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(top) })
		links := func(want uint64) {
			t.Helper()
			if st, err := lstat(top); err != nil || uint64(st.Nlink) != want {
				t.Errorf("%s: %d links, want %d: %v", where, st.Nlink, want, err)
			}
		}
		links(2)
		for _, name := range []string{"f", "l"} {
			if err := os.Symlink("nowhere", filepath.Join(top, name)); err != nil {
				t.Fatal(err)
			}
		}
		links(2)
		for i := range 3 {
			if err := os.Mkdir(filepath.Join(top, fmt.Sprint(i)), 0o755); err != nil {
				t.Fatal(err)
			}
			links(3 + uint64(i))
		}
	}
	if countsLinks("/proc") || countsLinks("/nonexistent") {
		t.Error("of /proc nothing is known")
	}
}

// It has a way of its own for short paths.
func TestLstat(t *testing.T) {
	dir := t.TempDir()
	short := filepath.Join(dir, "a")
	long := filepath.Join(dir, strings.Repeat("d", 200), strings.Repeat("f", 200))
	for _, p := range []string{short, long} {
		if _, err := lstat(p); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: %v before it is there", p, err)
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("nowhere", p); err != nil {
			t.Fatal(err)
		}
		if st, err := lstat(p); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Errorf("%s: mode %o, %v", p, st.Mode, err)
		}
	}
	for _, p := range []string{short + "\x00b", long + "\x00b"} {
		if _, err := lstat(p); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%q: %v", p, err)
		}
	}
}
