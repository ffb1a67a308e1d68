// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

func openRoot(t *testing.T, path string) *Root {
	t.Helper()
	r, err := OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestOpenRootWantsADirectory(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	rsynctest.MakeTree(t, d, dir{"f": file("")})
	for path, want := range map[string]error{filepath.Join(d, "f"): unix.ENOTDIR, filepath.Join(d, "none"): fs.ErrNotExist} {
		if _, err := OpenRoot(path); !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestLstatStaysBelowTheRoot(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	at := time.Unix(1_700_000_000, 123_456_789)
	rsynctest.MakeTree(t, d, dir{
		"d": dir{"sub": dir{"f": rsynctest.With{Node: file("hello"), Mode: 0o640 | fs.ModeSetgid, MTime: at}}, "new\nline": file("")},
		"l": link("d"), "abs": link("/etc"), "f": file(""), "h": rsynctest.HardLink("f"), "p": rsynctest.Fifo{}, "s": rsynctest.Socket{}, "dangling": link("none"),
	})
	r := openRoot(t, d)
	check := func(t *testing.T) {
		e, err := r.Lstat("d/sub/f")
		if err != nil || e.Mode != 0o640|fs.ModeSetgid || e.Size != 5 || !e.ModTime.Equal(at) || e.Nlink != 1 || e.Ino == 0 || e.ChangeTime.Before(at) {
			t.Errorf("%+v, %v", e, err)
		}
		for path, mode := range map[string]fs.FileMode{"": fs.ModeDir, "d": fs.ModeDir, "l": fs.ModeSymlink, "dangling": fs.ModeSymlink, "p": fs.ModeNamedPipe, "s": fs.ModeSocket, "f": 0, "d/new\nline": 0} {
			e, err := r.Lstat(path)
			if err != nil || e.Mode.Type() != mode {
				t.Errorf("%q: %v, %v", path, e.Mode, err)
			}
			if want, err := os.Lstat(filepath.Join(d, path)); err != nil || e.Mode != want.Mode() || !e.ModTime.Equal(want.ModTime()) {
				t.Errorf("%q: %v, os.Lstat has %v, %v", path, e.Mode, want.Mode(), err)
			}
		}
		for path, top := range map[string]string{"none": "none", "d/none": "d/none", "d/none/x/y": "d/none", "l/sub": "l", "l/sub/f": "l", "abs/passwd": "abs", "f/x": "f", "f/x/y": "f", "dangling/x/y": "dangling"} {
			if _, err := r.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%q: %v, want absent", path, err)
			}
			if got := r.top(path); got != top {
				t.Errorf("top of %q is %q, want %q", path, got, top)
			}
		}
		for _, path := range []string{"/etc", "..", "d/../f", "d//sub", "./d", "d/", "a\x00b"} {
			if _, err := r.Lstat(path); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%q: %v, want it refused", path, err)
			}
		}
		if e, err := r.Lstat("h"); err != nil || e.Nlink != 2 {
			t.Errorf("%+v, %v", e, err)
		}
		if _, err := r.Lstat(strings.Repeat("x", 256)); err == nil {
			t.Error("too long a name is there")
		}
	}
	t.Run("openat2", check)
	t.Run("element by element", func(t *testing.T) {
		for path, want := range map[string]error{"d/sub": nil, "l/sub": unix.ENOTDIR, "f/x": unix.ENOTDIR, "none/x": unix.ENOENT} {
			fd, err := r.walkBelow(path, unix.O_PATH|unix.O_DIRECTORY)
			if !errors.Is(err, want) && (!errors.Is(want, unix.ENOTDIR) || !errors.Is(err, unix.ELOOP)) {
				t.Errorf("%q: %v, want %v", path, err, want)
			}
			if err == nil {
				unix.Close(fd)
			}
		}
		noOpenat2.Store(true) // other tests that run now only get slower
		defer noOpenat2.Store(false)
		check(t)
	})
}

func TestUnreadableParentIsNotAbsent(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		againAsNobody(t)
		return
	}
	d := t.TempDir()
	rsynctest.MakeTree(t, d, dir{"d": rsynctest.With{Node: dir{"f": file("")}, Mode: 0o200}})
	defer os.Chmod(filepath.Join(d, "d"), 0o700) //nolint:errcheck // TempDir's cleanup tells
	if _, err := openRoot(t, d).Lstat("d/f"); !errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// againAsNobody runs a test again, which has found that root may look everywhere, in a process of another user.
func againAsNobody(t *testing.T) {
	t.Helper()
	const nobody = 65534
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, nobody, nobody), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	// Not the path of the test binary: go test makes it in a directory that nobody else is let into.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	r := openRoot(t, d)
	if empty, err := r.Empty(); !empty || err != nil {
		t.Error(empty, err)
	}
	rsynctest.MakeTree(t, d, dir{".hidden": file("")})
	if empty, err := r.Empty(); empty || err != nil {
		t.Error(empty, err)
	}
	if os.Geteuid() == 0 {
		againAsNobody(t)
		return
	}
	if err := os.Chmod(d, 0o300); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(d, 0o700) //nolint:errcheck // TempDir's cleanup tells
	if _, err := r.Empty(); !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}

