// SPDX-License-Identifier: Apache-2.0

// Package hosttest is a host in memory, for tests: files, systemd, users, kernel settings and an rsync daemon's
// login, as far as lockstep sees them.
//
// It behaves as a machine does where that matters: systemd knows a unit file only after daemon-reload, a
// process keeps what it was started with, a directory with entries is not removed. Every change can be made
// to fail, or to be the last one before the machine loses the process that made it.
package hosttest

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/agent/host"
)

// Host is one host. Fields may be set before and between calls.
type Host struct {
	Files     map[string]host.File
	Users     map[string]int
	Groups    map[string]int
	Sysctls   map[string]string
	Listeners map[int]host.Listener // of others; ours is known
	Names     map[string][]string   // name server; addresses stand for themselves
	Facts     host.Facts            // what Inspect answers about the rest
	Count     int                   // directories in the source tree
	Links     map[string]string     // symbolic links to directories and files
	Dirs      map[string]host.Dir   // what Inspect answers about a directory, where the files do not tell

	// Peer is the host that Login reaches; nil is this one.
	Peer *Host

	// StartError, if set, is why a unit does not start.
	StartError func(unit string) error
	// ReadError has the files that cannot be read, and why.
	ReadError map[string]error
	// Before and After, if set, are called around every change with what it is. An error from Before is the
	// change's own. Either may panic in place of a kill.
	Before func(what string) error
	After  func(what string)

	mu      sync.Mutex
	changes int
	units   map[string]*unitState
	loaded  map[string]string // unit files as systemd has read them
	nextPID int
	locked  bool
}

// New returns a Debian host with systemd, rsync and nothing of lockstep.
func New() *Host {
	h := &Host{
		Files:     map[string]host.File{},
		Users:     map[string]int{"root": 0, "backup": 34},
		Groups:    map[string]int{"root": 0, "backup": 34},
		Sysctls:   map[string]string{"fs.inotify.max_user_watches": "65536"},
		Listeners: map[int]host.Listener{},
		Links:     map[string]string{},
		Names:     map[string][]string{"nfs01": {"172.16.1.31"}},
		Facts: host.Facts{
			Root: true, Systemd: true, Executable: "/usr/bin/lockstep", Digest: "1",
			Rsync:           host.Rsync{Path: "/usr/bin/rsync", Version: "3.5.0"},
			Versions:        map[string]string{"os": "Debian GNU/Linux 12 (bookworm)", "arch": "amd64", "rsync": "3.5.0"},
			OS:              map[string]string{"ID": "debian"},
			SysctlsWritable: true,
			SSH:             "/usr/bin/ssh",
			SSHD:            &host.SSHD{Path: "/usr/sbin/sshd", HostKeys: []string{"ssh-ed25519 AAAAhost"}, Home: "/root", Shell: "/bin/bash"},
		},
		Count:   100,
		units:   map[string]*unitState{},
		loaded:  map[string]string{},
		nextPID: 100,
	}
	for _, dir := range []string{"/", "/etc", "/etc/systemd", "/etc/systemd/system", "/etc/sysctl.d", "/usr", "/usr/lib", "/usr/lib/systemd", "/usr/lib/systemd/system", "/var", "/var/lib", "/run", "/root"} {
		h.Mkdir(dir)
	}
	return h
}

// Machine is the host as the code under test sees it.
func (h *Host) Machine() *host.Machine {
	return &host.Machine{Files: (*files)(h), Units: (*units)(h), Users: (*users)(h), System: (*system)(h)}
}

// Mkdir makes a directory that is not lockstep's.
func (h *Host) Mkdir(p string) {
	h.Files[p] = host.File{Dir: true, Mode: 0o755, Owner: "root", Group: "root"}
}

// Put makes a file that is not lockstep's.
func (h *Host) Put(p, text string) {
	h.Files[p] = host.File{Mode: 0o644, Owner: "root", Group: "root", Data: []byte(text)}
}

