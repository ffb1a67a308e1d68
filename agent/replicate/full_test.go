// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

func TestBackupThatIsAheadIsOnlyTrustedAfterAComparison(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.takes = 10 * time.Second
		r.e.src.put("a", node{data: "1"})
		r.e.dst.put("a", node{data: "1"})
		r.start()
		r.after(9 * time.Second)
		r.wantState(Behind, "compared")
		r.after(2 * time.Second)
		r.wantState(InStep)
	})
}

func TestLiveChangesFlowBesideTheComparison(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.src.put("a", node{data: "1"})
		r.start()
		r.e.set(func() { r.e.takes = 5 * time.Millisecond })
		r.after(time.Minute)
		r.e.setAnswer(lasts("list", time.Hour))
		if _, err := r.l.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.write("b", "1")
		r.after(100 * time.Millisecond)
		if r.backup("b") != "1" {
			t.Error("a live change waits for the comparison")
		}
		r.wantState(InStep) // an earlier comparison still holds
		r.e.setAnswer(nil)
		r.after(2 * time.Hour)
	})
}

func TestScheduledFullBatches(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Full.Every = "6h" }, func(t *testing.T, r *rig) {
		r.e.src.put("a", node{data: "1"})
		r.start()
		r.after(time.Minute)
		r.e.set(func() { delete(r.e.dst, "a") })
		r.after(5 * time.Hour)
		if n := r.e.count("list"); n != 1 {
			t.Errorf("%d comparisons in five hours", n)
		}
		r.after(time.Hour)
		if n := r.e.count("list"); n != 2 {
			t.Errorf("%d comparisons in six hours", n)
		}
		r.wantEqual()
		s := r.wantState(InStep)
		if s.Full.Next == nil || s.Full.Next.Sub(*s.Full.Last) != 6*time.Hour {
			t.Errorf("next %v, last %v", s.Full.Next, s.Full.Last)
		}
	})
}

func TestFarBehindBackupIsSentByRecursion(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.l.agent.manyDiffer = 300
		for i := range 302 {
			r.e.src[fmt.Sprintf("f%d", i)] = node{data: "1"}
		}
		r.start()
		r.after(time.Minute)
		if r.e.count("tree") != 1 || r.e.count("list") != 2 || r.e.count("send") != 0 {
			t.Errorf("%d trees, %d comparisons, %d batches", r.e.count("tree"), r.e.count("list"), r.e.count("send"))
		}
		r.wantState(InStep)
		r.wantEqual()
	})
}

// What a comparison found is not in the queue then: nothing else says that the two differ.
func TestNotInStepWhileAFarBehindBackupIsSent(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.l.agent.manyDiffer = 300
		r.begin(numbered("f%d", 302)...)
		r.wantState(InStep)
		r.e.set(func() {
			r.e.dst = tree{} // somebody emptied the backup
			r.e.answer = func(what string, _ []string) *transfer.Result {
				if what == "tree" {
					time.Sleep(5 * time.Minute)
					return failure(transfer.Transient, "the connection broke")
				}
				return nil
			}
		})
		if _, err := r.l.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.after(time.Minute)
		r.wantState(Behind, "whole tree")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := <-r.barrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the barrier: %v", err)
		}
		r.e.setAnswer(nil) // for the next one
		r.settles(10 * time.Minute)
	})
}

// What is only on the backup goes to the door when all of the comparison is known, and until then nowhere.
func TestNotInStepAfterAComparisonThatWasCutOff(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.set(func() {
			r.e.dst.put("extra", node{data: "1"})
			r.e.listEnd = failure(transfer.Unknown, "status 99")
		})
		if _, err := r.l.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.after(100 * time.Millisecond)
		r.wantState(Behind, "to be compared")
		r.e.set(func() { r.e.listEnd = nil })
		r.settles(time.Minute)
	})
}

// Rsync leaves a path alone that comes back while it is being deleted, and does not say so. What the backup has below it is
// of the one before: a comparison at the start found it, or the watch, and neither will again.
func TestDirectoryThatComesBackWhileItIsDeletedIsCompared(t *testing.T) {
	for name, atStart := range map[string]bool{"found at the start": true, "found by the watch": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				r.e.src.put("keep", node{data: "1"})
				if !atStart {
					r.e.src.put("d/old", node{data: "1"})
				}
				r.e.dst = r.e.src.clone()
				r.e.dst.put("d/old", node{data: "1"})
				r.e.during = func(what string, _ []string) {
					if what != "delete" {
						return
					}
					r.e.set(func() { r.e.during = nil; r.e.src.put("d/new", node{data: "2"}) })
					go r.events(watch.Event{Path: "d", Op: watch.Create, Dir: true}, watch.Event{Path: "d/new", Op: watch.Create})
				}
				r.start()
				if !atStart {
					r.after(time.Second)
					r.rm("d")
				}
				r.after(10 * time.Second)
				if r.e.count("delete") == 0 {
					t.Error("nothing was deleted")
				}
				r.wantState(InStep)
				r.wantEqual()
			})
		})
	}
}

