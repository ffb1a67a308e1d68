// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// odd are names that a shell, a URL or JSON could take for something else.
var odd = []string{"new\nline", "invalid\xff\xfeutf8", "$(touch hacked)", "`touch hacked`", "; touch hacked", "-rf", "a b", `quote"'\`, "sub/<&>?#%"}

type rig struct {
	t    *testing.T
	root string
	*Runner
}

// run runs one hook until the test ends. It waits ten milliseconds after the first failure, not a second.
func run(t *testing.T, h Hook) *rig {
	t.Helper()
	h.Name = "test"
	if h.Timeout == 0 {
		h.Timeout = patience
	}
	root := t.TempDir()
	r, err := New("data", root, []Hook{h}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r.hooks[0].initial = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the runner does not end")
		}
	})
	return &rig{t, root, r}
}

func (r *rig) write(names ...string) {
	r.t.Helper()
	for _, name := range names {
		file := filepath.Join(r.root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) until(what string, ok func(Status) bool) Status {
	r.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s := r.Status()[0]; ok(s) {
			return s
		}
	}
	r.t.Fatalf("never %s: %+v", what, r.Status()[0])
	return Status{}
}

// server answers with the statuses in turn, then with 200.
func server(t *testing.T, statuses ...int) (url string, requests <-chan *http.Request, bodies <-chan []byte) {
	t.Helper()
	reqs, bods := make(chan *http.Request, 100), make(chan []byte, 100)
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if n < len(statuses) { // a hook makes one call at a time
			w.WriteHeader(statuses[n])
		}
		n++
		reqs <- r
		bods <- body
	}))
	t.Cleanup(s.Close)
	return s.URL, reqs, bods
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	panic("not reached")
}

// decode gives the paths of a message as bytes with their kinds.
func decode(t *testing.T, line []byte) (map[string]string, bool) {
	t.Helper()
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		t.Fatalf("%v: %q", err, line)
	}
	if m.Pair != "data" || m.Time.IsZero() || m.Paths == nil {
		t.Errorf("message: %s", line)
	}
	kinds := map[string]string{}
	for _, p := range m.Paths {
		name := p.Path
		if p.Base64 != nil {
			name = string(p.Base64)
		}
		kinds[name] = p.Kind
	}
	return kinds, m.Full
}

func TestBatchIsPosted(t *testing.T) {
	t.Parallel()
	url, requests, bodies := server(t)
	headers := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(headers, []byte("# of the CDN\n\nauthorization: Bearer s:ecret\nX-Two: 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := run(t, Hook{Type: "http", URL: url + "/hook?x=1", Method: "POST", HeadersFile: headers})
	r.write(odd...)
	if err := os.Symlink("nowhere", filepath.Join(r.root, "link")); err != nil {
		t.Fatal(err)
	}
	r.Notify(Arrival{Sent: append([]string{"sub", "link", "vanished"}, odd...), Deleted: []string{"gone"}})
	req := receive(t, requests)
	if req.URL.String() != "/hook?x=1" || req.Method != "POST" || req.Header.Get("Authorization") != "Bearer s:ecret" ||
		req.Header.Get("X-Two") != "2" || req.Header.Get("Content-Type") != "application/json" {
		t.Errorf("request: %s %s %v", req.Method, req.URL, req.Header)
	}
	kinds, full := decode(t, receive(t, bodies))
	want := map[string]string{"sub": "dir", "link": "symlink", "vanished": "other", "gone": "deleted"}
	for _, name := range odd {
		want[name] = "file"
	}
	if fmt.Sprint(kinds) != fmt.Sprint(want) || full {
		t.Errorf("told %q, want %q", kinds, want)
	}
	r.Notify(Arrival{Full: true})
	if kinds, full := decode(t, receive(t, bodies)); !full || len(kinds) != 0 {
		t.Errorf("a full batch: %q %t", kinds, full)
	}
}

func TestURLForEachPath(t *testing.T) {
	t.Parallel()
	url, requests, _ := server(t)
	r := run(t, Hook{Type: "http", URL: url + "/purge?u=http%3A%2F%2Fcdn/{path}", Method: "DELETE", Match: `/pub/(.*)$`, Kind: "file"})
	r.write("pub/a b&c=d\xff\n", "other", "pub/dir/file")
	r.Notify(Arrival{Sent: []string{"pub/a b&c=d\xff\n", "other", "pub/dir"}, Deleted: []string{"pub/gone"}})
	for _, want := range []string{"/purge?u=http%3A%2F%2Fcdn/a%20b%26c%3Dd%FF%0A", "/purge?u=http%3A%2F%2Fcdn/gone"} {
		if req := receive(t, requests); req.RequestURI != want || req.Method != "DELETE" {
			t.Errorf("%s %s, want %s", req.Method, req.RequestURI, want)
		}
	}
	r.until("the path without a match and the directory are counted", func(s Status) bool { return s.Skipped == 2 && s.Calls == 2 })
	r.Notify(Arrival{Full: true})
	r.until("a full batch that has no URL is counted", func(s Status) bool { return s.Skipped == 3 })
}

func TestPatternsChoosePaths(t *testing.T) {
	t.Parallel()
	url, _, bodies := server(t)
	r := run(t, Hook{Type: "http", URL: url, Method: "POST", Include: func(p string, dir bool) bool { return strings.HasSuffix(p, ".php") && !dir }})
	r.write("a.php", "b.txt", "d.php/x")
	r.Notify(Arrival{Sent: []string{"b.txt"}})
	r.Notify(Arrival{Sent: []string{"d.php"}}) // a directory, which only the disk tells
	r.Notify(Arrival{Sent: []string{"b.txt", "d.php", "a.php"}})
	if kinds, _ := decode(t, receive(t, bodies)); len(kinds) != 1 || kinds["a.php"] != "file" {
		t.Errorf("told %q", kinds)
	}
}

func TestServerErrorIsTriedAgain(t *testing.T) {
	t.Parallel()
	url, _, bodies := server(t, 500, 503, 429)
	r := run(t, Hook{Type: "http", URL: url, Method: "POST", Retries: 3})
	r.Notify(Arrival{Sent: []string{"a"}})
	for range 4 {
		if kinds, _ := decode(t, receive(t, bodies)); kinds["a"] == "" {
			t.Errorf("told %q", kinds)
		}
	}
	s := r.until("told", func(s Status) bool { return s.Calls == 4 })
	if s.Failures != 3 || s.GivenUp != 0 || !strings.Contains(s.LastError, "429") || s.LastAt == nil {
		t.Errorf("%+v", s)
	}
}

func TestWhatCannotBeMendedIsGivenUp(t *testing.T) {
	t.Parallel()
	url, _, _ := server(t, 404, 302, 500, 500)
	r := run(t, Hook{Type: "http", URL: url, Method: "POST", Retries: 1})
	for n := range int64(3) { // 404 and 302 at once, 500 after one retry
		r.Notify(Arrival{Sent: []string{"a"}})
		r.until("given up", func(s Status) bool { return s.GivenUp == n+1 })
	}
	if s := r.Status()[0]; s.Calls != 4 || s.Failures != 4 {
		t.Errorf("%+v", s)
	}
	r.Notify(Arrival{Sent: []string{"a"}})
	r.until("told", func(s Status) bool { return s.Calls == 5 && s.Failures == 4 })
}

func TestHangingServerCostsItsTimeoutOnly(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(release) })
	r := run(t, Hook{Type: "http", URL: s.URL, Method: "POST", Timeout: 20 * time.Millisecond, Retries: 2})
	r.Notify(Arrival{Sent: []string{"a"}})
	st := r.until("given up", func(s Status) bool { return s.GivenUp == 1 })
	if st.Failures != 3 || !strings.Contains(st.LastError, "no answer within 20ms") {
		t.Errorf("%+v", st)
	}
}

// A fifo without a writer is refused, not waited for.
func TestHeadersFileMustBeAFile(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "headers")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readHeaders(name); err == nil || !strings.Contains(err.Error(), "it must be a file of mode 0600") {
		t.Errorf("%v", err)
	}
}

func TestHeadersFileMustBePrivate(t *testing.T) {
	t.Parallel()
	url, _, _ := server(t)
	headers := filepath.Join(t.TempDir(), "headers")
	r := run(t, Hook{Type: "http", URL: url, Method: "POST", HeadersFile: headers, Retries: 5})
	for i, tc := range []struct {
		mode os.FileMode
		text string
	}{{0o644, "A: topsecret\n"}, {0o600, "topsecret\n"}, {0o600, "top secret: b\n"}} {
		if err := os.WriteFile(headers, []byte(tc.text), tc.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(headers, tc.mode); err != nil {
			t.Fatal(err)
		}
		r.Notify(Arrival{Sent: []string{"a"}})
		s := r.until("refused", func(s Status) bool { return s.GivenUp == int64(i+1) })
		if strings.Contains(s.LastError, "secret ") || strings.Contains(s.LastError, "topsecret") || !strings.Contains(s.LastError, headers) {
			t.Errorf("%q", s.LastError)
		}
	}
	if s := r.Status()[0]; s.Calls != 3 {
		t.Errorf("%+v", s)
	}
}

func TestSocketGetsLines(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "hook") // not t.TempDir: a unix socket's path must be short
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			address := filepath.Join(dir, "socket")
			if network == "tcp" {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				address = ln.Addr().String()
				ln.Close()
			}
			r := run(t, Hook{Type: "socket", Network: network, Address: address, Retries: 100})
			r.write(odd...)
			r.Notify(Arrival{Sent: odd})
			r.until("refused while nobody listens", func(s Status) bool { return s.Failures >= 2 })
			ln, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			lines := make(chan []byte, 10)
			go func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					text := bufio.NewReader(conn)
					line, err := text.ReadBytes('\n')
					if rest, _ := io.ReadAll(text); err == nil && len(rest) == 0 {
						lines <- line
					}
					conn.Close()
				}
			}()
			kinds, _ := decode(t, receive(t, lines))
			for _, name := range odd {
				if kinds[name] != "file" {
					t.Errorf("%q is %q", name, kinds[name])
				}
			}
			r.until("told", func(s Status) bool { return s.Calls == s.Failures+1 })
			r.Notify(Arrival{Deleted: []string{"x"}})
			if kinds, _ := decode(t, receive(t, lines)); kinds["x"] != "deleted" {
				t.Errorf("told %q", kinds)
			}
		})
	}
}

// script writes a program that a hook runs.
func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCommandGetsPathsOnStdin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	r := run(t, Hook{Type: "command", Argv: []string{script(t, `cat >"$1.new"; echo "$LOCKSTEP_PAIR $LOCKSTEP_HOOK $LOCKSTEP_FULL $(pwd)" >"$1.env"; mv "$1.new" "$1"`), out}})
	r.write(odd...)
	r.Notify(Arrival{Sent: odd, Deleted: []string{"gone"}})
	r.until("run", func(s Status) bool { return s.Calls == 1 })
	want := ""
	for _, name := range append(slices.Clone(odd), "gone") {
		want += r.root + "/" + name + "\x00"
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != want {
		t.Errorf("%v: got %q, want %q", err, got, want)
	}
	r.Notify(Arrival{Full: true})
	r.until("run", func(s Status) bool { return s.Calls == 2 })
	got, _ := os.ReadFile(out)
	env, _ := os.ReadFile(out + ".env")
	if string(got) != r.root+"\x00" || string(env) != "data test 1 /\n" {
		t.Errorf("got %q, %q", got, env)
	}
}

func TestCommandForEachPath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	r := run(t, Hook{Type: "command", Argv: []string{script(t, `printf '%s\0%s\0%s\0' $# "$2" "$3" >>"$1"`), out, "{path}", "$HOME; touch hacked"}})
	r.write(odd...)
	r.Notify(Arrival{Sent: odd})
	r.until("run", func(s Status) bool { return s.Calls == int64(len(odd)) })
	want := ""
	for _, name := range odd {
		want += "3\x00" + r.root + "/" + name + "\x00$HOME; touch hacked\x00"
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != want {
		t.Errorf("%v: got %q, want %q", err, got, want)
	}
	for _, place := range []string{"/hacked", filepath.Join(r.root, "hacked"), "hacked"} {
		if _, err := os.Lstat(place); err == nil {
			t.Errorf("%s was made", place)
		}
	}
}

func TestCommandGetsNoSecretsOfTheAgent(t *testing.T) {
	for _, name := range []string{"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "WATCHDOG_USEC", "AWS_SECRET_ACCESS_KEY"} {
		t.Setenv(name, "/nowhere") // so it is not parallel
	}
	out := filepath.Join(t.TempDir(), "out")
	r := run(t, Hook{Type: "command", Argv: []string{script(t, `env >"$1"; grep -i capamb /proc/self/status >>"$1"`), out}})
	r.Notify(Arrival{Sent: []string{"a"}})
	r.until("run", func(s Status) bool { return s.Calls == 1 && s.Failures == 0 })
	env, err := os.ReadFile(out)
	if err != nil || strings.Contains(string(env), "/nowhere") || !strings.Contains(string(env), "PATH=") {
		t.Errorf("%v: %s", err, env)
	}
	if !strings.Contains(string(env), "CapAmb:\t0000000000000000") {
		t.Errorf("ambient capabilities: %s", env)
	}
}

func TestFailingCommandTellsItsOutput(t *testing.T) {
	t.Parallel()
	argv := []string{script(t, `head -c 100000 /dev/zero | tr '\0' x; echo "the end" >&2; exit 7`)}
	r := run(t, Hook{Type: "command", Argv: argv, Retries: 1})
	r.Notify(Arrival{Sent: []string{"a"}})
	s := r.until("given up", func(s Status) bool { return s.GivenUp == 1 })
	if s.Calls != 2 || !strings.Contains(s.LastError, "exit status 7") || !strings.HasSuffix(s.LastError, `the end"`) || len(s.LastError) > 2*maxOutput {
		t.Errorf("%+v", s)
	}
	r = run(t, Hook{Type: "command", Argv: argv, IgnoreErrors: true})
	r.Notify(Arrival{Sent: []string{"a"}})
	if s := r.until("run", func(s Status) bool { return s.Calls == 1 }); s.Failures != 0 {
		t.Errorf("%+v", s)
	}
	r = run(t, Hook{Type: "command", Argv: []string{"/nowhere/at/all"}, IgnoreErrors: true})
	r.Notify(Arrival{Sent: []string{"a"}})
	r.until("a program that is not there is a failure", func(s Status) bool { return s.Failures == 1 })
}

// Neither the command nor what it started outlives the timeout, whatever they make of SIGTERM.
func TestTimeoutEndsTheWholeGroup(t *testing.T) {
	t.Parallel()
	pids := filepath.Join(t.TempDir(), "pids")
	r := run(t, Hook{Type: "command", Timeout: 300 * time.Millisecond, Argv: []string{
		script(t, `trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo $$ $! >"$1"; while :; do sleep 1; done`), pids}})
	r.Notify(Arrival{Sent: []string{"a"}})
	r.until("its process is known", func(Status) bool { return r.hooks[0].running() > 0 })
	if pid := r.hooks[0].running(); !r.Owns(pid) && r.hooks[0].running() == pid {
		t.Errorf("process %d is nobody's", pid)
	}
	s := r.until("ended", func(s Status) bool { return s.GivenUp == 1 })
	if !strings.Contains(s.LastError, "no answer within 300ms") {
		t.Errorf("%+v", s)
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		r.until("process "+field+" is gone", func(Status) bool {
			stat, err := os.ReadFile("/proc/" + field + "/stat")
			return syscall.Kill(pid, 0) == syscall.ESRCH || err == nil && strings.Contains(string(stat), ") Z ")
		})
	}
}

// Nothing runs here, so the queue only grows.
func TestQueueHasABound(t *testing.T) {
	t.Parallel()
	r, err := New("data", "/nowhere", []Hook{{Name: "a", Type: "http", Timeout: time.Second}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := r.hooks[0]
	for i := range 2 * maxBatches {
		r.Notify(Arrival{Sent: []string{fmt.Sprint(i), "same"}})
	}
	if last := w.queue[len(w.queue)-1]; len(w.queue) != maxBatches || len(last.paths) != maxBatches+2 {
		t.Errorf("%d batches, %d paths in the last", len(w.queue), len(last.paths))
	}
	n := r.Status()[0].Pending
	r.Notify(Arrival{Sent: make([]string, maxPaths-n)})
	if s := r.Status()[0]; s.Collapsed != 0 && len(w.queue) != maxBatches {
		t.Errorf("%+v", s)
	}
	r.Notify(Arrival{Sent: make([]string, maxPaths)})
	if s := r.Status()[0]; s.Pending != 1 || s.Collapsed < maxPaths || len(w.queue) != 1 || !w.queue[0].full {
		t.Errorf("%+v, %d batches", s, len(w.queue))
	}
	r.Notify(Arrival{Deleted: []string{"later"}})
	if s := r.Status()[0]; s.Pending != 2 || w.queue[1].paths[0] != (change{"later", "deleted"}) {
		t.Errorf("%+v", s)
	}
}

func TestJoinedBatchHasThePathOnce(t *testing.T) {
	t.Parallel()
	b := &batch{paths: []change{{"a", ""}, {"b", ""}}}
	b.join(time.Now(), []change{{"b", "deleted"}, {"c", ""}})
	if !slices.Equal(b.paths, []change{{"a", ""}, {"b", "deleted"}, {"c", ""}}) {
		t.Errorf("%q", b.paths)
	}
}

func TestNewRefusesWhatCannotRun(t *testing.T) {
	t.Parallel()
	for _, h := range []Hook{
		{Type: "http"}, {Type: "mail", Timeout: 1}, {Type: "command", Timeout: 1}, {Type: "command", Timeout: 1, Argv: []string{"sh"}},
		{Type: "http", Timeout: 1, Match: "("}, {Type: "http", Timeout: 1, Match: "x"},
	} {
		if _, err := New("data", "/", []Hook{h}, slog.Default()); err == nil {
			t.Errorf("taken: %+v", h)
		}
	}
	var none *Runner
	none.Notify(Arrival{Full: true})
	if none.Status() != nil || none.Owns(1) {
		t.Error("a runner that is none has hooks")
	}
}