// Edit changes the text of a file by hand.
func (h *Host) Edit(p string, change func(string) string) {
	f := h.Files[p]
	f.Data = []byte(change(string(f.Data)))
	h.Files[p] = f
}

// Changes is how many changes were made so far.
func (h *Host) Changes() int { return h.changes }

// Chmod changes the mode of a file by hand, Chown its owner, Remove removes it.
func (h *Host) Chmod(p string, mode fs.FileMode) {
	f := h.Files[p]
	f.Mode = mode
	h.Files[p] = f
}

func (h *Host) Chown(p, owner string) {
	f := h.Files[p]
	f.Owner = owner
	h.Files[p] = f
}

func (h *Host) Remove(p string) {
	maps.DeleteFunc(h.Files, func(q string, _ host.File) bool { return q == p || strings.HasPrefix(q, p+"/") })
}

// Snapshot describes everything that a rollback has to put back, one line each.
func (h *Host) Snapshot() []string {
	var lines []string
	for p, f := range h.Files {
		lines = append(lines, fmt.Sprintf("file %s dir=%v %04o %s:%s %q", p, f.Dir, f.Mode, f.Owner, f.Group, f.Data))
	}
	for name, u := range h.units {
		if u.active || u.enabled {
			lines = append(lines, fmt.Sprintf("unit %s active=%v enabled=%v with %q", name, u.active, u.enabled, u.started))
		}
	}
	for name := range h.Users {
		lines = append(lines, "user "+name)
	}
	slices.Sort(lines)
	return lines
}

