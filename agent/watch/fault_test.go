// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (f *fixture) untilFault(want error) {
	f.t.Helper()
	f.until(fmt.Sprintf("fault %v", want), func() bool {
		return slices.ContainsFunc(f.faults, func(err error) bool { return errors.Is(err, want) })
	})
}

func (f *fixture) untilCovered(path string) {
	f.t.Helper()
	f.until("event for "+path, func() bool { return covered(f.events, path) })
}

// untilLimit waits until the standing fault is a LimitError that cond accepts, and returns it.
func (f *fixture) untilLimit(cond func(*LimitError) bool) *LimitError {
	f.t.Helper()
	var limit *LimitError
	f.until("limit", func() bool {
		return len(f.faults) > 0 && errors.As(f.faults[len(f.faults)-1], &limit) && cond(limit)
	})
	return limit
}

// TestKernelQueueOverflowIsToldAndMadeUpFor makes more events than the kernel holds while nobody reads them.
func TestKernelQueueOverflowIsToldAndMadeUpFor(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.mkdir("a/b", "moved/deep/er")
	var stalled atomic.Bool
	resume := make(chan struct{})
	f.watch("inotify", func(_ *Options, tune *tuning) {
		tune.stall = func() {
			if stalled.Load() {
				<-resume
			}
		}
	})
	f.sync()
	stalled.Store(true)
	// By turns, or the kernel would make them one. The buffers of fsnotify hold some more than the queue.
	_, limit := sysctl("fs.inotify.max_queued_events", "")
	for i := range max(limit, 16384) + 10000 {
		f.do(os.Chmod(f.path([]string{"a", "a/b"}[i%2]), 0o755))
	}
	f.mkdir("new/below")
	f.do(os.Rename(f.path("moved"), f.path("away")))
	f.do(os.WriteFile(f.path("new/below/f"), nil, 0o644))
	stalled.Store(false)
	close(resume)
	f.untilFault(ErrOverflow)
	f.seen("new/below/f")
	f.probe()
	f.wantFaults(1, 0)
}

// Nothing is watched while the walk goes on that makes up for an overflow: who waits for its end to say so is wrong meanwhile.
func TestOverflowIsToldBeforeTheWalkEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.mkdir("a/b")
	var hold atomic.Bool
	resume := make(chan struct{})
	f.watch("inotify", func(_ *Options, tune *tuning) {
		tune.maxPending = 20
		tune.add = func(path string) error {
			if hold.Load() && strings.HasSuffix(path, "/root/a") {
				<-resume
			}
			return nil
		}
	})
	release := sync.OnceFunc(func() { hold.Store(false); close(resume) })
	t.Cleanup(release) // before the watcher is stopped
	f.sync()
	hold.Store(true)
	for i := range 800 {
		f.do(os.WriteFile(f.path(fmt.Sprint("f", i)), []byte("x"), 0o644))
	}
	f.untilFault(ErrOverflow)
	f.mu.Lock()
	if covered(f.events, "anything") {
		t.Error("the walk is over already")
	}
	f.mu.Unlock()
	release()
	f.untilCovered("anything")
	f.seen("a/b")
	f.probe()
}

// Of each overflow there is one report, and an event of the root comes after it, from a walk that has begun after it.
func TestEachOverflowIsToldOnceAndBeforeItsTreeEvent(t *testing.T) {
	t.Parallel()
	const overflow, restart, end = 'o', 'r', 'e'
	for name, c := range map[string]struct {
		before      func(s *inotify)
		steps, want string // what is told in each
	}{
		"in quiet times":                          {func(*inotify) {}, "eore", "|fault||tree"},
		"in the first walk":                       {func(*inotify) {}, "oere", "fault|||tree"},
		"twice before the walk":                   {func(*inotify) {}, "eoore", "|fault|||tree"},
		"in the walk that makes up for another":   {func(*inotify) {}, "eoroere", "|fault|||tree fault||tree"},
		"in the walk after the root was lost":     {func(s *inotify) { s.lost = true }, "oere", "|restored tree fault||tree"},
		"in the walk for excludes":                {func(s *inotify) { s.including = true }, "oere", "fault|||tree"},
		"none, in the walk for excludes":          {func(s *inotify) { s.including = true }, "e", "tree"},
		"before a walk that begins for something": {func(*inotify) {}, "eorre", "|fault|||tree"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			s := f.byHand(t)
			c.before(s)
			var got []string
			for _, step := range c.steps {
				switch step {
				case overflow:
					s.inbox.mu.Lock()
					s.inbox.overflow = true
					s.inbox.mu.Unlock()
					f.do(s.drain(t.Context()))
				case restart:
					f.do(s.restart(t.Context()))
				case end:
					s.walk.stack = nil
					s.endWalk()
				}
				s.flush()
				var told []string
				for _, r := range takeAll(s.out) {
					if r.Restored {
						told = append(told, "restored")
					}
					for _, e := range r.Events {
						if e == s.wholeTree() {
							told = append(told, "tree")
						}
					}
					if r.Fault != nil {
						told = append(told, "fault")
					}
				}
				got = append(got, strings.Join(told, " "))
			}
			if got := strings.Join(got, "|"); got != c.want {
				t.Errorf("told %q, want %q", got, c.want)
			}
		})
	}
}

