// SPDX-License-Identifier: Apache-2.0

// Package queue gathers filesystem events into batches of paths to be looked at.
//
// A [Queue] is a set of dirty paths, and nothing else: it has no goroutine, no clock and no lock. A path
// waits until nothing has happened to it for Delay, but never longer than MaxDelay, so a log that is
// written every second still goes out. A path that was just made goes sooner when few are made, and waits up to
// twice Delay when many are, so that they go together. What is handed out never overlaps with, nor lies above or below,
// anything that is still in flight; an event for a path in flight makes it dirty again. At most MaxPaths
// paths are held: past that a directory stands for all below it, and the root for the whole tree. Precision
// is lost then, information never. What to do with a path is decided by whoever looks at the disk.
package queue

import (
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/watch"
)

const (
	// DefaultMaxPaths bounds the dirty paths held one by one. A path costs about 150 bytes here and Go's collector
	// needs as much again, so a full queue is about 60 MB of resident memory, whatever the backlog. Beyond a
	// few hundred thousand paths a recursive transfer is faster than a list anyhow.
	DefaultMaxPaths = 200_000

	// denseTree is how many dirty paths below a directory are better sent by recursion: rsync --files-from
	// costs about 50 µs an entry, recursion about 6 µs, so a directory of at most ten times as many entries wins.
	denseTree = 5000
	denseRate = 10

	// freshTree is the same for a directory that was made since it was last sent: all of it is new.
	freshTree = 200

	// pace is how many paths are made in one Delay before it pays to wait for more of them. With a Delay of 20 ms
	// that is one every 2.5 ms, in which a run of rsync takes 8 ms.
	pace = 8
)

// Options configures a Queue.
type Options struct {
	Delay    time.Duration // quiet time of one path before it is due
	MaxDelay time.Duration // a path that never goes quiet is due this long after its first event
	MaxPaths int           // 0 means DefaultMaxPaths
	// Size tells how many entries the source has below a directory; 0 means not known. May be nil.
	Size func(dir string) int
}

// Entry is one path of a batch.
type Entry struct {
	Path    string    // relative to the root; "" is the root itself
	Tree    bool      // everything below may have changed too
	Compare bool      // with Tree: deletions may hide below, so sending alone does not make it equal
	Created bool      // it was made since it was last handed out
	Written bool      // it was written to since then
	First   time.Time // dirty since
}

// Again is a path that a batch gives back: it stays dirty and is due at At, or as soon as an event makes it so.
type Again struct {
	Entry
	At time.Time
}

// Batch is a set of paths in flight, parents before their children. It must be given back with [Queue.Done].
type Batch struct {
	Entries []Entry
	nodes   []*node // nodes[i] is Entries[i]
}

// Queue is the set of dirty paths below one root. The zero value is not usable; see [New]. It is not safe
// for concurrent use.
type Queue struct {
	opts  Options
	epoch time.Time
	root  *node
	list  node // ring of dirty nodes, oldest first: list.next is the oldest
	dirty int
	wake  int64   // no dirty path is due before; noWake when unknown or nothing is dirty
	alone []*node // in flight alone: they do not hold back their parents
	dense []*node // directories that reached denseTree dirty paths since the last Next
	fresh int     // dirty paths that were made since they were last handed out
	since int64   // when the first of them was made
	last  int64   // when something last happened
}

const noWake = int64(-1)

// New returns an empty queue.
func New(opts Options) *Queue {
	if opts.MaxPaths == 0 {
		opts.MaxPaths = DefaultMaxPaths
	}
	q := &Queue{opts: opts, root: &node{}, wake: noWake}
	q.list.prev, q.list.next = &q.list, &q.list
	return q
}

// SetDelays changes Delay and MaxDelay for events from now on.
func (q *Queue) SetDelays(delay, maxDelay time.Duration) {
	q.opts.Delay, q.opts.MaxDelay = delay, maxDelay
}

// Len returns the number of dirty paths that are not in flight; a tree counts as one.
func (q *Queue) Len() int { return q.dirty }

// Oldest returns since when the longest waiting path has been dirty.
func (q *Queue) Oldest() (time.Time, bool) {
	if q.dirty == 0 {
		return time.Time{}, false
	}
	return q.time(q.list.next.first), true
}

// Wake returns when the next path becomes due; it may be too early, never too late. A path that is due but
// overlaps with one in flight does not count: Done makes it possible.
func (q *Queue) Wake() (time.Time, bool) {
	if q.dirty == 0 || q.wake == noWake {
		return time.Time{}, false
	}
	return q.time(q.wake), true
}

