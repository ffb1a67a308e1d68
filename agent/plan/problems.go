// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/rsyncd"
)

// Facts is what a host is found to be, apart from what lockstep makes there.
type Facts struct {
	Root      bool
	Systemd   bool
	Untrusted string // why a unit must not run this binary
	OS        string // ID and ID_LIKE of os-release(5)
	Rsync     struct{ Path, Version, Fault string }
	Tenants   []Tenant // every pair on this host
	Exports   []Export // modules of rsync daemons that are not ours
	NoUser    string   // backup.uid, when there is no such user
	NoGroup   string   // backup.gid, when there is no such group
	Addresses []string // what source.address stands for
	Listener  *Listener
	SSH       string // where the ssh client is
	SSHD      *SSHD  // of a backup host with transport ssh
	Dirs      map[string]Dir
	Real      map[string]string // where paths lead, ours and those of Tenants and Exports; a missing one leads nowhere else
	SELinux   *SELinux          // nil = does not enforce
	Firewall  *Firewall         // nil = none is seen in the way
}

// Tenant is a pair that a host has, and the roles that the host plays for it.
type Tenant struct {
	Pair  pair.Pair
	Roles []Role
}

func (t Tenant) has(r Role) bool { return slices.Contains(t.Roles, r) }

// Export is a module that something else than lockstep serves.
type Export struct{ File, Module, Path string }

// Listener is who holds the backup's port, when it is not lockstep-rsyncd.
type Listener struct {
	PID           int
	Command, Unit string
}

// real is the directory that a path leads to: by name alone, two paths to one directory look like two.
func (f Facts) real(path string) string { return cmp.Or(f.Real[path], path) }

// shown is a path as it was written, and where it leads.
func (f Facts) shown(path string) string {
	if real := f.real(path); real != path {
		return path + " (which leads to " + real + ")"
	}
	return path
}

// within is whether one path leads to where the other does or below it.
func (f Facts) within(path, dir string) bool { return within(f.real(path), f.real(dir)) }

// meet is within, either way.
func (f Facts) meet(a, b string) bool { return f.within(a, b) || f.within(b, a) }

// Dir is a directory of the definition, as found.
type Dir struct {
	Exists, IsDir, Symlink, ReadOnly bool
	FS                               string   // of the nearest existing ancestor
	WasFS                            string   // when the pair was last applied; "" unknown
	Mount, WasMount                  bool     // something is mounted on it; and was at some apply of the pair
	Entries                          []string // some of what is in it
}

// minRsync is the first version whose options are enough: RHEL 8's.
var minRsync = []int{3, 1, 3}

// ProgramProblem is the path of the one problem that is about the program that was asked itself, where it lies. It says nothing
// of a copy that is going to be installed elsewhere.
const ProgramProblem = "program"

// problems is a list to add to.
type problems []pair.Problem

func (ps *problems) add(path, msg, hint string) {
	*ps = append(*ps, pair.Problem{Path: path, Msg: msg, Hint: hint})
}

// HostProblems lists why a host cannot have any pair.
func HostProblems(f Facts, command string) []pair.Problem {
	var ps problems
	if !f.Root {
		// Nothing else that is found means anything then.
		ps.add("", "lockstep "+command+" needs root: it reads secrets and talks to systemd", "sudo lockstep "+command)
		return ps
	}
	if !f.Systemd {
		ps.add("", "systemd does not run on this host", "lockstep keeps its services with systemd; see lockstep run for a host without")
	}
	return ps
}

// OtherPair refuses p on a host that has another pair of that name: hosts would let in whoever was applied last. It is the
// same pair as long as both ends keep the name that front ends reach them by, or both the address.
func OtherPair(p, there pair.Pair) []pair.Problem {
	hosts, addresses := strings.EqualFold(p.Source.Host, there.Source.Host), strings.EqualFold(p.Source.Address, there.Source.Address)
	if !p.HooksOnly() && !there.HooksOnly() {
		hosts = hosts && strings.EqualFold(p.Backup.Host, there.Backup.Host)
		addresses = addresses && strings.EqualFold(p.Backup.Address, there.Backup.Address)
	}
	if hosts || addresses {
		return nil
	}
	to := ""
	if !there.HooksOnly() {
		to = fmt.Sprintf(" to %s:%s", there.Backup.Host, there.Backup.Path)
	}
	return []pair.Problem{{Path: "name", Msg: fmt.Sprintf("it has a pair %q already, and that is another one: it leads from %s:%s%s", p.Name, there.Source.Host, there.Source.Path, to),
		Hint: "choose another name, or destroy that pair first where it was made"}}
}

