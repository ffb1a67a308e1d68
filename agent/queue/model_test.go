// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/watch"
)

// model is a naive set beside a Queue: for every path the time of its last event, until it was handed out.
type model struct {
	t      *testing.T
	q      *Queue
	now    time.Time
	dirty  map[string]*pathTimes
	flying map[int]flying
	nextID int
}

type flying struct {
	batch Batch
	alone bool
	light map[string]bool // directories that don't hold back what is below
}

type pathTimes struct {
	first, last time.Time
	again       bool // given back: due at once, whatever happens to it
	fresh       bool // made: it may go early
}

const (
	modelDelay    = 20 * time.Millisecond
	modelMaxDelay = 200 * time.Millisecond
	modelMaxPaths = 40
)

func newModel(t *testing.T) *model {
	m := &model{t: t, now: t0, dirty: map[string]*pathTimes{}, flying: map[int]flying{}}
	m.q = New(Options{Delay: modelDelay, MaxDelay: modelMaxDelay, MaxPaths: modelMaxPaths})
	m.q.ticks(t0)
	return m
}

// below reports whether path is dir or lies below it.
func below(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

// path turns two bytes into one of about a hundred paths, three deep.
func modelPath(b byte) string {
	switch b % 4 {
	case 0:
		return fmt.Sprintf("%d", b/4%5)
	case 1:
		return fmt.Sprintf("%d/%d", b/4%3, b/16%4)
	default:
		return fmt.Sprintf("%d/%d/%d", b/4%3, b/16%3, b/32)
	}
}

func (m *model) event(path string, op watch.Op, dir, tree bool) {
	m.q.Add(m.now, []watch.Event{{Path: path, Op: op, Dir: dir, Tree: tree}})
	m.mark(path)
	m.dirty[path].fresh = m.dirty[path].fresh || op&watch.Create != 0
}

func (m *model) mark(path string) {
	if p := m.dirty[path]; p != nil {
		p.last = m.now
	} else {
		m.dirty[path] = &pathTimes{first: m.now, last: m.now}
	}
}

func (m *model) next(limit int) {
	b, ok := m.q.Next(m.now, limit)
	if !ok {
		return
	}
	if len(b.Entries) > limit {
		m.t.Fatalf("%d entries, limit %d", len(b.Entries), limit)
	}
	due := false // something in the batch must be; the rest only has to be quiet for a quarter of the delay
	for i, e := range b.Entries {
		if i > 0 && b.Entries[i-1].Path >= e.Path {
			m.t.Fatalf("%q after %q", e.Path, b.Entries[i-1].Path)
		}
		for id, f := range m.flying {
			for _, o := range f.batch.Entries {
				nested := below(e.Path, o.Path) || below(o.Path, e.Path)
				if f.alone && o.Path != e.Path && !e.Tree && !below(e.Path, o.Path) {
					nested = false
				}
				if f.light[o.Path] && e.Path != o.Path && !below(o.Path, e.Path) {
					nested = false
				}
				if nested {
					m.t.Fatalf("%q handed out while %q of batch %d is in flight", e.Path, o.Path, id)
				}
			}
		}
		known := false
		for p, times := range m.dirty {
			if p != e.Path && (!e.Tree || !below(p, e.Path)) {
				continue
			}
			known = true
			if e.First.After(times.first) {
				m.t.Fatalf("%q is said to be dirty since %v, but %q was at %v", e.Path, e.First.Sub(t0), p, times.first.Sub(t0))
			}
			due = due || e.Tree || times.again || times.fresh || m.now.Sub(times.last) >= modelDelay || m.now.Sub(e.First) >= modelMaxDelay
			if !e.Tree && !times.again && !times.fresh && m.now.Sub(times.last) < modelDelay/4 && m.now.Sub(e.First) < modelMaxDelay-modelDelay*3/4 {
				m.t.Fatalf("%q handed out too early", p)
			}
			delete(m.dirty, p)
		}
		if !known {
			m.t.Fatalf("%q handed out although nothing happened to it", e.Path)
		}
	}
	if !due {
		m.t.Fatalf("nothing in %v is due", b.Entries)
	}
	m.flying[m.nextID] = flying{batch: b}
	m.nextID++
}

func (m *model) whole() {
	if !m.q.Whole(m.now) {
		return
	}
	if len(m.dirty) == 0 {
		m.t.Fatal("the whole tree although nothing happened")
	}
	clear(m.dirty)
}

// done gives back one batch, the entries that again picks as still dirty.
func (m *model) done(pick int, again func(i int) bool) {
	for id := range m.nextID {
		f, ok := m.flying[id]
		if !ok {
			continue
		}
		if pick--; pick >= 0 {
			continue
		}
		delete(m.flying, id)
		var give []Again
		for i, e := range f.batch.Entries {
			if again(i) {
				give = append(give, Again{Entry: e, At: m.now})
				if p := m.dirty[e.Path]; p == nil {
					m.dirty[e.Path] = &pathTimes{first: e.First, again: true}
				} else {
					p.first, p.again = e.First, true
				}
			}
		}
		m.q.Done(m.now, f.batch, give)
		return
	}
}

func (m *model) alone() {
	for id, f := range m.flying {
		if !f.alone && f.light == nil && len(f.batch.Entries) > 0 {
			b := m.q.Split(&f.batch, func(e Entry) bool { return e.Path == f.batch.Entries[0].Path })
			m.q.Alone(b)
			m.flying[id] = f
			m.flying[m.nextID] = flying{batch: b, alone: true}
			m.nextID++
			return
		}
	}
}

// light says of one batch that every other path in it is a directory.
func (m *model) light(odd int) {
	for id, f := range m.flying {
		if f.alone || f.light != nil {
			continue
		}
		f.light = map[string]bool{}
		for i, e := range f.batch.Entries {
			if i%2 == odd && !e.Tree {
				f.light[e.Path] = true
			}
		}
		m.q.Light(f.batch, func(e Entry) bool { return f.light[e.Path] })
		m.flying[id] = f
		return
	}
}

func (m *model) check() {
	if m.q.Len() > modelMaxPaths {
		m.t.Fatalf("%d paths held", m.q.Len())
	}
	held := map[string]bool{}
	n := 0
	last := time.Time{}
	for at := m.q.list.next; at != &m.q.list; at = at.next {
		e := m.q.entry(at)
		n++
		if e.First.Before(last) {
			m.t.Fatalf("%q is out of order", e.Path)
		}
		last = e.First
		held[e.Path] = e.Tree
	}
	if n != m.q.Len() {
		m.t.Fatalf("Len is %d, holds %d", m.q.Len(), n)
	}
	for p := range m.dirty {
		_, ok := held[p]
		for dir, tree := range held {
			ok = ok || tree && below(p, dir)
		}
		if !ok {
			m.t.Fatalf("%q was lost", p)
		}
	}
	if at, ok := m.q.Wake(); ok && at.Before(t0) {
		m.t.Fatalf("wake before the beginning")
	}
}

// finish lets everything end: it must all be handed out, and nothing may remain.
func (m *model) finish() {
	for i := 0; m.q.Len() > 0 || len(m.flying) > 0; i++ {
		if i > 1000 {
			m.t.Fatalf("does not come to rest: %d dirty, %d in flight", m.q.Len(), len(m.flying))
		}
		m.now = m.now.Add(modelMaxDelay)
		m.next(7)
		m.done(0, func(int) bool { return false })
	}
	if len(m.dirty) > 0 {
		m.t.Fatalf("never handed out: %v", m.dirty)
	}
	if m.q.fresh != 0 {
		m.t.Fatalf("%d fresh paths in an empty queue", m.q.fresh)
	}
	if !m.q.root.kids.empty() || m.q.root.busy != 0 || m.q.root.below != 0 || len(m.q.alone) != 0 {
		m.t.Fatal("nodes are left behind")
	}
	if _, ok := m.q.Wake(); ok {
		m.t.Fatal("an empty queue wants to be woken")
	}
}

func (m *model) run(program []byte) {
	for len(program) >= 2 {
		op, arg := program[0], program[1]
		program = program[2:]
		switch op % 14 {
		case 0, 1, 2:
			m.event(modelPath(arg), watch.Modify, false, false)
		case 3:
			m.event(modelPath(arg), watch.Create, arg%2 == 0, arg%16 == 0)
		case 4:
			m.event(modelPath(arg), watch.Delete, arg%2 == 0, false)
		case 5:
			m.event(modelPath(arg), watch.Rescan, true, true)
		case 6:
			m.now = m.now.Add(time.Duration(arg) * time.Millisecond)
		case 7, 8:
			m.next(1 + int(arg%20))
		case 9:
			m.done(int(arg%3), func(i int) bool { return false })
		case 10:
			m.done(int(arg%3), func(i int) bool { return (int(arg)+i)%3 == 0 })
		case 11:
			m.alone()
		case 12:
			m.light(int(arg % 2))
		case 13:
			m.whole()
		}
		m.check()
	}
	m.finish()
}

func TestQueueAgreesWithANaiveSet(t *testing.T) {
	t.Parallel()
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 0))
		program := make([]byte, 400)
		for i := range program {
			program[i] = byte(rng.Uint32())
		}
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { newModel(t).run(program) })
	}
}

func FuzzQueue(f *testing.F) {
	f.Add([]byte{0, 1, 6, 30, 7, 5, 0, 1, 9, 0})
	f.Add([]byte{5, 4, 0, 5, 6, 200, 7, 1, 4, 4, 10, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 2000 {
			return
		}
		newModel(t).run(program)
	})
}
