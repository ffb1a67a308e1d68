// SPDX-License-Identifier: Apache-2.0

package rsynctest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestCompareFindsEveryKindOfDifference(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "d")
	at := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)
	both := Dir{
		"same":  File("same"),
		"sub":   Dir{"x\n": File("1")},
		"link":  Link("a"),
		"type":  File(""),
		"size":  File("12"),
		"bytes": File("abc"),
		"mode":  File(""),
		"time":  File(""),
		"attr":  File(""),
		"gone":  Dir{"child": File("")},
		"h1":    File("h"),
		"h2":    HardLink("h1"),
	}
	MakeTree(t, src, both)
	MakeTree(t, dst, both)
	set := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	set(os.Remove(filepath.Join(dst, "link")))
	set(os.Symlink("b", filepath.Join(dst, "link")))
	set(os.Remove(filepath.Join(dst, "type")))
	set(os.Mkdir(filepath.Join(dst, "type"), 0o755))
	set(os.WriteFile(filepath.Join(dst, "size"), []byte("123"), 0o644))
	set(os.WriteFile(filepath.Join(dst, "bytes"), []byte("abX"), 0o644))
	set(os.Chmod(filepath.Join(dst, "mode"), 0o644|os.ModeSetuid))
	set(os.RemoveAll(filepath.Join(dst, "gone")))
	set(os.WriteFile(filepath.Join(dst, "more"), nil, 0o644))
	set(os.Remove(filepath.Join(dst, "h2")))
	set(os.WriteFile(filepath.Join(dst, "h2"), []byte("h"), 0o644))
	for _, side := range []string{src, dst} {
		set(filepath.WalkDir(side, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return Touch(path, at)
		}))
	}
	xattrs := unix.Lsetxattr(filepath.Join(src, "attr"), "user.a", []byte("1"), 0)
	if !errors.Is(xattrs, unix.ENOTSUP) {
		set(errors.Join(xattrs, unix.Lsetxattr(filepath.Join(dst, "attr"), "user.a", []byte("2"), 0)))
	}
	set(Touch(filepath.Join(dst, "time"), at.Add(1)))
	set(Touch(filepath.Join(dst, "sub"), at.Add(1)))

	diffs, err := Compare(src, dst, CompareOptions{HardLinks: true, Xattrs: true})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, d := range diffs {
		got[d.Path] += d.What
	}
	want := map[string]string{
		"link": "target", "type": "type", "size": "content", "bytes": "content", "mode": "mode",
		"gone": "missing", "more": "extra", "time": "mtime", "sub": "mtime", "h2": "links", "attr": "xattrs",
	}
	if xattrs != nil {
		delete(want, "attr") // this filesystem has none
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestCompareTreesAcceptsACopy(t *testing.T) {
	t.Parallel()
	src, dst := filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "d")
	MakeTree(t, src, Dir{
		"f": With{Node: File("x"), Mode: 0o600 | os.ModeSticky, MTime: time.Unix(1, 2)},
		"d": With{Node: Dir{"l": Link("../f")}, Mode: 0o700, MTime: time.Unix(3, 4)},
		"p": Fifo{}, "s": Socket{},
	})
	if out, err := exec.Command(Binary(t), "-a", "--modify-window=-1", src+"/", dst+"/").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	CompareTreesWith(t, src, dst, CompareOptions{HardLinks: true})
}

func TestDaemonStopsAndStartsOnItsPort(t *testing.T) {
	t.Parallel()
	d := Daemon(t, Options{})
	src := t.TempDir()
	MakeTree(t, src, Dir{"a": File("x")})
	push := func() error {
		url := "rsync://" + d.User + "@127.0.0.1/" + d.Module + "/"
		cmd := exec.Command(d.opts.Rsync, "-a", "--modify-window=-1", "--port", strconv.Itoa(d.Port), "--password-file", d.PasswordFile, src+"/", url)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("%s", out)
		}
		return err
	}
	if err := push(); err != nil {
		t.Fatal(err)
	}
	CompareTrees(t, src, d.Path)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := push(); err == nil {
		t.Fatal("pushed to a daemon that was killed")
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	if err := d.Configure("read only = yes"); err != nil {
		t.Fatal(err)
	}
	if err := push(); err == nil {
		t.Fatal("pushed to a module that was made read only")
	}
	if err := d.Configure(); err != nil {
		t.Fatal(err)
	}
	if err := push(); err != nil {
		t.Fatal(err)
	}
}
