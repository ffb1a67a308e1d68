// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// firewallTimeout bounds the look at all firewalls; firewall-cmd takes about a quarter of a second each time.
const firewallTimeout = 10 * time.Second

// findFirewall asks the firewalls of this host. What cannot be asked, and what is not understood, is taken to let the port in:
// to be silent about a firewall costs a look later, to name one that is not in the way costs trust.
func findFirewall(ctx context.Context, q FirewallQuery, from []string) *Firewall {
	ctx, cancel := context.WithTimeout(ctx, firewallTimeout)
	defer cancel()
	w := wall{port: q.Port, from: from, etc: "/etc", run: func(name string, args ...string) (string, bool) {
		path := program(name)
		if path == "" {
			return "", false
		}
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		return string(out), err == nil
	}}
	found := w.look()
	if ctx.Err() != nil {
		return nil // an answer that is missing may have been the one that lets it in
	}
	return found
}

// allLoopback is whether the source host is this host itself, which no firewall keeps out; or is not known.
func allLoopback(addresses []string) bool {
	return !slices.ContainsFunc(addresses, func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err != nil || !a.IsLoopback()
	})
}

// wall is one look for a firewall that does not let a TCP port in.
type wall struct {
	port int
	from []string // addresses and networks
	etc  string
	run  func(name string, args ...string) (out string, ok bool)
}

func (w wall) look() *Firewall {
	if out, ok := w.run("firewall-cmd", "--list-all-zones"); ok { // fails when firewalld does not run
		return w.firewalld(out)
	}
	if out, ok := w.run("ufw", "status", "verbose"); ok && strings.HasPrefix(out, "Status: active") {
		return w.ufw(out)
	}
	if out, ok := w.run("nft", "list", "ruleset"); ok {
		return w.nftables(out)
	}
	return nil
}

// covers is whether the port is among those of a text as 22, 870-880 or 870:880,9000.
func (w wall) covers(text string) bool {
	for part := range strings.SplitSeq(text, ",") {
		low, high, isRange := strings.Cut(strings.ReplaceAll(strings.TrimSpace(part), ":", "-"), "-")
		if !isRange {
			high = low
		}
		from, err1 := strconv.Atoi(low)
		to, err2 := strconv.Atoi(high)
		if err1 != nil || err2 != nil || from <= w.port && w.port <= to {
			return true // a name, too, for who knows what port that is
		}
	}
	return false
}

// coversTCP is whether one of some words as 873/tcp or 22-25/udp is the port.
func (w wall) coversTCP(words string) bool {
	return slices.ContainsFunc(strings.Fields(words), func(word string) bool {
		ports, protocol, named := strings.Cut(word, "/")
		return (!named || protocol == "tcp") && w.covers(ports)
	})
}

// zone is a zone of firewalld, or a policy, as firewall-cmd lists it.
type zone struct {
	name   string
	active bool
	value  map[string]string
	rules  []string // rich rules
}

func parseZones(out string) []zone {
	var zones []zone
	for line := range strings.Lines(out) {
		text := strings.TrimSpace(line)
		switch indented := strings.TrimLeft(line, " \t") != line; {
		case text == "":
		case !indented:
			name, marks, _ := strings.Cut(text, " ")
			zones = append(zones, zone{name: name, active: strings.Contains(marks, "active"), value: map[string]string{}})
		case len(zones) == 0:
		case strings.HasPrefix(text, "rule ") || text == "rule":
			zones[len(zones)-1].rules = append(zones[len(zones)-1].rules, text)
		default:
			key, value, _ := strings.Cut(text, ":")
			zones[len(zones)-1].value[key] = strings.TrimSpace(value)
		}
	}
	return zones
}

// inner are zones that libvirt and docker make for networks within this host.
var inner = []string{"docker", "libvirt", "libvirt-routed"}

