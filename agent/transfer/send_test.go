// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

// kinds of what can stand at a path. The value is what to put there.
func kindsOfEntry() map[string]rsynctest.Node {
	kinds := map[string]rsynctest.Node{
		"file": file("x"), "empty directory": dir{}, "link": link("keep"), "link to a directory": link("other"),
		"fifo": rsynctest.Fifo{}, "socket": rsynctest.Socket{},
	}
	if os.Geteuid() == 0 {
		kinds["device"] = rsynctest.CharDevice{Major: 1, Minor: 3}
	}
	return kinds
}

// One daemon and one run for all pairs of kinds: each pair has a path of its own.
func TestSendChangesTheTypeOfAPath(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	before, after := dir{"keep": file(""), "other": dir{"z": file("")}}, dir{"keep": file(""), "other": dir{"z": file("")}}
	paths := []string{"keep", "other", "other/z"}
	kinds := kindsOfEntry()
	for from, a := range kinds {
		for to, b := range kinds {
			p := from + " to " + to
			before[p], after[p] = a, b
			paths = append(paths, p)
		}
		p := from + " to non-empty directory"
		before[p], after[p] = a, dir{"below": dir{"f": file("y")}}
		paths = append(paths, p, p+"/below", p+"/below/f")
	}
	f.make(before)
	f.full()
	f.ok(os.RemoveAll(f.src))
	f.make(after)
	f.done(f.send(paths...))
	f.same()
}

func TestNonEmptyDirectoryBlocksUntilForced(t *testing.T) {
	t.Parallel()
	for to, node := range kindsOfEntry() {
		if to == "empty directory" {
			continue
		}
		t.Run(to, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.make(dir{"p": dir{"sub": dir{"f": file("x")}}, "q": dir{"g": file("")}, "keep": file(""), "other": dir{}})
			f.full()
			f.rm("p")
			f.make(dir{"p": node})
			f.write("more", "sent beside it")
			res := f.send("p", "more")
			f.perPath(res, Result{Class: Done, Status: ExitPartial, Blocked: []string{"p"}})
			if !f.backupHas("more") || !f.backupHas("p/sub/f") {
				t.Error("more was not sent, or p was deleted without force")
			}
			if n := f.missing("p"); n != 2 {
				t.Errorf("forcing would delete %d entries, want 2", n)
			}
			f.done(f.run(Job{Kind: Send, Paths: []string{"p"}, Force: true}))
			f.same()
		})
	}
}

// missing counts what ListMissing reports of a path, without the path.
func (f *fixture) missing(path string) (n int) {
	f.Helper()
	res := f.r.ListMissing(f.Context(), f.root(), []string{path}, func(it Item) error {
		if it.Path != path {
			n++
		}
		return nil
	})
	if res.Class != Done || len(res.Failed) > 0 {
		f.Fatalf("list missing: %+v", res)
	}
	return n
}

func TestForceLeavesDirectoriesAndExcludedFilesAlone(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) { o.Exclude = []string{"*.tmp"} })
	f.make(dir{"p": dir{"f": file("x")}, "d": dir{}})
	f.full()
	f.makeBackup(dir{"p": dir{"mine.tmp": file("backup's own")}, "d": dir{"x": file("")}})
	f.rm("p")
	f.write("p", "now a file")
	res := f.run(Job{Kind: Send, Paths: []string{"d", "p"}, Force: true})
	f.perPath(res, Result{Class: Done, Status: ExitPartial, Blocked: []string{"p"}, Kept: []string{"p"}, Changed: []string{"d"}})
	if !f.backupHas("p/mine.tmp") || !f.backupHas("d/x") {
		t.Error("force deleted an excluded file or something in a directory")
	}
}

// A stale path below what has become a symbolic link must neither destroy the link on the backup nor make rsync read
// where the link leads.
func TestPathsBelowASymlinkAreNeverSent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"subdir1": dir{"file1": file("x")}, "subdir2": dir{"subdir1": dir{"file1": file("x")}}})
	f.full()
	f.rm("subdir2/subdir1")
	f.ok(os.Symlink("../subdir1", f.at("subdir2/subdir1")))
	res := f.send("subdir2/subdir1/file1", "subdir2/subdir1/gone")
	f.perPath(res, Result{Class: Done, Status: -1, Changed: []string{"subdir2/subdir1"}})
	f.perPath(f.del("subdir2/subdir1/gone"), Result{Class: Done, Status: -1, Changed: []string{"subdir2/subdir1"}})
	f.perPath(f.run(Job{Kind: Tree, Paths: []string{"subdir2/subdir1"}}), Result{Class: Done, Status: -1, Changed: []string{"subdir2/subdir1"}})
	f.done(f.run(Job{Kind: Send, Paths: []string{"subdir2/subdir1"}, Force: true}))
	f.same()
}

var oddNames = []string{
	"new\nline", "cr\r", "\rcr", "#x", ";x", "-x", "--delete", "a[1]", "a1", "a]b", "*", "?", `back\slash`, `\`, `hash\#012`,
	" lead", "trail ", "tab\t", "\x7f", "\xff\xfe", "é", `"`, "'", "`x`", "$d", "$(touch x)", "a -> b", "%n", "~", "...", ":q", "- x", "+ x",
	strings.Repeat("n", 255), strings.Repeat("é", 127),
}

