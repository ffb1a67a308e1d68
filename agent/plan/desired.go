// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/rsyncd"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

// Secret is what the source host logs in with.
type Secret = rsyncd.Secret

// SourceInputs is what the desired state of a source host depends on beside the definition.
type SourceInputs struct {
	Binary   string   // the path that the unit runs
	Digest   string   // of the binary: another one means a restart, unless a package sees to it
	Packaged bool     // a package has installed the very same template unit
	Secret   *Secret  // nil: not known before the backup host has answered
	SSHKey   []byte   // with transport ssh: the private key; nil: not made yet
	HostKeys []string // with transport ssh: what the backup host's sshd shows; nil as for Secret
	// Watches is the least fs.inotify.max_user_watches that will do; 0 when no limit matters.
	Watches int
	// HaveWatches and FileWatches are the kernel's value and that of [SysctlFile], 0 without one.
	HaveWatches, FileWatches int
	WatchesWritable          bool
}

// PreparedState is what the source host has before the backup host is asked: the host's key and, with transport ssh, the pair's.
func PreparedState(p pair.Pair, hostKey, sshKey []byte) State {
	key := secretFile("secret")
	key.Data = hostKey
	state := State{Files: map[string]File{HostKeyFile: key}}
	if BySSH(p) {
		login := secretFile("login")
		login.Data = sshKey
		state.Files[EtcDir], state.Files[SecretsDir], state.Files[SSHKeyFile(p.Name)] = dir("secret", 0o755), dir("secret", 0o700), login
	}
	return state
}

// SourceState is the desired state of the source host of a pair.
func SourceState(p pair.Pair, in SourceInputs) State {
	definition := definitionFile(p)
	state := State{
		User: &User{Name: unit.User, Exists: true},
		Files: map[string]File{
			EtcDir:                 dir("definition", 0o755),
			PairsDir:               dir("definition", 0o755),
			DefinitionFile(p.Name): definition,
		},
		Units:   map[string]Unit{},
		Sysctls: map[string]string{},
	}
	var secret File
	if !p.HooksOnly() { // else there is no backup to log in to
		secret = secretFile("secret")
		if secret.Pending = in.Secret == nil; !secret.Pending {
			secret.Data = SecretData(*in.Secret)
		}
		state.Files[SecretsDir], state.Files[SecretFile(p.Name)] = dir("secret", 0o700), secret
	}
	template := unit.Agent(in.Binary).Render()
	if !in.Packaged {
		state.Files[SystemdDir+"/"+unit.AgentTemplate] = text("unit", RankUnit, "", template)
	}
	var login []byte
	if BySSH(p) {
		key := secretFile("login")
		key.Data, key.Pending = in.SSHKey, in.SSHKey == nil
		known := text("login", RankSecret, p.Name, nil)
		known.Pending = in.HostKeys == nil
		for _, k := range in.HostKeys {
			known.Data = append(known.Data, p.HostAlias()+" "+k+"\n"...)
		}
		state.Files[SSHKeyFile(p.Name)], state.Files[KnownHostsFile(p.Name)] = key, known
		login = slices.Concat(key.Data, known.Data)
	}
	dropIn := agentDropIn(p).File().Render()
	if len(dropIn) > 0 {
		state.Files[DropInDir(p.Name)] = dir("unit", 0o755)
		state.Files[DropInFile(p.Name)] = text("unit", RankDropIn, p.Name, dropIn)
	}
	if in.Watches > 0 {
		limits(&state, in)
	}
	digest := []byte(in.Digest)
	if in.Packaged {
		// The package restarts the agents when it brings another binary or unit, and no record tells of that.
		digest, template = nil, nil
	}
	state.Units[unit.AgentName(p.Name)] = Unit{
		Object: "service", Enabled: true, Active: true,
		Runs: Runs{
			Start: hash(digest, template, dropIn, slices.Concat(secret.Data, login), fmt.Appendf(nil, "%#v", restartFields(p))),
			Load:  hash(definition.Data),
		},
	}
	return state
}

