// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

// migration is docs/migration.md with two hosts on which it is done.
type migration struct {
	*controlNode
	text string
	dir  string // of whoever runs Terraform or Ansible
}

// section gives the blocks below one heading.
func (m *migration) section(t *testing.T, name string) [][]string {
	t.Helper()
	at := regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatchIndex(m.text, -1) // in a block, # begins a comment
	for i, h := range at {
		if m.text[h[2]:h[3]] != name {
			continue
		}
		end := len(m.text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		return block.FindAllStringSubmatch(m.text[h[1]:end], -1)
	}
	t.Fatalf("docs/migration.md has no section %q", name)
	return nil
}

// file gives the first block of a language below a heading.
func (m *migration) file(t *testing.T, section, lang string) string {
	t.Helper()
	for _, b := range m.section(t, section) {
		if b[1] == lang {
			return b[3]
		}
	}
	t.Fatalf("docs/migration.md: %q has no block of %s", section, lang)
	return ""
}

// follow does literally what a section says.
func (m *migration) follow(t *testing.T, section string) (out string) {
	t.Helper()
	done := 0
	for _, b := range m.section(t, section) {
		where, body := strings.TrimSpace(b[2]), b[3]
		if b[1] != "sh" || where == "" {
			continue
		}
		done++
		switch where {
		case "copy":
			m.copy(t, body, m.dir)
		case "control":
			cmd := m.Command(t.Context(), "sh", "-ec", body)
			cmd.Dir = m.dir
			cmd.Env = append([]string{"TF_CLI_CONFIG_FILE=" + m.rc, "TF_IN_AUTOMATION=1", "TF_INPUT=0"}, m.env...)
			said, err := cmd.CombinedOutput()
			if out += string(said); err != nil {
				t.Fatalf("following %q: %v\n%s", section, err, said)
			}
		default:
			for _, h := range m.on(t, where) {
				said, err := h.Shell(t.Context(), "set -e\ncd /root\n"+body)
				if out += said; err != nil {
					t.Fatalf("%s: following %q: %v\n%s", h.Name, section, err, said)
				}
			}
		}
	}
	if done == 0 {
		t.Fatalf("docs/migration.md: nothing to do in %q", section)
	}
	return out
}

// sersyncWorks waits until what is written on the source arrives through sersync.
func (m *migration) sersyncWorks(t *testing.T, name string) {
	t.Helper()
	shell(t, m.source, `echo "$1" >"/data/$1"`, name)
	eventually(t, 30*time.Second, func() error {
		_, err := os.Stat(m.backup.Path("/nfsbackup/" + name))
		return err
	})
}

// taken checks that lockstep has taken over: what is written arrives at once, with its owner, and both trees are equal.
func (m *migration) taken(t *testing.T, name string) {
	t.Helper()
	shell(t, m.source, `echo "$1" >"/data/$1" && chown 1000:1000 "/data/$1" && rm -f /data/sub/gone`, name)
	contains(t, m.follow(t, "5. See that it is equal"), "in step")
	hidden := func(path string, dir bool) bool { return !dir && strings.HasPrefix(filepath.Base(path), ".") }
	diffs, err := rsynctest.Compare(m.source.Path("/data"), m.backup.Path("/nfsbackup"), rsynctest.CompareOptions{Ignore: hidden})
	if err != nil || len(diffs) > 0 {
		t.Fatalf("the trees differ: %v %v", err, diffs)
	}
	if out, err := m.source.Run(t.Context(), "pidof", "-x", "sersync"); err == nil {
		t.Errorf("sersync runs still: %s", out)
	}
}

// From a host as the tutorials have it to lockstep and back, three times: by hand, by Terraform and by Ansible. The commands
// are those of docs/migration.md.
func TestMigrationFromSersyncAsDocumented(t *testing.T) {
	deb, _ := packages(t, "0.1.0")
	text, err := os.ReadFile(filepath.Join(repository, "docs", "migration.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := &migration{controlNode: newControlNode(t), text: string(text), dir: t.TempDir()}

	// Where it starts.
	standIn, err := os.ReadFile(filepath.Join(repository, "cmd", "lockstep", "testdata", "sersync-stand-in.sh"))
	if err != nil {
		t.Fatal(err)
	}
	shell(t, m.source, `mkdir -p /usr/local/sersync /data/sub && echo one >/data/sub/file && echo x >/data/sub/gone`)
	shell(t, m.backup, `useradd -r -M -s /usr/sbin/nologin rsync && install -d -o rsync -g rsync /nfsbackup`)
	for _, f := range []struct {
		host *lab.Host
		path string
		text string
		mode os.FileMode
	}{
		{m.source, "/usr/local/sersync/sersync", string(standIn), 0o755},
		{m.source, "/usr/local/sersync/confxml.xml", m.file(t, "Where it starts", "xml"), 0o644},
		{m.source, "/etc/rsync.password", "oldboy\n", 0o600},
		{m.source, "/etc/rc.local", "#!/bin/sh\n# starts sersync\n" + m.file(t, "Where it starts", "text"), 0o755},
		{m.backup, "/etc/rsyncd.conf", m.file(t, "Where it starts", "ini"), 0o644},
		{m.backup, "/etc/rsync.password", "rsync_backup:oldboy\n", 0o600},
	} {
		if err := f.host.WriteFile(t.Context(), f.path, []byte(f.text), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range m.Hosts() {
		if err := h.CopyTo(t.Context(), deb, "/root/"+filepath.Base(deb)); err != nil {
			t.Fatal(err)
		}
	}
	run(t, m.backup, "systemctl", "enable", "--now", "rsync")
	run(t, m.source, "/etc/rc.local")
	m.sersyncWorks(t, "by-sersync")
	rc := shell(t, m.source, "cat /etc/rc.local")

	shell(t, m.source, `echo hidden >/data/.env`)

	m.follow(t, "1. Install lockstep beside sersync")
	m.follow(t, "2. Make the definition")
	before := tree(t, m.backup, "/nfsbackup")
	out := m.follow(t, "3. See what would change")
	contains(t, out, "Verdict: the same", `by filter "- .*"`, ".env")
	if diff := cmp.Diff(before, tree(t, m.backup, "/nfsbackup")); diff != "" {
		t.Errorf("the shadow proof changed the backup:\n%s", diff)
	}
	m.sersyncWorks(t, "still-by-sersync")

	m.follow(t, "4. The switch, by hand")
	m.taken(t, "by-hand")
	m.follow(t, "The way back")
	m.sersyncWorks(t, "back-after-hand")
	if now := shell(t, m.source, "cat /etc/rc.local"); now != rc {
		t.Errorf("the way back left /etc/rc.local as\n%s", now)
	}
	for _, h := range m.Hosts() {
		if out := shell(t, h, `find /etc/lockstep -type f; systemctl list-units --no-legend 'lockstep*.service'`); out != "" {
			t.Errorf("%s: the way back left\n%s", h.Name, out)
		}
	}

	t.Run("terraform", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(m.dir, "main.tf"), []byte(m.file(t, "The switch by Terraform", "hcl")), 0o644); err != nil {
			t.Fatal(err)
		}
		override := "provider \"lockstep\" {\n  ssh = { config_file = \"" + m.SSHConfigFile() + "\" }\n}\n"
		if err := os.WriteFile(filepath.Join(m.dir, "lab_override.tf"), []byte(override), 0o644); err != nil {
			t.Fatal(err)
		}
		contains(t, m.follow(t, "The switch by Terraform"), "1 added, 0 changed, 0 destroyed")
		m.taken(t, "by-terraform")
		m.world.dir = m.dir
		m.mustTerraform(t, "destroy", "-auto-approve")
		m.back(t)
		m.sersyncWorks(t, "back-after-terraform")
	})
	t.Run("ansible", func(t *testing.T) {
		inventory, err := os.ReadFile(filepath.Join(examples, "inventory.ini"))
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string]string{"inventory.ini": string(inventory), "playbook.yml": m.file(t, "The switch by Ansible", "yaml")} {
			if err := os.WriteFile(filepath.Join(m.dir, name), []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		contains(t, m.follow(t, "The switch by Ansible"), "sersync is replaced. These files still mention it: /etc/rc.local")
		m.taken(t, "by-ansible")
		// What is imported as tasks can be played as it is, by who has the backup host under that name.
		tasks := run(t, m.source, "lockstep", "import", "sersync", "/usr/local/sersync/confxml.xml.before-lockstep",
			"--source-host", "nfs01", "--backup-path", "nfsbackup=/nfsbackup", "--as", "ansible")
		var play strings.Builder
		play.WriteString("- hosts: nfs01\n  become: true\n  gather_facts: false\n  tasks:\n")
		for line := range strings.Lines(tasks) {
			play.WriteString("    " + line)
		}
		for name, data := range map[string]string{"tasks.ini": string(inventory) + "\n[more]\n172.16.1.41\n", "tasks.yml": play.String()} {
			if err := os.WriteFile(filepath.Join(m.dir, name), []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []string{changed, ok} { // the role has written the name of the inventory, not the address
			out, err := m.command(t, "ansible-playbook", "-i", filepath.Join(m.dir, "tasks.ini"), filepath.Join(m.dir, "tasks.yml")).CombinedOutput()
			played{string(out), err}.is(t, "nfs01", want)
		}
		m.taken(t, "by-tasks")
		m.follow(t, "6. Clean up")
		shell(t, m.source, "lockstep wait nfsbackup")
	})
}

// back is the way back of whoever has let Terraform destroy the pair: all of it but the two `lockstep destroy`.
func (m *migration) back(t *testing.T) {
	t.Helper()
	byName := map[string]*lab.Host{"source": m.source, "backup": m.backup}
	for _, b := range m.section(t, "The way back") {
		script := regexp.MustCompile(`(?m)^lockstep destroy .*$`).ReplaceAllString(b[3], "")
		if h := byName[strings.TrimSpace(b[2])]; h != nil {
			shell(t, h, "set -e\ncd /root\n"+script)
		}
	}
}
