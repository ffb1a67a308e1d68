// SPDX-License-Identifier: Apache-2.0

//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// tools are the programs of this machine that a lab uses, and the Debian package of each.
var tools = []struct{ program, pkg string }{
	{"apt-config", "apt"},
	{"ip", "iproute2"},
	{"mkfs.ext4", "e2fsprogs"},
	{"mmdebstrap", "mmdebstrap"},
	{"mount", "mount"},
	{"nft", "nftables"},
	{"nsenter", "util-linux"},
	{"rsync", "rsync"},
	{"ssh", "openssh-client"},
	{"ssh-keygen", "openssh-client"},
	{"systemd-nspawn", "systemd-container"},
	{"unshare", "util-linux"},
}

// Missing returns the Debian packages that a lab needs and this machine lacks.
func Missing() []string {
	var missing []string
	for _, t := range tools {
		if _, err := exec.LookPath(t.program); err != nil && !slices.Contains(missing, t.pkg) {
			missing = append(missing, t.pkg)
		}
	}
	return missing
}

// Check says what keeps this machine and user from booting a lab, with what to do about it; nil if nothing.
func Check() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the lab boots two hosts and needs root\nhint: run it with sudo")
	}
	if missing := Missing(); len(missing) > 0 {
		return fmt.Errorf("the lab needs programs that are not installed\nhint: apt-get install %s", strings.Join(missing, " "))
	}
	// CAP_SYS_ADMIN, and no seccomp filter or AppArmor profile in the way, as in an unprivileged container.
	if out, err := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs", "lab", "/mnt").CombinedOutput(); err != nil {
		return fmt.Errorf("the lab may not make namespaces and mounts here (CAP_SYS_ADMIN): %s\n"+
			"hint: in a container, start it with --privileged", strings.TrimSpace(string(out)))
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return fmt.Errorf("the lab needs loop devices: %w\nhint: modprobe loop; in a container, start it with --privileged", err)
	}
	return nil
}
