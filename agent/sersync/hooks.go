// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// plugin notes which plugins are started; their settings stand elsewhere in the file.
func (im *importer) plugin(sersync *element) {
	for _, e := range sersync.all("plugin") {
		on, name := im.flag(e, "start"), im.attr(e, "name")
		switch {
		case !on:
			im.note(e, "plugin "+name, Kept, "", "off")
		case !slices.Contains(pluginNames, name):
			im.note(e, "plugin "+name, Refused, "hooks", "sersync has no such plugin; it has command, socket, http and refreshCDN")
		default:
			im.started = append(im.started, e)
		}
	}
}

// plugins makes hooks of the plugins that are started. They go to the first pair: sersync ran a plugin once for
// a change, not once for each remote.
func (im *importer) plugins(root *element, pairs []pair.Pair) {
	settings := map[string]*element{}
	for _, e := range root.all("plugin") {
		name := im.attr(e, "name")
		started := slices.ContainsFunc(im.started, func(s *element) bool { return im.attr(s, "name") == name })
		switch {
		case !started:
			im.note(e, "plugin "+name, Kept, "", "its settings are left out, as it is not started; for sersync -m %s, which runs it alone, there is --plugin %s", name, name)
		case settings[name] != nil:
			im.problem(e, "", "given twice", "keep one of the two")
		default:
			settings[name] = e
		}
	}
	var hooks []pair.Hook
	seen := map[string]bool{}
	for _, s := range im.started {
		name := im.attr(s, "name")
		e := settings[name]
		if e == nil {
			im.note(s, "plugin "+name, Refused, "hooks", "it is started and its settings are not in the file")
			continue
		}
		if seen[name] {
			im.problem(s, "", "given twice", "keep one of the two")
			continue
		}
		seen[name] = true
		text := "told of what has arrived, deletions too; a failure is tried again, and never delays what is replicated. sersync ran it whether the files had arrived or not, and once"
		if len(pairs) > 1 {
			text += ". It is a hook of the first pair only: sersync ran it once for all remotes"
		}
		if im.opts.Plugin != "" {
			text = "told of what changes, deletions too; a failure is tried again. sersync ran it once"
		}
		im.note(s, "plugin "+name, Changed, "hooks", "%s", text)
		switch name {
		case "command":
			hooks = append(hooks, im.commandHook(e)...)
		case "socket":
			hooks = append(hooks, im.socketHook(e)...)
		case "http":
			hooks = append(hooks, im.httpHook(e)...)
		case "refreshCDN":
			hooks = append(hooks, im.cdnHooks(e)...)
		}
	}
	if len(pairs) > 0 && len(hooks) > 0 {
		pairs[0].Hooks = hooks
	}
}

func newHook(name, kind string) pair.Hook {
	h := pair.DefaultHook()
	h.Name, h.Type = name, kind
	return h
}

func (im *importer) commandHook(e *element) []pair.Hook {
	const setting = "plugin command"
	h := newHook("command", "command")
	refused := false
	if f := im.one(e, "filter", false); f != nil && im.flag(f, "start") {
		for _, x := range f.all("include") {
			if !im.include(x, &h) {
				refused = true
			}
		}
	}
	param := im.one(e, "param", true)
	if param == nil {
		return nil
	}
	prefix, suffix := im.attr(param, "prefix"), im.attr(param, "suffix")
	before, err := words(prefix)
	after, afterErr := words(suffix)
	if err == nil {
		err = afterErr
	}
	if err != nil {
		im.note(param, setting, Refused, "hooks", "%q %q: %v, and lockstep has none; write a script and name it in argv", prefix, suffix, err)
		return nil
	}
	if refused {
		// With a part of its filter it would run for other paths than it was meant for.
		im.note(e, setting, Refused, "hooks", "left out, because its filter can't be kept")
		return nil
	}
	h.Argv = append(append(before, pair.PathPlace), after...)
	h.IgnoreErrors = im.flag(param, "ignoreError")
	im.note(param, setting+" param", Kept, "hooks", "%q, without a shell: each path is one argument, whatever is in its name", h.Argv)
	if h.IgnoreErrors {
		im.note(param, setting+" ignoreError", Changed, "hooks", "any exit status counts as a success; in sersync it only threw away what the command printed")
	}
	return []pair.Hook{h}
}

