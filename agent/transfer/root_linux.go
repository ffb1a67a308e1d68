// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenRoot opens the directory at path with O_PATH: that takes no right to read it and touches nothing.
func OpenRoot(path string) (*Root, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Root{fd: fd, path: path}, nil
}

// Close gives the handle back.
func (r *Root) Close() error { return unix.Close(r.fd) }

// dir is the directory as exec.Cmd.Dir: the child changes to it before its descriptors are rearranged.
func (r *Root) dir() string { return "/proc/self/fd/" + strconv.Itoa(r.fd) }

// place is one directory as one mount shows it. It is not given to another as long as some process is in it.
type place struct{ major, minor, ino, mount uint64 }

// place returns where the handle leads, or false before Linux 5.8 (statx(2), STATX_MNT_ID).
func (r *Root) place() (place, bool) {
	var stx unix.Statx_t
	err := unix.Statx(r.fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_INO|unix.STATX_MNT_ID, &stx)
	return place{uint64(stx.Dev_major), uint64(stx.Dev_minor), stx.Ino, stx.Mnt_id}, err == nil && stx.Mask&unix.STATX_MNT_ID != 0
}

// realPath is what getcwd(3) says in the directory, and so the beginning of the names in rsync's messages.
func (r *Root) realPath() (string, error) { return os.Readlink(r.dir()) }

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// closeFD closes a descriptor that nothing was written to, so that there is no error to tell.
func closeFD(fd int) { _ = unix.Close(fd) }

// open opens the directory itself for reading, which its inode may refuse.
func (r *Root) open() (*os.File, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(r.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: r.path, Err: err}
	}
	return os.NewFile(uintptr(fd), r.path), nil
}

// Empty reports whether the directory has no entry at all. A directory that cannot be read is an error.
func (r *Root) Empty() (bool, error) {
	f, err := r.open()
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	_, err = f.ReadDir(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// Filesystems whose f_fsid comes from what is stored in them, so that it is the same after every boot and on every kernel.
// btrfs mixes the subvolume in, which its UUID does not tell, nor its root inode: that is 256 in all of them.
var storedFsid = map[int64]bool{
	unix.EXT4_SUPER_MAGIC:  true, // ext2 and ext3 too
	unix.BTRFS_SUPER_MAGIC: true,
	0x2fc12fc1:             true, // zfs
	0xca451a4e:             true, // bcachefs
	unix.TMPFS_MAGIC:       true, // made at mount time; so is the content
}

// Identity returns the filesystem id and the inode of the directory.
func (r *Root) Identity() (Identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return Identity{}, &fs.PathError{Op: "fstat", Path: r.path, Err: err}
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(r.fd, &sfs); err != nil {
		return Identity{}, &fs.PathError{Op: "fstatfs", Path: r.path, Err: err}
	}
	id := Identity{Ino: st.Ino}
	if !storedFsid[int64(sfs.Type)] {
		if uuid := r.uuid(int64(sfs.Type)); uuid != ([16]byte{}) {
			id.FS = fmt.Sprintf("uuid:%x", uuid)
			return id, nil
		}
	}
	id.FS = fmt.Sprintf("fsid:%x-%08x%08x", uint64(sfs.Type), uint32(sfs.Fsid.Val[0]), uint32(sfs.Fsid.Val[1]))
	return id, nil
}

const (
	fsIocGetFSUUID   = 0x80111500 // _IOR(0x15, 0, struct fsuuid2): one byte of length, sixteen of UUID
	xfsIocFSGeometry = 0x80705864 // XFS_IOC_FSGEOMETRY_V1, 112 bytes; the UUID stands at 64
	xfsSuperMagic    = 0x58465342
)

// uuid asks the filesystem for its UUID, and returns zeros when it has none to tell or may not be asked: ioctl(2) wants a
// descriptor that was opened for reading.
func (r *Root) uuid(fstype int64) (uuid [16]byte) {
	f, err := r.open()
	if err != nil {
		return uuid
	}
	defer func() { _ = f.Close() }()
	var b [17]byte
	if ioctl(f, fsIocGetFSUUID, unsafe.Pointer(&b)) == nil && b[0] == 16 {
		copy(uuid[:], b[1:])
		return uuid
	}
	if fstype == xfsSuperMagic {
		var geometry [112]byte
		if ioctl(f, xfsIocFSGeometry, unsafe.Pointer(&geometry)) == nil {
			copy(uuid[:], geometry[64:80])
		}
	}
	return uuid
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}

// noOpenat2 is set once openat2(2) was found to be missing (Linux 5.6) or filtered.
var noOpenat2 atomic.Bool

// openBelow opens a path below the directory without following any symbolic link or leaving the
// directory, in its last element or before.
func (r *Root) openBelow(path string, flags int) (int, error) {
	if path == "" {
		return ignoringEINTR(func() (int, error) { return unix.Openat(r.fd, ".", flags|unix.O_CLOEXEC, 0) })
	}
	if !noOpenat2.Load() {
		how := unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		}
		fd, err := ignoringEINTR(func() (int, error) {
			for try := 0; ; try++ { // EAGAIN: renames raced the walk
				fd, err := unix.Openat2(r.fd, path, &how)
				if !errors.Is(err, unix.EAGAIN) || try == 100 {
					return fd, err
				}
			}
		})
		// seccomp profiles that do not know openat2 answer EPERM instead of ENOSYS.
		if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
			return fd, err
		}
		if errors.Is(err, unix.ENOSYS) {
			noOpenat2.Store(true)
		}
	}
	return r.walkBelow(path, flags)
}

