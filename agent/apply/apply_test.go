// SPDX-License-Identifier: Apache-2.0

package apply_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/agent/apply"
	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/internal/hosttest"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/rsyncd"
)

// secretsOf reads the secrets file of a backup host and the secret of a source host.
func secretsOf(t *testing.T, h *hosttest.Host, name string) []plan.Secret {
	t.Helper()
	secrets, err := rsyncd.ParseSecrets(h.Files[plan.SecretsFile(name)].Data)
	if err != nil {
		t.Fatal(err)
	}
	return secrets
}

func secretOf(t *testing.T, h *hosttest.Host, name string) plan.Secret {
	t.Helper()
	s, ok := plan.ParseSecretData(h.Files[plan.SecretFile(name)].Data)
	if !ok {
		t.Fatal("no secret")
	}
	return s
}

func users(secrets []plan.Secret) string {
	var names []string
	for _, s := range secrets {
		names = append(names, s.User)
	}
	return strings.Join(names, " ")
}

func TestRotationKeepsTheOldPasswordUntilTheSourceHasSwitched(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	p := dataPair()
	mustExchange(t, m, plan.Request{Pair: p})
	old := secretOf(t, source, "data")
	key := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Prepare: true}).PublicKey

	rotated := mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Rotate: true, Recipient: key})
	if got := users(secretsOf(t, backup, "data")); got != "lockstep-1 lockstep-2" {
		t.Fatalf("accepted: %s", got)
	}
	if secretsOf(t, backup, "data")[0] != old {
		t.Error("the old password changed")
	}
	if !strings.Contains(string(backup.Files[plan.ModuleFile("data")].Data), "auth users = lockstep-1, lockstep-2\n") {
		t.Error("the module does not accept both")
	}
	if words := rotated.Checks["secrets"]; !strings.Contains(words, "lockstep-1 is still accepted") {
		t.Errorf("check of secrets: %q", words)
	}
	// A front end that died here: nothing is dropped by a later apply without, or with the old, fingerprint.
	mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Fingerprint: mustRun(t, m.source, plan.Read, plan.Source, plan.Request{Pair: p}).Fingerprint})
	if got := users(secretsOf(t, backup, "data")); got != "lockstep-1 lockstep-2" {
		t.Fatalf("accepted: %s", got)
	}
	switched := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, SealedPassword: rotated.SealedPassword})
	if got := secretOf(t, source, "data"); got.User != "lockstep-2" || got.Password == old.Password {
		t.Errorf("the source has %s", got)
	}
	if switched.Fingerprint != rotated.Fingerprint {
		t.Errorf("fingerprints %s and %s", switched.Fingerprint, rotated.Fingerprint)
	}
	done := mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Fingerprint: switched.Fingerprint})
	if got := users(secretsOf(t, backup, "data")); got != "lockstep-2" || !done.Changed {
		t.Errorf("accepted: %s", got)
	}
	inSync(t, m, p)
	if changes := mustExchange(t, m, plan.Request{Pair: p}); len(changes) > 0 {
		t.Errorf("changed again: %v", changes)
	}
}

func TestASourceThatLostItsSecretGetsTheSameOneAgain(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	before := secretOf(t, source, "data")
	source.Remove("/etc/lockstep")
	source.Remove("/var/lib/lockstep/host.key")
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	if got := secretOf(t, source, "data"); got != before {
		t.Errorf("now %s", got)
	}
	if got := users(secretsOf(t, backup, "data")); got != "lockstep-1" {
		t.Errorf("accepted: %s", got)
	}
	inSync(t, m, dataPair())
}

func TestPasswordOfTheUser(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	p := dataPair()
	mustExchange(t, m, plan.Request{Pair: p, Password: "correct horse"})
	if s := secretOf(t, source, "data"); s.Password != "correct horse" || s.User != "lockstep-1" {
		t.Errorf("the source has %s", s)
	}
	for _, req := range []plan.Request{{Pair: p, Password: "correct horse"}, {Pair: p}} {
		if changes := mustExchange(t, m, req); len(changes) > 0 {
			t.Errorf("changed again: %v", changes)
		}
	}
	mustExchange(t, m, plan.Request{Pair: p, Password: "battery staple"})
	if s := secretOf(t, source, "data"); s.Password != "battery staple" || s.User != "lockstep-2" {
		t.Errorf("the source has %s", s)
	}
	if got := users(secretsOf(t, backup, "data")); got != "lockstep-2" {
		t.Errorf("accepted: %s", got)
	}
	// Without a relay, both sides count alike.
	for _, role := range []plan.Role{plan.Backup, plan.Source} {
		mustRun(t, m.on(role), plan.Apply, role, plan.Request{Pair: p, Password: "tr0ub4dor"})
	}
	if s := secretOf(t, source, "data"); s.User != "lockstep-3" || s.Password != "tr0ub4dor" {
		t.Errorf("the source has %s", s)
	}
	reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Password: "line\nbreak"})
	if len(reply.Problems) == 0 || strings.Contains(fmt.Sprint(reply), "break") && !strings.Contains(problems(reply).Error(), "line break") {
		t.Errorf("a password with a line break: %+v", reply)
	}
}

// A name that begins with the new one is another name, and so is one with a number at its end.
func TestANewUserIsNotTakenForAGenerationOfTheOldOne(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ from, to, want string }{{"rep-nfs", "rep", "rep-2"}, {"rep", "rep-nfs", "rep-nfs-2"}, {"rep-1", "rep", "rep-2"}, {"rep", "rep-1", "rep-1-2"}} {
		for _, password := range []string{"", "correct horse"} {
			source, backup, m := two()
			p := dataPair()
			p.Auth.User = tc.from
			mustExchange(t, m, plan.Request{Pair: p, Password: password})
			p.Auth.User = tc.to
			if password == "" {
				mustExchange(t, m, plan.Request{Pair: p})
			} else { // as by hand: both sides count alike
				for _, role := range []plan.Role{plan.Backup, plan.Source} {
					mustRun(t, m.on(role), plan.Apply, role, plan.Request{Pair: p, Password: password})
				}
			}
			accepted := secretsOf(t, backup, "data")
			if got := accepted[len(accepted)-1].User; got != tc.want {
				t.Errorf("auth.user from %s to %s: the module takes %s", tc.from, tc.to, got)
			}
			if got := secretOf(t, source, "data").User; got != tc.want {
				t.Errorf("auth.user from %s to %s: the source logs in as %s", tc.from, tc.to, got)
			}
		}
	}
}

