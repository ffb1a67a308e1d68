// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/lab"
)

// The password is in none of: state and plan files, TF_LOG=TRACE output, the arguments and environments of
// processes on both hosts, the journal. Apply, a transfer and a rotation are watched.
func TestThePasswordIsNowhereButInItsTwoFiles(t *testing.T) {
	w := newWorld(t)
	trace := filepath.Join(w.dir, "trace.log")
	w.env = append(w.env, "TF_LOG=TRACE", "TF_LOG_PATH="+trace)
	stop := map[string]func() []byte{}
	for _, h := range w.Hosts() {
		stop[h.Name] = spy(t, h)
	}

	w.configure(t, pairHCL)
	w.mustTerraform(t, "plan", "-out=first.plan")
	w.mustTerraform(t, "apply", "first.plan")
	w.inStep(t, time.Minute)
	secrets := passwords(t, w)
	shell(t, w.source, `echo x >/data/file`)
	w.inStep(t, 20*time.Second)

	// One that the user chose. It replaces the first.
	const chosen = "correct-horse-battery-staple-4711"
	w.env = append(w.env, "TF_VAR_password="+chosen)
	w.configure(t, "variable \"password\" {\n  type      = string\n  ephemeral = true\n}\n"+
		strings.Replace(pairHCL, "  backup =", "  password_wo         = var.password\n  password_wo_version = 1\n  backup =", 1))
	w.mustTerraform(t, "plan", "-out=second.plan")
	w.mustTerraform(t, "apply", "second.plan")
	shell(t, w.source, `echo y >/data/file`)
	w.inStep(t, 20*time.Second)
	if got := passwords(t, w); !contain(got, chosen) {
		t.Fatal("the password that the user chose is not in use")
	}
	secrets = append(secrets, passwords(t, w)...)
	w.mustTerraform(t, "destroy", "-auto-approve")

	for _, h := range w.Hosts() {
		search(t, h.Name+": arguments and environments of all processes", stop[h.Name](), secrets)
		search(t, h.Name+": the journal", []byte(run(t, h, "journalctl", "--no-pager", "-o", "export", "-a")), secrets)
	}
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		search(t, path, data, secrets)
		if archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data))); err == nil { // a plan file is one
			for _, f := range archive.File {
				r, err := f.Open()
				if err != nil {
					return err
				}
				data, err := io.ReadAll(r)
				if err != nil {
					return err
				}
				search(t, path+": "+f.Name, data, secrets)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(trace); err != nil || info.Size() < 10000 {
		t.Errorf("there is no trace to speak of: %v, %v", info, err)
	}
}

// passwords are what the secrets files of both hosts hold.
func passwords(t *testing.T, w *world) []string {
	t.Helper()
	var found []string
	add := func(text string) {
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if _, after, ok := strings.Cut(line, ":"); ok {
				line = after
			}
			if len(line) >= 16 && !strings.HasPrefix(line, "#") {
				found = append(found, line)
			}
		}
	}
	add(run(t, w.source, "cat", "/etc/lockstep/secrets/data"))
	add(run(t, w.backup, "cat", "/etc/lockstep/secrets/data.secrets"))
	if len(found) < 2 || !contain(found[1:], found[0]) {
		t.Fatalf("the secrets files of the hosts do not agree: %d secrets", len(found))
	}
	for _, look := range []struct {
		host *lab.Host
		path string
	}{{w.source, "/etc/lockstep/secrets/data"}, {w.backup, "/etc/lockstep/secrets/data.secrets"}} {
		if mode := strings.TrimSpace(run(t, look.host, "stat", "-c", "%a %u:%g", look.path)); mode != "600 0:0" && mode != "400 0:0" {
			t.Errorf("%s: %s has %s", look.host.Name, look.path, mode)
		}
	}
	return found
}

func contain(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

// search fails the test if a secret is in data, in any form in which it usually leaks.
func search(t *testing.T, where string, data []byte, secrets []string) {
	t.Helper()
	for _, secret := range secrets {
		forms := []string{secret, hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret))}
		if raw, err := base64.StdEncoding.DecodeString(secret); err == nil {
			forms = append(forms, string(raw), hex.EncodeToString(raw))
		}
		for i, form := range forms {
			if at := bytes.Index(data, []byte(form)); at >= 0 {
				t.Errorf("%s holds the password (form %d, at byte %d)", where, i, at)
			}
		}
	}
}

// spy collects the arguments and environments of every process of a host, many times a second. Stop gives what it saw.
func spy(t *testing.T, h *lab.Host) (stop func() []byte) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var seen bytes.Buffer
	// Each text once: processes come and go, most stay.
	cmd := h.Command(ctx, "python3", "-uc", `
import glob, os, sys
seen = set()
while True:
    for pattern in ("/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"):
        for path in glob.glob(pattern):
            try: data = open(path, "rb").read()
            except OSError: continue
            if data not in seen:
                seen.add(data)
                sys.stdout.buffer.write(data + b"\n"); sys.stdout.buffer.flush()
`)
	cmd.Stdout = &seen
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() []byte {
		if !ended {
			ended = true
			cancel()
			_ = cmd.Wait() // cancelled
		}
		return seen.Bytes()
	}
	t.Cleanup(func() {
		if out := stop(); !bytes.Contains(out, []byte("lockstep")) {
			t.Errorf("%s: the spy saw nothing of lockstep", h.Name)
		}
	})
	return stop
}