func rsyncProblems(f Facts, role Role) []pair.Problem {
	object := "service"
	if role == Backup {
		object = "daemon"
	}
	install := installRsync(f.OS)
	switch {
	case f.Rsync.Path == "":
		return []pair.Problem{{Path: object, Msg: "rsync is not installed", Hint: install}}
	case f.Rsync.Fault != "":
		return []pair.Problem{{Path: object, Msg: fmt.Sprintf("%s at %s cannot be used: %s", strings.TrimSpace("rsync "+f.Rsync.Version), f.Rsync.Path, f.Rsync.Fault),
			Hint: "mend that, or install another version than 3.4.3 (" + install + ")"}}
	case older(f.Rsync.Version, minRsync):
		return []pair.Problem{{Path: object, Msg: fmt.Sprintf("rsync %s is too old, 3.1.3 is the oldest that will do", f.Rsync.Version), Hint: install}}
	}
	return nil
}

func installRsync(os string) string {
	for id := range strings.FieldsSeq(os) {
		switch id {
		case "fedora", "rhel", "centos":
			return "dnf install rsync"
		case "suse", "opensuse":
			return "zypper install rsync"
		case "arch":
			return "pacman -S rsync"
		case "alpine":
			return "apk add rsync"
		}
	}
	return "apt-get install rsync"
}

func older(version string, than []int) bool {
	var have []int
	for _, part := range strings.FieldsFunc(version, func(r rune) bool { return r < '0' || r > '9' }) {
		var n int
		if _, err := fmt.Sscan(part, &n); err == nil {
			have = append(have, n)
		}
	}
	if len(have) == 0 {
		return false // a development build: the trial run has to decide
	}
	return slices.Compare(have[:min(len(have), len(than))], than) < 0
}

// SourceProblems lists why a host cannot be the source host of p.
func SourceProblems(p pair.Pair, f Facts) []pair.Problem {
	var ps problems
	if !p.HooksOnly() {
		ps = append(ps, rsyncProblems(f, Source)...)
	}
	if f.Untrusted != "" {
		ps.add(ProgramProblem, "the service would run a program that others can change: "+f.Untrusted,
			"install -m 0755 -o root lockstep /usr/local/bin/lockstep, and run that")
	}
	if d := f.Dirs[p.Source.Path]; !d.Exists {
		ps.add("source.path", p.Source.Path+" does not exist on the source host", "create or mount it, or correct the path")
	} else if !d.IsDir {
		ps.add("source.path", p.Source.Path+" is not a directory", "name the directory to replicate")
	}
	if BySSH(p) && f.SSH == "" {
		ps.add("login", "ssh is not installed", "install openssh-client, or write transport: daemon")
	}
	for _, t := range f.Tenants {
		if t.Pair.Name != p.Name && t.has(Backup) && f.real(t.Pair.Backup.Path) == f.real(p.Source.Path) && f.circle(p, t.Pair, t.Pair.Source, p.Backup) {
			ps.add("source.path", fmt.Sprintf("%s is the backup of pair %q, and this pair leads back to where that one begins: each would undo the changes of the other",
				f.shown(p.Source.Path), t.Pair.Name), circleHint)
		}
		if dir := t.Pair.Backup.Path; t.Pair.Name != p.Name && t.has(Backup) && f.real(dir) != f.real(p.Source.Path) && f.within(dir, p.Source.Path) {
			ps.add("source.path", fmt.Sprintf("%s holds the backup directory of pair %q, %s", f.shown(p.Source.Path), t.Pair.Name, f.shown(dir)),
				"choose a source directory without it")
		}
	}
	return append(ps, overlap(p, f)...)
}

