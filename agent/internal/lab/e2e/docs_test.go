// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
)

var (
	block       = regexp.MustCompile("(?ms)^```(\\w+)( \\w+)?\n(.*?)^```$")
	heading     = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fingerprint = regexp.MustCompile(`(?m)^ *fingerprint +(\S+)$`)
)

// follow does what a page says, as root in /root: a yaml block becomes data.yaml, a block "sh source" is run on the source host,
// and so on. Files are copied from host to host as its scp lines say. It begins at one heading, or at the top, and stops
// at another, or at the end. A command that goes on until it is interrupted is, after a second.
func (w *world) follow(t *testing.T, page, from, to string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(repository, page))
	if err != nil {
		t.Fatal(err)
	}
	text, begin, end := string(data), -1, -1
	if from == "" {
		begin = 0
	}
	if to == "" {
		end = len(text)
	}
	for _, m := range heading.FindAllStringSubmatchIndex(text, -1) {
		switch name := text[m[2]:m[3]]; {
		case begin < 0 && name == from:
			begin = m[1]
		case begin >= 0 && end < 0 && name == to:
			end = m[0]
		}
	}
	if begin < 0 || end < 0 {
		t.Fatalf("%s has no section %q or %q", page, from, to)
	}
	for _, b := range block.FindAllStringSubmatch(text[begin:end], -1) {
		lang, where, body := b[1], strings.TrimSpace(b[2]), b[3]
		switch {
		case lang == "yaml" && strings.HasPrefix(body, "name: "):
			for _, h := range w.Hosts() {
				if err := h.WriteFile(t.Context(), "/root/data.yaml", []byte(body), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		case lang != "sh" || where == "":
			continue // cmd/lockstep has a test that it says why
		case where == "copy":
			w.copy(t, body, "")
		default:
			script := regexp.MustCompile(`(?m)^lockstep status .*--watch.*$`).ReplaceAllString(body, `timeout 1 $0 || [ $$? = 124 ]`)
			script = strings.ReplaceAll(script, "FINGERPRINT", w.fingerprint)
			for _, h := range w.on(t, where) {
				out, err := h.Shell(t.Context(), "cd /root\n"+script)
				if err != nil {
					t.Fatalf("%s: following %s: %v\n%s", h.Name, page, err, out)
				}
				if m := fingerprint.FindStringSubmatch(out); m != nil {
					w.fingerprint = m[1]
				}
			}
		}
		if w.followed == nil {
			w.followed = map[string]bool{}
		}
		w.followed[page+"\n"+body] = true
	}
}

// on gives the hosts that a block is for, by the word behind its language.
func (w *world) on(t *testing.T, where string) []*lab.Host {
	t.Helper()
	hosts := map[string][]*lab.Host{"source": {w.source}, "backup": {w.backup}, "both": w.Hosts()}[where]
	if len(hosts) == 0 {
		t.Fatalf("a block for %q", where)
	}
	return hosts
}

// copy does what a line such as "scp nfs01:FILE backup:" says, from root's home to root's home. The host "control" is the
// directory given, of whoever runs Terraform or Ansible.
func (w *world) copy(t *testing.T, line, control string) {
	t.Helper()
	m := regexp.MustCompile(`^scp (\w+):(\S+) (\w+):\n$`).FindStringSubmatch(line)
	hosts := map[string]*lab.Host{"nfs01": w.source, "backup": w.backup}
	toControl := m != nil && m[3] == "control" && control != ""
	if m == nil || hosts[m[1]] == nil || hosts[m[3]] == nil && !toControl {
		t.Fatalf("cannot follow %q", line)
	}
	data, err := hosts[m[1]].ReadFile(t.Context(), "/root/"+m[2])
	switch {
	case err != nil:
	case toControl:
		err = os.WriteFile(filepath.Join(control, m[2]), data, 0o644)
	default:
		err = hosts[m[3]].WriteFile(t.Context(), "/root/"+m[2], data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A newcomer with two bare hosts and the package does literally what README.md and docs/ say, brings about what the runbook
// is for, and finds in the journal what happened. Every block that names a host is run.
func TestEveryPageCanBeFollowed(t *testing.T) {
	deb, _ := packages(t, "0.1.0")
	w := newWorld(t)
	example, err := os.ReadFile(filepath.Join(repository, "examples/pairs/data.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range w.Hosts() {
		if err := h.CopyTo(t.Context(), deb, "/root/"+filepath.Base(deb)); err != nil {
			t.Fatal(err)
		}
		if err := h.WriteFile(t.Context(), "/root/data.yaml", example, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := h.WriteFile(t.Context(), "/root/password", []byte("correct horse battery staple\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shell(t, w.source, `mkdir -p /data/sub && echo one >/data/sub/file`)

	w.follow(t, "docs/by-hand.md", "", "2. Write the definition")
	w.follow(t, "README.md", "", "")
	w.inStep(t, time.Minute)
	run(t, w.source, "lockstep", "destroy", "--role", "source", "data")
	run(t, w.backup, "lockstep", "destroy", "--role", "backup", "data")

	w.follow(t, "docs/by-hand.md", "2. Write the definition", "Later")
	w.inStep(t, time.Minute)
	w.follow(t, "docs/runbook.md", "", "")
	w.follow(t, "docs/metrics.md", "", "")
	t.Run("doctor", func(t *testing.T) { doctors(t, w) })
	if !t.Run("runbook", func(t *testing.T) { followRunbook(t, w) }) {
		t.FailNow()
	}
	t.Run("journal", func(t *testing.T) { journalExplains(t, w) })
	w.follow(t, "docs/by-hand.md", "Later", "")

	for _, page := range []string{"README.md", "docs/by-hand.md", "docs/runbook.md", "docs/metrics.md"} {
		text, err := os.ReadFile(filepath.Join(repository, page))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range block.FindAllStringSubmatch(string(text), -1) {
			if b[1] == "sh" && b[2] != "" && !w.followed[page+"\n"+b[3]] {
				t.Errorf("%s: not followed:\n%s", page, b[3])
			}
		}
	}
}

// faultyRsync stands for version 3.4.3, whose fault is on the side that receives.
const faultyRsync = `mv /usr/bin/rsync /root/rsync; cat >/usr/bin/rsync <<'EOF'
#!/bin/sh
case " $* " in
*" --version "*) echo "rsync  version 3.4.3  protocol version 32" ;;
*::*) exec /root/rsync "$@" ;;
*delete-missing-args*) echo "invalid file mode 00 for x" >&2; exit 2 ;;
*) exec /root/rsync "$@" ;;
esac
EOF
chmod +x /usr/bin/rsync`

// hurt is something that is wrong with a host, and what the doctor there says of it.
type hurt struct{ name, hurt, mend, says string }

// doctors are called while one thing after the other is wrong, on the host that it is wrong with.
func doctors(t *testing.T, w *world) {
	doctorOn(t, w, w.source, []hurt{
		{"well", ":", ":", "ok    canary"},
		{"unit stopped", "systemctl stop lockstep@data", "systemctl start lockstep@data", "fail  unit        lockstep@data.service is inactive"},
		{"unit masked", "systemctl mask --runtime --now lockstep@data", "systemctl unmask --runtime lockstep@data; systemctl start lockstep@data", "fail  unit        lockstep@data.service is masked"},
		{"unit not enabled", "systemctl disable lockstep@data", "systemctl enable lockstep@data", "warn  unit        lockstep@data.service runs and is not enabled"},
		{"definition gone", "mv /etc/lockstep/pairs/data.yaml /root/kept", "mv /root/kept /etc/lockstep/pairs/data.yaml", "fail  definition"},
		{"definition misspelt", "cp -p /etc/lockstep/pairs/data.yaml /root/kept; echo 'exclud: []' >>/etc/lockstep/pairs/data.yaml",
			"cp -p /root/kept /etc/lockstep/pairs/data.yaml", `unknown field "exclud"`},
		{"password gone", "mv /etc/lockstep/secrets/data /root/kept", "mv /root/kept /etc/lockstep/secrets/data", "fail  password"},
		{"source not mounted", "lockstep wait data && umount /data", "mount /data", "fail  source      /data is not the directory that the pair was made for"},
		{"rsync 3.4.3", faultyRsync, "mv /root/rsync /usr/bin/rsync", "warn  rsync       rsync 3.4.3 here"},
	})
	if err := w.backup.BlackHole(t.Context(), 873); err != nil {
		t.Fatal(err)
	}
	doctorOn(t, w, w.source, []hurt{{"packets vanish", ":", ":", "fail  connect     dial tcp 172.16.1.41:873: i/o timeout"}})
	if err := w.backup.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.inStep(t, time.Minute)
	doctorOn(t, w, w.backup, []hurt{
		{"well", ":", ":", "ok    space"},
		{"daemon stopped", "systemctl stop lockstep-rsyncd", "systemctl start lockstep-rsyncd", "fail  unit        lockstep-rsyncd.service is inactive"},
		{"daemon not enabled", "systemctl disable lockstep-rsyncd", "systemctl enable lockstep-rsyncd", "warn  unit        lockstep-rsyncd.service runs and is not enabled"},
		{"module changed", "cp -p /etc/lockstep/rsyncd.d/data.conf /root/kept; echo 'comment = x' >>/etc/lockstep/rsyncd.d/data.conf",
			"cp -p /root/kept /etc/lockstep/rsyncd.d/data.conf", "fail  module      module: /etc/lockstep/rsyncd.d/data.conf is not as apply made it"},
		{"secrets for all to read", "chmod 0644 /etc/lockstep/secrets/data.secrets", "chmod 0600 /etc/lockstep/secrets/data.secrets", "fail  module      secrets: /etc/lockstep/secrets/data.secrets is not as apply made it"},
		{"disk not mounted", "mv /backup/nfs01 /backup/elsewhere", "mv /backup/elsewhere /backup/nfs01", "fail  directory   /backup/nfs01 is missing"},
		{"disk nearly full", "fallocate -l $(($(df --output=avail -B1 /backup | tail -n 1) - 1000000)) /backup/filler", "rm /backup/filler", "warn  space"},
		{"no rsync", "mv /usr/bin/rsync /root/rsync", "mv /root/rsync /usr/bin/rsync", "fail  rsync"},
		{"rsync 3.4.3", faultyRsync, "mv /root/rsync /usr/bin/rsync", "fail  rsync       rsync 3.4.3 here"},
	})
}

func doctorOn(t *testing.T, w *world, h *lab.Host, hurts []hurt) {
	for _, hurt := range hurts {
		t.Run(h.Name+": "+hurt.name, func(t *testing.T) {
			shell(t, h, hurt.hurt)
			out, err := h.Run(t.Context(), "lockstep", "doctor", "data", "--timeout", "3s")
			shell(t, h, hurt.mend)
			contains(t, out, hurt.says)
			failed := regexp.MustCompile(`(?m)^fail .*$`).FindAllString(out, -1)
			if (len(failed) > 0) != (err != nil) || len(failed) > 0 && !strings.Contains(strings.Join(failed, "\n"), hurt.says) {
				t.Errorf("it ends with %v; what fails is %q", err, failed)
			}
			for _, line := range failed {
				if !strings.Contains(line, " -> ") {
					t.Errorf("what is to be done? %q", line)
				}
			}
			t.Logf("%s", out)
		})
	}
}

// journalExplains looks for what has happened to the pair by the ids of its messages, as lockstep(8) lists them, and
// lets journalctl explain each.
func journalExplains(t *testing.T, w *world) {
	manual, err := os.ReadFile(filepath.Join(repository, "packaging/man/lockstep.8"))
	if err != nil {
		t.Fatal(err)
	}
	catalog, err := os.ReadFile(filepath.Join(repository, "packaging/systemd/lockstep.catalog"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\.It Li ([0-9a-f]{32})\n((?:[^.].*\n)+)`).FindAllStringSubmatch(string(manual), -1) {
		id, text := m[1], strings.TrimSpace(strings.ReplaceAll(m[2], "\n", " "))
		out, err := w.source.Run(t.Context(), "journalctl", "-q", "-o", "json", "-n", "1", "MESSAGE_ID="+id)
		if err != nil {
			t.Fatal(err)
		}
		if out == "" {
			continue
		}
		found[text] = true
		var fields map[string]any
		if err := json.Unmarshal([]byte(out), &fields); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if fields["PAIR"] != "data" || fields["SYSLOG_IDENTIFIER"] != "lockstep" || fields["_SYSTEMD_UNIT"] != agentUnit {
			t.Errorf("%q has fields %v", text, fields)
		}
		if state, ok := strings.CutPrefix(text, "state: "); ok && fields["LOCKSTEP_STATE"] != state {
			t.Errorf("%q has LOCKSTEP_STATE=%v", text, fields["LOCKSTEP_STATE"])
		}
		_, entry, _ := strings.Cut(string(catalog), "-- "+id+"\nSubject: ")
		subject, _, _ := strings.Cut(entry, "\n")
		explained := run(t, w.source, "journalctl", "-q", "-x", "-n", "1", "MESSAGE_ID="+id)
		wanted := strings.ReplaceAll(subject, "@PAIR@", "data")
		if hook, ok := fields["LOCKSTEP_HOOK"].(string); ok {
			wanted = strings.ReplaceAll(wanted, "@LOCKSTEP_HOOK@", hook)
		}
		contains(t, explained, "Subject: "+wanted, "Defined-By: lockstep")
		if strings.Contains(explained, "@PAIR@") || strings.Contains(explained, "@LOCKSTEP_") {
			t.Errorf("journalctl leaves a variable:\n%s", explained)
		}
		t.Logf("%s", explained)
	}
	// The runbook's mishaps have brought these about.
	for _, text := range []string{"started", "stopped", "watching", "the agent cannot start, and a restart cannot help", "state: in step", "state: degraded", "state: held",
		"state: paused", "state: failing", "deletions are held", "held deletions were approved", "nothing can be sent; trying again", "the backup takes files again",
		"a path could not be sent; it is tried again by itself", "full batch done", "another directory was approved as the source"} {
		if !found[text] {
			t.Errorf("the journal has no message %q", text)
		}
	}
}
