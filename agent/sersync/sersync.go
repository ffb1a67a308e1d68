// SPDX-License-Identifier: Apache-2.0

// Package sersync reads the confxml.xml of sersync 2.5 and gives back pair definitions, one for each remote.
//
// Each setting of the file gets at least one [Note]: kept, changed and why, refused and why, or missing because
// confxml.xml does not say it. Nothing is guessed that could delete or hide data: an expression becomes an rsync
// pattern only where the two leave out the same files, and the directory on the backup host, which only that host's
// rsyncd.conf tells, stays empty until somebody writes it. The package runs nothing and reads no file.
package sersync

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// Outcome is what became of a setting.
type Outcome string

const (
	Kept    Outcome = "kept"    // it does the same in lockstep
	Changed Outcome = "changed" // lockstep does it another way, or has no need of it
	Refused Outcome = "refused" // it is not in the definition, and something is lost by that
	Missing Outcome = "missing" // confxml.xml does not say it; the definition is not complete without it
)

// Note says what became of one setting.
type Note struct {
	Line    int // 0: none
	Setting string
	Outcome Outcome
	Text    string
	Field   string // of the definition, as in transfer.compress; "" when it has none
	Pair    string // the definition it is about; "" for all of them
}

func (n Note) String() string {
	s := ""
	if n.Line > 0 {
		s = fmt.Sprintf("line %d: ", n.Line)
	}
	s += n.Setting + ": " + string(n.Outcome)
	if n.Field != "" {
		s += " as " + n.Field
		if n.Outcome == Refused || n.Outcome == Missing {
			s = strings.TrimSuffix(s, " as "+n.Field) + " in " + n.Field
		}
	}
	if n.Text != "" {
		s += ": " + n.Text
	}
	if n.Pair != "" {
		s += " [pair " + n.Pair + "]"
	}
	return s
}

// Options says what confxml.xml leaves to the host that it lies on.
type Options struct {
	// SourceHost is the host that sersync runs on.
	SourceHost string
	// BackupPaths has the directory of each rsync module on the backup host. The one named "" is for every module
	// that has none of its own.
	BackupPaths map[string]string
	// Plugin is what sersync -m has behind it: that plugin alone, without replication. "" is sersync without -m.
	Plugin string
}

// Result is what one file says.
type Result struct {
	Pairs []pair.Pair // in the order of the remotes; not all valid when a note is Refused or Missing
	Notes []Note      // in the order of the file
	Live  Live
}

// Complete reports whether nothing was refused and nothing is missing.
func (r *Result) Complete() bool {
	return !slices.ContainsFunc(r.Notes, func(n Note) bool { return n.Outcome == Refused || n.Outcome == Missing })
}

// importer holds what has been read so far.
type importer struct {
	opts        Options
	base        pair.Pair // what all remotes share
	notes       []Note
	problems    pair.Problems
	deletes     bool // inotify/delete
	deleteParam bool
	filterOn    bool
	crontabOn   bool // and not switched off by the filter
	ssh         bool
	sources     map[string]int // field → line it came from
	started     []*element     // plugins that sersync starts
	live        Live
	remoteBase  Remote // what all remotes share
}

// Parse reads a confxml.xml. The error is [pair.Problems]: all that makes the file one that sersync could not have
// run with, such as a misspelt true or an attribute that is not there.
func Parse(data []byte, opts Options) (*Result, error) {
	root, problems := readXML(data)
	if problems != nil {
		return nil, problems
	}
	im := &importer{opts: opts, base: pair.Defaults(), sources: map[string]int{}}
	if root.name != "head" {
		return nil, pair.Problems{{Path: root.path, Msg: fmt.Sprintf("line %d: the root is <%s>, not <head>", root.line, root.name), Hint: "give sersync's confxml.xml"}}
	}
	im.known(root, schema)
	im.host(root)
	im.switches(root)
	im.filter(root)
	im.inotify(root)
	pairs := im.sersync(root)
	if opts.Plugin != "" {
		pairs = im.alone(root, opts.Plugin)
	}
	im.plugins(root, pairs)
	if len(im.problems) > 0 {
		slices.SortStableFunc(im.problems, func(a, b pair.Problem) int { return lineOf(a) - lineOf(b) })
		return nil, im.problems
	}
	for i := range pairs {
		im.validate(&pairs[i])
	}
	slices.SortStableFunc(im.notes, func(a, b Note) int { return a.Line - b.Line })
	return &Result{Pairs: pairs, Notes: im.notes, Live: im.live}, nil
}

func lineOf(p pair.Problem) int {
	number, _, _ := strings.Cut(strings.TrimPrefix(p.Msg, "line "), ":")
	line, _ := strconv.Atoi(number) // 0 without a line
	return line
}

// known elements of a confxml.xml and their attributes.
var schema = node{"version": nil, "host": node{"hostip": nil, "port": nil}, "debug": start, "fileSystem": node{"xfs": nil},
	"filter": node{"start": nil, "exclude": node{"expression": nil}},
	"inotify": node{"delete": start, "createFolder": start, "createFile": start, "closeWrite": start, "moveFrom": start,
		"moveTo": start, "attrib": start, "modify": start},
	"sersync": node{
		"localpath": node{"watch": nil, "remote": node{"ip": nil, "name": nil}},
		"rsync": node{"commonParams": node{"params": nil}, "auth": node{"start": nil, "users": nil, "passwordfile": nil},
			"userDefinedPort": node{"start": nil, "port": nil}, "timeout": node{"start": nil, "time": nil}, "ssh": start},
		"failLog": node{"path": nil, "timeToExecute": nil},
		"crontab": node{"start": nil, "schedule": nil, "crontabfilter": node{"start": nil, "exclude": node{"expression": nil}}},
		"plugin":  node{"start": nil, "name": nil},
	},
	"plugin": node{"name": nil, "param": node{"prefix": nil, "suffix": nil, "ignoreError": nil},
		"filter":    node{"start": nil, "include": node{"expression": nil}},
		"localpath": node{"watch": nil, "deshost": node{"ip": nil, "port": nil, "url": nil}, "cdninfo": node{"domainname": nil, "port": nil, "username": nil, "passwd": nil}, "sendurl": node{"base": nil}, "regexurl": node{"regex": nil, "match": nil}}},
}

