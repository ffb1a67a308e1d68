// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/lockstep-sync/lockstep/"

// mayImport is the direction of imports: each package, and what of ours it may import. A new
// line here is a decision about the design, not a fix.
var mayImport = map[string][]string{
	"agent/pair":      {},
	"agent/rsyncd":    {},
	"agent/unit":      {},
	"agent/host":      {},
	"agent/watch":     {},
	"agent/metrics":   {},
	"agent/hooks":     {},
	"agent/sersync":   {"agent/pair"},
	"agent/plan":      {"agent/pair", "agent/rsyncd", "agent/unit"},
	"agent/apply":     {"agent/plan", "agent/rsyncd", "agent/unit", "agent/host"},
	"agent/queue":     {"agent/watch"},
	"agent/transfer":  {"agent/queue"},
	"agent/replicate": {"agent/pair", "agent/watch", "agent/queue", "agent/transfer", "agent/metrics", "agent/hooks"},
	"provider":        {"agent/pair", "agent/plan"},
	// The program that tests put in the place of lockstep on a host.
	"provider/internal/fakelockstep": {"agent/pair", "agent/plan"},
}

// pure packages do no I/O, so that they give the same answer on every machine and in every front end.
var pure = []string{"agent/pair", "agent/rsyncd", "agent/unit", "agent/plan", "agent/sersync"}

// doesIO lists what a pure package may not import; what is below it in the tree counts too.
var doesIO = []string{"os", "io/ioutil", "net", "syscall", "log", "testing", "golang.org/x/sys", "golang.org/x/term",
	"github.com/coreos/go-systemd", "github.com/godbus/dbus", "github.com/fsnotify/fsnotify"}

// noIO lists what lies below one of doesIO and does none.
var noIO = []string{"net/netip", "net/url", "github.com/coreos/go-systemd/v22/unit"}

func TestImportsGoOneWay(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, root := range []string{"agent", "provider"} {
		err := filepath.WalkDir("../"+root, func(file string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() && entry.Name() == "testdata" {
				if err == nil {
					err = fs.SkipDir
				}
				return err
			}
			if entry.IsDir() || !strings.HasSuffix(file, ".go") {
				return nil
			}
			pkg := strings.TrimPrefix(path.Dir(filepath.ToSlash(file)), "../")
			seen[pkg] = true
			// Every file counts, whatever its build tags.
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			for _, spec := range parsed.Imports {
				name, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					return err
				}
				if why := refuse(pkg, name, strings.HasSuffix(file, "_test.go")); why != "" {
					t.Errorf("%s imports %s: %s", strings.TrimPrefix(file, "../"), name, why)
				}
			}
			return nil
		})
		if err != nil && root == "agent" {
			t.Fatal(err)
		}
	}
	for _, pkg := range []string{"agent/pair", "agent/plan"} {
		if !seen[pkg] {
			t.Errorf("%s was not looked at", pkg)
		}
	}
	for pkg := range seen {
		if _, ok := mayImport[pkg]; !ok && pkg != "agent" && !strings.Contains(pkg, "/internal/") {
			t.Errorf("%s is not in the table of imports", pkg)
		}
	}
}

// refuse says why a file of pkg may not import name, or "".
func refuse(pkg, name string, test bool) string {
	ours, isOurs := strings.CutPrefix(name, module)
	top, _, internal := strings.Cut(pkg, "/internal/")
	switch {
	case !isOurs:
		inside := func(tree string) bool { return name == tree || strings.HasPrefix(name, tree+"/") }
		if !test && slices.Contains(pure, pkg) && slices.ContainsFunc(doesIO, inside) && !slices.ContainsFunc(noIO, inside) {
			return pkg + " does no I/O"
		}
	case ours == pkg: // the test of a package from outside it
	case top == "provider" && strings.HasPrefix(ours, "provider/internal/"):
	case strings.HasPrefix(ours, "agent/internal/"):
		if !test && !internal {
			return "agent/internal is for tests"
		}
	case internal && top == "agent": // helpers of tests look at what they help to test
	case !slices.Contains(mayImport[pkg], ours):
		return "not in the table of imports"
	}
	return ""
}

func TestImportTableIsHeld(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		pkg, name string
		test      bool
		refused   bool
	}{
		{"agent/pair", "os", false, true},
		{"agent/pair", "os/exec", true, false},
		{"agent/pair", "net/netip", false, false},
		{"agent/pair", "net/http", false, true},
		{"agent/host", "os", false, false},
		{"agent/watch", module + "agent/pair", false, true},
		{"agent/watch", module + "agent/pair", true, true},
		{"agent/watch", module + "agent/internal/rsynctest", true, false},
		{"agent/watch", module + "agent/internal/rsynctest", false, true},
		{"agent/replicate", module + "agent/queue", false, false},
		{"agent/queue", module + "agent/replicate", false, true},
		{"agent/queue", module + "agent/queue", true, false},
		{"agent/internal/lab", module + "agent/host", false, false},
		{"provider", module + "agent/apply", false, true},
		{"provider", module + "provider/internal/ssh", false, false},
		{"provider/internal/ssh", module + "agent/host", false, true},
	} {
		if why := refuse(tc.pkg, tc.name, tc.test); (why != "") != tc.refused {
			t.Errorf("%s imports %s (test: %t): %q", tc.pkg, tc.name, tc.test, why)
		}
	}
}
