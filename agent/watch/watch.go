// SPDX-License-Identifier: Apache-2.0

// Package watch turns kernel notifications into events below one directory.
//
// A [Watcher] is live before it says so, closes the race of directories made and filled at once, and
// never loses a change silently: what the kernel could not tell is told as an event that stands for a
// whole subtree. It leaves coalescing to queue and knows nothing of rsync, except its exclude language.
package watch

import (
	"context"
	"errors"
	"fmt"
)

// Op is the set of things that happened to a path.
type Op uint8

const (
	Create Op = 1 << iota // IN_CREATE, IN_MOVED_TO; FAN_CREATE, FAN_MOVED_TO
	Modify                // IN_MODIFY, IN_CLOSE_WRITE; FAN_MODIFY, FAN_CLOSE_WRITE
	Attrib                // IN_ATTRIB; FAN_ATTRIB
	Delete                // IN_DELETE, IN_MOVED_FROM; FAN_DELETE, FAN_MOVED_FROM
	Move                  // set beside Create or Delete when a rename caused it
	Rescan                // nothing known: overflow, new tree, lost watch
)

// Event says that something happened to a path. It is a reason to look, not a description of what is there.
type Event struct {
	Path string // relative to the root, slash-separated, no "./"; "" is the root itself. Raw bytes, maybe not UTF-8
	Op   Op
	Dir  bool // the kernel said that the subject is (was) a directory
	Tree bool // everything below Path may have changed too
	// Cookie is set, and the rest empty, for a file made in Options.CookieDir: its name.
	// It proves that every event from before the file was made has been delivered.
	Cookie string
}

// Report is one delivery of a Watcher: events in the order of the kernel's queue, and at most one fault.
type Report struct {
	Events []Event
	// Fault is what made the watch weaker: ErrOverflow (momentary; Events then has a Tree event for what was lost),
	// a *LimitError or ErrRootLost (both stand until a Report with Restored set).
	Fault    error
	Restored bool // the standing fault has ended
}

// ErrOverflow is reported when the kernel dropped events (inotify(7) IN_Q_OVERFLOW, fanotify(7) FAN_Q_OVERFLOW).
var ErrOverflow = errors.New("kernel event queue overflow")

// ErrRootLost is reported when the root was deleted, unmounted, renamed or replaced. The watcher keeps looking for it.
var ErrRootLost = errors.New("watched directory is gone")

// LimitError is reported when a kernel limit keeps directories from being watched. They are rescanned at
// intervals instead.
type LimitError struct {
	Sysctl    string // fs.inotify.max_user_watches
	Have      int    // its value
	Need      int    // what would be enough
	Unwatched int    // directories without a watch
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%d directories are not watched: %s is %d, needs %d", e.Unwatched, e.Sysctl, e.Have, e.Need)
}

// Options configures a Watcher.
type Options struct {
	Root      string   // absolute path of the directory
	Backend   string   // auto, fanotify, inotify
	Exclude   *Exclude // directories it matches are not watched and paths it matches not reported; nil matches nothing
	CookieDir string   // watched by the same kernel queue, for Event.Cookie; "" = none
	// Progress, if set, is called now and then during the first walk with the directories watched so far.
	Progress func(dirs int)
}

// Info tells how a Watcher watches.
type Info struct {
	Backend     string // fanotify or inotify
	Reason      string // why not fanotify, when Backend was auto
	Directories int    // watched directories (inotify), 0 with fanotify
}

// Watcher watches one directory tree.
//
// The caller runs Run in a goroutine of its own and drains Reports until Run has returned; Run closes
// Reports. Ready is closed once every directory that existed at the start is watched; events flow before that.
type Watcher interface {
	Run(ctx context.Context) error
	Reports() <-chan Report
	Ready() <-chan struct{}
	Info() Info
	// SetExclude replaces the excludes. What is no longer excluded is reported as a Tree event.
	SetExclude(*Exclude)
}