// Add makes the paths of the events dirty.
func (q *Queue) Add(now time.Time, events []watch.Event) {
	t := q.ticks(now)
	for i := range events {
		e := &events[i]
		if e.Cookie != "" {
			continue
		}
		q.last = t
		flags := mark{ops: e.Op, tree: e.Tree}
		switch {
		case e.Op&watch.Delete != 0:
			// It may have been a directory, even without Dir. When one of that name is there again by the time we
			// look, nothing is known of what is below it, on either side.
			flags.tree, flags.compare = true, true
		case e.Op&watch.Rescan != 0 && e.Tree:
			flags.compare = true
		}
		q.add(t, e.Path, flags, t, t+int64(q.opts.Delay))
	}
	q.bound(t)
}

// Mark makes one path dirty, since first, and due at once. A tree may also hide deletions.
func (q *Queue) Mark(now, first time.Time, path string, tree bool) {
	t := q.ticks(now)
	q.add(t, path, mark{tree: tree, compare: tree}, min(t, q.ticks(first)), t)
	q.bound(t)
}

// Return makes a path dirty, due at once, that was gone and is there again: what took its place may have the size and the time of what was there.
func (q *Queue) Return(now, first time.Time, path string) {
	t := q.ticks(now)
	q.add(t, path, mark{ops: watch.Create, tree: true, compare: true}, min(t, q.ticks(first)), t)
	q.bound(t)
}

// MarkNew makes a path dirty, due at once, of which the backup has nothing; a directory with everything below it.
func (q *Queue) MarkNew(now, first time.Time, path string, dir bool) {
	t := q.ticks(now)
	q.add(t, path, mark{ops: watch.Create | watch.Modify, tree: dir}, min(t, q.ticks(first)), t)
	q.bound(t)
}

// Settle makes one path dirty, since first, and due when nothing has called for it during quiet, at the latest
// after MaxDelay.
func (q *Queue) Settle(now time.Time, path string, first time.Time, quiet time.Duration) {
	t := q.ticks(now)
	q.add(t, path, mark{}, min(t, q.ticks(first)), t+int64(quiet))
	q.bound(t)
}

// Flush makes everything due at once.
func (q *Queue) Flush(now time.Time) {
	t := q.ticks(now)
	for n := q.list.next; n != &q.list; n = n.next {
		n.due = min(n.due, t)
	}
	q.wakeAt(t)
}

// Next hands out at most limit paths, those that have waited longest first: what is due, and with it what has been
// quiet for a quarter of Delay, or was just made. So under a steady stream of changes a batch carries most of a Delay's
// worth of them, and a larger Delay means fewer runs; without that, each path would become due, and go, by itself.
func (q *Queue) Next(now time.Time, limit int) (Batch, bool) {
	t := q.ticks(now)
	q.collapseDense(t)
	if q.wake == noWake || q.wake > t {
		return Batch{}, false
	}
	var b Batch
	var early []*node
	wake := noWake
	delay, freshAt := int64(q.opts.Delay), q.freshAt()
	n := q.list.next
	for ; n != &q.list && len(b.nodes) < limit; n = n.next {
		due, goesAlong := n.due, n.due <= t+delay*3/4
		if n.isFresh() {
			goesAlong = n.due <= max(n.first+2*delay, t+delay-delay/pace) // else it is being written
			if goesAlong {
				due = min(due, freshAt)
			}
		}
		switch {
		case due > t:
			if wake == noWake || due < wake {
				wake = due
			}
			if goesAlong && len(early) < limit && !q.blocked(n) {
				early = append(early, n)
			}
		case !q.blocked(n):
			b.nodes = append(b.nodes, n)
		}
	}
	if n == &q.list {
		q.wake = wake
	} else {
		q.wakeAt(t) // there may be more
	}
	if len(b.nodes) == 0 {
		return Batch{}, false
	}
	b.nodes = append(b.nodes, early[:min(len(early), limit-len(b.nodes))]...)
	b.Entries = make([]Entry, len(b.nodes))
	for i, n := range b.nodes {
		b.Entries[i] = q.entry(n)
	}
	b.sort()
	for _, n := range b.nodes {
		q.clean(n)
		q.lift(n, inFlight)
	}
	return b, true
}

// Whole reports whether the root stands for the whole tree and is due, and forgets it then: everything is to be compared. That
// does not have to wait for what is in flight, as it would in Next.
func (q *Queue) Whole(now time.Time) bool {
	if !q.root.dirty || !q.root.tree || q.root.due > q.ticks(now) {
		return false
	}
	q.clean(q.root)
	return true
}

// freshAt is when the paths that were just made go: when nothing has happened for the pace, or when no more than
// one of them comes in each of it.
func (q *Queue) freshAt() int64 {
	step := int64(q.opts.Delay) / pace
	return min(q.last+step, q.since+int64(q.fresh)*step)
}

