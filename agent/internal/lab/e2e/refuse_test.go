// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Bad input, and hosts that are not as they should be: one clear error that names the host, the object and what
// to do, and nothing half-done.
func TestBadInputIsRefusedAndNothingIsHalfDone(t *testing.T) {
	w := newWorld(t)
	before := map[string]string{}
	for _, h := range w.Hosts() {
		before[h.Name] = inventory(t, h)
	}
	pair := func(old, new string) string { return strings.Replace(pairHCL, old, new, 1) }
	provider := func(ssh, more string) string {
		return fmt.Sprintf("provider \"lockstep\" {\n  ssh = { config_file = %q, wait_for_host = \"3s\", connect_timeout = \"3s\" %s }\n%s}\n", w.SSHConfigFile(), ssh, more)
	}
	knownFrom := func(file string) string { return provider(fmt.Sprintf(", known_hosts_file = %q", file), "") }
	otherKey, err := os.ReadFile(w.KeyFile() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	knownHosts, err := os.ReadFile(w.KnownHostsFile())
	if err != nil {
		t.Fatal(err)
	}
	_, backupAlone, _ := strings.Cut(string(knownHosts), "\n")
	wrongHosts, unknownHosts := filepath.Join(w.dir, "wrong_known_hosts"), filepath.Join(w.dir, "unknown_known_hosts")
	for file, text := range map[string]string{
		unknownHosts: backupAlone,
		wrongHosts:   "nfs01,172.16.1.31 " + strings.Join(strings.Fields(string(otherKey))[:2], " ") + "\n" + backupAlone,
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	for _, tc := range []struct {
		name     string
		provider string // "" is the usual one
		pair     string
		do, undo func() error
		want     []string
	}{
		// Not in an object: there Terraform itself drops what it does not know, and the provider never sees it.
		{name: "unknown attribute", pair: pair("  backup =", "  exlude = []\n  backup ="), want: []string{"exlude", `"lockstep_pair" "data"`, `Did you mean "exclude"?`}},
		{name: "relative path", pair: pair(`"/data"`, `"data"`), want: []string{"source.path", "absolute"}},
		{name: "port 0", pair: pair(`path = "/backup/nfs01"`, `path = "/backup/nfs01", port = 0`), want: []string{"port", "1", "65535"}},
		{name: "misspelt choice", pair: pair("  backup =", "  watch = { backend = \"inotifi\" }\n  backup ="), want: []string{"watch.backend", "inotify", "fanotify"}},
		{name: "wrong host key", provider: knownFrom(wrongHosts),
			pair: pairHCL, want: []string{`"nfs01"`, "ops@172.16.1.31:22", "THE HOST KEY IS NOT THE KNOWN ONE", "ssh-keygen -lf"}},
		{name: "unknown host key", provider: knownFrom(unknownHosts),
			pair: pairHCL, want: []string{`"nfs01"`, "ops@172.16.1.31:22", "the host key is not known", "nfs01 ssh-ed25519 AAAA"}},
		{name: "unreachable host", pair: pairHCL, provider: provider("", ""),
			do:   func() error { return w.backup.CutOff(t.Context()) },
			undo: func() error { return w.backup.Restore(context.Background()) },
			want: []string{"backup", "ops@172.16.1.41:22"}},
		{name: "sudo refused", provider: provider("", "  hosts = { nfs01 = { user = \"guest\" } }\n"), pair: pairHCL, want: []string{`"nfs01"`, "guest@172.16.1.31:22", "sudo refused", "become", "/etc/sudoers.d"}},
		{name: "rsync missing on the backup host", pair: pairHCL,
			do: func() error {
				_, err := w.backup.Run(t.Context(), "mv", "/usr/bin/rsync", "/usr/bin/rsync.away")
				return err
			},
			undo: func() error {
				_, err := w.backup.Run(context.Background(), "mv", "/usr/bin/rsync.away", "/usr/bin/rsync")
				return err
			},
			want: []string{"backup", "172.16.1.41", "rsync is not installed", "apt-get install rsync"}},
		{name: "rsync missing on the source host", pair: pairHCL,
			do: func() error {
				_, err := w.source.Run(t.Context(), "mv", "/usr/bin/rsync", "/usr/bin/rsync.away")
				return err
			},
			undo: func() error {
				_, err := w.source.Run(context.Background(), "mv", "/usr/bin/rsync.away", "/usr/bin/rsync")
				return err
			},
			want: []string{"nfs01", "172.16.1.31", "rsync is not installed", "apt-get install rsync"}},
		{name: "source directory missing", pair: pair(`"/data"`, `"/dato"`), want: []string{"nfs01", "source.path", "/dato", "does not exist"}},
		{name: "port 873 taken", pair: pairHCL,
			do: func() error {
				_, err := w.backup.Shell(t.Context(), `printf '[own]\npath = /srv\n' >/etc/rsyncd.conf; systemctl start rsync.service; i=0
					until ss -Hltn | grep -q :873; do i=$((i+1)); [ $i -lt 50 ] || { systemctl status rsync; exit 1; }; sleep 0.1; done`)
				return err
			},
			undo: func() error {
				_, err := w.backup.Shell(context.Background(), `systemctl stop rsync.service; rm /etc/rsyncd.conf`)
				return err
			},
			want: []string{"backup", "port 873 is taken", "rsync", "backup.port"}},
		{name: "path already exported", pair: pairHCL,
			do: func() error {
				_, err := w.backup.Shell(t.Context(), `printf '[old]\npath = /backup/nfs01\n' >/etc/rsyncd.conf`)
				return err
			},
			undo: func() error { _, err := w.backup.Run(context.Background(), "rm", "/etc/rsyncd.conf"); return err },
			want: []string{"backup", "/backup/nfs01", "exported already", "old", "/etc/rsyncd.conf"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.do != nil {
				if err := tc.do(); err != nil {
					t.Fatal(err)
				}
			}
			if tc.provider == "" {
				tc.provider = w.providerHCL()
			}
			w.configureAs(t, tc.provider, tc.pair)
			out, err := w.terraform(t, "apply", "-auto-approve")
			if tc.undo != nil {
				if err := tc.undo(); err != nil {
					t.Fatal(err)
				}
			}
			if err == nil {
				w.mustTerraform(t, "destroy", "-auto-approve")
				t.Fatalf("it was applied:\n%s", out)
			}
			contains(t, plain(out), tc.want...)
			if n := strings.Count(out, "Error: "); n != 1 {
				t.Errorf("%d errors instead of one:\n%s", n, out)
			}
			for _, h := range w.Hosts() {
				now := inventory(t, h)
				if diff := cmp.Diff(strings.Split(before[h.Name], "\n"), strings.Split(now, "\n")); diff != "" {
					t.Errorf("%s: half-done:\n%s", h.Name, diff)
				}
				before[h.Name] = now // what one case left is not the next one's fault
			}
			if out, err := w.terraform(t, "state", "list"); err == nil && strings.TrimSpace(out) != "" {
				t.Errorf("the state holds %s", out)
			}
			if t.Failed() {
				t.Logf("terraform said:\n%s", out)
			}
		})
	}
}
