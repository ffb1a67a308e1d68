// SPDX-License-Identifier: Apache-2.0

// Package apply makes a host what a pair definition says it should be.
//
// [Run] reads the current state of a host, compares it with the desired state of one role of one pair, and
// for plan.Apply makes the difference go away: all of it, or, when a step fails, none of it. A second run finds
// nothing to do. It touches nothing that lockstep did not write, and never the data on either side. An apply
// that was killed leaves nothing that the next one does not mend.
//
// What should be is plan's business, and how a machine is touched is host's.
package apply

import (
	"context"
	"crypto/hpke"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

// Command is what to do on this host.
type Command struct {
	Verb    plan.Verb
	Role    plan.Role
	Version string // of lockstep, for Reply.Versions
	// LockTimeout is how long to wait for another apply or destroy on this host; 0 means two minutes.
	LockTimeout time.Duration
	// Identity, if set, tells one directory from another at the same path, as the agent does.
	Identity func(path string) (string, error)
	// Fanotify, if set, is whether the agent can watch a directory with fanotify; nil means that it cannot.
	Fanotify func(path string) bool
}

const lockTimeout = 2 * time.Minute

// session is one run of one command.
type session struct {
	m     *host.Machine
	cmd   Command
	role  plan.Role
	req   plan.Request
	rec   *record
	found host.Facts
	facts plan.Facts
	reply plan.Reply
}

// Run does what the command says and tells everything, failures too, in the reply.
func Run(ctx context.Context, m *host.Machine, cmd Command, req plan.Request) plan.Reply {
	s := &session{m: m, cmd: cmd, role: cmd.Role, req: req,
		reply: plan.Reply{Protocol: plan.Protocol, Changes: []plan.Change{}, Checks: map[string]string{}}}
	if err := s.run(ctx); err != nil {
		s.fail(err)
	}
	return s.reply
}

// fail adds an error to the reply.
func (s *session) fail(err error) {
	var stop *stopError
	if errors.As(err, &stop) {
		s.reply.Problems = append(s.reply.Problems, stop.problems...)
		return
	}
	s.reply.Problems = append(s.reply.Problems, plan.Problem{Msg: fmt.Sprintf("%s pair %q: %v", s.cmd.Verb, s.req.Pair.Name, err)})
}

// stopError ends a run with problems that have a message of their own.
type stopError struct{ problems []plan.Problem }

func (e *stopError) Error() string {
	var lines []string
	for _, p := range e.problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

func stop(path, msg, hint string) error {
	return &stopError{[]plan.Problem{{Path: path, Msg: msg, Hint: hint}}}
}

func (s *session) run(ctx context.Context) error {
	if s.role != plan.Source && s.role != plan.Backup {
		return stop("", fmt.Sprintf("%q is not a role", s.role), "write --role source or --role backup")
	}
	s.rec = &record{} // until root is certain, there is none that could be read
	if err := s.inspect(ctx, host.Query{}); err != nil {
		return err
	}
	s.reply.Versions = map[string]string{"lockstep": s.cmd.Version}
	maps.Copy(s.reply.Versions, s.found.Versions)
	if problems := plan.HostProblems(s.facts, string(s.cmd.Verb)); len(problems) > 0 {
		return &stopError{problems}
	}
	if s.cmd.Verb == plan.Apply || s.cmd.Verb == plan.Destroy {
		wait := s.cmd.LockTimeout
		if wait == 0 {
			wait = lockTimeout
		}
		lockCtx, cancel := context.WithTimeout(ctx, wait)
		unlock, err := s.m.System.Lock(lockCtx, fmt.Sprintf("lockstep %s of pair %q", s.cmd.Verb, s.req.Pair.Name))
		cancel()
		if err != nil {
			return stop("", err.Error(), "wait for it to end, then try again")
		}
		// The last one to leave takes the lock's file along.
		defer func() { unlock(s.rec.Key != nil && len(s.rec.Pairs) == 0) }()
	}
	if rec, err := loadRecord(s.m.Files); err == nil {
		s.rec = rec
	} else {
		return stop("definition", err.Error(), "move "+plan.RecordFile+" away and apply every pair of this host again")
	}
	defer func() { s.reply.Remaining = len(s.rec.Pairs) }()

	if s.cmd.Verb == plan.Destroy || s.cmd.Verb == plan.Plan && s.req.Absent {
		return s.destroy(ctx)
	}
	if s.role == plan.Source {
		if key, err := s.hostKey(); err == nil && key != nil {
			private, _, err := s.sshKey()
			if err != nil {
				return err
			}
			s.reply.PublicKey = answer(publicKey(key), publicSSHKey(private))
		}
		if s.req.Prepare && s.cmd.Verb == plan.Apply {
			return s.prepare(ctx)
		}
	}
	_, s.reply.Exists = s.rec.Pairs[s.req.Pair.Name][s.role]
	if stored, ok := s.stored(s.req.Pair.Name); ok && s.reply.Exists {
		s.reply.Pair = &stored
		if s.req.Pair.Source.Path == "" { // given by name only
			s.req.Pair = stored
		}
	}
	if s.req.Pair.Source.Path == "" {
		return nil // nothing is there and nothing to compare with
	}
	if s.req.Pair.HooksOnly() && s.role == plan.Backup {
		return stop("transport", "a pair with transport none has no backup host", "apply it on its source host alone: lockstep apply --role source --definition FILE")
	}
	if s.role == plan.Source {
		return s.source(ctx)
	}
	return s.backup(ctx)
}

// stored reads the definition that is kept on this host.
func (s *session) stored(name string) (plan.Definition, bool) {
	f, err := s.m.Files.Read(plan.DefinitionFile(name))
	if err != nil || f.Dir {
		return plan.Definition{}, false
	}
	p, err := plan.ParseDefinition(f.Data)
	return p, err == nil
}

// hostKey reads the source host's key; nil when there is none.
func (s *session) hostKey() (hpke.PrivateKey, error) {
	f, err := s.m.Files.Read(plan.HostKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no key yet is not an error
	}
	if err != nil {
		return nil, err
	}
	key, err := parseHostKey(f.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", plan.HostKeyFile, err)
	}
	return key, nil
}

// prepare makes sure that there is a host key and, with transport ssh, the pair's ssh key.
func (s *session) prepare(ctx context.Context) error {
	p := s.req.Pair
	key, err := s.hostKey()
	if err != nil || key == nil {
		// An unreadable key is of no use to anybody; what was sealed to it is sealed anew.
		if key, err = kem.GenerateKey(); err != nil {
			return err
		}
	}
	data, err := hostKeyText(key)
	if err != nil {
		return err
	}
	secret := func(object string, data []byte) plan.File {
		return plan.File{Object: object, Rank: plan.RankSecret, Mode: 0o600, Owner: "root", Group: "root", Data: data, Secret: true}
	}
	desired := plan.State{Files: map[string]plan.File{plan.HostKeyFile: secret("secret", data)}}
	var private []byte
	if plan.BySSH(p) {
		if private, _, err = s.sshKey(); err != nil {
			return err
		}
		if private == nil {
			if private, err = newSSHKey(p.Name); err != nil {
				return err
			}
		}
		desired.Files[plan.SSHKeyFile(p.Name)] = secret("login", private)
		for dir, mode := range map[string]fs.FileMode{plan.EtcDir: 0o755, plan.SecretsDir: 0o700} {
			desired.Files[dir] = plan.File{Object: "secret", Rank: plan.RankDir, Dir: true, Mode: mode, Owner: "root", Group: "root"}
		}
	}
	before, err := s.current(ctx, desired, plan.State{})
	if err != nil {
		return err
	}
	if problems := foreign(before, desired); len(problems) > 0 {
		return &stopError{problems}
	}
	if err := s.execute(ctx, plan.Diff(before, desired), before); err != nil {
		return err
	}
	s.reply.PublicKey = answer(publicKey(key), publicSSHKey(private))
	return nil
}

func (s *session) source(ctx context.Context) error {
	p := s.req.Pair
	q := host.Query{
		Self: true, Rsync: !p.HooksOnly(), Users: []string{unit.User}, Dirs: []string{p.Source.Path},
		Sysctls: []string{plan.MaxUserWatches}, SSH: plan.BySSH(p),
	}
	fanotify := p.Watch.Backend != "inotify" && s.cmd.Fanotify != nil && s.cmd.Fanotify(p.Source.Path)
	if !fanotify {
		q.CountIn = p.Source.Path
	}
	if err := s.inspect(ctx, q); err != nil {
		return err
	}
	s.facts.Tenants = s.tenants()
	problems := append(plan.SourceProblems(p, s.facts), s.otherSource()...)
	if p.Watch.Backend == "fanotify" && !fanotify && s.facts.Dirs[p.Source.Path].IsDir {
		problems = append(problems, plan.Problem{Path: "watch.backend", Msg: "fanotify cannot watch the filesystem of " + p.Source.Path + " on this host",
			Hint: "write auto, which falls back to inotify"})
	}

	secret, told, edited, err := s.sourceSecret()
	if err != nil {
		return err
	}
	if p.HooksOnly() {
		secret, edited = nil, false
	}
	inputs := plan.SourceInputs{Binary: s.found.Executable, Digest: s.found.Digest, Secret: secret, FileWatches: s.fileWatches()}
	if plan.BySSH(p) {
		inputs.HostKeys = s.hostKeys(told)
		if inputs.SSHKey, _, err = s.sshKey(); err != nil {
			return err
		}
	}
	watches := 0
	if !fanotify {
		watches = s.found.Count
	}
	inputs.Watches, inputs.HaveWatches = s.needWatches(watches), atoi(s.found.Sysctls[plan.MaxUserWatches])
	inputs.WatchesWritable = s.found.SysctlsWritable
	if inputs.Packaged, err = s.packaged(unit.Agent(s.found.Executable).Render()); err != nil {
		return err
	}
	desired := plan.SourceState(p, inputs)
	extra := s.sourceFiles(p.Name)
	if len(s.rec.others(p.Name, plan.Source)) > 0 {
		delete(extra, plan.SysctlFile) // another pair may need it
	}
	if p.HooksOnly() {
		extra[plan.SecretFile(p.Name)] = plan.File{Object: "secret", Rank: plan.RankSecret, Secret: true} // of a time with a backup
	}
	current, err := s.current(ctx, desired, plan.State{Files: extra})
	if err != nil {
		return err
	}
	problems = append(problems, foreign(current, desired)...)
	steps := plan.Diff(current, desired)
	if secret != nil {
		s.reply.Fingerprint = acquainted(p, *secret, publicSSHKey(inputs.SSHKey), inputs.HostKeys)
	}
	if edited {
		s.reply.Fingerprint = ""
	}
	s.tell(steps, problems)
	s.checkSource(current, inputs)
	if s.cmd.Verb != plan.Apply {
		return nil
	}
	if len(problems) > 0 {
		return nil
	}
	if secret == nil && !p.HooksOnly() {
		s.reply.Changed, s.reply.Changes = false, []plan.Change{}
		return stop("secret", "there is no password yet", "apply the backup role first, and relay its sealed_password")
	}
	if plan.BySSH(p) && (inputs.SSHKey == nil || inputs.HostKeys == nil) {
		s.reply.Changed, s.reply.Changes = false, []plan.Change{}
		return stop("login", "the two hosts do not know each other's ssh keys yet",
			"apply with prepare here, give its public_key to the backup role, and relay what that answers as sealed_password")
	}
	if !p.HooksOnly() {
		if err := s.tryLogin(ctx, *secret, desired.Files[plan.KnownHostsFile(p.Name)].Data, steps); err != nil {
			s.reply.Changed, s.reply.Changes = false, []plan.Change{}
			return err
		}
	}
	s.rec.setPair(p.Name, plan.Source, pairRecord{Watches: watches})
	if err := s.execute(ctx, steps, current); err != nil {
		return err
	}
	return s.afterwards(ctx, desired, plan.State{Files: extra}, func(now plan.State) { s.checkSource(now, inputs) })
}

// otherSource finds that another directory is at the source path than the agent was started for. The agent deletes
// nothing then, and only a person can say whether that directory is meant.
func (s *session) otherSource() []plan.Problem {
	p := s.req.Pair
	f, err := s.m.Files.Read(plan.StateDir + "/" + p.Name + "/source.json")
	if err != nil || s.cmd.Identity == nil {
		return nil
	}
	var known struct{ Path, Identity string }
	if json.Unmarshal(f.Data, &known) != nil || known.Path != p.Source.Path {
		return nil
	}
	now, err := s.cmd.Identity(p.Source.Path)
	if err != nil || now == known.Identity {
		return nil // that it is missing is told elsewhere
	}
	return []plan.Problem{{Path: "source_dir", Msg: p.Source.Path + " is not the directory that the pair was made for: it was unmounted or replaced, and nothing is sent",
		Hint: "mount it; or, if this directory is meant, lockstep approve " + p.Name}}
}

// tell fills the reply of a plan. For read, a problem is something that differs.
func (s *session) tell(steps []plan.Step, problems []plan.Problem) {
	s.reply.Checks = plan.Checks(s.role, s.req.Pair, steps)
	for _, p := range problems {
		s.differs(objectOf(s.role, s.req.Pair.Transport, p.Path), p.Msg)
	}
	if s.cmd.Verb == plan.Read {
		return
	}
	s.reply.Problems = append(s.reply.Problems, problems...)
	if s.cmd.Verb == plan.Plan {
		s.reply.Changes = plan.Changes(steps)
		s.reply.Changed = len(s.reply.Changes) > 0
	}
}

// differs adds words to a check.
func (s *session) differs(object, words string) {
	if have, ok := s.reply.Checks[object]; ok && have != plan.InSync {
		if strings.Contains(have, words) {
			return
		}
		words = have + "; " + words
	}
	s.reply.Checks[object] = words
}

// objectOf is the object that a problem's field belongs to.
func objectOf(role plan.Role, transport, field string) string {
	objects := plan.Objects(role, transport)
	switch {
	case slices.Contains(objects, field):
		return field
	case field == "source.path":
		return "source_dir"
	case field == "backup.path":
		return "directory"
	case field == "backup.port" && slices.Contains(objects, "daemon"):
		return "daemon"
	case role == plan.Backup:
		return "module"
	}
	return "definition"
}

// checkSource adds to the checks what no step can mend.
func (s *session) checkSource(now plan.State, in plan.SourceInputs) {
	u := now.Units[unit.AgentName(s.req.Pair.Name)]
	if u.Active && !u.Ready {
		words := "the agent is not ready: " + u.State
		if u.Status != "" {
			words += ": " + u.Status
		}
		s.differs("service", words)
	}
	if in.HaveWatches > 0 && in.HaveWatches < in.Watches && !in.WatchesWritable {
		s.differs("limits", fmt.Sprintf("%s is %d, needs %d, and cannot be set from here (a container): set it on the machine itself",
			plan.MaxUserWatches, in.HaveWatches, in.Watches))
	}
	if f := s.req.Fingerprint; f != "" && s.reply.Fingerprint != "" && f != s.reply.Fingerprint {
		words := "the backup host has another password"
		if plan.BySSH(s.req.Pair) {
			words += ", or other ssh keys"
		}
		s.differs("secret", words)
	}
}

// sourceSecret finds out what the source host should log in with; nil when only the backup host can tell. edited
// is whether the file is not as lockstep wrote it.
func (s *session) sourceSecret() (secret *plan.Secret, hostKeys []string, edited bool, err error) {
	p := s.req.Pair
	var kept *plan.Secret
	f, err := s.m.Files.Read(plan.SecretFile(p.Name))
	switch {
	case err == nil:
		digest, recorded := s.rec.Files[plan.SecretFile(p.Name)]
		edited = recorded && digest != s.rec.digest(f.Data)
		if have, ok := plan.ParseSecretData(f.Data); ok && recorded && !edited {
			kept = &have
		}
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, host.ErrNotOwned):
		return nil, nil, false, err
	}
	switch {
	case s.req.SealedPassword != "":
		key, err := s.hostKey()
		if err != nil {
			return nil, nil, edited, err
		}
		if key == nil {
			return nil, nil, edited, stop("secret", "the password was sealed, but this host has no key", "call apply with prepare first")
		}
		opened, hostKeys, err := open(key, p.Name, s.req.SealedPassword)
		if err != nil {
			return nil, nil, edited, stop("secret", "sealed_password: "+err.Error(), "apply the backup role again with this host's public key")
		}
		if s.req.Password != "" && s.req.Password != opened.Password {
			return nil, nil, edited, stop("secret", "the backup host has another password than the one given", "apply the backup role with the same password first")
		}
		return &opened, hostKeys, false, nil
	case s.req.Password != "":
		if err := checkPassword(s.req.Password); err != nil {
			return nil, nil, edited, err
		}
		if kept != nil && kept.Password == s.req.Password {
			return kept, nil, false, nil
		}
		// The backup host counts the same way, see backupSecrets. Without its key there is no fingerprint.
		var before []plan.Secret
		if kept != nil {
			before = []plan.Secret{*kept}
		}
		return &plan.Secret{User: plan.NextUser(p.Auth.User, before), Password: s.req.Password}, nil, false, nil
	}
	return kept, nil, edited, nil
}

// sourceFiles lists what a source role may have on a host beside what it should have now.
func (s *session) sourceFiles(name string) map[string]plan.File {
	return map[string]plan.File{
		plan.DropInFile(name):                      {Object: "unit", Rank: plan.RankDropIn},
		plan.DropInDir(name):                       {Object: "unit", Rank: plan.RankDir, Dir: true},
		plan.SystemdDir + "/" + unit.AgentTemplate: {Object: "unit", Rank: plan.RankUnit},
		plan.SysctlFile:                            {Object: "limits", Rank: plan.RankLimits},
		plan.SSHKeyFile(name):                      {Object: "login", Rank: plan.RankSecret, Secret: true},
		plan.KnownHostsFile(name):                  {Object: "login", Rank: plan.RankSecret},
	}
}

// needWatches adds up the directories of all pairs that inotify watches: they run as one user, and the limit is
// per user. A tenth and a thousand are for what comes while the agent runs.
func (s *session) needWatches(own int) int {
	total := own
	for _, name := range s.rec.others(s.req.Pair.Name, plan.Source) {
		total += s.rec.Pairs[name][plan.Source].Watches
	}
	if own == 0 {
		return 0
	}
	return total + total/10 + 1000
}

// packaged is whether a package has installed the template unit with the very text.
func (s *session) packaged(template []byte) (bool, error) {
	for _, dir := range []string{"/usr/lib/systemd/system/", "/lib/systemd/system/"} {
		f, err := s.m.Files.Read(dir + unit.AgentTemplate)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, host.ErrNotOwned) {
			continue
		}
		if err != nil {
			return false, err
		}
		installed, err := unit.Parse(f.Data)
		if err == nil && string(installed.Render()) == string(template) {
			return true, nil
		}
	}
	return false, nil
}

