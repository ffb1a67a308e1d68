// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDirSetAgreesWithMaps does the same to a dirSet and to plain maps.
func TestDirSetAgreesWithMaps(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(7, 7))
	s := newDirSet()
	type inode struct{ dev, ino uint64 }
	want := map[string]inode{"/r": {}}
	s.add("/r", 0)
	paths := func() []string {
		var all []string
		for p := range want {
			all = append(all, p)
		}
		slices.Sort(all)
		return all
	}
	for step := range 5000 {
		all := paths()
		p := all[rnd.IntN(len(all))]
		switch n := rnd.IntN(10); {
		case n < 6:
			child := p + "/" + fmt.Sprint(rnd.IntN(20))
			if _, ok := want[child]; ok || strings.Count(child, "/") > 6 {
				continue
			}
			want[child] = inode{}
			s.add(child, s.get(p))
		case n < 9:
			// A small range, so that inodes are met again under another path.
			in := inode{uint64(1 + rnd.IntN(3)), uint64(1 + rnd.IntN(500))}
			if other := s.inode(in.dev, in.ino); other != 0 && s.path(other) != p {
				if want[s.path(other)] != in {
					t.Fatalf("step %d: inode %v found at %s", step, in, s.path(other))
				}
				continue
			}
			want[p] = in
			s.identify(s.get(p), in.dev, in.ino)
		case p != "/r" && (len(all) > 400 || strings.Count(p, "/") > 3):
			var gone, below []string
			s.removeTree(s.get(p), func(_ dirID, path string) { gone = append(gone, path) })
			for _, q := range all {
				if q == p || strings.HasPrefix(q, p+"/") {
					below = append(below, q)
					delete(want, q)
				}
			}
			slices.Sort(gone)
			if diff := cmp.Diff(below, gone); diff != "" {
				t.Fatalf("step %d: removeTree %s (-want +got):\n%s", step, p, diff)
			}
		}
		if s.len != len(want) {
			t.Fatalf("step %d: %d directories, want %d", step, s.len, len(want))
		}
	}
	var got []string
	s.each(func(id dirID) bool {
		p := s.path(id)
		got = append(got, p)
		if s.get(p) != id {
			t.Errorf("%s is not found by its path", p)
		}
		if parent := s.at(id).parent; parent != 0 && s.path(parent) != path.Dir(p) {
			t.Errorf("parent of %s is %s", p, s.path(parent))
		}
		if in := want[p]; in != (inode{}) && s.inode(in.dev, in.ino) != id {
			t.Errorf("%s is not found by its inode", p)
		}
		return true
	})
	slices.Sort(got)
	if diff := cmp.Diff(paths(), got); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
	if s.get("/none") != 0 || s.inode(9, 9) != 0 {
		t.Error("found what was never added")
	}
}
