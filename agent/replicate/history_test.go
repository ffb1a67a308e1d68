// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// historyRig plays a random history against fakes: operations, lost events, transfers that fail, open files.
type historyRig struct {
	*rig
	rng    *rand.Rand // used with the engine locked
	pace   *rand.Rand
	n      int
	pinned []string // never touched
}

func (h *historyRig) some(keep func(p string, n node) bool) (string, bool) {
	var all []string
	for p, n := range h.e.src {
		if !slices.ContainsFunc(h.pinned, func(pin string) bool { return isBelow(pin, p) }) && keep(p, n) {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return "", false
	}
	slices.Sort(all)
	return all[h.rng.IntN(len(all))], true
}

func anything(string, node) bool      { return true }
func directory(_ string, n node) bool { return n.dir }

// fresh is a name in some directory.
func (h *historyRig) fresh() string {
	h.n++
	name := fmt.Sprintf("%c%d", 'a'+h.rng.IntN(4), h.rng.IntN(6))
	if dir, ok := h.some(directory); ok && h.rng.IntN(3) > 0 {
		return join(dir, name)
	}
	return name
}

// step does one operation and returns its events, as the kernel would tell them.
func (h *historyRig) step() []watch.Event {
	h.e.mu.Lock()
	defer h.e.mu.Unlock()
	src := h.e.src
	data := fmt.Sprint("v", h.n)
	switch h.rng.IntN(10) {
	case 0, 1, 2: // make or change a file
		p := h.fresh()
		if src[p].dir {
			return nil
		}
		op := watch.Modify
		if _, there := src[p]; !there {
			op |= watch.Create
		}
		src.put(p, node{data: data})
		return []watch.Event{{Path: p, Op: op}}
	case 3: // mkdir -p with a file at once
		p := h.fresh()
		if _, there := src[p]; there {
			return nil
		}
		src.put(p, node{dir: true})
		src.put(join(p, "x/y"), node{data: data})
		return []watch.Event{{Path: p, Op: watch.Create, Dir: true, Tree: true}}
	case 4, 5: // remove, with everything below
		p, ok := h.some(anything)
		if !ok {
			return nil
		}
		var events []watch.Event
		gone := src.below(p)
		slices.Reverse(gone)
		for _, q := range append(gone, p) {
			events = append(events, watch.Event{Path: q, Op: watch.Delete, Dir: src[q].dir})
		}
		src.remove(p)
		return events
	case 6, 7: // rename
		from, ok := h.some(anything)
		to := h.fresh()
		_, there := src[to]
		if !ok || isBelow(to, from) || there && (src[to].dir || src[from].dir) {
			return nil
		}
		return h.rename(from, to)
	case 8: // change of type at once
		p, ok := h.some(anything)
		if !ok {
			return nil
		}
		old := src[p]
		gone := src.below(p)
		slices.Reverse(gone)
		var events []watch.Event
		for _, q := range append(gone, p) {
			events = append(events, watch.Event{Path: q, Op: watch.Delete, Dir: src[q].dir})
		}
		src.remove(p)
		src.put(p, node{dir: !old.dir, data: map[bool]string{true: data}[old.dir]})
		return append(events, watch.Event{Path: p, Op: watch.Create, Dir: !old.dir, Tree: !old.dir})
	default: // move a directory out and another in its place
		p, ok := h.some(directory)
		if !ok {
			return nil
		}
		src.remove(p)
		src.put(p, node{dir: true})
		src.put(join(p, "in"), node{data: data})
		return []watch.Event{{Path: p, Op: watch.Delete | watch.Move, Dir: true}, {Path: p, Op: watch.Create | watch.Move, Dir: true, Tree: true}}
	}
}

func (h *historyRig) rename(from, to string) []watch.Event {
	src := h.e.src
	moved := map[string]node{to: src[from]}
	for _, q := range src.below(from) {
		moved[to+q[len(from):]] = src[q]
	}
	dir := src[from].dir
	src.remove(from)
	for p, n := range moved {
		src.put(p, n)
	}
	for p, n := range moved { // put makes directories where it finds none
		src[p] = n
	}
	return []watch.Event{
		{Path: from, Op: watch.Delete | watch.Move, Dir: dir},
		{Path: to, Op: watch.Create | watch.Move, Dir: dir, Tree: dir},
	}
}

// trouble lets some runs fail.
func (h *historyRig) trouble(rng *rand.Rand) func(string, []string) *transfer.Result {
	return func(what string, paths []string) *transfer.Result {
		h.mu.Lock()
		n := rng.IntN(100)
		h.mu.Unlock()
		switch {
		case n < 6:
			return failure(transfer.Transient, "cut off")
		case n < 8:
			return failure(transfer.NoSpace, "full")
		case n < 9 && what != "probe":
			return failure(transfer.Unknown, "status 99")
		}
		return nil
	}
}

func TestAnyHistoryEndsEqual(t *testing.T) {
	t.Parallel()
	seeds := uint64(250)
	if testing.Short() {
		seeds = 50
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { playHistory(t, seed) })
		})
	}
}

