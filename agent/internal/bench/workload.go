// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// sizes scales the workloads: full is what the goals speak of, quick is for trying the benchmark itself.
type sizes struct {
	seconds      int // W1, W2, W8, W9
	burst        int // W3: files
	churn        int // W4: operations
	trees, files int // W5: directories, files
	big          int64
	bigUpdates   int
	untar        int // W7: files
	pending      int // W10: files
	wait         time.Duration
}

var (
	full  = sizes{seconds: 8, burst: 20_000, churn: 4000, trees: 100_000, files: 500_000, big: 1 << 30, bigUpdates: 10, untar: 70_000, pending: 1_000_000, wait: 120 * time.Second}
	quick = sizes{seconds: 2, burst: 2000, churn: 400, trees: 1000, files: 5000, big: 16 << 20, bigUpdates: 3, untar: 2000, pending: 20_000, wait: 30 * time.Second}
)

// writeVersion makes or overwrites a file whose first eight bytes are the version.
func writeVersion(path string, version uint64, size int, rnd *rand.Rand) error {
	buf := make([]byte, max(size, 8))
	for i := 8; i+8 <= len(buf); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], rnd.Uint64())
	}
	binary.LittleEndian.PutUint64(buf, version)
	return os.WriteFile(path, buf, 0o644)
}

// makeDirs makes n directories d0 … in each root and gives their names.
func makeDirs(n int, roots ...string) ([]string, error) {
	names := make([]string, n)
	for i := range names {
		names[i] = "d" + strconv.Itoa(i)
		for _, r := range roots {
			if err := os.MkdirAll(filepath.Join(r, names[i]), 0o755); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// paced calls do n times at a rate a second, catching up after a delay but never running ahead.
func paced(ctx context.Context, n, rate int, do func(i int) error) error {
	start := time.Now()
	for i := range n {
		if d := time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))); d > 0 {
			time.Sleep(d)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := do(i); err != nil {
			return err
		}
	}
	return nil
}

// creates is W1 and W2: rate new files of 10 to 100 KB a second.
func creates(ctx context.Context, s *site, dirs []string, n, rate int, wrote func(string, uint64)) error {
	rnd := rand.New(rand.NewPCG(1, 2))
	return paced(ctx, n, rate, func(i int) error {
		rel := filepath.Join(dirs[i%len(dirs)], fmt.Sprintf("f%06d", i))
		if err := writeVersion(filepath.Join(s.src, rel), 1, 10_000+rnd.IntN(90_000), rnd); err != nil {
			return err
		}
		wrote(rel, 1)
		return nil
	})
}

// saves is W8: rate times a second one of twenty files is saved as editors do, by renaming a temporary file over it.
func saves(ctx context.Context, s *site, dirs []string, n, rate int, wrote func(string, uint64)) error {
	rnd := rand.New(rand.NewPCG(3, 4))
	return paced(ctx, n, rate, func(i int) error {
		rel := filepath.Join(dirs[0], fmt.Sprintf("doc%02d", i%20))
		tmp := filepath.Join(s.src, rel+".tmp")
		if err := writeVersion(tmp, uint64(i+1), 25_000, rnd); err != nil {
			return err
		}
		if err := os.Rename(tmp, filepath.Join(s.src, rel)); err != nil {
			return err
		}
		wrote(rel, uint64(i+1))
		return nil
	})
}

// comeAndGo is W9: new files that are gone at once, each of which the kernel tells of three times: made, closed, deleted.
func comeAndGo(ctx context.Context, root string, dirs []string, n, rate int) error {
	return paced(ctx, n, rate, func(i int) error {
		name := filepath.Join(root, dirs[i%len(dirs)], "f"+strconv.Itoa(i))
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644) // package os asks Go's poller, which takes longer than the rest
		if err != nil {
			return &os.PathError{Op: "open", Path: name, Err: err}
		}
		return errors.Join(unix.Close(fd), unix.Unlink(name))
	})
}

// burst is W3 and the first half of W7: n files as fast as one writer can.
func burst(root string, n, perDir, size int) error {
	rnd := rand.New(rand.NewPCG(5, 6))
	for i := range n {
		dir := burstDir(root, i/perDir)
		if i%perDir == 0 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := writeVersion(filepath.Join(dir, fmt.Sprintf("f%04d", i%perDir)), 1, size, rnd); err != nil {
			return err
		}
	}
	return nil
}

func burstDir(root string, i int) string { return filepath.Join(root, fmt.Sprintf("t%04d", i)) }

