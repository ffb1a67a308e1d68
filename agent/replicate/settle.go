// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"time"

	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// account counts the result of a transfer.
func (l *loop) account(now time.Time, res transfer.Result) {
	l.counters.Files += res.Stats.Transferred
	l.counters.Bytes += res.Stats.Bytes
	l.counters.SentBytes += res.Stats.Sent
	l.counters.Deleted += res.Stats.Deleted
	l.door.created(int(res.Stats.Created))
	if res.Cut {
		l.cutOff(now)
	}
	l.learn(now, res)
}

// settle takes in the result of a transfer that sent something.
func (l *loop) settle(now time.Time, w *work, res transfer.Result, moved []queue.Entry) {
	l.account(now, res)
	switch res.Class {
	case transfer.Done:
	case transfer.Unknown:
		l.bisect(now, w, res)
		return
	default:
		l.giveBack(now, w)
		return
	}
	delete(l.flying, w)
	first := map[string]time.Time{}
	for _, e := range w.batch.Entries {
		first[e.Path] = e.First
	}
	since := func(path string) time.Time {
		if t, ok := first[path]; ok {
			return t
		}
		return w.first
	}
	failed := map[string]bool{}
	for _, f := range res.Failed {
		failed[f.Path] = true
	}
	for _, path := range res.Blocked {
		failed[path] = true
	}
	for _, e := range w.batch.Entries {
		if isBelowAny(e.Path, failed) {
			continue // the ledger has what stands for it
		}
		if !w.light[e.Path] || !l.ledger.wants(e.Path, e.Tree, e.Compare) {
			l.ledger.clear(now, e.Path, e.Tree, failed)
		}
		l.distrust.sent(e, failed)
		if !w.ledger {
			l.latency.add(now.Sub(e.First))
		}
	}
	for _, f := range res.Failed {
		// A directory stands for everything below it.
		l.failPath(now, f.Path, true, f.Reason, f.Remote)
	}
	var again []queue.Again
	for _, path := range res.Changed {
		// Of a tree, it may be a directory of which nothing is known any more.
		tree := w.kind == workTree
		again = append(again, queue.Again{
			Entry: queue.Entry{Path: path, Tree: tree, Compare: tree, First: since(path)},
			At:    now.Add(max(time.Duration(l.pair.Watch.Delay), 10*time.Millisecond)),
		})
	}
	l.q.Done(now, w.batch, again)
	for _, path := range res.Blocked {
		l.blocked(now, path, since(path))
	}
	l.settleDirs(now, moved)
}

// blocked takes a path to the door that a non-empty directory on the backup is in the way of.
func (l *loop) blocked(now time.Time, path string, first time.Time) {
	if l.door.enabled {
		l.door.add(now, deletion{path: path, blocked: true, found: true, first: first})
		return
	}
	l.failPath(now, path, false, "a directory on the backup is in the way, and delete.enabled is false", true)
}

// settleDirs makes directories dirty whose time stamp on the backup may be stale.
func (l *loop) settleDirs(now time.Time, dirs []queue.Entry) {
	quiet := settleDir
	if len(l.barriers) > 0 {
		quiet = 0
	}
	for _, e := range dirs {
		l.q.Settle(now, e.Path, e.First, quiet)
	}
}

// failEntry notes an entry of the queue that could not be sent, with all that the queue knew of it.
func (l *loop) failEntry(now time.Time, e queue.Entry, reason string, remote bool) {
	if entry := l.failPath(now, e.Path, e.Tree, reason, remote); e.Compare {
		entry.compare = true
	}
}

// failPath notes a path that could not be sent, and returns the entry of the ledger that stands for it.
func (l *loop) failPath(now time.Time, path string, tree bool, reason string, remote bool) *LedgerEntry {
	side := "the source host cannot read it"
	if remote {
		side = "the backup host cannot write it"
	}
	entry, isNew := l.ledger.fail(now, path, tree, reason, remote)
	if isNew {
		l.log.Warn("a path could not be sent; it is tried again by itself", "path", named(path), "err", reason, "side", side)
	} else {
		l.log.Debug("a path could not be sent again", "path", named(path), "err", reason, "side", side)
	}
	return entry
}

// unknownLimit is how many transfers in a row may end in a way that is not understood before it counts as an
// outage. Bisecting a full batch down to one bad path takes 13.
const unknownLimit = 30

// bisect finds the path that makes rsync fail in a way that is not understood: nothing of the batch counts as done.
func (l *loop) bisect(now time.Time, w *work, res transfer.Result) {
	l.unknown++
	if l.unknown > unknownLimit {
		l.giveBack(now, w)
		l.fail(now, res)
		return
	}
	n := len(w.batch.Entries)
	if n == 1 {
		e := w.batch.Entries[0]
		delete(l.flying, w)
		l.q.Done(now, w.batch, nil)
		l.failEntry(now, e, res.Message, true)
		return
	}
	l.log.Warn("a transfer ended in a way that is not understood; its paths are sent in two halves", "paths", n, "status", res.Status, "err", res.Message)
	half := map[string]bool{}
	for _, e := range w.batch.Entries[:n/2] {
		half[e.Path] = true
	}
	a := l.q.Split(&w.batch, func(e queue.Entry) bool { return half[e.Path] })
	delete(l.flying, w)
	l.setApart(w, w.kind, a)
	l.setApart(w, w.kind, w.batch)
}
