// SPDX-License-Identifier: Apache-2.0

package rsynctest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Node is one entry of a tree literal: Dir, File, Link, Fifo, Socket, CharDevice, HardLink or With.
type Node interface {
	make(path string, root string) error
}

// Dir is a directory and what is in it.
type Dir map[string]Node

// File is a regular file with its content.
type File string

// Link is a symbolic link with its target.
type Link string

// HardLink is a further name of the regular file at this path, relative to the tree's root, whose name
// sorts before.
type HardLink string

// Fifo is a named pipe.
type Fifo struct{}

// Socket is a unix socket that nobody listens on.
type Socket struct{}

// CharDevice is a character device (root only).
type CharDevice struct{ Major, Minor uint32 }

// With gives a node other attributes than the default ones: zero fields change nothing.
type With struct {
	Node  Node
	Mode  fs.FileMode // permission, setuid, setgid and sticky bits
	UID   int         // root only
	GID   int
	MTime time.Time
}

// Make writes the tree below dir, which is made when it is missing.
func Make(dir string, tree Dir) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return tree.fill(dir, dir)
}

func (d Dir) make(path, root string) error {
	if err := os.Mkdir(path, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	return d.fill(path, root)
}

func (d Dir) fill(path, root string) error {
	for _, name := range slices.Sorted(maps.Keys(d)) {
		if err := d[name].make(filepath.Join(path, name), root); err != nil {
			return err
		}
	}
	return nil
}

func (f File) make(path, _ string) error { return os.WriteFile(path, []byte(f), 0o644) }

func (l Link) make(path, _ string) error { return os.Symlink(string(l), path) }

func (h HardLink) make(path, root string) error {
	return os.Link(filepath.Join(root, string(h)), path)
}

func (Fifo) make(path, _ string) error { return unix.Mkfifo(path, 0o644) }

// mknod(2) makes sockets too, without the 108 bytes that bind(2) allows for a path.
func (Socket) make(path, _ string) error { return unix.Mknod(path, unix.S_IFSOCK|0o644, 0) }

func (c CharDevice) make(path, _ string) error {
	return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(c.Major, c.Minor)))
}

func (w With) make(path, root string) error {
	if err := w.Node.make(path, root); err != nil {
		return err
	}
	if w.UID != 0 || w.GID != 0 {
		if err := os.Lchown(path, cmp.Or(w.UID, -1), cmp.Or(w.GID, -1)); err != nil {
			return err
		}
	}
	if w.Mode != 0 { // after chown(2), which clears setuid and setgid
		if err := os.Chmod(path, w.Mode); err != nil {
			return err
		}
	}
	if !w.MTime.IsZero() {
		return Touch(path, w.MTime)
	}
	return nil
}

// Touch sets the modification time of a path, of a symbolic link itself too, to the nanosecond.
func Touch(path string, mtime time.Time) error {
	ts, err := unix.TimeToTimespec(mtime)
	if err != nil {
		return err
	}
	err = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &fs.PathError{Op: "utimensat", Path: path, Err: err}
	}
	return nil
}

// CompareOptions narrows a comparison.
type CompareOptions struct {
	// Ignore, if set, leaves out the paths it returns true for, and what is below them. Each side is asked.
	Ignore    func(path string, dir bool) bool
	HardLinks bool // names of one file in the source must be names of one file in the backup, and no more
	NoOwner   bool // owners may differ
	NoMTime   bool // modification times may differ
	Xattrs    bool // extended attributes of users, and ACLs, must be equal too
}

// Compare returns every difference of two trees: names, types, content, modes, owners, modification times in
// nanoseconds (of directories and links too), link targets and device numbers. It reads both trees in full.
func Compare(src, dst string, opts CompareOptions) ([]Difference, error) {
	c := &comparison{src: src, dst: dst, opts: opts, toDst: map[inode]inode{}, toSrc: map[inode]inode{}}
	if err := c.entry("."); err != nil {
		return nil, err
	}
	return c.diffs, nil
}

type inode struct{ dev, ino uint64 }

type comparison struct {
	src, dst string
	opts     CompareOptions
	diffs    []Difference
	toDst    map[inode]inode // of regular files with several names
	toSrc    map[inode]inode
}

func (c *comparison) differ(path, what, src, dst string) {
	c.diffs = append(c.diffs, Difference{Path: path, What: what, Src: src, Dst: dst})
}

func lstat(path string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return &st, nil
}

