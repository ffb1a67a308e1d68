// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	datasourceschema "github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	providerschema "github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
)

var update = flag.Bool("update", false, "rewrite docs/ with tfplugindocs (make docs)")

// terraformIn runs terraform in a directory with a CLI configuration of its own, so that nothing is asked of a registry.
func terraformIn(t *testing.T, program, dir, installation string, args ...string) string {
	t.Helper()
	return terraformWith(t, program, dir, filepath.Join(t.TempDir(), "data"), installation, args...)
}

func terraformWith(t *testing.T, program, dir, data, installation string, args ...string) string {
	t.Helper()
	rc := filepath.Join(t.TempDir(), "terraform.rc")
	if err := os.WriteFile(rc, []byte("disable_checkpoint = true\nprovider_installation {\n"+installation+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TF_CLI_CONFIG_FILE="+rc, "TF_IN_AUTOMATION=1", "TF_DATA_DIR="+data)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("terraform %s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

func devOverride(dir string) string {
	return fmt.Sprintf("  dev_overrides { \"lockstep-sync/lockstep\" = %q }\n  direct {}\n", dir)
}

// providerAlone is a directory with this test binary as the provider.
func providerAlone(t *testing.T, name string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nLOCKSTEP_TEST_PROVIDER={} exec '%s'\n", self)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

const requireProvider = "terraform {\n  required_providers {\n    lockstep = { source = \"lockstep-sync/lockstep\" }\n  }\n}\n"

// examples lists every directory with .tf files.
func examples(t *testing.T) []string {
	t.Helper()
	var dirs []string
	for _, root := range []string{"../examples", "examples"} {
		err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(name, ".tf") && !slices.Contains(dirs, filepath.Dir(name)) {
				dirs = append(dirs, filepath.Dir(name))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(dirs) < 5 {
		t.Fatalf("only %q are there", dirs)
	}
	return dirs
}

// copyOf copies an example to where terraform may write, with the block that pages of the reference leave out.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	files, _ := filepath.Glob(filepath.Join(dir, "*.tf"))
	required := false
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		required = required || bytes.Contains(text, []byte("required_providers"))
		if err := os.WriteFile(filepath.Join(to, filepath.Base(name)), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !required {
		if err := os.WriteFile(filepath.Join(to, "required.tf"), []byte(requireProvider), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestExamplesAreFormattedAndValid(t *testing.T) {
	t.Parallel()
	program := needTerraform(t)
	alone := providerAlone(t, "terraform-provider-lockstep")
	for _, dir := range examples(t) {
		t.Run(dir, func(t *testing.T) {
			if out := terraformIn(t, program, dir, devOverride(alone), "fmt", "-check", "-diff"); out != "" {
				t.Errorf("terraform fmt:\n%s", out)
			}
			terraformIn(t, program, copyOf(t, dir), devOverride(alone), "validate")
		})
	}
}

func TestProviderInstallsFromAFilesystemMirror(t *testing.T) {
	t.Parallel()
	program := needTerraform(t)
	mirror := t.TempDir()
	to := filepath.Join(mirror, "registry.terraform.io", "lockstep-sync", "lockstep", "1.2.3", runtime.GOOS+"_"+runtime.GOARCH)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(providerAlone(t, "terraform-provider-lockstep_v1.2.3"), to); err != nil {
		t.Fatal(err)
	}
	dir := copyOf(t, "../examples/terraform")
	installation := fmt.Sprintf("  filesystem_mirror {\n    path    = %q\n    include = [\"registry.terraform.io/lockstep-sync/*\"]\n  }\n", mirror)
	data := filepath.Join(t.TempDir(), "data")
	for _, args := range [][]string{{"init"}, {"validate"}} {
		terraformWith(t, program, dir, data, installation, args...)
	}
}

func TestCarriedBinariesLieBesideTheRealProvider(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mirror, link := filepath.Join(dir, "mirror"), filepath.Join(dir, "linked")
	if err := os.Mkdir(mirror, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mirror, "provider"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(mirror, link); err != nil { // as Terraform does with an unpacked mirror
		t.Fatal(err)
	}
	want, err := filepath.EvalSymlinks(mirror)
	if err != nil {
		t.Fatal(err)
	}
	if got := besides(filepath.Join(link, "provider")); got != want {
		t.Errorf("besides = %q, want %q", got, want)
	}
}

// Where tfplugindocs is at hand, the pages are what it makes; everywhere, they tell of every attribute.
func TestDocsAreCurrent(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("tfplugindocs")
	if err != nil {
		if *update {
			t.Fatal("tfplugindocs is not on PATH: go install github.com/hashicorp/terraform-plugin-docs/cmd/tfplugindocs@v0.25.0")
		}
		t.Skip("SKIPPED: tfplugindocs is not on PATH (go install github.com/hashicorp/terraform-plugin-docs/cmd/tfplugindocs@v0.25.0); TestDocsTellOfEveryAttribute holds the rest")
	}
	program := needTerraform(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.tf"), []byte(requireProvider), 0o600); err != nil {
		t.Fatal(err)
	}
	schemas := filepath.Join(dir, "schemas.json")
	text := terraformIn(t, program, dir, devOverride(providerAlone(t, "terraform-provider-lockstep")), "providers", "schema", "-json")
	text = strings.ReplaceAll(text, `"registry.terraform.io/lockstep-sync/lockstep"`, `"registry.terraform.io/hashicorp/lockstep"`) // the only namespace that it looks for
	if err := os.WriteFile(schemas, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	for _, name := range []string{"examples", "templates"} {
		if err := os.CopyFS(filepath.Join(work, name), os.DirFS(name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(tool, "generate", "--provider-dir", work, "--provider-name", "lockstep", "--providers-schema", schemas).CombinedOutput(); err != nil {
		t.Fatalf("tfplugindocs: %v\n%s", err, out)
	}
	made := pages(t, filepath.Join(work, "docs"))
	if *update {
		if err := os.RemoveAll("docs"); err != nil {
			t.Fatal(err)
		}
		for name, text := range made {
			if err := os.MkdirAll(filepath.Dir(filepath.Join("docs", name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join("docs", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	have := pages(t, "docs")
	for name, text := range made {
		if have[name] != text {
			t.Errorf("docs/%s is not current: make docs", name)
		}
		delete(have, name)
	}
	for name := range have {
		t.Errorf("docs/%s is a page of nothing: make docs", name)
	}
}

func pages(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		out[rel] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDocsTellOfEveryAttribute(t *testing.T) {
	t.Parallel()
	var p provider.SchemaResponse
	(&lockstepProvider{}).Schema(t.Context(), provider.SchemaRequest{}, &p)
	var pairNow, host datasource.SchemaResponse
	(&pairDataSource{}).Schema(t.Context(), datasource.SchemaRequest{}, &pairNow)
	(&hostDataSource{}).Schema(t.Context(), datasource.SchemaRequest{}, &host)
	have := pages(t, "docs")
	for name, told := range map[string]map[string]string{
		"index.md": providerTexts(p.Schema.Attributes), "resources/pair.md": resourceTexts(pairSchema().Attributes),
		"data-sources/pair.md": dataTexts(pairNow.Schema.Attributes), "data-sources/host.md": dataTexts(host.Schema.Attributes),
	} {
		for key, description := range told {
			if !strings.Contains(have[name], "`"+key+"`") || description == "" || !strings.Contains(have[name], description) {
				t.Errorf("docs/%s does not tell of %s: %q; make docs", name, key, description)
			}
		}
	}
}

func resourceTexts(attributes map[string]schema.Attribute) map[string]string {
	out := map[string]string{}
	for key, a := range attributes {
		if key == "timeouts" {
			continue // described by its library
		}
		out[key] = a.GetMarkdownDescription()
		inner := map[string]schema.Attribute{}
		switch g := a.(type) {
		case schema.SingleNestedAttribute:
			inner = g.Attributes
		case schema.ListNestedAttribute:
			inner = g.NestedObject.Attributes
		}
		maps.Copy(out, resourceTexts(inner))
	}
	return out
}

func providerTexts(attributes map[string]providerschema.Attribute) map[string]string {
	out := map[string]string{}
	for key, a := range attributes {
		out[key] = a.GetMarkdownDescription()
		inner := map[string]providerschema.Attribute{}
		switch g := a.(type) {
		case providerschema.SingleNestedAttribute:
			inner = g.Attributes
		case providerschema.MapNestedAttribute:
			inner = g.NestedObject.Attributes
		}
		maps.Copy(out, providerTexts(inner))
	}
	return out
}

func dataTexts(attributes map[string]datasourceschema.Attribute) map[string]string {
	out := map[string]string{}
	for key, a := range attributes {
		out[key] = a.GetMarkdownDescription()
	}
	return out
}

func TestSchemaIsValid(t *testing.T) {
	t.Parallel()
	if diags := pairSchema().ValidateImplementation(t.Context()); diags.HasError() {
		t.Error(said(diags))
	}
}
