// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"errors"
	"io/fs"
	"maps"
	"time"

	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

const (
	// bigFile is the size from which a file travels apart. 8 MiB take about 0.1 s on a gigabit network, as long as
	// a small file may have to wait for the ones before it.
	bigFile = 8 << 20

	// smallFile is the size up to which files are so small, on the average, that it costs to be told of each.
	smallFile = 128 << 10

	// batchBytes is how much one batch carries; the rest waits for the next. It bounds how long a small batch holds its slot.
	batchBytes = 64 << 20

	// A new file that is open for writing and grows at this rate is being copied: its writer is waited for, beyond
	// max_delay, so that it never has its final name on the backup while it is short. A log grows slower, and a
	// file that was sent before goes out after max_delay.
	copyRate    = 32 << 10 // bytes per second
	copyWindow  = time.Second
	copyPause   = 3 * time.Second // how long a copy may stall
	copyMaxWait = 30 * time.Minute
)

// openFile remembers how a file grew that is open for writing.
type openFile struct {
	size int64
	at   time.Time // when it had that size
	fast time.Time // when it last grew at copyRate
}

// openFiles remembers the open files that are waited for. One that went with its directory, or was sent with it, is not told
// of any more, and is forgotten when nobody has looked at it for some time.
type openFiles map[string]openFile

const (
	// openMany is from how many on those are looked for.
	openMany = 1000
	// openForgotten is long against the pauses between two looks (see look), unless nothing can be sent.
	openForgotten = time.Minute
)

func (o openFiles) note(now time.Time, busy map[string]openFile) {
	maps.Copy(o, busy)
	if len(o) > openMany {
		maps.DeleteFunc(o, func(_ string, f openFile) bool { return now.Sub(f.at) > openForgotten })
	}
}

// writers decides which open files are waited for.
type writers struct {
	maxDelay time.Duration
	known    openFiles      // as of their last look
	exclude  *watch.Exclude // below a directory that is looked through; an event of an excluded path never comes here
}

func (l *loop) writers(known openFiles) *writers {
	return &writers{maxDelay: time.Duration(l.pair.Watch.MaxDelay), known: known, exclude: l.exclude}
}

// wait reports whether to wait for the writer of a file, and what to remember of it.
func (w *writers) wait(now time.Time, e queue.Entry, st transfer.Entry) (bool, openFile) {
	o, known := w.known[e.Path]
	switch elapsed := now.Sub(o.at); {
	case !known:
		// How it grows is known after a window; until then it may be a copy.
		o = openFile{size: st.Size, at: now, fast: now.Add(copyWindow - copyPause)}
	case elapsed >= copyWindow:
		if float64(st.Size-o.size) >= copyRate*elapsed.Seconds() {
			o.fast = now
		}
		o.size, o.at = st.Size, now
	}
	age := now.Sub(e.First)
	copying := e.Created && now.Sub(o.fast) < copyPause && age < copyMaxWait
	return age < w.maxDelay || copying, o
}

// look is how soon to look again at a file that is open for writing. Inotify does not tell us of the close.
func (w *writers) look(now time.Time, e queue.Entry) time.Time {
	switch age := now.Sub(e.First); {
	case age < time.Second:
		return now.Add(min(50*time.Millisecond, max(w.maxDelay-age, time.Millisecond)))
	case age < w.maxDelay:
		return now.Add(min(200*time.Millisecond, w.maxDelay-age))
	default:
		return now.Add(200 * time.Millisecond)
	}
}

// treeExpand is the largest number of entries of a new directory that is sent as a list, with the other small
// paths. A larger one is a job of its own.
const treeExpand = 1000

// timeSlack is how much older than the event of a write the file's time may be: clocks differ, and some filesystems have steps of two seconds.
const timeSlack = 2500 * time.Millisecond

// coarseTime is a step that a filesystem's times may have: 10 ms on exFAT, a second on ext3 and on ext4 with inodes of 128 bytes. A file that is
// written again within a step has the time of before.
const coarseTime = 10 * time.Millisecond

// looksUnchanged reports whether rsync's quick check, which goes by size and time, may take a file for the one that the backup has. It is older than what has
// happened to it, or its time is coarse; and it was written to, or put there whole, perhaps over another (rename(2) tells of no deletion), or
// made where another was deleted. An unpacked archive has such files, too, but they are made and written.
func looksUnchanged(now time.Time, e queue.Entry, st transfer.Entry) bool {
	first := now.Add(-now.Sub(e.First)) // by the clock of today: e.First was read by that of the agent's start, which may have been set since
	return (e.Created != e.Written || e.Compare) && (st.ModTime.Before(first.Add(-timeSlack)) || st.ModTime.Nanosecond()%int(coarseTime) == 0)
}

// prepared is a batch after a look at the disk.
type prepared struct {
	send       []string // small enough and at rest
	bytes      int64
	files      int64           // below trees
	apart      map[string]fate // entries of the batch that are not in send
	below      []queue.Again   // paths below a tree of the batch that are not in send
	busy       map[string]openFile
	dirs       dirTimes
	light      map[string]bool     // directories in send
	links      map[inode]time.Time // files with several names, and when they were changed
	distrusted []string            // files that look unchanged and may not be; of a tree that is sent by recursion, one
}

// fate is what becomes of an entry that is not in prepared.send.
type fate struct {
	kind   fateKind
	reason string    // for unreadable
	at     time.Time // for busy
}

type fateKind int

