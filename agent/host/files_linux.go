// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFile bounds what Read takes into memory; the largest file of ours is a definition, which is bounded to as much.
const maxFile = 1 << 20

// stateRoot is the only place where a directory is removed with what is in it.
const stateRoot = "/var/lib/lockstep/"

type files struct{}

func (files) Read(path string) (File, error) {
	// O_NONBLOCK, or opening a fifo would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return File{}, fmt.Errorf("%s is a symbolic link: %w", path, ErrNotOwned)
	}
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	st := info.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // Linux always gives this type
	file := File{Dir: info.IsDir(), Mode: mode(st.Mode), Owner: userName(st.Uid), Group: groupName(st.Gid)}
	switch {
	case info.IsDir():
	case !info.Mode().IsRegular():
		return File{}, fmt.Errorf("%s is not a regular file: %w", path, ErrNotOwned)
	default:
		file.Data, err = io.ReadAll(io.LimitReader(f, maxFile+1))
		if err == nil && len(file.Data) > maxFile {
			err = fmt.Errorf("%s is larger than %d bytes: %w", path, maxFile, ErrNotOwned)
		}
	}
	return file, err
}

// mode keeps the set-id and sticky bits, which fs.FileMode.Perm would drop.
func mode(m uint32) fs.FileMode { return fs.FileMode(m & 0o7777) }

// tempName is where a file is written before it takes its name. There is one name, not a random one: writers
// hold the host lock, and what a killed writer left is then overwritten. The daemon's &include takes *.conf
// only and systemd takes known suffixes only, so neither reads it.
func tempName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".lockstep-tmp")
}

func (files) Write(path string, f File) error {
	uid, gid, err := ids(f.Owner, f.Group)
	if err != nil {
		return err
	}
	if f.Dir {
		return writeDir(path, f.Mode, uid, gid)
	}
	temp := tempName(path)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = out.Write(f.Data)
	if err == nil {
		err = out.Chown(uid, gid)
	}
	if err == nil {
		err = unix.Fchmod(int(out.Fd()), uint32(f.Mode)) // after chown, which clears set-id bits
	}
	if err == nil {
		err = out.Sync()
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func writeDir(path string, mode fs.FileMode, uid, gid int) error {
	err := os.Mkdir(path, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Chown(uid, gid); err != nil {
		return err
	}
	if err := unix.Fchmod(int(d.Fd()), uint32(mode)); err != nil {
		return &fs.PathError{Op: "chmod", Path: path, Err: err}
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (files) Remove(path string) error {
	if err := os.Remove(tempName(path)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	err := os.Remove(path)
	if errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("%s: %w", path, ErrNotEmpty)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func (files) RemoveAll(path string) error {
	if rest, ok := strings.CutPrefix(filepath.Clean(path), stateRoot); !ok || rest == "" {
		return fmt.Errorf("bug: removing %s, which is not below %s", path, stateRoot)
	}
	return os.RemoveAll(path)
}

func (files) List(path string) ([]string, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (files) Real(path string) string {
	rest := ""
	for p := path; p != "/"; p = filepath.Dir(p) {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(real, rest)
		}
		rest = filepath.Join(filepath.Base(p), rest)
	}
	return path
}

func ids(owner, group string) (uid, gid int, err error) {
	if uid, err = userID(owner); err != nil {
		return 0, 0, err
	}
	gid, err = groupID(group)
	return uid, gid, err
}

func userID(name string) (int, error) {
	return lookup(name, func(s string) (string, error) {
		u, err := user.Lookup(s)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

func groupID(name string) (int, error) {
	return lookup(name, func(s string) (string, error) {
		g, err := user.LookupGroup(s)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

// lookup turns a name or a number into a number; "" and root are 0 on every system.
func lookup(name string, find func(string) (string, error)) (int, error) {
	if name == "" || name == "root" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	s, err := find(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(s)
}

func userName(uid uint32) string {
	if uid == 0 {
		return "root"
	}
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		return u.Username
	}
	return strconv.Itoa(int(uid))
}

func groupName(gid uint32) string {
	if gid == 0 {
		return "root"
	}
	if g, err := user.LookupGroupId(strconv.Itoa(int(gid))); err == nil {
		return g.Name
	}
	return strconv.Itoa(int(gid))
}
