// SPDX-License-Identifier: Apache-2.0

// Package torture makes seeded random histories of a directory tree, runs them against a live pair with faults mixed in, and
// checks what a mirror must keep: when things are quiet again both trees are equal, and a file that nobody touched was never
// missing on the backup.
package torture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// history applies random operations to a tree. Equal seeds make equal histories, as far as the kernel lets them.
type history struct {
	rnd     *rand.Rand
	root    string
	outside string // a sibling directory: where trees move out to and in from
	dirs    []string
	files   []string
	n       int
	owner   bool // may chown: runs as root
	xattrs  bool // source and backup have extended attributes and ACLs
	log     func(format string, args ...any)
}

// oddNames are what shells, rsync's list files and its patterns treat specially.
var oddNames = []string{
	"#hash", ";semi", "-dash", " lead", "trail ", "new\nline", "cr\rtab\t", "a[1].txt", "a]b", "star*", "quest?", `back\slash`,
	`quo"te`, "apos'trophe", "back`tick", "$dollar", "$(touch x)", "inv\xff\xfealid", "…", ":colon", "+ plus", "- minus", "!",
}

func newHistory(seed uint64, root, outside string, log func(string, ...any)) *history {
	return &history{rnd: rand.New(rand.NewPCG(seed, 1)), root: root, outside: outside, dirs: []string{""}, owner: os.Geteuid() == 0, log: log}
}

func (h *history) abs(rel string) string { return filepath.Join(h.root, rel) }

// fresh makes a name that was not used before, odd now and then, in a random directory.
func (h *history) fresh() string {
	h.n++
	name := "n" + strconv.Itoa(h.n)
	switch h.rnd.IntN(8) {
	case 0:
		name = oddNames[h.rnd.IntN(len(oddNames))] + strconv.Itoa(h.n)
	case 1:
		if h.rnd.IntN(8) == 0 {
			name += string(make255(h.rnd, 255-len(name)))
		}
	}
	return filepath.Join(h.dirs[h.rnd.IntN(len(h.dirs))], name)
}

func make255(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(rnd.IntN(26))
	}
	return b
}

func (h *history) file() (int, string) {
	if len(h.files) == 0 {
		return -1, ""
	}
	i := h.rnd.IntN(len(h.files))
	return i, h.files[i]
}

// dir picks any directory but the root.
func (h *history) dir() string {
	if len(h.dirs) < 2 {
		return ""
	}
	return h.dirs[1+h.rnd.IntN(len(h.dirs)-1)]
}

func (h *history) content() []byte {
	size := h.rnd.IntN(5000)
	if h.rnd.IntN(20) == 0 {
		size = h.rnd.IntN(2 << 20)
	}
	b := make([]byte, size)
	for i := 0; i < len(b); i += 97 {
		b[i] = byte(h.rnd.Uint32())
	}
	return b
}

// step does one operation. One that finds nothing to work on, or what an earlier one took away, is passed over.
func (h *history) step() error {
	err := h.operation()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTEMPTY), errors.Is(err, syscall.ENOTDIR),
		errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENOTSUP):
		return nil
	}
	return err
}

