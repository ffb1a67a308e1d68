// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// state is what a mirror would copy of one path. The times of directories are left out: they change with their
// entries, whose events come, and link counts and ctimes of files because of other names.
type state struct {
	mode  fs.FileMode
	ino   uint64
	size  int64
	mtime int64
	link  string
}

func snapshot(t *testing.T, root string) map[string]state {
	t.Helper()
	m := map[string]state{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		fi, err := os.Lstat(path)
		if err != nil {
			return err
		}
		m[strings.TrimPrefix(path, root+"/")] = newState(path, fi)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newState(path string, fi fs.FileInfo) state {
	st := state{mode: fi.Mode(), ino: fi.Sys().(*syscall.Stat_t).Ino}
	if !fi.IsDir() {
		st.size, st.mtime = fi.Size(), fi.ModTime().UnixNano()
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		st.link, _ = os.Readlink(path)
	}
	return st
}

// mirror is what a backup would hold that looks at each event as it comes, and at nothing else.
type mirror struct {
	root  string
	paths map[string]state
}

func (m *mirror) apply(e Event) {
	for i := range len(e.Path) {
		if e.Path[i] == '/' {
			// A mirror sends nothing below what is not a directory, and names the directories above by itself.
			up := e.Path[:i]
			fi, err := os.Lstat(filepath.Join(m.root, up))
			if err != nil || !fi.IsDir() {
				return
			}
			m.set(up, fi)
		}
	}
	fi, err := os.Lstat(filepath.Join(m.root, e.Path))
	if err != nil {
		m.remove(e.Path)
		return
	}
	if e.Path != "" {
		m.set(e.Path, fi)
	}
	if !fi.IsDir() {
		return
	}
	switch {
	case e.Op&Delete != 0, e.Op&Rescan != 0 && e.Tree:
		m.removeBelow(e.Path)
	case e.Op&Rescan != 0:
		for p := range m.paths {
			if filepath.Dir(p) == e.Path {
				if _, err := os.Lstat(filepath.Join(m.root, p)); err != nil {
					m.remove(p)
				}
			}
		}
		return
	case !e.Tree:
		return
	}
	_ = filepath.WalkDir(filepath.Join(m.root, e.Path), func(path string, d fs.DirEntry, err error) error {
		if fi, err := os.Lstat(path); err == nil && path != m.root {
			m.set(strings.TrimPrefix(path, m.root+"/"), fi)
		}
		return nil
	})
}

func (m *mirror) set(path string, fi fs.FileInfo) {
	if !fi.IsDir() {
		m.removeBelow(path)
	}
	st := newState(filepath.Join(m.root, path), fi)
	st.ino = 0
	m.paths[path] = st
}

func (m *mirror) remove(path string) {
	delete(m.paths, path)
	m.removeBelow(path)
}

func (m *mirror) removeBelow(path string) {
	for p := range m.paths {
		if path == "" || strings.HasPrefix(p, path+"/") {
			delete(m.paths, p)
		}
	}
}

// TestMirrorOfAnyHistoryIsEqual does random things as fast as it can, by two workers at once, while a mirror follows
// the events.
func TestMirrorOfAnyHistoryIsEqual(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, backend string) {
		for seed := range uint64(4) {
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				for i := range 5 {
					f.mkdir(fmt.Sprintf("d%d/s/t", i), fmt.Sprintf("../out/d%d/s/t", i))
				}
				m := mirror{root: f.path(""), paths: map[string]state{}}
				m.apply(Event{Tree: true})
				f.each = m.apply
				f.watch(backend)
				for round := range 6 {
					var workers sync.WaitGroup
					for worker := range uint64(2) {
						rnd := rand.New(rand.NewPCG(seed+100, uint64(round)<<8|worker))
						workers.Go(func() {
							for range 60 {
								f.randomOp(rnd)
							}
						})
					}
					workers.Wait()
					events := f.sync()
					want := snapshot(t, f.path(""))
					for path, st := range want {
						st.ino = 0
						want[path] = st
					}
					f.mu.Lock()
					diff, late := cmp.Diff(want, m.paths, cmp.AllowUnexported(state{})), f.events
					f.mu.Unlock()
					if diff != "" {
						t.Fatalf("round %d: the mirror differs (-disk +mirror):\n%s\nevents:%s", round, diff, describe(events))
					}
					if len(late) > 0 {
						t.Fatalf("round %d: after the cookie:%s", round, describe(late))
					}
				}
			})
		}
	})
}

