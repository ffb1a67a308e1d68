// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

func (f *fixture) list(opts ListOptions) (items []Item, res Result) {
	f.Helper()
	res = f.r.List(f.Context(), f.root(), opts, func(it Item) error {
		items = append(items, it)
		return nil
	})
	return items, res
}

func TestListNamesEveryDifference(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	at := time.Unix(1_700_000_000, 0)
	f.make(dir{
		"same": file("x"), "content": file("x"), "mode": file(""), "time": rsynctest.With{Node: file(""), MTime: at},
		"hidden": rsynctest.With{Node: file("one"), MTime: at}, "link": link("a"), "gone": dir{"x": file("")}, "type": file(""),
	})
	f.full()
	f.write("content", "xx")
	f.ok(os.Chmod(f.at("mode"), 0o600))
	f.ok(rsynctest.Touch(f.at("time"), at.Add(1)))
	f.write("hidden", "two")
	f.ok(rsynctest.Touch(f.at("hidden"), at))
	f.rm("link")
	f.ok(os.Symlink("b", f.at("link")))
	f.rm("gone")
	f.rm("type")
	f.make(dir{"type": dir{}, "new": dir{"f": file(""), "l": link("x")}})
	before := f.backup()

	items, res := f.list(ListOptions{Delete: true})
	f.done(res)
	for i := range items {
		items[i].What, items[i].Half = strings.TrimSpace(items[i].What), 0
	}
	slices.SortFunc(items, func(a, b Item) int { return strings.Compare(a.Path, b.Path) })
	want := []Item{
		{Path: "", Dir: true, What: ".d..t......"},
		{Path: "content", What: "<f.st......"},
		{Path: "gone", Dir: true, Extraneous: true, What: "*deleting"},
		{Path: "gone/x", Extraneous: true, What: "*deleting"},
		{Path: "link", What: "cLc.t......"},
		{Path: "mode", What: ".f...p....."},
		{Path: "new", Dir: true, New: true, What: "cd+++++++++"},
		{Path: "new/f", New: true, What: "<f+++++++++"},
		{Path: "new/l", New: true, What: "cL+++++++++"},
		{Path: "time", What: "<f..t......"},
		{Path: "type", Dir: true, New: true, What: "cd+++++++++"},
	}
	if d := diff(want, items); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if res.Stats.Files != 11 { // with the top directory
		t.Errorf("%d files in the source", res.Stats.Files)
	}
	if d := diff(before, f.backup()); d != "" {
		t.Errorf("a comparison changed the backup: %s", d)
	}

	if items, _ := f.list(ListOptions{Checksum: true}); !slices.ContainsFunc(items, func(it Item) bool { return it.Path == "hidden" && it.What == "<fc........" }) {
		t.Errorf("checksums do not find what size and time hide: %+v", items)
	}
	items, res = f.list(ListOptions{Delete: true, Paths: []string{"new", "absent", "mode"}})
	f.perPath(res, Result{Class: Done, Changed: []string{"absent", "mode"}})
	if len(items) != 4 || items[0].Path != "" || items[1].Path != "new" { // implied top directory
		t.Errorf("part: %+v", items)
	}
}

func TestListOfASubtreeReportsNothingExtraneousOutside(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": dir{"b": dir{}}})
	f.full()
	f.makeBackup(dir{"x": file(""), "a": dir{"y": file(""), "b": dir{"z": file("")}}})
	items, res := f.list(ListOptions{Delete: true, Paths: []string{"a/b"}})
	f.done(res)
	for _, it := range items {
		if it.Extraneous && it.Path != "a/b/z" {
			t.Errorf("%+v", it)
		}
	}
}

func TestListOfFilesComparesNothingElse(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": dir{"b": file("1"), "c": file("1")}, "d": dir{"e": file("1")}, "f": file("1")})
	f.full()
	f.make(dir{"a": dir{"b": file("22"), "c": file("22")}, "d": dir{"e": file("22"), "new": file("")}, "f": file("22")})
	items, res := f.list(ListOptions{Paths: []string{"d/e", "d", "a/b"}})
	f.done(res)
	var got []string
	for _, it := range items {
		if !it.Dir {
			got = append(got, it.Path+": "+Attributes(it.What))
		}
	}
	if diff := cmp.Diff([]string{"a/b: size, time", "d/e: size, time", "d/new: "}, got); diff != "" {
		t.Error(diff)
	}
}

