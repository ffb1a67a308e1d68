// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// tree reads the text into nodes.
func tree(data []byte) (*yaml.Node, Problems) {
	one := func(msg, hint string) (*yaml.Node, Problems) { return nil, Problems{{Msg: msg, Hint: hint}} }
	if len(data) > MaxSize {
		return one(fmt.Sprintf("the definition has %d bytes; the limit is %d", len(data), MaxSize), "")
	}
	if !utf8.Valid(data) {
		return one(fmt.Sprintf("line %d: not UTF-8 text", 1+bytes.Count(validPrefix(data), []byte("\n"))),
			"save the definition as UTF-8")
	}
	if trimmed := bytes.TrimSpace(data); bytes.HasPrefix(trimmed, []byte("{")) && json.Valid(data) {
		n, err := jsonNode(data, true)
		if err != nil {
			return one(err.Error(), "")
		}
		return n, nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if err.Error() == "EOF" {
			return one("the definition is empty", emptyHint)
		}
		return nil, Problems{syntaxProblem(data, err)}
	}
	if err := dec.Decode(&next); err == nil {
		return one(fmt.Sprintf("line %d: a second definition begins here", next.Line), "write one definition per file")
	} else if err.Error() != "EOF" {
		return nil, Problems{syntaxProblem(data, err)}
	}
	if len(doc.Content) != 1 {
		return one("the definition is empty", emptyHint)
	}
	return doc.Content[0], nil
}

const emptyHint = "write at least name, source and backup; lockstep.yaml(5) shows the short form"

func validPrefix(data []byte) []byte {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return data[:i]
		}
		i += size
	}
	return data
}

var (
	yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)$`)
	// yamlTrap finds text that begins with a character which means something to YAML.
	yamlTrap = regexp.MustCompile(`(?:^\s*(?:- )*|: |[\[,]\s*)([*&!%@\x60][^\s,\]]*)`)
)

// syntaxProblem says what the YAML reader stumbled over. Its words are about grammar; the cause is most often
// a pattern without quotes, so the lines are searched for one.
func syntaxProblem(data []byte, err error) Problem {
	m := yamlLine.FindStringSubmatch(err.Error())
	number, msg := m[1], m[2]
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		at := 1 + i
		// The reader counts from where the construct began, so the culprit can be some lines further on.
		if n, _ := strconv.Atoi(number); n > 0 && (at < n-1 || at > n+2) {
			continue
		}
		if trap := yamlTrap.FindStringSubmatch(line); trap != nil {
			return Problem{
				Msg:  fmt.Sprintf("line %d: %s is not text to YAML: %s", at, trap[1], trapMeaning(trap[1][0])),
				Hint: fmt.Sprintf("write %s", strconv.Quote(trap[1])),
			}
		}
		if strings.HasPrefix(strings.TrimLeft(line, " "), "\t") {
			return Problem{Msg: fmt.Sprintf("line %d: indented with a tab", at), Hint: "indent with spaces"}
		}
	}
	if number != "" {
		msg = "near line " + number + ": " + msg
	}
	return Problem{Msg: "not YAML: " + msg, Hint: "put text with special characters in quotes, and indent with spaces"}
}

func trapMeaning(c byte) string {
	switch c {
	case '*':
		return "a leading * refers to an anchor"
	case '&':
		return "a leading & sets an anchor"
	case '!':
		return "a leading ! names a type"
	case '%':
		return "a leading % is a directive"
	}
	return "a leading " + string(c) + " is reserved"
}