// A password file that was corrected on the backup host is a generation there of which the source host knows nothing.
func TestPasswordOfTheUserAfterAWrongOne(t *testing.T) {
	t.Parallel()
	p := dataPair()
	source, _, m := two()
	for _, password := range []string{"corect horse", "correct hors", "correct horse"} {
		mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Password: password})
	}
	before := source.Changes()
	reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Password: "horse"})
	if len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0].Hint, "the password files of the two hosts differ") ||
		!strings.Contains(reply.Problems[0].Msg, "lockstep-1@") || source.Changes() != before {
		t.Errorf("another password: %v", problems(reply))
	}
	mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Password: "correct horse"})
	if s := secretOf(t, source, "data"); s.User != "lockstep-3" || s.Password != "correct horse" {
		t.Errorf("the source has %s", s)
	}
	again := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Password: "correct horse"})
	if again.Changed || again.Checks["secret"] != plan.InSync {
		t.Errorf("a second time: %v, %v", again.Changes, again.Checks)
	}
}

func TestOtherPasswordOnTheOtherSideIsSeen(t *testing.T) {
	t.Parallel()
	_, _, m := two()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	for role, object := range map[plan.Role]string{plan.Source: "secret", plan.Backup: "secrets"} {
		reply := mustRun(t, m.on(role), plan.Read, role, plan.Request{Pair: dataPair(), Fingerprint: "0123"})
		if !strings.Contains(reply.Checks[object], "has another password") {
			t.Errorf("%s: %q", role, reply.Checks[object])
		}
	}
}

func TestSealedPasswordOpensForOnePairOnOneHostOnly(t *testing.T) {
	t.Parallel()
	source, _, m := two()
	p, mail := dataPair(), definition("mail")
	key := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Prepare: true}).PublicKey
	box := mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Recipient: key}).SealedPassword
	damaged := []byte(box)
	damaged[40] = 'A' + 'B' - min(max(damaged[40], 'A'), 'B') // another letter than it was
	for name, tt := range map[string]struct {
		req  plan.Request
		hint string
	}{
		"of another pair":  {plan.Request{Pair: mail, SealedPassword: box}, "with this host's public key"},
		"damaged":          {plan.Request{Pair: p, SealedPassword: string(damaged)}, "with this host's public key"},
		"a file without @": {plan.Request{Pair: p, SealedPassword: "data.sealed"}, "or @FILE with that in it"},
		"another password": {plan.Request{Pair: p, SealedPassword: box, Password: "correct horse"}, "the same password"},
	} {
		before := source.Changes()
		reply := run(m.source, plan.Apply, plan.Source, tt.req)
		if len(reply.Problems) != 1 || reply.Problems[0].Path != "secret" || !strings.Contains(reply.Problems[0].Hint, tt.hint) || source.Changes() != before {
			t.Errorf("%s: %+v", name, reply.Problems)
		}
	}
	other, _, otherHosts := two()
	mustRun(t, otherHosts.source, plan.Apply, plan.Source, plan.Request{Pair: p, Prepare: true})
	if reply := run(otherHosts.source, plan.Apply, plan.Source, plan.Request{Pair: p, SealedPassword: box}); len(reply.Problems) != 1 {
		t.Errorf("on another host: %+v", reply)
	}
	if _, ok := other.Files[plan.SecretFile("data")]; ok {
		t.Error("another host has the secret")
	}
	for _, bad := range []string{"AAAA", "nfs01.key"} {
		if reply := run(m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Recipient: bad}); len(reply.Problems) != 1 ||
			reply.Problems[0].Msg != "--recipient is not a public key of a source host" || !strings.Contains(reply.Problems[0].Hint, "or @FILE") {
			t.Errorf("recipient %q: %+v", bad, reply.Problems)
		}
	}
}

// No reply holds a password: replies end in state files, logs and terminals.
func TestNoReplyHoldsAPassword(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	p := dataPair()
	var replies []plan.Reply
	collect := func(req plan.Request) {
		rs, err := exchange(m, req)
		if err != nil {
			t.Fatal(err)
		}
		replies = append(replies, rs...)
		for _, role := range []plan.Role{plan.Source, plan.Backup} {
			for _, verb := range []plan.Verb{plan.Read, plan.Plan} {
				replies = append(replies, run(m.on(role), verb, role, req))
			}
		}
	}
	words := map[string]bool{}
	remember := func() {
		for _, s := range append(secretsOf(t, backup, "data"), secretOf(t, source, "data")) {
			words[s.Password], words[s.Key] = true, true
		}
	}
	collect(plan.Request{Pair: p})
	remember()
	source.Edit(plan.SecretFile("data"), func(string) string { return "tampered with\nlockstep-1\n" })
	backup.Edit(plan.SecretsFile("data"), func(string) string { return "lockstep-1:tampered with\n" })
	words["tampered with"] = true
	collect(plan.Request{Pair: p, Rotate: true})
	remember()
	collect(plan.Request{Pair: p, Password: "correct horse"})
	remember()
	source.Before = func(what string) error {
		if strings.HasPrefix(what, "restart") {
			return errors.New("disk on fire")
		}
		return nil
	}
	replies = append(replies, run(m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Password: "battery staple"}))
	words["battery staple"] = true
	for _, r := range replies {
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		for word := range words {
			if strings.Contains(string(text), word) {
				t.Errorf("a reply holds a secret: %s", text)
			}
		}
	}
	if len(words) < 6 {
		t.Errorf("only %d secrets were looked for", len(words))
	}
}

// Each host sees one pair begin where the other one ends.
func TestTwoPairsInACircleAreRefusedOnEitherHost(t *testing.T) {
	t.Parallel()
	a, b, m := two()
	a.Mkdir("/x")
	b.Mkdir("/y")
	there, back := dataPair(), definition("mail")
	there.Source.Host, there.Source.Address, there.Source.Path, there.Backup.Host, there.Backup.Address, there.Backup.Path = "a", "192.0.2.1", "/x", "b", "192.0.2.2", "/y"
	back.Source.Host, back.Source.Address, back.Source.Path, back.Backup.Host, back.Backup.Address, back.Backup.Path = "b", "192.0.2.2", "/y", "a", "192.0.2.1", "/x"
	mustExchange(t, m, plan.Request{Pair: there})
	for role, host := range map[plan.Role]*host.Machine{plan.Source: m.backup, plan.Backup: m.source} {
		reply := run(host, plan.Plan, role, plan.Request{Pair: back})
		if len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0].Msg, "would undo the changes of the other") {
			t.Errorf("%s: %v", role, problems(reply))
		}
	}
}

