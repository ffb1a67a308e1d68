// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// killDelay is how long rsync may take to end after SIGTERM. It moves a half-received file into partialDir then.
const killDelay = 10 * time.Second

// Run does one job. progress, when not nil, is called from one goroutine while a Send or Tree job runs, and
// not after Run has returned. Cancelling ctx ends rsync with SIGTERM.
func (r *Runner) Run(ctx context.Context, root *Root, job Job, progress func(Progress)) Result {
	began := time.Now()
	res := r.run(ctx, root, job, progress)
	res.Elapsed = time.Since(began)
	return res
}

func (r *Runner) run(ctx context.Context, root *Root, job Job, progress func(Progress)) Result {
	if path := r.opts.Target.Path; path != "" {
		return Result{Status: -1, Class: Permanent, Message: fmt.Sprintf("nothing is written to %s, which no module guards", path)}
	}
	paths, early, err := r.prepare(ctx, root, job)
	if err != nil {
		return r.notRun(ctx, early, err)
	}
	if len(paths) == 0 {
		return merge(early, Result{Status: -1}) // nothing to do: rsync does not run
	}
	c := run{progress: progress != nil, small: job.Small}
	kind := runSend
	switch job.Kind {
	case Send:
		c.mode = sendMode
		if job.Force {
			c.mode, kind = forceMode, runForce
		}
		if paths[0] == "" {
			// Rsync takes ./ for the directory and what is in it. It comes along with any other path.
			if paths = paths[1:]; len(paths) == 0 {
				paths, c.mode = []string{""}, rootMode
			}
		}
	case Tree:
		c.mode, c.full, kind = treeMode, job.Full, runTree
		for _, path := range job.Skip {
			c.first = append(c.first, "- "+literal(path))
		}
	case Delete:
		c.mode, c.progress, kind = deleteMode, false, runDelete
	}
	if job.Checksum {
		c.mode = append(slices.Clone(c.mode), "--checksum")
	}
	if job.Kind != Delete {
		defer r.writers.begin()()
	}
	var pp progressParser
	var shown time.Time
	var newest string // line of progress, not looked at yet
	show := func() {
		if p, ok := pp.parse(newest); ok {
			progress(p)
		}
		newest = ""
	}
	var deleted int64
	each := func(line string) error {
		if it, ok := parseItem(line); ok {
			if it.Extraneous {
				deleted++
			}
		} else if progress != nil && maybeProgress(line) {
			newest = line
			if now := time.Now(); now.Sub(shown) >= progressEvery {
				shown = now
				show()
			}
		}
		return nil
	}
	res := r.send(ctx, kind, root, paths, r.args(c), job.Standby, each)
	show()
	res.Stats.Deleted = max(res.Stats.Deleted, deleted)
	return merge(early, res)
}

// merge adds what was found before the run to what the run found.
func merge(early, res Result) Result {
	res.Failed = append(early.Failed, res.Failed...)
	res.Changed = union(early.Changed, res.Changed)
	res.Kept = union(early.Kept, res.Kept)
	res.Incomplete = res.Incomplete || early.Incomplete
	if res.Class == Done {
		res.Message, res.Hint = res.summary()
	}
	return res
}

func union(a, b []string) []string {
	if len(a) == 0 {
		return b
	}
	a = append(a, b...)
	slices.Sort(a)
	return slices.Compact(a)
}

// prepare looks at each path of a job and returns those to hand to rsync, sorted, without duplicates. What is
// out of the question already is in the early result.
func (r *Runner) prepare(ctx context.Context, root *Root, job Job) (paths []string, early Result, err error) {
	paths = slices.Clone(job.Paths)
	slices.Sort(paths)
	paths = slices.Compact(paths)
	if job.Kind != Send {
		paths = topMost(paths)
	}
	keep := paths[:0]
	for _, p := range paths {
		e, err := root.Lstat(p)
		absent := errors.Is(err, fs.ErrNotExist)
		if err != nil && !absent {
			if checkPath(p) != nil {
				return nil, early, err // not a path: a bug of the caller's
			}
			early.Failed = append(early.Failed, PathFailure{Path: p, Reason: reason(err)})
			continue
		}
		switch {
		case job.Kind == Delete:
			switch top := root.top(p); {
			case !absent:
				early.Changed = append(early.Changed, p)
				continue
			case top != p:
				early.Changed = append(early.Changed, top)
				continue
			}
		case absent:
			early.Changed = append(early.Changed, root.top(p))
			continue
		case job.Kind == Tree && !e.Mode.IsDir(),
			job.Kind == Send && job.Force && e.Mode.IsDir():
			early.Changed = append(early.Changed, p)
			continue
		}
		keep = append(keep, p)
	}
	slices.Sort(early.Changed)
	early.Changed = slices.Compact(early.Changed)
	if job.Kind == Delete {
		keep, err = r.deletable(ctx, root, keep, &early)
	} else {
		keep, err = r.reachable(ctx, root, keep, job.Full)
	}
	return keep, early, err
}

func reason(err error) string {
	var pe *fs.PathError
	if !errors.As(err, &pe) {
		return err.Error()
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		// As rsync spells it: Permission denied (13).
		s := errno.Error()
		return fmt.Sprintf("%s%s (%d)", strings.ToUpper(s[:1]), s[1:], int(errno))
	}
	return pe.Err.Error()
}

