// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/defaults"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/knownvalue"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"
	"github.com/hashicorp/terraform-plugin-testing/statecheck"
	"github.com/hashicorp/terraform-plugin-testing/terraform"
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// needTerraform skips the test when there is no terraform, and fails it in CI.
func needTerraform(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("terraform")
	if err != nil {
		const msg = "SKIPPED: no terraform on PATH; the resource is not tested through Terraform (make deps fetches it)"
		if os.Getenv("CI") == "true" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	return program
}

// wrapped matches text that Terraform may have wrapped at any space.
func wrapped(text string) *regexp.Regexp {
	parts := strings.Fields(text)
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return regexp.MustCompile(strings.Join(parts, `[\s│]+`))
}

const address = "lockstep_pair.data"

func inSync(role plan.Role, object string) statecheck.StateCheck {
	return statecheck.ExpectKnownValue(address, tfjsonpath.New(string(role)).AtMapKey("checks").AtMapKey(object), knownvalue.StringExact(plan.InSync))
}

func TestPairLivesThroughCreateDriftUpdateImportAndDestroy(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	drift := func(role plan.Role, object, words string) plancheck.PlanCheck {
		return driftCheck{role, object, words}
	}
	noChange := resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()}}
	steps := []resource.TestStep{
		{
			Config: l.hcl("", pairHCL("")),
			ConfigPlanChecks: resource.ConfigPlanChecks{
				PreApply:             []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, plancheck.ResourceActionCreate)},
				PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()},
			},
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("id"), knownvalue.StringExact("nfs01/data")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("source").AtMapKey("address"), knownvalue.StringExact("127.0.0.1")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("backup").AtMapKey("module"), knownvalue.StringExact("data")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("backup").AtMapKey("lockstep_version"), knownvalue.StringExact("1.2.3")),
				inSync(plan.Source, "service"), inSync(plan.Backup, "module"),
			},
		},
	}
	// A hand edit of any object on either host is named by plan, healed by apply, and gone afterwards.
	for _, edit := range []struct {
		host         *fakeHost
		role         plan.Role
		object, file string
		words        string
	}{
		{l.backup, plan.Backup, "module", "pairs/data/backup/module", "backup: changed by hand"},
		{l.source, plan.Source, "unit", "pairs/data/source/unit", "nfs01: missing"},
		{l.source, plan.Source, "secret", "pairs/data/source/secret", "nfs01: another password than the backup host's"},
	} {
		steps = append(steps, resource.TestStep{
			PreConfig: func() {
				if strings.Contains(edit.words, "missing") {
					edit.host.remove(edit.file)
				} else {
					edit.host.write(edit.file, "edited by hand")
				}
			},
			Config: l.hcl("", pairHCL("")),
			ConfigPlanChecks: resource.ConfigPlanChecks{
				PreApply:             []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate), drift(edit.role, edit.object, edit.words)},
				PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()},
			},
			ConfigStateChecks: []statecheck.StateCheck{inSync(edit.role, edit.object)},
		})
	}
	changed := pairHCL("  hooks = [{ name = \"told\", type = \"socket\", address = \"/run/told.sock\" }]\n  exclude = [\"*.tmp\"]\n  delete = { max_files = 10 }\n  transfer = { timeout = \"60s\" }\n  password_wo_version = 1\n")
	steps = append(steps,
		resource.TestStep{ // a host from which lockstep was removed is healed in place
			PreConfig: func() { l.source.remove("usr/local/bin/lockstep") },
			Config:    l.hcl("", pairHCL("")),
			ConfigPlanChecks: resource.ConfigPlanChecks{
				PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate), drift(plan.Source, "unit", "nfs01: lockstep is not installed on this host")},
			},
		},
		resource.TestStep{
			Config: l.hcl("", changed),
			ConfigPlanChecks: resource.ConfigPlanChecks{
				PreApply: []plancheck.PlanCheck{
					plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
					plancheck.ExpectKnownValue(address, tfjsonpath.New("delete").AtMapKey("max_percent"), knownvalue.Int64Exact(25)),
				},
				PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()},
			},
		},
		resource.TestStep{ // a newer provider brings a newer lockstep, and says so
			PreConfig: func() { l.release("1.3.0") },
			Config:    l.hcl("", changed),
			ConfigPlanChecks: resource.ConfigPlanChecks{
				PreApply: []plancheck.PlanCheck{
					plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
				},
				PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()},
			},
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("source").AtMapKey("lockstep_version"), knownvalue.StringExact("1.3.0")),
			},
		},
		resource.TestStep{ // 60s and 1m are the same time
			Config: l.hcl("", strings.Replace(changed, "60s", "1m", 1)), ConfigPlanChecks: noChange,
		},
		resource.TestStep{
			ResourceName: address, ImportState: true, ImportStateId: "nfs01/data", ImportStateVerify: true,
			ImportStateVerifyIgnore: []string{"password_wo_version"},
		},
		resource.TestStep{ResourceName: address, ImportState: true, ImportStateId: "nfs01/nothing", ExpectError: wrapped(`No pair "nothing" on source host "nfs01"`)},
		resource.TestStep{ResourceName: address, ImportState: true, ImportStateId: "nothing", ExpectError: wrapped(`is not SOURCE_HOST/NAME`)},
		resource.TestStep{
			PreConfig: func() {
				const name = "pairs/data/source/definition"
				l.source.write(name, strings.Replace(l.source.read(name), `"options":[]`, `"options":["--inplace"]`, 1))
			},
			ResourceName: address, ImportState: true, ImportStateId: "nfs01/data",
			ExpectError: wrapped(`the definition on the host is not one that this provider knows: transfer.options[0]: "--inplace" is refused`),
		},
		resource.TestStep{ // made anew under another name, without the old one being found in the way
			PreConfig: func() {
				l.backup.problem(plan.Plan, plan.Backup, pair.Problem{Path: "backup.path", Msg: "/backup/nfs01 is exported already"})
			},
			Config: l.hcl("", strings.Replace(pairHCL(""), `"data"`+"\n", `"media"`+"\n", 1)), PlanOnly: true, ExpectNonEmptyPlan: true,
		},
		resource.TestStep{
			PreConfig:        func() { l.backup.remove("fault-plan-backup") },
			Config:           l.hcl("", strings.Replace(pairHCL(""), "name   = \"data\"", "name   = \"media\"", 1)),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, plancheck.ResourceActionReplace)}},
		},
	)
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: steps, CheckDestroy: func(*terraform.State) error {
		l.source.bare()
		l.backup.bare()
		return nil
	}})
}

