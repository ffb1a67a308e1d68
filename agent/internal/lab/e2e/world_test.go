// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

const (
	repository = "../../../.."
	sourceDir  = "/data"
	backupDir  = "/backup/nfs01"
	agentUnit  = "lockstep@data.service"
)

// world is a lab and a Terraform working directory that leads into it.
type world struct {
	*lab.Lab
	source, backup *lab.Host
	dir            string // Terraform's
	rc             string // Terraform's CLI configuration
	env            []string

	followed    map[string]bool // blocks of pages
	fingerprint string          // that an apply printed last
}

// shared is the world of all tests that leave it as they find it: with the pair applied and in step.
var shared struct {
	sync.Mutex
	world   *world
	dir     string
	applied bool
}

func TestMain(m *testing.M) {
	status := m.Run()
	if mirrorDir != "" {
		os.RemoveAll(mirrorDir)
	}
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, "take the shared lab down:", err)
		status = 1
	}
	os.Exit(status)
}

func closeShared() error {
	if shared.world == nil {
		return nil
	}
	err := errors.Join(shared.world.Close(), os.RemoveAll(shared.dir))
	shared.world, shared.applied = nil, false
	return err
}

// need skips a test that cannot run here, by name and reason; in CI that is a failure.
func need(t *testing.T) {
	t.Helper()
	missing := lab.Check()
	if _, err := exec.LookPath("terraform"); missing == nil && err != nil {
		missing = errors.New("terraform is not in PATH\nhint: https://developer.hashicorp.com/terraform/install")
	}
	if missing == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("CI must run this: %v", missing)
	}
	t.Skip(missing)
}

// newWorld boots a lab for one test.
func newWorld(t *testing.T) *world {
	t.Helper()
	need(t)
	w, err := boot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			w.explain(t)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func boot(ctx context.Context, dir string) (*world, error) {
	rc, err := mirror()
	if err != nil {
		return nil, err
	}
	l, err := lab.Start(ctx, lab.Options{})
	if err != nil {
		return nil, err
	}
	return &world{Lab: l, source: l.Host("nfs01"), backup: l.Host("backup"), dir: dir, rc: rc}, nil
}

// mirror copies what `make mirror` built, so that a build meanwhile does not change the provider below a test,
// and gives a Terraform CLI configuration that uses the copy.
var mirror = sync.OnceValues(func() (rc string, err error) {
	built := filepath.Join(repository, "build", "mirror")
	if _, err := os.Stat(built); err != nil {
		return "", fmt.Errorf("%w\nhint: make mirror", err)
	}
	if mirrorDir, err = os.MkdirTemp("", "lockstep-mirror-"); err != nil {
		return "", err
	}
	if err := os.CopyFS(mirrorDir, os.DirFS(built)); err != nil {
		return "", err
	}
	rc = filepath.Join(mirrorDir, "terraform.rc")
	return rc, os.WriteFile(rc, fmt.Appendf(nil, "disable_checkpoint = true\nprovider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", mirrorDir), 0o644)
})

var mirrorDir string // removed by TestMain

// pairUp gives the shared world, with its pair applied and in step. It is the caller's alone until its test ends.
func pairUp(t *testing.T) *world {
	t.Helper()
	need(t)
	shared.Lock()
	t.Cleanup(shared.Unlock)
	if shared.world == nil {
		dir, err := os.MkdirTemp("", "lockstep-e2e-")
		if err != nil {
			t.Fatal(err)
		}
		shared.dir = dir
		if shared.world, err = boot(context.Background(), dir); err != nil { // outlives this test
			t.Fatal(err)
		}
	}
	w := shared.world
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		// What one test left behind is not the next one's fault.
		w.explain(t)
		if err := closeShared(); err != nil {
			t.Error(err)
		}
	})
	if !shared.applied {
		w.configure(t, sharedHCL)
		w.mustTerraform(t, "apply", "-auto-approve")
		run(t, w.source, "touch", sourceDir+"/stays") // a source that a test empties is held
		shared.applied = true
	}
	w.inStep(t, time.Minute)
	return w
}

// pairHCL is the short form of a pair.
const pairHCL = `
resource "lockstep_pair" "data" {
  name   = "data"
  source = { host = "nfs01", path = "/data", address = "172.16.1.31" }
  backup = { host = "backup", path = "/backup/nfs01", address = "172.16.1.41" }
}
`

// sharedHCL is the pair of the shared world. Its tests delete much, one after the other, and the guard counts
// what they do together.
var sharedHCL = strings.Replace(pairHCL, "  backup =", "  delete = { max_files = 1000000 }\n  backup =", 1)

// providerHCL logs in as the operator of the lab.
func (w *world) providerHCL() string {
	return fmt.Sprintf("provider \"lockstep\" {\n  ssh = { config_file = %q, wait_for_host = \"5s\", connect_timeout = \"5s\" }\n}\n", w.SSHConfigFile())
}

// configure writes main.tf with a provider block for the lab, and initialises the directory.
func (w *world) configure(t *testing.T, resources string) {
	t.Helper()
	w.configureAs(t, w.providerHCL(), resources)
}

func (w *world) configureAs(t *testing.T, provider, resources string) {
	t.Helper()
	const required = "terraform {\n  required_providers {\n    lockstep = { source = \"lockstep-sync/lockstep\" }\n  }\n}\n"
	if err := os.WriteFile(filepath.Join(w.dir, "main.tf"), []byte(required+provider+resources), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, ".terraform")); err != nil {
		w.mustTerraform(t, "init")
	}
}

