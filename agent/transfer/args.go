// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// partialDir keeps what arrived of a file when a run was cut off, beside where the file goes, so that the next run
// continues from there. Rsync removes it with the last file in it, excludes it from what it sends, and List reports
// what is left over in it as extraneous.
const partialDir = ".~lockstep~"

// PartialDir is the name of that directory, for whoever must clear it away when its file will not be sent again.
const PartialDir = partialDir

// riskPartial lets partialDir go whatever the rules exclude.
const riskPartial = "--filter=R " + partialDir

// protectLostFound keeps what the backup's own filesystem has at its root, where e2fsck(8) puts what it finds.
const protectLostFound = "--filter=P /lost+found/***"

// attributes are what -a keeps, without its -r.
const attributes = "-lptgoD"

// outFormat makes rsync print one line for each difference. The mark tells it from everything else that rsync prints
// to standard output; the eleven characters of %i have no spaces but at their end; the name comes last and
// newlines in it are escaped.
const outFormat = itemMark + "%i %n"
const itemMark = "@ "

// run is one invocation of rsync.
type run struct {
	mode     []string // what makes it send, delete or list
	full     bool     // obey FullExclude
	plain    bool     // obey no rules at all
	progress bool
	small    bool     // progress may come in blocks
	first    []string // rules before all others: the first that matches counts
	whole    bool     // the source directory itself and all that is in it, instead of a list of paths
}

var (
	// --ignore-missing-args and never --delete-missing-args: what vanishes between our look and rsync's must not be
	// deleted without having passed the guard.
	sendMode = []string{attributes, "-d", "--ignore-missing-args", "--partial-dir=" + partialDir}
	// --prune-empty-dirs makes rsync send the rules to the receiver, which then keeps excluded files when their
	// directory makes way. It would also keep directories without a file in this list from being made: so there are none.
	forceMode = append([]string{"--force", "--prune-empty-dirs"}, sendMode...)
	// The source directory itself, and nothing that is in it.
	rootMode = append([]string{"--filter=- /*"}, sendMode...)
	treeMode = []string{attributes, "-r", "--partial-dir=" + partialDir}
	// --existing and --ignore-existing take everything but the deletions from the run. A path that comes back between
	// our look and rsync's is left alone then: rsync considers these options after deleting what is
	// missing and before anything else. --prune-empty-dirs as above: else excluded files in a deleted directory go.
	// --out-format is for counting: before 3.4.0, --stats does not count these deletions.
	deleteMode = []string{
		"--out-format=" + outFormat, attributes, "-d", "--delete-missing-args", "--force", "--existing", "--ignore-existing", "--prune-empty-dirs", riskPartial, protectLostFound,
	}
	// What is left of a partial transfer is hidden from the sender only, and so extraneous.
	listMode = []string{"--dry-run", attributes, "-r", "--out-format=" + outFormat, "--filter=H " + partialDir, riskPartial, protectLostFound}
	// The source directory itself and what is directly in it, against what the backup has there. The exclusion ends where a directory goes (p),
	// so that one with anything in it counts as extraneous.
	emptyMode = append(slices.Clone(listMode), "--delete", "--filter=-p /*/*")
	// These two list what deleteMode and forceMode would delete. With --ignore-existing a symlink would stay where the source has a directory by
	// now, and rsync would look for what to delete where that leads.
	listMissingMode = append([]string{"--dry-run"}, without(deleteMode, "--ignore-existing")...)
	listForceMode   = append([]string{"--dry-run", "--out-format=" + outFormat}, forceMode...)
	probeMode       = []string{"--dry-run", attributes, "-d"}
)

func without(args []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == name })
}

// connectTimeout bounds the wait for a connection. A host on the other side of the world answers in a fraction of a second; one
// that is cut off never does, and the status has to say so soon.
const connectTimeout = 10 * time.Second

// unbuffered lets rsync write each line at once.
const unbuffered = "--outbuf=N"

