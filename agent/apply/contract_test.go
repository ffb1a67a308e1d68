// SPDX-License-Identifier: Apache-2.0

package apply_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/apply"
	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/internal/hosttest"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// The contract of a host: what holds for the one in memory holds for a real one, see integration_test.go.

// machines are the two hosts of a pair; they may be the same one.
type machines struct{ source, backup *host.Machine }

// definition is a pair with further lines of YAML; its daemon's port is 8730.
func definition(name string, lines ...string) plan.Definition {
	text := fmt.Sprintf("name: %[1]s\nsource: {host: 127.0.0.1, path: /srv/%[1]s}\nbackup: {host: 127.0.0.1, path: /backup/%[1]s, port: 8730}\n%[2]s\n",
		name, strings.Join(lines, "\n"))
	p, err := plan.ParseDefinition([]byte(text))
	if err != nil {
		panic(err)
	}
	return p
}

// problems is what a reply complains of, as one error.
func problems(reply plan.Reply) error {
	return plan.Problems(reply.Problems)
}

func run(m *host.Machine, verb plan.Verb, role plan.Role, req plan.Request) plan.Reply {
	req.Protocol = plan.Protocol
	return apply.Run(context.Background(), m, apply.Command{Verb: verb, Role: role, Version: "test", Fanotify: func(string) bool { return true }}, req)
}

func mustRun(t *testing.T, m *host.Machine, verb plan.Verb, role plan.Role, req plan.Request) plan.Reply {
	t.Helper()
	reply := run(m, verb, role, req)
	if len(reply.Problems) > 0 {
		t.Fatalf("%s --role %s: %v", verb, role, problems(reply))
	}
	return reply
}

// exchange does what a front end does, see plan.Request. The replies are those of the steps that can change something.
func exchange(m machines, req plan.Request) (replies []plan.Reply, err error) {
	do := func(m *host.Machine, verb plan.Verb, role plan.Role, req plan.Request) plan.Reply {
		if err != nil {
			return plan.Reply{}
		}
		reply := run(m, verb, role, req)
		if len(reply.Problems) > 0 {
			err = fmt.Errorf("%s --role %s: %w", verb, role, problems(reply))
		}
		if verb == plan.Apply {
			replies = append(replies, reply)
		}
		return reply
	}
	plain := plan.Request{Pair: req.Pair, Password: req.Password}
	do(m.source, plan.Plan, plan.Source, plain)
	do(m.backup, plan.Plan, plan.Backup, plain)
	prepared := do(m.source, plan.Apply, plan.Source, plan.Request{Pair: req.Pair, Prepare: true})
	toBackup := req
	toBackup.Recipient = prepared.PublicKey
	sealed := do(m.backup, plan.Apply, plan.Backup, toBackup)
	toSource := plain
	toSource.SealedPassword = sealed.SealedPassword
	opened := do(m.source, plan.Apply, plan.Source, toSource)
	if err == nil && (opened.Fingerprint == "" || opened.Fingerprint != sealed.Fingerprint) {
		err = fmt.Errorf("fingerprints %q and %q", opened.Fingerprint, sealed.Fingerprint)
	}
	plain.Fingerprint = opened.Fingerprint
	do(m.backup, plan.Apply, plan.Backup, plain)
	return replies, err
}

func mustExchange(t *testing.T, m machines, req plan.Request) (changes []plan.Change) {
	t.Helper()
	replies, err := exchange(m, req)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range replies {
		changes = append(changes, r.Changes...)
		if r.Changed != (len(r.Changes) > 0) {
			t.Errorf("changed is %v with %d changes", r.Changed, len(r.Changes))
		}
		for _, c := range r.Changes {
			// What goes may be of another transport, and prepare has no checks.
			if _, told := r.Checks[c.Object]; c.Action == "create" && len(r.Checks) > 0 && !told {
				t.Errorf("%s was made, and the checks are %v", c.Object, r.Checks)
			}
		}
	}
	return changes
}

