// SPDX-License-Identifier: Apache-2.0

// Package host is the only package that touches the machine: files, units, users, kernel settings.
//
// A file is replaced as a whole or not at all, and is on disk when the call returns. A unit action
// returns when systemd's job is done. Nothing here knows pairs, decides what to do, or retries.
package host

import (
	"context"
	"errors"
	"io/fs"
	"time"
)

// ErrNotOwned is wrapped when a file is there that lockstep did not write.
var ErrNotOwned = errors.New("not written by lockstep")

// Machine is one host, real ([New]) or made up (hosttest).
type Machine struct {
	Files  Files
	Units  Units
	Users  Users
	System System
}

// File is what is found at, or to be written to, a path.
type File struct {
	Dir   bool
	Mode  fs.FileMode // permission bits
	Owner string      // user name, or number when it has none
	Group string
	Data  []byte // of a regular file
}

// Files is the file system. Paths are absolute. A missing file is fs.ErrNotExist.
type Files interface {
	// Read does not follow a symbolic link at path; that, a device or a file over 1 MiB is an error.
	Read(path string) (File, error)
	// Write replaces a regular file atomically, or makes a directory; an existing directory gets owner and mode.
	Write(path string, f File) error
	// Remove removes a file or an empty directory; a directory with entries is ErrNotEmpty.
	Remove(path string) error
	// RemoveAll removes a directory of state with all below it.
	RemoveAll(path string) error
	// List returns the sorted names in a directory.
	List(path string) ([]string, error)
	// Real is where path leads when links are followed, as far as it exists.
	Real(path string) string
}

// ErrNotEmpty is wrapped when a directory is not removed because of what is in it.
var ErrNotEmpty = errors.New("directory is not empty")

// Unit is the state of a systemd unit.
type Unit struct {
	Loaded  bool   // systemd finds a unit file
	Active  bool   // active, or on its way there: activating, reloading, waiting for its next restart
	Ready   bool   // active and, for Type=notify, READY
	Enabled bool   // starts at boot
	Masked  bool   // made impossible to start
	Stale   bool   // the unit file changed since systemd read it
	State   string // as systemctl says it: active (running)
	Status  string // STATUS= of sd_notify(3), of a process that lives
	PID     int    // of the main process
}

// Action is what is done to a unit.
type Action string

// The actions of [Units.Do].
const (
	Start   Action = "start"
	Stop    Action = "stop" // forgets a failure, too
	Restart Action = "restart"
	Reload  Action = "reload"
	Enable  Action = "enable" // unmasks, too
	Disable Action = "disable"
)

// Units is systemd.
type Units interface {
	Unit(ctx context.Context, name string) (Unit, error)
	Do(ctx context.Context, name string, action Action) error
	// DaemonReload makes systemd read its unit files.
	DaemonReload(ctx context.Context) error
	// Journal returns the last lines that the unit logged since a time.
	Journal(ctx context.Context, name string, since time.Time, lines int) ([]string, error)
}

// Users is the user database.
type Users interface {
	// Add makes a system user with a group of the same name and no login.
	Add(ctx context.Context, name string) error
	Remove(ctx context.Context, name string) error
}

// System is the rest of the machine.
type System interface {
	// Inspect finds out what a plan depends on and that lockstep does not make itself.
	Inspect(ctx context.Context, q Query) (Facts, error)
	// SetSysctl writes a value below /proc/sys; fs.ErrPermission in a container.
	SetSysctl(name, value string) error
	// Lock takes the host-wide lock, waiting until ctx ends; the error then names who holds it, and wraps the cause of the end.
	// A wait of a second is told to waiting, with who holds it, and again every minute; waiting may be nil.
	Lock(ctx context.Context, holder string, waiting func(who string)) (Unlock, error)
	// Login does what an rsync client does until the daemon has accepted it.
	Login(ctx context.Context, l Login) error
}

// Unlock gives a lock back; with forget it leaves no trace of the lock on disk.
type Unlock func(forget bool)

// Login is one login to a module of an rsync daemon.
type Login struct {
	Address  string
	Port     int
	Module   string
	User     string
	Password string
	// Shell, if set, is the ssh command that leads to a daemon, up to the host, when the file knownHosts has KnownHosts in it.
	Shell      func(knownHosts string) []string
	KnownHosts []byte
}

