// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
)

var sshHCL = strings.Replace(pairHCL, "  backup =", "  transport = \"ssh\"\n  backup =", 1)

// keysOfRoot lets sshd of a host look into root's own file first, which has the key of an administrator and does not end with
// a newline: who adds a line and takes it away again has to leave that as it is.
func keysOfRoot(t *testing.T, h *lab.Host) (inventory func() string) {
	t.Helper()
	shell(t, h, `sed -i 's,^AuthorizedKeysFile .*,AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/authorized_keys,' /etc/ssh/sshd_config.d/lab.conf
		systemctl restart ssh
		mkdir -p /root/.ssh
		printf '# of the administrators\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA admin' >/root/.ssh/authorized_keys
		chmod 0640 /root/.ssh/authorized_keys; chown root:adm /root/.ssh/authorized_keys`)
	return func() string {
		return shell(t, h, `stat -c '%a %U:%G' /root/.ssh /root/.ssh/authorized_keys; ls -A /root/.ssh; sha256sum /root/.ssh/authorized_keys`)
	}
}

// asAgent is the ssh command of the pair, as root on the source host has its files.
const asAgent = `ssh -F none -T -i /etc/lockstep/secrets/data.ssh -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile=/etc/lockstep/secrets/data.known_hosts -o StrictHostKeyChecking=yes -o HostKeyAlias=lockstep-data -l root `

