// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

// programs puts shell scripts before all programs of the system. Tests that call it cannot be parallel: PATH is the process's.
func programs(t *testing.T, scripts map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

// inspect is that of the real system, and of a systemd in memory.
func inspect(t *testing.T, q Query) Facts {
	t.Helper()
	s := &system{units: managed(t, &manager{})}
	f, err := s.Inspect(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestInspectTellsWhoRunsWhereAndWhat(t *testing.T) {
	t.Parallel()
	rsynctest.Binary(t)
	f := inspect(t, Query{Self: true, Rsync: true, Users: []string{"root", "no-such-user-here", "1234"}, Groups: []string{"root", "no-such-group-here"},
		Names: []string{"192.0.2.1", "192.0.2.0/24", "no-such-host.invalid"}, Sysctls: []string{"kernel.ostype", "lockstep.none"}, CountIn: t.TempDir()})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	if f.Executable != self || f.Digest != hex.EncodeToString(sum[:]) || f.Root != (os.Geteuid() == 0) {
		t.Errorf("%s, %s, root %v", f.Executable, f.Digest, f.Root)
	}
	if why := untrusted(self); f.Untrusted != why {
		t.Errorf("untrusted: %q, want %q", f.Untrusted, why)
	}
	if f.Rsync.Version == "" || f.Versions["rsync"] != f.Rsync.Version || f.Versions["arch"] != runtime.GOARCH || f.Versions["os"] != f.OS["PRETTY_NAME"] || f.Versions["kernel"] == "" {
		t.Errorf("versions %v, rsync %+v", f.Versions, f.Rsync)
	}
	for what, diff := range map[string]string{
		"users":     cmp.Diff(map[string]int{"root": 0, "1234": 1234}, f.UIDs),
		"groups":    cmp.Diff(map[string]int{"root": 0}, f.GIDs),
		"addresses": cmp.Diff(map[string][]string{"192.0.2.1": {"192.0.2.1"}, "192.0.2.0/24": {"192.0.2.0/24"}}, f.Addresses),
		"sysctls":   cmp.Diff(map[string]string{"kernel.ostype": "Linux"}, f.Sysctls),
		"count":     cmp.Diff(1, f.Count),
	} {
		if diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	if f.SysctlsWritable || !f.CountAll {
		t.Errorf("a sysctl that is not there can be written: %v; the count is complete: %v", f.SysctlsWritable, f.CountAll)
	}
	if f.SSH != "" || f.SSHD != nil || f.Firewall != nil || f.SELinux != nil || f.Listener != nil {
		t.Errorf("looked at without being asked: %+v", f)
	}
}

func TestInspectEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &system{units: managed(t, &manager{})}
	if _, err := s.Inspect(ctx, Query{CountIn: "/"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestInspectAsksSSHDAndTheFirewallAboutTheSourceHost(t *testing.T) {
	dir := programs(t, map[string]string{
		"ssh": "exit 1\n",
		"sshd": `[ "$*" = "-T -C user=root,host=192.0.2.1,addr=192.0.2.1" ] || { echo "sshd $*" >&2; exit 1; }
printf 'port 22\npermitrootlogin prohibit-password\nallowusers admin\nallowusers root@192.0.2.*\nhostkey %s\nhostkey %s\nhostkey %s\n' "$HOSTKEY" "$HOSTKEY" /no/such/key
`,
		"firewall-cmd": "exit 252\n",
		"ufw":          "echo 'Status: inactive'\n",
		"nft":          `[ "$LC_ALL" = C ] && printf 'table inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n'` + "\n",
	})
	_, hostKey := newKey(t)
	if err := os.WriteFile(filepath.Join(dir, "host_key.pub"), []byte(hostKey+" root@backup\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOSTKEY", filepath.Join(dir, "host_key"))
	root, err := user.Lookup("root")
	if err != nil {
		t.Fatal(err)
	}
	f := inspect(t, Query{SSH: true, SSHD: &SSHDQuery{User: "root", From: "192.0.2.1"}, Names: []string{"192.0.2.1"}, Firewall: &FirewallQuery{Port: 873, From: "192.0.2.1"}})
	want := &SSHD{Path: filepath.Join(dir, "sshd"), HostKeys: []string{hostKey}, Home: root.HomeDir, Shell: f.SSHD.Shell, Settings: map[string][]string{
		"port": {"22"}, "permitrootlogin": {"prohibit-password"}, "allowusers": {"admin", "root@192.0.2.*"},
		"hostkey": {filepath.Join(dir, "host_key"), filepath.Join(dir, "host_key"), "/no/such/key"}}}
	if diff := cmp.Diff(want, f.SSHD); diff != "" || f.SSHD.Shell == "" || f.SSH != filepath.Join(dir, "ssh") {
		t.Errorf("client %q, sshd (-want +got):\n%s", f.SSH, diff)
	}
	if diff := cmp.Diff(&Firewall{Name: "nftables", Where: "inet filter input"}, f.Firewall); diff != "" {
		t.Errorf("firewall (-want +got):\n%s", diff)
	}
	// No firewall keeps a host out of itself.
	if f := inspect(t, Query{Names: []string{"127.0.0.1"}, Firewall: &FirewallQuery{Port: 873, From: "127.0.0.1"}}); f.Firewall != nil {
		t.Errorf("%+v", f.Firewall)
	}
	// An answer that is missing may have been the one that lets it in.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if found := findFirewall(ctx, FirewallQuery{Port: 873}, []string{"192.0.2.1"}); found != nil {
		t.Errorf("asked in vain: %+v", found)
	}
}

func TestSSHDThatCannotTellLeavesItsSettingsUnknown(t *testing.T) {
	programs(t, map[string]string{"sshd": "echo 'no hostkeys available' >&2; exit 1\n"})
	d := findSSHD(t.Context(), SSHDQuery{User: "root"}, nil)
	if d.Path == "" || d.Settings != nil || d.Home == "" {
		t.Errorf("%+v", d)
	}
}

func TestProgramsOfTheSystemAreFoundWhateverPATHSays(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if found := program("lockstep-no-such-program"); found != "" {
		t.Error(found)
	}
	if found := program("env"); found != "/usr/bin/env" {
		t.Errorf("a program of the system's is found at %q", found)
	}
}

func TestShellOfAUserIsThatOfPasswd(t *testing.T) {
	t.Parallel()
	if shell := loginShell("root"); !filepath.IsAbs(shell) {
		t.Errorf("of root: %q", shell)
	}
	if shell := loginShell("no-such-user-here"); shell != "" {
		t.Errorf("of nobody: %q", shell)
	}
}

func TestUsersAreMadeAndRemovedByTheSystemsPrograms(t *testing.T) {
	dir := programs(t, map[string]string{
		"systemd-sysusers": `echo "systemd-sysusers $*" >>"$(dirname "$0")/calls"` + "\n",
		"userdel":          `echo "userdel $*" >>"$(dirname "$0")/calls"; [ "$1" != busy ] || { echo 'userdel: user busy is currently used by process 7' >&2; exit 8; }` + "\n",
	})
	for _, err := range []error{users{}.Add(t.Context(), "lockstep"), users{}.Remove(t.Context(), "lockstep")} {
		if err != nil {
			t.Error(err)
		}
	}
	if err := (users{}).Remove(t.Context(), "busy"); err == nil || err.Error() != "userdel: exit status 8: userdel: user busy is currently used by process 7" {
		t.Error(err)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	want := "systemd-sysusers --inline u lockstep - \"Lockstep agent\" /var/lib/lockstep\nuserdel lockstep\nuserdel busy\n"
	if err != nil || string(calls) != want {
		t.Errorf("%v (-want +got):\n%s", err, cmp.Diff(want, string(calls)))
	}
	t.Setenv("PATH", t.TempDir())
	if err := (users{}).Add(t.Context(), "lockstep"); err == nil || !strings.Contains(err.Error(), "systemd-sysusers") {
		t.Errorf("without the program: %v", err)
	}
}

func TestJournalGivesTheLastLines(t *testing.T) {
	programs(t, map[string]string{"journalctl": `case "$*" in
*--unit=silent.service*) ;;
*--unit=broken.service*) echo 'no journal' >&2; exit 1 ;;
*) printf '%s\nlast words\n' "$*" ;;
esac
`})
	u := &units{}
	got, err := u.Journal(t.Context(), "a.service", time.Unix(1000, 0), 5)
	if diff := cmp.Diff([]string{"--no-pager --output=cat --quiet --unit=a.service --since=@1000 --lines=5", "last words"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if got, err := u.Journal(t.Context(), "silent.service", time.Unix(1000, 0), 5); got != nil || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := u.Journal(t.Context(), "broken.service", time.Unix(1000, 0), 5); err == nil || !strings.HasPrefix(err.Error(), "journalctl: ") {
		t.Error(err)
	}
}

// proc_sys_permission() of the kernel: what has no write bit is written by nobody, root included.
func TestSysctlThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	if err := (&system{}).SetSysctl("kernel.ostype", "Minix"); !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
	if err := (&system{}).SetSysctl("lockstep.none", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// What ssh leads to is a daemon on a pipe.
func TestLoginBySSH(t *testing.T) {
	t.Parallel()
	rsync, dir := rsynctest.Binary(t), t.TempDir()
	secrets := filepath.Join(dir, "secrets")
	conf := fmt.Sprintf("[data]\npath = %s\nauth users = lockstep\nsecrets file = %s\nuse chroot = no\nread only = no\n", dir, secrets)
	if os.Geteuid() != 0 {
		conf += "strict modes = no\n"
	}
	for name, text := range map[string]string{secrets: "lockstep:secret\n", filepath.Join(dir, "conf"): conf} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shell := func(script string) func(string) []string {
		return func(known string) []string { return []string{"sh", "-c", script, "ssh", known} }
	}
	try := func(ctx context.Context, script string, change func(*Login)) error {
		l := Login{Address: "backup", Module: "data", User: "lockstep", Password: "secret", KnownHosts: []byte("lockstep-data ssh-ed25519 AAAA\n"), Shell: shell(script)}
		if change != nil {
			change(&l)
		}
		return (&system{}).Login(ctx, l)
	}
	// $0 is ssh, then the file of known hosts, the host and the remote command.
	daemon := fmt.Sprintf(`grep -q '^lockstep-data ssh-ed25519 AAAA$' "$1" && [ "$2 $3 $4 $5 $6" = "backup rsync --server --daemon ." ] && exec %s --server --daemon --config=%s/conf .`, rsync, dir)
	if err := try(t.Context(), daemon, nil); err != nil {
		t.Error(err)
	}
	var refused *LoginError
	if err := try(t.Context(), daemon, func(l *Login) { l.Password = "wrong" }); !errors.As(err, &refused) || refused.Reply != "auth failed on module data" {
		t.Errorf("wrong password: %v", err)
	}
	if err := try(t.Context(), daemon, func(l *Login) { l.Module = "none" }); !errors.As(err, &refused) || refused.Reply != "Unknown module 'none'" {
		t.Errorf("no such module: %v", err)
	}
	var said *ShellError
	if err := try(t.Context(), "echo 'root@backup: Permission denied (publickey).' >&2; exit 255", nil); !errors.As(err, &said) || err.Error() != "root@backup: Permission denied (publickey)." {
		t.Errorf("not let in: %v", err)
	}
	if err := try(t.Context(), "exit 255", nil); err == nil || errors.As(err, &refused) || err.Error() != "connection closed by the daemon: unexpected EOF" {
		t.Errorf("without a word: %v", err)
	}
	if err := try(t.Context(), "", func(l *Login) {
		l.Shell = func(string) []string { return []string{filepath.Join(dir, "no-ssh")} }
	}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no ssh: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := try(ctx, "exec sleep 60", nil); err == nil || err.Error() != "no answer by ssh within 10s" {
		t.Errorf("no answer: %v", err)
	}
}

func TestOwnersAreGivenByNameOrNumber(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		owner, group string
		uid, gid     int
		unknown      bool
	}{
		{"", "", 0, 0, false}, {"root", "root", 0, 0, false}, {"1234", "5678", 1234, 5678, false},
		{"no-such-user-here", "root", 0, 0, true}, {"root", "no-such-group-here", 0, 0, true}, {"-1", "0", 0, 0, true},
	} {
		uid, gid, err := ids(tt.owner, tt.group)
		if (err != nil) != tt.unknown || err == nil && (uid != tt.uid || gid != tt.gid) {
			t.Errorf("%q and %q: %d, %d, %v", tt.owner, tt.group, uid, gid, err)
		}
	}
	if user, group := userName(0), groupName(0); user != "root" || group != "root" {
		t.Errorf("0 is %s and %s", user, group)
	}
	if user, group := userName(4_000_000_000), groupName(4_000_000_000); user != "4000000000" || group != "4000000000" {
		t.Errorf("a number without a name is %s and %s", user, group)
	}
	// Every name that the system has leads to its number and back.
	me, err := user.Current()
	if err != nil {
		t.Skip(err)
	}
	uid, err := userID(me.Username)
	if err != nil || userName(uint32(uid)) != me.Username {
		t.Errorf("%s is %d, %v", me.Username, uid, err)
	}
}

func TestUnitOfAProcess(t *testing.T) {
	t.Parallel()
	if unit := unitOf(os.Getpid()); unit != "" && !strings.HasSuffix(unit, ".service") {
		t.Error(unit)
	}
	if unit := unitOf(1 << 30); unit != "" {
		t.Errorf("of no process: %q", unit)
	}
}

func TestListenerOnEitherAddressFamily(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6: ", err)
	}
	defer l.Close()
	if found := listener(l.Addr().(*net.TCPAddr).Port); found == nil {
		t.Error("not found")
	}
}

func TestFileThatIsTooLargeIsNotOurs(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (files{}).Read(file); !errors.Is(err, ErrNotOwned) {
		t.Error(err)
	}
}

func TestDirectoryIsMadeWhereItCanBeOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rsynctest.MakeTree(t, dir, rsynctest.Dir{"file": rsynctest.File(""), "link": rsynctest.Link("sub"), "sub": rsynctest.Dir{}})
	for name, what := range map[string]string{"file": "a file is there", "link": "a link is there", "none/sub": "its parent is missing"} {
		if err := (files{}).Write(filepath.Join(dir, name), own(File{Dir: true, Mode: 0o700})); err == nil {
			t.Errorf("made though %s", what)
		}
	}
	if err := (files{}).Remove(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := (files{}).List(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	names, err := files{}.List(dir)
	if err != nil || !slices.Equal(names, []string{"file", "link", "sub"}) {
		t.Errorf("%q, %v", names, err)
	}
}
