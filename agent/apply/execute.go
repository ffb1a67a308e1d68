// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

// execute makes the changes in order. When one fails, it puts back what the ones before it changed, to what
// before says was there, and the reply has no changes.
func (s *session) execute(ctx context.Context, steps []plan.Step, before plan.State) error {
	old, err := loadRecord(s.m.Files)
	if err != nil {
		return err
	}
	old.Key = s.rec.Key // of a first apply: both would be random
	if len(steps) > 0 || !samePairs(old, s.rec) {
		if err := s.rec.save(s.m.Files); err != nil {
			s.rec = old
			return errors.Join(err, old.save(s.m.Files))
		}
	}
	var done []plan.Step
	for _, step := range steps {
		// Undone, too, when it failed: it may have come half way.
		done = append(done, step)
		changed, err := s.step(ctx, step)
		if err != nil {
			cause := fmt.Errorf("%s: %w", describe(step), err)
			s.reply.Changed, s.reply.Changes = false, []plan.Change{}
			if left := s.rollBack(context.WithoutCancel(ctx), done, before, old); len(left) > 0 {
				problems := []plan.Problem{failure(step, cause, "")}
				for _, err := range left {
					problems = append(problems, plan.Problem{Path: step.Object, Msg: "could not be put back: " + err.Error(), Hint: "apply again once the cause is mended"})
				}
				return plan.Problems(problems)
			}
			return plan.Problems{failure(step, cause, "nothing was changed; "+remedy(step, err))}
		}
		if changed && step.Object != "" {
			s.reply.Changed = true
			s.reply.Changes = append(s.reply.Changes, step.Change)
		}
	}
	return nil
}

func samePairs(a, b *record) bool {
	return fmt.Sprint(a.Pairs) == fmt.Sprint(b.Pairs) // maps are printed in order
}

func failure(step plan.Step, err error, hint string) plan.Problem {
	return plan.Problem{Path: step.Object, Msg: err.Error(), Hint: hint}
}

func describe(step plan.Step) string {
	if step.Object == "" {
		return "systemctl daemon-reload"
	}
	return step.Action + " " + step.Path
}

func remedy(step plan.Step, err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "see to the permissions, or to what protects the file (chattr, a read-only mount, SELinux)"
	case step.Kind == plan.StartUnit || step.Kind == plan.RestartUnit || step.Kind == plan.ReloadUnit:
		return "see journalctl -u " + step.Name
	}
	return "mend the cause and try again"
}

// step makes one change. changed is false when it turned out to be none.
func (s *session) step(ctx context.Context, step plan.Step) (changed bool, err error) {
	save := func() error { return s.rec.save(s.m.Files) }
	switch step.Kind {
	case plan.AddUser:
		s.rec.User = true
		if err := save(); err != nil {
			return false, err
		}
		return true, s.m.Users.Add(ctx, step.Name)
	case plan.RemoveUser:
		if err := s.m.Users.Remove(ctx, step.Name); err != nil {
			return false, err
		}
		s.rec.User = false
		return true, save()
	case plan.WriteFile:
		return true, s.write(step)
	case plan.RemoveFile, plan.RemoveTree:
		return s.remove(step)
	case plan.WriteLine:
		return true, s.writeLine(step)
	case plan.RemoveLine:
		return s.removeLine(step)
	case plan.DaemonReload:
		return true, s.m.Units.DaemonReload(ctx)
	case plan.SetSysctl:
		err := s.m.System.SetSysctl(step.Name, step.Arg)
		if errors.Is(err, fs.ErrPermission) {
			return false, nil // a check tells
		}
		return true, err
	case plan.EnableUnit:
		return true, s.m.Units.Do(ctx, step.Name, host.Enable)
	case plan.DisableUnit:
		return true, s.m.Units.Do(ctx, step.Name, host.Disable)
	case plan.StopUnit:
		delete(s.rec.Runs, step.Name)
		if err := s.m.Units.Do(ctx, step.Name, host.Stop); err != nil {
			return false, err
		}
		return true, save()
	case plan.StartUnit:
		return true, s.start(ctx, step, host.Start)
	case plan.RestartUnit:
		return true, s.start(ctx, step, host.Restart)
	case plan.ReloadUnit:
		return true, s.start(ctx, step, host.Reload)
	}
	return false, fmt.Errorf("bug: step of kind %d", step.Kind)
}

func (s *session) write(step plan.Step) error {
	f := step.File
	if !f.Keep {
		if f.Dir {
			if _, err := s.m.Files.Read(step.Path); errors.Is(err, fs.ErrNotExist) {
				s.rec.Dirs[step.Path] = true
			}
		} else {
			s.rec.Files[step.Path] = s.rec.digest(f.Data)
		}
		if s.cmd.Role == plan.Backup && f.Rank == plan.RankDefinition && step.Astray {
			// With both roles on this host, the agent may have read the other text, and then has to start again.
			delete(s.rec.Runs, unit.AgentName(s.req.Pair.Name))
		}
		if err := s.rec.save(s.m.Files); err != nil {
			return err
		}
	}
	return s.m.Files.Write(step.Path, host.File{Dir: f.Dir, Mode: f.Mode, Owner: f.Owner, Group: f.Group, Data: f.Data})
}

