// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// New opens the backend that o asks for. Nothing is watched before Run.
func New(o Options) (Watcher, error) {
	if !filepath.IsAbs(o.Root) {
		return nil, fmt.Errorf("watch %q: not an absolute path", o.Root)
	}
	w := &inotify{
		opts:    o,
		root:    filepath.Clean(o.Root),
		reports: make(chan Report),
		ready:   make(chan struct{}),
		exclude: make(chan *Exclude, 1),
		dirs:    map[string]struct{}{},
	}
	return w, nil
}

type inotify struct {
	opts    Options
	root    string
	reports chan Report
	ready   chan struct{}
	exclude chan *Exclude

	mu   sync.Mutex
	dirs map[string]struct{}

	fs  *fsnotify.Watcher
	out []Event
}

func (w *inotify) Reports() <-chan Report { return w.reports }
func (w *inotify) Ready() <-chan struct{} { return w.ready }

func (w *inotify) Info() Info {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Info{Backend: "inotify", Directories: len(w.dirs)}
}

func (w *inotify) SetExclude(e *Exclude) {
	select {
	case <-w.exclude:
	default:
	}
	w.exclude <- e
}

func (w *inotify) Run(ctx context.Context) error {
	defer close(w.reports)
	fs, err := fsnotify.NewBufferedWatcher(4096)
	if err != nil {
		return err
	}
	defer fs.Close()
	w.fs = fs
	if w.opts.CookieDir != "" {
		if err := fs.Add(w.opts.CookieDir); err != nil {
			return err
		}
	}
	if err := w.add(""); err != nil {
		return err
	}
	close(w.ready)
	for {
		var send chan Report
		if len(w.out) > 0 {
			send = w.reports
		}
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.exclude:
			w.opts.Exclude = e
			w.out = append(w.out, Event{Op: Rescan, Dir: true, Tree: true})
		case send <- Report{Events: w.out}:
			w.out = nil
		case err := <-fs.Errors:
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				_ = w.add("")
				select {
				case <-ctx.Done():
					return nil
				case w.reports <- Report{Events: []Event{{Op: Rescan, Dir: true, Tree: true}}, Fault: ErrOverflow}:
				}
				continue
			}
			return err
		case ev := <-fs.Events:
			w.handle(ev)
		}
	}
}

func (w *inotify) handle(ev fsnotify.Event) {
	if w.opts.CookieDir != "" && filepath.Dir(ev.Name) == filepath.Clean(w.opts.CookieDir) {
		if ev.Has(fsnotify.Create) {
			w.out = append(w.out, Event{Cookie: filepath.Base(ev.Name)})
		}
		return
	}
	path, ok := strings.CutPrefix(ev.Name, w.root)
	if !ok {
		return
	}
	path = strings.TrimPrefix(path, "/")
	e := Event{Path: path}
	w.mu.Lock()
	_, e.Dir = w.dirs[path]
	w.mu.Unlock()
	if ev.Has(fsnotify.Create) {
		e.Op |= Create
		if fi, err := os.Lstat(ev.Name); err == nil && fi.IsDir() {
			_ = w.add(path)
			e.Dir, e.Tree = true, true
		}
	}
	if ev.Has(fsnotify.Write) {
		e.Op |= Modify
	}
	if ev.Has(fsnotify.Chmod) {
		e.Op |= Attrib
	}
	if ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename) {
		e.Op |= Delete
		if ev.Has(fsnotify.Rename) {
			e.Op |= Move
		}
		if e.Dir {
			w.drop(path)
		}
	}
	if w.opts.Exclude.Match(path, e.Dir) {
		return
	}
	w.out = append(w.out, e)
}

func (w *inotify) drop(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for d := range w.dirs {
		if d == path || strings.HasPrefix(d, path+"/") {
			_ = w.fs.Remove(filepath.Join(w.root, d))
			delete(w.dirs, d)
		}
	}
}

// add watches path, then lists it: what was made between the two has an event or is found by the listing.
func (w *inotify) add(path string) error {
	if w.opts.Exclude.Match(path, true) {
		return nil
	}
	if err := w.fs.Add(filepath.Join(w.root, path)); err != nil {
		if path != "" && (os.IsNotExist(err) || os.IsPermission(err)) {
			return nil
		}
		return err
	}
	w.mu.Lock()
	w.dirs[path] = struct{}{}
	n := len(w.dirs)
	w.mu.Unlock()
	if w.opts.Progress != nil {
		w.opts.Progress(n)
	}
	entries, err := os.ReadDir(filepath.Join(w.root, path))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := w.add(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
