// SPDX-License-Identifier: Apache-2.0

//go:build unix

package ssh

import (
	"os/exec"
	"syscall"
)

// ownGroup lets the shell and what it started be ended together, and keeps Terraform's Ctrl-C from it.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func killGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
