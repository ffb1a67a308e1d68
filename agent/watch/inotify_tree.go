// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFound bounds the entries of a new tree that are reported one by one; a larger one is one Tree event.
	maxFound = 256
	// progressEvery is the number of directories between two calls of Options.Progress.
	progressEvery = 1000
	// dropPace is how many watches are removed before a pause of a millisecond. Each removal is an event too
	// (IN_IGNORED), and the kernel's queue overflows past 16,384 of them.
	dropPace = 2048
)

// excluded tells whether an event of the path is to be dropped. Usually its directory is watched, so not excluded.
func (s *inotify) excluded(path, rel string, dir bool) bool {
	if s.exclude == nil {
		return false
	}
	if s.dirs.get(parentOf(path)) != 0 {
		return s.exclude.entry(rel, dir)
	}
	return s.exclude.Match(rel, dir)
}

func parentOf(path string) string {
	i := strings.LastIndexByte(path, '/')
	if i <= 0 {
		return path[:i+1]
	}
	return path[:i]
}

func nameOf(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// settle makes the watches agree with what is at the path of a name that came or went, whichever of the two it
// was: the event may be of an older inhabitant of the path.
func (s *inotify) settle(ctx context.Context, path, rel string, op Op) {
	st, err := lstat(path)
	id := s.dirs.get(path)
	was := id != 0
	if err == nil && isDir(&st) {
		if s.excluded(path, rel, true) {
			s.drop(path)
			s.hide(path, rel)
			return
		}
		if s.dirs.get(parentOf(path)) == 0 {
			// An older path of a renamed directory, whose own event is still to come, or one that is polled.
			s.emit(Event{Path: rel, Op: op, Dir: true})
			return
		}
		if was && op&Delete == 0 {
			if d := s.dirs.at(id); d.dev != 0 && s.dirs.devs[d.dev-1] == uint64(st.Dev) && d.ino == st.Ino {
				// Found by the listing of its parent before its event was read. An inode of the same
				// number as an earlier one would have had a Delete in between.
				s.emit(Event{Path: rel, Op: op, Dir: true})
				return
			}
		}
		s.grow(ctx, path, rel, op, op&Delete != 0)
		return
	}
	if was {
		s.drop(path)
	} else if s.poll.remove(path) {
		was = true
	}
	if _, ok := s.unreadable[path]; ok {
		delete(s.unreadable, path)
		was = true
	}
	if s.unhide(path) && err != nil && !was && s.excluded(path, rel, true) {
		return
	}
	if !s.excluded(path, rel, was) {
		s.emit(Event{Path: rel, Op: op, Dir: was})
	}
}

// hide remembers an excluded directory if its name alone would not tell that it is excluded: when it goes, nobody
// says that it was a directory. It is forgotten with the directory that it is in: another may be at that path later.
func (s *inotify) hide(path, rel string) {
	in := s.dirs.get(parentOf(path))
	if in == 0 || s.exclude.Match(rel, false) {
		return
	}
	if s.hidden[in] == nil {
		s.hidden[in] = map[string]struct{}{}
	}
	s.hidden[in][strings.Clone(nameOf(path))] = struct{}{}
}

// unhide notes that no directory is at path, and reports whether an excluded one was.
func (s *inotify) unhide(path string) bool {
	if len(s.hidden) == 0 {
		return false
	}
	in := s.dirs.get(parentOf(path))
	names, name := s.hidden[in], nameOf(path)
	_, was := names[name]
	if delete(names, name); len(names) == 0 {
		delete(s.hidden, in)
	}
	return was
}

// grow watches a directory and all below it, and then reports it with what it found. rescan says that things may
// have gone from it unseen, as they may if it was watched already.
func (s *inotify) grow(ctx context.Context, top, rel string, op Op, rescan bool) {
	if s.dirs.get(top) != 0 {
		s.drop(top)
		rescan = true
	}
	tree := rescan
	self := Event{Path: rel, Op: op, Dir: true}
	var found []Event
	report := func(e Event) {
		if tree = tree || len(found) == maxFound; !tree {
			found = append(found, e)
		}
	}
	stack := []string{top}
	for len(stack) > 0 && ctx.Err() == nil {
		path := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		l := listing{path: path}
		if id := s.watch(path); id != 0 {
			files := 0
			if !tree {
				files = maxFound
			}
			l = listDir(path, files)
			for s.listed(id, l) {
				l = listDir(path, files)
				id = s.dirs.get(path)
			}
		}
		var weak Op
		if l.entries != nil || !l.fresh {
			weak = Rescan
		}
		if path == top {
			self.Op |= weak
		} else if rel, ok := s.rel(path); ok {
			report(Event{Path: rel, Op: Create | weak, Dir: true})
		}
		for _, e := range l.entries {
			child := join(path, e.name)
			rel, _ := s.rel(child)
			switch {
			case !s.exclude.entry(rel, e.dir):
				if e.dir {
					stack = append(stack, child)
				} else {
					report(Event{Path: rel, Op: Create | Modify}) // it may have been written already
				}
			case e.dir:
				s.hide(child, rel)
			}
		}
		tree = tree || l.more
	}
	if self.Tree = tree; rescan {
		self.Op |= Rescan
	}
	s.emit(self)
	if !tree {
		s.batch = append(s.batch, found...)
	}
}

// join is path.Join without the cleaning, of a directory that may be "/".
func join(dir, name string) string {
	if dir == "/" {
		return dir + name
	}
	return dir + "/" + name
}

// watch adds a watch for a directory that has none, below one that has. It returns 0 if there is none in the end:
// because the directory is gone or not readable, or because it must be polled.
func (s *inotify) watch(path string) dirID {
	if path == s.opts.CookieDir {
		return 0 // what happens in there is told by cookies
	}
	st, err := lstat(path)
	if err == nil && !isDir(&st) {
		err = unix.ENOTDIR
	}
	if err == nil {
		if other := s.dirs.inode(uint64(st.Dev), st.Ino); other != 0 && !s.moved(s.dirs.path(other), path, &st) {
			return 0
		}
		parent := s.dirs.get(parentOf(path))
		if parent == 0 && path != s.root.path {
			return 0 // renamed with a directory above it, whose event will bring us back
		}
		if err = s.add(path); err == nil {
			delete(s.unreadable, path)
			id := s.dirs.add(path, parent)
			s.dirs.identify(id, uint64(st.Dev), st.Ino)
			if s.opts.Progress != nil && s.walk.active && s.dirs.len%progressEvery == 0 {
				s.opts.Progress(s.dirs.len)
			}
			return id
		}
	}
	switch {
	case gone(err):
	case errors.Is(err, unix.EACCES):
		s.unreadable[path] = struct{}{}
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		s.poll.add(path, pollLimit)
	case errors.Is(err, unix.ENAMETOOLONG):
		// Out of reach by its path, but not through its parent. Rsync names it relative to the root, so it may
		// still be able to send it.
		s.poll.add(parentOf(path), pollAlways)
	default:
		s.poll.add(path, pollRetry)
	}
	return 0
}

// moved handles a directory at path that is watched under another path. It returns false if it is at both.
func (s *inotify) moved(other, path string, st *unix.Stat_t) bool {
	was, err := lstat(other)
	if err == nil && was.Dev == st.Dev && was.Ino == st.Ino {
		// A bind mount. A watch reports one path, and it is the other.
		s.poll.add(path, pollAlways)
		return false
	}
	// Renamed, and the event of that is still to come. By then nobody will know that it was a directory, so it
	// is told now.
	s.drop(other)
	if rel, ok := s.rel(other); ok {
		s.emit(Event{Path: rel, Op: Delete | Move, Dir: true})
	}
	return true
}

func (s *inotify) add(path string) error {
	if s.tune.add != nil {
		if err := s.tune.add(path); err != nil {
			return err
		}
	}
	return s.kernel.Add(path)
}

// listed tells whether a watched directory must be listed again, because it was another one that was listed.
func (s *inotify) listed(id dirID, l listing) (again bool) {
	d := s.dirs.at(id)
	switch {
	case l.err == nil && l.ino == d.ino && l.dev == s.dirs.devs[d.dev-1]:
		return false
	case l.err == nil:
		// Replaced between the lstat of watch and the listing: nobody knows which of the two has the watch.
		s.drop(l.path)
		return s.watch(l.path) != 0
	case gone(l.err):
		// Gone when it was listed, which may be a while ago.
		if st, err := lstat(l.path); err == nil && st.Ino == d.ino && uint64(st.Dev) == s.dirs.devs[d.dev-1] {
			return true
		}
		s.drop(l.path)
	case errors.Is(l.err, unix.EACCES):
	default: // EMFILE, EIO: nobody knows what is below it
		s.poll.add(l.path, pollRetry)
	}
	return false
}

// drop removes the watches of a directory and all below it.
func (s *inotify) drop(path string) {
	s.poll.remove(path)
	for p := range s.unreadable {
		if p == path || strings.HasPrefix(p, path) && p[len(path)] == '/' {
			delete(s.unreadable, p)
		}
	}
	id := s.dirs.get(path)
	if id == 0 {
		return
	}
	s.dirs.removeTree(id, func(id dirID, path string) {
		delete(s.hidden, id)
		// The kernel has removed it already if the directory is gone.
		if s.kernel.Remove(path) == nil {
			if s.dropped++; s.dropped%dropPace == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
}

// watchMounts makes a new start wherever something was mounted or unmounted.
func (s *inotify) watchMounts(ctx context.Context) error {
	paths, err := s.lookAtMounts()
	for _, path := range paths {
		s.remounted(ctx, path)
	}
	return err
}

// remounted makes a new start with a directory that another filesystem was mounted on, or unmounted from. The
// watches of what was there before are gone (IN_UNMOUNT) or watch what can no longer be seen.
func (s *inotify) remounted(ctx context.Context, path string) {
	rel, ok := s.rel(path)
	if !ok || rel == "" {
		return
	}
	s.drop(path)
	if s.dirs.get(parentOf(path)) == 0 || s.exclude.Match(rel, true) {
		return // the walk is still to come there, or it is polled, or it is none of our business
	}
	s.grow(ctx, path, rel, Rescan, true)
	s.pollMountedFile(path)
}

// pollMountedFile has a file polled that is mounted on another: the watch of its directory is not told of it.
func (s *inotify) pollMountedFile(path string) {
	st, err := lstat(path)
	if rel, ok := s.rel(path); ok && err == nil && !isDir(&st) && !s.exclude.Match(rel, false) {
		s.poll.add(path, pollAlways)
	}
}

// applyExclude gives up watches of what is excluded now. If anything may be included now it begins again.
func (s *inotify) applyExclude(ctx context.Context) error {
	old := s.exclude
	s.exclude = s.takeExclude()
	defer s.applied.Add(1)
	if s.exclude.includesMoreThan(old) {
		s.including = true
		return s.restart(ctx)
	}
	var paths []string
	match := func(path string) {
		if rel, ok := s.rel(path); ok && s.exclude.Match(rel, true) {
			paths = append(paths, path)
		}
	}
	s.dirs.each(func(id dirID) bool {
		match(s.dirs.path(id))
		return ctx.Err() == nil
	})
	for path := range s.poll.tops {
		match(path)
	}
	for path := range s.unreadable {
		match(path)
	}
	for _, path := range paths {
		s.drop(path)
		if rel, ok := s.rel(path); ok {
			s.hide(path, rel)
		}
	}
	s.afterPoll()
	return ctx.Err()
}

// retryUnreadable tries again the unreadable directories that a change of attributes at path may have opened.
func (s *inotify) retryUnreadable(ctx context.Context, path string) {
	var paths []string
	for p := range s.unreadable {
		if isBelow(p, path) {
			paths = append(paths, p)
		}
	}
	for _, p := range paths {
		if rel, ok := s.rel(p); ok {
			s.grow(ctx, p, rel, Attrib, true)
		}
	}
}
