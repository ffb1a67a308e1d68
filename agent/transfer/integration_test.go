// SPDX-License-Identifier: Apache-2.0

//go:build integration

package transfer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

// Each option of the list is there because a run needs it: without it the module refuses something.
func TestEachRequiredOptionIsRequired(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) { o.Compress, o.BandwidthLimit, o.Timeout = "zlib", "100m", 30*time.Second })
	all := RequiredOptions()
	for i, name := range all {
		f.ok(f.d.Configure(hardened(slices.Delete(slices.Clone(all), i, i+1))...))
		f.rm("was")
		f.ok(os.RemoveAll(f.dst + "/was"))
		f.r.opts.Compress = "zlib"
		if name == "new-compress" {
			f.r.opts.Compress = "zlibx"
		}
		if refused := everyRun(f); (refused == "") != redundant[name] {
			t.Errorf("without %s: %q", name, refused)
		}
	}
}

// redundant has the names that this rsync does not ask for: archive stands for all that -a holds. They are in the list
// because nothing says so of every version.
var redundant = map[string]bool{
	"recursive": true, "dirs": true, "links": true, "perms": true, "times": true, "group": true, "owner": true, "devices": true, "specials": true,
}

// What there was no room to ask about stays, and only that.
func TestDeletionsThatThereIsNoRoomToAskAboutWait(t *testing.T) {
	needRoot(t)
	f := newFixtureWith(t, func(o *Options) { o.Filter = []string{"P archive/"} })
	f.makeBackup(dir{"d": dir{"p": file("")}, "q": file("")})
	f.make(dir{"d": dir{}})
	tmp := t.TempDir()
	mount(t, "tmpfs", tmp, "tmpfs", 0, "nr_inodes=7") // its root, a directory, source, source/d, backup, backup/d, backup/d/p
	t.Setenv("TMPDIR", tmp)
	why := "it cannot be told whether the rules keep it: " + tmp + ": No space left on device (28)"
	f.perPath(f.del("d/p", "q"), Result{Class: Done, Failed: []PathFailure{{Path: "q", Reason: why}}})
	if d := diff([]string{"d", "q"}, f.backup()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	f.ok(unix.Mount("tmpfs", tmp, "tmpfs", unix.MS_REMOUNT, "nr_inodes=6")) // no room for source/d any more
	f.makeBackup(dir{"d": dir{"p": file("")}})
	f.perPath(f.del("d/p"), Result{Class: Done, Status: -1, Failed: []PathFailure{{Path: "d/p", Reason: why}}})
	if d := diff([]string{"d", "d/p", "q"}, f.backup()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// mount mounts a filesystem for the test.
func mount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	needRoot(t)
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Skipf("mount %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			t.Error(err)
		}
	})
}

func TestFullBackupIsToldAsSuch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	mount(t, "tmpfs", filepath.Join(f.dst, "small"), "tmpfs", 0, "size=64k,nr_inodes=20")
	f.make(dir{"small": dir{"a": file("fits"), "big": file(strings.Repeat("x", 1<<20))}, "elsewhere": file("")})
	f.want(f.send("small/big", "small/a"), NoSpace, ExitFileIO, "the backup is full: No space left on device (28)")
	f.rm("small/big")
	tree := dir{}
	for _, n := range oddNames[:30] {
		tree[n] = file("")
	}
	f.make(dir{"small": tree})
	f.want(f.run(Job{Kind: Tree, Paths: []string{"small"}}), NoSpace, ExitPartial, "the backup is full")
	f.ok(os.RemoveAll(f.at("small")))
	for _, p := range f.backup() {
		if strings.HasPrefix(p, "small/") {
			f.ok(os.RemoveAll(filepath.Join(f.dst, p)))
		}
	}
	f.make(dir{"small": dir{"a": file("fits")}})
	f.done(f.send("small", "small/a", "elsewhere"))
}

func TestReadOnlyBackupFailsByName(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"ro": dir{"a": file("x")}, "b": file("y")})
	mount(t, "tmpfs", filepath.Join(f.dst, "ro"), "tmpfs", unix.MS_RDONLY, "")
	res := f.send("ro", "ro/a", "b")
	if res.Class != Done || len(res.Failed) != 2 || res.Failed[1].Path != "ro/a" || !strings.Contains(res.Hint, "mounted read only") || !f.backupHas("b") {
		t.Errorf("%+v", res)
	}
}