// driftCheck expects the plan to name an object of a host and what is wrong with it.
type driftCheck struct {
	role          plan.Role
	object, words string
}

func (c driftCheck) CheckPlan(_ context.Context, req plancheck.CheckPlanRequest, resp *plancheck.CheckPlanResponse) {
	for _, rc := range req.Plan.ResourceChanges {
		before, err := tfjsonpath.Traverse(rc.Change.Before, tfjsonpath.New(string(c.role)).AtMapKey("checks").AtMapKey(c.object))
		if err == nil && strings.Contains(fmt.Sprint(before), c.words) {
			return
		}
		resp.Error = fmt.Errorf("before the change, %s %s says %v, want %q", c.role, c.object, before, c.words)
	}
}

// The port follows the transport, and so do the objects that are checked.
func TestTransportIsSwitchedInPlace(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	port := func(n int64) statecheck.StateCheck {
		return statecheck.ExpectKnownValue(address, tfjsonpath.New("backup").AtMapKey("port"), knownvalue.Int64Exact(n))
	}
	step := func(config string, action plancheck.ResourceActionType, checks ...statecheck.StateCheck) resource.TestStep {
		return resource.TestStep{
			Config: l.hcl("", pairHCL(config)),
			ConfigPlanChecks: resource.ConfigPlanChecks{
				PreApply:             []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, action)},
				PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()},
			},
			ConfigStateChecks: checks,
		}
	}
	const ssh = "  transport = \"ssh\"\n"
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: []resource.TestStep{
		{Config: l.hcl("", pairHCL("  transport = \"shh\"\n")), PlanOnly: true, ExpectError: wrapped(`transport: "shh" is not a way to reach the backup host`)},
		step("", plancheck.ResourceActionCreate, port(873), inSync(plan.Backup, "daemon")),
		step(ssh, plancheck.ResourceActionUpdate, port(22), inSync(plan.Source, "login"), inSync(plan.Backup, "login")),
		{ResourceName: address, ImportState: true, ImportStateId: "nfs01/data", ImportStateVerify: true},
		step("", plancheck.ResourceActionUpdate, port(873), inSync(plan.Backup, "daemon")),
	}})
}