const circleHint = "keep one of the two pairs only, or choose another directory"

// circle is whether p and another pair, which meet at one end, meet at the other one, too: from is what one of them reads there,
// to what the other one writes. A circle of more pairs shows on no host.
func (f Facts) circle(p, other pair.Pair, from pair.Source, to pair.Backup) bool {
	if p.OneHost() && other.OneHost() {
		return f.meet(from.Path, to.Path)
	}
	// What is on the other host, nobody can follow from here.
	return (strings.EqualFold(from.Host, to.Host) || strings.EqualFold(from.Address, to.Address)) && (within(from.Path, to.Path) || within(to.Path, from.Path))
}

// overlap refuses a pair whose two directories are one inside the other on this host.
func overlap(p pair.Pair, f Facts) []pair.Problem {
	// Only when this host plays both roles are both paths on it.
	both := p.OneHost() || slices.ContainsFunc(f.Tenants, func(t Tenant) bool { return t.Pair.Name == p.Name && t.has(Source) && t.has(Backup) })
	if !both || p.HooksOnly() || !f.meet(p.Source.Path, p.Backup.Path) {
		return nil
	}
	return []pair.Problem{{Path: "backup.path", Msg: fmt.Sprintf("%s and %s are on the same host and one holds the other", f.shown(p.Backup.Path), f.shown(p.Source.Path)),
		Hint: "choose directories that do not overlap"}}
}

// BackupProblems lists why a host cannot be the backup host of p.
func BackupProblems(p pair.Pair, f Facts) []pair.Problem {
	var ps problems
	ps = append(ps, rsyncProblems(f, Backup)...)
	if err := rsyncd.CheckPath(p.Backup.Path); err != nil {
		ps.add("backup.path", err.Error(), "choose another directory")
	}
	if err := rsyncd.CheckModuleName(p.Backup.Module); err != nil {
		ps.add("backup.module", err.Error(), "choose another name in backup.module")
	}
	if f.NoUser != "" {
		ps.add("backup.uid", fmt.Sprintf("the backup host has no user %q", f.NoUser), "create it, or write root")
	}
	if f.NoGroup != "" {
		ps.add("backup.gid", fmt.Sprintf("the backup host has no group %q", f.NoGroup), "create it, or write root")
	}
	if len(f.Addresses) == 0 {
		ps.add("source.address", fmt.Sprintf("the backup host cannot resolve %q, so it cannot let the source host in by its address", p.Source.Address),
			"write the source host's IP address in source.address")
	}
	ps = append(ps, directoryProblems(p, f.Dirs[p.Backup.Path])...)
	if real := f.real(p.Backup.Path); real != p.Backup.Path {
		there := p
		there.Source.Path, there.Backup.Path = "", real // the source is overlap's
		for _, problem := range there.Validate() {
			if problem.Path == "backup.path" {
				ps.add(problem.Path, fmt.Sprintf("%s leads to %s: %s", p.Backup.Path, real, problem.Msg), problem.Hint)
			}
		}
	}
	for _, t := range f.Tenants {
		if t.Pair.Name != p.Name {
			ps = append(ps, neighbourProblems(p, t, f)...)
		}
	}
	for _, e := range f.Exports {
		switch {
		case f.meet(e.Path, p.Backup.Path):
			ps.add("backup.path", fmt.Sprintf("%s is exported already: module %q in %s has path %s", f.shown(p.Backup.Path), e.Module, e.File, f.shown(e.Path)),
				"remove that module, or choose another directory")
		case strings.HasPrefix(e.File, RsyncdDir+"/") && rsyncd.SameModule(e.Module, p.Backup.Module) && !BySSH(p):
			ps.add("backup.module", fmt.Sprintf("module %q is in %s already, which lockstep did not write", e.Module, e.File), "choose another name in backup.module")
		}
	}
	if BySSH(p) {
		ps = append(ps, LoginProblems(f)...)
	} else if l := f.Listener; l != nil {
		ps.add("backup.port", fmt.Sprintf("port %d is taken by %s", p.Backup.Port, l), portHint(l))
	}
	return append(ps, overlap(p, f)...)
}

