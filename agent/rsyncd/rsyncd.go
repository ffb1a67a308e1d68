// SPDX-License-Identifier: Apache-2.0

// Package rsyncd holds rsyncd.conf(5) and the secrets file of a module as values.
//
// What [Render] writes, [Parse] and the rsync daemon read back as the same value; a value that the
// format cannot hold is an error and never quoted, because rsync knows no quotes. [Parse] takes
// any file that the daemon takes, so that modules which are not ours can be looked at; like the daemon,
// it passes over a line that means nothing. The package reads no file: an &include or &merge line is
// reported, following it is left to the caller.
package rsyncd

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/ini.v1"
)

// File is one rsyncd.conf.
type File struct {
	Global   []Param   // parameters before the first module or in [global]
	Includes []Include // in the order of the file
	Modules  []Module
}

// Module is one section: a directory that the daemon serves under a name.
type Module struct {
	Name   string
	Params []Param
}

// Param is one parameter. Names are in lower case with single spaces, as in `hosts allow`.
type Param struct{ Name, Value string }

// Include is an &include or &merge line; both may name a file or a directory.
type Include struct {
	Merge bool // &merge: the other file's parameters continue this one
	Path  string
}

// Get returns the value that counts for the module: its own, else the global one, else "".
func (f *File) Get(m Module, name string) string {
	for _, p := range slices.Backward(slices.Concat(f.Global, m.Params)) {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

// iniOptions turns off everything in which ini.v1 differs from rsyncd.conf, as far as it can be turned off.
var iniOptions = ini.LoadOptions{
	IgnoreContinuation:      true,
	IgnoreInlineComment:     true,
	PreserveSurroundedQuote: true,
	KeyValueDelimiters:      "=",
}

// Marks around what ini.v1 must not interpret: backticks and triple quotes at the start of a value,
// white space that is not ASCII, a module called DEFAULT.
const (
	valueMark   = "\x01"
	sectionMark = "="
)

// Parse reads an rsyncd.conf.
func Parse(data []byte) (*File, error) {
	var text bytes.Buffer
	var includes []Include
	var names []string
	for n, line := range logicalLines(data) {
		line = strings.Trim(line, asciiSpace)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case strings.ContainsAny(line, "\x00\x01"):
			return nil, fmt.Errorf("line %d: control character", n+1)
		case line[0] == '[':
			name, _, ok := strings.Cut(line[1:], "]")
			name = strings.Join(strings.FieldsFunc(name, isASCIISpace), " ")
			if !ok || name == "" {
				return nil, fmt.Errorf("line %d: module name without its brackets: %q", n+1, line)
			}
			// To ini.v1, other letters are another section.
			if i := slices.IndexFunc(names, func(other string) bool { return SameModule(other, name) }); i >= 0 {
				name = names[i]
			} else {
				names = append(names, name)
			}
			fmt.Fprintf(&text, "[%s%s]\n", sectionMark, name)
		case line[0] == '&':
			inc, ok, err := parseInclude(line)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n+1, err)
			}
			if ok {
				includes = append(includes, inc)
			}
		default:
			name, value, ok := strings.Cut(line, "=")
			name = canonical(name)
			if ok && name == "" {
				return nil, fmt.Errorf("line %d: parameter without a name: %q", n+1, line)
			}
			if !ok || !paramName.MatchString(name) {
				continue
			}
			fmt.Fprintf(&text, "%s=%s%s%s\n", name, valueMark, strings.Trim(value, asciiSpace), valueMark)
		}
	}
	parsed, err := ini.LoadSources(iniOptions, text.Bytes())
	if err != nil {
		return nil, err
	}
	f := &File{Includes: includes}
	for _, section := range parsed.Sections() {
		var params []Param
		for _, key := range section.Keys() {
			params = append(params, Param{key.Name(), strings.Trim(key.Value(), valueMark)})
		}
		name, isModule := strings.CutPrefix(section.Name(), sectionMark)
		switch {
		case !isModule:
			f.Global = append(f.Global, params...)
		case SameModule(name, globalSection):
			// rsyncd.conf(5): [global] goes on with the global parameters; the last value counts.
			for _, p := range params {
				f.Global = slices.DeleteFunc(f.Global, func(q Param) bool { return q.Name == p.Name })
				f.Global = append(f.Global, p)
			}
		default:
			f.Modules = append(f.Modules, Module{Name: name, Params: params})
		}
	}
	return f, nil
}

