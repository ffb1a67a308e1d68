// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"fmt"
	"maps"
	"runtime/debug"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

const (
	// manyDiffer is how many differences are sent one by one. With more, the backup is empty or far behind, and
	// one recursive run over the whole tree is quicker.
	manyDiffer = 20_000

	// atStart is why the first full batch runs.
	atStart = "start"

	// tooMuch is why a full batch runs when the queue stands for the whole tree.
	tooMuch = "too much changed to tell what"

	// holdBack is how long differences are kept back that may turn out to be too many: a far behind backup shows at once,
	// and is not to be sent twice.
	holdBack = time.Second

	// freeFrom is how long a full batch has taken after which memory is given back: of a small tree there is nothing to give, and its full
	// batches may follow one another closely.
	freeFrom = time.Second

	// chunk is how many differences go to the loop at a time.
	chunk = 500
)

// full is the state of full batches. One at most runs at a time.
type full struct {
	need     string // why another one must run; "" if none must
	valid    bool   // one was completed since the last event that could hide a difference
	running  bool
	phase    string // compare, send, settle
	cause    string
	job      *job
	begun    time.Time
	listed   time.Time // when the comparison ended
	started  int64
	done     int64
	recursed bool // the whole tree was sent in this one
	away     bool // the backup could not be reached since it began
	differs  int
	extra    int
	problem  string // why the newest one was not complete
	last     time.Time
	took     time.Duration
	listFrom time.Time     // when the newest comparison began
	listing  time.Duration // how long it took
	retry    time.Time
	failures int
	schedule cron.Schedule // nil: only at start
	next     time.Time
}

// requestFull asks for a full batch. While one runs, another follows it.
func (l *loop) requestFull(why string) {
	if l.full.need == "" {
		l.full.need = why
	}
	l.full.retry = time.Time{}
}

// startFull begins a full batch that is due.
func (l *loop) startFull(now time.Time) bool {
	f := &l.full
	if f.need == "" && !f.running && f.schedule != nil && !f.next.IsZero() && !now.Before(f.next) {
		f.need = "schedule"
	}
	if at, why, ok := l.lookDue(); ok && f.need == "" && !f.running && !now.Before(at) {
		f.need = why
	}
	if f.running && f.phase == "settle" && f.need != "" && f.retry.IsZero() {
		// What it found is waited for, and that may wait for another comparison itself.
		f.running, f.phase = false, ""
	}
	if f.need == "" || f.running || now.Before(f.retry) || l.watch.failed != nil {
		return false
	}
	// The watch must be live first, or what changes between the comparison and the watch is lost. Fanotify is at once.
	if !l.watch.ready {
		return false
	}
	f.running, f.phase, f.cause, f.need = true, "compare", f.need, ""
	f.begun, f.recursed, f.differs, f.extra = now, false, 0, 0
	l.links.wanted, f.away = false, false
	l.leftovers.looked(now)
	l.heldCheck = now // what is back lapses before the comparison ends
	f.started++
	l.log.Info("full batch", "reason", f.cause)
	l.lookAtMounts(now)
	l.startList(now)
	return true
}

func (l *loop) fullWake() (at time.Time, ok bool) {
	f := &l.full
	switch {
	case f.running:
		return at, false
	case f.need != "":
		return f.retry, !f.retry.IsZero() && l.watch.ready
	}
	at, _, ok = l.lookDue()
	if f.schedule != nil && !f.next.IsZero() && (!ok || f.next.Before(at)) {
		at, ok = f.next, true
	}
	return at, ok
}

// comparison is what compare found.
type comparison struct {
	res     transfer.Result
	differs int
	extra   []string // top-most paths that are only on the backup
	entries int      // of them, with what is below
	new     int
	more    bool               // extra is not complete: there are too many
	many    bool               // more than limit differences: the comparison was ended
	of      *transfer.Identity // of a comparison of everything: the source directory
}

// compare lists the differences between source and backup. What differs goes to found in chunks, except what is below
// a directory that is new as a whole. What is only on the backup is returned. Limit bounds the differences, past which
// the comparison ends; 0 is no limit.
func compare(ctx context.Context, eng engine, r root, opts transfer.ListOptions, limit int, found func([]transfer.Item)) comparison {
	var c comparison
	var items []transfer.Item
	began := time.Now()
	newDir, extra := [2]string{"\x00", "\x00"}, [2][]string{} // by halves: rsync's order is that of each
	c.res = eng.List(ctx, r, opts, func(it transfer.Item) error {
		if it.Extraneous {
			c.entries++
			// Rsync tells what is in a directory before the directory itself.
			x := &extra[it.Half]
			for n := len(*x); n > 0 && it.Dir && isBelow((*x)[n-1], it.Path); n-- {
				*x = (*x)[:n-1]
			}
			if len(extra[0])+len(extra[1]) < maxPending {
				*x = append(*x, it.Path)
			} else {
				c.more = true
			}
			return nil
		}
		c.differs++
		if it.New {
			c.new++
		}
		if isBelow(it.Path, newDir[it.Half]) {
			return nil
		}
		if it.New && it.Dir {
			newDir[it.Half] = it.Path
		}
		items = append(items, it)
		if limit > 0 && c.differs > limit {
			c.many = true
			return transfer.ErrStop
		}
		if len(items) >= chunk && (limit == 0 || time.Since(began) > holdBack) {
			found(items)
			items = nil
		}
		return nil
	})
	if len(items) > 0 && !c.many {
		found(items)
	}
	c.extra = topMost(append(extra[0], extra[1]...))
	return c
}