func agentDropIn(p pair.Pair) unit.AgentDropIn {
	return unit.AgentDropIn{
		// As it is written, not as apply finds it: while the source is not mounted fanotify cannot watch it, and that is no reason
		// to write another unit.
		Fanotify:   p.Watch.Backend != "inotify",
		Tmp:        within(p.Source.Path, "/tmp") || within(p.Source.Path, "/var/tmp"),
		SSH:        BySSH(p),
		NoPassword: p.HooksOnly(),
	}
}

// needsRestart has what the agent does not take over on SIGHUP; it refuses a reload in which one of these changed.
type needsRestart struct {
	SourcePath, BackupPath, Module, Address, Backend, Metrics string
	Port                                                      int
}

func restartFields(p pair.Pair) needsRestart {
	return needsRestart{p.Source.Path, p.Backup.Path, p.Backup.Module, p.Backup.Address, p.Watch.Backend, p.Metrics.Listen, p.Backup.Port}
}

// limits raises the number of inotify watches, in the kernel and for the next boot. A value that is enough
// is left alone, and so is a file that says enough already.
func limits(state *State, in SourceInputs) {
	want := in.FileWatches
	if want < in.Watches {
		if in.HaveWatches >= in.Watches && in.FileWatches == 0 {
			return
		}
		want = max(roundUp(in.Watches), in.HaveWatches)
	}
	f := text("limits", RankLimits, "", fmt.Appendf(nil, "%s = %d\n", MaxUserWatches, want))
	state.Files[SysctlFile] = f
	state.Files[path.Dir(SysctlFile)] = File{Object: "limits", Rank: RankDir, Dir: true, Keep: true, Mode: 0o755, Owner: "root", Group: "root"}
	if in.HaveWatches < in.Watches && in.WatchesWritable {
		state.Sysctls[MaxUserWatches] = strconv.Itoa(want)
	}
}

// roundUp leaves room for a tree to grow to twice its size at least: a power of two of 65536 or more.
func roundUp(n int) int {
	size := 1 << 16
	for size < 2*n {
		size *= 2
	}
	return size
}

// BackupInputs is what the desired state of a backup host depends on beside the definition.
type BackupInputs struct {
	Rsync   string   // path of the binary
	Allow   []string // addresses of the source host
	Secrets []Secret // oldest generation first; the newest counts
	// Pending is set when a plan would make a new generation.
	Pending bool
	// Mount is set when backup.path is, or was at some apply, a mount point.
	Mount bool
	// With transport ssh: the file that the source host's key goes into, and that key ("" = not known yet).
	AuthorizedKeys, SSHKey string
}

// BackupState is the desired state of the backup host of a pair.
func BackupState(p pair.Pair, in BackupInputs) (State, error) {
	secrets, err := rsyncd.RenderSecrets(in.Secrets)
	if err != nil {
		return State{}, err
	}
	passwords := secretFile("secrets")
	passwords.Data, passwords.Pending = append([]byte(Header(p.Name)), secrets...), in.Pending
	state := State{
		Files: map[string]File{
			EtcDir:                 dir("definition", 0o755),
			PairsDir:               dir("definition", 0o755),
			SecretsDir:             dir("secrets", 0o700),
			DefinitionFile(p.Name): definitionFile(p),
			SecretsFile(p.Name):    passwords,
			// A new directory is for its owner alone until the first transfer gives it the source's mode.
			p.Backup.Path: {Object: "directory", Rank: RankData, Dir: true, Keep: true, Mode: 0o700, Owner: p.Backup.UID, Group: p.Backup.GID},
		},
		Lines: map[string]Line{},
		Units: map[string]Unit{},
	}
	for _, parent := range ancestors(p.Backup.Path) {
		state.Files[parent] = File{Object: "directory", Rank: RankData, Dir: true, Keep: true, Mode: 0o755, Owner: "root", Group: "root"}
	}
	if BySSH(p) {
		return state, state.addLogin(p, in)
	}
	return state, state.addDaemon(p, in)
}

