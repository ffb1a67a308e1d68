// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// entry is one name in a directory.
type entry struct {
	name string
	dir  bool
}

// listing is what a directory had in it, and which directory it was.
type listing struct {
	path     string
	dev, ino uint64
	entries  []entry // all directories, and as many other entries as were asked for
	more     bool    // there are more entries that are not directories
	fresh    bool    // nothing had been in it since it was made
	err      error
}

var direntBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// listDir reads a directory: all directories in it, and at most files of its other entries. It never follows a
// symlink at the end of path.
func listDir(path string, files int) listing {
	l := listing{path: path}
	fd, err := openDir(unix.AT_FDCWD, path)
	if err != nil {
		l.err = err
		return l
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Statx_t
	if l.err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); l.err != nil {
		return l
	}
	l.dev, l.ino = unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino
	l.fresh = st.Mask&unix.STATX_BTIME != 0 && st.Btime == st.Mtime
	l.err = readDir(fd, func(name []byte, dir bool) {
		switch {
		case dir:
			l.entries = append(l.entries, entry{string(name), true})
		case files > 0:
			files--
			l.entries = append(l.entries, entry{string(name), false})
		default:
			l.more = true
		}
	})
	return l
}

func openDir(at int, path string) (int, error) {
	for {
		fd, err := unix.Openat(at, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// readDir calls f for every entry of the open directory. The name is valid until f returns.
func readDir(fd int, f func(name []byte, dir bool)) error {
	pooled := direntBuffers.Get().(*[]byte) //nolint:forcetypeassert // only these are put in
	defer direntBuffers.Put(pooled)
	for {
		n, err := unix.ReadDirent(fd, *pooled)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		// struct linux_dirent64 of getdents(2): ino 8, off 8, reclen 2, type 1, name.
		for buf := (*pooled)[:n]; len(buf) >= 20; {
			length := int(binary.NativeEndian.Uint16(buf[16:]))
			if length < 20 || length > len(buf) {
				break
			}
			kind, name := buf[18], buf[19:length]
			buf = buf[length:]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if string(name) == "." || string(name) == ".." || len(name) == 0 {
				continue
			}
			dir := kind == unix.DT_DIR
			if kind == unix.DT_UNKNOWN { // some filesystems never tell
				var st unix.Stat_t
				dir = unix.Fstatat(fd, string(name), &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
			}
			f(name, dir)
		}
	}
}

// lstat is lstat(2). It is asked for each file that is created, and allocates nothing where the path is short, as os.Lstat and unix.Lstat do.
func lstat(path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	for {
		if err := lstatOnce(path, &st); !errors.Is(err, unix.EINTR) {
			return st, err
		}
	}
}

func lstatOnce(path string, st *unix.Stat_t) error {
	var name [256]byte
	if len(path) >= len(name) || strings.IndexByte(path, 0) >= 0 {
		return unix.Lstat(path, st)
	}
	copy(name[:], path)
	cwd := unix.AT_FDCWD
	_, _, errno := unix.Syscall6(unix.SYS_NEWFSTATAT, uintptr(cwd), uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(st)), unix.AT_SYMLINK_NOFOLLOW, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func isDir(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

func pathError(op, path string, err error) error {
	return &os.PathError{Op: op, Path: path, Err: err}
}