// args is the argv of one run, without the program.
func (r *Runner) args(c run) []string {
	o := &r.opts
	args := append([]string{}, c.mode...)
	if r.hasExtra("--inplace") {
		// Rsync refuses both at once: what arrived is kept in the file itself.
		args = slices.DeleteFunc(args, func(a string) bool { return a == "--partial-dir="+partialDir })
	}
	if !c.whole {
		args = append(args, "--relative", "--from0", "--files-from=-")
	}
	args = append(args,
		// Without it, rsync compares times in whole seconds, and takes a rewrite of equal size in the same
		// second for the same file, for ever.
		"--modify-window=-1",
		"--numeric-ids",
		// Else each connection waits twice for a delayed acknowledgement of 40 ms.
		"--sockopts=TCP_NODELAY",
		"--stats", "--no-human-readable", "--8-bit-output", "--no-motd",
	)
	if c.progress {
		// Progress lines end in a carriage return, at which neither C's line buffering nor rsync flushes.
		args = append(args, "--info=progress2")
		if !c.small {
			args = append(args, unbuffered)
		}
	}
	if s := seconds(o.Timeout); s != "" {
		args = append(args, "--timeout="+s)
		if len(o.Target.Shell) == 0 && !r.hasExtra("--contimeout") {
			args = append(args, "--contimeout="+seconds(min(o.Timeout, connectTimeout)))
		}
	}
	if o.BandwidthLimit != "" {
		args = append(args, "--bwlimit="+o.BandwidthLimit)
	}
	args = append(args, r.compress()...)
	args = append(args, o.Extra...)
	for _, rule := range c.first {
		args = append(args, "--filter="+rule)
	}
	if !c.plain {
		args = append(args, r.ruleArgs(c.full)...)
	}
	if o.Target.PasswordFile != "" {
		args = append(args, "--password-file="+o.Target.PasswordFile)
	}
	if len(o.Target.Shell) > 0 {
		args = append(args, "--rsh="+shellLine(o.Target.Shell)) // it knows the port
	} else if o.Target.Port != 0 {
		args = append(args, "--port="+strconv.Itoa(o.Target.Port))
	}
	return append(args, ".", r.destination())
}

// shellLine joins words as rsync takes them apart: at spaces, except between quotes, of which a double one stands for one.
func shellLine(words []string) string {
	line := make([]string, len(words))
	for i, w := range words {
		if strings.ContainsAny(w, ` '"`) {
			w = "'" + strings.ReplaceAll(w, "'", "''") + "'"
		}
		line[i] = w
	}
	return strings.Join(line, " ")
}

// ruleArgs are the exclude patterns and filter rules. As a filter rule, a pattern that begins with + or ! is
// nothing but a pattern.
func (r *Runner) ruleArgs(full bool) []string {
	var args []string
	exclude := func(patterns []string) {
		for _, p := range patterns {
			args = append(args, "--filter=- "+p)
		}
	}
	exclude(r.opts.Exclude)
	if full {
		exclude(r.opts.FullExclude)
	}
	for _, f := range r.opts.Filter {
		args = append(args, "--filter="+f)
	}
	return args
}

// hasExtra reports whether one of several spellings of an option is among the user's.
func (r *Runner) hasExtra(names ...string) bool {
	return slices.ContainsFunc(r.opts.Extra, func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.Contains(names, name)
	})
}

func (r *Runner) destination() string {
	t := &r.opts.Target
	d := t.Address
	if strings.Contains(d, ":") {
		d = "[" + d + "]"
	}
	if t.User != "" {
		d = t.User + "@" + d
	}
	if t.Path != "" {
		return d + ":" + strings.TrimSuffix(t.Path, "/") + "/"
	}
	return d + "::" + t.Module + "/"
}

// literal is the pattern that matches one path and nothing else. A backslash escapes only in a pattern that has a wildcard.
func literal(path string) string {
	if !strings.ContainsAny(path, "*?[") {
		return "/" + path
	}
	var b strings.Builder
	b.WriteByte('/')
	for i := range len(path) {
		if strings.IndexByte(`*?[\`, path[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

// compress: before 3.2.0 there was no --compress-choice, only zlib in rsync's own variant and in the plain one.
func (r *Runner) compress() []string {
	switch {
	case r.opts.Compress == "":
		return nil
	case !r.version.before(2, 0):
		return []string{"--compress", "--compress-choice=" + r.opts.Compress}
	case r.opts.Compress == "zlibx":
		return []string{"--new-compress"}
	default:
		return []string{"--compress"}
	}
}

func seconds(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// fileList is what rsync reads with --files-from=- --from0. Without the ./ it would take a name that begins with # or ;
// for a comment. Sorted names let rsync skip the directories above that it has just sent.
func fileList(paths []string) []byte {
	n := 0
	for _, p := range paths {
		n += len(p) + 3
	}
	b := make([]byte, 0, n)
	for _, p := range paths {
		b = append(b, "./"...)
		b = append(b, p...)
		b = append(b, 0)
	}
	return b
}

// RequiredOptions lists the rsync options, as `refuse options` of rsyncd.conf(5) names them, that a module must not
// refuse: those of every run, and those that Options can add by fields of its own. A list that refuses with `*`
// must also hold what is in Options.Extra. The daemon tests them by the names of the options that the client's
// options become on the wire; a test holds this list against a real daemon.
func RequiredOptions() []string {
	return []string{
		"archive", "recursive", "dirs", "relative", "links", "perms", "times", "group", "owner", "devices", "specials",
		"numeric-ids", "modify-window", "timeout", "stats", "partial-dir",
		"delete", "delete-*", "force", "existing", "ignore-existing", "prune-empty-dirs",
		"checksum", "compress*", "new-compress", "old-compress", "bwlimit",
	}
}
