// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"context"
	"errors"
	"io/fs"
	"maps"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

// destroy is the plan that leads to nothing: it removes what this role of the pair has, and with the last pair
// what all pairs shared. Data directories are in no plan of its.
func (s *session) destroy(ctx context.Context) error {
	name := s.req.Pair.Name
	if err := s.inspect(ctx, host.Query{Users: []string{unit.User}}); err != nil {
		return err
	}
	_, bothRoles := s.rec.Pairs[name][otherRole(s.cmd.Role)]
	lastOfRole := len(s.rec.others(name, s.cmd.Role)) == 0
	lastOfAll := lastOfRole && !bothRoles && len(s.rec.others(name, otherRole(s.cmd.Role))) == 0

	gone := map[string]plan.File{}
	units := map[string]plan.Unit{}
	if !bothRoles {
		gone[plan.DefinitionFile(name)] = plan.File{Object: "definition", Rank: plan.RankDefinition}
	}
	if s.cmd.Role == plan.Source {
		units[unit.AgentName(name)] = plan.Unit{Object: "service"}
		gone[plan.SecretFile(name)] = plan.File{Object: "secret", Rank: plan.RankSecret, Secret: true}
		gone[plan.StateDir+"/"+name] = plan.File{Object: "service", Rank: plan.RankData, Dir: true, Tree: true}
		for p, f := range s.sourceFiles(name) {
			if lastOfRole || f.Rank == plan.RankDropIn || p == plan.DropInDir(name) || f.Object == "login" {
				gone[p] = f
			}
		}
		if lastOfRole {
			gone[plan.HostKeyFile] = plan.File{Object: "secret", Rank: plan.RankSecret, Secret: true}
		}
	}
	lines := map[string]plan.Line{}
	if s.cmd.Role == plan.Backup {
		gone[plan.SecretsFile(name)] = plan.File{Object: "secrets", Rank: plan.RankSecret, Secret: true}
		for _, bySSH := range []bool{false, true} {
			way := s.leadsTo(name, bySSH)
			maps.Copy(gone, way.Files)
			maps.Copy(lines, way.Lines)
			maps.Copy(units, way.Units)
		}
	}
	if lastOfAll {
		for _, dir := range []string{plan.PairsDir, plan.SecretsDir, plan.EtcDir} {
			gone[dir] = plan.File{Object: "definition", Rank: plan.RankDir, Dir: true}
		}
	}
	current, err := s.current(ctx, plan.State{}, plan.State{Files: gone, Lines: lines, Units: units})
	if err != nil {
		return err
	}
	s.othersDirs(&current, plan.State{})
	s.reply.Problems = append(s.reply.Problems, foreign(current, plan.State{})...)
	if s.cmd.Role == plan.Source && lastOfRole && s.rec.User {
		_, exists := s.found.UIDs[unit.User]
		current.User = &plan.User{Name: unit.User, Exists: exists}
	}
	_, recorded := s.rec.Pairs[name][s.cmd.Role]
	steps := plan.Diff(current, plan.State{})
	if s.cmd.Verb == plan.Plan {
		s.reply.Exists = recorded
		s.reply.Changes = plan.Changes(steps)
		s.reply.Changed = len(s.reply.Changes) > 0
		return nil
	}
	if len(s.reply.Problems) > 0 {
		return nil
	}
	// The record goes last: until then, a second destroy finds the pair again.
	if err := s.execute(ctx, steps, current); err != nil {
		return err
	}
	for p := range gone {
		// A destroy that was killed removed these and could not say so.
		if _, err := s.m.Files.Read(p); errors.Is(err, fs.ErrNotExist) {
			delete(s.rec.Files, p)
			delete(s.rec.Dirs, p)
		}
	}
	if err := s.forgetGone(lines); err != nil {
		return err
	}
	if recorded {
		s.rec.dropPair(name, s.cmd.Role)
	}
	if lastOfRole && s.cmd.Role == plan.Source {
		s.rec.User = false
	}
	return s.rec.save(s.m.Files)
}

func otherRole(r plan.Role) plan.Role {
	if r == plan.Source {
		return plan.Backup
	}
	return plan.Source
}