func (s *session) remove(step plan.Step) (bool, error) {
	var err error
	if step.Kind == plan.RemoveTree {
		err = s.m.Files.RemoveAll(step.Path)
	} else {
		err = s.m.Files.Remove(step.Path)
	}
	switch {
	case errors.Is(err, host.ErrNotEmpty):
		return false, nil // somebody else's files are in it
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	delete(s.rec.Files, step.Path)
	delete(s.rec.Dirs, step.Path)
	return true, s.rec.save(s.m.Files)
}

// How long the daemon may take until it listens, and how often that is looked at.
const (
	listenTimeout = 10 * time.Second
	listenPoll    = 20 * time.Millisecond
)

// start starts, restarts or reloads a unit and waits until it works.
func (s *session) start(ctx context.Context, step plan.Step, action host.Action) error {
	delete(s.rec.Runs, step.Name)
	if err := s.rec.save(s.m.Files); err != nil {
		return err
	}
	since := time.Now()
	err := s.m.Units.Do(ctx, step.Name, action)
	if err == nil && step.Name == unit.RsyncdName {
		err = s.listening(ctx, step.Name)
	}
	if err != nil {
		return s.lastWords(ctx, step.Name, since, err)
	}
	s.rec.Runs[step.Name] = step.Runs
	return s.rec.save(s.m.Files)
}

// listening waits until the daemon holds its port: systemd calls it active before that.
func (s *session) listening(ctx context.Context, name string) error {
	port := s.number(plan.RsyncdConf, "port") // when things are put back, it is not the definition's
	if port == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, listenTimeout, fmt.Errorf("does not listen on port %d after %s", port, listenTimeout))
	defer cancel()
	first := 0
	for {
		u, err := s.m.Units.Unit(ctx, name)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if first == 0 {
			first = u.PID
		}
		if !u.Active || u.PID != first {
			return fmt.Errorf("ended at once, it is %s", u.State)
		}
		found, err := s.m.System.Inspect(ctx, host.Query{Port: port})
		if err == nil && found.Listener != nil && (found.Listener.PID == u.PID || found.Listener.Unit == name) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(listenPoll):
		}
	}
}

// lastWords adds to an error what the unit said last.
func (s *session) lastWords(ctx context.Context, name string, since time.Time, err error) error {
	if u, uerr := s.m.Units.Unit(ctx, name); uerr == nil && u.Status != "" {
		err = fmt.Errorf("%w; its status: %s", err, u.Status)
	}
	lines, jerr := s.m.Units.Journal(ctx, name, since, 5)
	if jerr != nil || len(lines) == 0 {
		return err
	}
	return fmt.Errorf("%w; its last words: %s", err, strings.Join(lines, " | "))
}

// rollBack leads what the steps touched back to what it was, which is a plan like any other. It goes on after
// an error and returns all of them.
func (s *session) rollBack(ctx context.Context, done []plan.Step, before plan.State, old *record) []error {
	goal := plan.State{Files: map[string]plan.File{}, Lines: map[string]plan.Line{}, Units: map[string]plan.Unit{}, Sysctls: map[string]string{}}
	touched := plan.State{Files: map[string]plan.File{}, Lines: map[string]plan.Line{}, Units: map[string]plan.Unit{}}
	for _, step := range done {
		switch step.Kind {
		case plan.AddUser, plan.RemoveUser:
			goal.User = before.User
		case plan.WriteFile, plan.RemoveFile, plan.RemoveTree:
			touched.Files[step.Path] = step.File
			if f, ok := before.Files[step.Path]; ok {
				goal.Files[step.Path] = f
			}
		case plan.WriteLine, plan.RemoveLine:
			touched.Lines[step.Path] = step.Line
			if l, ok := before.Lines[step.Path]; ok {
				goal.Lines[step.Path] = l
			}
		case plan.EnableUnit, plan.DisableUnit, plan.StartUnit, plan.StopUnit, plan.RestartUnit, plan.ReloadUnit:
			touched.Units[step.Name] = plan.Unit{Object: step.Object}
			if u, ok := before.Units[step.Name]; ok {
				goal.Units[step.Name] = u
			}
		case plan.DaemonReload, plan.SetSysctl: // a limit is never lowered
		}
	}
	var errs []error
	if goal.User != nil {
		found, err := s.m.System.Inspect(ctx, host.Query{Users: []string{goal.User.Name}})
		if err != nil {
			errs = append(errs, err)
		}
		s.found.UIDs = found.UIDs
	}
	now, err := s.current(ctx, goal, touched)
	if err != nil {
		return append(errs, err)
	}
	if goal.User != nil && !goal.User.Exists {
		goal.User = nil // Diff removes a user that is not wanted
	}
	for p, f := range now.Files {
		f.Foreign = false // what is there now, this run wrote
		now.Files[p] = f
	}
	for _, step := range plan.Diff(now, goal) {
		if _, err := s.step(ctx, step); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", describe(step), err))
		}
	}
	// What was made for a line and not got as far as to hold it.
	if err := s.forgetGone(touched.Lines); err != nil {
		errs = append(errs, err)
	}
	if _, was := old.Pairs[s.req.Pair.Name][plan.Source]; s.cmd.Role == plan.Source && !was && !s.req.Prepare {
		// systemd makes it when the unit starts.
		if err := s.m.Files.RemoveAll(plan.StateDir + "/" + s.req.Pair.Name); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		for name, u := range goal.Units {
			if u.Active { // restarted above, so that it may run with something else than before
				old.Runs[name] = s.rec.Runs[name]
			}
		}
		s.rec = old
	}
	if err := s.rec.save(s.m.Files); err != nil {
		errs = append(errs, err)
	}
	return errs
}
