// SPDX-License-Identifier: Apache-2.0

// Build makes what the packages contain beside the binary: compressed manual pages, completions, units, the
// changelog in nfpm's form and a CycloneDX list of the modules in each binary; and it writes an nfpm configuration from the nfpms
// section of goreleaser.yaml, so that deb and rpm can be built without goreleaser and both lists cannot differ.
//
// It runs in the root of the checkout, writes below build/packaging only, and its output depends on the
// checkout, -version, -date and the binary alone.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const outDir = "build/packaging"

func main() {
	binary := flag.String("binary", "build/lockstep", "the lockstep binary that prints units and completions")
	version := flag.String("version", "0.0.0-dev", "version of the packages")
	date := flag.String("date", "", "RFC 3339 time stamped on every file; the commit's")
	arch := flag.String("arch", "amd64", "architecture of the nfpm configuration")
	provider := flag.String("provider", "", "the Terraform provider's binary, to list its modules too")
	tarball := flag.String("collection", "", "instead of all else, a built Ansible collection to make reproducible")
	flag.Parse()
	if err := run(*binary, *provider, *version, *date, *arch, *tarball); err != nil {
		fmt.Fprintf(os.Stderr, "packaging/build: %v\n", err)
		os.Exit(1)
	}
}

func run(binary, provider, version, date, arch, tarball string) error {
	stamp, err := time.Parse(time.RFC3339, date)
	if err != nil {
		return fmt.Errorf("-date: %w", err)
	}
	if tarball != "" {
		return collection(tarball, stamp)
	}
	for _, step := range []func() error{
		func() error { return manPages("packaging/man") },
		func() error { return completions(binary) },
		func() error { return units(binary) },
		func() error { return changelog(version, stamp) },
		func() error { return sbom("lockstep", binary, version, stamp) },
		func() error {
			if provider == "" {
				return nil
			}
			return sbom("terraform-provider-lockstep", provider, version, stamp)
		},
		func() error { return nfpmConfig(version, stamp, arch) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func write(name string, data []byte) error {
	path := filepath.Join(outDir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// manPages compresses with no name and no time in the header, as gzip -n9 does (Debian policy 12.1).
func manPages(dir string) error {
	pages, err := filepath.Glob(filepath.Join(dir, "*.[578]"))
	if err != nil {
		return err
	}
	if len(pages) == 0 {
		return fmt.Errorf("no manual page in %s", dir)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		var buf bytes.Buffer
		zw, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := zw.Write(text); err != nil {
			return err
		}
		if err := zw.Close(); err != nil {
			return err
		}
		if err := write("man/"+filepath.Base(page)+".gz", buf.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func output(binary string, args ...string) ([]byte, error) {
	out, err := exec.Command(binary, args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("%s %s: %w: %s", binary, strings.Join(args, " "), err, exit.Stderr)
	}
	return out, err
}

func completions(binary string) error {
	for shell, name := range map[string]string{"bash": "lockstep.bash", "fish": "lockstep.fish", "zsh": "_lockstep"} {
		text, err := output(binary, "completion", shell)
		if err != nil {
			return err
		}
		if err := write("completions/"+name, text); err != nil {
			return err
		}
	}
	return nil
}

// units writes the unit that `lockstep apply` would write, for a binary in /usr/bin.
func units(binary string) error {
	text, err := output(binary, "unit", "--binary", "/usr/bin/lockstep")
	if err != nil {
		return err
	}
	return write("systemd/lockstep@.service", text)
}

// changelog turns the sections of CHANGELOG.md into the list that nfpm's changelog field reads (chglog).
func changelog(version string, stamp time.Time) error {
	text, err := os.ReadFile("CHANGELOG.md")
	if err != nil {
		return err
	}
	type change struct {
		Note string `yaml:"note"`
	}
	type entry struct {
		Semver   string    `yaml:"semver"`
		Date     time.Time `yaml:"date"`
		Packager string    `yaml:"packager"`
		Changes  []change  `yaml:"changes"`
		Deb      struct {
			Urgency       string   `yaml:"urgency"`
			Distributions []string `yaml:"distributions"`
		} `yaml:"deb"`
	}
	// As nfpm writes the version of the packages: a pre-release comes before its release.
	e := entry{Semver: strings.Replace(version, "-", "~", 1) + "-1", Date: stamp, Packager: "The lockstep authors <maintainers@lockstep-sync.example>"}
	e.Deb.Urgency, e.Deb.Distributions = "medium", []string{"unstable"} // without them it is no changelog to Debian
	_, newest, found := strings.Cut(string(text), "\n## ")
	if !found {
		return errors.New("CHANGELOG.md: no section")
	}
	newest, _, _ = strings.Cut(newest, "\n## ")
	for line := range strings.SplitSeq(newest, "\n") {
		if note, ok := strings.CutPrefix(line, "- "); ok {
			e.Changes = append(e.Changes, change{note})
		} else if n := len(e.Changes); n > 0 && strings.HasPrefix(line, "  ") {
			e.Changes[n-1].Note += " " + strings.TrimSpace(line)
		}
	}
	for i := range e.Changes {
		e.Changes[i].Note = wrap(e.Changes[i].Note, 72, "\n  ")
	}
	if len(e.Changes) == 0 {
		e.Changes = []change{{"New version."}}
	}
	out, err := yaml.Marshal([]entry{e})
	if err != nil {
		return err
	}
	return write("changelog.yaml", out)
}

// wrap breaks text into lines of at most width bytes, if its words let it: Debian's changelogs have no longer ones.
func wrap(text string, width int, newline string) string {
	var out strings.Builder
	column := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case column+1+len(word) > width:
			out.WriteString(newline)
			column = 0
		default:
			out.WriteString(" ")
			column++
		}
		out.WriteString(word)
		column += len(word)
	}
	return out.String()
}

// sbom lists the modules that are linked into a binary, in CycloneDX 1.6. The Go linker records them.
func sbom(name, binary, version string, stamp time.Time) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	type component struct {
		Ref     string `json:"bom-ref"`
		Type    string `json:"type"`
		Name    string `json:"name"`
		Version string `json:"version"`
		PURL    string `json:"purl"`
	}
	type dependency struct {
		Ref string   `json:"ref"`
		On  []string `json:"dependsOn"`
	}
	list := struct {
		Schema   string `json:"$schema"`
		Format   string `json:"bomFormat"`
		Spec     string `json:"specVersion"`
		Version  int    `json:"version"`
		Metadata struct {
			Timestamp string    `json:"timestamp"`
			Component component `json:"component"`
		} `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}{Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", Spec: "1.6", Version: 1}
	module := func(kind, name, path, version string) component {
		purl := "pkg:golang/" + path + "@" + version
		return component{purl, kind, name, version, purl}
	}
	list.Metadata.Timestamp = stamp.UTC().Format(time.RFC3339)
	list.Metadata.Component = module("application", name, info.Main.Path, version)
	list.Metadata.Component.PURL += "#cmd/" + name
	list.Components = append(list.Components, module("framework", "std", "std", strings.TrimPrefix(info.GoVersion, "go")))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		list.Components = append(list.Components, module("library", m.Path, m.Path, m.Version))
	}
	all := dependency{Ref: list.Metadata.Component.Ref}
	for _, c := range list.Components {
		all.On = append(all.On, c.Ref)
	}
	list.Dependencies = []dependency{all}
	out, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	return write(name+".cdx.json", append(out, '\n'))
}

// nfpmConfig turns the nfpms section of goreleaser.yaml into a configuration of nfpm itself.
func nfpmConfig(version string, stamp time.Time, arch string) error {
	text, err := os.ReadFile("goreleaser.yaml")
	if err != nil {
		return err
	}
	var config struct {
		Nfpms []map[string]any `yaml:"nfpms"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("goreleaser.yaml: %w", err)
	}
	if len(config.Nfpms) != 1 {
		return fmt.Errorf("goreleaser.yaml: %d nfpms sections, want 1", len(config.Nfpms))
	}
	n := config.Nfpms[0]
	n["name"], n["version"], n["arch"], n["platform"] = n["package_name"], version, arch, "linux"
	n["depends"], n["mtime"] = n["dependencies"], stamp.UTC().Format(time.RFC3339)
	for _, key := range []string{"id", "ids", "package_name", "formats", "dependencies", "file_name_template"} {
		delete(n, key)
	}
	contents, ok := n["contents"].([]any)
	if !ok {
		return errors.New("goreleaser.yaml: nfpms[0].contents is not a list")
	}
	n["contents"] = append(contents, map[string]any{
		"src": "build/release/lockstep_linux_" + arch, "dst": "/usr/bin/lockstep", "file_info": map[string]any{"mode": 0o755}})
	overrides, ok := n["overrides"].(map[string]any)
	if !ok {
		return errors.New("goreleaser.yaml: nfpms[0].overrides is not a map")
	}
	for format, o := range overrides {
		o, ok := o.(map[string]any)
		if !ok {
			return fmt.Errorf("goreleaser.yaml: nfpms[0].overrides.%s is not a map", format)
		}
		o["depends"] = o["dependencies"]
		delete(o, "dependencies")
	}
	out, err := yaml.Marshal(n)
	if err != nil {
		return err
	}
	if strings.Contains(string(out), "{{") {
		return errors.New("goreleaser.yaml: a template in the nfpms section has no value here")
	}
	sum := sha256.Sum256(text)
	head := fmt.Sprintf("# From goreleaser.yaml (sha256 %x); do not edit.\n", sum[:6])
	return write("nfpm-"+arch+".yaml", append([]byte(head), out...))
}
