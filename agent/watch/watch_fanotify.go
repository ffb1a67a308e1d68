// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// errFilesystem says that it is the filesystem that cannot do what fanotify needs.
var errFilesystem = errors.New("the filesystem cannot be watched by fanotify")

const (
	fanMask = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO |
		unix.FAN_MODIFY | unix.FAN_CLOSE_WRITE | unix.FAN_ATTRIB | unix.FAN_ONDIR
	fanCookieMask = unix.FAN_CREATE | unix.FAN_MOVED_TO | unix.FAN_ATTRIB | unix.FAN_EVENT_ON_CHILD
	// fanBuffer holds about a thousand events. There are two, so that the kernel is read while one is worked on.
	fanBuffer = 64 << 10
)

// fanotify watches whole filesystems with one mark each, so nothing depends on the size of the tree, and there
// is no race with new directories. Every event names its directory by a handle, which is opened to learn
// where the directory is now (CAP_DAC_READ_SEARCH). Events of all of the filesystem arrive (CAP_SYS_ADMIN); what
// lies outside the root is dropped by its cached handle.
//
// A directory's path is the current one, not that of the time of the event. Both are covered: for a
// rename between the two has events of its own, of both names.
//
// It belongs to the goroutine of Run, which reads through a goroutine of its own. That one waits in poll(2), not in the
// runtime's poller: there, each single event would wake up a thread, although nobody is to look before Gather is over.
type fanotify struct {
	*watcher
	fd     int
	end    int               // eventfd(2) that ends the reader
	marked map[string]string // fsid of each marked mount, by its path: the root and what is mounted below it
	cookie string            // identity of the cookie directory
	cache  dirCache
	open   map[string]int // descriptors of mounts, for one buffer of events: longer, and they could not be unmounted
	poll   *poller        // what is mounted below the root and cannot be marked
	held   cookies

	moved  bool // something happened that may have been the root's renaming or removal
	failed bool // a handle could not be opened for want of memory or the like
}

func openFanotify(w *watcher) (*fanotify, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_DFID_NAME|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|
		unix.FAN_UNLIMITED_QUEUE|unix.FAN_UNLIMITED_MARKS, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("fanotify_init: %w: it needs CAP_SYS_ADMIN", err)
	case errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("fanotify_init: %w: this kernel does not report names; it needs 5.9", err)
	case errors.Is(err, unix.EMFILE):
		name, have := sysctl("fs.fanotify.max_user_groups", "user.max_fanotify_groups")
		return nil, fmt.Errorf("fanotify_init: %w\nhint: raise the sysctl %s, which is %d for all processes of this user, or this process's limit of open files", err, name, have)
	case err != nil:
		return nil, fmt.Errorf("fanotify_init: %w", err)
	}
	f := &fanotify{watcher: w, fd: fd, end: -1, marked: map[string]string{}, open: map[string]int{}}
	if err := f.prepare(); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// prepare marks the filesystem of the root and the cookie directory, and tries what every event will need.
func (f *fanotify) prepare() error {
	if err := f.mark(f.root.path); err != nil {
		return err
	}
	if err := f.markCookies(); err != nil {
		return err
	}
	dir, err := fanDir(f.root.path)
	if err != nil {
		return fmt.Errorf("%w: %w", errFilesystem, err)
	}
	defer f.closeMounts()
	path, err := f.resolveAt(f.root.path, dir)
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("open_by_handle_at: %w: it needs CAP_DAC_READ_SEARCH", err)
	case err != nil:
		return fmt.Errorf("%w: open_by_handle_at: %w", errFilesystem, err)
	case path != f.root.path:
		return fmt.Errorf("%w: the handle of %s leads to %s", errFilesystem, f.root.path, path)
	}
	return nil
}

// mark marks the filesystem that is mounted at path.
func (f *fanotify) mark(path string) error {
	fsid, err := fsidOf(path)
	if err != nil {
		return err
	}
	err = unix.FanotifyMark(f.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, fanMask, unix.AT_FDCWD, path)
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("fanotify_mark %s: %w: it needs CAP_SYS_ADMIN", path, err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL):
		// No fsid; no file handles; a btrfs subvolume; an older kernel and one of these.
		return fmt.Errorf("%w: fanotify_mark %s: %w", errFilesystem, path, err)
	case err != nil:
		return fmt.Errorf("fanotify_mark %s: %w", path, err)
	}
	f.marked[path] = fsid
	return nil
}