// inSync fails the test unless read finds every object of both roles in sync.
func inSync(t *testing.T, m machines, p plan.Definition) {
	t.Helper()
	for _, role := range []plan.Role{plan.Source, plan.Backup} {
		reply := mustRun(t, m.on(role), plan.Read, role, plan.Request{Pair: p})
		if !reply.Exists {
			t.Errorf("%s: not there", role)
		}
		if diff := cmp.Diff(allInSync(role, p.Transport), reply.Checks); diff != "" {
			t.Errorf("checks of the %s host (-want +got):\n%s", role, diff)
		}
		if reply.Pair == nil || !cmp.Equal(*reply.Pair, p) {
			t.Errorf("%s: stored definition %+v", role, reply.Pair)
		}
	}
}

func (m machines) on(role plan.Role) *host.Machine {
	if role == plan.Source {
		return m.source
	}
	return m.backup
}

func allInSync(role plan.Role, transport string) map[string]string {
	checks := map[string]string{}
	for _, object := range plan.Objects(role, transport) {
		checks[object] = plan.InSync
	}
	return checks
}

// hands is somebody who changes a host by hand.
type hands interface {
	Edit(path string, change func(string) string)
	Chmod(path string, mode fs.FileMode)
	Chown(path, owner string)
	Remove(path string)
	Stop(unit string)
	Disable(unit string)
}

// handEdit is one change by hand, the check that has to tell of it, and what it has to say.
type handEdit struct {
	name   string
	role   plan.Role
	do     func(hands)
	object string
	words  string
}

func replace(old, now string) func(string) string {
	return func(text string) string {
		if !strings.Contains(text, old) {
			panic(fmt.Sprintf("%q is not in %q", old, text))
		}
		return strings.Replace(text, old, now, 1)
	}
}

// authorizedKeys is where sshd of the host looks for root's keys.
const authorizedKeys = "/root/.ssh/authorized_keys"

func moduleFile(p plan.Definition) string {
	if plan.BySSH(p) {
		return plan.SSHConfFile(p.Name)
	}
	return plan.ModuleFile(p.Name)
}

// loginEdits are those of a pair with transport ssh.
func loginEdits(p plan.Definition) []handEdit {
	key, known := plan.SSHKeyFile(p.Name), plan.KnownHostsFile(p.Name)
	line := func(change func(string) string) func(hands) { return func(h hands) { h.Edit(authorizedKeys, change) } }
	return []handEdit{
		{"ssh key edited", plan.Source, func(h hands) { h.Edit(key, replace("BEGIN", "began")) }, "login", "in " + key},
		{"ssh key readable by all", plan.Source, func(h hands) { h.Chmod(key, 0o644) }, "login", "mode 0644 instead of 0600"},
		{"ssh key removed", plan.Source, func(h hands) { h.Remove(key) }, "login", "is missing"},
		{"known hosts edited", plan.Source, func(h hands) { h.Edit(known, replace("lockstep-data", "other")) }, "login", "changed by hand: other ssh-ed25519"},
		{"known hosts removed", plan.Source, func(h hands) { h.Remove(known) }, "login", known + " is missing"},
		{"line without its limits", plan.Backup, line(replace("restrict,", "")), "login", "changed by hand in " + authorizedKeys + ": command="},
		{"line with another command", plan.Backup, line(replace("/etc/lockstep/ssh/data.conf", "/tmp/x.conf")), "login", "changed by hand in " + authorizedKeys},
		{"line with another key", plan.Backup, line(replace("ssh-ed25519 AAAAC3", "ssh-ed25519 AAAAC4")), "login", "has another key than the source host"},
		{"line without its mark", plan.Backup, line(replace(" managed-by-lockstep:data", "")), "login", "changed by hand in " + authorizedKeys},
		{"line commented out", plan.Backup, line(replace("restrict", "#restrict")), "login", "changed by hand in " + authorizedKeys + ": #restrict"},
		{"line removed", plan.Backup, line(func(string) string { return "" }), "login", "lacks the line"},
		{"line twice", plan.Backup, line(func(text string) string { return text + text }), "login", "has 2 lines of the pair"},
		{"line without limits before it", plan.Backup, line(func(text string) string {
			_, bare, _ := strings.Cut(text, `" `)
			return bare + text
		}), "login", "has 2 lines of the pair"},
		{"file of keys removed", plan.Backup, func(h hands) { h.Remove(authorizedKeys) }, "login", "lacks the line"},
	}
}

func handEdits(p plan.Definition) []handEdit {
	if !plan.BySSH(p) {
		return handEditsOf(p)
	}
	return append(slices.DeleteFunc(handEditsOf(p), func(e handEdit) bool { return e.object == "daemon" }), loginEdits(p)...)
}

