// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/rsyncd"
)

// current reads the state of what desired names, and of the further files, lines and units.
func (s *session) current(ctx context.Context, desired, further plan.State) (plan.State, error) {
	state := plan.State{Files: map[string]plan.File{}, Lines: map[string]plan.Line{}, Units: map[string]plan.Unit{}, Sysctls: map[string]string{}}
	for p, want := range union(further.Files, desired.Files) {
		f, ok, err := s.file(p, want)
		if err != nil {
			return state, err
		}
		if ok {
			state.Files[p] = f
		}
	}
	for p, want := range union(further.Lines, desired.Lines) {
		have, ok, err := s.line(p, want)
		if err != nil {
			return state, err
		}
		if ok {
			state.Lines[p] = have
		}
	}
	for name, want := range union(further.Units, desired.Units) {
		u, err := s.m.Units.Unit(ctx, name)
		if err != nil {
			return state, err
		}
		state.Units[name] = plan.Unit{Object: want.Object, Enabled: u.Enabled, Active: u.Active, Ready: u.Ready, Masked: u.Masked, Stale: u.Stale,
			Runs: s.rec.Runs[name], State: u.State, Status: u.Status}
	}
	if desired.User != nil {
		_, exists := s.found.UIDs[desired.User.Name]
		state.User = &plan.User{Name: desired.User.Name, Exists: exists}
	}
	for name := range desired.Sysctls {
		state.Sysctls[name] = s.found.Sysctls[name]
	}
	return state, nil
}

// union has what is in either; of two for one name, the second counts.
func union[V any](first, second map[string]V) map[string]V {
	all := map[string]V{}
	maps.Copy(all, first)
	maps.Copy(all, second)
	return all
}

// file reads one file; want says what it is for.
func (s *session) file(p string, want plan.File) (plan.File, bool, error) {
	f, err := s.m.Files.Read(p)
	if errors.Is(err, fs.ErrNotExist) {
		return plan.File{}, false, nil
	}
	have := want
	have.Pending = false
	if errors.Is(err, host.ErrNotOwned) || err == nil && f.Dir != want.Dir {
		have.Foreign, have.Data = true, nil
		return have, true, nil
	}
	if err != nil {
		return plan.File{}, false, err
	}
	have.Mode, have.Owner, have.Group, have.Data = f.Mode, f.Owner, f.Group, f.Data
	if !f.Dir {
		ever, last := s.rec.wrote(p, f.Data)
		have.Foreign = !ever && !plan.HasHeader(f.Data) && !s.adopts(p, f.Data)
		have.Edited = ever && !last
	}
	return have, true, nil
}

// line reads the pair's line in a file.
func (s *session) line(p string, want plan.Line) (plan.Line, bool, error) {
	have := want
	have.Pending = false
	f, err := s.m.Files.Read(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return plan.Line{}, false, nil
	case errors.Is(err, host.ErrNotOwned), err == nil && f.Dir:
		have.Foreign = true
		return have, true, nil
	case err != nil:
		return plan.Line{}, false, err
	}
	text, ok := want.Find(f.Data)
	have.Text = text
	return have, ok, nil
}

// adopts is whether a file that lockstep did not write is the definition that is asked for: whoever put it there by hand
// wants the same.
func (s *session) adopts(p string, data []byte) bool {
	if p != plan.DefinitionFile(s.req.Pair.Name) {
		return false
	}
	have, err := plan.ParseDefinition(data)
	return err == nil && bytes.Equal(have.Render(), s.req.Pair.Render())
}

// foreignWords says what is wrong with a file that is in the way, and what to do about it.
func foreignWords(p string, have, want plan.File) (words, hint string) {
	words, hint = fmt.Sprintf("%s: %v", p, host.ErrNotOwned), "move it away, then try again"
	if want.Rank != plan.RankDefinition || have.Data == nil {
		return words, hint
	}
	other, err := plan.ParseDefinition(have.Data)
	if err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		return words + ", and it is not a definition of this pair: " + first, hint
	}
	return words + ", and it says something else than this definition: " + plan.LineWords(other.Render(), want.Data[bytes.IndexByte(want.Data, '\n')+1:]),
		"write the same there and here, and it is taken over; or move it away, then try again"
}

