// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// stranger is a rig whose source and backup have not been compared yet.
func stranger(t *testing.T, change func(*pair.Pair), test func(t *testing.T, r *rig)) {
	t.Helper()
	bubble(t, change, func(t *testing.T, r *rig) {
		r.l.door.foreign = true
		test(t, r)
	})
}

// known is what is on disk about source and backup.
func (r *rig) known() bool {
	r.t.Helper()
	p, err := readSource(r.l.agent.opts.StateDir, r.l.pair.Source.Path)
	if err != nil || p == nil {
		r.t.Fatal(p, err)
	}
	return p.Mirror == mirrorOf(r.l.pair)
}

// wantHeld is for a pair that holds what the backup had before.
func (r *rig) wantHeld(count int) {
	r.t.Helper()
	if s := r.wantState(Held, strange); s.Held == nil || s.Held.Count != count {
		r.t.Errorf("held: %+v, want %d entries", s.Held, count)
	}
}

const strange = "the backup has entries that this source was never seen to have"

func TestWhatTheBackupHadBeforeIsHeld(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		r.e.dst.put("photos/1", node{data: "theirs"})
		r.e.dst.put("a", node{data: "theirs"})
		r.begin("a", "b", "c")
		s := r.wantState(Held, strange, "lockstep approve data")
		if s.Held.Count != 2 || len(s.Held.Paths) != 1 || s.Held.Paths[0] != "photos" {
			t.Errorf("%+v", s.Held)
		}
		// What changes from now on is another matter.
		r.write("d", "1")
		r.rm("b")
		r.after(time.Second)
		if !r.onBackup("d") || r.onBackup("b") || !r.onBackup("photos/1") || r.known() {
			t.Errorf("%v, known %v", r.e.dst, r.known())
		}
		// It did not happen in the source, so nobody waits for it.
		barrier := r.barrier(t.Context())
		r.after(time.Second)
		if !r.passes(barrier) {
			t.Error("the barrier is not passed")
		}
		r.approve()
		r.settles(time.Second)
		if !r.known() {
			t.Error("the approval is not noted")
		}
	})
}

// Somebody takes away on the backup what was another's there.
func TestWhatIsTakenAwayOnTheBackupIsNotHeldAnyMore(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		r.e.dst.put("photos/1", node{data: "theirs"})
		r.e.dst.put("music/1", node{data: "theirs"})
		r.begin("a")
		r.wantHeld(4)
		takeAway := func(dir string) {
			t.Helper()
			r.e.set(func() { r.e.dst.remove(dir) })
			if _, err := r.l.sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.after(time.Minute)
		}
		takeAway("photos")
		r.wantHeld(2)
		takeAway("music")
		r.settles(time.Minute)
		if !r.known() {
			t.Error("it is not noted")
		}
	})
}

// A deletion that happens while a comparison runs, which had passed there, stays held.
func TestComparisonDoesNotClearALaterDeletion(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 1, 1 }, func(t *testing.T, r *rig) {
		r.begin(numbered("%d", 9)...)
		r.e.set(func() { r.e.listLate = 10 * time.Second })
		if _, err := r.l.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.after(time.Second)
		for _, name := range numbered("%d", 5) {
			r.rm(name)
		}
		r.after(time.Minute)
		if s := r.wantState(Held); s.Held.Count != 5 {
			t.Errorf("%+v", s.Held)
		}
	})
}

func TestDeletionThatWouldTakeSuchEntriesAlongIsWaitedFor(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		r.e.dst.put("d/theirs", node{data: "1"})
		r.begin("a", "d/b")
		r.wantState(Held, strange)
		r.rm("d")
		barrier := r.barrier(t.Context())
		r.after(time.Minute)
		if r.passes(barrier) {
			t.Error("the barrier is passed, and d is on the backup")
		}
		r.wantHeld(3)
		r.approve()
		r.settles(time.Minute)
	})
}

