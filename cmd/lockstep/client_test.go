// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/replicate"
)

func TestWhoNamesNoPairMeansTheOnlyOne(t *testing.T) {
	t.Parallel()
	data, mail := newClient("data", "/run/lockstep/data"), newClient("mail", "/run/lockstep/mail")
	if c, err := only([]*client{data}); c != data || err != nil {
		t.Errorf("%v, %v", c, err)
	}
	var status *statusError
	if c, err := only(nil); c != nil || !errors.As(err, &status) || status.status != exitNoAgent {
		t.Errorf("%v, %v", c, err)
	}
	if c, err := only([]*client{data, mail}); c != nil || !errors.As(err, &status) || status.status != exitUsage ||
		status.err.Error() != "this host has 2 pairs: name one of data, mail" {
		t.Errorf("%v, %v", c, err)
	}
}

// A pair whose agent does not run is a pair of this host; one of which the host only keeps the backup is not.
func TestPairsOfAHostAreThoseThatShouldHaveAnAgent(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, file := range []string{
		plan.DefinitionFile("dead"), plan.SecretFile("dead"),
		plan.DefinitionFile("hooks"),
		plan.DefinitionFile("both"), plan.SecretFile("both"), plan.SecretsFile("both"), plan.ModuleFile("both"),
		plan.DefinitionFile("backup"), plan.SecretsFile("backup"), plan.ModuleFile("backup"),
		filepath.Join(runRoot, "alive", replicate.SocketName),
		plan.DefinitionFile("well"), plan.SecretFile("well"), filepath.Join(runRoot, "well", replicate.SocketName),
	} {
		if err := os.MkdirAll(filepath.Dir(root+file), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, root+file, "", 0o600)
	}
	var names []string
	for _, c := range agents(root) {
		names = append(names, c.name)
		if want := filepath.Join(root+runRoot, c.name, replicate.SocketName); c.socket != want {
			t.Errorf("%s: socket %s, want %s", c.name, c.socket, want)
		}
	}
	if got := strings.Join(names, " "); got != "alive both dead hooks well" {
		t.Errorf("pairs %s", got)
	}
}