// What a host finds wrong, and no apply can mend, stops an apply; a plan that changes nothing else goes on with a warning, and
// so does a destroy, before which Terraform makes such a plan.
func TestProblemOfAHostDoesNotKeepThePairFromBeingDestroyed(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	const fault = `[{"field":"login","message":"sshd lets root in by no means","hint":"set PermitRootLogin"}]`
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: []resource.TestStep{
		{Config: l.hcl("", pairHCL(""))},
		{
			PreConfig: func() {
				l.backup.write("pairs/data/backup/module", "edited by hand")
				l.backup.write("fault-plan-backup", fault)
			},
			Config: l.hcl("", pairHCL("")), PlanOnly: true, ExpectNonEmptyPlan: true,
		},
		{Config: l.hcl("", pairHCL("")), ExpectError: wrapped("sshd lets root in by no means")},
		{Config: l.hcl("", pairHCL("  exclude = [\"*.tmp\"]\n")), PlanOnly: true, ExpectError: wrapped("sshd lets root in by no means")},
		{Config: l.hcl("", pairHCL("")), Destroy: true},
	}})
}

// terraform gives a directory with a configuration, and runs terraform there: for what comes between two runs of it.
func (l *twoHosts) terraform() (dir string, run func(config string, args ...string)) {
	l.t.Helper()
	program, dir, provider := needTerraform(l.t), l.t.TempDir(), devOverride(l.providerDir())
	return dir, func(config string, args ...string) {
		l.t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "main.tf"), []byte(requireProvider+l.hcl("", config)), 0o600); err != nil {
			l.t.Fatal(err)
		}
		terraformIn(l.t, program, dir, provider, append(args, "-no-color")...)
	}
}

// Terraform does not tell of a new pair that it takes the place of one which is on the hosts still.
func TestReplacementThatIsAskedForIsPlanned(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	_, run := l.terraform()
	run(pairHCL(""), "apply", "-auto-approve")
	before := l.source.read("pairs/data/source/secret")
	run(pairHCL(""), "apply", "-auto-approve", "-replace="+address)
	if l.source.read("pairs/data/source/secret") == before {
		t.Error("the pair was not made anew")
	}
	run(pairHCL(""), "plan", "-detailed-exitcode")
}

func TestPairUnderAnotherAddressOrTaintedIsNotTakenForAStranger(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	renamed := strings.Replace(pairHCL(""), `"lockstep_pair" "data"`, `"lockstep_pair" "other"`, 1)
	moved := "moved {\n  from = lockstep_pair.data\n  to   = lockstep_pair.other\n}\n"
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: []resource.TestStep{
		{Config: l.hcl("", pairHCL(""))},
		{Config: l.hcl("", renamed), ExpectError: wrapped("This state has it, under another address")},
		{Config: l.hcl("", renamed+moved), PlanOnly: true},
		{Config: l.hcl("", pairHCL("")), Taint: []string{address}, ExpectError: wrapped("terraform untaint ADDRESS")},
	}})
}

// A packaged lockstep is the administrator's, who may upgrade it at any time; by itself that is nothing to apply.
func TestPackageMayBeUpgradedBetweenPlanAndApply(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	l.source.write("usr/bin/lockstep", l.program("1.2.3"))
	_, run := l.terraform()
	changed := pairHCL("  exclude = [\"*.tmp\"]\n")
	run(pairHCL(""), "apply", "-auto-approve")
	run(changed, "plan", "-out=saved")
	l.source.write("usr/bin/lockstep", l.program("1.2.4"))
	run(changed, "apply", "saved")
	run(changed, "plan", "-detailed-exitcode")
	l.source.write("usr/bin/lockstep", l.program("1.2.5"))
	run(changed, "plan", "-detailed-exitcode", "-refresh=false")
	run(changed, "plan", "-detailed-exitcode")
}