func TestTerraformMakesAPairThatIsReachedBySSHAndSwitchesItInPlace(t *testing.T) {
	w := newWorld(t)
	keys := keysOfRoot(t, w.backup)
	before, bare := keys(), map[string]string{}
	for _, h := range w.Hosts() {
		bare[h.Name] = inventory(t, h)
	}
	shell(t, w.source, `mkdir -p /data/a; echo one >/data/a/file; chown 1000:1000 /data/a/file; ln -s /etc/passwd /data/link`)
	w.configure(t, sshHCL)
	w.mustTerraform(t, "apply", "-auto-approve")
	w.inStep(t, time.Minute)
	w.noChanges(t)
	if out := run(t, w.backup, "ss", "-Hltn", "sport = :873"); out != "" {
		t.Errorf("an rsync daemon listens: %s", out)
	}
	exposure := run(t, w.source, "systemd-analyze", "security", "--no-pager", agentUnit)
	if m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(exposure); m == nil || m[1] > "2.5" {
		t.Errorf("exposure: %v", m)
	}
	contains(t, run(t, w.source, "lockstep", "doctor", "data"), "SSH-2.0", "canary")
	contains(t, run(t, w.backup, "lockstep", "doctor", "data"), "SSH-2.0", "ok    module", "ok    rsync", "ok    space")
	contains(t, shell(t, w.backup, "lockstep status data 2>&1 || true"), "hint: this is the pair's backup host; ask on its source host")
	contains(t, shell(t, w.backup, "lockstep status 2>&1 || true"), "hint: systemctl list-units --all 'lockstep@*'; on a backup host there is none")

	t.Run("the key is good for the module alone", func(t *testing.T) {
		for name, command := range map[string]string{
			"shell":        asAgent + `172.16.1.41 </dev/null`,
			"command":      asAgent + `172.16.1.41 'id; touch /root/was-here' </dev/null`,
			"another path": asAgent + `172.16.1.41 rsync --server -logDtpre.iLsfxC . /root/ </dev/null`,
			"a port":       asAgent + `-W 127.0.0.1:22 172.16.1.41 </dev/null`,
			"remote port":  asAgent + `-o ExitOnForwardFailure=yes -R 10022:127.0.0.1:22 172.16.1.41 </dev/null`,
			"terminal":     strings.Replace(asAgent, "-T", "-tt", 1) + `172.16.1.41 </dev/null`,
			"files":        asAgent + `-s 172.16.1.41 sftp </dev/null`,
		} {
			out := shell(t, w.source, "timeout 20 "+command+" 2>&1 || true")
			if strings.Contains(out, "uid=0") || strings.Contains(out, "SSH-2.0") || strings.Contains(out, "# ") {
				t.Errorf("%s: %q", name, out)
			}
			if !regexp.MustCompile(`^@RSYNCD: |prohibited|forwarding failed|PTY allocation request failed|subsystem request failed`).MatchString(out) {
				t.Errorf("%s: neither the daemon's greeting nor a refusal: %q", name, out)
			}
		}
		if out, err := w.backup.Run(t.Context(), "ls", "/root/was-here"); err == nil {
			t.Errorf("a command was run: %s", out)
		}
	})

	t.Run("what is changed by hand is found and healed", func(t *testing.T) {
		for _, edit := range []struct {
			host             *lab.Host
			script, foretold string
		}{
			{w.backup, `sed -i 's/^restrict,command="[^"]*"/restrict/' /root/.ssh/authorized_keys`, "changed by hand in /root/.ssh/authorized_keys"},
			{w.backup, `sed -i '/managed-by-lockstep:data/d' /root/.ssh/authorized_keys`, "lacks the line"},
			{w.backup, `sed -i 's,^path = .*,path = /root,' /etc/lockstep/ssh/data.conf`, "changed by hand: path = /root"},
			{w.source, `chmod 0644 /etc/lockstep/secrets/data.ssh`, "mode 0644 instead of 0600"},
			{w.source, `rm /etc/lockstep/secrets/data.ssh`, "data.ssh is missing"},
			{w.source, `sed -i s/lockstep-data/other/ /etc/lockstep/secrets/data.known_hosts`, "changed by hand: other ssh-ed25519"},
		} {
			shell(t, edit.host, edit.script)
			out, _ := w.plan(t)
			contains(t, plain(out), edit.foretold)
			w.mustTerraform(t, "apply", "-auto-approve")
			w.noChanges(t)
			shell(t, w.source, `date +%N >/data/a/now`)
			w.inStep(t, time.Minute)
		}
	})

	t.Run("another host key is loud, and the right one heals", func(t *testing.T) {
		shell(t, w.backup, `cd /etc/ssh; mkdir /root/kept; mv ssh_host_ed25519_key* /root/kept
			ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key; systemctl restart ssh`)
		shell(t, w.source, `date +%N >/data/a/now`)
		s := w.awaitState(t, time.Minute, "failing")
		if !strings.Contains(s.Reason, "another ssh host key") || !strings.Contains(s.Hint, "somebody is in between") {
			t.Errorf("status: %+v", s)
		}
		out := run(t, w.backup, "lockstep", "read", "--role", "backup", "data")
		contains(t, out, "other host keys than the source host was told")
		shell(t, w.backup, `rm /etc/ssh/ssh_host_ed25519_key*; mv /root/kept/* /etc/ssh/; rmdir /root/kept; systemctl restart ssh`)
		run(t, w.source, "lockstep", "sync", "data") // what only a person can mend is tried again every five minutes
		w.inStep(t, time.Minute)
	})

	t.Run("a root that sshd refuses is told before anything is changed", func(t *testing.T) {
		shell(t, w.backup, `echo 'PermitRootLogin no' >/etc/ssh/sshd_config.d/00-test.conf; systemctl reload ssh`)
		out, _ := w.plan(t)
		contains(t, plain(out), "sshd lets root in by no means (PermitRootLogin no)", "forced-commands-only lets in nothing but")
		if out, err := w.terraform(t, "apply", "-auto-approve"); err == nil || !strings.Contains(plain(out), "PermitRootLogin no") {
			t.Errorf("apply: %v\n%s", err, out)
		}
		shell(t, w.backup, `echo 'PermitRootLogin forced-commands-only' >/etc/ssh/sshd_config.d/00-test.conf; systemctl reload ssh`)
		w.noChanges(t)
		run(t, w.source, "lockstep", "sync", "data")
		w.inStep(t, time.Minute)
		shell(t, w.backup, `rm /etc/ssh/sshd_config.d/00-test.conf; systemctl reload ssh`)
	})

	t.Run("switched to the daemon and back while files are written", func(t *testing.T) {
		writer := w.source.Command(t.Context(), "sh", "-c", `i=0; while [ ! -e /data/enough ]; do i=$((i+1)); echo $i >/data/a/f$i; rm -f /data/a/f$((i-50)); sleep 0.02; done`)
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		w.configure(t, pairHCL)
		w.mustTerraform(t, "apply", "-auto-approve")
		w.noChanges(t)
		if diff := cmp.Diff(before, keys()); diff != "" {
			t.Errorf("authorized_keys was (-) and is (+) without the pair:\n%s", diff)
		}
		if left := shell(t, w.source, `ls /etc/lockstep/secrets`); strings.Contains(left, "ssh") || strings.Contains(left, "known_hosts") {
			t.Errorf("left on the source: %s", left)
		}
		w.configure(t, sshHCL)
		w.mustTerraform(t, "apply", "-auto-approve")
		w.noChanges(t)
		if out := run(t, w.backup, "ss", "-Hltn", "sport = :873"); out != "" {
			t.Errorf("the daemon still listens: %s", out)
		}
		run(t, w.source, "touch", "/data/enough")
		if err := writer.Wait(); err != nil {
			t.Error(err)
		}
		run(t, w.source, "rm", "/data/enough")
		w.inStep(t, time.Minute)
	})

	w.mustTerraform(t, "destroy", "-auto-approve")
	if diff := cmp.Diff(before, keys()); diff != "" {
		t.Errorf("authorized_keys was (-) and is (+):\n%s", diff)
	}
	for _, h := range w.Hosts() {
		if diff := cmp.Diff(strings.Split(bare[h.Name], "\n"), strings.Split(inventory(t, h), "\n")); diff != "" {
			t.Errorf("%s: what destroy left, or took:\n%s", h.Name, diff)
		}
	}
}

