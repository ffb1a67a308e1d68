// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
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

// Two trees are equal when all of both was compared, and not before.
func TestVerificationThatDidNotSeeAllIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		change func(e *fakeEngine)
		want   string
		drift  int
	}{
		"cut off": {
			func(e *fakeEngine) { e.listEnd = failure(transfer.Stopped, "stopped") },
			"ended before", 0,
		},
		"a directory that cannot be read": {
			func(e *fakeEngine) { e.locked["d"] = true },
			`"d" could not be read`, 0,
		},
		"more than is named": {
			func(e *fakeEngine) {
				for _, name := range numbered("f%d", maxDrift+1) {
					e.dst[name] = node{data: "1"}
				}
			},
			"more than 100000", maxDrift,
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				r.begin("d/a", "b")
				r.e.set(func() { c.change(r.e) })
				drift := 0
				verified := make(chan error, 1)
				go func() { verified <- r.l.verify(t.Context(), false, func(Drift) { drift++ }) }()
				r.cookie()
				if err := <-verified; err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %s", err, c.want)
				}
				if drift != c.drift {
					t.Errorf("%d differences, want %d", drift, c.drift)
				}
			})
		})
	}
}

// Whoever gives up while the loop is busy has been forgotten when it goes on.
func TestWhoeverGivesUpEarlyIsForgotten(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		var busy atomic.Bool
		goOn := make(chan struct{})
		r.l.agent.opts.Notify = func(string) {
			if busy.Load() {
				<-goOn
			}
		}
		giveUp := func(f func(ctx context.Context) error, pass func()) {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- f(ctx) }()
			pass()
			synctest.Wait()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("given up: %v", err)
			}
			goOn <- struct{}{}
			synctest.Wait()
		}
		verify := func(ctx context.Context) error { return r.l.verify(ctx, false, func(Drift) {}) }
		r.begin("a")

		r.l.post(func(time.Time) { <-goOn })
		synctest.Wait()
		giveUp(r.l.wait, func() {})
		if n := len(r.l.barriers); n != 0 {
			t.Errorf("%d barriers are left", n)
		}

		r.write("b", "1") // on its way when the verification begins to wait
		r.e.set(func() { r.e.takes = time.Second })
		giveUp(verify, func() {
			r.cookie()
			busy.Store(true)
			r.after(time.Second) // the loop tells the service manager, and has let the barrier pass
			busy.Store(false)
		})
		done := make(chan error, 1)
		go func() { done <- verify(t.Context()) }()
		r.cookie()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