func (f *fanotify) markCookies() error {
	path := f.opts.CookieDir
	if path == "" {
		return nil
	}
	if err := unix.FanotifyMark(f.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_ONLYDIR, fanCookieMask, unix.AT_FDCWD, path); err != nil {
		return fmt.Errorf("%w: fanotify_mark %s: %w", errFilesystem, path, err)
	}
	dir, err := fanDir(path)
	if err != nil {
		return fmt.Errorf("%w: %w", errFilesystem, err)
	}
	f.cookie = dir
	return nil
}

// markMounts marks what is mounted below the root, or has it polled.
func (f *fanotify) markMounts() {
	for path := range f.marked {
		if path != f.root.path {
			delete(f.marked, path)
		}
	}
	f.cache.clear()
	f.poll.clear()
	for path := range f.mounts.below {
		if rel, ok := f.rel(path); !ok || f.exclude.Match(rel, true) {
			continue
		}
		// The events of a file that is mounted name the directory it has in its own filesystem.
		if st, err := lstat(path); err == nil && !isDir(&st) || f.mark(path) != nil {
			f.poll.add(path, pollAlways)
		}
	}
}

func (f *fanotify) close() {
	for _, fd := range []*int{&f.fd, &f.end} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
}

func (f *fanotify) run(ctx context.Context) error {
	var err error
	if f.end, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	f.poll = newPoller(f.tune.pollEvery, f.tune.raceTime)
	ctx, cancel := context.WithCancel(ctx)
	full, empty := make(chan []byte), make(chan []byte, 2)
	readErr := make(chan error, 1)
	done := make(chan struct{})
	for range cap(empty) {
		empty <- make([]byte, fanBuffer)
	}
	go func() {
		defer close(done)
		readErr <- f.read(ctx, full, empty)
	}()
	defer func() {
		cancel()
		_, _ = unix.Write(f.end, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // it cannot fail before it was written 2^64-2 times
		<-done
		f.close()
		f.poll.stop()
	}()
	f.markMounts()
	// The marks were there before anyone was told of this watch, so nothing is missing.
	f.attached()
	f.pokeCookies()
	tick := time.NewTicker(f.tune.rootEvery)
	defer tick.Stop()
	for {
		f.flush()
		f.publish()
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case buf := <-full:
			err = f.handleAll(buf)
			empty <- buf[:fanBuffer]
		case err = <-readErr:
		case <-f.excludeSet:
			f.applyExclude()
		case all := <-f.poll.results:
			for _, path := range f.poll.finish(all) {
				if rel, ok := f.rel(path); ok {
					f.emit(Event{Path: rel, Op: Rescan, Dir: true, Tree: true})
				}
			}
			f.held.release(f.poll, f.emit)
		case <-f.poll.timer.C:
			f.poll.start(ctx, f.base, f.exclude)
		case <-tick.C:
			err = f.tick()
		}
		if err != nil {
			return err
		}
	}
}

// read hands over buffers of events until ctx ends.
func (f *fanotify) read(ctx context.Context, full chan<- []byte, empty <-chan []byte) error {
	more := false // the buffer before was full
	gather := stoppedTimer()
	defer gather.Stop()
	for {
		if f.tune.stall != nil {
			f.tune.stall()
		}
		var buf []byte
		select {
		case <-ctx.Done():
			return ctx.Err()
		case buf = <-empty:
		}
		if !more {
			if err := f.wait(ctx, gather); err != nil {
				return err
			}
		}
		n := 0
		for {
			got, err := unix.Read(f.fd, buf[n:])
			if errors.Is(err, unix.EINTR) {
				continue
			}
			// EINVAL: the next event does not fit into what is left of the buffer.
			if more = n > 0 && errors.Is(err, unix.EINVAL); more || errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				return fmt.Errorf("fanotify: %w", err)
			}
			n += got
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case full <- buf[:n]:
		}
	}
}

// wait returns when there are events, and some time was given to others to come.
func (f *fanotify) wait(ctx context.Context, gather *time.Timer) error {
	fds := []unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLIN}, {Fd: int32(f.end), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("fanotify: poll: %w", err)
		}
	}
	if f.opts.Gather == 0 {
		return ctx.Err()
	}
	gather.Reset(f.opts.Gather)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-gather.C:
		return nil
	}
}

// handleAll works on a buffer of events.
func (f *fanotify) handleAll(buf []byte) error {
	defer f.closeMounts()
	for len(buf) > 0 {
		e, rest, err := nextFanEvent(buf)
		if err != nil {
			return err
		}
		if err := f.handle(e); err != nil {
			return err
		}
		buf = rest
	}
	if f.moved {
		f.moved = false
		return f.checkRoot()
	}
	return nil
}

