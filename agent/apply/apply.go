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
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

// Command is what to do on this host.
type Command struct {
	Verb    plan.Verb
	Role    plan.Role
	Version string // of lockstep, for Reply.Versions
	// Waiting, if set, is told who changes this host while an apply or destroy waits for that to end. The wait has no bound
	// but the context's: an agent takes as long to start as its tree to be watched, and whoever calls knows how long to wait.
	Waiting func(holder string)
	// Identity, if set, tells one directory from another at the same path, as the agent does.
	Identity func(path string) (string, error)
	// Fanotify, if set, is whether the agent can watch a directory with fanotify; nil means that it cannot.
	Fanotify func(path string) bool
	// ByHand is whether a person runs this role alone. Then warnings tell what nobody else brings to the other host.
	ByHand bool
}

// session is one run of one command.
type session struct {
	m     *host.Machine
	cmd   Command
	req   plan.Request
	rec   *record
	found host.Facts
	facts plan.Facts
	reply plan.Reply
}

// Run does what the command says and tells everything, failures too, in the reply.
func Run(ctx context.Context, m *host.Machine, cmd Command, req plan.Request) plan.Reply {
	s := &session{m: m, cmd: cmd, req: req,
		reply: plan.Reply{Protocol: plan.Protocol, Changes: []plan.Change{}, Checks: map[string]string{}}}
	if err := s.run(ctx); err != nil {
		s.fail(err)
	}
	return s.reply
}

// fail adds an error to the reply.
func (s *session) fail(err error) {
	if problems, ok := errors.AsType[plan.Problems](err); ok {
		s.reply.Problems = append(s.reply.Problems, problems...)
		return
	}
	s.reply.Problems = append(s.reply.Problems, plan.Problem{Msg: fmt.Sprintf("%s pair %q: %v", s.cmd.Verb, s.req.Pair.Name, err)})
}

// stop ends a run with a problem that has a message of its own.
func stop(path, msg, hint string) error {
	return plan.Problems{{Path: path, Msg: msg, Hint: hint}}
}

func (s *session) run(ctx context.Context) error {
	if s.cmd.Role != plan.Source && s.cmd.Role != plan.Backup {
		return stop("", fmt.Sprintf("%q is not a role", s.cmd.Role), "write --role source or --role backup")
	}
	s.rec = &record{} // until root is certain, there is none that could be read
	if err := s.inspect(ctx, host.Query{}); err != nil {
		return err
	}
	s.reply.Versions = map[string]string{"lockstep": s.cmd.Version}
	maps.Copy(s.reply.Versions, s.found.Versions)
	if problems := plan.HostProblems(s.facts, string(s.cmd.Verb)); len(problems) > 0 {
		return plan.Problems(problems)
	}
	if s.cmd.Verb == plan.Apply || s.cmd.Verb == plan.Destroy {
		unlock, err := s.m.System.Lock(ctx, fmt.Sprintf("lockstep %s of pair %q", s.cmd.Verb, s.req.Pair.Name), s.cmd.Waiting)
		if err != nil && ctx.Err() != nil {
			return stop("", err.Error(), "wait for it to end, then try again")
		}
		if err != nil {
			return err
		}
		// The last one to leave takes the lock's file along.
		defer func() { unlock(s.rec.Key != nil && len(s.rec.Pairs) == 0) }()
	}
	rec, err := loadRecord(s.m.Files)
	if err != nil {
		return err
	}
	s.rec = rec
	defer func() { s.reply.Remaining = len(s.rec.Pairs) }()

	if s.cmd.Verb == plan.Destroy || s.cmd.Verb == plan.Plan && s.req.Absent {
		return s.destroy(ctx)
	}
	if s.cmd.Role == plan.Source {
		if key, err := s.hostKey(); err == nil && key != nil {
			private, err := s.sshKey()
			if err != nil {
				return err
			}
			s.reply.PublicKey = answer(publicKey(key), publicSSHKey(private))
		}
		if s.req.Prepare && s.cmd.Verb == plan.Apply {
			return s.prepare(ctx)
		}
	}
	named := s.req.Pair.Source.Path == "" // only; the definition is the stored one then
	s.recall(named)
	if named && s.reply.Pair == nil {
		return nil // nothing to compare with
	}
	var other []plan.Problem
	if there, ok := s.applied(s.req.Pair.Name); ok && !named {
		other = plan.OtherPair(s.req.Pair, there)
	}
	if len(other) > 0 && s.cmd.Verb != plan.Read {
		return plan.Problems(other)
	}
	defer func() {
		for _, p := range other {
			s.differs("definition", p.Msg)
		}
	}()
	if s.req.Pair.HooksOnly() && s.cmd.Role == plan.Backup {
		return stop("transport", "a pair with transport none has no backup host", "apply it on its source host alone: lockstep apply --role source --definition FILE")
	}
	if s.cmd.Role == plan.Source {
		return s.source(ctx)
	}
	return s.backup(ctx)
}

// recall finds what this host has of the pair already.
func (s *session) recall(named bool) {
	if _, s.reply.Exists = s.rec.Pairs[s.req.Pair.Name][s.cmd.Role]; !s.reply.Exists {
		return
	}
	stored, err := s.stored(s.req.Pair.Name)
	switch {
	case err == nil:
		s.reply.Pair = &stored
		if named {
			s.req.Pair = stored
		}
	case named:
		first, _, _ := strings.Cut(err.Error(), "\n")
		s.differs("definition", plan.DefinitionFile(s.req.Pair.Name)+": "+first)
	}
}

// stored reads the definition that is kept on this host.
func (s *session) stored(name string) (plan.Definition, error) {
	f, err := s.m.Files.Read(plan.DefinitionFile(name))
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		return plan.Definition{}, at.Err // the path is told by who asks
	}
	if err != nil {
		return plan.Definition{}, err
	}
	return plan.ParseDefinition(f.Data)
}

// tell fills the reply of a plan. For read, a problem is something that differs.
func (s *session) tell(steps []plan.Step, problems []plan.Problem) {
	s.reply.Checks = plan.Checks(s.cmd.Role, s.req.Pair, steps)
	for _, p := range problems {
		s.differs(objectOf(s.cmd.Role, s.req.Pair.Transport, p.Path), p.Msg)
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
	case field == plan.ProgramProblem:
		return "unit"
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

// afterwards compares once more, so that the checks tell what is and not what was meant.
func (s *session) afterwards(ctx context.Context, desired, further plan.State, more func(plan.State)) error {
	q := host.Query{Sysctls: slices.Sorted(maps.Keys(desired.Sysctls))}
	if desired.User != nil {
		q.Users = []string{desired.User.Name}
	}
	found, err := s.m.System.Inspect(ctx, q)
	if err != nil {
		return err
	}
	s.found.Sysctls, s.found.UIDs = found.Sysctls, found.UIDs
	now, err := s.current(ctx, desired, further)
	if err != nil {
		return err
	}
	s.othersDirs(&now, desired)
	s.reply.Checks = plan.Checks(s.cmd.Role, s.req.Pair, plan.Diff(now, desired))
	more(now)
	s.reply.Exists = true
	p := s.req.Pair
	s.reply.Pair = &p
	return nil
}
