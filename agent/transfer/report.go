// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

const (
	// maxNamed bounds the paths of one run that are told by name. It is above what one Send has; a Tree or List that
	// runs into more has a cause that is told once, and counts as not understood.
	maxNamed = 20_000
	// maxStderr is how much of standard error a Result keeps.
	maxStderr = 8 << 10
	// maxCauses bounds the lines that are kept for the table. The cause comes first or last, a flood in between.
	maxCauses = 200
)

// report reads what rsync says on standard error, and the messages among standard output, line by line.
type report struct {
	kind  runKind
	root  *Root
	base  string // how names of the source begin in rsync's messages, with a slash
	paths map[string]bool
	above map[string]bool // directories above paths

	mu         sync.Mutex     // what follows is filled from two goroutines, one for each output
	failed     map[string]int // index in Failed
	Failed     []PathFailure
	changed    map[string]bool
	blocked    map[string]bool
	kept       map[string]bool
	incomplete bool
	overflow   bool

	skips            bool // set by follow: devices or special files are left out on purpose
	unreached        bool // the module was not reached
	parts            bool // rsync has put aside what it had of a file
	deletionsStopped string
	noSpace          string
	explained        bool     // a line tells what status 23 is about
	unknown          []string // lines that no rule knows
	causes           []string
	stderr           tail
}

type runKind int

const (
	runSend runKind = iota
	runForce
	runTree
	runDelete
	runList
	runOther
)

func newReport(kind runKind, root *Root, paths []string) *report {
	rep := &report{
		kind: kind, root: root,
		paths: map[string]bool{}, above: map[string]bool{},
		failed: map[string]int{}, changed: map[string]bool{}, blocked: map[string]bool{}, kept: map[string]bool{},
		stderr: tail{max: maxStderr},
	}
	for _, p := range paths {
		rep.paths[p] = true
		for dir := range ancestors(p) {
			if rep.above[dir] {
				break
			}
			rep.above[dir] = true
		}
	}
	rep.above[""] = true
	if root != nil {
		if p, err := root.realPath(); err == nil {
			rep.base = strings.TrimSuffix(p, "/") + "/"
		}
	}
	return rep
}

// Patterns of lines. rsync names its part of the transfer in square brackets since 3.2.0.
var (
	errnoLine = regexp.MustCompile(`^(?:rsync: )?(?:\[([\w/]+)\] )?(.+?)(?: failed)?(?:, continuing)?: ([^:"]+ \((\d+)\))$`)

	// The operation and the name in front of an errno. The name is in quotes, with nothing behind it but the
	// module, in most; a name may hold quotes and brackets itself, so the patterns hold both ends.
	quotedName = regexp.MustCompile(`^[^"]*"(.*)"(?: \(in [^()"]*\))?\)?$`)
	twoNames   = regexp.MustCompile(`^(?:symlink|rename|link|copy|hard link|rename failed for|copy failed for) "(.*?)"(?: \(in [^()"]*\))? (?:->|=>|\(from) ?"?.*$`)
	renamedTo  = regexp.MustCompile(`^rename "(?:.*?)"(?: \(in [^()"]*\))? -> "(.*)"$`)
	xattrName  = regexp.MustCompile(`\w+\("?(.*?)"?(?: \(in [^()"]*\))?, ?"?(?:[a-z]+\.|ACL_)[^"]*"?\)$`)
	bareName   = regexp.MustCompile(`^(?:delete_file|set_acl|get_acl|rsync_xal_set|rsync_xal_get|unpack_smb_acl|default_perms_for_dir)?:? ?\w+\((.+)\)$`)

	vanishedLine   = regexp.MustCompile(`^(?:file|directory) has vanished: "(.*)"$`)
	diminishedLine = regexp.MustCompile(`^skipped diminished file: "(.*)"$`)
	discardedLine  = regexp.MustCompile(`^(WARNING|ERROR): (.*) failed verification -- update (?:discarded|retained|put into partial-dir)( \(will try again\))?\.$`)
	wayLine        = regexp.MustCompile(`^could not make way for new [a-z ]+: (.*)$`)
	notEmptyLine   = regexp.MustCompile(`^cannot delete (?:non-empty directory|mount point): (.*)$`)
	pinsLine       = regexp.MustCompile(`^mount point, (.*), pins parent directory$`)
	daemonRefused  = regexp.MustCompile(`^ERROR: daemon refused to receive (?:file|directory) "(.*)"$`)
	tooLongLine    = regexp.MustCompile(`^(?:skipping overly long name|temporary filename too long|path too long): (.*)$`)
	overflowsLine  = regexp.MustCompile(`^filename overflows max-path len by \d+: (.*)$`)
	impossibleLine = regexp.MustCompile(`^([ug]id 4294967295 \(-1\) is impossible to set) on "(.*)"(?: \(in .*\))?$`)
	unreachedLine  = regexp.MustCompile(`failed to connect to|getaddrinfo|did not see server greeting|didn't get server startup line|^@ERROR`)
	partLine       = regexp.MustCompile(`failed verification|read errors mapping`)
	skippedLine    = regexp.MustCompile(`^skipping non-regular file "(.*)"$`)
	noPartialLine  = regexp.MustCompile(`^Unable to create partial-dir for (.*) -- discarding (?:completed|partial) file\.$`)
	absentParent   = regexp.MustCompile(`^WARNING: parent dir is absent in the file list: `)
	stoppedLine    = regexp.MustCompile(`^Deletions stopped due to --max-delete limit \((\d+) skipped\)$`)
	summaryLine    = regexp.MustCompile(`^rsync (?:error|warning): .* \(code \d+\) at `)
	tempName       = regexp.MustCompile(`(?s)^\.(.+)\.[A-Za-z0-9]{6}$`)
	tempNumber     = regexp.MustCompile(`(?s)^\.(.+)\.[0-9]{1,6}$`) // of a link or a device that takes the place of something
)

