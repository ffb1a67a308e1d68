// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"fmt"
	"slices"
	"time"
)

// Names of units and of what goes with them on a host.
const (
	AgentTemplate = "lockstep@.service"
	RsyncdName    = "lockstep-rsyncd.service"
	User          = "lockstep" // the system user of the agents
)

// TimerSlack is how late the kernel may wake up the agent, to do it together with something else (prctl(2) PR_SET_TIMERSLACK). Go's
// runtime looks after its threads every 20 µs while one of them is busy; being woken for that was a third of the agent's processor time.
// Rsync and hooks inherit it.
const TimerSlack = 500 * time.Microsecond

// AgentName is the unit of one pair's agent.
func AgentName(pair string) string { return "lockstep@" + pair + ".service" }

// Agent is the template unit lockstep@.service; binary is the absolute path of lockstep.
//
// The agent runs as a user of its own that may read every file (CAP_DAC_READ_SEARCH: enough for a sender
// to send owners, modes, ACLs and all attributes but trusted.*) and ask whether a file is open for
// writing (CAP_LEASE), and that may write to its state and runtime directories only.
//
// The mount namespace that the sandbox brings receives mounts and unmounts from the host (systemd makes
// it a slave), so that the agent sees the source being unmounted and keeps it busy only while a job runs.
func Agent(binary string) File {
	return slices.Concat(
		section("Unit",
			"Description", "Lockstep replication of pair %i",
			"Documentation", "man:lockstep(8) man:lockstep.yaml(5)",
			"Wants", "network-online.target",
			"After", "network-online.target local-fs.target remote-fs.target nss-lookup.target",
			"ConditionPathExists", "/etc/lockstep/pairs/%i.yaml",
			// A crash loop ends after 20 starts; with RestartSec that is no sooner than 100 s.
			"StartLimitIntervalSec", "10min",
			"StartLimitBurst", "20",
		),
		section("Service",
			// Not notify-reload: systemd before 253 takes it silently for simple.
			"Type", "notify",
			"NotifyAccess", "main",
			"ExecStart", binary+" run %i",
			"ExecReload", "/bin/kill -HUP $MAINPID",
			"Restart", "always",
			"RestartSec", "5s",
			"RestartPreventExitStatus", "78", // EX_CONFIG: a restart cannot help
			"WatchdogSec", "60s",
			"TimeoutStopSec", "30s",
			"KillMode", "mixed", // SIGTERM goes to the agent alone, which ends its rsync in order
			"User", User,
			"LoadCredential", "password:/etc/lockstep/secrets/%i",
			"StateDirectory", "lockstep/%i",
			"StateDirectoryMode", "0700",
			"RuntimeDirectory", "lockstep/%i",
			"RuntimeDirectoryMode", "0755", // the status socket has a mode of its own
			"UMask", "0077",
			"AmbientCapabilities", "CAP_DAC_READ_SEARCH CAP_LEASE",
			"CapabilityBoundingSet", "CAP_DAC_READ_SEARCH CAP_LEASE",
			"NoNewPrivileges", "yes",
			"ProtectSystem", "strict",
			"ProtectHome", "read-only",
			"PrivateTmp", "yes",
			"PrivateDevices", "yes",
			"PrivateIPC", "yes",
			"PrivateMounts", "yes",
			"ProtectClock", "yes",
			"ProtectControlGroups", "yes",
			"ProtectHostname", "yes",
			"ProtectKernelLogs", "yes",
			"ProtectKernelModules", "yes",
			"ProtectKernelTunables", "yes",
			"ProtectProc", "invisible",
			// Not ProcSubset=pid: the agent reads the limits in /proc/sys/fs/inotify.
			"RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6",
			"RestrictNamespaces", "yes",
			"RestrictRealtime", "yes",
			"RestrictSUIDSGID", "yes",
			"LockPersonality", "yes",
			"MemoryDenyWriteExecute", "yes",
			"RemoveIPC", "yes",
			"SystemCallArchitectures", "native",
			"SystemCallFilter", "@system-service",
			"SystemCallFilter", "~@privileged @resources",
			"SystemCallErrorNumber", "EPERM",
			"LimitNOFILE", "524288",
			"TimerSlackNSec", fmt.Sprintf("%dus", TimerSlack.Microseconds()),
			"Slice", "lockstep.slice",
			"IOWeight", "50",
			"CPUWeight", "50",
			"Nice", "5",
			"IOSchedulingPriority", "7",
			"TasksMax", "512", // Go makes a thread for each blocked file operation and cannot go on without
			"MemoryMax", "1G",
		),
		section("Install", "WantedBy", "multi-user.target"),
	)
}

