// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tuning is what tests vary.
type tuning struct {
	rootEvery  time.Duration // how often to look whether the root is still there: a mount over it has no event
	pollEvery  time.Duration
	raceTime   time.Duration
	maxPending int // events read from the kernel and not worked on yet
	maxHeld    int // events worked on and not taken by the consumer yet
	// unique is false where mounts are told from each other by numbers that are given out again, as on kernels before 6.8.
	unique bool
	// add stands before each inotify_add_watch(2) and may refuse in its place.
	add func(path string) error
	// handle stands before each open_by_handle_at(2) and may refuse in its place.
	handle func() error
	// stall is called before each read of the reader.
	stall func()
}

func defaultTuning() tuning {
	return tuning{rootEvery: time.Second, pollEvery: pollEvery, raceTime: raceTime, maxPending: maxPending, maxHeld: maxHeld, unique: true}
}

// watcher is what both backends have in common: the root that may come and go, the excludes, and the way out
// for events. All but out, mu and what it guards belongs to the goroutine of Run.
type watcher struct {
	opts    Options
	tune    tuning
	out     *outbox
	reports chan Report
	ready   chan struct{}

	exclude   *Exclude
	batch     []Event
	root      rootDir
	base      string // root.path with a slash
	mounts    *mountTable
	lost      bool // ErrRootLost stands
	isReady   bool
	limit     *LimitError // the one that stands, as it was last reported
	published counts      // in info

	excludeSet chan struct{} // holds one token while nextExclude waits
	applied    atomic.Int64  // how often excludes were replaced; for tests

	mu          sync.Mutex
	info        Info
	nextExclude *Exclude
}

type counts struct{ dirs, unwatched, unreadable int }

// backend is one of the kernel's interfaces, opened for one root. run ends with ErrRootLost when that root is
// no longer at its path; what it started has then ended too.
type backend interface {
	run(ctx context.Context) error
	close()
}

// New checks o and finds out which backend can watch the root. It starts nothing and keeps nothing open.
func New(o Options) (Watcher, error) { return newWatcher(o, defaultTuning()) }

func newWatcher(o Options, t tuning) (*watcher, error) {
	if !filepath.IsAbs(o.Root) {
		return nil, fmt.Errorf("watch %q: not an absolute path", o.Root)
	}
	w := &watcher{
		opts:       o,
		tune:       t,
		out:        newOutbox(t.maxHeld),
		reports:    make(chan Report),
		ready:      make(chan struct{}),
		exclude:    o.Exclude,
		excludeSet: make(chan struct{}, 1),
	}
	w.opts.Root = filepath.Clean(o.Root)
	switch o.Backend {
	case "", "auto", "inotify", "fanotify":
	default:
		return nil, fmt.Errorf("watch %q: unknown backend %q; want auto, fanotify or inotify", o.Root, o.Backend)
	}
	if o.CookieDir != "" {
		dir, err := filepath.EvalSymlinks(o.CookieDir)
		if err != nil {
			return nil, fmt.Errorf("watch: cookie directory: %w", err)
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, fmt.Errorf("watch: cookie directory: %w", err)
		}
		w.opts.CookieDir = dir
	}
	if w.opts.CookieDir == w.opts.Root {
		return nil, fmt.Errorf("watch %q: it cannot be the cookie directory, too", o.Root)
	}
	if err := w.find(); err != nil {
		return w, nil //nolint:nilerr // the root may come later: Run reports it
	}
	b, err := w.open()
	if err != nil {
		return nil, err
	}
	b.close()
	return w, nil
}

func (w *watcher) Reports() <-chan Report { return w.reports }
func (w *watcher) Ready() <-chan struct{} { return w.ready }

func (w *watcher) Info() Info {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.info
}

func (w *watcher) SetExclude(e *Exclude) {
	w.mu.Lock()
	w.nextExclude = e
	w.mu.Unlock()
	select {
	case w.excludeSet <- struct{}{}:
	default:
	}
}

// takeExclude returns what SetExclude was last called with.
func (w *watcher) takeExclude() *Exclude {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nextExclude
}

func (w *watcher) setInfo(f func(*Info)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.info)
}

func (w *watcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		w.out.run(ctx, w.reports)
	}()
	defer func() {
		cancel()
		<-sent
		close(w.reports)
	}()
	// A root that comes and goes quickly must not keep us busy: the first try after a loss is made at once,
	// because something else is often there already, and each further one when the ticker says so.
	tick := time.NewTicker(w.tune.rootEvery)
	defer tick.Stop()
	for {
		err := w.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, ErrRootLost) {
			return err
		}
		for wait := w.lose(err); wait; {
			select {
			case <-ctx.Done():
				return nil
			case <-w.excludeSet:
				w.exclude = w.takeExclude()
				w.applied.Add(1)
			case <-tick.C:
				wait = false
			}
		}
	}
}

// lose reports that the root is lost, once, and tells whether to wait before looking for it again.
func (w *watcher) lose(err error) (wait bool) {
	if w.lost {
		return true
	}
	w.lost, w.limit = true, nil
	w.fault(err)
	return false
}

