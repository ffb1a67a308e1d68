// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// maxDrift bounds the drift that one verification names.
const maxDrift = 100_000

// distrust is the paths that a verification found to differ in nothing that rsync's quick check sees, or that were written to and got their
// time stamps back. They must be sent by their contents.
type distrust map[string]struct{}

// touches reports whether one of them is among the entries, or in a tree that is.
func (d distrust) touches(entries []queue.Entry) bool {
	if len(d) == 0 {
		return false
	}
	return slices.ContainsFunc(entries, func(e queue.Entry) bool {
		_, ok := d[e.Path]
		return ok || e.Tree && d.below(e.Path)
	})
}

func (d distrust) below(dir string) bool {
	for path := range d {
		if isBelow(path, dir) {
			return true
		}
	}
	return false
}

// sent forgets an entry that was sent; of a tree all that did not fail.
func (d distrust) sent(e queue.Entry, failed map[string]bool) {
	delete(d, e.Path)
	if e.Tree {
		maps.DeleteFunc(d, func(path string, _ struct{}) bool { return isBelow(path, e.Path) && !isBelowAny(path, failed) })
	}
}

// moving is the paths that were on their way to the backup while a verification ran; true with everything below.
type moving map[string]bool

// onTheirWay returns the paths that are handed out already, to be sent or to be deleted.
func (l *loop) onTheirWay() moving {
	m := moving{}
	for w := range l.flying {
		m.note(w.batch.Entries)
	}
	for _, f := range l.passed {
		m[f.path] = true
	}
	for path := range l.door.pending {
		m[path] = true
	}
	for _, d := range l.door.checking {
		m[d.path] = true
	}
	return m
}

// note adds the entries of a batch, when a verification runs.
func (m moving) note(entries []queue.Entry) {
	if m == nil {
		return
	}
	for _, e := range entries {
		m[e.Path] = m[e.Path] || e.Tree
	}
}

func (m moving) covers(path string) bool {
	if _, ok := m[path]; ok {
		return true
	}
	return isBelowAny(path, m)
}

// contents is what a comparison by contents found.
type contents struct {
	res   transfer.Result
	items []transfer.Item
	more  bool // than maxDrift differ: the comparison was ended
}

// verify compares the contents of both trees and tells what differs although nothing is on its way. With repair, what
// differs is sent, and what is only on the backup goes to the door. The trees are equal when it returns nil and has found nothing.
func (l *loop) verify(ctx context.Context, repair bool, found func(Drift)) error {
	if l.agent.opts.Pair.HooksOnly() {
		return errNoBackup
	}
	// Everything from before the call first, or it would look like drift.
	if err := l.wait(ctx); err != nil {
		return err
	}
	begun := false
	defer l.post(func(time.Time) {
		if begun {
			l.moving = nil
		}
	})
	result := make(chan contents, 1)
	err := l.call(ctx, func(now time.Time) {
		if l.moving != nil {
			return
		}
		begun, l.moving = true, l.onTheirWay()
		l.startVerification(ctx, now, result)
	})
	switch {
	case err != nil:
		return err
	case !begun:
		return errors.New("another verification is running")
	}
	var c contents
	select {
	case c = <-result:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.quit:
		return errStopped
	}
	var drift []Drift
	if err := l.call(ctx, func(now time.Time) { drift = l.drift(now, c, repair) }); err != nil {
		return err
	}
	for _, d := range drift {
		found(d)
	}
	if err := c.incomplete(); err != nil {
		return err
	}
	if repair && len(drift) > 0 {
		return l.wait(ctx)
	}
	return nil
}

// startVerification compares the contents of both trees, unless ctx ends.
func (l *loop) startVerification(ctx context.Context, now time.Time, result chan<- contents) {
	eng, path, want := l.eng, l.pair.Source.Path, l.source.want
	j := &job{kind: "verify", what: "everything", can: true, slow: true}
	l.start(now, j, func(jobCtx context.Context) {
		jobCtx, cancel := context.WithCancel(jobCtx)
		defer cancel()
		stop := context.AfterFunc(ctx, cancel) // nobody waits for the answer any more
		defer stop()
		r, err := openSource(eng, path, want)
		if err != nil {
			result <- contents{res: transfer.Result{Class: transfer.Unknown, Message: err.Error()}}
			return
		}
		defer r.Close()
		var c contents
		c.res = eng.List(jobCtx, r, transfer.ListOptions{Checksum: true, Delete: true}, func(it transfer.Item) error {
			if c.more = len(c.items) == maxDrift; c.more {
				return transfer.ErrStop
			}
			c.items = append(c.items, it)
			return nil
		})
		result <- c
	})
}

// drift returns what differs and is not on its way. With repair, it is.
func (l *loop) drift(now time.Time, c contents, repair bool) (drift []Drift) {
	for _, it := range c.items {
		if l.moving.covers(it.Path) || l.q.Covers(it.Path) {
			continue // it changed while we compared
		}
		d := Drift{Path: it.Path, What: "edited", Detail: it.What}
		switch {
		case it.Extraneous:
			d.What = "added"
			if repair && !c.res.Incomplete && l.door.enabled {
				l.door.add(now, deletion{path: it.Path, found: true, first: now})
			}
		case it.New:
			d.What = "missing"
		}
		if repair && !it.Extraneous {
			if !it.Dir && !it.New {
				l.distrust[it.Path] = struct{}{}
			}
			l.q.Mark(now, now, it.Path, false)
		}
		drift = append(drift, d)
	}
	return drift
}

// incomplete says why there may be more that differs than was found.
func (c *contents) incomplete() error {
	why, hint := c.res.Message, c.res.Hint
	switch {
	case c.more:
		why = fmt.Sprintf("more than %d paths differ, and no more were looked for", maxDrift)
		hint = "lockstep verify --repair, until it does not say so any more"
	case c.res.Class == transfer.Stopped:
		why, hint = "the comparison was ended before it was complete", "try again"
	case c.res.Class != transfer.Done:
	case c.res.Incomplete, len(c.res.Failed) > 0:
		why = "not everything could be compared: " + why
	default:
		return nil
	}
	if hint != "" {
		why += "\nhint: " + hint
	}
	return errors.New(why)
}

func (l *loop) serveVerify(w http.ResponseWriter, r *http.Request) {
	passed := make(chan error, 1)
	enc := json.NewEncoder(w)
	lines := make(chan Drift)
	var verification sync.WaitGroup
	defer verification.Wait()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	verification.Go(func() {
		passed <- l.verify(ctx, r.URL.Query().Get("repair") == "1", func(d Drift) {
			select {
			case lines <- d:
			case <-ctx.Done():
			}
		})
	})
	w.Header().Set("Content-Type", "application/jsonl")
	t := time.NewTicker(updateEvery)
	defer t.Stop()
	for {
		var u Update
		select {
		case d := <-lines:
			u.Drift = &d
		case err := <-passed:
			u.Done = err == nil
			if err != nil {
				u.Error = err.Error()
			}
		case <-t.C:
			s, err := l.current(ctx)
			if err != nil {
				u.Error = err.Error()
			}
			u.Status = s
		}
		if err := enc.Encode(u); err != nil {
			return // the client went away
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		if u.Done || u.Error != "" {
			return
		}
	}
}