func (l *Listener) String() string {
	switch {
	case l.Unit != "" && l.Command != "":
		return fmt.Sprintf("%s (%s, process %d)", l.Unit, l.Command, l.PID)
	case l.Command != "":
		return fmt.Sprintf("%s (process %d)", l.Command, l.PID)
	}
	return "another process"
}

func portHint(l *Listener) string {
	if l.Unit != "" && l.Command == "rsync" {
		return fmt.Sprintf("systemctl disable --now %s, if nothing else needs it, or choose another port in backup.port", l.Unit)
	}
	return "choose another port in backup.port, or stop what holds this one"
}

func directoryProblems(p pair.Pair, d Dir) []pair.Problem {
	problem := func(msg, hint string) []pair.Problem {
		return []pair.Problem{{Path: "backup.path", Msg: msg, Hint: hint}}
	}
	switch {
	case d.Symlink:
		return problem(p.Backup.Path+" is a symbolic link", "write the directory that it leads to")
	case d.Exists && !d.IsDir:
		return problem(p.Backup.Path+" is not a directory", "name a directory, or one that does not exist yet")
	case d.WasMount && !d.Mount:
		return problem(p.Backup.Path+" was a mount point when the pair was made, and nothing is mounted there",
			"mount it; if the directory below it is meant from now on, lockstep destroy --role backup "+p.Name+" leaves the data, and apply makes the pair anew")
	case !d.Exists && d.WasFS != "" && d.WasFS != d.FS:
		// Making it would fill whatever filesystem is there instead.
		return problem(p.Backup.Path+" is missing, and what it was on is not mounted: another filesystem is there now",
			"mount it; if the backup really starts anew here, create the directory by hand")
	case d.ReadOnly:
		return problem(p.Backup.Path+" is on a filesystem that is mounted read-only", "mount it read-write, or choose another directory")
	}
	return nil
}

// neighbourProblems lists what p and another pair on the same backup host cannot share.
func neighbourProblems(p pair.Pair, t Tenant, f Facts) []pair.Problem {
	var ps problems
	other := t.Pair
	if t.has(Backup) {
		if f.meet(p.Backup.Path, other.Backup.Path) {
			ps.add("backup.path", fmt.Sprintf("%s is exported already: pair %q has its backup in %s", f.shown(p.Backup.Path), other.Name, f.shown(other.Backup.Path)),
				"choose a directory that neither holds the other nor is in it")
		}
		if rsyncd.SameModule(other.Backup.Module, p.Backup.Module) {
			ps.add("backup.module", fmt.Sprintf("module %q belongs to pair %q on this host", other.Backup.Module, other.Name), "choose another name in backup.module")
		}
		if other.Backup.Port != p.Backup.Port && !BySSH(p) && !BySSH(other) {
			ps.add("backup.port", fmt.Sprintf("the daemon of this host listens on port %d, for pair %q; it can listen on one port only", other.Backup.Port, other.Name),
				fmt.Sprintf("write backup.port = %d, or destroy the other pair on this host first", other.Backup.Port))
		}
	}
	if t.has(Source) && f.real(p.Backup.Path) == f.real(other.Source.Path) && f.circle(p, other, p.Source, other.Backup) {
		ps.add("backup.path", fmt.Sprintf("%s is the source of pair %q, which leads back to where this pair begins: each would undo the changes of the other",
			f.shown(p.Backup.Path), other.Name), circleHint)
	}
	if t.has(Source) && f.real(p.Backup.Path) != f.real(other.Source.Path) && f.within(p.Backup.Path, other.Source.Path) {
		ps.add("backup.path", fmt.Sprintf("%s is in the source directory of pair %q, %s, and would be replicated with it", f.shown(p.Backup.Path), other.Name, f.shown(other.Source.Path)),
			"choose a directory outside of it")
	}
	return ps
}
