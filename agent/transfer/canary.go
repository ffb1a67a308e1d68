// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Probe makes one empty, authenticated connection: is the module there, and will it take us? It writes nothing.
func (r *Runner) Probe(ctx context.Context) Result {
	return r.exec(ctx, runOther, nil, nil, nil, r.args(run{mode: probeMode, plain: true}), func(string) error { return nil })
}

const (
	// canaryPrefix begins the name of the directory that Canary makes. The source has none such, so one that was
	// left by a crash is found as extraneous by the next comparison.
	canaryPrefix = ".lockstep-canary-"
	// cleanupTime bounds taking the canary away after ctx was cancelled.
	cleanupTime = 10 * time.Second
)

// Canary makes a small tree on the backup, changes and deletes it with the options of real runs, and
// compares after each step. It tells what no error message would: a backup that does not keep what it is given, or
// does not delete. The rules do not apply. Afterwards nothing is left of it but the modification time of the
// backup's top directory, which the next comparison finds.
func (r *Runner) Canary(ctx context.Context) Result {
	began := time.Now()
	res := r.canary(ctx)
	res.Elapsed = time.Since(began)
	return res
}

func (r *Runner) canary(ctx context.Context) (res Result) {
	tmp, err := os.MkdirTemp("", "lockstep-canary-")
	if err != nil {
		return r.notRun(ctx, Result{}, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	root, err := OpenRoot(tmp)
	if err != nil {
		return r.notRun(ctx, Result{}, err)
	}
	defer func() { _ = root.Close() }()
	c := canary{r: r, root: root, tmp: tmp, name: canaryPrefix + strings.ToLower(rand.Text()[:8])}
	c.file = c.name + "/sub/file"

	written := false
	defer func() {
		if written {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
			defer cancel()
			if gone := os.RemoveAll(filepath.Join(tmp, c.name)); gone == nil {
				c.run(cleanup, runDelete, deleteMode, []string{c.name}, nil)
			}
		}
	}()
	for _, s := range []struct {
		what string
		do   func() error
		kind runKind
		mode []string
	}{
		{"create", func() error {
			if err := os.MkdirAll(filepath.Join(tmp, c.name, "sub"), 0o755); err != nil {
				return err
			}
			return c.write("canary 1")
		}, runSend, sendMode},
		{"update", func() error { return c.write("canary 2") }, runSend, sendMode},
		{"delete", func() error { return os.RemoveAll(filepath.Join(tmp, c.name)) }, runDelete, deleteMode},
	} {
		if err := s.do(); err != nil {
			return r.notRun(ctx, Result{}, err)
		}
		paths := []string{c.name, c.name + "/sub", c.file}
		if s.kind == runDelete {
			paths = paths[:1]
		}
		written = true
		if res = c.run(ctx, s.kind, s.mode, paths, nil); res.failed() {
			return c.verdict(res, s.what, "")
		}
		if s.kind == runDelete {
			// A module that refuses --delete-missing-args says of a deletion that it is done, and of a dry run of it that there is
			// nothing to do. So it is asked whether it would make the directory.
			if err := os.Mkdir(filepath.Join(tmp, c.name), 0o755); err != nil {
				return r.notRun(ctx, Result{}, err)
			}
		}
		different, made := "", false
		res = c.run(ctx, runList, listMode, paths[:1], func(line string) error {
			it, ok := parseItem(line)
			made = made || ok && it.New && it.Path == c.name
			if ok && different == "" && it.Path != "" {
				different = it.What + " " + it.Path
			}
			return nil
		})
		switch {
		case res.failed():
			return c.verdict(res, s.what, "")
		case s.kind == runDelete && !made:
			return withVerdict(res, Permanent, "a test file is still on the backup after rsync said that it was deleted: "+c.name,
				"does the module's `refuse options` refuse delete-missing-args? Or is rsync 3.4.3 on one of the hosts, which cannot do it? Then remove "+c.name+" on the backup")
		case s.kind != runDelete && different != "":
			return c.verdict(res, s.what, different)
		}
	}
	written = false
	return res
}

func (res Result) failed() bool {
	return res.Class != Done || len(res.Failed)+len(res.Blocked)+len(res.Kept) > 0
}

type canary struct {
	r               *Runner
	root            *Root
	tmp, name, file string
}

func (c *canary) write(s string) error {
	return os.WriteFile(filepath.Join(c.tmp, c.file), []byte(s), 0o644)
}

// run hands the paths to rsync without the ./ of real runs: with it, the attributes of the temporary directory would go
// to the backup's top directory.
func (c *canary) run(ctx context.Context, kind runKind, mode, paths []string, each func(string) error) Result {
	if each == nil {
		each = func(string) error { return nil }
	}
	list := []byte(strings.Join(paths, "\x00") + "\x00")
	return c.r.exec(ctx, kind, c.root, paths, list, c.r.args(run{mode: mode, plain: true}), each)
}

// verdict says in words what went wrong.
func (c *canary) verdict(res Result, what, different string) Result {
	switch {
	case res.Class != Done:
		return res
	case different != "":
		hint := "does the filesystem of the backup keep owners, modes and times to the nanosecond, and may the module's uid set them?"
		return withVerdict(res, Permanent, fmt.Sprintf("a test file differs on the backup after rsync said that the %s was done: %s", what, different), hint)
	}
	return withVerdict(res, Permanent, fmt.Sprintf("%s of a test file: %s", what, res.Message), res.Hint)
}
