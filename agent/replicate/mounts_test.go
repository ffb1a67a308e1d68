// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"testing"
	"time"

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
