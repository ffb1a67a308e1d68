// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

// want checks class and message of a run, and that a class that asks for a person tells what to do.
func (f *fixture) want(res Result, c Class, status int, message string) {
	f.Helper()
	if res.Class != c || res.Status != status || !strings.Contains(res.Message, message) {
		f.Errorf("class %v, status %d, message %q; want %v, %d, …%s…\n%s", res.Class, res.Status, res.Message, c, status, message, res.Stderr)
	}
	if c == Permanent && res.Hint == "" {
		f.Errorf("no hint with %q", res.Message)
	}
}

func TestOutcomeOfADaemonThatRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file("x"), "d": dir{"b": file("y")}})
	f.full()
	f.write("a", "xx")

	runs := map[string]func() Result{
		"send": func() Result { return f.send("a") },
		"list": func() Result {
			return f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(Item) error { return nil })
		},
		"probe": func() Result { return f.r.Probe(f.Context()) },
	}
	cases := []struct {
		name     string
		settings []string
		before   func(t *testing.T) // changes the client or the daemon
		class    Class
		status   int
		message  string
	}{
		{"wrong password", nil, func(t *testing.T) {
			f.ok(os.WriteFile(f.d.PasswordFile, []byte("wrong\n"), 0o600))
		}, Permanent, ExitStartClient, "refuses the password of user lockstep"},
		{"secrets file that others may read", nil, func(t *testing.T) {
			f.ok(os.Chmod(f.d.Secrets, 0o644))
		}, Permanent, ExitStartClient, "refuses the password"},
		{"unknown module", nil, func(t *testing.T) { f.r.opts.Target.Module = "nosuch" }, Permanent, ExitStartClient, `has no module nosuch`},
		{"host not allowed", []string{"hosts allow = 192.0.2.1", "hosts deny = *", "list = yes"}, nil, Permanent, ExitStartClient, "refuses module data to this host"},
		{"host not allowed and not told", []string{"hosts allow = 192.0.2.1", "hosts deny = *"}, nil, Permanent, ExitStartClient, "has no module data, or not for this host"},
		{"read only", []string{"read only = yes", "write only = no"}, nil, Permanent, ExitSyntax, "is read only"},
		{"refused option", []string{"refuse options = modify-window"}, nil, Permanent, ExitUnsupported, "refuses the rsync option --modify-window"},
		{"missing path", []string{"path = /nonexistent/lockstep"}, nil, NoDirectory, ExitStartClient, "directory of module data is missing"},
		{"nothing is mounted", []string{`pre-xfer exec = LC_ALL=C mountpoint "$RSYNC_MODULE_PATH" 2>&1`}, nil, NoDirectory, ExitUnsupported, "the backup host refuses: nothing is mounted on " + f.d.Path},
		{"lock file that cannot be made", []string{"lock file = /nonexistent/lockstep/lock", "max connections = 3"}, nil, Permanent, ExitStartClient, "failed to open lock file"},
		{"password file that others may read", nil, func(t *testing.T) {
			f.ok(os.Chmod(f.d.PasswordFile, 0o644))
		}, Permanent, ExitSyntax, "may be read by others"},
		{"password file missing", nil, func(t *testing.T) {
			f.r.opts.Target.PasswordFile = "/nonexistent/password"
		}, Permanent, ExitSyntax, "rsync cannot read /nonexistent/password"},
		{"empty password file", nil, func(t *testing.T) {
			f.ok(os.WriteFile(f.d.PasswordFile, nil, 0o600))
		}, Permanent, ExitSyntax, "holds no password"},
		{"no password file", nil, func(t *testing.T) { f.r.opts.Target.PasswordFile = "" }, Permanent, ExitStartClient, "refuses the password"},
		{"unresolvable name", nil, func(t *testing.T) { f.r.opts.Target.Address = "no-such-host.invalid" }, Transient, ExitSocketIO, "no-such-host.invalid of the backup host cannot be resolved"},
		{"connection refused", nil, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			f.ok(err)
			f.r.opts.Target.Port = l.Addr().(*net.TCPAddr).Port
			f.ok(l.Close())
		}, Transient, ExitSocketIO, "Connection refused"},
	}
	target := f.r.opts.Target
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { // not parallel: the cases share the daemon
			f.T = t
			f.ok(f.d.Configure(c.settings...))
			if c.before != nil {
				c.before(t)
			}
			for name, run := range runs {
				res := run()
				f.want(res, c.class, c.status, c.message)
				if t.Failed() {
					t.Fatalf("run %s", name)
				}
			}
		})
		f.T = t
		f.r.opts.Target = target
		f.ok(os.WriteFile(f.d.PasswordFile, []byte(f.d.Password+"\n"), 0o600))
		f.ok(os.Chmod(f.d.PasswordFile, 0o600))
		f.ok(os.Chmod(f.d.Secrets, 0o600))
	}
	f.ok(f.d.Configure())
	f.done(f.send("a"))
	f.same()
}

