// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// sshWorld is a real sshd on loopback whose one key runs a real rsync daemon for one directory: what apply makes on two
// hosts, as far as it can be made by somebody who is not root.
type sshWorld struct {
	t          *testing.T
	dir        string
	pair       pair.Pair
	line       string // of authorized_keys
	sshd       *exec.Cmd
	hostKey    string
	source     string
	backup     string
	key, known string
	password   string
}

func newSSHWorld(t *testing.T) *sshWorld {
	t.Helper()
	for _, name := range []string{"/usr/sbin/sshd", "ssh", "rsync"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("SKIPPED: %v; transport ssh is not tested (apt install openssh-client openssh-server rsync)", err)
		}
	}
	if os.Geteuid() == 0 {
		// sshd started by root insists on its empty privilege separation directory, which is gone after a boot.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	w := &sshWorld{t: t, dir: dir, source: filepath.Join(dir, "source"), backup: filepath.Join(dir, "backup"),
		key: filepath.Join(dir, "key"), known: filepath.Join(dir, "known_hosts"), password: filepath.Join(dir, "password")}
	for _, d := range []string{w.source, w.backup} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	w.pair, err = pair.Parse(fmt.Appendf(nil, "name: data\nsource: {host: 127.0.0.1, path: /srv/data}\nbackup: {host: 127.0.0.1, path: /backup/data, port: %d}\ntransport: ssh\n", port))
	if err != nil {
		t.Fatal(err)
	}
	state, err := plan.BackupState(w.pair, plan.BackupInputs{Rsync: "rsync", Allow: []string{"127.0.0.1"}, SSHKey: w.makeKey(w.key), AuthorizedKeys: "keys",
		Secrets: []plan.Secret{{User: "lockstep-1", Password: "pass"}}})
	if err != nil {
		t.Fatal(err)
	}
	conf := string(state.Files[plan.SSHConfFile("data")].Data)
	for old, now := range map[string]string{"/backup/data": w.backup, plan.SecretsFile("data"): filepath.Join(dir, "secrets"),
		"use chroot = yes": "use chroot = no", "uid = root\n": "", "gid = root\n": ""} {
		if os.Geteuid() == 0 && strings.HasPrefix(old[1:], "id") {
			continue
		}
		if !strings.Contains(conf, old) {
			t.Fatalf("%q is not in\n%s", old, conf)
		}
		conf = strings.Replace(conf, old, now, 1)
	}
	w.write("rsyncd.conf", conf)
	w.write("secrets", "lockstep-1:pass\n")
	w.write("password", "pass\n")
	w.line = strings.Replace(state.Lines["keys"].Text, plan.SSHConfFile("data"), filepath.Join(dir, "rsyncd.conf"), 1) + "\n"
	w.write("authorized_keys", w.line)
	w.hostKey = w.makeKey(filepath.Join(dir, "host_key"))
	w.write("known_hosts", w.pair.HostAlias()+" "+w.hostKey+"\n")
	w.write("sshd_config", fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nPidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"+
		"KbdInteractiveAuthentication no\nPermitRootLogin forced-commands-only\nMaxStartups 100\nHostKey %s\nAuthorizedKeysFile %s\n",
		port, filepath.Join(dir, "host_key"), filepath.Join(dir, "authorized_keys")))
	w.start()
	t.Cleanup(w.stop)
	if err := w.login(); err != nil && os.Geteuid() != 0 && strings.Contains(err.Error(), "Permission denied") {
		t.Skipf("SKIPPED: sshd does not let this user in, who may have no shell; transport ssh is not tested: %v", err)
	}
	return w
}

func (w *sshWorld) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// makeKey writes a private key, and returns type and key of the public one.
func (w *sshWorld) makeKey(file string) string {
	w.t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(filepath.Base(file), string(pem.EncodeToMemory(block)))
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func (w *sshWorld) start() {
	w.t.Helper()
	w.sshd = exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(w.dir, "sshd_config"))
	if err := w.sshd.Start(); err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(w.pair.Backup.Port)))
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
	}
}

func (w *sshWorld) stop() {
	if w.sshd != nil {
		_ = w.sshd.Process.Kill()
		_ = w.sshd.Wait()
		w.sshd = nil
	}
}

// shell is the pair's ssh command, for whoever runs the test.
func (w *sshWorld) shell(known string) []string {
	argv := w.pair.RemoteShell(w.key, known)
	if me, err := user.Current(); err == nil {
		argv[1+slices.Index(argv, "-l")] = me.Username
	}
	return argv
}

func (w *sshWorld) send(name string) transfer.Result {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.source, name), []byte(name), 0o644); err != nil {
		w.t.Fatal(err)
	}
	r, err := transfer.New(transfer.Options{Path: w.source, Timeout: time.Minute, Extra: []string{"--no-owner", "--no-group"},
		Target: transfer.Target{Address: "127.0.0.1", Port: w.pair.Backup.Port, Module: "data", User: "lockstep-1", PasswordFile: w.password, Shell: w.shell(w.known)}})
	if err != nil {
		w.t.Fatal(err)
	}
	root, err := transfer.OpenRoot(w.source)
	if err != nil {
		w.t.Fatal(err)
	}
	defer root.Close()
	return r.Run(w.t.Context(), root, transfer.Job{Kind: transfer.Send, Paths: []string{name}}, nil)
}

