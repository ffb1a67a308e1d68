// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// tarball is what ansible-galaxy makes of two files, in the order given, at a time of day.
func tarball(t *testing.T, order []string, at time.Time) []byte {
	t.Helper()
	content := map[string]string{"README.md": "read me\n", "meta/runtime.yml": "requires_ansible: '>=2.14'\n"}
	var list strings.Builder
	list.WriteString(`{"files": [{"name": ".", "ftype": "dir", "chksum_type": null, "chksum_sha256": null, "format": 1}`)
	for _, name := range order {
		if body, ok := content[name]; ok {
			fmt.Fprintf(&list, `, {"name": %q, "ftype": "file", "chksum_type": "sha256", "chksum_sha256": "%x", "format": 1}`, name, sha256.Sum256([]byte(body)))
		} else {
			fmt.Fprintf(&list, `, {"name": %q, "ftype": "dir", "chksum_type": null, "chksum_sha256": null, "format": 1}`, name)
		}
	}
	list.WriteString(`], "format": 1}`)
	content["FILES.json"] = list.String()
	content["MANIFEST.json"] = fmt.Sprintf(`{"file_manifest_file": {"name": "FILES.json", "chksum_sha256": "%x"}}`, sha256.Sum256([]byte(list.String())))
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	for _, name := range append([]string{"MANIFEST.json", "FILES.json"}, order...) {
		head := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content[name])), ModTime: at, Uid: 1000}
		if _, ok := content[name]; !ok {
			head.Name, head.Typeflag, head.Mode = name+"/", tar.TypeDir, 0o755
		}
		if err := tw.WriteHeader(head); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(content[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Two builds of the collection at two times, in directories with another order, are one file in the end, and its
// checksums still hold.
func TestTheCollectionIsReproducible(t *testing.T) {
	t.Parallel()
	stamp := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	one, err := restamp(tarball(t, []string{"README.md", "meta", "meta/runtime.yml"}, stamp.Add(time.Hour)), stamp)
	if err != nil {
		t.Fatal(err)
	}
	two, err := restamp(tarball(t, []string{"meta", "meta/runtime.yml", "README.md"}, stamp.Add(2*time.Hour)), stamp)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("the two files differ")
	}
	zr, err := gzip.NewReader(bytes.NewReader(one))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	sums := map[string]string{}
	var manifest string
	for tr := tar.NewReader(zr); ; {
		head, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !head.ModTime.Equal(stamp) || head.Uid != 0 {
			t.Errorf("%s: time %s, uid %d", head.Name, head.ModTime, head.Uid)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, head.Name)
		sums[head.Name] = fmt.Sprintf("%x", sha256.Sum256(body))
		if head.Name == "MANIFEST.json" {
			manifest = string(body)
		}
	}
	if want := []string{"MANIFEST.json", "FILES.json", "README.md", "meta/", "meta/runtime.yml"}; !slices.Equal(names, want) {
		t.Errorf("entries %q, want %q", names, want)
	}
	if !strings.Contains(manifest, sums["FILES.json"]) {
		t.Error("MANIFEST.json has another checksum of FILES.json")
	}
}

// The list of modules is CycloneDX, as far as its required parts go, and names every module of the binary once.
func TestTheListOfModulesIsComplete(t *testing.T) {
	binary, err := os.Executable() // has modules enough
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	if err := sbom("lockstep", binary, "1.2.3", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(outDir + "/lockstep.cdx.json")
	if err != nil {
		t.Fatal(err)
	}
	type component struct {
		Ref     string `json:"bom-ref"`
		Type    string
		Name    string
		Version string
		PURL    string
	}
	var list struct {
		Format   string `json:"bomFormat"`
		Spec     string `json:"specVersion"`
		Version  int
		Metadata struct {
			Timestamp time.Time
			Component component
		}
		Components   []component
		Dependencies []struct {
			Ref string
			On  []string `json:"dependsOn"`
		}
	}
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	if list.Format != "CycloneDX" || list.Spec != "1.6" || list.Version != 1 || list.Metadata.Component.Version != "1.2.3" {
		t.Errorf("head: %+v", list)
	}
	refs := map[string]bool{list.Metadata.Component.Ref: true}
	names := map[string]string{}
	for _, c := range list.Components {
		if refs[c.Ref] {
			t.Errorf("%s is there twice", c.Ref)
		}
		refs[c.Ref], names[c.Name] = true, c.Version
		if !slices.Contains([]string{"library", "framework"}, c.Type) || !strings.HasPrefix(c.PURL, "pkg:golang/") || c.Version == "" {
			t.Errorf("component %+v", c)
		}
	}
	for _, m := range info.Deps {
		if names[m.Path] != m.Version {
			t.Errorf("module %s %s is there as %q", m.Path, m.Version, names[m.Path])
		}
	}
	if len(info.Deps) == 0 {
		t.Error("the binary has no modules: the test shows nothing")
	}
	for _, d := range list.Dependencies {
		for _, ref := range append(d.On, d.Ref) {
			if !refs[ref] {
				t.Errorf("dependency on %s, which is not there", ref)
			}
		}
	}
}
