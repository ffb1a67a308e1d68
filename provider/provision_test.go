// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/diag"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/provider/internal/ssh"
	"github.com/lockstep-sync/lockstep/provider/internal/sshdtest"
)

// said renders diagnostics as a user reads them.
func said(diags diag.Diagnostics) string {
	var b strings.Builder
	for _, d := range diags {
		fmt.Fprintf(&b, "%s: %s\n%s\n\n", d.Severity(), d.Summary(), d.Detail())
	}
	return b.String()
}

func mention(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

// create runs a creation as the resource does.
func create(t *testing.T, c *client, p pair.Pair) (outcome, diag.Diagnostics) {
	t.Helper()
	j := &job{ends: c.ends(p), create: true}
	out, diags := j.run(t.Context())
	if diags.HasError() && !out.kept && out.installed {
		diags.Append(j.withdraw(t.Context())...)
	}
	return out, diags
}

func mustCreate(t *testing.T, c *client, p pair.Pair) {
	t.Helper()
	out, diags := create(t, c, p)
	if diags.HasError() {
		t.Fatal(said(diags))
	}
	for _, role := range roles {
		for object, words := range *out.checks.at(role) {
			if words != plan.InSync {
				t.Errorf("%s %s: %s", role, object, words)
			}
		}
	}
}

func TestCreateUploadsAppliesInOrderAndLeavesNothingTemporary(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	c := l.client(nil)
	mustCreate(t, c, dataPair(t))
	for _, h := range []*fakeHost{l.source, l.backup} {
		if got := h.read("usr/local/bin/lockstep"); got != l.program("1.2.3") {
			t.Errorf("uploaded %q", got)
		}
		if info, err := os.Stat(h.path("usr/local/bin/lockstep")); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("mode of the uploaded program: %v, %v", info.Mode(), err)
		}
		if left := h.staged(); left != nil {
			t.Errorf("left behind: %q", left)
		}
	}
	if got, want := l.backup.read("applied.log"), "backup rotate=false password=false sealed=false fingerprint=false changed=true\n"; got != want {
		t.Errorf("backup: %q, want %q", got, want)
	}
	if got, want := l.source.read("applied.log"), "source rotate=false password=false sealed=true fingerprint=false changed=true\n"; got != want {
		t.Errorf("source: %q, want %q", got, want)
	}
	if source, backup := l.source.read("pairs/data/source/secret"), l.backup.read("pairs/data/backup/secrets"); source != backup || source == "" {
		t.Errorf("passwords are %q and %q", source, backup)
	}
}

// A command that is given up may have said why it took so long: which other apply it waited for.
func TestATimeoutTellsTheLastWords(t *testing.T) {
	t.Parallel()
	c := newHosts(t).client(nil)
	h := c.host("nfs01")
	if _, err := h.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, errors.New("timeouts.create = 2s is over"))
	defer cancel()
	_, err := h.script(ctx, "lockstep apply", "echo 'lockstep: waiting for process 7' >&2; exec sleep 20")
	mention(t, fmt.Sprint(err), "timeouts.create = 2s is over", "its last words: lockstep: waiting for process 7")
}

// What lies beside the state directories of pairs must not have a name that one of them can have.
func TestTheMarkerMeetsNoPair(t *testing.T) {
	t.Parallel()
	if name := path.Base(pathsBelow("").marker); plan.ValidName(name) {
		t.Errorf("a pair can be named %q", name)
	}
}

func TestNothingIsChangedUnlessBothHostsAgree(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.source.problem(plan.Plan, plan.Source,
		pair.Problem{Path: "service", Msg: "rsync is not installed", Hint: "apt-get install rsync"},
		pair.Problem{Path: "source.path", Msg: "/data does not exist on the source host", Hint: "create or mount it, or correct the path"})
	l.backup.problem(plan.Plan, plan.Backup, pair.Problem{Path: "backup.port", Msg: "port 873 is taken by rsync (process 7)", Hint: "choose another port in backup.port"})
	out, diags := create(t, l.client(nil), dataPair(t))
	text := said(diags)
	t.Log(text)
	mention(t, text, `source host "nfs01": service: rsync is not installed`, "apt-get install rsync", "source.path: /data does not exist",
		`backup host "backup": backup.port: port 873 is taken by rsync`, "choose another port", l.source.At(), l.backup.At())
	if n := diags.ErrorsCount(); n != 3 {
		t.Errorf("%d errors, want all 3", n)
	}
	for i, want := range []string{"source", "source", "backup"} {
		if d, ok := diags[i].(diag.DiagnosticWithPath); !ok || d.Path().String() != want {
			t.Errorf("diagnostic %d does not point at %s", i, want)
		}
	}
	if out.installed {
		t.Error("something was installed")
	}
	if left := append(l.source.staged(), l.backup.staged()...); left != nil {
		t.Errorf("left behind: %q", left)
	}
	l.source.bare()
	l.backup.bare()
}

