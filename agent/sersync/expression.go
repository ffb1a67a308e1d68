// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"fmt"
	"slices"
	"strings"
)

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