func handEditsOf(p plan.Definition) []handEdit {
	agent, daemon := "lockstep@"+p.Name+".service", "lockstep-rsyncd.service"
	template, unitFile := "/etc/systemd/system/lockstep@.service", "/etc/systemd/system/lockstep-rsyncd.service"
	module, secrets := moduleFile(p), plan.SecretsFile(p.Name)
	secret, stored, dropIn := plan.SecretFile(p.Name), plan.DefinitionFile(p.Name), plan.DropInFile(p.Name)
	appended := func(line string) func(string) string { return func(text string) string { return text + line + "\n" } }
	gone := func(path string) func(hands) { return func(h hands) { h.Remove(path) } }
	return []handEdit{
		{"definition edited on the source", plan.Source, func(h hands) { h.Edit(stored, replace("delay: 20ms", "delay: 3s")) }, "definition", "changed by hand: watch.delay: 3s"},
		{"definition removed on the source", plan.Source, gone(stored), "definition", "is missing"},
		{"secret edited", plan.Source, func(h hands) { h.Edit(secret, func(text string) string { return "x" + text }) }, "secret", "changed by hand"},
		{"secret readable by all", plan.Source, func(h hands) { h.Chmod(secret, 0o644) }, "secret", "mode 0644 instead of 0600"},
		{"secret given away", plan.Source, func(h hands) { h.Chown(secret, "backup") }, "secret", "belongs to backup:root instead of root:root"},
		{"secret removed", plan.Source, gone(secret), "secret", "is missing"},
		{"secrets directory open", plan.Source, func(h hands) { h.Chmod(plan.SecretsDir, 0o755) }, "secret", "mode 0755 instead of 0700"},
		{"template unit edited", plan.Source, func(h hands) { h.Edit(template, replace("NoNewPrivileges=yes", "NoNewPrivileges=no")) }, "unit", "changed by hand: NoNewPrivileges=no"},
		{"template unit removed", plan.Source, gone(template), "unit", "is missing"},
		{"drop-in edited", plan.Source, func(h hands) { h.Edit(dropIn, appended("Nice=19")) }, "unit", "changed by hand: Nice=19"},
		{"drop-in removed", plan.Source, gone("/etc/systemd/system/" + agent + ".d"), "unit", "is missing"},
		{"agent stopped", plan.Source, func(h hands) { h.Stop(agent) }, "service", "is inactive (dead)"},
		{"agent disabled", plan.Source, func(h hands) { h.Disable(agent) }, "service", "is disabled"},

		{"definition edited on the backup", plan.Backup, func(h hands) { h.Edit(stored, replace("port: 8730", "port: 8731")) }, "definition", "changed by hand: backup.port: 8731"},
		{"module edited", plan.Backup, func(h hands) { h.Edit(module, replace("hosts deny = *", "hosts deny = 10.0.0.1")) }, "module", "changed by hand: hosts deny = 10.0.0.1"},
		{"module with a line more", plan.Backup, func(h hands) { h.Edit(module, appended("ignore errors = yes")) }, "module", "changed by hand: ignore errors = yes"},
		{"module with a line less", plan.Backup, func(h hands) { h.Edit(module, replace("hosts deny = *\n", "")) }, "module", "changed by hand: without hosts deny = *"},
		{"module removed", plan.Backup, gone(module), "module", "is missing"},
		{"secrets edited", plan.Backup, func(h hands) { h.Edit(secrets, replace(p.Auth.User+"-", p.Auth.User+"-1")) }, "secrets", "changed by hand"},
		{"secrets emptied", plan.Backup, func(h hands) { h.Edit(secrets, func(string) string { return "" }) }, "secrets", "changed by hand"},
		{"secrets with a user more", plan.Backup, func(h hands) { h.Edit(secrets, appended("intruder:x")) }, "secrets", "changed by hand"},
		{"secrets readable by all", plan.Backup, func(h hands) { h.Chmod(secrets, 0o644) }, "secrets", "mode 0644 instead of 0600"},
		{"secrets removed", plan.Backup, gone(secrets), "secrets", "is missing"},
		{"port of the daemon edited", plan.Backup, func(h hands) { h.Edit(plan.RsyncdConf, replace("port = 8730", "port = 999")) }, "daemon", "changed by hand: port = 999"},
		{"daemon's configuration removed", plan.Backup, gone(plan.RsyncdConf), "daemon", "is missing"},
		{"daemon's unit edited", plan.Backup, func(h hands) { h.Edit(unitFile, replace("ProtectSystem=full", "ProtectSystem=no")) }, "daemon", "changed by hand: ProtectSystem=no"},
		{"daemon's unit removed", plan.Backup, gone(unitFile), "daemon", "is missing"},
		{"daemon stopped", plan.Backup, func(h hands) { h.Stop(daemon) }, "daemon", "is inactive (dead)"},
		{"daemon disabled", plan.Backup, func(h hands) { h.Disable(daemon) }, "daemon", "is disabled"},
		{"backup directory removed", plan.Backup, gone(p.Backup.Path), "directory", "is missing"},
		{"all of /etc/lockstep removed", plan.Backup, gone("/etc/lockstep"), "module", "is missing"},
	}
}