func (w *sshWorld) login() error {
	m, err := host.New()
	if err != nil {
		w.t.Fatal(err)
	}
	defer m.Close()
	known, err := os.ReadFile(w.known)
	if err != nil {
		w.t.Fatal(err)
	}
	return m.System.Login(w.t.Context(), host.Login{Address: "127.0.0.1", Port: w.pair.Backup.Port, Module: "data", User: "lockstep-1", Password: "pass",
		Shell: w.shell, KnownHosts: known})
}

func TestTransferBySSH(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	if err := w.login(); err != nil {
		t.Fatal(err)
	}
	if res := w.send("a"); res.Class != transfer.Done || len(res.Failed) > 0 {
		t.Fatalf("%s: %s\n%s", res.Class, res.Message, res.Stderr)
	}
	if text, err := os.ReadFile(filepath.Join(w.backup, "a")); string(text) != "a" {
		t.Errorf("arrived: %q, %v", text, err)
	}

	var shell *host.ShellError
	refused := func(class transfer.Class, message, hint, said string) {
		t.Helper()
		res := w.send("b")
		if res.Class != class || !strings.Contains(res.Message, message) || !strings.Contains(res.Hint, hint) {
			t.Errorf("%s: %q, hint %q; want %s: %q, hint %q\n%s", res.Class, res.Message, res.Hint, class, message, hint, res.Stderr)
		}
		if err := w.login(); !errors.As(err, &shell) || !strings.Contains(shell.Said, said) {
			t.Errorf("login: %v, want %q", err, said)
		}
		if _, err := os.Stat(filepath.Join(w.backup, "b")); err == nil {
			t.Error("it arrived all the same")
		}
	}
	w.write("known_hosts", w.pair.HostAlias()+" "+w.makeKey(filepath.Join(w.dir, "other"))+"\n")
	refused(transfer.Permanent, "another ssh host key than the one that was pinned", "somebody is in between", "Host key verification failed")
	w.write("known_hosts", "\n")
	refused(transfer.Permanent, "another ssh host key", "apply the pair again", "host key is known")
	w.write("known_hosts", w.pair.HostAlias()+" "+w.hostKey+"\n")
	w.write("authorized_keys", "\n")
	refused(transfer.Permanent, "refuses the pair's key", "authorized_keys", "Permission denied")
	w.write("authorized_keys", w.line)
	w.stop()
	refused(transfer.Transient, "no connection to 127.0.0.1:", "is sshd running", "Connection refused")
	w.start()
	if err := os.Rename(w.key, w.key+".gone"); err != nil {
		t.Fatal(err)
	}
	refused(transfer.Permanent, "", "", "")
	if err := os.Rename(w.key+".gone", w.key); err != nil {
		t.Fatal(err)
	}
	if res := w.send("c"); res.Class != transfer.Done {
		t.Errorf("when all is well again: %s: %s", res.Class, res.Message)
	}
	w.write("rsyncd.conf", strings.Replace(w.read("rsyncd.conf"), "hosts allow = 127.0.0.1", "hosts allow = 192.0.2.1", 1))
	var not *host.LoginError
	if err := w.login(); !errors.As(err, &not) || !strings.HasPrefix(not.Reply, "Unknown module") {
		t.Errorf("from an address that is not allowed: %v", err)
	}
}

func (w *sshWorld) read(name string) string {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}

// Whoever has the key can write to the directory of the module, and nothing else.
func TestTheKeyIsGoodForTheModuleAlone(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	run := func(options []string, command ...string) string {
		t.Helper()
		argv := slices.Concat(w.shell(w.known), options, []string{"127.0.0.1"}, command)
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader("")
		out, _ := cmd.CombinedOutput() // that it ends with an error says nothing here
		return string(out)
	}
	marker := filepath.Join(w.dir, "marker")
	for name, out := range map[string]string{
		"shell":           run(nil),
		"command":         run(nil, "touch", marker),
		"terminal":        run([]string{"-tt"}, "touch", marker),
		"another module":  run(nil, "rsync", "--server", "--daemon", "--config=/dev/null", "."),
		"plain rsync":     run(nil, "rsync", "--server", "-logDtpre.iLsfxC", ".", w.dir),
		"file transfer":   run([]string{"-s"}, "sftp"),
		"a port of there": run([]string{"-W", net.JoinHostPort("127.0.0.1", strconv.Itoa(w.pair.Backup.Port))}),
		"a port of here":  run([]string{"-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"}),
	} {
		if strings.Contains(out, "SSH-2.0") || strings.Contains(out, "$ ") {
			t.Errorf("%s: %q", name, out)
		}
		if !strings.HasPrefix(out, "@RSYNCD: ") && !strings.Contains(out, "administratively prohibited") && !strings.Contains(out, "forwarding failed") &&
			!strings.Contains(out, "PTY allocation request failed") && !strings.Contains(out, "subsystem request failed") {
			t.Errorf("%s: neither the daemon's greeting nor a refusal: %q", name, out)
		}
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a command was run")
	}
	// And the module only takes.
	out, err := exec.CommandContext(ctx, "rsync", "-a", "--rsh="+strings.Join(w.shell(w.known), " "), "--password-file="+w.password,
		"lockstep-1@127.0.0.1::data/", filepath.Join(w.dir, "back")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "write only") {
		t.Errorf("reading: %v: %s", err, out)
	}
}