func TestIdentityIsOfTheDirectory(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	identity := func(path string) Identity {
		t.Helper()
		id, err := openRoot(t, path).Identity()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	rsynctest.MakeTree(t, d, dir{"a": dir{}, "b": dir{}, "l": link("a")})
	a := identity(filepath.Join(d, "a"))
	if again := identity(filepath.Join(d, "l")); again != a {
		t.Errorf("%v is not %v", again, a)
	}
	b := identity(filepath.Join(d, "b"))
	if a == b || a.FS != b.FS || a.Ino == 0 {
		t.Errorf("%v and %v", a, b)
	}
	if err := os.Rename(filepath.Join(d, "a"), filepath.Join(d, "c")); err != nil {
		t.Fatal(err)
	}
	if c := identity(filepath.Join(d, "c")); c != a {
		t.Errorf("after a rename %v is not %v", c, a)
	}
	if proc := identity("/proc"); proc.FS == a.FS {
		t.Errorf("/proc and the temporary directory are both on %s", proc.FS)
	}
	text, err := a.MarshalText()
	var back Identity
	if err != nil || back.UnmarshalText(text) != nil || back != a {
		t.Errorf("%q becomes %v", text, back)
	}
	for _, bad := range []string{"", "fsid:1", "fsid:1/", "x:1/2", "fsid:1/-2", "fsid:1/2/3"} {
		if err := new(Identity).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	t.Log(string(text))
}

func TestOpenForWriting(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	rsynctest.MakeTree(t, d, dir{"d": dir{"f": file("x")}, "p": rsynctest.Fifo{}, "l": link("d/f"), "ld": link("d"), "s": rsynctest.Socket{}})
	r := openRoot(t, d)
	path := filepath.Join(d, "d/f")
	open := func(flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	want := func(writers bool, when string) {
		t.Helper()
		if got := r.OpenForWriting("d/f"); got != writers {
			t.Errorf("%s: %v", when, got)
		}
	}
	want(false, "closed")
	f := open(os.O_RDONLY)
	want(false, "open for reading")
	f.Close()
	f = open(os.O_WRONLY)
	want(true, "open for writing")
	f.Close()
	want(false, "closed again")
	f = open(os.O_RDWR)
	m, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	want(true, "mapped for writing, descriptor closed")
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
	want(false, "unmapped")
	for _, path := range []string{"", "d", "p", "l", "ld/f", "s", "none", "../x"} {
		if r.OpenForWriting(path) {
			t.Errorf("%q is open for writing", path)
		}
	}
	var before unix.Stat_t
	if err := unix.Lstat(path, &before); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		want(false, "looked at")
	}
	var after unix.Stat_t
	if err := unix.Lstat(path, &after); err != nil {
		t.Fatal(err)
	}
	if before.Atim != after.Atim || before.Mtim != after.Mtim || before.Ctim != after.Ctim {
		t.Error("a time of the file changed")
	}
}

// A writer that opens the file while the lease is held makes the kernel send SIGIO, which ends a process that has no handler.
func TestBrokenLeaseDoesNoHarm(t *testing.T) {
	t.Parallel()
	if err := syscall.Kill(os.Getpid(), syscall.SIGIO); err != nil {
		t.Fatal(err)
	}
	d := t.TempDir()
	rsynctest.MakeTree(t, d, dir{"f": file("x")})
	r := openRoot(t, d)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			f, err := os.OpenFile(filepath.Join(d, "f"), os.O_WRONLY, 0)
			if err != nil {
				ended <- err
				return
			}
			f.Close()
		}
	}()
	seen := map[bool]int{}
	for deadline := time.Now().Add(200 * time.Millisecond); time.Now().Before(deadline); {
		seen[r.OpenForWriting("f")]++
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	t.Logf("open for writing: %v", seen)
	// A process that a test beside this one starts has our files open until its exec.
	for deadline := time.Now().Add(20 * time.Second); r.OpenForWriting("f"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("open for writing at the end")
		}
	}
}
