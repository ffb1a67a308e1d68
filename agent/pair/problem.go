// SPDX-License-Identifier: Apache-2.0

package pair

import "strings"

// Problem is one thing wrong with a definition or with a host, told to the person who can mend it.
type Problem struct {
	Path string `json:"field"`          // the field's path, as in backup.port; or the host's object, as in daemon
	Msg  string `json:"message"`        // what is wrong
	Hint string `json:"hint,omitempty"` // what to write or to do instead
}

func (p Problem) String() string {
	s := p.Msg
	if p.Path != "" {
		s = p.Path + ": " + s
	}
	if p.Hint != "" {
		s += "\n  hint: " + p.Hint
	}
	return s
}

// Problems is every problem found, as one error.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}
