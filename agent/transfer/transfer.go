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
	"strings"
	"time"
)

// Target is the rsync daemon module that is pushed to.
type Target struct {
	Address      string // host name or address
	Port         int    // 0 is rsync's own, 873
	Module       string
	User         string
	PasswordFile string // rsync(1) --password-file: not other-readable, owned by the caller or root; "" = a module without users
	// Shell is the command that leads to a daemon on the host, without the host: rsync(1) --rsh. Empty: rsync dials the daemon.
	Shell []string
	// Path is a directory to which Shell leads instead, for List of what another program sends there. There is no daemon to guard it,
	// so Run refuses it.
	Path string
}

// Options configures a Runner.
type Options struct {
	Rsync          string // path of the rsync binary; "" looks in PATH
	Path           string // the source directory, for messages; runs take a Root
	Target         Target
	Exclude        []string      // rsync patterns, obeyed by every run
	Filter         []string      // rsync filter rules, obeyed by every run, after Exclude; no merge files
	FullExclude    []string      // further patterns for List and for jobs with Full
	Compress       string        // "", zstd, lz4, zlibx, zlib
	BandwidthLimit string        // as rsync --bwlimit
	Timeout        time.Duration // rsync --timeout and --contimeout, rounded up to seconds; 0 is none
	Extra          []string      // further options, checked by pair.Validate
	After          *Runner       // the one that this replaces, whose runs may go on; nil if there was none
	Log            *slog.Logger  // gets the exact argv of every run at debug level; nil discards
}

// Kind says what a job does.
type Kind int

const (
	// Send brings each listed path as it is on disk, directories without what is in them. A path that is missing is
	// passed over, one that is excluded (or below an excluded directory) too. Nothing is deleted, except what stands
	// in the way of a path of another type: a file, link, device or empty directory.
	//
	// Rsync sends the directories above each path along, so that they exist, and end with the owner, mode and
	// modification time that they have in the source. They need not be listed.
	Send Kind = iota
	// Tree brings the listed directories with everything below them, by recursion. Nothing is deleted, as with Send.
	Tree
	// Delete removes the listed paths from the backup, with everything below them. Each must be missing on disk: it is
	// looked at again, and one that is back is left out. Nothing is created or updated, except the attributes
	// of the directories above.
	Delete
)

// String returns the kind in lower case.
func (k Kind) String() string { return [...]string{"send", "tree", "delete"}[k] }

// Job is one rsync run.
type Job struct {
	Kind  Kind
	Paths []string // relative to the source directory; "" is the directory itself
	// Force lets a non-directory take the place of a non-empty directory on the backup, which deletes
	// what is below (rsync --force). Only for paths that passed the guard. Send only; paths that are
	// directories are left out and returned in Result.Changed. Excluded files below stay, and so the path stays blocked.
	Force bool
	// Checksum compares contents instead of size and modification time, so that a file is mended on the backup that was
	// edited there with both kept.
	Checksum bool
	// Skip has paths below Paths that are left as they are on the backup, by name. Tree only; each is an argument of rsync, so some hundred at most.
	Skip []string
	// Full says that a full batch asks: FullExclude is obeyed too. Tree only.
	Full bool
	// Standby, when not 0, launches the rsync of the next such job too. That takes a third of the time if it comes within Standby of the end
	// of this one.
	Standby time.Duration
	// Small says that most files are: progress may then come for some dozens at a time, which costs less.
	Small bool
}

// Class is what a result means for what to do next.
type Class int

const (
	Done        Class = iota // everything arrived that could; look at Result.Failed
	Transient                // network, daemon restarting, connection cap: retry with back-off
	Stopped                  // our own signal
	NoSpace                  // the backup's disk is full: retry slowly, say so
	NoDirectory              // the module's directory is not there or not mounted: retry soon, for a mount may come by itself
	Permanent                // password, module, refused option, rsync missing: retry slowly, say what to mend
	Unknown                  // rsync said something that is not understood: nothing of the job counts as done
)