// The state, and the hosts, may have from an earlier version what this one refuses: only the configuration is judged.
func TestValueOfThePastThatIsRefusedNowBlocksNothing(t *testing.T) {
	t.Parallel()
	l := newHosts(t)
	dir, run := l.terraform()
	definitions := []string{l.source.path("pairs/data/source/definition"), l.backup.path("pairs/data/backup/definition")}
	const past = "  transfer = { options = [\"--acls\"] }\n"
	age := func() {
		t.Helper()
		for _, name := range append(definitions, filepath.Join(dir, "terraform.tfstate")) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			aged := bytes.ReplaceAll(text, []byte(`"--acls"`), []byte(`"--inplace"`))
			if bytes.Equal(aged, text) {
				t.Fatalf("%s has no --acls:\n%s", name, text)
			}
			if err := os.WriteFile(name, aged, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(pairHCL(past), "apply", "-auto-approve")
	age()
	run(pairHCL(""), "apply", "-auto-approve")
	for _, name := range definitions {
		if text, err := os.ReadFile(name); err != nil || bytes.Contains(text, []byte("--inplace")) {
			t.Errorf("%s is not healed: %v\n%s", name, err, text)
		}
	}
	run(pairHCL(past), "apply", "-auto-approve")
	age()
	run(pairHCL(""), "destroy", "-auto-approve")
	l.source.bare()
	l.backup.bare()
}

func TestPairOnNeitherHostAnyMoreIsPlannedAnew(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: []resource.TestStep{
		{Config: l.hcl("", pairHCL(""))},
		{ // gone on one host is drift
			PreConfig: func() { l.backup.remove("pairs") },
			Config:    l.hcl("", pairHCL("")), PlanOnly: true, ExpectNonEmptyPlan: true,
			ConfigPlanChecks: resource.ConfigPlanChecks{PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate)}},
		},
		{
			PreConfig:        func() { l.source.remove("pairs") },
			Config:           l.hcl("", pairHCL("")),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, plancheck.ResourceActionCreate)}},
		},
	}})
}

func TestUnreachableHostKeepsThePair(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: []resource.TestStep{
		{Config: l.hcl("", pairHCL(""))},
		{
			PreConfig: func() { l.backup.Halt() },
			Config:    l.hcl("", pairHCL("")), PlanOnly: true, ExpectError: wrapped(`backup host "backup": not reachable`),
		},
		{Config: l.hcl("", pairHCL("")), PlanOnly: true, ExpectError: wrapped(`terraform plan -refresh=false`)},
		{Config: l.hcl("  on_unreachable = \"warn\"\n", pairHCL("")), PlanOnly: true}, // nothing to change: what was known is kept
		{Config: l.hcl("", pairHCL("")), Destroy: true, ExpectError: wrapped(`backup host "backup": not reachable`)},
		{
			PreConfig: func() {
				if l.source.read("pairs/data/source/unit") == "" {
					t.Error("the source host lost its side although the other did not answer")
				}
				l.backup.Resume(t)
			},
			Config: l.hcl("", pairHCL("")), PlanOnly: true,
		},
	}})
}

