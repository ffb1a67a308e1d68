// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
)

// The hosts are reached as the operator, who becomes root by sudo; no test logs in as root. Modules of Ansible's
// own need a Python, and those of lockstep.replication do not.
const (
	examples     = repository + "/examples/ansible"
	noPython     = "ansible_python_interpreter=/nonexistent"
	withPassword = "a password of our own, 4711"
)

// controlNode is an Ansible on the lab's link, with the collection as a release has it: built and installed offline.
type controlNode struct {
	*world
	home string
	env  []string
}

func newControlNode(t *testing.T) *controlNode {
	t.Helper()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run this: ansible-playbook is not in PATH")
		}
		t.Skip("ansible-playbook is not in PATH\nhint: apt-get install ansible-core")
	}
	w := newWorld(t)
	home := t.TempDir()
	c := &controlNode{world: w, home: home, env: []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C.UTF-8", "ANSIBLE_NOCOLOR=1", "ANSIBLE_PIPELINING=1",
		"ANSIBLE_COLLECTIONS_PATH=" + filepath.Join(home, "collections"),
		// A kept connection would hide a host that is gone, and outlive the test.
		"ANSIBLE_SSH_ARGS=-F " + w.SSHConfigFile() + " -o ControlMaster=no -o ConnectTimeout=3",
	}}
	collection, err := filepath.Abs(filepath.Join(repository, "ansible/ansible_collections/lockstep/replication"))
	if err != nil {
		t.Fatal(err)
	}
	c.must(t, "ansible-galaxy", "collection", "build", "--output-path", home, collection)
	built, err := filepath.Glob(filepath.Join(home, "lockstep-replication-*.tar.gz"))
	if err != nil || len(built) != 1 {
		t.Fatalf("ansible-galaxy collection build made %v, %v", built, err)
	}
	c.must(t, "ansible-galaxy", "collection", "install", built[0], "--offline", "-p", filepath.Join(home, "collections"))
	return c
}

// installed is a control node whose hosts have lockstep, as the role installs it.
func installed(t *testing.T) *controlNode {
	t.Helper()
	c := newControlNode(t)
	c.play(t, "install.yml", binaryPlay(t, "")).is(t, "nfs01", changed)
	return c
}

// binaryPlay is a play with the role, which copies the binary of this build to the hosts.
func binaryPlay(t *testing.T, pairs string) string {
	t.Helper()
	binary, err := filepath.Abs(filepath.Join(repository, "build/lockstep"))
	if err != nil {
		t.Fatal(err)
	}
	if pairs == "" {
		pairs = "[]"
	}
	return fmt.Sprintf(`
- hosts: all
  become: true
  gather_facts: false
  roles:
    - role: lockstep.replication.pair
      lockstep_install_from: binary
      lockstep_file: %s
      lockstep_pairs: %s
`, binary, pairs)
}

func (c *controlNode) command(t *testing.T, argv ...string) *exec.Cmd {
	cmd := c.Command(t.Context(), argv...)
	cmd.Dir = c.home
	cmd.Env = c.env
	return cmd
}