// manyDirs is the tree of W5, made with fixed times so that two copies are equal.
func manyDirs(root string, dirs, files int) error {
	at := time.Unix(1_700_000_000, 123_456_789)
	per := files / dirs
	var made []string
	for i := range dirs {
		dir := filepath.Join(root, fmt.Sprintf("a%03d", i/1000), fmt.Sprintf("b%03d", i%1000))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for j := range per {
			p := filepath.Join(dir, "f"+strconv.Itoa(j))
			if err := os.WriteFile(p, []byte("x"), 0o644); err != nil {
				return err
			}
			if err := os.Chtimes(p, at, at); err != nil {
				return err
			}
		}
		made = append(made, dir)
		if i%1000 == 0 {
			made = append(made, filepath.Dir(dir))
		}
	}
	for _, d := range append(made, root) {
		if err := os.Chtimes(d, at, at); err != nil {
			return err
		}
	}
	return nil
}

// churn is W4: random operations on a small tree at about 200 a second. A step that finds nothing to work on is passed over.
func churn(ctx context.Context, root string, n int, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 9))
	dirs := []string{""}
	var files []string
	pick := func(l []string) (int, string) {
		if len(l) == 0 {
			return 0, ""
		}
		i := rnd.IntN(len(l))
		return i, l[i]
	}
	drop := func(l []string, i int) []string { l[i] = l[len(l)-1]; return l[:len(l)-1] }
	abs := func(rel string) string { return filepath.Join(root, rel) }
	return paced(ctx, n, 200, func(i int) error {
		fi, f := pick(files)
		_, d := pick(dirs)
		fresh := filepath.Join(d, "n"+strconv.Itoa(i))
		var err error
		switch op := rnd.IntN(20); {
		case op < 6 || f == "":
			if err = writeVersion(abs(fresh), uint64(i), 100+rnd.IntN(20_000), rnd); err == nil {
				files = append(files, fresh)
			}
		case op < 9:
			err = writeVersion(abs(f), uint64(i), 100+rnd.IntN(20_000), rnd)
		case op < 10:
			var h *os.File
			if h, err = os.OpenFile(abs(f), os.O_WRONLY|os.O_APPEND, 0); err == nil {
				_, err = h.WriteString("appended " + strconv.Itoa(i))
				if cerr := h.Close(); err == nil {
					err = cerr
				}
			}
		case op < 11:
			err = os.Truncate(abs(f), int64(8+rnd.IntN(200)))
		case op < 12:
			err = os.Chmod(abs(f), os.FileMode([]int{0o600, 0o640, 0o644, 0o755}[rnd.IntN(4)]))
		case op < 14:
			if err = os.Rename(abs(f), abs(fresh)); err == nil {
				files[fi] = fresh
			}
		case op < 16:
			if err = os.Remove(abs(f)); err == nil {
				files = drop(files, fi)
			}
		case op < 17:
			deep := filepath.Join(fresh, "x", "y")
			if err = os.MkdirAll(abs(deep), 0o755); err == nil {
				dirs = append(dirs, fresh, filepath.Join(fresh, "x"), deep)
			}
		case op < 18:
			if err = os.Symlink(filepath.Base(f), abs(fresh)); err == nil {
				files = append(files, fresh)
			}
		case op < 19 && d != "":
			moved := "m" + strconv.Itoa(i)
			if err = os.Rename(abs(d), abs(moved)); err == nil {
				dirs, files = renamed(dirs, d, moved), renamed(files, d, moved)
			}
		case d != "":
			if err = os.RemoveAll(abs(d)); err == nil {
				dirs, files = without(dirs, d), without(files, d)
			}
		}
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	})
}

func below(p, dir string) bool {
	return p == dir || len(p) > len(dir) && p[:len(dir)] == dir && p[len(dir)] == '/'
}

func renamed(l []string, from, to string) []string {
	for i, p := range l {
		if below(p, from) {
			l[i] = to + p[len(from):]
		}
	}
	return l
}

func without(l []string, dir string) []string {
	kept := l[:0]
	for _, p := range l {
		if !below(p, dir) {
			kept = append(kept, p)
		}
	}
	return kept
}

const bigName = "big.bin"

// bigFile makes the file of W6 on both sides, in step.
func bigFile(s *site, size int64) error {
	src := filepath.Join(s.src, "d0", bigName)
	f, err := os.Create(src)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(7, 8))
	buf := make([]byte, 1<<20)
	for range size / int64(len(buf)) {
		for i := 0; i < len(buf); i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], rnd.Uint64())
		}
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	_, _, err = s.rsync(context.Background(), "-a")
	return err
}

// bigUpdates is W6: once a second a new version and one block somewhere in the big file.
func bigUpdates(ctx context.Context, s *site, dir string, size int64, n int, wrote func(string, uint64)) error {
	rel := filepath.Join(dir, bigName)
	rnd := rand.New(rand.NewPCG(11, 12))
	return paced(ctx, n, 1, func(i int) error {
		f, err := os.OpenFile(filepath.Join(s.src, rel), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		var block [4096]byte
		binary.LittleEndian.PutUint64(block[:], uint64(i+1))
		if _, err := f.WriteAt(block[:8], 0); err != nil {
			return err
		}
		if _, err := f.WriteAt(block[:], 8192+rnd.Int64N(size-16384)); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		wrote(rel, uint64(i+1))
		return nil
	})
}