// The errnos that decide something; in the numbers of Linux, which the rsync that prints them has.
const (
	enoent    = 2
	enospc    = 28
	enotdir   = 20
	enotempty = 39
	enodata   = 61
	estale    = 116
	edquot    = 122
)

// errLine takes in one line of standard error.
func (rep *report) errLine(line string) {
	if line = strings.TrimRight(line, " \r"); line == "" {
		return
	}
	rep.mu.Lock()
	defer rep.mu.Unlock()
	rep.stderr.add(line)
	rep.unreached = rep.unreached || unreachedLine.MatchString(line)
	rep.parts = rep.parts || partLine.MatchString(line)
	first := strings.HasPrefix(line, "rsync: ") && rep.failure(line) // the most frequent kind
	if !first && !rep.common(line) && !rep.failure(line) {
		if len(rep.unknown) < maxCauses && !summaryLine.MatchString(line) {
			rep.unknown = append(rep.unknown, line)
		}
		if len(rep.causes) < maxCauses {
			rep.causes = append(rep.causes, line)
		} else {
			rep.causes[maxCauses-1] = line
		}
	}
}

// outLine takes in a message among standard output, and reports whether it was one.
func (rep *report) outLine(line string) bool {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.common(line)
}

// common knows the lines that rsync prints to one or the other, depending on version and verbosity.
func (rep *report) common(line string) bool {
	group := func(re *regexp.Regexp) (string, bool) {
		m := re.FindStringSubmatch(line)
		if m == nil {
			return "", false
		}
		return m[len(m)-1], true
	}
	if name, ok := group(vanishedLine); ok {
		rep.change(name)
	} else if name, ok := group(diminishedLine); ok {
		rep.change(name)
	} else if m := discardedLine.FindStringSubmatch(line); m != nil {
		if rep.explained = true; m[3] == "" {
			rep.change(m[2]) // it changed while rsync read it, twice
		}
	} else if name, ok := group(wayLine); ok {
		if p, ok := rep.path(name, true); ok {
			rep.name(rep.blocked, p)
		} else {
			return false
		}
	} else if name, ok := group(notEmptyLine); ok {
		rep.keep(name)
	} else if name, ok := group(pinsLine); ok {
		rep.keep(name)
	} else if name, ok := group(daemonRefused); ok {
		return rep.fail(name, "the module on the backup host excludes it", true)
	} else if name, ok := group(tooLongLine); ok {
		return rep.fail(strings.Trim(name, `"`), "the name is too long for rsync", false)
	} else if name, ok := group(overflowsLine); ok {
		return rep.fail(name, "the name is too long for rsync", false)
	} else if m := impossibleLine.FindStringSubmatch(line); m != nil {
		return rep.fail(m[2], m[1], true)
	} else if name, ok := group(skippedLine); ok {
		// Said by either side, and the status is 0: of a device when rsync on the backup host is not root.
		return rep.skips || rep.fail(name, "rsync on the backup host makes no such file; as root it does", true)
	} else if name, ok := group(noPartialLine); ok {
		return rep.fail(name, "no directory for its parts could be made", true)
	} else if n, ok := group(stoppedLine); ok {
		rep.deletionsStopped = n
		rep.causes = append(rep.causes, line)
	} else if line == "IO error encountered -- skipping file deletion" {
		rep.incomplete = true
	} else if absentParent.MatchString(line) || line == "*** Skipping any contents from this failed directory ***" {
		// Says nothing that the line about the directory does not.
	} else {
		return false
	}
	return true
}

