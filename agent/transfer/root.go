// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"errors"
	"io/fs"
	"time"
)

// Root is a handle of the source directory, to be held for one job only: while it is open, the
// filesystem cannot be unmounted.
type Root struct{}

// Identity tells one directory from another that is mounted or put in its place. It is comparable and
// has a text form for the state directory.
type Identity struct {
	FS  string // "uuid:…" (FS_IOC_GETFSUUID, Linux 6.9) or "fsid:…" (statfs(2) f_fsid)
	Ino uint64 // of the directory itself
}

// MarshalText renders the identity as one word.
func (id Identity) MarshalText() ([]byte, error) { return nil, errors.ErrUnsupported }

// UnmarshalText reads what MarshalText wrote.
func (id *Identity) UnmarshalText(text []byte) error { return errors.ErrUnsupported }

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

// OpenRoot opens the directory at path, without the right to read it.
func OpenRoot(path string) (*Root, error) { return nil, errors.ErrUnsupported }

// Close gives the handle back.
func (r *Root) Close() error { return nil }

// Identity returns the filesystem id and the inode of the directory.
func (r *Root) Identity() (Identity, error) { return Identity{}, errors.ErrUnsupported }

// Empty reports whether the directory has no entry at all. A directory that cannot be read is an error.
func (r *Root) Empty() (bool, error) { return false, errors.ErrUnsupported }

// Lstat looks at a path below the directory. A path below a symlink or below something that is no directory
// is absent: the error then wraps fs.ErrNotExist.
func (r *Root) Lstat(path string) (Entry, error) { return Entry{}, errors.ErrUnsupported }

// OpenForWriting reports whether some process has the regular file at path open for writing. What
// prevents the check (no right to take a lease, a filesystem without leases) counts as false.
func (r *Root) OpenForWriting(path string) bool { return false }