// refused says that the backup host answered and let nothing begin.
func (c Class) refused() bool { return c == NoDirectory || c == Permanent }

// String returns the class in lower case.
func (c Class) String() string {
	return [...]string{"done", "transient", "stopped", "no space", "no directory", "permanent", "unknown"}[c]
}

// Result says what became of a job. Unless Class is Done nothing of the job counts as done; the lists are
// then what is known so far, and a single path in Failed is what ended the run.
type Result struct {
	Class   Class
	Status  int    // rsync's exit status; -1 when it did not run or a signal ended it
	Message string // one line in words, with the cause: for status and log
	Hint    string // what to do about it, when that is known
	// Failed has, by name, what was not read, not written, or not verified. Everything else in the job is done when
	// Class is Done. A directory stands for everything below it.
	Failed []PathFailure
	// Changed is to be looked at again: vanished, absent or changed while it was read; or, for Delete, on disk again.
	// For a path below something that is missing or no directory, that something.
	Changed []string
	Blocked []string // a non-empty directory on the backup stands where a non-directory should be: needs Force
	Kept    []string // directories that were not deleted because of excluded files in them, or a mount
	// Incomplete is set when the source could not be read in full (List, ListMissing): what was reported
	// as extraneous may exist in the source after all and must not be deleted.
	Incomplete bool
	// Hidden is set when a List has passed over temporary files that may belong to a run that sends. A later one tells.
	Hidden bool
	// PartsLeft is set when a List has passed over parts of no use beside one that the next transfer of its file will use. A
	// later one tells.
	PartsLeft bool
	// Cut is set when a run that had reached the module did not come to its end, or gave up a file in the middle: the
	// backup may hold a part of a file.
	Cut     bool
	Standby bool // an rsync stands by for the next job
	Stats   Stats
	Stderr  string // the last 8 KiB of standard error
	Elapsed time.Duration
}

// PathFailure is one path that rsync could not read or write.
type PathFailure struct {
	Path   string
	Reason string // rsync's words: Permission denied (13)
	Remote bool   // the backup host could not write it; else the source host could not read it
}

// Stats counts one run (rsync --stats). It is zero when the run did not come to its end.
type Stats struct {
	Files       int64 // in the file list: of the source, without what is excluded
	Transferred int64 // regular files sent
	Created     int64 // entries that the backup did not have
	Deleted     int64
	Bytes       int64 // of the files sent
	Sent        int64 // bytes on the wire
}

// Progress is what a running job has done so far (rsync --info=progress2).
type Progress struct {
	Bytes int64
	// Listed is set once rsync knows the whole list. Until then, Percent and ETA are 0 and Total grows:
	// rsync lists a tree while it sends, some thousand entries ahead.
	Listed  bool
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
	Half       int    // 0 or 1: which of the rsyncs told of it that shared a tree
}

// itemized are the attributes that What has a letter for, from its third on; see --itemize-changes in rsync(1).
var itemized = []string{"contents", "size", "time", "mode", "owner", "group", "", "ACL", "extended attributes"}

// Attributes says in words in what a file that is on both sides differs, as [Item.What] tells it: "size, time".
func Attributes(what string) string {
	if len(what) < 2+len(itemized) {
		return ""
	}
	var words []string
	for i, word := range itemized {
		if c := what[2+i]; word != "" && c != '.' && c != ' ' && c != '+' {
			words = append(words, word)
		}
	}
	return strings.Join(words, ", ")
}

// ListOptions says what [Runner.List] compares.
type ListOptions struct {
	Paths    []string // what to compare, directories with everything below them and, without Delete, files; none = the whole tree
	Checksum bool     // compare contents, not size and time
	Delete   bool     // report what is on the backup only (Item.Extraneous)
}

// ErrStop, returned by the callback of List or ListMissing, ends the run early; its Result is then Stopped.
var ErrStop = errors.New("stop listing")
