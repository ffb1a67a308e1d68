// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// inspection is what a look at both sides tells about pending deletions.
type inspection struct {
	verdict
	err       error           // the source directory cannot be looked at
	res       transfer.Result // of listing the backup
	back      []deletion      // on disk again
	covered   []deletion      // paths that are no directories: what was below them goes with them
	unmounted []finding       // gone with a filesystem below the source that is not mounted
	mount     string          // where one of those belongs
	unknown   []unreadable    // it cannot be told whether they are there
}

type unreadable struct {
	deletion
	reason string
}

// inspect looks at each deletion on disk and counts what would go with it on the backup. It changes nothing.
func inspect(ctx context.Context, eng engine, r root, dels []deletion) inspection {
	var in inspection
	if in.empty, in.err = r.Empty(); in.err != nil {
		return in
	}
	gone := map[string]deletion{}
	blocked := map[string]deletion{}
	covered := map[string]bool{}
	for _, d := range dels {
		st, err := r.Lstat(d.path)
		switch {
		case err == nil && d.blocked && !st.Mode.IsDir():
			blocked[d.path] = d
		case err == nil:
			in.back = append(in.back, d)
		case errors.Is(err, fs.ErrNotExist):
			top, cover, err := topMissing(r, d.path)
			switch {
			case err != nil:
				in.unknown = append(in.unknown, unreadable{d, reasonOf(err)})
			case cover != "":
				if !covered[cover] {
					covered[cover] = true
					in.covered = append(in.covered, deletion{path: cover, first: d.first})
				}
			default:
				d.path = top
				if old, ok := gone[top]; ok {
					d = d.join(old)
				}
				gone[top] = d
			}
		default:
			in.unknown = append(in.unknown, unreadable{d, reasonOf(err)})
		}
	}
	paths := make([]string, 0, len(gone))
	for p := range gone {
		paths = append(paths, p)
	}
	paths = topMost(paths)
	present := make([]string, 0, len(blocked))
	for p := range blocked {
		present = append(present, p)
	}
	counts, res := count(ctx, eng, r, append(present, paths...))
	in.res = res
	if res.Class != transfer.Done {
		return in
	}
	for p, d := range blocked {
		in.gone = append(in.gone, finding{d, max(counts[p], 1)})
	}
	why := map[string]string{}
	for _, f := range res.Failed {
		why[f.Path] = f.Reason
	}
	for _, p := range paths {
		if res.Incomplete {
			// Something that looks gone could not be read: nobody knows then.
			in.unknown = append(in.unknown, unreadable{gone[p], cmp.Or(why[p], "the source could not be read in full")})
			continue
		}
		if counts[p] == 0 {
			// Nothing of it is on the backup; or it came back between our look and rsync's, and then nothing is known.
			if _, err := r.Lstat(p); err == nil {
				in.back = append(in.back, gone[p])
				continue
			}
		}
		in.gone = append(in.gone, finding{gone[p], counts[p]})
	}
	return in
}

// topMissing returns the top-most directory of path that is missing, path itself at the latest. Cover is set instead
// when something above the path is no directory: whatever the backup has below that goes with it.
func topMissing(r root, path string) (top, cover string, err error) {
	top = path
	for {
		parent, ok := parentOf(top)
		if !ok || parent == "" {
			return top, "", nil
		}
		st, err := r.Lstat(parent)
		switch {
		case err == nil && st.Mode.IsDir():
			return top, "", nil
		case err == nil:
			return "", parent, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", "", err
		}
		top = parent
	}
}

// count counts what would go on the backup with each of the paths, none of which lies below another.
func count(ctx context.Context, eng engine, r root, paths []string) (map[string]int, transfer.Result) {
	counts := map[string]int{}
	if len(paths) == 0 {
		return counts, transfer.Result{}
	}
	slices.SortFunc(paths, comparePaths)
	res := eng.ListMissing(ctx, r, paths, func(it transfer.Item) error {
		// The last path in order that is not after the item is the one it lies below, if any is.
		i := sort.Search(len(paths), func(i int) bool { return comparePaths(paths[i], it.Path) > 0 }) - 1
		if i >= 0 && isBelow(it.Path, paths[i]) {
			counts[paths[i]]++
		}
		return nil
	})
	return counts, res
}

// startInspection looks at the pending deletions when their burst is over.
func (l *loop) startInspection(now time.Time) bool {
	at, ok := l.door.due()
	if !ok || now.Before(at) {
		return false
	}
	if l.door.dropped > 0 {
		l.full.valid = false
		l.requestFull("more deletions than are kept one by one")
	}
	dels := l.door.take()
	j := &job{kind: "deletions", what: plural(len(dels), "path"), paths: len(dels), can: true}
	known := l.mounts
	l.startAtSource(now, j, func(now time.Time, _ error) { l.door.giveBack(now) }, func(ctx context.Context, eng engine, r root) {
		in := inspect(ctx, eng, r, dels)
		in.takeUnmounted(r, known)
		l.post(func(now time.Time) { l.inspected(now, in) })
	})
	return true
}