// A second source host, or backup host, would take over what the first one has under this name: password, module, agent.
func TestAPairKeepsItsNameOnEitherHost(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	p := dataPair()
	p.Source.Host, p.Source.Address, p.Backup.Host, p.Backup.Address = "web1", "192.0.2.1", "backup1", "192.0.2.8"
	mustExchange(t, m, plan.Request{Pair: p})
	fromAnother, toAnother, onward := p, p, p
	fromAnother.Source.Host, fromAnother.Source.Address, fromAnother.Backup.Path = "web2", "192.0.2.2", "/backup/web2"
	toAnother.Backup.Host, toAnother.Backup.Address = "backup2", "192.0.2.9"
	onward.Source.Host, onward.Source.Address, onward.Backup.Host, onward.Backup.Address = "backup1", "192.0.2.8", "cellar", "192.0.2.7"
	for _, tt := range []struct {
		host *hosttest.Host
		role plan.Role
		pair plan.Definition
	}{{backup, plan.Backup, fromAnother}, {source, plan.Source, toAnother}, {backup, plan.Source, onward}} {
		before := tt.host.Snapshot()
		for _, verb := range []plan.Verb{plan.Plan, plan.Apply} {
			reply := run(tt.host.Machine(), verb, tt.role, plan.Request{Pair: tt.pair, Password: "correct horse"})
			if len(reply.Problems) != 1 || reply.Problems[0].Path != "name" || !strings.Contains(reply.Problems[0].Msg, "from web1:/srv/data to backup1:/backup/data") {
				t.Errorf("%s of the %s role: %v", verb, tt.role, problems(reply))
			}
		}
		if !slices.Equal(before, tt.host.Snapshot()) {
			t.Errorf("%s: the host changed", tt.role)
		}
		if words := mustRun(t, tt.host.Machine(), plan.Read, tt.role, plan.Request{Pair: tt.pair}).Checks["definition"]; !strings.Contains(words, "that is another one") {
			t.Errorf("%s: check of definition: %q", tt.role, words)
		}
	}
	p.Source.Address = "192.0.2.3"
	mustExchange(t, m, plan.Request{Pair: p})
	inSync(t, m, p)
	backup.Edit(plan.DefinitionFile("data"), replace("host: web1", "host: web2"))
	mustExchange(t, m, plan.Request{Pair: p}) // what was edited by hand is put back
	inSync(t, m, p)
	for _, role := range []plan.Role{plan.Source, plan.Backup} {
		mustRun(t, m.on(role), plan.Destroy, role, plan.Request{Pair: p})
	}
	p.Source.Host, p.Source.Address = "web2", "192.0.2.2"
	mustExchange(t, m, plan.Request{Pair: p})
}

// problem is one that a host has, and what the message has to name.
type problem struct {
	name  string
	role  plan.Role
	pair  plan.Definition
	host  func(*hosttest.Host)
	field string
	words []string
}