// Split takes the entries that apart reports out of b into a batch of their own.
func (q *Queue) Split(b *Batch, apart func(Entry) bool) Batch {
	var out Batch
	kept := 0
	for i, e := range b.Entries {
		if apart(e) {
			out.Entries = append(out.Entries, e)
			out.nodes = append(out.nodes, b.nodes[i])
			continue
		}
		b.Entries[kept], b.nodes[kept] = e, b.nodes[i]
		kept++
	}
	clear(b.nodes[kept:])
	b.Entries, b.nodes = b.Entries[:kept], b.nodes[:kept]
	return out
}

// Alone says that the paths of b, each of them a file, will be in flight for long: their parents are no
// longer held back by them, except as a tree.
func (q *Queue) Alone(b Batch) {
	for _, n := range b.nodes {
		if n.flight == inFlight {
			q.land(n)
			n.flight = inFlightAlone
			q.alone = append(q.alone, n)
		}
	}
	q.wakeAt(0)
}

// Light says which paths of b are directories that are sent without what is in them: what is below is not held back.
func (q *Queue) Light(b Batch, directory func(Entry) bool) {
	for i, n := range b.nodes {
		if n.flight == inFlight && !b.Entries[i].Tree && directory(b.Entries[i]) {
			n.flight = inFlightLight
		}
	}
	q.wakeAt(0)
}

// Reserve takes a path with everything below it for a deletion, so that nothing there is handed out until
// Done. It refuses when something at, above or below it is in flight.
func (q *Queue) Reserve(now time.Time, path string) (Batch, bool) {
	t := q.ticks(now)
	n := q.node(path)
	if n.flight != notInFlight || n.busy > 0 || q.aloneBelow(n) || q.covered(n) {
		q.prune(n)
		return Batch{}, false
	}
	q.lift(n, inFlight)
	return Batch{Entries: []Entry{{Path: path, Tree: true, First: q.time(t)}}, nodes: []*node{n}}, true
}

// Join makes one batch of two.
func (b *Batch) Join(other Batch) {
	b.Entries = append(b.Entries, other.Entries...)
	b.nodes = append(b.nodes, other.nodes...)
}

// Done gives a batch back. Its paths are clean, except those in again and those that had an event meanwhile.
func (q *Queue) Done(now time.Time, b Batch, again []Again) {
	t := q.ticks(now)
	for _, n := range b.nodes {
		if n.flight == inFlightAlone {
			q.alone = slices.DeleteFunc(q.alone, func(m *node) bool { return m == n })
			n.flight = notInFlight
		} else {
			q.land(n)
		}
	}
	for _, a := range again {
		ops := watch.Op(0)
		if a.Created {
			ops |= watch.Create
		}
		if a.Written {
			ops |= watch.Modify
		}
		q.add(t, a.Path, mark{ops: ops, tree: a.Tree, compare: a.Compare, again: true}, q.ticks(a.First), q.ticks(a.At))
	}
	for _, n := range b.nodes {
		q.prune(n)
	}
	q.bound(t)
	q.wakeAt(t) // what overlapped with the batch may be due
}

// Covers reports whether something is known to have happened to a path that is not dealt with yet: it is dirty or in
// flight, or lies in a tree that is.
func (q *Queue) Covers(path string) bool {
	n := q.root
	for {
		if n.tree && n.dirty || n.flight != notInFlight && (path == "" || n.flight != inFlightLight) {
			return true
		}
		if path == "" {
			return n.dirty
		}
		name, rest, _ := strings.Cut(path, "/")
		if n = n.kids.get(name); n == nil {
			return false
		}
		path = rest
	}
}

func (b *Batch) sort() {
	order := make([]int, len(b.nodes))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return strings.Compare(b.Entries[i].Path, b.Entries[j].Path) })
	entries, nodes := make([]Entry, len(order)), make([]*node, len(order))
	for i, j := range order {
		entries[i], nodes[i] = b.Entries[j], b.nodes[j]
	}
	b.Entries, b.nodes = entries, nodes
}

// ticks turns a time into the queue's own, which is cheap to store and, as long as now carries Go's monotonic
// reading, not moved by a step of the clock.
func (q *Queue) ticks(now time.Time) int64 {
	if q.epoch.IsZero() {
		q.epoch = now
	}
	return int64(now.Sub(q.epoch))
}

func (q *Queue) time(t int64) time.Time { return q.epoch.Add(time.Duration(t)) }

func (q *Queue) wakeAt(t int64) {
	if q.wake == noWake || t < q.wake {
		q.wake = t
	}
}