// inspected lets deletions through, or not.
func (l *loop) inspected(now time.Time, in inspection) {
	if in.err != nil {
		l.door.giveBack(now)
		l.sourceTrouble(now, in.err)
		return
	}
	if in.res.Class != transfer.Done {
		l.door.giveBack(now)
		if in.res.Class == transfer.Unknown {
			in.res.Class = transfer.Transient
		}
		l.learn(now, in.res)
		return
	}
	for _, f := range in.gone {
		if f.count == 0 {
			l.settleParent(now, f.deletion)
		}
	}
	if !l.door.enabled {
		in.gone, in.unmounted = nil, nil // they were switched off meanwhile
	}
	if deleting := l.deleting(); len(deleting) > 0 {
		in.gone = slices.DeleteFunc(in.gone, func(f finding) bool { return !f.blocked && isBelowAny(f.path, deleting) })
	}
	held := l.door.held
	l.passed = append(l.passed, l.door.judge(now, in.verdict)...)
	if un := l.door.held.absorb(in.unmounted); len(un) > 0 {
		l.door.hold(now, un, 0, fmt.Sprintf("the filesystem at %s below the source is not mounted", in.mount))
		l.door.held.mount = in.mount
	}
	for _, d := range in.back {
		l.door.forget(d.path)
		l.back(now, d.first, d)
	}
	for _, d := range in.covered {
		l.q.Mark(now, d.first, d.path, false)
	}
	for _, u := range in.unknown {
		l.failDeletion(now, u.deletion, u.path, u.reason, false)
	}
	if l.door.recount {
		l.requestFull("a large deletion is judged against the size of the backup")
	}
	if h := l.door.held; h != nil && (held == nil || held.count != h.count) {
		l.log.Warn("deletions are held", "reason", h.reason, "entries", h.count, "path", firstOf(h.paths()), "hint", l.hint(Held))
		l.note(now, fmt.Sprintf("%s held: %s", plural(h.count, "deletion"), h.reason))
	}
}

// failDeletion notes a path that could not be deleted. One that a try of the ledger has found gone keeps its pace.
func (l *loop) failDeletion(now time.Time, d deletion, path, reason string, remote bool) {
	l.ledger.restore(d.was, path)
	l.failPath(now, path, false, reason, remote)
}

// deleting returns the paths that were let through and whose deletion waits, runs, or has ended while the door looked at
// others. A comparison beside it finds them once more; what becomes of them is settled by the deletion.
func (l *loop) deleting() map[string]bool {
	out := map[string]bool{}
	note := func(fs []finding) {
		for _, f := range fs {
			if f.count > 0 { // else nothing will be deleted
				out[f.path] = true
			}
		}
	}
	note(l.passed)
	note(l.door.ended)
	for w := range l.flying {
		note(w.findings)
	}
	return out
}

// settleParent sends the time stamp of a directory from which something went that the backup never had.
func (l *loop) settleParent(now time.Time, d deletion) {
	if parent, ok := parentOf(d.path); ok {
		l.settleDirs(now, []queue.Entry{{Path: parent, First: d.first}})
	}
}

func firstOf(paths []string) string {
	if len(paths) == 0 {
		return ""
	}
	return paths[0]
}

// heldEvery is how often held deletions are held against the disk: those that are back lapse, even when the watch did
// not see them come.
const heldEvery = 30 * time.Second

// startHeldCheck looks whether held deletions are back on disk.
func (l *loop) startHeldCheck(now time.Time) bool {
	h := l.door.held
	if h == nil || now.Before(l.heldCheck) {
		return false
	}
	l.heldCheck = now.Add(heldEvery)
	mount := h.mount
	held := make([]finding, 0, len(h.items))
	for _, f := range h.items {
		held = append(held, f)
	}
	j := &job{kind: "held", what: plural(len(held), "path"), paths: len(held), can: true}
	l.startAtSource(now, j, func(time.Time, error) {}, func(ctx context.Context, eng engine, r root) {
		empty, err := r.Empty()
		empty = empty || err != nil
		var back []finding
		for _, f := range held {
			if st, err := r.Lstat(f.path); err == nil && (!f.blocked || st.Mode.IsDir()) {
				back = append(back, f)
			}
		}
		mounted := mount != "" && r.MountedOn(mount)
		l.post(func(now time.Time) { l.heldChecked(now, empty, mounted, back) })
	})
	return true
}

func (l *loop) heldChecked(now time.Time, empty, mounted bool, back []finding) {
	for _, f := range back {
		if l.door.lapse(f.path) {
			l.back(now, f.first, f.deletion)
		}
	}
	if h := l.door.held; h != nil && h.empty && !empty {
		l.log.Info("the source directory is not empty any more: its deletions are judged again", "entries", h.count)
		l.door.again(now)
	}
	if h := l.door.held; h != nil && h.mount != "" && mounted {
		l.log.Info("what was not mounted below the source is mounted again: its deletions are judged again", "path", h.mount, "entries", h.count)
		l.door.again(now)
	}
}