// AgentDropIn is what one pair's agent needs beyond the template; it is empty when that is nothing.
type AgentDropIn struct {
	// Fanotify lets the agent mark a whole filesystem: CAP_SYS_ADMIN, and three system calls that
	// @privileged took away.
	Fanotify bool
	// Tmp is for a source below /tmp or /var/tmp, which PrivateTmp= hides.
	Tmp bool
	// SSH gives the agent the pair's ssh key, and the keys of the host that it is for.
	SSH bool
	// NoPassword is for a pair without a backup: the template's credential is not there, and systemd would not start the agent.
	NoPassword bool
}

// File is the drop-in's text as a value.
func (d AgentDropIn) File() File {
	var f File
	if d.Fanotify {
		f = append(f, section("Service",
			"AmbientCapabilities", "CAP_SYS_ADMIN",
			"CapabilityBoundingSet", "CAP_SYS_ADMIN",
			"SystemCallFilter", "fanotify_init fanotify_mark open_by_handle_at",
		)...)
	}
	if d.Tmp {
		f = append(f, section("Service", "PrivateTmp", "no")...)
	}
	if d.NoPassword {
		f = append(f, section("Service", "LoadCredential", "")...) // an empty value clears the list, systemd.exec(5)
	}
	if d.SSH {
		f = append(f, section("Service",
			"LoadCredential", "ssh_key:/etc/lockstep/secrets/%i.ssh",
			"LoadCredential", "known_hosts:/etc/lockstep/secrets/%i.known_hosts",
		)...)
	}
	return f
}

// Rsyncd is lockstep-rsyncd.service; rsync is the absolute path of rsync and config that of its rsyncd.conf.
//
// One daemon serves all pairs and reads its modules anew for every connection, so a pair comes and goes
// without a restart. That is why nothing here depends on a pair: no ReadWritePaths= for each module
// (ProtectSystem=strict would need one, and a restart with it), but ProtectSystem=full and a chroot for every
// module. It is a process that stays, not one for each connection, because starting a unit costs tens of
// milliseconds, more than a small batch.
//
// It stays root: only root can give files to their owners, make device nodes and chroot. DevicePolicy=
// lets it make device nodes and not open them.
func Rsyncd(rsync, config string) File {
	return slices.Concat(
		section("Unit",
			"Description", "Lockstep rsync daemon",
			"Documentation", "man:lockstep(8) man:rsyncd.conf(5)",
			"After", "network.target local-fs.target remote-fs.target nss-lookup.target",
			"ConditionPathExists", config,
			"StartLimitIntervalSec", "10min",
			"StartLimitBurst", "20",
		),
		section("Service",
			"Type", "simple",
			"ExecStart", rsync+" --daemon --no-detach --config="+config,
			"Restart", "always",
			"RestartSec", "2s",
			// rsync logs five lines at level info for each connection, so for each batch, and has no switch for it: in
			// a day they would push everything else out of the journal. Errors are warnings to rsync and stay; a
			// refused login is told by the agent on the source host.
			"LogLevelMax", "notice",
			"RuntimeDirectory", "lockstep-rsyncd", // lock files that count connections
			"RuntimeDirectoryMode", "0755",
			"CapabilityBoundingSet", "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_MKNOD CAP_NET_BIND_SERVICE CAP_SETFCAP CAP_SETGID CAP_SETUID CAP_SYS_CHROOT",
			"NoNewPrivileges", "yes",
			"ProtectSystem", "full",
			"DevicePolicy", "closed",
			"DeviceAllow", "char-* m",
			"DeviceAllow", "block-* m",
			"PrivateIPC", "yes",
			"PrivateMounts", "yes",
			"ProtectClock", "yes",
			"ProtectControlGroups", "yes",
			"ProtectHostname", "yes",
			"ProtectKernelLogs", "yes",
			"ProtectKernelModules", "yes",
			"ProtectKernelTunables", "yes",
			"ProtectProc", "invisible",
			"ProcSubset", "pid",
			"RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6",
			"RestrictNamespaces", "yes",
			"RestrictRealtime", "yes",
			// Not RestrictSUIDSGID=: set-user-id files in the source have theirs on the backup too.
			"LockPersonality", "yes",
			"MemoryDenyWriteExecute", "yes",
			"RemoveIPC", "yes",
			"SystemCallArchitectures", "native",
			"SystemCallFilter", "@system-service @chown @setuid chroot mknod mknodat",
			"SystemCallFilter", "~@resources",
			"SystemCallErrorNumber", "EPERM",
			"LimitNOFILE", "65536",
			"Slice", "lockstep.slice",
		),
		section("Install", "WantedBy", "multi-user.target"),
	)
}
