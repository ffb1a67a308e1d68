// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fanCache is how many directories are known by their handle, in each of two generations: at most about 4 MB.
const fanCache = 8192

// Of the handle of a directory that has just been deleted, anywhere on the filesystem, the kernel now and then says ENOMEM with most
// of the memory free, and ESTALE a moment later: seen on ext4, Linux 6.18. Iget_locked in fs/inode.c has no other answer while a
// new inode of that number is being made. Where memory is short in truth, many events may fail; only the first of them waits.
const (
	handleTries = 10
	handlePause = time.Millisecond
)

// lookup returns where a directory is.
func (f *fanotify) lookup(dir []byte) place {
	if p, ok := f.cache.get(dir); ok {
		return p
	}
	p, err := f.resolve(string(dir))
	for tries := 1; errors.Is(err, unix.ENOMEM) && tries < handleTries && !f.failed; tries++ {
		time.Sleep(handlePause)
		p, err = f.resolve(string(dir))
	}
	if err != nil {
		// For want of memory or descriptors. What the event was about is not known, so it may be anything; the
		// next look says so.
		f.failed = true
		return place{outside: true}
	}
	f.cache.put(string(dir), p)
	return p
}

// resolve opens a directory by its handle in each of the mounts that it may be seen in.
func (f *fanotify) resolve(dir string) (place, error) {
	p := place{outside: true}
	for mount, fsid := range f.marked {
		if fsid != dir[:8] {
			continue
		}
		path, err := f.resolveAt(mount, dir)
		tooLong := errors.Is(err, unix.ENAMETOOLONG)
		switch {
		case errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOENT):
			// Deleted, which has an event of its own in the directory above; or not in what is mounted.
			continue
		case err != nil && !tooLong:
			return p, err
		}
		rel, ok := f.rel(path)
		if !ok || !isBelow(path, mount) || f.exclude.Match(rel, true) {
			continue
		}
		p.tooLong = p.tooLong || tooLong
		if p.outside {
			p.outside, p.rel = false, rel
		} else {
			p.more = append(p.more, rel)
		}
	}
	return p, nil
}

// resolveAt returns the path that a directory has seen through one mount. If that is longer than the kernel tells, it
// is the path of the nearest directory above whose path is not, with ENAMETOOLONG.
func (f *fanotify) resolveAt(mount, dir string) (string, error) {
	at, ok := f.open[mount]
	if !ok {
		var err error
		if at, err = openDir(unix.AT_FDCWD, mount); err != nil {
			return "", err
		}
		f.open[mount] = at
	}
	if f.tune.handle != nil {
		if err := f.tune.handle(); err != nil {
			return "", err
		}
	}
	fd, err := unix.OpenByHandleAt(at, fanHandle(dir), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	path, err := pathOf(fd)
	for errors.Is(err, unix.ENAMETOOLONG) {
		up, upErr := unix.Openat(fd, "..", unix.O_PATH|unix.O_CLOEXEC, 0)
		if upErr != nil {
			break
		}
		_ = unix.Close(fd)
		fd = up
		if path, upErr = pathOf(fd); !errors.Is(upErr, unix.ENAMETOOLONG) {
			if upErr != nil {
				err = upErr
			}
			break
		}
	}
	_ = unix.Close(fd)
	return path, err
}

// pathOf returns the path of a directory that is open, or ENOENT if it has none any more.
func pathOf(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd), buf)
	if err != nil {
		return "", err
	}
	path := string(buf[:n])
	if strings.HasSuffix(path, " (deleted)") {
		// That is what the kernel adds, but a directory may be called so.
		var open unix.Stat_t
		if err := unix.Fstat(fd, &open); err != nil {
			return "", err
		}
		if st, err := lstat(path); err != nil || st.Ino != open.Ino || st.Dev != open.Dev {
			return "", unix.ENOENT
		}
	}
	return path, nil
}

func (f *fanotify) closeMounts() {
	for mount, fd := range f.open {
		_ = unix.Close(fd)
		delete(f.open, mount)
	}
}

// place is where a directory was when it was looked for.
type place struct {
	outside bool     // below no watched path: elsewhere, excluded or deleted
	tooLong bool     // rel is a directory above, because the path is too long
	rel     string   // relative to the root
	more    []string // where else it can be seen: bind mounts
}

// dirCache remembers where directories are, by their handles: those asked for last, at least fanCache of them.
type dirCache struct {
	young, old map[string]place
}

func (c *dirCache) get(dir []byte) (place, bool) {
	p, ok := c.young[string(dir)]
	if ok {
		return p, true
	}
	if p, ok = c.old[string(dir)]; ok {
		c.put(string(dir), p)
	}
	return p, ok
}

func (c *dirCache) put(dir string, p place) {
	if len(c.young) >= fanCache {
		c.young, c.old = nil, c.young
	}
	if c.young == nil {
		c.young = map[string]place{}
	}
	c.young[dir] = p
}

func (c *dirCache) clear() { c.young, c.old = nil, nil }
