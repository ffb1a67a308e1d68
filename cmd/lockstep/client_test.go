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
		filepath.Join(pairsDir, "dead.yaml"), plan.SecretFile("dead"),
		filepath.Join(pairsDir, "hooks.yaml"),
		filepath.Join(pairsDir, "both.yaml"), plan.SecretFile("both"), plan.SecretsFile("both"), plan.ModuleFile("both"),
		filepath.Join(pairsDir, "backup.yaml"), plan.SecretsFile("backup"), plan.ModuleFile("backup"),
		filepath.Join(runRoot, "alive", replicate.SocketName),
		filepath.Join(pairsDir, "well.yaml"), plan.SecretFile("well"), filepath.Join(runRoot, "well", replicate.SocketName),
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