// endsIn matches an expression that says no more than how a path ends. sersync held it against the whole of the absolute path;
// only then does it make no difference where the source lies.
var endsIn = regexp.MustCompile(`^\^?(?:\(\.\*\)|\.\*)((?:\\[.\-_]|[A-Za-z0-9_-]|\((?:\\[.\-_]|[A-Za-z0-9_|-])*\))+)\$?$`)

func (im *importer) include(x *element, h *pair.Hook) bool {
	expression := im.attr(x, "expression")
	setting := "plugin command filter/include " + expression
	patterns, err := translate(expression)
	if err != nil || !endsIn.MatchString(expression) || len(patterns) == 0 {
		text := "it is held against the absolute path, and only expressions such as (.*)\\.php have an rsync pattern that is the same"
		if guess := nearest(expression); guess != "" && !strings.HasPrefix(guess, "/") {
			text += "; the nearest may be " + guess
		}
		im.note(x, setting, Refused, "hooks", "%s", text)
		return false
	}
	for _, p := range patterns {
		h.Include = append(h.Include, p)
		im.note(x, setting, Kept, "hooks", "%q, and what is below a directory of such a name", p)
	}
	return true
}

func (im *importer) socketHook(e *element) []pair.Hook {
	local, to := im.destination(e)
	if to == nil {
		return nil
	}
	h := newHook("socket", "socket")
	h.Network = "tcp"
	host := im.attr(to, "ip")
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	h.Address = host + ":" + im.attr(to, "port")
	im.note(to, "plugin socket deshost", Changed, "hooks", "%s gets a line of JSON for each batch, with the paths relative to the source; sersync sent the bare path, without an end", h.Address)
	im.otherTree(local, "socket")
	return []pair.Hook{h}
}

func (im *importer) httpHook(e *element) []pair.Hook {
	local, to := im.destination(e)
	if to == nil {
		return nil
	}
	h := newHook("http", "http")
	h.Method = "POST"
	h.URL = httpURL(im.attr(to, "url"), im.attr(to, "port"))
	im.note(to, "plugin http deshost", Changed, "hooks", "%s gets a batch as JSON; sersync posted watchroot, isdir, inotifyPath and mask as a form", h.URL)
	im.otherTree(local, "http")
	return []pair.Hook{h}
}

// httpURL puts a port into a URL that may have no scheme.
func httpURL(text, port string) string {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	scheme, rest, _ := strings.Cut(text, "://")
	host, tail := rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		host, tail = rest[:i], rest[i:]
	}
	if port != "" && !strings.Contains(host, ":") && (port != "80" || scheme != "http") {
		host += ":" + port
	}
	return scheme + "://" + host + tail
}

// destination returns the directory that a plugin has, and what is in it to say whom to tell.
func (im *importer) destination(e *element) (local, to *element) {
	if local = im.one(e, "localpath", true); local == nil {
		return nil, nil
	}
	return local, im.one(local, "deshost", true)
}

// otherTree notes that a plugin has a directory of its own, in place of which lockstep's hooks see the source.
func (im *importer) otherTree(local *element, name string) {
	if watch := path.Clean(im.attr(local, "watch")); watch != im.base.Source.Path {
		im.note(local, "plugin "+name+" localpath", Changed, "hooks", "%s is not watched: a hook is told of what arrives from %s", watch, im.base.Source.Path)
	}
}

