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

// startSlow sends one big file, or some trees.
func (l *loop) startSlow(now time.Time, w *work) {
	j := &job{kind: w.kind.String(), what: nameBatch(w.batch), paths: len(w.batch.Entries), slot: true, slow: true, trees: treesOf(w.batch)}
	entries := append([]queue.Entry(nil), w.batch.Entries...)
	checksum := l.distrust.touches(entries)
	wr := l.writers(maps.Clone(l.open))
	l.startAtSource(now, j, func(now time.Time, _ error) { l.giveBack(now, w) }, func(ctx context.Context, eng engine, r root) {
		p := newPrepared()
		look := survey{p: &p, r: r, w: wr, now: now}
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
				look.tree(ctx, e)
				if e.Compare {
					opts.Paths = append(opts.Paths, e.Path)
				}
			}
			size += st.Size
			run.Paths = append(run.Paths, e.Path)
			p.dirs.note(r, e.Path, e.First)
		}
		run.Small = run.Small && p.bytes < p.files*smallFile
		run.Skip, run.Checksum = p.skip(), run.Checksum || len(p.distrusted) > 0
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
	if c.res.PartsLeft {
		l.partsLeft(now)
	}
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
		l.failPath(now, path, true, reason, false).compare = true
	}
}
