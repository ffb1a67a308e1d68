// SPDX-License-Identifier: Apache-2.0

package pair

import "strconv"

// Transports: how the source host reaches the module on the backup host.
const (
	Daemon = "daemon" // a connection to the rsync daemon
	SSH    = "ssh"    // an ssh session that runs the daemon for itself
)

// DefaultPort is the port of a transport: rsync's, or that of ssh.
func DefaultPort(transport string) int {
	if transport == SSH {
		return 22
	}
	return 873
}

// LoginUser is who an ssh session belongs to: only root can chroot, and give files to their owners.
const LoginUser = "root"

// HostAlias is the name that the backup host has in a pair's known_hosts file, whatever its address and port.
func (p Pair) HostAlias() string { return "lockstep-" + p.Name }

// RemoteShell is the ssh command for a pair with transport ssh, without host and remote command. Nothing of it depends
// on ssh_config(5), on who runs it, or on a terminal: either the backup host shows one of the keys in knownHosts and
// takes the private key in the file key, or the command fails and says why.
func (p Pair) RemoteShell(key, knownHosts string) []string {
	args := []string{"ssh", "-F", "none", "-T", "-a", "-x", "-p", strconv.Itoa(p.Backup.Port), "-l", LoginUser, "-i", key}
	for _, option := range []string{
		"IdentitiesOnly=yes", "IdentityAgent=none", "BatchMode=yes", "PreferredAuthentications=publickey",
		"UserKnownHostsFile=" + knownHosts, "GlobalKnownHostsFile=none", "StrictHostKeyChecking=yes",
		"HostKeyAlias=" + p.HostAlias(), "CheckHostIP=no", "UpdateHostKeys=no", "LogLevel=ERROR",
		"ConnectTimeout=10",
		// Of a backup host that is cut off, ssh too has to notice: rsync's own timeout ends only rsync.
		"ServerAliveInterval=15", "ServerAliveCountMax=4",
	} {
		args = append(args, "-o", option)
	}
	return args
}
