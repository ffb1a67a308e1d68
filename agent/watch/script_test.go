// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// backends calls f for every backend that this machine can run. What cannot run is skipped by name.
func backends(t *testing.T, f func(t *testing.T, backend string)) {
	t.Helper()
	t.Run("inotify", func(t *testing.T) {
		t.Parallel()
		f(t, "inotify")
	})
	t.Run("fanotify", func(t *testing.T) {
		t.Parallel()
		needFanotify(t)
		f(t, "fanotify")
	})
}

// needFanotify skips the test where fanotify cannot watch the directory for temporary files.
func needFanotify(t *testing.T) {
	t.Helper()
	_, err := New(Options{Root: t.TempDir(), Backend: "fanotify"})
	switch {
	case err == nil:
	case os.Getenv("CI") == "true" && os.Geteuid() == 0 && !errors.Is(err, errFilesystem):
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// fixture is a watched directory, a directory beside it, and what was reported so far.
type fixture struct {
	t       *testing.T
	dir     string // holds root, out and cookies
	w       *watcher
	stop    func()
	exclude *Exclude
	// cookieDir is the directory for cookies.
	cookieDir string
	each      func(Event) // if set, called for each event as it comes

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each report
	events   []Event       // since the last sync
	faults   []error       // all
	restored int
	cookies  map[string]bool
	serial   int
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: quietDir(t), changed: make(chan struct{}), cookies: map[string]bool{}}
	f.mkdir("", "../out", "../cookies")
	f.cookieDir = f.path("../cookies")
	return f
}

// quietDir returns a directory on a filesystem of its own where the tests may mount one. A fanotify mark is for a
// whole filesystem: on the one for all temporary files, a compiler at work beside the test overflows the queue.
func quietDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "size=256m,mode=0755"); err != nil {
		return dir
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (f *fixture) do(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// path returns the absolute path of one that is relative to the root; "../out/x" is outside of it.
func (f *fixture) path(rel string) string { return filepath.Join(f.dir, "root", rel) }

// mkdir makes directories, and those above them.
func (f *fixture) mkdir(rels ...string) {
	f.t.Helper()
	for _, rel := range rels {
		f.do(os.MkdirAll(f.path(rel), 0o755))
	}
}

// watch starts a watcher and returns when it is ready.
func (f *fixture) watch(backend string, vary ...func(*Options, *tuning)) {
	f.t.Helper()
	f.start(backend, vary...)
	select {
	case <-f.w.Ready():
	case <-time.After(patience):
		f.t.Fatal("not ready")
	}
	if got := f.w.Info().Backend; backend != "auto" && got != backend {
		f.t.Errorf("backend is %q, want %q", got, backend)
	}
}

func (f *fixture) start(backend string, vary ...func(*Options, *tuning)) {
	f.t.Helper()
	o := Options{Root: f.path(""), Backend: backend, Exclude: f.exclude, CookieDir: f.cookieDir}
	tune := defaultTuning()
	tune.rootEvery = 20 * time.Millisecond
	tune.pollEvery = 50 * time.Millisecond
	tune.raceTime = 50 * time.Millisecond // long enough for local filesystems
	for _, v := range vary {
		v(&o, &tune)
	}
	w, err := newWatcher(o, tune)
	f.do(err)
	f.w = w
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		for r := range w.Reports() {
			f.mu.Lock()
			for _, e := range r.Events {
				if e.Cookie != "" {
					f.cookies[e.Cookie] = true
				} else {
					f.events = append(f.events, e)
					if f.each != nil {
						f.each(e)
					}
				}
			}
			if r.Fault != nil {
				f.faults = append(f.faults, r.Fault)
			}
			if r.Restored {
				f.restored++
			}
			close(f.changed)
			f.changed = make(chan struct{})
			f.mu.Unlock()
		}
	})
	wait.Go(func() {
		if err := w.Run(ctx); err != nil {
			f.t.Errorf("Run: %v", err)
		}
	})
	f.stop = sync.OnceFunc(func() {
		cancel()
		wait.Wait()
	})
	f.t.Cleanup(f.stop)
}

