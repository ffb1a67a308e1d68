// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/lockstep-sync/lockstep/agent/plan"
)

// states are what the two hosts of a definition should be; of none, nothing.
func states(t *testing.T, definition string) (source, backup plan.State) {
	t.Helper()
	if definition == "" {
		return plan.State{}, plan.State{}
	}
	p := parse(t, definition)
	secret := plan.Secret{User: "lockstep-1", Password: "hunter2", Key: "key"}
	in := plan.SourceInputs{Binary: "/usr/local/bin/lockstep", Digest: "1", Secret: &secret}
	if plan.BySSH(p) {
		in.SSHKey, in.HostKeys = []byte("private hunter2\n"), []string{"ssh-ed25519 AAAAhost"}
	}
	source = plan.SourceState(p, in)
	if p.HooksOnly() {
		return source, plan.State{}
	}
	backup, err := plan.BackupState(p, plan.BackupInputs{Rsync: "/usr/bin/rsync", Allow: []string{"172.16.1.31"}, Secrets: []plan.Secret{secret},
		AuthorizedKeys: "/root/.ssh/authorized_keys", SSHKey: "ssh-ed25519 AAAAsource"})
	if err != nil {
		t.Fatal(err)
	}
	return source, backup
}

// removable is a state that may be led back to nothing: without the directories of the user's data, as destroy has it.
func removable(s plan.State) plan.State {
	s.Files = maps.Clone(s.Files)
	maps.DeleteFunc(s.Files, func(_ string, f plan.File) bool { return f.Keep })
	return s
}

// Each archive has a definition before and one after, of which one may be empty, and then the steps on the two hosts in their
// order, with the lines of files that are updated.
func TestStepsFromOneDefinitionToAnother(t *testing.T) {
	t.Parallel()
	archives(t, "testdata/steps/*.txtar", func(t *testing.T, archive *txtar.Archive) []txtar.File {
		source0, backup0 := states(t, string(archive.Files[0].Data))
		source1, backup1 := states(t, string(archive.Files[1].Data))
		if len(archive.Files[1].Data) == 0 {
			source0, backup0 = removable(source0), removable(backup0)
		}
		got := archive.Files[:2:2]
		for _, host := range []struct {
			role     string
			from, to plan.State
		}{{"source", source0, source1}, {"backup", backup0, backup1}} {
			var text strings.Builder
			for _, s := range plan.Diff(host.from, host.to) {
				if s.Kind == plan.DaemonReload {
					text.WriteString("daemon-reload\n")
					continue
				}
				fmt.Fprintf(&text, "%s %s (%s)\n", s.Action, s.Path, s.Object)
				if strings.Contains(s.Diff, "hunter2") {
					t.Errorf("%s: a secret is shown", s.Path)
				}
				if s.Action == "update" { // what is made has archives of its own
					for line := range strings.Lines(s.Diff) {
						text.WriteString("  " + line)
					}
				}
			}
			got = append(got, txtar.File{Name: host.role, Data: []byte(text.String())})
		}
		return got
	})
}

