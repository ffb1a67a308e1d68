// SPDX-License-Identifier: Apache-2.0

package host

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	publicZone = "public (default, active)\n  target: default\n  icmp-block-inversion: no\n  interfaces: eth0\n  sources: \n  services: cockpit dhcpv6-client ssh\n" +
		"  ports: 8080/tcp 873/udp\n  protocols: \n  forward: yes\n  masquerade: no\n  forward-ports: \n  source-ports: \n  icmp-blocks: \n  rich rules: \n" +
		"\trule family=\"ipv4\" source address=\"10.0.0.1\" port port=\"5432\" protocol=\"tcp\" accept\n" +
		"\trule family=\"ipv4\" source address=\"10.0.0.2\" drop\n"
	trustedZone = "\ntrusted\n  target: ACCEPT\n  services: \n  ports: \n"
	hostPolicy  = "allow-host-ipv6 (active)\n  priority: -15000\n  target: CONTINUE\n  ingress-zones: ANY\n  egress-zones: HOST\n  services: \n  ports: \n  rich rules: \n" +
		"\trule family=\"ipv6\" icmp-type name=\"neighbour-advertisement\" accept\n"
	ufwRules = "Status: active\nLogging: on (low)\nDefault: deny (incoming), allow (outgoing), disabled (routed)\nNew profiles: skip\n\n" +
		"To                         Action      From\n--                         ------      ----\n" +
		"22/tcp (OpenSSH)           ALLOW IN    Anywhere                  \n80,443/tcp (Nginx Full)    LIMIT IN    10.0.0.0/8\n873/tcp                    DENY IN     Anywhere\n" +
		"873/udp                    ALLOW IN    Anywhere\n22/tcp (OpenSSH (v6))      ALLOW IN    Anywhere (v6)\n"
	nftRules = "table inet filter {\n\tset ports {\n\t\ttype inet_service\n\t\telements = { 80,\n\t\t\t     443 }\n\t}\n\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n" +
		"\t\tct state vmap { invalid : drop, established : accept, related : accept }\n\t\tiifname \"lo\" accept\n\t\ticmp type echo-request counter packets 1 bytes 84 accept\n" +
		"\t\tmeta l4proto ipv6-icmp accept\n\t\ttcp dport { 22, 80-90 } ct state new accept comment \"tcp, and accept\"\n\t\tudp dport 873 accept\n\t\ttcp dport 25 jump mail\n\t}\n\n" +
		"\tchain mail {\n\t\tlog prefix \"mail\"\n\t}\n\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\taccept\n\t}\n}\n"
	iptablesRules = "# Warning: table ip filter is managed by iptables-nft, do not touch!\ntable ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n" +
		"\t\tct state related,established counter packets 5 bytes 300 accept\n\t\tiifname \"lo\" counter packets 0 bytes 0 accept\n" +
		"\t\ttcp dport 22 counter packets 0 bytes 0 accept\n\t\tcounter packets 9 bytes 700 reject with icmp-host-prohibited\n\t}\n}\n"
)