// Render writes the file in the form that the daemon reads.
func Render(f *File) ([]byte, error) {
	global := ini.Empty(iniOptions)
	if err := addParams(global.Section(ini.DefaultSection), f.Global); err != nil {
		return nil, err
	}
	out, err := write(global)
	if err != nil {
		return nil, err
	}
	// ini.v1 knows no such lines.
	for _, inc := range f.Includes {
		if inc.Path == "" {
			return nil, errors.New("an included path is empty")
		}
		if err := checkValue(inc.Path); err != nil {
			return nil, fmt.Errorf("included path %q: %w", inc.Path, err)
		}
		if inc.Path[0] == '=' {
			return nil, fmt.Errorf("included path %q: the daemon takes the equal sign for what stands before a path", inc.Path)
		}
		word := "&include "
		if inc.Merge {
			word = "&merge "
		}
		out = append(out, word+inc.Path+"\n"...)
	}
	modules := ini.Empty(iniOptions)
	for i, m := range f.Modules {
		if err := CheckModuleName(m.Name); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(f.Modules[:i], func(other Module) bool { return SameModule(other.Name, m.Name) }) {
			return nil, fmt.Errorf("module %q: named twice", m.Name)
		}
		section, err := modules.NewSection(m.Name)
		if err != nil {
			return nil, fmt.Errorf("module %q: %w", m.Name, err)
		}
		if err := addParams(section, m.Params); err != nil {
			return nil, fmt.Errorf("module %q: %w", m.Name, err)
		}
	}
	text, err := write(modules)
	if len(out) > 0 && len(text) > 0 {
		out = append(out, '\n')
	}
	return append(out, text...), err
}

// write renders with one space before each equal sign: ini.v1 aligns them, and a diff would show lines that did
// not change.
func write(f *ini.File) ([]byte, error) {
	var buf bytes.Buffer
	if _, err := f.WriteTo(&buf); err != nil {
		return nil, err
	}
	lines := strings.SplitAfter(buf.String(), "\n")
	for i, line := range lines {
		if name, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "[") {
			lines[i] = strings.TrimRight(name, " ") + " =" + value
		}
	}
	return []byte(strings.TrimLeft(strings.Join(lines, ""), "\n")), nil
}

func addParams(section *ini.Section, params []Param) error {
	for _, p := range params {
		if p.Name != canonical(p.Name) || !paramName.MatchString(p.Name) {
			return fmt.Errorf("parameter name %q", p.Name)
		}
		if err := checkValue(p.Value); err != nil {
			return fmt.Errorf("parameter %q: %w", p.Name, err)
		}
		if section.HasKey(p.Name) {
			return fmt.Errorf("parameter %q: set twice", p.Name)
		}
		if _, err := section.NewKey(p.Name, p.Value); err != nil {
			return fmt.Errorf("parameter %q: %w", p.Name, err)
		}
	}
	return nil
}

var (
	paramName  = regexp.MustCompile(`^[a-z0-9_-]+( [a-z0-9_-]+)*$`)
	moduleName = regexp.MustCompile(`^[^\s\pC\]\[/\\:=#;"'%&*?!,` + "`" + `-][^\pC\]\[/\\:=#;"'%&*?!,` + "`" + `]*$`)
	variable   = regexp.MustCompile(`%[A-Za-z0-9_]+%`)
)

// globalSection goes on with the parameters before the first module.
const globalSection = "global"

// SameModule is whether the daemon takes two names for one section: case and white space do not count to it
// (strwiEQ in loadparm.c), and what the later section sets replaces what the earlier has set.
func SameModule(a, b string) bool { return strings.EqualFold(withoutSpace(a), withoutSpace(b)) }

func withoutSpace(s string) string { return strings.Join(strings.Fields(s), "") }

// CheckModuleName says why a module cannot have this name.
func CheckModuleName(name string) error {
	switch {
	case !moduleName.MatchString(name), name != strings.Join(strings.Fields(name), " "):
		return fmt.Errorf("module name %q: a name has letters, digits, dots, - and _", name)
	case SameModule(name, globalSection), strings.EqualFold(name, ini.DefaultSection):
		return fmt.Errorf("module name %q is reserved", name)
	}
	return nil
}