// tryLogin logs in to the module before anything is changed, when this apply makes or changes how it is reached.
// Other applies do not depend on the backup host: a pair can be paused while that is down.
func (s *session) tryLogin(ctx context.Context, secret plan.Secret, known []byte, steps []plan.Step) error {
	p := s.req.Pair
	old := s.reply.Pair
	moved := old == nil || old.Backup.Address != p.Backup.Address || old.Backup.Port != p.Backup.Port || old.Backup.Module != p.Backup.Module ||
		old.Transport != p.Transport
	credentials := []string{plan.SecretFile(p.Name), plan.SSHKeyFile(p.Name), plan.KnownHostsFile(p.Name)}
	changed := slices.ContainsFunc(steps, func(step plan.Step) bool { return slices.Contains(credentials, step.Path) })
	if !moved && !changed {
		return nil
	}
	at := fmt.Sprintf("rsync://%s@%s:%d/%s", secret.User, p.Backup.Address, p.Backup.Port, p.Backup.Module)
	login := host.Login{Address: p.Backup.Address, Port: p.Backup.Port, Module: p.Backup.Module, User: secret.User, Password: secret.Password}
	if plan.BySSH(p) {
		at = "ssh: " + at
		login.KnownHosts = known
		login.Shell = func(knownHosts string) []string { return p.RemoteShell(plan.SSHKeyFile(p.Name), knownHosts) }
	}
	err := s.m.System.Login(ctx, login)
	var refused *host.LoginError
	var shell *host.ShellError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &shell):
		return s.shellProblem(shell.Said)
	case !errors.As(err, &refused):
		return stop("backup.address", fmt.Sprintf("the source host cannot reach %s: %v", at, err),
			"apply the backup role first; then see to names, routes and firewalls between the two hosts, or write another backup.address")
	case strings.HasPrefix(refused.Reply, "max connections"):
		return nil // the module is there and busy
	case strings.HasPrefix(refused.Reply, "access denied"):
		return stop("source.address", fmt.Sprintf("the backup host does not let the source host in: %s", refused.Reply),
			"write the address that it names in source.address, and apply the backup role again")
	case strings.HasPrefix(refused.Reply, "auth failed"):
		return stop("secret", fmt.Sprintf("%s: the backup host refuses the password", at), "apply the backup role again and relay its sealed_password")
	case strings.HasPrefix(refused.Reply, "Unknown module"):
		// Our modules are not listed, and then the daemon says the same to an address that it does not let in.
		from := ""
		if refused.From != "" {
			from = " from " + refused.From
		}
		return stop("source.address", fmt.Sprintf("%s: the backup host has no such module, or does not let the source host in, which dials%s while source.address is %s",
			at, from, p.Source.Address), "write the address that the backup host sees in source.address, and apply the backup role first")
	}
	return stop("backup.address", fmt.Sprintf("%s: %s", at, refused.Reply), "")
}

