// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// runFilter is `lockstep filter test`: which paths do the exclude patterns keep from being replicated, and which pattern does it.
func runFilter(_ context.Context, std stdio, args []string) error {
	if len(args) == 1 && isHelp(args[0]) {
		args = []string{"test", "--help"}
	}
	if len(args) == 0 || args[0] != "test" {
		return usageError(errors.New("filter: want filter test\nhint: lockstep help filter"))
	}
	flags := newFlags(std, "A PATH is relative to the source directory; one that ends in / is a directory.\n",
		"filter test [--exclude PATTERN]... [--definition FILE] PATH...")
	var patterns []string
	flags.Func("exclude", "an rsync exclude `PATTERN`; may be given several times", func(s string) error {
		patterns = append(patterns, s)
		return nil
	})
	definition := flags.String("definition", "", "take the patterns from this pair definition `FILE`")
	paths, err := parseMixed(flags, args[1:])
	if err != nil {
		return flagError(err)
	}
	switch {
	case len(paths) == 0:
		return usageError(errors.New("filter test: no PATH given"))
	case *definition != "" && len(patterns) > 0:
		return usageError(errors.New("filter test: --exclude and --definition exclude each other"))
	}
	root := ""
	if *definition != "" {
		data, err := os.ReadFile(*definition)
		if err != nil {
			return err
		}
		p, err := pair.Parse(data)
		if err != nil {
			return usageError(fmt.Errorf("%s: %w", *definition, err))
		}
		patterns, root = p.Exclude, p.Source.Path
		if n := len(p.Filter); n > 0 {
			fmt.Fprintf(std.err, "note: the definition also has %d filter rules, which rsync applies later; they are not tested here\n", n)
		}
	}
	exclude, err := watch.NewExclude(patterns)
	if err != nil {
		return usageError(err)
	}
	for _, arg := range paths {
		path, dir, err := testedPath(root, arg)
		if err != nil {
			return usageError(err)
		}
		verdict := "included"
		if pattern, ok := exclude.Find(path, dir); ok {
			verdict = "excluded by " + pattern
		}
		if _, err := fmt.Fprintf(std.out, "%s: %s\n", visible(arg), verdict); err != nil {
			return err
		}
	}
	return nil
}

// testedPath returns arg relative to the source directory, and whether it is a directory: because it ends in
// a slash, or because root, if known, is on this host and has a directory there.
func testedPath(root, arg string) (path string, dir bool, err error) {
	dir = strings.HasSuffix(arg, "/")
	path = filepath.Clean(arg)
	if filepath.IsAbs(path) {
		if root == "" {
			return "", false, fmt.Errorf("filter test: %q is absolute; write it relative to the source directory, or give --definition", arg)
		}
		if path, err = filepath.Rel(root, path); err != nil {
			return "", false, err
		}
	}
	if !filepath.IsLocal(path) {
		return "", false, fmt.Errorf("filter test: %q is not below the source directory", arg)
	}
	if root != "" && !dir {
		if fi, err := os.Lstat(filepath.Join(root, path)); err == nil {
			dir = fi.IsDir()
		}
	}
	if path == "." {
		path = ""
	}
	return path, dir, nil
}