// cdnHooks makes two hooks, one for files and one for directories, which have parameters of different names.
func (im *importer) cdnHooks(e *element) []pair.Hook {
	local := im.one(e, "localpath", true)
	if local == nil {
		return nil
	}
	info, send, re := im.one(local, "cdninfo", true), im.one(local, "sendurl", true), im.one(local, "regexurl", true)
	if info == nil || send == nil || re == nil {
		return nil
	}
	const setting = "plugin refreshCDN"
	base, match := im.attr(send, "base"), ""
	watch := path.Clean(im.attr(local, "watch"))
	switch source := im.base.Source.Path; {
	case im.flag(re, "regex"):
		match = im.attr(re, "match")
		im.note(re, setting+" regexurl", Changed, "hooks", "its first group follows %s; what stood behind the match in sersync does not", base)
	case watch == source:
		base = strings.TrimSuffix(base, "/") + "/"
	case strings.HasPrefix(watch, strings.TrimSuffix(source, "/")+"/"):
		base = strings.TrimSuffix(base, "/") + "/"
		match = "^" + regexp.QuoteMeta(watch) + "/(.*)"
	default:
		im.note(local, setting+" localpath", Refused, "hooks", "%s is not in %s, and a hook is told of what arrives from there; give it a pair of its own", watch, source)
		return nil
	}
	if im.attr(info, "username")+im.attr(info, "passwd") != "" {
		im.note(info, setting+" cdninfo", Refused, "hooks", "the login is left out: sersync sent it in each URL, in clear. Write it as a header into a file of mode 0600 and name that in headers_file, if the CDN takes it so")
	}
	if strings.ContainsAny(base, "&#%+{} ") {
		base = url.QueryEscape(base)
	}
	var hooks []pair.Hook
	for _, kind := range []struct{ name, kind, query, end string }{{"refresh-cdn-files", "file", "urls", ""}, {"refresh-cdn-dirs", "dir", "dirs", "/"}} {
		h := newHook(kind.name, "http")
		h.Method, h.Kind, h.Match = "HEAD", kind.kind, match
		h.URL = strings.TrimSuffix(httpURL(im.attr(info, "domainname"), im.attr(info, "port")), "/") + "/index.jsp?ok=ok&" + kind.query + "=" + base + pair.PathPlace + kind.end
		im.note(send, setting+" sendurl", Kept, "hooks", "%s", h.URL)
		hooks = append(hooks, h)
	}
	im.note(e, setting, Changed, "hooks", "an answer that is not 2xx is a failure and told in the status; sersync wrote a header of it into errorlog.txt")
	return hooks
}

// hookLeaves lists the fields of a hook that are not their defaults.
func hookLeaves(h pair.Hook) []leaf {
	d := pair.DefaultHook()
	all := []struct {
		leaf
		show bool
	}{
		{leaf{"", "name", h.Name}, true}, {leaf{"", "type", h.Type}, true},
		{leaf{"", "include", h.Include}, len(h.Include) > 0},
		{leaf{"", "timeout", h.Timeout.String()}, h.Timeout != d.Timeout}, {leaf{"", "retries", h.Retries}, h.Retries != d.Retries},
		{leaf{"", "argv", h.Argv}, len(h.Argv) > 0}, {leaf{"", "ignore_errors", h.IgnoreErrors}, h.IgnoreErrors},
		{leaf{"", "network", h.Network}, h.Network != ""}, {leaf{"", "address", h.Address}, h.Address != ""},
		{leaf{"", "url", h.URL}, h.URL != ""}, {leaf{"", "method", h.Method}, h.Method != ""}, {leaf{"", "match", h.Match}, h.Match != ""},
		{leaf{"", "kind", h.Kind}, h.Kind != ""}, {leaf{"", "headers_file", h.HeadersFile}, h.HeadersFile != ""},
	}
	var out []leaf
	for _, f := range all {
		if f.show {
			out = append(out, f.leaf)
		}
	}
	return out
}

// hooks writes a list of objects.
func (w *writer) hooks(key string, hooks []pair.Hook) {
	outer := w.indent
	defer func() { w.indent = outer }()
	if len(hooks) == 0 {
		w.line("%s%s[]", key, w.assign)
		return
	}
	if w.open != "" {
		w.line("%s%s[", key, w.assign)
		for _, h := range hooks {
			w.indent = outer + "  "
			w.line("{")
			w.indent += "  "
			for _, l := range hookLeaves(h) {
				w.field(l)
			}
			w.indent = outer + "  "
			w.line("},")
		}
		w.indent = outer
		w.line("]")
		return
	}
	w.line("%s:", key)
	for _, h := range hooks {
		w.indent = outer + "    "
		fields := hookLeaves(h)
		w.b.WriteString(outer + "  - " + fields[0].key + w.assign + w.quote(h.Name) + "\n")
		for _, l := range fields[1:] {
			w.field(l)
		}
	}
}