// failure knows the lines that end in an errno and name a path.
func (rep *report) failure(line string) bool {
	m := errnoLine.FindStringSubmatch(line)
	if m == nil {
		return false
	}
	role, what, reason := m[1], m[2], m[3]
	errno, err := strconv.Atoi(m[4])
	if err != nil {
		return false
	}
	var name, final string
	if t := twoNames.FindStringSubmatch(what); t != nil {
		name = t[1]
		if t := renamedTo.FindStringSubmatch(what); t != nil {
			final = t[1]
		}
	} else if t := quotedName.FindStringSubmatch(what); t != nil {
		name = t[1]
		if x := xattrName.FindStringSubmatch(what); x != nil {
			name = x[1]
		}
	} else if t := xattrName.FindStringSubmatch(what); t != nil {
		name = t[1]
	} else if t := bareName.FindStringSubmatch(what); t != nil {
		name = t[1]
	} else {
		return false
	}
	remote := !strings.HasPrefix(role, "sender") // "sender/inc" while it still lists
	if role == "" {
		remote = !strings.HasPrefix(unescape(name), rep.base)
	}
	if remote && (errno == enospc || errno == edquot) && rep.noSpace == "" {
		rep.noSpace = reason
	}
	switch {
	case !remote && (errno == enoent || errno == enotdir || errno == estale):
		return rep.change(name)
	case !remote && errno == enodata && strings.HasPrefix(what, "read errors mapping"):
		return rep.change(name) // truncated while rsync read it
	case errno == enotempty && strings.HasPrefix(what, "delete_file"):
		rep.keep(name)
		return true
	}
	return rep.fail(name, reason, remote) || final != "" && rep.fail(final, reason, remote)
}

// path turns a name of rsync's into one relative to the source directory. The backup's names of temporary files become
// those of the files. It reports false when the name is none that this run has to do with.
func (rep *report) path(name string, remote bool) (string, bool) {
	name = unescape(name)
	if rest, ok := strings.CutPrefix(name, rep.base); ok && rep.base != "" && !remote {
		name = rest
	} else if !remote && name+"/" == rep.base {
		name = ""
	}
	name = strings.Trim(name, "/")
	name = strings.TrimPrefix(name, "./")
	if name == "." {
		name = ""
	}
	dir, base := split(name)
	if remote && base == partialDir {
		// what is in it is told by its own name
		base, name = "", dir
	} else if d, b := split(dir); remote && b == partialDir {
		dir, name = d, join(d, base)
	}
	m := tempName.FindStringSubmatch(base)
	if m == nil {
		m = tempNumber.FindStringSubmatch(base)
	}
	if remote && m != nil {
		real := join(dir, m[1])
		if dotted := join(dir, "."+m[1]); !rep.paths[real] && (rep.paths[dotted] || !rep.isFile(real) && rep.isFile(dotted)) {
			real = dotted // rsync adds no second dot
		}
		if rep.paths[real] || !rep.paths[name] && rep.isFile(real) {
			return real, rep.knows(real)
		}
		// Rsync shortens the name when it would get too long.
		if len(base) > 240 && !rep.paths[name] {
			for p := range rep.paths {
				if strings.HasPrefix(p, real) && !strings.Contains(p[len(real):], "/") {
					return p, true
				}
			}
		}
	}
	return name, rep.knows(name)
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func (rep *report) isFile(path string) bool {
	if rep.root == nil {
		return false
	}
	e, err := rep.root.Lstat(path)
	return err == nil && !e.Mode.IsDir()
}

// knows reports whether the run has to do with a path.
func (rep *report) knows(path string) bool {
	if rep.paths[path] || rep.above[path] {
		return true
	}
	if rep.kind == runSend || rep.kind == runForce {
		return false
	}
	if rep.paths[""] {
		return true
	}
	for dir := range ancestors(path) {
		if rep.paths[dir] {
			return true
		}
	}
	return false
}

func (rep *report) name(set map[string]bool, path string) {
	rep.explained = true
	if len(set) < maxNamed {
		set[path] = true
	} else {
		rep.overflow = true
	}
}

func (rep *report) change(name string) bool {
	p, ok := rep.path(name, false)
	if ok {
		rep.name(rep.changed, p)
	}
	return ok
}

func (rep *report) keep(name string) {
	p, ok := rep.path(name, true)
	// Elsewhere rsync goes on to say that it could not make way for something.
	if ok && (rep.kind == runDelete || rep.kind == runForce) {
		rep.name(rep.kept, p)
	}
}

func (rep *report) fail(name, reason string, remote bool) bool {
	p, ok := rep.path(name, remote)
	if !ok {
		return false
	}
	rep.explained = true
	if i, seen := rep.failed[p]; seen {
		// The last line about a path is as good as the first, but a local cause goes before what follows from it.
		if rep.Failed[i].Remote && !remote {
			rep.Failed[i] = PathFailure{Path: p, Reason: reason}
		}
		return true
	}
	if len(rep.Failed) == maxNamed {
		rep.overflow = true
		return true
	}
	rep.failed[p] = len(rep.Failed)
	rep.Failed = append(rep.Failed, PathFailure{Path: p, Reason: reason, Remote: remote})
	return true
}

// match finds the row of the table for what was said.
func (rep *report) match(status int) (verdict, []string, bool) {
	for _, r := range rows {
		if r.status != 0 && r.status != status {
			continue
		}
		for _, c := range rep.causes {
			if m := r.pattern.FindStringSubmatch(c); m != nil {
				return r.verdict, m, true
			}
		}
	}
	return verdict{}, nil, false
}

// said is the line that tells most: the first that is not rsync's own summary; a named path before it.
func (rep *report) said() string {
	if len(rep.Failed) > 0 {
		f := rep.Failed[0]
		return fmt.Sprintf("%q: %s", f.Path, f.Reason)
	}
	for _, c := range rep.causes {
		if !summaryLine.MatchString(c) {
			return c
		}
	}
	return ""
}