// findsAndHeals makes one change by hand, and wants it named by read and plan and mended by the exchange.
func findsAndHeals(t *testing.T, m machines, h hands, p plan.Definition, e handEdit) {
	t.Helper()
	e.do(h)
	for _, verb := range []plan.Verb{plan.Read, plan.Plan} {
		reply := mustRun(t, m.on(e.role), verb, e.role, plan.Request{Pair: p})
		if !strings.Contains(reply.Checks[e.object], e.words) {
			t.Errorf("%s: check of %s is %q, want %q", verb, e.object, reply.Checks[e.object], e.words)
		}
		if verb == plan.Plan && !reply.Changed {
			t.Error("plan has no changes")
		}
	}
	if changes := mustExchange(t, m, plan.Request{Pair: p}); len(changes) == 0 {
		t.Error("apply changed nothing")
	}
	inSync(t, m, p)
	if changes := mustExchange(t, m, plan.Request{Pair: p}); len(changes) > 0 {
		t.Errorf("second apply changed %v", changes)
	}
}

// one is a host in memory that plays both roles.
func one() (*hosttest.Host, machines) {
	h := hosttest.New()
	h.Mkdir("/srv")
	for _, name := range []string{"data", "mail"} {
		h.Mkdir("/srv/" + name)
	}
	m := h.Machine()
	return h, machines{m, m}
}

// two are two hosts in memory, of which the source host reaches the backup host.
func two() (source, backup *hosttest.Host, m machines) {
	source, _ = one()
	backup = hosttest.New()
	source.Peer = backup
	return source, backup, machines{source.Machine(), backup.Machine()}
}

func dataPair() plan.Definition { return definition("data") }

func sshPair() plan.Definition { return definition("data", "transport: ssh") }

// eachTransport runs a test for a pair with each transport.
func eachTransport(t *testing.T, test func(t *testing.T, p plan.Definition)) {
	t.Parallel()
	for _, p := range []plan.Definition{dataPair(), sshPair()} {
		t.Run(p.Transport, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		h, m := one()
		if changes := mustExchange(t, m, plan.Request{Pair: p}); len(changes) == 0 {
			t.Fatal("first apply changed nothing")
		}
		inSync(t, m, p)
		before := h.Changes()
		if changes := mustExchange(t, m, plan.Request{Pair: p}); len(changes) > 0 {
			t.Errorf("second apply changed %v", changes)
		}
		if n := h.Changes() - before; n > 0 {
			t.Errorf("second apply touched the host %d times", n)
		}
	})
}

func TestPlanAndReadChangeNothing(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		h, m := one()
		look := func() {
			t.Helper()
			before := h.Changes()
			for _, verb := range []plan.Verb{plan.Plan, plan.Read} {
				for _, role := range []plan.Role{plan.Source, plan.Backup} {
					mustRun(t, m.source, verb, role, plan.Request{Pair: p})
				}
			}
			if n := h.Changes() - before; n > 0 {
				t.Errorf("%d changes", n)
			}
		}
		look()
		mustExchange(t, m, plan.Request{Pair: p})
		look()
		h.Edit(moduleFile(p), replace("timeout = 600", "timeout = 1"))
		look()
	})
}

