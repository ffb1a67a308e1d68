// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

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

// The event of a directory stands for all that was in it.
func TestOpenFilesThatWentWithTheirDirectoriesAreForgotten(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		for i := range 3 * openMany / 100 {
			d := fmt.Sprintf("d%d", i)
			names := numbered(d+"/%d", 100)
			r.e.set(func() {
				for _, name := range names {
					r.e.open[name] = true
				}
			})
			r.writeAll(node{data: "1"}, names...)
			r.after(time.Second)
			r.e.set(func() { r.e.src.remove(d); clear(r.e.open) })
			r.events(watch.Event{Path: d, Op: watch.Delete | watch.Move, Dir: true})
			r.after(5 * time.Second)
		}
		r.settles(time.Minute)
		if err := r.l.call(t.Context(), func(time.Time) {
			if n := len(r.l.open); n > 2*openMany {
				t.Errorf("%d open files are remembered", n)
			}
		}); err != nil {
			t.Fatal(err)
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

// Nobody saw how a file was made that was there before the agent. The backup does not have it, so it is new.
func TestFileThatIsBeingCopiedAtTheStartIsWaitedFor(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.open["copy"] = true
		r.begin("a", "copy")
		for range 20 {
			r.e.set(func() { r.e.src.put("copy", node{size: r.e.src["copy"].size + copyRate}) })
			r.after(time.Second)
		}
		if r.onBackup("copy") {
			t.Error("a file was sent while it was being copied")
		}
		r.e.set(func() { delete(r.e.open, "copy") })
		r.settles(time.Second)
	})
}

// A directory with many new files is sent by recursion, and so is everything when the backup is far behind. Neither is
// a way for a file to its final name while it is short.
func TestFileThatIsBeingCopiedIsLeftOutOfARecursiveRun(t *testing.T) {
	for name, tc := range map[string]struct {
		dir   string
		begin func(r *rig, files []string)
	}{
		"new directory": {"new/", func(r *rig, files []string) {
			r.begin("a")
			r.e.set(func() {
				for _, f := range files {
					r.e.src.put(f, node{data: "1"})
				}
			})
			r.events(watch.Event{Path: "new", Op: watch.Create, Dir: true, Tree: true})
		}},
		"far behind": {"", func(r *rig, files []string) {
			r.l.agent.manyDiffer = 300
			r.begin(files...)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				copied := tc.dir + "copy"
				r.e.open[copied] = true
				tc.begin(r, append(numbered(tc.dir+"f%04d", treeExpand+1), copied))
				r.after(2 * time.Second)
				if r.e.count("tree") == 0 {
					t.Fatal("no run was recursive")
				}
				if r.onBackup(copied) || !r.onBackup(tc.dir+"f0000") {
					t.Errorf("on the backup: the copy %v, the others %v", r.onBackup(copied), r.onBackup(tc.dir+"f0000"))
				}
				r.wantState(Behind)
				r.e.set(func() { delete(r.e.open, copied) })
				r.events(watch.Event{Path: copied, Op: watch.Modify})
				r.settles(time.Second)
			})
		})
	}
}

func TestNobodyWaitsForAnExcludedFileThatIsOpen(t *testing.T) {
	for _, files := range []int{1, treeExpand + 1} { // a list, and a recursive run
		t.Run(fmt.Sprint(files), func(t *testing.T) {
			bubble(t, func(p *pair.Pair) { p.Exclude = []string{"*.log"} }, func(t *testing.T, r *rig) {
				r.begin("a")
				r.e.set(func() {
					for _, f := range append(numbered("new/f%04d", files), "new/x.log") {
						r.e.src.put(f, node{data: "1"})
					}
					r.e.open["new/x.log"] = true
				})
				r.events(watch.Event{Path: "new", Op: watch.Create, Dir: true, Tree: true})
				r.after(2 * time.Second)
				r.wantState(InStep)
				if !r.onBackup("new/f0000") {
					t.Error("the directory was not sent")
				}
			})
		})
	}
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

// Lost events ask for a comparison of everything, at once. What happens from then on goes on its own.
func TestOverflowDoesNotWaitForABigFile(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.e.setAnswer(func(what string, paths []string) *transfer.Result {
			if what == "send" && paths[0] == "big" {
				time.Sleep(time.Hour)
			}
			return nil
		})
		r.writeAll(node{size: bigFile}, "big")
		r.after(time.Second)
		r.e.set(func() { r.e.src.put("unseen", node{data: "1"}) })
		r.events(watch.Event{Op: watch.Rescan, Dir: true, Tree: true})
		r.after(time.Second)
		r.write("small", "1")
		r.after(time.Second)
		if !r.onBackup("small") || !r.onBackup("unseen") || r.onBackup("big") {
			t.Errorf("backup %v", r.e.dst)
		}
		r.wantState(Behind)
		r.settles(2 * time.Hour)
	})
}

// The source directory has no name below itself.
func TestBatchOfTheSourceDirectoryHasAName(t *testing.T) {
	t.Parallel()
	for want, paths := range map[string][]string{".": {""}, "a": {"a"}, "2 paths": {"", "a"}} {
		var b queue.Batch
		for _, p := range paths {
			b.Entries = append(b.Entries, queue.Entry{Path: p})
		}
		if got := nameBatch(b); got != want {
			t.Errorf("%q is called %q, want %q", paths, got, want)
		}
	}
}

// An rsync stands by only where another batch is to be expected soon, and the next batch grows until it is ready.
func TestRsyncStandsByInAStream(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.set(func() { r.e.takes = 2 * time.Millisecond })
		r.begin("a")
		for i := range 5 {
			r.after(time.Second)
			r.write(fmt.Sprint("alone", i), "1")
		}
		r.after(time.Second)
		if r.e.standby != 0 {
			t.Errorf("%d times for changes that come alone", r.e.standby)
		}
		before := r.e.count("send")
		for i := range 300 {
			r.after(3 * time.Millisecond)
			r.write(fmt.Sprint("stream", i), "1")
		}
		r.after(time.Second)
		stream := r.e.times("send")[before:]
		if r.e.standby != len(stream)-1 || len(stream) < 50 {
			t.Errorf("%d times for %d batches", r.e.standby, len(stream))
		}
		for i, at := range stream[2:] { // the first has to be followed by a second, to be known as one
			if gap := at - stream[i+1]; gap < standbyTakes {
				t.Errorf("batch %d after %v", i+2, gap)
			}
		}
		r.wantEqual()
	})
}

// On the way to a far host, or through ssh, a login takes longer than a stream waits for it.
func TestNoRsyncStandsByWhereARunTakesLong(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.set(func() { r.e.takes = 300 * time.Millisecond })
		r.begin("a")
		for i := range 300 {
			r.after(3 * time.Millisecond)
			r.write(fmt.Sprint("stream", i), "1")
		}
		r.settles(5 * time.Second)
		if r.e.standby > 1 { // before the first has ended, nothing is known
			t.Errorf("%d times", r.e.standby)
		}
	})
}

// Who has waited may want to unmount the source.
func TestNoRsyncStandsByOnceABarrierHasPassed(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("a")
		r.write("b", "1")
		passed := r.barrier(t.Context())
		r.after(time.Second)
		if err := <-passed; err != nil || r.e.closed == 0 {
			t.Errorf("dismissed %d times: %v", r.e.closed, err)
		}
	})
}
