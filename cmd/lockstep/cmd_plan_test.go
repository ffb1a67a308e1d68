// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// The module that plan writes and the runs of transfer know nothing of each other.
func TestModuleTakesEveryOptionOfTheAgentsRuns(t *testing.T) {
	t.Parallel()
	accepted := plan.AcceptedOptions()
	for _, option := range transfer.RequiredOptions() {
		if !slices.Contains(accepted, option) {
			t.Errorf("the module refuses --%s", option)
		}
	}
}

// lockstep runs the command line with this standard input.
func lockstep(t *testing.T, in string, args ...string) (status int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = dispatch(t.Context(), stdio{strings.NewReader(in), &stdout, &stderr}, args)
	return status, stdout.String(), stderr.String()
}

// What is wrong with the command line or the definition is told before the host is looked at, so by anybody.
func TestHostCommandsRefuseWhatTheyCannotUnderstand(t *testing.T) {
	t.Parallel()
	const good = "name: data\nsource: {host: a, path: /data}\nbackup: {host: b, path: /backup/data}\n"
	missing := filepath.Join(t.TempDir(), "none.yaml")
	for _, tc := range []struct {
		in     string
		args   []string
		status int
		words  []string
	}{
		{good, []string{"plan"}, exitUsage, []string{"--role is missing", "--role source"}},
		{good, []string{"plan", "--role", "master"}, exitUsage, []string{"--role"}},
		{good, []string{"plan", "--role", "source", "data"}, exitUsage, []string{`unexpected argument "data"`}},
		{good, []string{"plan", "--role", "source", "--recipient", "x"}, exitUsage, []string{"-recipient"}},
		{"", []string{"apply", "--definition", missing, "--role", "backup", "--prepare"}, exitUsage, []string{"--prepare is for the source host", "leave --prepare out"}},
		{"", []string{"apply", "--definition", missing, "--role", "backup", "--sealed-password", "x"}, exitUsage, []string{"--sealed-password is for the source host"}},
		{"", []string{"apply", "--definition", missing, "--role", "source", "--recipient", "x"}, exitUsage, []string{"--recipient is for the backup host"}},
		{"", []string{"apply", "--definition", missing, "--role", "source", "--rotate"}, exitUsage, []string{"--rotate is for the backup host, not with --role source"}},
		{"", []string{"apply", "--definition", missing, "--role", "source", "--fingerprint", "x"}, exitUsage, []string{"--fingerprint is for the backup host"}},
		{"", []string{"destroy", "--role", "source", "../etc"}, exitUsage, []string{`"../etc" is not the name`}},
		{"", []string{"apply", "--role", "source"}, exitUsage, []string{"standard input is empty", "--definition"}},
		{"", []string{"read", "--role", "source"}, exitUsage, []string{"standard input is empty", "name the pair, as lockstep read --role ROLE NAME; or"}},
		{"", []string{"destroy", "--role", "source"}, exitUsage, []string{"standard input is empty", "lockstep destroy --role ROLE NAME"}},
		{"", []string{"apply", "--role", "source", "--definition", missing}, exitFailure, []string{missing}},
		{good + "nme: x\n", []string{"apply", "--role", "backup"}, exitUsage, []string{"nme", "name"}},
		{strings.Replace(good, "/data", "data", 1) + "transfer: {parallel: 0}\n", []string{"plan", "--role", "backup"}, exitUsage, []string{"source.path", "transfer.parallel"}},
		{good, []string{"apply", "--role", "backup", "--recipient", "@" + missing}, exitFailure, []string{missing}},
	} {
		status, out, errs := lockstep(t, tc.in, tc.args...)
		if status != tc.status || out != "" {
			t.Errorf("%q: status %d, output %q", tc.args, status, out)
		}
		for _, word := range tc.words {
			if !strings.Contains(errs, word) {
				t.Errorf("%q: %q lacks %q", tc.args, errs, word)
			}
		}
	}
}

func TestJSONReplyHoldsTheProblems(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "{", `{"protocol":9}`, `{"protocol":1,"pair":{"name":"X"}}`} {
		status, out, errs := lockstep(t, in, "apply", "--role", "source", "--json")
		var reply plan.Reply
		if err := json.Unmarshal([]byte(out), &reply); err != nil || reply.Protocol != plan.Protocol || len(reply.Problems) == 0 || reply.Changes == nil || reply.Checks == nil {
			t.Errorf("%q: %v, %s", in, err, out)
		}
		if status != exitUsage || errs != "" {
			t.Errorf("%q: status %d, %q", in, status, errs)
		}
	}
}

func TestOnlyRootChangesAHost(t *testing.T) {
	t.Parallel()
	// A copy, because go test makes the test binary in a directory that no other user is let into.
	dir := t.TempDir()
	program := filepath.Join(dir, "lockstep") // by this name it is the program, see TestMain
	data, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.WriteFile(program, data, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "apply", "--role", "source")
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader("name: data\nsource: {host: a, path: /data}\nbackup: {host: b, path: /backup/data}\n")
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}} // nobody
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailure || !strings.Contains(string(out), "sudo lockstep apply") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestUnitIsForTheBinaryOfThePackage(t *testing.T) {
	t.Parallel()
	status, out, _ := lockstep(t, "", "unit", "--binary", "/opt/lockstep")
	if status != exitOK || !strings.Contains(out, "\nExecStart=/opt/lockstep run %i\n") {
		t.Errorf("status %d:\n%s", status, out)
	}
}

func TestFanotifyIsTriedAndNotWaitedFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start := time.Now()
	if canFanotify(t.Context(), filepath.Join(dir, "none")) {
		t.Error("a directory that is not there can be watched")
	}
	t.Logf("this directory: %v", canFanotify(t.Context(), dir)) // what this machine can
	if elapsed := time.Since(start); elapsed >= fanotifyTimeout {
		t.Errorf("took %s", elapsed)
	}
}
