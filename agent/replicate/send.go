// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// work is a batch that is in flight in the queue: it waits for a slot, or a job does it.
type work struct {
	kind     workKind
	batch    queue.Batch
	first    time.Time       // the oldest of its paths is dirty since
	findings []finding       // for workDelete and workForce
	ledger   bool            // a retry of paths in the ledger
	light    map[string]bool // directories of a batch that are sent without what is in them
}

type workKind int

const (
	workSend   workKind = iota // paths, each by itself
	workBig                    // one big file
	workTree                   // one directory with everything below
	workDelete                 // what the door let through
	workForce                  // a path that takes the place of a directory on the backup; the door let it through
)

func (k workKind) String() string {
	return [...]string{"send", "big", "tree", "delete", "replace"}[k]
}

// newWork notes a batch as in flight.
func (l *loop) newWork(kind workKind, b queue.Batch) *work {
	w := &work{kind: kind, batch: b, first: b.Entries[0].First}
	for _, e := range b.Entries {
		if e.First.Before(w.first) {
			w.first = e.First
		}
	}
	l.flying[w] = struct{}{}
	return w
}

// setApart lets a part of w wait for a slot of its own.
func (l *loop) setApart(w *work, kind workKind, b queue.Batch) {
	part := l.newWork(kind, b)
	part.ledger = w.ledger
	l.waiting = append(l.waiting, part)
}

// startWaiting starts the first waiting work, slow ones or the others.
func (l *loop) startWaiting(now time.Time, slow bool) bool {
	for i, w := range l.waiting {
		if (w.kind == workBig || w.kind == workTree) != slow {
			continue
		}
		l.waiting = append(l.waiting[:i:i], l.waiting[i+1:]...)
		switch w.kind {
		case workBig, workTree:
			l.startSlow(now, w)
		default:
			l.startSend(now, w)
		}
		return true
	}
	return false
}

// startBatch hands the next due paths to a job, which looks at them and sends those that are there and at rest.
func (l *loop) startBatch(now time.Time) bool {
	if l.q.Whole(now) {
		// A full batch knows best, and does not keep live changes waiting.
		l.full.valid = false
		l.requestFull(tooMuch)
		return true
	}
	if now.Before(l.gathering()) {
		return false
	}
	b, ok := l.q.Next(now, batchPaths)
	if !ok {
		return false
	}
	w := l.newWork(workSend, b)
	l.startSend(now, w)
	return true
}

// startLedger tries paths of the ledger again, in a run of their own.
func (l *loop) startLedger(now time.Time) bool {
	due := l.ledger.due(now, ledgerBatch)
	var b queue.Batch
	for _, e := range due {
		one, ok := l.q.Reserve(now, e.Path)
		if !ok {
			l.ledger.postpone(now, e.Path) // it is on its way as a live change
			continue
		}
		one.Entries[0].Tree, one.Entries[0].Compare = e.Tree, e.compare
		b.Join(one)
	}
	if len(b.Entries) == 0 {
		return len(due) > 0
	}
	w := l.newWork(workSend, b)
	w.ledger = true
	l.startSend(now, w)
	return true
}

// startSend looks at every path of w and sends what can be sent at once; the loop finds another way for the rest.
func (l *loop) startSend(now time.Time, w *work) {
	j := &job{kind: "send", what: nameBatch(w.batch), paths: len(w.batch.Entries), slot: true, trees: treesOf(w.batch)}
	wr := l.writers(openFiles{})
	for _, e := range w.batch.Entries {
		if o, ok := l.open[e.Path]; ok {
			wr.known[e.Path] = o
		}
	}
	l.moving.note(w.batch.Entries)
	keep := l.standby.begin(now)
	entries := append([]queue.Entry(nil), w.batch.Entries...) // the loop will take some out of the batch
	checksum := l.distrust.touches(entries)
	l.startAtSource(now, j, func(now time.Time, _ error) { l.giveBack(now, w) }, func(ctx context.Context, eng engine, r root) {
		p := prepare(now, r, entries, wr)
		l.post(func(now time.Time) { l.prepared(now, w, p); j.bytes = p.bytes })
		if len(p.send) == 0 {
			return
		}
		progress := l.progressOf(j)
		if p.bytes < bigFile {
			progress = nil // it costs rsync a system call a line
		}
		run := transfer.Job{Kind: transfer.Send, Paths: p.send, Checksum: checksum || len(p.distrusted) > 0, Small: p.bytes < int64(len(p.send))*smallFile, Standby: keep}
		res := eng.Run(ctx, r, run, progress)
		moved := p.dirs.moved(r)
		l.post(func(now time.Time) {
			l.standby.end(now, j.started, res)
			l.settle(now, w, res, moved)
			l.arrived(res, p.send, nil)
		})
	})
}