func TestBackupThatWasEmptyHasNothingOfOthers(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		r.e.set(func() { r.e.takes = time.Second })
		r.e.src.put("a", node{data: "1"})
		r.start()
		r.after(1500 * time.Millisecond)
		if !r.known() {
			t.Fatal("an empty backup is taken for another's")
		}
		// Something goes that nobody tells of, as after an overflow or a restart.
		r.e.set(func() { r.e.dst.put("gone", node{data: "1"}) })
		r.settles(time.Minute)
	})
}

func TestBackupWithNothingMoreThanTheSourceIsItsMirror(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		r.e.dst.put("a", node{data: "0"})
		r.begin("a", "b")
		r.wantState(InStep)
		if !r.known() {
			t.Error("it is not noted")
		}
	})
}

// A source that was lost is filled from the backup, and the agent is restarted meanwhile: what is missing still is well below the limits.
func TestSourceThatIsBeingRestoredDeletesNothing(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		names := numbered("%03d", 100)
		for _, name := range names {
			r.e.dst.put(name, node{data: "1"})
		}
		r.begin(names[:90]...)
		r.wantHeld(10)
		r.writeAll(node{data: "1"}, names[90:]...)
		r.settles(time.Minute)
		if r.known() {
			t.Error("it was not compared since")
		}
		if _, err := r.l.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.settles(time.Minute)
		if !r.known() {
			t.Error("it is not noted")
		}
	})
}

// The same, from the first file on: what is held because the source is empty is held for another reason then.
func TestEmptySourceThatIsBeingRestoredDeletesNothing(t *testing.T) {
	stranger(t, func(p *pair.Pair) { p.Delete.MaxPercent = 100 }, func(t *testing.T, r *rig) {
		for _, name := range numbered("%d", 10) {
			r.e.dst.put(name, node{data: "1"})
		}
		r.begin()
		r.wantState(Held, "the source directory is empty")
		r.write("0", "1")
		r.after(time.Minute)
		r.wantHeld(9)
	})
}

func TestDirectoryInTheWayThatTheBackupHadBeforeIsHeld(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		r.e.dst.put("a/theirs", node{data: "1"})
		r.begin("a")
		r.wantState(Held, strange)
		if !r.onBackup("a/theirs") {
			t.Error("it was deleted")
		}
	})
}

func TestRepairOfABackupThatIsNoMirrorDeletesNothing(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.l.door.foreign = true
		r.e.set(func() { r.e.dst.put("theirs", node{data: "1"}) })
		if err := r.l.call(t.Context(), func(now time.Time) {
			r.l.drift(now, contents{items: []transfer.Item{{Path: "theirs", Extraneous: true}}}, true)
		}); err != nil {
			t.Fatal(err)
		}
		r.after(time.Minute)
		r.wantState(Held, strange)
		if !r.onBackup("theirs") {
			t.Error("it was deleted")
		}
	})
}

// What a comparison finds out about a directory does not hold for the one that takes its place meanwhile, and neither does what was missing there.
func TestSourceThatIsReplacedDuringAComparisonIsNotKnown(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		names := numbered("%02d", 20)
		for _, name := range names {
			r.e.dst.put(name, node{data: "1"})
		}
		r.e.listLate = 10 * time.Second
		r.begin(names...)
		r.e.set(func() { // the directory that replaces it, with half of the files
			r.e.id.Ino++
			for _, name := range names[10:] {
				r.e.src.remove(name)
			}
		})
		r.write("00", "2") // by which it is noticed
		r.after(time.Second)
		r.wantState(Held, "not the provisioned directory")
		if a := r.approve(); a.Source == "" {
			t.Fatalf("%+v", a)
		}
		r.after(15 * time.Second) // the first comparison has ended: it had found nothing
		r.after(time.Minute)
		r.wantHeld(10)
		if r.known() {
			t.Error("what was found out about the other directory counts")
		}
	})
}