func (h *history) operation() error {
	i, f := h.file()
	d := h.dir()
	op := h.rnd.IntN(100)
	switch {
	case op < 3 && h.xattrs && f != "":
		return h.attribute(f, d)
	case op < 22 || f == "":
		p := h.fresh()
		h.log("create %q", p)
		h.files = append(h.files, p)
		return os.WriteFile(h.abs(p), h.content(), os.FileMode(0o600|h.rnd.IntN(0o100)))
	case op < 30:
		h.log("overwrite %q", f)
		return os.WriteFile(h.abs(f), h.content(), 0o644)
	case op < 34:
		h.log("append %q", f)
		return h.open(f, os.O_APPEND, func(w *os.File) error { _, err := w.Write(h.content()); return err })
	case op < 38: // same size, within the same second: rsync's default quick check does not see it
		h.log("rewrite in place %q", f)
		return h.open(f, 0, func(w *os.File) error { _, err := w.WriteAt([]byte(strconv.Itoa(h.n)), 0); return err })
	case op < 41:
		h.log("truncate %q", f)
		return os.Truncate(h.abs(f), int64(h.rnd.IntN(3000)))
	case op < 45:
		to := h.fresh()
		h.log("rename file %q %q", f, to)
		if err := os.Rename(h.abs(f), h.abs(to)); err != nil {
			return err
		}
		h.files[i] = to
	case op < 47: // atomic save over another file
		_, g := h.file()
		h.log("rename over %q %q", f, g)
		if err := os.Rename(h.abs(f), h.abs(g)); err != nil {
			return err
		}
		h.dropFile(i)
	case op < 55:
		h.log("remove %q", f)
		h.dropFile(i)
		return os.Remove(h.abs(f))
	case op < 61:
		p := h.fresh()
		h.log("mkdir %q", p)
		if err := os.Mkdir(h.abs(p), 0o755); err != nil {
			return err
		}
		h.dirs = append(h.dirs, p)
	case op < 64:
		p := h.fresh()
		deep := filepath.Join(p, "a", "b", "c", "d")
		h.log("mkdir -p %q and a file below at once", deep)
		if err := os.MkdirAll(h.abs(deep), 0o755); err != nil {
			return err
		}
		h.dirs = append(h.dirs, p, filepath.Join(p, "a"), filepath.Join(p, "a", "b"), deep)
		h.files = append(h.files, filepath.Join(deep, "f"))
		return os.WriteFile(h.abs(filepath.Join(deep, "f")), h.content(), 0o644)
	case op < 68 && d != "":
		to := h.fresh()
		h.log("rename directory %q %q", d, to)
		if err := os.Rename(h.abs(d), h.abs(to)); err != nil {
			return err
		}
		h.renamed(d, to)
	case op < 71 && d != "":
		h.log("rm -r %q", d)
		h.forget(d)
		return os.RemoveAll(h.abs(d))
	case op < 73 && d != "":
		out := filepath.Join(h.outside, "out"+strconv.Itoa(h.n))
		h.n++
		h.log("move out %q", d)
		if err := os.Rename(h.abs(d), out); err != nil {
			return err
		}
		h.forget(d)
		if h.rnd.IntN(2) == 0 {
			back := h.fresh()
			h.log("and in again %q", back)
			if err := os.Rename(out, h.abs(back)); err != nil {
				return err
			}
			h.dirs = append(h.dirs, back)
		}
	case op < 76:
		in := filepath.Join(h.outside, "in"+strconv.Itoa(h.n))
		if err := os.MkdirAll(filepath.Join(in, "x", "y"), 0o755); err != nil {
			return err
		}
		for k := range 1 + h.rnd.IntN(30) {
			if err := os.WriteFile(filepath.Join(in, "x", "y", strconv.Itoa(k)), h.content(), 0o644); err != nil {
				return err
			}
		}
		to := h.fresh()
		h.log("move in %q", to)
		if err := os.Rename(in, h.abs(to)); err != nil {
			return err
		}
		h.dirs = append(h.dirs, to, filepath.Join(to, "x"), filepath.Join(to, "x", "y"))
	case op < 81:
		p := f
		if h.rnd.IntN(3) == 0 && d != "" {
			p = d
		}
		mode := os.FileMode([]int{0o700, 0o750, 0o755, 0o711, 0o1777}[h.rnd.IntN(5)])
		h.log("chmod %o %q", mode, p)
		return os.Chmod(h.abs(p), mode)
	case op < 84:
		if h.owner {
			h.log("chown %q", f)
			return os.Lchown(h.abs(f), 1000+h.rnd.IntN(5), 1000+h.rnd.IntN(5))
		}
	case op < 88:
		p := h.fresh()
		target := []string{"nowhere", "../" + filepath.Base(f), filepath.Base(f), ".", "/nonexistent/target"}[h.rnd.IntN(5)]
		h.log("symlink %q -> %q", p, target)
		if err := os.Symlink(target, h.abs(p)); err != nil {
			return err
		}
	case op < 90:
		p := h.fresh()
		h.log("hard link %q %q", f, p)
		if err := os.Link(h.abs(f), h.abs(p)); err != nil {
			return err
		}
		h.files = append(h.files, p)
	case op < 92:
		at := time.Unix(h.rnd.Int64N(4_000_000_000), h.rnd.Int64N(1e9)) // also what a clock step leaves behind
		h.log("utimes %q", f)
		return os.Chtimes(h.abs(f), at, at)
	case op < 94:
		p := h.fresh()
		h.log("fifo %q", p)
		return unix.Mkfifo(h.abs(p), 0o600)
	default:
		return h.changeType(i, f, d)
	}
	return nil
}

// attribute sets or removes an extended attribute, or an ACL, which is one too.
func (h *history) attribute(f, d string) error {
	name, value := "user.lockstep", []byte(strconv.Itoa(h.rnd.IntN(1000)))
	p := f
	if h.rnd.IntN(3) == 0 && d != "" {
		p = d
	}
	switch h.rnd.IntN(5) {
	case 0:
		h.log("remove xattr %q", p)
		if err := unix.Lremovexattr(h.abs(p), name); !errors.Is(err, unix.ENODATA) {
			return err
		}
		return nil
	case 1:
		name, value = "system.posix_acl_access", acl(1000+h.rnd.IntN(5))
	case 2:
		if p == d && d != "" { // what is made in it later has an ACL from the start
			name, value = "system.posix_acl_default", acl(1000+h.rnd.IntN(5))
		}
	}
	h.log("set %s %q", name, p)
	return unix.Lsetxattr(h.abs(p), name, value, 0)
}

