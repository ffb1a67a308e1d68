// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/host"
)

// patient is a stand-alone pair with a daemon of its own, and what the doctor is called with.
type patient struct {
	dir, address, module string
	port                 int
	more                 string // lines of the definition
	passwordFile, backup string
	daemonPort           int
	stop                 func()
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	rsync, err := exec.LookPath("rsync")
	if err != nil {
		t.Skip("rsync is not installed\nhint: apt-get install rsync")
	}
	dir := t.TempDir()
	p := &patient{dir: dir, address: "127.0.0.1", module: "data", passwordFile: filepath.Join(dir, "password"), backup: filepath.Join(dir, "backup")}
	for _, d := range []string{p.backup, filepath.Join(dir, "data")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "data", "file"), "x", 0o644)
	write(t, p.passwordFile, "correct horse\n", 0o600)
	write(t, filepath.Join(dir, "secrets"), "lockstep:correct horse\n", 0o600)
	for range 5 { // between finding a free port and the daemon's bind(2) another process can take it
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.daemonPort = ln.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // of a TCP listener
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		p.port = p.daemonPort
		configure(t, p)
		if p.start(t, rsync) {
			return p
		}
	}
	t.Fatal("no daemon answers")
	return nil
}

// start starts the daemon and waits until it has logged a connection: the daemon of another test, which has taken the port meanwhile,
// would accept one, too.
func (p *patient) start(t *testing.T, rsync string) bool {
	t.Helper()
	connects := func() int {
		text, _ := os.ReadFile(filepath.Join(p.dir, "log")) // there is none at first
		return strings.Count(string(text), " connect from ")
	}
	before := connects()
	cmd := exec.Command(rsync, "--daemon", "--no-detach", "--config="+filepath.Join(p.dir, "rsyncd.conf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() //nolint:errcheck // it ends by our signal
		close(ended)
	}()
	p.stop = sync.OnceFunc(func() {
		// With the processes of its connections, which write to the log.
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // they may all have ended
		<-ended
	})
	t.Cleanup(p.stop)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(p.address, strconv.Itoa(p.daemonPort)), time.Second)
		if err == nil {
			conn.Close() //nolint:errcheck // it was only to see
			if connects() > before {
				return true
			}
		}
		select {
		case <-ended:
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	return false
}

// configure writes rsyncd.conf, in which the settings replace those of the same name. It holds from the next connection on.
func configure(t *testing.T, p *patient, settings ...string) {
	t.Helper()
	module := []string{"path = " + p.backup, "read only = no", "write only = yes", "list = no", "use chroot = no", "munge symlinks = no",
		"auth users = lockstep", "secrets file = " + filepath.Join(p.dir, "secrets"), "lock file = " + filepath.Join(p.dir, "lock")}
	if os.Geteuid() == 0 {
		module = append(module, "uid = 0", "gid = *")
	}
	text := fmt.Sprintf("port = %d\naddress = 127.0.0.1\nlog file = %s/log\nreverse lookup = no\n[data]\n", p.daemonPort, p.dir)
	for _, line := range module {
		name, _, _ := strings.Cut(line, "=")
		if !slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, name+"=") }) {
			text += line + "\n"
		}
	}
	write(t, filepath.Join(p.dir, "rsyncd.conf"), text+strings.Join(settings, "\n")+"\n", 0o600)
}