func TestWhatDiffersIsToldOfItsObject(t *testing.T) {
	t.Parallel()
	edit := func(p string, change func(*plan.File)) func(*plan.State) {
		return func(s *plan.State) { changed(s.Files, p, change) }
	}
	unit := func(name string, change func(*plan.Unit)) func(*plan.State) {
		return func(s *plan.State) { changed(s.Units, name, change) }
	}
	byHand := func(old, now string) func(*plan.File) {
		return func(f *plan.File) {
			f.Data, f.Edited = []byte(strings.Replace(string(f.Data), old, now, 1)), true
		}
	}
	const agent, daemon = "lockstep@data.service", "lockstep-rsyncd.service"
	for _, tt := range []struct {
		name    string
		role    plan.Role
		change  func(*plan.State)
		desired func(*plan.State)
		check   string // object and words
		steps   string
	}{
		{name: "nothing", role: plan.Source},
		{name: "definition edited", role: plan.Source, change: edit(plan.DefinitionFile("data"), byHand("enabled: true", "enabled: false")),
			check: "definition: changed by hand: delete.enabled: false (should be true) in /etc/lockstep/pairs/data.yaml",
			steps: "update /etc/lockstep/pairs/data.yaml, restart lockstep@data.service"}, // it may have been reloaded with it
		{name: "definition of before", role: plan.Source, change: edit(plan.DefinitionFile("data"), func(f *plan.File) { f.Data = []byte(strings.Replace(string(f.Data), "20ms", "30ms", 1)) }),
			check: "definition: differs: watch.delay: 30ms (should be 20ms) in /etc/lockstep/pairs/data.yaml", steps: "update /etc/lockstep/pairs/data.yaml"},
		{name: "secret edited", role: plan.Source, change: edit(plan.SecretFile("data"), byHand("hunter2", "hunter3")),
			check: "secret: changed by hand in /etc/lockstep/secrets/data", steps: "update /etc/lockstep/secrets/data, restart lockstep@data.service"},
		{name: "secret readable", role: plan.Source, change: edit(plan.SecretFile("data"), func(f *plan.File) { f.Mode = 0o644 }),
			check: "secret: /etc/lockstep/secrets/data has mode 0644 instead of 0600", steps: "update /etc/lockstep/secrets/data"},
		{name: "secret of somebody", role: plan.Source, change: edit(plan.SecretFile("data"), func(f *plan.File) { f.Owner = "www" }),
			check: "secret: /etc/lockstep/secrets/data belongs to www:root instead of root:root", steps: "update /etc/lockstep/secrets/data"},
		{name: "secret not known yet", role: plan.Source, desired: edit(plan.SecretFile("data"), func(f *plan.File) { f.Pending = true }),
			check: "secret: differs in /etc/lockstep/secrets/data", steps: "update /etc/lockstep/secrets/data, restart lockstep@data.service"},
		{name: "unit file edited", role: plan.Source, change: edit(plan.SystemdDir+"/lockstep@.service", byHand("Type=notify", "Type=simple")),
			check: "unit: changed by hand: Type=simple in /etc/systemd/system/lockstep@.service",
			steps: "update /etc/systemd/system/lockstep@.service, daemon-reload, restart lockstep@data.service"},
		{name: "unit file missing", role: plan.Source, change: func(s *plan.State) { delete(s.Files, plan.SystemdDir+"/lockstep@.service") },
			check: "unit: /etc/systemd/system/lockstep@.service is missing",
			steps: "create /etc/systemd/system/lockstep@.service, daemon-reload, restart lockstep@data.service"},
		{name: "unit file not read", role: plan.Source, change: unit(agent, func(u *plan.Unit) { u.Stale = true }), steps: "daemon-reload"},
		{name: "agent stopped", role: plan.Source, change: unit(agent, func(u *plan.Unit) { u.Active = false }), check: "service: lockstep@data.service is stopped", steps: "start lockstep@data.service"},
		{name: "agent failed", role: plan.Source, change: unit(agent, func(u *plan.Unit) { u.Active, u.State = false, "failed (failed)" }),
			check: "service: lockstep@data.service is failed (failed)", steps: "start lockstep@data.service"},
		{name: "agent disabled", role: plan.Source, change: unit(agent, func(u *plan.Unit) { u.Enabled = false }), check: "service: lockstep@data.service is disabled", steps: "enable lockstep@data.service"},
		{name: "agent masked and stopped", role: plan.Source, change: unit(agent, func(u *plan.Unit) { u.Masked, u.Enabled, u.Active = true, false, false }),
			check: "service: lockstep@data.service is masked; lockstep@data.service is stopped", steps: "enable lockstep@data.service, start lockstep@data.service"},
		{name: "agent runs what was", role: plan.Source, change: unit(agent, func(u *plan.Unit) { u.Runs.Start = "before" }),
			check: "service: lockstep@data.service was started before the last change", steps: "restart lockstep@data.service"},
		{name: "agent has not reloaded", role: plan.Source, change: unit(agent, func(u *plan.Unit) { u.Runs.Load = "before" }),
			check: "service: lockstep@data.service has not read its definition again", steps: "reload lockstep@data.service"},
		{name: "a limit too low", role: plan.Source, desired: func(s *plan.State) { s.Sysctls = map[string]string{plan.MaxUserWatches: "65536"} },
			change: func(s *plan.State) { s.Sysctls = map[string]string{plan.MaxUserWatches: "8192"} },
			check:  "limits: fs.inotify.max_user_watches is 8192, needs 65536", steps: "update fs.inotify.max_user_watches"},
		{name: "user missing", role: plan.Source, change: func(s *plan.State) { s.User = &plan.User{Name: "lockstep"} },
			check: "unit: user lockstep is missing", steps: "create user lockstep"},
		{name: "user not needed", role: plan.Source, desired: func(s *plan.State) { s.User = nil },
			check: "unit: user lockstep is no longer needed", steps: "delete user lockstep"},
		{name: "a file not needed", role: plan.Source, desired: func(s *plan.State) { delete(s.Files, plan.SystemdDir+"/lockstep@data.service.d/50-lockstep.conf") },
			check: "unit: /etc/systemd/system/lockstep@data.service.d/50-lockstep.conf is no longer needed",
			steps: "delete /etc/systemd/system/lockstep@data.service.d/50-lockstep.conf, daemon-reload, restart lockstep@data.service"},
		{name: "somebody else's file, not needed", role: plan.Source,
			change: func(s *plan.State) { s.Files["/etc/lockstep/notes"] = plan.File{Object: "definition", Foreign: true} }},
		{name: "state not needed", role: plan.Source,
			change: func(s *plan.State) {
				s.Files["/var/lib/lockstep/data"] = plan.File{Object: "service", Rank: plan.RankData, Dir: true, Tree: true}
			},
			check: "service: /var/lib/lockstep/data is no longer needed", steps: "delete /var/lib/lockstep/data"},
		{name: "a unit not needed", role: plan.Source, desired: func(s *plan.State) { delete(s.Units, agent) },
			check: "service: lockstep@data.service runs; lockstep@data.service is enabled", steps: "stop lockstep@data.service, disable lockstep@data.service"},

		{name: "module edited", role: plan.Backup, change: edit(plan.ModuleFile("data"), byHand("use chroot = yes", "use chroot = no")),
			check: "module: changed by hand: use chroot = no (should be yes) in /etc/lockstep/rsyncd.d/data.conf",
			steps: "update /etc/lockstep/rsyncd.d/data.conf"}, // the daemon reads it at each connection
		{name: "daemon's file edited", role: plan.Backup, change: edit(plan.RsyncdConf, byHand("port = 873", "port = 8730")),
			check: "daemon: changed by hand: port = 8730 (should be 873) in /etc/lockstep/rsyncd.conf",
			steps: "update /etc/lockstep/rsyncd.conf, restart lockstep-rsyncd.service"},
		{name: "secrets edited", role: plan.Backup, change: edit(plan.SecretsFile("data"), byHand("hunter2", "hunter3")),
			check: "secrets: changed by hand in /etc/lockstep/secrets/data.secrets", steps: "update /etc/lockstep/secrets/data.secrets"},
		{name: "daemon stopped", role: plan.Backup, change: unit(daemon, func(u *plan.Unit) { u.Active = false }), check: "daemon: lockstep-rsyncd.service is stopped", steps: "start lockstep-rsyncd.service"},
		{name: "directory gone", role: plan.Backup, change: func(s *plan.State) { delete(s.Files, "/backup/nfs01"); delete(s.Files, "/backup") },
			check: "directory: /backup is missing; /backup/nfs01 is missing", steps: "create /backup, create /backup/nfs01"},
		{name: "directory as the data has it", role: plan.Backup, change: edit("/backup/nfs01", func(f *plan.File) { f.Mode, f.Owner = 0o2775, "www" })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var states [2]plan.State
			for i := range states {
				states[i] = stateOf(t, short, tt.role)
			}
			current, desired := states[0], states[1]
			if tt.change != nil {
				tt.change(&current)
			}
			if tt.desired != nil {
				tt.desired(&desired)
			}
			steps := plan.Diff(current, desired)
			p := sample(t)
			want := map[string]string{}
			for _, object := range plan.Objects(tt.role, p.Transport) {
				want[object] = plan.InSync
			}
			if object, words, ok := strings.Cut(tt.check, ": "); ok {
				want[object] = words
			}
			if diff := cmp.Diff(want, plan.Checks(tt.role, p, steps)); diff != "" {
				t.Errorf("checks (-want +got):\n%s", diff)
			}
			var got []string
			for _, s := range steps {
				if s.Kind == plan.DaemonReload {
					got = append(got, "daemon-reload")
				} else {
					got = append(got, s.Action+" "+s.Path)
				}
			}
			if diff := cmp.Diff(tt.steps, strings.Join(got, ", ")); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			seen := slices.DeleteFunc(got, func(s string) bool { return s == "daemon-reload" })
			if changes := plan.Changes(steps); len(changes) != len(seen) || changes == nil {
				t.Errorf("people see %v", changes)
			}
		})
	}
}