// until waits until cond is true; it is called with mu held.
func (f *fixture) until(what string, cond func() bool) {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		ok, changed := cond(), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			f.mu.Lock()
			defer f.mu.Unlock()
			f.t.Fatalf("%s: not seen after %v; faults %v, events %s", what, patience, f.faults, describe(f.events))
		}
	}
}

// sync returns the events of all that has happened until now. It relies on nothing but a cookie.
func (f *fixture) sync() []Event {
	f.t.Helper()
	f.serial++
	name := fmt.Sprint("cookie", f.serial)
	f.do(os.WriteFile(f.cookieDir+"/"+name, nil, 0o644))
	f.until("cookie", func() bool { return f.cookies[name] })
	f.do(os.Remove(f.cookieDir + "/" + name))
	f.mu.Lock()
	defer f.mu.Unlock()
	events := f.events
	f.events = nil
	return events
}

func describe(events []Event) string {
	var b strings.Builder
	for i, e := range events {
		if i == 400 {
			fmt.Fprintf(&b, "\n  and %d more", len(events)-i)
			break
		}
		fmt.Fprintf(&b, "\n  %q %s", e.Path, opString(e.Op))
		if e.Dir {
			b.WriteString(" dir")
		}
		if e.Tree {
			b.WriteString(" tree")
		}
	}
	return b.String()
}

func opString(op Op) string {
	var names []string
	for i, n := range []string{"create", "modify", "attrib", "delete", "move", "rescan"} {
		if op&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, "|")
}

// covered tells whether one of the events makes a consumer look at path.
func covered(events []Event, path string) bool {
	return slices.ContainsFunc(events, func(e Event) bool {
		return e.Path == path || (e.Tree || e.Op&Delete != 0) && (e.Path == "" || isBelow(path, e.Path))
	})
}

// seen is sync for events that make a consumer look at these paths.
func (f *fixture) seen(paths ...string) []Event {
	f.t.Helper()
	events := f.sync()
	for _, path := range paths {
		if !covered(events, path) {
			f.t.Errorf("nothing covers %q; events:%s", path, describe(events))
		}
	}
	return events
}

// wantFaults wants so many to have been told in all, and so often that the watch is whole again.
func (f *fixture) wantFaults(faults, restored int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.faults) != faults || f.restored != restored {
		f.t.Errorf("restored %d, want %d; faults %v, want %d", f.restored, restored, f.faults, faults)
	}
}

// probe makes a file in every directory and wants an event of exactly that path for each: so all are
// watched, and under the path where they are now.
func (f *fixture) probe() {
	f.t.Helper()
	f.sync()
	var want []string
	f.do(filepath.WalkDir(f.path(""), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(f.path(""), path)
		if err != nil || !d.IsDir() {
			return err
		}
		if rel == "." {
			rel = ""
		}
		name := strings.TrimPrefix(rel+"/probe", "/")
		if f.exclude.Match(rel, true) {
			return filepath.SkipDir
		}
		if !f.exclude.Match(name, false) {
			want = append(want, name)
		}
		return nil
	}))
	for _, name := range want {
		f.do(os.WriteFile(f.path(name), []byte("x"), 0o644))
	}
	events := f.sync()
	seen := map[string]bool{}
	for _, e := range events {
		seen[e.Path] = true
		if !slices.Contains(want, e.Path) {
			f.t.Errorf("probe: event for %q", e.Path)
		}
	}
	for _, name := range want {
		if !seen[name] {
			f.t.Errorf("probe: no event for %q", name)
		}
		f.do(os.Remove(f.path(name)))
	}
	f.sync()
}

// TestScripts runs testdata/*.script on every backend. A script has commands, one a line; a word may be written as
// a Go string. What stands before "watch" happens before the watcher does. "Output:" then lists what must
// have been reported: a path is covered by an event of it or a Tree event above it; "tree PATH" wants an event
// that stands for all below PATH; "never PATH" wants no event of PATH or below. More commands may follow.
func TestScripts(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob("testdata/*.script")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range scripts {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".script"), func(t *testing.T) {
			t.Parallel()
			backends(t, func(t *testing.T, backend string) { runScript(t, backend, string(data)) })
		})
	}
}