// addDaemon adds the module, and the daemon that serves the modules of all pairs.
func (s *State) addDaemon(p pair.Pair, in BackupInputs) error {
	module, err := rsyncd.Render(&rsyncd.File{Modules: []rsyncd.Module{Module(p, in)}})
	if err != nil {
		return err
	}
	conf, err := rsyncd.Render(daemonConf(p.Backup.Port))
	if err != nil {
		return err
	}
	daemon := unit.Rsyncd(in.Rsync, RsyncdConf).Render()
	s.Files[RsyncdDir] = dir("module", 0o755)
	s.Files[ModuleFile(p.Name)] = text("module", RankModule, p.Name, module)
	s.Files[RsyncdConf] = text("daemon", RankConfig, "", conf)
	s.Files[SystemdDir+"/"+unit.RsyncdName] = text("daemon", RankUnit, "", daemon)
	s.Units[unit.RsyncdName] = Unit{
		Object: "daemon", Enabled: true, Active: true,
		Runs: Runs{Start: hash(conf, daemon)},
	}
	return nil
}

// addLogin adds the module, and the line that lets the source host's key run it.
func (s *State) addLogin(p pair.Pair, in BackupInputs) error {
	conf, err := rsyncd.Render(sshModule(p, in))
	if err != nil {
		return err
	}
	s.Files[SSHDir] = dir("module", 0o755)
	s.Files[SSHConfFile(p.Name)] = text("module", RankModule, p.Name, conf)
	if in.AuthorizedKeys != "" {
		s.Lines[in.AuthorizedKeys] = loginLine(p, in.Rsync, in.SSHKey)
	}
	return nil
}

// daemonConf is /etc/lockstep/rsyncd.conf. Without a log file the daemon logs to syslog, and so to the journal.
func daemonConf(port int) *rsyncd.File {
	return &rsyncd.File{
		Global: []rsyncd.Param{
			{Name: "port", Value: strconv.Itoa(port)},
			// Without it each small transfer waits twice for a delayed acknowledgement of 40 ms.
			{Name: "socket options", Value: "TCP_NODELAY"},
			{Name: "reverse lookup", Value: "no"},
			{Name: "forward lookup", Value: "no"},
		},
		Includes: []rsyncd.Include{{Path: RsyncdDir}},
	}
}

// Module is the part of rsyncd.conf for one pair.
func Module(p pair.Pair, in BackupInputs) rsyncd.Module {
	var users []string
	for _, s := range in.Secrets {
		users = append(users, s.User)
	}
	m := rsyncd.Module{Name: p.Backup.Module, Params: []rsyncd.Param{
		{Name: "path", Value: p.Backup.Path},
		{Name: "read only", Value: "no"},
		{Name: "write only", Value: "yes"},
		{Name: "list", Value: "no"},
		{Name: "uid", Value: p.Backup.UID},
		{Name: "gid", Value: p.Backup.GID},
		// Explicit: when unset, the daemon goes on without a chroot if it cannot make one (since 3.2.7).
		{Name: "use chroot", Value: "yes"},
		{Name: "numeric ids", Value: "yes"},
		// Inside a chroot a link leads nowhere else, and it has to arrive as it is.
		{Name: "munge symlinks", Value: "no"},
		{Name: "auth users", Value: strings.Join(users, ", ")},
		{Name: "secrets file", Value: SecretsFile(p.Name)},
		{Name: "strict modes", Value: "yes"},
		{Name: "hosts allow", Value: strings.Join(in.Allow, " ")},
		{Name: "hosts deny", Value: "*"},
		// The child of a killed client holds its place for a while, so each run may need two; one may stand by, and
		// comparisons and tries come beside.
		{Name: "max connections", Value: strconv.Itoa(2*p.Transfer.Parallel + 4)},
		{Name: "lock file", Value: RsyncdRunDir + "/" + p.Name + ".lock"},
		// The client's --timeout, if shorter, counts; this ends connections that a client has forgotten.
		{Name: "timeout", Value: "600"},
		{Name: "refuse options", Value: refuseOptions},
	}}
	if in.Mount {
		m.Params = append(m.Params, rsyncd.Param{Name: "pre-xfer exec", Value: onlyMounted})
	}
	return m
}

// onlyMounted ends a connection before anything is written below a mount point that nothing is mounted on. The daemon runs
// it with /bin/sh, outside of the chroot, with the path in the environment, so that there is nothing to quote; what it
// prints when it fails is told to the client (rsyncd.conf(5)), where agent/transfer knows it.
const onlyMounted = `LC_ALL=C mountpoint "$RSYNC_MODULE_PATH" 2>&1`

