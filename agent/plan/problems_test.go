// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// told has a problem as people read it, with what to do on a line of its own.
func told(problems []pair.Problem) string {
	var b strings.Builder
	for _, p := range problems {
		b.WriteString(p.Path + ": " + p.Msg + "\n")
		if p.Hint != "" {
			b.WriteString("  " + p.Hint + "\n")
		}
	}
	return b.String()
}

// other is another pair that a host has, mail if it does not matter which.
func other(t *testing.T, roles []plan.Role, definition string) plan.Tenant {
	t.Helper()
	return plan.Tenant{Pair: parse(t, definition), Roles: roles}
}

const mail = "name: mail\nsource: {host: nfs02, path: /mail}\nbackup: {host: backup, path: /backup/nfs02}\n"

func TestHostThatCanHaveNoPairIsTold(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		facts plan.Facts
		want  string
	}{
		{"root and systemd", plan.Facts{Root: true, Systemd: true}, ""},
		{"no root: nothing else means anything", plan.Facts{}, ": lockstep apply needs root: it reads secrets and talks to systemd\n  sudo lockstep apply\n"},
		{"no systemd", plan.Facts{Root: true}, ": systemd does not run on this host\n  lockstep keeps its services with systemd; see lockstep run for a host without\n"},
	} {
		if diff := cmp.Diff(tt.want, told(plan.HostProblems(tt.facts, "apply"))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestRsyncThatWillNotDoIsToldWithTheWayToAnother(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		os, path, version, fault string
		want                     string
	}{
		{os: "debian", path: "/usr/bin/rsync", version: "3.1.3"},
		{os: "debian", path: "/usr/bin/rsync", version: "3.2"},
		{os: "debian", path: "/usr/bin/rsync", version: "4.0.0pre1"},
		{os: "debian", path: "/usr/bin/rsync", version: ""}, // a development build: trying it decides
		{os: "debian", path: "/usr/bin/rsync", version: "3.1.2", want: "rsync 3.1.2 is too old, 3.1.3 is the oldest that will do\n  apt-get install rsync"},
		{os: "debian", path: "/usr/bin/rsync", version: "3.1", want: "rsync 3.1 is too old, 3.1.3 is the oldest that will do\n  apt-get install rsync"},
		{os: "debian", path: "/opt/rsync", version: "3.4.3", fault: "--delete-missing-args does not work: invalid file mode 00",
			want: "rsync 3.4.3 at /opt/rsync cannot be used: --delete-missing-args does not work: invalid file mode 00\n" +
				"  mend that, or install another version than 3.4.3 (apt-get install rsync)"},
		{os: "debian", path: "/opt/rsync", fault: "it cannot be run: exit status 127",
			want: "rsync at /opt/rsync cannot be used: it cannot be run: exit status 127\n" +
				"  mend that, or install another version than 3.4.3 (apt-get install rsync)"},
		{os: "rocky rhel centos fedora", want: "rsync is not installed\n  dnf install rsync"},
		{os: "opensuse-leap suse opensuse", want: "rsync is not installed\n  zypper install rsync"},
		{os: "arch", want: "rsync is not installed\n  pacman -S rsync"},
		{os: "alpine", want: "rsync is not installed\n  apk add rsync"},
		{os: "ubuntu debian", want: "rsync is not installed\n  apt-get install rsync"},
	} {
		f := plan.Facts{OS: tt.os, Addresses: []string{"172.16.1.31"}, Dirs: map[string]plan.Dir{"/data": {Exists: true, IsDir: true}}}
		f.Rsync.Path, f.Rsync.Version, f.Rsync.Fault = tt.path, tt.version, tt.fault
		for object, problems := range map[string][]pair.Problem{"service": plan.SourceProblems(sample(t), f), "daemon": plan.BackupProblems(sample(t), f)} {
			want := ""
			if tt.want != "" {
				want = object + ": " + tt.want + "\n"
			}
			if diff := cmp.Diff(want, told(problems)); diff != "" {
				t.Errorf("%+v (-want +got):\n%s", tt, diff)
			}
		}
	}
}

// able is a host that has nothing in the way of a pair.
func able(p pair.Pair) plan.Facts {
	f := plan.Facts{Root: true, Systemd: true, OS: "debian", Addresses: []string{"172.16.1.31"}, SSH: "/usr/bin/ssh",
		Dirs: map[string]plan.Dir{p.Source.Path: {Exists: true, IsDir: true, FS: "fs1"}, p.Backup.Path: {FS: "fs1"}},
		SSHD: &plan.SSHD{Path: "/usr/sbin/sshd", HostKeys: []string{"ssh-ed25519 AAAA"}, Home: "/root", Shell: "/bin/bash"}}
	f.Rsync.Path, f.Rsync.Version = "/usr/bin/rsync", "3.5.0"
	return f
}

// obstacle is something that a host lacks or has, and what is told of it.
type obstacle struct {
	name       string
	definition string // "" = the sample
	facts      func(*plan.Facts)
	want       string
}

// tell compares what is told of each obstacle on a host that is able otherwise.
func tell(t *testing.T, obstacles []obstacle, problems func(pair.Pair, plan.Facts) []pair.Problem) {
	t.Helper()
	for _, tt := range obstacles {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := sample(t)
			if tt.definition != "" {
				p = parse(t, tt.definition)
			}
			f := able(p)
			tt.facts(&f)
			if diff := cmp.Diff(tt.want, told(problems(p, f))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatASourceHostCannotBeIsTold(t *testing.T) {
	t.Parallel()
	both := []plan.Role{plan.Source, plan.Backup}
	tell(t, []obstacle{
		{name: "able", facts: func(*plan.Facts) {}},
		{name: "hooks only needs no rsync", definition: "name: data\nsource: {host: nfs01, path: /data}\ntransport: none\nhooks: [{name: tell, type: command, argv: [/bin/true]}]\n",
			facts: func(f *plan.Facts) { f.Rsync.Path = "" }},
		{name: "a binary that others can change", facts: func(f *plan.Facts) { f.Untrusted = "/home/u/lockstep belongs to u, not to root" },
			want: "program: the service would run a program that others can change: /home/u/lockstep belongs to u, not to root\n" +
				"  install -m 0755 -o root lockstep /usr/local/bin/lockstep, and run that\n"},
		{name: "no directory", facts: func(f *plan.Facts) { delete(f.Dirs, "/data") },
			want: "source.path: /data does not exist on the source host\n  create or mount it, or correct the path\n"},
		{name: "a file", facts: func(f *plan.Facts) { f.Dirs["/data"] = plan.Dir{Exists: true} },
			want: "source.path: /data is not a directory\n  name the directory to replicate\n"},
		{name: "no ssh client, and none is needed", facts: func(f *plan.Facts) { f.SSH = "" }},
		{name: "no ssh client", definition: short + "transport: ssh\n", facts: func(f *plan.Facts) { f.SSH = "" },
			want: "login: ssh is not installed\n  install openssh-client, or write transport: daemon\n"},
		{name: "it holds another pair's backup", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, []plan.Role{plan.Backup}, "name: mail\nsource: {host: a, path: /a}\nbackup: {host: nfs01, path: /data/backups}\n")}
		}, want: "source.path: /data holds the backup directory of pair \"mail\", /data/backups\n  choose a source directory without it\n"},
		{name: "it is another pair's backup: a chain", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, []plan.Role{plan.Backup}, "name: mail\nsource: {host: a, path: /a}\nbackup: {host: nfs01, path: /data}\n")}
		}},
		{name: "it is another pair's backup, which begins where this one ends: a circle", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, []plan.Role{plan.Backup}, "name: mail\nsource: {host: Backup, path: /backup/nfs01/x}\nbackup: {host: a, path: /data}\n")}
		}, want: "source.path: /data is the backup of pair \"mail\", and this pair leads back to where that one begins: each would undo the changes of the other\n" +
			"  keep one of the two pairs only, or choose another directory\n"},
		{name: "a chain that goes on to a host with the same paths", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, []plan.Role{plan.Backup}, "name: mail\nsource: {host: a, path: /backup/nfs01}\nbackup: {host: nfs01, path: /data}\n")}
		}},
		{name: "a name that only begins alike", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, []plan.Role{plan.Backup}, "name: mail\nsource: {host: a, path: /a}\nbackup: {host: nfs01, path: /data2/x}\n")}
		}},
		{name: "both ends on one host, one in the other", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{{Pair: sampleAt(t, "/data", "/data/backup"), Roles: both}}
		}, definition: "name: data\nsource: {host: nfs01, path: /data}\nbackup: {host: nfs01x, path: /data/backup}\n",
			want: "backup.path: /data/backup and /data are on the same host and one holds the other\n  choose directories that do not overlap\n"},
	}, plan.SourceProblems)
}

