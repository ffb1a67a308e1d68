// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
	"github.com/lockstep-sync/lockstep/agent/pair"
)

// full asks for a full batch and waits until it is done.
func (s *site) full() {
	s.t.Helper()
	if lines, err := s.call(s.t.Context(), http.MethodPost, "/sync"); err != nil {
		s.t.Fatalf("sync: %s, %v", lines, err)
	}
}

// Each kind of event by itself: what it notices is sent at once, and what it does not notice waits for a full batch.
// These are the switches of sersync's <inotify>, without their traps: no directory goes unwatched because a switch
// is off, or because its mode was changed.
func TestEventSwitchesDecideWhatIsSentAtOnce(t *testing.T) {
	t.Parallel()
	text := func(s *site, name string) string {
		data, err := os.ReadFile(filepath.Join(s.dst, name))
		if err != nil {
			return "nothing"
		}
		return string(data)
	}
	mode := func(s *site, name string) string {
		st, err := os.Lstat(filepath.Join(s.dst, name))
		if err != nil {
			return "nothing"
		}
		return st.Mode().String()
	}
	for _, tc := range []struct {
		name   string
		events []string
		keep   bool // delete.enabled: false
		do     func(s *site, outside string)
		live   map[string]string // name on the backup → what is there at once; a mode begins with - or d
		later  map[string]string // and what is there after a full batch, where that differs
	}{
		{
			name: "attrib off", events: []string{"create", "modify", "delete", "move"},
			do:    func(s *site, _ string) { s.do(os.Chmod(s.path("f"), 0o600)) },
			live:  map[string]string{"f": "-rw-r--r--"},
			later: map[string]string{"f": "-rw-------"},
		},
		{
			name: "attrib alone", events: []string{"attrib"},
			do: func(s *site, _ string) {
				s.do(os.Chmod(s.path("f"), 0o600))
				s.do(os.Chmod(s.path("sub"), 0o700)) // sersync stopped watching a directory then
				s.wait()
				s.do(os.Chmod(s.path("sub/g"), 0o600))
			},
			live: map[string]string{"f": "-rw-------", "sub": "drwx------", "sub/g": "-rw-------"},
		},
		{
			name: "a directory is still watched when its mode was changed", events: []string{"create", "modify", "attrib", "delete", "move"},
			do: func(s *site, _ string) {
				s.do(os.Chmod(s.path("sub"), 0o700))
				s.wait()
				s.write("sub/g", "two")
			},
			live: map[string]string{"sub": "drwx------", "sub/g": "two"},
		},
		{
			name: "create alone", events: []string{"create"},
			do: func(s *site, _ string) {
				s.write("new", "one")
				s.mkdir("dir/empty")
				s.write("dir/in", "one")
				s.write("f", "two")
				s.rm("sub/g")
			},
			live:  map[string]string{"dir/empty": "drwxr-xr-x", "dir/in": "one", "f": "one", "sub/g": "one"},
			later: map[string]string{"new": "one", "f": "two", "sub/g": "nothing"},
		},
		{
			name: "modify alone", events: []string{"modify"},
			do: func(s *site, _ string) {
				s.write("f", "two")
				s.write("sub/new", "one")
				s.do(os.Symlink("f", s.path("link"))) // made, never written
				s.do(os.Chmod(s.path("sub/g"), 0o600))
			},
			live:  map[string]string{"f": "two", "sub/new": "one", "link": "nothing", "sub/g": "-rw-r--r--"},
			later: map[string]string{"link": "two", "sub/g": "-rw-------"},
		},
		{
			name: "modify alone and a new directory", events: []string{"modify"},
			do: func(s *site, _ string) {
				s.mkdir("dir")
				s.wait() // the directory is watched, though nobody asked for it to be sent
				s.write("dir/in", "one")
			},
			live: map[string]string{"dir/in": "one"},
		},
		{
			name: "modify alone and directories that are made and filled at once", events: []string{"modify"},
			do: func(s *site, _ string) {
				for i := range 20 {
					s.write(fmt.Sprintf("dir%d/a/b/f", i), "one")
				}
			},
			live: map[string]string{"dir0/a/b/f": "one", "dir7/a/b/f": "one", "dir19/a/b/f": "one"},
		},
		{
			name: "delete off", events: []string{"create", "modify", "attrib", "move"},
			do:    func(s *site, _ string) { s.rm("f") },
			live:  map[string]string{"f": "one"},
			later: map[string]string{"f": "nothing"},
		},
		{
			name: "delete alone", events: []string{"delete"},
			do: func(s *site, _ string) {
				s.rm("f")
				s.rm("sub")
				s.write("new", "one")
			},
			live:  map[string]string{"f": "nothing", "sub": "nothing", "new": "nothing"},
			later: map[string]string{"new": "one"},
		},
		{
			name: "the backup only gains", events: []string{"create", "modify", "attrib", "move"}, keep: true,
			do: func(s *site, outside string) {
				s.rm("f")
				s.mv("sub/g", "sub/h")
				s.do(os.Rename(s.path("sub/h"), outside))
				s.write("new", "one")
			},
			live:  map[string]string{"f": "one", "sub/g": "one", "new": "one"},
			later: map[string]string{"f": "one", "sub/g": "one", "new": "one"},
		},
		{
			name: "move alone", events: []string{"move"},
			do: func(s *site, outside string) {
				s.do(os.WriteFile(outside, []byte("from elsewhere"), 0o644))
				s.do(os.Rename(outside, s.path("in")))
				s.mv("f", "sub/f")
				s.write("sub/g", "two")
			},
			live:  map[string]string{"in": "from elsewhere", "f": "nothing", "sub/f": "one", "sub/g": "one"},
			later: map[string]string{"sub/g": "two"},
		},
		{
			name: "a directory moved in is watched", events: []string{"move", "modify"},
			do: func(s *site, outside string) {
				s.do(os.MkdirAll(filepath.Join(outside, "deep"), 0o755))
				s.do(os.Rename(outside, s.path("in")))
				s.wait()
				s.write("in/deep/f", "one")
			},
			live: map[string]string{"in/deep/f": "one"},
		},
		{
			// Without create too: inotify does not say whether what appears was made or moved there.
			name: "move off", events: []string{"modify", "attrib", "delete"},
			do:    func(s *site, _ string) { s.mv("f", "g") },
			live:  map[string]string{"f": "one", "g": "nothing"},
			later: map[string]string{"f": "nothing", "g": "one"},
		},
	} {
		for _, backend := range []string{"inotify", "fanotify"} {
			if backend == "fanotify" && os.Geteuid() != 0 {
				continue
			}
			t.Run(tc.name+" "+backend, func(t *testing.T) {
				t.Parallel()
				s := newSite(t, func(p *pair.Pair) {
					p.Watch.Events, p.Watch.Backend, p.Delete.Enabled = tc.events, backend, !tc.keep
				})
				s.write("f", "one")
				s.write("sub/g", "one")
				s.write("stays", "so that the source is not empty")
				s.start()
				s.wait()
				if st, err := s.status(); err != nil || st.Watch.Backend != backend {
					t.Skipf("no %s here: %+v, %v", backend, st.Watch, err)
				}
				rsynctest.CompareTrees(t, s.src, s.dst)
				check := func(when string, want map[string]string) {
					t.Helper()
					for name, want := range want {
						got := text(s, name)
						if strings.HasPrefix(want, "-") || strings.HasPrefix(want, "d") {
							got = mode(s, name)
						}
						if got != want {
							t.Errorf("%s: %s is %q on the backup, want %q", when, name, got, want)
						}
					}
				}
				tc.do(s, filepath.Join(filepath.Dir(s.src), "outside"))
				s.wait()
				check("at once", tc.live)
				s.full()
				check("after a full batch", tc.later)
				if !tc.keep {
					rsynctest.CompareTrees(t, s.src, s.dst)
				}
			})
		}
	}
}
