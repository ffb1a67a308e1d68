// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pollEvery is how often unwatched directories are rescanned when a scan takes no time worth mentioning.
	pollEvery = 2 * time.Second
	// pollShare bounds the cost: at least this many times the duration of a scan lies between two.
	pollShare = 20
	// maxPollEvery bounds the delay of a change in a tree so large that a scan takes half a minute.
	maxPollEvery = 10 * time.Minute
	// raceTime is how long after a change a second one may leave the same ctime, seen from the scan:
	// a tick of the kernel's coarse clock (10 ms at most), or two seconds where a filesystem stores no less.
	raceTime = 2 * time.Second
)

// poller finds changes in directories that have no watch by comparing what lstat says of everything in them.
// Its methods are called by the goroutine of Run; a scan is a goroutine of its own, one at a time, which ends
// soon after its context does. The next scan is due when timer fires.
type poller struct {
	every   time.Duration
	race    time.Duration
	tops    map[string]*polled // by absolute path
	counts  [pollKinds]int     // directories of each kind
	timer   *time.Timer
	results chan []pollResult // buffered, so that a scan never waits for Run
	running bool
	again   bool // a scan that begins from now on is wanted at once
	started int  // scans so far
	done    int
	begun   time.Time
	seed    maphash.Seed
}

// pollKind says why there is no watch, and so whether one may be possible later.
type pollKind uint8

const (
	pollAlways pollKind = iota // never: a second path of one directory, a path too long
	pollRetry                  // an error that may pass
	pollLimit                  // the kernel's limit on watches
	pollKinds  = 3
)

// polled is one directory that has no watch and everything below it.
type polled struct {
	kind  pollKind
	known bool // has been scanned
	racy  bool // something changed so shortly before the scan that a second change may not show
	sum   uint64
	dirs  int
}

type pollResult struct {
	path string
	polled
}

func newPoller(every, race time.Duration) *poller {
	p := &poller{every: every, race: race, tops: map[string]*polled{}, results: make(chan []pollResult, 1), timer: time.NewTimer(time.Hour), seed: maphash.MakeSeed()}
	p.timer.Stop()
	return p
}

// add polls path and what is below it. The first scan is due at once.
func (p *poller) add(path string, kind pollKind) {
	for up := path; ; {
		if t := p.tops[up]; t != nil {
			return
		}
		i := strings.LastIndexByte(up, '/')
		if i <= 0 {
			break
		}
		up = up[:i]
	}
	p.tops[path] = &polled{kind: kind, dirs: 1}
	p.counts[kind]++
	p.kick()
}

func (p *poller) delete(path string, t *polled) {
	p.counts[t.kind] -= t.dirs
	delete(p.tops, path)
}

// clear ends polling of everything.
func (p *poller) clear() {
	clear(p.tops)
	p.counts = [pollKinds]int{}
}

// remove ends polling of path and of what is below it, and tells whether path itself was polled.
func (p *poller) remove(path string) bool {
	if len(p.tops) == 0 {
		return false
	}
	own := p.tops[path] != nil
	for top, t := range p.tops {
		if isBelow(top, path) {
			p.delete(top, t)
		}
	}
	return own
}

// kick makes a scan begin that sees all that has happened until now.
func (p *poller) kick() {
	if p.running {
		p.again = true
	} else {
		p.timer.Reset(0)
	}
}

// passed tells whether everything polled was scanned since the cookie was made, and sees to it that it will be.
func (p *poller) passed(c *heldCookie) bool {
	if len(p.tops) == 0 {
		return true
	}
	if c.scan == 0 {
		c.scan = p.started + 1
		p.kick()
	}
	return p.done >= c.scan
}

// start begins a scan. base is the root with a slash.
func (p *poller) start(ctx context.Context, base string, e *Exclude) {
	if p.running || len(p.tops) == 0 {
		return
	}
	p.running, p.again = true, false
	p.started++
	p.begun = time.Now()
	paths := make([]string, 0, len(p.tops))
	for path := range p.tops {
		paths = append(paths, path)
	}
	go func() {
		var all []pollResult
		for _, path := range paths {
			all = append(all, pollResult{path, p.scan(ctx, path, base, e)})
		}
		p.results <- all
	}()
}

