// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

func TestDirectoryThatIsSentItselfIsSettled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := rsync{path: dir}.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, path := range []string{"d", ""} {
		p := prepare(time.Now(), r, []queue.Entry{{Path: path, First: time.Now()}}, &writers{})
		before, err := r.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ { // the clock of the filesystem may be a coarse one
			if err := os.WriteFile(filepath.Join(dir, path, fmt.Sprint(i)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if st, err := r.Lstat(path); err != nil {
				t.Fatal(err)
			} else if !st.ChangeTime.Equal(before.ChangeTime) {
				break
			}
		}
		if moved := p.dirs.moved(r); !slices.ContainsFunc(moved, func(e queue.Entry) bool { return e.Path == path }) {
			t.Errorf("%q is not among %v", path, moved)
		}
	}
}

func TestNotInStepAfterTheWatcherFailed(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.src.put("a", node{data: "0"})
		r.begin()
		r.wantState(InStep)
		r.e.set(func() { r.e.takes = 10 * time.Second })
		r.w.end <- errors.New("inotify: too many open files")
		r.after(100 * time.Millisecond)
		r.wantState(Failing)
		r.e.set(func() { r.e.src.put("a", node{data: "1"}) }) // nobody tells
		r.after(5 * time.Second)
		if r.backup("a") == "1" {
			t.Fatal("the comparison is over already")
		}
		r.wantState(Behind)
		r.settles(time.Minute)
	})
}

func TestNotInStepWithDeletionsThatWereDropped(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		for _, p := range []string{"a", "b", "keep"} {
			r.e.src.put(p, node{data: "1"})
		}
		r.begin()
		r.wantState(InStep)
		r.rm("a")
		r.rm("b")
		r.after(50 * time.Millisecond) // both are at the door
		if err := r.l.call(t.Context(), func(time.Time) {
			delete(r.l.door.pending, "b") // as if there was no room for it
			r.l.door.dropped++
		}); err != nil {
			t.Fatal(err)
		}
		r.e.setAnswer(lasts("list", time.Second))
		r.after(500 * time.Millisecond)
		if r.onBackup("a") || !r.onBackup("b") {
			t.Fatal("the comparison is over already, or the deletion is not")
		}
		r.wantState(Behind)
		r.settles(time.Minute)
	})
}

// holdFive removes five of nine files, which must be more than may be deleted.
func (r *rig) holdFive() {
	r.t.Helper()
	names := numbered("%d", 9)
	r.begin(names...)
	for _, name := range names[:5] {
		r.rm(name)
	}
	r.after(time.Second)
}

func TestNotInStepAfterMoreWasHeldThanIsKept(t *testing.T) {
	for name, release := range map[string]func(r *rig){
		"approved": func(r *rig) {
			if _, err := r.l.approve(r.t.Context()); err != nil {
				r.t.Fatal(err)
			}
		},
		"all that was kept is back": func(r *rig) { r.writeAll(node{data: "1"}, "1", "2", "3", "4") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 1, 1 }, func(t *testing.T, r *rig) {
				r.holdFive()
				r.wantState(Held)
				if err := r.l.call(t.Context(), func(time.Time) {
					delete(r.l.door.held.items, "0") // as if there was no room for it
					r.l.door.held.over++
				}); err != nil {
					t.Fatal(err)
				}
				release(r)
				r.settles(time.Minute)
			})
		})
	}
}

func TestTooManyHeldDeletionsAreLookedForOnce(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 1, 1 }, func(t *testing.T, r *rig) {
		r.holdFive()
		count := r.wantState(Held).Held.Count
		lists := r.e.count("list")
		if err := r.l.call(t.Context(), func(now time.Time) {
			r.l.extraneous(now, now, comparison{extra: []string{"0", "1"}, entries: 5, more: true})
		}); err != nil {
			t.Fatal(err)
		}
		r.after(time.Minute)
		if s := r.wantState(Held); s.Held.Count != count || r.e.count("list") != lists {
			t.Errorf("%d are held and were %d, %d comparisons", s.Held.Count, count, r.e.count("list")-lists)
		}
		if _, err := r.l.approve(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.settles(time.Minute)
		if r.e.count("list") == lists {
			t.Error("what there was beyond those that were kept is not looked for after the approval")
		}
	})
}