// session watches the root until it is lost.
func (w *watcher) session(ctx context.Context) error {
	if err := w.find(); err != nil {
		return err
	}
	w.mounts = openMounts(w.root.path)
	defer w.mounts.close()
	b, err := w.open()
	if errors.Is(err, unix.EMFILE) {
		w.mounts.witness.close() // the watch itself has more need of its instance
		b, err = w.open()
	}
	if err != nil {
		if w.checkRoot() != nil {
			return ErrRootLost
		}
		return err
	}
	defer b.close()
	return b.run(ctx)
}

func (w *watcher) find() error {
	root, err := findRoot(w.opts.Root, w.tune.unique)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRootLost, err)
	}
	w.root, w.base = root, withSlash(root.path)
	return nil
}

// open makes the backend that the options ask for.
func (w *watcher) open() (backend, error) {
	info := Info{Backend: "inotify"}
	if w.opts.Backend != "inotify" {
		f, err := openFanotify(w)
		if err == nil {
			info.Backend = "fanotify"
			w.opened(info)
			return f, nil
		}
		if w.opts.Backend == "fanotify" {
			return nil, err
		}
		info.Reason = err.Error()
	}
	in, err := openInotify(w)
	if err != nil {
		return nil, err
	}
	w.opened(info)
	return in, nil
}

func (w *watcher) opened(info Info) {
	w.published = counts{}
	w.setInfo(func(i *Info) { *i = info })
	w.findBlindness()
}

func (w *watcher) findBlindness() {
	var all []string
	if s := blindness(w.root.path); s != "" {
		all = append(all, s)
	}
	var mounts []string
	if w.mounts != nil {
		for path := range w.mounts.below {
			if rel, ok := w.rel(path); ok {
				mounts = append(mounts, rel)
			}
			if s := blindness(path); s != "" {
				all = append(all, s)
			}
		}
	}
	w.setInfo(func(i *Info) { i.Blind, i.Mounts = strings.Join(all, "; "), mounts })
}

// checkRoot returns ErrRootLost if the root's path leads to another directory than the watched one.
func (w *watcher) checkRoot() error {
	id, err := identifyRoot(w.opts.Root, w.tune.unique)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrRootLost, err)
	case id != w.root.id:
		return fmt.Errorf("%w: another directory is at %s", ErrRootLost, w.opts.Root)
	case w.mounts.unmounted():
		return fmt.Errorf("%w: the filesystem at %s was unmounted, and mounted again", ErrRootLost, w.opts.Root)
	}
	return nil
}

// lookAtMounts returns the paths below the root where something was mounted or unmounted since the last look.
func (w *watcher) lookAtMounts() ([]string, error) {
	if !w.mounts.changed() {
		return nil, nil
	}
	if err := w.checkRoot(); err != nil {
		return nil, err
	}
	paths := w.mounts.update()
	if len(paths) > 0 {
		w.findBlindness()
	}
	return paths, nil
}

// attached says that the root is watched completely.
func (w *watcher) attached() {
	if w.lost {
		w.lost = false
		w.flush()
		w.out.put(Report{Restored: true, Events: []Event{w.wholeTree()}})
	}
	if !w.isReady {
		w.isReady = true
		close(w.ready)
	}
}

func (w *watcher) wholeTree() Event { return Event{Op: Rescan, Dir: true, Tree: true} }

// rel returns path relative to the root.
func (w *watcher) rel(path string) (string, bool) {
	if path == w.root.path {
		return "", true
	}
	return strings.CutPrefix(path, w.base)
}

// emit adds an event to those that flush hands out. Events of one path that follow each other become one.
func (w *watcher) emit(e Event) {
	if n := len(w.batch); n > 0 && e.Cookie == "" {
		if last := &w.batch[n-1]; last.Path == e.Path && last.Cookie == "" {
			last.Op |= e.Op
			last.Dir = last.Dir || e.Dir
			last.Tree = last.Tree || e.Tree
			return
		}
	}
	if w.batch == nil {
		w.batch = make([]Event, 0, 16)
	}
	w.batch = append(w.batch, e)
}

func (w *watcher) flush() {
	if len(w.batch) > 0 {
		w.out.put(Report{Events: w.batch})
		w.batch = nil
	}
}

func (w *watcher) fault(err error, events ...Event) {
	w.flush()
	w.out.put(Report{Fault: err, Events: events})
}

// reportLimit says how many directories are polled because of a limit, if that is news.
func (w *watcher) reportLimit(unwatched, watched int) {
	if unwatched == 0 {
		if w.limit != nil {
			w.limit = nil
			w.flush()
			w.out.put(Report{Restored: true})
		}
		return
	}
	name, have := watchLimit()
	// All of the limit is in use, by this process and the others of the user.
	e := &LimitError{Sysctl: name, Have: have, Need: max(have, watched) + unwatched, Unwatched: unwatched}
	if w.limit == nil || *w.limit != *e {
		w.limit = e
		w.fault(e)
	}
}

// gone tells whether an error of a path means that nothing (or no directory any more) is there.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
