// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/plan"
)

func TestALineComesAndGoesWithoutATrace(t *testing.T) {
	t.Parallel()
	line := plan.Line{Pair: "data", Key: "ssh-ed25519 AAAAours", Text: "restrict ssh-ed25519 AAAAours managed-by-lockstep:data"}
	none := line
	none.Text = ""
	for _, text := range []string{
		"", "\n", "a", "a\n", "a\r\nb\r\n", "# x\n\na\n", "a\n\n\n", "\x00\xff\n", "restrict ssh-ed25519 AAAAours2 managed-by-lockstep:data2\n",
		"restrict ssh-rsa BBBB managed-by-lockstep:other-data\n",
	} {
		with := line.Put([]byte(text))
		if found, ok := line.Find(with); !ok || found != line.Text {
			t.Errorf("%q: found %q", with, found)
		}
		if again := line.Put(with); string(again) != string(with) {
			t.Errorf("%q: put twice: %q", with, again)
		}
		if back := none.Put(with); string(back) != text {
			t.Errorf("%q: with %q, and without %q", text, with, back)
		}
	}
}

func TestEveryLineOfThePairIsFound(t *testing.T) {
	t.Parallel()
	line := plan.Line{Pair: "data", Key: "ssh-ed25519 AAAAours", Text: "restrict ssh-ed25519 AAAAours managed-by-lockstep:data"}
	for _, theirs := range []string{
		"ssh-ed25519 AAAAours", "ssh-ed25519 AAAAours somebody", `command="x" ssh-ed25519 AAAAours managed-by-lockstep:data`,
		"ssh-rsa BBBB managed-by-lockstep:data", "  ssh-rsa BBBB managed-by-lockstep:data \r",
	} {
		got := string(line.Put([]byte("first\n" + theirs + "\nlast\n" + theirs + "\n")))
		if want := "first\n" + line.Text + "\nlast\n"; got != want {
			t.Errorf("%q: %q, want %q", theirs, got, want)
		}
	}
}

func FuzzALineComesAndGoes(f *testing.F) {
	f.Add("a\nb", "ssh-ed25519 AAAA")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, text, key string) {
		line := plan.Line{Pair: "data", Key: key, Text: "restrict " + strings.ReplaceAll(key, "\n", "") + " managed-by-lockstep:data"}
		if _, there := line.Find([]byte(text)); there {
			return
		}
		none := line
		none.Text = ""
		if back := none.Put(line.Put([]byte(text))); string(back) != text {
			t.Errorf("%q came back as %q", text, back)
		}
	})
}

func TestAuthorizedKeysAsSSHDSaysIt(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{
		"": "/root/.ssh/authorized_keys", ".ssh/authorized_keys .ssh/authorized_keys2": "/root/.ssh/authorized_keys",
		"/etc/ssh/keys/%u": "/etc/ssh/keys/root", "%h/keys": "/root/keys", "/k/%U/%%": "/k/0/%", "none": "", "/etc/ssh/authorized_keys": "/etc/ssh/authorized_keys",
	} {
		d := plan.SSHD{Home: "/root", Settings: map[string][]string{}}
		if setting != "" {
			d.Settings["authorizedkeysfile"] = []string{setting}
		}
		if got := d.AuthorizedKeys(); got != want {
			t.Errorf("%q: %q, want %q", setting, got, want)
		}
	}
}

func TestWhatKeepsSSHDFromLettingTheSourceInIsTold(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{
		"permitrootlogin yes": "", "permitrootlogin prohibit-password": "", "permitrootlogin without-password": "", "permitrootlogin forced-commands-only": "",
		"permitrootlogin no":         "PermitRootLogin no",
		"pubkeyauthentication no":    "PubkeyAuthentication no",
		"forcecommand /bin/false":    `"/bin/false"`,
		"forcecommand none":          "",
		"authorizedkeysfile none":    "AuthorizedKeysFile none",
		"allowusers admin":           "AllowUsers",
		"allowusers root@172.16.1.*": "",
		"allowusers r*":              "",
		"denyusers root":             "DenyUsers",
		"denyusers root@10.0.0.1":    "",
		"denyusers guest":            "",
	} {
		name, value, _ := strings.Cut(setting, " ")
		d := &plan.SSHD{Path: "/usr/sbin/sshd", HostKeys: []string{"ssh-ed25519 AAAA"}, Home: "/root", Shell: "/bin/bash", Settings: map[string][]string{name: {value}}}
		problems := plan.LoginProblems(plan.Facts{SSHD: d})
		switch {
		case want == "" && len(problems) > 0:
			t.Errorf("%s: %v", setting, problems)
		case want != "" && (len(problems) != 1 || problems[0].Path != "login" || !strings.Contains(problems[0].Msg, want) || problems[0].Hint == ""):
			t.Errorf("%s: %v, want %q", setting, problems, want)
		}
	}
	for want, d := range map[string]*plan.SSHD{
		"no sshd":                          {},
		"no host key":                      {Path: "/sshd", Home: "/root"},
		"no shell":                         {Path: "/sshd", Home: "/root", HostKeys: []string{"x y"}, Shell: "/usr/sbin/nologin"},
		"looks for root's keys in no file": {Path: "/sshd", HostKeys: []string{"x y"}},
	} {
		problems := plan.LoginProblems(plan.Facts{SSHD: d})
		if len(problems) != 1 || !strings.Contains(problems[0].Msg, want) {
			t.Errorf("%v, want %q", problems, want)
		}
	}
}
