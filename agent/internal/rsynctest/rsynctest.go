// SPDX-License-Identifier: Apache-2.0

// Package rsynctest gives tests and benchmarks what they need around rsync: a real daemon on a free
// loopback port, file trees as literals, and an exact comparison of two trees.
//
// The core ([Start], [Make], [Compare]) returns errors, so that a program can use it too; [Daemon],
// [MakeTree] and [CompareTrees] are the same for tests and end them. Everything stays within the
// directories that the caller names and on 127.0.0.1. No root is needed; as root the daemon keeps owners
// and devices, as ours does.
package rsynctest

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The environment can name another rsync than the one in PATH, to test with other versions: for both
// sides, and for the daemon alone.
const (
	binaryVariable = "RSYNCTEST_RSYNC"
	daemonVariable = "RSYNCTEST_DAEMON"
)

// Binary finds the rsync to test with.
func Binary(tb testing.TB) string {
	tb.Helper()
	path, err := exec.LookPath(cmp.Or(os.Getenv(binaryVariable), "rsync"))
	if err != nil {
		tb.Skip("rsync is not installed\nhint: apt-get install rsync")
	}
	return path
}

// Daemon starts a daemon in a directory of the test and stops it when the test ends.
func Daemon(tb testing.TB, opts Options) *Server {
	tb.Helper()
	opts.Rsync = cmp.Or(os.Getenv(daemonVariable), Binary(tb))
	if opts.Dir == "" {
		opts.Dir = tb.TempDir()
	}
	if opts.Path == "" {
		opts.Path = filepath.Join(opts.Dir, "backup")
	}
	s, err := Start(opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		// Not Stop: after SIGTERM a daemon takes 0.4 s to end.
		if err := s.Kill(); err != nil {
			tb.Error(err)
		}
		if tb.Failed() {
			lines := strings.SplitAfter(s.Log(), "\n")
			tb.Logf("end of the rsyncd log:\n%s", strings.Join(lines[max(0, len(lines)-30):], ""))
		}
	})
	return s
}

// MakeTree writes the tree below dir, which is made when it is missing.
func MakeTree(tb testing.TB, dir string, tree Dir) {
	tb.Helper()
	if err := Make(dir, tree); err != nil {
		tb.Fatal(err)
	}
}

// CompareTrees fails the test unless both trees are equal, and lists every difference.
func CompareTrees(tb testing.TB, src, dst string) {
	tb.Helper()
	CompareTreesWith(tb, src, dst, CompareOptions{})
}

// CompareTreesWith is CompareTrees with options.
func CompareTreesWith(tb testing.TB, src, dst string, opts CompareOptions) {
	tb.Helper()
	diffs, err := Compare(src, dst, opts)
	if err != nil {
		tb.Fatal(err)
	}
	for i, d := range diffs {
		if i == 50 {
			tb.Errorf("… and %d more differences", len(diffs)-i)
			break
		}
		tb.Error(d)
	}
	if len(diffs) > 0 {
		tb.FailNow()
	}
}

// Difference is one way in which two trees differ.
type Difference struct {
	Path string // relative, raw bytes; "." is the root
	What string // missing, extra, type, content, mode, owner, mtime, target, device, links
	Src  string
	Dst  string
}

// String renders the difference on one line, odd names quoted.
func (d Difference) String() string {
	return fmt.Sprintf("%q: %s: source %s, backup %s", d.Path, d.What, d.Src, d.Dst)
}