// Only that a staged program is not root's is no matter: the installed one is. What is in the way of the unit is.
func TestForeignUnitIsToldOfAStagedProgramBeforeAnythingIsChanged(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	others := pair.Problem{Path: "program", Msg: "the service would run a program that others can change: /tmp/lockstep"}
	l.source.problem(plan.Plan, plan.Source, others, pair.Problem{Path: "unit", Msg: "/etc/systemd/system/lockstep@.service: not written by lockstep"})
	_, diags := create(t, l.client(nil), dataPair(t))
	mention(t, said(diags), `source host "nfs01": unit: /etc/systemd/system/lockstep@.service: not written by lockstep`)
	if diags.ErrorsCount() != 1 {
		t.Errorf("more than that is told:\n%s", said(diags))
	}
	l.source.bare()
	l.backup.bare()
	if log := l.backup.read("applied.log"); log != "" {
		t.Errorf("the backup host was changed: %s", log)
	}

	l.source.problem(plan.Plan, plan.Source, others)
	mustCreate(t, l.client(nil), dataPair(t))
}

func TestFailureAfterAChangeIsUndoneOnBothHosts(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.backup.problem(plan.Apply, plan.Backup, pair.Problem{Path: "daemon", Msg: "lockstep-rsyncd.service did not start", Hint: "journalctl -u lockstep-rsyncd"})
	out, diags := create(t, l.client(nil), dataPair(t))
	mention(t, said(diags), `backup host "backup": daemon: lockstep-rsyncd.service did not start`, "journalctl -u lockstep-rsyncd")
	if out.kept {
		t.Error("the outcome is to be kept although all was undone")
	}
	l.source.bare()
	l.backup.bare()
	if calls := l.source.read("calls.log"); !strings.Contains(calls, "destroy --role source") {
		t.Errorf("the source host was not undone:\n%s", calls)
	}
}