// The kernel says ENOMEM, too, when there is memory, and then not for long.
func TestHandleThatCannotBeOpenedForAMoment(t *testing.T) {
	t.Parallel()
	needFanotify(t)
	for name, c := range map[string]struct {
		refused int64
		faults  int
	}{"a moment": {handleTries - 1, 0}, "longer": {handleTries, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.mkdir("d")
			var refused atomic.Int64
			f.watch("fanotify", func(_ *Options, tune *tuning) {
				tune.handle = func() error {
					if refused.Add(-1) >= 0 {
						return unix.ENOMEM
					}
					return nil
				}
			})
			f.sync()
			refused.Store(c.refused)
			f.do(os.WriteFile(f.path("d/f"), nil, 0o644))
			f.seen("d/f")
			f.wantFaults(c.faults, 0)
		})
	}
}

// TestReaderThatCannotWaitOverflowsLikeTheKernel fills the buffer between the reader and the watcher.
func TestReaderThatCannotWaitOverflowsLikeTheKernel(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.watch("inotify", func(_ *Options, tune *tuning) { tune.maxPending = 20 })
	for i := range 800 {
		f.do(os.WriteFile(f.path(fmt.Sprint("f", i)), []byte("x"), 0o644))
	}
	f.mkdir("new/below")
	f.untilFault(ErrOverflow)
	f.seen("f799", "new/below")
	f.probe()
}

// TestSlowConsumerGetsTheRootInsteadOfEverything takes no report until far too many events wait.
func TestSlowConsumerGetsTheRootInsteadOfEverything(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		w, err := newWatcher(Options{Root: f.path(""), Backend: backend}, func() tuning {
			tune := defaultTuning()
			tune.maxHeld = 50
			return tune
		}())
		f.do(err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		<-w.Ready()
		for i := range 500 {
			f.do(os.WriteFile(f.path(fmt.Sprint("f", i)), []byte("x"), 0o644))
		}
		n, tree := 0, false
		deadline := time.After(patience)
		for !tree {
			select {
			case r := <-w.Reports():
				n += len(r.Events)
				if errors.Is(r.Fault, ErrOverflow) {
					tree = len(r.Events) == 1 && r.Events[0] == w.wholeTree()
				}
			case <-deadline:
				t.Fatalf("no overflow after %d events", n)
			}
		}
		if n > 200 {
			t.Errorf("%d events before the one that stands for all", n)
		}
		cancel()
		for range w.Reports() {
		}
		f.do(<-done)
	})
}

// TestWatchLimitLeavesDirectoriesPolled refuses watches as the kernel does, then lets them through.
func TestWatchLimitLeavesDirectoriesPolled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i := range 10 {
		f.mkdir(fmt.Sprintf("d%d/a/b", i))
	}
	var allowed, used atomic.Int64
	allowed.Store(12)
	f.watch("inotify", func(_ *Options, tune *tuning) {
		tune.add = func(string) error {
			if used.Add(1) > allowed.Load() {
				used.Add(-1)
				return unix.ENOSPC
			}
			return nil
		}
	})
	// 31 directories, 12 watched: the scan counts those below the refused ones, too.
	limit := f.untilLimit(func(e *LimitError) bool { return e.Unwatched == 31-12 })
	name, have := watchLimit()
	if limit.Sysctl != name || limit.Have != have || limit.Need < have+19 {
		t.Errorf("%+v; the sysctl %s is %d", limit, name, have)
	}
	if msg := limit.Error(); !strings.Contains(msg, "max_") || !strings.Contains(msg, fmt.Sprint(limit.Need)) {
		t.Errorf("message %q", msg)
	}
	if info := f.w.Info(); info.Unwatched != 19 || info.Directories != 12 {
		t.Errorf("%+v", info)
	}
	// A cookie waits for a scan, so all changes come before it, in watched directories and others.
	f.sync()
	for i := range 10 {
		f.do(os.WriteFile(f.path(fmt.Sprintf("d%d/a/b/f", i)), []byte("x"), 0o644))
	}
	events := f.sync()
	for i := range 10 {
		if p := fmt.Sprintf("d%d/a/b/f", i); !covered(events, p) {
			t.Errorf("nothing covers %q; events:%s", p, describe(events))
		}
	}
	// A directory made while the limit is reached.
	f.mkdir("late/x")
	f.untilLimit(func(e *LimitError) bool { return e.Unwatched == 19+2 })
	f.do(os.RemoveAll(f.path("late")))
	f.untilLimit(func(e *LimitError) bool { return e.Unwatched == 19 })

	allowed.Store(1000)
	f.until("restored", func() bool { return f.restored > 0 })
	if info := f.w.Info(); info.Unwatched != 0 {
		t.Errorf("%+v", info)
	}
	f.probe()
}