// startPassed does deletions that the door let through, as far as nothing in flight overlaps with them.
func (l *loop) startPassed(now time.Time) bool {
	if len(l.passed) == 0 {
		return false
	}
	var wait []finding
	var w *work
	for _, f := range l.passed {
		if f.count == 0 {
			continue // nothing of it is on the backup
		}
		kind := workDelete
		if f.blocked {
			kind = workForce
		}
		if w != nil && w.kind != kind {
			wait = append(wait, f)
			continue
		}
		b, ok := l.q.Reserve(now, f.path)
		if !ok {
			l.jobs.endBig(f.path)
			wait = append(wait, f)
			continue
		}
		b.Entries[0].First = f.first
		if w == nil {
			w = l.newWork(kind, b)
		} else {
			w.batch.Join(b)
			if f.first.Before(w.first) {
				w.first = f.first
			}
		}
		w.findings = append(w.findings, f)
	}
	l.passed = wait
	if w == nil {
		return false
	}
	l.startDelete(now, w)
	return true
}

// startDelete looks at the disk once more and does the deletions of w.
func (l *loop) startDelete(now time.Time, w *work) {
	n := 0
	for _, f := range w.findings {
		n += f.count
	}
	j := &job{kind: w.kind.String(), what: nameBatch(w.batch), paths: len(w.batch.Entries), slot: true}
	findings := append([]finding(nil), w.findings...)
	l.startAtSource(now, j, func(now time.Time, _ error) { l.giveBack(now, w) }, func(ctx context.Context, eng engine, r root) {
		job := transfer.Job{Kind: transfer.Delete}
		if w.kind == workForce {
			job = transfer.Job{Kind: transfer.Send, Force: true}
		}
		var back []string
		dirs := dirTimes{}
		for _, f := range findings {
			st, err := r.Lstat(f.path)
			switch {
			case f.blocked && err == nil && !st.Mode.IsDir():
			case !f.blocked && errors.Is(err, fs.ErrNotExist):
				if _, cover, err := topMissing(r, f.path); err != nil || cover != "" {
					back = append(back, f.path)
					continue
				}
			default:
				back = append(back, f.path)
				continue
			}
			job.Paths = append(job.Paths, f.path)
			dirs.note(r, f.path, f.first)
		}
		res := transfer.Result{Status: -1} // of rsync that does not run
		if len(job.Paths) > 0 {
			res = eng.Run(ctx, r, job, l.progressOf(j))
			for _, f := range findings {
				// Rsync leaves alone what came back in the last moment, or became a directory, and does not tell.
				if st, err := r.Lstat(f.path); err == nil && (!f.blocked || st.Mode.IsDir()) {
					back = append(back, f.path)
				}
			}
		}
		moved := dirs.moved(r)
		l.post(func(now time.Time) {
			l.deleted(now, w, n, res, back, moved)
			if w.kind == workForce {
				l.arrived(res, job.Paths, nil)
			} else {
				l.arrived(res, nil, slices.DeleteFunc(job.Paths, func(p string) bool { return slices.Contains(back, p) }))
			}
		})
	})
}

// deleted takes in the result of a deletion.
func (l *loop) deleted(now time.Time, w *work, n int, res transfer.Result, back []string, moved []queue.Entry) {
	l.account(now, res)
	if res.Class == transfer.Unknown {
		l.unknown++
		delete(l.flying, w)
		l.q.Done(now, w.batch, nil)
		for _, f := range w.findings {
			l.failDeletion(now, f.deletion, f.path, res.Message, true)
		}
		return
	}
	if res.Class != transfer.Done {
		l.giveBack(now, w)
		return
	}
	delete(l.flying, w)
	l.q.Done(now, w.batch, nil)
	done := make([]finding, 0, len(w.findings))
	for _, f := range w.findings {
		if !slices.Contains(res.Blocked, f.path) {
			done = append(done, f)
			continue
		}
		// To force it at once would end the same way.
		n -= f.count
		l.door.undone(f.count)
		l.failDeletion(now, f.deletion, f.path, "a directory on the backup is in the way, and excluded files in it are kept", true)
	}
	l.counters.Kept += int64(len(res.Kept))
	for _, f := range done {
		l.latency.add(now.Sub(f.first))
		l.ledger.clear(now, f.path, true, nil)
	}
	for _, f := range res.Failed {
		var of finding
		if i := slices.IndexFunc(done, func(d finding) bool { return isBelow(f.Path, d.path) }); i >= 0 {
			of = done[i]
		}
		if of.count > 0 {
			n--
			l.door.undone(1)
		}
		l.failDeletion(now, of.deletion, f.Path, f.Reason, f.Remote)
	}
	l.door.deleted(now, n, done)
	for _, p := range back {
		l.q.Mark(now, w.first, p, true) // twice does no harm
	}
	for _, p := range res.Changed {
		l.q.Mark(now, w.first, p, true)
	}
	l.settleDirs(now, moved)
	l.log.Debug("deleted on the backup", "entries", n, "path", strings.Join(first(w.batch.Entries, 3), " "))
}

func first(entries []queue.Entry, n int) []string {
	var out []string
	for _, e := range entries[:min(n, len(entries))] {
		out = append(out, e.Path)
	}
	return out
}
