// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Root is a handle of the source directory, to be held for one job only: while it is open, the
// filesystem cannot be unmounted. Whatever is mounted or renamed over the directory's path meanwhile, the
// handle leads to the directory that was opened. Its methods may be called at once from several goroutines.
type Root struct {
	fd   int
	path string
}

// Identity tells one directory from another that is mounted or put in its place. It is comparable, and
// its text form is meant for the state directory.
type Identity struct {
	// FS names the filesystem: "fsid:TYPE-ID" with statfs(2)'s f_type and f_fsid where the kernel derives f_fsid
	// from what is stored in the filesystem (ext4, btrfs with the subvolume, zfs, and others), else "uuid:…" of
	// FS_IOC_GETFSUUID (Linux 6.9) or XFS_IOC_FSGEOMETRY, else f_fsid as it is. The last may change when the
	// device gets another number, and is 0 on NFS: then only type and inode speak.
	FS  string
	Ino uint64 // of the directory itself
}

// String renders the identity as one word, "fsid:ef53-4bd3f4bd0a5e7d21/2".
func (id Identity) String() string { return id.FS + "/" + strconv.FormatUint(id.Ino, 10) }

// MarshalText renders the identity as String does.
func (id Identity) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *Identity) UnmarshalText(text []byte) error {
	name, ino, ok := strings.Cut(string(text), "/")
	n, err := strconv.ParseUint(ino, 10, 64)
	if !ok || err != nil || !strings.HasPrefix(name, "fsid:") && !strings.HasPrefix(name, "uuid:") {
		return fmt.Errorf("identity %q is not fsid:…/INODE or uuid:…/INODE", text)
	}
	*id = Identity{FS: name, Ino: n}
	return nil
}

// Entry is what lstat(2) says of one path.
type Entry struct {
	Mode       fs.FileMode
	Size       int64
	ModTime    time.Time
	ChangeTime time.Time
	Dev        uint64
	Ino        uint64
	Nlink      uint64
}

// Child is an entry of a directory.
type Child struct {
	Name string
	Entry
}

// absentError says that a path is not there. It wraps fs.ErrNotExist whatever the kernel said: a path below a
// symbolic link or below a file is as absent for us as one whose name is missing.
type absentError struct {
	path  string
	cause error
}

func (e *absentError) Error() string   { return fmt.Sprintf("lstat %q: absent: %v", e.path, e.cause) }
func (e *absentError) Is(t error) bool { return t == fs.ErrNotExist }
func (e *absentError) Unwrap() error   { return e.cause }

// checkPath refuses what is not a path as the kernel's events spell it. "" is the directory itself.
func checkPath(path string) error {
	if path == "" {
		return nil
	}
	if strings.ContainsRune(path, 0) {
		return fmt.Errorf("path %q holds a NUL byte", path)
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("path %q is not relative and clean", path)
		}
	}
	return nil
}

// split cuts a path into its parent ("" for a top-level one) and its name.
func split(path string) (dir, name string) {
	dir, name = filepath.Split(path)
	return strings.TrimSuffix(dir, "/"), name
}

// ancestors yields the directories above path, the nearest first, without the root.
func ancestors(path string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for i := strings.LastIndexByte(path, '/'); i > 0; i = strings.LastIndexByte(path[:i], '/') {
			if !yield(path[:i]) {
				return
			}
		}
	}
}

// top returns the part of an absent path that decides: the nearest to the root that is missing or is not a
// directory. It is path itself when only its last element is missing.
func (r *Root) top(path string) string {
	for i := 0; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		if e, err := r.Lstat(path[:i]); err != nil || !e.Mode.IsDir() {
			return path[:i]
		}
	}
	return path
}