// acl lets one more user read, as the kernel has it (linux/posix_acl_xattr.h): a version, and for each entry a tag, rights and an id.
func acl(uid int) []byte {
	const user, named, group, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
	b := binary.LittleEndian.AppendUint32(nil, 2)
	entry := func(tag, rights uint16, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, rights)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	none := ^uint32(0)
	entry(user, 7, none)
	entry(named, 5, uint32(uid)) //nolint:gosec // a small number
	entry(group, 5, none)
	entry(mask, 5, none)
	entry(other, 0, none)
	return b
}

// hasXattrs reports whether a directory's filesystem keeps extended attributes and ACLs.
func hasXattrs(dir string) bool {
	return unix.Lsetxattr(dir, "user.lockstep", []byte("1"), 0) == nil && unix.Lremovexattr(dir, "user.lockstep") == nil &&
		unix.Lsetxattr(dir, "system.posix_acl_access", acl(1000), 0) == nil && unix.Lremovexattr(dir, "system.posix_acl_access") == nil
}

// changeType puts something of another kind in the place of a file or a directory.
func (h *history) changeType(i int, f, d string) error {
	switch h.rnd.IntN(5) {
	case 0:
		h.log("file to directory %q", f)
		h.dropFile(i)
		if err := os.Remove(h.abs(f)); err != nil {
			return err
		}
		h.dirs = append(h.dirs, f)
		return os.Mkdir(h.abs(f), 0o755)
	case 1:
		if d == "" {
			return nil
		}
		h.log("directory to file %q", d)
		h.forget(d)
		if err := os.RemoveAll(h.abs(d)); err != nil {
			return err
		}
		h.files = append(h.files, d)
		return os.WriteFile(h.abs(d), h.content(), 0o644)
	case 2:
		if d == "" {
			return nil
		}
		h.log("directory to symlink %q", d)
		h.forget(d)
		if err := os.RemoveAll(h.abs(d)); err != nil {
			return err
		}
		return os.Symlink("..", h.abs(d))
	case 3:
		h.log("file to symlink %q", f)
		h.dropFile(i)
		if err := os.Remove(h.abs(f)); err != nil {
			return err
		}
		return os.Symlink("../"+filepath.Base(f), h.abs(f))
	default: // a copy takes the place of the original, and a link the place of the copy
		if d == "" {
			return nil
		}
		moved := h.fresh()
		h.log("move %q to %q, leave a symlink", d, moved)
		if err := os.Rename(h.abs(d), h.abs(moved)); err != nil {
			return err
		}
		h.renamed(d, moved)
		return os.Symlink(h.abs(moved), h.abs(d))
	}
}

func (h *history) open(rel string, flag int, do func(*os.File) error) error {
	w, err := os.OpenFile(h.abs(rel), os.O_WRONLY|syscall.O_NONBLOCK|flag, 0)
	for errors.Is(err, syscall.EAGAIN) { // the agent asks, for some microseconds, whether the file is open for writing
		w, err = os.OpenFile(h.abs(rel), os.O_WRONLY|syscall.O_NONBLOCK|flag, 0)
	}
	if err != nil {
		return err
	}
	return errors.Join(do(w), w.Close())
}

func (h *history) dropFile(i int) {
	h.files[i] = h.files[len(h.files)-1]
	h.files = h.files[:len(h.files)-1]
}

func below(p, dir string) bool {
	return p == dir || len(p) > len(dir) && p[:len(dir)] == dir && p[len(dir)] == '/'
}

// forget drops a directory and everything below it from what later operations pick from.
func (h *history) forget(dir string) {
	keep := func(l []string) []string {
		out := l[:0]
		for _, p := range l {
			if p == "" || !below(p, dir) {
				out = append(out, p)
			}
		}
		return out
	}
	h.dirs, h.files = keep(h.dirs), keep(h.files)
}

func (h *history) renamed(from, to string) {
	for _, l := range [][]string{h.dirs, h.files} {
		for i, p := range l {
			if p != "" && below(p, from) {
				l[i] = to + p[len(from):]
			}
		}
	}
}

// pin makes files that no operation touches, in directories that no operation picks, and gives their paths.
func (h *history) pin(n int) ([]string, error) {
	var pinned []string
	for i := range n {
		p := filepath.Join(fmt.Sprintf("pinned%d", i%3), "keep"+strconv.Itoa(i))
		if err := os.MkdirAll(filepath.Dir(h.abs(p)), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(h.abs(p), []byte(p), 0o644); err != nil {
			return nil, err
		}
		pinned = append(pinned, p)
	}
	return pinned, nil
}

// clear removes everything but what pin made, and begins anew.
func (h *history) clear() error {
	h.log("remove all")
	h.dirs, h.files = []string{""}, nil
	for _, dir := range []string{h.root, h.outside} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), "pinned") {
				if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
