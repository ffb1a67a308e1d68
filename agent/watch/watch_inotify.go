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
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	// readAhead lets fsnotify read on while a few events are handed over.
	readAhead = 256
	// keepPending is the largest buffer kept for the next events; one left over from a burst is given back.
	keepPending = 4096
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

	unreadable map[string]struct{}           // EACCES
	hidden     map[dirID]map[string]struct{} // names of directories that are excluded, and would not be if they were files
	cookies    cookies
	cookieLost bool // the cookie directory has no watch
	rootMoved  bool // an event of the root itself: look what is at its path
	dropped    int

	overflowed bool        // events were lost, and again will fire
	recovering bool        // the walk is for lost events: it ends with a Tree event for the root
	including  bool        // the walk is for excludes that exclude less: it ends with a Tree event for the root
	again      *time.Timer // when to begin again after an overflow
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
	gather, gathering := stoppedTimer(), false
	defer gather.Stop()
	for {
		s.endWalk()
		s.flush()
		s.publish()
		var todo chan<- string
		var next string
		if n := len(s.walk.stack); n > 0 {
			todo, next = s.walk.todo, s.walk.stack[n-1]
		}
		wake := s.inbox.wake
		if gathering {
			wake = nil
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
			gathering = true
			gather.Reset(s.opts.Gather)
		case <-gather.C:
			gathering = false
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
	s.hidden = map[dirID]map[string]struct{}{}
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
	s.beginWalk(ctx)
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

// restart begins again with nothing known. After lost events that is the only sure way: a watch may have been
// moved or removed without our knowing. What happens meanwhile is covered by the Tree event at the end of the walk.
func (s *inotify) restart(ctx context.Context) error {
	s.recovering = s.recovering || s.overflowed
	s.end()
	return s.begin(ctx)
}

// drain works on what the reader has read.
func (s *inotify) drain(ctx context.Context) error {
	events, overflow, err := s.inbox.take(s.buffer)
	if err != nil {
		return err
	}
	// First, so that no cookie among the events passes what was lost before it.
	if overflow && !s.overflowed {
		s.overflowed = true
		// The Tree event of a walk that goes on does not stand for what is lost in it. Where that event is awaited, the fault is
		// told behind it; else there is none before that of the next walk.
		if !s.lost && !s.recovering {
			s.fault(ErrOverflow)
			s.including = false
		}
		if !s.walk.active {
			s.beginAgain()
		}
	}
	for i := range events {
		if err := s.handle(ctx, &events[i]); err != nil {
			return err
		}
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
	return nil
}

// beginAgain makes a restart due: at once, but if the last walk is not long ago, so much later that a storm of
// events does not keep us walking all the time.
func (s *inotify) beginAgain() {
	pause := max(4*s.walk.took, s.tune.rootEvery)
	s.again.Reset(max(0, time.Until(s.walk.ended.Add(pause))))
}

func (s *inotify) handle(ctx context.Context, ev *fsnotify.Event) error {
	name := ev.Name
	if dir := s.opts.CookieDir; dir != "" && (name == dir || parentOf(name) == dir && name != s.root.path) {
		switch {
		case name != dir && (ev.Has(fsnotify.Create) || ev.Has(fsnotify.Chmod)):
			return s.cookie(ctx, name[len(dir)+1:])
		case name == dir && (ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename)):
			s.cookieLost = true
		}
		return nil
	}
	rel, ok := s.rel(name)
	if !ok {
		return nil
	}
	op := eventOp(ev.Op)
	switch {
	case rel == "":
		if op&Delete != 0 {
			s.rootMoved = true
			return nil
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
	return nil
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

// look finds what has no event. It is called now and then, and before a cookie is passed on.
func (s *inotify) look(ctx context.Context) error {
	if err := s.checkRoot(); err != nil {
		return err
	}
	return s.watchMounts(ctx)
}

func (s *inotify) tick(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	if s.cookieLost {
		_ = s.kernel.Remove(s.opts.CookieDir)
		if s.kernel.Add(s.opts.CookieDir) == nil {
			s.cookieLost = false
			s.pokeCookies()
		}
	}
	return nil
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

// cookie reports a file in the cookie directory, after all that happened before it.
func (s *inotify) cookie(ctx context.Context, name string) error {
	if err := s.look(ctx); err != nil {
		return err // the kernel tells of the file again when there is a root: see pokeCookies
	}
	s.cookies.hold(name)
	s.release()
	return nil
}

// release reports the cookies that need wait no longer.
func (s *inotify) release() {
	if !s.walk.active && !s.overflowed {
		s.cookies.release(s.poll, s.emit)
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