// differs makes what a comparison found dirty. What is in the ledger has a pace of its own: its next try may break down, and so be followed by
// a comparison, which must not be followed by a try at once.
func (l *loop) differs(now, first time.Time, items []transfer.Item) {
	for _, it := range items {
		if e := l.ledger.entries[it.Path]; e != nil {
			e.Tree = e.Tree || it.New && it.Dir
			continue
		}
		if it.New {
			l.q.MarkNew(now, first, it.Path, it.Dir)
		} else {
			l.q.Mark(now, first, it.Path, false)
		}
	}
}

// extraneous takes what is only on the backup to the door.
func (l *loop) extraneous(now, first time.Time, c comparison) {
	if c.res.Incomplete || !l.door.enabled {
		return
	}
	for _, p := range c.extra {
		l.door.add(now, deletion{path: p, found: true, first: first})
	}
	switch {
	case !c.more:
	case l.door.held != nil:
		l.door.held.more = true // they are found when those that are held have passed
	default:
		l.door.dropped = max(l.door.dropped, c.entries-len(c.extra))
		l.full.valid = false
		l.requestFull("more deletions than are kept one by one")
	}
}

// startList compares the whole trees.
func (l *loop) startList(now time.Time) {
	f := &l.full
	f.phase, f.listFrom = "compare", now
	l.kept.begin()
	limit := l.agent.manyDiffer
	if f.recursed {
		limit = 0
	}
	j := &job{kind: "compare", what: "everything", can: true, slow: true}
	f.job = j
	foreign, of := l.door.foreign, l.source.want
	l.startAtSource(now, j, l.fullRefused, func(ctx context.Context, eng engine, r root) {
		if foreign && eng.BackupEmpty(ctx, r) {
			l.post(func(time.Time) { l.mirrored(of) })
		}
		c := compare(ctx, eng, r, transfer.ListOptions{Delete: true}, limit, func(items []transfer.Item) {
			l.post(func(now time.Time) {
				l.full.differs += len(items)
				l.kept.note(items)
				l.differs(now, l.full.begun, items)
			})
		})
		c.of = of
		l.post(func(now time.Time) { l.listed(now, c) })
	})
}

// listed takes in a comparison of the whole trees.
func (l *loop) listed(now time.Time, c comparison) {
	f := &l.full
	f.job = nil
	f.listing = now.Sub(f.listFrom)
	if c.many || c.res.Class != transfer.Done && c.entries > 0 && l.door.enabled {
		f.valid = false // what was found is not in the queue, or not at the door: the next comparison will tell of it
	}
	switch {
	case c.many:
		if f.need == tooMuch && l.watch.ready {
			f.need = "" // the comparison that follows the recursive run finds what is left
		}
		l.log.Info("the backup is far behind: the whole tree is sent")
		f.phase = "send"
		l.startRecursion(now)
		return
	case c.res.Class == transfer.Done:
	case c.res.Class == transfer.Unknown:
		l.fullFailed(now, c.res.Message)
		return
	default:
		l.learn(now, c.res)
		l.fullFailed(now, c.res.Message)
		return
	}
	l.learn(now, c.res)
	if c.res.Hidden {
		l.passedOver(now)
	}
	f.problem = ""
	if c.res.Incomplete {
		f.problem = "the comparison was not complete, so nothing was deleted: " + c.res.Message
		l.log.Warn("the comparison was not complete: nothing is deleted because of it", "err", c.res.Message)
	}
	for _, p := range c.res.Changed {
		l.q.Mark(now, f.begun, p, true)
	}
	for _, p := range c.res.Failed {
		l.failPath(now, p.Path, true, p.Reason, p.Remote)
	}
	f.extra = c.entries
	if !c.res.Incomplete && c.entries == 0 {
		l.mirrored(c.of)
	}
	if !c.res.Incomplete && !c.more {
		l.door.cleared(f.listFrom, c.extra)
	}
	if !c.res.Incomplete {
		l.door.count(now, max(0, int(c.res.Stats.Files)-c.new+c.entries))
	}
	if c.res.Incomplete && l.door.recount {
		l.door.count(now, l.door.total) // it will not be known better
	}
	l.extraneous(now, f.begun, c)
	if l.pair.HooksOnly() && f.cause != atStart {
		l.arrivedTree(c.res) // something was lost, and there is no backup to tell what
	}
	f.phase, f.listed = "settle", now
	if f.problem == "" {
		f.failures = 0
	}
}