func TestListStopsWhenToldTo(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tree := dir{}
	for _, n := range oddNames[:20] {
		tree[n] = file("")
	}
	f.make(tree)
	n := 0
	res := f.r.List(f.Context(), f.root(), ListOptions{}, func(Item) error {
		n++
		return ErrStop
	})
	// A short run may have ended before the signal came.
	if n != 1 || res.Class != Stopped && res.Class != Done {
		t.Errorf("%d items, %+v", n, res)
	}
}

func TestListMissingCountsWhatADeletionTakes(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) { o.Exclude = []string{"*.tmp"} })
	f.make(dir{"d": dir{"sub": dir{"f": file("")}, "g": file("")}, "e": dir{"f": file("")}, "x": file(""), "still": file("")})
	f.full()
	f.makeBackup(dir{"d": dir{"own.tmp": file("")}})
	f.rm("d")
	f.rm("e")
	f.rm("x")
	before := f.backup()
	var got []string
	res := f.r.ListMissing(f.Context(), f.root(), []string{"d", "d/sub", "e/f", "x", "never/was", "also never"}, func(it Item) error {
		got = append(got, it.Path)
		return nil
	})
	f.perPath(res, Result{Class: Done, Changed: []string{"e", "never"}, Kept: []string{"d"}})
	slices.Sort(got)
	if d := diff([]string{"d/g", "d/sub", "d/sub/f", "x"}, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if d := diff(before, f.backup()); d != "" {
		t.Errorf("it changed the backup: %s", d)
	}
	f.perPath(f.del("d", "x", "still"), Result{Class: Done, Kept: []string{"d"}, Changed: []string{"still"}})
	if d := diff([]string{"d", "d/own.tmp", "e", "e/f", "still"}, f.backup()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// Rsync takes a missing path for a file, for which `cache/` does not hold.
func TestExcludedDirectoriesAreNotDeleted(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) {
		o.Exclude = []string{"cache/"}
		o.Filter = []string{"P archive/", "- *.o"}
	})
	f.make(dir{"d": dir{}, "a": dir{}})
	f.full()
	f.makeBackup(dir{
		"cache": dir{"x": file("")}, "d": dir{"cache": dir{"x": file("")}, "y": file(""), "x.o": file("")},
		"archive": dir{"x": file("")}, "a": dir{"cache": file(""), "archive": file("")},
	})
	f.perPath(f.del("cache", "d/cache", "d/cache/x", "archive", "d/y", "d/x.o", "a/cache", "a/archive"), Result{Class: Done, Kept: []string{"archive", "cache", "d/cache"}})
	want := []string{"a", "archive", "archive/x", "cache", "cache/x", "d", "d/cache", "d/cache/x", "d/x.o"}
	if d := diff(want, f.backup()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// Nothing is deleted of which that cannot be found out, and what has nothing to do with it goes on.
func TestWithoutRoomToAskAboutRulesNothingIsDeleted(t *testing.T) {
	f := newFixtureWith(t, func(o *Options) { o.Filter = []string{"P archive/"} })
	f.make(dir{"a": file("")})
	f.makeBackup(dir{"archive": dir{"x": file("")}, "y": file("")})
	t.Setenv("TMPDIR", "/nonexistent/lockstep")
	why := "it cannot be told whether the rules keep it: /nonexistent/lockstep: No such file or directory (2)"
	f.perPath(f.del("archive", "y"), Result{Class: Done, Status: -1, Failed: []PathFailure{{Path: "archive", Reason: why}, {Path: "y", Reason: why}}})
	f.done(f.send("a"))
	if d := diff([]string{"a", "archive", "archive/x", "y"}, f.backup()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// Protecting a directory does not protect what is in it while the source has the directory.
func TestWhatIsInAProtectedDirectoryIsDeleted(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) { o.Filter = []string{"P archive/"} })
	f.make(dir{"archive": dir{"old": dir{"f": file("")}, "now": file("")}})
	f.full()
	f.rm("archive/old")
	items, res := f.list(ListOptions{Delete: true})
	f.done(res)
	if !slices.ContainsFunc(items, func(it Item) bool { return it.Extraneous && it.Path == "archive/old" }) {
		t.Errorf("comparison: %+v", items)
	}
	f.done(f.del("archive/old"))
	f.same()
}

// What was listed as missing and is back when rsync looks must neither be sent nor take the place of anything.
func TestDeleteSendsNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"d": dir{"sub": dir{"f": file("")}}, "file": file("old"), "up": dir{"x": file("")}})
	f.full()
	f.rm("d")
	f.write("d", "a file now")
	f.write("file", "newer")
	f.make(dir{"new": dir{"below": file("")}})
	f.rm("up")
	f.ok(os.Symlink("new", f.at("up")))
	root := f.root()
	paths := []string{"d", "file", "new/gone", "new/below", "up/x"}
	before := f.backup()
	// Past the look at the disk, straight to rsync.
	res := f.r.exec(f.Context(), runDelete, root, paths, fileList(paths), f.r.args(run{mode: deleteMode}), func(string) error { return nil })
	if res.Class != Done {
		t.Errorf("%+v", res)
	}
	want := slices.DeleteFunc(slices.Clone(before), func(p string) bool { return p == "up/x" })
	if d := diff(want, f.backup()); d != "" && len(f.backup()) != len(before) {
		t.Errorf("-want +got:\n%s", d)
	}
	if b, err := os.ReadFile(f.dst + "/file"); err != nil || string(b) != "old" {
		t.Errorf("file was updated: %q, %v", b, err)
	}
}