// changed changes a value that a map has.
func changed[V any](all map[string]V, key string, change func(*V)) {
	value, ok := all[key]
	if !ok {
		panic("no " + key)
	}
	change(&value)
	all[key] = value
}

func stateOf(t *testing.T, definition string, role plan.Role) plan.State {
	t.Helper()
	source, backup := states(t, definition)
	if role == plan.Source {
		return source
	}
	return backup
}

// machine is a host that can be no other way than a host can be: a file needs its directory, a unit its file.
type machine struct{ plan.State }

func (m machine) do(s plan.Step) error {
	switch s.Kind {
	case plan.AddUser:
		m.User.Exists = true
	case plan.RemoveUser:
		m.User.Exists = false
	case plan.WriteFile:
		if parent, ok := m.Files[path.Dir(s.Path)]; !ok && (path.Dir(s.Path) == plan.EtcDir || strings.HasPrefix(path.Dir(s.Path), plan.EtcDir+"/")) || ok && !parent.Dir {
			return fmt.Errorf("%s is written before its directory", s.Path)
		}
		m.Files[s.Path] = s.File
	case plan.RemoveFile, plan.RemoveTree:
		for p := range m.Files {
			if strings.HasPrefix(p, s.Path+"/") && s.Kind == plan.RemoveFile {
				return fmt.Errorf("%s is removed before %s", s.Path, p)
			}
		}
		delete(m.Files, s.Path)
	case plan.WriteLine:
		m.Lines[s.Path] = s.Line
	case plan.RemoveLine:
		delete(m.Lines, s.Path)
	case plan.SetSysctl:
		m.Sysctls[s.Name] = s.Arg
	case plan.DaemonReload:
		for name, u := range m.Units {
			u.Stale = false
			m.Units[name] = u
		}
	case plan.StopUnit, plan.DisableUnit, plan.EnableUnit, plan.StartUnit, plan.RestartUnit, plan.ReloadUnit:
		u := m.Units[s.Name]
		switch s.Kind {
		case plan.StopUnit:
			u.Active, u.Runs = false, plan.Runs{}
		case plan.DisableUnit:
			u.Enabled = false
		case plan.EnableUnit:
			u.Enabled, u.Masked = true, false
		case plan.ReloadUnit:
			if u.Runs.Start != s.Runs.Start {
				return fmt.Errorf("%s is only reloaded", s.Name)
			}
			u.Runs = s.Runs
		default:
			u.Object, u.Active, u.Runs = s.Object, true, s.Runs
		}
		m.Units[s.Name] = u
	}
	return nil
}