// finish takes in the results of a scan and returns the directories in which something has changed.
func (p *poller) finish(all []pollResult) (changed []string) {
	p.running = false
	p.done = p.started
	for _, r := range all {
		t := p.tops[r.path]
		if t == nil {
			continue
		}
		// What changed before the first scan is not known, so the first always counts.
		if !t.known || t.racy || t.sum != r.sum {
			changed = append(changed, r.path)
		}
		r.kind = t.kind
		p.counts[t.kind] += r.dirs - t.dirs
		*t = r.polled
	}
	if len(p.tops) > 0 {
		wait := min(max(p.every, pollShare*time.Since(p.begun)), maxPollEvery)
		if p.again {
			wait = 0
		}
		p.timer.Reset(wait)
	}
	return changed
}

// stop waits for a scan that is running; its context must have ended.
func (p *poller) stop() {
	p.timer.Stop()
	if p.running {
		<-p.results
		p.running = false
	}
}

// dirs returns how many directories are polled, as far as they have been counted.
func (p *poller) dirs() int { return p.counts[pollAlways] + p.counts[pollRetry] + p.counts[pollLimit] }

// scan reads everything below path. An error makes the sum a new one, so that it counts as a change.
func (p *poller) scan(ctx context.Context, path, base string, e *Exclude) polled {
	s := scanner{ctx: ctx, exclude: e, seed: p.seed, since: time.Now().Add(-p.race)}
	r := polled{known: true, dirs: 1}
	fd, err := openDir(unix.AT_FDCWD, path)
	switch {
	case err == nil:
		rel := strings.TrimPrefix(path+"/", base)
		s.dir(fd, strings.TrimSuffix(rel, "/"))
		_ = unix.Close(fd)
		r.sum, r.racy, r.dirs = s.sum, s.racy, s.dirs
	case errors.Is(err, unix.ENOTDIR): // a file that another one is mounted on
		if st, err := lstat(path); err == nil {
			s.add(path, &st)
			r.sum, r.racy = s.sum, s.racy
		}
	case gone(err), errors.Is(err, unix.EACCES):
		// That has an event in the directory above, or is polled there; or it is not ours to read.
	default:
		r.racy = true
	}
	return r
}

type scanner struct {
	ctx     context.Context //nolint:containedctx // lives as long as one call of scan
	exclude *Exclude
	seed    maphash.Seed
	since   time.Time
	sum     uint64
	dirs    int
	racy    bool
	buf     []byte
}

// dir adds up everything in the open directory. The order in which the kernel lists it must not count.
func (s *scanner) dir(fd int, rel string) {
	if s.ctx.Err() != nil {
		return
	}
	s.dirs++
	var subdirs []string
	err := readDir(fd, func(name []byte, _ bool) {
		path := string(name)
		if rel != "" {
			path = rel + "/" + path
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, string(name), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			s.racy = s.racy || !gone(err)
			return
		}
		if s.exclude.entry(path, isDir(&st)) {
			return
		}
		s.add(path, &st)
		if isDir(&st) {
			subdirs = append(subdirs, string(name))
		}
	})
	if err != nil {
		s.racy = true
	}
	for _, name := range subdirs {
		child, err := openDir(fd, name)
		if err != nil {
			s.racy = s.racy || !gone(err) && !errors.Is(err, unix.EACCES)
			continue
		}
		path := name
		if rel != "" {
			path = rel + "/" + name
		}
		s.dir(child, path)
		_ = unix.Close(child)
	}
}

func (s *scanner) add(path string, st *unix.Stat_t) {
	b := append(s.buf[:0], path...)
	for _, n := range []uint64{st.Ino, uint64(st.Dev), uint64(st.Mode), uint64(st.Size), uint64(st.Mtim.Nano()), uint64(st.Ctim.Nano()), uint64(st.Rdev)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	s.buf = b
	s.sum += maphash.Bytes(s.seed, b)
	if time.Unix(st.Ctim.Unix()).After(s.since) {
		s.racy = true
	}
}

// isBelow tells whether path is dir or below it.
func isBelow(path, dir string) bool {
	return strings.HasPrefix(path, dir) && (len(path) == len(dir) || path[len(dir)] == '/' || dir == "/")
}