// see runs the doctor and returns its findings by check, and its exit status.
func (p *patient) see(t *testing.T, args ...string) (map[string]finding, int) {
	t.Helper()
	definition := filepath.Join(p.dir, "data.yaml")
	text := fmt.Sprintf("name: data\nsource: {host: a, path: %s/data, address: 127.0.0.1}\nbackup: {host: b, path: /backup, address: %s, port: %d, module: %s}\n%s",
		p.dir, p.address, p.port, p.module, p.more)
	if err := os.WriteFile(definition, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	args = append([]string{"doctor", "--json", "--definition", definition, "--password-file", p.passwordFile}, args...)
	status := dispatch(t.Context(), stdio{strings.NewReader(""), &out, &stderr}, args)
	var reply struct {
		Pair   string
		OK     bool
		Checks []finding
	}
	if err := json.Unmarshal(out.Bytes(), &reply); err != nil {
		t.Fatalf("status %d: %v\n%s\n%s", status, err, &out, &stderr)
	}
	if p.more == "" && reply.Pair != "data" || reply.OK != (status == exitOK) {
		t.Errorf("pair %q, ok %v, status %d", reply.Pair, reply.OK, status)
	}
	found := map[string]finding{}
	for _, f := range reply.Checks {
		found[f.Check] = f
	}
	if leftovers, err := filepath.Glob(filepath.Join(p.backup, ".lockstep-canary*")); err != nil || len(leftovers) > 0 {
		t.Errorf("left on the backup: %v, %v", leftovers, err)
	}
	return found, status
}

func TestDoctorFindsAHealthyPathHealthy(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	found, status := p.see(t)
	for _, check := range []string{"definition", "source", "rsync", "password", "name", "connect", "greeting", "login", "canary"} {
		if f := found[check]; f.Level != levelOK {
			// An old rsync earns a warning.
			if f.Level == levelWarn && (check == "rsync" || check == "greeting") {
				continue
			}
			t.Errorf("%s: %+v", check, f)
		}
	}
	for _, check := range []string{"space", "unit"} {
		if found[check].Level != levelSkip {
			t.Errorf("%s: %+v", check, found[check])
		}
	}
	if l := found["clock"].Level; l != levelOK && l != levelWarn {
		t.Errorf("clock: %+v", found["clock"])
	}
	if status != exitOK {
		t.Errorf("status %d: %+v", status, found)
	}
	if names, err := os.ReadDir(p.backup); err != nil || len(names) > 0 {
		t.Errorf("on the backup: %v, %v", names, err)
	}
}

func TestDoctorNamesWhatFailsAndWhatToDo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		hurt    func(t *testing.T, p *patient)
		check   string
		saw, do string
		skipped string
	}{
		{"wrong password", func(t *testing.T, p *patient) { write(t, p.passwordFile, "guessed\n", 0o600) },
			"login", "refuses the password of user lockstep", "secrets file", "canary"},
		{"unknown user", func(t *testing.T, p *patient) { write(t, p.passwordFile, "correct horse\nsomebody\n", 0o600) },
			"login", "refuses the password of user somebody", "unknown user", "canary"},
		{"unknown module", func(_ *testing.T, p *patient) { p.module = "other" },
			"login", "no module other", "hosts allow", "canary"},
		{"refused by address", func(t *testing.T, p *patient) { configure(t, p, "hosts deny = *", "list = yes") },
			"login", "refuses module data to this host", "source.address", "canary"},
		{"read only", func(t *testing.T, p *patient) { configure(t, p, "read only = yes", "write only = no") },
			"login", "module data on the backup host is read only", "read only = no", "canary"},
		{"refused option", func(t *testing.T, p *patient) { configure(t, p, "refuse options = modify-window") },
			"login", "refuses the rsync option --modify-window", "refuse options", "canary"},
		{"a disk that takes nothing", func(t *testing.T, p *patient) {
			if os.Geteuid() == 0 {
				configure(t, p, "uid = nobody", "gid = nogroup")
			} else if err := os.Chmod(p.backup, 0o555); err != nil {
				t.Fatal(err)
			}
		}, "canary", "create of a test file", "", ""},
		{"directory of the module gone", func(t *testing.T, p *patient) { configure(t, p, "path = "+p.backup+"/gone") },
			"login", "directory of module data is missing", "mount or make", "canary"},
		{"daemon down", func(_ *testing.T, p *patient) { p.stop() }, "connect", "connection refused", "systemctl status lockstep-rsyncd", "login,canary"},
		{"unknown name", func(_ *testing.T, p *patient) { p.address = "no-such-host.invalid" },
			"name", "no-such-host.invalid", "backup.address", "connect,login,canary"},
		{"another service", func(t *testing.T, p *patient) { p.port = sayer(t, "SSH-2.0-OpenSSH_9.2\r\n") },
			"greeting", "not an rsync daemon", "backup.port", "login,canary"},
		{"a service that says nothing", func(t *testing.T, p *patient) { p.port = sayer(t, "") },
			"greeting", "says nothing", "firewall", "login,canary"},
		{"password for all to read", func(t *testing.T, p *patient) {
			if err := os.Chmod(p.passwordFile, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "password", "may be read by others (mode 0644)", "chmod 0600", "name,connect,login,canary"},
		{"no source", func(t *testing.T, p *patient) {
			if err := os.RemoveAll(filepath.Join(p.dir, "data")); err != nil {
				t.Fatal(err)
			}
		}, "source", "no such file or directory", "nothing is deleted", ""},
		{"misspelt definition", func(_ *testing.T, p *patient) { p.more = "excludes: []\n" },
			"definition", "excludes", "lockstep check", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			tt.hurt(t, p)
			found, status := p.see(t, "--timeout", "2s")
			if status != exitFailure {
				t.Errorf("status %d", status)
			}
			f := found[tt.check]
			if f.Level != levelFail || !strings.Contains(f.Saw, tt.saw) || !strings.Contains(f.Do, tt.do) {
				t.Errorf("%s: %+v, want %q and to do %q; all: %+v", tt.check, f, tt.saw, tt.do, found)
			}
			for check, f := range found {
				if f.Level == levelFail && check != tt.check {
					t.Errorf("fails, too: %+v", f)
				}
			}
			if tt.skipped != "" && found[tt.skipped].Level != levelSkip {
				t.Errorf("%s is not skipped: %+v", tt.skipped, found)
			}
		})
	}
}

// guarded is a bare backup host with a firewall and SELinux. What else is asked of it panics.
type guarded struct {
	host.Files
	host.Units
	host.System
}