func TestPlanTellsWhatApplyDoes(t *testing.T) {
	t.Parallel()
	_, m := one()
	p := dataPair()
	for _, role := range []plan.Role{plan.Backup, plan.Source} {
		req := plan.Request{Pair: p, Password: "correct horse"}
		planned := mustRun(t, m.source, plan.Plan, role, req)
		done := mustRun(t, m.source, plan.Apply, role, req)
		if diff := cmp.Diff(planned.Changes, done.Changes); diff != "" {
			t.Errorf("%s: planned and done differ:\n%s", role, diff)
		}
	}
}

func TestEveryHandEditIsFoundAndHealed(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		for _, e := range handEdits(p) {
			t.Run(e.name, func(t *testing.T) {
				t.Parallel()
				h, m := one()
				mustExchange(t, m, plan.Request{Pair: p})
				findsAndHeals(t, m, h, p, e)
				if outdated := h.Outdated(); len(outdated) > 0 {
					t.Errorf("%v run with files of before", outdated)
				}
			})
		}
	})
}

// An edit is only half of it: who edits a file also restarts the service.
func TestHandEditIsHealedInTheRunningProcessToo(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		for _, e := range handEdits(p) {
			t.Run(e.name, func(t *testing.T) {
				t.Parallel()
				h, m := one()
				mustExchange(t, m, plan.Request{Pair: p})
				e.do(h)
				h.Restart("lockstep@data.service")
				if !plan.BySSH(p) {
					h.Restart("lockstep-rsyncd.service")
				}
				mustExchange(t, m, plan.Request{Pair: p})
				inSync(t, m, p)
				if outdated := h.Outdated(); len(outdated) > 0 {
					t.Errorf("%v run with files of before", outdated)
				}
			})
		}
	})
}

func TestDestroyLeavesNothingOfOursAndAllOfTheRest(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		for _, order := range [][]plan.Role{{plan.Source, plan.Backup}, {plan.Backup, plan.Source}} {
			h, m := one()
			h.Put("/srv/data/file", "data")
			h.Put("/etc/rsyncd.conf", "[other]\npath = /other\n")
			before := h.Snapshot()
			mustExchange(t, m, plan.Request{Pair: p})
			h.Put("/backup/data/file", "data")
			for i, role := range order {
				asItWas := h.Snapshot()
				foretold := mustRun(t, m.source, plan.Plan, role, plan.Request{Pair: plan.Definition{Name: "data"}, Absent: true})
				if diff := cmp.Diff(asItWas, h.Snapshot()); diff != "" {
					t.Errorf("plan changed something (-before +after):\n%s", diff)
				}
				reply := mustRun(t, m.source, plan.Destroy, role, plan.Request{Pair: plan.Definition{Name: "data"}})
				if diff := cmp.Diff(reply.Changes, foretold.Changes); diff != "" {
					t.Errorf("plan foretold something else than destroy did (-did +foretold):\n%s", diff)
				}
				if !reply.Changed || reply.Remaining != 1-i {
					t.Errorf("destroy of %s: changed %v, %d remain", role, reply.Changed, reply.Remaining)
				}
				if again := mustRun(t, m.source, plan.Destroy, role, plan.Request{Pair: plan.Definition{Name: "data"}}); again.Changed {
					t.Errorf("second destroy of %s changed %v", role, again.Changes)
				}
			}
			if h.Files["/backup/data/file"].Data == nil {
				t.Fatal("destroy touched the data")
			}
			h.Remove("/backup")
			if diff := cmp.Diff(before, h.Snapshot()); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		}
	})
}

func TestDestroyLeavesForeignFiles(t *testing.T) {
	t.Parallel()
	h, m := one()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	foreign := []string{"/etc/lockstep/rsyncd.d/own.conf", "/etc/lockstep/notes", "/etc/systemd/system/lockstep@data.service.d/own.conf", "/etc/lockstep/secrets/own"}
	for _, p := range foreign {
		h.Put(p, "mine\n")
	}
	mustRun(t, m.source, plan.Destroy, plan.Source, plan.Request{Pair: dataPair()})
	mustRun(t, m.source, plan.Destroy, plan.Backup, plan.Request{Pair: dataPair()})
	for _, p := range foreign {
		if string(h.Files[p].Data) != "mine\n" {
			t.Errorf("%s is gone", p)
		}
	}
	for p, f := range h.Files {
		if strings.Contains(p, "lockstep") && !f.Dir && !slices.Contains(foreign, p) && p != plan.RecordFile {
			t.Errorf("%s is left", p)
		}
	}
}

