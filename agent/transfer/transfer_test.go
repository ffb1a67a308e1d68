// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

type (
	dir  = rsynctest.Dir
	file = rsynctest.File
	link = rsynctest.Link
)

// fixture is a source directory, a daemon, and a runner from one to the other.
type fixture struct {
	*testing.T
	src  string
	dst  string
	d    *rsynctest.Server
	opts Options
	r    *Runner
}

func newFixture(t *testing.T, settings ...string) *fixture {
	t.Helper()
	return newFixtureWith(t, func(*Options) {}, settings...)
}

func newFixtureWith(t *testing.T, change func(*Options), settings ...string) *fixture {
	t.Helper()
	d := rsynctest.Daemon(t, rsynctest.Options{Settings: settings})
	f := &fixture{T: t, src: t.TempDir(), dst: d.Path, d: d}
	f.opts = Options{
		Rsync:   rsynctest.Binary(t),
		Path:    f.src,
		Target:  Target{Address: d.Address, Port: d.Port, Module: d.Module, User: d.User, PasswordFile: d.PasswordFile},
		Timeout: 20 * time.Second,
		Log:     slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	change(&f.opts)
	f.runner()
	return f
}

func (f *fixture) runner() {
	f.Helper()
	r, err := New(f.opts)
	if err != nil {
		f.Fatal(err)
	}
	f.r = r
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (f *fixture) root() *Root {
	f.Helper()
	root, err := OpenRoot(f.src)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { root.Close() })
	return root
}

func (f *fixture) run(job Job) Result {
	f.Helper()
	return f.r.Run(f.Context(), f.root(), job, nil)
}

func (f *fixture) send(paths ...string) Result { return f.run(Job{Kind: Send, Paths: paths}) }
func (f *fixture) del(paths ...string) Result  { return f.run(Job{Kind: Delete, Paths: paths}) }

// full brings both sides in step without the code under test's Send.
func (f *fixture) full() {
	f.Helper()
	f.done(f.run(Job{Kind: Tree, Paths: []string{""}}))
	f.same()
}

func (f *fixture) same() {
	f.Helper()
	rsynctest.CompareTrees(f, f.src, f.dst)
}

// done fails the test unless everything of the job arrived.
func (f *fixture) done(res Result) Result {
	f.Helper()
	if res.Class != Done || len(res.Failed)+len(res.Changed)+len(res.Blocked)+len(res.Kept) > 0 {
		f.Fatalf("want all done, got %+v", res)
	}
	return res
}

func (f *fixture) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) make(tree dir)         { f.Helper(); rsynctest.MakeTree(f, f.src, tree) }
func (f *fixture) makeBackup(tree dir)   { f.Helper(); rsynctest.MakeTree(f, f.dst, tree) }
func (f *fixture) write(path, s string)  { f.Helper(); f.ok(os.WriteFile(f.at(path), []byte(s), 0o644)) }
func (f *fixture) rm(path string)        { f.Helper(); f.ok(os.RemoveAll(f.at(path))) }
func (f *fixture) at(path string) string { return filepath.Join(f.src, path) }
func (f *fixture) backupHas(path string) bool {
	_, err := os.Lstat(filepath.Join(f.dst, path))
	return err == nil
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root\nhint: run it with sudo")
	}
}

func TestSendBringsPathsWithTheDirectoriesAbove(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	at := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	f.make(dir{"a": rsynctest.With{Mode: 0o700, MTime: at, Node: dir{
		"b": rsynctest.With{Mode: 0o750, MTime: at.Add(1), Node: dir{"f": file("x")}},
	}}})
	if os.Geteuid() == 0 {
		f.ok(os.Chown(f.at("a/b"), 1234, 2345))
	}
	f.ok(rsynctest.Touch(f.src, at.Add(2)))
	f.done(f.send("a/b/f"))
	f.same()

	f.write("a/b/f", "yy")
	f.write("a/b/g", "z")
	f.done(f.send("a/b/f", "a/b/g"))
	f.same()
}

func TestDeleteRemovesTheTopMostMissingPathsOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"d": dir{"sub": dir{"f": file("1")}, "g": file("2")}, "keep": file("k"), "e": dir{"x": file(""), "y": file("")}})
	f.full()
	f.rm("d")
	f.rm("e/x")
	res := f.done(f.del("d", "d/sub", "d/sub/f", "e/x"))
	f.same()
	if res.Stats.Deleted != 5 {
		t.Errorf("stats count %d deletions, want 5", res.Stats.Deleted)
	}
}

func TestCanaryLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file("x")})
	f.full()
	before, err := os.Stat(f.dst)
	f.ok(err)
	f.done(f.r.Probe(f.Context()))
	f.done(f.r.Canary(f.Context()))
	after, err := os.Stat(f.dst)
	f.ok(err)
	if before.Mode() != after.Mode() {
		t.Errorf("mode of the top directory went from %v to %v", before.Mode(), after.Mode())
	}
	f.done(f.send("a")) // brings the time of the top directory
	f.same()
}

// Rsync ends with status 0 then, for the deletion and for a dry run of it.
func TestCanaryNoticesThatNothingIsDeleted(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "refuse options = delete-missing-args")
	res := f.r.Canary(f.Context())
	if res.Class != Permanent || !strings.Contains(res.Message, "still on the backup") || !strings.Contains(res.Hint, "delete-missing-args") {
		t.Errorf("class %v, %q, hint %q", res.Class, res.Message, res.Hint)
	}
}

// diff compares results; an empty list is as good as none.
func diff(want, got any) string { return cmp.Diff(want, got, cmpopts.EquateEmpty()) }

func withCancel(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}

// waitFor waits until something is so that another process brings about.
func waitFor(t *testing.T, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}