func hostProblems() []problem {
	data := dataPair()
	with := func(lines ...string) plan.Definition { return definition("data", lines...) }
	from := func(old, now string) plan.Definition {
		text := strings.Replace(string(data.Render()), old, now, 1)
		p, err := plan.ParseDefinition([]byte(text))
		if err != nil {
			panic(err)
		}
		return p
	}
	mail := func(h *hosttest.Host) {
		m := h.Machine()
		if _, err := exchange(machines{m, m}, plan.Request{Pair: definition("mail")}); err != nil {
			panic(err)
		}
	}
	none := func(*hosttest.Host) {}
	around := dataPair()
	around.Source.Path, around.Backup.Path = "/backup", "/vault"
	lead := around
	lead.Source.Path = "/lnk"
	linked := func(before func(*hosttest.Host), from, to string) func(*hosttest.Host) {
		return func(h *hosttest.Host) {
			h.Mkdir(to)
			h.Links[from] = to
			before(h)
		}
	}
	listens := func(l host.Listener) func(*hosttest.Host) {
		return func(h *hosttest.Host) { h.Listeners[8730] = l }
	}
	return []problem{
		{"not root", plan.Source, data, func(h *hosttest.Host) { h.Facts.Root = false }, "", []string{"needs root", "sudo lockstep"}},
		{"no systemd", plan.Backup, data, func(h *hosttest.Host) { h.Facts.Systemd = false }, "", []string{"systemd does not run"}},
		{"no rsync on Debian", plan.Source, data, func(h *hosttest.Host) { h.Facts.Rsync = host.Rsync{} }, "service", []string{"rsync is not installed", "apt-get install rsync"}},
		{"no rsync on Fedora", plan.Backup, data, func(h *hosttest.Host) {
			h.Facts.Rsync, h.Facts.OS = host.Rsync{}, map[string]string{"ID": "rocky", "ID_LIKE": "rhel centos fedora"}
		}, "daemon", []string{"rsync is not installed", "dnf install rsync"}},
		{"old rsync", plan.Source, data, func(h *hosttest.Host) { h.Facts.Rsync.Version = "3.0.9" }, "service", []string{"3.0.9", "3.1.3"}},
		{"broken rsync", plan.Backup, data, func(h *hosttest.Host) {
			h.Facts.Rsync = host.Rsync{Path: "/usr/bin/rsync", Version: "3.4.3", Fault: "does not delete"}
		}, "daemon", []string{"3.4.3", "does not delete"}},
		{"binary of a user", plan.Source, data, func(h *hosttest.Host) { h.Facts.Untrusted = "/home/x/lockstep belongs to x" }, "program", []string{"/home/x/lockstep", "install -m 0755"}},
		{"no source directory", plan.Source, data, func(h *hosttest.Host) { h.Remove("/srv/data") }, "source.path", []string{"/srv/data does not exist"}},
		{"source is a file", plan.Source, data, func(h *hosttest.Host) { h.Put("/srv/data", "") }, "source.path", []string{"/srv/data is not a directory"}},
		{"unknown uid", plan.Backup, from("uid: root", "uid: nobody-here"), none, "backup.uid", []string{`no user "nobody-here"`}},
		{"unknown gid", plan.Backup, from("gid: root", "gid: nobody-here"), none, "backup.gid", []string{`no group "nobody-here"`}},
		{"unknown gid that is a user's name", plan.Backup, from("uid: root\n  gid: root", "uid: backup\n  gid: backup"), func(h *hosttest.Host) { delete(h.Groups, "backup") },
			"backup.gid", []string{`no group "backup"`}},
		{"unresolvable source", plan.Backup, from("address: 127.0.0.1", "address: no-such-host"), none, "source.address", []string{`"no-such-host"`, "IP address"}},
		{"port taken by the system's rsync", plan.Backup, data, listens(host.Listener{PID: 7, Command: "rsync", Unit: "rsync.service"}), "backup.port", []string{"port 8730", "rsync.service", "systemctl disable --now rsync.service"}},
		{"port taken", plan.Backup, data, listens(host.Listener{PID: 7, Command: "nginx"}), "backup.port", []string{"nginx (process 7)", "backup.port"}},
		{"path exported by the system's rsync", plan.Backup, data, func(h *hosttest.Host) {
			h.Put("/etc/rsyncd.conf", "a line that the daemon ignores\n[old]\npath = /backup/data/\n")
		}, "backup.path", []string{`module "old" in /etc/rsyncd.conf`}},
		{"path below an exported one", plan.Backup, data, func(h *hosttest.Host) {
			h.Put("/etc/rsyncd.conf", "&include /etc/rsyncd.d\n")
			h.Mkdir("/etc/rsyncd.d")
			h.Put("/etc/rsyncd.d/all.conf", "[all]\npath = /backup\n")
		}, "backup.path", []string{`module "all" in /etc/rsyncd.d/all.conf has path /backup`}},
		{"path above an exported one", plan.Backup, data, func(h *hosttest.Host) { h.Put("/etc/rsyncd.conf", "[sub]\npath = /backup/data/sub\n") }, "backup.path", []string{"/backup/data/sub"}},
		{"module of the admin's in our daemon", plan.Backup, data, func(h *hosttest.Host) {
			h.Mkdir("/etc/lockstep")
			h.Mkdir("/etc/lockstep/rsyncd.d")
			h.Put("/etc/lockstep/rsyncd.d/own.conf", "[data]\npath = /own\n")
		}, "backup.module", []string{"/etc/lockstep/rsyncd.d/own.conf"}},
		{"module of the admin's in our daemon, to rsync", plan.Backup, data, func(h *hosttest.Host) {
			h.Mkdir("/etc/lockstep")
			h.Mkdir("/etc/lockstep/rsyncd.d")
			h.Put("/etc/lockstep/rsyncd.d/own.conf", "[DA TA]\npath = /own\n")
		}, "backup.module", []string{"/etc/lockstep/rsyncd.d/own.conf"}},
		{"directory of another pair", plan.Backup, from("path: /backup/data", "path: /backup/mail"), mail, "backup.path", []string{`pair "mail"`, "/backup/mail"}},
		{"directory inside another pair's", plan.Backup, from("path: /backup/data", "path: /backup/mail/x"), mail, "backup.path", []string{`pair "mail"`}},
		{"directory around another pair's", plan.Backup, from("path: /backup/data", "path: /backup"), mail, "backup.path", []string{`pair "mail"`}},
		{"module of another pair", plan.Backup, from("module: data", "module: mail"), mail, "backup.module", []string{`pair "mail"`}},
		{"module of another pair, to rsync", plan.Backup, from("module: data", "module: Ma il"), mail, "backup.module", []string{`module "mail" belongs to pair "mail"`}},
		{"port of another pair differs", plan.Backup, from("port: 8730", "port: 9999"), mail, "backup.port", []string{`port 8730, for pair "mail"`}},
		{"backup inside another pair's source", plan.Backup, from("path: /backup/data", "path: /srv/mail/backup"), mail, "backup.path", []string{`source directory of pair "mail"`}},
		{"source around another pair's backup", plan.Source, around, func(h *hosttest.Host) { mail(h); h.Mkdir("/backup") }, "source.path", []string{`backup directory of pair "mail"`}},
		{"directory of another pair, by a link", plan.Backup, from("path: /backup/data", "path: /b2/mail"), linked(mail, "/b2", "/backup"), "backup.path",
			[]string{"/b2/mail (which leads to /backup/mail) is exported already", `pair "mail" has its backup in /backup/mail`}},
		{"directory of another pair, which has it by a link", plan.Backup, from("path: /backup/data", "path: /vault/mail"), linked(mail, "/backup", "/vault"), "backup.path",
			[]string{"/vault/mail is exported already", "/backup/mail (which leads to /vault/mail)"}},
		{"backup inside of its own source, by a link", plan.Backup, from("path: /backup/data", "path: /lnk/data/copy"), linked(none, "/lnk", "/srv"), "backup.path",
			[]string{"/lnk/data/copy (which leads to /srv/data/copy) and /srv/data are on the same host"}},
		{"backup inside another pair's source, by a link", plan.Backup, from("path: /backup/data", "path: /lnk/mail/backup"), linked(mail, "/lnk", "/srv"), "backup.path", []string{`source directory of pair "mail", /srv/mail`}},
		{"source around another pair's backup, by a link", plan.Source, lead, func(h *hosttest.Host) { mail(h); h.Mkdir("/backup"); h.Links["/lnk"] = "/backup" }, "source.path",
			[]string{`/lnk (which leads to /backup) holds the backup directory of pair "mail"`}},
		{"backup in the system, by a link", plan.Backup, from("path: /backup/data", "path: /v/lib"), linked(none, "/v", "/var"), "backup.path",
			[]string{"/v/lib leads to /var/lib", "belongs to the backup host's own system"}},
		{"path exported by a link to rsyncd.conf", plan.Backup, data, func(h *hosttest.Host) {
			h.Mkdir("/etc/rsync")
			h.Put("/etc/rsync/rsyncd.conf", "[old]\npath = /b2\n")
			h.Links["/etc/rsyncd.conf"], h.Links["/b2"] = "/etc/rsync/rsyncd.conf", "/backup"
		}, "backup.path", []string{`module "old" in /etc/rsyncd.conf has path /b2 (which leads to /backup)`}},
		{"rsyncd.conf that cannot be read", plan.Backup, data, func(h *hosttest.Host) {
			h.ReadError = map[string]error{"/etc/rsyncd.conf": errors.New("/etc/rsyncd.conf: input/output error")}
		}, "backup.path", []string{"it cannot be told whether /backup/data is exported already: /etc/rsyncd.conf: input/output error"}},
		{"backup is a symbolic link", plan.Backup, data, func(h *hosttest.Host) {
			h.Dirs = map[string]host.Dir{"/backup/data": {Exists: true, IsDir: true, Symlink: true}}
		}, "backup.path", []string{"symbolic link"}},
		{"backup is a file", plan.Backup, data, func(h *hosttest.Host) { h.Mkdir("/backup"); h.Put("/backup/data", "") }, "backup.path", []string{"not a directory"}},
		{"backup on a read-only filesystem", plan.Backup, data, func(h *hosttest.Host) {
			h.Dirs = map[string]host.Dir{"/backup/data": {ReadOnly: true}}
		}, "backup.path", []string{"read-only"}},
		{"path that rsyncd.conf cannot hold", plan.Backup, from("path: /backup/data", `path: "/backup/%RSYNC_PID%"`), none, "backup.path", []string{"%RSYNC_PID%"}},
		{"reserved module", plan.Backup, from("module: data", "module: DEFAULT"), none, "backup.module", []string{"reserved"}},
		{"no password yet", plan.Source, with("paused: true"), none, "secret", []string{"there is no password yet", "--sealed-password"}},
	}
}

