// SPDX-License-Identifier: Apache-2.0

// Package ansible_test holds the collection to the schema of package pair: Ansible has no way to read it, so the
// options, their types and their defaults are written out in its documentation, and once more in the role's.
package ansible_test

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

const collection = "ansible_collections/lockstep/replication/"

// option is an option as Ansible documents it.
type option struct {
	Description any               `yaml:"description"`
	Type        string            `yaml:"type"`
	Elements    string            `yaml:"elements"`
	Suboptions  map[string]option `yaml:"suboptions"` // of a module
	Options     map[string]option `yaml:"options"`    // of a role
}

// text is one of the YAML texts in the Python of a module.
func text(t *testing.T, module, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(collection + "plugins/modules/" + module + ".py")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(data), "\n"+name+" = r'''")
	before, _, closed := strings.Cut(after, "'''")
	if !ok || !closed {
		t.Fatalf("module %s has no %s", module, name)
	}
	return []byte(before)
}

func moduleOptions(t *testing.T) map[string]option {
	t.Helper()
	var doc struct {
		Options map[string]option `yaml:"options"`
	}
	if err := yaml.Unmarshal(text(t, "pair", "DOCUMENTATION"), &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Options
}

// about lists the paths of options with their types, of what is told about the definition.
func about(options map[string]option, path string, into map[string]string) map[string]string {
	for name, o := range options {
		at := strings.TrimPrefix(path+"."+name, ".")
		kind := o.Type
		if o.Elements != "" {
			kind += " of " + o.Elements
		}
		into[at] = kind
		about(o.Suboptions, at, into)
		about(o.Options, at, into)
	}
	return into
}

// schema lists the paths of the fields of a definition with the types that Ansible has for them, and the defaults as
// documentation writes them.
func schema(v reflect.Value, path string, types, defaults map[string]string) {
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("json")
		at := strings.TrimPrefix(path+"."+name, ".")
		f := v.Field(i)
		switch x := f.Interface().(type) {
		case pair.Duration:
			types[at], defaults[at] = "str", x.String()
		case string:
			types[at], defaults[at] = "str", x
			if x == "" {
				defaults[at] = `""`
			}
		case int:
			types[at], defaults[at] = "int", fmt.Sprint(x)
		case bool:
			types[at], defaults[at] = "bool", fmt.Sprint(x)
		case []string:
			types[at], defaults[at] = "list of str", "["+strings.Join(x, ", ")+"]"
		case []pair.Hook:
			types[at], defaults[at] = "list of dict", "[]"
		default:
			types[at] = "dict"
			schema(f, at, types, defaults)
		}
	}
}

// Not of the definition, but of the task.
var taskOptions = []string{"state", "password", "rotate"}

func TestTheModuleHasEveryFieldOfADefinition(t *testing.T) {
	t.Parallel()
	types, defaults := map[string]string{}, map[string]string{}
	schema(reflect.ValueOf(pair.Defaults()), "", types, defaults)
	options := moduleOptions(t)
	got := about(options, "", map[string]string{})
	for _, name := range taskOptions {
		if _, ok := got[name]; !ok {
			t.Errorf("the module does not document %s", name)
		}
		delete(got, name)
	}
	if diff := cmp.Diff(types, got); diff != "" {
		t.Errorf("the schema (-) and the options of the module (+) differ:\n%s", diff)
	}

	// These follow other fields, and are documented in words.
	for _, path := range []string{"name", "source.host", "source.path", "source.address", "backup.host", "backup.path", "backup.address", "backup.module"} {
		delete(defaults, path)
	}
	defaults["backup.port"] = fmt.Sprint(pair.DefaultPort(pair.Daemon))
	for _, path := range slices.Sorted(maps.Keys(defaults)) {
		o, rest := option{Suboptions: options}, path
		for rest != "" {
			var name string
			name, rest, _ = strings.Cut(rest, ".")
			o = o.Suboptions[name]
		}
		if want := "The default is V(" + defaults[path] + ")"; !strings.Contains(fmt.Sprint(o.Description), want) {
			t.Errorf("%s: the documentation lacks %q: %v", path, want, o.Description)
		}
	}
}

func TestThePairsOfTheRoleAreThoseOfTheModule(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(collection + "roles/pair/meta/argument_specs.yml")
	if err != nil {
		t.Fatal(err)
	}
	var specs struct {
		Specs struct {
			Main struct {
				Options map[string]option `yaml:"options"`
			} `yaml:"main"`
		} `yaml:"argument_specs"`
	}
	if err := yaml.Unmarshal(data, &specs); err != nil {
		t.Fatal(err)
	}
	want := about(moduleOptions(t), "", map[string]string{})
	if diff := cmp.Diff(want, about(specs.Specs.Main.Options["lockstep_pairs"].Options, "", map[string]string{})); diff != "" {
		t.Errorf("the options of the module (-) and those of a pair of the role (+) differ:\n%s", diff)
	}

	// What the role documents and does not pass on would be lost without a word.
	for _, file := range []string{"roles/pair/tasks/provision.yml", "roles/migrate_sersync/tasks/plan.yml"} {
		data, err := os.ReadFile(collection + file)
		if err != nil {
			t.Fatal(err)
		}
		for name := range moduleOptions(t) {
			if file == "roles/migrate_sersync/tasks/plan.yml" && slices.Contains(taskOptions, name) {
				continue
			}
			if !strings.Contains(string(data), "\n    "+name+": ") {
				t.Errorf("%s does not pass %s on", file, name)
			}
		}
	}
}

// Every example that has no template in it is a valid definition.
func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	var tasks []map[string]any
	if err := yaml.Unmarshal(text(t, "pair", "EXAMPLES"), &tasks); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("../examples/ansible/site.yml")
	if err != nil {
		t.Fatal(err)
	}
	var plays []struct {
		Tasks []map[string]any `yaml:"tasks"`
	}
	if err := yaml.Unmarshal(data, &plays); err != nil {
		t.Fatal(err)
	}
	for _, play := range plays {
		tasks = append(tasks, play.Tasks...)
	}
	tried := 0
	for _, task := range tasks {
		args, ok := task["lockstep.replication.pair"].(map[string]any)
		if !ok || args["state"] == "absent" {
			continue
		}
		for _, name := range taskOptions {
			delete(args, name)
		}
		written, err := yaml.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(written), "{{") {
			continue
		}
		tried++
		if _, err := pair.Parse(written); err != nil {
			t.Errorf("%v: %v\n%s", task["name"], err, written)
		}
	}
	if tried < 3 {
		t.Errorf("only %d examples were tried", tried)
	}
}
