// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// cut breaks the transfer of a file in the middle.
func (r *rig) cut(file string) {
	r.e.setAnswer(func(what string, _ []string) *transfer.Result {
		if what != "send" {
			return nil
		}
		res := failure(transfer.Transient, "broken")
		res.Cut = true
		return res
	})
	r.write(file, "1")
	r.after(100 * time.Millisecond)
	r.e.setAnswer(nil)
}

// A transfer that was cut off may leave something on the backup: at once, or where the network was cut, when rsync on
// the backup host gives up.
func TestLeftoversOfABrokenTransferAreRemoved(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.set(func() { r.e.dst.put(".b.x7Hq2s", node{data: "part"}) })
		r.cut("b")
		if s := r.status(); s.State == InStep {
			t.Error("in step, before anybody has looked")
		}
		r.settles(10 * time.Second)

		r.e.set(func() { r.e.dst.put(".b.late00", node{data: "part"}) })
		r.settles(time.Duration(r.l.pair.Transfer.Timeout) + 2*lateCleanUp)
		if n := r.l.full.started; n != 3 {
			t.Errorf("%d full batches, want 3: at the start, at once, late", n)
		}
	})
}

// Where nothing is deleted, too: rsync on the backup host may put an older version in place after a later run has sent a newer one. Parts of no use
// stay there, and do not make a comparison follow the other.
func TestBrokenTransferIsFollowedByAComparisonWhereNothingIsDeleted(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Delete.Enabled = false }, func(t *testing.T, r *rig) {
		r.begin("a")
		r.cut("b")
		r.e.set(func() {
			r.e.dst.put("a", node{data: "older"})
			r.e.listEnd = &transfer.Result{PartsLeft: true}
		})
		r.settles(10 * time.Second)
		if got := r.backup("a"); got != "1" {
			t.Errorf("the backup has %q", got)
		}
		r.after(time.Duration(r.l.pair.Transfer.Timeout) + 2*lateCleanUp)
		if n := r.e.count("list"); n != 3 {
			t.Errorf("%d comparisons, want 3: at the start, at once, late", n)
		}
	})
}

// A temporary file that was left beside a transfer that runs may be of that: it is looked at once more, soon, and not over and over.
func TestWhatABrokenTransferLeftBesideAnotherIsLookedAtTwice(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.set(func() { r.e.listEnd = &transfer.Result{Hidden: true} })
		r.cut("b")
		before := r.e.count("list")
		for r.e.count("list") == before {
			r.after(10 * time.Millisecond)
		}
		r.after(100 * time.Millisecond)
		if s := r.status(); s.State == InStep {
			t.Error("in step, and what was passed over may be left for good")
		}
		r.settles(5 * time.Second)
		r.after(30 * time.Second)
		if n := r.e.count("list") - before; n != 2 {
			t.Errorf("%d comparisons, want 2", n)
		}
	})
}

// As long as a transfer runs that ran when it was first seen, nobody knows whose a temporary file is.
func TestWhatABrokenTransferLeftBesideALongOneIsNotForgotten(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.set(func() { r.e.listEnd = &transfer.Result{Hidden: true} })
		long := &job{kind: "big", what: "long", slot: true, slow: true, started: time.Now(), sign: time.Now().Add(time.Hour), cancel: func() {}}
		r.l.post(func(now time.Time) {
			r.l.jobs[long] = struct{}{}
			r.l.cutOff(now)
		})
		r.after(30 * time.Second)
		r.wantState(Behind)
		if n := r.e.count("list"); n < 4 || n > 60 {
			t.Errorf("%d comparisons", n)
		}
		r.l.post(func(time.Time) { delete(r.l.jobs, long) })
		r.settles(5 * time.Second)
	})
}

// Rsync's directory for parts goes as a whole, when no part in it is of use any more.
func TestNotInStepWhilePartsOfNoUseAreLeft(t *testing.T) {
	for name, tree := range map[string]bool{"everything is compared": false, "a tree is": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				r.begin("d/a")
				r.e.set(func() { r.e.listEnd = &transfer.Result{PartsLeft: true} })
				if tree {
					r.events(watch.Event{Path: "d", Op: watch.Rescan, Dir: true, Tree: true})
				} else if _, err := r.l.sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				r.after(10 * time.Second)
				r.wantState(Behind)
				if n := r.e.count("list"); n < 4 || n > 25 {
					t.Errorf("%d comparisons in ten seconds", n)
				}
				r.e.set(func() { r.e.listEnd = nil })
				r.settles(10 * time.Second)
			})
		})
	}
}