// terraform runs terraform on the lab's link, without colour and without questions, and returns everything it said.
func (w *world) terraform(t *testing.T, command string, args ...string) (string, error) {
	t.Helper()
	argv := []string{"terraform", command, "-no-color"}
	if command != "show" && command != "output" {
		argv = append(argv, "-input=false")
	}
	cmd := w.Command(context.WithoutCancel(t.Context()), append(argv, args...)...) // also when the test cleans up
	cmd.Dir = w.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "TF_CLI_CONFIG_FILE=" + w.rc, "TF_IN_AUTOMATION=1"}, w.env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (w *world) mustTerraform(t *testing.T, command string, args ...string) string {
	t.Helper()
	out, err := w.terraform(t, command, args...)
	if err != nil {
		t.Fatalf("terraform %s: %v\n%s", command, err, out)
	}
	return out
}

// plan runs `terraform plan` and says whether there is something to do.
func (w *world) plan(t *testing.T) (out string, changes bool) {
	t.Helper()
	out, err := w.terraform(t, "plan", "-detailed-exitcode")
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out, false
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		return out, true
	}
	t.Fatalf("terraform plan: %v\n%s", err, out)
	return "", false
}

// noChanges fails the test if `terraform plan` finds something to do.
func (w *world) noChanges(t *testing.T) {
	t.Helper()
	if out, changes := w.plan(t); changes {
		t.Fatalf("the plan is not empty:\n%s", out)
	}
}

// plain undoes the frames and line breaks that terraform puts into messages.
func plain(out string) string {
	return strings.Join(strings.Fields(regexp.MustCompile(`[│╷╵]`).ReplaceAllString(out, " ")), " ")
}

// status is what `lockstep status --json` says, as far as the tests look at it.
type status struct {
	State      string  `json:"state"`
	Reason     string  `json:"reason"`
	Hint       string  `json:"hint"`
	LagSeconds float64 `json:"lag_seconds"`
	Backlog    struct {
		Paths int `json:"paths"`
	} `json:"backlog"`
}

func (w *world) status(ctx context.Context) (status, error) {
	var s status
	out, err := w.source.Run(ctx, "lockstep", "status", "data", "--json")
	if out == "" && err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("lockstep status: %w\n%s", err, out)
	}
	return s, nil
}

// awaitState waits until `lockstep status` says one of these states.
func (w *world) awaitState(t *testing.T, within time.Duration, states ...string) status {
	t.Helper()
	var last status
	eventually(t, within, func() error {
		s, err := w.status(t.Context())
		if err != nil {
			return err
		}
		last = s
		for _, state := range states {
			if s.State == state {
				return nil
			}
		}
		return fmt.Errorf("the state is %+v, want %q", s, states)
	})
	return last
}

// inStep waits until the agent says so, and then both trees must be equal: it told the truth.
func (w *world) inStep(t *testing.T, within time.Duration) {
	t.Helper()
	if out, err := w.source.Run(t.Context(), "lockstep", "wait", "data", "--timeout", within.String()); err != nil {
		t.Fatalf("lockstep wait: %v\n%s", err, out)
	}
	w.awaitState(t, within, "in step")
	if diff := w.differences(t); diff != "" {
		t.Fatalf("the agent says in step, and the trees differ:\n%s", diff)
	}
}

// differences compares both trees to the last attribute; "" means that they are equal.
func (w *world) differences(t *testing.T) string {
	t.Helper()
	diffs, err := rsynctest.Compare(w.source.Path(sourceDir), w.backup.Path(backupDir), rsynctest.CompareOptions{Ignore: notReplicated})
	if err != nil {
		return err.Error() // one of the trees changed while it was read
	}
	var lines strings.Builder
	for i, d := range diffs {
		if i == 20 {
			fmt.Fprintf(&lines, "and %d more\n", len(diffs)-i)
			break
		}
		fmt.Fprintln(&lines, d)
	}
	return lines.String()
}

func notReplicated(path string, dir bool) bool { return false }

// equal waits until both trees are equal, without asking the agent.
func (w *world) equal(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		if diff := w.differences(t); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

// explain logs what a person would look at when a test failed.
func (w *world) explain(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, look := range []struct {
		host *lab.Host
		argv []string
	}{
		{w.source, []string{"lockstep", "status", "data"}},
		{w.source, []string{"journalctl", "--no-pager", "-n", "40", "-o", "short-precise", "-u", "lockstep@*"}},
		{w.backup, []string{"journalctl", "--no-pager", "-n", "20", "-o", "short-precise", "-u", "lockstep-rsyncd*"}},
	} {
		if !look.host.Running() {
			continue
		}
		out, err := look.host.Run(ctx, look.argv...)
		if out == "" && err != nil {
			out = err.Error()
		}
		t.Logf("%s# %s\n%s", look.host.Name, strings.Join(look.argv, " "), out)
	}
}

func eventually(t *testing.T, within time.Duration, try func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// unmount takes a filesystem away as soon as no run of rsync is in it.
func unmount(t *testing.T, h *lab.Host, dir string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		_, err := h.Run(t.Context(), "umount", dir)
		return err
	})
}

func run(t *testing.T, h *lab.Host, argv ...string) string {
	t.Helper()
	out, err := h.Run(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func shell(t *testing.T, h *lab.Host, script string, args ...string) string {
	t.Helper()
	out, err := h.Shell(t.Context(), script, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// contains fails the test for each text that is missing.
func contains(t *testing.T, in string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(in, text) {
			t.Errorf("%q is missing in:\n%s", text, in)
		}
	}
}