// change is called around everything that changes the machine.
func (h *Host) change(what string, do func() error) error {
	h.changes++
	if h.Before != nil {
		if err := h.Before(what); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if h.After != nil {
		h.After(what)
	}
	return nil
}

type files Host

// Real follows links for ever, if they lead in a circle.
func (f *files) Real(p string) string {
	if p == "/" {
		return p
	}
	p = path.Join(f.Real(path.Dir(p)), path.Base(p))
	if target, ok := f.Links[p]; ok {
		return f.Real(target)
	}
	return p
}

// parent follows the links above p.
func (f *files) parent(p string) string { return path.Join(f.Real(path.Dir(p)), path.Base(p)) }

func (f *files) Read(p string) (host.File, error) {
	p = f.parent(p)
	if f.Links[p] != "" {
		return host.File{}, fmt.Errorf("%s is a symbolic link: %w", p, host.ErrNotOwned)
	}
	if err := f.ReadError[p]; err != nil {
		return host.File{}, err
	}
	file, ok := f.Files[p]
	if !ok {
		return host.File{}, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
	}
	file.Data = slices.Clone(file.Data)
	return file, nil
}

func (f *files) Write(p string, file host.File) error {
	return (*Host)(f).change("write "+p, func() error {
		p = f.parent(p)
		if parent, ok := f.Files[path.Dir(p)]; !ok || !parent.Dir {
			return &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
		}
		if have, ok := f.Files[p]; ok && have.Dir != file.Dir {
			return &fs.PathError{Op: "rename", Path: p, Err: fs.ErrExist}
		}
		file.Data = slices.Clone(file.Data)
		f.Files[p] = file
		return nil
	})
}

func (f *files) Remove(p string) error {
	return (*Host)(f).change("remove "+p, func() error {
		p = f.parent(p)
		file, ok := f.Files[p]
		if !ok {
			return &fs.PathError{Op: "remove", Path: p, Err: fs.ErrNotExist}
		}
		if names, _ := f.List(p); file.Dir && len(names) > 0 {
			return fmt.Errorf("%s: %w", p, host.ErrNotEmpty)
		}
		delete(f.Files, p)
		return nil
	})
}

func (f *files) RemoveAll(p string) error {
	return (*Host)(f).change("remove all "+p, func() error {
		if !strings.HasPrefix(p, "/var/lib/lockstep/") {
			return fmt.Errorf("bug: removing %s", p)
		}
		maps.DeleteFunc(f.Files, func(q string, _ host.File) bool { return q == p || strings.HasPrefix(q, p+"/") })
		return nil
	})
}

func (f *files) List(p string) ([]string, error) {
	p = f.Real(p)
	if dir, ok := f.Files[p]; !ok || !dir.Dir {
		return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
	}
	var names []string
	for q := range f.Files {
		if path.Dir(q) == p && q != p {
			names = append(names, path.Base(q))
		}
	}
	slices.Sort(names)
	return names, nil
}

type users Host

func (s *users) Add(_ context.Context, name string) error {
	return (*Host)(s).change("add user "+name, func() error {
		s.Users[name], s.Groups[name] = 990, 990
		return nil
	})
}

func (s *users) Remove(_ context.Context, name string) error {
	return (*Host)(s).change("remove user "+name, func() error {
		delete(s.Users, name)
		delete(s.Groups, name)
		return nil
	})
}

type system Host

const lockPoll = 50 * time.Millisecond // as on a real host

func (s *system) Inspect(ctx context.Context, q host.Query) (host.Facts, error) {
	h := (*Host)(s)
	f := h.Facts
	f.Versions = maps.Clone(f.Versions)
	f.UIDs, f.GIDs, f.Addresses, f.Dirs = map[string]int{}, map[string]int{}, map[string][]string{}, map[string]host.Dir{}
	for _, name := range q.Users {
		if id, ok := h.Users[name]; ok {
			f.UIDs[name] = id
		}
	}
	for _, name := range q.Groups {
		if id, ok := h.Groups[name]; ok {
			f.GIDs[name] = id
		}
	}
	for _, name := range q.Names {
		if a, ok := h.Names[name]; ok {
			f.Addresses[name] = a
		} else if strings.Trim(name, "0123456789.:abcdef") == "" {
			f.Addresses[name] = []string{name}
		}
	}
	if l, ok := h.Listeners[q.Port]; ok && q.Port != 0 {
		f.Listener = &l
	} else if q.Port != 0 && h.port() == q.Port {
		f.Listener = &host.Listener{PID: h.unit("lockstep-rsyncd.service").pid, Command: "rsync", Unit: "lockstep-rsyncd.service"}
	}
	for _, p := range q.Dirs {
		file, ok := h.Files[(*files)(h).Real(p)]
		f.Dirs[p] = host.Dir{Exists: ok, IsDir: file.Dir, Symlink: h.Links[p] != "", FS: "fs1"}
		if d, ok := h.Dirs[p]; ok {
			f.Dirs[p] = d
		}
	}
	if q.CountIn != "" {
		f.Count, f.CountAll = h.Count, true
	}
	f.Sysctls = maps.Clone(h.Sysctls)
	if q.SSHD == nil {
		f.SSHD = nil
	}
	if q.SELinux == "" {
		f.SELinux = nil
	}
	if q.Firewall == nil {
		f.Firewall = nil
	}
	return f, ctx.Err()
}

func (s *system) SetSysctl(name, value string) error {
	if !s.Facts.SysctlsWritable {
		return fs.ErrPermission
	}
	return (*Host)(s).change("sysctl "+name, func() error {
		s.Sysctls[name] = value
		return nil
	})
}

func (s *system) Lock(ctx context.Context, _ string, waiting func(string)) (host.Unlock, error) {
	take := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		taken := s.locked
		s.locked = true
		return !taken
	}
	if !take() {
		if waiting != nil {
			waiting("process 1")
		}
		for !take() {
			select {
			case <-ctx.Done():
				return nil, fmt.Errorf("held by process 1: %w", context.Cause(ctx))
			case <-time.After(lockPoll):
			}
		}
	}
	return func(bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.locked = false
	}, ctx.Err()
}
