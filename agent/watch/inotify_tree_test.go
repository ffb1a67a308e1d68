// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"
)

// wantDeleted removes the path, which is no directory, and wants to be told.
func (f *fixture) wantDeleted(path string) {
	f.t.Helper()
	f.seen(path)
	f.do(os.Remove(f.path(path)))
	if events := f.sync(); !slices.ContainsFunc(events, func(e Event) bool { return e.Path == path && e.Op&Delete != 0 }) {
		f.t.Errorf("the deletion of %q is not told; events:%s", path, describe(events))
	}
}

// An excluded directory gives way to a symlink before anybody looks: the pattern means no symlinks.
func TestSymlinkInPlaceOfAnExcludedDirectory(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exclude = mustExclude(t, "cache/")
	f.mkdir("cache")
	var stall atomic.Bool
	stalled, resume := make(chan struct{}), make(chan struct{})
	f.watch("inotify", func(_ *Options, tune *tuning) {
		tune.stall = func() {
			if stall.CompareAndSwap(true, false) {
				close(stalled)
				<-resume
			}
		}
	})
	f.sync()
	stall.Store(true)
	f.mkdir("one") // its event ends the read that is under way
	<-stalled
	f.do(os.Remove(f.path("cache")))
	f.do(os.Symlink("x", f.path("cache")))
	close(resume)
	f.wantDeleted("cache")
}

// A directory is moved away, and comes back with a file where it had an excluded directory. Of many files the listing of
// a directory names some only.
func TestFileInPlaceOfAnExcludedDirectoryComesWithItsDirectory(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]int{"among few": 0, "among many": maxFound + 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.exclude = mustExclude(t, "cache/")
			f.mkdir("d/sub/cache")
			f.watch("inotify")
			f.sync()
			f.do(os.Rename(f.path("d"), f.path("../out/d")))
			f.sync()
			f.do(os.Remove(f.path("../out/d/sub/cache")))
			for i := range files {
				f.do(touch(f.path(fmt.Sprint("../out/d/sub/", i))))
			}
			f.do(touch(f.path("../out/d/sub/cache")))
			f.do(os.Rename(f.path("../out/d"), f.path("d")))
			f.wantDeleted("d/sub/cache")
		})
	}
}

// byHand is an inotify that has begun and does nothing by itself.
func (f *fixture) byHand(t *testing.T) *inotify {
	t.Helper()
	w, err := newWatcher(Options{Root: f.path(""), Backend: "inotify", Exclude: f.exclude}, defaultTuning())
	f.do(err)
	f.do(w.find())
	w.mounts = openMounts(w.root.path)
	s, err := openInotify(w)
	f.do(err)
	s.poll = newPoller(w.tune.pollEvery, w.tune.raceTime)
	f.do(s.begin(t.Context()))
	t.Cleanup(func() {
		s.end()
		s.poll.stop()
		w.mounts.close()
	})
	return s
}

// The walk lists a directory, and takes in what it listed after the events of what has happened since.
func TestListingThatIsOlderThanAnEvent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exclude = mustExclude(t, "cache/")
	f.mkdir("cache")
	s := f.byHand(t)
	l := listDir(s.root.path, 0)
	path := f.path("cache")
	f.do(os.Remove(path))
	f.do(touch(path))
	s.settle(t.Context(), path, "cache", Create)
	s.walked(l)
	f.do(os.Remove(path))
	s.batch = nil
	s.settle(t.Context(), path, "cache", Delete)
	if len(s.batch) != 1 || s.batch[0].Op&Delete == 0 {
		t.Errorf("the deletion is not told; events:%s", describe(s.batch))
	}
}
