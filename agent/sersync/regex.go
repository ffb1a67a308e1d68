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

// exprParser reads the subset of Perl's syntax that rsync patterns can express.
type exprParser struct {
	s   string
	pos int
}

// parseExpression returns every sequence of tokens that the expression can be.
func parseExpression(s string) ([][]token, error) {
	p := &exprParser{s: s}
	sequences, err := p.alternatives(0)
	if err != nil {
		return nil, err
	}
	if p.pos < len(p.s) {
		return nil, &dialectError{"a ) without its ("}
	}
	return sequences, nil
}

func (p *exprParser) peek() byte {
	if p.pos < len(p.s) {
		return p.s[p.pos]
	}
	return 0
}

func (p *exprParser) alternatives(depth int) ([][]token, error) {
	if depth > maxRepeat {
		return nil, &dialectError{"its groups are nested too deeply"}
	}
	var all [][]token
	for {
		one, err := p.sequence(depth)
		if err != nil {
			return nil, err
		}
		if all = append(all, one...); len(all) > maxSequences {
			return nil, &dialectError{"it has too many alternatives"}
		}
		if p.peek() != '|' {
			return all, nil
		}
		p.pos++
	}
}

func (p *exprParser) sequence(depth int) ([][]token, error) {
	all := [][]token{nil}
	for first := true; p.pos < len(p.s) && p.peek() != '|' && p.peek() != ')'; first = false {
		// The whole subject is matched, so anchors at the ends of an alternative say nothing.
		if p.peek() == '^' && first && depth == 0 {
			p.pos++
			continue
		}
		if p.peek() == '$' && depth == 0 && (p.pos+1 == len(p.s) || p.s[p.pos+1] == '|') {
			p.pos++
			continue
		}
		one, err := p.item(depth)
		if err != nil {
			return nil, err
		}
		if all, err = product(all, one); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func product(as, bs [][]token) ([][]token, error) {
	if len(as)*len(bs) > maxSequences {
		return nil, &dialectError{"it has too many alternatives"}
	}
	var all [][]token
	for _, a := range as {
		for _, b := range bs {
			all = append(all, append(slices.Clone(a), b...))
		}
	}
	return all, nil
}

// item reads an atom and its repetition.
func (p *exprParser) item(depth int) ([][]token, error) {
	start := p.pos
	atom, err := p.atom(depth)
	if err != nil {
		return nil, err
	}
	text := p.s[start:p.pos]
	low, high, err := p.repetition()
	if err != nil {
		return nil, err
	}
	if low == 1 && high == 1 {
		return atom, nil
	}
	if high < 0 {
		return repeatForEver(atom, low, text)
	}
	if high > maxRepeat {
		return nil, &dialectError{fmt.Sprintf("it repeats %s too often", text)}
	}
	var all [][]token
	for n := low; n <= high; n++ {
		times := [][]token{nil}
		for range n {
			if times, err = product(times, atom); err != nil {
				return nil, err
			}
		}
		if all = append(all, times...); len(all) > maxSequences {
			return nil, &dialectError{"it has too many alternatives"}
		}
	}
	return all, nil
}

// repetition reads *, +, ?, {n}, {n,m} and their lazy forms, which match the same when the whole is matched.
func (p *exprParser) repetition() (low, high int, err error) {
	low, high = 1, 1
	switch p.peek() {
	case '*':
		low, high = 0, -1
	case '+':
		low, high = 1, -1
	case '?':
		low, high = 0, 1
	case '{':
		end := strings.IndexByte(p.s[p.pos:], '}')
		if end < 0 {
			return 0, 0, &dialectError{"a { without its }"}
		}
		text := p.s[p.pos+1 : p.pos+end]
		lowText, highText, ranged := strings.Cut(text, ",")
		if low, err = smallNumber(lowText); err != nil {
			return 0, 0, err
		}
		if high = low; ranged {
			if high = -1; highText != "" {
				if high, err = smallNumber(highText); err != nil {
					return 0, 0, err
				}
			}
		}
		if high >= 0 && high < low {
			return 0, 0, &dialectError{"{" + text + "} is not a repetition"}
		}
		p.pos += end
	default:
		return low, high, nil
	}
	p.pos++
	switch p.peek() {
	case '?':
		p.pos++
	case '+', '*', '{':
		return 0, 0, &dialectError{"it has a repetition of a repetition"}
	}
	return low, high, nil
}

func smallNumber(s string) (int, error) {
	if len(s) != 1 || s[0] < '0' || s[0] > '9' {
		return 0, &dialectError{fmt.Sprintf("the repetition {%s} is not translated", s)}
	}
	return int(s[0] - '0'), nil
}

// repeatForEver handles the repetitions that rsync has: . becomes **, [^/] becomes *; and since no subject has two
// slashes in a row, repeated slashes are one.
func repeatForEver(atom [][]token, low int, text string) ([][]token, error) {
	var forever token
	switch {
	case isAny(atom):
		forever = token{kind: anything}
	case len(atom) == 1 && len(atom[0]) == 1 && atom[0][0].kind == anyName:
		forever = token{kind: anyNames}
	case len(atom) == 1 && len(atom[0]) == 1 && (atom[0][0].kind == anything || atom[0][0].kind == anyNames):
		return atom, nil // (.*)*
	case len(atom) == 1 && len(atom[0]) == 1 && atom[0][0].kind == slash && low <= 1:
		if low == 1 {
			return atom, nil
		}
		return [][]token{nil, atom[0]}, nil
	default:
		return nil, &dialectError{fmt.Sprintf("it repeats %s without a bound", text)}
	}
	all := [][]token{nil}
	var err error
	for range low {
		if all, err = product(all, atom); err != nil {
			return nil, err
		}
	}
	return product(all, [][]token{{forever}})
}

// isAny reports whether the alternatives are what . gives: a byte of a name, or a slash.
func isAny(atom [][]token) bool {
	return len(atom) == 2 && len(atom[0]) == 1 && len(atom[1]) == 1 && atom[0][0].kind == anyName && atom[1][0].kind == slash
}

func (p *exprParser) atom(depth int) ([][]token, error) {
	b := p.peek()
	p.pos++
	switch b {
	case '.':
		return [][]token{{{kind: anyName}}, {{kind: slash}}}, nil
	case '(':
		if p.peek() == '?' {
			if !strings.HasPrefix(p.s[p.pos:], "?:") {
				return nil, &dialectError{"rsync has nothing like (?…"}
			}
			p.pos += 2
		}
		inner, err := p.alternatives(depth + 1)
		if err != nil {
			return nil, err
		}
		if p.peek() != ')' {
			return nil, &dialectError{"a ( without its )"}
		}
		p.pos++
		return inner, nil
	case '[':
		set, err := p.class()
		if err != nil {
			return nil, err
		}
		return setTokens(set)
	case '\\':
		set, err := p.escape()
		if err != nil {
			return nil, err
		}
		return setTokens(set)
	case '*', '+', '?', '{', '}', ')', ']':
		return nil, &dialectError{fmt.Sprintf("%q stands where nothing can be repeated or closed", b)}
	case '^', '$':
		return nil, &dialectError{fmt.Sprintf("%q stands in the middle", b)}
	case '/':
		return [][]token{{{kind: slash}}}, nil
	}
	return [][]token{{{kind: literal, b: b}}}, nil
}

// escape reads what follows a backslash.
func (p *exprParser) escape() (*[256]bool, error) {
	b := p.peek()
	if p.pos >= len(p.s) {
		return nil, &dialectError{`it ends in \`}
	}
	p.pos++
	set := new([256]bool)
	switch {
	case b == 'd' || b == 'w':
		for c := range 256 {
			digit := c >= '0' && c <= '9'
			word := digit || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
			set[c] = digit || b == 'w' && word
		}
	case b == '\\':
		return nil, &dialectError{"a backslash in a name is not translated"}
	case b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b > 127 || b == '<' || b == '>' || b == '`' || b == '\'':
		return nil, &dialectError{fmt.Sprintf(`rsync has nothing like \%c`, b)}
	default:
		set[b] = true
	}
	return set, nil
}

// class reads what follows a [.
func (p *exprParser) class() (*[256]bool, error) {
	set := new([256]bool)
	negated := p.peek() == '^'
	if negated {
		p.pos++
	}
	for first := true; ; first = false {
		if p.pos >= len(p.s) {
			return nil, &dialectError{"a [ without its ]"}
		}
		b := p.peek()
		switch {
		case b == ']' && !first:
			p.pos++
			if negated {
				for c := range set {
					set[c] = !set[c]
				}
				set[0] = false // no name has a NUL
			}
			return set, nil
		case b == ']', b > 127, b == '[':
			return nil, &dialectError{fmt.Sprintf("%q in a class is not translated", rune(b))}
		case b == '\\':
			p.pos++
			escaped, err := p.escape()
			if err != nil {
				return nil, err
			}
			for c, in := range escaped {
				set[c] = set[c] || in
			}
			if p.peek() == '-' && p.pos+1 < len(p.s) && p.s[p.pos+1] != ']' {
				return nil, &dialectError{"a range from an escape is not translated"}
			}
			continue
		}
		p.pos++
		last := b
		if p.peek() == '-' && p.pos+1 < len(p.s) && p.s[p.pos+1] != ']' {
			last = p.s[p.pos+1]
			if last < b || last > 127 || last == '\\' || last == '[' {
				return nil, &dialectError{fmt.Sprintf("the range %c-%c is not translated", b, last)}
			}
			p.pos += 2
		}
		for c := int(b); c <= int(last); c++ {
			set[c] = true
		}
	}
}

// setTokens splits a set into what it has besides the slash, and the slash.
func setTokens(set *[256]bool) ([][]token, error) {
	var all [][]token
	names := *set
	names['/'] = false
	count, one := 0, byte(0)
	for c, in := range names {
		if in {
			count++
			one = byte(c)
		}
	}
	switch {
	case count == 254: // all but the slash and NUL
		all = append(all, []token{{kind: anyName}})
	case count == 1:
		all = append(all, []token{{kind: literal, b: one}})
	case count > 1:
		if names['\\'] && count < 128 {
			return nil, &dialectError{"a backslash in a name is not translated"}
		}
		all = append(all, []token{{kind: class, set: &names}})
	}
	if set['/'] {
		all = append(all, []token{{kind: slash}})
	}
	if len(all) == 0 {
		return nil, &dialectError{"a class that nothing matches"}
	}
	return all, nil
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