// By hand, on hosts whose sshd looks for everybody's keys in one file; with a new host key that is told by a second apply.
func TestAPairByHandIsReachedBySSH(t *testing.T) {
	w := newWorld(t)
	before := shell(t, w.backup, `stat -c '%a %U:%G' /etc/ssh/authorized_keys; sha256sum /etc/ssh/authorized_keys`)
	for _, h := range w.Hosts() {
		if err := h.CopyTo(t.Context(), filepath.Join(repository, "build", "lockstep"), "/usr/local/bin/lockstep"); err != nil {
			t.Fatal(err)
		}
		if err := h.WriteFile(t.Context(), "/root/data.yaml", []byte("name: data\nsource: {host: nfs01, path: /data, address: 172.16.1.31}\nbackup: {host: backup, path: /backup/nfs01, address: 172.16.1.41}\ntransport: ssh\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	apply := func() {
		t.Helper()
		key := run(t, w.source, "lockstep", "apply", "--role", "source", "--definition", "/root/data.yaml", "--prepare")
		sealed := run(t, w.backup, "lockstep", "apply", "--role", "backup", "--definition", "/root/data.yaml", "--recipient", strings.TrimSpace(key))
		run(t, w.source, "lockstep", "apply", "--role", "source", "--definition", "/root/data.yaml", "--sealed-password", strings.TrimSpace(sealed))
	}
	run(t, w.source, "touch", "/data/file")
	apply()
	w.inStep(t, time.Minute)

	shell(t, w.backup, `cd /etc/ssh; rm ssh_host_ed25519_key*; ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key; systemctl restart ssh`)
	run(t, w.source, "touch", "/data/other")
	w.awaitState(t, time.Minute, "failing")
	apply()
	w.inStep(t, time.Minute)

	// What a small file costs, beside the same through the daemon.
	for _, transport := range []string{"ssh", "daemon"} {
		if transport == "daemon" {
			for _, h := range w.Hosts() {
				shell(t, h, `sed -i /^transport/d /root/data.yaml`)
			}
			apply()
			w.inStep(t, time.Minute)
		}
		took := shell(t, w.source, `for i in 1 2 3 4 5 6 7 8 9 10; do
			a=$(date +%s%N); echo $i >/data/latency; lockstep wait data --timeout 20s >/dev/null; b=$(date +%s%N)
			echo $(((b-a)/1000000)); done | sort -n | tr '\n' ' '`)
		t.Logf("%s: write and wait, ms: %s", transport, took)
	}
	for _, role := range []string{"source", "backup"} {
		run(t, map[string]*lab.Host{"source": w.source, "backup": w.backup}[role], "lockstep", "destroy", "--role", role, "data")
	}
	if diff := cmp.Diff(before, shell(t, w.backup, `stat -c '%a %U:%G' /etc/ssh/authorized_keys; sha256sum /etc/ssh/authorized_keys`)); diff != "" {
		t.Errorf("the file of keys was (-) and is (+):\n%s", diff)
	}
}

func TestAnsibleMakesAPairThatIsReachedBySSH(t *testing.T) {
	c := installed(t)
	keys := keysOfRoot(t, c.backup)
	before := keys()
	site := func(state string, args ...string) played {
		return c.play(t, "ssh.yml", fmt.Sprintf(`
- hosts: nfs01
  become: true
  gather_facts: false
  tasks:
    - lockstep.replication.pair:
        name: data
        state: %s
        source: { host: nfs01, path: /data }
        backup: { host: backup, path: /backup/nfs01 }
        transport: ssh
`, state), append(args, "-e", noPython)...)
	}
	run(t, c.source, "touch", "/data/file")
	site("present", "--check", "--diff").is(t, "nfs01", changed).has(t, "/root/.ssh/authorized_keys", "restrict,command=", "/etc/lockstep/ssh/data.conf")
	if diff := cmp.Diff(before, keys()); diff != "" {
		t.Errorf("check mode changed the keys:\n%s", diff)
	}
	site("present", "--diff").is(t, "nfs01", changed)
	c.arrived(t)
	site("present").is(t, "nfs01", ok)
	site("present", "--check", "--diff").is(t, "nfs01", ok).quiet(t)
	shell(t, c.backup, `sed -i s/^restrict,// /root/.ssh/authorized_keys`)
	site("present", "--check", "--diff").is(t, "nfs01", changed).has(t, "+restrict,command=")
	site("present").is(t, "nfs01", changed)
	site("present").is(t, "nfs01", ok)
	c.arrived(t)
	site("absent").is(t, "nfs01", changed)
	if diff := cmp.Diff(before, keys()); diff != "" {
		t.Errorf("authorized_keys was (-) and is (+):\n%s", diff)
	}
	if _, err := os.Stat(c.source.Path("/etc/lockstep")); err == nil {
		t.Error("/etc/lockstep is left on the source")
	}
}
