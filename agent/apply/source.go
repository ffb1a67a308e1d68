// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

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
	s.follow()
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
	inputs := plan.SourceInputs{Binary: s.found.Executable, Digest: s.found.Digest, Secret: secret, FileWatches: s.number(plan.SysctlFile, plan.MaxUserWatches)}
	if plan.BySSH(p) {
		inputs.HostKeys = s.hostKeys(told)
		if inputs.SSHKey, err = s.sshKey(); err != nil {
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
	if s.cmd.Verb != plan.Apply || len(problems) > 0 {
		return nil
	}
	if secret == nil && !p.HooksOnly() {
		return stop("secret", "there is no password yet", "apply the backup role first, and give what it prints as --sealed-password")
	}
	if plan.BySSH(p) && (inputs.SSHKey == nil || inputs.HostKeys == nil) {
		return stop("login", "the two hosts do not know each other's ssh keys yet",
			"apply with --prepare here, give what that prints to the backup role as --recipient, and what that prints to this one as --sealed-password")
	}
	if !p.HooksOnly() {
		user := secret.User
		if err := s.tryLogin(ctx, secret, desired.Files[plan.KnownHostsFile(p.Name)].Data, steps); err != nil {
			return err
		}
		if secret.User != user {
			desired = plan.SourceState(p, inputs)
			steps = plan.Diff(current, desired)
			s.reply.Fingerprint = ""
		}
	}
	s.rec.setPair(p.Name, plan.Source, pairRecord{Ends: endsOf(p), Watches: watches})
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
	s.compareFingerprints("secret")
}

// sourceSecret finds out what the source host should log in with; nil when only the backup host can tell. edited
// is whether the file is not as lockstep wrote it.
func (s *session) sourceSecret() (secret *plan.Secret, hostKeys []string, edited bool, err error) {
	p := s.req.Pair
	var kept *plan.Secret
	f, err := s.m.Files.Read(plan.SecretFile(p.Name))
	switch {
	case err == nil:
		ever, last := s.rec.wrote(plan.SecretFile(p.Name), f.Data)
		edited = ever && !last
		if have, ok := plan.ParseSecretData(f.Data); ok && last {
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
			return nil, nil, edited, stop("secret", "the password was sealed, but this host has no key", "apply with --prepare first, and seal it anew")
		}
		opened, hostKeys, err := open(key, p.Name, s.req.SealedPassword)
		if err != nil {
			hint := "apply the backup role again with this host's public key"
			if _, ok := errors.AsType[base64.CorruptInputError](err); ok {
				hint = "give what lockstep apply --role backup --recipient printed, or @FILE with that in it"
			}
			return nil, nil, edited, stop("secret", "--sealed-password: "+err.Error(), hint)
		}
		if s.req.Password != "" && s.req.Password != opened.Password {
			return nil, nil, edited, stop("secret", "the backup host has another password than the one given", "apply the backup role with the same password first")
		}
		return &opened, hostKeys, false, nil
	case s.req.Password != "":
		if err := checkPassword(s.req.Password); err != nil {
			return nil, nil, edited, err
		}
		if kept != nil && kept.Password == s.req.Password && plan.IsGeneration(kept.User, p.Auth.User) {
			return kept, nil, false, nil
		}
		// The backup host counts the same way, see backupSecrets; where it is ahead, tryLogin finds out. Without its key there is no fingerprint.
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

// furtherGenerations is how many passwords in a row that the source host has never seen are made up for: one for each apply of the
// backup role with a password file that was then corrected.
const furtherGenerations = 8

func refusesPassword(err error) bool {
	refused, ok := errors.AsType[*host.LoginError](err)
	return ok && strings.HasPrefix(refused.Reply, "auth failed")
}

// laterGeneration is the user name after that of a refused login with which the password is let in, "" without one.
func (s *session) laterGeneration(ctx context.Context, login host.Login) string {
	for range furtherGenerations {
		login.User = plan.NextUser(s.req.Pair.Auth.User, []plan.Secret{{User: login.User}})
		if err := s.m.System.Login(ctx, login); err == nil {
			return login.User
		} else if !refusesPassword(err) {
			return "" // nobody can tell now
		}
	}
	return ""
}

// tryLogin logs in to the module before anything is changed, when this apply makes or changes how it is reached.
// Other applies do not depend on the backup host: a pair can be paused while that is down. secret becomes the generation that
// was let in.
func (s *session) tryLogin(ctx context.Context, secret *plan.Secret, known []byte, steps []plan.Step) error {
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
	given := s.req.Password != "" && s.req.SealedPassword == "" // by the user, and nobody tells of which generation it is
	if given && refusesPassword(err) {
		if user := s.laterGeneration(ctx, login); user != "" {
			secret.User, secret.Key, err = user, "", nil // the key of another generation is not known here
		}
	}
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
	case refusesPassword(err) && given:
		return stop("secret", fmt.Sprintf("%s: the backup host refuses the password", at),
			"the password files of the two hosts differ, or the backup role was not applied with its own: apply that first, with the same password")
	case refusesPassword(err):
		return stop("secret", fmt.Sprintf("%s: the backup host refuses the password", at), "apply the backup role again and give what it prints as --sealed-password")
	case strings.HasPrefix(refused.Reply, "Unknown module"):
		// Our modules are not listed, and then the daemon says the same to an address that it does not let in.
		from := ""
		if refused.From != "" {
			from = " from " + refused.From
		}
		return stop("source.address", fmt.Sprintf("%s: the backup host has no such module, or does not let the source host in, which dials%s while source.address is %s",
			at, from, p.Source.Address), "write the address that the backup host sees in source.address, and apply the backup role first")
	}
	log := "journalctl -u " + strings.TrimSuffix(unit.RsyncdName, ".service")
	if plan.BySSH(p) {
		log = "journalctl -t rsyncd" // its tag in syslog
	}
	return stop("backup.address", fmt.Sprintf("%s: %s", at, refused.Reply), "the log of the rsync daemon on the backup host tells more: "+log)
}
