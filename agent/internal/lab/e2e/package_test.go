// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
)

// packages builds a deb and an rpm of this checkout for this machine, of the version given, with nfpm alone.
func packages(t *testing.T, version string) (deb, rpm string) {
	t.Helper()
	root, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	nfpm := filepath.Join(root, "build", "tools", "nfpm")
	if _, err := os.Stat(nfpm); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must run this: %v", err)
		}
		t.Skipf("%v\nhint: make build/tools/nfpm", err)
	}
	dir := t.TempDir()
	command := func(cwd string, argv ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = cwd, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
		}
	}
	for _, name := range []string{"packaging", "examples/pairs"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(root, name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"goreleaser.yaml", "CHANGELOG.md", "LICENSE"} {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "build", "release", "lockstep_linux_"+runtime.GOARCH)
	command(root, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+version, "-o", binary, "./cmd/lockstep")
	command(root, "go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "make"), "./packaging/build")
	command(dir, "./make", "-binary", binary, "-arch", runtime.GOARCH, "-version", version, "-date", "2026-01-02T03:04:05Z")
	for _, format := range []string{"deb", "rpm"} {
		command(dir, nfpm, "package", "-f", "build/packaging/nfpm-"+runtime.GOARCH+".yaml", "-p", format, "-t", dir)
	}
	return glob(t, dir, "*.deb"), glob(t, dir, "*.rpm")
}

func glob(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found[0]
}

// One package from installation to purge: it replicates after what docs/by-hand.md says, an upgrade restarts the agent once and
// loses nothing, removal keeps the configuration, and purge leaves the data alone.
func TestPackageFromInstallationToPurge(t *testing.T) {
	older, _ := packages(t, "0.1.0-dev.1")
	newer, _ := packages(t, "0.1.0-dev.2")
	w := newWorld(t)
	before := map[string]string{}
	for _, h := range w.Hosts() {
		before[h.Name] = inventory(t, h)
		if err := h.CopyTo(t.Context(), older, "/root/"+filepath.Base(older)); err != nil {
			t.Fatal(err)
		}
	}
	shell(t, w.source, `mkdir -p /data/sub && echo one >/data/sub/file && chown -R 1000:1000 /data/sub`)
	w.follow(t, "docs/by-hand.md", "", "Later")
	w.inStep(t, time.Minute)
	for _, h := range w.Hosts() {
		if failed := run(t, h, "systemctl", "--failed", "--plain", "--no-legend"); failed != "" {
			t.Errorf("%s: units failed:\n%s", h.Name, failed)
		}
	}
	if unit := run(t, w.source, "systemctl", "show", "-P", "FragmentPath", agentUnit); !strings.HasSuffix(strings.TrimSpace(unit), "/lib/systemd/system/lockstep@.service") {
		t.Errorf("the agent runs from %s", unit)
	}

	upgrade := func(deb string) {
		t.Helper()
		for _, h := range w.Hosts() {
			if err := h.CopyTo(t.Context(), deb, "/root/newer.deb"); err != nil {
				t.Fatal(err)
			}
			run(t, h, "dpkg", "-i", "/root/newer.deb")
		}
	}
	pid := func(h *lab.Host, unit string) string {
		return strings.TrimSpace(run(t, h, "systemctl", "show", "-P", "MainPID", unit))
	}
	agent, daemon := pid(w.source, agentUnit), pid(w.backup, "lockstep-rsyncd.service")
	stop := w.churn(t)
	upgrade(newer)
	stop()
	w.inStep(t, time.Minute)
	contains(t, run(t, w.source, "lockstep", "version"), "0.1.0-dev.2")
	contains(t, run(t, w.source, "lockstep", "status", "data"), "lockstep 0.1.0-dev.2")
	if now := pid(w.source, agentUnit); now == agent {
		t.Error("the upgrade did not restart the agent")
	}
	starts := strings.Count(run(t, w.source, "journalctl", "--no-pager", "-o", "cat", "-u", agentUnit), "Started ")
	if starts != 2 {
		t.Errorf("the agent was started %d times, want once by apply and once by the upgrade", starts)
	}
	if now := pid(w.backup, "lockstep-rsyncd.service"); now != daemon {
		t.Error("the upgrade interrupted the daemon")
	}
	w.follow(t, "docs/runbook.md", "A check that it is really equal", "Rotating the password")
	w.follow(t, "docs/by-hand.md", "Later", "Removing the pair")

	kept := func(h *lab.Host) string {
		return shell(t, h, `find /etc/lockstep /var/lib/lockstep -type f ! -name stopped-by-removal.units ! -name lock -exec sha256sum {} + | sort -k 2`)
	}
	for _, h := range w.Hosts() {
		config := kept(h)
		run(t, h, "dpkg", "--remove", "lockstep")
		if diff := cmp.Diff(config, kept(h)); diff != "" {
			t.Errorf("%s: the removal changed (-before +after):\n%s", h.Name, diff)
		}
		if out, err := h.Run(t.Context(), "systemctl", "is-active", agentUnit, "lockstep-rsyncd.service"); err == nil || strings.Contains("\n"+out, "\nactive") {
			t.Errorf("%s: after the removal: %s", h.Name, out)
		}
	}
	if err := w.backup.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := w.backup.Run(t.Context(), "systemctl", "is-active", "lockstep-rsyncd.service"); err == nil {
		t.Errorf("the daemon is back after a reboot without the package: %s", out)
	}

	// Installed again, all goes on.
	shell(t, w.source, `echo meanwhile >/data/sub/meanwhile`)
	upgrade(newer)
	w.inStep(t, time.Minute)
	if out := strings.TrimSpace(run(t, w.backup, "systemctl", "is-enabled", "lockstep-rsyncd.service")); out != "enabled" {
		t.Errorf("the daemon is %s after the package was installed again", out)
	}

	source, backup := tree(t, w.source, "/data"), tree(t, w.backup, "/backup")
	for _, h := range w.Hosts() {
		run(t, h, "dpkg", "--purge", "lockstep")
	}
	if diff := cmp.Diff(source, tree(t, w.source, "/data")); diff != "" {
		t.Errorf("purge changed the source directory:\n%s", diff)
	}
	if diff := cmp.Diff(backup, tree(t, w.backup, "/backup")); diff != "" {
		t.Errorf("purge changed the backup directory:\n%s", diff)
	}
	for _, h := range w.Hosts() {
		shell(t, h, `rm -f /root/*.deb /root/data.yaml /root/nfs01.key /root/data.sealed`)
		var left []string
		for _, line := range strings.Split(inventory(t, h), "\n") {
			if !strings.Contains(before[h.Name]+"\n", line+"\n") && strings.Contains(line, "lockstep") && !strings.Contains(line, "lockstep:") {
				left = append(left, line)
			}
		}
		if len(left) > 0 {
			t.Errorf("%s: purge left:\n%s", h.Name, strings.Join(left, "\n"))
		}
	}
}

// What Terraform has uploaded comes first in the search path, and its unit runs it: a package beside it would bring nothing.
func TestPackageTakesThePlaceOfAnUploadedBinary(t *testing.T) {
	deb, _ := packages(t, "0.1.0-dev.2")
	w := newWorld(t)
	for from, to := range map[string]string{filepath.Join(repository, "build", "lockstep"): "/usr/local/bin/lockstep", deb: "/root/lockstep.deb"} {
		if err := w.source.CopyTo(t.Context(), from, to); err != nil {
			t.Fatal(err)
		}
	}
	const definition = "name: tell\nsource: {host: nfs01, path: /data}\ntransport: none\n" +
		"hooks: [{name: list, type: command, argv: [/bin/true]}]\n"
	if err := w.source.WriteFile(t.Context(), "/root/tell.yaml", []byte(definition), 0o644); err != nil {
		t.Fatal(err)
	}
	const unit = "lockstep@tell.service"
	const apply = `lockstep apply --role source --definition /root/tell.yaml`
	shell(t, w.source, `chmod 0755 /usr/local/bin/lockstep && `+apply)
	contains(t, run(t, w.source, "systemctl", "show", "-P", "FragmentPath", unit), "/etc/systemd/system/")
	install := func() { shell(t, w.source, `dpkg -i /root/lockstep.deb`) }
	program := func() string {
		return run(t, w.source, "sh", "-c", `readlink /proc/$(systemctl show -P MainPID `+unit+`)/exe; lockstep version`)
	}

	install() // what was not uploaded is somebody's own
	contains(t, program(), "/usr/local/bin/lockstep\n")
	run(t, w.source, "dpkg", "--remove", "lockstep")
	shell(t, w.source, `sha256sum </usr/local/bin/lockstep | cut -d ' ' -f 1 >/var/lib/lockstep/uploaded.sha256; systemctl start `+unit)
	install()
	contains(t, program(), "/usr/bin/lockstep\n", "lockstep 0.1.0-dev.2\n")
	shell(t, w.source, apply)
	contains(t, run(t, w.source, "systemctl", "show", "-P", "FragmentPath", unit), "/lib/systemd/system/")
	contains(t, shell(t, w.source, apply), "nothing changed")
	run(t, w.source, "dpkg", "--purge", "lockstep")
	if out, err := w.source.Run(t.Context(), "ls", "-l", "/usr/local/bin/lockstep"); err == nil {
		t.Errorf("purge left %s", out)
	}
}

// The rpm installs, upgrades and goes in a root of its own, with its scripts. The root is this machine's, with all changes
// kept apart by an overlay in a mount namespace that ends with the commands.
func TestRPMInstallsUpgradesAndGoes(t *testing.T) {
	need(t)
	if _, err := exec.LookPath("rpm"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must run this: %v", err)
		}
		t.Skip("rpm is not installed\nhint: apt-get install rpm")
	}
	_, older := packages(t, "0.1.0-dev.1")
	_, newer := packages(t, "0.1.0-dev.2")
	dir := t.TempDir()
	for _, d := range []string{"scratch", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// In the root there is no running systemd, as in an image that is being built; so scripts must do without.
	const script = `set -e
mount -t tmpfs scratch "$1/scratch"
mkdir "$1/scratch/upper" "$1/scratch/work"
mount -t overlay -o lowerdir=/,upperdir="$1/scratch/upper",workdir="$1/scratch/work" overlay "$1/root"
R=$1/root
mount --bind /proc "$R/proc"
debian=
! rpm --help | grep -q force-debian || debian=--force-debian
rpm --root "$R" --initdb
echo '# install'
rpm --root "$R" -i --nodeps $debian "$2" 2>&1
rpm --root "$R" -V --nodeps lockstep && echo verified
rpm --root "$R" -ql lockstep
chroot "$R" /usr/bin/lockstep version
chroot "$R" getent passwd lockstep
stat -c '%a %U %n' "$R/etc/lockstep/secrets" | sed "s|$R||"
echo '# upgrade'
echo kept >"$R/etc/lockstep/pairs/data.yaml"
rpm --root "$R" -U --nodeps $debian "$3" 2>&1
chroot "$R" /usr/bin/lockstep version
echo '# erase'
rpm --root "$R" -e --nodeps $debian lockstep 2>&1
ls "$R/usr/bin/lockstep" 2>/dev/null || echo gone
cat "$R/etc/lockstep/pairs/data.yaml"
`
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", dir, older, newer)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, &stderr)
	}
	install, rest, _ := strings.Cut(string(out), "# upgrade\n")
	upgrade, erase, _ := strings.Cut(rest, "# erase\n")
	contains(t, install, "verified\n", "lockstep 0.1.0-dev.1\n", "lockstep:x:", "700 root /etc/lockstep/secrets",
		"/usr/lib/systemd/system/lockstep@.service\n", "/usr/share/man/man8/lockstep.8.gz\n", "/usr/share/man/man7/lockstep.7.gz\n",
		"/usr/share/man/man5/lockstep.yaml.5.gz\n", "/usr/lib/systemd/catalog/lockstep.catalog\n", "/usr/lib/sysusers.d/lockstep.conf\n", "/usr/lib/tmpfiles.d/lockstep.conf\n",
		"/usr/share/licenses/lockstep/LICENSE\n", "/usr/share/bash-completion/completions/lockstep\n")
	if want := "lockstep 0.1.0-dev.2\n"; upgrade != want {
		t.Errorf("the upgrade says %q, want %q", upgrade, want)
	}
	if want := "gone\nkept\n"; erase != want {
		t.Errorf("the removal says %q, want %q", erase, want)
	}
	if strings.Contains(install, "warning") || strings.Contains(install, "error") || strings.Contains(install, "failed") {
		t.Errorf("the installation complains:\n%s", install)
	}
}