func TestOutcomeOfConnectionsThatAreTaken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "max connections = 1")
	f.make(dir{"big": file(strings.Repeat("x", 1<<20))})
	f.r.opts.BandwidthLimit = "50"
	ctx, cancel := context.WithCancel(f.Context())
	defer cancel()
	started := make(chan struct{})
	ended := make(chan Result)
	go func() {
		once := false
		ended <- f.r.Run(ctx, f.root(), Job{Kind: Send, Paths: []string{"big"}}, func(Progress) {
			if !once {
				once = true
				close(started)
			}
		})
	}()
	select {
	case <-started:
	case res := <-ended:
		t.Fatalf("ended too early: %+v", res)
	}
	f.want(f.r.Probe(f.Context()), Transient, ExitStartClient, "all 1 connections of module data are taken")
	cancel()
	if res := <-ended; res.Class != Stopped {
		t.Errorf("after cancel: %+v", res)
	}
}

func TestOutcomeOfADaemonThatIsKilledInATransfer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"big": file(strings.Repeat("x", 1<<20)), "small": file("y")})
	f.r.opts.BandwidthLimit = "100"
	killed := false
	res := f.r.Run(f.Context(), f.root(), Job{Kind: Send, Paths: []string{"big", "small"}}, func(p Progress) {
		if !killed && p.Bytes > 0 {
			killed = true
			if err := f.d.Kill(); err != nil {
				t.Error(err)
			}
		}
	})
	if res.Class != Transient || res.Status != ExitSocketIO && res.Status != ExitStreamIO {
		t.Errorf("killed daemon: %+v", res)
	}
	f.r.opts.BandwidthLimit = ""
	f.ok(f.d.Start())
	f.done(f.send("big", "small"))
	// The killed receiver could not clean up: its temporary file is extraneous, and goes as such.
	var extra []string
	res = f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(it Item) error {
		if !it.Extraneous && it.Path != "" {
			t.Errorf("differs: %+v", it)
		}
		if it.Extraneous {
			extra = append(extra, it.Path)
		}
		return nil
	})
	f.done(res)
	f.done(f.del(extra...))
	f.done(f.send(""))
	f.same()
}

func TestOutcomeOfASilentListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // connections wait in its backlog
	f := &fixture{T: t, src: t.TempDir()}
	f.opts = Options{Target: Target{Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Module: "data"}, Timeout: time.Second}
	f.runner()
	f.want(f.r.Probe(t.Context()), Transient, ExitTimeout, "was silent")
}

func TestOutcomeOfAnotherService(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		says    string
		class   Class
		message string
	}{
		{"SSH-2.0-OpenSSH_9.2\r\n", Permanent, "is not an rsync daemon: it says SSH-2.0"},
		{"", Transient, "does not answer as an rsync daemon"},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte(c.says)) //nolint:errcheck // the run tells
			// Closed with something unread, the connection would be reset, and what it said be lost now and then.
			conn.(*net.TCPConn).CloseWrite() //nolint:errcheck // the run tells
			io.Copy(io.Discard, conn)        //nolint:errcheck // until rsync has gone
			conn.Close()
		}()
		f := &fixture{T: t}
		f.opts = Options{Target: Target{Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Module: "data"}, Timeout: 5 * time.Second}
		f.runner()
		res := f.r.Probe(t.Context())
		if res.Class != c.class || !strings.Contains(res.Message, c.message) {
			t.Errorf("%q: %+v", c.says, res)
		}
		l.Close()
		<-done
	}
}

