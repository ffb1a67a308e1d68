// SPDX-License-Identifier: Apache-2.0

package apply_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/internal/hosttest"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

func keysIn(h *hosttest.Host) string { return string(h.Files[authorizedKeys].Data) }

func TestOtherLinesOfAuthorizedKeysStayAsTheyAre(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"of an administrator": "# who\nssh-ed25519 AAAA admin\n\n  \nssh-rsa BBBB other\n",
		"without a newline":   "ssh-ed25519 AAAA admin",
		"with a carriage":     "ssh-ed25519 AAAA admin\r\n",
		"empty":               "",
	} {
		_, backup, m := two()
		backup.Mkdir("/root/.ssh")
		backup.Files[authorizedKeys] = host.File{Mode: 0o640, Owner: "root", Group: "adm", Data: []byte(text)}
		before := backup.Snapshot()
		mustExchange(t, m, plan.Request{Pair: sshPair()})
		if got := keysIn(backup); strings.Count(got, "managed-by-lockstep:data") != 1 || strings.Count(got, "\n") != strings.Count(text, "\n")+1 || !strings.Contains(got, text) {
			t.Errorf("%s: %q", name, got)
		}
		if f := backup.Files[authorizedKeys]; f.Mode != 0o640 || f.Group != "adm" {
			t.Errorf("%s: mode %o, group %s", name, f.Mode, f.Group)
		}
		other := definition("mail", "transport: ssh")
		mustExchange(t, m, plan.Request{Pair: other})
		inSync(t, m, sshPair())
		for _, p := range []plan.Definition{sshPair(), other} {
			mustRun(t, m.backup, plan.Destroy, plan.Backup, plan.Request{Pair: p})
		}
		backup.Remove("/backup")
		if diff := cmp.Diff(before, backup.Snapshot()); diff != "" {
			t.Errorf("%s: after destroy (-before +after):\n%s", name, diff)
		}
	}
}

func TestALinkInPlaceOfAuthorizedKeysIsNotFollowed(t *testing.T) {
	t.Parallel()
	_, backup, m := two()
	backup.Mkdir("/root/.ssh")
	backup.Mkdir(authorizedKeys) // what is no plain file
	_, err := exchange(m, plan.Request{Pair: sshPair()})
	if err == nil || !strings.Contains(err.Error(), "login: "+authorizedKeys+" is no plain file") {
		t.Errorf("%v", err)
	}
}

// Whoever leads to a line that cannot be taken out goes on to be let in, so that nothing may say that the pair is gone, or
// that it comes by the daemon only.
func TestALineBehindALinkIsNotForgotten(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]struct {
		verb plan.Verb
		req  plan.Request
	}{
		"destroy":           {plan.Destroy, plan.Request{Pair: plan.Definition{Name: "data"}}},
		"plan of a destroy": {plan.Plan, plan.Request{Pair: plan.Definition{Name: "data"}, Absent: true}},
		"another file":      {plan.Apply, plan.Request{Pair: sshPair()}},
	} {
		_, backup, m := two()
		mustExchange(t, m, plan.Request{Pair: sshPair()})
		line := backup.Files[authorizedKeys]
		backup.Mkdir(authorizedKeys)
		if name == "another file" {
			backup.Facts.SSHD.Settings = map[string][]string{"authorizedkeysfile": {"/root/keys"}}
		}
		before := backup.Snapshot()
		reply := run(m.backup, request.verb, plan.Backup, request.req)
		if len(reply.Problems) != 1 || reply.Problems[0].Path != "login" || !strings.Contains(reply.Problems[0].Msg, authorizedKeys+" is no plain file") || reply.Problems[0].Hint == "" {
			t.Errorf("%s: %v", name, problems(reply))
		}
		if diff := cmp.Diff(before, backup.Snapshot()); diff != "" {
			t.Errorf("%s: changed (-before +after):\n%s", name, diff)
		}
		backup.Files[authorizedKeys] = line
		mustRun(t, m.backup, plan.Destroy, plan.Backup, plan.Request{Pair: plan.Definition{Name: "data"}})
		if keys := keysIn(backup); keys != "" {
			t.Errorf("%s: then destroy leaves %q", name, keys)
		}
	}
	_, backup, m := two()
	mustExchange(t, m, plan.Request{Pair: sshPair()})
	backup.Mkdir(authorizedKeys)
	if _, err := exchange(m, plan.Request{Pair: dataPair()}); err == nil || !strings.Contains(err.Error(), "login: "+authorizedKeys+" is no plain file") {
		t.Errorf("from ssh to the daemon: %v", err)
	}
}

