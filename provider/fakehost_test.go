// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/provider/internal/ssh"
	"github.com/lockstep-sync/lockstep/provider/internal/sshdtest"
)

// A fake host is a real sshd and a directory that stands for the host's root. The `lockstep` that the
// provider uploads to it is a line of shell that starts internal/fakelockstep.

func TestMain(m *testing.M) {
	if roots := os.Getenv("LOCKSTEP_TEST_PROVIDER"); roots != "" {
		os.Exit(serveProvider(roots))
	}
	// The examples name the provider by its full source; the test framework must use the same.
	os.Setenv("TF_ACC_PROVIDER_NAMESPACE", "lockstep-sync")
	os.Setenv("CHECKPOINT_DISABLE", "1")
	os.Unsetenv("TF_CLI_CONFIG_FILE")
	status := m.Run()
	if fakeProgram.dir != "" {
		os.RemoveAll(fakeProgram.dir)
	}
	os.Exit(status)
}

// serveProvider is the provider in a process of its own, as Terraform starts it. roots is a JSON object.
func serveProvider(roots string) int {
	var byHost map[string]string
	if err := json.Unmarshal([]byte(roots), &byHost); err != nil {
		panic(err)
	}
	p := func() provider.Provider {
		return &lockstepProvider{version: "1.2.3", hostRoot: func(host string) string { return byHost[host] }}
	}
	if err := providerserver.Serve(context.Background(), p, providerserver.ServeOpts{Address: "registry.terraform.io/lockstep-sync/lockstep"}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// providerDir is a directory for dev_overrides, with this test binary as the provider.
func (l *twoHosts) providerDir() string {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	roots, err := json.Marshal(map[string]string{"nfs01": l.source.root, "backup": l.backup.root})
	if err != nil {
		l.t.Fatal(err)
	}
	dir := l.t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nLOCKSTEP_TEST_PROVIDER='%s' exec '%s'\n", roots, self)
	if err := os.WriteFile(filepath.Join(dir, "terraform-provider-lockstep"), []byte(script), 0o755); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

// fakeHost is one of the hosts of a test.
type fakeHost struct {
	*sshdtest.Server
	t    *testing.T
	root string
}

func (h *fakeHost) path(name string) string { return filepath.Join(h.root, name) }

func (h *fakeHost) write(name, text string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(h.path(name), []byte(text), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *fakeHost) read(name string) string {
	text, _ := os.ReadFile(h.path(name))
	return string(text)
}

func (h *fakeHost) remove(name string) {
	h.t.Helper()
	if err := os.RemoveAll(h.path(name)); err != nil {
		h.t.Fatal(err)
	}
}

// problem makes lockstep find something wrong.
func (h *fakeHost) problem(verb plan.Verb, role plan.Role, p ...pair.Problem) {
	h.t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(fmt.Sprintf("fault-%s-%s", verb, role), string(text))
}

// bare fails the test when the provider has left anything on the host.
func (h *fakeHost) bare() {
	h.t.Helper()
	for _, name := range []string{"usr/local/bin/lockstep", "usr/local/bin/lockstep.new", "var/lib/lockstep/uploaded.sha256", "pairs"} {
		if _, err := os.Lstat(h.path(name)); err == nil {
			h.t.Errorf("%s is left on the host", name)
		}
	}
}

// staged lists temporary directories of the provider on the host.
func (h *fakeHost) staged() []string {
	names, _ := filepath.Glob(h.path("tmp/.lockstep.*"))
	return names
}

const (
	// fakeID makes the log-in that of an ordinary user.
	fakeID = "#!/bin/sh\nif [ -f \"$LOCKSTEP_TEST_ROOT/root\" ]; then echo 0; else echo 1000; fi\n"
	// fakeSudo refuses with the words in sudo-refuses, asks for the password in sudo-password, or runs the command.
	fakeSudo = `#!/bin/sh
echo "$*" >>"$LOCKSTEP_TEST_ROOT/sudo.log"
stdin=
while [ $# -gt 0 ]; do
	case $1 in
	-n|-k) ;;
	-S) stdin=1 ;;
	-p) shift ;;
	--) shift; break ;;
	*) echo "sudo: unexpected $1" >&2; exit 1 ;;
	esac
	shift
done
if [ -f "$LOCKSTEP_TEST_ROOT/sudo-refuses" ]; then cat "$LOCKSTEP_TEST_ROOT/sudo-refuses" >&2; exit 1; fi
if [ -f "$LOCKSTEP_TEST_ROOT/sudo-password" ]; then
	[ -n "$stdin" ] || { echo "sudo: a password is required" >&2; exit 1; }
	IFS= read -r line
	[ "$line" = "$(cat "$LOCKSTEP_TEST_ROOT/sudo-password")" ] || { echo "Sorry, try again." >&2; echo "sudo: no password was provided" >&2; exit 1; }
fi
exec "$@"
`
)

// twoHosts are nfs01 and backup, as in the documentation.
type twoHosts struct {
	t              *testing.T
	source, backup *fakeHost
	binaries       string // what the provider carries
	version        string // of the provider
	clients        []*client
}

func newHosts(t *testing.T) *twoHosts {
	t.Helper()
	l := &twoHosts{t: t, binaries: t.TempDir(), version: "1.2.3"}
	l.carry("1.2.3")
	l.source, l.backup = l.start(), l.start()
	return l
}

func (l *twoHosts) start() *fakeHost {
	l.t.Helper()
	h := &fakeHost{t: l.t, root: l.t.TempDir()}
	h.write("fakebin/id", fakeID)
	h.write("fakebin/sudo", fakeSudo)
	h.write("root", "")
	if err := os.Mkdir(h.path("tmp"), 0o700); err != nil {
		l.t.Fatal(err)
	}
	h.Server = sshdtest.Start(l.t, sshdtest.Options{Env: map[string]string{
		"LOCKSTEP_TEST_ROOT": h.root, "TMPDIR": h.path("tmp"), "PATH": h.path("fakebin") + ":" + os.Getenv("PATH"),
	}})
	return h
}

// fakeProgram is internal/fakelockstep, built once.
var fakeProgram struct {
	once sync.Once
	dir  string
	err  error
}

// program is lockstep of some version.
func (l *twoHosts) program(version string) string {
	l.t.Helper()
	f := &fakeProgram
	f.once.Do(func() {
		if f.dir, f.err = os.MkdirTemp("", "fakelockstep-"); f.err != nil {
			return
		}
		if out, err := exec.Command("go", "build", "-o", filepath.Join(f.dir, "lockstep"), "./internal/fakelockstep").CombinedOutput(); err != nil {
			f.err = fmt.Errorf("build the fake lockstep: %w: %s", err, out)
		}
	})
	if f.err != nil {
		l.t.Fatal(f.err)
	}
	return fmt.Sprintf("#!/bin/sh\nLOCKSTEP_FAKE_VERSION=%s exec '%s/lockstep' \"$@\"\n", version, f.dir)
}

// seal is what the fake makes of a password that it seals.
func seal(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return hex.EncodeToString(b)
}

// carry makes a release of the given version the one at hand.
func (l *twoHosts) carry(version string) {
	for _, arch := range []string{"amd64", "arm64"} {
		if err := os.WriteFile(filepath.Join(l.binaries, "lockstep_linux_"+arch), []byte(l.program(version)), 0o755); err != nil {
			l.t.Fatal(err)
		}
	}
}

// release makes provider and carried binaries of another version.
func (l *twoHosts) release(version string) {
	l.version = version
	l.carry(version)
}

func (l *twoHosts) hostRoot(name string) string {
	if name == "backup" {
		return l.backup.root
	}
	return l.source.root
}

// client is the provider as Configure would make it; change may be nil.
func (l *twoHosts) client(change func(*client)) *client {
	c := newClient(&lockstepProvider{version: l.version, hostRoot: l.hostRoot})
	c.carried.dir = l.binaries
	c.waitForHost = 0
	c.config = ssh.Config{ConfigFile: "none", ConnectTimeout: 10 * time.Second, Hosts: map[string]ssh.Options{}}
	for name, h := range map[string]*fakeHost{"nfs01": l.source, "backup": l.backup} {
		c.config.Hosts[name] = ssh.Options{Address: "127.0.0.1", Port: h.Port, HostKeys: h.HostKey, PrivateKeyFile: h.ClientKey}
	}
	if change != nil {
		change(c)
	}
	c.pool = ssh.New(c.config)
	l.t.Cleanup(c.pool.Close)
	return c
}

// factories give Terraform the provider in this process.
func (l *twoHosts) factories() map[string]func() (tfprotov6.ProviderServer, error) {
	l.t.Cleanup(func() {
		for _, c := range l.clients {
			c.pool.Close()
		}
	})
	p := func() *lockstepProvider {
		return &lockstepProvider{version: l.version, hostRoot: l.hostRoot, started: func(c *client) { l.clients = append(l.clients, c) }}
	}
	return map[string]func() (tfprotov6.ProviderServer, error){
		"lockstep": func() (tfprotov6.ProviderServer, error) { return providerserver.NewProtocol6WithError(p())() },
	}
}

// hcl is a configuration with the provider block; more goes into that block.
func (l *twoHosts) hcl(more, rest string) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "provider \"lockstep\" {\n  ssh = { config_file = \"none\", connect_timeout = \"10s\", wait_for_host = \"1s\" }\n  hosts = {\n")
	for _, h := range []struct {
		name string
		*fakeHost
	}{{"nfs01", l.source}, {"backup", l.backup}} {
		fmt.Fprintf(&b, "    %s = { address = \"127.0.0.1\", port = %d, host_key = %q, private_key_file = %q }\n", h.name, h.Port, h.HostKey, h.ClientKey)
	}
	fmt.Fprintf(&b, "  }\n  host_binary = { directory = %q }\n%s}\n%s", l.binaries, more, rest)
	return b.String()
}

// shortForm is the pair of the documentation.
const shortForm = `
resource "lockstep_pair" "data" {
  name   = "data"
  source = { host = "nfs01", path = "/data" }
  backup = { host = "backup", path = "/backup/nfs01" }
%s}
`

func pairHCL(more string) string { return fmt.Sprintf(shortForm, more) }

// dataPair is the same as a definition.
func dataPair(t *testing.T) pair.Pair {
	t.Helper()
	p, err := pair.Parse([]byte("name: data\nsource: {host: nfs01, path: /data, address: 127.0.0.1}\nbackup: {host: backup, path: /backup/nfs01, address: 127.0.0.1}\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
