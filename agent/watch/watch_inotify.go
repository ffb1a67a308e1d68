// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	// maxPending bounds the events that are read and not worked on yet: 16 MB with paths of usual length. The
	// kernel's own queue holds 16,384 (fs.inotify.max_queued_events). Past it they count as lost.
	maxPending = 1 << 17
	// readAhead lets fsnotify read on while a few events are handed over.
	readAhead = 256
	// keepPending is the largest buffer kept for the next events; one left over from a burst is given back.
	keepPending = 4096
	// listers is how many directories are read at once in the first walk: on a cold disk, waiting is what takes long.
	listers = 4
	// maxFound bounds the entries of a new tree that are reported one by one; a larger one is one Tree event.
	maxFound = 256
	// progressEvery is the number of directories between two calls of Options.Progress.
	progressEvery = 1000
	// dropPace is how many watches are removed before a pause of a millisecond. Each removal is an event too
	// (IN_IGNORED), and the kernel's queue overflows past 16,384 of them.
	dropPace = 2048
)

// inotify watches every directory of the tree through fsnotify. What fsnotify leaves to us:
//
//   - It knows a watch by the path it was added with. When a directory is renamed, all watches below it report
//     the old path, and adding a directory that is watched under another path changes nothing. So a renamed
//     directory is dropped with all below it and added again; a directory whose inode is known under
//     another path has been renamed, too, by an event that is still to come.
//   - Adding a path that it has already, but that is another directory now, leaves its tables in disorder
//     (the path keeps a watch that is not there, and removing it panics). So a path is always dropped before
//     it is added again. Events that get lost so are made up for by reporting the whole tree below it.
//   - Whether the subject is a directory is not told, so names that come and go are looked at.
//
// Directories are added from the top down, each before it is listed: what was made in between has an event or is
// in the list. All but inbox belongs to the goroutine of Run.
type inotify struct {
	*watcher
	kernel *fsnotify.Watcher
	inbox  *inbox
	dirs   *dirSet
	poll   *poller
	walk   walk
	buffer []fsnotify.Event // given to the inbox in exchange

	unreadable map[string]struct{} // EACCES
	hidden     map[uint32]struct{} // directories that are excluded, and would not be if they were files
	cookies    []heldCookie
	cookieLost bool // the cookie directory has no watch
	rootMoved  bool // an event of the root itself: look what is at its path
	dropped    int

	overflowed bool        // events were lost, and again will fire
	recovering bool        // the walk is for lost events: it ends with a Tree event for the root, and ErrOverflow
	including  bool        // the walk is for excludes that exclude less: it ends with a Tree event for the root
	again      *time.Timer // when to begin again after an overflow
}

// walk is the listing of everything, from the root down, in goroutines that end with stop.
type walk struct {
	active  bool
	stack   []string // watched, to be listed
	out     int      // being listed
	todo    chan string
	listed  chan listing
	cancel  context.CancelFunc
	workers sync.WaitGroup
	begun   time.Time
	ended   time.Time
	took    time.Duration
}

// inbox is where the reader puts events: it must never wait, because the kernel drops what is not read in time.
type inbox struct {
	max  int
	wake chan struct{}
	done chan struct{} // closed when the reader has ended

	mu       sync.Mutex
	events   []fsnotify.Event
	overflow bool
	err      error
}

func openInotify(w *watcher) (*inotify, error) {
	// Tried without fsnotify, so that New needs no goroutine.
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return nil, instanceError(err)
	}
	_ = unix.Close(fd)
	return &inotify{watcher: w, again: stoppedTimer()}, nil
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// instanceError says what to do when inotify_init1(2) refuses.
func instanceError(err error) error {
	if !errors.Is(err, unix.EMFILE) {
		return fmt.Errorf("inotify_init1: %w", err)
	}
	name, have := sysctl("fs.inotify.max_user_instances", "user.max_inotify_instances")
	return fmt.Errorf("inotify_init1: %w\nhint: raise the sysctl %s, which is %d for all processes of this user, or this process's limit of open files", err, name, have)
}

