// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

func hook(name, kind string) pair.Hook {
	return pair.Hook{Name: name, Type: kind, Include: []string{}, Timeout: pair.Duration(patience), Retries: 1}
}

// A hook that never answers keeps its own queue waiting, and nothing else.
func TestHangingHookDoesNotDelayReplication(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	called := make(chan struct{}, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		called <- struct{}{}
		<-release
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	s := newSite(t, func(p *pair.Pair) {
		h := hook("hang", "http")
		h.URL, h.Timeout = server.URL+"/", pair.Duration(time.Hour)
		p.Hooks = []pair.Hook{h}
		p.Complete()
	}).start()
	s.until("in step", func(st Status) bool { return st.State == InStep })
	s.write("first", "1")
	s.until("the first file", func(st Status) bool { return st.State == InStep && exists(filepath.Join(s.dst, "first")) })
	select {
	case <-called:
	case <-time.After(patience):
		t.Fatal("the hook was not called")
	}
	for i := range 20 {
		name := fmt.Sprintf("next%d", i)
		s.write(name, "2")
		s.until(name, func(st Status) bool { return exists(filepath.Join(s.dst, name)) })
	}
	st := s.until("in step beside a hook that hangs", func(st Status) bool { return st.State == InStep && st.LagSeconds == 0 })
	if len(st.Hooks) != 1 || st.Hooks[0].Calls != 0 || st.Hooks[0].Pending < 20 {
		t.Errorf("hooks: %+v", st.Hooks)
	}
	lines, err := s.call(t.Context(), http.MethodGet, "/metrics")
	if text := fmt.Sprintf("%s", lines); err != nil || !strings.Contains(text, `lockstep_hook_pending_paths{pair="data",hook="hang"} `) {
		t.Errorf("no metric of the hook: %v\n%s", err, text)
	}
	// And an agent ends in spite of it.
	s.stop()
}

// A hook is told after the arrival: files, deletions and what a pattern leaves out.
func TestHookIsToldWhatArrived(t *testing.T) {
	t.Parallel()
	type told struct {
		Paths []struct{ Path, Kind string }
		Full  bool
	}
	var mu sync.Mutex
	var s *site
	seen := map[string]string{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m told
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, p := range m.Paths {
			if p.Kind == "file" && !exists(filepath.Join(s.dst, p.Path)) {
				t.Errorf("%s was told before it arrived", p.Path)
			}
			if p.Kind == "deleted" && exists(filepath.Join(s.dst, p.Path)) {
				t.Errorf("%s was told before it was gone", p.Path)
			}
			seen[p.Path] = p.Kind
		}
	}))
	t.Cleanup(server.Close)
	list := filepath.Join(t.TempDir(), "list")
	s = newSite(t, func(p *pair.Pair) {
		post, command := hook("post", "http"), hook("command", "command")
		post.URL, post.Include = server.URL+"/", []string{"*.html", "sub/"}
		command.Argv, command.Include = []string{"/usr/bin/tee", "-a", list}, []string{"a.html"}
		p.Hooks = []pair.Hook{post, command}
		p.Complete()
	})
	s.start()
	s.until("in step", func(st Status) bool { return st.State == InStep })
	s.write("a.html", "a")
	s.write("b.txt", "b")
	s.mkdir("sub")
	s.write("sub/c.txt", "c")
	await := func(what string, ok func() bool) {
		t.Helper()
		s.until(what, func(Status) bool {
			mu.Lock()
			defer mu.Unlock()
			return ok()
		})
	}
	await("the files", func() bool { return seen["a.html"] == "file" && seen["sub/c.txt"] == "file" })
	if err := os.Remove(s.path("a.html")); err != nil {
		t.Fatal(err)
	}
	await("the deletion", func() bool { return seen["a.html"] == "deleted" })
	mu.Lock()
	if _, ok := seen["b.txt"]; ok {
		t.Error("b.txt was told, and is not included")
	}
	mu.Unlock()
	path := s.path("a.html") + "\x00"
	await("the command, for the file and for its deletion", func() bool {
		data, _ := os.ReadFile(list)
		return bytes.HasPrefix(data, []byte(path)) && bytes.Count(data, []byte(path)) >= 2 && !slices.Contains(strings.Split(string(data), "\x00"), s.path("b.txt"))
	})
}

// A changed definition brings its hooks with it.
func TestReloadReplacesHooks(t *testing.T) {
	t.Parallel()
	calls := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { calls <- r.URL.Path }))
	t.Cleanup(server.Close)
	s := newSite(t, nil).start()
	s.until("in step", func(st Status) bool { return st.State == InStep })
	h := hook("new", "http")
	h.URL, h.Method = server.URL+"/{path}", "GET"
	s.mu.Lock()
	s.pair.Hooks = []pair.Hook{h}
	s.mu.Unlock()
	s.agent.Reload()
	s.until("the hook", func(st Status) bool { return len(st.Hooks) == 1 })
	s.write("one two", "x")
	select {
	case path := <-calls:
		if path != "/one two" {
			t.Errorf("called for %q", path)
		}
	case <-time.After(patience):
		t.Fatal("the hook was not called")
	}
}
