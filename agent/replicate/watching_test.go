// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// A recursive run may send what is gone before its directory is watched. Nothing tells of that but the weak rescan.
func TestWhatIsGoneFromADirectoryBeforeItIsWatched(t *testing.T) {
	weak := watch.Event{Path: "d/n", Op: watch.Create | watch.Rescan, Dir: true}
	for name, far := range map[string]bool{"sent as a tree": false, "sent with everything": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				if far {
					r.l.agent.manyDiffer = 1
				} else {
					r.start()
				}
				r.after(time.Second)
				r.e.set(func() {
					r.e.src.put("d/n/x", node{data: "1"})
					r.e.src.put("d/n/y", node{data: "1"})
				})
				if far {
					r.start()
				} else {
					r.events(watch.Event{Path: "d", Op: watch.Create, Dir: true, Tree: true})
				}
				r.after(100 * time.Millisecond)
				if !r.onBackup("d/n/x") {
					t.Fatal("not sent")
				}
				r.e.set(func() { r.e.src.remove("d/n/x") })
				r.events(weak)
				r.after(3 * time.Second)
				r.wantEqual()
				r.wantState(InStep)
			})
		})
	}
}

func TestOverflowIsSurvivedAndTold(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("d/a", "other/a")
		r.e.mu.Lock()
		r.e.src.put("d/b", node{data: "1"})
		r.e.src.remove("d/a")
		before := len(r.e.runs)
		r.e.mu.Unlock()
		r.w.reports <- watch.Report{Events: []watch.Event{{Path: "d", Op: watch.Rescan, Dir: true, Tree: true}}, Fault: watch.ErrOverflow}
		synctest.Wait()
		r.wantState(Behind)
		r.after(5 * time.Second)
		r.wantEqual()
		if s := r.wantState(InStep); s.Watch.Overflows != 1 {
			t.Errorf("%d overflows", s.Watch.Overflows)
		}
		for _, run := range r.e.runs[before:] {
			for _, p := range run.job {
				if isBelow(p, "other") || p == "" {
					t.Errorf("untouched siblings are scanned: %v", run)
				}
			}
		}
	})
}

func TestWatchLimitIsDegraded(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("d/a")
		r.w.reports <- watch.Report{Fault: &watch.LimitError{Sysctl: "fs.inotify.max_user_watches", Have: 10, Need: 500, Unwatched: 490}}
		synctest.Wait()
		s := r.wantState(Degraded, "490 directories", "sysctl -w fs.inotify.max_user_watches=500")
		if len(s.Watch.Faults) != 1 {
			t.Errorf("faults: %q", s.Watch.Faults)
		}
		r.w.reports <- watch.Report{Restored: true}
		r.after(time.Second)
		r.wantState(InStep)
	})
}

// Where directories are not watched, a barrier is passed by a comparison that began after it.
func TestWaitWhereNotEverythingIsWatched(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("d/a")
		r.w.reports <- watch.Report{Fault: &watch.LimitError{Sysctl: "fs.inotify.max_user_watches", Have: 10, Need: 500, Unwatched: 490}}
		r.after(time.Minute)
		r.e.set(func() { r.e.src.put("d/unseen", node{data: "1"}) })
		barrier := r.barrier(t.Context())
		r.after(10 * time.Second)
		if !r.passes(barrier) || !r.onBackup("d/unseen") {
			t.Error("the barrier is not passed, or too soon")
		}
		r.wantState(Degraded)
	})
}

func TestWatcherThatEndsIsStartedAgain(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.mu.Lock()
		r.watchErr = errors.New("too many open files")
		r.mu.Unlock()
		r.w.end <- errors.New("broken")
		r.after(time.Minute)
		r.wantState(Failing, "too many open files")
		r.mu.Lock()
		if n := r.watchers; n < 4 || n > 10 {
			t.Errorf("%d watchers in a minute", n)
		}
		r.watchErr = nil
		r.mu.Unlock()
		r.e.set(func() { r.e.src.put("b", node{data: "unseen"}) })
		r.settles(time.Minute)
	})
}

func TestSwitchedOffEventsAreLeftToTheFullBatch(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Watch.Events = []string{"create", "modify"} }, func(t *testing.T, r *rig) {
		r.begin("a", "b")
		r.rm("a")
		r.write("c", "1")
		r.after(time.Second)
		if !r.onBackup("a") {
			t.Error("deleted although the event is switched off")
		}
		if r.backup("c") != "1" {
			t.Error("a wanted event was dropped")
		}
		if _, err := r.l.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.after(time.Second)
		r.wantEqual()
	})
}

// Inotify tells what is moved in from outside as made, and the watcher does the same for fanotify.
func TestWhatIsMovedInCountsAsMoved(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Watch.Events = []string{"move"} }, func(t *testing.T, r *rig) {
		r.begin()
		r.write("a", "1")
		r.after(time.Second)
		if r.backup("a") != "1" {
			t.Error("a file that was moved in was not sent")
		}
	})
}

// The weak form of a rescan belongs to a directory that was made: it is no reason when that is switched off.
func TestWeakRescanIsLetThroughOnlyWithWhatItBelongsTo(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Watch.Events = []string{"modify"} }, func(t *testing.T, r *rig) {
		r.begin()
		r.e.set(func() { r.e.src.put("d", node{dir: true}); r.e.src.put("e/x", node{data: "1"}) })
		r.events(watch.Event{Path: "d", Op: watch.Create | watch.Rescan, Dir: true},
			watch.Event{Path: "e", Op: watch.Rescan, Dir: true, Tree: true})
		r.after(time.Second)
		if r.onBackup("d") || r.backup("e/x") != "1" {
			t.Errorf("d on the backup: %v, want false; e/x on the backup: %q, want 1", r.onBackup("d"), r.backup("e/x"))
		}
	})
}

// failingWatcher fails, and tells when its context ends.
type failingWatcher struct {
	*fakeWatcher
	ended *atomic.Int32
}

func (w failingWatcher) Run(ctx context.Context) error {
	context.AfterFunc(ctx, func() { w.ended.Add(1) })
	return w.fakeWatcher.Run(ctx)
}

// A watcher that fails before it is ready leaves nothing behind.
func TestFailedWatchersLeaveNothing(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		var made, ended atomic.Int32
		r.l.agent.watcher = func(pair.Pair, *watch.Exclude, string, func(int)) (watch.Watcher, error) {
			made.Add(1)
			w := &fakeWatcher{reports: make(chan watch.Report), ready: make(chan struct{}), end: make(chan error, 1)}
			w.end <- errors.New("too many open files")
			return failingWatcher{w, &ended}, nil
		}
		r.start()
		r.after(time.Hour)
		if made, ended := made.Load(), ended.Load(); made < 100 || ended < made-1 {
			t.Errorf("the contexts of %d of %d watchers have ended", ended, made)
		}
	})
}
