// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
)

// Step is one change to a host, with what is needed to make it. Object is empty for a step that only serves
// others and that nobody needs to see.
type Step struct {
	Change
	Kind Kind
	File File   // to be written; for RemoveFile as it was
	Line Line   // to be written; for RemoveLine as it was
	Name string // unit, user or sysctl
	Arg  string // a sysctl's value
	Runs Runs   // what a unit will have been started with
	// Content is whether a written file gets another content, and not only another mode or owner.
	Content bool
	// Astray is whether the content that is replaced was not lockstep's last, or was missing: no record tells then
	// what a process has read.
	Astray bool
	// Words say what differs, for Reply.Checks.
	Words string
}

// Kind is what a step does.
type Kind int

// The kinds of steps, in the order of a plan.
const (
	AddUser      Kind = iota
	StopUnit          // of a unit that goes away
	DisableUnit       //
	RemoveLine        // before what it leads to
	WriteFile         //
	WriteLine         //
	RemoveFile        //
	RemoveTree        //
	DaemonReload      //
	SetSysctl         //
	EnableUnit        //
	StartUnit         //
	RestartUnit       //
	ReloadUnit        //
	RemoveUser
)

// Diff lists the steps that lead from current to desired, in an order in which each finds what it needs. What
// is in current and not in desired is removed. No step at all means that both are the same.
func Diff(current, desired State) []Step {
	var steps []Step
	add := func(s Step) { steps = append(steps, s) }

	if u := desired.User; u != nil && u.Exists && (current.User == nil || !current.User.Exists) {
		add(Step{Kind: AddUser, Name: u.Name, Words: fmt.Sprintf("user %s is missing", u.Name),
			Change: Change{Object: "unit", Path: "user " + u.Name, Action: "create"}})
	}
	steps = append(steps, leaving(current, desired)...)
	files := fileSteps(current, desired)
	steps = append(steps, files...)

	reload := slices.ContainsFunc(files, func(s Step) bool { return s.File.Rank == RankUnit || s.File.Rank == RankDropIn })
	for name := range desired.Units {
		reload = reload || current.Units[name].Stale
	}
	if reload {
		add(Step{Kind: DaemonReload})
	}
	for _, name := range slices.Sorted(maps.Keys(desired.Sysctls)) {
		have, want := current.Sysctls[name], desired.Sysctls[name]
		if have != want {
			add(Step{Kind: SetSysctl, Name: name, Arg: want, Words: fmt.Sprintf("%s is %s, needs %s", name, have, want),
				Change: Change{Object: "limits", Path: name, Action: "update", Diff: fmt.Sprintf("-%s = %s\n+%s = %s\n", name, have, name, want)}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(desired.Units)) {
		steps = append(steps, unitSteps(name, current.Units[name], desired.Units[name], files)...)
	}
	if u := current.User; u != nil && u.Exists && (desired.User == nil || !desired.User.Exists) {
		add(Step{Kind: RemoveUser, Name: u.Name, Words: fmt.Sprintf("user %s is no longer needed", u.Name),
			Change: Change{Object: "unit", Path: "user " + u.Name, Action: "delete"}})
	}
	return steps
}

// leaving stops and disables the units that desired has no more, and takes away lines before the files that they lead to.
func leaving(current, desired State) []Step {
	var steps []Step
	for _, name := range slices.Sorted(maps.Keys(current.Units)) {
		have, want := current.Units[name], desired.Units[name]
		object := have.Object
		if have.Active && !want.Active {
			steps = append(steps, Step{Kind: StopUnit, Name: name, Words: name + " runs",
				Change: Change{Object: object, Path: name, Action: "stop"}})
		}
		if have.Enabled && !want.Enabled {
			steps = append(steps, Step{Kind: DisableUnit, Name: name, Words: name + " is enabled",
				Change: Change{Object: object, Path: name, Action: "disable"}})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(current.Lines)) {
		have := current.Lines[p]
		if _, ok := desired.Lines[p]; ok || have.Foreign {
			continue
		}
		steps = append(steps, Step{Kind: RemoveLine, Line: have, Words: p + " lets in a key that is no longer needed",
			Change: Change{Object: have.Object, Path: p, Action: "update", Diff: fmt.Sprintf("--- %s\n+++ %s\n%s", p, p, unified([]byte(have.Text), nil))}})
	}
	return steps
}

func unitSteps(name string, have, want Unit, files []Step) []Step {
	var steps []Step
	// Whoever changed a file by hand may have restarted the unit with it, which no record tells.
	restart := false
	for _, f := range files {
		changed := f.Content || f.Kind == RemoveFile
		switch f.File.Rank {
		case RankUnit, RankDropIn, RankConfig:
			restart = restart || changed
		case RankSecret:
			restart = restart || changed && (f.Object == "secret" || f.Object == "login")
		case RankDefinition:
			restart = restart || f.Astray && want.Object == "service"
		}
	}
	step := func(kind Kind, action, words string) {
		steps = append(steps, Step{Kind: kind, Name: name, Runs: want.Runs, Words: words,
			Change: Change{Object: want.Object, Path: name, Action: action}})
	}
	if want.Enabled && (have.Masked || !have.Enabled) {
		words := name + " is disabled"
		if have.Masked {
			words = name + " is masked"
		}
		step(EnableUnit, "enable", words)
	}
	switch {
	case !want.Active:
	case !have.Active:
		words := name + " is stopped"
		if have.State != "" {
			words = name + " is " + have.State
		}
		step(StartUnit, "start", words)
	case restart:
		step(RestartUnit, "restart", "") // the files have words of their own
	case have.Runs.Start != want.Runs.Start:
		step(RestartUnit, "restart", name+" was started before the last change")
	case have.Runs.Load != want.Runs.Load:
		step(ReloadUnit, "reload", name+" has not read its definition again")
	}
	return steps
}

func fileSteps(current, desired State) []Step {
	var writes, removals []Step
	for p, want := range desired.Files {
		have, exists := current.Files[p]
		if s, ok := writeStep(p, have, want, exists); ok {
			writes = append(writes, s)
		}
	}
	for p, have := range current.Files {
		if _, ok := desired.Files[p]; ok || have.Foreign {
			continue
		}
		s := Step{Kind: RemoveFile, File: have, Words: p + " is no longer needed",
			Change: Change{Object: have.Object, Path: p, Action: "delete"}}
		if have.Tree {
			s.Kind = RemoveTree
		}
		if !have.Dir {
			s.Diff = fileDiff(p, &have, nil)
		}
		removals = append(removals, s)
	}
	order := func(a, b Step) int {
		if a.File.Rank != b.File.Rank {
			return int(a.File.Rank - b.File.Rank)
		}
		return strings.Compare(a.Path, b.Path) // a directory before what is in it
	}
	slices.SortFunc(writes, order)
	slices.SortFunc(removals, func(a, b Step) int { return order(b, a) })
	for _, p := range slices.Sorted(maps.Keys(desired.Lines)) {
		have, exists := current.Lines[p]
		if s, ok := lineStep(p, have, desired.Lines[p], exists); ok {
			writes = append(writes, s)
		}
	}
	return append(writes, removals...)
}

func writeStep(p string, have, want File, exists bool) (Step, bool) {
	s := Step{Kind: WriteFile, File: want, Change: Change{Object: want.Object, Path: p, Action: "update"}}
	if !exists {
		s.Action = "create"
		s.Words, s.Content, s.Astray = p+" is missing", true, true
		s.Diff = fileDiff(p, nil, &want)
		return s, true
	}
	var words []string
	if !bytes.Equal(have.Data, want.Data) || want.Pending {
		how := "differs"
		if have.Edited {
			how = "changed by hand"
		}
		if !want.Secret && !have.Secret {
			how += ": " + LineWords(have.Data, want.Data)
		}
		words = append(words, fmt.Sprintf("%s in %s", how, p))
		s.Content, s.Astray = true, have.Edited
	}
	if !want.Keep {
		if have.Mode != want.Mode {
			words = append(words, fmt.Sprintf("%s has mode %04o instead of %04o", p, have.Mode, want.Mode))
		}
		if have.Owner != want.Owner || have.Group != want.Group {
			words = append(words, fmt.Sprintf("%s belongs to %s:%s instead of %s:%s", p, have.Owner, have.Group, want.Owner, want.Group))
		}
	}
	if len(words) == 0 {
		return Step{}, false
	}
	s.Words = strings.Join(words, ", ")
	s.Diff = fileDiff(p, &have, &want)
	return s, true
}

// fileDiff is a unified diff of two files, of which one may be missing. A secret is only said to differ.
func fileDiff(p string, have, want *File) string {
	var b strings.Builder
	from, to := p, p
	var old, now []byte
	var secret bool
	describe := func(f *File) string { return fmt.Sprintf("mode %04o, owner %s:%s", f.Mode, f.Owner, f.Group) }
	if have == nil {
		from = "/dev/null"
	} else {
		old, secret = have.Data, have.Secret
	}
	if want == nil {
		to = "/dev/null"
	} else {
		now, secret = want.Data, secret || want.Secret
	}
	isDir := want != nil && want.Dir || have != nil && have.Dir
	if have != nil && want != nil && !want.Keep && describe(have) != describe(want) {
		fmt.Fprintf(&b, "%s: %s -> %s\n", p, describe(have), describe(want))
	}
	switch {
	case isDir:
		if have == nil {
			fmt.Fprintf(&b, "directory %s (%s)\n", p, describe(want))
		}
	case secret:
		if !bytes.Equal(old, now) || want != nil && want.Pending {
			fmt.Fprintf(&b, "--- %s\n+++ %s\n", from, to)
			if have != nil {
				b.WriteString("-(redacted)\n")
			}
			if want != nil {
				b.WriteString("+(redacted)\n")
			}
		}
	case !bytes.Equal(old, now):
		fmt.Fprintf(&b, "--- %s\n+++ %s\n%s", from, to, unified(old, now))
	}
	return b.String()
}

// Checks turns the steps that a role needs into Reply.Checks.
func Checks(role Role, p pair.Pair, steps []Step) map[string]string {
	checks := map[string]string{}
	for _, object := range Objects(role, p.Transport) {
		checks[object] = InSync
	}
	for _, s := range steps {
		if s.Object == "" || s.Words == "" {
			continue
		}
		if have, ok := checks[s.Object]; !ok || have == InSync {
			checks[s.Object] = s.Words
		} else {
			checks[s.Object] += "; " + s.Words
		}
	}
	return checks
}

// Objects lists the objects of a role, as in Reply.Checks.
func Objects(role Role, transport string) []string {
	switch {
	case role == Backup && transport == pair.SSH:
		return []string{"definition", "module", "secrets", "login", "directory"}
	case role == Backup:
		return []string{"definition", "module", "secrets", "daemon", "directory"}
	case transport == pair.None:
		return []string{"definition", "unit", "service", "limits", "source_dir"}
	case transport == pair.SSH:
		return []string{"definition", "secret", "login", "unit", "service", "limits", "source_dir"}
	}
	return []string{"definition", "secret", "unit", "service", "limits", "source_dir"}
}

// Changes lists what people and front ends see of the steps.
func Changes(steps []Step) []Change {
	changes := []Change{}
	for _, s := range steps {
		if s.Object != "" {
			changes = append(changes, s.Change)
		}
	}
	return changes
}
