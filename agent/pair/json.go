// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// plain has the fields of Pair and none of its methods.
type plain Pair

// MarshalJSON writes every field; nil lists as [], durations as text.
func (p Pair) MarshalJSON() ([]byte, error) {
	address, backup, module := p.Source.Address, p.Backup.Address, p.Backup.Module
	p.Complete()
	p.Source.Address, p.Backup.Address, p.Backup.Module = address, backup, module
	return json.Marshal(plain(p))
}

// UnmarshalJSON does what [Parse] does: no unchecked definition comes off the wire. The error is [Problems].
func (p *Pair) UnmarshalJSON(data []byte) error {
	node, err := jsonNode(data, false)
	if err != nil {
		return Problems{{Msg: err.Error()}}
	}
	v, ps := decode(node)
	if len(ps) > 0 {
		return ps
	}
	*p = v
	return nil
}

// jsonNode reads one JSON value into the tree that the YAML reader gives. JSON needs a reader of its own: a
// character past U+FFFF is two \u escapes in JSON (Python writes it so), which YAML refuses.
func jsonNode(data []byte, lines bool) (*yaml.Node, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	at := func() int {
		if !lines {
			return 0
		}
		return 1 + bytes.Count(data[:dec.InputOffset()], []byte("\n"))
	}
	var value func() (*yaml.Node, error)
	value = func() (*yaml.Node, error) {
		tok, err := dec.Token()
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		n := &yaml.Node{Kind: yaml.ScalarNode, Line: at()}
		switch v := tok.(type) {
		case nil:
			n.Tag, n.Value = "!!null", "null"
		case bool:
			n.Tag, n.Value = "!!bool", strconv.FormatBool(v)
		case json.Number:
			n.Tag, n.Value = "!!float", v.String()
			if _, err := v.Int64(); err == nil {
				n.Tag = "!!int"
			}
		case string:
			n.Tag, n.Value, n.Style = "!!str", v, yaml.DoubleQuotedStyle
		case json.Delim:
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
			if v == '[' {
				n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
			}
			for dec.More() {
				child, err := value() // in an object, keys and values take turns
				if err != nil {
					return nil, err
				}
				n.Content = append(n.Content, child)
			}
			if _, err := dec.Token(); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("bug: json token %T", tok)
		}
		return n, nil
	}
	n, err := value()
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("text after the definition")
	}
	return n, nil
}