// TestPollSeesEveryKindOfChange has a root that cannot be watched at all.
func TestPollSeesEveryKindOfChange(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exclude = mustExclude(t, "*.tmp")
	f.mkdir("d/e")
	f.do(os.WriteFile(f.path("d/e/f"), []byte("one"), 0o644))
	f.do(touch(f.path("old")))
	f.watch("inotify", func(_ *Options, tune *tuning) {
		tune.add = func(string) error { return unix.ENOSPC }
	})
	// As long as something is so new that a second change might not show, scans go on reporting.
	quiet := func() {
		deadline := time.Now().Add(patience)
		for len(f.sync()) > 0 {
			if time.Now().After(deadline) {
				t.Fatal("never quiet")
			}
			time.Sleep(10 * time.Millisecond) // nothing to wait for but the clock
		}
	}
	quiet()
	for name, change := range map[string]func() error{
		"content":  func() error { return os.WriteFile(f.path("d/e/f"), []byte("two"), 0o644) },
		"mode":     func() error { return os.Chmod(f.path("d/e/f"), 0o600) },
		"new":      func() error { return os.WriteFile(f.path("d/g"), nil, 0o644) },
		"new dir":  func() error { return os.Mkdir(f.path("d/e/new"), 0o755) },
		"rename":   func() error { return os.Rename(f.path("old"), f.path("older")) },
		"symlink":  func() error { return os.Symlink("x", f.path("link")) },
		"mode dir": func() error { return os.Chmod(f.path("d"), 0o700) },
	} {
		f.do(change())
		if events := f.sync(); len(events) == 0 {
			t.Errorf("%s: not seen", name)
		}
		quiet()
	}
}

// TestRootThatGoesAndComesBack removes, renames and replaces the root.
func TestRootThatGoesAndComesBack(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, backend string) {
		root := "../root"
		for name, lose := range map[string]struct{ gone, back func(f *fixture) error }{
			"removed": {
				func(f *fixture) error { return os.RemoveAll(f.path(root)) },
				func(f *fixture) error { return os.MkdirAll(f.path(root+"/new/dir"), 0o755) },
			},
			"renamed": {
				func(f *fixture) error { return os.Rename(f.path(root), f.path("../out/old")) },
				func(f *fixture) error { return os.Rename(f.path("../out/old"), f.path(root)) },
			},
			"replaced": {
				func(f *fixture) error {
					return errors.Join(os.MkdirAll(f.path("../other/x/y"), 0o755), os.Rename(f.path(root), f.path("../out/old")), os.Rename(f.path("../other"), f.path(root)))
				},
				func(f *fixture) error { return nil },
			},
			"removed and made again": {
				func(f *fixture) error {
					return errors.Join(os.RemoveAll(f.path(root)), os.MkdirAll(f.path(root+"/a"), 0o755))
				},
				func(f *fixture) error { return nil },
			},
			"replaced by a file": {
				func(f *fixture) error {
					return errors.Join(os.RemoveAll(f.path(root)), os.WriteFile(f.path(root), nil, 0o644))
				},
				func(f *fixture) error { return errors.Join(os.Remove(f.path(root)), os.Mkdir(f.path(root), 0o755)) },
			},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				f.mkdir("a/b")
				f.watch(backend)
				f.sync()
				f.do(lose.gone(f))
				f.untilFault(ErrRootLost)
				f.do(lose.back(f))
				f.until("restored", func() bool { return f.restored == 1 })
				f.untilCovered("anything")
				f.probe()
				f.wantFaults(1, 1)
			})
		}
	})
}

