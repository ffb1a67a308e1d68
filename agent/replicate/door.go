// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// burstQuiet is how long no further deletion must have arrived before the pending ones are judged. An
	// `rm -rf` takes a few microseconds an entry, so it is judged as a whole.
	burstQuiet = 100 * time.Millisecond

	// burstEnd is how long nothing must have been deleted for the next deletion to be judged by itself. Until then what
	// was already deleted counts too, less what was made: a slow `rm -rf` cannot trickle through at any speed, and a
	// tree where files come and go all day long does not add up to a mass deletion.
	burstEnd = 10 * time.Second

	// maxPending bounds the deletions held one by one, at about 150 bytes each. What is past it is counted, and
	// found again by a full batch.
	maxPending = 100_000
)

// deletion is a path that is gone from the source.
type deletion struct {
	path string
	// blocked: the path is not gone, but a non-empty directory on the backup stands where it should be.
	blocked bool
	found   bool         // by a comparison: nobody saw it go
	first   time.Time    // dirty since
	was     *LedgerEntry // its entry in the ledger until it was found gone, or nil
}

// join returns what is known of a path by two deletions of it.
func (d deletion) join(old deletion) deletion {
	if old.first.Before(d.first) {
		d.first = old.first
	}
	d.found = d.found && old.found
	d.was = cmp.Or(d.was, old.was)
	return d
}

// finding is a deletion that was looked at on both sides.
type finding struct {
	deletion
	count int // entries that would go on the backup; 0 when there is nothing
}

// verdict is what an inspection of pending deletions found. See inspect.
type verdict struct {
	gone  []finding
	empty bool // the source directory has no entry at all
}

// door is the one way to a deletion on the backup. Every deletion, live or found by a full batch, is added
// here, waits for the end of its burst, is looked at on disk and on the backup, and is then let through or held.
//
// It is a plain value without I/O, owned by the loop.
type door struct {
	enabled    bool
	maxFiles   int
	maxPercent int
	maxDelay   time.Duration

	pending  map[string]deletion
	dropped  int       // arrived when pending was full
	since    time.Time // when the first of pending arrived
	last     time.Time // when the last did
	checking []deletion
	arrived  time.Time // when the first of checking arrived
	ended    []finding // deletions that were done since take

	// total is how many entries the backup has: those of the last full comparison, less what was deleted
	// since. It is meaningless until counted is set.
	total     int
	counted   bool
	countedAt time.Time
	// recount is set while pending waits for a full comparison to know total better.
	recount bool

	done     int       // entries let through in this burst
	made     int       // entries made on the backup since it began
	emptied  bool      // the source was empty, and is to be judged by maxPercent alone
	lastDone time.Time // when the last was let through

	// foreign is set while the backup may have what never came from the source: another's files, or those of a source that was lost
	// and is not restored yet.
	foreign bool
	// replaced is when another source directory was approved: what is dirty since before was seen in the one that it replaced.
	replaced time.Time

	held *heldDeletions
	// unseen is set when there may have been more behind what was held: a comparison is to find it.
	unseen bool
}

func newDoor(enabled bool, maxFiles, maxPercent int, maxDelay time.Duration) *door {
	return &door{enabled: enabled, maxFiles: maxFiles, maxPercent: maxPercent, maxDelay: maxDelay, pending: map[string]deletion{}}
}

// add makes a deletion pending.
func (d *door) add(now time.Time, del deletion) {
	if len(d.pending) == 0 {
		d.since = now
	}
	if old, ok := d.pending[del.path]; ok {
		d.pending[del.path] = del.join(old)
		return
	}
	if len(d.pending) >= maxPending {
		d.dropped++
		d.last = now
		return
	}
	d.pending[del.path] = del
	d.last = now
}

// forget takes a path out that is on disk again, and returns what was known of it. One that is blocked was there all the time.
func (d *door) forget(path string) (was deletion, known bool) {
	if del, ok := d.pending[path]; ok && !del.blocked {
		delete(d.pending, path)
		was, known = del, true
	}
	if d.held != nil {
		if f, ok := d.held.items[path]; ok && !f.blocked {
			d.lapse(path)
			if known {
				was = f.join(was)
			} else {
				was, known = f.deletion, true
			}
		}
	}
	return was, known
}

// due tells when the pending deletions can be judged. The zero time means now.
func (d *door) due() (at time.Time, ok bool) {
	if len(d.pending) == 0 || d.checking != nil || d.recount {
		return time.Time{}, false
	}
	at = d.last.Add(burstQuiet)
	if limit := d.since.Add(max(d.maxDelay, burstQuiet)); limit.Before(at) {
		at = limit
	}
	return at, true
}

// take hands out all pending deletions for an inspection; judge or giveBack must follow.
func (d *door) take() []deletion {
	d.arrived = d.since
	d.checking = make([]deletion, 0, len(d.pending))
	for _, del := range d.pending {
		d.checking = append(d.checking, del)
	}
	slices.SortFunc(d.checking, func(a, b deletion) int { return strings.Compare(a.path, b.path) })
	d.pending, d.ended = map[string]deletion{}, nil
	return d.checking
}

