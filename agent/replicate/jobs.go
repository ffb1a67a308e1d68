// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// job is one goroutine that runs rsync, or looks at the disk. Its fields belong to the loop.
type job struct {
	kind     string
	what     string
	paths    int
	started  time.Time
	slot     bool     // counts against transfer.parallel
	slow     bool     // may take long
	can      bool     // may be interrupted at any time without a loss
	trees    []string // what it sends by recursion
	progress transfer.Progress
	sign     time.Time // the last sign of progress
	bytes    int64
	cancel   context.CancelFunc
}

// start runs f in a goroutine and takes the job off the list when f has ended. What f posts is run before.
func (l *loop) start(now time.Time, j *job, f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(l.jobsCtx)
	j.started, j.sign, j.cancel = now, now, cancel
	l.jobs[j] = struct{}{}
	l.walked.begin(j.trees)
	l.group.Go(func() {
		defer cancel()
		f(ctx)
		l.post(func(now time.Time) {
			delete(l.jobs, j)
			l.walked.end(now, j.trees)
		})
	})
}

// progressOf returns a callback that notes how far a job is. It posts at most twice a second.
func (l *loop) progressOf(j *job) func(transfer.Progress) {
	var last time.Time
	return func(p transfer.Progress) {
		if now := time.Now(); now.Sub(last) >= 500*time.Millisecond {
			last = now
			l.post(func(now time.Time) { j.progress, j.sign = p, now })
		}
	}
}

func (l *loop) cancelInterruptible() {
	for j := range l.jobs {
		if j.can {
			j.cancel()
		}
	}
}

