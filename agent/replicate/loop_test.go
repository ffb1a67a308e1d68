// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"errors"
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

// bubble runs a test in its own time.
func bubble(t *testing.T, change func(*pair.Pair), test func(t *testing.T, r *rig)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, change)
		test(t, r)
		if r.cancel != nil {
			r.stop()
		}
	})
}

func TestChangeIsSentAfterItsDelay(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.src.put("a", node{data: "0"})
		r.begin()
		r.wantState(InStep)
		before := r.e.count("send")
		r.write("a", "1")
		r.after(19 * time.Millisecond)
		if n := r.e.count("send") - before; n != 0 {
			t.Errorf("%d runs before the delay was over", n)
		}
		r.wantState(Behind, "1 path")
		r.after(time.Millisecond)
		if n := r.e.count("send") - before; n != 1 {
			t.Errorf("%d runs after the delay", n)
		}
		r.settles(10 * time.Millisecond)
		if s := r.status(); s.Latency.Count != 2 || s.Latency.P50 != 0.03 {
			t.Errorf("latency %+v", s.Latency)
		}
	})
}

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

func TestUnreachableBackupIsProbedWithBackOff(t *testing.T) {
	bubble(t, func(p *pair.Pair) {
		p.Retry.Initial, p.Retry.Max = pair.Duration(time.Second), pair.Duration(time.Minute)
	}, func(t *testing.T, r *rig) {
		r.begin()
		r.e.setAnswer(func(string, []string) *transfer.Result {
			return failure(transfer.Transient, "no connection to backup:873")
		})
		down := time.Since(r.e.began)
		r.write("a", "1")
		r.after(200 * time.Millisecond)
		r.wantState(Behind) // one failure is not an outage yet
		r.after(3 * time.Second)
		r.wantState(Failing, "no connection", "mend it")
		for i := range 100 {
			r.write(fmt.Sprintf("f%d", i), "1")
			r.after(6 * time.Second)
		}
		if n := r.e.count("send"); n != 1 {
			t.Errorf("%d batches were tried while the backup was down", n)
		}
		probes := r.e.times("probe")
		last := down
		for i, at := range probes {
			gap := at - last
			want := min(time.Second<<i, time.Minute)
			if gap < want*3/4 || gap > want+50*time.Millisecond {
				t.Errorf("probe %d came after %v, want about %v", i, gap, want)
			}
			last = at
		}
		if n := len(probes); n < 14 || n > 20 {
			t.Errorf("%d probes in ten minutes", n)
		}
		if n := strings.Count(r.log.String(), "level=WARN"); n > 2 {
			t.Errorf("%d warnings", n)
		}
		r.e.setAnswer(nil)
		r.settles(time.Minute)
	})
}

func TestPermanentFailureIsRetriedSlowlyOrWhenAsked(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Retry.Max = pair.Duration(5 * time.Minute) }, func(t *testing.T, r *rig) {
		r.e.setAnswer(func(string, []string) *transfer.Result {
			return failure(transfer.Permanent, "the backup host refuses the password")
		})
		r.begin()
		r.wantState(Failing, "password", "mend it")
		r.after(3 * time.Minute)
		if n := r.e.count("probe"); n != 0 {
			t.Errorf("%d tries within three minutes", n)
		}
		r.after(3 * time.Minute)
		if n := r.e.count("probe"); n != 1 {
			t.Errorf("%d tries within six minutes", n)
		}
		r.e.setAnswer(nil)
		if _, err := r.l.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.after(time.Second)
		r.wantState(InStep)
	})
}

func TestFullDiskOnTheBackupRecoversByItself(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin()
		r.e.setAnswer(func(what string, _ []string) *transfer.Result {
			if what == "send" {
				return failure(transfer.NoSpace, "the backup is full")
			}
			return nil
		})
		for i := range 50 {
			r.write(fmt.Sprintf("f%d", i), "1")
		}
		r.after(10 * time.Second)
		r.wantState(Failing, "full")
		if n := r.e.count("send"); n > 6 {
			t.Errorf("%d tries in ten seconds", n)
		}
		r.e.setAnswer(nil)
		r.settles(20 * time.Second)
	})
}

// What rsync says and nobody understands must not hold back the paths that have nothing to do with it.
func TestTransferThatIsNotUnderstoodIsBisected(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin()
		bad := func(what string, paths []string) *transfer.Result {
			if slices.Contains(paths, "f37") {
				return failure(transfer.Unknown, "rsync ended with status 99")
			}
			return nil
		}
		r.e.setAnswer(bad)
		r.writeAll(node{data: "1"}, numbered("f%d", 100)...)
		r.after(900 * time.Millisecond)
		s := r.wantState(Degraded, "f37", "status 99")
		if s.Ledger.Count != 1 || s.Ledger.Entries[0].Path != "f37" {
			t.Errorf("ledger: %+v", s.Ledger)
		}
		r.e.mu.Lock()
		if n := len(r.e.dst); n != 99 {
			t.Errorf("%d of 99 arrived", n)
		}
		r.e.mu.Unlock()
		// Its tries come at growing distances, and other changes go on beside them.
		before := r.e.count("send")
		r.after(time.Hour)
		if n := r.e.count("send") - before; n < 12 || n > 25 {
			t.Errorf("%d tries in an hour", n)
		}
		r.write("other", "1")
		r.after(100 * time.Millisecond)
		if r.backup("other") != "1" {
			t.Error("a path in the ledger holds back others")
		}
		r.e.setAnswer(nil)
		r.settles(6 * time.Minute)
	})
}