type node map[string]node

var start = node{"start": nil}

// known notes what sersync does not read.
func (im *importer) known(e *element, n node) {
	for _, a := range e.attrs {
		if child, ok := n[a.name]; !ok || child != nil {
			im.note(e, setting(e)+" "+a.name, Refused, "", "sersync has no such attribute%s", didYouMean(a.name, n, false))
		}
	}
	for _, c := range e.children {
		child, ok := n[c.name]
		if !ok || child == nil {
			im.note(c, setting(c), Refused, "", "sersync has no such element%s", didYouMean(c.name, n, true))
			continue
		}
		im.known(c, child)
	}
}

// didYouMean finds the name that differs in letter case or by its ending only.
func didYouMean(name string, n node, element bool) string {
	for known, child := range n {
		if (child != nil) == element && (strings.EqualFold(known, name) || strings.EqualFold(known+"s", name) || strings.EqualFold(known, name+"s")) {
			return "; did you mean " + known + "?"
		}
	}
	return ""
}

// setting is the path of an element as people know it: without the head.
func setting(e *element) string {
	return strings.TrimPrefix(strings.TrimPrefix(e.path, "head/"), "sersync/")
}

func (im *importer) note(e *element, setting string, outcome Outcome, field, format string, args ...any) {
	n := Note{Setting: printable(setting), Outcome: outcome, Field: field, Text: printable(fmt.Sprintf(format, args...))}
	if e != nil {
		n.Line = e.line
	}
	if field != "" && im.sources[field] == 0 {
		im.sources[field] = n.Line
	}
	im.notes = append(im.notes, n)
}

func (im *importer) problem(e *element, what, msg, hint string) {
	im.problems = append(im.problems, pair.Problem{Path: strings.TrimSpace(setting(e) + " " + what), Msg: fmt.Sprintf("line %d: %s", e.line, msg), Hint: hint})
}

// one returns the only child of a name, nil when there is none. sersync reads the first; which of two was meant
// nobody can tell.
func (im *importer) one(e *element, name string, required bool) *element {
	found := e.all(name)
	switch {
	case len(found) == 0:
		if required {
			hint := "sersync does not start without it"
			for _, c := range e.children {
				if sameLetters(c.name, strings.ToLower(name)) {
					hint = fmt.Sprintf("write it for <%s> in line %d", c.name, c.line)
				}
			}
			im.problem(e, "", fmt.Sprintf("<%s> has no <%s>", e.name, name), hint)
		}
		return nil
	case len(found) > 1:
		im.problem(found[1], "", fmt.Sprintf("given twice, first in line %d", found[0].line), "keep one of the two")
	}
	return found[0]
}

func (im *importer) attr(e *element, name string) string {
	for _, a := range e.attrs {
		if a.name == name {
			return strings.TrimSpace(a.value)
		}
	}
	im.problem(e, name, fmt.Sprintf("<%s> lacks the attribute %s", e.name, name), "sersync does not start without it")
	return ""
}

func (im *importer) flag(e *element, name string) bool {
	value := im.attr(e, name)
	switch {
	case value == "true" || value == "false":
		return value == "true"
	case !slices.ContainsFunc(e.attrs, func(a attr) bool { return a.name == name }): // told by attr
	default:
		hint := "write true or false"
		for _, word := range []string{"true", "false"} {
			if sameLetters(value, word) {
				hint = "write " + word
			}
		}
		im.problem(e, name, fmt.Sprintf("%q is neither true nor false; sersync hangs on it", value), hint)
	}
	return false
}

// sameLetters reports whether a word is another misspelt: other case, or all but one of its letters.
func sameLetters(a, b string) bool {
	a = strings.ToLower(a)
	if len(a) < len(b)-1 || len(a) > len(b)+1 || a == "" {
		return false
	}
	missing := 0
	for _, c := range b {
		if i := strings.IndexRune(a, c); i >= 0 {
			a = a[:i] + a[i+1:]
		} else {
			missing++
		}
	}
	return missing+len(a) <= 1
}

func (im *importer) number(e *element, name string) int {
	value := im.attr(e, name)
	n, err := strconv.Atoi(value)
	if err != nil && slices.ContainsFunc(e.attrs, func(a attr) bool { return a.name == name }) {
		im.problem(e, name, fmt.Sprintf("%q is not a number", value), "write a whole number in digits")
	}
	return n
}

// validate notes what the definition language does not take.
func (im *importer) validate(p *pair.Pair) {
	for _, problem := range p.Validate() {
		field := problem.Path
		if i := strings.IndexByte(field, '['); i >= 0 {
			field = field[:i]
		}
		told := slices.ContainsFunc(im.notes, func(n Note) bool {
			return n.Outcome == Missing && n.Field == field && (n.Pair == "" || n.Pair == p.Name)
		})
		if told {
			continue
		}
		text := problem.Msg
		if problem.Hint != "" {
			text += "; " + problem.Hint
		}
		n := Note{Line: im.sources[field], Setting: "the definition", Outcome: Refused, Field: problem.Path, Text: text}
		if !slices.Contains(im.notes, n) {
			im.notes = append(im.notes, n)
		}
	}
}