// afterwards compares once more, so that the checks tell what is and not what was meant.
func (s *session) afterwards(ctx context.Context, desired, further plan.State, more func(plan.State)) error {
	for name := range desired.Sysctls {
		found, err := s.m.System.Inspect(ctx, host.Query{Sysctls: []string{name}, Users: []string{unit.User}})
		if err != nil {
			return err
		}
		s.found.Sysctls = found.Sysctls
	}
	if desired.User != nil {
		found, err := s.m.System.Inspect(ctx, host.Query{Users: []string{desired.User.Name}})
		if err != nil {
			return err
		}
		s.found.UIDs = found.UIDs
	}
	now, err := s.current(ctx, desired, further)
	if err != nil {
		return err
	}
	s.othersDirs(&now, desired)
	s.reply.Checks = plan.Checks(s.role, s.req.Pair, plan.Diff(now, desired))
	more(now)
	s.reply.Exists = true
	p := s.req.Pair
	s.reply.Pair = &p
	return nil
}

func (s *session) backup(ctx context.Context) error {
	p := s.req.Pair
	bySSH := plan.BySSH(p)
	q := host.Query{
		Self: true, Rsync: true, Users: []string{p.Backup.UID}, Groups: []string{p.Backup.GID}, Names: []string{p.Source.Address},
		Dirs: []string{p.Backup.Path},
	}
	if bySSH {
		q.SSHD = &host.SSHDQuery{User: plan.LoginUser, From: p.Source.Address}
	} else {
		q.Port = p.Backup.Port
	}
	if err := s.inspect(ctx, q); err != nil {
		return err
	}
	s.facts.Tenants, s.facts.Exports = s.tenants(), s.exports()
	if err := s.foreignListener(ctx); err != nil {
		return err
	}
	problems := plan.BackupProblems(p, s.facts)
	inputs := plan.BackupInputs{Rsync: s.found.Rsync.Path, Allow: s.facts.Addresses}
	var hostKeys []string
	if bySSH {
		hostKeys = s.facts.SSHD.HostKeys
		if err := s.login(&inputs); err != nil {
			return err
		}
	}
	mark := func(secret plan.Secret) string { return acquainted(p, secret, inputs.SSHKey, hostKeys) }
	secrets, pending, err := s.backupSecrets(mark)
	if err != nil {
		return err
	}
	inputs.Secrets, inputs.Pending = secrets, pending
	newest := secrets[len(secrets)-1]
	desired, err := plan.BackupState(p, inputs)
	if err != nil {
		if len(problems) == 0 {
			return err
		}
		s.tell(nil, problems) // they say why
		return nil
	}
	if !pending {
		s.reply.Fingerprint = mark(newest)
	}
	further := s.superseded(inputs)
	current, err := s.current(ctx, desired, further)
	if err != nil {
		return err
	}
	s.othersDirs(&current, desired)
	problems = append(problems, foreign(current, desired)...)
	steps := plan.Diff(current, desired)
	s.tell(steps, problems)
	s.checkBackup(secrets)
	if s.cmd.Verb != plan.Apply || len(problems) > 0 {
		return nil
	}
	if bySSH && inputs.SSHKey == "" {
		s.reply.Changed, s.reply.Changes = false, []plan.Change{}
		return stop("login", "the source host's ssh key is not known", "apply with prepare on the source host, and give the public_key that it answers")
	}
	var box string
	if s.req.Recipient != "" {
		to, _, err := recipient(s.req.Recipient)
		if err == nil {
			box, err = seal(to, p.Name, newest, hostKeys)
		}
		if err != nil {
			return stop("secrets", err.Error(), "give the public_key that the source host answered")
		}
	}
	s.rec.setPair(p.Name, plan.Backup, s.backupRecord(secrets, inputs, box != ""))
	if err := s.execute(ctx, steps, current); err != nil {
		return err
	}
	s.reply.SealedPassword = box
	s.reply.Fingerprint = mark(newest)
	return s.afterwards(ctx, desired, further, func(plan.State) { s.checkBackup(secrets) })
}