// A comparison that runs beside a deletion finds it once more; it must not count twice, nor be held.
func TestDeletionThatIsUnderWayIsNotHeld(t *testing.T) {
	for name, late := range map[string]bool{"before it is done": false, "while it is looked at": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 3, 1 }, func(t *testing.T, r *rig) {
				r.begin(numbered("%d", 9)...)
				r.e.during = func(what string, _ []string) {
					if what == "delete" {
						time.Sleep(5 * time.Second)
					}
				}
				for i := range 3 {
					r.rm(fmt.Sprint(i))
				}
				r.after(time.Second)
				if r.e.count("delete") != 1 {
					t.Fatal("the deletion is not under way")
				}
				if late {
					r.e.set(func() { r.e.answerLate = 6 * time.Second })
				}
				if _, err := r.l.sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				r.after(30 * time.Second)
				r.wantEqual()
				r.wantState(InStep)
			})
		})
	}
}

// reload takes over a changed definition.
func (r *rig) reload(change func(*pair.Pair)) {
	r.t.Helper()
	err := r.l.call(r.t.Context(), func(now time.Time) {
		p := r.l.pair
		change(&p)
		if err := r.l.apply(now, p, ""); err != nil {
			r.t.Error(err)
		}
		r.l.eng = r.e
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestNothingIsDeletedAfterDeletionsWereSwitchedOff(t *testing.T) {
	for name, wait := range map[string]time.Duration{"pending": 50 * time.Millisecond, "looked at": 125 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				r.begin("keep", "a")
				r.wantEqual()
				r.rm("a")
				r.after(wait)
				r.reload(func(p *pair.Pair) { p.Delete.Enabled = false })
				r.after(time.Minute)
				if !r.onBackup("a") {
					t.Error("deleted on the backup")
				}
				r.wantState(InStep)
			})
		})
	}
}

func TestHeldDeletionsLapseWhenDeletionsAreSwitchedOff(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 1, 1 }, func(t *testing.T, r *rig) {
		r.holdFive()
		r.wantState(Held)
		r.reload(func(p *pair.Pair) { p.Delete.Enabled = false })
		r.after(time.Second)
		r.wantState(InStep)
		if a, err := r.l.approve(t.Context()); err != nil || a.Paths != 0 {
			t.Errorf("approved %+v, %v", a, err)
		}
		r.after(time.Minute)
		if !r.onBackup("0") {
			t.Error("deleted on the backup")
		}
	})
}

func TestNotInStepAfterEventsWereSwitchedOn(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Watch.Events = []string{"create", "delete", "move"} }, func(t *testing.T, r *rig) {
		r.e.src.put("a", node{data: "0"})
		r.begin()
		r.e.set(func() { r.e.src.put("a", node{data: "1"}) })
		r.events(watch.Event{Path: "a", Op: watch.Modify})
		r.after(time.Minute)
		if r.backup("a") != "0" {
			t.Fatal("it was sent")
		}
		r.reload(func(p *pair.Pair) { p.Watch.Events = pair.Defaults().Watch.Events })
		r.settles(time.Minute)
	})
}

func TestTreeOfDistrustedPathsIsComparedByContents(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.l.distrust["d/a"] = struct{}{}
		if r.l.distrust.touches([]queue.Entry{{Path: "d"}, {Path: "d/b", Tree: true}, {Path: "d/a/b", Tree: true}}) {
			t.Error("none of them is it")
		}
		if !r.l.distrust.touches([]queue.Entry{{Path: "d", Tree: true}}) {
			t.Error("sent by size and time")
		}
	})
}

// failingRoot refuses to list a directory the second time, as with EMFILE, ENOMEM or EIO.
type failingRoot struct {
	root
	n *int
}

func (r failingRoot) Children(dir string) ([]transfer.Child, error) {
	if *r.n++; *r.n == 2 {
		return nil, unix.EMFILE
	}
	return r.root.Children(dir)
}

func TestTreeThatCannotBeExpandedIsNotDone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "d/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "d/f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := rsync{path: dir}.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n := -1 // small looks at d and d/sub
	p := prepare(time.Now(), failingRoot{r, &n}, []queue.Entry{{Path: "d", Tree: true, First: time.Now()}}, &writers{})
	if len(p.send) == 1 && len(p.below) == 0 && len(p.apart) == 0 {
		t.Errorf("what is in d is forgotten: only %v is sent", p.send)
	}
}