// The parent of a deleted path vanishes between our look and rsync's.
func TestDeleteWhoseParentVanishes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"d": dir{"sub": dir{"f": file(""), "g": file("")}}})
	f.full()
	f.rm("d")
	paths := []string{"d/sub/f"}
	res := f.r.exec(f.Context(), runDelete, f.root(), paths, fileList(paths), f.r.args(run{mode: deleteMode}), func(string) error { return nil })
	f.perPath(res, Result{Class: Done, Status: ExitVanished, Changed: []string{"d", "d/sub"}})
	if d := diff([]string{"d", "d/sub", "d/sub/g"}, f.backup()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestListLeavesOutWhatRunningTransfersWrite(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"d": dir{"big": file(strings.Repeat("x", 1<<20))}})
	f.makeBackup(dir{"d": dir{".other.abc123": file(""), ".big.no": file("")}})
	f.r.opts.BandwidthLimit = "200"
	ctx, cancel := context.WithCancel(f.Context())
	started, ended := make(chan struct{}), make(chan Result)
	go func() {
		once := false
		ended <- f.r.Run(ctx, f.root(), Job{Kind: Send, Paths: []string{"d/big"}}, func(p Progress) {
			if !once && p.Bytes > 0 {
				once = true
				close(started)
			}
		})
	}()
	<-started
	waitFor(t, func() bool { return len(f.backup()) == 4 })
	items, res := f.list(ListOptions{Delete: true})
	f.done(res)
	var extra []string
	for _, it := range items {
		if it.Extraneous {
			extra = append(extra, it.Path)
		}
	}
	slices.Sort(extra)
	if d := diff([]string{"d/.big.no", "d/.other.abc123"}, extra); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	cancel()
	if res := <-ended; res.Class != Stopped && res.Class != Done {
		t.Errorf("%+v", res)
	}
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Error("not cancelled")
	}
}

// A temporary file is passed over while a run that may have made it goes on, and told once all of those have ended.
func TestTemporaryFilesThatNobodyOwnsAreTold(t *testing.T) {
	t.Parallel()
	var w writers
	if w.watch()("a") {
		t.Error("nobody writes, and it is passed over")
	}
	endFirst := w.begin()
	if list := w.watch(); !list("a") {
		t.Error("told while it may be written")
	}
	endSecond := w.begin()
	if list := w.watch(); !list("a") {
		t.Error("told although the first run goes on")
	}
	endFirst()
	if list := w.watch(); list("a") || !list("b") {
		t.Error("a is nobody's any more, and b may be the second run's")
	}
	list := w.watch()
	endSecond()
	if !list("b") {
		t.Error("told although its run has ended only after the listing began")
	}
	if w.watch()("b") {
		t.Error("b is nobody's any more")
	}
}

