// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// Format is a way to write definitions.
type Format string

const (
	YAML      Format = "yaml"      // definition files, with --- between them
	Terraform Format = "terraform" // lockstep_pair resources
	Ansible   Format = "ansible"   // tasks of lockstep.replication.pair
)

// Formats lists the formats of [Result.Render].
var Formats = []Format{YAML, Terraform, Ansible}

// leaf is one field of a definition with its value: a string, int, bool, []string or []pair.Hook.
type leaf struct {
	group, key string
	value      any
}

func (l leaf) path() string {
	if l.group == "" {
		return l.key
	}
	return l.group + "." + l.key
}

// leaves lists the fields in the order of the documentation.
func leaves(p pair.Pair) []leaf {
	return []leaf{
		{"", "name", p.Name},
		{"source", "host", p.Source.Host}, {"source", "path", p.Source.Path}, {"source", "address", p.Source.Address},
		{"backup", "host", p.Backup.Host}, {"backup", "path", p.Backup.Path}, {"backup", "address", p.Backup.Address},
		{"backup", "port", p.Backup.Port}, {"backup", "module", p.Backup.Module}, {"backup", "uid", p.Backup.UID}, {"backup", "gid", p.Backup.GID},
		{"", "transport", p.Transport},
		{"auth", "user", p.Auth.User},
		{"", "exclude", p.Exclude}, {"", "filter", p.Filter},
		{"delete", "enabled", p.Delete.Enabled}, {"delete", "max_files", p.Delete.MaxFiles}, {"delete", "max_percent", p.Delete.MaxPercent},
		{"watch", "backend", p.Watch.Backend}, {"watch", "events", p.Watch.Events}, {"watch", "delay", p.Watch.Delay.String()}, {"watch", "max_delay", p.Watch.MaxDelay.String()},
		{"transfer", "compress", p.Transfer.Compress}, {"transfer", "bandwidth_limit", p.Transfer.BandwidthLimit}, {"transfer", "timeout", p.Transfer.Timeout.String()},
		{"transfer", "parallel", p.Transfer.Parallel}, {"transfer", "options", p.Transfer.Options},
		{"full", "every", p.Full.Every}, {"full", "exclude", p.Full.Exclude},
		{"retry", "initial", p.Retry.Initial.String()}, {"retry", "max", p.Retry.Max.String()},
		{"", "hooks", p.Hooks},
		{"metrics", "listen", p.Metrics.Listen},
		{"", "paused", p.Paused},
	}
}

// shown picks what to write of a definition: what differs from the default, and what a note is about.
func (r *Result) shown(p pair.Pair) []leaf {
	defaults := pair.Defaults()
	defaults.Name = p.Name
	defaults.Source.Host, defaults.Backup.Host = p.Source.Host, p.Backup.Host
	defaults.Transport = p.Transport
	defaults.Complete()
	plain := leaves(defaults)
	var out []leaf
	for i, l := range leaves(p) {
		always := slices.Contains([]string{"name", "source.host", "source.path", "backup.host", "backup.path"}, l.path())
		if p.HooksOnly() && slices.Contains([]string{"backup", "auth", "delete", "transfer", "full", "retry"}, l.group) {
			continue
		}
		if always || len(r.about(p, l.path())) > 0 || fmt.Sprint(l.value) != fmt.Sprint(plain[i].value) {
			out = append(out, l)
		}
	}
	return out
}

// about returns the notes on one field of one definition; with "" those that are about no field of it.
func (r *Result) about(p pair.Pair, path string) []Note {
	var out []Note
	for _, n := range r.Notes {
		field, _, _ := strings.Cut(n.Field, "[")
		if field == "hooks" || field == "source" || field == "backup" {
			field = ""
		}
		if field == path && (n.Pair == "" || n.Pair == p.Name) {
			out = append(out, n)
		}
	}
	return out
}

