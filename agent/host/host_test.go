// SPDX-License-Identifier: Apache-2.0

//go:build linux

package host

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

// own is a file of whoever runs the test.
func own(f File) File {
	f.Owner, f.Group = strconv.Itoa(os.Geteuid()), strconv.Itoa(os.Getegid())
	return f
}

func TestWriteReplacesAsAWholeAndKeepsTheMode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	for _, f := range []File{{Mode: 0o600, Data: []byte("one")}, {Mode: 0o644, Data: []byte("two")}, {Mode: 0o4755, Data: nil}} {
		if err := (files{}).Write(p, own(f)); err != nil {
			t.Fatal(err)
		}
		got, err := files{}.Read(p)
		if err != nil || got.Mode != f.Mode || string(got.Data) != string(f.Data) || got.Dir {
			t.Errorf("%+v, %v, want %+v", got, err, f)
		}
	}
	// What a killed writer left is in nobody's way.
	if err := os.WriteFile(tempName(p), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (files{}).Write(p, own(File{Mode: 0o600, Data: []byte("three")})); err != nil {
		t.Fatal(err)
	}
	names, err := files{}.List(dir)
	if err != nil || !slices.Equal(names, []string{"f"}) {
		t.Errorf("%v, %v", names, err)
	}
}

func TestFailedWriteLeavesTheOldFile(t *testing.T) {
	t.Parallel()
	p := filepath.Join(t.TempDir(), "f")
	if err := (files{}).Write(p, own(File{Mode: 0o600, Data: []byte("old")})); err != nil {
		t.Fatal(err)
	}
	f := own(File{Mode: 0o600, Data: []byte("new")})
	f.Owner = "no-such-user-here"
	if err := (files{}).Write(p, f); err == nil {
		t.Error("written for a user that does not exist")
	}
	if err := os.Mkdir(filepath.Join(filepath.Dir(p), "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (files{}).Write(filepath.Join(filepath.Dir(p), "d"), own(File{Mode: 0o600})); err == nil {
		t.Error("a file took the place of a directory")
	}
	names, err := files{}.List(filepath.Dir(p))
	if got, rerr := (files{}).Read(p); rerr != nil || string(got.Data) != "old" || err != nil || !slices.Equal(names, []string{"d", "f"}) {
		t.Errorf("%q, %v, beside %v, %v", got.Data, rerr, names, err)
	}
}

func TestReadFollowsNoLinkAndOpensNoPipe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := os.Symlink("/etc/passwd", link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{link, pipe} {
		if _, err := (files{}).Read(p); !errors.Is(err, ErrNotOwned) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if _, err := (files{}).Read(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestRealFollowsLinksAsFarAsThePathExists(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rsynctest.MakeTree(t, dir, rsynctest.Dir{"a": rsynctest.Dir{"b": rsynctest.Dir{}}, "link": rsynctest.Link("a"), "far": rsynctest.Link("link/b"),
		"dangling": rsynctest.Link("none"), "loop": rsynctest.Link("loop")})
	for p, want := range map[string]string{"a/b": "a/b", "link": "a", "link/b/c/d": "a/b/c/d", "far/x": "a/b/x", "dangling/x": "dangling/x", "loop/x": "loop/x", "none": "none"} {
		if got := (files{}).Real(filepath.Join(dir, p)); got != filepath.Join(dir, want) {
			t.Errorf("%s leads to %s", p, got)
		}
	}
	if got := (files{}).Real("/"); got != "/" {
		t.Errorf("/ leads to %s", got)
	}
}

func TestRemoveKeepsAFullDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	if err := (files{}).Write(dir, own(File{Dir: true, Mode: 0o750})); err != nil {
		t.Fatal(err)
	}
	if got, err := (files{}).Read(dir); err != nil || !got.Dir || got.Mode != 0o750 {
		t.Errorf("%+v, %v", got, err)
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (files{}).Remove(dir); !errors.Is(err, ErrNotEmpty) {
		t.Error(err)
	}
	for _, p := range []string{file, dir} {
		if err := (files{}).Remove(p); err != nil {
			t.Error(err)
		}
	}
	for _, p := range []string{"/", "/etc", "/var/lib/lockstep", "/var/lib/lockstep/", "/var/lib/lockstep/../x", dir} {
		if err := (files{}).RemoveAll(p); err == nil || !strings.HasPrefix(err.Error(), "bug:") {
			t.Errorf("RemoveAll(%s): %v", p, err)
		}
	}
}

func TestLockIsHeldByOneAndNamesIt(t *testing.T) {
	t.Parallel()
	p := filepath.Join(t.TempDir(), "run", "lock")
	unlock, err := lock(context.Background(), p, "the first", nil)
	if err != nil {
		t.Fatal(err)
	}
	late := errors.New("too late")
	holder := "process " + strconv.Itoa(os.Getpid()) + ": the first"
	ctx, cancel := context.WithCancelCause(context.Background())
	told := ""
	if _, err := lock(ctx, p, "the second", func(who string) { told = who; cancel(late) }); !errors.Is(err, late) || !strings.Contains(err.Error(), holder) {
		t.Errorf("second lock: %v", err)
	}
	if told != holder {
		t.Errorf("waits for %q", told)
	}
	unlock(true)
	if _, err := os.Stat(filepath.Dir(p)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// The sockets of agents are below it, for a group that is not root. Not parallel: the umask is that of the process.
func TestLockMakesADirectoryThatOthersMayEnter(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	p := filepath.Join(t.TempDir(), "run", "lock")
	unlock, err := lock(t.Context(), p, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock(true)
	if info, err := os.Stat(filepath.Dir(p)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// The file is removed by some of those who hold it while others wait for it.
func TestLockExcludesAlsoWhileItsFileComesAndGoes(t *testing.T) {
	t.Parallel()
	p := filepath.Join(t.TempDir(), "run", "lock")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var inside, worst, total int
	var mu sync.Mutex
	count := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		inside += n
		worst = max(worst, inside)
		if n > 0 {
			total++
		}
	}
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for k := range 5 {
				unlock, err := lock(ctx, p, "test", nil)
				if err != nil {
					t.Error(err)
					return
				}
				count(1)
				count(-1)
				unlock((i+k)%2 == 0)
			}
		})
	}
	group.Wait()
	if worst != 1 || total != 20 {
		t.Errorf("%d held it at once, %d times in all", worst, total)
	}
}

func TestLoginTellsWhatAClientWouldMeet(t *testing.T) {
	t.Parallel()
	s := rsynctest.Daemon(t, rsynctest.Options{Settings: []string{"hosts allow = 127.0.0.1"}})
	good := Login{Address: s.Address, Port: s.Port, Module: s.Module, User: s.User, Password: s.Password}
	try := func(change func(*Login)) error {
		l := good
		change(&l)
		return login(context.Background(), l)
	}
	if err := try(func(*Login) {}); err != nil {
		t.Error(err)
	}
	var refused *LoginError
	for _, tc := range []struct {
		want   string
		change func(*Login)
	}{
		{"auth failed on module data", func(l *Login) { l.Password = "wrong" }},
		{"auth failed on module data", func(l *Login) { l.User = "nobody" }},
		{"Unknown module 'none'", func(l *Login) { l.Module = "none" }},
	} {
		if err := try(tc.change); !errors.As(err, &refused) || !strings.Contains(refused.Reply, tc.want) || refused.From != "127.0.0.1" {
			t.Errorf("want %q: %v", tc.want, err)
		}
	}
	for list, want := range map[string]string{"yes": "access denied to data from", "no": "Unknown module 'data'"} {
		if err := s.Configure("hosts allow = 192.0.2.1", "hosts deny = *", "list = "+list); err != nil {
			t.Fatal(err)
		}
		if err := try(func(*Login) {}); !errors.As(err, &refused) || !strings.HasPrefix(refused.Reply, want) {
			t.Errorf("from an address that is not allowed, list = %s: %v", list, err)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := try(func(*Login) {}); err == nil || errors.As(err, &refused) {
		t.Errorf("no daemon: %v", err)
	}
}

// Daemons before 3.2.7 offer no digests and mean MD5.
func TestLoginWithWhatIsNotARecentDaemon(t *testing.T) {
	t.Parallel()
	serve := func(talk string) Login {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(talk))
				buf := make([]byte, 4096)
				for n := 0; err == nil && !strings.Contains(string(buf[:n]), "0000"); {
					var k int
					k, err = c.Read(buf[n:])
					n += k
				}
				c.Close()
			}
		}()
		return Login{Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Module: "data"}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for talk, want := range map[string]string{
		"SSH-2.0-OpenSSH_9.2\r\n": `not an rsync daemon, it says "SSH-2.0-OpenSSH_9.2"`,
		"@RSYNCD: \n":             `not an rsync daemon, it says "@RSYNCD: "`,
		"@RSYNCD: 33.0 sha3\n":    "no digest in common, the daemon offers sha3",
		"@RSYNCD: 31.0\nmessage of the day\n@RSYNCD: OK\n":        "",
		"@RSYNCD: 31.0\n@ERROR: max connections (2) reached --\n": "max connections (2) reached --",
	} {
		err := login(ctx, serve(talk))
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%q: %v, want %q", talk, err, want)
		}
	}
}

func TestInspectFindsWhoListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	found := listener(port)
	if found == nil || found.PID != os.Getpid() && found.PID != 0 {
		t.Errorf("port %d: %+v", port, found)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if found := listener(port); found != nil && found.PID == os.Getpid() {
		t.Errorf("port %d is closed: %+v", port, found)
	}
}

// A count that is ended says so, in a tree of few directories and many files as well.
func TestACountThatIsEndedIsNotComplete(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for kind, make := range map[string]func(name string) error{
		"directories": func(name string) error { return os.Mkdir(name, 0o700) },
		"files":       func(name string) error { return os.WriteFile(name, nil, 0o600) },
	} {
		root := t.TempDir()
		for i := range 1500 {
			if err := make(filepath.Join(root, strconv.Itoa(i))); err != nil {
				t.Fatal(err)
			}
		}
		if n, all := countDirs(ended, root); all {
			t.Errorf("%s: %d and no more", kind, n)
		}
		want := 1
		if kind == "directories" {
			want = 1501
		}
		if n, all := countDirs(t.Context(), root); n != want || !all {
			t.Errorf("%s: %d, complete %v", kind, n, all)
		}
	}
}

func TestInspectLooksAtDirectories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rsynctest.MakeTree(t, dir, rsynctest.Dir{"full": rsynctest.Dir{"f": rsynctest.File(""), "sub": rsynctest.Dir{"x": rsynctest.Dir{}}}, "empty": rsynctest.Dir{}, "disk": rsynctest.Dir{"lost+found": rsynctest.Dir{}}, "link": rsynctest.Link("full"), "file": rsynctest.File("")})
	for name, want := range map[string]Dir{
		"full":       {Exists: true, IsDir: true, Entries: []string{"f", "sub"}},
		"empty":      {Exists: true, IsDir: true},
		"disk":       {Exists: true, IsDir: true},
		"link":       {Exists: true, IsDir: true, Symlink: true, Entries: []string{"f", "sub"}},
		"file":       {Exists: true},
		"none/below": {},
		"file/below": {},
	} {
		got, err := inspectDir(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got.FS == "" {
			t.Errorf("%s: on no filesystem: %+v", name, got)
		}
		got.FS = ""
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s: -want +got:\n%s", name, d)
		}
	}
	if d, err := inspectDir("/proc"); err != nil || !d.Mount {
		t.Errorf("/proc: %+v, %v", d, err)
	}
	if n, all := countDirs(context.Background(), dir); n != 7 || !all {
		t.Errorf("%d directories, all: %v", n, all)
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{"192.0.2.7": {"192.0.2.7"}, "fd00::1": {"fd00::1"}, "no-such-host.invalid": nil} {
		if got := resolve(context.Background(), name); !slices.Equal(got, want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestRsyncOfThisHostCanBeUsed(t *testing.T) {
	t.Parallel()
	rsynctest.Binary(t)
	r := findRsync(context.Background())
	if r.Path == "" || r.Version == "" || r.Fault != "" {
		t.Errorf("%+v", r)
	}
}

func TestRsyncThatCannotBeUsedIsFound(t *testing.T) { // sets variables of the environment
	for _, tt := range []struct{ name, script, temp, want string }{
		{"does not delete", "[ $1 = --version ] && exit; echo 'invalid file mode 00' >&2; exit 2", "", "--delete-missing-args does not work: invalid file mode 00"},
		{"a library of it is missing", "exit 127", "", "it cannot be run: exit status 127"},
		{"nowhere to try it", "echo rsync version 3.5.0", "/dev/null", "it cannot be tried: mkdir /dev/null/lockstep-rsync"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "rsync"), []byte("#!/bin/sh\n"+tt.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir)
			if tt.temp != "" {
				t.Setenv("TMPDIR", tt.temp)
			}
			if r := findRsync(t.Context()); r.Path != filepath.Join(dir, "rsync") || !strings.HasPrefix(r.Fault, tt.want) {
				t.Errorf("fault %q of %s, want %q", r.Fault, r.Path, tt.want)
			}
		})
	}
}

func TestBinaryThatOthersCanChangeIsNotTrusted(t *testing.T) {
	t.Parallel()
	if why := untrusted("/tmp/lockstep"); !strings.Contains(why, "temporary") {
		t.Errorf("/tmp: %q", why)
	}
	dir := t.TempDir()
	p := filepath.Join(dir, "lockstep")
	if err := os.WriteFile(p, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if why := untrusted(p); why == "" {
			t.Errorf("%s of an ordinary user is trusted", p)
		}
	}
	if why := untrusted("/usr"); why != "" {
		t.Errorf("/usr: %s", why)
	}
}