func (f *fanotify) handle(e fanEvent) error {
	if e.mask&unix.FAN_Q_OVERFLOW != 0 {
		f.overflow()
		return nil
	}
	if f.cookie != "" && string(e.dir) == f.cookie {
		if e.mask&(unix.FAN_CREATE|unix.FAN_MOVED_TO|unix.FAN_ATTRIB) != 0 && e.mask&unix.FAN_ONDIR == 0 && len(e.name) > 0 {
			if err := f.look(); err != nil {
				return err // the kernel tells of the file again when there is a root: see pokeCookies
			}
			f.held.hold(string(e.name))
			f.held.release(f.poll, f.emit)
		}
		return nil
	}
	if len(e.dir) == 0 {
		return nil // of an object that is no longer in any directory
	}
	isDir := e.mask&unix.FAN_ONDIR != 0
	op := fanOp(e.mask)
	d := f.lookup(e.dir)
	// A directory that comes or goes may change where others are, if it is one that we know.
	if isDir && e.mask&(unix.FAN_MOVED_FROM|unix.FAN_MOVED_TO) != 0 && !d.outside {
		f.cache.clear()
	}
	if d.outside {
		if isDir && op&Delete != 0 && string(e.name) == filepath.Base(f.root.path) {
			f.moved = true
		}
		return nil
	}
	f.report(d.rel, d.tooLong, e, op, isDir)
	for _, rel := range d.more {
		f.report(rel, d.tooLong, e, op, isDir)
	}
	return nil
}

// report emits an event of the directory rel, which is not excluded itself.
func (f *fanotify) report(rel string, tooLong bool, e fanEvent, op Op, isDir bool) {
	switch {
	case tooLong:
		f.emit(Event{Path: rel, Op: Rescan, Dir: true, Tree: true})
		return
	case len(e.name) == 0 || string(e.name) == ".":
		f.emit(Event{Path: rel, Op: op, Dir: true})
		return
	case rel == "":
		rel = string(e.name)
	default:
		rel = rel + "/" + string(e.name)
	}
	if !f.exclude.entry(rel, isDir) {
		f.emit(Event{Path: rel, Op: op, Dir: isDir, Tree: isDir && e.mask&unix.FAN_MOVED_TO != 0})
	}
}

func fanOp(mask uint64) (op Op) {
	if mask&(unix.FAN_CREATE|unix.FAN_MOVED_TO) != 0 {
		op |= Create
	}
	if mask&(unix.FAN_MODIFY|unix.FAN_CLOSE_WRITE) != 0 {
		op |= Modify
	}
	if mask&unix.FAN_ATTRIB != 0 {
		op |= Attrib
	}
	if mask&(unix.FAN_DELETE|unix.FAN_MOVED_FROM) != 0 {
		op |= Delete
	}
	if mask&(unix.FAN_MOVED_FROM|unix.FAN_MOVED_TO) != 0 {
		op |= Move
	}
	return op
}

// overflow reports lost events. Renames may have been among them.
func (f *fanotify) overflow() {
	f.cache.clear()
	f.fault(ErrOverflow, f.wholeTree())
}

// look finds what has no event, or had one that told nothing. It is called now and then, and before a cookie is passed on.
func (f *fanotify) look() error {
	if err := f.checkRoot(); err != nil {
		return err
	}
	if err := f.watchMounts(); err != nil {
		return err
	}
	if f.failed {
		f.failed = false
		f.overflow()
	}
	return nil
}

func (f *fanotify) tick() error {
	if err := f.look(); err != nil {
		return err
	}
	if path := f.opts.CookieDir; path != "" {
		if dir, err := fanDir(path); err == nil && dir != f.cookie && f.markCookies() == nil {
			f.pokeCookies()
		}
	}
	return nil
}

// watchMounts marks what was mounted, and reports it and what was unmounted.
func (f *fanotify) watchMounts() error {
	paths, err := f.lookAtMounts()
	if len(paths) == 0 {
		return err
	}
	f.closeMounts() // they lead to what was mounted before
	f.markMounts()
	for _, path := range paths {
		if rel, ok := f.rel(path); ok && !f.exclude.Match(rel, true) {
			f.emit(Event{Path: rel, Op: Rescan, Dir: true, Tree: true})
		}
	}
	return nil
}

func (f *fanotify) applyExclude() {
	old := f.exclude
	f.exclude = f.takeExclude()
	f.markMounts()
	if f.exclude.includesMoreThan(old) {
		f.emit(f.wholeTree())
	}
	f.applied.Add(1)
}

func (f *fanotify) publish() {
	if n := (counts{unwatched: f.poll.dirs()}); n != f.published {
		f.published = n
		f.setInfo(func(i *Info) { i.Unwatched = n.unwatched })
	}
}
