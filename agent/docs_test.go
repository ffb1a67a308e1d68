// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTestsThatTheDocumentsNameExist holds README, DESIGN and docs/ to what is there. A name behind a slash is a file in the
// testdata beside the test.
func TestTestsThatTheDocumentsNameExist(t *testing.T) {
	t.Parallel()
	dirs := map[string]string{} // of the tests
	function := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
	for _, root := range []string{"agent", "cmd", "provider", "packaging", "ansible"} {
		err := filepath.WalkDir(filepath.Join("..", root), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range function.FindAllSubmatch(text, -1) {
				dirs[string(m[1])] = filepath.Dir(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, path := range append(documents, "../README.md", "../DESIGN.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`(Test[^`]*)`").FindAllSubmatch(text, -1) {
			seen++
			name, file, nested := strings.Cut(string(m[1]), "/")
			dir, ok := dirs[name]
			if !ok {
				t.Errorf("%s: there is no test %s", path, name)
				continue
			}
			if found, err := filepath.Glob(filepath.Join(dir, "testdata", "*", file+".txtar")); nested && (err != nil || len(found) != 1) {
				t.Errorf("%s: %s: no file of that name: %v", path, m[1], found)
			}
		}
	}
	if seen < 100 {
		t.Errorf("only %d names of tests found", seen)
	}
}
