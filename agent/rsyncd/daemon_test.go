// SPDX-License-Identifier: Apache-2.0

package rsyncd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
	"github.com/lockstep-sync/lockstep/agent/rsyncd"
)

// served asks a daemon for its modules, sorted; ok is false when it refuses the file.
func served(t *testing.T, rsync, conf string) (names []string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), rsync, "--server", "--daemon", "--config="+conf, "--log-file="+conf+".log", ".")
	cmd.Stdin = strings.NewReader("@RSYNCD: 31.0\n#list\n")
	out, _ := cmd.Output() // the status is that of a connection that ended before a transfer
	for line := range strings.Lines(string(out)) {
		if name, _, listed := strings.Cut(line, "\t"); listed {
			names = append(names, strings.TrimSpace(name))
		}
	}
	slices.Sort(names)
	return names, strings.HasSuffix(string(out), "@RSYNCD: EXIT\n")
}

// A line that the daemon ignores must not hide the modules beside it: nobody else sees that they export a directory.
func TestParseFindsTheModulesThatTheDaemonServes(t *testing.T) {
	t.Parallel()
	rsync := rsynctest.Binary(t)
	dir := t.TempDir()
	included := filepath.Join(dir, "included")
	rsynctest.MakeTree(t, included, rsynctest.Dir{"b.conf": rsynctest.File("[b]\npath = /b\n")})
	const a = "\n[a]\npath = /a\n"
	for _, text := range []string{
		a,
		"nonsense" + a,
		"nonsense \\" + a + "[c]\n",
		"uid" + a,
		`"quoted" = x` + a,
		"a.b = c" + a,
		"übung = 3" + a,
		"strange name = 3" + a,
		"ho sts  ALLOW = 10.0.0.0/8" + a,
		"[ two  words ] trailing" + a,
		"[c]]\nnonsense" + a,
		"[GLOBAL]\nport = 3" + a,
		"[glo bal]\nport = 3" + a,
		"[Data]\npath = /x\n[da ta]\nread only = no" + a + "[DATA]\npath = /y\n",
		"; comment \\" + a,
		"&include" + a,
		"&include " + included + a,
		" \t&include\t" + included + a,
		"&Include=" + included + a,
		"&include \t = \t" + included + a,
		"&include\\\n " + included + a,
		"[c]\n&INCLUDE " + included + a,
	} {
		file := filepath.Join(dir, "rsyncd.conf")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		want, ok := served(t, rsync, file)
		if !ok {
			t.Errorf("%q: the daemon refuses it", text)
			continue
		}
		conf, err := rsyncd.Parse([]byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		var got []string
		for _, m := range conf.Modules {
			got = append(got, m.Name)
		}
		for _, inc := range conf.Includes {
			if inc.Path == included {
				got = append(got, "b")
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-daemon +parsed):\n%s", text, diff)
		}
	}
}