// TestRootThatIsNotThereYet begins without a root.
func TestRootThatIsNotThereYet(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.do(os.Remove(f.path("")))
		f.start(backend)
		f.untilFault(ErrRootLost)
		select {
		case <-f.w.Ready():
			t.Error("ready without a root")
		default:
		}
		f.mkdir("a/b")
		f.until("restored", func() bool { return f.restored == 1 })
		<-f.w.Ready()
		f.probe()
	})
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for want, o := range map[string]Options{
		"not an absolute path": {Root: "relative"},
		`unknown backend "kqueue"; want auto, fanotify or inotify`: {Root: dir, Backend: "kqueue"},
		"cookie directory: ":             {Root: dir, CookieDir: filepath.Join(dir, "none")},
		"cannot be the cookie directory": {Root: dir, CookieDir: dir},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%+v): %v, want %q", o, err, want)
		}
	}
}

func TestInstanceLimitNamesTheSysctl(t *testing.T) {
	t.Parallel()
	err := instanceError(unix.EMFILE)
	if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), "max_") || !strings.Contains(err.Error(), "hint: raise the sysctl") {
		t.Error(err)
	}
}

// TestUnreadableDirectoryIsWatchedOnceItCanBeRead needs a user who is refused something.
func TestUnreadableDirectoryIsWatchedOnceItCanBeRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.mkdir("open/closed/deep")
	var closed atomic.Bool
	closed.Store(true)
	f.watch("inotify", func(_ *Options, tune *tuning) {
		tune.add = func(path string) error {
			if closed.Load() && strings.HasSuffix(path, "/closed") {
				return unix.EACCES
			}
			return nil
		}
	})
	f.sync()
	if info := f.w.Info(); info.Unreadable != 1 || info.Unwatched != 0 {
		t.Errorf("%+v", info)
	}
	f.do(os.WriteFile(f.path("open/closed/deep/f"), nil, 0o644))
	closed.Store(false)
	f.do(os.Chmod(f.path("open/closed"), 0o755))
	f.seen("open/closed/deep/f")
	if info := f.w.Info(); info.Unreadable != 0 {
		t.Errorf("%+v", info)
	}
	f.probe()
}

// TestPathTooLongIsPolled has directories whose absolute path is longer than any system call takes.
func TestPathTooLongIsPolled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	name := strings.Repeat("n", 200)
	fd, err := unix.Open(f.path(""), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	f.do(err)
	for range 25 { // from here on only by way of the parent
		f.do(unix.Mkdirat(fd, name, 0o755))
		child, err := openDir(fd, name)
		f.do(err)
		f.do(unix.Close(fd))
		fd = child
	}
	t.Cleanup(func() { unix.Close(fd) })
	f.watch("inotify")
	deadline := time.Now().Add(patience)
	for len(f.sync()) > 0 { // the first scans report what is new
		if time.Now().After(deadline) {
			t.Fatal("never quiet")
		}
		time.Sleep(10 * time.Millisecond)
	}
	file, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	f.do(err)
	f.do(unix.Close(file))
	f.seen(strings.Repeat(name+"/", 25) + "f")
}

// TestNothingIsLeftAfterRun is not parallel: it counts goroutines and descriptors of the process.
func TestNothingIsLeftAfterRun(t *testing.T) {
	for _, backend := range []string{"inotify", "fanotify"} {
		t.Run(backend, func(t *testing.T) {
			if backend == "fanotify" {
				needFanotify(t)
			}
			f := newFixture(t) // the runtime opens some descriptors of its own with the first watch
			f.watch(backend)
			f.stop()
			descriptors := countDescriptors(t)
			f = newFixture(t)
			for i := range 50 {
				f.mkdir(fmt.Sprintf("%d/a/b", i))
			}
			f.watch(backend)
			f.probe()
			f.stop()

			// Ended in the middle of the first walk, and while a scan is running.
			f = newFixture(t)
			for i := range 50 {
				f.mkdir(fmt.Sprintf("%d/a/b", i))
			}
			f.start(backend, func(_ *Options, tune *tuning) {
				tune.add = func(path string) error {
					if strings.HasSuffix(path, "/a") {
						return unix.ENOSPC
					}
					return nil
				}
			})
			f.stop()

			if n := countDescriptors(t); n != descriptors {
				t.Errorf("%d descriptors open, before %d", n, descriptors)
			}
			// Fsnotify's goroutine says that it has ended before the last thing that it does.
			waitFor(t, func() error {
				var stacks strings.Builder
				f.do(pprof.Lookup("goroutine").WriteTo(&stacks, 2))
				for _, name := range []string{"watch.(*", "fsnotify.(*"} {
					if strings.Contains(stacks.String(), name) {
						return fmt.Errorf("goroutine of %s is left:\n%s", name, stacks.String())
					}
				}
				return nil
			})
		})
	}
}

// waitFor waits until nothing is wrong any more.
func waitFor(t *testing.T, wrong func() error) {
	t.Helper()
	err := wrong()
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); err = wrong() {
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		t.Error(err)
	}
}

func countDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