func TestBadInputIsRefusedBeforeAnythingHappens(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	var steps []resource.TestStep
	for _, bad := range []struct{ config, want string }{
		{l.hcl("", strings.Replace(pairHCL(""), `"/data"`, `"data"`, 1)), `source.path: "data" is not an absolute path`},
		{l.hcl("", strings.Replace(pairHCL(""), `path = "/backup/nfs01"`, `path = "/backup/nfs01", port = 0`, 1)), `backup.port: 0 is not a port`},
		{l.hcl("", pairHCL("  exclud = []\n")), `An argument named "exclud" is not expected here`},
		{l.hcl("", pairHCL("  delete = { max_percent = 250 }\n  watch = { delay = \"5\" }\n")), `watch.delay: a number without a unit is not a duration`},
		{l.hcl("", pairHCL("  hooks = [{ name = \"told\", type = \"command\", argv = [\"told\"] }]\n")), `hooks[0].argv[0]: "told" is not the absolute path of a program`},
		{l.hcl("", pairHCL("  password_wo = \"hunter2hunter2\"\n")), `password_wo_version`},
		{strings.Replace(l.hcl("", pairHCL("")), `host_key = "ssh-ed25519`, `host_key = "ssh-ed25518`, 1), `is not a public key`},
		{strings.Replace(l.hcl("", pairHCL("")), `connect_timeout = "10s"`, `connect_timeout = "10"`, 1), `ssh.connect_timeout: "10" is not a duration`},
		{l.hcl("  on_unreachable = \"ignore\"\n", pairHCL("")), `on_unreachable`},
	} {
		steps = append(steps, resource.TestStep{Config: bad.config, PlanOnly: true, ExpectError: wrapped(bad.want)})
	}
	steps = append(steps, resource.TestStep{ // what the hosts find wrong is known at plan time, all of it
		PreConfig: func() {
			l.source.problem(plan.Plan, plan.Source, pair.Problem{Path: "service", Msg: "rsync is not installed", Hint: "apt-get install rsync"})
			l.backup.problem(plan.Plan, plan.Backup, pair.Problem{Path: "backup.port", Msg: "port 873 is taken by rsync (process 7)"})
		},
		Config: l.hcl("", pairHCL("")), PlanOnly: true, ExpectError: regexp.MustCompile(`(?s)rsync is not\s.*installed.*apt-get install.*port 873`),
	})
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: steps})
	l.source.bare()
	l.backup.bare()
}

func TestUnknownValuesArePlannedWithoutTheHosts(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	unknown := "resource \"terraform_data\" \"x\" {\n  input = \"127.0.0.1\"\n}\n"
	provider := strings.Replace(l.hcl("", ""), `nfs01 = { address = "127.0.0.1"`, `nfs01 = { address = terraform_data.x.output`, 1)
	path := strings.Replace(pairHCL(""), `"/data"`, `"/data/${terraform_data.x.id}"`, 1)
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: []resource.TestStep{
		{Config: l.hcl("", unknown+path), PlanOnly: true, ExpectNonEmptyPlan: true},
		{Config: provider + unknown + pairHCL("")},
		{ // the address of an existing pair's host becomes unknown again: the pair is kept
			Config: strings.Replace(provider, "terraform_data.x.output", `"${terraform_data.y.output}"`, 1) + unknown +
				"resource \"terraform_data\" \"y\" {\n  input = \"127.0.0.1\"\n}\n" + pairHCL(""),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, plancheck.ResourceActionNoop)}},
		},
	}})
}

