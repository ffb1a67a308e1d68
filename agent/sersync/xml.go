// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// maxSize is far above any confxml.xml, which has about 2 KB.
const maxSize = 1 << 20

// maxDepth is far above sersync's four levels.
const maxDepth = 16

// element is one XML element with its place in the file.
type element struct {
	name     string
	path     string // head/sersync/localpath
	line     int
	attrs    []attr
	children []*element
}

type attr struct {
	name, value string
}

// all returns the children of a name, in order.
func (e *element) all(name string) []*element {
	var found []*element
	for _, c := range e.children {
		if c.name == name {
			found = append(found, c)
		}
	}
	return found
}

var (
	comment     = regexp.MustCompile(`(?s)<!--.*?-->`)
	declaration = regexp.MustCompile(`(?s)^\s*<\?xml.*?\?>`)
)

// readXML gives the root element. Files in use declare ISO-8859-1 and hold UTF-8 or GBK in their comments, and
// their comments have dashes that XML does not allow; so comments and the declaration are blanked first. Without
// them only bytes below 128 matter, unless a value has others.
func readXML(data []byte) (*element, pair.Problems) {
	fail := func(line int, msg, hint string) (*element, pair.Problems) {
		if line > 0 {
			msg = fmt.Sprintf("line %d: %s", line, msg)
		}
		return nil, pair.Problems{{Msg: msg, Hint: hint}}
	}
	if len(data) > maxSize {
		return fail(0, fmt.Sprintf("the file has %d bytes; no confxml.xml is that large", len(data)), "")
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return fail(0, "the file is not text in an encoding that sersync reads", "save it as UTF-8")
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	data = comment.ReplaceAllFunc(data, blank)
	data = declaration.ReplaceAllFunc(data, blank)
	if i := bytes.Index(data, []byte("<!--")); i >= 0 {
		return fail(lineAt(data, i), "a comment has no end", "write --> where it ends")
	}
	latin := !utf8.Valid(data)
	if latin {
		// One byte, one character: elements and attributes keep their places, whatever the encoding is.
		text := make([]rune, len(data))
		for i, b := range data {
			text[i] = rune(b)
		}
		data = []byte(string(text))
	}

	dec := xml.NewDecoder(bytes.NewReader(data))
	var root *element
	var open []*element
	for {
		line, _ := dec.InputPos()
		tok, err := dec.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			line, _ = dec.InputPos()
			var syntax *xml.SyntaxError
			msg := err.Error()
			if errors.As(err, &syntax) {
				line, msg = syntax.Line, syntax.Msg
			}
			if strings.Contains(msg, "CharsetReader") {
				return fail(line, "a second file begins here", "give one confxml.xml at a time")
			}
			return fail(line, "not XML: "+msg, "")
		}
		switch t := tok.(type) {
		case xml.StartElement:
			e := &element{name: t.Name.Local, path: t.Name.Local, line: line}
			for _, a := range t.Attr {
				if slices.ContainsFunc(e.attrs, func(have attr) bool { return have.name == a.Name.Local }) {
					return fail(line, fmt.Sprintf("<%s> has two attributes %s", e.name, a.Name.Local), "keep one of the two")
				}
				if latin && strings.IndexFunc(a.Value, func(r rune) bool { return r > 127 }) >= 0 {
					return fail(line, fmt.Sprintf("%s of <%s> is not UTF-8", a.Name.Local, e.name),
						"convert the file with iconv, so that the names in it are those on disk")
				}
				e.attrs = append(e.attrs, attr{a.Name.Local, a.Value})
			}
			if n := len(open); n > 0 {
				parent := open[n-1]
				e.path = parent.path + "/" + e.name
				parent.children = append(parent.children, e)
			} else if root != nil {
				return fail(line, fmt.Sprintf("<%s> stands after the end of <%s>", e.name, root.name), "")
			} else {
				root = e
			}
			if open = append(open, e); len(open) > maxDepth {
				return fail(line, fmt.Sprintf("<%s> is nested too deeply", e.name), "")
			}
		case xml.EndElement:
			if len(open) == 0 || open[len(open)-1].name != t.Name.Local {
				msg := fmt.Sprintf("</%s> ends nothing", t.Name.Local)
				if len(open) > 0 {
					msg = fmt.Sprintf("</%s> where <%s> of line %d is open", t.Name.Local, open[len(open)-1].name, open[len(open)-1].line)
				}
				return fail(line, msg, "")
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		e := open[len(open)-1]
		return fail(e.line, fmt.Sprintf("<%s> has no end", e.name), "write </"+e.name+">")
	}
	if root == nil {
		return fail(0, "the file has no elements", "give sersync's confxml.xml")
	}
	return root, nil
}

// blank replaces everything but line breaks by spaces, so that lines keep their numbers.
func blank(text []byte) []byte {
	out := bytes.Repeat([]byte(" "), len(text))
	for i, b := range text {
		if b == '\n' {
			out[i] = '\n'
		}
	}
	return out
}

func lineAt(data []byte, offset int) int { return 1 + bytes.Count(data[:offset], []byte("\n")) }
