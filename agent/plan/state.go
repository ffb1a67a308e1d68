// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"io/fs"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/unit"
)

// State is what lockstep makes on a host, as it should be or as it is.
type State struct {
	User    *User           // nil: no matter
	Files   map[string]File // by path; directories too
	Lines   map[string]Line // by the path of the file that each stands in
	Units   map[string]Unit // by name
	Sysctls map[string]string
}

// User is the system user of the agents.
type User struct {
	Name   string
	Exists bool
}

// File is a file or a directory.
type File struct {
	Object string // see Reply.Checks
	Rank   Rank
	Dir    bool
	Mode   fs.FileMode
	Owner  string
	Group  string
	Data   []byte
	Secret bool // the content is shown to nobody
	// Keep is for a directory of the user's data: it is made when absent, and its owner and mode are the data's.
	Keep bool
	// Tree is for a directory of state, which is removed with what is in it.
	Tree bool
	// Pending is for content that is made or arrives only when the plan is applied.
	Pending bool

	// These say how a file was found.

	Edited  bool // not as lockstep last wrote it
	Foreign bool // there, and not written by lockstep
}

// Rank orders the writing of files; they are removed in the opposite order.
type Rank int

// A file comes after what it needs to mean something: the secrets file before the module that names its users.
const (
	RankDir Rank = iota
	RankDefinition
	RankData
	RankSecret
	RankModule
	RankConfig
	RankUnit
	RankDropIn
	RankLimits
)

// Unit is a systemd unit.
type Unit struct {
	Object  string
	Enabled bool
	Active  bool
	Runs    Runs // what the running process was started with

	Masked bool   // found so
	Ready  bool   // found so: active, and has said so
	Stale  bool   // systemd has not read the unit file since it changed
	State  string // found so, in systemd's words
	Status string // found so, in its own words
}

// Runs tells apart what a unit was started with: another Start needs a restart, another Load a reload.
type Runs struct {
	Start string `json:"start"`
	Load  string `json:"load"`
}

// Paths on a host; see lockstep(8) FILES.
const (
	EtcDir         = "/etc/lockstep"
	PairsDir       = "/etc/lockstep/pairs"
	SecretsDir     = "/etc/lockstep/secrets"
	RsyncdConf     = "/etc/lockstep/rsyncd.conf"
	RsyncdDir      = "/etc/lockstep/rsyncd.d"
	SSHDir         = "/etc/lockstep/ssh" // on the backup host, of pairs with transport ssh
	StateDir       = "/var/lib/lockstep"
	RsyncdRunDir   = "/run/lockstep-rsyncd"
	SystemdDir     = "/etc/systemd/system"
	SysctlFile     = "/etc/sysctl.d/60-lockstep.conf"
	MaxUserWatches = "fs.inotify.max_user_watches"

	// No name of a pair has a dot, so these never meet a pair's own; nor does what the provider (uploaded.sha256)
	// and the packages (stopped-by-removal.units) put beside them.

	HostKeyFile = "/var/lib/lockstep/host.key"
	RecordFile  = "/var/lib/lockstep/owned.json"
)

// DefinitionFile is where the definition of a pair is kept, on either host.
func DefinitionFile(pair string) string { return PairsDir + "/" + pair + ".yaml" }

// SecretFile is the rsync password file of a pair on the source host.
func SecretFile(pair string) string { return SecretsDir + "/" + pair }

// SecretsFile is the rsyncd secrets file of a pair on the backup host.
func SecretsFile(pair string) string { return SecretsDir + "/" + pair + ".secrets" }

// ModuleFile is the rsyncd.conf part of a pair on the backup host.
func ModuleFile(pair string) string { return RsyncdDir + "/" + pair + ".conf" }

// SSHConfFile is the rsyncd.conf of a pair with transport ssh on the backup host.
func SSHConfFile(pair string) string { return SSHDir + "/" + pair + ".conf" }

// SSHKeyFile is the pair's private key on the source host, KnownHostsFile what the backup host's sshd must show.
func SSHKeyFile(pair string) string     { return SecretsDir + "/" + pair + ".ssh" }
func KnownHostsFile(pair string) string { return SecretsDir + "/" + pair + ".known_hosts" }

// DropInDir and DropInFile are where a pair's additions to the template unit are.
func DropInDir(pair string) string  { return SystemdDir + "/" + unit.AgentName(pair) + ".d" }
func DropInFile(pair string) string { return DropInDir(pair) + "/50-lockstep.conf" }

const headerStart = "# Managed by lockstep"

// Header is the first line of every file of ours that may have a comment. With pair "" the file serves all pairs.
func Header(pair string) string {
	if pair != "" {
		pair = " (pair " + pair + ")"
	}
	return headerStart + pair + "; `lockstep plan` finds changes by hand and `lockstep apply` puts them back.\n"
}

// HasHeader is whether a file says that it is lockstep's.
func HasHeader(data []byte) bool { return strings.HasPrefix(string(data), headerStart) }
