// SPDX-License-Identifier: Apache-2.0

// Package unit holds the systemd units of lockstep as values: the agent of one pair and its drop-in, and
// the rsync daemon of a backup host.
//
// The package and an applying binary write units from here and nowhere else, so they are the same text but
// for the path of the binary. The package does no I/O; installing and starting units is left to host.
package unit

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"github.com/coreos/go-systemd/v22/unit"
)

// File is a unit file or a drop-in: options in the order in which they are written.
type File []Option

// Option is one line of a section.
type Option struct{ Section, Name, Value string }

// Parse reads a unit file; comments are dropped and continued lines kept as they are.
func Parse(data []byte) (File, error) {
	options, err := unit.DeserializeOptions(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	f := make(File, 0, len(options))
	for _, o := range options {
		f = append(f, Option{o.Section, o.Name, o.Value})
	}
	return f, nil
}

// Render writes the unit file.
func (f File) Render() []byte {
	options := make([]*unit.UnitOption, 0, len(f))
	for _, o := range f {
		options = append(options, unit.NewUnitOption(o.Section, o.Name, o.Value))
	}
	data, err := io.ReadAll(unit.Serialize(options))
	if err != nil {
		panic(fmt.Sprintf("bug: reading from memory: %v", err))
	}
	return data
}

// section makes options of one section from name, value, name, value …
func section(name string, pairs ...string) File {
	f := make(File, 0, len(pairs)/2)
	for p := range slices.Chunk(pairs, 2) {
		f = append(f, Option{name, p[0], p[1]})
	}
	return f
}
