// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

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
	// An apply with a fingerprint comes after the source host has logged in.
	if s.cmd.Verb == plan.Plan || s.cmd.Verb == plan.Apply && s.req.Fingerprint == "" {
		q.SELinux, q.Firewall = p.Backup.Path, &host.FirewallQuery{Port: p.Backup.Port, From: p.Source.Address}
	}
	if err := s.inspect(ctx, q); err != nil {
		return err
	}
	s.reply.Warnings = plan.BackupWarnings(p, s.facts)
	exports, unread := s.exports()
	s.facts.Tenants, s.facts.Exports = s.tenants(), exports
	s.follow()
	if err := s.foreignListener(ctx); err != nil {
		return err
	}
	problems := append(plan.BackupProblems(p, s.facts), unread...)
	// Without rsync nothing is applied. What is there to run it is right all the same.
	inputs := plan.BackupInputs{Rsync: cmp.Or(s.found.Rsync.Path, "/usr/bin/rsync"), Allow: s.facts.Addresses, Mount: s.mounted()}
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
	unknown := s.unknownToSource(newest)
	if s.cmd.Verb == plan.Plan {
		s.reply.Warnings = append(s.reply.Warnings, unknown...)
	}
	if s.cmd.Verb != plan.Apply || len(problems) > 0 {
		return nil
	}
	if bySSH && inputs.SSHKey == "" {
		return stop("login", "the source host's ssh key is not known", "apply with --prepare on the source host, and give what that prints as --recipient")
	}
	var box string
	if s.req.Recipient != "" {
		to, _, err := recipient(s.req.Recipient)
		if err == nil {
			box, err = seal(to, p.Name, newest, hostKeys)
		}
		if err != nil {
			return stop("secrets", err.Error(), "give what lockstep apply --role source --definition FILE --prepare prints, or @FILE with that in it")
		}
	}
	s.rec.setPair(p.Name, plan.Backup, s.backupRecord(secrets, inputs, box != ""))
	if err := s.execute(ctx, steps, current); err != nil {
		return err
	}
	s.reply.Warnings = append(s.reply.Warnings, unknown...)
	s.reply.SealedPassword = box
	s.reply.Fingerprint = mark(newest)
	return s.afterwards(ctx, desired, further, func(plan.State) { s.checkBackup(secrets) })
}

// mounted is whether the directory is a mount point, or was one: it is to be one then.
func (s *session) mounted() bool {
	d := s.facts.Dirs[s.req.Pair.Backup.Path]
	return d.Mount || d.WasMount
}

// foreignListener is who holds the daemon's port, if that is not our daemon.
func (s *session) foreignListener(ctx context.Context) error {
	daemon, err := s.m.Units.Unit(ctx, unit.RsyncdName)
	if err != nil {
		return err
	}
	if l := s.found.Listener; l != nil && l.Unit != unit.RsyncdName && (l.PID != daemon.PID || l.PID == 0) {
		s.facts.Listener = &plan.Listener{PID: l.PID, Command: l.Command, Unit: l.Unit}
	}
	return nil
}

// backupRecord is what to remember of the pair; told is whether the source host will hear of the host keys.
func (s *session) backupRecord(secrets []plan.Secret, in plan.BackupInputs, told bool) pairRecord {
	p := s.req.Pair
	before := s.rec.Pairs[p.Name][plan.Backup]
	now := pairRecord{Ends: endsOf(p), Mount: s.mounted(), FS: s.found.Dirs[p.Backup.Path].FS, Addresses: s.facts.Addresses, Secrets: map[string]string{},
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
	s.compareFingerprints("secrets")
	p := s.req.Pair
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
	renew := !intact || s.req.Rotate || !plan.IsGeneration(secrets[len(secrets)-1].User, p.Auth.User) ||
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