func TestNewHostKeysAreToldByTheNextApply(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	p := sshPair()
	mustExchange(t, m, plan.Request{Pair: p})
	backup.Facts.SSHD.HostKeys = []string{"ecdsa-sha2-nistp256 AAAAnew", "ssh-ed25519 AAAAother"}
	there := mustRun(t, m.backup, plan.Read, plan.Backup, plan.Request{Pair: p})
	here := mustRun(t, m.source, plan.Read, plan.Source, plan.Request{Pair: p})
	if !strings.Contains(there.Checks["login"], "other host keys than the source host was told") {
		t.Errorf("checks: %v", there.Checks)
	}
	if there.Fingerprint == here.Fingerprint {
		t.Error("the fingerprints are alike, and the hosts do not know each other")
	}
	mustExchange(t, m, plan.Request{Pair: p})
	inSync(t, m, p)
	if got := string(source.Files[plan.KnownHostsFile("data")].Data); !strings.HasSuffix(got, "\nlockstep-data ecdsa-sha2-nistp256 AAAAnew\nlockstep-data ssh-ed25519 AAAAother\n") {
		t.Errorf("known hosts: %q", got)
	}
	if starts, _ := source.Starts("lockstep@data.service"); starts != 2 {
		t.Errorf("the agent was started %d times; it reads the keys when it starts", starts)
	}
}

func TestThePrivateKeyIsInItsFileAlone(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	p := sshPair()
	told := func(role plan.Role, verb plan.Verb) {
		t.Helper()
		text, err := json.Marshal(run(m.on(role), verb, role, plan.Request{Pair: p}))
		if err != nil || strings.Contains(string(text), "PRIVATE KEY") {
			t.Errorf("%s --role %s: %v, %s", verb, role, err, text)
		}
	}
	told(plan.Source, plan.Plan)
	replies, err := exchange(m, plan.Request{Pair: p})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := json.Marshal(replies); err != nil || strings.Contains(string(text), "PRIVATE KEY") || !strings.Contains(string(text), plan.SSHKeyFile("data")) {
		t.Errorf("%v, %s", err, text)
	}
	source.Edit(plan.SSHKeyFile("data"), func(text string) string { return text + "x" })
	told(plan.Source, plan.Plan)
	told(plan.Source, plan.Destroy)
	for path, f := range backup.Files {
		if strings.Contains(string(f.Data), "PRIVATE KEY") {
			t.Errorf("the backup host has it in %s", path)
		}
	}
}

func TestANewKeyOfTheSourceReplacesTheOldLine(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	p := sshPair()
	mustExchange(t, m, plan.Request{Pair: p})
	old := keysIn(backup)
	source.Remove(plan.SSHKeyFile("data"))
	if reply := mustRun(t, m.source, plan.Read, plan.Source, plan.Request{Pair: p}); reply.Fingerprint != "" {
		t.Error("a host without its key has a fingerprint")
	}
	mustExchange(t, m, plan.Request{Pair: p})
	if now := keysIn(backup); now == old || strings.Count(now, "\n") != 1 {
		t.Errorf("was %q, is %q", old, now)
	}
	inSync(t, m, p)
}