// checkValue says why a value cannot be written: rsyncd.conf has neither quotes nor escapes.
func checkValue(v string) error {
	switch {
	case v != strings.TrimSpace(v):
		return fmt.Errorf("value %q: white space at an end is lost", v)
	case hasControl(v):
		return fmt.Errorf("value %q: control character", v)
	case strings.HasSuffix(v, `\`):
		return fmt.Errorf("value %q: a backslash at the end continues the line", v)
	case strings.Contains(v, "`"):
		return fmt.Errorf("value %q: backtick", v)
	}
	return nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// CheckPath says why a directory cannot be the path of a module: beside [checkValue], the daemon
// replaces %NAME% by an environment variable and takes /./ as the place of the chroot.
func CheckPath(path string) error {
	if err := checkValue(path); err != nil {
		return err
	}
	switch {
	case variable.MatchString(path):
		return fmt.Errorf("path %q: the rsync daemon would replace %s", path, variable.FindString(path))
	case strings.Contains(path+"/", "/./"):
		return fmt.Errorf("path %q: /./ has a meaning of its own in rsyncd.conf", path)
	}
	return nil
}

const asciiSpace = " \t\r\n\v\f"

func isASCIISpace(r rune) bool { return r < 0x80 && strings.ContainsRune(asciiSpace, r) }

// canonical is the name as rsyncd.conf(5) writes it: to the daemon, case and white space do not count.
func canonical(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name), isASCIISpace)
	if known, ok := spelling[strings.Join(words, "")]; ok {
		return known
	}
	return strings.Join(words, " ")
}

// spelling has the parameters of more than one word.
var spelling = func() map[string]string {
	names := map[string]string{}
	for _, name := range []string{
		"auth digest", "auth users", "daemon chroot", "daemon gid", "daemon uid", "dont compress",
		"early exec", "exclude from", "fake super", "forward lookup", "hosts allow", "hosts deny", "ignore errors",
		"ignore nonreadable", "include from", "incoming chmod", "insecure links", "listen backlog", "lock file", "log file",
		"log format", "max connections", "max verbosity", "motd file", "munge symlinks", "name converter", "numeric ids",
		"open noatime", "outgoing chmod", "pid file", "post-xfer exec", "pre-xfer exec", "proxy protocol",
		"proxy protocol hosts", "read only", "refuse options", "reverse lookup", "secrets file", "socket options",
		"strict modes", "syslog facility", "syslog tag", "temp dir", "transfer logging", "use chroot", "write only",
	} {
		names[strings.ReplaceAll(name, " ", "")] = name
	}
	return names
}()

// parseInclude reads a line that begins with &; ok is false for one without a path, which means nothing. White space, an equal
// sign or both stand before the path.
func parseInclude(line string) (inc Include, ok bool, err error) {
	end := strings.IndexAny(line, asciiSpace+"=")
	if end < 0 {
		return inc, false, nil
	}
	path := strings.TrimPrefix(strings.TrimLeft(line[end:], asciiSpace), "=")
	inc.Path = strings.TrimLeft(path, asciiSpace)
	inc.Merge = strings.EqualFold(line[:end], "&merge")
	if inc.Path == "" || !inc.Merge && !strings.EqualFold(line[:end], "&include") {
		return inc, false, fmt.Errorf("neither &include PATH nor &merge PATH: %q", line)
	}
	return inc, true, nil
}

// logicalLines yields lines with those that end in a backslash joined to the next; comments are
// never continued. The index is that of the first physical line.
func logicalLines(data []byte) func(yield func(int, string) bool) {
	return func(yield func(int, string) bool) {
		lines := strings.Split(string(data), "\n")
		for i := 0; i < len(lines); i++ {
			first, line := i, lines[i]
			comment := strings.HasPrefix(strings.TrimLeft(line, asciiSpace), "#") || strings.HasPrefix(strings.TrimLeft(line, asciiSpace), ";")
			for !comment && i+1 < len(lines) {
				joined, ok := strings.CutSuffix(strings.TrimRight(line, asciiSpace), `\`)
				if !ok {
					break
				}
				i++
				line = joined + lines[i]
			}
			if !yield(first, line) {
				return
			}
		}
	}
}
