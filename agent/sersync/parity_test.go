// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const repository = "../.."

// The parity table has no empty cell, names a test in each row, and every test that it names is there. Every setting that
// sersync reads stands in it.
func TestParityTableIsTrue(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join(repository, "docs", "sersync.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]string{} // name → its directory
	function := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
	for _, root := range []string{"agent", "cmd", "provider", "packaging", "ansible"} {
		err := filepath.WalkDir(filepath.Join(repository, root), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range function.FindAllSubmatch(text, -1) {
				tests[string(m[1])] = filepath.Dir(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
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
		names := regexp.MustCompile("`(Test[^`]*)`").FindAllStringSubmatch(cells[3], -1)
		if len(names) == 0 {
			t.Errorf("no test: %s", line)
		}
		for _, m := range names {
			name, file, nested := strings.Cut(m[1], "/")
			dir, ok := tests[name]
			if !ok {
				t.Errorf("there is no test %s: %s", name, line)
				continue
			}
			if found, err := filepath.Glob(filepath.Join(dir, "testdata", "*", file+".txtar")); nested && (err != nil || len(found) != 1) {
				t.Errorf("%s: no file of that name: %v", m[1], found)
			}
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