func treesOf(b queue.Batch) []string {
	var out []string
	for _, e := range b.Entries {
		if e.Tree {
			out = append(out, e.Path)
		}
	}
	return out
}

func nameBatch(b queue.Batch) string {
	if len(b.Entries) == 1 {
		return cmp.Or(b.Entries[0].Path, ".")
	}
	return fmt.Sprintf("%d paths", len(b.Entries))
}

// prepared sorts out the entries of a batch that are not sent with it. It runs before settle of the same job.
func (l *loop) prepared(now time.Time, w *work, p prepared) {
	l.linked(p.links)
	for _, path := range p.distrusted {
		l.distrust[path] = struct{}{}
	}
	var again []queue.Again
	var back []deletion
	forget := func(path string) {
		if d, known := l.door.forget(path); known {
			back = append(back, d)
		}
	}
	var gone []queue.Entry
	out := l.q.Split(&w.batch, func(e queue.Entry) bool {
		f, ok := p.apart[e.Path]
		return ok && f.kind != fateBig && f.kind != fateTree
	})
	for _, e := range out.Entries {
		switch f := p.apart[e.Path]; f.kind {
		case fateGone:
			gone = append(gone, e)
		case fateBusy:
			again = append(again, queue.Again{Entry: e, At: f.at})
			l.ledger.postpone(now, e.Path)
		case fateLater:
			again = append(again, queue.Again{Entry: e, At: now})
			l.ledger.postpone(now, e.Path)
		case fateUnreadable:
			l.failEntry(now, e, f.reason, false)
		}
	}
	for path, f := range p.apart {
		if f.kind == fateBig {
			big := l.q.Split(&w.batch, func(e queue.Entry) bool { return e.Path == path })
			if len(big.Entries) > 0 {
				l.q.Alone(big)
				l.setApart(w, workBig, big)
			}
		}
		if f.kind != fateGone {
			forget(path)
		}
	}
	trees := l.q.Split(&w.batch, func(e queue.Entry) bool { return p.apart[e.Path].kind == fateTree })
	if len(trees.Entries) > 0 {
		l.setApart(w, workTree, trees)
	}
	for _, path := range p.send {
		delete(l.open, path)
		forget(path)
	}
	if len(p.send) > 0 && l.door.held != nil && l.door.held.empty {
		l.heldCheck = now // the source is not empty any more
	}
	l.open.note(now, p.busy)
	w.light = p.light
	if len(p.light) > 0 {
		l.q.Light(w.batch, func(e queue.Entry) bool { return p.light[e.Path] })
	}
	l.q.Done(now, out, append(again, p.below...))
	for _, e := range gone {
		delete(l.open, e.Path)
		l.gone(now, e, w.ledger)
	}
	for _, d := range back {
		l.back(now, w.first, d)
	}
	if len(w.batch.Entries) == 0 {
		delete(l.flying, w)
	}
}

// gone takes a path to the door that is not in the source any more. Where a try of the ledger finds that, nobody saw it go.
func (l *loop) gone(now time.Time, e queue.Entry, found bool) {
	d := deletion{path: e.Path, found: found, first: e.First, was: l.ledger.entries[e.Path]}
	l.ledger.clear(now, e.Path, true, nil)
	if l.pair.HooksOnly() {
		l.arrived(transfer.Result{Class: transfer.Done}, nil, []string{e.Path})
		return
	}
	if l.door.enabled {
		l.door.add(now, d)
	} else {
		l.settleParent(now, d)
	}
}

// back makes a path dirty that was gone and is on disk again. If it is a directory, nothing is known of what is below it on the backup.
func (l *loop) back(now, first time.Time, d deletion) {
	if d.found {
		l.q.Mark(now, first, d.path, true)
	} else {
		l.q.Return(now, first, d.path)
	}
}

// giveBack makes everything of w dirty again, due at once: whether it can be sent is decided elsewhere.
func (l *loop) giveBack(now time.Time, w *work) {
	delete(l.flying, w)
	if len(w.findings) > 0 {
		l.door.failed(now, w.findings)
		l.q.Done(now, w.batch, nil)
		return
	}
	again := make([]queue.Again, 0, len(w.batch.Entries))
	for _, e := range w.batch.Entries {
		if w.ledger {
			l.ledger.postpone(now, e.Path)
			continue
		}
		e.Compare = e.Compare || e.Tree // something may be left over of what was cut off
		again = append(again, queue.Again{Entry: e, At: now})
	}
	l.q.Done(now, w.batch, again)
}
