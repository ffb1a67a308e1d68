// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

var update = flag.Bool("update", false, "rewrite the expected files in testdata")

// Each archive has a definition and then every file that the two hosts get from it.
func TestFilesOfADefinition(t *testing.T) {
	t.Parallel()
	archives(t, "testdata/*.txtar", func(t *testing.T, archive *txtar.Archive) []txtar.File {
		p := parse(t, string(archive.Files[0].Data))
		secret := plan.Secret{User: p.Auth.User + "-2", Password: "new", Key: "key2"}
		source := plan.SourceState(p, plan.SourceInputs{Binary: "/usr/local/bin/lockstep", Digest: "1", Secret: &secret,
			Watches: 100_000, HaveWatches: 8192, WatchesWritable: true,
			SSHKey: []byte("private key\n"), HostKeys: []string{"ecdsa-sha2-nistp256 AAAAhost", "ssh-ed25519 AAAAhost"}})
		backup, err := plan.BackupState(p, plan.BackupInputs{Rsync: "/usr/bin/rsync", Allow: []string{"172.16.1.31", "fd00::31"},
			Secrets:        []plan.Secret{{User: p.Auth.User + "-1", Password: "old", Key: "key1"}, secret},
			AuthorizedKeys: "/root/.ssh/authorized_keys", SSHKey: "ssh-ed25519 AAAAsource"})
		if err != nil {
			t.Fatal(err)
		}
		got := archive.Files[:1:1]
		for _, host := range []struct {
			role  string
			state plan.State
		}{{"source", source}, {"backup", backup}} {
			for _, path := range slices.Sorted(maps.Keys(host.state.Files)) {
				f := host.state.Files[path]
				text := string(f.Data)
				if f.Dir {
					text = ""
				}
				head := fmt.Sprintf("%s %s %04o %s:%s", host.role, path, f.Mode, f.Owner, f.Group)
				got = append(got, txtar.File{Name: head, Data: []byte(text)})
			}
		}
		for _, path := range slices.Sorted(maps.Keys(backup.Lines)) {
			got = append(got, txtar.File{Name: "backup line in " + path, Data: []byte(backup.Lines[path].Text + "\n")})
		}
		return got
	})
}

// archives compares each archive with what it should be: its own beginning, and what is made of that. With -update it becomes so.
func archives(t *testing.T, pattern string, made func(*testing.T, *txtar.Archive) []txtar.File) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%d archives, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := txtar.Format(&txtar.Archive{Comment: archive.Comment, Files: made(t, archive)})
			if *update {
				if err := os.WriteFile(name, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(txtar.Format(archive)), string(got)); diff != "" {
				t.Errorf("-want +got (go test -update rewrites):\n%s", diff)
			}
		})
	}
}

func parse(t *testing.T, definition string) pair.Pair {
	t.Helper()
	p, err := pair.Parse([]byte(definition))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// short is a definition that leaves to the defaults what can be left.
const short = "name: data\nsource: {host: nfs01, path: /data}\nbackup: {host: backup, path: /backup/nfs01}\n"

func sample(t *testing.T, lines ...string) pair.Pair {
	t.Helper()
	return parse(t, short+strings.Join(lines, "\n"))
}

func TestOnlyWhatTheAgentCannotReloadRestartsIt(t *testing.T) {
	t.Parallel()
	runs := func(lines ...string) plan.Runs {
		state := plan.SourceState(sample(t, lines...), plan.SourceInputs{Binary: "/usr/bin/lockstep", Secret: &plan.Secret{User: "u", Password: "p"}})
		return state.Units["lockstep@data.service"].Runs
	}
	base := runs()
	for line, restart := range map[string]bool{
		`exclude: ["*.tmp"]`: false, "paused: true": false, "delete: {max_files: 5}": false, "transfer: {parallel: 4}": false, "full: {every: 1h}": false,
		"watch: {delay: 1s}": false, "watch: {backend: inotify}": true, `metrics: {listen: ":9000"}`: true,
	} {
		got := runs(line)
		if (got.Start != base.Start) != restart || got.Load == base.Load {
			t.Errorf("%s: restart %v, want %v; reload %v", line, got.Start != base.Start, restart, got.Load != base.Load)
		}
	}
}

func TestLimitsAreRaisedOnlyWhenTheyMust(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		need, have, file int
		wantFile         string
		wantSet          string
	}{
		{need: 0, have: 10},
		{need: 1000, have: 8192},
		{need: 10_000, have: 8192, wantFile: "65536", wantSet: "65536"},
		{need: 100_000, have: 8192, wantFile: "262144", wantSet: "262144"},
		{need: 100_000, have: 8192, file: 200_000, wantFile: "200000", wantSet: "200000"}, // a boot that did not take it
		{need: 100_000, have: 200_000, file: 200_000, wantFile: "200000"},
		{need: 100_000, have: 500_000, file: 8192, wantFile: "500000"}, // never lowered
	} {
		state := plan.SourceState(sample(t), plan.SourceInputs{Binary: "/usr/bin/lockstep", Watches: tc.need, HaveWatches: tc.have, FileWatches: tc.file, WatchesWritable: true})
		file := ""
		if f, ok := state.Files[plan.SysctlFile]; ok {
			_, value, _ := strings.Cut(string(f.Data), " = ")
			file = strings.TrimSpace(value)
		}
		if file != tc.wantFile || state.Sysctls[plan.MaxUserWatches] != tc.wantSet {
			t.Errorf("need %d, have %d, file %d: file %q, set %q", tc.need, tc.have, tc.file, file, state.Sysctls[plan.MaxUserWatches])
		}
	}
}

func TestGenerationsCountUp(t *testing.T) {
	t.Parallel()
	for user, want := range map[string]int{"lockstep-7": 7, "a-b-12": 12, "lockstep": 0, "lockstep-": 0, "x-y": 0, "-3": 3} {
		if got := plan.Generation(user); got != want {
			t.Errorf("generation of %q is %d, want %d", user, got, want)
		}
	}
	if got := plan.NextUser("other", []plan.Secret{{User: "lockstep-9"}, {User: "lockstep-10"}}); got != "other-11" {
		t.Errorf("next user is %q", got)
	}
}

func TestSecretFileIsReadBack(t *testing.T) {
	t.Parallel()
	for _, s := range []plan.Secret{{User: "u-1", Password: " p:#", Key: "k"}, {User: "u-1", Password: "p"}} {
		got, ok := plan.ParseSecretData(plan.SecretData(s))
		if !ok || got != s {
			t.Errorf("%+v, %v", got, ok)
		}
	}
	for _, text := range []string{"", "password\n", "\nuser\n"} {
		if _, ok := plan.ParseSecretData([]byte(text)); ok {
			t.Errorf("%q was read", text)
		}
	}
}
