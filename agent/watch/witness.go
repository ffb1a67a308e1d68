// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// witness knows whether a filesystem was unmounted, even when it, or another one, is mounted again by the time of the look.
// Nothing else tells: the kernel gives the number of a mount, and that of a device, to the next one, and every watch and mark
// that was on the filesystem is gone without a word. But inotify(7) ends a watch with its filesystem (IN_UNMOUNT, IN_IGNORED).
//
// It keeps no filesystem busy.
type witness struct {
	fd    int              // -1: there is none, because of a limit
	wds   map[string]int32 // by path
	ended map[int32]bool
	buf   [4096]byte
}

func openWitness() *witness {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		fd = -1
	}
	return &witness{fd: fd, wds: map[string]int32{}, ended: map[int32]bool{}}
}

func (w *witness) close() {
	if w.fd >= 0 {
		_ = unix.Close(w.fd)
		w.fd = -1
	}
	clear(w.wds)
}

// watch begins with what is mounted at path now.
func (w *witness) watch(path string) {
	if w.fd < 0 {
		return
	}
	// The root of a filesystem is never deleted, so there are no events but the end.
	if wd, err := unix.InotifyAddWatch(w.fd, path, unix.IN_DELETE_SELF); err == nil {
		w.wds[path] = int32(wd)
	}
}

// forget ends a watch, unless the same directory is watched at another path too.
func (w *witness) forget(path string) {
	wd, ok := w.wds[path]
	if !ok {
		return
	}
	delete(w.wds, path)
	for _, other := range w.wds {
		if other == wd {
			return
		}
	}
	if !w.ended[wd] {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // it may have ended meanwhile
	}
	delete(w.ended, wd)
}

// unmounted reports whether what was at path when it was watched has been unmounted since. It does not know that of a path
// that could not be watched.
func (w *witness) unmounted(path string) (gone, known bool) {
	wd, known := w.wds[path]
	if !known {
		return false, false
	}
	w.read()
	return w.ended[wd], true
}

// read takes in what has ended.
func (w *witness) read() {
	for {
		n, err := unix.Read(w.fd, w.buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		// struct inotify_event: wd 4, mask 4, cookie 4, length of the name 4; nothing here has a name.
		for buf := w.buf[:n]; len(buf) >= unix.SizeofInotifyEvent; buf = buf[unix.SizeofInotifyEvent:] {
			wd, mask := int32(binary.NativeEndian.Uint32(buf)), binary.NativeEndian.Uint32(buf[4:])
			if mask&(unix.IN_IGNORED|unix.IN_Q_OVERFLOW) == 0 {
				continue
			}
			for _, watched := range w.wds {
				if watched == wd || mask&unix.IN_Q_OVERFLOW != 0 {
					w.ended[watched] = true
				}
			}
		}
	}
}
