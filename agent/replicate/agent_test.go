// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
	"github.com/lockstep-sync/lockstep/agent/pair"
)

// site is a source directory, a real rsync daemon and an agent between them.
type site struct {
	t        *testing.T
	src, dst string
	daemon   *rsynctest.Server
	pair     pair.Pair
	state    string
	runtime  string
	log      *logBuffer

	manyDiffer int // 0: as always

	mu     sync.Mutex
	notes  []string // what was told to the service manager
	cancel context.CancelFunc
	ended  chan error
	agent  *Agent
}

// patience bounds every wait of these tests. It is generous: tests run beside others.
const patience = 30 * time.Second

func newSite(t *testing.T, change func(*pair.Pair)) *site {
	t.Helper()
	rsynctest.Binary(t)
	dir, err := os.MkdirTemp("", "lockstep") // not t.TempDir: a unix socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{
		t: t, src: filepath.Join(dir, "src"), dst: filepath.Join(dir, "dst"),
		state: filepath.Join(dir, "state"), runtime: filepath.Join(dir, "run"),
		log: &logBuffer{},
	}
	s.mkdir("")
	s.daemon = rsynctest.Daemon(t, rsynctest.Options{Path: s.dst})
	s.pair = pair.Defaults()
	s.pair.Name = "data"
	s.pair.Source = pair.Source{Host: "localhost", Path: s.src}
	s.pair.Backup.Host, s.pair.Backup.Path, s.pair.Backup.Port = s.daemon.Address, s.dst, s.daemon.Port
	s.pair.Backup.Module = s.daemon.Module
	s.pair.Auth.User = s.daemon.User
	s.pair.Retry.Initial, s.pair.Retry.Max = pair.Duration(50*time.Millisecond), pair.Duration(500*time.Millisecond)
	s.pair.Complete()
	if change != nil {
		change(&s.pair)
	}
	if problems := s.pair.Validate(); len(problems) > 0 {
		t.Fatal(problems)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the agent's log:\n%s", s.log.tail(60))
		}
	})
	return s
}

// start runs an agent until the test ends, or stop is called.
func (s *site) start() *site {
	s.t.Helper()
	agent, err := New(Options{
		Pair: s.pair, PasswordFile: s.daemon.PasswordFile, StateDir: s.state, RuntimeDir: s.runtime, Version: "test",
		Log:    slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Notify: func(state string) { s.mu.Lock(); s.notes = append(s.notes, state); s.mu.Unlock() },
		Reload: func() (pair.Pair, string, error) { s.mu.Lock(); defer s.mu.Unlock(); return s.pair, "", nil },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if s.manyDiffer > 0 {
		agent.manyDiffer = s.manyDiffer
	}
	s.run(agent)
	return s
}

// run runs an agent until the test ends, or stop is called.
func (s *site) run(agent *Agent) {
	ctx, cancel := context.WithCancel(s.t.Context())
	s.agent, s.cancel, s.ended = agent, cancel, make(chan error, 1)
	go func() { s.ended <- agent.Run(ctx) }()
	s.t.Cleanup(s.stop)
}

func (s *site) stop() {
	s.t.Helper()
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("the agent ended with %v", err)
		}
	case <-time.After(patience):
		s.t.Error("the agent does not end")
	}
}

func (s *site) path(name string) string { return filepath.Join(s.src, name) }

func (s *site) mkdir(name string) {
	s.t.Helper()
	if err := os.MkdirAll(s.path(name), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) write(name, content string) {
	s.t.Helper()
	s.mkdir(filepath.Dir(name))
	if err := os.WriteFile(s.path(name), []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) rm(name string) {
	s.t.Helper()
	if err := os.RemoveAll(s.path(name)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) mv(from, to string) {
	s.t.Helper()
	if err := os.Rename(s.path(from), s.path(to)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) do(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.runtime, SocketName))
		},
	}}
}

// call sends a request and returns the lines of the reply.
func (s *site) call(ctx context.Context, method, path string) ([]json.RawMessage, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.client().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out []json.RawMessage
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<22)
	for lines.Scan() {
		out = append(out, json.RawMessage(strings.Clone(lines.Text())))
	}
	if err := lines.Err(); err != nil {
		return out, err
	}
	if resp.StatusCode != http.StatusOK {
		return out, fmt.Errorf("%s: %s", resp.Status, out)
	}
	return out, nil
}

func (s *site) status() (Status, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	var st Status
	lines, err := s.call(ctx, http.MethodGet, "/status")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(lines[0], &st)
}

// until polls the status until ok holds for it.
func (s *site) until(what string, ok func(Status) bool) Status {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	var st Status
	var err error
	for time.Now().Before(deadline) {
		if st, err = s.status(); err == nil && ok(st) {
			return st
		}
		time.Sleep(5 * time.Millisecond)
	}
	text, _ := json.MarshalIndent(st, "", " ")
	s.t.Fatalf("never %s; last status (%v): %s", what, err, text)
	return st
}

func (s *site) untilState(want State) Status {
	s.t.Helper()
	return s.until(string(want), func(st Status) bool { return st.State == want })
}

