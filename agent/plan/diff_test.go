// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/plan"
)

func file(text string) plan.File {
	return plan.File{Object: "module", Rank: plan.RankModule, Mode: 0o644, Owner: "root", Group: "root", Data: []byte(text)}
}

func diffOf(have, want string) string {
	steps := plan.Diff(plan.State{Files: map[string]plan.File{"/f": file(have)}}, plan.State{Files: map[string]plan.File{"/f": file(want)}})
	if len(steps) == 0 {
		return ""
	}
	return steps[0].Diff
}

// The diff is one that patch(1) takes: it is what people read, and machines too.
func FuzzDiffIsAPatch(f *testing.F) {
	patch, err := exec.LookPath("patch")
	if err != nil {
		f.Skip("no patch program: ", err)
	}
	f.Add("a\nb\nc\n", "a\nx\nc\n")
	f.Add("", "a\n")
	f.Add("1\n2\n3\n4\n5\n6\n7\n8\n9\n", "0\n1\n2\n3\n5\n6\n7\n8\n9\n10\n")
	f.Add("a\n", "")
	f.Add(strings.Repeat("x\n", 20)+"y\n", "z\n"+strings.Repeat("x\n", 21))
	f.Fuzz(func(t *testing.T, have, want string) {
		if have == want || strings.ContainsAny(have+want, "\r\x00") || have != "" && !strings.HasSuffix(have, "\n") || want != "" && !strings.HasSuffix(want, "\n") {
			return
		}
		name := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(name, []byte(have), 0o600); err != nil {
			t.Fatal(err)
		}
		diff := diffOf(have, want)
		cmd := exec.Command(patch, "--silent", "--posix", "--no-backup-if-mismatch", name)
		cmd.Stdin = strings.NewReader(diff)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s\n%s", err, out, diff)
		}
		got, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			got, err = nil, nil // patch removes what became empty
		}
		if err != nil || string(got) != want {
			t.Errorf("%q patched to %q, want %q, by\n%s", have, got, want, diff)
		}
	})
}

func TestASecretIsInNoDiff(t *testing.T) {
	t.Parallel()
	secret := func(text string) plan.File {
		return plan.File{Object: "secret", Rank: plan.RankSecret, Mode: 0o600, Owner: "root", Group: "root", Data: []byte(text), Secret: true}
	}
	states := []plan.State{
		{Files: map[string]plan.File{"/s": secret("hunter2\n")}},
		{Files: map[string]plan.File{"/s": secret("hunter3\n")}},
		{},
	}
	for _, have := range states {
		for _, want := range states {
			for _, s := range plan.Diff(have, want) {
				if text := fmt.Sprint(s.Change, s.Words); strings.Contains(text, "hunter") {
					t.Errorf("shown: %s", text)
				}
			}
		}
	}
}

func TestWordsNameTheLine(t *testing.T) {
	t.Parallel()
	yaml := "name: data\ndelete:\n  enabled: true\n  max_files: 10\nwatch:\n  events:\n    - create\n  delay: 20ms\n"
	for _, tc := range []struct{ have, want, words string }{
		{"port = 999\n", "port = 873\n", "port = 999 (should be 873)"},
		{"uid = root\npath = /b\nmax connections = 1\n", "uid = root\nmax connections = 6\npath = /b\n", "max connections = 1 (should be 6)"},
		{"a\nb\nc\n", "a\nc\n", "b"},
		{"a\nc\n", "a\nb\nc\n", "without b"},
		{strings.Replace(yaml, "enabled: true", "enabled: false", 1), yaml, "delete.enabled: false (should be true)"},
		{strings.Replace(yaml, "- create", "- delete", 1), yaml, "watch.events.- delete"},
		{"1\n2\n3\n4\n5\n", "", "1, 2, 3, and 2 more lines"},
		{"a\n\n", "a\n", "white space"},
	} {
		if got := plan.LineWords([]byte(tc.have), []byte(tc.want)); got != tc.words {
			t.Errorf("%q to %q: %q, want %q", tc.have, tc.want, got, tc.words)
		}
	}
}
