// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// diskSize is the size of the backup's filesystem: ten times what a history of 400 operations needs.
const diskSize = "64m"

// mountDisk gives the backup a filesystem of its own, where this may be done.
func (r *run) mountDisk() error {
	if err := os.MkdirAll(r.disk, 0o755); err != nil {
		return err
	}
	err := unix.Mount("tmpfs", r.disk, "tmpfs", 0, "mode=0755,size="+diskSize)
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	r.ownFS = err == nil
	return err
}

// unmountDisk also removes everything after a success. What is in the filesystem after a failure stays to be looked at.
func (r *run) unmountDisk(success bool) error {
	if !success {
		return nil
	}
	if r.ownFS {
		if err := unix.Unmount(r.disk, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	return os.RemoveAll(r.opts.Dir)
}

func (r *run) filler() string { return filepath.Join(r.disk, "filler") }

// fillDisk leaves no room on the backup's filesystem.
func (r *run) fillDisk() error {
	f, err := os.Create(r.filler())
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		_, err := f.Write(block)
		switch {
		case errors.Is(err, syscall.ENOSPC):
			block = block[:len(block)/2]
		case err != nil:
			return err
		}
	}
	return nil
}

// immutable makes one directory of the backup immutable (chattr +i) during do.
func (r *run) immutable(do func() error) error {
	entries, err := os.ReadDir(r.dst)
	if err != nil {
		return err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(r.dst, e.Name()))
		}
	}
	dirs = append(dirs, r.dst)
	dir, err := os.Open(dirs[r.rnd.IntN(len(dirs))])
	if errors.Is(err, os.ErrNotExist) {
		return do()
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, unix.STATX_ATTR_IMMUTABLE); err != nil {
		return do() // the filesystem knows no such flag
	}
	return errors.Join(do(), unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, 0))
}