func TestProblemsOfAHostNameObjectAndRemedyAndChangeNothing(t *testing.T) {
	t.Parallel()
	for _, tc := range hostProblems() {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h, m := one()
			tc.host(h)
			before, count := h.Snapshot(), h.Changes()
			for _, verb := range []plan.Verb{plan.Plan, plan.Apply} {
				req := plan.Request{Pair: tc.pair}
				if tc.role == plan.Source && tc.name != "no password yet" {
					req.Password = "correct horse"
				}
				reply := run(m.source, verb, tc.role, req)
				if tc.name == "no password yet" && verb == plan.Plan {
					continue // apply of the backup role will bring it
				}
				if len(reply.Problems) != 1 || reply.Problems[0].Path != tc.field {
					t.Fatalf("%s: %v", verb, problems(reply))
				}
				for _, word := range tc.words {
					if text := reply.Problems[0].String(); !strings.Contains(text, word) {
						t.Errorf("%s: %q lacks %q", verb, text, word)
					}
				}
				if verb == plan.Apply && (reply.Changed || len(reply.Changes) > 0) {
					t.Errorf("changes: %v", reply.Changes)
				}
			}
			if n := h.Changes() - count; n > 1 || !slices.Equal(before, h.Snapshot()) {
				t.Errorf("%d changes were made", n)
			}
		})
	}
}

func TestProgramThatOthersCanChangeIsADriftOfTheUnit(t *testing.T) {
	t.Parallel()
	h, m := one()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	h.Facts.Untrusted = "/home/x/lockstep belongs to x"
	checks := mustRun(t, m.source, plan.Read, plan.Source, plan.Request{Pair: dataPair()}).Checks
	if words := checks["unit"]; !strings.Contains(words, "/home/x/lockstep belongs to x") || checks["definition"] != plan.InSync {
		t.Errorf("checks: %q", checks)
	}
}

func TestUnreachableModuleStopsTheSourceBeforeAnyChange(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	p := dataPair()
	key := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Prepare: true}).PublicKey
	box := mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Recipient: key}).SealedPassword
	before := source.Snapshot()
	try := func(field string, words ...string) {
		t.Helper()
		reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: p, SealedPassword: box})
		if len(reply.Problems) != 1 || reply.Problems[0].Path != field || reply.Changed {
			t.Fatalf("changed %v, %v", reply.Changed, problems(reply))
		}
		for _, word := range words {
			if text := reply.Problems[0].String(); !strings.Contains(text, word) {
				t.Errorf("%q lacks %q", text, word)
			}
		}
		if !slices.Equal(before, source.Snapshot()) {
			t.Error("the source changed")
		}
	}
	backup.Stop("lockstep-rsyncd.service")
	try("backup.address", "rsync://lockstep-1@127.0.0.1:8730/data", "connection refused", "firewall")
	backup.Restart("lockstep-rsyncd.service")
	backup.Edit(plan.SecretsFile("data"), replace("\nlockstep-1:", "\nlockstep-1:x"))
	try("secret", "refuses the password")
	backup.Remove(plan.ModuleFile("data"))
	try("source.address", "no such module", "source.address is 127.0.0.1")

	// A pair that runs can be changed while its backup is away.
	mustExchange(t, m, plan.Request{Pair: p})
	backup.Stop("lockstep-rsyncd.service")
	mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: definition("data", "paused: true")})
}

func TestRsyncThatWasRemovedIsNoOtherDrift(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		_, backup, m := two()
		mustExchange(t, m, plan.Request{Pair: p})
		backup.Facts.Rsync = host.Rsync{}
		reply := run(m.backup, plan.Plan, plan.Backup, plan.Request{Pair: p})
		if len(reply.Changes) > 0 || len(reply.Problems) != 1 || reply.Problems[0].Msg != "rsync is not installed" {
			t.Errorf("%+v, %+v", reply.Changes, reply.Problems)
		}
	})
}

func TestBackupThatIsNotMountedIsNotMadeAnew(t *testing.T) {
	t.Parallel()
	_, backup, m := two()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	backup.Remove("/backup")
	backup.Dirs = map[string]host.Dir{"/backup/data": {FS: "fs2"}}
	for _, verb := range []plan.Verb{plan.Plan, plan.Apply} {
		reply := run(m.backup, verb, plan.Backup, plan.Request{Pair: dataPair()})
		if len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0].Msg, "not mounted") {
			t.Errorf("%s: %+v", verb, reply.Problems)
		}
	}
	if _, ok := backup.Files["/backup/data"]; ok {
		t.Error("the directory was made on another filesystem")
	}
	read := mustRun(t, m.backup, plan.Read, plan.Backup, plan.Request{Pair: dataPair()})
	if !strings.Contains(read.Checks["directory"], "not mounted") {
		t.Errorf("check of directory: %q", read.Checks["directory"])
	}
}

func TestBackupThatWasAMountPointIsOne(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		_, backup, m := two()
		backup.Mkdir("/backup")
		backup.Mkdir("/backup/data")
		module := plan.ModuleFile("data")
		if plan.BySSH(p) {
			module = plan.SSHConfFile("data")
		}
		guarded := func() bool { return strings.Contains(string(backup.Files[module].Data), "pre-xfer exec = ") }
		mustExchange(t, m, plan.Request{Pair: p})
		if guarded() {
			t.Error("a plain directory must be a mount point")
		}
		backup.Dirs = map[string]host.Dir{"/backup/data": {Exists: true, IsDir: true, Mount: true, FS: "fs2"}}
		mustExchange(t, m, plan.Request{Pair: p})
		inSync(t, m, p)
		if !guarded() {
			t.Error("the module takes files when nothing is mounted")
		}
		delete(backup.Dirs, "/backup/data")
		for _, verb := range []plan.Verb{plan.Plan, plan.Apply} {
			if reply := run(m.backup, verb, plan.Backup, plan.Request{Pair: p}); len(reply.Problems) != 1 || reply.Problems[0].Path != "backup.path" || !strings.Contains(reply.Problems[0].Msg, "nothing is mounted there") {
				t.Errorf("%s: %v", verb, problems(reply))
			}
		}
		if words := mustRun(t, m.backup, plan.Read, plan.Backup, plan.Request{Pair: p}).Checks["directory"]; !strings.Contains(words, "nothing is mounted there") {
			t.Errorf("check of directory: %q", words)
		}
		elsewhere := p
		elsewhere.Backup.Path = "/backup/elsewhere"
		mustRun(t, m.backup, plan.Plan, plan.Backup, plan.Request{Pair: elsewhere})
		mustRun(t, m.backup, plan.Destroy, plan.Backup, plan.Request{Pair: p})
		mustExchange(t, m, plan.Request{Pair: p})
		if guarded() {
			t.Error("it is remembered after a destroy")
		}
	})
}

