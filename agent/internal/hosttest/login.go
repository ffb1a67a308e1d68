// SPDX-License-Identifier: Apache-2.0

package hosttest

import (
	"context"
	"errors"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/lockstep-sync/lockstep/agent/host"
)

// Login looks at the module files of Peer.
func (s *system) Login(_ context.Context, l host.Login) error {
	h := (*Host)(s)
	if h.Peer != nil {
		h = h.Peer
	}
	if l.Shell != nil {
		conf, err := h.let(l, (*Host)(s))
		if err != nil {
			return err
		}
		return h.enter(conf, l)
	}
	if h.port() != l.Port {
		return errors.New("connection refused")
	}
	for p, f := range h.Files {
		if path.Dir(p) == "/etc/lockstep/rsyncd.d" && strings.Contains(string(f.Data), "["+l.Module+"]\n") {
			return h.enter(p, l)
		}
	}
	return &host.LoginError{Reply: "Unknown module '" + l.Module + "'"}
}

// enter tries user and password on the module in a file of ours.
func (h *Host) enter(conf string, l host.Login) error {
	if !strings.Contains(string(h.Files[conf].Data), "["+l.Module+"]\n") {
		return &host.LoginError{Reply: "Unknown module '" + l.Module + "'"}
	}
	secrets := h.Files["/etc/lockstep/secrets/"+strings.TrimSuffix(path.Base(conf), ".conf")+".secrets"]
	if strings.Contains(string(secrets.Data), "\n"+l.User+":"+l.Password+"\n") {
		return nil
	}
	return &host.LoginError{Reply: "auth failed on module " + l.Module}
}

var forcedCommand = regexp.MustCompile(`^restrict,command="\S+ --server --daemon --config=(\S+) \."`)

// let does what ssh on a host and sshd on this one do: they look at each other's keys. It returns the rsyncd.conf that the
// key leads to.
func (h *Host) let(l host.Login, from *Host) (conf string, err error) {
	argv := l.Shell("known")
	known := map[string]bool{}
	for line := range strings.Lines(string(l.KnownHosts)) {
		_, key, _ := strings.Cut(strings.TrimSpace(line), " ")
		known[key] = true
	}
	for _, key := range h.Facts.SSHD.HostKeys {
		if !known[key] {
			return "", &host.ShellError{Said: "Host key verification failed."}
		}
	}
	private, err := ssh.ParsePrivateKey(from.Files[argv[1+slices.Index(argv, "-i")]].Data)
	if err != nil {
		return "", &host.ShellError{Said: "Load key: " + err.Error()}
	}
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(private.PublicKey())))
	for line := range strings.Lines(string(h.Files["/root/.ssh/authorized_keys"].Data)) {
		if m := forcedCommand.FindStringSubmatch(line); m != nil && strings.Contains(line, key) {
			return m[1], nil
		}
	}
	return "", &host.ShellError{Said: "root@backup: Permission denied (publickey)."}
}