// What is relayed becomes part of a line in a file that says who is root.
func TestARecipientCannotBringMoreThanAKey(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	p := sshPair()
	key := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Prepare: true}).PublicKey
	seal, ours, _ := strings.Cut(key, " ")
	if seal == "" || !strings.HasPrefix(ours, "ssh-ed25519 ") {
		t.Fatalf("public key: %q", key)
	}
	for _, bad := range []string{
		seal + " " + ours + "\nssh-ed25519 AAAA intruder", seal + " command=\"x\" " + ours, seal + " ssh-ed25519", seal + " ssh-ed25519 AAAA", seal + " x",
	} {
		reply := run(m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Recipient: bad})
		if len(reply.Problems) == 0 && !strings.HasPrefix(bad, seal+" "+ours) || strings.Contains(keysIn(backup), "intruder") {
			t.Errorf("%q: %v\n%s", bad, problems(reply), keysIn(backup))
		}
	}
	if reply := run(m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Recipient: seal}); len(reply.Problems) == 0 && keysIn(backup) == "" {
		t.Error("without a key there is nobody to let in, and apply says nothing")
	}
	if reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Password: "correct horse"}); len(reply.Problems) != 1 ||
		!strings.Contains(reply.Problems[0].Msg, "do not know each other's ssh keys yet") || source.Files[plan.DefinitionFile("data")].Data != nil {
		t.Errorf("%v", problems(reply))
	}
}

func TestReasonsWhySSHDoesNotGetThrough(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil       func(*hosttest.Host)
		field, want string
	}{
		"key taken away": {func(h *hosttest.Host) { h.Remove(authorizedKeys) }, "login", "refuses the pair's key"},
		"another host":   {func(h *hosttest.Host) { h.Facts.SSHD.HostKeys = []string{"ssh-ed25519 AAAAelse"} }, "login", "is not the backup host"},
		"module gone":    {func(h *hosttest.Host) { h.Remove(plan.SSHConfFile("data")) }, "source.address", "no such module"},
	} {
		source, backup, m := two()
		p := sshPair()
		key := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Prepare: true}).PublicKey
		box := mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Recipient: key}).SealedPassword
		tc.spoil(backup)
		before := source.Snapshot()
		reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: p, SealedPassword: box})
		if len(reply.Problems) != 1 || reply.Problems[0].Path != tc.field || !strings.Contains(reply.Problems[0].Msg, tc.want) || reply.Problems[0].Hint == "" {
			t.Errorf("%s: %v", name, problems(reply))
		}
		if diff := cmp.Diff(before, source.Snapshot()); diff != "" {
			t.Errorf("%s: the source changed:\n%s", name, diff)
		}
	}
}

// One pair comes by ssh, another by the daemon: each takes its own along.
func TestTheDaemonGoesWithTheLastPairThatNeedsIt(t *testing.T) {
	t.Parallel()
	_, backup, m := two()
	mail := definition("mail")
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	mustExchange(t, m, plan.Request{Pair: mail})
	mustExchange(t, m, plan.Request{Pair: sshPair()})
	inSync(t, m, mail)
	inSync(t, m, sshPair())
	if starts, _ := backup.Starts("lockstep-rsyncd.service"); starts != 1 {
		t.Errorf("the daemon was started %d times", starts)
	}
	mustExchange(t, m, plan.Request{Pair: definition("mail", "transport: ssh")})
	if _, ok := backup.Files[plan.RsyncdConf]; ok {
		t.Error("the daemon is left, and nobody needs it")
	}
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	inSync(t, m, dataPair())
	inSync(t, m, definition("mail", "transport: ssh"))
	if strings.Contains(keysIn(backup), ":data") || !strings.Contains(keysIn(backup), ":mail") {
		t.Errorf("authorized keys: %q", keysIn(backup))
	}
}

func TestAMovedAuthorizedKeysFileMovesTheLine(t *testing.T) {
	t.Parallel()
	_, backup, m := two()
	backup.Facts.SSHD.Settings = map[string][]string{"authorizedkeysfile": {"/root/%u_keys .ssh/authorized_keys"}}
	const first = "/root/root_keys"
	key := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: sshPair(), Prepare: true}).PublicKey
	mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: sshPair(), Recipient: key})
	if !strings.Contains(string(backup.Files[first].Data), "managed-by-lockstep:data") {
		t.Fatalf("%q", backup.Files[first].Data)
	}
	backup.Facts.SSHD.Settings = nil
	mustExchange(t, m, plan.Request{Pair: sshPair()})
	if _, ok := backup.Files[first]; ok {
		t.Errorf("%s is left", first)
	}
	inSync(t, m, sshPair())
}
