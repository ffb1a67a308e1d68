// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// The kernel tells of a change under one name only.
func TestChangeThroughOneNameArrivesUnderAllNames(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a/one", "1")
	s.do(os.MkdirAll(s.path("b"), 0o755))
	s.do(os.Link(s.path("a/one"), s.path("b/two")))
	s.start()
	s.equal()
	for _, content := range []string{"22", "333", "444"} {
		f, err := os.OpenFile(s.path("b/two"), os.O_WRONLY, 0) // not truncated: the same file
		s.do(err)
		_, err = f.WriteString(content)
		s.do(err)
		s.do(f.Close())
		s.equal()
	}
	s.do(os.Chmod(s.path("a/one"), 0o600))
	s.equal()
}

// The attributes of what is no regular file, and has several names, too.
func TestAttributesOfAFifoWithSeveralNamesArrive(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("keep", "1")
	s.do(unix.Mkfifo(s.path("one"), 0o644))
	s.do(os.Link(s.path("one"), s.path("two")))
	s.start()
	s.equal()
	s.do(os.Chmod(s.path("two"), 0o600))
	s.equal()
}

// Of a tree with more such files than are remembered, a change of any is a change.
func TestMoreFilesWithSeveralNamesThanAreRemembered(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		changed := time.Unix(1, 0)
		look := func() (p prepared) {
			for i := range linksKnown + 2 {
				p.several(transfer.Entry{Nlink: 2, Dev: 1, Ino: uint64(i + 1), ChangeTime: changed})
			}
			return p
		}
		few := prepared{}
		few.several(transfer.Entry{Nlink: 2, Dev: 1, Ino: 1, ChangeTime: changed})
		few.several(transfer.Entry{Nlink: 1, Dev: 1, Ino: 2, ChangeTime: changed})
		for _, c := range []struct {
			p    prepared
			want bool
		}{{few, true}, {few, false}, {look(), true}, {look(), true}} {
			r.l.links.wanted = false
			r.l.linked(c.p.links)
			if r.l.links.wanted != c.want {
				t.Errorf("%d files: a comparison is wanted: %v, want %v", len(c.p.links), r.l.links.wanted, c.want)
			}
			time.Sleep(time.Second)
		}
		if n := len(look().links); n != linksKnown+1 {
			t.Errorf("%d files are noted", n)
		}
	})
}

// A tree that is sent by recursion is looked through for such files, at every depth and of every kind.
func TestFilesWithSeveralNamesBelowATree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, "d", name) }
	must(os.MkdirAll(in("sub/sub"), 0o755))
	for _, name := range []string{"alone", "sub/sub/one", "one.tmp"} {
		must(os.WriteFile(in(name), nil, 0o644))
	}
	must(unix.Mkfifo(in("fifo"), 0o644))
	must(os.Link(in("sub/sub/one"), filepath.Join(dir, "elsewhere")))
	must(os.Link(in("fifo"), in("sub/fifo")))
	must(os.Link(in("one.tmp"), in("two.tmp")))

	r, err := rsync{path: dir}.Open()
	must(err)
	defer r.Close()
	exclude, err := watch.NewExclude([]string{"*.tmp"})
	must(err)
	p := newPrepared()
	look := survey{p: &p, r: r, w: &writers{exclude: exclude}, now: time.Now().Add(time.Hour)} // nobody writes to them
	look.tree(t.Context(), queue.Entry{Path: "d", Tree: true})
	if len(p.links) != 2 || p.files != 2 {
		t.Errorf("%d files, and those with several names: %v", p.files, p.links)
	}
	for _, name := range []string{"sub/sub/one", "fifo"} {
		st, err := r.Lstat("d/" + name)
		must(err)
		if !p.links[inode{st.Dev, st.Ino}].Equal(st.ChangeTime) {
			t.Errorf("%s is not among them", name)
		}
	}
}