// An approval is of what was looked at: what was missing in the directory of before is none of the new one's.
func TestHeldDeletionsGoWithTheDirectoryTheyWereMissingIn(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		r.e.dst.put("theirs", node{data: "1"})
		r.begin("a", "b")
		r.wantState(Held, strange)
		r.e.set(func() {
			r.e.id.Ino++
			r.e.src.remove("b")
			r.e.listLate = 10 * time.Second
		})
		r.write("a", "2")
		r.after(time.Second)
		r.wantState(Held, "not the provisioned directory")
		r.approve()
		r.after(time.Second) // it is compared
		if a := r.approve(); a.Paths != 0 {
			t.Errorf("approved before it was looked at: %+v", a)
		}
		r.after(time.Minute)
		r.wantHeld(2)
	})
}

func TestAnotherBackupIsNotKnown(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	was := &provisioned{Path: "/data", Mirror: mirrorOf(r.l.pair)}
	for name, c := range map[string]struct {
		change  func(*pair.Pair)
		foreign bool
	}{
		"the same":         {func(*pair.Pair) {}, false},
		"another address":  {func(p *pair.Pair) { p.Backup.Address = "192.0.2.7" }, false},
		"another way":      {func(p *pair.Pair) { p.Transport, p.Backup.Port = pair.SSH, 22 }, false},
		"another host":     {func(p *pair.Pair) { p.Backup.Host = "backup2" }, true},
		"another path":     {func(p *pair.Pair) { p.Backup.Path = "/backup2" }, true},
		"another module":   {func(p *pair.Pair) { p.Backup.Module = "data2" }, true},
		"nothing is known": {nil, true},
	} {
		agent, known := *r.l.agent, was
		if c.change != nil {
			c.change(&agent.opts.Pair)
		} else {
			known = nil
		}
		l, err := newLoop(&agent, r.e, known)
		if err != nil {
			t.Fatal(err)
		}
		if l.door.foreign != c.foreign {
			t.Errorf("%s: foreign is %v", name, l.door.foreign)
		}
	}
}

// What could not be read in one directory, or was about to be deleted, was not seen to go in the one that replaces it.
func TestWhatWaitsForADirectoryThatIsReplacedDeletesNothing(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("dir/a", "dir/b", "sub/c", "sub/d", "keep")
		r.e.set(func() { r.e.locked["dir/a"] = true })
		r.write("dir/a", "2")
		r.after(time.Second)
		r.wantState(Degraded, "dir/a")
		r.rm("sub/c")
		r.e.set(func() {
			r.e.id.Ino++
			r.e.src.remove("dir")
			r.e.src.remove("sub")
			delete(r.e.locked, "dir/a")
			r.e.listLate = time.Minute
		})
		r.write("keep", "2")
		r.after(time.Second)
		r.wantState(Held, "not the provisioned directory")
		r.approve()
		r.after(50 * time.Second) // the comparison has not told of anything yet
		if !r.onBackup("dir/a") || !r.onBackup("dir/b") || !r.onBackup("sub/d") {
			t.Errorf("deleted before it was compared: %v", r.e.dst)
		}
		r.after(3 * time.Minute)
		r.wantHeld(6)
	})
}

// What had to be looked at again was not seen to go.
func TestFindingThatCouldNotBeJudgedStaysHeld(t *testing.T) {
	stranger(t, nil, func(t *testing.T, r *rig) {
		r.e.dst.put("d/theirs", node{data: "1"})
		r.e.dst.put("d/b", node{data: "1"})
		r.e.set(func() { r.e.listLate = time.Second })
		for _, p := range []string{"a", "d/b"} {
			r.e.src.put(p, node{data: "1"})
		}
		r.start()
		r.after(1050 * time.Millisecond) // it has been found
		r.e.set(func() { r.e.locked["d"] = true })
		r.after(5 * time.Second)
		r.e.set(func() { delete(r.e.locked, "d") })
		r.after(10 * time.Minute)
		r.wantHeld(1)
	})
}