func TestDataSourcesTellHowThingsAre(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	data := "data \"lockstep_pair\" \"now\" {\n  name = lockstep_pair.data.name\n  host = \"nfs01\"\n}\ndata \"lockstep_host\" \"nfs01\" {\n  host = \"nfs01\"\n  depends_on = [lockstep_pair.data]\n}\n"
	is := func(address, key string, want knownvalue.Check) statecheck.StateCheck {
		return statecheck.ExpectKnownValue(address, tfjsonpath.New(key), want)
	}
	early := strings.NewReplacer("lockstep_pair.data.name", `"data"`, "  depends_on = [lockstep_pair.data]\n", "").Replace(data)
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: []resource.TestStep{
		{Config: l.hcl("", early+pairHCL("")), ExpectError: wrapped("lockstep is not installed on this host is it the source host of the pair? A lockstep_pair installs lockstep there: let the data source depend on it")},
		{
			Config: l.hcl("", pairHCL("")+data),
			ConfigStateChecks: []statecheck.StateCheck{
				is("data.lockstep_pair.now", "state", knownvalue.StringExact("in step")), is("data.lockstep_pair.now", "in_step", knownvalue.Bool(true)),
				is("data.lockstep_pair.now", "lag_seconds", knownvalue.Float64Exact(0.5)), is("data.lockstep_pair.now", "backlog", knownvalue.Int64Exact(2)),
				is("data.lockstep_pair.now", "last_full", knownvalue.StringExact("2026-11-22T20:00:01Z")), is("data.lockstep_pair.now", "last_in_step", knownvalue.Null()),
				is("data.lockstep_host.nfs01", "host_key", knownvalue.StringExact(l.source.HostKey)), is("data.lockstep_host.nfs01", "address", knownvalue.StringExact(l.source.At())),
				is("data.lockstep_host.nfs01", "lockstep_version", knownvalue.StringExact("1.2.3")), is("data.lockstep_host.nfs01", "installed_by", knownvalue.StringExact("upload")),
			},
		},
		{
			PreConfig: func() {
				l.source.write("status.json", `{"state":"held","reason":"1200 of 1300 entries are gone","since":"2026-11-22T20:00:00Z","held":{"reason":"too many","count":1200,"paths":["a","b"]}}`)
			},
			Config: l.hcl("", pairHCL("")+data),
			ConfigStateChecks: []statecheck.StateCheck{
				is("data.lockstep_pair.now", "state", knownvalue.StringExact("held")), is("data.lockstep_pair.now", "held", knownvalue.Int64Exact(1200)),
				is("data.lockstep_pair.now", "reason", knownvalue.StringExact("1200 of 1300 entries are gone")),
			},
		},
		{
			PreConfig: func() {
				l.source.remove("status.json")
				l.source.remove("pairs/data/source/service")
			},
			Config: l.hcl("", data[strings.Index(data, "data"):strings.Index(data, "data \"lockstep_host")]+"\n"+pairHCL("")), PlanOnly: true, ExpectNonEmptyPlan: true,
		},
	}})
}

// The password and the keys are in nothing that Terraform writes.
func TestSecretsShowNowhere(t *testing.T) {
	t.Parallel()
	program := needTerraform(t)
	l := newHosts(t)
	const given, sudo = "correct-horse-battery", "staple-of-sudo"
	l.source.remove("root")
	l.source.write("sudo-password", sudo)
	key, err := os.ReadFile(l.source.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	config := l.hcl("", `
variable "key" {
  type      = string
  ephemeral = true
}
variable "sudo" {
  type      = string
  ephemeral = true
}
variable "password" {
  type      = string
  ephemeral = true
}
`+pairHCL("  password_wo = var.password\n  password_wo_version = 1\n"))
	config = strings.Replace(config, fmt.Sprintf("private_key_file = %q }\n", l.source.ClientKey), "private_key = var.key, become = { password = var.sudo } }\n", 1)
	dir := t.TempDir()
	provider := l.providerDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	write("main.tf", "terraform {\n  required_providers {\n    lockstep = { source = \"lockstep-sync/lockstep\" }\n  }\n}\n"+config)
	rc := write("dev.tfrc", fmt.Sprintf("provider_installation {\n  dev_overrides { \"lockstep-sync/lockstep\" = %q }\n  direct {}\n}\n", provider))
	var output bytes.Buffer
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.Env = append(os.Environ(), "TF_CLI_CONFIG_FILE="+rc, "TF_LOG=TRACE", "TF_LOG_PATH="+filepath.Join(dir, "trace.log"), "TF_IN_AUTOMATION=1",
			"TF_VAR_key="+string(key), "TF_VAR_sudo="+sudo, "TF_VAR_password="+given)
		if err := cmd.Run(); err != nil {
			t.Fatalf("terraform %s: %v\n%s", strings.Join(args, " "), err, out.String())
		}
		output.Write(out.Bytes())
		return out.String()
	}
	run("plan", "-no-color", "-out=saved")
	shown := run("show", "-json", "saved")
	run("apply", "-no-color", "saved")
	if l.backup.read("pairs/data/backup/secrets") != given || l.source.read("pairs/data/source/secret") != given {
		t.Fatal("the given password did not reach the hosts")
	}
	l.backup.write("pairs/data/backup/module", "edited by hand")
	run("apply", "-no-color", "-auto-approve")
	run("destroy", "-no-color", "-auto-approve")
	texts := map[string]string{"terraform's output": output.String(), "the shown plan": shown}
	for _, name := range []string{"trace.log", "terraform.tfstate", "terraform.tfstate.backup", "saved"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "saved" {
			out, err := exec.Command("unzip", "-p", filepath.Join(dir, name)).Output()
			if err == nil {
				text = append(text, out...)
			}
		}
		texts[name] = string(text)
	}
	for _, h := range []*fakeHost{l.source, l.backup} {
		texts["argv on "+h.root] = h.read("calls.log") + h.read("sudo.log")
		texts["environ on "+h.root] = h.read("environ.log")
	}
	if !strings.Contains(texts["trace.log"], "lockstep apply") {
		t.Error("the log does not have the provider's lines; nothing was proven")
	}
	keyLine := strings.Split(string(key), "\n")[2]
	for where, text := range texts {
		for what, secret := range map[string]string{"password": given, "sealed password": seal(given), "sudo password": sudo, "private key": keyLine} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s shows the %s: …%s…", where, what, text[max(0, i-100):min(len(text), i+100)])
			}
		}
	}
}