func TestForeignFileIsNotOverwritten(t *testing.T) {
	t.Parallel()
	p := dataPair()
	for path, role := range map[string]plan.Role{
		plan.DefinitionFile("data"): plan.Backup, plan.ModuleFile("data"): plan.Backup, plan.SecretsFile("data"): plan.Backup,
		plan.RsyncdConf: plan.Backup, "/etc/systemd/system/lockstep-rsyncd.service": plan.Backup,
		plan.SecretFile("data"): plan.Source, "/etc/systemd/system/lockstep@.service": plan.Source,
	} {
		h, m := one()
		for _, dir := range []string{"/etc/lockstep", "/etc/lockstep/pairs", "/etc/lockstep/secrets", "/etc/lockstep/rsyncd.d"} {
			h.Mkdir(dir)
		}
		h.Put(path, "mine\n")
		before := h.Snapshot()
		reply := run(m.source, plan.Apply, role, plan.Request{Pair: p, Password: "correct horse"})
		if len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0].Msg, path+": not written by lockstep") ||
			reply.Problems[0].Path == plan.ProgramProblem || reply.Changed {
			t.Errorf("%s: reply %+v", path, reply)
		}
		if diff := cmp.Diff(before, h.Snapshot()); diff != "" {
			t.Errorf("%s: changed:\n%s", path, diff)
		}
	}
}

func TestDefinitionPutThereByHandIsTakenOver(t *testing.T) {
	t.Parallel()
	p := dataPair()
	const short = "# ours since 2019\nname: data\nbackup: {path: /backup/data, port: 8730, host: 127.0.0.1}\nsource: {host: 127.0.0.1, path: /srv/data}\n"
	h, m := one()
	h.Mkdir("/etc/lockstep")
	h.Mkdir("/etc/lockstep/pairs")
	h.Put(plan.DefinitionFile("data"), short)
	planned := mustRun(t, m.backup, plan.Plan, plan.Backup, plan.Request{Pair: p})
	if i := slices.IndexFunc(planned.Changes, func(c plan.Change) bool { return c.Path == plan.DefinitionFile("data") }); i < 0 || planned.Changes[i].Action != "update" {
		t.Errorf("planned %+v", planned.Changes)
	}
	mustExchange(t, m, plan.Request{Pair: p})
	inSync(t, m, p)

	// A failure leaves it as it was.
	h, m = one()
	h.Mkdir("/etc/lockstep")
	h.Mkdir("/etc/lockstep/pairs")
	h.Put(plan.DefinitionFile("data"), short)
	h.StartError = func(string) error { return errors.New("no") }
	if reply := run(m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p}); len(reply.Problems) == 0 {
		t.Error("the daemon did not start, and apply says nothing")
	}
	if got := string(h.Files[plan.DefinitionFile("data")].Data); got != short {
		t.Errorf("the definition is %q", got)
	}

	for text, want := range map[string]string{
		short + "exclude: [\"*.tmp\"]\n": `it says something else than this definition: exclude:, exclude.- "*.tmp"`,
		"name: [":                        "it is not a definition of this pair: not YAML: near line 1",
	} {
		h.Put(plan.DefinitionFile("data"), text)
		reply := run(m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p})
		if len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0].Msg, want) || !strings.Contains(reply.Problems[0].Hint, "move it away") {
			t.Errorf("%q: %v", text, problems(reply))
		}
		if got := string(h.Files[plan.DefinitionFile("data")].Data); got != text {
			t.Errorf("the definition is %q", got)
		}
	}
}

// change of a definition, to have an update in the tests below.
func changed() plan.Definition {
	p := dataPair()
	p.Exclude = []string{"*.tmp"}
	p.Watch.Backend = "inotify"
	p.Transfer.Parallel = 4
	return p
}

// scenario is a run that can be interrupted: from what, and what is asked.
type scenario struct {
	prepare func(*testing.T, map[plan.Role]*hosttest.Host, machines)
	req     plan.Request
}