func TestStepsLeadFromAnyStateToAnyOther(t *testing.T) {
	t.Parallel()
	definitions := []string{"", short, short + "exclude: [x]\n", short + "transport: ssh\n", short + "watch: {backend: inotify}\n",
		"name: data\nsource: {host: nfs01, path: /tmp/data}\nbackup: {host: backup, path: /b, port: 8730, uid: backup}\n",
		"name: data\nsource: {host: nfs01, path: /data}\ntransport: none\nhooks: [{name: tell, type: command, argv: [/bin/true]}]\n"}
	for _, role := range []plan.Role{plan.Source, plan.Backup} {
		for i, from := range definitions {
			for k, to := range definitions {
				current, desired := removable(stateOf(t, from, role)), stateOf(t, to, role)
				// As reading the host finds it: what is asked about is there, if only as absent.
				m := machine{plan.State{User: &plan.User{Name: "lockstep", Exists: current.User != nil}, Files: maps.Clone(current.Files),
					Lines: maps.Clone(current.Lines), Units: maps.Clone(current.Units), Sysctls: map[string]string{}}}
				if m.Files == nil {
					m.Files, m.Units = map[string]plan.File{}, map[string]plan.Unit{}
				}
				if m.Lines == nil {
					m.Lines = map[string]plan.Line{}
				}
				for _, s := range plan.Diff(m.State, desired) {
					if err := m.do(s); err != nil {
						t.Errorf("%s from %d to %d: %v", role, i, k, err)
					}
				}
				if again := plan.Diff(m.State, desired); len(again) > 0 {
					t.Errorf("%s from %d to %d: then still %+v", role, i, k, plan.Changes(again))
				}
			}
		}
	}
}

