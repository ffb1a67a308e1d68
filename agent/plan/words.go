// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"strings"
)

// maxWords is how many lines LineWords names.
const maxWords = 3

// LineWords says in a few words in which lines a text differs from what it should be.
func LineWords(have, want []byte) string {
	old, now := splitLines(have), splitLines(want)
	type line struct {
		text  string
		block int // of lines that differ in a row
	}
	var extra, missing []line
	block, within := 0, false
	for _, e := range compare(old, now) {
		switch {
		case e.op == ' ':
			within = false
			continue
		case !within:
			block++
			within = true
		}
		switch {
		case strings.TrimSpace(e.text) == "":
		case e.op == '-':
			extra = append(extra, line{qualified(old, e.old), block})
		default:
			missing = append(missing, line{qualified(now, e.now), block})
		}
	}
	var words []string
	replaced := map[int]bool{} // blocks in which what is there explains what is not
	for _, x := range extra {
		key, _, _ := setting(x.text)
		at := slices.IndexFunc(missing, func(m line) bool {
			k, _, ok := setting(m.text)
			return ok && k == key
		})
		if at < 0 {
			replaced[x.block] = true
			words = append(words, x.text)
			continue
		}
		_, value, _ := setting(missing[at].text)
		words = append(words, x.text+" (should be "+value+")")
		missing = slices.Delete(missing, at, at+1)
	}
	for _, m := range missing {
		if !replaced[m.block] {
			words = append(words, "without "+m.text)
		}
	}
	if len(words) == 0 {
		return "white space"
	}
	if more := len(words) - maxWords; more > 0 {
		words = append(words[:maxWords], fmt.Sprintf("and %d more lines", more))
	}
	return strings.Join(words, ", ")
}

// setting takes a line of rsyncd.conf or of YAML apart.
func setting(line string) (key, value string, ok bool) {
	for _, sep := range []string{" = ", ": "} {
		if key, value, ok := strings.Cut(line, sep); ok {
			return key, value, true
		}
	}
	return "", "", false
}

// qualified gives a line of YAML its parents: delete.enabled: false.
func qualified(lines []string, i int) string {
	line := strings.TrimSpace(lines[i])
	indent := len(lines[i]) - len(strings.TrimLeft(lines[i], " "))
	for k := i - 1; k >= 0 && indent > 0; k-- {
		parent := strings.TrimLeft(lines[k], " ")
		if n := len(lines[k]) - len(parent); n < indent && strings.HasSuffix(parent, ":") {
			line = strings.TrimSuffix(parent, ":") + "." + line
			indent = n
		}
	}
	return line
}
