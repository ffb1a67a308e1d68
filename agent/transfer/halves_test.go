// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"fmt"
	"slices"
	"testing"
)

// allEnds are names that begin and end with every byte that one can.
func allEnds() []string {
	var names []string
	for c := 1; c < 256; c++ {
		if b := string([]byte{byte(c)}); b != "/" && b != "." {
			names = append(names, b, "a"+b, b+"b", b+"x"+b, "é"+b)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Rsync itself says that each name is in one half and no other, on either side.
func TestEachNameIsInOneHalf(t *testing.T) {
	t.Parallel()
	tree := dir{}
	for _, name := range allEnds() {
		tree[name] = dir{"f": file("")}
	}
	usual, kinds := []string{"user%d", "%x.example.org", "2026-%04d", "%X", "照片%c"}, map[string]string{}
	for _, kind := range usual {
		for i := range 100 {
			name := fmt.Sprintf(kind, '一'+(i*7919)%10_000)
			tree[name], kinds[name] = dir{"f": file("")}, kind
		}
	}
	for _, side := range []string{"source", "backup"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			if side == "source" {
				f.make(tree)
			} else {
				f.makeBackup(tree)
			}
			items, res := f.list(ListOptions{Delete: true})
			f.done(res)
			told, in := map[string]int{}, map[string][2]int{}
			for _, it := range items {
				if it.Extraneous == (side == "source") && it.Path != "" {
					t.Errorf("%+v", it)
				}
				told[it.Path]++
				if kind, ok := kinds[it.Path]; ok {
					n := in[kind]
					n[it.Half]++
					in[kind] = n
				}
			}
			for name := range tree {
				if told[name] != 1 || told[name+"/f"] != 1 {
					t.Errorf("%q is told %d times, what is in it %d times", name, told[name], told[name+"/f"])
				}
			}
			for _, kind := range usual {
				if in := in[kind]; in[0] < 30 || in[1] < 30 {
					t.Errorf("of names like %s, the halves have %v", kind, in)
				}
			}
			if want := int64(2*len(tree) + 1); side == "source" && res.Stats.Files != want {
				t.Errorf("%d files in the source, not %d", res.Stats.Files, want)
			}
		})
	}
}

func TestWhatIsComparedInHalves(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		opts   ListOptions
		change func(*Options)
		want   bool
	}{
		"the whole tree":   {ListOptions{Delete: true}, func(*Options) {}, true},
		"paths":            {ListOptions{Delete: true, Paths: []string{"a"}}, func(*Options) {}, false},
		"contents":         {ListOptions{Delete: true, Checksum: true}, func(*Options) {}, false},
		"always contents":  {ListOptions{Delete: true}, func(o *Options) { o.Extra = []string{"-c"} }, false},
		"hard links":       {ListOptions{Delete: true}, func(o *Options) { o.Extra = []string{"--acls", "--hard-links"} }, false},
		"hard links, -H":   {ListOptions{Delete: true}, func(o *Options) { o.Extra = []string{"-H"} }, false},
		"with a bandwidth": {ListOptions{Delete: true}, func(o *Options) { o.BandwidthLimit = "1m" }, false},
	} {
		r := &Runner{}
		if c.change(&r.opts); r.splits(c.opts) != c.want {
			t.Errorf("%s: %v", name, !c.want)
		}
	}
}

// A module that takes one connection at a time has the halves one after the other.
func TestHalvesOneAfterTheOther(t *testing.T) {
	t.Parallel()
	tree := dir{}
	for _, name := range allEnds() {
		tree[name] = file("")
	}
	f := newFixture(t, "max connections = 1")
	f.make(tree)
	items, res := f.list(ListOptions{Delete: true})
	if f.done(res); len(items) != len(tree)+1 || res.Stats.Files != int64(len(items)) {
		t.Errorf("%d of %d told, %d files", len(items), len(tree)+1, res.Stats.Files)
	}
}

// Rsync keeps the parts of files of both halves in one directory beside them.
func TestPartsBesideFilesOfBothHalves(t *testing.T) {
	t.Parallel()
	files := []string{"a1", "a2"} // one of each half
	for name, c := range map[string]struct {
		differ []string
		told   bool
		left   bool
	}{
		"of no use":     {nil, true, false},
		"first in use":  {files[:1], false, true},
		"second in use": {files[1:], false, true},
		"both in use":   {files, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.make(dir{files[0]: file("x"), files[1]: file("y")})
			f.full()
			f.makeBackup(dir{partialDir: dir{files[0]: file(""), files[1]: file("")}})
			for _, file := range c.differ {
				f.write(file, "longer")
			}
			items, res := f.list(ListOptions{Delete: true})
			f.done(res)
			var extra []string
			halves := map[int]bool{}
			for _, it := range items {
				if it.Extraneous {
					extra = append(extra, it.Path)
				} else if it.Path != "" {
					halves[it.Half] = true
				}
			}
			if c.told != slices.Equal(extra, []string{partialDir}) || !c.told && len(extra) > 0 || res.PartsLeft != c.left {
				t.Errorf("extraneous %q, parts left %v", extra, res.PartsLeft)
			}
			if len(halves) != len(c.differ) {
				t.Errorf("the files are not of two halves: %+v", items)
			}
		})
	}
}

// What one half could not do counts for the whole.
func TestOneHalfThatFails(t *testing.T) {
	t.Parallel()
	done := Result{Class: Done, Stats: Stats{Files: 3}}
	unread := Result{Class: Done, Incomplete: true, Failed: []PathFailure{{Path: "", Reason: "x"}}, Changed: []string{"a"}, Stats: Stats{Files: 4}}
	broken := Result{Class: Transient, Message: "broken", Cut: true}
	stopped := Result{Class: Stopped, Message: "stopped"}
	for _, c := range []struct {
		name string
		a, b Result
		want Result
	}{
		{"none", done, done, Result{Class: Done, Stats: Stats{Files: 5}}},
		{"not all was read", done, unread, Result{Class: Done, Incomplete: true, Failed: unread.Failed, Changed: unread.Changed, Stats: Stats{Files: 6}}},
		{"the same was not read", unread, unread, Result{Class: Done, Incomplete: true, Failed: unread.Failed, Changed: unread.Changed, Stats: Stats{Files: 7}}},
		{"broken", done, broken, Result{Class: Transient, Message: "broken", Cut: true, Stats: done.Stats}},
		{"broken, and stopped because of it", broken, stopped, broken},
		{"stopped", stopped, done, Result{Class: Stopped, Message: "stopped", Stats: done.Stats}},
	} {
		for _, got := range []Result{joined(c.a, c.b), joined(c.b, c.a)} {
			if d := diff(c.want, got); d != "" {
				t.Errorf("%s: -want +got:\n%s", c.name, d)
			}
		}
	}
}

// Whoever has heard enough gets that for an answer, also where one half was turned away.
func TestListOfHalvesStopsWhenToldTo(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "max connections = 1")
	f.make(dir{"a1": file(""), "a2": file(""), "b1": file(""), "b2": file("")})
	told := 0
	res := f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(Item) error {
		told++
		return ErrStop
	})
	if res.Class != Stopped || told != 1 {
		t.Errorf("%d told, %+v", told, res)
	}
}
