// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// rootDir is the watched directory as it was found: where it really is, and which directory it is.
type rootDir struct {
	path string // without symlinks
	id   rootID
}

// rootID tells a directory from another one that came to the same path. No descriptor is kept open for it: that
// would keep the filesystem from being unmounted.
type rootID struct {
	major, minor uint32
	ino          uint64
	mount        uint64 // the same filesystem mounted again has another one
	handle       string // differs when the inode number is used again; "" where the filesystem has none
}

func findRoot(path string, unique bool) (rootDir, error) {
	id, err := identifyRoot(path, unique)
	if err != nil {
		return rootDir{}, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return rootDir{}, err
	}
	return rootDir{path: real, id: id}, nil
}

// identifyRoot asks for the number of the mount that no other has had, where unique is true and the kernel has such numbers.
func identifyRoot(path string, unique bool) (rootID, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_SYNC_AS_STAT, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_MNT_ID_UNIQUE, &st)
	// Kernels before 6.8 do not know STATX_MNT_ID_UNIQUE and say so by leaving it out of stx_mask.
	if err == nil && (st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 || !unique) {
		err = unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_SYNC_AS_STAT, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_MNT_ID, &st)
	}
	if err != nil {
		return rootID{}, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return rootID{}, &os.PathError{Op: "watch", Path: path, Err: unix.ENOTDIR}
	}
	id := rootID{major: st.Dev_major, minor: st.Dev_minor, ino: st.Ino, mount: st.Mnt_id}
	if h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err == nil {
		id.handle = string(h.Bytes())
	}
	return id, nil
}

// mount is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id     int
	device string // major:minor
	root   string // the directory of the filesystem that is mounted
	path   string
	fstype string
}

// parseMounts reads mountinfo. A line that it does not understand is left out.
func parseMounts(data string) []mount {
	var mounts []mount
	for line := range strings.Lines(data) {
		fields := strings.Fields(line)
		if len(fields) < 7 {
			continue
		}
		id, err := strconv.Atoi(fields[0])
		if err != nil {
			continue
		}
		m := mount{id: id, device: fields[2], root: unescapeMount(fields[3]), path: unescapeMount(fields[4])}
		for i, f := range fields[6 : len(fields)-1] { // optional fields end with a "-"
			if f == "-" {
				m.fstype = fields[6+i+1]
				break
			}
		}
		mounts = append(mounts, m)
	}
	return mounts
}

// unescapeMount undoes the \ooo of space, tab, newline and backslash.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountTable follows the mounts below one directory, and the one that it lies in.
type mountTable struct {
	fd      int
	dir     string
	below   map[string]mount // by path
	witness *witness
}

// openMounts begins to follow. Where there is no /proc it follows nothing.
func openMounts(dir string) *mountTable {
	t := &mountTable{fd: -1, dir: dir, witness: openWitness()}
	if fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		t.fd = fd
	}
	t.witness.watch(dir)
	t.below = t.read()
	for path := range t.below {
		t.witness.watch(path)
	}
	return t
}

func (t *mountTable) close() {
	t.witness.close()
	if t.fd >= 0 {
		_ = unix.Close(t.fd)
		t.fd = -1
	}
}

// changed tells whether any mount was made or undone since the last call: the kernel flags it as a priority event.
func (t *mountTable) changed() bool {
	if t.fd < 0 {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLPRI}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLPRI|unix.POLLERR) != 0
}

// unmounted reports whether the filesystem of the directory was unmounted since openMounts.
func (t *mountTable) unmounted() bool {
	gone, _ := t.witness.unmounted(t.dir)
	return gone
}

// update reads the mounts again and returns the paths where something else is mounted than before, or may be.
func (t *mountTable) update() []string {
	was := t.below
	t.below = t.read()
	var paths []string
	for path, m := range t.below {
		if gone, known := t.witness.unmounted(path); gone || !known || was[path] != m {
			paths = append(paths, path)
			t.witness.forget(path)
			t.witness.watch(path)
		}
	}
	for path := range was {
		if _, ok := t.below[path]; !ok {
			paths = append(paths, path)
			t.witness.forget(path)
		}
	}
	return paths
}

func (t *mountTable) read() map[string]mount {
	below := map[string]mount{}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return below
	}
	prefix := withSlash(t.dir)
	for _, m := range parseMounts(string(data)) {
		// Of mounts on the same path the last is the one that is seen.
		if strings.HasPrefix(m.path, prefix) && m.path != t.dir && m.visible() {
			below[m.path] = m
		}
	}
	return below
}

// visible tells whether the mount is what its path leads to, and not hidden below another.
func (m mount) visible() bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, m.path, unix.AT_STATX_SYNC_AS_STAT|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if err != nil {
		return false
	}
	return st.Mask&unix.STATX_MNT_ID == 0 || st.Mnt_id == uint64(m.id)
}

// remote names the filesystems whose changes by other hosts reach no notification of this one.
var remote = map[int64]string{
	unix.NFS_SUPER_MAGIC:  "nfs",
	unix.SMB_SUPER_MAGIC:  "smb",
	unix.SMB2_SUPER_MAGIC: "cifs",
	unix.CIFS_SUPER_MAGIC: "cifs",
	unix.FUSE_SUPER_MAGIC: "fuse",
	unix.V9FS_MAGIC:       "9p",
	unix.CEPH_SUPER_MAGIC: "ceph",
	unix.AFS_SUPER_MAGIC:  "afs",
	unix.AFS_FS_MAGIC:     "afs",
	unix.CODA_SUPER_MAGIC: "coda",
	0x0bd00bd0:            "lustre",
	0x47504653:            "gpfs",
	0x7461636f:            "ocfs2",
	0x01161970:            "gfs2",
	0x786f4256:            "vboxsf",
}

// blindness says in words which changes at path no notification tells of, or "".
func blindness(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return ""
	}
	// The magic numbers are 32 bits wide; f_type has a sign on some machines.
	name, ok := remote[int64(uint32(st.Type))]
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s is a %s filesystem: changes made by another host are seen by the next full batch, not by the watch", path, name)
}

// countsLinks reports whether a directory of the filesystem at path has two links and one more for each directory in it (".."), so that
// one with two has none. Others do not count, or not reliably: btrfs, overlayfs, network and FUSE filesystems. What is wrong on disk,
// after a crash without a journal and without fsck(8), is wrong here too.
func countsLinks(path string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.TMPFS_MAGIC: // the first is ext2 and ext3 too
		return true
	}
	return false
}

func withSlash(dir string) string {
	if strings.HasSuffix(dir, "/") {
		return dir
	}
	return dir + "/"
}
