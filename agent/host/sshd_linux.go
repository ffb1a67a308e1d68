// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// sshdTimeout bounds `sshd -T`, which takes milliseconds.
const sshdTimeout = 10 * time.Second

// findSSHD asks the server what holds for a session (`sshd -T`, with the Match blocks that apply). Where it cannot tell, as
// with a socket unit before the first session, its settings stay unknown and its host keys are looked for where they
// usually are.
func findSSHD(ctx context.Context, q SSHDQuery, from []string) SSHD {
	var d SSHD
	d.Path = program("sshd")
	if d.Path == "" {
		return d
	}
	if u, err := user.Lookup(q.User); err == nil {
		d.Home = u.HomeDir
	}
	d.Shell = loginShell(q.User)
	address := "127.0.0.1"
	if len(from) > 0 {
		address = from[0]
	}
	ctx, cancel := context.WithTimeout(ctx, sshdTimeout)
	defer cancel()
	keys, _ := filepath.Glob("/etc/ssh/ssh_host_*_key")
	if out, err := exec.CommandContext(ctx, d.Path, "-T", "-C", fmt.Sprintf("user=%s,host=%s,addr=%s", q.User, address, address)).Output(); err == nil {
		d.Settings = map[string][]string{}
		for line := range strings.Lines(string(out)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			d.Settings[name] = append(d.Settings[name], value)
		}
		if named := d.Settings["hostkey"]; len(named) > 0 {
			keys = named
		}
	}
	for _, key := range keys {
		if public := publicHalf(key); public != "" {
			d.HostKeys = append(d.HostKeys, public)
		}
	}
	slices.Sort(d.HostKeys)
	d.HostKeys = slices.Compact(d.HostKeys)
	return d
}

// publicHalf is type and key of a host key: from the file beside it, or from itself. HostKey may also name a public file, of
// a key that an agent has.
func publicHalf(key string) string {
	for _, name := range []string{key + ".pub", key} {
		data, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if public, _, _, _, err := ssh.ParseAuthorizedKey(data); err == nil {
			return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
		}
		if private, err := ssh.ParsePrivateKey(data); err == nil {
			return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(private.PublicKey())))
		}
	}
	return ""
}

// loginShell is the last field of a user's line in passwd(5).
func loginShell(name string) string {
	data, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Split(strings.TrimSpace(line), ":"); len(fields) == 7 && fields[0] == name {
			return fields[6]
		}
	}
	return ""
}