func sampleAt(t *testing.T, source, backup string) pair.Pair {
	t.Helper()
	p := sample(t)
	p.Source.Path, p.Backup.Path = source, backup
	return p
}

func TestWhatABackupHostCannotBeIsTold(t *testing.T) {
	t.Parallel()
	backup, source := []plan.Role{plan.Backup}, []plan.Role{plan.Source}
	const dir = "/backup/nfs01"
	tell(t, []obstacle{
		{name: "able", facts: func(*plan.Facts) {}},
		{name: "able beside another pair", facts: func(f *plan.Facts) { f.Tenants = []plan.Tenant{other(t, backup, mail)} }},
		{name: "no such group, though a user of the name", definition: "name: data\nsource: {host: a, path: /data}\nbackup: {host: b, path: /backup/nfs01, uid: www, gid: www}\n",
			facts: func(f *plan.Facts) { f.NoGroup = "www" },
			want:  "backup.gid: the backup host has no group \"www\"\n  create it, or write root\n"},
		{name: "no such user, no such group", definition: "name: data\nsource: {host: a, path: /data}\nbackup: {host: b, path: /backup/nfs01, uid: www, gid: web}\n",
			facts: func(f *plan.Facts) { f.NoUser, f.NoGroup = "www", "web" },
			want: "backup.uid: the backup host has no user \"www\"\n  create it, or write root\n" +
				"backup.gid: the backup host has no group \"web\"\n  create it, or write root\n"},
		{name: "a source of no known address", facts: func(f *plan.Facts) { f.Addresses = nil },
			want: "source.address: the backup host cannot resolve \"nfs01\", so it cannot let the source host in by its address\n" +
				"  write the source host's IP address in source.address\n"},
		{name: "a symbolic link", facts: func(f *plan.Facts) { f.Dirs[dir] = plan.Dir{Exists: true, IsDir: true, Symlink: true} },
			want: "backup.path: /backup/nfs01 is a symbolic link\n  write the directory that it leads to\n"},
		{name: "a file", facts: func(f *plan.Facts) { f.Dirs[dir] = plan.Dir{Exists: true} },
			want: "backup.path: /backup/nfs01 is not a directory\n  name a directory, or one that does not exist yet\n"},
		{name: "its filesystem is not mounted", facts: func(f *plan.Facts) { f.Dirs[dir] = plan.Dir{FS: "root", WasFS: "disk"} },
			want: "backup.path: /backup/nfs01 is missing, and what it was on is not mounted: another filesystem is there now\n" +
				"  mount it; if the backup really starts anew here, create the directory by hand\n"},
		{name: "it is missing on the filesystem where it was", facts: func(f *plan.Facts) { f.Dirs[dir] = plan.Dir{FS: "disk", WasFS: "disk"} }},
		{name: "it is back on another filesystem", facts: func(f *plan.Facts) { f.Dirs[dir] = plan.Dir{Exists: true, IsDir: true, FS: "new", WasFS: "disk"} }},
		{name: "it is no mount point any more", facts: func(f *plan.Facts) { f.Dirs[dir] = plan.Dir{Exists: true, IsDir: true, WasMount: true} },
			want: "backup.path: /backup/nfs01 was a mount point when the pair was made, and nothing is mounted there\n" +
				"  mount it; if the directory below it is meant from now on, lockstep destroy --role backup data leaves the data, and apply makes the pair anew\n"},
		{name: "it is a mount point as before", facts: func(f *plan.Facts) { f.Dirs[dir] = plan.Dir{Exists: true, IsDir: true, Mount: true, WasMount: true} }},
		{name: "it has become a mount point", facts: func(f *plan.Facts) { f.Dirs[dir] = plan.Dir{Exists: true, IsDir: true, Mount: true} }},
		{name: "read-only", facts: func(f *plan.Facts) { f.Dirs[dir] = plan.Dir{Exists: true, IsDir: true, ReadOnly: true} },
			want: "backup.path: /backup/nfs01 is on a filesystem that is mounted read-only\n  mount it read-write, or choose another directory\n"},
		{name: "another pair's directory, module and port", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, backup, "name: mail\nsource: {host: a, path: /a}\nbackup: {host: b, path: /backup, module: data, port: 8730}\n")}
		}, want: "backup.path: /backup/nfs01 is exported already: pair \"mail\" has its backup in /backup\n  choose a directory that neither holds the other nor is in it\n" +
			"backup.module: module \"data\" belongs to pair \"mail\" on this host\n  choose another name in backup.module\n" +
			"backup.port: the daemon of this host listens on port 8730, for pair \"mail\"; it can listen on one port only\n" +
			"  write backup.port = 8730, or destroy the other pair on this host first\n"},
		{name: "another port matters to no ssh", definition: short + "transport: ssh\n", facts: func(f *plan.Facts) { f.Tenants = []plan.Tenant{other(t, backup, mail)} }},
		{name: "in the source of another pair", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, source, "name: mail\nsource: {host: a, path: /backup}\nbackup: {host: b, path: /b}\n")}
		}, want: "backup.path: /backup/nfs01 is in the source directory of pair \"mail\", /backup, and would be replicated with it\n  choose a directory outside of it\n"},
		{name: "the source of another pair: a chain", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, source, "name: mail\nsource: {host: a, path: /backup/nfs01}\nbackup: {host: b, path: /b}\n")}
		}},
		{name: "the source of another pair, which ends where this one begins: a circle", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, source, "name: mail\nsource: {host: a, path: /backup/nfs01}\nbackup: {host: b, address: nfs01, path: /data}\n")}
		}, want: "backup.path: /backup/nfs01 is the source of pair \"mail\", which leads back to where this pair begins: each would undo the changes of the other\n" +
			"  keep one of the two pairs only, or choose another directory\n"},
		{name: "a circle on one host, by a link", definition: "name: data\nsource: {host: a, path: /link}\nbackup: {host: a, path: /backup/nfs01}\n", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{other(t, source, "name: mail\nsource: {host: localhost, path: /backup/nfs01}\nbackup: {host: 127.0.0.1, path: /data}\n")}
			f.Real = map[string]string{"/link": "/data"}
		}, want: "backup.path: /backup/nfs01 is the source of pair \"mail\", which leads back to where this pair begins: each would undo the changes of the other\n" +
			"  keep one of the two pairs only, or choose another directory\n"},
		{name: "its own pair is not in its way", facts: func(f *plan.Facts) { f.Tenants = []plan.Tenant{{Pair: sample(t), Roles: backup}} }},
		{name: "both ends on one host, one in the other", facts: func(f *plan.Facts) {
			f.Tenants = []plan.Tenant{{Pair: sample(t), Roles: []plan.Role{plan.Source, plan.Backup}}}
		}, definition: "name: data\nsource: {host: a, path: /backup}\nbackup: {host: b, path: /backup/nfs01}\n",
			want: "backup.path: /backup/nfs01 and /backup are on the same host and one holds the other\n  choose directories that do not overlap\n"},
		{name: "exported by the system's rsync", facts: func(f *plan.Facts) {
			f.Exports = []plan.Export{{File: "/etc/rsyncd.conf", Module: "old", Path: "/backup"}, {File: "/etc/rsyncd.conf", Module: "data", Path: "/srv"}}
		}, want: "backup.path: /backup/nfs01 is exported already: module \"old\" in /etc/rsyncd.conf has path /backup\n  remove that module, or choose another directory\n"},
		{name: "a module of a file among ours", facts: func(f *plan.Facts) {
			f.Exports = []plan.Export{{File: plan.RsyncdDir + "/by-hand.conf", Module: "data", Path: "/srv"}}
		}, want: "backup.module: module \"data\" is in /etc/lockstep/rsyncd.d/by-hand.conf already, which lockstep did not write\n  choose another name in backup.module\n"},
		{name: "the system's rsync has the port", facts: func(f *plan.Facts) { f.Listener = &plan.Listener{PID: 7, Command: "rsync", Unit: "rsync.service"} },
			want: "backup.port: port 873 is taken by rsync.service (rsync, process 7)\n" +
				"  systemctl disable --now rsync.service, if nothing else needs it, or choose another port in backup.port\n"},
		{name: "a program has the port", facts: func(f *plan.Facts) { f.Listener = &plan.Listener{PID: 7, Command: "nc"} },
			want: "backup.port: port 873 is taken by nc (process 7)\n  choose another port in backup.port, or stop what holds this one\n"},
		{name: "somebody in another namespace has the port", facts: func(f *plan.Facts) { f.Listener = &plan.Listener{} },
			want: "backup.port: port 873 is taken by another process\n  choose another port in backup.port, or stop what holds this one\n"},
		{name: "ssh: sshd has the port", definition: short + "transport: ssh\n", facts: func(f *plan.Facts) { f.Listener = &plan.Listener{PID: 7, Command: "sshd"} }},
		{name: "ssh: no sshd", definition: short + "transport: ssh\n", facts: func(f *plan.Facts) { f.SSHD = nil },
			want: "login: the backup host has no sshd\n  install openssh-server, or write transport: daemon\n"},
	}, plan.BackupProblems)
}

