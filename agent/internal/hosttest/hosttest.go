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
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/lockstep-sync/lockstep/agent/host"
)

// Host is one host. Fields may be set before and between calls.
type Host struct {
	Files     map[string]host.File
	Users     map[string]int
	Sysctls   map[string]string
	Listeners map[int]host.Listener // of others; ours is known
	Names     map[string][]string   // name server; addresses stand for themselves
	Facts     host.Facts            // what Inspect answers about the rest
	Count     int                   // directories in the source tree
	Dirs      map[string]host.Dir   // what Inspect answers about a directory, where the files do not tell

	// Peer is the host that Login reaches; nil is this one.
	Peer *Host

	// StartError, if set, is why a unit does not start.
	StartError func(unit string) error
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

type unitState struct {
	active, enabled bool
	pid             int
	started         map[string]string // files as the process has read them
	starts, reloads int
}

// New returns a Debian host with systemd, rsync and nothing of lockstep.
func New() *Host {
	h := &Host{
		Files:     map[string]host.File{},
		Users:     map[string]int{"root": 0, "backup": 34},
		Sysctls:   map[string]string{"fs.inotify.max_user_watches": "65536"},
		Listeners: map[int]host.Listener{},
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

// Stop stops a unit by hand, Disable disables it, Restart restarts it with what is on disk.
func (h *Host) Stop(name string)    { h.unit(name).active = false }
func (h *Host) Disable(name string) { h.unit(name).enabled = false }
func (h *Host) Restart(name string) {
	h.load()
	h.run(name)
}

// Starts is how often a unit was started or restarted, and how often reloaded.
func (h *Host) Starts(name string) (starts, reloads int) {
	u := h.unit(name)
	return u.starts, u.reloads
}

// Outdated lists the active units whose process has read something else than is on disk now.
func (h *Host) Outdated() []string {
	var names []string
	for name, u := range h.units {
		if u.active && !maps.Equal(u.started, h.inputs(name)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
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

func (h *Host) unit(name string) *unitState {
	if h.units[name] == nil {
		h.units[name] = &unitState{}
	}
	return h.units[name]
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

// unitFiles lists the files that make a unit: the file or that of its template, and drop-ins.
func (h *Host) unitFiles(name string) []string {
	var found []string
	base, suffix, isInstance := strings.Cut(name, "@")
	for _, dir := range []string{"/etc/systemd/system/", "/usr/lib/systemd/system/"} {
		for _, n := range []string{name, base + "@" + path.Ext(suffix)} {
			if _, ok := h.Files[dir+n]; ok && len(found) == 0 && (n == name || isInstance) {
				found = append(found, dir+n)
			}
		}
	}
	for p, f := range h.Files {
		if path.Dir(p) == "/etc/systemd/system/"+name+".d" && !f.Dir {
			found = append(found, p)
		}
	}
	slices.Sort(found)
	return found
}

// inputs are the files that a process of the unit would read when it starts now, with their text.
func (h *Host) inputs(name string) map[string]string {
	texts := map[string]string{}
	paths := h.unitFiles(name)
	if _, instance, ok := strings.Cut(strings.TrimSuffix(name, ".service"), "@"); ok {
		definition, secret := "/etc/lockstep/pairs/"+instance+".yaml", "/etc/lockstep/secrets/"+instance
		paths = append(paths, definition, secret)
		if strings.Contains(string(h.Files[definition].Data), "transport: ssh") {
			paths = append(paths, secret+".ssh", secret+".known_hosts")
		}
	} else {
		paths = append(paths, "/etc/lockstep/rsyncd.conf")
	}
	for _, p := range paths {
		texts[p] = string(h.Files[p].Data)
	}
	return texts
}

func (h *Host) load() {
	clear(h.loaded)
	for p, f := range h.Files {
		if strings.Contains(p, "/systemd/system/") && !f.Dir {
			h.loaded[p] = string(f.Data)
		}
	}
}

func (h *Host) stale(name string) bool {
	for _, p := range h.unitFiles(name) {
		if text, ok := h.loaded[p]; !ok || text != string(h.Files[p].Data) {
			return true
		}
	}
	for p := range h.loaded {
		if path.Dir(p) == "/etc/systemd/system/"+name+".d" {
			if _, ok := h.Files[p]; !ok {
				return true
			}
		}
	}
	return false
}

// isLoaded is whether systemd has read a file of the unit that is still there.
func (h *Host) isLoaded(name string) bool {
	found := h.unitFiles(name)
	if len(found) == 0 {
		return false
	}
	_, ok := h.loaded[found[0]]
	return ok
}

func (h *Host) run(name string) {
	u := h.unit(name)
	h.nextPID++
	u.active, u.pid, u.started = true, h.nextPID, h.inputs(name)
	for _, p := range h.unitFiles(name) {
		u.started[p] = h.loaded[p]
	}
	u.starts++
	if _, instance, ok := strings.Cut(strings.TrimSuffix(name, ".service"), "@"); ok {
		h.Mkdir("/var/lib/lockstep/" + instance) // StateDirectory=
	}
}

// port is where our rsync daemon listens, as it was started.
func (h *Host) port() int {
	u := h.unit("lockstep-rsyncd.service")
	if !u.active {
		return 0
	}
	var n int
	for line := range strings.Lines(u.started["/etc/lockstep/rsyncd.conf"]) {
		if _, err := fmt.Sscanf(line, "port = %d", &n); err == nil {
			return n
		}
	}
	return 873
}

type files Host

func (f *files) Read(p string) (host.File, error) {
	file, ok := f.Files[p]
	if !ok {
		return host.File{}, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
	}
	file.Data = slices.Clone(file.Data)
	return file, nil
}

func (f *files) Write(p string, file host.File) error {
	return (*Host)(f).change("write "+p, func() error {
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

type units Host

func (s *units) Unit(_ context.Context, name string) (host.Unit, error) {
	h := (*Host)(s)
	u := h.unit(name)
	unit := host.Unit{Loaded: h.isLoaded(name), Active: u.active, Ready: u.active, Enabled: u.enabled, Stale: h.stale(name), State: "inactive (dead)"}
	if f, ok := h.Files["/etc/systemd/system/"+name]; ok && len(f.Data) == 0 {
		unit.Masked = true
	}
	if u.active {
		unit.State, unit.PID = "active (running)", u.pid
	}
	return unit, nil
}

func (s *units) Do(_ context.Context, name string, action host.Action) error {
	h := (*Host)(s)
	return h.change(string(action)+" "+name, func() error {
		u := h.unit(name)
		if !h.isLoaded(name) && action != host.Stop && action != host.Disable {
			return fmt.Errorf("%s %s: Unit %s not found", action, name, name)
		}
		switch action {
		case host.Start, host.Restart:
			u.active = false
			if h.StartError != nil {
				if err := h.StartError(name); err != nil {
					return err
				}
			}
			h.run(name)
		case host.Reload:
			if !u.active {
				return fmt.Errorf("reload %s: not active", name)
			}
			u.started, u.reloads = h.inputs(name), u.reloads+1
		case host.Stop:
			u.active = false
		case host.Enable:
			u.enabled = true
		case host.Disable:
			u.enabled = false
		}
		return nil
	})
}

func (s *units) DaemonReload(context.Context) error {
	h := (*Host)(s)
	return h.change("daemon-reload", func() error {
		h.load()
		return nil
	})
}

func (s *units) Journal(_ context.Context, name string, _ time.Time, _ int) ([]string, error) {
	return []string{"words of " + name}, nil
}

type users Host

func (s *users) Add(_ context.Context, name string) error {
	return (*Host)(s).change("add user "+name, func() error {
		s.Users[name] = 990
		return nil
	})
}

func (s *users) Remove(_ context.Context, name string) error {
	return (*Host)(s).change("remove user "+name, func() error {
		delete(s.Users, name)
		return nil
	})
}

type system Host

func (s *system) Inspect(_ context.Context, q host.Query) (host.Facts, error) {
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
		if id, ok := h.Users[name]; ok {
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
		file, ok := h.Files[p]
		f.Dirs[p] = host.Dir{Exists: ok, IsDir: file.Dir, FS: "fs1"}
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
	return f, nil
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

func (s *system) Lock(ctx context.Context, _ string) (host.Unlock, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locked {
		return nil, errors.New("held by process 1")
	}
	s.locked = true
	return func(bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.locked = false
	}, ctx.Err()
}

// Login looks at the module files of Peer.
func (s *system) Login(_ context.Context, l host.Login) error {
	h := (*Host)(s)
	if h.Peer != nil {
		h = h.Peer
	}
	if l.Shell != nil {
		conf, err := h.let(l, (*Host)(s))
		if err != nil {
			return err
		}
		return h.enter(conf, l)
	}
	if h.port() != l.Port {
		return errors.New("connection refused")
	}
	for p, f := range h.Files {
		if path.Dir(p) == "/etc/lockstep/rsyncd.d" && strings.Contains(string(f.Data), "["+l.Module+"]\n") {
			return h.enter(p, l)
		}
	}
	return &host.LoginError{Reply: "Unknown module '" + l.Module + "'"}
}

// enter tries user and password on the module in a file of ours.
func (h *Host) enter(conf string, l host.Login) error {
	if !strings.Contains(string(h.Files[conf].Data), "["+l.Module+"]\n") {
		return &host.LoginError{Reply: "Unknown module '" + l.Module + "'"}
	}
	secrets := h.Files["/etc/lockstep/secrets/"+strings.TrimSuffix(path.Base(conf), ".conf")+".secrets"]
	if strings.Contains(string(secrets.Data), "\n"+l.User+":"+l.Password+"\n") {
		return nil
	}
	return &host.LoginError{Reply: "auth failed on module " + l.Module}
}

var forcedCommand = regexp.MustCompile(`^restrict,command="\S+ --server --daemon --config=(\S+) \."`)

// let does what ssh on a host and sshd on this one do: they look at each other's keys. It returns the rsyncd.conf that the
// key leads to.
func (h *Host) let(l host.Login, from *Host) (conf string, err error) {
	argv := l.Shell("known")
	known := map[string]bool{}
	for line := range strings.Lines(string(l.KnownHosts)) {
		_, key, _ := strings.Cut(strings.TrimSpace(line), " ")
		known[key] = true
	}
	for _, key := range h.Facts.SSHD.HostKeys {
		if !known[key] {
			return "", &host.ShellError{Said: "Host key verification failed."}
		}
	}
	private, err := ssh.ParsePrivateKey(from.Files[argv[1+slices.Index(argv, "-i")]].Data)
	if err != nil {
		return "", &host.ShellError{Said: "Load key: " + err.Error()}
	}
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(private.PublicKey())))
	for line := range strings.Lines(string(h.Files["/root/.ssh/authorized_keys"].Data)) {
		if m := forcedCommand.FindStringSubmatch(line); m != nil && strings.Contains(line, key) {
			return m[1], nil
		}
	}
	return "", &host.ShellError{Said: "root@backup: Permission denied (publickey)."}
}
