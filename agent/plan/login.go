// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/rsyncd"
)

// What a pair with transport ssh has. Its module is not among those that the listening daemon serves: it stands in an
// rsyncd.conf of its own, which the one command names that the pair's key can run.

// LoginUser is whose session the source host gets.
const LoginUser = pair.LoginUser

// BySSH is whether the source host reaches the backup host by ssh.
func BySSH(p pair.Pair) bool { return p.Transport == pair.SSH }

// SSHD is what is found of the ssh server, of [pair.LoginUser] and of what holds for a session of theirs.
type SSHD struct {
	Path     string              // "" = not installed
	Settings map[string][]string // sshd_config(5) as it counts for the source host; nil = not known
	HostKeys []string            // type and key
	Home     string
	Shell    string
}

// Setting is the first value of a setting, or what is meant when it is not known.
func (s *SSHD) Setting(name, otherwise string) string {
	if values := s.Settings[name]; len(values) > 0 {
		return strings.TrimSpace(values[0])
	}
	return otherwise
}

// AuthorizedKeys is the file in which sshd looks for keys first; "" when it looks in none.
func (s *SSHD) AuthorizedKeys() string {
	first, _, _ := strings.Cut(s.Setting("authorizedkeysfile", ".ssh/authorized_keys"), " ")
	if first == "none" || s.Home == "" {
		return ""
	}
	file := strings.NewReplacer("%%", "%", "%h", s.Home, "%u", pair.LoginUser, "%U", "0").Replace(first)
	if !path.IsAbs(file) {
		file = path.Join(s.Home, file)
	}
	return path.Clean(file)
}

// LoginProblems lists why the source host could not log in.
func LoginProblems(f Facts) []pair.Problem {
	d := f.SSHD
	var ps problems
	add := func(msg, hint string) { ps.add("login", msg, hint) }
	const where = "set it in a file in /etc/ssh/sshd_config.d, with Match Address for the source host alone if you like, and reload sshd; or write transport: daemon"
	if d == nil || d.Path == "" {
		add("the backup host has no sshd", "install openssh-server, or write transport: daemon")
		return ps
	}
	if len(d.HostKeys) == 0 {
		add("sshd has no host key whose public half can be read", "ssh-keygen -A, and restart sshd")
	}
	if d.Setting("permitrootlogin", "prohibit-password") == "no" {
		add("sshd lets root in by no means (PermitRootLogin no)", "PermitRootLogin forced-commands-only lets in nothing but keys that are bound to one command, as lockstep's is; "+where)
	}
	if d.Setting("pubkeyauthentication", "yes") == "no" {
		add("sshd takes no keys (PubkeyAuthentication no)", where)
	}
	if d.AuthorizedKeys() == "" {
		add("sshd looks for root's keys in no file (AuthorizedKeysFile none)", "AuthorizedKeysFile .ssh/authorized_keys: "+where)
	}
	if forced := d.Setting("forcecommand", "none"); forced != "none" {
		add(fmt.Sprintf("sshd runs %q for root whatever a key is bound to (ForceCommand)", forced), "except the source host from it; "+where)
	}
	if users := d.Settings["allowusers"]; len(users) > 0 && !slices.ContainsFunc(users, namesLogin) {
		add("root is not among those whom sshd lets in (AllowUsers)", "add root@ADDRESS of the source host; "+where)
	}
	if slices.ContainsFunc(d.Settings["denyusers"], func(u string) bool { return namesLogin(u) && !strings.Contains(u, "@") }) {
		add("sshd keeps root out (DenyUsers)", where)
	}
	if shell := path.Base(d.Shell); shell == "nologin" || shell == "false" {
		add("root has no shell, and sshd runs every command with it: "+d.Shell, "chsh -s /bin/sh root")
	}
	return ps
}

// namesLogin is whether a pattern of AllowUsers may mean the user; what follows an @ is left to sshd.
func namesLogin(pattern string) bool {
	user, _, _ := strings.Cut(pattern, "@")
	ok, err := path.Match(user, pair.LoginUser)
	return err != nil || ok
}

// Line is one line in a file that is not lockstep's.
type Line struct {
	Object string
	Pair   string // whose it is
	Key    string // the public key in it, type and key
	// Text has no newline. As found, it is every line of the pair's, one below the other.
	Text    string
	Pending bool // the key is not known yet
	Foreign bool // found so: the file is none that a line can be written to
}