// A directory that this run made goes again, if nothing has come into it; any other stays.
func TestUndoLeavesNoEmptyDirectoryAndNoOtherOne(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.backup.write("makes-directory", "yes")
	l.source.problem(plan.Apply, plan.Source, pair.Problem{Path: "service", Msg: "did not start"})
	fails := func(name string) string {
		t.Helper()
		p := dataPair(t)
		p.Backup.Path = l.backup.path(name)
		// The source host's key is made, then the backup host, and only then the service fails.
		j := &job{ends: l.client(nil).ends(p), create: true}
		if _, diags := j.run(t.Context()); !diags.HasError() {
			t.Error("it was created")
		}
		return p.Backup.Path
	}
	l.source.write("fault-late", "yes")
	if dir := fails("made"); exists(dir) {
		t.Errorf("%s is left", dir)
	}
	l.backup.write("was-there/file", "data")
	if dir := fails("was-there"); !exists(dir + "/file") {
		t.Errorf("%s is gone", dir)
	}
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func TestCrashOfTheHostProgramIsToldWithItsLastWords(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.source.write("fault-apply-source", "crash: index out of range")
	_, diags := create(t, l.client(nil), dataPair(t))
	mention(t, said(diags), `source host "nfs01": lockstep apply failed`, l.source.At(), "exit status 2", "panic: crash: index out of range")
	l.source.bare()
	l.backup.bare()
}

func TestWhatCannotBeUndoneIsKeptAndSaid(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.backup.problem(plan.Apply, plan.Backup, pair.Problem{Path: "daemon", Msg: "did not start"})
	l.source.problem(plan.Destroy, plan.Source, pair.Problem{Path: "service", Msg: "does not stop"})
	out, diags := create(t, l.client(nil), dataPair(t))
	if !out.kept {
		t.Error("the outcome is not kept")
	}
	mention(t, said(diags), "did not start", "does not stop", `source host "nfs01": what this run had made could not be undone`, "terraform untaint")
}

func TestFailingAgentUndoesTheCreation(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.source.write("status.json", `{"state":"failing","reason":"10.0.0.2:873: connection refused","hint":"open the port"}`)
	_, diags := create(t, l.client(nil), dataPair(t))
	mention(t, said(diags), "nothing can be sent to the backup host", "10.0.0.2:873: connection refused", "open the port")
	l.source.bare()
	l.backup.bare()
}

// What the doctor finds undoes a new pair if nothing can arrive, and is told otherwise.
func TestDoctorHasTheLastWord(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.source.write("doctor.json", `{"ok":false,"checks":[
		{"check":"source","level":"warn","saw":"/data is empty","do":"is something to be mounted there?"},
		{"check":"canary","level":"fail","saw":"the file did not arrive","do":"df -h /backup"}]}`)
	_, diags := create(t, l.client(nil), dataPair(t))
	mention(t, said(diags), `Error: source host "nfs01": canary: the file did not arrive`, "df -h /backup", `Warning: source host "nfs01": source: /data is empty`)
	l.source.bare()
	l.backup.bare()

	l.source.remove("doctor.json")
	mustCreate(t, l.client(nil), dataPair(t))
	l.source.write("doctor.json", `{"ok":false,"checks":[{"check":"connect","level":"fail","saw":"no answer"}]}`)
	_, diags = (&job{ends: l.client(nil).ends(dataPair(t))}).run(t.Context())
	mention(t, said(diags), `Warning: source host "nfs01": connect: no answer`)
	if diags.HasError() {
		t.Error("an update failed by what it did not do")
	}
}

func TestHalfAPairIsCompletedAWholeOneIsNot(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	mustCreate(t, l.client(nil), dataPair(t))
	if _, diags := create(t, l.client(nil), dataPair(t)); !diags.HasError() {
		t.Error("a pair that is there was created again")
	} else {
		mention(t, said(diags), `Pair "data" exists already on both hosts`, "terraform import lockstep_pair.NAME nfs01/data")
	}
	l.source.remove("pairs")
	mustCreate(t, l.client(nil), dataPair(t)) // what an interrupted run has left
	other := dataPair(t)
	other.Source.Host, other.Source.Address = "nfs02", "10.0.0.9"
	l.source.remove("pairs")
	c := l.client(func(c *client) { c.config.Hosts["nfs02"] = c.config.Hosts["nfs01"] })
	if _, diags := create(t, c, other); !diags.HasError() {
		t.Error("another host's pair was taken over")
	} else {
		mention(t, said(diags), `backup host "backup": name: it has a pair "data" already, and that is another one: it leads from nfs01:/data to backup:/backup/nfs01`)
	}
}

func TestRotationEndsWithTheSourcesFingerprint(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	mustCreate(t, l.client(nil), dataPair(t))
	before := l.source.read("pairs/data/source/secret")
	l.source.remove("applied.log")
	l.backup.remove("applied.log")
	if _, diags := (&job{ends: l.client(nil).ends(dataPair(t)), rotate: true}).run(t.Context()); diags.HasError() {
		t.Fatal(said(diags))
	}
	if got := l.source.read("pairs/data/source/secret"); got == before || got != l.backup.read("pairs/data/backup/secrets") {
		t.Errorf("the password was %q and is %q on the source host", before, got)
	}
	if got, want := l.backup.read("applied.log"), "backup rotate=true password=false sealed=false fingerprint=false changed=true\n"+
		"backup rotate=false password=false sealed=false fingerprint=true changed=false\n"; got != want {
		t.Errorf("backup: %q, want %q", got, want)
	}
}

// A given password may be an ephemeral one, which is another in every run.
func TestGivenPasswordGoesOutOnlyWhenOneIsToBeSet(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	run := func(j job) {
		t.Helper()
		j.ends = l.client(nil).ends(dataPair(t))
		if _, diags := j.run(t.Context()); diags.HasError() {
			t.Fatal(said(diags))
		}
	}
	has := func(want string) {
		t.Helper()
		if source, backup := l.source.read("pairs/data/source/secret"), l.backup.read("pairs/data/backup/secrets"); source != want || backup != want {
			t.Errorf("passwords are %q and %q, want %q", source, backup, want)
		}
	}
	run(job{create: true, password: "first-of-all"})
	has("first-of-all")
	run(job{password: "second-of-all"})
	has("first-of-all")
	run(job{password: "third-of-all", rotate: true})
	has("third-of-all")
	l.source.write("pairs/data/source/secret", "edited by hand")
	run(job{password: "fourth-of-all"})
	has("fourth-of-all")
}

func TestUploadedBinaryIsUpgradedPackagedOneIsNot(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	mustCreate(t, l.client(nil), dataPair(t))
	for _, tt := range []struct{ carried, want string }{
		{"1.3.0", "1.3.0"}, {"1.2.9", "1.3.0"}, {"1.3.0-rc1", "1.3.0"}, {"1.3.1-dev.1", "1.3.1-dev.1"}, {"1.3.1-dev.2", "1.3.1-dev.2"}, {"dev", "dev"},
	} {
		l.carry(tt.carried)
		l.version = tt.carried
		out, diags := (&job{ends: l.client(nil).ends(dataPair(t))}).run(t.Context())
		if diags.HasError() {
			t.Fatal(said(diags))
		}
		if out.versions.source != tt.want {
			t.Errorf("with %s at hand, version is %s, want %s", tt.carried, out.versions.source, tt.want)
		}
	}

	l = newHosts(t)
	l.version = "1.3.0"
	for _, h := range []*fakeHost{l.source, l.backup} {
		h.write("usr/bin/lockstep", l.program("1.2.3"))
	}
	out, diags := create(t, l.client(nil), dataPair(t))
	if diags.HasError() {
		t.Fatal(said(diags))
	}
	mention(t, said(diags), `source host "nfs01": lockstep is older than the provider`, "lockstep 1.2.3 in "+l.source.path("usr/bin/lockstep"), "provider's 1.3.0", "apt-get install")
	if out.versions.source != "1.2.3" {
		t.Errorf("version is %s", out.versions.source)
	}
	if _, err := os.Stat(l.source.path("usr/local/bin/lockstep")); err == nil {
		t.Error("lockstep was uploaded beside the package")
	}
}

func TestProgramThatAnAdministratorPutThereStays(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	mine := l.program("1.0.0") + "# mine\n"
	l.source.write("usr/local/bin/lockstep", mine)
	c := l.client(nil)
	mustCreate(t, c, dataPair(t))
	e := c.ends(dataPair(t))
	for _, role := range roles {
		if err := e.destroyOne(t.Context(), role); err != nil {
			t.Fatal(err)
		}
	}
	if diags := e.withdraw(t.Context()); len(diags) > 0 {
		t.Error(said(diags))
	}
	if got := l.source.read("usr/local/bin/lockstep"); got != mine {
		t.Errorf("it is now %q", got)
	}
	l.backup.bare()
}

func TestUploadedBinaryGoesWithTheLastPairOnly(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	c := l.client(nil)
	second := dataPair(t)
	second.Name, second.Backup.Path, second.Backup.Module = "second", "/backup/second", "second"
	for _, p := range []pair.Pair{dataPair(t), second} {
		mustCreate(t, c, p)
	}
	for i, p := range []pair.Pair{dataPair(t), second} {
		e := c.ends(p)
		for _, role := range roles {
			if err := e.destroyOne(t.Context(), role); err != nil {
				t.Fatal(err)
			}
		}
		if diags := e.withdraw(t.Context()); len(diags) > 0 {
			t.Error(said(diags))
		}
		if _, err := os.Stat(l.source.path("usr/local/bin/lockstep")); (err == nil) != (i == 0) {
			t.Errorf("after %d pairs were destroyed: %v", i+1, err)
		}
	}
	l.source.bare()
	l.backup.bare()
}

func TestPackageModeUploadsNothing(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	_, diags := create(t, l.client(func(c *client) { c.install = installPackage }), dataPair(t))
	mention(t, said(diags), "lockstep is not installed", "apt-get install ./lockstep_", "dnf install")
	l.source.bare()
}

func TestProviderWithoutBinariesSaysWhereToGetThem(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	_, diags := create(t, l.client(func(c *client) { c.carried.dir = "/nonexistent" }), dataPair(t))
	mention(t, said(diags), "lockstep is not installed", "/nonexistent/lockstep_linux_", "host_binary.directory")
}

func TestSudo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, file, text string
		become           become
		want             []string // empty: it works
	}{
		{name: "without a password"},
		{name: "with a password", file: "sudo-password", text: "open sesame", become: become{Password: "open sesame"}},
		{name: "password given, none asked", become: become{Password: "open sesame"}},
		{name: "password missing", file: "sudo-password", text: "open sesame", want: []string{"sudo refused", "a password is required", "become = { password = var.sudo_password }", "NOPASSWD"}},
		{name: "wrong password", file: "sudo-password", text: "open sesame", become: become{Password: "open says me"}, want: []string{"sudo refused", "become.password is not the password of"}},
		{name: "not in sudoers", file: "sudo-refuses", text: "ops is not in the sudoers file.\n", want: []string{"sudo refused", "not in the sudoers file", "/etc/sudoers.d/lockstep"}},
		{name: "no tty", file: "sudo-refuses", text: "sudo: sorry, you must have a tty to run sudo\n", want: []string{"sudo refused", "requiretty"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newHosts(t)
			l.source.remove("root")
			if tt.file != "" {
				l.source.write(tt.file, tt.text)
			}
			c := l.client(func(c *client) {
				c.become["nfs01"] = tt.become
				c.secret(tt.become.Password)
			})
			_, diags := create(t, c, dataPair(t))
			text := said(diags)
			if diags.HasError() != (len(tt.want) > 0) {
				t.Fatal(text)
			}
			mention(t, text, tt.want...)
			if tt.want != nil {
				mention(t, text, l.source.At(), `source host "nfs01"`)
				l.source.bare()
				l.backup.bare()
			}
			if log := l.source.read("sudo.log"); log == "" || strings.Contains(log, "sesame") {
				t.Errorf("sudo was called with %q", log)
			}
			for _, text := range []string{text, l.source.read("calls.log"), l.source.read("environ.log")} {
				if strings.Contains(text, "says me") || strings.Contains(text, "sesame") {
					t.Errorf("the password shows:\n%s", text)
				}
			}
		})
	}
}

