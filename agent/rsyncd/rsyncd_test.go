// SPDX-License-Identifier: Apache-2.0

package rsyncd_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/rsyncd"
)

func TestParseReadsWhatTheDaemonReads(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/fedora.conf")
	if err != nil {
		t.Fatal(err)
	}
	got, err := rsyncd.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	want := &rsyncd.File{
		Global:   []rsyncd.Param{{Name: "pid file", Value: "/var/run/rsyncd.pid"}, {Name: "log file", Value: "/var/log/other.log"}},
		Includes: []rsyncd.Include{{Path: "/etc/rsyncd.d"}, {Merge: true, Path: "/etc/rsyncd.inc"}},
		Modules: []rsyncd.Module{
			{Name: "ftp", Params: []rsyncd.Param{
				{Name: "path", Value: "/home/ftp"},
				{Name: "comment", Value: `ftp export area ; with = signs # and "quotes"`},
				{Name: "hosts allow", Value: "10.0.0.0/8           192.168.0.0/16"},
			}},
			{Name: "two words", Params: []rsyncd.Param{{Name: "path", Value: "`backtick`"}, {Name: "comment", Value: `"""three"""`}}},
			{Name: "DEFAULT", Params: []rsyncd.Param{{Name: "path", Value: "/default"}}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if v := got.Get(got.Modules[0], "log file"); v != "/var/log/other.log" {
		t.Errorf("log file of ftp is %q", v)
	}
}

func TestParseSaysInWhichLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"path = /a\n[data\n":        "line 2: module name without its brackets",
		"# x\n\n= nonsense\n":       "line 3: parameter without a name",
		"&merge =\n":                "line 1: neither &include PATH nor &merge PATH",
		"a = 1 \\\n2\n\x00\n":       "line 3: control character",
		"[]\n":                      "line 1: module name",
		"path = /a\n&whatever /x\n": "line 2: neither &include",
	} {
		if _, err := rsyncd.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestRenderRefusesWhatTheFormatCannotHold(t *testing.T) {
	t.Parallel()
	for _, value := range []string{" a", "a ", "a\nb", "a\\", "a`b", "a\x7f", "\u00a0a"} {
		f := &rsyncd.File{Modules: []rsyncd.Module{{Name: "m", Params: []rsyncd.Param{{Name: "path", Value: value}}}}}
		if out, err := rsyncd.Render(f); err == nil {
			t.Errorf("%q was rendered: %q", value, out)
		}
	}
	for _, name := range []string{"", "global", "Glo bal", "Default", "a]b", " a", "a  b", "-a", "a\nb", "a/b", "a`"} {
		if _, err := rsyncd.Render(&rsyncd.File{Modules: []rsyncd.Module{{Name: name}}}); err == nil {
			t.Errorf("module %q was rendered", name)
		}
	}
	twice := rsyncd.Module{Name: "m", Params: []rsyncd.Param{{Name: "path", Value: "/a"}, {Name: "path", Value: "/b"}}}
	if _, err := rsyncd.Render(&rsyncd.File{Modules: []rsyncd.Module{twice}}); err == nil {
		t.Error("a parameter was rendered twice")
	}
	for _, other := range []string{"Data", "da ta"} {
		if out, err := rsyncd.Render(&rsyncd.File{Modules: []rsyncd.Module{{Name: "data"}, {Name: other}}}); err == nil {
			t.Errorf("one module was rendered under two names: %q", out)
		}
	}
	for _, path := range []string{"/a/%RSYNC_PID%/b", "/a/./b"} {
		if rsyncd.CheckPath(path) == nil {
			t.Errorf("%s passed as a module's path", path)
		}
	}
	if err := rsyncd.CheckPath("/backup/100% sure/ü"); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	sample, err := os.ReadFile("testdata/fedora.conf")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(sample))
	f.Add("port = 873\n&include /etc/lockstep/rsyncd.d\n[data]\npath = /backup\n")
	f.Add("[a]\np=\\\n\\\nx\n[a]\nq=1\n")
	f.Add("[\u0085 x]\na=\u00a0\u2028\n\ufeffa=b")
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := rsyncd.Parse([]byte(text))
		if err != nil {
			return
		}
		out, err := rsyncd.Render(parsed)
		if err != nil {
			return // the file has what we never write
		}
		again, err := rsyncd.Parse(out)
		if err != nil {
			t.Fatalf("rendered %q: %v", out, err)
		}
		if diff := cmp.Diff(parsed, again); diff != "" {
			t.Errorf("rendered %q (-parsed +again):\n%s", out, diff)
		}
	})
}