func (c *controlNode) must(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := c.command(t, argv...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// played is what ansible-playbook said.
type played struct {
	out string
	err error
}

// play writes a playbook and runs it with the inventory of the examples.
func (c *controlNode) play(t *testing.T, name, playbook string, args ...string) played {
	t.Helper()
	file := filepath.Join(c.home, name)
	if err := os.WriteFile(file, []byte(playbook), 0o600); err != nil {
		t.Fatal(err)
	}
	return c.playFile(t, file, args...)
}

func (c *controlNode) playFile(t *testing.T, file string, args ...string) played {
	t.Helper()
	inventory, err := filepath.Abs(filepath.Join(examples, "inventory.ini"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.command(t, append([]string{"ansible-playbook", "-i", inventory, file}, args...)...).CombinedOutput()
	return played{string(out), err}
}

// site runs the playbook of the examples.
func (c *controlNode) site(t *testing.T, args ...string) played {
	t.Helper()
	file, err := filepath.Abs(filepath.Join(examples, "site.yml"))
	if err != nil {
		t.Fatal(err)
	}
	return c.playFile(t, file, append(args, "-e", noPython)...)
}

// What a play did to a host.
const (
	ok      = "ok"
	changed = "changed"
	failed  = "failed"
	lost    = "unreachable"
)

var recap = regexp.MustCompile(`(?m)^(\S+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+)`)

// is fails the test unless the recap tells this, and no more, of the host.
func (p played) is(t *testing.T, host, want string) played {
	t.Helper()
	for _, line := range recap.FindAllStringSubmatch(p.out, -1) {
		if line[1] != host {
			continue
		}
		got := ok
		for i, what := range []string{changed, lost, failed} {
			if n, err := strconv.Atoi(line[3+i]); err == nil && n > 0 {
				got = what
			}
		}
		if got != want {
			t.Fatalf("%s is %s, want %s:\n%s", host, got, want, p.out)
		}
		if bad := want == failed || want == lost; bad != (p.err != nil) {
			t.Fatalf("%s is %s, and ansible-playbook ended with %v", host, got, p.err)
		}
		return p
	}
	t.Fatalf("the recap has no %s (%v):\n%s", host, p.err, p.out)
	return p
}

// has fails the test for each text that was not said.
func (p played) has(t *testing.T, texts ...string) played {
	t.Helper()
	contains(t, p.out, texts...)
	return p
}

// quiet fails the test if anything is shown as a difference.
func (p played) quiet(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(p.out) {
		if strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "+++ ") || strings.HasPrefix(line, "@@") {
			t.Fatalf("a difference is shown where nothing differs:\n%s", p.out)
		}
	}
}

// diffs is the part of the output that tells differences.
func (p played) diffs() string {
	_, rest, _ := strings.Cut(p.out, "TASK [Provision both hosts]")
	_, rest, _ = strings.Cut(rest, "\n")
	diff, _, _ := strings.Cut(rest, "\nchanged: ")
	return diff
}

// bare is what a host has of lockstep but the program; "" when that is nothing.
func bare(t *testing.T, h *lab.Host) string {
	t.Helper()
	return shell(t, h, `ls -d /etc/lockstep /var/lib/lockstep /etc/systemd/system/*lockstep* 2>/dev/null || true; getent passwd lockstep || true; systemctl list-units --all --no-legend 'lockstep*.service'`)
}

// One playbook makes both hosts so, finds nothing to do after that, finds and heals what was changed by hand on
// either host, and takes everything away but the data. What check mode foretells is what is then done.
func TestAnsibleForetellsMakesHealsAndRemovesAPair(t *testing.T) {
	c := newControlNode(t)

	t.Run("check mode before anything is installed changes nothing and says what it cannot know", func(t *testing.T) {
		c.play(t, "before.yml", binaryPlay(t, "[{name: data, source: {host: nfs01, path: /data}, backup: {host: backup, path: /backup/nfs01}}]"), "--check").
			is(t, "nfs01", changed).has(t, "source host nfs01 has no lockstep yet", "backup host backup has no lockstep yet")
		for _, h := range c.Hosts() {
			if left := bare(t, h); left != "" {
				t.Errorf("%s has %s", h.Name, left)
			}
			if out, err := h.Run(t.Context(), "ls", "/usr/local/bin/lockstep"); err == nil {
				t.Errorf("%s has %s", h.Name, out)
			}
		}
	})
	t.Run("without lockstep on the hosts it fails with the way to install it", func(t *testing.T) {
		c.site(t).is(t, "nfs01", failed).has(t, "source host nfs01: lockstep is not installed", "backup host backup: lockstep is not installed",
			"the role lockstep.replication.pair")
	})
	c.play(t, "install.yml", binaryPlay(t, "")).is(t, "nfs01", changed).is(t, "backup", changed)
	c.play(t, "install.yml", binaryPlay(t, "")).is(t, "nfs01", ok).is(t, "backup", ok)

	shell(t, c.source, `mkdir -p /data/sub && echo one >/data/sub/file && echo no >/data/x.tmp`)
	foretold := c.site(t, "--check", "--diff").is(t, "nfs01", changed).
		has(t, "+++ nfs01:/etc/lockstep/pairs/data.yaml", "nfs01:lockstep@data.service: start",
			"+++ backup:/etc/lockstep/rsyncd.d/data.conf", "+hosts allow = 172.16.1.31", "directory backup:/backup/nfs01")
	for _, h := range c.Hosts() {
		if left := bare(t, h); left != "" {
			t.Fatalf("check mode left on %s: %s", h.Name, left)
		}
	}
	made := c.site(t, "--diff").is(t, "nfs01", changed)
	if want := strings.Replace(made.diffs(), hostKeyDiff, "", 1); foretold.diffs() != want {
		t.Errorf("check mode foretold:\n%s\nand this was done:\n%s", foretold.diffs(), want)
	}
	c.arrived(t)
	c.site(t).is(t, "nfs01", ok)
	c.site(t, "--check", "--diff").is(t, "nfs01", ok).quiet(t)
	c.info(t, "in step True []")

	// What is changed by hand on each host, and how the plan shows it.
	for _, edit := range []struct{ name, source, sourceShown, backup, backupShown string }{
		{"the definition and the module",
			`sed -i 's/max_files: .*/max_files: 5/' /etc/lockstep/pairs/data.yaml`, "--- nfs01:/etc/lockstep/pairs/data.yaml",
			`sed -i 's/^hosts allow.*/hosts allow = */' /etc/lockstep/rsyncd.d/data.conf`, "-hosts allow = *"},
		{"the secrets",
			`chmod 644 /etc/lockstep/secrets/data`, "nfs01:/etc/lockstep/secrets/data: mode 0644",
			`sed -i '/^lockstep/s/:.*/:0123456789abcdef0123456789abcdef/' /etc/lockstep/secrets/data.secrets`, "+++ backup:/etc/lockstep/secrets/data.secrets"},
		{"the services",
			`systemctl disable --now lockstep@data`, "nfs01:lockstep@data.service: start",
			`systemctl stop lockstep-rsyncd`, "backup:lockstep-rsyncd.service: start"},
	} {
		t.Run("changed by hand: "+edit.name, func(t *testing.T) {
			shell(t, c.source, edit.source)
			shell(t, c.backup, edit.backup)
			c.site(t, "--check", "--diff").is(t, "nfs01", changed).has(t, edit.sourceShown, edit.backupShown)
			// That was only foretold, so it is still to be done.
			c.site(t, "--diff").is(t, "nfs01", changed).has(t, edit.sourceShown, edit.backupShown)
			c.site(t).is(t, "nfs01", ok)
			shell(t, c.source, `date +%N >>/data/sub/file`)
			c.arrived(t)
		})
	}

	foretold = c.site(t, "-e", "state=absent", "--check", "--diff").is(t, "nfs01", changed)
	c.arrived(t)
	removed := c.site(t, "-e", "state=absent", "--diff").is(t, "nfs01", changed)
	if foretold.diffs() != removed.diffs() {
		t.Errorf("check mode foretold:\n%s\nand this was done:\n%s", foretold.diffs(), removed.diffs())
	}
	c.site(t, "-e", "state=absent").is(t, "nfs01", ok)
	for _, h := range c.Hosts() {
		if left := bare(t, h); left != "" {
			t.Errorf("left on %s: %s", h.Name, left)
		}
	}
	for _, file := range []struct {
		host *lab.Host
		path string
	}{{c.source, "/data/sub/file"}, {c.backup, "/backup/nfs01/sub/file"}} {
		if got := run(t, file.host, "head", "-n", "1", file.path); got != "one\n" {
			t.Errorf("%s on %s is %q", file.path, file.host.Name, got)
		}
	}
}

// hostKeyDiff tells that the source host made its key, which a plan does not know: it needs none.
const hostKeyDiff = "--- /dev/null\n+++ nfs01:/var/lib/lockstep/host.key\n+(redacted)\n"

// arrived waits for the agent, and then the backup must have the source's files but those that site.yml excludes.
func (c *controlNode) arrived(t *testing.T) {
	t.Helper()
	if out, err := c.source.Run(t.Context(), "lockstep", "wait", "--timeout", "30s", "data"); err != nil {
		t.Fatalf("lockstep wait: %v\n%s", err, out)
	}
	sums := func(h *lab.Host, dir string) string {
		return shell(t, h, `cd "$1" && find . -type f ! -name '*.tmp' -exec sha256sum {} + | sort`, dir)
	}
	if on, there := sums(c.source, sourceDir), sums(c.backup, backupDir); on != there || on == "" {
		t.Fatalf("the source has\n%s\nand the backup\n%s", on, there)
	}
	if out, err := c.backup.Run(t.Context(), "ls", backupDir+"/x.tmp"); err == nil {
		t.Fatalf("an excluded file is on the backup: %s", out)
	}
}

func (c *controlNode) info(t *testing.T, want string) {
	t.Helper()
	c.play(t, "info.yml", `
- hosts: nfs01
  become: true
  gather_facts: false
  tasks:
    - lockstep.replication.pair_info: { name: data }
      register: data
    - ansible.builtin.debug: { msg: "{{ data.state }} {{ data.in_step }} {{ data.differences }}" }
`, "-e", noPython).is(t, "nfs01", ok).has(t, want)
}

// Neither the password that lockstep makes, nor a new one, nor one from a vault is in what Ansible says or leaves
// behind, on the control node or on the hosts, however much it is told to say and to leave.
func TestAnsibleShowsThePasswordNowhere(t *testing.T) {
	c := installed(t)
	vault := filepath.Join(c.home, "vault-password")
	if err := os.WriteFile(vault, []byte("of the vault\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	encrypt := c.command(t, "ansible-vault", "encrypt_string", "--vault-password-file", vault, "--stdin-name", "vaulted")
	encrypt.Stdin = strings.NewReader(withPassword)
	var complaints bytes.Buffer
	encrypt.Stderr = &complaints
	encrypted, err := encrypt.Output()
	if err != nil {
		t.Fatalf("ansible-vault: %v\n%s", err, &complaints)
	}
	if err := os.WriteFile(filepath.Join(c.home, "secrets.yml"), encrypted, 0o600); err != nil {
		t.Fatal(err)
	}
	c.env = append(c.env, "ANSIBLE_DEBUG=1", "ANSIBLE_KEEP_REMOTE_FILES=1", "ANSIBLE_LOG_PATH="+filepath.Join(c.home, "ansible.log"))
	stop := map[string]func() []byte{}
	for _, h := range c.Hosts() {
		stop[h.Name] = spy(t, h)
	}
	var said bytes.Buffer
	note := func(p played) {
		if p.err != nil {
			t.Fatalf("%v\n%s", p.err, p.out)
		}
		said.WriteString(p.out)
	}

	shell(t, c.source, `echo one >/data/file`)
	note(c.site(t, "-vvvvv", "--diff"))
	secrets := passwords(t, c.world)
	c.arrived(t)

	const rotate = `
- hosts: nfs01
  become: true
  gather_facts: false
  tasks:
    - name: Rotate
      lockstep.replication.pair:
        name: data
        source: { host: nfs01, path: /data }
        backup: { host: backup, path: /backup/nfs01 }
        exclude: ["*.tmp", .cache/]
        rotate: true
`
	note(c.play(t, "rotate.yml", rotate, "-vvvvv", "--diff"))
	rotated := passwords(t, c.world)
	if rotated[0] == secrets[0] {
		t.Error("the password is the same after a rotation")
	}
	secrets = append(secrets, rotated...)

	given := strings.Replace(rotate, "rotate: true", `password: "{{ vaulted }}"`, 1)
	note(c.play(t, "given.yml", given, "-e", "@secrets.yml", "--vault-password-file", vault, "-vvvvv", "--diff"))
	if now := passwords(t, c.world); !contain(now, withPassword) {
		t.Fatal("the password from the vault is not in use")
	}
	c.play(t, "given.yml", given, "-e", "@secrets.yml", "--vault-password-file", vault).is(t, "nfs01", ok)
	// The role's list of pairs is looped over, and Ansible prints what it loops over.
	pairs := `[{name: data, source: {host: nfs01, path: /data}, backup: {host: backup, path: /backup/nfs01}, exclude: ["*.tmp", .cache/], password: "{{ vaulted }}"}]`
	note(c.play(t, "role.yml", binaryPlay(t, pairs), "-e", "@secrets.yml", "--vault-password-file", vault, "-vvvvv", "--diff"))
	secrets = append(secrets, withPassword)
	c.arrived(t)

	search(t, "what Ansible said", said.Bytes(), secrets)
	for _, h := range c.Hosts() {
		search(t, h.Name+": arguments and environments of all processes", stop[h.Name](), secrets)
		search(t, h.Name+": the journal", []byte(run(t, h, "journalctl", "--no-pager", "-o", "export", "-a")), secrets)
		kept := shell(t, h, `find /home /root /tmp /var/tmp -type f -exec cat {} +`)
		search(t, h.Name+": files of Ansible", []byte(kept), secrets)
	}
	if kept := shell(t, c.source, `find /home /root -path '*/.ansible/tmp/*' -type f`); kept == "" {
		t.Error("ANSIBLE_KEEP_REMOTE_FILES kept nothing, so there was nothing to search")
	}
	err = filepath.WalkDir(c.home, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil {
			search(t, path, data, secrets)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(said.Bytes(), []byte("_low_level_execute_command() done")) {
		t.Error("ANSIBLE_DEBUG said nothing, so there was nothing to search")
	}
}

// Either front end finds nothing to do on a pair that the other made from the same definition.
func TestAnsibleAndTerraformTakeOverFromEachOther(t *testing.T) {
	c := installed(t)
	shell(t, c.source, `mkdir -p /data/sub && echo one >/data/sub/file && echo no >/data/x.tmp`)
	const state = `cat /etc/lockstep/pairs/data.yaml /etc/lockstep/secrets/data* /etc/lockstep/rsyncd.d/data.conf 2>/dev/null || true; systemctl show -p MainPID --value 'lockstep@data' lockstep-rsyncd`
	hosts := func() string { return shell(t, c.source, state) + shell(t, c.backup, state) }
	definition := strings.Replace(pairHCL, "  backup =", "  exclude = [\"*.tmp\", \".cache/\"]\n  backup =", 1)

	c.site(t).is(t, "nfs01", changed)
	c.arrived(t)
	asMade := hosts()
	c.configure(t, definition)
	c.mustTerraform(t, "import", "lockstep_pair.data", "nfs01/data")
	c.noChanges(t)
	c.mustTerraform(t, "apply", "-auto-approve")
	if now := hosts(); now != asMade {
		t.Errorf("terraform changed the hosts from\n%s\nto\n%s", asMade, now)
	}
	c.site(t, "--check", "--diff").is(t, "nfs01", ok).quiet(t)
	c.site(t).is(t, "nfs01", ok)

	c.mustTerraform(t, "destroy", "-auto-approve")
	c.mustTerraform(t, "apply", "-auto-approve")
	asMade = hosts()
	// What Terraform made may not need the program that the role installed; the next play must not mind.
	c.play(t, "install.yml", binaryPlay(t, "")).is(t, "nfs01", ok)
	c.site(t, "--check", "--diff").is(t, "nfs01", ok).quiet(t)
	c.site(t).is(t, "nfs01", ok)
	if now := hosts(); now != asMade {
		t.Errorf("ansible changed the hosts from\n%s\nto\n%s", asMade, now)
	}
	c.noChanges(t)
	c.site(t, "-e", "state=absent").is(t, "nfs01", changed)
	if _, changes := c.plan(t); !changes {
		t.Error("terraform does not see that ansible removed the pair")
	}
}

// A backup host that can't be reached is named; the source host stays in the play, and nothing is changed on it.
func TestAnsibleNamesAHostThatCannotBeReachedAndChangesNothing(t *testing.T) {
	c := installed(t)
	if err := c.backup.CutOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.site(t).is(t, "nfs01", failed).has(t, "backup host backup: unreachable: ", "nothing was changed")
	c.site(t, "-e", "state=absent").is(t, "nfs01", failed).has(t, "backup host backup: unreachable: ")
	if left := bare(t, c.source); left != "" {
		t.Errorf("the source host has %s", left)
	}
	if err := c.backup.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.source.CutOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	// From the control node, both hosts of the pair are others.
	c.play(t, "from-afar.yml", `
- hosts: backup
  become: true
  gather_facts: false
  tasks:
    - name: Provision both hosts
      lockstep.replication.pair:
        name: data
        source: { host: nfs01, path: /data }
        backup: { host: backup, path: /backup/nfs01 }
`).is(t, "backup", failed).has(t, "source host nfs01: unreachable: ", "nothing was changed")
	c.site(t).is(t, "nfs01", lost) // the play's own host
	if err := c.source.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := bare(t, c.backup); left != "" {
		t.Errorf("the backup host has %s", left)
	}

	// Problems of both hosts are told at once.
	c.play(t, "problems.yml", `
- hosts: nfs01
  become: true
  gather_facts: false
  tasks:
    - name: Provision both hosts
      lockstep.replication.pair:
        name: data
        source: { host: nfs01, path: /nowhere }
        backup: { host: backup, path: /backup/nfs01, uid: nobody-of-this-name }
`).is(t, "nfs01", failed).has(t, "source host nfs01: source.path: /nowhere does not exist", "backup host backup: backup.uid: ", "hint: ", "nothing was changed")
	for _, h := range c.Hosts() {
		if left := bare(t, h); left != "" {
			t.Errorf("%s has %s", h.Name, left)
		}
	}
}

// confxml is a confxml.xml as tutorials have it; the remote's directory is known to rsyncd.conf alone.
const confxml = `<?xml version="1.0" encoding="ISO-8859-1"?>
<head version="2.5">
    <host hostip="localhost" port="8008"></host>
    <debug start="false"/>
    <fileSystem xfs="false"/>
    <filter start="false"><exclude expression="(.*)\.svn"></exclude></filter>
    <inotify>
	<delete start="true"/><createFolder start="true"/><createFile start="false"/><closeWrite start="true"/>
	<moveFrom start="true"/><moveTo start="true"/><attrib start="false"/><modify start="false"/>
    </inotify>
    <sersync>
	<localpath watch="/data"><remote ip="172.16.1.41" name="data"/></localpath>
	<rsync>
	    <commonParams params="-az"/>
	    <auth start="true" users="rsync_backup" passwordfile="/etc/rsync.password"/>
	    <userDefinedPort start="false" port="874"/><timeout start="true" time="100"/><ssh start="false"/>
	</rsync>
	<failLog path="/usr/local/sersync/rsync_fail_log.sh" timeToExecute="60"/>
	<crontab start="false" schedule="600"><crontabfilter start="false"></crontabfilter></crontab>
	<plugin start="false" name="command"/>
    </sersync>
</head>
`

// The role takes over from a sersync that runs, and puts it back when it can't.
func TestAnsibleTakesOverFromSersyncOrPutsItBack(t *testing.T) {
	c := installed(t)
	put := func(h *lab.Host, path, text string, mode fs.FileMode) {
		t.Helper()
		if err := h.WriteFile(t.Context(), path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	shell(t, c.source, `mkdir -p /usr/local/sersync /data/sub && echo one >/data/sub/file`)
	put(c.source, "/usr/local/sersync/confxml.xml", confxml, 0o644)
	// It stands for sersync: a process of that name, with its arguments, that goes on until it is ended.
	shell(t, c.source, `cp /bin/dash /usr/local/sersync/sersync2`)
	put(c.source, "/usr/local/sersync/-d", "while :; do sleep 1; done\n", 0o644)
	start := `cd /usr/local/sersync && setsid ./sersync2 -- -d -r -o confxml.xml </dev/null >/dev/null 2>&1 &`
	shell(t, c.source, start)
	shell(t, c.backup, `mkdir -p /backup/nfs01 && printf 'uid = daemon\ngid = daemon\n[data]\n  comment = sersync\n  path = /backup/nfs01\n  read only = no\n' >/etc/rsyncd.conf && systemctl enable --now rsync`)
	sersync := func() string {
		return strings.TrimSpace(shell(t, c.source, `cat /proc/[0-9]*/comm 2>/dev/null | grep -c '^sersync2$' || true`))
	}
	old := func() string {
		return sersync() + " " + shell(t, c.source, `cd /usr/local/sersync && ls`) + shell(t, c.backup, `systemctl is-active rsync; ls /etc/rsyncd.conf*`)
	}
	before := old()
	if !strings.HasPrefix(before, "1 ") {
		t.Fatalf("%s processes are called sersync2", before)
	}
	migrate := func(vars string) string {
		return "- hosts: nfs01\n  become: true\n  gather_facts: false\n  roles:\n    - role: lockstep.replication.migrate_sersync\n" +
			"      lockstep_install_from: nothing\n" + vars
	}

	// The daemon that sersync sends to holds the port and exports the directory, and it may have other users.
	c.play(t, "refused.yml", migrate("")).is(t, "nfs01", failed).has(t, "port 873 is taken by", "is exported already")
	if now := old(); now != before {
		t.Fatalf("what was refused left\n%s\nof\n%s", now, before)
	}

	const retire = "      migrate_sersync_retire_rsyncd: true\n"
	c.play(t, "check.yml", migrate(retire), "--check", "--diff").is(t, "nfs01", changed).
		has(t, "inotify/delete: kept as delete.enabled", "+++ nfs01:/etc/lockstep/pairs/data.yaml", "would stop", "sersync2 -- -d -r -o confxml.xml", "and rsync.service on backup")
	if now := old(); now != before {
		t.Fatalf("check mode left\n%s\nof\n%s", now, before)
	}

	// Something that only shows when the daemon of lockstep starts.
	shell(t, c.backup, `mkdir -p /etc/systemd/system/lockstep-rsyncd.service.d && printf '[Service]\nExecStartPre=/bin/false\n' >/etc/systemd/system/lockstep-rsyncd.service.d/own.conf && systemctl daemon-reload`)
	// Anybody can call a process sersync, and give it arguments that mean something to a shell.
	shell(t, c.source, `mkdir /tmp/own && cp /bin/dash /tmp/own/sersync && cd /tmp/own && setsid setpriv --reuid nobody --regid nogroup --clear-groups `+
		`./sersync -c 'while :; do sleep 1; done' x -o /usr/local/sersync/confxml.xml '& touch /root/taken #' </dev/null >/dev/null 2>&1 &`)
	c.play(t, "fails.yml", migrate(retire)).is(t, "nfs01", failed).has(t, "sersync runs again as before", "lockstep-rsyncd.service")
	eventually(t, 10*time.Second, func() error {
		if now := old(); now != before {
			return fmt.Errorf("a failed migration left\n%s\nof\n%s", now, before)
		}
		return nil
	})
	if who := shell(t, c.source, `for d in /proc/[0-9]*; do [ "$(cat $d/comm)" != sersync ] || stat -c %U $d; done; ls /root/taken || true`); who != "nobody\n" {
		t.Errorf("the process of nobody was started again as %s", who)
	}
	if _, err := c.source.Run(t.Context(), "systemctl", "is-active", "lockstep@data"); err == nil {
		t.Error("an agent runs beside sersync")
	}
	if owner := strings.TrimSpace(shell(t, c.backup, `stat -c %U:%G /backup/nfs01`)); owner != "daemon:daemon" {
		t.Errorf("the old daemon cannot write into a directory of %s", owner)
	}
	shell(t, c.backup, `rm -r /etc/systemd/system/lockstep-rsyncd.service.d && systemctl daemon-reload && systemctl reset-failed`)

	shell(t, c.source, `echo '@reboot root /usr/local/sersync/sersync2 -d' >/etc/cron.d/check_sersync`)
	c.play(t, "migrate.yml", migrate(retire)).is(t, "nfs01", changed).has(t, "/etc/cron.d/check_sersync")
	if got := sersync(); got != "0" {
		t.Errorf("%s processes are called sersync2", got)
	}
	shell(t, c.source, `test ! -e /usr/local/sersync/confxml.xml && test -e /usr/local/sersync/confxml.xml.before-lockstep`)
	shell(t, c.backup, `test ! -e /etc/rsyncd.conf && test -e /etc/rsyncd.conf.before-lockstep && ! systemctl is-enabled rsync`)
	c.arrived(t)
	c.info(t, "in step True []")
	c.play(t, "migrate.yml", migrate(retire)).is(t, "nfs01", ok)
}

// The role installs the deb on both hosts, whatever the strategy, upgrades it, and the pair runs from it.
func TestAnsibleInstallsThePackageOnBothHosts(t *testing.T) {
	need(t)
	old, _ := packages(t, "0.0.1")
	c := newControlNode(t)
	play := func(deb string) string {
		return fmt.Sprintf(`
- hosts: all
  become: true
  gather_facts: false
  strategy: free
  roles:
    - role: lockstep.replication.pair
      lockstep_install_from: file
      lockstep_file: %s
      lockstep_pairs:
        - name: data
          source: { host: nfs01, path: /data }
          backup: { host: backup, path: /backup/nfs01 }
          exclude: ["*.tmp"]
`, deb)
	}
	shell(t, c.source, `mkdir -p /data/sub && echo one >/data/sub/file && echo no >/data/x.tmp`)
	c.play(t, "package.yml", play(old), "--check").is(t, "nfs01", changed).is(t, "backup", changed)
	// The backup host is not in this play, and the pair needs lockstep on it all the same.
	c.play(t, "package.yml", play(old), "--limit", "nfs01").is(t, "nfs01", changed)
	c.play(t, "package.yml", play(old)).is(t, "nfs01", ok).is(t, "backup", ok)
	c.play(t, "package.yml", play(old), "--check", "--diff").is(t, "nfs01", ok).is(t, "backup", ok).quiet(t)
	for _, h := range c.Hosts() {
		if got := run(t, h, "dpkg-query", "-W", "-f", "${Status}", "lockstep"); got != "install ok installed" {
			t.Errorf("%s: the package is %s", h.Name, got)
		}
		if got := run(t, h, "sh", "-c", "command -v lockstep"); got != "/usr/bin/lockstep\n" {
			t.Errorf("%s runs %s", h.Name, got)
		}
	}
	c.arrived(t)

	// A package that was removed by hand is found.
	run(t, c.backup, "dpkg", "--remove", "lockstep")
	c.play(t, "package.yml", play(old), "--check", "--limit", "backup").is(t, "backup", changed)
	c.play(t, "package.yml", play(old)).is(t, "backup", changed)
	c.arrived(t)

	newer, _ := packages(t, "0.0.2")
	c.play(t, "package.yml", play(newer), "--check").is(t, "nfs01", changed).is(t, "backup", changed)
	c.play(t, "package.yml", play(newer)).is(t, "nfs01", changed).is(t, "backup", changed)
	c.play(t, "package.yml", play(newer)).is(t, "nfs01", ok).is(t, "backup", ok)
	for _, h := range c.Hosts() {
		if got := run(t, h, "lockstep", "version"); !strings.HasPrefix(got, "lockstep 0.0.2") {
			t.Errorf("%s has %s", h.Name, got)
		}
	}
	shell(t, c.source, `echo two >>/data/sub/file`)
	c.arrived(t)
}

// The role adds the repository that it is told of, with its key, and installs from it on both hosts.
func TestAnsibleInstallsFromARepositoryOnBothHosts(t *testing.T) {
	need(t)
	deb, _ := packages(t, "0.0.1")
	c := newControlNode(t)
	fields, err := exec.CommandContext(t.Context(), "dpkg-deb", "--field", deb).Output()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	index := fmt.Sprintf("%s\nFilename: ./lockstep.deb\nSize: %d\nSHA256: %x\n", strings.TrimSpace(string(fields)), len(data), sha256.Sum256(data))
	for _, h := range c.Hosts() {
		// The sources of the distribution are out of reach.
		shell(t, h, `mkdir -p /srv/repository; rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*`)
		for path, text := range map[string][]byte{"/srv/repository/lockstep.deb": data, "/srv/repository/Packages": []byte(index)} {
			if err := h.WriteFile(t.Context(), path, text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	key := filepath.Join(c.home, "key.asc")
	if err := os.WriteFile(key, []byte("the key\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	play := fmt.Sprintf(`
- hosts: nfs01
  become: true
  gather_facts: false
  roles:
    - role: lockstep.replication.pair
      lockstep_apt_key: %s
      lockstep_apt_source: |
        Types: deb
        URIs: file:/srv/repository
        Suites: ./
        Trusted: yes
      lockstep_pairs:
        - name: data
          source: { host: nfs01, path: /data }
          backup: { host: backup, path: /backup/nfs01 }
          exclude: ["*.tmp"]
`, key)
	shell(t, c.source, `mkdir -p /data/sub && echo one >/data/sub/file`)
	c.play(t, "repository.yml", play, "--check").is(t, "nfs01", changed)
	for _, h := range c.Hosts() {
		if got := shell(t, h, `ls /etc/apt/keyrings/lockstep.asc /etc/apt/sources.list.d/lockstep.sources /usr/bin/lockstep 2>/dev/null || true`); got != "" {
			t.Errorf("%s: check mode made %s", h.Name, got)
		}
	}
	c.play(t, "repository.yml", play).is(t, "nfs01", changed)
	c.play(t, "repository.yml", play).is(t, "nfs01", ok)
	c.play(t, "repository.yml", play, "--check", "--diff").is(t, "nfs01", ok).quiet(t)
	for _, h := range c.Hosts() {
		if got := shell(t, h, `dpkg-query -W -f '${Status}\n' lockstep; cat /etc/apt/keyrings/lockstep.asc`); got != "install ok installed\nthe key\n" {
			t.Errorf("%s has %q", h.Name, got)
		}
	}
	c.arrived(t)
}
