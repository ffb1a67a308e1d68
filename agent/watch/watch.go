// SPDX-License-Identifier: Apache-2.0

// Package watch turns kernel notifications into events below one directory.
//
// A [Watcher] is live before it says so, closes the race of directories made and filled at once, and
// never loses a change silently: what the kernel could not tell is told as an event that stands for a
// whole subtree. It leaves coalescing to queue and knows nothing of rsync, except its exclude language.
//
// What no backend can see: writes through mmap(2) before the file is closed, and with inotify not then either, because fsnotify
// leaves IN_CLOSE_WRITE out; changes that another host makes on a network filesystem (see [Info].Blind); and a write to a file
// through another of its hard links.
package watch

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Op is the set of things that happened to a path.
type Op uint8

const (
	Create Op = 1 << iota // IN_CREATE, IN_MOVED_TO; FAN_CREATE, FAN_MOVED_TO
	Modify                // IN_MODIFY; FAN_MODIFY, FAN_CLOSE_WRITE
	Attrib                // IN_ATTRIB; FAN_ATTRIB
	Delete                // IN_DELETE, IN_MOVED_FROM; FAN_DELETE, FAN_MOVED_FROM
	Move                  // set beside Create or Delete when a rename is known to have caused it
	Rescan                // what is gone from here (with Tree: from anywhere below) may have had no event
)

// Event says that something happened to a path. It is a reason to look, not a description of what is there:
// Path is where the kernel or the watcher last knew its subject.
//
// A Delete stands for all that was below Path, even without Dir: of a name that came and went quickly, inotify
// may not tell that it was a directory. If a directory is there again by the time of the look, nothing is known
// about what a mirror has below it.
//
// A Rescan without Tree is the weak form, for a new directory that was filled before it could be watched: what was
// both made and removed in it by then had no event. It matters to a mirror only if it read the directory in that
// time because of an event above it.
type Event struct {
	Path string // relative to the root, slash-separated, no "./"; "" is the root itself. Raw bytes, maybe not UTF-8
	Op   Op
	Dir  bool // the subject is (was) known to be a directory
	Tree bool // everything below Path may have changed too
	// Cookie is set, and the rest empty, for a file made in Options.CookieDir: its name.
	// It proves that every event from before the file was made has been delivered, and that what has none is told of: what
	// was mounted below the root by then, another directory in its place. It may come twice.
	Cookie string
}

// Report is one delivery of a Watcher: events in the order of the kernel's queue, and at most one fault.
type Report struct {
	Events []Event
	// Fault is what made the watch weaker: ErrOverflow (momentary; Events then has a Tree event for what was lost, or is empty:
	// the Tree event, for the root, comes when all is watched again), a *LimitError or ErrRootLost (stands until a Report with
	// Restored set, or until another fault takes its place).
	Fault    error
	Restored bool // the standing fault has ended
}

// ErrOverflow is reported when the kernel dropped events (inotify(7) IN_Q_OVERFLOW, fanotify(7) FAN_Q_OVERFLOW),
// or when so many of them waited to be read from Reports that the root now stands for them.
var ErrOverflow = errors.New("event queue overflow")

// ErrRootLost is reported when the root was deleted, unmounted, renamed or replaced. The watcher keeps looking for it.
var ErrRootLost = errors.New("watched directory is gone")

// LimitError is reported when a kernel limit keeps directories from being watched. They are rescanned at
// intervals instead. It is reported again when its numbers have changed.
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
	Backend   string   // auto, fanotify, inotify; "" is auto
	Exclude   *Exclude // directories it matches are not watched and paths it matches not reported; nil matches nothing
	CookieDir string   // an existing directory of this user, watched by the same kernel queue, for Event.Cookie; "" = none
	// Gather is how long events wait for others to be worked on with them. What a writer does to one file comes as several,
	// and each would wake us up. The kernel keeps what is not read meanwhile.
	Gather time.Duration
	// Progress, if set, is called now and then during the first walk with the directories watched so far.
	// It is called by Run's goroutine and must not block.
	Progress func(dirs int)
}

// Info tells how a Watcher watches.
type Info struct {
	Backend     string   // fanotify or inotify; empty while the root has never been there
	Reason      string   // why not fanotify, when Backend was auto
	Blind       string   // what this watch cannot see, in words: changes made by other hosts on a network filesystem
	Mounts      []string // directories below the root on which something else is mounted, relative
	Directories int      // watched directories (inotify), 0 with fanotify
	Unwatched   int      // directories that are rescanned at intervals, as far as they have been counted
	Unreadable  int      // directories that this user may not read, so neither watched nor rescanned
}

// Watcher watches one directory tree.
//
// The caller runs Run in a goroutine of its own and drains Reports until Run has returned; Run closes
// Reports, and ends without an error when ctx does. A root that is missing, also at the start, is a fault and no
// error. Ready is closed once every directory that existed at the start is watched; events flow before that.
// A Watcher runs once. The other methods may be called at any time, from any goroutine.
type Watcher interface {
	Run(ctx context.Context) error
	Reports() <-chan Report
	Ready() <-chan struct{}
	Info() Info
	// SetExclude replaces the excludes. If the new ones exclude less, a Tree event for the root follows
	// once all is watched.
	SetExclude(*Exclude)
}
