// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Without anything installed, the doctor is told which key logs in, as the agent is.
func TestDoctorStandAloneGoesTheWayOfSSH(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	w.write("password", "pass\nlockstep-1\n")
	definition := fmt.Sprintf("name: data\nsource: {host: 127.0.0.1, path: %s}\nbackup: {host: 127.0.0.1, path: /backup/data, port: %d}\ntransport: ssh\n", w.source, w.pair.Backup.Port)
	w.write("data.yaml", definition)
	args := []string{"doctor", "--definition", w.dir + "/data.yaml", "--password-file", w.password}
	status, out, errs := lockstep(t, "", args...)
	if status != exitFailure || !strings.Contains(out, "fail  definition") || !strings.HasSuffix(out, "-> give --ssh-key and --known-hosts\n") {
		t.Errorf("without a key: status %d\n%s%s", status, out, errs)
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: the pair's key logs in as root; the login is not tested")
	}
	status, out, errs = lockstep(t, "", append(args, "--ssh-key", w.key, "--known-hosts", w.known)...)
	if status != exitOK || !strings.Contains(out, "\nok    canary") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
}
