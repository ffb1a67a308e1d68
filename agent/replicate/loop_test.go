// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

func TestDeletionsWaitForTheEndOfTheirBurstAndCreationsDoNot(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.src.put("keep", node{data: "1"})
		for i := range 20 {
			r.e.src.put(fmt.Sprintf("d/%d", i), node{data: "1"})
		}
		r.begin()
		r.wantEqual()
		for i := range 10 { // a slow rm -rf
			r.rm(fmt.Sprintf("d/%d", i))
			r.after(50 * time.Millisecond)
		}
		r.write("new", "1")
		r.after(31 * time.Millisecond)
		if r.backup("new") != "1" {
			t.Error("a creation waits for deletions")
		}
		if r.e.count("delete")+r.e.count("missing") > 0 {
			t.Error("judged in the middle of a burst")
		}
		r.after(time.Second)
		if n := r.e.count("delete"); n != 1 {
			t.Errorf("%d runs for one burst", n)
		}
		r.wantEqual()
	})
}

// A path that came and went before it was ever sent costs no deletion.
func TestWhatTheBackupNeverHadIsNotDeleted(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("keep")
		r.write("tmp", "1")
		r.rm("tmp")
		r.after(time.Second)
		if n := r.e.count("delete"); n != 0 {
			t.Errorf("%d deletions", n)
		}
		r.wantState(InStep)
	})
}

func TestLedgerClearsWhenThePathIsGone(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.set(func() { r.e.locked["d/secret"] = true })
		r.write("d/secret", "1")
		r.after(time.Second)
		s := r.wantState(Degraded, "d/secret", "Permission denied")
		if e := s.Ledger.Entries[0]; e.Remote || e.Tries == 0 || !e.Next.After(e.Since) {
			t.Errorf("%+v", e)
		}
		r.rm("d/secret")
		r.after(time.Second)
		if s := r.wantState(InStep); s.Ledger.Count != 0 {
			t.Errorf("ledger: %+v", s.Ledger)
		}
	})
}

// chmod 000 on a directory makes its files unreadable, not gone.
func TestUnreadableDirectoryDeletesNothing(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("d/a", "b")
		r.e.set(func() { r.e.locked["d"] = true })
		r.events(watch.Event{Path: "d", Op: watch.Attrib, Dir: true}, watch.Event{Path: "d/a", Op: watch.Delete})
		r.after(time.Second)
		r.wantState(Degraded, "d")
		if r.backup("d/a") != "1" {
			t.Error("deleted on the backup")
		}
		r.e.set(func() { r.e.locked = map[string]bool{} })
		r.after(10 * time.Minute)
		r.wantState(InStep)
	})
}

func TestNothingIsDeletedWhileTheSourceIsGone(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("d/a", "b")
		// Unmounted: an empty directory of another identity, and the kernel tells of deletions first.
		src, id := r.e.src.clone(), r.e.id
		r.e.set(func() { r.e.src, r.e.id = tree{}, transfer.Identity{FS: "fsid:fake-2", Ino: 9} })
		r.events(watch.Event{Path: "d/a", Op: watch.Delete}, watch.Event{Path: "b", Op: watch.Delete})
		r.after(time.Second)
		r.wantState(Held, "not the provisioned directory", "approve")
		r.w.reports <- watch.Report{Fault: fmt.Errorf("%w: unmounted", watch.ErrRootLost)}
		r.after(time.Minute)
		r.wantState(Held)
		r.e.set(func() { r.e.gone = true })
		r.after(time.Hour)
		r.wantState(Held)
		if n := r.e.count("delete"); n != 0 || len(r.e.dst) != 3 {
			t.Errorf("%d deletions, backup %v", n, r.e.dst)
		}
		r.e.set(func() {
			r.e.src, r.e.id, r.e.gone = src, id, false
			r.e.src.put("new", node{data: "1"})
		})
		r.w.reports <- watch.Report{Restored: true, Events: []watch.Event{{Op: watch.Rescan, Dir: true, Tree: true}}}
		r.settles(30 * time.Second)
		if n := r.e.count("delete"); n != 0 {
			t.Errorf("%d deletions", n)
		}
	})
}

func TestWatchdogIsFedAtLeastTwicePerInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.l.agent.opts.Watchdog = time.Minute
		r.e.src.put("a", node{data: "1"})
		r.start()
		r.after(time.Hour)
		r.stop()
		n := 0
		for _, s := range r.toldManager() {
			if s == "WATCHDOG=1" {
				n++
			}
		}
		if n < 120 || n > 400 {
			t.Errorf("%d pings in an hour, with a watchdog of a minute", n)
		}
		if !slices.Contains(r.toldManager(), "READY=1") || !slices.Contains(r.toldManager(), "STATUS=in step") {
			t.Errorf("told: %q", r.told[:min(len(r.told), 10)])
		}
	})
}

func TestReadyIsToldEvenWhenNothingCanBeDone(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.gone = true
		r.start()
		r.after(30 * time.Second)
		if !slices.Contains(r.toldManager(), "READY=1") {
			t.Errorf("told: %q", r.told)
		}
		r.wantState(Failing)
		r.e.set(func() { r.e.gone = false })
		r.after(30 * time.Second)
		r.wantState(InStep)
	})
}

func TestRunningTransferMayFinishWhenTheAgentStops(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.set(func() { r.e.takes = 5 * time.Second })
		r.write("b", "1")
		r.after(time.Second)
		began := time.Now()
		r.stop()
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("stopped after %v", d)
		}
		r.wantEqual()
		r.cancel = nil
	})
}

func TestTransferThatDoesNotFinishIsEndedWhenTheAgentStops(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.set(func() { r.e.takes = time.Hour })
		r.write("b", "1")
		r.after(time.Second)
		began := time.Now()
		r.stop()
		if d := time.Since(began); d < stopGrace || d > stopGrace+2*time.Second {
			t.Errorf("stopped after %v", d)
		}
		r.cancel = nil
	})
}

func TestPausedAgentSendsNothing(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.l.paused = true
		r.e.src.put("a", node{data: "1"})
		r.start()
		r.write("b", "1")
		r.after(time.Hour)
		r.wantState(Paused, "resume")
		if n := len(r.e.runs); n != 0 {
			t.Errorf("%d runs", n)
		}
		if !slices.Contains(r.toldManager(), "READY=1") {
			t.Error("a paused agent is not ready")
		}
		if err := r.l.resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.settles(time.Second)
	})
}

// A start would pause it again; so would one after a definition that paused an agent paused already.
func TestDefinitionAndPauseEachHold(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Paused = true }, func(t *testing.T, r *rig) {
		r.l.paused = true
		r.start()
		if err := r.l.resume(t.Context()); err == nil || !strings.Contains(err.Error(), "`paused: false`") {
			t.Errorf("resume said %v", err)
		}
		r.after(time.Second)
		r.wantState(Paused, "the definition says")
		if err := r.l.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.reload(func(p *pair.Pair) { p.Paused = false })
		r.after(time.Second)
		r.wantState(Paused, "resume")
		if err := r.l.resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.settles(time.Second)
	})
}
