// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
)

// From bare hosts to a pair in step and back to bare hosts, with the example that the README shows.
func TestOneApplyPutsTwoBareHostsInLockstepAndDestroyLeavesThemBare(t *testing.T) {
	w := newWorld(t)
	before := map[string]string{}
	for _, h := range w.Hosts() {
		before[h.Name] = inventory(t, h)
	}
	shell(t, w.source, `mkdir -p /data/projects/a; echo one >/data/projects/a/file; chown -R 1000:1000 /data/projects; chmod 0640 /data/projects/a/file`)
	shell(t, w.backup, `mkdir -p /backup/other; echo keep >/backup/other/file`)

	w.useExample(t)
	out := w.mustTerraform(t, "apply", "-auto-approve")
	contains(t, out, "1 added, 0 changed, 0 destroyed")
	w.inStep(t, time.Minute)

	// Second apply: no changes.
	w.noChanges(t)
	contains(t, w.mustTerraform(t, "apply", "-auto-approve"), "No changes")

	for _, h := range w.Hosts() {
		if failed := run(t, h, "systemctl", "--failed", "--plain", "--no-legend"); failed != "" {
			t.Errorf("%s: units failed:\n%s", h.Name, failed)
		}
	}
	if active := strings.TrimSpace(run(t, w.source, "systemctl", "is-active", agentUnit)); active != "active" {
		t.Errorf("%s is %s", agentUnit, active)
	}

	dataBefore, backupBefore := tree(t, w.source, "/data"), tree(t, w.backup, "/backup")
	out = plain(w.mustTerraform(t, "destroy", "-auto-approve"))
	contains(t, out, "1 destroyed")
	if diff := cmp.Diff(dataBefore, tree(t, w.source, "/data")); diff != "" {
		t.Errorf("destroy changed the source directory:\n%s", diff)
	}
	if diff := cmp.Diff(backupBefore, tree(t, w.backup, "/backup")); diff != "" {
		t.Errorf("destroy changed the backup directory:\n%s", diff)
	}
	for _, h := range w.Hosts() {
		if diff := cmp.Diff(strings.Split(before[h.Name], "\n"), strings.Split(inventory(t, h), "\n")); diff != "" {
			t.Errorf("%s: what destroy left, or took:\n%s", h.Name, diff)
		}
		if out := shell(t, h, `for p in /proc/[0-9]*; do
			exe=$(readlink $p/exe) || continue
			case $exe in *lockstep*|*rsync*) echo "$p $exe $(tr '\0' ' ' <$p/cmdline)";; esac
		done`); out != "" {
			t.Errorf("%s: still running:\n%s", h.Name, out)
		}
	}
}

// useExample takes examples/terraform as it is and says in a file of its own how the lab is reached.
func (w *world) useExample(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repository, "examples", "terraform", "*.tf"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no example: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(w.dir, filepath.Base(file)), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	override := fmt.Sprintf("provider \"lockstep\" {\n  ssh   = { config_file = %q }\n  hosts = {}\n}\n", w.SSHConfigFile())
	if err := os.WriteFile(filepath.Join(w.dir, "lab_override.tf"), []byte(override), 0o644); err != nil {
		t.Fatal(err)
	}
	w.mustTerraform(t, "init")
}

// inventory lists all that provisioning could leave: every file of the system's directories with owner, mode
// and content, every unit with its state, users, sockets and sysctls.
func inventory(t *testing.T, h *lab.Host) string {
	t.Helper()
	return shell(t, h, `
		find /etc /usr/local /var/lib /run/systemd/system /run/systemd/transient /run/sysctl.d /root /home /tmp /var/tmp -xdev \
			\( -path /var/lib/systemd -o -path /var/lib/private -o -name 'systemd-private-*' \) -prune -o -printf '%y %m %U:%G %p %l\n' 2>/dev/null |
			grep -v -e '/etc/\(passwd\|shadow\|group\|gshadow\)-\( \|$\)' -e '/etc/.pwd.lock' -e '/root/.ssh' | sort
		find /etc /usr/local -xdev -type f ! -name '*-' ! -name .pwd.lock -exec sha256sum {} + | sort -k2
		cat /etc/passwd /etc/group
		systemctl list-unit-files --plain --no-legend | grep -i -e lockstep -e rsync || true
		systemctl list-units --all --plain --no-legend | grep -i lockstep || true
		ss -Hltn | awk '{print $4}' | sort
		sysctl -n fs.inotify.max_user_watches fs.inotify.max_user_instances fs.inotify.max_queued_events
		ls /run | grep lockstep || true`)
}

// tree lists a directory with everything that replication keeps.
func tree(t *testing.T, h *lab.Host, dir string) string {
	t.Helper()
	return shell(t, h, `find "$1" -printf '%y %m %U:%G %s %T@ %p %l\n' | sort -k6; find "$1" -type f -exec sha256sum {} + | sort -k2`, dir)
}