// Rsync gives the temporary file of .name no second dot.
func TestRefusedDotfileIsNamed(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", ".file"} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "uid = 65534", "gid = 65534")
			f.make(dir{name: file("x"), "other": file("y")})
			res := f.send(name, "other")
			if res.Class != Done || len(res.Failed) != 3 {
				t.Errorf("%v %q, failed %v", res.Class, res.Message, res.Failed)
			}
		})
	}
}

func TestListLeavesTheTemporaryFileOfADotfile(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", ".file"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixtureWith(t, func(o *Options) { o.BandwidthLimit = "1000" })
			f.make(dir{"keep": file("")})
			f.full()
			f.write(name, strings.Repeat("0123456789abcdef", 3<<16))
			done := make(chan Result, 1)
			go func() { done <- f.send(name) }()
			pattern := filepath.Join(f.dst, "."+strings.TrimPrefix(name, ".")+".??????")
			waitFor(t, func() bool { m, _ := filepath.Glob(pattern); return len(m) > 0 })
			items, _ := f.list(ListOptions{Delete: true})
			for _, it := range items {
				if it.Extraneous {
					t.Errorf("the temporary file of a running transfer is listed as extraneous: %+v", it)
				}
			}
			f.done(<-done)
		})
	}
}

func TestEmptyBackupIsTold(t *testing.T) {
	t.Parallel()
	for name, backup := range map[string]struct {
		has  dir
		want bool
	}{
		"nothing":                        {dir{}, true},
		"lost+found":                     {dir{"lost+found": dir{"#12": file("")}}, true},
		"an excluded file":               {dir{"x.tmp": file("")}, true},
		"a file":                         {dir{"other": file("")}, false},
		"a directory":                    {dir{"other": dir{"f": file("")}}, false},
		"what the source has":            {dir{"a": file("1")}, false},
		"only a directory of the source": {dir{"d": dir{}}, false},
		"a part of a broken transfer":    {dir{partialDir: dir{"a": file("")}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixtureWith(t, func(o *Options) { o.Exclude = []string{"*.tmp"} })
			f.make(dir{"a": file("1"), "d": dir{"b": file("1")}, "y.tmp": file("")})
			f.makeBackup(backup.has)
			before := f.backup()
			got, res := f.r.BackupEmpty(f.Context(), f.root())
			if got != backup.want || backup.want && res.Class != Done {
				t.Errorf("%v, %+v", got, res)
			}
			if d := diff(before, f.backup()); d != "" {
				t.Errorf("the backup was changed: %s", d)
			}
		})
	}
	f := newFixture(t) // of an empty source too
	if got, res := f.r.BackupEmpty(f.Context(), f.root()); !got {
		t.Errorf("%+v", res)
	}
	f.ok(f.d.Stop())
	if got, res := f.r.BackupEmpty(f.Context(), f.root()); got || res.Class == Done {
		t.Errorf("without a daemon: %v, %+v", got, res)
	}
}

// The filesystem of the backup has such a directory, whatever the source has.
func TestLostFoundOfTheBackupStays(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file("1"), "lost+found": dir{}, "d": dir{"lost+found": dir{}}})
	f.full()
	f.makeBackup(dir{"lost+found": dir{"#12": file("")}, "d": dir{"lost+found": dir{"x": file("")}}})
	extraneous := func() (paths []string) {
		items, res := f.list(ListOptions{Delete: true})
		f.done(res)
		for _, it := range items {
			if it.Extraneous {
				paths = append(paths, it.Path)
			}
		}
		return paths
	}
	if d := diff([]string{"d/lost+found/x"}, extraneous()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	f.rm("lost+found")
	if d := diff([]string{"d/lost+found/x"}, extraneous()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	f.del("lost+found")
	if _, err := os.Lstat(filepath.Join(f.dst, "lost+found", "#12")); err != nil {
		t.Error(err)
	}
}