// firewalld finds that no zone in use lets the port in. Which zone a connection will come through is left open.
func (w wall) firewalld(out string) *Firewall {
	usual, ok := w.run("firewall-cmd", "--get-default-zone")
	usual = strings.TrimSpace(usual)
	if !ok || usual == "" {
		return nil
	}
	var named []string
	lets := false
	for _, z := range parseZones(out) {
		if z.active && !slices.Contains(inner, z.name) || z.name == usual {
			named = append(named, z.name)
			lets = lets || w.zoneLets(z)
		}
	}
	if lets || len(named) == 0 {
		return nil
	}
	policies, _ := w.run("firewall-cmd", "--list-all-policies") // from version 0.9 on
	for _, p := range parseZones(policies) {
		if p.active && strings.Contains(p.value["egress-zones"], "HOST") && w.zoneLets(p) {
			return nil
		}
	}
	if direct, _ := w.run("firewall-cmd", "--direct", "--get-all-rules"); strings.TrimSpace(direct) != "" {
		return nil // rules of iptables, in which anything may stand
	}
	f := &Firewall{Name: "firewalld", Where: strings.Join(named, ", ")}
	if len(named) == 1 {
		f.Zone = named[0]
	}
	return f
}

func (w wall) zoneLets(z zone) bool {
	if z.value["target"] == "ACCEPT" || w.coversTCP(z.value["ports"]) || z.value["source-ports"] != "" ||
		slices.Contains(strings.Fields(z.value["protocols"]), "tcp") || w.serviceLets(strings.Fields(z.value["services"])) {
		return true
	}
	return slices.ContainsFunc(z.rules, func(rule string) bool {
		if !strings.Contains(rule, " accept") {
			return false
		}
		if ports, ok := quoted(rule, ` port port="`); ok {
			return w.covers(ports) && !strings.Contains(rule, `protocol="udp"`)
		}
		if service, ok := quoted(rule, ` service name="`); ok {
			return w.serviceLets([]string{service})
		}
		return !strings.Contains(rule, "icmp")
	})
}

func quoted(text, start string) (string, bool) {
	_, rest, ok := strings.Cut(text, start)
	value, _, closed := strings.Cut(rest, `"`)
	return value, ok && closed
}

func (w wall) serviceLets(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		out, ok := w.run("firewall-cmd", "--info-service="+name)
		if !ok {
			return true
		}
		for _, service := range parseZones(out) {
			if w.coversTCP(service.value["ports"]) || service.value["protocols"] != "" || service.value["source-ports"] != "" ||
				service.value["includes"] != "" && w.serviceLets(strings.Fields(service.value["includes"])) {
				return true
			}
		}
		return false
	})
}

func (w wall) ufw(out string) *Firewall {
	_, rules, found := strings.Cut(out, "\n--")
	if !strings.Contains(out, "Default: deny (incoming)") && !strings.Contains(out, "Default: reject (incoming)") || !found && strings.Contains(out, "ALLOW") {
		return nil
	}
	for line := range strings.Lines(rules) {
		to, _, allows := strings.Cut(line, " ALLOW IN")
		if !allows {
			to, _, allows = strings.Cut(line, " LIMIT IN")
		}
		if !allows || strings.Contains(to, "(v6)") && !slices.ContainsFunc(w.from, func(a string) bool { return strings.Contains(a, ":") }) {
			continue
		}
		to, _, _ = strings.Cut(to, " (") // the application's name
		to, _, _ = strings.Cut(to, " on ")
		fields := strings.Fields(to)
		if len(fields) == 0 || w.coversTCP(fields[len(fields)-1]) { // Anywhere and an address, too, are no other port's
			return nil
		}
	}
	for _, name := range []string{"before.rules", "after.rules"} {
		if text, err := os.ReadFile(filepath.Join(w.etc, "ufw", name)); err == nil && strings.Contains(string(text), "dport "+strconv.Itoa(w.port)) {
			return nil
		}
	}
	return &Firewall{Name: "ufw"}
}