func playHistory(t *testing.T, seed uint64) {
	h := &historyRig{rig: newRig(t, func(p *pair.Pair) {
		p.Delete.MaxFiles, p.Delete.MaxPercent = 1_000_000, 100
		p.Retry.Initial, p.Retry.Max = pair.Duration(100*time.Millisecond), pair.Duration(5*time.Second)
	}), rng: rand.New(rand.NewPCG(seed, 1)), pace: rand.New(rand.NewPCG(seed, 4))}
	h.pinned = []string{"pin", "keep/pin"}
	for _, p := range h.pinned {
		h.e.src.put(p, node{data: "pinned"})
	}
	h.e.onDelete = func(p string) {
		if slices.Contains(h.pinned, p) {
			t.Errorf("%q, which nobody touched, was deleted on the backup", p)
		}
		if n, there := h.e.src[p]; there && h.e.src.reach(p) && n == h.e.dst[p] {
			t.Errorf("%q was deleted on the backup, and is in the source", p)
		}
	}
	for range 20 {
		h.step()
	}
	h.e.dst = h.e.src.clone() // the backup is as it was some time ago
	for range 10 {
		h.step()
	}
	h.e.takes = time.Duration(1+h.rng.IntN(60)) * time.Millisecond
	if seed%3 > 0 {
		h.e.answer = h.trouble(rand.New(rand.NewPCG(seed, 2)))
	}
	if seed%4 == 0 {
		inner := rand.New(rand.NewPCG(seed, 3)) // things happen in the middle of a run, too
		h.e.during = func(string, []string) {
			h.mu.Lock()
			now := inner.IntN(4) == 0
			h.mu.Unlock()
			if now {
				if events := h.step(); len(events) > 0 {
					go h.events(events...)
				}
			}
		}
	}
	h.start()
	for range 60 {
		events := h.step()
		switch {
		case len(events) == 0:
		case seed%5 == 0 && h.pace.IntN(20) == 0: // the kernel lost them
			h.w.reports <- watch.Report{Fault: watch.ErrOverflow, Events: []watch.Event{{Op: watch.Rescan, Dir: true, Tree: true}}}
		default:
			h.events(events...)
		}
		if h.pace.IntN(5) == 0 {
			h.after(time.Duration(h.pace.IntN(200)) * time.Millisecond)
		}
	}
	h.e.mu.Lock()
	h.e.during = nil
	h.e.mu.Unlock()
	h.after(10 * time.Second)
	h.e.setAnswer(nil)
	h.after(10 * time.Minute)
	h.wantState(InStep)
	h.e.mu.Lock()
	if !maps.Equal(h.e.src, h.e.dst) {
		for _, p := range slices.Sorted(maps.Keys(h.e.src)) {
			if h.e.dst[p] != h.e.src[p] {
				t.Errorf("%q: source %v, backup %v", p, h.e.src[p], h.e.dst[p])
			}
		}
		for p := range h.e.dst {
			if _, there := h.e.src[p]; !there {
				t.Errorf("%q is only on the backup", p)
			}
		}
	}
	h.e.mu.Unlock()
	h.stop()
}