func TestAPairIsTheSameByItsHostsOrByTheirAddresses(t *testing.T) {
	t.Parallel()
	const hooks = "name: data\nsource: {host: nfs01, path: /data}\ntransport: none\nhooks: [{name: tell, type: command, argv: [/bin/true]}]\n"
	const words = "name: it has a pair \"data\" already, and that is another one: it leads from %s\n  choose another name, or destroy that pair first where it was made\n"
	for _, tt := range []struct{ there, want string }{
		{short, ""},
		{"name: data\nsource: {host: NFS01, address: 10.0.0.9, path: /srv}\nbackup: {host: backup, address: 10.0.0.8, path: /b}\n", ""},
		{"name: data\nsource: {host: a, address: nfs01, path: /data}\nbackup: {host: b, address: backup, path: /b}\n", ""},
		{"name: data\nsource: {host: nfs02, path: /data}\nbackup: {host: backup, path: /b}\n", "nfs02:/data to backup:/b"},
		{"name: data\nsource: {host: nfs01, path: /data}\nbackup: {host: backup2, path: /b}\n", "nfs01:/data to backup2:/b"},
		{hooks, ""},
		{strings.Replace(hooks, "nfs01", "nfs02", 1), "nfs02:/data"},
	} {
		want := ""
		if tt.want != "" {
			want = fmt.Sprintf(words, tt.want)
		}
		if diff := cmp.Diff(want, told(plan.OtherPair(sample(t), parse(t, tt.there)))); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.there, diff)
		}
	}
}

// pair.Parse takes no such path and no such name; what rsyncd.conf cannot say is refused all the same.
func TestWhatRsyncdConfCannotSayIsTold(t *testing.T) {
	t.Parallel()
	p := sampleAt(t, "/data", "/b ")
	p.Backup.Module = "a]"
	want := "backup.path: value \"/b \": white space at an end is lost\n  choose another directory\n" +
		"backup.module: module name \"a]\": a name has letters, digits, dots, - and _\n  choose another name in backup.module\n"
	if diff := cmp.Diff(want, told(plan.BackupProblems(p, able(p)))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