func TestKilledAgentIsKnownToTheNext(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "lock")
	for _, step := range []struct{ clean, killed bool }{{true, false}, {false, false}, {false, true}, {true, true}, {true, false}} {
		unlock, killed, err := lock(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if killed != step.killed {
			t.Errorf("killed: %v, want %v", killed, step.killed)
		}
		if data, _ := os.ReadFile(name); len(data) == 0 {
			t.Error("the lock holds no process id")
		}
		unlock(step.clean)
	}
}

// A child of the agent that was killed has the lock, too, until it is the rsync that it was started as.
func TestLockOfAKilledAgentIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		held, waited time.Duration
		want         error
	}{
		{held: 3 * lockPoll / 2, waited: 2 * lockPoll},
		{held: 2 * lockPatience, waited: lockPatience, want: ErrRunning},
	} {
		synctest.Test(t, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "lock")
			unlock, _, err := lock(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(c.held, func() { unlock(false) })
			began := time.Now()
			unlockNext, killed, err := lock(t.Context(), name)
			if !errors.Is(err, c.want) || time.Since(began) != c.waited {
				t.Errorf("held for %v: %v after %v, want %v after %v", c.held, err, time.Since(began), c.want, c.waited)
			}
			if err == nil {
				if !killed {
					t.Error("it is not known that the agent before was killed")
				}
				unlockNext(true)
			}
			time.Sleep(c.held)
		})
	}
}

// A second look is due after transfer.timeout; an agent that was stopped in between must leave word of it.
func TestLateLookSurvivesARestart(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.cut("b")
		r.settles(10 * time.Second)
		clean := func() (none bool) {
			if err := r.l.call(t.Context(), func(time.Time) { none = r.l.leftovers.none() }); err != nil {
				t.Fatal(err)
			}
			return none
		}
		if clean() {
			t.Error("the agent would end clean, and the next one not look late")
		}
		r.after(time.Duration(r.l.pair.Transfer.Timeout) + 2*lateCleanUp)
		if !clean() {
			t.Error("something is still to be looked for")
		}
	})
}

// The backup host gives up a file in the middle, and keeps a part; the file goes.
func TestPartOfAFileThatTheBackupRefusesGoes(t *testing.T) {
	bin := t.TempDir()
	// write(2) of the daemon ends with EFBIG past 1 MiB, as on a filesystem with a limit; EIO does the same.
	if err := os.WriteFile(filepath.Join(bin, "rsync"), []byte("#!/bin/bash\ntrap '' XFSZ\nulimit -f 1024\nexec /usr/bin/rsync \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	s := newSite(t, nil)
	s.write("keep", "1")
	s.start()
	s.equal()
	s.write("big", strings.Repeat("0123456789abcdef", 3<<16))
	s.untilState(Failing)
	s.rm("big")
	s.equal()
}

// A transfer goes on over a reload, and its temporary file is its own.
func TestTemporaryFileOutlivesAReload(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) { p.Transfer.BandwidthLimit = "1000" })
	s.write("keep", "1")
	s.start()
	s.equal()
	s.write("big", strings.Repeat("0123456789abcdef", 4<<16)) // four seconds
	pattern := filepath.Join(s.dst, ".big.??????")
	var before []string
	s.until("the file is on its way", func(Status) bool {
		before, _ = filepath.Glob(pattern)
		return len(before) > 0
	})
	s.mu.Lock()
	s.pair.Exclude = append(s.pair.Exclude, "*.bak")
	s.mu.Unlock()
	s.agent.Reload()
	time.Sleep(2 * time.Second)
	after, _ := filepath.Glob(pattern)
	if len(after) != 1 || after[0] != before[0] {
		t.Errorf("the temporary file of a running transfer was deleted on the backup: %v, then %v", before, after)
	}
	s.equal()
	if strings.Contains(s.log.String(), "could not be sent") {
		t.Error("the transfer failed")
	}
}

// A path whose every try breaks down keeps to its back-off, although a comparison follows each try and finds it.
func TestComparisonDoesNotHurryAPathThatBreaksDown(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		tries := 0
		r.e.answer = func(what string, paths []string) *transfer.Result {
			if what != "send" || !slices.Contains(paths, "bad") {
				return nil
			}
			tries++
			return &transfer.Result{Class: transfer.Unknown, Status: 23, Message: "what is this?", Cut: true}
		}
		r.begin("a", "bad")
		r.after(10 * time.Minute)
		r.wantState(Degraded, "bad", "what is this?")
		if tries < 5 || tries > 20 {
			t.Errorf("%d tries in ten minutes", tries)
		}
	})
}