func TestOutcomeOfAnOldRsyncThatIsMissing(t *testing.T) {
	t.Parallel()
	if _, err := New(Options{Rsync: "/nonexistent/rsync"}); err == nil || !strings.Contains(err.Error(), "hint: install rsync") {
		t.Errorf("New with no rsync: %v", err)
	}
	f := newFixture(t)
	f.make(dir{"a": file("")})
	f.r.rsync = "/nonexistent/rsync"
	f.want(f.send("a"), Permanent, -1, "rsync is not there: stat")
}

// perPath runs a job and compares the whole result but for messages, sizes and times.
func (f *fixture) perPath(res Result, want Result) {
	f.Helper()
	got := Result{Class: res.Class, Status: res.Status, Failed: res.Failed, Changed: res.Changed, Blocked: res.Blocked, Kept: res.Kept, Incomplete: res.Incomplete}
	if d := diff(want, got); d != "" {
		f.Errorf("-want +got:\n%s\nstderr: %s", d, res.Stderr)
	}
	if len(res.Failed) > 0 && res.Message == "" {
		f.Error("no message")
	}
}

func TestUnwritableBackupFailsByName(t *testing.T) {
	t.Parallel()
	needRoot(t)
	f := newFixture(t, "uid = nobody", "gid = nogroup")
	f.make(dir{"a": file("x"), "d": dir{"b": file("y")}, "l": link("a"), "p": rsynctest.Fifo{}})
	f.ok(os.Chmod(f.dst, 0o755)) // root's
	denied := func(p string) PathFailure {
		return PathFailure{Path: p, Reason: "Permission denied (13)", Remote: true}
	}
	times := PathFailure{Path: "", Reason: "Operation not permitted (1)", Remote: true}
	res := f.send("a", "d", "d/b", "l", "p")
	f.perPath(res, Result{Class: Done, Status: ExitPartial, Failed: []PathFailure{times, denied("a"), denied("d"), denied("l"), denied("p")}})
	if !strings.Contains(res.Hint, "module's uid") {
		t.Errorf("hint %q", res.Hint)
	}
	res = f.run(Job{Kind: Tree, Paths: []string{""}})
	f.perPath(res, Result{Class: Done, Status: ExitPartial, Failed: []PathFailure{times, denied("a"), denied("d"), denied("l"), denied("p")}})

	// A file that may be written, but not given to its owner: rsync says nothing, as it does not try without root.
	f.makeBackup(dir{"d": rsynctest.With{Node: dir{"gone": file(""), "b": file("")}, Mode: 0o755}})
	f.perPath(f.del("d/gone"), Result{Class: Done, Status: ExitPartial, Failed: []PathFailure{
		times, {Path: "d", Reason: "Operation not permitted (1)", Remote: true}, denied("d/gone")}})
	if res := f.r.Canary(t.Context()); res.Class != Permanent || !strings.Contains(res.Message, "Permission denied") {
		t.Errorf("canary: %+v", res)
	}
}

func TestVanishedAndAbsentPathsAreChanged(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file("x"), "d": dir{}, "f": file(""), "l": link("d")})
	f.perPath(f.send("a", "gone", "d/x/y", "f/below", "l/below"), Result{Class: Done, Changed: []string{"d/x", "f", "gone", "l"}})
	f.perPath(f.run(Job{Kind: Tree, Paths: []string{"gone", "f"}}), Result{Class: Done, Status: -1, Changed: []string{"f", "gone"}})
	f.perPath(f.del("a", "d/x", "l/below", "n/m"), Result{Class: Done, Changed: []string{"a", "l", "n"}})
	if f.backupHas("l") || f.backupHas("f") || f.backupHas("d/x") {
		t.Error("sent what was not asked for")
	}
}

func TestNamesOfFailuresSurviveQuotesAndNewlines(t *testing.T) {
	t.Parallel()
	needRoot(t)
	f := newFixture(t, "uid = nobody", "gid = nogroup")
	names := []string{"new\nline", `quo"te`, `a": No such file (2)`, `x" (in data)`, "back\\slash", `hash\#012`, "\xff\xfe", " lead", "trail ", "colon: x", `a" -> "b`, "(in data)"}
	tree := dir{"d": dir{}}
	for _, n := range names {
		tree[n] = file("x")
	}
	f.make(tree)
	res := f.send(names...)
	got := map[string]bool{}
	for _, p := range res.Failed {
		got[p.Path] = true
	}
	for _, n := range names {
		if !got[n] {
			t.Errorf("%q is not among the failed", n)
		}
	}
	if res.Class != Done || len(got) != len(names)+1 { // and the top directory's times
		t.Errorf("%+v", res)
	}
	if t.Failed() {
		t.Log(res.Stderr)
	}
}

func TestChangedWhileItIsRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	f.make(dir{"big": file(big)})
	f.full()
	f.r.opts.BandwidthLimit = "700"
	f.r.opts.Extra = []string{"--whole-file"}
	f.ok(os.WriteFile(f.at("big"), []byte(big+"x"), 0o644))
	cut := false
	res := f.r.Run(f.Context(), f.root(), Job{Kind: Send, Paths: []string{"big"}}, func(p Progress) {
		if !cut {
			cut = true
			if err := os.Truncate(f.at("big"), 10); err != nil {
				t.Error(err)
			}
		}
	})
	if !cut {
		t.Fatal("no progress was told")
	}
	if res.Class != Done || len(res.Changed) != 1 || res.Changed[0] != "big" {
		t.Errorf("%+v", res)
	}
	f.r.opts.BandwidthLimit = ""
	f.done(f.send("big"))
	f.same()
}

func TestUnreadableSource(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if os.Geteuid() == 0 {
		if _, err := os.Stat("/usr/bin/setpriv"); err != nil {
			t.Skip("as root, setpriv is needed to run rsync without rights\nhint: apt-get install util-linux")
		}
		f.r.rsync = scripts.nobody
		f.ok(os.Chmod(filepath.Dir(f.src), 0o755)) // t.TempDir's parent
		f.ok(os.Chmod(f.d.PasswordFile, 0o600))
		f.ok(os.Chown(f.d.PasswordFile, 65534, 65534))
		f.ok(os.Chmod(filepath.Dir(f.d.PasswordFile), 0o755))
		f.ok(os.Chmod(filepath.Dir(filepath.Dir(f.d.PasswordFile)), 0o755))
	}
	f.make(dir{"a": rsynctest.With{Node: file("x"), Mode: 0o200}, "b": file("y"), "d": rsynctest.With{Node: dir{}, Mode: 0o300}, "x": dir{}})
	f.ok(os.Chmod(f.src, 0o755))
	f.makeBackup(dir{"d": dir{"kept": file("")}, "x": dir{"extra": file("")}})
	denied := func(p string) PathFailure { return PathFailure{Path: p, Reason: "Permission denied (13)"} }
	f.perPath(f.send("a", "b"), Result{Class: Done, Status: ExitPartial, Failed: []PathFailure{denied("a")}})
	var extra []string
	res := f.r.List(f.Context(), f.root(), ListOptions{Delete: true}, func(it Item) error {
		if it.Extraneous {
			extra = append(extra, it.Path)
		}
		return nil
	})
	f.perPath(res, Result{Class: Done, Status: ExitPartial, Failed: []PathFailure{denied("d")}, Incomplete: true})
	if len(extra) > 0 {
		t.Errorf("reported as extraneous after a read error: %q", extra)
	}
}

// The kernel takes no path longer than 4095 bytes, but a tree may be deeper.
func TestTooLongPathsFailByName(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	name := strings.Repeat("d", 250)
	at, err := os.OpenRoot(f.src)
	f.ok(err)
	path := ""
	for len(path) < 4096+100 {
		f.ok(at.Mkdir(name, 0o755))
		next, err := at.OpenRoot(name)
		f.ok(err)
		f.ok(at.Close())
		at = next
		path = join(path, name)
	}
	f.ok(at.WriteFile("file", []byte("x"), 0o644))
	f.ok(at.Close())
	f.make(dir{"ok": file("")})
	res := f.send("ok", path+"/file")
	f.perPath(res, Result{Class: Done, Failed: []PathFailure{{Path: path + "/file", Reason: "File name too long (36)"}}})

	res = f.run(Job{Kind: Tree, Paths: []string{""}})
	if res.Class != Done || len(res.Failed) != 1 || !strings.HasPrefix(path, res.Failed[0].Path) || res.Failed[0].Remote {
		t.Errorf("%v, %d failed\n%s", res.Class, len(res.Failed), res.Stderr)
	}
	_, res = f.list(ListOptions{Delete: true})
	if res.Class != Done || !res.Incomplete {
		t.Errorf("comparison: %v, incomplete %v\n%s", res.Class, res.Incomplete, res.Stderr)
	}
}