func TestRootNeedsNoSudo(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	mustCreate(t, l.client(nil), dataPair(t))
	if log := l.source.read("sudo.log"); log != "" {
		t.Errorf("sudo was called: %s", log)
	}
}

func TestHostThatIsNotReachableIsNamedWithItsRole(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.backup.Halt()
	_, diags := create(t, l.client(nil), dataPair(t))
	text := said(diags)
	mention(t, text, `backup host "backup": not reachable`, l.backup.At(), "connection refused", "no sshd listens there")
	if strings.Contains(text, `source host`) {
		t.Errorf("the source host is blamed:\n%s", text)
	}
	l.source.bare()
}

func TestWrongHostKeyStopsEverything(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	other := sshdtest.Start(t, sshdtest.Options{})
	c := l.client(func(c *client) {
		o := c.config.Hosts["backup"]
		o.HostKeys = other.HostKey
		c.config.Hosts["backup"] = o
	})
	_, diags := create(t, c, dataPair(t))
	mention(t, said(diags), `backup host "backup": host key refused`, l.backup.At(), "NOT THE KNOWN ONE", l.backup.HostKey, "do not go on")
	l.source.bare()
	l.backup.bare()
}

// What a host warns of is a warning of the plan, and the pair is made all the same.
func TestWhatAHostWarnsOfHoldsUpNothing(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.backup.write("warnings-plan-backup", `[{"field":"firewall","message":"ufw is active","hint":"ufw allow from 192.0.2.1"}]`)
	c := l.client(nil)
	_, diags := c.ends(dataPair(t)).preflight(t.Context(), plan.Request{})
	mention(t, said(diags), `Warning: backup host "backup": firewall: ufw is active`, "ufw allow from 192.0.2.1")
	_, diags = create(t, c, dataPair(t))
	if diags.HasError() {
		t.Error(said(diags))
	}
}

