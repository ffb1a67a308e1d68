// SPDX-License-Identifier: Apache-2.0

package host

import (
	"regexp"
	"slices"
	"strings"
)

// nftChain is a chain as `nft list ruleset` prints it.
type nftChain struct {
	family, table, name string
	input               bool // a base chain of what arrives for this host
	other               bool // a base chain of something else
	drop                bool // by its policy, or by a last rule without a condition
	rules               []string
}

var nftCounter = regexp.MustCompile(`\bcounter packets \d+ bytes \d+ ?|\bcomment "[^"]*" ?`)

func parseRuleset(out string) []nftChain {
	var chains []nftChain
	var family, table string
	depth := 0
	inChain := false
	for line := range strings.Lines(out) {
		text := strings.TrimSpace(line)
		fields := strings.Fields(text)
		opens := strings.HasSuffix(text, "{")
		switch {
		case len(fields) == 0 || strings.HasPrefix(text, "#"):
			continue
		case depth == 0 && opens && fields[0] == "table" && len(fields) >= 4:
			family, table = fields[1], fields[2]
		case depth == 1 && strings.HasPrefix(text, "flags ") && strings.Contains(text, "dormant"):
			family = "dormant" // its chains are not in use
		case depth == 1 && opens:
			if inChain = fields[0] == "chain"; inChain {
				chains = append(chains, nftChain{family: family, table: table, name: fields[1]})
			}
		case depth == 2 && inChain && strings.HasPrefix(text, "type "):
			c := &chains[len(chains)-1]
			c.input = strings.Contains(text, " hook input ")
			c.other = !c.input
			c.drop = strings.Contains(text, "policy drop")
		case depth >= 2 && inChain && text != "}":
			c := &chains[len(chains)-1]
			c.rules = append(c.rules, strings.TrimSpace(nftCounter.ReplaceAllString(text, "")))
		}
		switch {
		case opens:
			depth++
		case strings.HasPrefix(text, "}"):
			depth--
		}
	}
	for i, c := range chains {
		if n := len(c.rules); c.input && n > 0 {
			last := strings.Fields(c.rules[n-1])
			chains[i].drop = c.drop || len(last) > 0 && (last[0] == "drop" || last[0] == "reject")
		}
	}
	return chains
}

// nftables finds a chain that drops what nothing accepts, in a table without a rule that might accept the port. Such a rule
// is every one that is not plainly about something else.
func (w wall) nftables(out string) *Firewall {
	chains := parseRuleset(out)
	for _, c := range chains {
		if !c.input || !c.drop || !w.concerns(c.family) {
			continue
		}
		if !slices.ContainsFunc(chains, func(o nftChain) bool {
			return o.family == c.family && o.table == c.table && !o.other && slices.ContainsFunc(o.rules, w.mayLet)
		}) {
			return &Firewall{Name: "nftables", Where: c.family + " " + c.table + " " + c.name}
		}
	}
	return nil
}

// concerns is whether every connection from the source passes the tables of a family.
func (w wall) concerns(family string) bool {
	v6 := func(a string) bool { return strings.Contains(a, ":") }
	switch family {
	case "inet":
		return true
	case "ip":
		return !slices.ContainsFunc(w.from, v6)
	case "ip6":
		return !slices.ContainsFunc(w.from, func(a string) bool { return !v6(a) })
	}
	return false
}

var (
	nftLets  = regexp.MustCompile(`\b(accept|queue|vmap|xt)\b`) // a chain that a jump leads to is in the same table
	nftDport = regexp.MustCompile(`\btcp dport (!= )?(\{[^}]*\}|\S+)`)
	nftState = regexp.MustCompile(`\bct state (vmap )?(\{ ?)?(established|related|invalid|untracked)\b`)
	nftOther = regexp.MustCompile(`\biif(name)? "?lo"? |\bicmp(v6)?\b|\budp [ds]port\b|\bl4proto (udp|igmp)\b|\bip protocol (udp|igmp)\b`)
)

// mayLet is whether a rule might accept the first packet of a connection to the port.
func (w wall) mayLet(rule string) bool {
	if !nftLets.MatchString(rule) {
		return false
	}
	if m := nftDport.FindStringSubmatch(rule); m != nil {
		return m[1] != "" || w.covers(strings.Trim(m[2], "{} "))
	}
	if nftState.MatchString(rule) {
		return strings.Contains(rule, "new")
	}
	return !nftOther.MatchString(rule) || strings.Contains(rule, "tcp")
}
