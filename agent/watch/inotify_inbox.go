// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// maxPending bounds the events that are read and not worked on yet: 16 MB with paths of usual length. The
// kernel's own queue holds 16,384 (fs.inotify.max_queued_events). Past it they count as lost.
const maxPending = 1 << 17

// inbox is where the reader puts events: it must never wait, because the kernel drops what is not read in time.
type inbox struct {
	max  int
	wake chan struct{}
	done chan struct{} // closed when the reader has ended

	mu       sync.Mutex
	events   []fsnotify.Event
	overflow bool
	err      error
}

// read moves events from fsnotify into the inbox until kernel is closed.
func (b *inbox) read(kernel *fsnotify.Watcher, stall func()) {
	defer close(b.done)
	for {
		if stall != nil {
			stall()
		}
		select {
		case ev, ok := <-kernel.Events:
			if !ok {
				return
			}
			b.mu.Lock()
			if len(b.events) < b.max {
				b.events = append(b.events, ev)
			} else {
				b.events, b.overflow = nil, true
			}
			b.mu.Unlock()
		case err, ok := <-kernel.Errors:
			if !ok {
				return
			}
			if reading := new(*fs.PathError); errors.Is(err, unix.EINVAL) && !errors.As(err, reading) {
				// From inotify_rm_watch, which fsnotify calls when it reads that a directory has moved, and
				// which was deleted since.
				continue
			}
			b.mu.Lock()
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				b.overflow = true
			} else if b.err == nil {
				b.err = fmt.Errorf("inotify: %w", err)
			}
			b.mu.Unlock()
		}
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// take exchanges the events read so far for an empty buffer.
func (b *inbox) take(buffer []fsnotify.Event) (events []fsnotify.Event, overflow bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	events, overflow, err = b.events, b.overflow, b.err
	b.events, b.overflow = buffer[:0], false
	return events, overflow, err
}