// Of what could not be read nobody knows whether it is gone.
func TestIncompleteComparisonDeletesNothing(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.src.put("d/a", node{data: "1"})
		r.e.src.put("b", node{data: "1"})
		r.e.dst = r.e.src.clone()
		r.e.dst.put("extra", node{data: "1"})
		r.e.locked["d"] = true
		r.start()
		r.after(time.Minute)
		r.wantState(Degraded, "Permission denied")
		if !r.onBackup("extra") || r.backup("d/a") != "1" {
			t.Errorf("backup: %v", r.e.dst)
		}
		r.e.set(func() { r.e.locked = map[string]bool{} })
		r.settles(10 * time.Minute)
	})
}

// A deletion of which nothing can be found out waits and says why; what has nothing to do with it goes on.
func TestDeletionThatCannotBeLookedIntoSaysWhy(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a", "b")
		r.e.set(func() {
			r.e.answer = func(what string, paths []string) *transfer.Result {
				if what != "missing" {
					return nil
				}
				return &transfer.Result{Class: transfer.Done, Incomplete: true, Failed: []transfer.PathFailure{{Path: "a", Reason: "no room to ask"}}}
			}
		})
		r.rm("a")
		r.write("c", "1")
		r.after(10 * time.Second)
		if n := r.e.count("missing"); n > 6 {
			t.Errorf("asked for %d times in ten seconds", n)
		}
		r.wantState(Degraded, `"a": no room to ask`)
		if !r.onBackup("a") || !r.onBackup("c") {
			t.Errorf("backup: %v", r.e.dst)
		}
		r.e.set(func() { r.e.answer = nil })
		r.settles(10 * time.Minute)
		if r.onBackup("a") {
			t.Error("not deleted when it could be looked into")
		}
	})
}

// What the backup cannot delete is tried at growing intervals, and does not count as deleted.
func TestDeletionThatTheBackupRefusesIsTriedAtGrowingIntervals(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a", "b", "d/x", "d/y")
		refused := 0
		r.e.set(func() {
			r.e.answer = func(what string, paths []string) *transfer.Result {
				if what != "delete" {
					return nil
				}
				refused++
				return &transfer.Result{Class: transfer.Done, Failed: []transfer.PathFailure{{Path: paths[0], Reason: "Operation not permitted (1)", Remote: true}}}
			}
		})
		total := r.l.door.total
		r.rm("d/x")
		r.after(10 * time.Minute)
		r.wantState(Degraded, `"d/x": Operation not permitted`)
		r.e.set(func() {
			if refused < 5 || refused > 20 {
				t.Errorf("%d tries in ten minutes", refused)
			}
		})
		if err := r.l.call(t.Context(), func(time.Time) {
			if r.l.door.total != total || r.l.door.done != 0 {
				t.Errorf("%d entries on the backup, %d deleted of late; want %d and 0", r.l.door.total, r.l.door.done, total)
			}
		}); err != nil {
			t.Fatal(err)
		}
		r.e.set(func() { r.e.answer = nil })
		r.settles(time.Hour)
	})
}

// The same of a tree that is compared because events of it were lost: it is compared again until it can be read.
func TestIncompleteComparisonOfATreeDeletesNothingAndIsMadeAgain(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("d/a", "d/x/f")
		r.e.set(func() {
			r.e.src.remove("d/a") // and no event tells
			r.e.locked["d/x"] = true
		})
		r.events(watch.Event{Path: "d", Op: watch.Rescan, Dir: true, Tree: true})
		r.after(time.Minute)
		if s := r.status(); s.State == InStep || !r.onBackup("d/a") || !r.onBackup("d/x/f") {
			t.Errorf("%s while d/x cannot be read; backup: %v", s.State, r.e.dst)
		}
		r.e.set(func() { r.e.locked = map[string]bool{} })
		r.settles(10 * time.Minute)
		if r.onBackup("d/a") || !r.onBackup("d/x/f") {
			t.Errorf("backup: %v", r.e.dst)
		}
		if n := r.l.full.started; n != 1 {
			t.Errorf("%d full batches, want the first alone", n)
		}
	})
}

// What was held and is back on disk, though no event told of it, lapses with the next full batch.
func TestFullBatchLetsHeldDeletionsLapse(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 2, 1 }, func(t *testing.T, r *rig) {
		for _, name := range []string{"a", "b", "c", "d"} {
			r.e.src.put("much/"+name, node{data: "1"})
		}
		r.begin("rest")
		r.rm("much")
		r.after(5 * time.Second)
		r.wantState(Held)
		r.e.set(func() {
			for p, n := range r.e.dst {
				r.e.src.put(p, n)
			}
		})
		if err := r.l.call(t.Context(), func(now time.Time) { r.l.requestFull("sync") }); err != nil {
			t.Fatal(err)
		}
		r.settles(2 * time.Second)
	})
}
