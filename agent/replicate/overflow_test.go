// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/agent/watch"
)

// overflow tells of lost events for which the event of the whole tree is still to come.
func (r *rig) overflow() {
	r.t.Helper()
	r.w.reports <- watch.Report{Fault: watch.ErrOverflow}
	synctest.Wait()
	r.wantState(Behind)
}

// wholeTree is that event.
func (r *rig) wholeTree() { r.events(watch.Event{Op: watch.Rescan, Dir: true, Tree: true}) }

// A watcher that must walk the tree after an overflow has no watch until then. No comparison counts that has begun before.
func TestNotInStepFromAnOverflowToTheComparisonAfterTheWalk(t *testing.T) {
	for name, running := range map[string]bool{"in quiet times": false, "while a full batch runs": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				r.begin("a")
				r.wantState(InStep)
				r.e.setAnswer(lasts("list", 10*time.Second))
				if running {
					if _, err := r.l.sync(t.Context()); err != nil {
						t.Fatal(err)
					}
					r.after(5 * time.Second)
					r.wantState(InStep) // an earlier comparison still holds
				}
				r.overflow()
				r.after(8 * time.Second)
				r.e.set(func() { r.e.src.put("unseen", node{data: "1"}) })
				r.after(time.Minute)
				if r.onBackup("unseen") {
					t.Fatal("it was found without the walk")
				}
				r.wantState(Behind, "to be compared")
				if _, err := r.l.sync(t.Context()); err != nil { // finds it, and not what is lost afterwards
					t.Fatal(err)
				}
				r.after(time.Minute)
				r.wantEqual()
				r.wantState(Behind)
				lists := r.e.count("list")
				r.wholeTree()
				r.after(9 * time.Second)
				r.wantState(Behind, "being compared")
				r.settles(time.Minute)
				if n := r.e.count("list") - lists; n != 1 {
					t.Errorf("%d comparisons for one walk", n)
				}
				if s := r.status(); s.Watch.Overflows != 1 {
					t.Errorf("%d overflows", s.Watch.Overflows)
				}
			})
		})
	}
}

// The walk ends while a comparison goes on that began before the overflow.
func TestNotInStepAfterAComparisonThatBeganBeforeTheOverflow(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(lasts("list", 10*time.Second))
		if _, err := r.l.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.after(5 * time.Second)
		r.overflow()
		r.wholeTree()
		r.after(9 * time.Second) // the next one goes on
		r.wantState(Behind, "being compared")
		r.settles(time.Minute)
	})
}

// A walk brings an event of the whole tree and is followed by another: events were lost in it, too.
func TestNotInStepWhenEventsWereLostInTheWalk(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.overflow()
		r.wholeTree()
		r.overflow()
		r.after(time.Minute)
		r.wantState(Behind)
		r.wholeTree()
		r.settles(time.Minute)
		if s := r.status(); s.Watch.Overflows != 2 {
			t.Errorf("%d overflows", s.Watch.Overflows)
		}
	})
}

// What a watcher owed that has ended, the comparison after the next one's start makes up for.
func TestInStepAfterAnOverflowOfAWatcherThatEnded(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"it failed": func(r *rig) { r.w.end <- errors.New("too many open files") },
		"it was replaced": func(r *rig) {
			if err := r.l.call(r.t.Context(), func(time.Time) { r.l.restartWatcher() }); err != nil {
				r.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				r.begin("a")
				r.overflow()
				r.e.set(func() { r.e.src.put("unseen", node{data: "1"}) })
				end(r)
				r.settles(time.Minute)
			})
		})
	}
}

// The source directory is lost in the walk: what comes when it is back stands for both.
func TestInStepAfterAnOverflowAndALostRoot(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.overflow()
		r.w.reports <- watch.Report{Fault: watch.ErrRootLost}
		r.after(time.Minute)
		r.wantState(Held)
		r.w.reports <- watch.Report{Restored: true, Events: []watch.Event{{Op: watch.Rescan, Dir: true, Tree: true}}}
		r.settles(time.Minute)
	})
}

// Where everything is still watched, the event comes with the fault: see TestOverflowIsSurvivedAndTold.
func TestOverflowOfAWatchThatGoesOn(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.set(func() { r.e.src.put("unseen", node{data: "1"}) })
		r.w.reports <- watch.Report{Fault: watch.ErrOverflow, Events: []watch.Event{{Op: watch.Rescan, Dir: true, Tree: true}}}
		synctest.Wait()
		r.wantState(Behind)
		r.settles(time.Minute)
		if s := r.status(); s.Watch.Overflows != 1 {
			t.Errorf("%d overflows", s.Watch.Overflows)
		}
	})
}
