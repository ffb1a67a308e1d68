// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// compareBySSH runs the comparison with a confxml.xml that leads to the backup host by ssh.
func (w *sshWorld) compareBySSH(rsync, params, ssh, module string) (status int, out, errs string) {
	w.t.Helper()
	conf := filepath.Join(w.t.TempDir(), "confxml.xml")
	write(w.t, conf, confxml(w.source, "127.0.0.1", module, params, ssh), 0o644)
	var stdout bytes.Buffer
	var stderr safeBuffer
	ctx, enough := context.WithCancel(w.t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- dispatch(ctx, stdio{strings.NewReader(""), &stdout, &stderr},
			[]string{"import", "sersync", conf, "--compare", "--for", "20s", "--settle", "1s", "--every", "100ms", "--rsync", rsync})
	}()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case status = <-ended:
			enough()
			return status, stdout.String(), stderr.String()
		case <-look.C:
			if strings.Contains(stderr.String(), "not deleted: only there") {
				enough()
			}
		}
	}
}

// Where sersync sends by ssh, to a directory with ssh of confxml.xml and to a module with -e among the parameters, it is compared by the
// same ssh, and only read.
func TestCompareBySSH(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	w.stop()
	w.write("sshd_config", strings.Replace(w.read("sshd_config"), "forced-commands-only", "prohibit-password", 1))
	key := filepath.Join(w.dir, "sersync_key")
	w.write("authorized_keys", w.line+w.makeKey(key)+"\n")
	w.start()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	// Sersync's ssh has the configuration of its user. So has this one, which is first in rsync's PATH.
	w.write("config", fmt.Sprintf("Host *\n Port %d\n User %s\n IdentityFile %s\n IdentitiesOnly yes\n UserKnownHostsFile %s\n HostKeyAlias %s\n StrictHostKeyChecking yes\n",
		w.pair.Backup.Port, me.Username, key, w.known, w.pair.HostAlias()))
	bin := filepath.Join(w.dir, "bin")
	for name, script := range map[string]string{
		filepath.Join(bin, "ssh"):           "exec /usr/bin/ssh -F " + filepath.Join(w.dir, "config") + ` "$@"`,
		filepath.Join(w.dir, "rsync-there"): "PATH=" + bin + `:$PATH exec rsync "$@"`,
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, name, "#!/bin/sh\n"+script+"\n", 0o755)
	}
	there := filepath.Join(w.dir, "rsync-there")
	write(t, filepath.Join(w.source, "equal"), "1", 0o644)
	if res := w.send("sent"); res.Class.String() != "done" {
		t.Fatal(res.Message)
	}
	write(t, filepath.Join(w.backup, "only there"), "1", 0o644)
	before := contents(t, w.backup)

	module := fmt.Sprintf(`-az -e "%s" --password-file=%s`, strings.Join(w.shell(w.known), " "), w.password)
	auth := fmt.Sprintf(`<auth start="true" users="lockstep-1" passwordfile="%s"/>`, w.password)
	var both sync.WaitGroup
	for _, tc := range []struct{ name, rsync, params, ssh, module, target string }{
		{"directory", there, "-az", `<ssh start="true"/>`, w.backup, "127.0.0.1:" + w.backup},
		{"module", "rsync", module, auth, "data", "127.0.0.1::data"},
	} {
		both.Go(func() {
			status, out, errs := w.compareBySSH(tc.rsync, tc.params, tc.ssh, tc.module)
			for _, text := range []string{w.source + " and " + tc.target, "lockstep would send", "      new                equal", "lockstep would delete", "only there", "Verdict: different"} {
				if !strings.Contains(out, text) {
					t.Errorf("%s: %q is missing in\n%s\n%s", tc.name, text, out, errs)
				}
			}
			if status != exitDiffers || strings.Contains(out, " sent,") {
				t.Errorf("%s: status %d\n%s\n%s", tc.name, status, out, errs)
			}
		})
	}
	both.Wait()
	if after := contents(t, w.backup); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the backup was changed:\n%v\n%v", before, after)
	}

	// A login that fails ends it, with what ssh says and what to try: nobody is asked for a password, nor of an unknown host. The hint of
	// a module that refuses stays its own.
	const try = "hint: as the user that sersync runs as, this must end well: ssh -o BatchMode=yes -o ConnectTimeout=10 127.0.0.1 rsync --version"
	fails := func(rsync, params, ssh, module string, texts ...string) {
		t.Helper()
		status, _, errs := w.compareBySSH(rsync, params, ssh, module)
		for _, text := range texts {
			if status != exitFailure || !strings.Contains(errs, text) || strings.Contains(errs, "apply the pair") {
				t.Errorf("status %d, %q is missing in %s", status, text, errs)
			}
		}
	}
	fails("rsync", module, auth, "nowhere", "no module nowhere", "hosts allow")
	w.write("authorized_keys", w.line)
	fails(there, "-az", `<ssh start="true"/>`, w.backup, "Permission denied (publickey", try)
	if err := os.WriteFile(w.known, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(there, "-az", `<ssh start="true"/>`, w.backup, "Host key verification failed", try)
}