// Every field of the definition is an attribute, with the same name and default.
func TestSchemaIsTheDefinition(t *testing.T) {
	t.Parallel()
	full, err := os.ReadFile("../examples/pairs/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	withAll, err := pair.Parse(full)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []pair.Pair{dataPair(t), withAll} {
		var m pairModel
		if err := m.take(p); err != nil {
			t.Fatal(err)
		}
		got, problems := m.definition()
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if a, b := string(got.Render()), string(p.Render()); a != b {
			t.Errorf("a definition came back changed:\n%s\nwant\n%s", a, b)
		}
	}
	text, err := json.Marshal(pair.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	wholeHook, err := json.Marshal(pair.Hook{Name: "x", Type: "x", Include: []string{"x"}, Argv: []string{"x"}, IgnoreErrors: true, Network: "x", Address: "x",
		URL: "x", Method: "x", Match: "x", Kind: "x", HeadersFile: "x"})
	if err != nil {
		t.Fatal(err)
	}
	var hook map[string]any
	if err := json.Unmarshal(wholeHook, &hook); err != nil {
		t.Fatal(err)
	}
	attributes := pairSchema().Attributes
	var compare func(at string, doc map[string]any, attributes map[string]schema.Attribute)
	compare = func(at string, doc map[string]any, attributes map[string]schema.Attribute) {
		for key, value := range doc {
			a, ok := attributes[key]
			if !ok {
				t.Errorf("%s%s is a field of the definition and no attribute", at, key)
				continue
			}
			if inner, ok := value.(map[string]any); ok {
				compare(at+key+".", inner, a.(schema.SingleNestedAttribute).Attributes)
			}
		}
	}
	compare("", doc, attributes)
	compare("hooks.", hook, hookAttributes())
	if len(hook) != len(hookAttributes()) {
		t.Errorf("a hook has %d fields and %d attributes", len(hook), len(hookAttributes()))
	}
	for key, a := range attributes {
		if g, ok := a.(schema.SingleNestedAttribute); ok && g.Default != nil {
			value := objectDefault(t, g)
			have, _ := document(value, key, map[string]bool{})
			text, _ := json.Marshal(have)
			var wantDoc map[string]json.RawMessage
			whole, _ := json.Marshal(pair.Defaults())
			json.Unmarshal(whole, &wantDoc)
			var a, b any
			json.Unmarshal(text, &a)
			json.Unmarshal(wantDoc[key], &b)
			if fmt.Sprint(a) != fmt.Sprint(b) {
				t.Errorf("default of %s is %v, of the definition %v", key, a, b)
			}
		}
	}
}

func objectDefault(t *testing.T, a schema.SingleNestedAttribute) types.Object {
	t.Helper()
	var resp defaults.ObjectResponse
	a.Default.DefaultObject(t.Context(), defaults.ObjectRequest{}, &resp)
	return resp.PlanValue
}
