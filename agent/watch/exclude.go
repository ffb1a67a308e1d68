// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"fmt"
	"slices"
	"strings"
)

// maxPattern is where rsync itself gives up on a pattern (MAXPATHLEN).
const maxPattern = 4096

// Exclude is an ordered list of patterns as given to rsync --exclude, and tells which paths rsync would leave out.
//
// It knows the whole of rsync(1) PATTERN MATCHING RULES and what --exclude makes of the prefixes "- " and "+ "
// and of a lone "!". Paths are raw bytes. It is safe for use by several goroutines, and a nil *Exclude excludes nothing.
type Exclude struct {
	patterns []string
	rules    []rule
}

// rule is one pattern, taken apart once so that matching allocates nothing.
type rule struct {
	pattern string // as it was given
	include bool   // "+ ": a path that matches it is kept, whatever later rules say
	dirOnly bool   // had a trailing "/"
	where   where
	elems   int     // for lastElems: how many
	literal string  // without wildcards: what to compare with
	tokens  []token // with wildcards; nil if it has none
	suffix  string  // "*.tmp" is tested by its suffix
	broken  bool    // has a class without an end: matches nothing, as in rsync
	lead    bool    // begins with "**": matched against "/"+path, so that "**/x" finds a top-level x
	trail   bool    // ends in "***": matches a directory as path+"/"
	class   [][4]uint64
}

// where is the part of a path that a pattern is held against.
type where uint8

const (
	baseName  where = iota // the last element: a pattern without "/" and "**"
	lastElems              // as many elements as the pattern has: "a/b"
	anyElems               // everything after any "/": a "**" that is not at the beginning
	wholePath              // "/a", and patterns that begin with "**"
)

// token is a byte to match: 0..255 literally, or one of the following.
type token int32

const (
	anyByte    token = 256 + iota // ?
	star                          // *
	doubleStar                    // **
	firstClass                    // index into rule.class is token-firstClass
)

// NewExclude reads patterns in the order in which they are given to rsync.
func NewExclude(patterns []string) (*Exclude, error) {
	e := &Exclude{patterns: slices.Clone(patterns)}
	for _, p := range patterns {
		if p == "!" { // clears the list, also in --exclude
			e.rules = nil
			continue
		}
		r, err := newRule(p)
		if err != nil {
			return nil, fmt.Errorf("exclude pattern %q: %w", p, err)
		}
		if p != "" { // rsync takes an empty pattern and ignores it
			e.rules = append(e.rules, r)
		}
	}
	return e, nil
}

// Patterns returns the patterns as they were given.
func (e *Exclude) Patterns() []string {
	if e == nil {
		return nil
	}
	return slices.Clone(e.patterns)
}

// Match tells whether rsync would leave path out, because a pattern excludes it or a directory above it.
// Path is relative to the root, dir says whether it is a directory. The root itself is never excluded.
func (e *Exclude) Match(path string, dir bool) bool {
	_, ok := e.Find(path, dir)
	return ok
}

// Find returns the pattern that excludes path or a directory above it.
func (e *Exclude) Find(path string, dir bool) (pattern string, ok bool) {
	if e == nil || len(e.rules) == 0 {
		return "", false
	}
	for i := 0; i < len(path); i++ {
		if path[i] == '/' {
			if r := e.decide(path[:i], true); r != nil {
				return r.pattern, true
			}
		}
	}
	if r := e.decide(path, dir); r != nil {
		return r.pattern, true
	}
	return "", false
}

// entry is Match for a path whose parent is known not to be excluded.
func (e *Exclude) entry(path string, dir bool) bool {
	return e != nil && len(e.rules) > 0 && e.decide(path, dir) != nil
}

// decide returns the rule that excludes path itself: the first one that matches counts.
func (e *Exclude) decide(path string, dir bool) *rule {
	if path == "" {
		return nil
	}
	for i := range e.rules {
		if r := &e.rules[i]; r.match(path, dir) {
			if r.include {
				return nil
			}
			return r
		}
	}
	return nil
}

// includesMoreThan tells whether a path may exist that old excludes and e does not.
func (e *Exclude) includesMoreThan(old *Exclude) bool {
	if old == nil || len(old.rules) == 0 {
		return false
	}
	if e == nil {
		return true
	}
	if slices.Equal(e.patterns, old.patterns) {
		return false
	}
	given := make(map[string]bool, len(e.rules))
	for _, r := range e.rules {
		if r.include {
			return true // order matters then: not worth working out
		}
		given[r.pattern] = true
	}
	for _, r := range old.rules {
		if r.include || !given[r.pattern] {
			return true
		}
	}
	return false
}

