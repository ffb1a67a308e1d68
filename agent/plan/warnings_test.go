// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/plan"
)

// Each warning has the command that opens the way, and there is none without a reason.
func TestBackupWarningsSayWhatOpensTheWay(t *testing.T) {
	t.Parallel()
	full, anon := "rsync_full_access", "rsync_anon_write"
	for _, tt := range []struct {
		name  string
		more  string // of the definition
		facts plan.Facts
		want  []string // hints
	}{
		{name: "nothing in the way"},
		{name: "confined", facts: plan.Facts{SELinux: &plan.SELinux{Booleans: map[string]bool{full: false, anon: false}, Type: "var_t"}},
			want: []string{"setsebool -P rsync_full_access on"}},
		{name: "confined with ssh, which does not confine", more: "transport: ssh\n", facts: plan.Facts{SELinux: &plan.SELinux{Booleans: map[string]bool{full: false}}}},
		{name: "full access", facts: plan.Facts{SELinux: &plan.SELinux{Booleans: map[string]bool{full: true}}}},
		{name: "labelled", facts: plan.Facts{SELinux: &plan.SELinux{Booleans: map[string]bool{full: false, anon: true}, Type: "public_content_rw_t"}}},
		{name: "labelled in vain", facts: plan.Facts{SELinux: &plan.SELinux{Booleans: map[string]bool{full: false, anon: false}, Type: "public_content_rw_t"}},
			want: []string{"setsebool -P rsync_anon_write on"}},
		{name: "anon write, another label", facts: plan.Facts{SELinux: &plan.SELinux{Booleans: map[string]bool{full: false, anon: true}, Type: "var_t"}},
			want: []string{"setsebool -P rsync_full_access on"}},
		{name: "another policy", facts: plan.Facts{SELinux: &plan.SELinux{Booleans: map[string]bool{}}},
			want: []string{"if files cannot be written: ausearch -m avc -c rsync"}},
		{name: "firewalld", facts: plan.Facts{Addresses: []string{"192.0.2.1", "2001:db8::1"}, Firewall: &plan.Firewall{Name: "firewalld", Where: "public", Zone: "public"}},
			want: []string{"firewall-cmd --permanent --zone=public --add-rich-rule='rule family=ipv4 source address=192.0.2.1 port port=873 protocol=tcp accept'" +
				" && firewall-cmd --permanent --zone=public --add-rich-rule='rule family=ipv6 source address=2001:db8::1 port port=873 protocol=tcp accept'" +
				" && firewall-cmd --reload"}},
		{name: "firewalld with zones", facts: plan.Facts{Addresses: []string{"192.0.2.0/24"}, Firewall: &plan.Firewall{Name: "firewalld", Where: "public, work"}},
			want: []string{"firewall-cmd --permanent --add-rich-rule='rule family=ipv4 source address=192.0.2.0/24 port port=873 protocol=tcp accept' && firewall-cmd --reload"}},
		{name: "ufw", more: "transport: ssh\n", facts: plan.Facts{Addresses: []string{"192.0.2.1"}, Firewall: &plan.Firewall{Name: "ufw"}},
			want: []string{"ufw allow from 192.0.2.1 to any port 22 proto tcp"}},
		{name: "nftables", facts: plan.Facts{Addresses: []string{"192.0.2.1", "2001:db8::1"}, Firewall: &plan.Firewall{Name: "nftables", Where: "inet filter input"}},
			want: []string{"nft insert rule inet filter input ip saddr 192.0.2.1 tcp dport 873 accept && nft insert rule inet filter input ip6 saddr 2001:db8::1 tcp dport 873 accept" +
				"; and the same where the rules are kept"}},
		{name: "a directory with something in it", facts: plan.Facts{Dirs: map[string]plan.Dir{"/backup/data": {Exists: true, IsDir: true, Entries: []string{"a"}}}},
			want: []string{"if it is not a copy of nfs01:/srv/data, choose another directory: what both have is replaced there, and what only it has is held, to be deleted by lockstep approve data"}},
		{name: "the same, and nothing is to be deleted", more: "delete: {enabled: false}\n", facts: plan.Facts{Dirs: map[string]plan.Dir{"/backup/data": {Exists: true, IsDir: true, Entries: []string{"a"}}}},
			want: []string{"if it is not a copy of nfs01:/srv/data, choose another directory: what both have is replaced there"}},
		{name: "the directory of before", facts: plan.Facts{Dirs: map[string]plan.Dir{"/backup/data": {Exists: true, IsDir: true, WasFS: "1", Entries: []string{"a"}}}}},
		{name: "a source of no known address", facts: plan.Facts{Firewall: &plan.Firewall{Name: "ufw"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			text := "name: data\nsource: {host: nfs01, path: /srv/data}\nbackup: {host: vault, path: /backup/data}\n"
			p, err := plan.ParseDefinition([]byte(text + tt.more))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range plan.BackupWarnings(p, tt.facts) {
				got = append(got, w.Hint)
				if !strings.Contains(w.Msg, " may ") && w.Path != "backup.path" {
					t.Errorf("%q claims more than is known", w.Msg)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestOccupiedDirectoryIsToldByName(t *testing.T) {
	t.Parallel()
	p, err := plan.ParseDefinition([]byte("name: data\nsource: {host: nfs01, path: /srv/data}\nbackup: {host: vault, path: /backup/data}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for want, entries := range map[string][]string{
		`/backup/data is not empty: it has "a", "b\nc"`:                      {"a", "b\nc"},
		`/backup/data is not empty: it has "a", "b", "c", "d", "e" and more`: {"a", "b", "c", "d", "e", "f"},
	} {
		ws := plan.BackupWarnings(p, plan.Facts{Dirs: map[string]plan.Dir{"/backup/data": {Entries: entries}}})
		if len(ws) != 1 || ws[0].Msg != want || ws[0].Path != "backup.path" {
			t.Errorf("%+v, want %s", ws, want)
		}
	}
}
