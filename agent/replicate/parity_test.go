// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
	"github.com/lockstep-sync/lockstep/agent/pair"
)

// Two pairs of one source: a backup that is down, or that hangs, costs the other one nothing.
func TestDeadBackupDoesNotHoldBackAnother(t *testing.T) {
	t.Parallel()
	alive := newSite(t, nil)
	for _, how := range []string{"down", "hangs"} {
		dead := newSite(t, func(p *pair.Pair) { p.Name, p.Transfer.Timeout = how, pair.Duration(time.Second) })
		dead.pair.Source.Path, dead.src = alive.src, alive.src
		if how == "down" {
			dead.do(dead.daemon.Stop())
		} else {
			ln, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections and never says a word
			dead.do(err)
			t.Cleanup(func() { _ = ln.Close() })
			dead.pair.Backup.Port = ln.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // of a TCP listener
		}
		dead.start()
	}
	alive.start()
	alive.equal()
	for i := range 20 {
		name := fmt.Sprintf("file%d", i)
		alive.write(name, "x")
		began := time.Now()
		alive.until(name, func(Status) bool { return alive.onBackup(name) })
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s took %s", name, took)
		}
	}
}

// The rules that stand for what sersync drops without being told: files named .*, *~ and 4913, and no directories.
func TestRulesForHiddenFiles(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) {
		p.Filter = []string{"+ .*/", "- .*", "+ *~/", "- *~", "+ 4913/", "- 4913"}
	}).start()
	s.wait()
	for _, name := range []string{".env", "dir/.env", "old~", "4913", ".d/.x"} {
		s.write(name, "x")
	}
	sent := []string{"plain", ".d/plain", "old~.d/plain", "4913.d/plain", "d~/plain"}
	for _, name := range sent {
		s.write(name, "x")
	}
	s.wait()
	s.full()
	for _, name := range sent {
		if !s.onBackup(name) {
			t.Errorf("%s is not on the backup", name)
		}
	}
	for _, name := range []string{".env", "dir/.env", "old~", "4913", ".d/.x"} {
		if s.onBackup(name) {
			t.Errorf("%s is on the backup", name)
		}
	}
}

// An exclude holds for events and for full batches alike, at the start too.
func TestExcludesHoldInFullBatchesToo(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) {
		p.Exclude, p.Full.Exclude = []string{"*.tmp", "/cache/"}, []string{"*.live"}
	})
	s.write("before.tmp", "x")
	s.write("cache/before", "x")
	s.write("before.live", "x")
	s.start()
	s.wait()
	s.write("after.tmp", "x")
	s.write("cache/after", "x")
	s.write("after.live", "x") // full.exclude is for full batches only, as sersync's crontabfilter
	s.wait()
	s.full()
	for name, want := range map[string]bool{
		"before.tmp": false, "cache/before": false, "after.tmp": false, "cache/after": false, "before.live": false, "after.live": true,
	} {
		if got := s.onBackup(name); got != want {
			t.Errorf("%s is on the backup: %v", name, got)
		}
	}
}

// metrics.listen is what sersync's <host> was meant for.
func TestMetricsAreServedAtAnAddress(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, func(p *pair.Pair) { p.Metrics.Listen = address }).start()
	s.wait()
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(text), "lockstep_state{") {
		t.Errorf("%v\n%s", err, text)
	}
}

// At the debug level the log has the whole command line of every rsync run, and never a password.
func TestDebugLogHasEveryCommandLine(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil).start()
	s.wait()
	s.write("file", "x")
	s.equal()
	text := s.log.String()
	for _, want := range []string{"--files-from=-", "--dry-run", "--password-file=" + s.daemon.PasswordFile, "::" + s.daemon.Module} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the log", want)
		}
	}
	if strings.Contains(text, s.daemon.Password) {
		t.Error("the password is in the log")
	}
}

// The name of a file that is deleted is a name and no pattern: of these, sersync deleted none, or the wrong ones.
func TestNamesThatArePatternsAreDeletedByName(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	names := []string{"a[1].txt", "a1.txt", "[ab]", "a", "*", "?", `back\slash`, "d[1]/f", "d1/f"}
	for _, name := range names {
		s.write(name, "x")
	}
	s.write("stays", "x")
	s.start()
	s.equal()
	for _, name := range []string{"a[1].txt", "[ab]", "*", "?", `back\slash`, "d[1]"} {
		s.rm(name)
		s.wait()
		if s.onBackup(name) {
			t.Errorf("%s is still on the backup", name)
		}
	}
	rsynctest.CompareTrees(t, s.src, s.dst)
	for _, name := range []string{"a1.txt", "a", "d1/f"} {
		if !s.onBackup(name) {
			t.Errorf("%s was deleted with another", filepath.Base(name))
		}
	}
}

// A hook whose server fails, and one that nobody listens to, cost replication nothing; and a command gets names in their
// exact bytes, whatever is in them.
func TestFailingHooksCostReplicationNothing(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	t.Cleanup(server.Close)
	list := filepath.Join(t.TempDir(), "list")
	s := newSite(t, func(p *pair.Pair) {
		post, nobody, command := hook("post", "http"), hook("nobody", "socket"), hook("command", "command")
		post.URL, post.Retries = server.URL+"/", 100
		nobody.Address, nobody.Retries = filepath.Join(p.Source.Path, "no.sock"), 100
		command.Argv = []string{"/usr/bin/tee", "-a", list}
		p.Hooks = []pair.Hook{post, nobody, command}
		p.Complete()
	}).start()
	s.wait()
	odd := []string{"new\nline", "inv\xff\xfealid", " lead", "trail ", "$(touch x)", "`id`", "-rf", `quote"'\`, "日本", "*", "a[1]"}
	for _, name := range odd {
		s.write(name, "x")
		s.until(name, func(Status) bool { return s.onBackup(name) })
	}
	s.until("in step", func(st Status) bool { return st.State == InStep && st.LagSeconds == 0 })
	st := s.until("failures", func(st Status) bool { return st.Hooks[0].Failures > 0 && st.Hooks[1].Failures > 0 })
	if st.State != InStep {
		t.Errorf("the state is %s: %s", st.State, st.Reason)
	}
	s.until("the command", func(Status) bool {
		data, err := os.ReadFile(list)
		for _, name := range odd {
			if err != nil || !strings.Contains("\x00"+string(data), "\x00"+s.path(name)+"\x00") {
				return false
			}
		}
		return true
	})
}