func TestWhatDiffersInALineIsTold(t *testing.T) {
	t.Parallel()
	const file = "/root/.ssh/authorized_keys"
	_, backup := states(t, short+"transport: ssh\n")
	want := backup.Lines[file]
	for _, tt := range []struct {
		name    string
		have    string // "" = none
		pending bool
		words   string
	}{
		{name: "the same", have: want.Text},
		{name: "none", words: file + " lacks the line that lets the source host in"},
		{name: "the key is not known yet", have: want.Text, pending: true, words: file + " has another key than the source host"},
		{name: "another key", have: strings.Replace(want.Text, "AAAAsource", "AAAAother", 1), words: file + " has another key than the source host"},
		{name: "more rights", have: strings.Replace(want.Text, "restrict,", "", 1), words: `changed by hand in ` + file + `: command="/usr/bin/rsync --server --daemon --config=/etc/lockstep/ssh/data.conf ."`},
		{name: "very many rights", have: strings.Repeat("x", 200) + want.Text, words: "changed by hand in " + file + ": " + strings.Repeat("x", 100) + "…"},
		{name: "another comment", have: want.Text + " more", words: "changed by hand in " + file},
		{name: "twice", have: want.Text + "\n" + want.Text, words: file + " has 2 lines of the pair"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			desired, current := want, want
			desired.Pending, current.Text = tt.pending, tt.have
			now := plan.State{Lines: map[string]plan.Line{}}
			if tt.have != "" {
				now.Lines[file] = current
			}
			words, shown := "", ""
			for _, s := range plan.Diff(now, plan.State{Lines: map[string]plan.Line{file: desired}}) {
				words, shown = words+s.Words, shown+s.Diff
				if s.Kind != plan.WriteLine || s.Object != "login" || s.Path != file {
					t.Errorf("%+v", s)
				}
			}
			if words != tt.words {
				t.Errorf("%q, want %q", words, tt.words)
			}
			if words != "" && !tt.pending && !strings.Contains(shown, "+"+want.Text+"\n") && !strings.Contains(shown, "-"+want.Text+"\n") {
				t.Errorf("shown:\n%s", shown)
			}
		})
	}
	t.Run("no longer needed", func(t *testing.T) {
		t.Parallel()
		steps := plan.Diff(plan.State{Lines: map[string]plan.Line{file: want}}, plan.State{})
		if len(steps) != 1 || steps[0].Kind != plan.RemoveLine || steps[0].Words != file+" lets in a key that is no longer needed" || !strings.Contains(steps[0].Diff, "-"+want.Text) {
			t.Errorf("%+v", steps)
		}
		foreign := want
		foreign.Foreign = true
		if steps := plan.Diff(plan.State{Lines: map[string]plan.Line{file: foreign}}, plan.State{}); len(steps) > 0 {
			t.Errorf("of a file that is no plain one: %+v", steps)
		}
	})
}