// foreign lists the files that are in the way: there, needed and not lockstep's; and those out of which a line has to go.
func foreign(current, desired plan.State) []plan.Problem {
	var problems []plan.Problem
	for _, p := range slices.Sorted(maps.Keys(desired.Files)) {
		want := desired.Files[p]
		have, ok := current.Files[p]
		if !ok || !have.Foreign || want.Object == "directory" {
			continue // the user's directory has a message of its own
		}
		words, hint := foreignWords(p, have, want)
		problems = append(problems, plan.Problem{Path: want.Object, Msg: words, Hint: hint})
	}
	for _, p := range slices.Sorted(maps.Keys(current.Lines)) {
		if !current.Lines[p].Foreign {
			continue
		}
		problem := plan.Problem{Path: "login", Msg: p + " is no plain file, and lockstep does not follow links to it",
			Hint: "put a plain file there, or name another in AuthorizedKeysFile of sshd_config(5)"}
		if _, wanted := desired.Lines[p]; !wanted { // and sshd may still find it
			problem.Msg += ": the line that lets the source host in cannot be taken out"
			problem.Hint = "put a plain file there, if only for so long, then try again"
		}
		problems = append(problems, problem)
	}
	return problems
}

// othersDirs takes the directories out of a state that were there before us.
func (s *session) othersDirs(current *plan.State, desired plan.State) {
	for p, f := range current.Files {
		if _, wanted := desired.Files[p]; f.Dir && !f.Tree && !wanted && !s.rec.Dirs[p] {
			delete(current.Files, p)
		}
	}
}

// inspect fills s.found and s.facts.
func (s *session) inspect(ctx context.Context, q host.Query) error {
	p := s.req.Pair
	found, err := s.m.System.Inspect(ctx, q)
	if err != nil {
		return err
	}
	s.found = found
	if s.reply.Versions != nil {
		maps.Copy(s.reply.Versions, found.Versions)
	}
	f := plan.Facts{
		Root: found.Root, Systemd: found.Systemd, Untrusted: found.Untrusted,
		OS:        found.OS["ID"] + " " + found.OS["ID_LIKE"],
		Addresses: found.Addresses[p.Source.Address],
		Dirs:      map[string]plan.Dir{},
		Rsync:     found.Rsync,
		SSH:       found.SSH,
		SSHD:      (*plan.SSHD)(found.SSHD),
		SELinux:   (*plan.SELinux)(found.SELinux),
		Firewall:  (*plan.Firewall)(found.Firewall),
	}
	for _, name := range q.Users {
		if _, ok := found.UIDs[name]; !ok && name == p.Backup.UID {
			f.NoUser = name
		}
	}
	for _, name := range q.Groups {
		if _, ok := found.GIDs[name]; !ok {
			f.NoGroup = name
		}
	}
	before := s.rec.Pairs[p.Name][plan.Backup]
	if len(f.Addresses) == 0 && p.Source.Address == before.Ends.SourceAddress {
		f.Addresses = before.Addresses // a name server that is away changes nothing
	}
	for name, d := range found.Dirs {
		dir := plan.Dir{Exists: d.Exists, IsDir: d.IsDir, Symlink: d.Symlink, ReadOnly: d.ReadOnly, FS: d.FS, Mount: d.Mount, Entries: d.Entries}
		if before.Ends.BackupPath == name { // another directory may be on another disk
			dir.WasFS, dir.WasMount = before.FS, before.Mount
		}
		f.Dirs[name] = dir
	}
	s.facts = f
	return nil
}

// tenants reads the definitions of all pairs on this host; this pair counts with its new definition and role.
func (s *session) tenants() []plan.Tenant {
	tenants := []plan.Tenant{{Pair: s.req.Pair, Roles: append(s.rec.roles(s.req.Pair.Name), s.cmd.Role)}}
	for _, name := range slices.Sorted(maps.Keys(s.rec.Pairs)) {
		if name == s.req.Pair.Name {
			continue
		}
		if p, ok := s.known(name); ok {
			tenants = append(tenants, plan.Tenant{Pair: p, Roles: s.rec.roles(name)})
		}
	}
	return tenants
}