func TestReplacedSourceIsToldAndNotAccepted(t *testing.T) {
	t.Parallel()
	h, m := one()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	h.Put("/var/lib/lockstep/data/source.json", `{"path": "/srv/data", "identity": "fsid:1/2"}`)
	identity := "fsid:1/2"
	command := apply.Command{Role: plan.Source, Identity: func(string) (string, error) { return identity, nil }}
	do := func(verb plan.Verb) plan.Reply {
		command.Verb = verb
		return apply.Run(context.Background(), m.source, command, plan.Request{Protocol: 1, Pair: dataPair()})
	}
	if reply := do(plan.Read); reply.Checks["source_dir"] != plan.InSync {
		t.Errorf("check: %q", reply.Checks["source_dir"])
	}
	identity = "fsid:1/3"
	if reply := do(plan.Read); !strings.Contains(reply.Checks["source_dir"], "unmounted or replaced") || len(reply.Problems) > 0 {
		t.Errorf("read: %+v", reply)
	}
	if reply := do(plan.Apply); len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0].Hint, "lockstep approve data") {
		t.Errorf("apply: %+v", reply)
	}
}

func TestNamesAreResolvedOnceAndRemembered(t *testing.T) {
	t.Parallel()
	backup := hosttest.New()
	m := backup.Machine()
	p := definition("data")
	p.Source.Host, p.Source.Address = "nfs01", "nfs01"
	mustRun(t, m, plan.Apply, plan.Backup, plan.Request{Pair: p})
	allows := func(want string) {
		t.Helper()
		if text := string(backup.Files[plan.ModuleFile("data")].Data); !strings.Contains(text, "hosts allow = "+want+"\n") {
			t.Errorf("want %s in\n%s", want, text)
		}
	}
	allows("172.16.1.31")
	delete(backup.Names, "nfs01")
	if reply := mustRun(t, m, plan.Apply, plan.Backup, plan.Request{Pair: p}); reply.Changed {
		t.Errorf("changed while the name server is away: %v", reply.Changes)
	}
	backup.Names["nfs01"] = []string{"10.0.0.1", "fd00::1"}
	mustRun(t, m, plan.Apply, plan.Backup, plan.Request{Pair: p})
	allows("10.0.0.1 fd00::1")

	// What is remembered is of the old name; a new one that does not resolve is no reason to keep letting that in.
	p.Source.Address = "nfs01.typo"
	reply := run(m, plan.Apply, plan.Backup, plan.Request{Pair: p})
	if len(reply.Problems) != 1 || reply.Problems[0].Path != "source.address" {
		t.Errorf("a new address that does not resolve: %v, checks %v", problems(reply), reply.Checks)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	p := definition("data", "watch: {backend: inotify}")
	t.Run("raised and kept", func(t *testing.T) {
		t.Parallel()
		h, m := one()
		h.Count, h.Sysctls[plan.MaxUserWatches] = 100_000, "8192"
		mustExchange(t, m, plan.Request{Pair: p})
		if h.Sysctls[plan.MaxUserWatches] != "262144" || !strings.HasSuffix(string(h.Files[plan.SysctlFile].Data), "fs.inotify.max_user_watches = 262144\n") {
			t.Errorf("kernel %s, file %q", h.Sysctls[plan.MaxUserWatches], h.Files[plan.SysctlFile].Data)
		}
		inSync(t, m, p)
		h.Sysctls[plan.MaxUserWatches] = "8192"
		if reply := mustRun(t, m.source, plan.Read, plan.Source, plan.Request{Pair: p}); reply.Checks["limits"] != "fs.inotify.max_user_watches is 8192, needs 262144" {
			t.Errorf("check of limits: %q", reply.Checks["limits"])
		}
		mustExchange(t, m, plan.Request{Pair: p})
		inSync(t, m, p)
		mustRun(t, m.source, plan.Destroy, plan.Source, plan.Request{Pair: p})
		if _, ok := h.Files[plan.SysctlFile]; ok || h.Sysctls[plan.MaxUserWatches] != "262144" {
			t.Error("destroy left the file, or lowered the limit")
		}
	})
	t.Run("of several pairs together", func(t *testing.T) {
		t.Parallel()
		h, m := one()
		h.Count = 50_000
		mustExchange(t, m, plan.Request{Pair: p})
		first := h.Sysctls[plan.MaxUserWatches]
		mustExchange(t, m, plan.Request{Pair: definition("mail", "watch: {backend: inotify}")})
		if first != "65536" || h.Sysctls[plan.MaxUserWatches] != "262144" {
			t.Errorf("%s, then %s", first, h.Sysctls[plan.MaxUserWatches])
		}
		inSync(t, m, p)
	})
	t.Run("no matter with fanotify", func(t *testing.T) {
		t.Parallel()
		h, m := one()
		h.Count, h.Sysctls[plan.MaxUserWatches] = 100_000, "8192"
		mustExchange(t, m, plan.Request{Pair: dataPair()})
		inSync(t, m, dataPair())
		if h.Sysctls[plan.MaxUserWatches] != "8192" {
			t.Error("the limit was touched")
		}
	})
	t.Run("in a container", func(t *testing.T) {
		t.Parallel()
		h, m := one()
		h.Count, h.Sysctls[plan.MaxUserWatches], h.Facts.SysctlsWritable = 100_000, "8192", false
		mustExchange(t, m, plan.Request{Pair: p})
		reply := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p})
		if reply.Changed || !strings.Contains(reply.Checks["limits"], "cannot be set from here") {
			t.Errorf("%+v", reply)
		}
	})
}

func TestPackagedUnitIsNotDoubled(t *testing.T) {
	t.Parallel()
	const packaged, ours = "/usr/lib/systemd/system/lockstep@.service", "/etc/systemd/system/lockstep@.service"
	h, m := one()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	text := string(h.Files[ours].Data)
	h.Put(packaged, text[strings.Index(text, "[Unit]"):]) // as a package brings it, without our first line
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	if _, ok := h.Files[ours]; ok {
		t.Error("both units are there")
	}
	inSync(t, m, dataPair())
	h.Facts.Executable = "/usr/local/bin/lockstep" // an uploaded binary, which the packaged unit does not run
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	if text := string(h.Files[ours].Data); !strings.Contains(text, "ExecStart=/usr/local/bin/lockstep run %i\n") {
		t.Errorf("unit:\n%s", text)
	}
	inSync(t, m, dataPair())
	for _, role := range []plan.Role{plan.Source, plan.Backup} {
		mustRun(t, m.source, plan.Destroy, role, plan.Request{Pair: dataPair()})
	}
	if _, ok := h.Files[packaged]; !ok {
		t.Error("the package's unit is gone")
	}
}