// wait is the barrier: what happened before is on the backup.
func (s *site) wait() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	// The socket may not be there yet.
	for {
		lines, err := s.call(ctx, http.MethodPost, "/wait")
		if ctx.Err() != nil {
			st, statusErr := s.status()
			text, _ := json.MarshalIndent(st, "", " ")
			s.t.Fatalf("the barrier is not passed (%v): %s", statusErr, text)
		}
		if err == nil && len(lines) > 0 {
			var u Update
			if err := json.Unmarshal(lines[len(lines)-1], &u); err != nil || !u.Done {
				s.t.Fatalf("wait: %s, %v", lines[len(lines)-1], err)
			}
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// equal waits, and compares both trees.
func (s *site) equal() {
	s.t.Helper()
	s.wait()
	rsynctest.CompareTrees(s.t, s.src, s.dst)
}

func (s *site) onBackup(name string) bool {
	_, err := os.Lstat(filepath.Join(s.dst, name))
	return err == nil
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tail is the last n lines, shortened.
func (l *logBuffer) tail(n int) string {
	lines := strings.Split(strings.TrimSpace(l.String()), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		if len(line) > 300 {
			lines[i] = line[:300]
		}
	}
	return strings.Join(lines, "\n")
}

func TestChangesFollow(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("before/the/start", "1")
	s.start()
	s.equal()

	s.write("a", "one")
	s.write("deep/er/and/deep/er", "x")
	s.do(os.Symlink("a", s.path("link")))
	s.do(os.Symlink("nowhere", s.path("dangling")))
	s.equal()

	s.write("a", "two two")
	s.do(os.Chmod(s.path("a"), 0o600))
	s.mv("deep/er", "moved")
	s.rm("before")
	s.equal()

	s.do(os.Truncate(s.path("a"), 3))
	s.do(os.Chmod(s.path("moved"), 0o700))
	s.do(os.Chtimes(s.path("moved"), time.Unix(1e9, 5), time.Unix(1e9, 5)))
	s.do(os.Link(s.path("a"), s.path("hard")))
	s.rm("link")
	s.do(syscall.Mkfifo(s.path("fifo"), 0o644))
	s.equal()
}

func TestOddNamesFollow(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil).start()
	names := []string{
		"#hash", ";semi", "-dash", " lead", "trail ", "new\nline", "cr\r", "tab\t", "a[1].txt", "a1.txt", "a]b", "*", "?", `\`,
		`quote"`, "quote'", "back`tick", "$d", "$(touch x)", "invalid\xff\xfeutf8", strings.Repeat("n", 255), "日本",
		"...", "..x", "@ERROR: x", "%s", "deleting x", "*deleting   y", `\#012`,
	}
	for _, n := range names {
		s.write(n, "1")
		s.write("d "+n[:min(len(n), 200)]+"/"+n, "2")
	}
	s.equal()
	for _, n := range names {
		s.write(n, "11")
		s.mv("d "+n[:min(len(n), 200)], "e "+n[:min(len(n), 200)])
	}
	s.equal()
	for _, n := range names {
		s.rm(n)
		s.rm("e " + n[:min(len(n), 200)])
	}
	s.write("left", "so that the source is not empty")
	s.equal()
}

// C10 of the scenarios: every change of type, within one batch and across two.
func TestTypeChangesFollow(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(p *pair.Pair) {
		p.Watch.Delay = pair.Duration(50 * time.Millisecond)
		p.Transfer.Timeout = pair.Duration(2 * time.Second) // rsync may hang in a FIFO that was a file; see children
	}).start()
	kinds := map[string]func(string){
		"file":     func(n string) { s.write(n, n) },
		"empty":    func(n string) { s.mkdir(n) },
		"full":     func(n string) { s.write(n+"/x/y", n); s.write(n+"/z", n) },
		"symlink":  func(n string) { s.do(os.Symlink("target", s.path(n))) },
		"fifo":     func(n string) { s.do(syscall.Mkfifo(s.path(n), 0o644)) },
		"other":    func(n string) { s.write(n+"/x/other", n) },
		"fromdirs": func(n string) { s.write(n+".new/1", n); s.mv(n+".new", n) },
	}
	for _, apart := range []bool{false, true} {
		s.mkdir("t")
		for a, make := range kinds {
			for b := range kinds {
				make("t/" + a + " to " + b)
			}
		}
		if apart {
			s.equal()
		}
		for a := range kinds {
			for b, make := range kinds {
				n := "t/" + a + " to " + b
				s.rm(n)
				make(n)
			}
		}
		s.equal()
		s.mv("t", fmt.Sprint("was", apart))
	}
	s.equal()
}

// C11: a stale child path below what became a symlink must not destroy the symlink on the backup.
func TestSymlinkTakesThePlaceOfADirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("subdir1/file1", "1")
	s.mkdir("subdir2")
	s.start()
	s.wait()
	for range 20 {
		s.write("subdir2/subdir1/file1", "1")
		s.write("subdir2/subdir1/gone", "2")
		time.Sleep(time.Duration(time.Now().UnixNano()%40) * time.Millisecond) // at any point of a batch
		s.rm("subdir2/subdir1")
		s.do(os.Symlink("../subdir1", s.path("subdir2/subdir1")))
		time.Sleep(time.Duration(time.Now().UnixNano()%40) * time.Millisecond)
		s.rm("subdir2/subdir1")
	}
	s.do(os.Symlink("../subdir1", s.path("subdir2/subdir1")))
	s.equal()
}

func TestDirectoryReplacedByAnother(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("d/old/1", "1")
	s.write("d/same", "1")
	outside := filepath.Join(filepath.Dir(s.src), "outside")
	s.start()
	s.equal()
	s.do(os.Rename(s.path("d"), outside))
	s.write("d/new/2", "2")
	s.write("d/same", "other")
	s.equal()
}