// TestAnyHistoryIsCovered does random things as fast as it can, by two workers at once, and then wants every
// difference between two snapshots covered by an event. It also wants every directory watched in the end.
func TestAnyHistoryIsCovered(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, backend string) {
		for seed := range uint64(4) {
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				for i := range 5 {
					f.mkdir(fmt.Sprintf("d%d/s/t", i), fmt.Sprintf("../out/d%d/s/t", i))
				}
				f.watch(backend)
				f.sync()
				before := snapshot(t, f.path(""))
				for round := range 6 {
					var workers sync.WaitGroup
					for worker := range uint64(2) {
						rnd := rand.New(rand.NewPCG(seed, uint64(round)<<8|worker))
						workers.Go(func() {
							for range 60 {
								f.randomOp(rnd)
							}
						})
					}
					workers.Wait()
					events := f.sync()
					after := snapshot(t, f.path(""))
					var missed []string
					for path, was := range before {
						if is, ok := after[path]; (!ok || is != was) && !covered(events, path) {
							missed = append(missed, path)
						}
					}
					for path := range after {
						if _, ok := before[path]; !ok && !covered(events, path) {
							missed = append(missed, path)
						}
					}
					if len(missed) > 0 {
						slices.Sort(missed)
						t.Fatalf("round %d: no event for %q; events:%s", round, missed, describe(events))
					}
					before = after
				}
				f.probe()
			})
		}
	})
}

// randomOp does one thing to one of few names, so that the workers get into each other's way. Most errors are
// part of it: what is not there cannot be renamed.
func (f *fixture) randomOp(rnd *rand.Rand) {
	name := func() string {
		parts := []string{fmt.Sprint("d", rnd.IntN(5))}
		for range rnd.IntN(4) {
			parts = append(parts, []string{"s", "t", "u", "x", "y"}[rnd.IntN(5)])
		}
		return strings.Join(parts, "/")
	}
	side := func() string {
		if rnd.IntN(5) == 0 {
			return f.path("../out/" + name())
		}
		return f.path(name())
	}
	path := side()
	switch rnd.IntN(15) {
	case 0, 1:
		_ = os.MkdirAll(path, 0o755)
	case 2:
		if os.MkdirAll(path+"/s/t/u", 0o755) == nil {
			_ = os.WriteFile(path+"/s/t/u/x", []byte("new"), 0o644)
		}
	case 3, 4:
		_ = os.WriteFile(path, []byte(strings.Repeat("w", rnd.IntN(100))), 0o644)
	case 5:
		if file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err == nil {
			_, _ = file.WriteString("appended")
			_ = file.Close()
		}
	case 6:
		_ = os.Truncate(path, int64(rnd.IntN(50)))
	case 7, 8, 9, 10:
		_ = os.Rename(path, side())
	case 11:
		_ = os.Remove(path)
	case 12:
		if rnd.IntN(3) == 0 {
			_ = os.RemoveAll(path)
		} else {
			_ = os.Chmod(path, 0o700|fs.FileMode(rnd.IntN(64)))
		}
	case 14:
		_ = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, side(), unix.RENAME_EXCHANGE)
	case 13:
		_ = os.Symlink("../"+fmt.Sprint("d", rnd.IntN(5)), path)
	}
}

// TestDirectoriesMadeAndFilledAtOnce is the race between a new directory and its watch, many times over.
func TestDirectoriesMadeAndFilledAtOnce(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.watch(backend)
		times := 300
		if backend == "fanotify" {
			times = 60 // has no watch that could come late
		}
		for i := range times {
			deep := fmt.Sprintf("%d/a/b/c/d/e", i)
			f.mkdir(deep)
			f.do(os.WriteFile(f.path(deep+"/f"), []byte("x"), 0o644))
		}
		events := f.sync()
		for i := range times {
			for _, p := range []string{"", "/a/b", "/a/b/c/d/e/f"} {
				if p = fmt.Sprint(i) + p; !covered(events, p) {
					t.Errorf("nothing covers %q", p)
				}
			}
		}
		f.probe()
	})
}

// TestTreesMovedInAreWatchedToTheBottom moves many trees in and writes below them at once.
func TestTreesMovedInAreWatchedToTheBottom(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		for i := range 50 {
			for j := range 5 {
				f.mkdir(fmt.Sprintf("../out/%d/a%d/b", i, j))
				f.do(os.WriteFile(f.path(fmt.Sprintf("../out/%d/a%d/b/f", i, j)), nil, 0o644))
			}
		}
		f.watch(backend)
		for i := range 50 {
			f.do(os.Rename(f.path(fmt.Sprint("../out/", i)), f.path(fmt.Sprint(i))))
			f.do(os.WriteFile(f.path(fmt.Sprintf("%d/a3/b/f", i)), []byte("late"), 0o644))
			f.do(os.WriteFile(f.path(fmt.Sprintf("%d/a4/b/g", i)), []byte("late"), 0o644))
		}
		events := f.sync()
		for i := range 50 {
			for _, p := range []string{"a0/b/f", "a1/b", "a3/b/f", "a4/b/g"} {
				if p = fmt.Sprintf("%d/%s", i, p); !covered(events, p) {
					t.Errorf("nothing covers %q", p)
				}
			}
		}
		f.probe()
	})
}