// entry compares one path that is on both sides.
func (c *comparison) entry(path string) error {
	s, err := lstat(filepath.Join(c.src, path))
	if err != nil {
		return err
	}
	d, err := lstat(filepath.Join(c.dst, path))
	if err != nil {
		return err
	}
	if st, dt := s.Mode&unix.S_IFMT, d.Mode&unix.S_IFMT; st != dt {
		c.differ(path, "type", typeName(st), typeName(dt))
		return nil
	}
	if sm, dm := s.Mode&^unix.S_IFMT, d.Mode&^unix.S_IFMT; sm != dm {
		c.differ(path, "mode", fmt.Sprintf("%04o", sm), fmt.Sprintf("%04o", dm))
	}
	if !c.opts.NoOwner && (s.Uid != d.Uid || s.Gid != d.Gid) {
		c.differ(path, "owner", fmt.Sprintf("%d:%d", s.Uid, s.Gid), fmt.Sprintf("%d:%d", d.Uid, d.Gid))
	}
	if !c.opts.NoMTime && s.Mtim != d.Mtim {
		c.differ(path, "mtime", stamp(s.Mtim), stamp(d.Mtim))
	}
	if c.opts.Xattrs && s.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := c.xattrs(path); err != nil {
			return err
		}
	}
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return c.directory(path)
	case unix.S_IFREG:
		return c.regular(path, s, d)
	case unix.S_IFLNK:
		st, err := os.Readlink(filepath.Join(c.src, path))
		if err != nil {
			return err
		}
		dt, err := os.Readlink(filepath.Join(c.dst, path))
		if err != nil {
			return err
		}
		if st != dt {
			c.differ(path, "target", fmt.Sprintf("%q", st), fmt.Sprintf("%q", dt))
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if s.Rdev != d.Rdev {
			c.differ(path, "device", fmt.Sprintf("%#x", s.Rdev), fmt.Sprintf("%#x", d.Rdev))
		}
	}
	return nil
}

func (c *comparison) xattrs(path string) error {
	s, err := xattrs(filepath.Join(c.src, path))
	if err != nil {
		return err
	}
	d, err := xattrs(filepath.Join(c.dst, path))
	if err != nil {
		return err
	}
	if s != d {
		c.differ(path, "xattrs", s, d)
	}
	return nil
}

// xattrs are the names and values of a path's extended attributes that a user or an ACL has set, sorted.
func xattrs(path string) (string, error) {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return "", &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	var all []string
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", &fs.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		all = append(all, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, " "), nil
}

func (c *comparison) directory(path string) error {
	ss, err := c.list(c.src, path)
	if err != nil {
		return err
	}
	ds, err := c.list(c.dst, path)
	if err != nil {
		return err
	}
	for len(ss) > 0 || len(ds) > 0 {
		switch {
		case len(ds) == 0 || len(ss) > 0 && ss[0] < ds[0]:
			c.differ(filepath.Join(path, ss[0]), "missing", "there", "not there")
			ss = ss[1:]
		case len(ss) == 0 || ds[0] < ss[0]:
			c.differ(filepath.Join(path, ds[0]), "extra", "not there", "there")
			ds = ds[1:]
		default:
			if err := c.entry(filepath.Join(path, ss[0])); err != nil {
				return err
			}
			ss, ds = ss[1:], ds[1:]
		}
	}
	return nil
}

// list returns the sorted names in a directory.
func (c *comparison) list(side, path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(side, path))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if c.opts.Ignore == nil || !c.opts.Ignore(filepath.Join(path, e.Name()), e.IsDir()) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

func (c *comparison) regular(path string, s, d *unix.Stat_t) error {
	if c.opts.HardLinks && (s.Nlink > 1 || d.Nlink > 1) {
		si, di := inode{s.Dev, s.Ino}, inode{d.Dev, d.Ino}
		first, seen := c.toDst[si]
		back, seenBack := c.toSrc[di]
		if seen && first != di || seenBack && back != si {
			c.differ(path, "links", fmt.Sprintf("inode %d", s.Ino), fmt.Sprintf("inode %d", d.Ino))
		}
		c.toDst[si], c.toSrc[di] = di, si
	}
	if s.Size != d.Size {
		c.differ(path, "content", fmt.Sprintf("%d bytes", s.Size), fmt.Sprintf("%d bytes", d.Size))
		return nil
	}
	at, err := firstDifference(filepath.Join(c.src, path), filepath.Join(c.dst, path))
	if err != nil {
		return err
	}
	if at >= 0 {
		c.differ(path, "content", fmt.Sprintf("%d bytes", s.Size), fmt.Sprintf("differs from byte %d on", at))
	}
	return nil
}

// firstDifference returns the offset of the first byte that differs, to 64 KiB, or -1.
func firstDifference(a, b string) (int64, error) {
	af, err := os.Open(a)
	if err != nil {
		return 0, err
	}
	defer func() { _ = af.Close() }()
	bf, err := os.Open(b)
	if err != nil {
		return 0, err
	}
	defer func() { _ = bf.Close() }()
	abuf, bbuf := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		an, aerr := io.ReadFull(af, abuf)
		bn, berr := io.ReadFull(bf, bbuf)
		if !bytes.Equal(abuf[:an], bbuf[:bn]) {
			for i := range min(an, bn) {
				if abuf[i] != bbuf[i] {
					return at + int64(i), nil
				}
			}
			return at + int64(min(an, bn)), nil
		}
		at += int64(an)
		for _, err := range []error{aerr, berr} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return 0, err
			}
		}
		if aerr != nil {
			return -1, nil
		}
	}
}

func stamp(ts unix.Timespec) string {
	return time.Unix(ts.Unix()).UTC().Format("2006-01-02 15:04:05.000000000")
}

func typeName(mode uint32) string {
	switch mode {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	}
	return fmt.Sprintf("type %#o", mode)
}