// openSource opens the source directory and makes sure that it is the provisioned one.
func openSource(eng engine, path string, want *transfer.Identity) (root, error) {
	r, err := eng.Open()
	if err != nil {
		return nil, err
	}
	got, err := r.Identity()
	if err == nil && want != nil && got != *want {
		err = &errNotProvisioned{path, *want, got}
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// lookAtSource finds out whether the source directory is there and the right one. At the first look ever, what is
// there is the right one.
func (l *loop) lookAtSource(now time.Time) {
	s := &l.source
	if s.ok || s.looking || now.Before(s.next) {
		return
	}
	s.looking = true
	eng, path, want, dir := l.eng, l.pair.Source.Path, s.want, l.agent.opts.StateDir
	l.start(now, &job{kind: "source", what: path, can: true}, func(context.Context) {
		r, err := openSource(eng, path, want)
		var id transfer.Identity
		if err == nil {
			defer r.Close()
			if id, err = r.Identity(); err == nil && want == nil {
				err = writeSource(dir, path, id)
			}
		}
		l.post(func(now time.Time) { l.sourceSeen(now, id, err) })
	})
}

func (l *loop) sourceSeen(now time.Time, id transfer.Identity, err error) {
	s := &l.source
	s.looking = false
	first := !s.looked
	s.looked = true
	if err != nil {
		l.sourceTrouble(now, err)
		return
	}
	if s.want == nil {
		s.want = &id
		l.log.Info("the source directory is noted as the provisioned one", "path", l.pair.Source.Path, "identity", id.String())
	}
	if s.lost {
		// There it is, but it is for the watcher to say that it is watched again.
		s.next = now.Add(time.Second)
		return
	}
	// While another directory was there, the watcher may have taken to it, and not noticed that it was gone again.
	if s.other {
		l.restartWatcher(now)
	}
	s.ok, s.err, s.failures, s.other = true, nil, 0, false
	if !first {
		l.log.Info("the source directory is there", "path", l.pair.Source.Path)
		l.note(now, "the source directory is there")
		l.requestFull(now, "the source directory is back")
	}
}

// sourceTrouble stops everything until the source directory is there and the right one.
func (l *loop) sourceTrouble(now time.Time, err error) {
	s := &l.source
	if s.err == nil || s.err.Error() != err.Error() {
		l.log.Error("nothing is sent or deleted", "path", l.pair.Source.Path, "err", err)
		l.note(now, err.Error())
	}
	var other *errNotProvisioned
	if errors.As(err, &other) {
		s.got, s.other = other.got, true
	}
	s.failures++
	s.ok, s.err = false, err
	s.next = now.Add(backoff(s.failures, time.Second, 10*time.Second))
	l.full.valid = false
}

// startBatch hands the next due paths to a job, which looks at them and sends those that are there and at rest.
func (l *loop) startBatch(now time.Time) bool {
	if now.Before(l.gathering()) {
		return false
	}
	b, ok := l.q.Next(now, batchPaths)
	if !ok {
		return false
	}
	if i := len(b.Entries); b.Entries[0].Path == "" && b.Entries[0].Tree && i == 1 {
		// The whole tree: a full batch knows best, and does not keep live changes waiting.
		l.q.Done(now, b, nil)
		l.full.valid = false
		l.requestFull(now, tooMuch)
		return true
	}
	w := l.newWork(workSend, b)
	l.startSend(now, w)
	return true
}

// startSend looks at every path of w and sends what can be sent at once; the loop finds another way for the rest.
func (l *loop) startSend(now time.Time, w *work) {
	j := &job{kind: "send", what: nameBatch(w.batch), paths: len(w.batch.Entries), slot: true, trees: treesOf(w.batch)}
	wr := &writers{maxDelay: time.Duration(l.pair.Watch.MaxDelay), known: map[string]openFile{}}
	for _, e := range w.batch.Entries {
		if o, ok := l.open[e.Path]; ok {
			wr.known[e.Path] = o
		}
		if l.moving != nil {
			l.moving[e.Path] = struct{}{}
		}
	}
	entries := append([]queue.Entry(nil), w.batch.Entries...) // the loop will take some out of the batch
	checksum := l.distrusts(entries)
	eng, path, want := l.eng, l.pair.Source.Path, l.source.want
	l.start(now, j, func(ctx context.Context) {
		r, err := openSource(eng, path, want)
		if err != nil {
			l.post(func(now time.Time) { l.giveBack(now, w); l.sourceTrouble(now, err) })
			return
		}
		defer r.Close()
		p := prepare(now, r, entries, wr)
		l.post(func(now time.Time) { l.prepared(now, w, p); j.bytes = p.bytes })
		if len(p.send) == 0 {
			return
		}
		progress := l.progressOf(j)
		if p.bytes < bigFile {
			progress = nil // it costs rsync a system call a line
		}
		res := eng.Run(ctx, r, transfer.Job{Kind: transfer.Send, Paths: p.send, Checksum: checksum}, progress)
		moved := p.dirs.moved(r)
		l.post(func(now time.Time) { l.settle(now, w, res, moved); l.arrived(res, p.send, nil) })
	})
}

// distrusts reports whether one of the paths was found to differ in nothing that rsync's quick check sees.
func (l *loop) distrusts(entries []queue.Entry) bool {
	if len(l.distrust) > 0 {
		for _, e := range entries {
			if _, ok := l.distrust[e.Path]; ok || e.Tree && l.distrustsBelow(e.Path) {
				return true
			}
		}
	}
	return false
}

func (l *loop) distrustsBelow(dir string) bool {
	for path := range l.distrust {
		if isBelow(path, dir) {
			return true
		}
	}
	return false
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
		return b.Entries[0].Path
	}
	return fmt.Sprintf("%d paths", len(b.Entries))
}

// prepared sorts out the entries of a batch that are not sent with it. It runs before settle of the same job.
func (l *loop) prepared(now time.Time, w *work, p prepared) {
	l.linked(p.links)
	var again []queue.Again
	var back []string
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
		if f.kind != fateGone && l.door.forget(path) {
			back = append(back, path)
		}
	}
	trees := l.q.Split(&w.batch, func(e queue.Entry) bool { return p.apart[e.Path].kind == fateTree })
	if len(trees.Entries) > 0 {
		l.setApart(w, workTree, trees)
	}
	for _, path := range p.send {
		delete(l.open, path)
		if l.door.forget(path) {
			back = append(back, path)
		}
	}
	if len(p.send) > 0 && l.door.held != nil && l.door.held.empty {
		l.heldCheck = now // the source is not empty any more
	}
	for path, o := range p.busy {
		l.open[path] = o
	}
	w.light = p.light
	if len(p.light) > 0 {
		l.q.Light(w.batch, func(e queue.Entry) bool { return p.light[e.Path] })
	}
	l.q.Done(now, out, append(again, p.below...))
	for _, e := range gone {
		delete(l.open, e.Path)
		l.gone(now, e)
	}
	for _, path := range back {
		// It was gone and is back: if it is a directory, nothing is known of what is below it on the backup.
		l.q.Mark(now, w.first, path, true)
	}
	if len(w.batch.Entries) == 0 {
		delete(l.flying, w)
	}
}

