// SPDX-License-Identifier: Apache-2.0

package sersync

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/rogpeppe/go-internal/txtar"
	ctyjson "github.com/zclconf/go-cty/cty/json"
	"go.yaml.in/yaml/v3"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

var update = flag.Bool("update", false, "rewrite the expected files in testdata")

// golden gives the file confxml.xml of every archive to got, with the options that stand in the archive's comment, and
// compares the files it answers.
func golden(t *testing.T, pattern string, got func(t *testing.T, data []byte, opts Options) []txtar.File) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files match %s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) == 0 || archive.Files[0].Name != "confxml.xml" {
				t.Fatal("the archive does not begin with confxml.xml")
			}
			opts := Options{BackupPaths: map[string]string{}}
			for line := range strings.Lines(string(archive.Comment)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				switch key {
				case "plugin":
					opts.Plugin = value
				case "source-host":
					opts.SourceHost = value
				case "backup-path":
					module, path, named := strings.Cut(value, "=")
					if !named {
						module, path = "", value
					}
					opts.BackupPaths[module] = path
				default:
					t.Fatalf("unknown option %q", line)
				}
			}
			answer := got(t, archive.Files[0].Data, opts)
			if *update {
				archive.Files = append(archive.Files[:1], answer...)
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(archive.Files[1:], answer); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	golden(t, "testdata/golden/*.txtar", func(t *testing.T, data []byte, opts Options) []txtar.File {
		result, err := Parse(data, opts)
		if err != nil {
			t.Fatal(err)
		}
		check(t, result)
		var notes strings.Builder
		for _, n := range result.Notes {
			notes.WriteString(n.String() + "\n")
		}
		out := []txtar.File{{Name: "notes", Data: []byte(notes.String())}}
		for _, as := range Formats {
			text, err := result.Render(as)
			if opts.Plugin != "" && as != YAML && err != nil {
				text, err = err.Error()+"\n", nil
			}
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, txtar.File{Name: string(as), Data: []byte(text)})
		}
		return out
	})
}