// The agent must never hold the source's filesystem busy, nor see what is mounted over it.
func TestUnmountBetweenTheCheckAndTheRun(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"under": file("the directory below the mount")})
	src := filepath.Join(f.src, "mnt")
	mount(t, "tmpfs", src, "tmpfs", 0, "")
	f.src = src
	f.make(dir{"a": file("x"), "gone": file("")})
	f.full()
	f.rm("gone")
	root := f.root()
	if err := unix.Unmount(src, 0); err != unix.EBUSY {
		t.Errorf("unmount while a job holds the root: %v", err)
	}
	mount(t, "tmpfs", src, "tmpfs", 0, "") // over it
	f.done(f.r.Run(f.Context(), root, Job{Kind: Send, Paths: []string{"a"}}, nil))
	f.done(f.r.Run(f.Context(), root, Job{Kind: Delete, Paths: []string{"gone"}}, nil))
	if d := diff([]string{"a"}, f.backup()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}

	// In a directory that is unmounted by force, rsync does not even start.
	for range 2 {
		if err := unix.Unmount(src, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	f.want(f.r.Run(f.Context(), root, Job{Kind: Send, Paths: []string{"a"}}, nil), Transient, ExitFileSelect, "unmounted or deleted")
	f.want(f.r.Run(f.Context(), root, Job{Kind: Delete, Paths: []string{"never"}}, nil), Transient, ExitFileSelect, "unmounted or deleted")
	if d := diff([]string{"a"}, f.backup()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestIdentityTellsMountsApart(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	seen := map[Identity]string{}
	note := func(what string) {
		t.Helper()
		r, err := OpenRoot(d)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		id, err := r.Identity()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %v", what, id)
		if other, ok := seen[id]; ok {
			t.Errorf("%s and %s are both %v", what, other, id)
		}
		seen[id] = what
	}
	note("directory")
	mount(t, "tmpfs", d, "tmpfs", 0, "")
	note("tmpfs")
	mount(t, "tmpfs", d, "tmpfs", 0, "")
	note("another tmpfs")
}

// On filesystems that f_fsid does not tell apart, or not for ever.
func TestIdentityOnOtherFilesystems(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, c := range []struct{ fstype, mkfs, prefix string }{
		{"xfs", "mkfs.xfs -q", "uuid:"}, {"btrfs", "mkfs.btrfs -q", "fsid:9123683e-"}, {"ext4", "mkfs.ext4 -q", "fsid:ef53-"},
	} {
		t.Run(c.fstype, func(t *testing.T) {
			t.Parallel()
			command := strings.Fields(c.mkfs)
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skipf("%v\nhint: apt-get install btrfs-progs e2fsprogs xfsprogs", err)
			}
			d := t.TempDir()
			image := filepath.Join(d, "image")
			if err := os.WriteFile(image, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, 400<<20); err != nil {
				t.Fatal(err)
			}
			run := func(name string, args ...string) {
				t.Helper()
				if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
					t.Skipf("%s %v: %v: %s", name, args, err, out)
				}
			}
			run(command[0], append(command[1:], image)...)
			at := filepath.Join(d, "mnt")
			if err := os.Mkdir(at, 0o755); err != nil {
				t.Fatal(err)
			}
			look := func(path string) Identity {
				t.Helper()
				root := openRoot(t, path)
				defer root.Close()
				id, err := root.Identity()
				if err != nil {
					t.Fatal(err)
				}
				if c.fstype == "xfs" {
					// What an older kernel is asked gives the same answer.
					f, err := root.open()
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
					var geometry [112]byte
					if err := ioctl(f, xfsIocFSGeometry, unsafe.Pointer(&geometry)); err != nil {
						t.Error(err)
					} else if got := fmt.Sprintf("uuid:%x", geometry[64:80]); got != id.FS {
						t.Errorf("geometry says %s, identity %s", got, id.FS)
					}
				}
				return id
			}
			mounted := func(f func()) {
				t.Helper()
				run("mount", "-o", "loop", image, at)
				defer run("umount", at)
				f()
			}
			var before, sub Identity
			mounted(func() {
				before = look(at)
				if c.fstype == "btrfs" {
					run("btrfs", "subvolume", "create", filepath.Join(at, "sub"))
					sub = look(filepath.Join(at, "sub"))
				}
			})
			mounted(func() {
				if again := look(at); again != before || again == sub || !strings.HasPrefix(again.FS, c.prefix) {
					t.Errorf("%v, mounted again %v, subvolume %v", before, again, sub)
				}
			})
			t.Log(before, sub)
		})
	}
}

func TestExtraOptionsKeepWhatTheyName(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, func(o *Options) { o.Extra = []string{"--hard-links", "--xattrs"} })
	f.make(dir{"a": file("x"), "b": rsynctest.HardLink("a")})
	if err := unix.Setxattr(f.at("a"), "user.lockstep", []byte("v"), 0); err != nil {
		t.Skipf("extended attributes of users: %v\nhint: set TMPDIR to a directory on ext4, xfs or btrfs", err)
	}
	f.done(f.send("a", "b"))
	rsynctest.CompareTreesWith(t, f.src, f.dst, rsynctest.CompareOptions{HardLinks: true})
	b := make([]byte, 8)
	if n, err := unix.Getxattr(filepath.Join(f.dst, "b"), "user.lockstep", b); err != nil || string(b[:n]) != "v" {
		t.Errorf("%q, %v", b[:max(n, 0)], err)
	}
}