// startRecursion sends the whole tree, beside the live changes. It may bring an older version of a file after a newer
// one was sent live; the comparison that follows finds that.
func (l *loop) startRecursion(now time.Time) {
	j := &job{kind: "full", what: "everything", slot: true, slow: true, trees: []string{""}}
	l.full.job, l.full.recursed = j, true
	wr := l.writers(maps.Clone(l.open))
	l.startAtSource(now, j, l.fullRefused, func(ctx context.Context, eng engine, r root) {
		p := newPrepared() // of which only what to skip is of use: the comparison that follows finds that
		(&survey{p: &p, r: r, w: wr, now: now}).tree(ctx, queue.Entry{First: now})
		res := eng.Run(ctx, r, transfer.Job{Kind: transfer.Tree, Paths: []string{""}, Full: true, Skip: p.skip()}, l.progressOf(j))
		l.post(func(now time.Time) { l.recursed(now, res) })
	})
}

func (l *loop) recursed(now time.Time, res transfer.Result) {
	l.full.job = nil
	l.account(now, res)
	l.arrivedTree(res)
	if res.Class != transfer.Done {
		l.fullFailed(now, res.Message)
		return
	}
	for _, f := range res.Failed {
		l.failPath(now, f.Path, true, f.Reason, f.Remote)
	}
	for _, p := range res.Changed {
		l.q.Mark(now, l.full.begun, p, false)
	}
	for _, p := range res.Blocked {
		l.blocked(now, p, l.full.begun)
	}
	l.startList(now)
}

// fullFailed ends a full batch that could not be done; it is tried again.
func (l *loop) fullFailed(now time.Time, why string) {
	f := &l.full
	f.running, f.phase, f.job = false, "", nil
	f.failures++
	if f.need == "" {
		f.need = f.cause
	}
	f.retry = now.Add(backoff(f.failures, time.Duration(l.pair.Retry.Initial), time.Duration(l.pair.Retry.Max)))
	if l.outage != nil {
		f.failures, f.retry = 0, time.Time{} // the outage has a back-off of its own
	}
	l.log.Debug("full batch not done", "err", why, "next", max(0, f.retry.Sub(now)))
	if f.failures > 1 && l.outage == nil {
		f.problem = "source and backup could not be compared: " + why
	}
}

// fullRefused is fullFailed for a source directory that cannot be opened.
func (l *loop) fullRefused(now time.Time, err error) { l.fullFailed(now, err.Error()) }

// lookBehindHeld asks for a comparison when deletions are not held any more behind which there may be others.
func (l *loop) lookBehindHeld() {
	if l.door.unseen {
		l.door.unseen, l.full.valid = false, false
		l.requestFull("more deletions were held than are kept one by one")
	}
}

// completeFull ends a full batch when what it found has been dealt with.
func (l *loop) completeFull(now time.Time) {
	f := &l.full
	if !f.running || f.phase != "settle" || !l.settledBefore(f.listed) || l.lookAgain(now) {
		return
	}
	f.running, f.phase = false, ""
	f.done = f.started
	f.last, f.took = now, now.Sub(f.begun)
	if f.problem == "" {
		// Something may have happened meanwhile that another one must look at.
		f.valid = f.valid || f.need == "" && !f.away && !l.links.wanted && !l.leftovers.wanted && !l.watch.lost
	} else if f.need == "" {
		f.need = "the last one was not complete"
		f.failures++
		f.retry = now.Add(backoff(f.failures, time.Duration(l.pair.Retry.Initial), time.Duration(l.pair.Retry.Max)))
	}
	if f.schedule != nil {
		f.next = f.schedule.Next(now)
	}
	if f.took >= freeFrom {
		l.group.Go(debug.FreeOSMemory) // the first walk and the comparison needed twice what is needed from now on
	}
	l.log.Info("full batch done", "elapsed", f.took, "entries", l.door.total, "differed", f.differs, "extraneous", f.extra)
}

// settledBefore reports whether every change from before t is on the backup. What is held or in the ledger does not
// count: the state tells of it.
func (l *loop) settledBefore(t time.Time) bool {
	first, ok := l.oldest()
	return !ok || first.After(t)
}

// fullWords says how far the full batch is.
func (l *loop) fullWords() string {
	f := &l.full
	switch {
	case !l.watch.ready:
		return "the watch is not complete yet"
	case !f.running:
		return "source and backup are to be compared"
	case f.phase == "compare":
		return "source and backup are being compared"
	case f.phase == "send" && f.job != nil:
		p := f.job.progress
		var b strings.Builder
		fmt.Fprintf(&b, "the whole tree is being sent: %d %%, %d files", p.Percent, p.Files)
		if p.ETA > 0 {
			fmt.Fprintf(&b, ", about %v left", p.ETA.Round(time.Second))
		}
		return b.String()
	default:
		return "differences that were found are being sent"
	}
}
