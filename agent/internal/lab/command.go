// SPDX-License-Identifier: Apache-2.0

//go:build linux

package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// leaderPID is the host's PID 1, as this machine numbers it.
func (h *Host) leaderPID() (int, error) {
	h.mu.Lock()
	m := h.running
	h.mu.Unlock()
	if !m.on() {
		return 0, fmt.Errorf("%s is off", h.Name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leader.PID, nil
}

// Command is a program of the host, run as root by way of its namespaces: it works with the network cut
// and without sshd, and costs a few milliseconds. To come in as an administrator would, use [Host.SSH].
func (h *Host) Command(ctx context.Context, argv ...string) *exec.Cmd {
	leader, err := h.leaderPID()
	if err != nil {
		cmd := exec.CommandContext(ctx, argv[0])
		cmd.Err = err
		return cmd
	}
	return groupCommand(ctx, enterHost(leader, argv)...)
}

func enterHost(leader int, argv []string) []string {
	return append([]string{"nsenter", "--target=" + strconv.Itoa(leader),
		"--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"}, argv...)
}

// Run runs [Host.Command] to its end and returns its standard output.
func (h *Host) Run(ctx context.Context, argv ...string) (string, error) {
	return output(h.Command(ctx, argv...), append([]string{h.Name + ":"}, argv...))
}

// Shell runs a script in the host's sh, as root, with args as $1 and so on, and returns its standard output.
func (h *Host) Shell(ctx context.Context, script string, args ...string) (string, error) {
	return h.Run(ctx, append([]string{"sh", "-euc", script, "sh"}, args...)...)
}

// SSH runs a command line on the host by ssh, as user, and returns its standard output.
func (h *Host) SSH(ctx context.Context, user, command string) (string, error) {
	return h.lab.Exec(ctx, "ssh", "-F", h.lab.SSHConfigFile(), "-l", user, h.Name, "--", command)
}

// Path is where this machine finds a path of the host while it runs. Absolute symbolic links in it lead
// astray: the kernel resolves them from this machine's root.
func (h *Host) Path(path string) string {
	leader, err := h.leaderPID()
	if err != nil {
		return filepath.Join("/proc/0/root", path) // does not exist: whoever uses it is told so
	}
	return filepath.Join("/proc", strconv.Itoa(leader), "root", path)
}

// ReadFile reads a file of the host.
func (h *Host) ReadFile(ctx context.Context, path string) ([]byte, error) {
	out, err := h.Run(ctx, "cat", "--", path)
	return []byte(out), err
}

// WriteFile writes a file of the host, with the mode given and owned by root.
func (h *Host) WriteFile(ctx context.Context, path string, data []byte, mode fs.FileMode) error {
	return h.put(ctx, path, bytes.NewReader(data), mode)
}

// CopyTo copies a file of this machine to the host, with its mode, owned by root.
func (h *Host) CopyTo(ctx context.Context, local, path string) error {
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return h.put(ctx, path, f, info.Mode())
}

func (h *Host) put(ctx context.Context, path string, from io.Reader, mode fs.FileMode) error {
	cmd := h.Command(ctx, "sh", "-euc", `cat >"$1"; chmod "$2" "$1"`, "sh", path, fmt.Sprintf("%04o", mode.Perm()))
	cmd.Stdin = from
	_, err := output(cmd, []string{h.Name + ":", "write", path})
	return err
}
