// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// PathPlace is where the path of a changed file goes, in the argv and in the url of a hook.
const PathPlace = "{path}"

// Hook is told what has arrived on the backup. The first five fields are of every hook; of the others each has the type
// that it belongs to beside it.
type Hook struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`    // command, socket, http
	Include []string `json:"include"` // rsync patterns of the paths that it is told of; empty: all
	Timeout Duration `json:"timeout"` // of one call
	Retries int      `json:"retries"` // further calls after one that failed

	Argv         []string `json:"argv,omitempty"`          // command: program and arguments; no shell
	IgnoreErrors bool     `json:"ignore_errors,omitempty"` // command: any exit status is a success

	Network string `json:"network,omitempty"` // socket: tcp, unix
	Address string `json:"address,omitempty"` // socket: host:port, or the path of the socket

	URL         string `json:"url,omitempty"`          // http
	Method      string `json:"method,omitempty"`       // http: POST; GET with {path} in the URL
	Match       string `json:"match,omitempty"`        // http, with {path}: its first group is the path
	Kind        string `json:"kind,omitempty"`         // http, with {path}: "", file, dir
	HeadersFile string `json:"headers_file,omitempty"` // http: a file of mode 0600 with lines "Name: value"
}

// PerPath reports whether the hook is called once for each path, not once for each batch.
func (h Hook) PerPath() bool {
	return slices.Contains(h.Argv, PathPlace) || strings.Contains(h.URL, PathPlace)
}

const (
	maxHooks   = 16
	maxInclude = 100 // each is held against every path that arrives
	maxRetries = 100
)

var (
	hookTypes  = []string{"command", "socket", "http"}
	networks   = []string{"tcp", "unix"}
	pathKinds  = []string{"file", "dir"}
	methodRule = regexp.MustCompile(`^[A-Z]{1,16}$`)
)

// DefaultHook returns a hook that has every default and lacks its name, its type and what is of that type.
func DefaultHook() Hook {
	return Hook{Include: []string{}, Timeout: Duration(10 * time.Second), Retries: 3}
}

// complete fills what follows from other fields.
func (h *Hook) complete() {
	if h.Include == nil {
		h.Include = []string{}
	}
	switch h.Type {
	case "socket":
		if h.Network == "" {
			h.Network = "tcp"
			if strings.HasPrefix(h.Address, "/") {
				h.Network = "unix"
			}
		}
	case "http":
		if h.Method == "" {
			h.Method = "POST"
			if h.PerPath() {
				h.Method = "GET"
			}
		}
	}
}

func hookFields(d *decoder, h *Hook) []field {
	return []field{
		{key: "name", read: d.text(&h.Name)},
		{key: "type", read: d.text(&h.Type)},
		{key: "include", read: d.texts(&h.Include)},
		{key: "timeout", read: d.duration(&h.Timeout)},
		{key: "retries", read: d.number(&h.Retries)},
		{key: "argv", read: d.texts(&h.Argv)},
		{key: "ignore_errors", read: d.boolean(&h.IgnoreErrors)},
		{key: "network", read: d.text(&h.Network)},
		{key: "address", read: d.text(&h.Address)},
		{key: "url", read: d.text(&h.URL)},
		{key: "method", read: d.text(&h.Method)},
		{key: "match", read: d.text(&h.Match)},
		{key: "kind", read: d.text(&h.Kind)},
		{key: "headers_file", read: d.text(&h.HeadersFile)},
		{key: "headers", refused: "headers are secrets and are never part of the definition",
			hint: "write them into a file of mode 0600, and its path in headers_file"},
	}
}

func (d *decoder) hooks(dst *[]Hook) func(*yaml.Node, string) {
	return func(n *yaml.Node, path string) {
		if !d.untagged(n, path) {
			return
		}
		if n.Kind != yaml.SequenceNode {
			d.add(n, path, "is "+kind(n)+", not a list", "write each hook as an item of a list, or [] for none")
			return
		}
		list := make([]Hook, len(n.Content))
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			d.line[at] = item.Line
			list[i] = DefaultHook()
			d.object(hookFields(d, &list[i]), item, at)
			if len(list[i].Argv) == 0 {
				list[i].Argv = nil
			}
		}
		*dst = list
	}
}

func (v *validator) hooks(p Pair) {
	if len(p.Hooks) > maxHooks {
		v.add("hooks", fmt.Sprintf("has %d hooks; the limit is %d", len(p.Hooks), maxHooks), "let one program do the work of several")
	}
	for i, h := range p.Hooks {
		at := fmt.Sprintf("hooks[%d]", i)
		switch {
		case h.Name == "":
			v.add(at+".name", "is missing", "write a name for the hook, as in: name: purge")
		case !nameRule.MatchString(h.Name):
			v.add(at+".name", fmt.Sprintf("%q is not a name of a hook", h.Name), "a name has a-z, 0-9 and -, and neither begins nor ends with -")
		case slices.ContainsFunc(p.Hooks[:i], func(o Hook) bool { return o.Name == h.Name }):
			v.add(at+".name", fmt.Sprintf("%q is the name of two hooks", h.Name), "give each a name of its own")
		}
		v.include(at+".include", h.Include)
		v.span(at+".timeout", h.Timeout, time.Millisecond, time.Hour)
		if h.Retries < 0 || h.Retries > maxRetries {
			v.add(at+".retries", fmt.Sprintf("%d is out of range", h.Retries), fmt.Sprintf("write 0 to %d", maxRetries))
		}
		switch h.Type {
		case "":
			v.add(at+".type", "is missing", "write "+strings.Join(hookTypes, ", "))
			continue
		case "command":
			v.command(at, h)
		case "socket":
			v.socket(at, h)
		case "http":
			v.http(at, h)
		default:
			v.add(at+".type", fmt.Sprintf("%q is not a type of hook", h.Type), "write "+strings.Join(hookTypes, ", ")+nearest(h.Type, hookTypes))
			continue
		}
		for _, f := range []struct {
			name, of string
			set      bool
		}{
			{"argv", "command", len(h.Argv) > 0}, {"ignore_errors", "command", h.IgnoreErrors},
			{"network", "socket", h.Network != ""}, {"address", "socket", h.Address != ""},
			{"url", "http", h.URL != ""}, {"method", "http", h.Method != ""}, {"match", "http", h.Match != ""},
			{"kind", "http", h.Kind != ""}, {"headers_file", "http", h.HeadersFile != ""},
		} {
			if f.set && f.of != h.Type {
				v.add(at+"."+f.name, "belongs to hooks of type "+f.of, "remove it")
			}
		}
	}
}

func (v *validator) include(at string, list []string) {
	if len(list) > maxInclude {
		v.add(at, fmt.Sprintf("has %d patterns; the limit is %d", len(list), maxInclude), "include whole directories")
	}
	for i, pattern := range list {
		item := fmt.Sprintf("%s[%d]", at, i)
		if !v.pattern(item, pattern) {
			continue
		}
		switch {
		case strings.HasPrefix(pattern, "+ "), strings.HasPrefix(pattern, "- "):
			v.add(item, fmt.Sprintf("%q is a filter rule; here stands what is included", pattern), "write "+strconv.Quote(pattern[2:]))
		case strings.HasPrefix(pattern, "!"):
			v.add(item, fmt.Sprintf("%q: rsync has no ! in front of a pattern", pattern), "list what is to be included; for a name that begins with !, write ? in its place")
		case strings.HasPrefix(pattern, "./"):
			v.add(item, fmt.Sprintf("%q matches nothing: rsync has no ./ in the names it compares", pattern), "write "+strconv.Quote(pattern[1:]))
		}
	}
}

func (v *validator) command(at string, h Hook) {
	at += ".argv"
	if len(h.Argv) == 0 {
		v.add(at, "is missing", `write the program and its arguments, as in ["/usr/local/bin/told", "{path}"]`)
		return
	}
	for i, a := range h.Argv {
		item := fmt.Sprintf("%s[%d]", at, i)
		switch {
		case strings.ContainsRune(a, 0):
			v.add(item, "has a NUL", "remove it")
		case !utf8.ValidString(a), strings.ContainsRune(a, utf8.RuneError):
			v.add(item, "is not UTF-8 text", "let a script have it")
		case i == 0 && (!strings.HasPrefix(a, "/") || path.Clean(a) != a):
			hint := "write the program's absolute path"
			if strings.ContainsAny(a, " |;&$") {
				hint = "there is no shell; write the program's absolute path, and each argument as an item of its own"
			}
			v.add(item, fmt.Sprintf("%q is not the absolute path of a program", a), hint)
		case a != PathPlace && strings.Contains(a, PathPlace):
			v.add(item, fmt.Sprintf("%q has {path} inside of it", a), "write {path} as an argument of its own")
		}
	}
}

func (v *validator) socket(at string, h Hook) {
	switch {
	case !slices.Contains(networks, h.Network):
		v.add(at+".network", fmt.Sprintf("%q is not a network", h.Network), "write "+strings.Join(networks, " or ")+nearest(h.Network, networks))
	case h.Address == "":
		v.add(at+".address", "is missing", "write host:port, or the path of a unix socket")
	case h.Network == "unix":
		// sockaddr_un has 108 bytes with the NUL, see unix(7).
		if !strings.HasPrefix(h.Address, "/") || path.Clean(h.Address) != h.Address || len(h.Address) > 107 || strings.ContainsRune(h.Address, 0) {
			v.add(at+".address", fmt.Sprintf("%q is not the absolute path of a unix socket", h.Address), "write it from the root, of 107 bytes at most")
		}
	default:
		i := strings.LastIndexByte(h.Address, ':')
		host := h.Address[:max(i, 0)]
		if inner, ok := strings.CutPrefix(host, "["); ok {
			host, ok = strings.CutSuffix(inner, "]")
			if !ok || !strings.Contains(host, ":") {
				host = ""
			}
		} else if strings.Contains(host, ":") {
			host = ""
		}
		if n, err := strconv.ParseUint(h.Address[i+1:], 10, 16); i < 0 || err != nil || n == 0 || !isHost(host) {
			v.add(at+".address", fmt.Sprintf("%q is not host:port", h.Address), "write it as 192.0.2.7:8009 or [2001:db8::7]:8009")
		}
	}
}

func (v *validator) http(at string, h Hook) {
	// The place of the path must be behind the host, or the name of a file would choose who is called.
	u, err := url.Parse(strings.ReplaceAll(h.URL, PathPlace, "path"))
	head, _, perPath := strings.Cut(h.URL, PathPlace)
	switch {
	case h.URL == "":
		v.add(at+".url", "is missing", "write it as http://host:port/path")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		v.add(at+".url", "is not an http or https URL", "write it as http://host:port/path")
	case u.User != nil:
		v.add(at+".url", "has a login in it; secrets are never part of the definition", "write an Authorization line into the file that headers_file names")
	case u.Fragment != "":
		v.add(at+".url", "has a fragment, which is never sent", "remove # and what follows")
	case strings.ContainsFunc(h.URL, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }):
		v.add(at+".url", "has a space or a control character", "write it percent-encoded")
	case perPath && !strings.Contains(strings.TrimPrefix(head, u.Scheme+"://"), "/"):
		v.add(at+".url", "has {path} in the host", "write / between the host and {path}")
	case strings.ContainsAny(strings.ReplaceAll(h.URL, PathPlace, ""), "{}"):
		v.add(at+".url", "has a brace that is not of {path}", "write {path}, or %7B and %7D")
	}
	if !methodRule.MatchString(h.Method) {
		v.add(at+".method", fmt.Sprintf("%q is not a method", h.Method), "write it in capital letters, as POST")
	} else if !perPath && h.URL != "" && h.Method != "POST" && h.Method != "PUT" && h.Method != "PATCH" {
		v.add(at+".method", h.Method+" carries no batch", "write POST, PUT or PATCH, or {path} in the url")
	}
	if h.Match != "" {
		switch re, err := regexp.Compile(h.Match); {
		case err != nil:
			v.add(at+".match", err.Error(), "the syntax is that of RE2")
		case re.NumSubexp() < 1:
			v.add(at+".match", fmt.Sprintf("%q has no group", h.Match), "put what {path} is to be in parentheses")
		case !perPath:
			v.add(at+".match", "needs {path} in the url", "write {path} in the url, or remove match")
		}
	}
	if h.Kind != "" {
		if !slices.Contains(pathKinds, h.Kind) {
			v.add(at+".kind", fmt.Sprintf("%q is not a kind of path", h.Kind), `write file, dir, or "" for both`+nearest(h.Kind, pathKinds))
		} else if !perPath {
			v.add(at+".kind", "needs {path} in the url", "write {path} in the url, or remove kind")
		}
	}
	if f := h.HeadersFile; f != "" && (!strings.HasPrefix(f, "/") || path.Clean(f) != f || strings.ContainsRune(f, 0)) {
		v.add(at+".headers_file", fmt.Sprintf("%q is not an absolute path", f), "write it from the root, as in /etc/lockstep/secrets/purge.headers")
	}
}

// renderHooks writes the hooks, every field that belongs to a hook's type spelt out.
func renderHooks(hooks []Hook, line func(format string, args ...any), list func(indent, key string, items []string)) {
	if len(hooks) == 0 {
		line("hooks: []")
		return
	}
	line("hooks:")
	for _, h := range hooks {
		line("  - name: %s", scalar(h.Name))
		line("    type: %s", scalar(h.Type))
		list("    ", "include", h.Include)
		line("    timeout: %s", h.Timeout)
		line("    retries: %d", h.Retries)
		switch h.Type {
		case "command":
			list("    ", "argv", h.Argv)
			line("    ignore_errors: %t", h.IgnoreErrors)
		case "socket":
			line("    network: %s", scalar(h.Network))
			line("    address: %s", scalar(h.Address))
		case "http":
			line("    url: %s", scalar(h.URL))
			line("    method: %s", scalar(h.Method))
			line("    match: %s", scalar(h.Match))
			line("    kind: %s", scalar(h.Kind))
			line("    headers_file: %s", scalar(h.HeadersFile))
		}
	}
}