const (
	fateSend       fateKind = iota
	fateGone                // not on disk: to the door
	fateBusy                // open for writing: back to the queue until at
	fateLater               // the batch is full: back to the queue
	fateBig                 // a job of its own
	fateTree                // a job of its own
	fateUnreadable          // lstat says something else than "not there"
)

func newPrepared() prepared {
	return prepared{apart: map[string]fate{}, busy: map[string]openFile{}, dirs: dirTimes{}}
}

// prepare looks at every entry of a batch.
func prepare(now time.Time, r root, entries []queue.Entry, w *writers) prepared {
	p := newPrepared()
	expand := treeExpand
	for _, e := range entries {
		f, st := p.look(now, r, e, w)
		if f.kind == fateSend && e.Tree && st.Mode.IsDir() {
			if n := expand; !e.Compare && small(r, e.Path, &n) {
				expand = n
				p.expand(now, r, e, w)
				continue
			}
			f.kind = fateTree
		}
		if f.kind != fateSend {
			p.apart[e.Path] = f
		}
	}
	return p
}

// look decides over one path, and notes it as to be sent or as busy.
func (p *prepared) look(now time.Time, r root, e queue.Entry, w *writers) (fate, transfer.Entry) {
	st, err := r.Lstat(e.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fate{kind: fateGone}, st
	case err != nil:
		return fate{kind: fateUnreadable, reason: reasonOf(err)}, st
	case st.Mode.IsDir() && e.Tree:
		return fate{}, st
	}
	if !st.Mode.IsDir() {
		p.several(st)
	}
	switch {
	case st.Mode.IsRegular():
		if r.OpenForWriting(e.Path) {
			wait, o := w.wait(now, e, st)
			if wait {
				p.busy[e.Path] = o
				return fate{kind: fateBusy, at: w.look(now, e)}, st
			}
		}
		if looksUnchanged(now, e, st) {
			p.distrusted = append(p.distrusted, e.Path)
		}
		if st.Size >= bigFile {
			return fate{kind: fateBig}, st
		}
		if p.bytes > 0 && p.bytes+st.Size > batchBytes {
			return fate{kind: fateLater}, st
		}
		p.bytes += st.Size
	}
	p.add(r, e)
	if st.Mode.IsDir() {
		if p.light == nil {
			p.light = map[string]bool{}
		}
		p.light[e.Path] = true
		p.dirs.noteLight(e.Path, st, e.First)
	}
	return fate{}, st
}

func (p *prepared) add(r root, e queue.Entry) {
	p.send = append(p.send, e.Path)
	p.dirs.note(r, e.Path, e.First)
}

// small reports whether a directory has no more than *n entries below it, and takes them off *n.
func small(r root, dir string, n *int) bool {
	children, err := r.Children(dir)
	if err != nil {
		return false // the recursive run will name it
	}
	if *n -= len(children); *n < 0 {
		return false
	}
	for _, c := range children {
		if c.Mode.IsDir() && !small(r, join(dir, c.Name), n) {
			return false
		}
	}
	return true
}

// expand adds a directory and everything below it.
func (p *prepared) expand(now time.Time, r root, e queue.Entry, w *writers) {
	p.add(r, e)
	children, err := r.Children(e.Path)
	if err != nil {
		p.below = append(p.below, queue.Again{Entry: e, At: now})
		return
	}
	for _, c := range children {
		kid := e
		kid.Written = e.Created // new, with what it is in
		kid.Path = join(e.Path, c.Name)
		if w.exclude.Match(kid.Path, c.Mode.IsDir()) {
			continue
		}
		switch f, st := p.look(now, r, kid, w); {
		case f.kind == fateSend && st.Mode.IsDir():
			p.expand(now, r, kid, w)
		case f.kind == fateSend, f.kind == fateGone:
		case f.kind == fateBusy:
			kid.Tree = false
			p.below = append(p.below, queue.Again{Entry: kid, At: f.at})
		default:
			p.below = append(p.below, queue.Again{Entry: kid, At: now})
		}
	}
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// reasonOf is the words of an error without the operation and the path, which are told apart.
func reasonOf(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err.Error()
	}
	return err.Error()
}

// dirTimes remembers when the directories above sent paths were changed. Rsync gives them the time stamp that they
// had when it looked; when they changed since, another run may have given them a later one before, and ours
// must not stay.
type dirTimes map[string]dirTime

type dirTime struct {
	changed time.Time
	first   time.Time // the oldest of the paths below became dirty
}

func (d dirTimes) note(r root, path string, first time.Time) {
	for dir, ok := parentOf(path); ok; dir, ok = parentOf(dir) {
		if old, seen := d[dir]; seen {
			if old.first.After(first) {
				old.first = first
				d[dir] = old
				continue // those above are at least as old only if they were noted with this one
			}
			return
		}
		st, err := r.Lstat(dir)
		if err != nil {
			continue
		}
		d[dir] = dirTime{st.ChangeTime, first}
	}
}

// noteLight notes a directory that is sent itself, without what is in it: what is sent meanwhile of that by another run gives
// it a later time stamp.
func (d dirTimes) noteLight(dir string, st transfer.Entry, first time.Time) {
	if old, seen := d[dir]; !seen || old.first.After(first) {
		if seen {
			st.ChangeTime = old.changed
		}
		d[dir] = dirTime{st.ChangeTime, first}
	}
}

// moved returns the directories that changed since they were noted.
func (d dirTimes) moved(r root) []queue.Entry {
	var out []queue.Entry
	for dir, t := range d {
		if st, err := r.Lstat(dir); err == nil && !st.ChangeTime.Equal(t.changed) {
			out = append(out, queue.Entry{Path: dir, First: t.first})
		}
	}
	return out
}