func scenarios() map[string]scenario {
	applied := func(t *testing.T, _ map[plan.Role]*hosttest.Host, m machines) {
		mustExchange(t, m, plan.Request{Pair: dataPair()})
	}
	return map[string]scenario{
		"first": {func(*testing.T, map[plan.Role]*hosttest.Host, machines) {}, plan.Request{Pair: dataPair()}},
		"first beside another pair": {func(t *testing.T, _ map[plan.Role]*hosttest.Host, m machines) {
			mustExchange(t, m, plan.Request{Pair: definition("mail")})
		}, plan.Request{Pair: dataPair()}},
		"first by ssh":           {func(*testing.T, map[plan.Role]*hosttest.Host, machines) {}, plan.Request{Pair: sshPair()}},
		"from the daemon to ssh": {applied, plan.Request{Pair: sshPair()}},
		"from ssh to the daemon": {func(t *testing.T, hosts map[plan.Role]*hosttest.Host, m machines) {
			hosts[plan.Backup].Mkdir("/root/.ssh")
			hosts[plan.Backup].Put(authorizedKeys, "ssh-ed25519 AAAA admin") // no newline
			mustExchange(t, m, plan.Request{Pair: sshPair()})
		}, plan.Request{Pair: dataPair()}},
		"rotation by ssh": {func(t *testing.T, _ map[plan.Role]*hosttest.Host, m machines) {
			mustExchange(t, m, plan.Request{Pair: sshPair()})
		}, plan.Request{Pair: sshPair(), Rotate: true}},
		"update":   {applied, plan.Request{Pair: changed()}},
		"rotation": {applied, plan.Request{Pair: dataPair(), Rotate: true}},
		"heal": {func(t *testing.T, hosts map[plan.Role]*hosttest.Host, m machines) {
			applied(t, hosts, m)
			for _, e := range handEdits(dataPair()) {
				if strings.HasSuffix(e.name, "edited") && !strings.HasPrefix(e.name, "secret") || strings.HasSuffix(e.name, "stopped") {
					e.do(hosts[e.role])
				}
			}
		}, plan.Request{Pair: dataPair()}},
	}
}

func TestFailureAtAnyChangeIsRolledBack(t *testing.T) {
	t.Parallel()
	for name, sc := range scenarios() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failures := 0
			for n := 1; ; n += stride {
				source, backup, m := two()
				sc.prepare(t, map[plan.Role]*hosttest.Host{plan.Source: source, plan.Backup: backup}, m)
				count, failed := 0, ""
				fail := func(what string) error {
					if count++; count == n {
						failed = what
						return errors.New("disk on fire")
					}
					return nil
				}
				source.Before, backup.Before = fail, fail
				both := func() []string {
					return slices.Concat([]string{"source"}, source.Snapshot(), []string{"backup"}, backup.Snapshot())
				}
				var before []string // what the step that failed found
				replies, err := exchangeWatched(m, sc.req, func() { before = both() })
				if failed == "" {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				failures++
				if err == nil {
					t.Fatalf("change %d, %s: failed and nobody was told", n, failed)
				}
				last := replies[len(replies)-1]
				if last.Changed || len(last.Changes) > 0 || !strings.Contains(err.Error(), "disk on fire") {
					t.Errorf("change %d, %s: reply %+v", n, failed, last)
				}
				if diff := cmp.Diff(before, both()); diff != "" {
					t.Errorf("change %d, %s: not put back (-before +after):\n%s", n, failed, diff)
				}
				source.Before, backup.Before = nil, nil
				mustExchange(t, m, plan.Request{Pair: sc.req.Pair})
				inSync(t, m, sc.req.Pair)
			}
			if failures*stride < 5 {
				t.Errorf("only %d changes were tried", failures)
			}
		})
	}
}

// exchangeWatched calls before ahead of every step of the exchange.
func exchangeWatched(m machines, req plan.Request, before func()) ([]plan.Reply, error) {
	// The machine's lock is taken by every step that may change something, and by none else.
	wrap := func(inner *host.Machine) *host.Machine {
		outer := *inner
		outer.System = lockWatcher{inner.System, before}
		return &outer
	}
	return exchange(machines{wrap(m.source), wrap(m.backup)}, req)
}

type lockWatcher struct {
	host.System
	before func()
}

func (w lockWatcher) Lock(ctx context.Context, holder string, waiting func(string)) (host.Unlock, error) {
	w.before()
	return w.System.Lock(ctx, holder, waiting)
}

