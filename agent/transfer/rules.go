// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Rsync matches a path that is named in --files-from against the rules, but not the directories above
// it, and it takes a missing one for a file, so that `cache/` does not hold for it. A recursive run would have stopped
// at the directory. So rsync is asked here, without a connection, what a recursive run would do.

// maxCached bounds the directories whose answer is remembered. The answers are worth some milliseconds each time.
const maxCached = 50_000

// nowhere is a destination for dry runs that compare with nothing: rsync does not make it.
const nowhere = "/.lockstep-nowhere/"

// ruleCache remembers which directories the rules leave in. The rules never change in a Runner.
type ruleCache struct {
	mu   sync.Mutex
	dirs [2]map[string]bool // without and with FullExclude
}

func (c *ruleCache) init() { c.dirs = [2]map[string]bool{{}, {}} }

func index(full bool) int {
	if full {
		return 1
	}
	return 0
}

// reachable leaves out the paths that lie below an excluded directory.
func (r *Runner) reachable(ctx context.Context, root *Root, paths []string, full bool) ([]string, error) {
	if len(r.ruleArgs(full)) == 0 {
		return paths, nil
	}
	dirs := map[string]bool{}
	var ask []string
	r.rules.mu.Lock()
	for _, p := range paths {
		for dir := range ancestors(p) {
			if _, seen := dirs[dir]; seen {
				break
			}
			in, known := r.rules.dirs[index(full)][dir]
			if dirs[dir] = in; !known {
				ask = append(ask, dir)
			}
		}
	}
	r.rules.mu.Unlock()
	if len(ask) > 0 {
		slices.Sort(ask)
		args := append([]string{"-d", "--relative", "--no-implied-dirs", "--ignore-missing-args"}, r.ruleArgs(full)...)
		args = append(args, ".", nowhere)
		err := r.local(ctx, root.dir(), ask, args, func(it Item) {
			if _, asked := dirs[it.Path]; asked {
				dirs[it.Path] = true
			}
		})
		if err != nil {
			return nil, err
		}
		r.rules.mu.Lock()
		if len(r.rules.dirs[index(full)])+len(ask) > maxCached {
			r.rules.dirs[index(full)] = map[string]bool{}
		}
		for _, dir := range ask {
			// A directory that vanished meanwhile was not answered for.
			if dirs[dir] || r.there(root, dir) {
				r.rules.dirs[index(full)][dir] = dirs[dir]
			}
		}
		r.rules.mu.Unlock()
	}
	var out []string
next:
	for _, p := range paths {
		for dir := range ancestors(p) {
			if !dirs[dir] {
				continue next
			}
		}
		out = append(out, p)
	}
	return out, nil
}

func (r *Runner) there(root *Root, dir string) bool {
	e, err := root.Lstat(dir)
	return err == nil && e.Mode.IsDir()
}

// deletable leaves out the missing paths that a recursive run with --delete would keep. What is kept because it is a
// directory on the backup goes to res.Kept.
//
// It makes the paths as directories in a place of its own and lets rsync say which of them it would delete. A path that is
// kept as a directory may be a file on the backup; then only the backup can tell, so it is asked.
func (r *Runner) deletable(ctx context.Context, root *Root, paths []string, res *Result) ([]string, error) {
	if len(paths) == 0 || len(r.ruleArgs(false)) == 0 {
		return paths, nil
	}
	failed := map[string]bool{}
	fail := func(p, why string) {
		failed[p] = true
		res.Failed = append(res.Failed, PathFailure{Path: p, Reason: why})
	}
	undecided := func(p string, err error) { // the disk is full, perhaps
		fail(p, fmt.Sprintf("it cannot be told whether the rules keep it: %s: %s", os.TempDir(), reason(err)))
	}
	// The directories above are on both sides, as in truth: a rule that protects one does not protect what is in it.
	var without, with string
	tmp, err := os.MkdirTemp("", "lockstep-rules-")
	if err == nil {
		defer func() { _ = os.RemoveAll(tmp) }()
		without, with = filepath.Join(tmp, "source"), filepath.Join(tmp, "backup")
		err = os.Mkdir(without, 0o700)
	}
	if err != nil {
		for _, p := range paths {
			undecided(p, err)
		}
		return nil, nil
	}
	for _, p := range paths {
		above, _ := split(p)
		err := os.MkdirAll(filepath.Join(with, p), 0o700)
		if err == nil {
			err = os.MkdirAll(filepath.Join(without, above), 0o700)
		}
		switch {
		case errors.Is(err, syscall.ENAMETOOLONG):
			fail(p, reason(err))
		case err != nil:
			undecided(p, err)
		}
	}
	goes := map[string]bool{}
	args := append([]string{"-r", "--delete"}, append([]string{riskPartial, protectLostFound}, r.ruleArgs(false)...)...)
	if err := r.local(ctx, without, nil, append(args, "./", with+"/"), func(it Item) {
		if it.Extraneous {
			goes[it.Path] = true
		}
	}); err != nil {
		return nil, err
	}
	var out, ask []string
	for _, p := range paths {
		switch {
		case failed[p]: // what rsync says of it may be wrong
		case goes[p]:
			out = append(out, p)
		default:
			ask = append(ask, p)
		}
	}
	if len(ask) == 0 {
		return out, nil
	}
	// A path below an excluded directory goes in no case.
	if ask, err = r.reachable(ctx, root, ask, false); err != nil || len(ask) == 0 {
		return out, err
	}
	file, dir := map[string]bool{}, map[string]bool{}
	dry := r.exec(ctx, runDelete, root, ask, fileList(ask), r.args(run{mode: listMissingMode}), func(line string) error {
		if it, ok := parseItem(line); ok && it.Extraneous {
			if it.Dir {
				dir[it.Path] = true
			} else {
				file[it.Path] = true
			}
		}
		return nil
	})
	if dry.Class != Done {
		return nil, &runError{dry}
	}
	for _, p := range ask {
		switch {
		case file[p]:
			out = append(out, p)
		case dir[p] || slices.Contains(dry.Kept, p):
			res.Kept = append(res.Kept, p)
		}
	}
	slices.Sort(out)
	return out, nil
}

// runError carries the result of a run that was needed before the job itself.
type runError struct{ res Result }

func (e *runError) Error() string { return e.res.Message }

// local is a dry run of rsync without a connection.
func (r *Runner) local(ctx context.Context, dir string, paths, args []string, each func(Item)) error {
	args = append([]string{"--dry-run", "--out-format=" + outFormat, "--8-bit-output"}, args...)
	if !r.version.before(2, 5) {
		// Else its receiving half rejects a list with a path below an excluded directory.
		args = append([]string{"--trust-sender"}, args...)
	}
	if paths != nil {
		args = append([]string{"--from0", "--files-from=-"}, args...)
	}
	var stderr tail
	stderr.max = maxStderr
	cmd := exec.CommandContext(ctx, r.rsync, args...)
	cmd.Env = environment()
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(string(fileList(paths)))
	out := &lines{each: func(line string) {
		if it, ok := parseItem(line); ok {
			each(it)
		}
	}}
	errs := &lines{each: stderr.add}
	cmd.Stdout, cmd.Stderr = out, errs
	r.log.Debug("rsync, to ask about rules", "argv", cmd.Args, "paths", len(paths))
	err := cmd.Run()
	errs.flush()
	if err != nil && cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == ExitVanished {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("ask rsync about the rules: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return nil
}
