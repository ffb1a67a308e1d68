// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"fmt"
	"slices"
	"strings"
)

// sersync holds a regular expression against the whole of a subject, and the subject has three forms: an event
// in the watched directory itself is its bare name, an event further down is /sub/name with a leading slash, and
// the scan at start sees a directory as sub/dir/. What matches as an event is not sent; a directory that matches is
// not watched, so nothing below it is sent either. A directory that matches in one form only is therefore left out
// or not, depending on whether sersync was running when it was made.
//
// translate gives rsync patterns that leave out what the expression does. They are exact: where all forms agree,
// rsync agrees with them, and where sersync itself has two answers, rsync gives one of the two.

// kindOf says what a token of a subject matches.
type kindOf uint8

const (
	literal  kindOf = iota // one byte, not a slash
	class                  // one byte of a set, not a slash
	anyName                // one byte that is not a slash: rsync's ?
	anyNames               // any number of those: rsync's *
	slash                  // a slash
	anything               // any number of bytes, slashes too: rsync's **
)

type token struct {
	kind kindOf
	b    byte       // of a literal
	set  *[256]bool // of a class
}

// Bounds on what one expression may expand to. Past them it is refused, as too much to read for whoever checks it.
const (
	maxSequences = 64
	maxRepeat    = 8
	maxPatterns  = 16
)

// dialectError is a construct that rsync patterns can't express, or that is not translated.
type dialectError struct{ msg string }

func (e *dialectError) Error() string { return e.msg }

// translate returns the rsync patterns that leave out what the expression leaves out. None and no error means that
// the expression never matches.
func translate(expression string) ([]string, error) {
	sequences, err := parseExpression(expression)
	if err != nil {
		return nil, err
	}
	var patterns []string
	for _, s := range sequences {
		patterns = append(patterns, sequencePatterns(merge(s))...)
	}
	patterns = simplify(patterns)
	if len(patterns) > maxPatterns {
		return nil, &dialectError{fmt.Sprintf("it stands for %d rsync patterns", len(patterns))}
	}
	for _, p := range patterns {
		if strings.Trim(p, "/*") == "" {
			return nil, &dialectError{"it matches everything"}
		}
	}
	return patterns, nil
}

// merge joins neighbours that together match no more than one of them: **, *, ** is **.
func merge(s []token) []token {
	var out []token
	for _, t := range s {
		if n := len(out); n > 0 && (t.kind == anything || t.kind == anyNames) && (out[n-1].kind == anything || out[n-1].kind == anyNames) {
			if t.kind == anything {
				out[n-1] = t
			}
			continue
		}
		out = append(out, t)
	}
	return out
}

func has(s []token, kind kindOf) bool {
	return slices.ContainsFunc(s, func(t token) bool { return t.kind == kind })
}

// sequencePatterns gives the patterns for the three forms of the subject.
func sequencePatterns(s []token) []string {
	var out []string
	if len(s) > 0 && s[0].kind == anything && !has(s[1:], slash) {
		// A bare name, and /sub/name alike: whatever comes before the rest.
		out = append(out, anywhere(s[1:]))
	} else {
		if !has(s, slash) { // a bare name
			name := slices.Clone(s)
			for i := range name {
				if name[i].kind == anything {
					name[i].kind = anyNames
				}
			}
			out = append(out, rooted(name, "")...)
		}
		for _, rest := range afterSlash(s) { // /sub/name
			for _, path := range withSlash(rest) {
				out = append(out, rooted(path, "")...)
			}
		}
	}
	for _, dir := range beforeSlash(s) { // sub/dir/
		out = append(out, rooted(dir, "/")...)
	}
	return out
}

// anywhere renders ** and a rest without slashes: as a pattern of names where it is one.
func anywhere(rest []token) string {
	last := len(rest) - 1
	switch {
	case !has(rest, anything):
		return "*" + render(rest)
	case rest[last].kind == anything && !has(rest[:last], anything):
		// What has the rest in its own name; what has it further up is below such a directory.
		return "*" + render(rest[:last]) + "*"
	}
	return "/**" + render(rest)
}

// rooted renders a path from the top of the tree, or nothing when no path looks so.
func rooted(path []token, end string) []string {
	path = merge(path)
	if len(path) == 0 || path[0].kind == slash || path[len(path)-1].kind == slash {
		return nil
	}
	for i := range path[1:] {
		if path[i].kind == slash && path[i+1].kind == slash {
			return nil
		}
	}
	if path[0].kind == anything && !has(path, slash) {
		return []string{anywhere(path[1:]) + end}
	}
	return []string{"/" + render(path) + end}
}

// afterSlash returns what is left of the sequence after a leading slash.
func afterSlash(s []token) [][]token {
	switch {
	case len(s) > 0 && s[0].kind == slash:
		return [][]token{s[1:]}
	case len(s) > 0 && s[0].kind == anything:
		return append([][]token{s}, afterSlash(s[1:])...)
	case len(s) > 0 && s[0].kind == anyNames: // which may be none
		return afterSlash(s[1:])
	}
	return nil
}

