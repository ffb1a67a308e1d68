// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// newAlone is a site without a backup, whose hook notes what it is told.
func newAlone(t *testing.T) (s *site, told func(path string) string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "lockstep")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var mu sync.Mutex
	seen := map[string]string{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m struct {
			Paths []struct{ Path, Kind string }
			Full  bool
		}
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, p := range m.Paths {
			seen[p.Path] = p.Kind
		}
		if m.Full {
			seen[""] = "full"
		}
	}))
	t.Cleanup(server.Close)
	s = &site{t: t, src: filepath.Join(dir, "src"), dst: filepath.Join(dir, "none"), state: filepath.Join(dir, "state"), runtime: filepath.Join(dir, "run"), log: &logBuffer{}}
	s.mkdir("")
	text := fmt.Sprintf("name: data\nsource: {host: localhost, path: %s}\ntransport: none\nexclude: ['*.tmp']\nhooks: [{name: post, type: http, url: '%s/'}]\n", s.src, server.URL)
	if s.pair, err = pair.Parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return s, func(path string) string {
		mu.Lock()
		defer mu.Unlock()
		return seen[path]
	}
}

// startAlone runs the agent with no rsync and no password at hand.
func (s *site) startAlone() {
	s.t.Helper()
	agent, err := New(Options{
		Pair: s.pair, Rsync: "/nonexistent", StateDir: s.state, RuntimeDir: s.runtime, Log: slog.New(slog.NewTextHandler(s.log, nil)),
		Notify: func(state string) { s.mu.Lock(); s.notes = append(s.notes, state); s.mu.Unlock() },
		Reload: func() (pair.Pair, string, error) { s.mu.Lock(); defer s.mu.Unlock(); return s.pair, "", nil },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.run(agent)
}

// A pair without a backup tells its hooks of every change, without rsync, and never says that anything is in step.
func TestHooksWithoutABackup(t *testing.T) {
	t.Parallel()
	s, told := newAlone(t)
	s.write("before", "1")
	s.startAlone()
	st := s.untilState(HooksOnly)
	if st.Target != "" || st.LastInStep != nil {
		t.Errorf("the status tells of a backup: %+v", st)
	}
	s.write("file", "1")
	s.write("left.tmp", "1")
	s.write("dir/sub/file", "1")
	s.until("the files", func(Status) bool { return told("file") == "file" && told("dir/sub/file") == "file" })
	s.mv("file", "dir/moved")
	s.rm("before")
	s.until("the move and the deletion", func(Status) bool {
		return told("file") == "deleted" && told("dir/moved") == "file" && told("before") == "deleted"
	})
	s.rm("dir")
	s.until("the directory", func(Status) bool { return told("dir") == "deleted" })
	if kind := told("left.tmp"); kind != "" {
		t.Errorf("an excluded file was told as %q", kind)
	}
	s.write("last", "1")
	s.wait()
	s.until("the last file", func(Status) bool { return told("last") == "file" })

	for _, path := range []string{"/sync", "/verify"} {
		lines, err := s.call(t.Context(), http.MethodPost, path)
		if text := fmt.Sprint(string(firstLine(lines)), err); !strings.Contains(text, "has no backup") {
			t.Errorf("%s: %s", path, text)
		}
	}
	s.mu.Lock()
	notes := strings.Join(s.notes, "\n")
	s.mu.Unlock()
	if !strings.Contains(notes, "READY=1") || !strings.Contains(notes, "STATUS=hooks only") || strings.Contains(notes, "in step") {
		t.Errorf("told to the service manager:\n%s", notes)
	}
	if lines, err := s.call(t.Context(), http.MethodGet, "/metrics"); err != nil || !strings.Contains(fmt.Sprintf("%s", lines), `state="hooks only"} 1`) {
		t.Errorf("%v\n%s", err, lines)
	}
	if exists(s.dst) {
		t.Error("something was replicated")
	}
}

func firstLine(lines []json.RawMessage) json.RawMessage {
	if len(lines) == 0 {
		return nil
	}
	return lines[0]
}

// An unmounted or replaced source is no deletion of all that was in it, without a backup too.
func TestHooksWithoutABackupAndALostSource(t *testing.T) {
	t.Parallel()
	s, told := newAlone(t)
	s.write("file", "1")
	s.startAlone()
	s.untilState(HooksOnly)
	aside := s.src + ".aside"
	s.do(os.Rename(s.src, aside))
	s.untilState(Held)
	s.do(os.Rename(aside, s.src))
	s.untilState(HooksOnly)
	// What happened meanwhile nobody can list.
	s.until("the full batch", func(Status) bool { return told("") == "full" })
	s.write("after", "1")
	s.wait()
	s.write("later", "1")
	s.until("the file later", func(Status) bool { return told("later") == "file" })
	if kind := told("file"); kind == "deleted" {
		t.Error("a source that was away was told as deletions")
	}
}

// A transport cannot be changed while the agent runs.
func TestTransportNeedsARestart(t *testing.T) {
	t.Parallel()
	s, _ := newAlone(t)
	s.startAlone()
	s.untilState(HooksOnly)
	s.mu.Lock()
	p, err := pair.Parse([]byte("name: data\nsource: {host: localhost, path: " + s.src + "}\nbackup: {host: other, path: /backup}\n"))
	s.pair = p
	s.mu.Unlock()
	s.do(err)
	s.agent.Reload()
	s.until("the refusal", func(st Status) bool {
		return len(st.Events) > 0 && strings.Contains(st.Events[len(st.Events)-1].Text, "transport")
	})
}