func TestNewBinaryRestartsTheAgent(t *testing.T) {
	t.Parallel()
	h, m := one()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	h.Facts.Digest = "2"
	changes := mustExchange(t, m, plan.Request{Pair: dataPair()})
	if len(changes) != 1 || changes[0].Action != "restart" || changes[0].Path != "lockstep@data.service" {
		t.Errorf("changes: %v", changes)
	}
}

// An agent starts for as long as its tree takes to be watched, and its apply holds the host for so long: the others wait, and
// say for whom, as long as their callers let them.
func TestAnotherApplyIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, m := one()
		mustExchange(t, m, plan.Request{Pair: definition("mail")})
		h.StartError = func(unit string) error {
			if unit == "lockstep@data.service" {
				time.Sleep(time.Hour)
			}
			return nil
		}
		done := make(chan error, 1)
		go func() {
			_, err := exchange(m, plan.Request{Pair: dataPair()})
			done <- err
		}()
		synctest.Wait()
		var told []string
		command := apply.Command{Verb: plan.Apply, Role: plan.Source, Waiting: func(holder string) { told = append(told, holder) }}
		req := plan.Request{Pair: definition("mail", "exclude: ['*.tmp']")}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
		defer cancel()
		reply := apply.Run(ctx, m.source, command, req)
		if len(reply.Problems) != 1 || reply.Problems[0].Msg != "held by process 1: context deadline exceeded" || !strings.Contains(reply.Problems[0].Hint, "wait") {
			t.Errorf("%+v", reply)
		}
		if !slices.Equal(told, []string{"process 1"}) {
			t.Errorf("waits for %q", told)
		}
		if reply := apply.Run(t.Context(), m.source, command, req); !reply.Changed || len(reply.Problems) > 0 {
			t.Errorf("%+v", reply)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestReadByNameIsEnoughToImport(t *testing.T) {
	t.Parallel()
	_, m := one()
	byName := plan.Request{Pair: plan.Definition{Name: "data"}}
	for _, role := range []plan.Role{plan.Source, plan.Backup} {
		if reply := mustRun(t, m.source, plan.Read, role, byName); reply.Exists || reply.Pair != nil {
			t.Errorf("before: %+v", reply)
		}
	}
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	for _, role := range []plan.Role{plan.Source, plan.Backup} {
		reply := mustRun(t, m.source, plan.Read, role, byName)
		if !reply.Exists || reply.Pair == nil || reply.Pair.Source != dataPair().Source || reply.Fingerprint == "" {
			t.Errorf("%s: %+v", role, reply)
		}
		for object, check := range reply.Checks {
			if check != plan.InSync {
				t.Errorf("%s: %s", object, check)
			}
		}
	}
}

// What the guards need is in the record, too: a slip of the hand in one definition must not let another pair take its directory.
func TestAPairWhoseDefinitionCannotBeReadIsStillThere(t *testing.T) {
	t.Parallel()
	for name, hurt := range map[string]func(*hosttest.Host){
		"broken": func(h *hosttest.Host) {
			h.Edit(plan.DefinitionFile("mail"), replace("max_files: 1000", "max_files: many"))
		},
		"gone": func(h *hosttest.Host) { h.Remove(plan.DefinitionFile("mail")) },
	} {
		h, m := one()
		h.Mkdir("/backup")
		mustExchange(t, m, plan.Request{Pair: definition("mail")})
		hurt(h)
		in, around := dataPair(), dataPair()
		in.Backup.Path, in.Backup.Module, in.Backup.Port = "/backup/mail", "mail", 8731
		around.Source.Path, around.Backup.Path = "/backup", "/vault"
		for _, tt := range []struct {
			role plan.Role
			pair plan.Definition
			want string
		}{{plan.Backup, in, "backup.path backup.module backup.port"}, {plan.Source, around, "source.path"}} {
			var paths []string
			for _, problem := range run(m.source, plan.Plan, tt.role, plan.Request{Pair: tt.pair}).Problems {
				paths = append(paths, problem.Path)
			}
			if got := strings.Join(paths, " "); got != tt.want {
				t.Errorf("%s, %s: problems of %q, want %q", name, tt.role, got, tt.want)
			}
		}
	}
}

func TestReadByNameTellsOfADefinitionThatCannotBeRead(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	source.Edit(plan.DefinitionFile("data"), replace("max_files: 1000", "max_files: many"))
	backup.Remove(plan.DefinitionFile("data"))
	for role, want := range map[plan.Role]string{plan.Source: "/etc/lockstep/pairs/data.yaml: delete.max_files: line ", plan.Backup: "/etc/lockstep/pairs/data.yaml: file does not exist"} {
		reply := mustRun(t, m.on(role), plan.Read, role, plan.Request{Pair: plan.Definition{Name: "data"}})
		if !reply.Exists || !strings.HasPrefix(reply.Checks["definition"], want) {
			t.Errorf("%s: %v, want %q", role, reply.Checks, want)
		}
	}
}

func TestDamagedRecordIsNotOverwritten(t *testing.T) {
	t.Parallel()
	h, m := one()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	for text, hint := range map[string]string{
		"{":              "move " + plan.RecordFile + " away",
		`{"version": 2}`: "use the lockstep that wrote it",
	} {
		h.Edit(plan.RecordFile, func(string) string { return text })
		for _, verb := range []plan.Verb{plan.Plan, plan.Apply, plan.Destroy} {
			reply := run(m.source, verb, plan.Backup, plan.Request{Pair: dataPair()})
			if len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0].Hint, hint) || string(h.Files[plan.RecordFile].Data) != text {
				t.Errorf("%s, %s: %+v", verb, text, reply)
			}
		}
	}
	if _, err := m.source.Files.Read("/nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestPortOfTheOnlyPairCanBeChanged(t *testing.T) {
	t.Parallel()
	source, backup, m := two()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	p := dataPair()
	p.Backup.Port = 9999
	mustExchange(t, m, plan.Request{Pair: p})
	inSync(t, m, p)
	if outdated := append(source.Outdated(), backup.Outdated()...); len(outdated) > 0 {
		t.Errorf("%v run with files of before", outdated)
	}
}