// topMost leaves out paths below another one of the sorted list.
func topMost(sorted []string) []string {
	if len(sorted) > 0 && sorted[0] == "" {
		return sorted[:1]
	}
	seen := make(map[string]bool, len(sorted))
	for _, p := range sorted {
		seen[p] = true
	}
	out := make([]string, 0, len(sorted))
next:
	for _, p := range sorted {
		for dir := range ancestors(p) {
			if seen[dir] {
				continue next
			}
		}
		out = append(out, p)
	}
	return out
}

// notRun is the result when rsync could not be started, or was not.
func (r *Runner) notRun(ctx context.Context, res Result, err error) Result {
	var before *runError
	if errors.As(err, &before) {
		return before.res
	}
	res.Status = -1
	res.Class, res.Message = Transient, err.Error()
	if ctx.Err() != nil {
		res.Class, res.Message = Stopped, "stopped"
	} else if _, err := os.Stat(r.rsync); err != nil {
		res.Class, res.Message, res.Hint = Permanent, "rsync is not there: "+err.Error(), "install rsync 3.1.3 or newer"
	}
	return res
}

// send does as exec, with the standby process if there is one for it, and launches the next one if it is to stand by for keep.
func (r *Runner) send(ctx context.Context, kind runKind, root *Root, paths, args []string, keep time.Duration, each func(line string) error) Result {
	if err := ctx.Err(); err != nil {
		return r.notRun(ctx, Result{}, err)
	}
	list := fileList(paths)
	p := r.takeStandby(root, args)
	stoodBy := p != nil
	if !stoodBy {
		var err error
		if p, err = r.launch(root, args); err != nil {
			return r.notRun(ctx, Result{}, err)
		}
	}
	r.log.Debug("rsync", "argv", p.cmd.Args, "paths", len(paths), "standby", stoodBy)
	p.feed(list)
	next := keep > 0 && r.launchStandby(root, args)
	if next {
		defer r.standby.expire(keep)
	}
	res := r.follow(ctx, p, newReport(kind, root, paths), each)
	if stoodBy && (res.Class == Transient || res.Class.refused()) {
		// What it met may be over: the daemon was restarted, or the disk mounted, since it was launched.
		cut := res.Cut
		res = r.exec(ctx, kind, root, paths, list, args, each)
		res.Cut = res.Cut || cut
	}
	res.Standby = next
	return res
}

// exec runs rsync in the root's directory with the list of the paths on its standard input. Each line of standard
// output that is neither a message nor a statistic goes to each; an error from it ends the run.
func (r *Runner) exec(ctx context.Context, kind runKind, root *Root, paths []string, list []byte, args []string, each func(line string) error) Result {
	if err := ctx.Err(); err != nil {
		return r.notRun(ctx, Result{}, err)
	}
	p, err := r.launch(root, args)
	if err != nil {
		return r.notRun(ctx, Result{}, err)
	}
	r.log.Debug("rsync", "argv", p.cmd.Args, "paths", len(paths))
	p.feed(list)
	return r.follow(ctx, p, newReport(kind, root, paths), each)
}

// follow reads what a process says that has its list, and judges what became of it.
func (r *Runner) follow(ctx context.Context, p *process, rep *report, each func(line string) error) Result {
	began := time.Now()
	rep.skips = r.hasExtra("--no-devices", "--no-D", "--no-specials")
	defer p.stop(nil)
	defer context.AfterFunc(ctx, func() { p.stop(context.Cause(ctx)) })()
	var stats Stats
	stopped := false
	out := &lines{returns: true, each: func(line string) {
		if !strings.HasPrefix(line, itemMark) && !maybeProgress(line) && (rep.outLine(line) || stats.statLine(line)) || line == "" {
			return
		}
		if stopped {
			return // what is on its way until the signal arrives
		}
		if err := each(line); err != nil {
			stopped = true
			p.stop(err)
		}
	}}
	errs := &lines{each: rep.errLine}
	p.hear(out, errs)
	out.flush()
	errs.flush()
	status := p.cmd.ProcessState.ExitCode()

	res := Result{Status: status, Stats: stats, Stderr: rep.stderr.String(), Elapsed: time.Since(began)}
	res.Failed = rep.Failed
	slices.SortFunc(res.Failed, func(a, b PathFailure) int { return strings.Compare(a.Path, b.Path) })
	res.Changed = keys(rep.changed)
	res.Blocked = keys(rep.blocked)
	res.Kept = keys(rep.kept)
	res.Incomplete = rep.incomplete
	cause := context.Cause(p.ctx)
	switch {
	case cause != nil && status != ExitOK && status != ExitVanished && status != ExitPartial:
		// Rsync that has ended by itself before our signal came to it has a result of its own.
		res = withVerdict(res, Stopped, "stopped", "")
	case status < 0:
		res = withVerdict(res, Transient, fmt.Sprintf("rsync was ended: %v", p.wait), "")
	default:
		res.judge(status, rep, &r.opts.Target)
	}
	if rep.overflow && res.Class == Done {
		res = withVerdict(res, Unknown, fmt.Sprintf("more than %d paths are in trouble, as %s", maxNamed, rep.said()), "")
	}
	res.Cut = res.Class != Done && (!res.Class.refused() || status == ExitFileIO) && !rep.unreached || rep.parts && len(res.Failed)+len(res.Changed) > 0
	r.log.Debug("rsync ended", "status", status, "class", res.Class.String(), "elapsed", res.Elapsed, "err", res.Message)
	return res
}

func keys(m map[string]bool) []string {
	if len(m) == 0 {
		return nil
	}
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
