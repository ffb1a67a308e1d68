// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"sync"
	"time"
)

const (
	// listers is how many directories are read at once: on a cold disk, waiting is what takes long.
	listers = 4
	// leafSize is the largest directory, in bytes as stat(2) tells, of which the number of links is believed. Past 65,000 directories in it
	// ext4 stops counting and says 1, by way of 2.
	leafSize = 64 << 10
)

// walk is the listing of everything, from the root down, in goroutines that end with stop.
type walk struct {
	active  bool
	stack   []string // watched, to be listed
	out     int      // being listed
	todo    chan string
	listed  chan listing
	cancel  context.CancelFunc
	workers sync.WaitGroup
	leaves  bool   // a directory that has no other in it can be told without listing it (see countsLinks),
	dev     uint64 // on this filesystem
	begun   time.Time
	ended   time.Time
	took    time.Duration
}

// beginWalk starts to walk the tree, whose root is watched.
func (s *inotify) beginWalk(ctx context.Context) {
	var walkCtx context.Context
	walkCtx, s.walk.cancel = context.WithCancel(ctx)
	s.walk.active = true
	s.walk.begun = time.Now()
	s.walk.todo, s.walk.listed = make(chan string), make(chan listing)
	for range listers {
		s.walk.workers.Add(1)
		go func(todo <-chan string, listed chan<- listing) {
			defer s.walk.workers.Done()
			for {
				select {
				case <-walkCtx.Done():
					return
				case path := <-todo:
					l := listDir(path, 0)
					select {
					case <-walkCtx.Done():
						return
					case listed <- l:
					}
				}
			}
		}(s.walk.todo, s.walk.listed)
	}
	s.walk.leaves = false
	if s.dirs.len > 0 {
		s.walk.stack = append(s.walk.stack, s.root.path)
		if st, err := lstat(s.root.path); err == nil {
			s.walk.leaves, s.walk.dev = countsLinks(s.root.path), uint64(st.Dev)
		}
	}
}

func (s *inotify) stopWalk() {
	if s.walk.active {
		s.walk.cancel()
		s.walk.workers.Wait()
		s.walk.active = false
		s.walk.stack, s.walk.out, s.walk.todo, s.walk.listed = nil, 0, nil, nil
	}
}

// endWalk says what a complete walk means.
func (s *inotify) endWalk() {
	if !s.walk.active || len(s.walk.stack) > 0 || s.walk.out > 0 {
		return
	}
	s.stopWalk()
	s.walk.ended = time.Now()
	s.walk.took = s.walk.ended.Sub(s.walk.begun)
	if s.opts.Progress != nil {
		s.opts.Progress(s.dirs.len)
	}
	lost := s.lost
	s.publish() // before it is told
	s.attached()
	switch {
	case lost: // reported as Restored
	case s.recovering, s.including:
		s.emit(s.wholeTree())
	}
	if s.overflowed && (lost || s.recovering) {
		s.fault(ErrOverflow) // not told in drain
	}
	s.recovering, s.including = false, false
	s.reportLimit(s.poll.counts[pollLimit], s.dirs.len)
	s.pokeCookies()
	if s.overflowed {
		s.beginAgain()
	}
	s.release()
}

// walked goes on with the walk from a directory that has been listed.
func (s *inotify) walked(l listing) {
	id := s.dirs.get(l.path)
	if id == 0 {
		return // gone since
	}
	if s.listed(id, l) {
		s.walk.stack = append(s.walk.stack, l.path)
		return
	}
	if l.err != nil {
		return
	}
	for _, e := range l.entries {
		if !e.dir {
			continue
		}
		child := join(l.path, e.name)
		if s.dirs.get(child) != 0 {
			continue // an event told of it, and all below it is watched
		}
		rel, _ := s.rel(child)
		if s.exclude.entry(rel, true) {
			// What has happened to it since it was listed may have been settled.
			if st, err := lstat(child); err == nil && isDir(&st) {
				s.hide(child, rel)
			}
			continue
		}
		if id := s.watch(child); id != 0 && !s.leaf(id) {
			s.walk.stack = append(s.walk.stack, child)
		}
	}
}

// leaf reports whether no directory is in one that has just been watched. It need not be listed then, which is half of the work
// of a walk; of a directory that is made in it later there is an event.
func (s *inotify) leaf(id dirID) bool {
	d := s.dirs.at(id)
	if !s.walk.leaves || s.dirs.devs[d.dev-1] != s.walk.dev {
		return false
	}
	st, err := lstat(d.path)
	return err == nil && isDir(&st) && st.Nlink == 2 && st.Size <= leafSize && st.Ino == d.ino && uint64(st.Dev) == s.walk.dev
}