// beforeSlash returns what is left of the sequence before a trailing slash.
func beforeSlash(s []token) [][]token {
	n := len(s)
	switch {
	case n > 0 && s[n-1].kind == slash:
		return [][]token{s[:n-1]}
	case n > 0 && s[n-1].kind == anything:
		return append([][]token{s}, beforeSlash(s[:n-1])...)
	case n > 0 && s[n-1].kind == anyNames:
		return beforeSlash(s[:n-1])
	}
	return nil
}

// withSlash narrows a sequence to paths of two elements or more.
func withSlash(s []token) [][]token {
	if has(s, slash) {
		return [][]token{s}
	}
	var all [][]token
	for i, t := range s {
		if t.kind == anything {
			narrowed := append(slices.Clone(s[:i]), token{kind: anyNames}, token{kind: slash}, token{kind: anything})
			all = append(all, append(narrowed, s[i+1:]...))
		}
	}
	return all
}

// render writes tokens as an rsync pattern. A backslash escapes in a pattern with wildcards only.
func render(s []token) string {
	wild := slices.ContainsFunc(s, func(t token) bool {
		return t.kind != literal && t.kind != slash || strings.IndexByte("*?[", t.b) >= 0
	})
	var b strings.Builder
	for _, t := range s {
		switch t.kind {
		case literal:
			if wild && strings.IndexByte(`*?[\`, t.b) >= 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(t.b)
		case class:
			b.WriteString(renderClass(t.set))
		case anyName:
			b.WriteByte('?')
		case anyNames:
			b.WriteByte('*')
		case slash:
			b.WriteByte('/')
		case anything:
			b.WriteString("**")
		}
	}
	return b.String()
}

func renderClass(set *[256]bool) string {
	shown := *set
	var b strings.Builder
	b.WriteByte('[')
	count := 0
	for _, in := range set {
		if in {
			count++
		}
	}
	if count > 128 { // fewer to list are those left out; rsync's [^…] never matches a slash
		b.WriteByte('^')
		for c := range shown {
			shown[c] = !shown[c] && c != '/' && c != 0
		}
	}
	for c := 0; c < 256; c++ {
		if !shown[c] {
			continue
		}
		last := c
		for last+1 < 256 && shown[last+1] && alike(byte(c), byte(last+1)) {
			last++
		}
		writeClassByte(&b, byte(c))
		if last > c+1 {
			b.WriteByte('-')
		}
		if last > c {
			writeClassByte(&b, byte(last))
		}
		c = last
	}
	b.WriteByte(']')
	return b.String()
}

// alike reports whether two bytes may be the ends of a range that people can read.
func alike(a, b byte) bool {
	kind := func(c byte) int {
		switch {
		case c >= '0' && c <= '9':
			return 1
		case c >= 'a' && c <= 'z':
			return 2
		case c >= 'A' && c <= 'Z':
			return 3
		}
		return 0
	}
	return kind(a) > 0 && kind(a) == kind(b)
}

func writeClassByte(b *strings.Builder, c byte) {
	if strings.IndexByte(`\]^!-[`, c) >= 0 {
		b.WriteByte('\\')
	}
	b.WriteByte(c)
}

// simplify drops patterns that others make idle.
func simplify(patterns []string) []string {
	var out []string
	for _, p := range patterns {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	idle := func(p string) bool {
		if dir, ok := strings.CutSuffix(p, "/"); ok && slices.Contains(out, dir) {
			return true // the same, but only as a directory
		}
		for _, tail := range []string{"/**", "/**/"} { // everything in a directory that is left out
			dir, ok := strings.CutSuffix(p, tail)
			name := dir
			if rest, deep := strings.CutPrefix(dir, "/**"); deep && !strings.Contains(rest, "/") {
				name = "*" + rest
			}
			if ok && slices.ContainsFunc([]string{dir, dir + "/", name, name + "/"}, func(above string) bool { return slices.Contains(out, above) }) {
				return true
			}
		}
		// What begins so has an ancestor, or is itself one, that begins so: /foo**/ beside /foo*.
		head, ok := strings.CutSuffix(strings.TrimSuffix(p, "/"), "**")
		return ok && slices.Contains(out, head+"*")
	}
	return slices.DeleteFunc(slices.Clone(out), idle)
}

// nearest guesses what the author of an expression that is not translated may have meant.
func nearest(expression string) string {
	s := strings.TrimSuffix(strings.TrimPrefix(expression, "^"), "$")
	var b strings.Builder
	star := "*"
	if strings.Contains(strings.Trim(s, "/*"), "/") {
		star = "**"
	}
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == '.' && i+1 < len(s) && (s[i+1] == '*' || s[i+1] == '+'):
			i++
			b.WriteString(star)
		case strings.IndexByte("()^$|{}+?!:=<>*", s[i]) >= 0:
		default:
			b.WriteByte(s[i])
		}
	}
	p := b.String()
	if strings.Contains(strings.TrimSuffix(p, "/"), "/") && !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "*") {
		p = "/" + p
	}
	if strings.Trim(p, "/* ") == "" || strings.HasPrefix(p, "- ") || strings.HasPrefix(p, "+ ") {
		return ""
	}
	return p
}