// Only a firewall that plainly does not let the port in is named; every rule that might is taken to do so.
func TestFirewallIsNamedOnlyWhenNothingMayLetThePortIn(t *testing.T) {
	t.Parallel()
	firewalld := func(zones string, more ...string) map[string]string {
		said := map[string]string{"firewall-cmd --list-all-zones": zones, "firewall-cmd --get-default-zone": "public\n", "firewall-cmd --list-all-policies": hostPolicy,
			"firewall-cmd --direct --get-all-rules": "\n", "firewall-cmd --info-service=ssh": "ssh\n  ports: 22/tcp\n  protocols: \n  includes: \n",
			"firewall-cmd --info-service=cockpit": "cockpit\n  ports: 9090/tcp\n", "firewall-cmd --info-service=dhcpv6-client": "dhcpv6-client\n  ports: 546/udp\n",
			"firewall-cmd --info-service=rsyncd": "rsyncd\n  ports: 873/tcp 873/udp\n", "firewall-cmd --info-service=all": "all\n  ports: \n  includes: ssh rsyncd\n",
			"nft list ruleset": nftRules}
		for i := 0; i < len(more); i += 2 {
			said[more[i]] = more[i+1]
		}
		return said
	}
	ufw := func(text string) map[string]string {
		return map[string]string{"ufw status verbose": text, "nft list ruleset": nftRules}
	}
	nft := func(text string) map[string]string {
		return map[string]string{"ufw status verbose": "Status: inactive\n", "nft list ruleset": text}
	}
	edit := func(text, old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("no %q in\n%s", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	shut := &Firewall{Name: "firewalld", Where: "public", Zone: "public"}
	filter := &Firewall{Name: "nftables", Where: "inet filter input"}
	for _, tt := range []struct {
		name string
		said map[string]string
		want *Firewall
	}{
		{"no firewall", nil, nil},
		{"firewalld", firewalld(publicZone + trustedZone), shut},
		{"firewalld, not told active", firewalld(edit(publicZone, " (default, active)", "")), shut},
		{"firewalld with two zones", firewalld(publicZone + "\nwork (active)\n  target: DROP\n  services: ssh\n\nlibvirt (active)\n  target: ACCEPT\n"), &Firewall{Name: "firewalld", Where: "public, work"}},
		{"firewalld with a range of ports", firewalld(edit(publicZone, "8080/tcp", "800-900/tcp")), nil},
		{"firewalld with the service", firewalld(edit(publicZone, "cockpit", "rsyncd")), nil},
		{"firewalld with a service that includes it", firewalld(edit(publicZone, "cockpit", "all")), nil},
		{"firewalld with a service that cannot be seen", firewalld(edit(publicZone, "cockpit", "mine")), nil},
		{"firewalld with a rule for the port", firewalld(edit(publicZone, `port="5432"`, `port="873"`)), nil},
		{"firewalld with a rule for all of a host", firewalld(edit(publicZone, ` port port="5432" protocol="tcp"`, "")), nil},
		{"firewalld with a rule for the service", firewalld(edit(publicZone, `port port="5432" protocol="tcp"`, `service name="rsyncd"`)), nil},
		{"firewalld with another zone in use that lets all in", firewalld(publicZone + edit(trustedZone, "trusted", "trusted (active)")), nil},
		{"firewalld with a policy", firewalld(publicZone, "firewall-cmd --list-all-policies", edit(hostPolicy, "ports: ", "ports: 873/tcp")), nil},
		{"firewalld with rules of iptables", firewalld(publicZone, "firewall-cmd --direct --get-all-rules", "ipv4 filter INPUT 0 -j ACCEPT\n"), nil},
		{"ufw", ufw(ufwRules), &Firewall{Name: "ufw"}},
		{"ufw that denies nothing", ufw(edit(ufwRules, "deny (incoming)", "allow (incoming)")), nil},
		{"ufw with a rule for the port", ufw(edit(ufwRules, "873/tcp                    DENY IN ", "873/tcp                    ALLOW IN")), nil},
		{"ufw with a rule for the port on an address", ufw(edit(ufwRules, "873/tcp                    DENY IN ", "10.0.0.9 873               ALLOW IN")), nil},
		{"ufw with a rule for the port on an interface", ufw(edit(ufwRules, "873/tcp                    DENY IN ", "870:880/tcp on eth0        ALLOW IN")), nil},
		{"ufw with a rule for all of a host", ufw(edit(ufwRules, "873/tcp                    DENY IN ", "Anywhere                   ALLOW IN")), nil},
		{"ufw with a rule for another address family", ufw(edit(ufwRules, "22/tcp (OpenSSH (v6))", "Anywhere (v6)        ")), &Firewall{Name: "ufw"}},
		{"nftables", nft(nftRules), filter},
		{"nftables with a last rule that drops", nft(edit(edit(nftRules, "policy drop", "policy accept"), "\t\ttcp dport 25 jump mail\n", "\t\tcounter packets 0 bytes 0 drop\n")), filter},
		{"nftables that accept", nft(edit(nftRules, "policy drop", "policy accept")), nil},
		{"nftables with a last rule that only counts", nft(edit(edit(nftRules, "policy drop", "policy accept"), "\t\ttcp dport 25 jump mail\n", "\t\tcounter packets 0 bytes 0\n")), nil},
		{"nftables that are dormant", nft(edit(nftRules, "{\n", "{\n\tflags dormant\n\n")), nil},
		{"nftables with a rule for the port", nft(edit(nftRules, "80-90 }", "800-900 }")), nil},
		{"nftables with a rule for a set of ports", nft(edit(nftRules, "{ 22, 80-90 }", "@ports")), nil},
		{"nftables with a rule for all of a host", nft(edit(nftRules, "udp dport 873 accept", "ip saddr 10.0.0.0/8 accept")), nil},
		{"nftables with a rule in a chain that is jumped to", nft(edit(nftRules, `log prefix "mail"`, "accept")), nil},
		{"nftables with a map", nft(edit(nftRules, "tcp dport 25 jump mail", "tcp dport vmap { 22 : accept, 873 : accept }")), nil},
		{"nftables with a state that is new", nft(edit(nftRules, "related : accept", "new : accept")), nil},
		{"iptables", nft(iptablesRules), &Firewall{Name: "nftables", Where: "ip filter INPUT"}},
		{"iptables with a match that is not shown", nft(edit(iptablesRules, "tcp dport 22", `xt match "multiport"`)), nil},
		{"iptables of the other address family", nft(edit(iptablesRules, "table ip filter {", "table ip6 filter {")), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := wall{port: 873, from: []string{"192.0.2.1"}, etc: t.TempDir(), run: func(name string, args ...string) (string, bool) {
				out, ok := tt.said[name+" "+strings.Join(args, " ")]
				return out, ok
			}}
			if diff := cmp.Diff(tt.want, w.look()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
