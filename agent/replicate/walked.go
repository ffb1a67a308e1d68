// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"time"

	"github.com/lockstep-sync/lockstep/agent/watch"
)

const (
	// walkedFor is how long after a recursive run an event from before its end may still come: it waits in the kernel's
	// queue and in the watcher's, normally for milliseconds.
	walkedFor = 10 * time.Second

	// walkedMany bounds the trees that are remembered. Past it the root stands for them.
	walkedMany = 10_000
)

// walked is what recursive runs have read of late: the trees, and until when that matters. The time is zero while the
// run lasts.
//
// Such a run sends what it finds in a directory that is not watched yet, too, and may find what is gone before it
// is watched. No event tells of that but the weak rescan of the directory, which then has to be compared.
type walked map[string]time.Time

func (w walked) begin(trees []string) {
	for _, dir := range trees {
		w[dir] = time.Time{}
	}
}

func (w walked) end(now time.Time, trees []string) {
	until := now.Add(walkedFor)
	for _, dir := range trees {
		w[dir] = until
	}
	if len(w) <= walkedMany/10 {
		return
	}
	for dir, t := range w {
		if !t.IsZero() && t.Before(now) {
			delete(w, dir)
		}
	}
	if len(w) > walkedMany {
		w[""] = until
		for dir, t := range w {
			if !t.IsZero() && dir != "" {
				delete(w, dir)
			}
		}
	}
}

// covers reports whether a recursive run has read a path of late.
func (w walked) covers(now time.Time, path string) bool {
	if len(w) == 0 {
		return false
	}
	for ok := true; ok; path, ok = parentOf(path) {
		if until, there := w[path]; there && (until.IsZero() || now.Before(until)) {
			return true
		}
	}
	return false
}

// doubt makes a weak rescan a strong one where it matters.
func (l *loop) doubt(now time.Time, events []watch.Event) {
	if len(l.walked) == 0 {
		return
	}
	for i := range events {
		if e := &events[i]; e.Op&watch.Rescan != 0 && !e.Tree {
			e.Tree = l.walked.covers(now, e.Path)
		}
	}
}
