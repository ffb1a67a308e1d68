// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Runner runs rsync against one target. Its methods may be called at once from several goroutines.
type Runner struct {
	opts     Options
	rsync    string // absolute
	version  version
	warnings []string
	log      *slog.Logger
	rules    ruleCache
	writers  *writers
	children children
	standby  standby
}

// version is that of rsync.
type version struct {
	text                string
	major, minor, patch int
}

// before compares with 3.MINOR.PATCH.
func (v version) before(minor, patch int) bool {
	return slices.Compare([]int{v.major, v.minor, v.patch}, []int{3, minor, patch}) < 0
}

// versionTimeout bounds `rsync --version`, which takes some milliseconds.
const versionTimeout = 20 * time.Second

// New finds rsync and asks its version. It refuses one before 3.1.3, the oldest that keeps times in nanoseconds
// (--modify-window=-1), and one that cannot compress as asked. It does not connect.
func New(opts Options) (*Runner, error) {
	name := opts.Rsync
	if name == "" {
		name = "rsync"
	}
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path) // the working directory of a run is the source directory
	}
	if err != nil {
		return nil, fmt.Errorf("%w\nhint: install rsync 3.1.3 or newer", err)
	}
	if opts.Target.PasswordFile != "" {
		if opts.Target.PasswordFile, err = filepath.Abs(opts.Target.PasswordFile); err != nil {
			return nil, err
		}
	}
	r := &Runner{opts: opts, rsync: path, log: opts.Log, writers: &writers{}}
	if opts.After != nil {
		r.writers = opts.After.writers
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.rules.init()
	out, err := r.output("--version")
	if err != nil {
		return nil, fmt.Errorf("%s --version: %w", path, err)
	}
	if r.version, err = parseVersion(out); err != nil {
		return nil, fmt.Errorf("%s: %w\nhint: install rsync 3.1.3 or newer", path, err)
	}
	if r.version.before(1, 3) {
		return nil, fmt.Errorf("%s is version %s, too old\nhint: install rsync 3.1.3 or newer", path, r.version.text)
	}
	if err := r.checkCompress(out); err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	if r.version.text == "3.4.3" {
		r.warnings = append(r.warnings, "rsync 3.4.3 cannot delete what is missing from the source; update it to 3.4.4 or later, here and on the backup host")
	}
	if r.version.before(4, 0) {
		r.warnings = append(r.warnings, "rsync "+r.version.text+" is from before 3.4.0, which mended six security faults of the protocol, unless the distribution mended them too")
	}
	return r, nil
}

// Version returns the version of the rsync that runs here, as in 3.5.0.
func (r *Runner) Version() string { return r.version.text }

// Warnings returns what is known to be wrong with this version of rsync, in words. The rsync on the backup
// host may be another one; Canary tells of that.
func (r *Runner) Warnings() []string { return slices.Clone(r.warnings) }

// output runs rsync without a connection and returns what it prints.
func (r *Runner) output(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.rsync, args...)
	cmd.Env = environment()
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}

// environment is all that a child gets: neither NOTIFY_SOCKET, with which it could speak for us to systemd, nor RSYNC_*
// variables, nor HOME, below which rsync reads option aliases. Messages must come in English.
func environment() []string {
	env := []string{"LC_ALL=C"}
	for _, name := range []string{"PATH", "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

var versionLine = regexp.MustCompile(`(?m)^rsync +version +v?((\d+)\.(\d+)\.(\d+)\S*)`)

func parseVersion(out string) (version, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil || strings.Contains(out, "openrsync") {
		first, _, _ := strings.Cut(out, "\n")
		return version{}, fmt.Errorf("not an rsync: --version says %q", first)
	}
	return version{m[1], int(number(m[2])), int(number(m[3])), int(number(m[4]))}, nil
}

var compressList = regexp.MustCompile(`(?m)^Compress list:\n((?: +.*\n?)+)`)

// checkCompress: which compressions there are depends on the build; before 3.2.0 only zlib and zlibx.
func (r *Runner) checkCompress(out string) error {
	have := []string{"zlib", "zlibx"}
	if m := compressList.FindStringSubmatch(out); m != nil {
		have = strings.Fields(m[1])
	}
	if c := r.opts.Compress; c != "" && !slices.Contains(have, c) {
		return fmt.Errorf("(%s) cannot compress with %s\nhint: set transfer.compress to one of: %s", r.version.text, c, strings.Join(have, ", "))
	}
	return nil
}

// children knows the rsync processes that run.
type children struct {
	mu   sync.Mutex
	pids map[int]bool
}

func (c *children) add(pid int) (remove func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pids == nil {
		c.pids = map[int]bool{}
	}
	c.pids[pid] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.pids, pid)
	}
}

// Children returns the process ids of the rsyncs that run, for whoever watches over them.
func (r *Runner) Children() []int {
	r.children.mu.Lock()
	defer r.children.mu.Unlock()
	return slices.Collect(maps.Keys(r.children.pids))
}

// maxHidden bounds the names that writers remembers; past it they are all forgotten, and are hidden once more.
const maxHidden = 10_000

// writers knows which runs that may create temporary files on the backup overlap in time with a listing of it.
type writers struct {
	mu      sync.Mutex
	begun   int              // the number of the newest
	running map[int]struct{} // by number
	hidden  map[string]int   // temporary files that were seen, with the newest writer of that time
}

func (w *writers) begin() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running == nil {
		w.running = map[int]struct{}{}
	}
	w.begun++
	number := w.begun
	w.running[number] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.running, number)
	}
}

// watch returns a function that reports whether a temporary file may belong to a writer that ran since watch was called.
// It does not when all writers from the time at which it was first seen have ended.
func (w *writers) watch() (mayOwn func(path string) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	begun, oldest := w.begun, w.begun+1
	for number := range w.running {
		oldest = min(oldest, number)
	}
	return func(path string) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if oldest > begun && w.begun == begun {
			return false // none ran
		}
		if seen, ok := w.hidden[path]; ok {
			if oldest > seen {
				delete(w.hidden, path)
				return false
			}
			return true
		}
		if w.hidden == nil || len(w.hidden) >= maxHidden {
			w.hidden = map[string]int{}
		}
		w.hidden[path] = w.begun
		return true
	}
}