// A file that is saved by rename(2) over and over makes the backup no larger, and the guard no blinder.
func TestSavesByRenameDoNotWidenTheGuard(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 5, 25 }, func(t *testing.T, r *rig) {
		r.begin(numbered("%d", 20)...)
		for i := range 100 {
			r.e.set(func() { r.e.src.put("0", node{data: fmt.Sprint("v", i)}) })
			// As inotify tells of open(tmp), write, close, rename(tmp, 0).
			r.events(watch.Event{Path: "0.tmp", Op: watch.Create | watch.Modify}, watch.Event{Path: "0.tmp", Op: watch.Delete | watch.Move}, watch.Event{Path: "0", Op: watch.Create})
			r.after(time.Second)
		}
		r.settles(time.Minute)
		if s := r.status(); s.Full.Entries > 30 {
			t.Errorf("%d entries are said to be on the backup, and there are 20", s.Full.Entries)
		}
		r.e.set(func() {
			for i := 1; i < 20; i++ {
				r.e.src.remove(fmt.Sprint(i))
			}
		})
		var events []watch.Event
		for i := 1; i < 20; i++ {
			events = append(events, watch.Event{Path: fmt.Sprint(i), Op: watch.Delete})
		}
		r.events(events...)
		r.after(time.Minute)
		r.wantState(Held)
		if !r.onBackup("7") {
			t.Error("19 of 20 files were deleted on the backup, with delete.max_files 5 and delete.max_percent 25")
		}
	})
}

// The burst of a slow rm -rf counts as a whole, whatever is saved meanwhile.
func TestSavesByRenameDoNotHideASlowDeletion(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 5, 0 }, func(t *testing.T, r *rig) {
		r.begin(numbered("%d", 40)...)
		for i := 1; i < 40; i++ {
			r.rm(fmt.Sprint(i))
			r.e.set(func() { r.e.src.put("0", node{data: fmt.Sprint("v", i)}) })
			r.events(watch.Event{Path: "0", Op: watch.Create}) // saved by rename
			r.after(time.Second)
		}
		r.after(time.Minute)
		r.wantState(Held)
		if !r.onBackup("39") {
			t.Error("39 of 40 files were deleted on the backup one by one, with delete.max_files 5")
		}
	})
}

// One directory that can never be read must not keep a large deletion from being held, and approved.
func TestLargeDeletionIsHeldBesideAnUnreadableDirectory(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 1, 1 }, func(t *testing.T, r *rig) {
		r.e.src.put("x/f", node{data: "1"})
		r.begin(numbered("%d", 9)...)
		r.wantState(InStep)
		r.e.set(func() { r.e.locked["x"] = true })
		r.events(watch.Event{Path: "x", Op: watch.Attrib, Dir: true})
		r.after(time.Minute)
		for i := range 5 {
			r.rm(fmt.Sprint(i))
		}
		r.after(time.Hour)
		s := r.status()
		if s.Held == nil {
			t.Errorf("an hour later, %d deletions are neither done nor held; state %s (%s)", s.Backlog.Deletion, s.State, s.Reason)
		}
		if a, err := r.l.approve(t.Context()); err != nil || a.Paths == 0 {
			t.Errorf("approved %+v, %v", a, err)
		}
	})
}

// A path that could not be sent holds up a barrier, and so does its deletion when a later try finds it gone.
func TestBarrierIsNotPassedBeforeAPathOfTheLedgerIsDeleted(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a", "x")
		r.e.set(func() { r.e.locked["x"] = true })
		r.write("x", "2")
		r.after(200 * time.Millisecond)
		r.wantState(Degraded)
		passed := r.barrier(t.Context())
		r.after(100 * time.Millisecond)
		r.e.set(func() {
			delete(r.e.locked, "x")
			r.e.src.remove("x") // its event is lost in the directory that is not watched, say
		})
		for range 100_000 {
			select {
			case err := <-passed:
				if err != nil || r.onBackup("x") {
					t.Errorf("passed (%v), and the backup has x: %v", err, r.onBackup("x"))
				}
				return
			default:
				r.after(time.Millisecond)
			}
		}
		t.Error("not passed")
	})
}