// check holds what must be so of every result: what is complete is valid, and the YAML is the definition.
func check(t *testing.T, result *Result) {
	t.Helper()
	if len(result.Pairs) == 0 {
		t.Error("no pair, and no error")
	}
	for i, p := range result.Pairs {
		problems := p.Validate()
		if result.Complete() && len(problems) > 0 {
			t.Errorf("complete, but not valid: %v", problems)
		}
		one := &Result{Pairs: result.Pairs[i : i+1], Notes: result.Notes}
		text, err := one.Render(YAML)
		if err != nil {
			t.Fatal(err)
		}
		again, err := pair.Parse([]byte(text))
		if len(problems) > 0 {
			if err == nil {
				t.Errorf("not valid (%v), but its YAML is:\n%s", problems, text)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Errorf("the YAML says something else:\n%s", diff)
		}
		if p.HooksOnly() {
			continue // the others make pairs of two hosts
		}
		for as, read := range map[Format]func(string) (any, error){Ansible: readTask, Terraform: readResource} {
			text, err := one.Render(as)
			if err != nil {
				t.Fatal(err)
			}
			fields, err := read(text)
			if err != nil {
				t.Fatalf("%s: %v\n%s", as, err, text)
			}
			data, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			if again, err = pair.Parse(data); err != nil {
				t.Fatalf("%s: %v\n%s", as, err, data)
			}
			if diff := cmp.Diff(p, again); diff != "" {
				t.Errorf("the %s says something else:\n%s", as, diff)
			}
		}
	}
	for _, n := range result.Notes {
		if n.Outcome == "" || n.Setting == "" || strings.ContainsAny(n.Setting, "\n") {
			t.Errorf("a note that says nothing: %+v", n)
		}
	}
}

// readTask gives the parameters of the only task.
func readTask(text string) (any, error) {
	var tasks []map[string]any
	if err := yaml.Unmarshal([]byte(text), &tasks); err != nil {
		return nil, err
	}
	if len(tasks) != 1 {
		return nil, fmt.Errorf("%d tasks", len(tasks))
	}
	return tasks[0]["lockstep.replication.pair"], nil
}

// readResource gives the attributes of the only resource.
func readResource(text string) (any, error) {
	file, diags := hclsyntax.ParseConfig([]byte(text), "main.tf", hcl.InitialPos)
	if diags.HasErrors() {
		return nil, diags
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok || len(body.Blocks) != 1 {
		return nil, errors.New("not one resource")
	}
	fields := map[string]any{}
	for name, attribute := range body.Blocks[0].Body.Attributes {
		value, diags := attribute.Expr.Value(nil)
		if diags.HasErrors() {
			return nil, diags
		}
		data, err := ctyjson.Marshal(value, value.Type())
		if err != nil {
			return nil, err
		}
		fields[name] = json.RawMessage(data)
	}
	return fields, nil
}

func TestImportErrors(t *testing.T) {
	t.Parallel()
	golden(t, "testdata/invalid/*.txtar", func(t *testing.T, data []byte, opts Options) []txtar.File {
		result, err := Parse(data, opts)
		if err == nil || result != nil {
			t.Fatalf("taken: %+v", result)
		}
		var problems pair.Problems
		if !errors.As(err, &problems) {
			t.Fatalf("the error is %T", err)
		}
		return []txtar.File{{Name: "problems", Data: []byte(problems.Error() + "\n")}}
	})
}

// Every setting of the distributed file has a note, so that nobody has to wonder what became of one.
func TestEverySettingOfTheSampleHasANote(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/sample.xml")
	if err != nil {
		t.Fatal(err)
	}
	result, err := Parse(data, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, setting := range []string{"host", "debug", "fileSystem", "filter", "inotify/delete", "inotify/createFolder", "inotify/createFile",
		"inotify/closeWrite", "inotify/moveFrom", "inotify/moveTo", "inotify/attrib", "inotify/modify", "localpath watch", "remote",
		"rsync/commonParams -a", "rsync/commonParams -u", "rsync/commonParams -z", "rsync/auth", "rsync/userDefinedPort", "rsync/timeout",
		"rsync/ssh", "failLog path", "failLog timeToExecute", "crontab", "crontab/crontabfilter", "plugin command", "plugin socket", "plugin refreshCDN"} {
		if !slices.ContainsFunc(result.Notes, func(n Note) bool { return n.Setting == setting }) {
			t.Errorf("no note on %s", setting)
		}
	}
}

func TestWordsAreTheShells(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][]string{
		"":                      nil,
		" -a  -z ":              {"-a", "-z"},
		`--exclude='a b' "c d"`: {"--exclude=a b", "c d"},
		`a\ b "x\"y" 'x\y' ""`:  {"a b", `x"y`, `x\y`, ""},
		`"a\b"`:                 {`a\b`},
	} {
		got, err := words(in)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("words(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"a;b", "$X", "`x`", `"$(x)"`, "a|b", "a>b", "'a", "a\nb", `a\`} {
		if got, err := words(in); err == nil {
			t.Errorf("words(%q) = %q", in, got)
		}
	}
}

func TestQuoteHCL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`a"b\c`:      `"a\"b\\c"`,
		"${x} %{y}":  `"$${x} %%{y}"`,
		"t\tn\nr\rx": `"t\tn\nr\rx"`,
		"\x01\u2028": `"\u0001\u2028"`,
		"\U000e0001": `"\U000e0001"`,
	} {
		if got := quoteHCL(in); got != want {
			t.Errorf("quoteHCL(%q) = %s, want %s", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/golden/*.txtar", "testdata/invalid/*.txtar"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(archive.Files[0].Data, "")
			f.Add(archive.Files[0].Data, "refreshCDN")
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, plugin string) {
		result, err := Parse(data, Options{SourceHost: "nfs01", BackupPaths: map[string]string{"": "/backup/x"}, Plugin: plugin})
		if err != nil {
			var problems pair.Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("an error that says nothing: %#v", err)
			}
			return
		}
		check(t, result)
		if plugin == "" && len(result.Live.Remotes) != len(result.Pairs) {
			t.Errorf("%d remotes for %d pairs", len(result.Live.Remotes), len(result.Pairs))
		}
		for _, as := range Formats {
			text, err := result.Render(as)
			if err != nil && plugin != "" && as != YAML {
				continue // the others make pairs of two hosts
			}
			if err != nil {
				t.Fatal(err)
			}
			// Comments stay comments, whatever the file says.
			for line := range strings.Lines(text) {
				if strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\r\u0085\u2028\x00") {
					t.Fatalf("a line that is two: %q", line)
				}
			}
		}
	})
}
