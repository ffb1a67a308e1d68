// SPDX-License-Identifier: Apache-2.0

package apply_test

import (
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/internal/hosttest"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// hooksOnly is a pair without a backup.
func hooksOnly(t *testing.T) plan.Definition {
	t.Helper()
	p, err := plan.ParseDefinition([]byte("name: tell\nsource: {host: 127.0.0.1, path: /srv/tell}\ntransport: none\nhooks: [{name: a, type: socket, address: /run/a.sock}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A pair of hooks only is made on its source host alone, with no password and no rsync.
func TestPairOfHooksOnlyIsMadeOnOneHost(t *testing.T) {
	t.Parallel()
	h := hosttest.New()
	h.Facts.Rsync.Path = ""
	h.Mkdir("/srv/tell")
	req := plan.Request{Pair: hooksOnly(t)}
	if reply := mustRun(t, h.Machine(), plan.Plan, plan.Source, req); !reply.Changed {
		t.Fatal("nothing would be made")
	}
	reply := mustRun(t, h.Machine(), plan.Apply, plan.Source, req)
	if _, ok := reply.Checks["secret"]; ok || !reply.Changed || reply.Checks["service"] != plan.InSync {
		t.Errorf("%+v", reply.Checks)
	}
	if reply := mustRun(t, h.Machine(), plan.Apply, plan.Source, req); reply.Changed {
		t.Errorf("a second apply changes %+v", reply.Changes)
	}
	if reply := mustRun(t, h.Machine(), plan.Read, plan.Source, plan.Request{Pair: plan.Definition{Name: "tell"}}); reply.Pair == nil || !reply.Pair.HooksOnly() {
		t.Errorf("read by name gives %+v", reply.Pair)
	}
	if _, err := h.Machine().Files.Read(plan.SecretFile("tell")); err == nil {
		t.Error("there is a secret")
	}
	dropIn, err := h.Machine().Files.Read(plan.DropInFile("tell"))
	if err != nil || !strings.Contains(string(dropIn.Data), "LoadCredential=\n") {
		t.Errorf("the unit waits for a password: %v\n%s", err, dropIn.Data)
	}
	mustRun(t, h.Machine(), plan.Destroy, plan.Source, plan.Request{Pair: plan.Definition{Name: "tell"}})
	if _, err := h.Machine().Files.Read(plan.DefinitionFile("tell")); err == nil {
		t.Error("the definition is left")
	}
}

// The other host has no part in it, and the refusal says what to do: it is what Terraform and Ansible show.
func TestPairOfHooksOnlyHasNoBackupHost(t *testing.T) {
	t.Parallel()
	for _, verb := range []plan.Verb{plan.Plan, plan.Apply} {
		reply := run(hosttest.New().Machine(), verb, plan.Backup, plan.Request{Pair: hooksOnly(t)})
		if text := problems(reply).Error(); !strings.Contains(text, "no backup host") || !strings.Contains(text, "lockstep apply --role source --definition") {
			t.Errorf("%s: %s", verb, text)
		}
	}
}