// Whatever is changed by hand: `plan` names the host and the object, `apply` heals it, and then there is
// nothing to do and files follow again.
func TestHandEditsAreFoundAndHealed(t *testing.T) {
	w := pairUp(t)
	for _, tc := range []struct {
		name, side, object string
		host               *lab.Host
		edit               string
	}{
		{"module", "backup", "module", w.backup, `echo 'max connections = 1' >>/etc/lockstep/rsyncd.d/data.conf`},
		{"module gone", "backup", "module", w.backup, `rm /etc/lockstep/rsyncd.d/data.conf`},
		{"secrets file", "backup", "secrets", w.backup, `sed -i 's/:.*/:guessed/' /etc/lockstep/secrets/data.secrets`},
		{"mode of the secrets file", "backup", "secrets", w.backup, `chmod 0644 /etc/lockstep/secrets/data.secrets`},
		{"daemon stopped", "backup", "daemon", w.backup, `systemctl stop lockstep-rsyncd.service`},
		{"daemon's unit", "backup", "daemon", w.backup, `sed -i 's/^NoNewPrivileges=.*/NoNewPrivileges=no/' /etc/systemd/system/lockstep-rsyncd.service; systemctl daemon-reload`},
		{"secret", "source", "secret", w.source, `f=/etc/lockstep/secrets/data; chmod u+w $f; echo other >$f`},
		{"secret gone", "source", "secret", w.source, `rm /etc/lockstep/secrets/data`},
		{"unit", "source", "unit", w.source, `sed -i 's/^WatchdogSec=.*/WatchdogSec=0/' /etc/systemd/system/lockstep@.service; systemctl daemon-reload`},
		{"service stopped", "source", "service", w.source, `systemctl stop ` + agentUnit},
		{"service disabled", "source", "service", w.source, `systemctl disable ` + agentUnit},
		{"definition", "source", "definition", w.source, `sed -i 's/delay: .*/delay: 3s/' /etc/lockstep/pairs/data.yaml`},
		{"definition gone", "backup", "definition", w.backup, `rm -f /etc/lockstep/pairs/data.yaml`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Cleanup(func() {
				if t.Failed() { // or the cases that follow fail, too
					w.mustTerraform(t, "apply", "-auto-approve")
				}
			})
			shell(t, tc.host, tc.edit)
			out, changes := w.plan(t)
			if !changes {
				t.Fatalf("nobody noticed:\n%s", out)
			}
			if !strings.Contains(out, "~ "+tc.side) {
				t.Errorf("the plan does not name the %s side:\n%s", tc.side, out)
			}
			named := false
			for line := range strings.Lines(out) {
				named = named || strings.Contains(line, fmt.Sprintf("~ %q", tc.object)) && strings.Contains(line, tc.host.Name)
			}
			if !named {
				t.Errorf("no line of the plan names host %s and object %s:\n%s", tc.host.Name, tc.object, out)
			}
			contains(t, w.mustTerraform(t, "apply", "-auto-approve"), "0 added, 1 changed, 0 destroyed")
			w.noChanges(t)
			shell(t, w.source, `date +%N >/data/after-the-edit`)
			w.inStep(t, 30*time.Second)
		})
	}
}

func TestAChangedDefinitionIsAppliedInPlace(t *testing.T) {
	w := pairUp(t)
	t.Cleanup(func() {
		w.configure(t, sharedHCL)
		w.mustTerraform(t, "apply", "-auto-approve")
	})
	changed := strings.Replace(sharedHCL, "  backup =", "  exclude = [\"*.tmp\"]\n  backup =", 1)
	w.configure(t, changed)
	contains(t, w.mustTerraform(t, "apply", "-auto-approve"), "0 added, 1 changed, 0 destroyed")
	w.noChanges(t)
	shell(t, w.source, `echo x >/data/left-out.tmp; echo x >/data/sent`)
	eventually(t, 20*time.Second, func() error {
		_, err := os.Stat(w.backup.Path(backupDir + "/sent"))
		return err
	})
	if _, err := os.Stat(w.backup.Path(backupDir + "/left-out.tmp")); err == nil {
		t.Error("an excluded file was sent")
	}
	shell(t, w.source, `rm /data/left-out.tmp`)
}

// A backup directory that is another's: the plan says so, nothing of it goes, and nobody is kept from putting that right.
func TestWhatIsInTheBackupDirectoryBeforeThePairIsToldAndHeld(t *testing.T) {
	w := newWorld(t)
	shell(t, w.source, `echo one >/data/file`)
	shell(t, w.backup, `mkdir -p `+backupDir+`/photos; echo theirs >`+backupDir+`/photos/1`)
	w.useExample(t)
	out := plain(w.mustTerraform(t, "plan"))
	contains(t, out, backupDir+` is not empty: it has "photos"`, "if it is not a copy of nfs01:/data, choose another directory")
	out = plain(w.mustTerraform(t, "apply", "-auto-approve"))
	contains(t, out, "1 added", "the pair is held", "the backup has entries that this source was never seen to have")
	w.heldBecause(t, "never seen to have")
	contains(t, run(t, w.source, "lockstep", "wait", "data")+run(t, w.backup, "ls", backupDir, backupDir+"/photos"), "file", "photos", "1")
	if _, err := w.source.Run(t.Context(), "lockstep", "verify", "data"); err == nil || !strings.Contains(err.Error(), "photos/1") {
		t.Errorf("verify: %v", err)
	}
	out, changes := w.plan(t)
	if changes || strings.Contains(out, "is not empty") {
		t.Errorf("the next plan:\n%s", out)
	}
	contains(t, run(t, w.source, "lockstep", "approve", "data"), "2 deletions on the backup approved")
	w.inStep(t, time.Minute)
	w.equal(t, time.Minute)
}