// mark is the comment of the pair's key.
func (l Line) mark() string { return " managed-by-lockstep:" + l.Pair }

// is tells whether a line of the file is the pair's: it has the mark, or the key. The key is nobody else's, and a line
// with it and without the mark would let the source host in with other rights.
func (l Line) is(line string) bool {
	_, key, _ := strings.Cut(l.Key, " ")
	return strings.HasSuffix(strings.TrimRight(line, " \t\r\n"), l.mark()) || key != "" && slices.Contains(strings.Fields(line), key)
}

// Find returns the pair's lines in a file, each without its newline.
func (l Line) Find(data []byte) (text string, found bool) {
	var lines []string
	for line := range strings.Lines(string(data)) {
		if l.is(line) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return strings.Join(lines, "\n"), len(lines) > 0
}

// Put returns the file with the pair's line in it, in place of the first that was there; with an empty Text it returns the
// file without. All other bytes stay as they are. So a line that is new comes last, and first in a file that does not end
// with its last line: a newline that was added there could not be told from others when the line goes.
func (l Line) Put(data []byte) []byte {
	var out strings.Builder
	placed := l.Text == ""
	for line := range strings.Lines(string(data)) {
		if !l.is(line) {
			out.WriteString(line)
			continue
		}
		if !placed {
			out.WriteString(l.Text)
			if strings.HasSuffix(line, "\n") {
				out.WriteByte('\n')
			}
			placed = true
		}
	}
	text := out.String()
	switch {
	case placed:
	case text == "" || strings.HasSuffix(text, "\n"):
		text += l.Text + "\n"
	default:
		text = l.Text + "\n" + text
	}
	return []byte(text)
}

// loginLine lets the pair's key run the pair's module and nothing else: `restrict` stands for no terminal, no forwarding of
// ports, agent and X11, and no start-up file, and for whatever sshd will be able to do later.
func loginLine(p pair.Pair, rsync, key string) Line {
	l := Line{Object: "login", Pair: p.Name, Key: key}
	if key == "" {
		l.Pending, key = true, "(the source host's key)"
	}
	l.Text = fmt.Sprintf(`restrict,command="%s --server --daemon --config=%s ." %s%s`, rsync, SSHConfFile(p.Name), key, l.mark())
	return l
}

// sshModule is the pair's rsyncd.conf. The count of connections needs a directory that only the listening daemon has; sshd
// and the source host bound them.
func sshModule(p pair.Pair, in BackupInputs) *rsyncd.File {
	m := Module(p, in)
	m.Params = slices.DeleteFunc(m.Params, func(p rsyncd.Param) bool { return p.Name == "max connections" || p.Name == "lock file" })
	return &rsyncd.File{
		Global: []rsyncd.Param{
			{Name: "reverse lookup", Value: "no"},
			{Name: "forward lookup", Value: "no"},
		},
		Modules: []rsyncd.Module{m},
	}
}

// lineWords says how the line in a file differs from what it should be.
func lineWords(p string, have, want Line) string {
	if strings.Contains(have.Text, "\n") {
		return fmt.Sprintf("%s has %d lines of the pair", p, 1+strings.Count(have.Text, "\n"))
	}
	bound := func(l Line) string { rights, _, _ := strings.Cut(l.Text, " ssh-"); return rights }
	if !want.Pending && bound(have) != bound(want) {
		rights := bound(have)
		if len(rights) > 100 {
			rights = rights[:100] + "…"
		}
		return fmt.Sprintf("changed by hand in %s: %s", p, rights)
	}
	if want.Pending || !strings.Contains(have.Text, want.Key) {
		return p + " has another key than the source host"
	}
	return "changed by hand in " + p
}

func lineStep(p string, have, want Line, exists bool) (Step, bool) {
	s := Step{Kind: WriteLine, Line: want, Change: Change{Object: want.Object, Path: p, Action: "update"}}
	switch {
	case !exists:
		s.Words = p + " lacks the line that lets the source host in"
		s.Diff = fmt.Sprintf("--- %s\n+++ %s\n+%s\n", p, p, want.Text)
	case have.Text == want.Text && !want.Pending:
		return Step{}, false
	default:
		s.Words = lineWords(p, have, want)
		s.Diff = fmt.Sprintf("--- %s\n+++ %s\n%s", p, p, unified([]byte(have.Text), []byte(want.Text)))
	}
	return s, true
}