// backupRecord is what to remember of the pair; told is whether the source host will hear of the host keys.
func (s *session) backupRecord(secrets []plan.Secret, in plan.BackupInputs, told bool) pairRecord {
	p := s.req.Pair
	before := s.rec.Pairs[p.Name][plan.Backup]
	now := pairRecord{FS: s.found.Dirs[p.Backup.Path].FS, Addresses: s.facts.Addresses, Secrets: map[string]string{},
		AuthorizedKeys: before.AuthorizedKeys, SSHKey: before.SSHKey, HostKeys: before.HostKeys}
	for _, secret := range secrets {
		now.Secrets[secret.User] = s.rec.digest(secretLine(secret))
	}
	switch {
	case plan.BySSH(p):
		now.AuthorizedKeys, now.SSHKey = in.AuthorizedKeys, in.SSHKey
		if told {
			now.HostKeys = s.facts.SSHD.HostKeys
		}
	case s.confirmed():
		now.AuthorizedKeys, now.SSHKey, now.HostKeys = "", "", nil
	}
	return now
}

func (s *session) checkBackup(secrets []plan.Secret) {
	if len(secrets) > 1 && s.reply.Checks["secrets"] == plan.InSync {
		s.differs("secrets", fmt.Sprintf("%s is still accepted, until an apply with the source host's fingerprint shows that it has switched to %s",
			secrets[0].User, secrets[len(secrets)-1].User))
	}
	p := s.req.Pair
	if f := s.req.Fingerprint; f != "" && s.reply.Fingerprint != "" && f != s.reply.Fingerprint {
		words := "the source host has another password"
		if plan.BySSH(p) {
			words += ", or other ssh keys"
		}
		s.differs("secrets", words)
	}
	told := s.rec.Pairs[p.Name][plan.Backup].HostKeys
	if plan.BySSH(p) && told != nil && len(s.facts.SSHD.HostKeys) > 0 && !slices.Equal(told, s.facts.SSHD.HostKeys) {
		s.differs("login", "sshd has other host keys than the source host was told, which refuses them; an apply of both roles tells it")
	}
	if old := s.left(); old != "" {
		s.differs("module", "the pair can still be reached by "+old+", until an apply with the source host's fingerprint shows that it has switched")
	}
}

