// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// What is read at once may be both lost events and a cookie from after them.
func TestCookieDoesNotPassAnOverflow(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.watch("inotify", func(o *Options, tune *tuning) { o.Gather, tune.maxPending = 100*time.Millisecond, 20 })
	for round := range 5 {
		for i := range 200 {
			f.do(os.WriteFile(f.path(fmt.Sprintf("%d-%d", round, i)), []byte("x"), 0o644))
		}
		events := f.sync()
		for i := range 200 {
			if path := fmt.Sprintf("%d-%d", round, i); !covered(events, path) {
				t.Fatalf("the cookie came before anything was told of %s; events:%s", path, describe(events))
			}
		}
	}
}

// A directory above the root is renamed, which has no event, and there is another root at once.
func TestCookieDoesNotPassAnotherRoot(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, backend string) {
		f := newFixture(t)
		f.do(os.MkdirAll(f.path("above/root"), 0o755))
		f.watch(backend, func(o *Options, tune *tuning) { o.Root, tune.rootEvery = f.path("above/root"), time.Hour })
		f.sync()
		f.do(os.Rename(f.path("above"), f.path("renamed")))
		f.do(os.MkdirAll(f.path("above/root/new"), 0o755))
		events := f.sync()
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.faults) != 1 || f.restored != 1 || !covered(events, "new") {
			t.Errorf("faults %v, restored %d, events:%s", f.faults, f.restored, describe(events))
		}
	})
}

// TestCookieDirectoryMayBeAnywhere has it inside the root, around the root, and made anew.
func TestCookieDirectoryMayBeAnywhere(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, backend string) {
		for name, rel := range map[string]string{"inside": "run/cookies", "around": "../../"} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				f.dir += "/around"
				f.do(os.MkdirAll(f.path("a/b"), 0o755))
				f.do(os.MkdirAll(f.path(rel), 0o755))
				f.cookieDir = f.path(rel)
				f.watch(backend)
				f.do(os.WriteFile(f.path("a/f"), nil, 0o644))
				if events := f.sync(); !covered(events, "a/f") {
					t.Errorf("events:%s", describe(events))
				}
			})
		}
		t.Run("made anew", func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.watch(backend)
			f.sync()
			f.do(os.RemoveAll(f.path("../cookies")))
			f.do(os.Mkdir(f.path("../cookies"), 0o755))
			f.sync()
		})
	})
}
