// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

func TestUnreachableBackupIsProbedWithBackOff(t *testing.T) {
	bubble(t, func(p *pair.Pair) {
		p.Retry.Initial, p.Retry.Max = pair.Duration(time.Second), pair.Duration(time.Minute)
	}, func(t *testing.T, r *rig) {
		r.begin()
		r.e.setAnswer(fails("", transfer.Transient, "no connection to backup:873"))
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
		r.e.setAnswer(fails("", transfer.Permanent, "the backup host refuses the password"))
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
		r.e.setAnswer(fails("send", transfer.NoSpace, "the backup is full"))
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
		r.e.setAnswer(func(_ string, paths []string) *transfer.Result {
			if slices.Contains(paths, "f37") {
				return failure(transfer.Unknown, "rsync ended with status 99")
			}
			return nil
		})
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
		r.e.setAnswer(fails("", transfer.Unknown, "rsync ended with status 99"))
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
		r.e.setAnswer(lasts("send", 10*time.Minute))
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

// The backup is full. What is deleted on the source would make room there.
func TestDeletionsMakeRoomOnAFullBackup(t *testing.T) {
	for name, size := range map[string]int64{"small": 1, "big": bigFile + 1} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				r.begin("old", "keep")
				r.wantState(InStep)
				r.e.setAnswer(func(what string, paths []string) *transfer.Result {
					r.e.mu.Lock()
					defer r.e.mu.Unlock()
					if _, full := r.e.dst["old"]; full && what == "send" {
						return failure(transfer.NoSpace, "the backup is full")
					}
					return nil
				})
				r.writeAll(node{data: "1", size: size}, "new")
				r.after(10 * time.Second)
				r.wantState(Failing)
				r.rm("old")
				r.settles(3 * diskEvery)
				if n := strings.Count(r.log.String(), "the backup takes files again"); n != 1 {
					t.Errorf("%d times it was said to take files again", n)
				}
			})
		})
	}
}

// While a probe or a trial runs, the loop must sleep.
func TestLoopSleepsWhileAProbeRuns(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		probing := atomic.Bool{}
		r.e.setAnswer(func(what string, _ []string) *transfer.Result {
			if what == "probe" {
				probing.Store(true)
				time.Sleep(10 * time.Second) // --contimeout
				probing.Store(false)
			}
			return failure(transfer.Transient, "no connection")
		})
		r.write("b", "1")
		for range 1000 {
			if r.after(10 * time.Millisecond); probing.Load() {
				break
			}
		}
		r.after(time.Second)
		r.wantSleep()
		if !probing.Load() {
			t.Fatal("no probe runs")
		}
	})
}

func TestLoopSleepsWhileATrialRuns(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(fails("send", transfer.NoSpace, "full"))
		r.writeAll(node{data: "1", size: bigFile + 1}, "new")
		r.after(100 * time.Millisecond)
		r.wantState(Failing)
		trying := atomic.Bool{}
		r.e.setAnswer(func(what string, _ []string) *transfer.Result {
			trying.Store(true)
			time.Sleep(time.Minute)
			return nil
		})
		r.after(diskEvery + time.Second)
		if !trying.Load() {
			t.Fatal("no trial runs")
		}
		r.wantSleep()
	})
}

// A suspect transfer, and a probe for it that the backup host accepts and does not answer.
func TestLoopSleepsWhileATransferIsSuspect(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(func(what string, _ []string) *transfer.Result {
			time.Sleep(time.Minute)
			return nil
		})
		r.write("b", "1")
		r.after(25 * time.Second)
		if r.e.count("probe") != 1 {
			t.Fatal("no probe")
		}
		r.wantState(Behind, "the backup host was asked 15s ago and has not answered")
		r.wantSleep()
	})
}

// crash takes from the backup what was not on its disk yet.
func (r *rig) crash(lost string) {
	r.e.set(func() { r.e.dst.remove(lost) })
}

// Nothing happens in the source, and the backup host dies: the pair is not in step until it is back and nothing is missing there.
func TestIdlePairNoticesThatTheBackupIsGone(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a", "b")
		r.wantState(InStep)
		r.after(10 * time.Minute)
		if n := r.e.count("probe"); n < 9 || n > 10 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		r.e.setAnswer(fails("", transfer.Transient, "Connection refused"))
		r.after(idleProbe + 5*time.Second)
		r.wantState(Failing, "Connection refused")
		barrier := r.barrier(t.Context())
		r.crash("a")
		r.after(time.Second)
		if r.passes(barrier) {
			t.Error("who waits is told that everything is on the backup")
		}
		r.e.setAnswer(nil)
		r.settles(time.Minute)
	})
}

func TestBackupThatWasProvisionedAnewIsCompared(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(fails("", transfer.Permanent, "has no module"))
		r.after(idleProbe + time.Second)
		r.wantState(Failing)
		r.crash("a")
		r.e.setAnswer(nil)
		r.settles(10 * time.Minute)
	})
}

// A host that goes down, or comes up, answers without its disks for a moment.
func TestBackupWithoutItsDiskIsAskedSoonAndCompared(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(fails("", transfer.NoDirectory, "the directory of module data is missing"))
		r.write("b", "1")
		r.after(10 * time.Second)
		r.wantState(Failing, "is missing")
		r.after(30 * time.Minute)
		r.crash("a")
		r.e.setAnswer(nil)
		r.settles(diskEvery + 5*time.Second)
	})
}

// The host comes back, and its disk is full: what it lost is looked for when there is room.
func TestBackupThatIsBackAndFullIsCompared(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(fails("", transfer.Transient, "Connection refused"))
		r.write("b", "1")
		r.after(10 * time.Second)
		r.wantState(Failing, "refused")
		r.crash("a")
		r.e.setAnswer(fails("send", transfer.NoSpace, "the backup is full"))
		r.after(time.Minute)
		r.wantState(Failing, "full")
		r.e.setAnswer(nil)
		r.settles(10 * time.Minute)
	})
}

// A daemon that is restarted refuses one connection. That is no reason to compare everything.
func TestOneFailureIsNotFollowedByAComparison(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(fails("send", transfer.Transient, "Connection refused"))
		r.write("b", "1")
		r.after(100 * time.Millisecond)
		r.e.setAnswer(nil)
		r.settles(time.Minute)
		if n := r.e.count("list"); n != 1 {
			t.Errorf("%d comparisons", n)
		}
	})
}

// The log and the events tell of the end of a trouble, and not of every file.
func TestEndOfATroubleIsTold(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		for i := range 3 {
			r.e.setAnswer(fails("", transfer.Transient, "no connection"))
			r.write("b", fmt.Sprint(i))
			r.after(5 * time.Second)
			r.wantState(Failing)
			r.e.setAnswer(nil)
			r.settles(time.Minute)
			for j := range 5 {
				r.write("c", fmt.Sprint(i, j))
				r.after(time.Second)
			}
			if n := strings.Count(r.log.String(), `state="in step"`); n != i+2 {
				t.Errorf("told %d times after %d troubles", n, i+1)
			}
		}
	})
}

// A batch of which the rules leave nothing does not show that the backup is there.
func TestRunWithoutRsyncIsNoSignOfLife(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(func(what string, _ []string) *transfer.Result {
			if what == "send" {
				return &transfer.Result{Status: -1}
			}
			return failure(transfer.Transient, "Connection refused")
		})
		for i := range 6 {
			r.write("a", fmt.Sprint(i))
			r.after(idleProbe / 2)
		}
		r.wantState(Failing, "Connection refused")
	})
}