func secretLine(s plan.Secret) []byte {
	return []byte(s.User + "\x00" + s.Password + "\x00" + s.Key)
}

// backupSecrets finds out which generations the module should accept. pending is set when a plan would make a
// new one, whose password is then not the real one. mark is the fingerprint of a generation.
func (s *session) backupSecrets(mark func(plan.Secret) string) (secrets []plan.Secret, pending bool, err error) {
	p := s.req.Pair
	written := s.rec.Pairs[p.Name][plan.Backup].Secrets
	intact := false // the newest one is
	f, err := s.m.Files.Read(plan.SecretsFile(p.Name))
	switch {
	case err == nil:
		for _, have := range parseSecrets(f.Data) {
			intact = written[have.User] != "" && written[have.User] == s.rec.digest(secretLine(have))
			if intact {
				secrets = append(secrets, have)
			}
		}
		newest := ""
		for user := range written {
			if newest == "" || plan.Generation(user) > plan.Generation(newest) {
				newest = user
			}
		}
		intact = len(secrets) > 0 && secrets[len(secrets)-1].User == newest
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, host.ErrNotOwned):
		return nil, false, err
	}
	if s.req.Password != "" {
		if err := checkPassword(s.req.Password); err != nil {
			return nil, false, err
		}
	}
	renew := !intact || s.req.Rotate || !strings.HasPrefix(secrets[len(secrets)-1].User, p.Auth.User+"-") ||
		s.req.Password != "" && s.req.Password != secrets[len(secrets)-1].Password
	if renew && s.cmd.Verb != plan.Read {
		user := plan.NextUser(p.Auth.User, secrets)
		if s.cmd.Verb == plan.Apply {
			return append(secrets, newSecret(user, s.req.Password)), false, nil
		}
		return append(secrets, plan.Secret{User: user, Password: "pending"}), true, nil
	}
	if !intact {
		return []plan.Secret{{User: plan.NextUser(p.Auth.User, secrets), Password: "pending"}}, true, nil
	}
	newest := secrets[len(secrets)-1]
	if s.cmd.Verb != plan.Read && s.req.Fingerprint != "" && s.req.Fingerprint == mark(newest) {
		secrets = []plan.Secret{newest}
	}
	return secrets, false, nil
}

func atoi(text string) int {
	n, _ := strconv.Atoi(text) // a limit that is not a number is none
	return n
}