// watchLimit returns the sysctl that limits watches, and its value.
func watchLimit() (string, int) {
	return sysctl("fs.inotify.max_user_watches", "user.max_inotify_watches")
}

// sysctl returns the lower of a limit of the machine and the same limit of the user namespace (namespaces(7),
// /proc/sys/user). The value is 0 if neither can be read.
func sysctl(machine, namespace string) (string, int) {
	name, have := machine, math.MaxInt
	for _, s := range []string{machine, namespace} {
		data, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(s, ".", "/"))
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && n < have {
			name, have = s, n
		}
	}
	if have == math.MaxInt {
		have = 0
	}
	return name, have
}

func (s *inotify) close() {}

func (s *inotify) run(ctx context.Context) error {
	s.poll = newPoller(s.tune.pollEvery, s.tune.raceTime)
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		s.end()
		s.poll.stop()
		s.again.Stop()
	}()
	if err := s.begin(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(s.tune.rootEvery)
	defer tick.Stop()
	for {
		s.endWalk()
		s.flush()
		s.publish()
		var todo chan<- string
		var next string
		if n := len(s.walk.stack); n > 0 {
			todo, next = s.walk.todo, s.walk.stack[n-1]
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.inbox.wake:
			err = s.drain(ctx)
		case todo <- next:
			s.walk.stack = s.walk.stack[:len(s.walk.stack)-1]
			s.walk.out++
		case l := <-s.walk.listed:
			s.walk.out--
			s.walked(l)
		case <-s.excludeSet:
			err = s.applyExclude(ctx)
		case all := <-s.poll.results:
			s.polled(ctx, all)
		case <-s.poll.timer.C:
			s.poll.start(ctx, s.base, s.exclude)
		case <-s.again.C:
			err = s.restart(ctx)
		case <-tick.C:
			err = s.tick(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// begin opens the kernel's queue and starts to walk the tree.
func (s *inotify) begin(ctx context.Context) error {
	kernel, err := fsnotify.NewBufferedWatcher(readAhead)
	if err != nil {
		return instanceError(err)
	}
	s.kernel = kernel
	s.inbox = &inbox{max: s.tune.maxPending, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go s.inbox.read(kernel, s.tune.stall)
	s.dirs = newDirSet()
	s.unreadable = map[string]struct{}{}
	s.hidden = map[uint32]struct{}{}
	s.overflowed, s.rootMoved = false, false
	s.again.Stop()
	s.poll.clear()
	if s.opts.CookieDir != "" {
		// Before the tree: under a watch limit it is the one watch that must not be missing.
		s.cookieLost = s.kernel.Add(s.opts.CookieDir) != nil
	}
	if s.watch(s.root.path) == 0 && len(s.poll.tops) == 0 {
		err := fmt.Errorf("%w: it cannot be read", ErrRootLost)
		if lost := s.checkRoot(); lost != nil {
			err = lost
		}
		return err
	}
	for path := range s.mounts.below {
		s.pollMountedFile(path)
	}
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
	if s.dirs.len > 0 {
		s.walk.stack = append(s.walk.stack, s.root.path)
	}
	return nil
}

// end closes the kernel's queue and waits for the goroutines of begin.
func (s *inotify) end() {
	s.stopWalk()
	if s.kernel != nil {
		_ = s.kernel.Close()
		<-s.inbox.done
		s.kernel = nil
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

// restart begins again with nothing known. After lost events that is the only sure way: a watch may have been
// moved or removed without our knowing. What happens meanwhile is covered by the Tree event at the end of the walk.
func (s *inotify) restart(ctx context.Context) error {
	s.recovering = s.recovering || s.overflowed
	s.end()
	return s.begin(ctx)
}

// read moves events from fsnotify into the inbox until kernel is closed.
func (b *inbox) read(kernel *fsnotify.Watcher, stall func()) {
	defer close(b.done)
	for {
		if stall != nil {
			stall()
		}
		select {
		case ev, ok := <-kernel.Events:
			if !ok {
				return
			}
			b.mu.Lock()
			if len(b.events) < b.max {
				b.events = append(b.events, ev)
			} else {
				b.events, b.overflow = nil, true
			}
			b.mu.Unlock()
		case err, ok := <-kernel.Errors:
			if !ok {
				return
			}
			if err == unix.EINVAL {
				// From inotify_rm_watch, which fsnotify calls when it reads that a directory has moved, and
				// which was deleted since. An error of reading is an *fs.PathError.
				continue
			}
			b.mu.Lock()
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				b.overflow = true
			} else if b.err == nil {
				b.err = fmt.Errorf("inotify: %w", err)
			}
			b.mu.Unlock()
		}
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// take exchanges the events read so far for an empty buffer.
func (b *inbox) take(buffer []fsnotify.Event) (events []fsnotify.Event, overflow bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	events, overflow, err = b.events, b.overflow, b.err
	b.events, b.overflow = buffer[:0], false
	return events, overflow, err
}

// drain works on what the reader has read.
func (s *inotify) drain(ctx context.Context) error {
	events, overflow, err := s.inbox.take(s.buffer)
	if err != nil {
		return err
	}
	for i := range events {
		s.handle(ctx, &events[i])
		if i%1024 == 1023 {
			s.flush()
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	clear(events) // or the paths in it stay in memory
	if s.buffer = events; cap(events) > keepPending {
		s.buffer = nil
	}
	if s.rootMoved {
		s.rootMoved = false
		if err := s.checkRoot(); err != nil {
			return err
		}
	}
	if overflow && !s.overflowed {
		s.overflowed = true
		if !s.walk.active {
			s.beginAgain()
		}
	}
	return nil
}

// beginAgain makes a restart due: at once, but if the last walk is not long ago, so much later that a storm of
// events does not keep us walking all the time.
func (s *inotify) beginAgain() {
	pause := max(4*s.walk.took, s.tune.rootEvery)
	s.again.Reset(max(0, time.Until(s.walk.ended.Add(pause))))
}

func (s *inotify) handle(ctx context.Context, ev *fsnotify.Event) {
	name := ev.Name
	if dir := s.opts.CookieDir; dir != "" {
		if rest, ok := strings.CutPrefix(name, dir); ok && (rest == "" || rest[0] == '/') {
			switch {
			case rest != "" && (ev.Has(fsnotify.Create) || ev.Has(fsnotify.Chmod)):
				s.cookie(rest[1:])
			case rest == "" && (ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename)):
				s.cookieLost = true
			}
			return
		}
	}
	rel, ok := s.rel(name)
	if !ok {
		return
	}
	op := eventOp(ev.Op)
	switch {
	case rel == "":
		if op&Delete != 0 {
			s.rootMoved = true
			return
		}
		s.emit(Event{Op: op, Dir: true})
	case op&(Create|Delete) != 0:
		s.settle(ctx, name, rel, op)
	default:
		if op&Attrib != 0 && len(s.unreadable) > 0 {
			s.retryUnreadable(ctx, name)
		}
		dir := s.dirs.get(name) != 0
		if !s.excluded(name, rel, dir) {
			s.emit(Event{Path: rel, Op: op, Dir: dir})
		}
	}
}

func eventOp(op fsnotify.Op) (o Op) {
	if op.Has(fsnotify.Create) {
		o |= Create
	}
	if op.Has(fsnotify.Write) {
		o |= Modify
	}
	if op.Has(fsnotify.Chmod) {
		o |= Attrib
	}
	if op.Has(fsnotify.Remove) {
		o |= Delete
	}
	if op.Has(fsnotify.Rename) { // IN_MOVED_FROM, IN_MOVE_SELF; what has moved in is told as a Create
		o |= Delete | Move
	}
	return o
}

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
	if err != nil && !was && len(s.hidden) > 0 {
		h := s.dirs.hashPath(path)
		if _, ok := s.hidden[h]; ok && s.excluded(path, rel, true) {
			delete(s.hidden, h)
			return
		}
	}
	if !s.excluded(path, rel, was) {
		s.emit(Event{Path: rel, Op: op, Dir: was})
	}
}

// hide remembers an excluded directory if its name alone would not tell that it is excluded: when it goes, nobody
// says that it was a directory.
func (s *inotify) hide(path, rel string) {
	if !s.exclude.Match(rel, false) {
		s.hidden[s.dirs.hashPath(path)] = struct{}{}
	}
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
					report(Event{Path: rel, Op: Create})
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
	s.dirs.removeTree(id, func(path string) {
		// The kernel has removed it already if the directory is gone.
		if s.kernel.Remove(path) == nil {
			if s.dropped++; s.dropped%dropPace == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
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
			s.hide(child, rel)
			continue
		}
		if s.watch(child) != 0 {
			s.walk.stack = append(s.walk.stack, child)
		}
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
	case s.recovering:
		s.fault(ErrOverflow, s.wholeTree())
	case s.including:
		s.emit(s.wholeTree())
	}
	s.recovering, s.including = false, false
	s.reportLimit(s.poll.counts[pollLimit], s.dirs.len)
	s.pokeCookies()
	if s.overflowed {
		s.beginAgain()
	}
	s.release()
}

// tick looks for what has no event.
func (s *inotify) tick(ctx context.Context) error {
	if err := s.checkRoot(); err != nil {
		return err
	}
	if s.mounts.changed() {
		for _, path := range s.mounts.update(s.root.path) {
			s.remounted(ctx, path)
		}
		s.findBlindness()
	}
	if s.cookieLost && s.kernel.Add(s.opts.CookieDir) == nil {
		s.cookieLost = false
		s.pokeCookies()
	}
	return nil
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

// polled reports what a scan has found, and tries to watch what had no watch.
func (s *inotify) polled(ctx context.Context, all []pollResult) {
	for _, path := range s.poll.finish(all) {
		if rel, ok := s.rel(path); ok {
			s.emit(Event{Path: rel, Op: Rescan, Dir: true, Tree: true})
		}
	}
	for path, t := range s.poll.tops {
		if t.kind == pollAlways || ctx.Err() != nil {
			continue
		}
		var err error
		if s.dirs.get(path) == 0 {
			if err = s.add(path); err == nil {
				_ = s.kernel.Remove(path)
			}
		}
		switch {
		case err == nil:
			s.poll.delete(path, t)
			if rel, ok := s.rel(path); ok {
				s.grow(ctx, path, rel, Rescan, true)
			}
		case gone(err):
			s.poll.delete(path, t)
		case t.kind == pollLimit:
			// The limit is still reached: the others would fail too.
			s.afterPoll()
			return
		}
	}
	s.afterPoll()
}

func (s *inotify) afterPoll() {
	s.publish() // before it is told
	if !s.walk.active {
		s.reportLimit(s.poll.counts[pollLimit], s.dirs.len)
	}
	s.release()
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

// cookie reports a file in the cookie directory, after all that happened before it.
func (s *inotify) cookie(name string) {
	s.cookies = append(s.cookies, heldCookie{name: name})
	s.release()
}

// release reports the cookies that need wait no longer.
func (s *inotify) release() {
	for len(s.cookies) > 0 && !s.walk.active && !s.overflowed {
		if !s.poll.passed(&s.cookies[0]) {
			return
		}
		s.emit(Event{Cookie: s.cookies[0].name})
		s.cookies = s.cookies[1:]
	}
}

// publish makes the numbers of Info true.
func (s *inotify) publish() {
	n := counts{s.dirs.len, s.poll.dirs(), len(s.unreadable)}
	if n != s.published {
		s.published = n
		s.setInfo(func(i *Info) { i.Directories, i.Unwatched, i.Unreadable = n.dirs, n.unwatched, n.unreadable })
	}
}
