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
		f.mkdir("above/root")
		f.watch(backend, func(o *Options, tune *tuning) { o.Root, tune.rootEvery = f.path("above/root"), time.Hour })
		f.sync()
		f.do(os.Rename(f.path("above"), f.path("renamed")))
		f.mkdir("above/root/new")
		f.seen("new")
		f.wantFaults(1, 1)
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
				f.mkdir("a/b", rel)
				f.cookieDir = f.path(rel)
				f.watch(backend)
				f.do(os.WriteFile(f.path("a/f"), nil, 0o644))
				f.seen("a/f")
			})
		}
		t.Run("made anew", func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.watch(backend)
			f.sync()
			f.do(os.RemoveAll(f.path("../cookies")))
			f.mkdir("../cookies")
			f.sync()
		})
	})
}