func TestOddNames(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tree := dir{}
	var paths []string
	for _, n := range oddNames {
		tree[n] = file(n)
		paths = append(paths, n)
		if len(n) < 240 {
			tree["d"+n] = dir{n: file(n), "l" + n: link(n)}
			paths = append(paths, "d"+n+"/"+n, "d"+n+"/l"+n)
		}
	}
	f.make(tree)
	f.done(f.send(paths...))
	f.same()

	// Edited, in the same second and at the same size.
	for _, p := range paths {
		if fi, err := os.Lstat(f.at(p)); err == nil && fi.Mode().IsRegular() {
			f.ok(os.WriteFile(f.at(p), []byte(strings.Repeat("!", int(fi.Size()))), 0o644))
		}
	}
	listed := map[string]bool{}
	f.done(f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(it Item) error {
		listed[it.Path] = true
		return nil
	}))
	for _, p := range paths {
		if strings.Contains(p, "/l") {
			continue
		}
		if !listed[p] {
			t.Errorf("the comparison does not name %q", p)
		}
	}
	f.done(f.send(paths...))
	f.same()

	for _, p := range paths {
		f.ok(os.Remove(f.at(p)))
	}
	listed = map[string]bool{}
	f.done(f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(it Item) error {
		if it.Extraneous {
			listed[it.Path] = true
		}
		return nil
	}))
	for _, p := range paths {
		if !listed[p] {
			t.Errorf("the comparison does not name %q as extraneous", p)
		}
	}
	f.done(f.del(paths...))
	f.same()
}

func TestSendOfTheSourceDirectoryBringsItsAttributesOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file(""), "d": dir{"f": file("")}})
	f.ok(os.Chmod(f.src, 0o751))
	f.ok(rsynctest.Touch(f.src, time.Unix(1, 2)))
	check := func(want ...string) {
		t.Helper()
		if d := diff(want, f.backup()); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
		if fi, err := os.Stat(f.dst); err != nil || fi.Mode().Perm() != 0o751 || !fi.ModTime().Equal(time.Unix(1, 2)) {
			t.Errorf("%v %v %v", fi.Mode(), fi.ModTime(), err)
		}
	}
	f.done(f.send(""))
	check()
	f.done(f.send("", "d"))
	check("d")
	f.perPath(f.del(""), Result{Class: Done, Status: -1, Changed: []string{""}})
	check("d")
}

func TestRewriteOfEqualSizeInTheSameSecondIsSent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	at := time.Unix(1_700_000_000, 100)
	f.make(dir{"a": rsynctest.With{Node: file("one"), MTime: at}})
	f.full()
	f.write("a", "two")
	f.ok(rsynctest.Touch(f.at("a"), at.Add(1)))
	f.done(f.send("a"))
	f.same()
}

func TestExcludedPathsAreNotSent(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) {
		o.Exclude = []string{"*.tmp", "cache/", "+ plus", "/top"}
		o.Filter = []string{"+ /f/keep/", "- /f/*/", "P archive/"}
	})
	f.make(dir{
		"a.tmp": file(""), "a": file(""), "cache": dir{"deep": dir{"x": file("")}}, "d": dir{"cache": file("a file is not excluded"), "b.tmp": file("")},
		"+ plus": file(""), "top": file(""), "sub": dir{"top": file("")}, "f": dir{"keep": dir{"x": file("")}, "other": dir{"x": file("")}},
	})
	want := []string{"a", "d", "d/cache", "f", "f/keep", "f/keep/x", "sub", "sub/top"}
	for round := range 2 { // the second is answered from memory
		f.done(f.send("a.tmp", "a", "cache/deep/x", "cache/deep", "d/cache", "d/b.tmp", "+ plus", "top", "sub/top", "f/keep/x", "f/other/x"))
		f.done(f.run(Job{Kind: Tree, Paths: []string{"cache/deep", "d", "f"}}))
		if d := diff(want, f.backup()); d != "" {
			t.Errorf("round %d: -want +got:\n%s", round, d)
		}
	}
}

// What is skipped stays as it is, whatever it is called and whatever the rules say, and its neighbours go.
func TestSkippedFilesAreNotSent(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) { o.Filter = []string{"+ /d/**"} })
	all, old, want := dir{}, dir{}, []string{"d"}
	var skip []string
	for i, n := range oddNames {
		all[n] = file("new and longer")
		if i%2 == 0 {
			skip = append(skip, "d/"+n)
			old[n] = file("old")
		}
		want = append(want, "d/"+n)
	}
	f.make(dir{"d": all})
	f.makeBackup(dir{"d": old})
	f.done(f.run(Job{Kind: Tree, Paths: []string{"d"}, Skip: skip}))
	slices.Sort(want)
	if d := diff(want, f.backup()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for _, path := range want[1:] {
		got, err := os.ReadFile(filepath.Join(f.dst, path))
		if err != nil || (string(got) == "old") != slices.Contains(skip, path) {
			t.Errorf("%q: %q, %v", path, got, err)
		}
	}
	f.done(f.run(Job{Kind: Tree, Paths: []string{""}, Full: true, Skip: skip}))
	f.done(f.run(Job{Kind: Tree, Paths: []string{""}}))
	f.same()
}

