// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// cookies are those that the kernel told of, and that are not told yet.
type cookies []heldCookie

// heldCookie is a cookie that waits until all that happened before it has been reported.
type heldCookie struct {
	name string
	scan int // number of the scan that must be done; 0 = none asked for yet
}

func (c *cookies) hold(name string) { *c = append(*c, heldCookie{name: name}) }

// release tells the cookies that need not wait for a scan of what is polled.
func (c *cookies) release(p *poller, emit func(Event)) {
	for len(*c) > 0 && p.passed(&(*c)[0]) {
		emit(Event{Cookie: (*c)[0].name})
		*c = (*c)[1:]
	}
}

// pokeCookies makes the kernel tell again of the files in the cookie directory, because their events may have been
// lost. To report them from a list would prove nothing: older events may still be in the kernel's queue.
func (w *watcher) pokeCookies() {
	if w.opts.CookieDir == "" {
		return
	}
	for _, e := range listDir(w.opts.CookieDir, maxFound).entries {
		path := w.opts.CookieDir + "/" + e.name
		if st, err := lstat(path); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			_ = os.Chmod(path, fs.FileMode(st.Mode&0o777)) // as it is: IN_ATTRIB, FAN_ATTRIB
		}
	}
}