func FuzzParseSecrets(f *testing.F) {
	f.Add("# Managed by lockstep\n# key of lockstep-7: abc\nlockstep-7:pass:word\nlockstep-8: x \n")
	f.Add("a:b\r\na:c\n#\n")
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := rsyncd.ParseSecrets([]byte(text))
		if err != nil {
			return
		}
		out, err := rsyncd.RenderSecrets(parsed)
		if err != nil {
			t.Fatalf("parsed and cannot be rendered: %v", err)
		}
		again, err := rsyncd.ParseSecrets(out)
		if err != nil {
			t.Fatalf("rendered %q: %v", out, err)
		}
		if len(parsed) != len(again) {
			t.Fatalf("%d secrets became %d", len(parsed), len(again))
		}
		for i := range parsed {
			if parsed[i] != again[i] {
				t.Errorf("secret %d changed", i)
			}
		}
	})
}

func TestSecretsThatTheDaemonCouldNotReadAreRefused(t *testing.T) {
	t.Parallel()
	good := rsyncd.Secret{User: "lockstep-1", Password: "p: #\u00fc", Key: "k"}
	if out, err := rsyncd.RenderSecrets([]rsyncd.Secret{good}); err != nil || string(out) != "# key of lockstep-1: k\nlockstep-1:p: #\u00fc\n" {
		t.Errorf("%q, %v", out, err)
	}
	for want, s := range map[string][]rsyncd.Secret{
		`user "": white space`:                            {{Password: "p"}},
		`user "@group": white space`:                      {{User: "@group", Password: "p"}},
		`user "a b": white space`:                         {{User: "a b", Password: "p"}},
		`user "a:b": white space`:                         {{User: "a:b", Password: "p"}},
		`user "a\n": white space`:                         {{User: "a\n", Password: "p"}},
		`user "a": listed twice`:                          {{User: "a", Password: "p"}, {User: "a", Password: "q"}},
		`user "a": password is empty`:                     {{User: "a"}},
		`user "a": password is longer than 400 bytes`:     {{User: "a", Password: strings.Repeat("p", 401)}},
		`user "a": password has a control character or a`: {{User: "a", Password: "p\nb:q"}},
		`key of user "a": a control character, or white`:  {{User: "a", Password: "p", Key: "k\nb:q"}},
		`key of user "b": a control character, or white`:  {{User: "b", Password: "p", Key: " k"}},
	} {
		if out, err := rsyncd.RenderSecrets(s); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q, %v, want %s", out, err, want)
		}
	}
}

func TestOfTwoLinesOfAUserTheFirstCounts(t *testing.T) {
	t.Parallel()
	got, err := rsyncd.ParseSecrets([]byte("a:first\r\nb:x\na:second\n"))
	want := []rsyncd.Secret{{User: "a", Password: "first"}, {User: "b", Password: "x"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d secrets, %v", len(got), err)
	}
}

func TestSecretNeverShowsItsPassword(t *testing.T) {
	t.Parallel()
	s := rsyncd.Secret{User: "lockstep-1", Password: "hunter2", Key: "k3y"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		out := fmt.Sprintf(format, s) + fmt.Sprintf(format, []rsyncd.Secret{s}) + fmt.Sprintf(format, &s)
		if strings.Contains(out, "hunter2") || strings.Contains(out, "k3y") {
			t.Errorf("%s: %s", format, out)
		}
	}
	if _, err := rsyncd.ParseSecrets([]byte("only-a-password\n")); err == nil || strings.Contains(err.Error(), "only-a-password") {
		t.Errorf("error of a line without a user: %v", err)
	}
}
