// SPDX-License-Identifier: Apache-2.0

// Testreport turns the output of `go test -json` into what a person wants to read: a line for each
// package, with -v also for each test, the full output of what failed, and at the end every test that
// was skipped and why. Its exit status is 1 if anything failed, and as root in CI (CI=true) also if anything was
// skipped that may not be: make deps has installed what the tests want there.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
	Elapsed    float64
}

type test struct{ pkg, name string }

// maySkip lists what may be skipped even as root in CI, and why. A subtest goes by the name of its test.
var maySkip = map[test]string{
	{"agent/transfer", "TestIdentityOnOtherFilesystems"}: "the kernel may have no btrfs or xfs",
	{"agent/unit", "TestExposureStaysLow"}:               "systemd before 250 gives no score of a unit that is not installed",
	{"agent/watch", "TestOverlayFallsBack"}:              "the directory for temporary files may itself be on an overlay, which can hold no other",
	{"provider", "TestDocsAreCurrent"}:                   "tfplugindocs is for those who change the provider; TestDocsTellOfEveryAttribute runs without",
}

// allowed is whether a test may be skipped as root in CI.
func (t test) allowed() bool {
	name, _, _ := strings.Cut(t.name, "/")
	_, ok := maySkip[test{short(t.pkg), name}]
	return ok
}

func main() {
	verbose := flag.Bool("v", false, "a line for each test")
	flag.Parse()
	failed, err := report(os.Stdin, os.Stdout, *verbose, os.Getenv("CI") == "true" && os.Geteuid() == 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if failed || err != nil {
		os.Exit(1)
	}
}

// report reads what the tests said until its end. When strict, a test that was skipped and may not be has failed.
func report(in io.Reader, out io.Writer, verbose, strict bool) (failed bool, err error) {
	output := map[test]*strings.Builder{}
	var skipped []test
	passed := map[string]int{}
	lines := bufio.NewReader(in)
	for {
		line, readErr := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(out, "%s", line) // go itself talks: a download, a build error
			} else {
				switch t := (test{cmp.Or(e.Package, e.ImportPath), e.Test}); e.Action {
				case "output", "build-output":
					if output[t] == nil {
						output[t] = &strings.Builder{}
					}
					output[t].WriteString(e.Output)
					if e.Action == "build-output" {
						fmt.Fprint(out, e.Output)
					}
				case "build-fail":
					failed = true
				case "pass", "fail", "skip":
					failed = failed || e.Action == "fail"
					end(out, e, output[t], passed, verbose)
					if e.Action == "skip" && e.Test != "" {
						skipped = append(skipped, t)
						continue // its output says why
					}
					delete(output, t)
				}
			}
		}
		if readErr == io.EOF {
			break
		} else if readErr != nil {
			return failed, readErr
		}
	}
	if len(skipped) > 0 {
		fmt.Fprintf(out, "\nSKIPPED: %d tests did not run\n", len(skipped))
		slices.SortFunc(skipped, func(a, b test) int {
			return cmp.Or(cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.name, b.name))
		})
		for _, t := range skipped {
			fmt.Fprintf(out, "  %s %s: %s\n", short(t.pkg), t.name, why(output[t]))
		}
		if strict {
			skipped = slices.DeleteFunc(skipped, test.allowed)
			for _, t := range skipped {
				fmt.Fprintf(out, "FAIL  %s %s: as root in CI no test may be skipped that testreport does not list\n", short(t.pkg), t.name)
			}
			failed = failed || len(skipped) > 0
		}
	}
	return failed, nil
}

// end prints what is worth a line when a test or a package ends.
func end(out io.Writer, e event, said *strings.Builder, passed map[string]int, verbose bool) {
	switch {
	case e.Test != "" && e.Action == "fail":
		fmt.Fprintf(out, "FAIL  %s %s (%.1fs)\n", short(e.Package), e.Test, e.Elapsed)
		if said != nil {
			fmt.Fprint(out, said.String())
		}
	case e.Test != "":
		passed[e.Package]++
		if verbose {
			fmt.Fprintf(out, "%-5s %s (%.1fs)\n", map[string]string{"pass": "ok", "skip": "skip"}[e.Action], e.Test, e.Elapsed)
		}
	case e.Action == "skip": // a package without tests
	case e.Action == "pass":
		fmt.Fprintf(out, "ok    %-28s %4d tests %6.1fs\n", short(e.Package), passed[e.Package], e.Elapsed)
	default:
		fmt.Fprintf(out, "FAIL  %s\n", short(e.Package))
		if said != nil {
			fmt.Fprint(out, said.String()) // a panic, or a TestMain that gave up
		}
	}
}

// why is what a skipped test said, without the lines of the test runner itself.
func why(said *strings.Builder) string {
	if said == nil {
		return "no reason given"
	}
	var reasons []string
	for line := range strings.Lines(said.String()) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		if file, text, ok := strings.Cut(line, ": "); ok && strings.Contains(file, ".go:") {
			line = text
		}
		reasons = append(reasons, line)
	}
	return strings.Join(reasons, "; ")
}

func short(pkg string) string { return strings.TrimPrefix(pkg, "github.com/lockstep-sync/lockstep/") }
