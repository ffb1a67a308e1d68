// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in      []string
		want    string
		failed  bool
		verbose bool
		strict  bool
	}{
		"a failure keeps its output, a success does not": {
			in: []string{
				`{"Action":"output","Package":"m/a","Test":"TestGood","Output":"noise\n"}`,
				`{"Action":"pass","Package":"m/a","Test":"TestGood","Elapsed":1.5}`,
				`{"Action":"output","Package":"m/a","Test":"TestBad","Output":"    a_test.go:1: broken\n"}`,
				`{"Action":"fail","Package":"m/a","Test":"TestBad","Elapsed":0.5}`,
				`{"Action":"fail","Package":"m/a","Elapsed":2}`,
			},
			want:   "FAIL  m/a TestBad (0.5s)\n    a_test.go:1: broken\nFAIL  m/a\n",
			failed: true,
		},
		"a skip tells its reason at the end": {
			in: []string{
				`{"Action":"output","Package":"m/a","Test":"TestRoot","Output":"=== RUN   TestRoot\n"}`,
				`{"Action":"output","Package":"m/a","Test":"TestRoot","Output":"    a_test.go:1: needs root\n"}`,
				`{"Action":"output","Package":"m/a","Test":"TestRoot","Output":"--- SKIP: TestRoot (0.00s)\n"}`,
				`{"Action":"skip","Package":"m/a","Test":"TestRoot"}`,
				`{"Action":"pass","Package":"m/a","Elapsed":2}`,
				`{"Action":"skip","Package":"m/without"}`,
			},
			want: "skip  TestRoot (0.0s)\nok    m/a                             1 tests    2.0s\n" +
				"\nSKIPPED: 1 tests did not run\n  m/a TestRoot: needs root\n",
			verbose: true,
		},
		"where all tests must run a skip fails, unless it is on the list": {
			in: []string{
				`{"Action":"skip","Package":"github.com/lockstep-sync/lockstep/agent/transfer","Test":"TestIdentityOnOtherFilesystems/xfs"}`,
				`{"Action":"skip","Package":"github.com/lockstep-sync/lockstep/agent/watch","Test":"TestIdentityOnOtherFilesystems/xfs"}`,
			},
			want: "\nSKIPPED: 2 tests did not run\n" +
				"  agent/transfer TestIdentityOnOtherFilesystems/xfs: no reason given\n" +
				"  agent/watch TestIdentityOnOtherFilesystems/xfs: no reason given\n" +
				"FAIL  agent/watch TestIdentityOnOtherFilesystems/xfs: as root in CI no test may be skipped that testreport does not list\n",
			failed: true,
			strict: true,
		},
		"what is on the list may be skipped": {
			in:     []string{`{"Action":"skip","Package":"github.com/lockstep-sync/lockstep/provider","Test":"TestDocsAreCurrent"}`},
			want:   "\nSKIPPED: 1 tests did not run\n  provider TestDocsAreCurrent: no reason given\n",
			strict: true,
		},
		"a package that does not build fails": {
			in: []string{
				`{"Action":"build-output","ImportPath":"m/a","Output":"a.go:1: syntax error\n"}`,
				`{"Action":"build-fail","ImportPath":"m/a"}`,
			},
			want:   "a.go:1: syntax error\n",
			failed: true,
		},
		"what is not JSON passes through": {in: []string{"go: downloading x"}, want: "go: downloading x\n"},
	} {
		var out strings.Builder
		failed, err := report(strings.NewReader(strings.Join(tc.in, "\n")+"\n"), &out, tc.verbose, tc.strict)
		if err != nil || failed != tc.failed {
			t.Errorf("%s: failed %v, %v", name, failed, err)
		}
		if diff := cmp.Diff(tc.want, out.String()); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

// A test that is gone from its package is no reason to keep it on the list.
func TestListedTestsExist(t *testing.T) {
	t.Parallel()
	for skip := range maySkip {
		files, err := filepath.Glob(filepath.Join("../../../..", skip.pkg, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(files, func(file string) bool {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Error(err)
			}
			return strings.Contains(string(text), "\nfunc "+skip.name+"(")
		}) {
			t.Errorf("%s has no %s", skip.pkg, skip.name)
		}
	}
}
