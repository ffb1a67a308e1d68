// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFilterTestTellsWhichPatternExcludes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "src/.cache"), 0o755); err != nil {
		t.Fatal(err)
	}
	definition := filepath.Join(dir, "data.yaml")
	text := "name: data\nsource: {host: a, path: " + dir + "/src}\nbackup: {host: b, path: /backup}\n" +
		"exclude: ['*.tmp', '.cache/']\nfilter: ['- /x']\n"
	if err := os.WriteFile(definition, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		args   []string
		status int
		out    string
		err    string
	}{
		{"patterns", []string{"--exclude", "*.tmp", "--exclude", ".cache/", "a.tmp", "d/.cache/x", ".cache", "b"}, exitOK,
			"a.tmp: excluded by *.tmp\nd/.cache/x: excluded by .cache/\n.cache: included\nb: included\n", ""},
		{"definition", []string{"--definition", definition, dir + "/src/a.tmp", ".cache", "x"}, exitOK,
			dir + "/src/a.tmp: excluded by *.tmp\n.cache: excluded by .cache/\nx: included\n", "1 filter rules"},
		{"patterns after the paths", []string{"a.o", "--exclude", "*.o", "b"}, exitOK, "a.o: excluded by *.o\nb: included\n", ""},
		{"odd name", []string{"--exclude", "*", "a\nb"}, exitOK, "\"a\\nb\": excluded by *\n", ""},
		{"name that turns text around", []string{"--exclude", "*", "a\u202eb"}, exitOK, "\"a\\u202eb\": excluded by *\n", ""},
		{"no path", []string{"--exclude", "*"}, exitUsage, "", "no PATH given"},
		{"outside", []string{"../x"}, exitUsage, "", `"../x" is not below the source directory`},
		{"absolute", []string{"/x"}, exitUsage, "", "relative to the source directory"},
		{"bad pattern", []string{"--exclude", "- ", "x"}, exitUsage, "", "nothing after the prefix"},
		{"both", []string{"--exclude", "x", "--definition", definition, "x"}, exitUsage, "", "exclude each other"},
		{"no file", []string{"--definition", definition + "x", "x"}, exitFailure, "", "no such file"},
		{"bad flag", []string{"--exclud", "x", "x"}, exitUsage, "", "not defined: -exclud"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out, stderr bytes.Buffer
			status := dispatch(t.Context(), stdio{strings.NewReader(""), &out, &stderr}, append([]string{"filter", "test"}, tt.args...))
			if status != tt.status {
				t.Errorf("status %d, want %d", status, tt.status)
			}
			if diff := cmp.Diff(tt.out, out.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
			if !strings.Contains(stderr.String(), tt.err) {
				t.Errorf("stderr %q, want %q in it", stderr.String(), tt.err)
			}
		})
	}
}
