// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// Verb is what is asked of a host.
type Verb string

// The verbs, each a subcommand of lockstep.
const (
	Plan    Verb = "plan"
	Apply   Verb = "apply"
	Read    Verb = "read"
	Destroy Verb = "destroy"
)

// ParseRequest reads a [Request], or a bare pair definition in YAML or JSON. For Read and Destroy a pair that
// has nothing but a valid name will do.
func ParseRequest(data []byte, verb Verb) (Request, pair.Problems) {
	var wire struct {
		Request
		Pair json.RawMessage `json:"pair"` // hides the other, to tell its problems one by one
	}
	var probe struct {
		Protocol *int `json:"protocol"`
	}
	trimmed := bytes.TrimSpace(data)
	if len(trimmed) == 0 {
		hint := "give a pair definition on standard input or with --definition"
		if verb == Read || verb == Destroy {
			hint = "name the pair, as lockstep " + string(verb) + " --role ROLE NAME; or " + hint
		}
		return Request{}, pair.Problems{{Msg: "standard input is empty", Hint: hint}}
	}
	if trimmed[0] != '{' || json.Unmarshal(trimmed, &probe) == nil && probe.Protocol == nil {
		p, problems := parsePair(data, verb)
		return Request{Protocol: Protocol, Pair: p}, problems
	}
	dec := json.NewDecoder(bytes.NewReader(trimmed))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&wire); err != nil {
		// The text may hold a password: say where, not what.
		return Request{}, pair.Problems{{Msg: fmt.Sprintf("the request is not valid: %v", err), Hint: "front end and host binary may be of different versions"}}
	}
	if wire.Protocol != Protocol {
		return Request{}, pair.Problems{{Path: "protocol", Msg: fmt.Sprintf("the request has protocol %d, this host speaks %d", wire.Protocol, Protocol),
			Hint: "install the same version of lockstep on both sides"}}
	}
	req := wire.Request
	if verb == Plan && req.Absent {
		verb = Destroy
	}
	var problems pair.Problems
	req.Pair, problems = parsePair(wire.Pair, verb)
	return req, problems
}

func parsePair(data []byte, verb Verb) (pair.Pair, pair.Problems) {
	p, err := pair.Parse(data)
	if err == nil {
		return p, nil
	}
	var problems pair.Problems
	if !errors.As(err, &problems) {
		problems = pair.Problems{{Msg: err.Error()}}
	}
	if verb == Read || verb == Destroy {
		var named struct {
			Name string `json:"name"`
		}
		if json.Unmarshal(data, &named) == nil && ValidName(named.Name) {
			return pair.Pair{Name: named.Name}, nil
		}
	}
	return pair.Pair{}, problems
}

// ValidName is whether a pair can have this name; names become parts of paths.
func ValidName(name string) bool {
	for _, problem := range (pair.Pair{Name: name}).Validate() {
		if problem.Path == "name" {
			return false
		}
	}
	return true
}

// Problem, Problems and Definition are the pair package's types, for who speaks this protocol.
type (
	Problem    = pair.Problem
	Problems   = pair.Problems
	Definition = pair.Pair
)

// ParseDefinition reads a stored definition.
func ParseDefinition(data []byte) (Definition, error) { return pair.Parse(data) }
