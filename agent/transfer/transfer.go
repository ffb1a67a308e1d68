// SPDX-License-Identifier: Apache-2.0

// Package transfer turns one job into one rsync run and says what became of every path in it.
//
// It reads the source only through a [Root], a handle of the directory that was checked, so that an
// unmount or a replacement between the check and the run cannot make rsync see another tree. A run that
// sends never deletes; a run that deletes sends nothing. Exit status and standard error together
// decide the [Class]; status 0 alone is not a success. Retrying, and whether a deletion may happen at
// all, is left to replicate.
package transfer

import (
	"errors"
	"log/slog"
	"time"
)

// Target is the rsync daemon module that is pushed to.
type Target struct {
	Address      string // host name or address
	Port         int
	Module       string
	User         string
	PasswordFile string // rsync(1) --password-file: not other-readable, owned by the caller or root
}

// Options configures a Runner.
type Options struct {
	Rsync          string // path of the rsync binary; "" looks in PATH
	Path           string // the source directory
	Target         Target
	Exclude        []string // rsync patterns, obeyed by every run
	Filter         []string // rsync filter rules, obeyed by every run
	FullExclude    []string // further patterns for List and Full jobs
	Compress       string
	BandwidthLimit string
	Timeout        time.Duration // rsync --timeout
	Extra          []string      // further options, checked by pair.Validate
	Log            *slog.Logger  // gets the exact argv of every run at debug level; nil discards
}

// Kind says what a job does.
type Kind int

const (
	Send   Kind = iota // the listed paths, each as it is on disk; a missing one is passed over
	Tree               // the listed directories with everything below them, by recursion
	Delete             // the listed paths, which must be missing on disk; everything below them on the backup too
)

// Job is one rsync run.
type Job struct {
	Kind  Kind
	Paths []string // relative to the source directory; "" is the directory itself (Tree only)
	// Force lets a non-directory take the place of a non-empty directory on the backup, which deletes
	// what is below (rsync --force). Only for paths that passed the guard.
	Force bool
}

// Class is what a result means for what to do next.
type Class int

const (
	Done      Class = iota // everything arrived that could; look at Result.Failed
	Transient              // network, daemon restarting, connection cap: retry with back-off
	Stopped                // our own signal
	NoSpace                // the backup's disk is full: retry slowly, say so
	Permanent              // password, module, refused option, rsync missing: retry slowly, say what to mend
	Unknown                // rsync said something that is not understood: nothing of the job counts as done
)

// Result says what became of a job.
type Result struct {
	Class   Class
	Status  int           // rsync's exit status; -1 when it did not run
	Message string        // one line in words, with the cause: for status and log
	Hint    string        // what to do about it, when that is known
	Failed  []PathFailure // by name: not read, not written, or not verified. Everything else in the job is done when Class is Done
	Changed []string      // vanished or changed while they were read: to be looked at again
	Blocked []string      // a non-empty directory on the backup stands where a non-directory should be: needs Force
	Kept    []string      // directories that were not deleted because of excluded files in them
	// Incomplete is set when the source could not be read in full (List, ListMissing): what was reported
	// as extraneous may exist in the source after all and must not be deleted.
	Incomplete bool
	Stats      Stats
	Stderr  string // the last 8 KiB of standard error
	Elapsed time.Duration
}

// PathFailure is one path that rsync could not read or write.
type PathFailure struct {
	Path   string
	Reason string // rsync's words: Permission denied (13)
	Remote bool   // the backup host could not write it; else the source host could not read it
}

// Stats counts one run (rsync --stats).
type Stats struct {
	Files       int64 // in the file list
	Transferred int64 // regular files sent
	Deleted     int64
	Bytes       int64 // of the files sent
	Sent        int64 // bytes on the wire
}

// Progress is what a running Tree job has done so far (rsync --info=progress2).
type Progress struct {
	Bytes   int64
	Percent int
	Rate    string
	ETA     time.Duration
	Files   int64 // transferred
	ToCheck int64 // left to check
	Total   int64 // known so far
}

// Item is one line of a comparison (rsync -n --itemize-changes).
type Item struct {
	Path       string
	Dir        bool
	Extraneous bool   // on the backup only
	New        bool   // on the source only
	What       string // rsync's eleven characters, as in >f.st......
}

// ListOptions says what [Runner.List] compares.
type ListOptions struct {
	Paths    []string // directories to compare, with everything below them; none = the whole tree
	Checksum bool     // compare contents, not size and time
	Delete   bool     // report what is on the backup only (Item.Extraneous)
}

// ErrStop, returned by the callback of List or ListMissing, ends the run early; its Result is then Stopped.
var ErrStop = errors.New("stop listing")
