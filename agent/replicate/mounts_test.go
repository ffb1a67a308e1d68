// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// What is missing because a filesystem below the source is not mounted was not deleted.
func TestUnmountedBelowTheSourceDeletesNothing(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		mount := func(there bool) {
			r.e.set(func() {
				r.e.src.remove("d/m")
				if r.e.src.put("d/m", node{dir: true}); there {
					r.e.src.put("d/m", node{dir: true, mounted: true})
					r.e.src.put("d/m/f", node{data: "1"})
					r.e.src.put("d/m/g", node{data: "1"})
				}
			})
		}
		rescan := watch.Event{Path: "d/m", Op: watch.Rescan, Dir: true, Tree: true}
		r.e.src.put("keep", node{data: "1"})
		mount(true)
		r.mounts = []string{"d/m"}
		r.begin()
		r.wantState(InStep)
		if m, err := readMounts(r.l.agent.opts.StateDir); err != nil || !m["d/m"] {
			t.Errorf("for the next start: %v, %v", m, err)
		}

		mount(false)
		r.events(rescan)
		r.rm("keep")
		r.after(time.Minute)
		if !r.onBackup("d/m/f") || r.onBackup("keep") {
			t.Errorf("backup %v", r.e.dst)
		}
		r.wantState(Held, "d/m", "not mounted")

		mount(true)
		r.e.set(func() { r.e.src.remove("d/m/g") }) // in truth, elsewhere
		r.events(rescan)
		r.settles(time.Minute)

		mount(false)
		r.events(rescan)
		r.after(time.Minute)
		r.wantState(Held)
		if _, err := r.l.approve(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.after(time.Minute)
		if r.onBackup("d/m/f") {
			t.Error("approved and still there")
		}
		r.wantState(InStep)
	})
}

// What was approved lay in a filesystem that is mounted. When that is unmounted later, its absence is no deletion.
func TestApprovalDoesNotForgetWhatIsMounted(t *testing.T) {
	bubble(t, func(p *pair.Pair) { p.Delete.MaxFiles, p.Delete.MaxPercent = 5, 1 }, func(t *testing.T, r *rig) {
		r.e.src.put("keep", node{data: "1"})
		r.e.src.put("m", node{dir: true, mounted: true})
		for _, n := range numbered("m/%d", 10) {
			r.e.src.put(n, node{data: "1"})
		}
		r.mounts = []string{"m"}
		r.begin()
		r.wantState(InStep)
		for _, n := range numbered("m/%d", 7) {
			r.rm(n)
		}
		r.after(time.Second)
		r.wantState(Held)
		if _, err := r.l.approve(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.settles(time.Minute)
		// umount m
		r.e.set(func() {
			r.e.src.remove("m")
			r.e.src.put("m", node{dir: true})
			r.w.info.Mounts = nil
		})
		r.events(watch.Event{Path: "m", Op: watch.Rescan, Dir: true, Tree: true})
		r.after(time.Minute)
		if !r.onBackup("m/8") {
			t.Error("files of a filesystem that was unmounted were deleted on the backup")
		}
		r.wantState(Held, "not mounted")
	})
}
