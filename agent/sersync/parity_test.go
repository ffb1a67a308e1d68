// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const repository = "../.."

// The parity table has no empty cell and names a test in each row. Every setting that sersync reads stands in it.
func TestParityTableIsTrue(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join(repository, "docs", "sersync.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| ---") || strings.HasSuffix(line, "| proved by |") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		if len(cells) != 4 {
			t.Errorf("%d cells: %s", len(cells), line)
			continue
		}
		for i, c := range cells {
			if strings.TrimSpace(c) == "" {
				t.Errorf("cell %d is empty: %s", i+1, line)
			}
		}
		if !strings.Contains(cells[3], "`Test") {
			t.Errorf("no test: %s", line)
		}
	}
	if rows < 50 {
		t.Errorf("only %d rows", rows)
	}
	var settings func(n node)
	settings = func(n node) {
		for name, child := range n {
			// The attributes of plugins have no row of their own.
			if child != nil && !strings.Contains(string(data), name) && name != "param" && name != "deshost" && name != "cdninfo" && name != "sendurl" && name != "regexurl" && name != "include" {
				t.Errorf("no row for <%s>", name)
			}
			settings(child)
		}
	}
	settings(schema)
}