func TestStagedProgramGoesAwayWithTheConnection(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	c := l.client(nil)
	if _, diags := c.ends(dataPair(t)).preflight(t.Context(), plan.Request{}); diags.HasError() {
		t.Fatal(said(diags))
	}
	if len(l.source.staged()) != 1 {
		t.Errorf("staged: %q", l.source.staged())
	}
	c.pool.Close() // as when Terraform ends the provider
	for deadline := time.Now().Add(10 * time.Second); len(l.source.staged()) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %q", l.source.staged())
		}
	}
	l.source.bare()
}

func TestLoginScriptThatTalksIsNoHindrance(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	noisy := strings.Replace(l.program("1.2.3"), "#!/bin/sh\n", "#!/bin/sh\necho Welcome to nfs01\n", 1)
	l.source.write("usr/bin/lockstep", noisy)
	mustCreate(t, l.client(nil), dataPair(t))
}

func TestUseBothDoesNotDeadlockWithWithdraw(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	c := l.client(nil)
	mustCreate(t, c, dataPair(t))
	e := c.ends(dataPair(t))
	release, err := useBoth(t.Context(), e.source, e.backup)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan diag.Diagnostics, 1)
	go func() { done <- e.withdraw(t.Context()) }()
	release()
	if diags := <-done; diags.HasError() {
		t.Error(said(diags))
	}
}

