// SPDX-License-Identifier: Apache-2.0

//go:build linux && integration

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A pair without a backup is made by one command on one host; its unit starts without a password, tells its hook of
// what changes, and goes without a trace.
func TestPairOfHooksOnlyRunsAsAUnit(t *testing.T) {
	w := newWorld(t)
	if err := w.source.CopyTo(t.Context(), filepath.Join(repository, "build", "lockstep"), "/usr/local/bin/lockstep"); err != nil {
		t.Fatal(err)
	}
	before := inventory(t, w.source)
	const definition = `name: tell
source: {host: nfs01, path: /data}
transport: none
hooks:
  - name: list
    type: command
    argv: [/usr/bin/tee, -a, /var/lib/lockstep/tell/told]
`
	if err := w.source.WriteFile(t.Context(), "/run/tell.yaml", []byte(definition), 0o644); err != nil {
		t.Fatal(err)
	}
	shell(t, w.source, `chmod 0755 /usr/local/bin/lockstep; lockstep apply --role source --definition /run/tell.yaml`)
	contains(t, run(t, w.source, "lockstep", "apply", "--role", "source", "--definition", "/run/tell.yaml"), "nothing changed")
	eventually(t, 20*time.Second, func() error {
		_, err := w.source.Run(t.Context(), "lockstep", "status", "tell")
		return err
	})
	contains(t, run(t, w.source, "lockstep", "status", "tell"), "hooks only", "no backup")
	contains(t, run(t, w.source, "systemctl", "show", "-P", "StatusText", "lockstep@tell.service"), "hooks only")
	run(t, w.source, "lockstep", "doctor", "tell")
	shell(t, w.source, `echo x >/data/file && sleep 0 && mv /data/file /data/moved`)
	eventually(t, 20*time.Second, func() error {
		data, err := os.ReadFile(w.source.Path("/var/lib/lockstep/tell/told"))
		if err == nil && !strings.Contains(string(data), "/data/moved\x00") {
			err = os.ErrNotExist
		}
		return err
	})
	run(t, w.source, "systemctl", "restart", "lockstep@tell.service")
	run(t, w.source, "lockstep", "destroy", "--role", "source", "tell")
	shell(t, w.source, `rm /run/tell.yaml`)
	if after := inventory(t, w.source); strings.Contains(after, "lockstep@tell") || strings.Contains(after, "/etc/lockstep") && !strings.Contains(before, "/etc/lockstep") {
		t.Errorf("destroy left something:\n%s", after)
	}
}