// setApart lets a part of w wait for a slot of its own.
func (l *loop) setApart(w *work, kind workKind, b queue.Batch) {
	part := l.newWork(kind, b)
	part.ledger = w.ledger
	l.waiting = append(l.waiting, part)
}

// gone takes a path to the door that is not in the source any more.
func (l *loop) gone(now time.Time, e queue.Entry) {
	l.ledger.clear(e.Path, true, nil)
	d := deletion{path: e.Path, first: e.First}
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

// startSlow sends one big file, or some trees.
func (l *loop) startSlow(now time.Time, w *work) {
	j := &job{kind: w.kind.String(), what: nameBatch(w.batch), paths: len(w.batch.Entries), slot: true, slow: true, trees: treesOf(w.batch)}
	entries := append([]queue.Entry(nil), w.batch.Entries...)
	checksum := l.distrusts(entries)
	eng, path, want := l.eng, l.pair.Source.Path, l.source.want
	l.start(now, j, func(ctx context.Context) {
		r, err := openSource(eng, path, want)
		if err != nil {
			l.post(func(now time.Time) { l.giveBack(now, w); l.sourceTrouble(now, err) })
			return
		}
		defer r.Close()
		p := prepared{apart: map[string]fate{}, dirs: dirTimes{}}
		run := transfer.Job{Kind: transfer.Send, Checksum: checksum, Small: w.kind == workTree}
		opts := transfer.ListOptions{Delete: true}
		var size int64
		for _, e := range entries {
			st, err := r.Lstat(e.Path)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				p.apart[e.Path] = fate{kind: fateGone}
				continue
			case err != nil:
				p.apart[e.Path] = fate{kind: fateUnreadable, reason: reasonOf(err)}
				continue
			case (w.kind == workTree) != st.Mode.IsDir():
				p.apart[e.Path] = fate{kind: fateLater} // it is something else by now
				continue
			case w.kind == workTree:
				run.Kind = transfer.Tree
				left := linksWalked
				if !p.severalBelow(r, e.Path, &left) {
					run.Small = false // who knows
					p.several(transfer.Entry{Nlink: 2, Dev: st.Dev, Ino: st.Ino, ChangeTime: time.Now()})
				}
				if e.Compare {
					opts.Paths = append(opts.Paths, e.Path)
				}
			}
			size += st.Size
			run.Paths = append(run.Paths, e.Path)
			p.dirs.note(r, e.Path, e.First)
		}
		run.Small = run.Small && p.bytes < p.files*smallFile
		l.post(func(now time.Time) {
			l.prepared(now, w, p)
			if run.Kind == transfer.Send {
				j.bytes = size
			}
		})
		if len(run.Paths) == 0 {
			return
		}
		runCtx, done := whileThere(ctx, r, run.Paths)
		res := eng.Run(runCtx, r, run, l.progressOf(j))
		done()
		var c comparison
		if len(opts.Paths) > 0 && res.Class == transfer.Done {
			l.post(func(now time.Time) { j.kind, j.progress = "compare", transfer.Progress{} })
			c = compare(ctx, eng, r, opts, 0, func(items []transfer.Item) {
				l.post(func(now time.Time) { l.differs(now, w.first, items) })
			})
			if c.res.Class != transfer.Done {
				res = c.res
			}
		}
		moved := p.dirs.moved(r)
		l.post(func(now time.Time) {
			l.settle(now, w, res, moved)
			if run.Kind == transfer.Tree {
				l.arrivedTree(res)
			} else {
				l.arrived(res, run.Paths, nil)
			}
			if res.Class == transfer.Done {
				l.compared(now, w.first, c, opts.Paths)
			}
		})
	})
}