func runScript(t *testing.T, backend, script string) {
	f := newFixture(t)
	var events []Event
	output := false
	for n, line := range strings.Split(script, "\n") {
		words, err := splitWords(line)
		if err != nil {
			t.Fatalf("line %d: %v", n+1, err)
		}
		if len(words) == 0 {
			continue
		}
		if words[0] == "Output:" {
			events, output = f.sync(), true
			continue
		}
		if strings.HasPrefix(line, " ") && output {
			if msg := checkOutput(events, words); msg != "" {
				t.Errorf("line %d: %s, events:%s", n+1, msg, describe(events))
			}
			continue
		}
		output = false
		if err := f.command(backend, words); err != nil {
			t.Fatalf("line %d: %s: %v", n+1, line, err)
		}
	}
	f.probe()
}

func checkOutput(events []Event, words []string) string {
	switch {
	case len(words) == 1:
		if !covered(events, words[0]) {
			return fmt.Sprintf("nothing covers %q", words[0])
		}
	case words[0] == "tree":
		if !slices.ContainsFunc(events, func(e Event) bool {
			return (e.Tree || e.Op&Delete != 0) && (e.Path == "" || isBelow(words[1], e.Path))
		}) {
			return fmt.Sprintf("no Tree or Delete event at or above %q", words[1])
		}
	case words[0] == "never":
		for _, e := range events {
			if isBelow(e.Path, words[1]) {
				return fmt.Sprintf("event for %q", e.Path)
			}
		}
	default:
		return "bad output line"
	}
	return ""
}

func splitWords(line string) ([]string, error) {
	var words []string
	for line = strings.TrimSpace(line); line != "" && line[0] != '#'; line = strings.TrimSpace(line) {
		if line[0] == '"' {
			q, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, err
			}
			word, err := strconv.Unquote(q)
			if err != nil {
				return nil, err
			}
			words, line = append(words, word), line[len(q):]
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		words, line = append(words, word), rest
	}
	return words, nil
}

// command carries out one line of a script.
func (f *fixture) command(backend string, words []string) error {
	args := words[1:]
	each := func(do func(path string) error) error {
		for _, a := range args {
			if err := do(f.path(a)); err != nil {
				return err
			}
		}
		return nil
	}
	text := func(flags int) error {
		file, err := os.OpenFile(f.path(args[0]), os.O_WRONLY|flags, 0o644)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = file.WriteString(args[1])
		return err
	}
	switch words[0] {
	case "exclude":
		e, err := NewExclude(args)
		f.exclude = e
		if err != nil || f.w == nil {
			return err
		}
		was := f.w.applied.Load()
		f.w.SetExclude(e)
		for deadline := time.Now().Add(patience); f.w.applied.Load() == was; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				return errors.New("not applied")
			}
		}
		return nil
	case "watch":
		f.watch(backend)
		f.sync()
		return nil
	case "sync":
		f.sync()
		return nil
	case "mkdir":
		return each(func(p string) error { return os.Mkdir(p, 0o755) })
	case "mkdir-p":
		return each(func(p string) error { return os.MkdirAll(p, 0o755) })
	case "touch":
		return each(touch)
	case "write":
		return text(os.O_CREATE | os.O_TRUNC)
	case "append":
		return text(os.O_APPEND)
	case "truncate":
		return os.Truncate(f.path(args[0]), 1)
	case "mv":
		return os.Rename(f.path(args[0]), f.path(args[1]))
	case "rm", "rmdir":
		return each(os.Remove)
	case "rm-r":
		return each(os.RemoveAll)
	case "chmod":
		mode, err := strconv.ParseUint(args[0], 8, 32)
		if err != nil {
			return err
		}
		return os.Chmod(f.path(args[1]), fs.FileMode(mode))
	case "ln-s":
		return os.Symlink(args[0], f.path(args[1]))
	case "ln":
		return os.Link(f.path(args[0]), f.path(args[1]))
	case "mkfifo":
		return each(func(p string) error { return syscall.Mkfifo(p, 0o644) })
	default:
		return errors.New("unknown command")
	}
}

func touch(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	now := time.Now()
	return os.Chtimes(path, now, now)
}
