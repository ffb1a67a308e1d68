// SPDX-License-Identifier: Apache-2.0

//go:build linux

package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAptSourcesOfTheReleaseAloneAreUsed(t *testing.T) {
	t.Parallel()
	etc, out := t.TempDir(), t.TempDir()
	mirrors := filepath.Join(etc, "mirrors.txt")
	for name, text := range map[string]string{
		"mirrors.txt": "http://near.example/ubuntu\tpriority:1\nhttp://far.example/ubuntu\n",
		"sources.list": "# deb http://old.example bookworm main\n" +
			"deb http://deb.example/debian bookworm main contrib\n" +
			"deb [arch=amd64 signed-by=/k.gpg] http://deb.example/security bookworm-security main\n" +
			"deb-src http://deb.example/debian bookworm main\n",
		"sources.list.d/tool.list": "deb http://tool.example/apt bookworm stable\n" +
			"deb [signed-by=/t.gpg] http://db.example/apt bookworm-pgdg main\n",
		"sources.list.d/distro.sources": "Types: deb\n# a comment: with a colon\nURIs: mirror+file:" + mirrors + "\nSuites: bookworm bookworm-updates\n" +
			"Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n\n" +
			"Types: deb-src\nURIs: http://deb.example/debian\nSuites: bookworm\nComponents: main\n\n" +
			"Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n",
		"sources.list.d/gone.list.disabled": "deb http://gone.example bookworm main\n",
	} {
		path := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := aptSources(etc, "bookworm", out)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got[filepath.Base(f)] = string(data)
	}
	want := map[string]string{
		"sources.list": "deb http://deb.example/debian bookworm main contrib\n" +
			"deb [arch=amd64 signed-by=/k.gpg] http://deb.example/security bookworm-security main\n",
		"lab.sources": "Types: deb\n# a comment: with a colon\nURIs: http://near.example/ubuntu\nSuites: bookworm bookworm-updates\n" +
			"Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	if _, err := aptSources(etc, "sid", out); err == nil || !strings.Contains(err.Error(), "no package source with suite sid") {
		t.Errorf("a release without a source: %v", err)
	}
}

func TestAProcessIsKnownByItsStartTime(t *testing.T) {
	t.Parallel()
	self := thisProcess(os.Getpid())
	if !self.alive() {
		t.Errorf("%+v is this process", self)
	}
	for _, p := range []process{{}, {PID: self.PID}, {self.PID, "1"}, {0, self.Start}} {
		if p.alive() {
			t.Errorf("%+v is not this process", p)
		}
	}
}

func TestRemovalStopsAtAMountThatIsNotTheLabs(t *testing.T) {
	t.Parallel()
	if err := refuseMounts("/proc"); err == nil || !strings.Contains(err.Error(), "mount point") {
		t.Errorf("/proc is a mount point: %v", err)
	}
	if err := refuseMounts(t.TempDir()); err != nil {
		t.Error(err)
	}
	if got := unescape(`/a\040b\134`); got != `/a b\` {
		t.Errorf("unescape: %q", got)
	}
}

// The Makefile must install what Check asks for, before there is a Go to ask it.
func TestDepsInstallWhatTheLabNeeds(t *testing.T) {
	t.Parallel()
	script, err := os.ReadFile("../../../.ci/deps")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.FieldsFunc(string(script), func(r rune) bool { return strings.ContainsRune(" \t\n()", r) })
	for _, tool := range tools {
		if entry := tool.program + "=" + tool.pkg; !slices.Contains(words, entry) {
			t.Errorf(".ci/deps does not name %s", entry)
		}
	}
}