// AcceptedOptions are the rsync options that a module takes: those of the agent's runs (transfer.RequiredOptions)
// and those that `transfer.options` may add (pair.AllowedOptions). Tests hold it against both and against a daemon.
func AcceptedOptions() []string { return slices.Clone(acceptedOptions) }

// The daemon takes an option that its own list of long names has, by that name: --no-whole-file is not one that it
// ever sees, --chown comes as usermap and groupmap.
var acceptedOptions = []string{
	"archive", "recursive", "dirs", "relative", "links", "perms", "times", "group", "owner", "devices", "specials",
	"numeric-ids", "modify-window", "timeout", "stats", "partial-dir",
	"delete", "delete-*", "force", "existing", "ignore-existing", "prune-empty-dirs",
	"checksum", "compress*", "new-compress", "old-compress", "bwlimit",

	"acls", "xattrs", "hard-links", "sparse", "inplace", "preallocate", "fsync", "fuzzy", "whole-file",
	"omit-dir-times", "omit-link-times", "checksum-choice", "skip-compress", "chmod", "usermap", "groupmap",
	"max-alloc", "block-size", "partial", "no-specials", "no-devices",
}

// refuseOptions refuses everything else. rsyncd.conf(5): a list that begins with * is one of what is accepted.
var refuseOptions = func() string {
	words := []string{"*"}
	for _, o := range acceptedOptions {
		words = append(words, "!"+o)
	}
	return strings.Join(words, " ")
}()

// SecretData is the text of the source host's secret file. rsync takes the first line as the password
// (--password-file) and stops there; the agent takes the user name from the second, so that both change at once;
// the third is the key of the fingerprint.
func SecretData(s Secret) []byte {
	return []byte(s.Password + "\n" + s.User + "\n" + s.Key + "\n")
}

// ParseSecretData reads what [SecretData] wrote.
func ParseSecretData(data []byte) (Secret, bool) {
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if len(lines) < 2 || lines[0] == "" || lines[1] == "" {
		return Secret{}, false
	}
	s := Secret{Password: lines[0], User: lines[1]}
	if len(lines) > 2 {
		s.Key = lines[2]
	}
	return s, true
}

func definitionFile(p pair.Pair) File {
	return text("definition", RankDefinition, p.Name, p.Render())
}

func text(object string, rank Rank, pairName string, data []byte) File {
	return File{Object: object, Rank: rank, Mode: 0o644, Owner: "root", Group: "root", Data: append([]byte(Header(pairName)), data...)}
}

func secretFile(object string) File {
	return File{Object: object, Rank: RankSecret, Mode: 0o600, Owner: "root", Group: "root", Secret: true}
}

func dir(object string, mode fs.FileMode) File {
	return File{Object: object, Rank: RankDir, Dir: true, Mode: mode, Owner: "root", Group: "root"}
}

// ancestors lists the directories above p, outermost first, without the root.
func ancestors(p string) []string {
	var dirs []string
	for d := path.Dir(p); d != "/" && d != "."; d = path.Dir(d) {
		dirs = append(dirs, d)
	}
	slices.Reverse(dirs)
	return dirs
}

// within is whether p is dir or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// hash joins parts, each with its length, so that no two lists of parts are alike.
func hash(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Generation reads the number at the end of a user name: 7 of lockstep-7, and 0 of any other.
func Generation(user string) int {
	i := strings.LastIndexByte(user, '-')
	n, err := strconv.Atoi(user[i+1:])
	if i < 0 || err != nil || n < 0 {
		return 0
	}
	return n
}

// IsGeneration is whether a user name is one that [NextUser] makes of auth: rep-nfs-1 is none of rep.
func IsGeneration(user, auth string) bool {
	return user == auth+"-"+strconv.Itoa(Generation(user))
}

// NextUser is the user name of the generation after the newest of secrets.
func NextUser(auth string, secrets []Secret) string {
	newest := 0
	for _, s := range secrets {
		newest = max(newest, Generation(s.User))
	}
	return cmp.Or(auth, unit.User) + "-" + strconv.Itoa(newest+1)
}