type killed struct{}

// kill runs f and returns whether the process was killed in it.
func kill(f func()) (died bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(killed); !ok {
				panic(r)
			}
			died = true
		}
	}()
	f()
	return false
}

// Killed after a change is as good as killed before the next.
func TestKilledAfterAnyChangeThenApplyReachesTheDesiredState(t *testing.T) {
	t.Parallel()
	for name, sc := range scenarios() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n += stride {
				h, m := one()
				sc.prepare(t, map[plan.Role]*hosttest.Host{plan.Source: h, plan.Backup: h}, m)
				count := 0
				h.After = func(string) {
					if count++; count == n {
						panic(killed{})
					}
				}
				if !kill(func() { _, _ = exchange(m, sc.req) }) {
					break
				}
				h.After = nil
				mustExchange(t, m, plan.Request{Pair: sc.req.Pair})
				inSync(t, m, sc.req.Pair)
				if outdated := h.Outdated(); len(outdated) > 0 {
					t.Errorf("killed at change %d: %v run with files of before", n, outdated)
				}
				if changes := mustExchange(t, m, plan.Request{Pair: sc.req.Pair}); len(changes) > 0 {
					t.Errorf("killed at change %d: a second apply changed %v", n, changes)
				}
				for _, role := range []plan.Role{plan.Source, plan.Backup} {
					mustRun(t, m.source, plan.Destroy, role, plan.Request{Pair: sc.req.Pair})
				}
				for p := range h.Files {
					if strings.Contains(p, "data") && !strings.HasPrefix(p, "/srv") && !strings.HasPrefix(p, "/backup") {
						t.Errorf("killed at change %d, then destroyed: %s is left", n, p)
					}
				}
			}
		})
	}
}

func TestDestroyKilledAtAnyChangeThenDestroyLeavesNothing(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		for n := 1; ; n += stride {
			h, m := one()
			before := h.Snapshot()
			mustExchange(t, m, plan.Request{Pair: p})
			count := 0
			h.After = func(string) {
				if count++; count == n {
					panic(killed{})
				}
			}
			destroy := func() {
				for _, role := range []plan.Role{plan.Source, plan.Backup} {
					mustRun(t, m.source, plan.Destroy, role, plan.Request{Pair: p})
				}
			}
			if !kill(destroy) {
				return
			}
			h.After = nil
			destroy()
			h.Remove("/backup")
			if diff := cmp.Diff(before, h.Snapshot()); diff != "" {
				t.Errorf("killed at change %d (-before +after):\n%s", n, diff)
			}
		}
	})
}

// Two pairs on one host: neither hears of what is done to the other.
func TestAnotherPairIsNotInterrupted(t *testing.T) {
	t.Parallel()
	h, m := one()
	mail := definition("mail")
	mustExchange(t, m, plan.Request{Pair: mail})
	count := func() [4]int {
		var n [4]int
		n[0], n[1] = h.Starts("lockstep@mail.service")
		n[2], n[3] = h.Starts("lockstep-rsyncd.service")
		return n
	}
	before := count()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	mustExchange(t, m, plan.Request{Pair: changed()})
	mustExchange(t, m, plan.Request{Pair: dataPair(), Rotate: true})
	for _, role := range []plan.Role{plan.Source, plan.Backup} {
		if reply := mustRun(t, m.source, plan.Destroy, role, plan.Request{Pair: dataPair()}); reply.Remaining == 0 {
			t.Error("no pair remains")
		}
	}
	if after := count(); after != before {
		t.Errorf("starts and reloads were %v, are %v", before, after)
	}
	inSync(t, m, mail)
	if diff := cmp.Diff([]string{"/etc/lockstep/pairs/mail.yaml", "/etc/lockstep/rsyncd.conf", "/etc/lockstep/rsyncd.d/mail.conf",
		"/etc/lockstep/secrets/mail", "/etc/lockstep/secrets/mail.secrets"}, ours(h)); diff != "" {
		t.Error(diff)
	}
}

func ours(h *hosttest.Host) []string {
	var paths []string
	for _, p := range slices.Sorted(maps.Keys(h.Files)) {
		if strings.HasPrefix(p, "/etc/lockstep/") && !h.Files[p].Dir {
			paths = append(paths, p)
		}
	}
	return paths
}