// ShellError is what ssh said when it did not get as far as the daemon.
type ShellError struct{ Said string }

func (e *ShellError) Error() string { return e.Said }

// LoginError is what the daemon answered instead of letting the client in. To a client that `hosts allow` keeps out,
// a module with `list = no` is an unknown one.
type LoginError struct {
	Reply string
	From  string // our address on the connection
}

func (e *LoginError) Error() string { return e.Reply }

// Query says what [System.Inspect] is to look at. Zero fields are not looked at.
type Query struct {
	Self     bool     // Facts.Digest and Untrusted
	Rsync    bool     // Facts.Rsync, by running it
	Users    []string // Facts.UIDs
	Groups   []string // Facts.GIDs
	Names    []string // host names or addresses; Facts.Addresses
	Port     int      // Facts.Listener
	Dirs     []string // Facts.Dirs
	CountIn  string   // a directory tree; Facts.Count
	Sysctls  []string // Facts.Sysctls
	SSH      bool     // Facts.SSH
	SSHD     *SSHDQuery
	SELinux  string         // a directory; Facts.SELinux
	Firewall *FirewallQuery // Facts.Firewall
}

// Facts is what was found.
type Facts struct {
	Root       bool   // running as root
	Systemd    bool   // systemd is PID 1
	Executable string // of this process, without symbolic links
	Digest     string // of the executable's content
	Untrusted  string // why a unit must not run the executable; "" = it may
	Rsync      Rsync
	Versions   map[string]string // os, kernel, arch, systemd, rsync
	OS         map[string]string // os-release(5): ID, ID_LIKE
	UIDs       map[string]int    // the users that exist
	GIDs       map[string]int
	Addresses  map[string][]string // what each name resolves to; a missing key did not resolve
	Listener   *Listener           // who holds the port; nil = nobody
	Dirs       map[string]Dir
	Count      int  // directories in the tree, itself included
	CountAll   bool // Count is complete: neither time nor bound ended it
	Sysctls    map[string]string
	// SysctlsWritable is false in a container that shares the kernel's settings.
	SysctlsWritable bool
	SSH             string // path of the client; "" = none
	SSHD            *SSHD
	SELinux         *SELinux  // nil = it does not enforce
	Firewall        *Firewall // one that is not seen to let the port in; nil = none
}

// SELinux is what an enforcing SELinux says about a directory and an rsync daemon.
type SELinux struct {
	Booleans map[string]bool // rsync_full_access and rsync_anon_write, as far as the policy has them
	Type     string          // of the directory's label; "" = not known
}

// FirewallQuery is the connection that is asked about.
type FirewallQuery struct {
	Port int
	From string // one of Query.Names
}

// Firewall is a firewall of this host.
type Firewall struct {
	Name  string // firewalld, ufw or nftables
	Where string // the zones of firewalld that are in use; family, table and chain of nftables
	Zone  string // the one zone of firewalld that is in use; "" = several
}

// SSHDQuery is whose session, and from where, is asked about.
type SSHDQuery struct {
	User string
	From string // one of Query.Names
}

// SSHD is the ssh server.
type SSHD struct {
	Path     string              // "" = none
	Settings map[string][]string // as `sshd -T` prints them, in lower case; nil when it cannot say
	HostKeys []string            // type and key, sorted
	Home     string              // of the user
	Shell    string
}

// Rsync is the rsync binary of the host.
type Rsync struct {
	Path    string // "" = none
	Version string // 3.5.0
	Fault   string // why this build cannot be used, found by trying
}

// Listener is the process that listens on a port.
type Listener struct {
	PID     int
	Command string
	Unit    string
}

// Dir is a directory of the user's.
type Dir struct {
	Exists   bool
	IsDir    bool
	Symlink  bool     // the path itself is a symbolic link
	Mount    bool     // something is mounted on it
	ReadOnly bool     // on a filesystem that is mounted read-only
	FS       string   // identity of the filesystem of the nearest existing ancestor, or itself
	Entries  []string // some names of what is in it; lost+found does not count
}
