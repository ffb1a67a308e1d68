// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

func (v *validator) patterns(p Pair) {
	v.excludes("exclude", p.Exclude)
	v.excludes("full.exclude", p.Full.Exclude)
	v.count("filter", p.Filter)
	for i, rule := range p.Filter {
		at := fmt.Sprintf("filter[%d]", i)
		if v.pattern(at, rule) {
			if msg, hint := checkRule(rule); msg != "" {
				v.add(at, msg, hint)
			}
		}
	}
}

func (v *validator) count(path string, list []string) {
	if len(list) > maxPatterns {
		v.add(path, fmt.Sprintf("has %d entries; the limit is %d, because each goes to rsync as an argument", len(list), maxPatterns),
			"exclude whole directories")
	}
}

func (v *validator) excludes(path string, list []string) {
	v.count(path, list)
	for i, pattern := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		if !v.pattern(at, pattern) {
			continue
		}
		switch {
		case strings.HasPrefix(pattern, "- "):
			v.add(at, fmt.Sprintf("%q is a filter rule to rsync", pattern), "write "+strconv.Quote(pattern[2:]))
		case strings.HasPrefix(pattern, "+ "):
			v.add(at, fmt.Sprintf("%q would include, not exclude", pattern), "exclude comes before filter; write this and what it is an exception from in filter, in that order")
		case strings.HasPrefix(pattern, "!"):
			v.add(at, fmt.Sprintf("%q: rsync has no ! in front of a pattern, and ! alone clears the list", pattern),
				"to include again, write "+strconv.Quote("+ "+strings.TrimSpace(pattern[1:]))+" and after it what it is an exception from in filter; for a name that begins with !, write ? in its place")
		case strings.HasPrefix(pattern, "./"):
			v.add(at, fmt.Sprintf("%q matches nothing: rsync has no ./ in the names it compares", pattern), "write "+strconv.Quote(pattern[1:]))
		}
	}
}

func (v *validator) pattern(at, s string) bool {
	switch {
	case strings.TrimSpace(s) == "":
		v.add(at, "is empty", "remove it")
	case strings.ContainsAny(s, "\n\x00"):
		v.add(at, fmt.Sprintf("%q has a line break or a NUL", s), "write ? in its place")
	case !utf8.ValidString(s), strings.ContainsRune(s, utf8.RuneError):
		v.add(at, "is not UTF-8 text", "write ? or * in place of the bytes that are not")
	case len(s) > maxText:
		v.add(at, fmt.Sprintf("is longer than %d bytes; rsync would drop it", maxText), "write a shorter one")
	default:
		return true
	}
	return false
}

// checkRule checks one rule of rsync(1) FILTER RULES. Lockstep deletes only what is missing from the source, so
// a rule that hides a file from the sender while it stays deletable on the receiver can't be obeyed.
func checkRule(rule string) (msg, hint string) {
	head, pattern, found := strings.Cut(rule, " ")
	const forms = `write "- PATTERN", "+ PATTERN", "P PATTERN" (protect) or "R PATTERN" (risk)`
	name, modifiers, comma := strings.Cut(head, ",")
	if !comma && len(head) > 1 && strings.ContainsAny(head[:1], "-+.:!HSPR") {
		name, modifiers = head[:1], head[1:]
	}
	switch name {
	case ".", "merge", ":", "dir-merge":
		return fmt.Sprintf("%q reads further rules from a file, which lockstep would not see change", rule), "write the rules here"
	case "!", "clear":
		return fmt.Sprintf("%q clears the rules before it", rule), "remove it and those rules"
	case "H", "hide", "S", "show":
		return fmt.Sprintf("%q hides on one side only, and what is hidden would count as deleted from the source", rule),
			"write " + strconv.Quote("- "+pattern)
	case "-", "exclude", "+", "include", "P", "protect", "R", "risk":
	default:
		return fmt.Sprintf("%q is not a filter rule", rule), forms
	}
	if !found || strings.TrimSpace(pattern) == "" {
		return fmt.Sprintf("%q has no pattern", rule), forms
	}
	for _, m := range modifiers {
		switch m {
		case '!', 'p', 'r', 'x':
		case '/':
			return fmt.Sprintf("%q: the modifier / compares with paths of the host, which differ on the two hosts", rule), "anchor with / in the pattern"
		case 's':
			return fmt.Sprintf("%q: the modifier s hides on one side only, and what is hidden would count as deleted from the source", rule), "remove the s"
		case 'C':
			return fmt.Sprintf("%q: the modifier C reads .cvsignore files", rule), "write the patterns out"
		default:
			return fmt.Sprintf("%q: unknown modifier %q", rule, m), forms
		}
	}
	return "", ""
}