func TestDamagedHostKeyIsReplacedAndAFailureKeepsIt(t *testing.T) {
	t.Parallel()
	source, _, m := two()
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	source.Edit(plan.HostKeyFile, func(string) string { return plan.Header("") + "%\n" })
	before := source.Snapshot()
	if reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: dataPair(), SealedPassword: "AAAA"}); len(reply.Problems) != 1 ||
		!strings.Contains(reply.Problems[0].Hint, "--prepare makes a new one") {
		t.Errorf("%+v", reply.Problems)
	}
	source.Before = func(what string) error {
		if what == "write "+plan.HostKeyFile {
			source.Before = nil
			return errors.New("disk on fire")
		}
		return nil
	}
	if reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: dataPair(), Prepare: true}); len(reply.Problems) != 1 {
		t.Fatalf("%+v", reply)
	}
	if !slices.Equal(before, source.Snapshot()) {
		t.Error("the failure left something else")
	}
	mustExchange(t, m, plan.Request{Pair: dataPair()})
	inSync(t, m, dataPair())
}

func TestFanotifyThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	_, m := one()
	p := definition("data", "watch: {backend: fanotify}")
	command := apply.Command{Verb: plan.Plan, Role: plan.Source, Fanotify: func(path string) bool { return path != "/srv/data" }}
	reply := apply.Run(context.Background(), m.source, command, plan.Request{Protocol: 1, Pair: p})
	if len(reply.Problems) != 1 || reply.Problems[0].Path != "watch.backend" || !strings.Contains(reply.Problems[0].String(), "/srv/data") {
		t.Errorf("%+v", reply.Problems)
	}
	mustExchange(t, m, plan.Request{Pair: p})
}

// A firewall and SELinux are told of by plan and apply on the backup host, hold up neither, and are not part of its state.
func TestWhatMayBeInTheWayIsAWarning(t *testing.T) {
	eachTransport(t, func(t *testing.T, p plan.Definition) {
		_, backup, m := two()
		backup.Facts.SELinux = &host.SELinux{Booleans: map[string]bool{"rsync_full_access": false}, Type: "var_t"}
		backup.Facts.Firewall = &host.Firewall{Name: "nftables", Where: "inet filter input"}
		port, want := "8730", []string{"selinux", "firewall"}
		if plan.BySSH(p) {
			want = []string{"firewall"}
		}
		fields := func(reply plan.Reply) (fields []string) {
			for _, w := range reply.Warnings {
				fields = append(fields, w.Path)
				if w.Path == "firewall" && !strings.Contains(w.Hint, "nft insert rule inet filter input ip saddr 127.0.0.1 tcp dport "+port+" accept") {
					t.Errorf("hint: %s", w.Hint)
				}
			}
			return fields
		}
		if got := fields(mustRun(t, m.backup, plan.Plan, plan.Backup, plan.Request{Pair: p})); !slices.Equal(got, want) {
			t.Errorf("plan warns of %q, want %q", got, want)
		}
		replies, err := exchange(m, plan.Request{Pair: p})
		if err != nil {
			t.Fatal(err)
		}
		if got := fields(replies[1]); !slices.Equal(got, want) {
			t.Errorf("apply warns of %q, want %q", got, want)
		}
		inSync(t, m, p)
		read := mustRun(t, m.backup, plan.Read, plan.Backup, plan.Request{Pair: p})
		source := mustRun(t, m.source, plan.Plan, plan.Source, plan.Request{Pair: p})
		if len(read.Warnings)+len(source.Warnings) > 0 {
			t.Errorf("read: %v, source: %v", read.Warnings, source.Warnings)
		}
		backup.Facts.SELinux, backup.Facts.Firewall = nil, nil
		if reply := mustRun(t, m.backup, plan.Plan, plan.Backup, plan.Request{Pair: p}); len(reply.Warnings) > 0 || reply.Changed {
			t.Errorf("%+v", reply)
		}
	})
}

// A person who applies the backup role alone is told what the source host does not know then; a front end, which tells it, is not.
func TestWhatTheSourceDoesNotKnowIsAWarning(t *testing.T) {
	t.Parallel()
	const anew = plan.SecretsDir + "/data.secrets"
	moved, renamed := dataPair(), dataPair()
	moved.Backup.Path, renamed.Backup.Module = "/backup/new", "new"
	for _, tt := range []struct {
		name        string
		damage      func(h *hosttest.Host)
		req         plan.Request
		plan, apply string // the fields, and words of the warning
	}{
		{"nothing", nil, plan.Request{Pair: dataPair()}, "", ""},
		{"a damaged file", func(h *hosttest.Host) { h.Put(anew, "x") }, plan.Request{Pair: dataPair()},
			"secrets: apply would make a new password, which the source host does not have", "secrets: a new password was made; the source host does not have it yet"},
		{"a damaged file, and the source host's key", func(h *hosttest.Host) { h.Put(anew, "x") }, plan.Request{Pair: dataPair(), Recipient: "KEY"}, "", ""},
		{"a password of the user", nil, plan.Request{Pair: dataPair(), Password: "correct horse"}, "", ""},
		{"a rotation", nil, plan.Request{Pair: dataPair(), Rotate: true},
			"secrets: apply would make a new password", "secrets: a new password was made"},
		{"another directory", nil, plan.Request{Pair: moved}, "", "backup.path: the agent does not know yet"},
		{"another module", nil, plan.Request{Pair: renamed}, "", "backup.module: the agent does not know of the new module yet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, byHand := range []bool{true, false} {
				_, backup, m := two()
				mustExchange(t, m, plan.Request{Pair: dataPair()})
				if tt.damage != nil {
					tt.damage(backup)
				}
				req := tt.req
				if req.Recipient != "" {
					req.Recipient = mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: dataPair(), Prepare: true}).PublicKey
				}
				if tt.req.Recipient == "" { // which plan and read do not take
					told(t, m, plan.Read, byHand, req, "")
					told(t, m, plan.Plan, byHand, req, tt.plan)
				}
				told(t, m, plan.Apply, byHand, req, tt.apply)
				told(t, m, plan.Apply, byHand, plan.Request{Pair: req.Pair}, "") // a second time there is nothing to tell
			}
		})
	}
	_, _, m := two()
	told(t, m, plan.Plan, true, plan.Request{Pair: dataPair()}, "") // of a pair that is not there yet
	told(t, m, plan.Apply, true, plan.Request{Pair: dataPair()}, "")
}

// told looks for the one warning of the backup role.
func told(t *testing.T, m machines, verb plan.Verb, byHand bool, req plan.Request, want string) {
	t.Helper()
	reply := apply.Run(t.Context(), m.backup, apply.Command{Verb: verb, Role: plan.Backup, ByHand: byHand}, req)
	if len(reply.Problems) > 0 {
		t.Fatal(problems(reply))
	}
	var got string
	for _, w := range reply.Warnings {
		got += w.Path + ": " + w.Msg
		if w.Hint == "" {
			t.Errorf("no hint: %s", w)
		}
	}
	if !byHand {
		want = ""
	}
	if want == "" && got != "" || !strings.HasPrefix(got, want) {
		t.Errorf("%s, by hand %v: %q, want %q", verb, byHand, got, want)
	}
}