// backup lists the backup's paths.
func (f *fixture) backup() (paths []string) {
	f.Helper()
	f.ok(filepath.WalkDir(f.dst, func(p string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(f.dst, p); rel != "." {
			paths = append(paths, rel)
		}
		return err
	}))
	return paths
}

func TestInterruptedTransferLeavesAPartThatTheNextOneUses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const size = 4 << 20
	f.make(dir{"d": dir{"big": file(strings.Repeat("0123456789abcdef", size/16))}})
	f.r.opts.BandwidthLimit = "500"
	ctx, cancel := withCancel(t)
	res := f.r.Run(ctx, f.root(), Job{Kind: Send, Paths: []string{"d/big"}}, func(p Progress) {
		if p.Bytes > 0 {
			cancel()
		}
	})
	if res.Class != Stopped {
		t.Fatalf("%+v", res)
	}
	waitFor(t, func() bool { return f.backupHas("d/" + partialDir + "/big") })
	f.done(f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(it Item) error {
		if it.Extraneous {
			t.Errorf("the comparison would delete the part: %+v", it)
		}
		return nil
	}))
	f.r.opts.BandwidthLimit = ""
	res = f.done(f.send("d/big"))
	f.same() // nothing is left over either
	if res.Stats.Sent >= size {
		t.Errorf("sent %d bytes of %d again", res.Stats.Sent, size)
	}

	// Parts whose files are gone or in step are extraneous, but not while one that is still of use is beside them.
	f.write("d/new", "z")
	f.makeBackup(dir{
		"d": dir{
			partialDir: dir{"gone": file("x"), "big": file("y"), "new": file("z")},
			"e":        dir{partialDir: dir{"gone": file("")}},
		},
		partialDir: dir{"gone": file("")},
	})
	list := func() (extra []string, left bool) {
		t.Helper()
		res := f.done(f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(it Item) error {
			if it.Extraneous {
				extra = append(extra, it.Path)
			}
			return nil
		}))
		slices.Sort(extra)
		return extra, res.PartsLeft
	}
	extra, left := list()
	if d := diff([]string{partialDir, "d/e", "d/e/" + partialDir}, extra); d != "" || !left {
		t.Errorf("parts of no use are left: %v; extraneous: -want +got:\n%s", left, d)
	}
	f.done(f.del("d/e", partialDir))
	f.done(f.send("d/new"))
	extra, left = list()
	if d := diff([]string{"d/" + partialDir}, extra); d != "" || left {
		t.Errorf("parts of no use are left: %v; extraneous: -want +got:\n%s", left, d)
	}
	f.done(f.del(extra...))
	f.same()
}

// An excluded file in it keeps the directory of the parts.
func TestPartsThatCannotBeClearedAwayAreNotExtraneous(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) { o.Exclude = []string{"*.tmp"} })
	f.make(dir{"d": dir{}})
	f.full()
	f.makeBackup(dir{"d": dir{partialDir: dir{"gone": file("x"), "mine.tmp": file("y")}}})
	f.done(f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(it Item) error {
		if it.Path != "d" || it.Extraneous {
			t.Errorf("%+v", it)
		}
		return nil
	}))
}

func TestTreeTellsProgress(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tree := dir{}
	for i := range 50 {
		tree[fmt.Sprint(i)] = file(strings.Repeat("x", 1000))
	}
	f.make(dir{"t": tree})
	var last Progress
	res := f.done(f.r.Run(f.Context(), f.root(), Job{Kind: Tree, Paths: []string{""}}, func(p Progress) { last = p }))
	f.same()
	if last.Bytes != 50_000 || last.Files != 50 || !last.Listed || last.Percent != 100 && last.Percent != 99 || last.Total != 52 {
		t.Errorf("last progress: %+v", last)
	}
	want := Stats{Files: 52, Transferred: 50, Created: 51, Bytes: 50_000, Sent: res.Stats.Sent}
	if res.Stats != want || res.Stats.Sent < 50_000 {
		t.Errorf("stats %+v", res.Stats)
	}
}

func TestRunsStayInTheDirectoryThatWasOpened(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file("right"), "gone": file("")})
	f.full()
	f.rm("gone")
	f.write("a", "still right")
	root := f.root()
	other := f.src + ".other"
	f.ok(os.Rename(f.src, other))
	f.make(dir{"a": file("wrong"), "gone": file("")})
	f.done(f.r.Run(f.Context(), root, Job{Kind: Send, Paths: []string{"a"}}, nil))
	f.done(f.r.Run(f.Context(), root, Job{Kind: Delete, Paths: []string{"gone"}}, nil))
	rsynctest.CompareTrees(t, other, f.dst)
}