// known is the definition that is kept on this host or, when it cannot be read, as much as the record has of it.
func (s *session) known(name string) (plan.Definition, bool) {
	if p, err := s.stored(name); err == nil {
		return p, true
	}
	return s.rec.ends(name)
}

// applied is the definition that was last applied in any role, as far as the record has it: the file may have been edited.
func (s *session) applied(name string) (plan.Definition, bool) {
	if p, ok := s.rec.ends(name); ok || len(s.rec.Pairs[name]) == 0 {
		return p, ok
	}
	p, err := s.stored(name)
	return p, err == nil
}

// systemRsyncd is the configuration of the distribution's own daemon.
const systemRsyncd = "/etc/rsyncd.conf"

// exports lists the modules that lockstep does not serve itself. A file that cannot be parsed has none, neither for
// its daemon. One that cannot be read may have any.
func (s *session) exports() (exports []plan.Export, unread []plan.Problem) {
	seen := map[string]bool{}
	var read func(file string, depth int)
	read = func(file string, depth int) {
		if seen[file] || depth > 5 {
			return
		}
		seen[file] = true
		real := s.m.Files.Real(file) // the daemon follows links
		if real == "/dev/null" {
			return
		}
		f, err := s.m.Files.Read(real)
		if errors.Is(err, fs.ErrNotExist) || f.Dir {
			return
		}
		if err != nil {
			unread = append(unread, plan.Problem{Path: "backup.path", Msg: fmt.Sprintf("it cannot be told whether %s is exported already: %v", s.req.Pair.Backup.Path, err),
				Hint: "mend " + file + ", or move it away"})
			return
		}
		conf, err := rsyncd.Parse(f.Data)
		if err != nil {
			return
		}
		for _, m := range conf.Modules {
			if p := conf.Get(m, "path"); path.IsAbs(p) {
				exports = append(exports, plan.Export{File: file, Module: m.Name, Path: path.Clean(p)})
			}
		}
		for _, inc := range conf.Includes {
			suffix := ".conf"
			if inc.Merge {
				suffix = ".inc"
			}
			names, err := s.m.Files.List(inc.Path)
			if err != nil {
				read(inc.Path, depth+1)
				continue
			}
			for _, name := range names {
				if strings.HasSuffix(name, suffix) {
					read(path.Join(inc.Path, name), depth+1)
				}
			}
		}
	}
	read(systemRsyncd, 0)
	names, err := s.m.Files.List(plan.RsyncdDir)
	if err != nil {
		return exports, unread
	}
	for _, name := range names {
		file := path.Join(plan.RsyncdDir, name)
		if f, _ := s.m.Files.Read(s.m.Files.Real(file)); strings.HasSuffix(name, ".conf") && !plan.HasHeader(f.Data) {
			if _, ours := s.rec.Files[file]; !ours {
				read(file, 0)
			}
		}
	}
	return exports, unread
}

// follow finds out where the paths lead that must not meet.
func (s *session) follow() {
	s.facts.Real = map[string]string{}
	follow := func(paths ...string) {
		for _, p := range paths {
			if p != "" {
				s.facts.Real[p] = s.m.Files.Real(p)
			}
		}
	}
	follow(s.req.Pair.Source.Path, s.req.Pair.Backup.Path)
	for _, t := range s.facts.Tenants {
		follow(t.Pair.Source.Path, t.Pair.Backup.Path)
	}
	for _, e := range s.facts.Exports {
		follow(e.Path)
	}
}

// number is the value of a setting in a file of ours, as the file is on disk; 0 without one.
func (s *session) number(file, setting string) int {
	f, err := s.m.Files.Read(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(f.Data)) {
		if name, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == setting {
			return atoi(strings.TrimSpace(value))
		}
	}
	return 0
}

func atoi(text string) int {
	n, _ := strconv.Atoi(text) // what is not a number is none
	return n
}
