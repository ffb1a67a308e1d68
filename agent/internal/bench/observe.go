// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// observer notes when a version of a file stands under its final name on the backup. The first eight bytes of
// every file are a version counter, so a version that was overtaken by a later one counts as arrived with it.
type observer struct {
	w    *fsnotify.Watcher
	dst  string
	done chan struct{}

	mu      sync.Mutex
	pending map[string][]stamp // by relative path
	samples []time.Duration
}

type stamp struct {
	version uint64
	at      time.Time
}

// observe watches the given directories of dst, which must exist.
func observe(dst string, dirs []string) (*observer, error) {
	w, err := fsnotify.NewBufferedWatcher(1 << 16)
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if err := w.Add(filepath.Join(dst, d)); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	o := &observer{w: w, dst: dst, done: make(chan struct{}), pending: map[string][]stamp{}}
	go o.run()
	return o, nil
}

// wrote says that a version was finished (closed or renamed into place) on the source just now.
func (o *observer) wrote(rel string, version uint64) {
	now := time.Now()
	o.mu.Lock()
	o.pending[rel] = append(o.pending[rel], stamp{version, now})
	o.mu.Unlock()
}

func (o *observer) run() {
	defer close(o.done)
	for {
		select {
		case ev, ok := <-o.w.Events:
			if !ok {
				return
			}
			// rsync renames its temporary file into place: a Create under the final name. --inplace would be a Write.
			if ev.Has(fsnotify.Create) || ev.Has(fsnotify.Write) {
				if rel, err := filepath.Rel(o.dst, ev.Name); err == nil {
					o.arrived(rel, time.Now())
				}
			}
		case _, ok := <-o.w.Errors:
			if !ok {
				return
			}
		}
	}
}

func (o *observer) arrived(rel string, at time.Time) {
	o.mu.Lock()
	known := len(o.pending[rel]) > 0
	o.mu.Unlock()
	if !known {
		return
	}
	f, err := os.Open(filepath.Join(o.dst, rel))
	if err != nil {
		return
	}
	defer f.Close()
	var head [8]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return
	}
	version := binary.LittleEndian.Uint64(head[:])
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending[rel] = slices.DeleteFunc(o.pending[rel], func(s stamp) bool {
		if s.version > version {
			return false
		}
		o.samples = append(o.samples, max(at.Sub(s.at), 0))
		return true
	})
	if len(o.pending[rel]) == 0 {
		delete(o.pending, rel)
	}
}

// finish waits until all that was written has arrived, or until limit has passed, and gives the latencies, sorted,
// and how many versions never arrived.
func (o *observer) finish(limit time.Duration) (samples []time.Duration, missing int, err error) {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		o.mu.Lock()
		n := len(o.pending)
		o.mu.Unlock()
		if n == 0 {
			break
		}
	}
	err = o.w.Close()
	<-o.done
	for rel := range o.pending { // what came while the queue of this watcher overflowed
		o.arrived(rel, time.Now())
	}
	for _, s := range o.pending {
		missing += len(s)
	}
	slices.Sort(o.samples)
	return o.samples, missing, err
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