func TestReleaseNumbersAreCompared(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b              string
		newer, comparable bool
	}{
		{"1.2.3", "1.2.2", true, true}, {"1.2.3", "1.2.3", false, true}, {"1.10.0", "1.9.9", true, true}, {"0.9.0", "1.0.0", false, true},
		{"1.0.0", "1.0.0-rc1", true, true}, {"1.0.0-rc1", "1.0.0", false, true}, {"v1.0.1", "1.0.0", true, true},
		{"dev", "1.0.0", false, false}, {"1.0.0", "", false, false}, {"1.0", "1.0.0", false, false}, {"0.0.0-dev.abc", "0.0.0-dev.def", false, false},
	} {
		if newer, comparable := isNewer(tt.a, tt.b); newer != tt.newer || comparable != tt.comparable {
			t.Errorf("isNewer(%q, %q) = %t, %t", tt.a, tt.b, newer, comparable)
		}
	}
}

func TestWordsAreQuotedForTheShell(t *testing.T) {
	t.Parallel()
	if got, want := shellJoin([]string{"sudo", "-p", "", "a b", "it's", "$(id)", "/usr/bin/x"}), `sudo -p '' 'a b' 'it'\''s' '$(id)' /usr/bin/x`; got != want {
		t.Errorf("shellJoin = %s, want %s", got, want)
	}
}

func TestErrorsOfTheSSHPackageKeepTheirStep(t *testing.T) {
	t.Parallel()
	h := newHost("nfs01", ssh.New(ssh.Config{}), become{}, installAuto, &carried{}, pathsBelow(""), func(s string) string { return s })
	inner := &ssh.Error{Host: "nfs01", At: "ops@nfs01:22", Step: "host key", Err: errors.New("not known"), Hint: "paste it"}
	e := h.fail(t.Context(), "lockstep plan", inner, "")
	if e.Step != "host key" || e.Hint != "paste it" || e.At != "ops@nfs01:22" {
		t.Errorf("fail = %+v", e)
	}
}

func TestManyPairsAtOnceShareOneInstallation(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	c := l.client(nil)
	var wg sync.WaitGroup
	for i := range 6 {
		p := dataPair(t)
		p.Name = fmt.Sprintf("p%d", i)
		p.Backup.Path, p.Backup.Module = "/backup/"+p.Name, p.Name
		wg.Go(func() {
			e := c.ends(p)
			if _, diags := e.preflight(t.Context(), plan.Request{}); diags.HasError() {
				t.Error(said(diags))
			}
			if _, diags := (&job{ends: e, create: true}).run(t.Context()); diags.HasError() {
				t.Error(said(diags))
			}
			release, err := useBoth(t.Context(), e.source, e.backup)
			if err != nil {
				t.Error(err)
				return
			}
			for _, role := range roles {
				if err := e.destroyOne(t.Context(), role); err != nil {
					t.Error(err)
				}
			}
			release()
			if diags := e.withdraw(t.Context()); len(diags) > 0 {
				t.Error(said(diags))
			}
		})
	}
	wg.Wait()
	l.source.bare()
	l.backup.bare()
	c.pool.Close()
}
