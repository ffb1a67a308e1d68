// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/watch"
)

// What comes and goes as a directory while both sides are compared is no drift, nor is anything in it.
func TestTreeThatIsSentDuringAVerificationIsNoDrift(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.begin("keep", "out/a", "out/b")
		r.e.set(func() {
			r.e.listLate = time.Minute
			r.e.src.put("in/a", node{data: "1"})
			r.e.src.put("in/sub/b", node{data: "1"})
			r.e.src.remove("out")
			r.e.dst.put("keep", node{data: "0"}) // this is
		})
		var drift []string
		verified := make(chan error, 1)
		go func() {
			verified <- r.l.verify(t.Context(), false, func(d Drift) { drift = append(drift, d.What+" "+d.Path) })
		}()
		r.cookie()
		r.after(time.Second)
		r.events(watch.Event{Path: "in", Op: watch.Create, Dir: true, Tree: true}, watch.Event{Path: "out", Op: watch.Delete | watch.Move, Dir: true})
		if err := <-verified; err != nil {
			t.Fatal(err)
		}
		if len(drift) != 1 || drift[0] != "edited keep" {
			t.Errorf("%q", drift)
		}
	})
}