func TestWhenNothingIsUnderstoodItIsAnOutage(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin()
		r.e.setAnswer(func(what string, _ []string) *transfer.Result {
			return failure(transfer.Unknown, "rsync ended with status 99")
		})
		r.writeAll(node{data: "1"}, numbered("f%d", 2000)...)
		r.after(time.Minute)
		r.wantState(Failing, "status 99")
		if n := r.e.count("send"); n > 100 {
			t.Errorf("%d runs in a minute", n)
		}
		r.e.setAnswer(nil)
		r.settles(10 * time.Minute)
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
		r.e.setAnswer(func(what string, _ []string) *transfer.Result {
			if what == "list" {
				time.Sleep(time.Hour)
			}
			return nil
		})
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
		passed := make(chan error, 1)
		go func() { passed <- r.l.wait(t.Context()) }()
		synctest.Wait()
		var cookie string
		if err := r.l.call(t.Context(), func(time.Time) {
			for cookie = range r.l.barriers {
			}
		}); err != nil || cookie == "" {
			t.Fatalf("no barrier: %v", err)
		}
		r.events(watch.Event{Cookie: cookie})
		r.after(10 * time.Second)
		select {
		case err := <-passed:
			if err != nil || !r.onBackup("d/unseen") {
				t.Errorf("passed with %v; on the backup: %v", err, r.onBackup("d/unseen"))
			}
		default:
			t.Error("the barrier is not passed")
		}
		r.wantState(Degraded)
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

func TestSilentTransferMakesUsAskTheBackup(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(func(what string, _ []string) *transfer.Result {
			if what == "send" {
				time.Sleep(50 * time.Second) // rsync notices late that the link was cut
			}
			return failure(transfer.Transient, "no answer")
		})
		r.write("b", "1")
		r.after(9 * time.Second)
		r.wantState(Behind)
		r.after(6 * time.Second)
		r.wantState(Failing, "no answer")
		r.e.setAnswer(nil)
		r.settles(2 * time.Minute)
	})
}

// The other directions of the same: a slow transfer to a backup that answers is left alone.
func TestSlowTransferIsLeftAlone(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(func(what string, _ []string) *transfer.Result {
			if what == "send" {
				time.Sleep(10 * time.Minute)
			}
			return nil
		})
		r.write("b", "1")
		r.after(9 * time.Minute)
		r.wantState(Behind)
		r.after(2 * time.Minute)
		r.wantState(InStep)
		if n := r.e.count("send"); n != 2 {
			t.Errorf("%d runs", n)
		}
		if n := r.e.count("probe"); n < 50 || n > 62 {
			t.Errorf("%d probes in ten minutes", n)
		}
	})
}

func TestPausedAgentSendsNothing(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Paused = true }, func(t *testing.T, r *rig) {
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

func TestOpenFileIsWaitedForWithinMaxDelay(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.set(func() {
			r.e.open["log"] = true
			r.e.open["quick"] = true
		})
		r.write("log", "1")
		r.write("quick", "1")
		r.after(time.Second)
		r.e.set(func() { delete(r.e.open, "quick") })
		r.after(250 * time.Millisecond)
		if !r.onBackup("quick") {
			t.Error("a file that was closed a quarter of a second ago is not sent")
		}
		r.after(3 * time.Second)
		if r.onBackup("log") {
			t.Error("an open file was sent at once")
		}
		r.after(time.Second)
		if !r.onBackup("log") {
			t.Error("a file that is never closed was not sent after max_delay")
		}
	})
}

func TestFileThatIsBeingCopiedIsWaitedForLonger(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		grow := func(n int64) {
			r.e.mu.Lock()
			old := r.e.src["copy"]
			r.e.src.put("copy", node{size: old.size + n})
			r.e.mu.Unlock()
			r.events(watch.Event{Path: "copy", Op: watch.Create | watch.Modify})
		}
		r.e.set(func() { r.e.open["copy"] = true })
		for range 60 {
			grow(copyRate)
			r.after(time.Second)
		}
		if r.onBackup("copy") {
			t.Error("a file was sent while it was being copied")
		}
		r.after(10 * time.Second) // it stalls
		if !r.onBackup("copy") {
			t.Error("a copy that stalls is never sent")
		}
	})
}

func TestBigFilesLeaveASlotForSmallOnes(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(func(what string, paths []string) *transfer.Result {
			if len(paths) > 0 && strings.HasPrefix(paths[0], "big") {
				time.Sleep(time.Hour)
			}
			return nil
		})
		for i := range 3 {
			r.writeAll(node{size: bigFile}, fmt.Sprintf("big%d", i))
		}
		r.after(time.Second)
		for i := range 10 {
			r.write(fmt.Sprintf("small%d", i), "1")
			r.after(100 * time.Millisecond)
			if r.backup(fmt.Sprintf("small%d", i)) != "1" {
				t.Errorf("small file %d waits for big ones", i)
			}
		}
		s := r.status()
		big := 0
		for _, j := range s.InFlight {
			if j.Kind == "big" && !j.Started.IsZero() {
				big++
			}
		}
		if big != 1 {
			t.Errorf("%d big files at once with two slots: %+v", big, s.InFlight)
		}
		r.after(4 * time.Hour)
		r.wantEqual()
	})
}

func TestHugeBatchIsSplitBySize(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.writeAll(node{size: bigFile - 1}, numbered("f%02d", 40)...)
		r.after(time.Second)
		for _, run := range r.e.runs {
			if n := len(run.job); n > batchBytes/(bigFile-1) {
				t.Errorf("%d files in one run", n)
			}
		}
		r.wantEqual()
	})
}