// whileThere returns a context that ends when none of the paths is on disk any more. A big file that is deleted need not be
// sent to its end, and its deletion would have to wait for that.
func whileThere(ctx context.Context, r root, paths []string) (runCtx context.Context, done func()) {
	runCtx, cancel := context.WithCancel(ctx)
	gone := func() bool {
		for _, p := range paths {
			if _, err := r.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
				return false
			}
		}
		return true
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if gone() {
					cancel()
					return
				}
			case <-runCtx.Done():
				return
			}
		}
	}()
	return runCtx, func() {
		cancel()
		<-ended
	}
}

// compared takes in the comparison of some trees.
func (l *loop) compared(now, first time.Time, c comparison, trees []string) {
	l.extraneous(now, first, c)
	for _, path := range c.res.Changed {
		l.q.Mark(now, first, path, true)
	}
	for _, f := range c.res.Failed {
		l.failPath(now, f.Path, true, f.Reason, f.Remote)
	}
	if !c.res.Incomplete {
		return
	}
	// What is only on the backup is not known then. The trees are compared again, each time later.
	reason := "it could not be compared in full"
	if len(c.res.Failed) > 0 {
		reason += fmt.Sprintf(": %q: %s", c.res.Failed[0].Path, c.res.Failed[0].Reason)
	}
	for _, path := range trees {
		l.failPath(now, path, true, reason, false)
		l.ledger.compare(path)
	}
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

// settle takes in the result of a transfer that sent something.
func (l *loop) settle(now time.Time, w *work, res transfer.Result, moved []queue.Entry) {
	l.account(now, res)
	switch res.Class {
	case transfer.Done:
	case transfer.Unknown:
		l.bisect(now, w, res)
		return
	case transfer.Transient, transfer.Stopped, transfer.NoSpace, transfer.Permanent:
		l.giveBack(now, w)
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
		if failedAbove(failed, e.Path) {
			continue // the ledger has what stands for it
		}
		if !w.light[e.Path] || !l.ledger.wants(e.Path, e.Tree, e.Compare) {
			l.ledger.clear(e.Path, e.Tree, failed)
		}
		delete(l.distrust, e.Path)
		if e.Tree {
			maps.DeleteFunc(l.distrust, func(path string, _ struct{}) bool { return isBelow(path, e.Path) && !failedAbove(failed, path) })
		}
		if e.Created {
			l.door.created(1)
		}
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

// failedAbove reports whether a path, or a directory above it, is among those that failed.
func failedAbove(failed map[string]bool, path string) bool {
	if len(failed) == 0 {
		return false
	}
	for ok := true; ok; path, ok = parentOf(path) {
		if failed[path] {
			return true
		}
	}
	return false
}

// blocked takes a path to the door that a non-empty directory on the backup is in the way of.
func (l *loop) blocked(now time.Time, path string, first time.Time) {
	if l.door.enabled {
		l.door.add(now, deletion{path: path, blocked: true, first: first})
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
	l.failPath(now, e.Path, e.Tree, reason, remote)
	if e.Compare {
		l.ledger.compare(e.Path)
	}
}

// failPath notes a path that could not be sent.
func (l *loop) failPath(now time.Time, path string, tree bool, reason string, remote bool) {
	side := "the source host cannot read it"
	if remote {
		side = "the backup host cannot write it"
	}
	if l.ledger.fail(now, path, tree, reason, remote) {
		l.log.Warn("a path could not be sent; it is tried again by itself", "path", path, "err", reason, "side", side)
	} else {
		l.log.Debug("a path could not be sent again", "path", path, "err", reason, "side", side)
	}
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

// account counts the result of a transfer.
func (l *loop) account(now time.Time, res transfer.Result) {
	l.counters.Files += res.Stats.Transferred
	l.counters.Bytes += res.Stats.Bytes
	l.counters.SentBytes += res.Stats.Sent
	l.counters.Deleted += res.Stats.Deleted
	if res.Cut {
		l.cutOff(now)
	}
	l.learn(now, res)
}

// learn takes from any result whether the backup can be reached.
func (l *loop) learn(now time.Time, res transfer.Result) {
	if res.Hidden {
		l.leftovers.lookLater(now, time.Duration(l.pair.Transfer.Timeout))
	}
	l.counters.Transfers[className(res.Class)]++
	switch res.Class {
	case transfer.Done:
		l.unknown = 0
		if l.outage != nil {
			l.log.Info("the backup takes files again", "elapsed", now.Sub(l.outage.since), "attempt", l.outage.failures)
			if l.outage.failures > 1 {
				l.note(now, "the backup takes files again")
			}
			l.outage = nil
		}
	case transfer.Transient, transfer.NoSpace, transfer.Permanent:
		l.fail(now, res)
	case transfer.Stopped, transfer.Unknown:
	}
}

// fail notes that nothing can be sent for now.
func (l *loop) fail(now time.Time, res transfer.Result) {
	initial, limit := time.Duration(l.pair.Retry.Initial), time.Duration(l.pair.Retry.Max)
	o := l.outage
	switch {
	case o == nil:
		l.outage = &outage{}
		l.outage.fail(now, res, initial, limit)
		l.log.Warn("nothing can be sent; trying again", "class", className(res.Class), "status", res.Status, "err", res.Message, "hint", res.Hint, "next", l.outage.next.Sub(now))
	case o.probed || !now.Before(o.next):
		if o.message != res.Message {
			l.log.Warn("nothing can be sent; trying again", "class", className(res.Class), "status", res.Status, "err", res.Message, "hint", res.Hint, "attempt", o.failures+1)
		}
		o.fail(now, res, initial, limit)
		l.log.Debug("still nothing can be sent", "class", className(res.Class), "err", res.Message, "attempt", o.failures, "next", o.next.Sub(now))
	}
	// Else it is another run that was on its way when the outage began: no second failure.
}

// suspectAfter is how long a transfer may show no progress before it is asked whether the backup can still be reached.
// Rsync itself waits for transfer.timeout, and until then the pair would look as if it were only behind.
const suspectAfter = 10 * time.Second

// suspect returns when the first running transfer becomes suspect.
func (l *loop) suspect() (at time.Time, ok bool) {
	for j := range l.jobs {
		if t := j.sign.Add(suspectAfter); j.slot && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	if at.Before(l.nextProbe) {
		at = l.nextProbe
	}
	return at, ok
}

// endStale ends transfers that were under way when the backup could not be reached any more and have made no progress
// since: their connections are dead, which they may notice much later.
func (l *loop) endStale(since time.Time) {
	for j := range l.jobs {
		if (j.slot || j.can) && j.kind != "probe" && j.kind != "source" && j.sign.Before(since) {
			j.cancel()
		}
	}
}

// probe asks the backup whether it takes anything.
func (l *loop) probe(now time.Time) {
	for j := range l.jobs {
		if j.kind == "probe" {
			return
		}
	}
	l.nextProbe = now.Add(suspectAfter)
	eng := l.eng
	l.start(now, &job{kind: "probe", what: l.pair.Backup.Address, can: true}, func(ctx context.Context) {
		res := eng.Probe(ctx)
		l.post(func(now time.Time) {
			l.counters.Transfers[className(res.Class)]++
			switch res.Class {
			case transfer.Stopped:
			case transfer.Done:
				if l.outage != nil {
					l.outage.probed = true
					l.endStale(l.outage.since)
				}
			case transfer.Unknown:
				res.Class = transfer.Transient
				l.fail(now, res)
			default:
				l.fail(now, res)
			}
		})
	})
}

func className(c transfer.Class) string {
	switch c {
	case transfer.Done:
		return "done"
	case transfer.Transient:
		return "transient"
	case transfer.Stopped:
		return "stopped"
	case transfer.NoSpace:
		return "no_space"
	case transfer.Permanent:
		return "permanent"
	default:
		return "unknown"
	}
}
