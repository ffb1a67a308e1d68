// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/watch"
)

// node is one path component. It exists while it is dirty, in flight, or above such a node.
type node struct {
	name       string
	parent     *node
	kids       *kids // nil for most nodes
	prev, next *node // the ring of dirty nodes
	first, due int64 // valid while dirty
	below      int32 // dirty nodes below, not counting itself
	busy       int32 // nodes in flight below, without those that fly alone
	ops        watch.Op
	flight     flight
	dirty      bool
	tree       bool
	compare    bool
	again      bool // was given back by Done: it has been looked at before
}

type flight uint8

const (
	notInFlight flight = iota
	inFlight
	inFlightAlone
	inFlightLight
)

// mark is what makes a node dirty, beside the times.
type mark struct {
	ops     watch.Op
	tree    bool
	compare bool
	again   bool
}

// fewKids is how many children are kept in a slice, which is smaller than a map and faster to search.
const fewKids = 8

type kids struct {
	few  []*node
	many map[string]*node
}

func (k *kids) get(name string) *node {
	if k == nil {
		return nil
	}
	if k.many != nil {
		return k.many[name]
	}
	for _, n := range k.few {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (k *kids) put(n *node) {
	switch {
	case k.many != nil:
		k.many[n.name] = n
	case len(k.few) < fewKids:
		k.few = append(k.few, n)
	default:
		k.many = make(map[string]*node, 2*fewKids)
		for _, m := range k.few {
			k.many[m.name] = m
		}
		k.many[n.name] = n
		k.few = nil
	}
}

func (k *kids) remove(n *node) {
	if k.many != nil {
		delete(k.many, n.name)
		if len(k.many) == 0 {
			k.many = nil // a map keeps the size that it once had
		}
		return
	}
	if i := slices.Index(k.few, n); i >= 0 {
		k.few = slices.Delete(k.few, i, i+1)
	}
}

func (k *kids) empty() bool { return k == nil || len(k.few) == 0 && len(k.many) == 0 }

func (k *kids) each(f func(*node)) {
	if k == nil {
		return
	}
	for _, n := range k.few {
		f(n)
	}
	for _, n := range k.many {
		f(n)
	}
}

// node finds or makes the node of a path.
func (q *Queue) node(path string) *node {
	n, size := q.root, len(path)
	for path != "" {
		name, rest, _ := strings.Cut(path, "/")
		kid := n.kids.get(name)
		if kid == nil {
			kid = n.grow(name, size)
		}
		n, path = kid, rest
	}
	return n
}

// cloneFrom is how much longer than a name its path is from which on the name is copied: it would keep the whole path in memory. To copy
// every name takes half of the queue's allocations.
const cloneFrom = 64

// grow gives n a child, of whose path, which has so many bytes, name is a part.
func (n *node) grow(name string, path int) *node {
	if path-len(name) >= cloneFrom {
		name = strings.Clone(name)
	}
	kid := &node{name: name, parent: n}
	if n.kids == nil {
		n.kids = &kids{}
	}
	n.kids.put(kid)
	return kid
}

// find is node for a path that may not be there.
func (q *Queue) find(path string) *node {
	n := q.root
	for n != nil && path != "" {
		name, rest, _ := strings.Cut(path, "/")
		n, path = n.kids.get(name), rest
	}
	return n
}

func (n *node) path() string {
	size := -1
	for m := n; m.parent != nil; m = m.parent {
		size += len(m.name) + 1
	}
	if size < 0 {
		return ""
	}
	buf := make([]byte, size)
	for m := n; m.parent != nil; m = m.parent {
		size -= len(m.name)
		copy(buf[size:], m.name)
		if size > 0 {
			size--
			buf[size] = '/'
		}
	}
	return string(buf)
}

func (q *Queue) entry(n *node) Entry {
	return Entry{
		Path:    n.path(),
		Tree:    n.tree,
		Compare: n.compare,
		Created: n.ops&watch.Create != 0,
		Written: n.ops&watch.Modify != 0,
		First:   q.time(n.first),
	}
}

// add makes a path dirty, or the tree that it lies in. first is when it became dirty, due when nothing more happens.
func (q *Queue) add(t int64, path string, m mark, first, due int64) {
	n, size := q.root, len(path)
	for path != "" && (!n.dirty || !n.tree) { // a dirty tree stands for everything below
		name, rest, _ := strings.Cut(path, "/")
		kid := n.kids.get(name)
		if kid == nil {
			kid = n.grow(name, size)
		}
		n, path = kid, rest
	}
	if path != "" {
		// n is a dirty tree above the path. It does not wait longer for that: as long as it is being filled,
		// it would never go quiet.
		n.compare = n.compare || m.compare || m.ops&watch.Delete != 0
		q.backdate(n, first)
		return
	}
	if m.tree && !n.tree && q.dropBelow(n, &first) {
		m.compare = true
	}
	was := n.isFresh()
	switch {
	case !n.dirty:
		n.dirty, n.due, n.again = true, due, m.again
		q.link(n, first)
		q.dirty++
		for p := n.parent; p != nil; p = p.parent {
			p.below++
			if p.below == denseTree || p.below == freshTree && p.dirty && p.ops&watch.Create != 0 {
				q.dense = append(q.dense, p)
			}
		}
	case m.again:
		q.backdate(n, first)
		n.due, n.again = min(n.due, due), true
	case n.again:
		// It was looked at and could not be sent yet. An event may bring the next look forward, not put it off.
		q.backdate(n, first)
		n.due = min(n.due, due)
	case n.tree:
		// As for what is below it: it does not wait longer for that.
		q.backdate(n, first)
		n.due = min(n.due, due)
	default:
		q.backdate(n, first)
		n.due = due
	}
	n.ops |= m.ops
	n.tree = n.tree || m.tree
	n.compare = n.compare || m.compare
	wake := n.due
	if n.isFresh() {
		if q.fresh == 0 {
			q.since = t
		}
		if !was {
			q.fresh++
		}
		// It goes with the others that are made meanwhile, or earlier if there are few.
		if due > t {
			n.due = max(n.due, n.first+2*int64(q.opts.Delay))
		}
		wake = min(n.due, q.freshAt())
	} else if was {
		q.fresh--
	}
	if !m.again {
		n.due = min(n.due, max(n.first+int64(q.opts.MaxDelay), t))
	}
	q.wakeAt(min(wake, n.due))
}

// isFresh reports whether a dirty path was made since it was last handed out. One that was looked at and given back is not:
// when to look again is known.
func (n *node) isFresh() bool { return n.dirty && n.ops&watch.Create != 0 && !n.again }

// link puts a dirty node into the ring, which is in the order of first. One that is older than the newest goes to
// the front and counts as old as the oldest: an age may be told too high, never too low.
func (q *Queue) link(n *node, first int64) {
	at := &q.list // before which to insert: the end
	if last := q.list.prev; last != &q.list && last.first > first {
		at = q.list.next
		first = min(first, at.first)
	}
	n.first = first
	n.prev, n.next = at.prev, at
	n.prev.next, n.next.prev = n, n
}

// backdate says that a dirty node has been so since first, if that is longer.
func (q *Queue) backdate(n *node, first int64) {
	if first >= n.first {
		return
	}
	n.prev.next, n.next.prev = n.next, n.prev
	q.link(n, first)
}

// clean takes a node off the dirty set; it stays in the trie until prune.
func (q *Queue) clean(n *node) {
	n.prev.next, n.next.prev = n.next, n.prev
	n.prev, n.next = nil, nil
	if n.isFresh() {
		q.fresh--
	}
	n.dirty, n.tree, n.compare, n.again, n.ops = false, false, false, false, 0
	q.dirty--
	for p := n.parent; p != nil; p = p.parent {
		p.below--
	}
}

// dropBelow cleans everything below n, which stands for it from now on. What is in flight stays so.
func (q *Queue) dropBelow(n *node, first *int64) (deletions bool) {
	if n.below == 0 {
		return false
	}
	var gone []*node
	n.kids.each(func(kid *node) {
		if q.dropBelow(kid, first) {
			deletions = true
		}
		if kid.dirty {
			deletions = deletions || kid.ops&watch.Delete != 0 || kid.compare
			if first != nil {
				*first = min(*first, kid.first)
			}
			q.clean(kid)
		}
		if kid.flight == notInFlight && kid.kids.empty() {
			gone = append(gone, kid)
		}
	})
	for _, kid := range gone {
		n.kids.remove(kid)
	}
	return deletions
}

// collapse lets n stand for everything dirty below it.
func (q *Queue) collapse(t int64, n *node) {
	first := t
	compare := q.dropBelow(n, &first)
	q.add(t, n.path(), mark{tree: true, compare: compare}, first, t)
}

// collapseDense turns directories into trees where recursion is cheaper than a list.
func (q *Queue) collapseDense(t int64) {
	if len(q.dense) == 0 {
		return
	}
	dense := q.dense
	q.dense = nil
	// Deepest first: a directory that is dense only because of one child is left alone once the child is a tree.
	slices.SortStableFunc(dense, func(a, b *node) int { return b.depth() - a.depth() })
	for _, n := range dense {
		// The root stands for a comparison of everything, which would find the same paths again.
		if n.parent == nil || q.find(n.path()) != n || n.dirty && n.tree {
			continue
		}
		switch {
		case n.dirty && n.ops&watch.Create != 0 && n.below >= freshTree:
		case n.below >= denseTree && q.worthwhile(n):
		default:
			continue
		}
		if n.busy > 0 {
			q.dense = append(q.dense, n) // a tree would wait for what is in flight below it, and its paths need not
			continue
		}
		q.collapse(t, n)
	}
}

func (q *Queue) worthwhile(n *node) bool {
	if q.opts.Size == nil {
		return true
	}
	size := q.opts.Size(n.path())
	return size == 0 || int(n.below)*denseRate >= size
}

func (n *node) depth() int {
	d := 0
	for p := n.parent; p != nil; p = p.parent {
		d++
	}
	return d
}

// bound keeps the number of dirty nodes below MaxPaths. It lets the deepest directories with many dirty
// paths stand for them until a quarter is free again, so its cost is spread over that many events.
func (q *Queue) bound(t int64) {
	if q.dirty <= q.opts.MaxPaths {
		return
	}
	goal := q.opts.MaxPaths - q.opts.MaxPaths/4
	for _, many := range []int32{1000, 100, 10, 2} {
		q.boundBelow(t, q.root, many, goal)
		if q.dirty <= goal {
			return
		}
	}
	q.collapse(t, q.root)
}

func (q *Queue) boundBelow(t int64, n *node, many int32, goal int) {
	if n.below < many || n.dirty && n.tree || q.dirty <= goal {
		return
	}
	// collapse changes kids, so it is not called from within each.
	var deeper []*node
	n.kids.each(func(kid *node) {
		if kid.below >= many {
			deeper = append(deeper, kid)
		}
	})
	for _, kid := range deeper {
		q.boundBelow(t, kid, many, goal)
	}
	if n.below >= many && n.parent != nil && q.dirty > goal {
		q.collapse(t, n)
	}
}

// lift puts a node in flight.
func (q *Queue) lift(n *node, f flight) {
	n.flight = f
	for p := n.parent; p != nil; p = p.parent {
		p.busy++
	}
}

// land takes a node out of flight.
func (q *Queue) land(n *node) {
	n.flight = notInFlight
	for p := n.parent; p != nil; p = p.parent {
		p.busy--
	}
}

// blocked reports whether n overlaps with, or lies above or below, something in flight.
func (q *Queue) blocked(n *node) bool {
	return n.flight != notInFlight || n.busy > 0 || q.covered(n) || n.tree && q.aloneBelow(n)
}

// covered reports whether something above n is in flight.
func (q *Queue) covered(n *node) bool {
	for p := n.parent; p != nil; p = p.parent {
		if p.flight == inFlight || p.flight == inFlightAlone {
			return true
		}
	}
	return false
}

func (q *Queue) aloneBelow(n *node) bool {
	for _, m := range q.alone {
		for p := m.parent; p != nil; p = p.parent {
			if p == n {
				return true
			}
		}
	}
	return false
}

// prune removes n and its ancestors from the trie as far as nothing needs them.
func (q *Queue) prune(n *node) {
	for n.parent != nil && !n.dirty && n.flight == notInFlight && n.kids.empty() {
		p := n.parent
		if p.kids.get(n.name) == n {
			p.kids.remove(n)
		}
		n = p
	}
}