// giveBack makes what take handed out pending again: the inspection did not succeed.
func (d *door) giveBack(now time.Time) {
	for _, del := range d.checking {
		d.add(now, del)
	}
	d.checking = nil
}

// judge decides over what an inspection found. It returns the deletions that may pass now; those that may not are
// held, or pending again until the size of the backup is known.
func (d *door) judge(now time.Time, v verdict) (pass []finding) {
	d.checking = nil
	dropped := d.dropped
	d.dropped = 0
	v.gone = d.held.absorb(v.gone)
	if d.foreign && !v.empty {
		v.gone, dropped = d.holdFound(now, v.gone, dropped)
	}
	n := dropped + entries(v.gone)
	if n == 0 {
		return nil
	}
	if now.Sub(d.lastDone) >= burstEnd {
		d.done, d.made = 0, 0
	}
	switch {
	case v.empty:
		d.hold(now, v.gone, dropped, "the source directory is empty")
		d.held.empty = true
		return nil
	case !d.over(n):
		d.emptied = false
		d.done += n
		d.lastDone = now
		return v.gone
	case !d.counted, d.countedAt.Before(d.arrived):
		// Over the budget for what was known of the backup, which may have grown since.
		for _, f := range v.gone {
			d.add(now, f.deletion)
		}
		d.since = d.arrived
		d.dropped += dropped
		d.recount = true
		return nil
	default:
		reason := fmt.Sprintf("%d of %d entries on the backup would be deleted, more than delete.max_files (%d) and delete.max_percent (%d) allow",
			d.shrunk()+n, d.total+d.shrunk(), d.maxFiles, d.maxPercent)
		if d.emptied {
			reason = fmt.Sprintf("%d of %d entries on the backup would be deleted, more than delete.max_percent (%d) allows where the source was empty before",
				d.shrunk()+n, d.total+d.shrunk(), d.maxPercent)
		}
		d.emptied = false
		if gone := d.shrunk(); gone > 0 {
			reason += fmt.Sprintf("; %d of them went just before", gone)
		}
		d.hold(now, v.gone, dropped, reason)
		return nil
	}
}

// holdFound holds what nobody saw go, with those that are only counted, and returns what is left to judge.
func (d *door) holdFound(now time.Time, gone []finding, dropped int) (told []finding, _ int) {
	var found []finding
	for _, f := range gone {
		if f.found || f.first.Before(d.replaced) {
			f.found = true
			found = append(found, f)
		} else {
			told = append(told, f)
		}
	}
	if entries(found) == 0 {
		return told, dropped
	}
	only := d.held == nil || d.held.foreign
	d.hold(now, found, dropped, "the backup has entries that this source was never seen to have")
	d.held.foreign = only
	d.emptied = false
	return told, 0
}

func entries(fs []finding) (n int) {
	for _, f := range fs {
		n += f.count
	}
	return n
}

// over reports whether n more deletions exceed both limits. Where the source was empty a moment ago, that is no reason to think better of them
// but a file that has come since: the share alone decides.
func (d *door) over(n int) bool {
	n += d.shrunk()
	return (n > d.maxFiles || d.emptied) && (!d.counted || n*100 > d.maxPercent*(d.total+d.shrunk()))
}

// shrunk is by how much the backup is smaller than when the burst began.
func (d *door) shrunk() int { return max(0, d.done-d.made) }

// created notes that n entries are new on the backup.
func (d *door) created(n int) {
	d.total += n
	d.made += n
}

// deleted notes that n entries are gone from the backup.
func (d *door) deleted(now time.Time, n int, fs []finding) {
	d.total = max(0, d.total-n)
	d.lastDone = now
	if d.checking != nil {
		d.ended = append(d.ended, fs...)
	}
}

// failed takes back deletions that were let through and could not be done: they will be judged again.
func (d *door) failed(now time.Time, fs []finding) {
	for _, f := range fs {
		d.undone(f.count)
		d.add(now, f.deletion)
	}
}

// undone notes that so many entries of what was let through were not deleted.
func (d *door) undone(n int) { d.done = max(0, d.done-n) }

// count notes the number of entries that a full comparison found on the backup.
func (d *door) count(now time.Time, total int) {
	d.total, d.counted, d.countedAt = total, true, now
	if d.recount {
		d.recount = false
		d.last = now.Add(-burstQuiet)
	}
}

// oldest returns since when the longest waiting deletion has been due, those that are held left aside.
func (d *door) oldest() (first time.Time, ok bool) {
	note := func(del deletion) {
		if !ok || del.first.Before(first) {
			first, ok = del.first, true
		}
	}
	for _, del := range d.pending {
		note(del)
	}
	for _, del := range d.checking {
		note(del)
	}
	return first, ok
}