func (guarded) Read(path string) (host.File, error) {
	return host.File{}, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
}
func (guarded) List(path string) ([]string, error) {
	return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
}
func (guarded) Real(path string) string { return path }

func (guarded) Unit(context.Context, string) (host.Unit, error) { return host.Unit{}, nil }
func (guarded) Inspect(_ context.Context, q host.Query) (host.Facts, error) {
	f := host.Facts{Root: true, Systemd: true, Addresses: map[string][]string{"192.0.2.1": {"192.0.2.1"}}}
	if q.SELinux != "" {
		f.SELinux = &host.SELinux{Booleans: map[string]bool{"rsync_full_access": false}}
	}
	if q.Firewall != nil {
		f.Firewall = &host.Firewall{Name: "ufw"}
	}
	return f, nil
}

// What plan warns of on the backup host, doctor does too.
func TestDoctorTellsWhatPlanWarnsOf(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "data.yaml")
	write(t, file, "name: data\nsource: {host: 192.0.2.1, path: /srv/data}\nbackup: {host: 192.0.2.2, path: /backup/data}\n", 0o644)
	d := &doctor{json: true, machine: &host.Machine{Files: guarded{}, Units: guarded{}, System: guarded{}}}
	d.files.definition = file
	d.provisioned(t.Context())
	for check, do := range map[string]string{"selinux": "setsebool -P rsync_full_access on", "firewall": "ufw allow from 192.0.2.1 to any port 873 proto tcp"} {
		if !slices.ContainsFunc(d.findings, func(f finding) bool { return f.Check == check && f.Level == levelWarn && f.Do == do }) {
			t.Errorf("no warning of %s that says %q: %+v", check, do, d.findings)
		}
	}
}

// Where an apply would be refused, as that of a backup whose disk is not mounted, doctor does not advise it.
func TestDoctorAdvisesNoApplyThatWouldBeRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := &doctor{json: true, machine: &host.Machine{Files: guarded{}, Units: guarded{}, System: guarded{}}}
	d.files.definition, d.pair.Backup.Path = filepath.Join(dir, "data.yaml"), filepath.Join(dir, "gone")
	write(t, d.files.definition, "name: data\nsource: {host: 192.0.2.1, path: /srv/data}\nbackup: {host: 192.0.2.2, path: "+dir+"/gone}\n", 0o644)
	look := func(do string) {
		t.Helper()
		d.directory()
		if f := d.findings[len(d.findings)-1]; f.Check != "directory" || f.Do != do {
			t.Errorf("%+v, want to do %q; all: %+v", f, do, d.findings)
		}
	}
	look("mount it; or lockstep apply --role backup --definition " + d.files.definition + " makes an empty one")
	d.provisioned(t.Context()) // there is no rsync on that host, for one
	look("mount it")
}

// replaced is a source host whose directory was another one when its pair was made.
type replaced struct{ host.Files }

func (r replaced) Read(path string) (host.File, error) {
	if path != "/var/lib/lockstep/data/source.json" {
		return guarded{}.Read(path)
	}
	return host.File{Data: []byte(`{"Path": "/", "Identity": "another"}`)}, nil
}

// What the agent noted is in its own directory: like all there, it is read as a file and as nothing else.
func TestDoctorKnowsTheSourceByWhatTheAgentNoted(t *testing.T) {
	t.Parallel()
	d := &doctor{json: true, name: "data", machine: &host.Machine{Files: replaced{}}}
	d.pair.Source.Path = "/"
	d.source()
	if len(d.findings) != 1 || d.findings[0].Level != levelFail || !strings.Contains(d.findings[0].Saw, "is not the directory that the pair was made for") {
		t.Errorf("%+v", d.findings)
	}
}

// For people there is one line for each step, whatever a name holds.
func TestDoctorPrintsOneLineForEachStep(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.module = "other"
	if _, status := p.see(t); status != exitFailure {
		t.Fatalf("status %d", status)
	}
	var out, stderr bytes.Buffer
	dispatch(t.Context(), stdio{strings.NewReader(""), &out, &stderr},
		[]string{"doctor", "--definition", filepath.Join(p.dir, "data.yaml"), "--password-file", p.passwordFile})
	for line := range strings.Lines(out.String()) {
		if l, _, _ := strings.Cut(line, " "); l != "ok" && l != "warn" && l != "fail" && l != "skip" {
			t.Errorf("line %q", line)
		}
	}
	if !strings.Contains(out.String(), "\nfail  login       ") {
		t.Errorf("output:\n%s", &out)
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// sayer listens, says something to whoever comes, and hangs up. It returns its port.
func sayer(t *testing.T, words string) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte(words)) //nolint:errcheck // who hangs up first does not want to hear
			conn.Close()              //nolint:errcheck // as above
		}
	}()
	t.Cleanup(func() {
		ln.Close() //nolint:errcheck // the end of the test
		<-done
	})
	return ln.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // of a TCP listener
}