// walkBelow does what openBelow promises, element by element.
func (r *Root) walkBelow(path string, flags int) (int, error) {
	dir, name := split(path)
	at := r.fd
	if dir != "" {
		var err error
		if at, err = r.walkBelow(dir, unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return -1, err
		}
		defer closeFD(at)
	}
	return ignoringEINTR(func() (int, error) {
		return unix.Openat(at, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	})
}

// Lstat looks at a path below the directory; "" is the directory itself. A path below a symbolic link or
// below something that is no directory is absent: the error then satisfies errors.Is(err, fs.ErrNotExist).
func (r *Root) Lstat(path string) (Entry, error) {
	if err := checkPath(path); err != nil {
		return Entry{}, err
	}
	var st unix.Stat_t
	if err := r.lstat(path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return Entry{}, &absentError{path: path, cause: err}
		}
		return Entry{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return entryOf(&st), nil
}

func entryOf(st *unix.Stat_t) Entry {
	return Entry{
		Mode:       fileMode(st.Mode),
		Size:       st.Size,
		ModTime:    time.Unix(st.Mtim.Unix()),
		ChangeTime: time.Unix(st.Ctim.Unix()),
		Dev:        uint64(st.Dev),   //nolint:unconvert // uint32 on some architectures
		Ino:        uint64(st.Ino),   //nolint:unconvert
		Nlink:      uint64(st.Nlink), //nolint:unconvert
	}
}

// Children lists a directory. What is gone again by the time it is looked at is left out.
func (r *Root) Children(dir string) ([]Child, error) {
	if err := checkPath(dir); err != nil {
		return nil, err
	}
	fd, err := r.openBelow(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	children := make([]Child, 0, len(names))
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT) == nil {
			children = append(children, Child{name, entryOf(&st)})
		}
	}
	return children, nil
}

// MountedOn reports whether something is mounted on a directory below the source directory: another filesystem, or, with Linux 5.8, a bind
// mount of the same one (statx(2), STATX_ATTR_MOUNT_ROOT).
func (r *Root) MountedOn(dir string) bool {
	if dir == "" || checkPath(dir) != nil {
		return false
	}
	fd, err := r.openBelow(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer closeFD(fd)
	var stx unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, 0, &stx) == nil && stx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	}
	var st, up unix.Stat_t
	parent, _ := split(dir)
	return unix.Fstat(fd, &st) == nil && r.lstat(parent, &up) == nil && st.Dev != up.Dev
}

func (r *Root) lstat(path string, st *unix.Stat_t) error {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	dir, name := split(path)
	at := r.fd
	switch {
	case path == "":
		return unix.Fstat(r.fd, st)
	case dir != "":
		var err error
		if at, err = r.openBelow(dir, unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return err
		}
		defer closeFD(at)
	}
	return unix.Fstatat(at, name, st, flags)
}

// fileMode translates st_mode as os.Lstat does.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// OpenForWriting reports whether some process has the file at path open for writing, or mapped so. The caller has seen a regular file
// there; whatever has taken its place since is opened without waiting for anybody, and let go. (A writer that waits for a reader of such a
// FIFO goes on, and finds none.)
// What prevents the check counts as false: no right to take a lease (it takes the owner or CAP_LEASE), a
// filesystem without leases, a file that is gone.
//
// It takes a read lease and drops it (fcntl(2) F_SETLEASE): the kernel refuses one exactly while a writer
// has the file open. Opening does not change the access time, and reading does not happen. A writer that
// opens the file in between waits for these microseconds (with O_NONBLOCK, which regular files have no use for, it gets
// EAGAIN), and the kernel sends SIGIO to this process: the Go runtime has a handler for it, which drops it.
func (r *Root) OpenForWriting(path string) bool {
	if path == "" || checkPath(path) != nil {
		return false
	}
	fd, err := r.openBelow(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return false
	}
	defer closeFD(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		// Closing is not enough while a child, between fork and exec, has the descriptor too.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EBUSY)
}
