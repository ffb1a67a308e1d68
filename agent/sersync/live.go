// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"path"
	"strings"
)

// Live is what the sersync of a confxml.xml does while it runs: what a comparison with it must know.
type Live struct {
	Deletes    bool // inotify/delete
	Attrib     bool // inotify/attrib
	Modify     bool // inotify/modify: a file is sent before it is closed, too
	NewFolders bool // inotify/createFolder
	Remotes    []Remote
}

// Remote is where sersync sends to: one for each of Result.Pairs, in the same order.
type Remote struct {
	Address      string
	Port         int
	Module       string   // with the directory in it if there is one; "" if there is a Path
	User         string   // "" without rsync/auth
	PasswordFile string   // "" without rsync/auth
	Path         string   // with rsync/ssh: the directory
	Shell        []string // the ssh that leads there; nil when rsync dials a daemon
}

// Cause says why sersync leaves a difference between the source and the backup.
type Cause string

// The causes that sersync's source tells of. A difference that has none of them was missed: an event that was lost, a change
// while sersync did not run, or a failure that it forgot.
const (
	HiddenName Cause = "hidden name"
	Unescaped  Cause = "unescaped name"
	AttribOff  Cause = "attrib off"
	FolderOff  Cause = "createFolder off"
	StillOpen  Cause = "never closed"
	Temporary  Cause = "left by a transfer"
	DeletesOff Cause = "deletions off"
	DirTime    Cause = "time of a directory"
	Missed     Cause = "missed"
)

// String says it in words.
func (c Cause) String() string {
	switch c {
	case HiddenName:
		return "sersync drops events of names that begin with a dot or end in ~, and of 4913; only its full runs send them"
	case Unescaped:
		return `sersync does not delete names with [ or \: it hands them to rsync as a pattern, without escaping`
	case AttribOff:
		return "inotify/attrib is off, so modes, owners and times alone are not sent"
	case FolderOff:
		return "inotify/createFolder is off, so sersync watches no new directory"
	case StillOpen:
		return "written all the time: sersync waits for the file to be closed, lockstep sends it every watch.max_delay"
	case Temporary:
		return "what an rsync of sersync's that was ended left behind"
	case DeletesOff:
		return "inotify/delete is off"
	case DirTime:
		return "only the time of the directory; sersync sets it when something in it is sent"
	default:
		return "nothing in confxml.xml explains it: a lost event, a change while sersync did not run, or a failure that it forgot"
	}
}

// hidden reports whether sersync drops the events of a file, whatever its filter.
func hidden(name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, ".") || strings.HasSuffix(base, "~") || base == "4913"
}

// Cause finds out why sersync left a difference. What is as rsync --itemize-changes has it; open says that the file is
// changed all the time.
func (l Live) Cause(name, what string, dir, open bool) Cause {
	deleting := strings.HasPrefix(what, "*deleting")
	fresh := strings.HasSuffix(what, "+++++++++")
	base := path.Base(name)
	switch {
	case deleting && !l.Deletes:
		return DeletesOff
	case deleting && !dir && temporary(base):
		return Temporary
	case !dir && hidden(name):
		return HiddenName
	case deleting && strings.ContainsAny(name, `[\`):
		return Unescaped
	case deleting:
		return Missed
	case dir && !fresh && strings.Trim(what[min(2, len(what)):], ".tT ") == "":
		return DirTime
	case !fresh && strings.HasPrefix(what, ".") && !l.Attrib:
		return AttribOff
	case open && !l.Modify:
		return StillOpen
	case dir && fresh && !l.NewFolders:
		return FolderOff
	}
	return Missed
}

// temporary reports whether a name is one that rsync gives a file until it is complete: a dot, its name, a dot and what mkstemp(3) adds,
// six letters or digits.
func temporary(base string) bool {
	i := strings.LastIndexByte(base, '.')
	if i < 2 || base[0] != '.' || len(base)-i != 7 {
		return false
	}
	return strings.IndexFunc(base[i+1:], func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) < 0
}