// Render writes the definitions in one of the [Formats], with the notes as comments.
func (r *Result) Render(as Format) (string, error) {
	var b bytes.Buffer
	for i, p := range r.Pairs {
		if p.HooksOnly() && as != YAML {
			return "", fmt.Errorf("%s makes pairs of two hosts, and pair %q has no backup: take yaml, and lockstep apply --role source on its host", as, p.Name)
		}
		switch as {
		case YAML:
			if i > 0 {
				b.WriteString("---\n")
			}
			w := writer{b: &b, quote: strconv.Quote, assign: ": "} // Go's escapes are all YAML's
			r.head(&w, p)
			r.body(&w, p, r.shown(p))
		case Ansible:
			if i > 0 {
				b.WriteString("\n")
			}
			w := writer{b: &b, quote: quoteAnsible, assign: ": "}
			r.head(&w, p)
			w.line("- name: %s", quoteAnsible("Keep "+p.Backup.Host+" equal to "+p.Source.Path+" of "+cmp.Or(p.Source.Host, "the source host")))
			w.line("  lockstep.replication.pair:")
			w.indent = "    "
			r.body(&w, p, r.shown(p))
		case Terraform:
			if i > 0 {
				b.WriteString("\n")
			}
			w := writer{b: &b, quote: quoteHCL, assign: " = ", open: "{", close: "}"}
			r.head(&w, p)
			w.line("resource \"lockstep_pair\" %s {", quoteHCL(resourceName(p.Name)))
			w.indent = "  "
			r.body(&w, p, r.shown(p))
			w.indent = ""
			w.line("}")
		default:
			return "", fmt.Errorf("%q is no format; there are yaml, terraform and ansible", as)
		}
	}
	return b.String(), nil
}

// resourceName makes a name that HCL takes for a resource: it may not begin with a digit.
func resourceName(name string) string {
	if name != "" && name[0] >= '0' && name[0] <= '9' {
		return "pair-" + name
	}
	return name
}

// writer writes lines, indented, in one of the languages.
type writer struct {
	b           *bytes.Buffer
	indent      string
	quote       func(string) string
	assign      string
	open, close string // around the fields of a group
}

func (w *writer) line(format string, args ...any) {
	fmt.Fprintf(w.b, "%s%s\n", w.indent, fmt.Sprintf(format, args...))
}

// comment writes a note, broken into lines of about a hundred characters.
func (w *writer) comment(text string) {
	const width = 100
	lead := "# "
	for len(text) > 0 {
		cut := len(text)
		if room := width - len(w.indent) - len(lead); cut > room {
			if i := strings.LastIndexByte(text[:room], ' '); i > 0 {
				cut = i
			} else if i := strings.IndexByte(text[room:], ' '); i >= 0 {
				cut = room + i
			}
		}
		w.line("%s%s", lead, text[:cut])
		text = strings.TrimPrefix(text[cut:], " ")
		lead = "#   "
	}
}

// head writes the notes that are about no field. Those that say only that something is as it was are left to the
// list of notes.
func (r *Result) head(w *writer, p pair.Pair) {
	w.comment("Pair " + p.Name + ", imported from sersync's confxml.xml.")
	for _, n := range r.about(p, "") {
		if n.Outcome != Kept {
			n.Pair = ""
			w.comment(n.String())
		}
	}
}

func (r *Result) body(w *writer, p pair.Pair, fields []leaf) {
	outer := w.indent
	group := ""
	closeGroup := func() {
		w.indent = outer
		if group != "" && w.close != "" {
			w.line("%s", w.close)
		}
	}
	for _, l := range fields {
		if l.group != group {
			closeGroup()
			if group = l.group; group != "" {
				w.line("%s", strings.TrimRight(group+w.assign+w.open, " "))
			}
		}
		if group != "" {
			w.indent = outer + "  "
		}
		for _, n := range r.about(p, l.path()) {
			n.Field, n.Pair = "", ""
			w.comment(n.String())
		}
		w.field(l)
	}
	closeGroup()
}

func (w *writer) field(l leaf) {
	switch v := l.value.(type) {
	case []string:
		switch {
		case len(v) == 0:
			w.line("%s%s[]", l.key, w.assign)
		case w.open == "": // YAML
			w.line("%s:", l.key)
			for _, item := range v {
				w.line("  - %s", w.quote(item))
			}
		default:
			w.line("%s%s[", l.key, w.assign)
			for _, item := range v {
				w.line("  %s,", w.quote(item))
			}
			w.line("]")
		}
	case []pair.Hook:
		w.hooks(l.key, v)
	case string:
		w.line("%s%s%s", l.key, w.assign, w.quote(v))
	default:
		w.line("%s%s%v", l.key, w.assign, v)
	}
}

// printable keeps a value of the file from breaking out of its line, in a comment or on a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 || r == 0xfeff || !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// quoteAnsible keeps Ansible from reading a template in a pattern.
func quoteAnsible(s string) string {
	if strings.Contains(s, "{{") || strings.Contains(s, "{%") || strings.Contains(s, "{#") {
		return "!unsafe " + strconv.Quote(s)
	}
	return strconv.Quote(s)
}

// quoteHCL writes a string of HCL: of Go's escapes it has \n, \r, \t, \", \\ and \u, and ${ and %{ begin a template.
func quoteHCL(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case !strconv.IsPrint(r) && r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		case !strconv.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(b.String())
}