func newRule(p string) (rule, error) {
	r := rule{pattern: p}
	switch {
	case strings.HasPrefix(p, "- "):
		p = p[2:]
	case strings.HasPrefix(p, "+ "):
		r.include, p = true, p[2:]
	}
	switch {
	case p == "" && r.pattern != "":
		return r, fmt.Errorf("nothing after the prefix")
	case strings.IndexByte(p, 0) >= 0:
		return r, fmt.Errorf("has a NUL byte")
	case len(p) >= maxPattern:
		return r, fmt.Errorf("is longer than %d bytes", maxPattern-1)
	}
	if len(p) > 1 && p[len(p)-1] == '/' {
		r.dirOnly, p = true, p[:len(p)-1]
	}
	wild := strings.ContainsAny(p, "*?[")
	double := strings.Contains(p, "**")
	r.lead = strings.HasPrefix(p, "**")
	r.trail = strings.HasSuffix(p, "***")
	slashes := strings.Count(p, "/")
	anchored := strings.HasPrefix(p, "/")
	if anchored {
		p = p[1:]
	}
	switch {
	case anchored || r.lead:
		r.where = wholePath
	case double:
		r.where = anyElems
	case slashes > 0:
		r.where, r.elems = lastElems, slashes+1
	default:
		r.where = baseName
	}
	if !wild {
		// A backslash escapes only in a pattern that has a wildcard.
		r.literal = p
		return r, nil
	}
	r.compile(p)
	if p[0] == '*' && r.where == baseName && !strings.ContainsAny(p[1:], `*?[\`) {
		r.suffix = p[1:]
	}
	return r, nil
}

// match tells whether the rule's pattern matches path. It knows nothing of the directories above.
func (r *rule) match(path string, dir bool) bool {
	if r.broken || r.dirOnly && !dir {
		return false
	}
	switch r.where {
	case baseName:
		path = path[strings.LastIndexByte(path, '/')+1:]
	case lastElems:
		var ok bool
		if path, ok = lastElements(path, r.elems); !ok {
			return false
		}
	case anyElems, wholePath:
	}
	if r.tokens == nil {
		return path == r.literal
	}
	if r.suffix != "" {
		return strings.HasSuffix(path, r.suffix)
	}
	t := text{s: path}
	if r.lead {
		t.lead = 1
	}
	if r.trail && dir {
		t.trail = 1
	}
	if r.glob(t, 0) {
		return true
	}
	if r.where == anyElems {
		for i := 0; i < t.len(); i++ {
			if t.at(i) == '/' && r.glob(t, i+1) {
				return true
			}
		}
	}
	return false
}

// lastElements returns the last n elements of path, and false if it has fewer.
func lastElements(path string, n int) (string, bool) {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			if n--; n == 0 {
				return path[i+1:], true
			}
		}
	}
	return path, n == 1
}

// text is a path with a "/" before or after it that needs no memory.
type text struct {
	s           string
	lead, trail int
}

func (t text) len() int { return t.lead + len(t.s) + t.trail }

func (t text) at(i int) byte {
	if i -= t.lead; i >= 0 && i < len(t.s) {
		return t.s[i]
	}
	return '/'
}

// glob matches the text from start to its end. It goes back only to the last * and the last **: what an
// earlier one takes can be the least possible, because the later one can take the rest.
func (r *rule) glob(t text, start int) bool {
	var (
		i, n             = start, t.len()
		p                = 0
		oneP, oneI       = -1, 0 // after the last *, and how far it reaches
		doubleP, doubleI = -1, 0 // the same for **
	)
	for {
		if p < len(r.tokens) {
			switch tok := r.tokens[p]; {
			case tok == doubleStar:
				p++
				doubleP, doubleI, oneP = p, i, -1
				continue
			case tok == star:
				p++
				oneP, oneI = p, i
				continue
			case i < n && r.one(tok, t.at(i)):
				p++
				i++
				continue
			}
		} else if i == n {
			return true
		}
		switch {
		case oneP >= 0 && oneI < n && t.at(oneI) != '/':
			oneI++
			p, i = oneP, oneI
		case doubleP >= 0 && doubleI < n:
			doubleI++
			p, i, oneP = doubleP, doubleI, -1
		default:
			return false
		}
	}
}

// one matches a single byte. Only a literal matches "/".
func (r *rule) one(tok token, c byte) bool {
	switch {
	case tok < anyByte:
		return byte(tok) == c
	case c == '/':
		return false
	case tok == anyByte:
		return true
	default:
		return r.class[tok-firstClass][c/64]&(1<<(c%64)) != 0
	}
}

func (r *rule) compile(p string) {
	r.tokens = make([]token, 0, len(p))
	for i := 0; i < len(p); i++ {
		switch c := p[i]; c {
		case '?':
			r.tokens = append(r.tokens, anyByte)
		case '*':
			tok := star
			for i+1 < len(p) && p[i+1] == '*' {
				tok = doubleStar
				i++
			}
			r.tokens = append(r.tokens, tok)
		case '\\':
			if i++; i == len(p) {
				r.broken = true
				return
			}
			r.tokens = append(r.tokens, token(p[i]))
		case '[':
			set, end, ok := parseClass(p, i+1)
			if !ok {
				r.broken = true
				return
			}
			r.tokens = append(r.tokens, firstClass+token(len(r.class)))
			r.class = append(r.class, set)
			i = end
		default:
			r.tokens = append(r.tokens, token(c))
		}
	}
}

// parseClass reads a class from after its "[" and returns the index of its "]". The first byte is a member
// even if it is a "]".
func parseClass(p string, i int) (set [4]uint64, end int, ok bool) {
	add := func(c byte) { set[c/64] |= 1 << (c % 64) }
	negate := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negate {
		i++
	}
	prev := -1 // the member that a "-" would begin a range with
	for first := true; ; first = false {
		if i >= len(p) {
			return set, 0, false
		}
		c := p[i]
		if c == ']' && !first {
			break
		}
		switch {
		case c == '\\':
			if i++; i >= len(p) {
				return set, 0, false
			}
			add(p[i])
			prev = int(p[i])
		case c == '-' && prev >= 0 && i+1 < len(p) && p[i+1] != ']':
			i++
			if p[i] == '\\' {
				if i++; i >= len(p) {
					return set, 0, false
				}
			}
			for b := prev; b <= int(p[i]); b++ {
				add(byte(b))
			}
			prev = -1
		case c == '[' && i+1 < len(p) && p[i+1] == ':':
			j := strings.IndexByte(p[i+2:], ']')
			if j < 0 {
				return set, 0, false
			}
			name := p[i+2 : i+2+j]
			if !strings.HasSuffix(name, ":") { // no ":]": a plain member after all
				add('[')
				prev = '['
				break
			}
			is := posixClass(name[:len(name)-1])
			if is == nil {
				return set, 0, false
			}
			for b := range 256 {
				if is(byte(b)) {
					add(byte(b))
				}
			}
			i += 2 + j
			prev = -1
		default:
			add(c)
			prev = int(c)
		}
		i++
	}
	if negate {
		for k := range set {
			set[k] = ^set[k]
		}
	}
	return set, i, true
}

// posixClass returns the test for [:name:], for ASCII only: rsync uses isascii(3) first.
func posixClass(name string) func(byte) bool {
	in := func(lo, hi byte) func(byte) bool { return func(c byte) bool { return lo <= c && c <= hi } }
	lower, upper, digit := in('a', 'z'), in('A', 'Z'), in('0', '9')
	alnum := func(c byte) bool { return lower(c) || upper(c) || digit(c) }
	switch name {
	case "alnum":
		return alnum
	case "alpha":
		return func(c byte) bool { return lower(c) || upper(c) }
	case "blank":
		return func(c byte) bool { return c == ' ' || c == '\t' }
	case "cntrl":
		return func(c byte) bool { return c < ' ' || c == 127 }
	case "digit":
		return digit
	case "graph":
		return in('!', '~')
	case "lower":
		return lower
	case "print":
		return in(' ', '~')
	case "punct":
		return func(c byte) bool { return '!' <= c && c <= '~' && !alnum(c) }
	case "space":
		return func(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }
	case "upper":
		return upper
	case "xdigit":
		return func(c byte) bool { return digit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' }
	}
	return nil
}
