// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/kevinburke/ssh_config"
)

// resolved is everything needed to reach one host.
type resolved struct {
	name           string // as the caller named it
	address        string
	port           int
	user           string
	hostKeys       string
	privateKey     string
	privateKeyFile string
	identityFiles  []string // of ssh_config; used only when no key is given
	identitiesOnly bool
	agent          bool
	agentSocket    string
	jump           []string
	proxyCommand   string
	knownHosts     []string // files
	hostKeyAlias   string
}

func (r *resolved) at() string {
	return r.user + "@" + net.JoinHostPort(r.address, strconv.Itoa(r.port))
}

func (r *resolved) dialAddress() string { return net.JoinHostPort(r.address, strconv.Itoa(r.port)) }

// lookupAddress is the name under which known_hosts files list the host.
func (r *resolved) lookupAddress() string {
	if r.hostKeyAlias != "" {
		return net.JoinHostPort(r.hostKeyAlias, "22")
	}
	return r.dialAddress()
}

// hostName keeps what `ssh` would take for an option, or a shell for syntax, out of command lines.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_\[:][A-Za-z0-9_.:%\[\]-]*$`)

// settings are the lower-case keywords of ssh_config(5) with their values, in order.
type settings map[string][]string

func (s settings) first(key string) string {
	if v := s[key]; len(v) > 0 && !strings.EqualFold(v[0], "none") {
		return v[0]
	}
	return ""
}

// resolve is [Pool.join] with a memory: ssh_config is asked once for each host.
func (p *Pool) resolve(ctx context.Context, name string) (*resolved, error) {
	p.mu.Lock()
	r := p.known[name]
	p.mu.Unlock()
	if r != nil {
		return r, nil
	}
	r, err := p.join(ctx, name)
	if err == nil {
		p.mu.Lock()
		p.known[name] = r
		p.mu.Unlock()
	}
	return r, err
}

// join joins the caller's options, the defaults and ssh_config, in this order of precedence.
func (p *Pool) join(ctx context.Context, name string) (*resolved, error) {
	fail := func(err error, hint string) (*resolved, error) {
		return nil, &Error{Host: name, Step: "resolve", Err: err, Hint: hint}
	}
	own, alias := p.cfg.Hosts[name], name
	if _, ok := p.cfg.Hosts[name]; !ok { // user@host:port, as ProxyJump and people write it
		var err error
		if own, alias, err = parseDestination(name); err != nil {
			return fail(err, "")
		}
	}
	own = own.over(p.cfg.Defaults)
	for _, n := range []string{alias, own.Address} {
		if n != "" && !hostName.MatchString(n) {
			return fail(fmt.Errorf("%q is not a host name or an address", n), "")
		}
	}
	if strings.HasPrefix(own.User, "-") {
		return fail(fmt.Errorf("%q is not a user name", own.User), "")
	}
	conf, err := p.settings(ctx, alias, own)
	if err != nil {
		return fail(err, "config_file = \"none\" in the provider's ssh block leaves ssh_config aside")
	}

	r := &resolved{
		name: name, address: strings.Trim(cmp.Or(own.Address, conf.first("hostname"), alias), "[]"),
		user: cmp.Or(own.User, conf.first("user"), localUser()), hostKeys: own.HostKeys,
		privateKey: own.PrivateKey, privateKeyFile: own.PrivateKeyFile, jump: own.Jump,
		hostKeyAlias: conf.first("hostkeyalias"), identitiesOnly: conf.first("identitiesonly") == "yes",
	}
	inConfig, _ := strconv.Atoi(conf.first("port"))
	r.port = cmp.Or(own.Port, inConfig, 22)
	if r.jump == nil {
		if via := conf.first("proxyjump"); via != "" {
			r.jump = strings.Split(via, ",")
		} else {
			r.proxyCommand = conf.first("proxycommand")
		}
	}
	r.privateKeyFile = expand(r.privateKeyFile, r, alias)
	for _, f := range conf["identityfile"] {
		if !strings.EqualFold(f, "none") {
			r.identityFiles = append(r.identityFiles, expand(f, r, alias))
		}
	}

	r.agentSocket = os.Getenv("SSH_AUTH_SOCK")
	if v := conf["identityagent"]; len(v) > 0 && v[0] != "SSH_AUTH_SOCK" {
		r.agentSocket = conf.first("identityagent")
		if name, ok := strings.CutPrefix(r.agentSocket, "$"); ok {
			r.agentSocket = os.Getenv(name)
		}
		r.agentSocket = expand(r.agentSocket, r, alias)
	}
	// A key that the configuration names is the one to use: an agent with many keys would spend the
	// server's MaxAuthTries on others first.
	r.agent = r.agentSocket != "" && r.privateKey == "" && r.privateKeyFile == ""
	if own.Agent != nil {
		r.agent = *own.Agent
		if r.agent && r.agentSocket == "" {
			return fail(errors.New("agent = true, but no ssh-agent is known: SSH_AUTH_SOCK is not set"),
				"start an agent and ssh-add a key, or set private_key_file")
		}
	}

	switch {
	case p.cfg.KnownHostsFile != "":
		r.knownHosts = []string{expand(p.cfg.KnownHostsFile, r, alias)}
	case p.cfg.KnownHosts == "":
		for _, key := range []string{"userknownhostsfile", "globalknownhostsfile"} {
			for _, v := range conf[key] {
				for f := range strings.FieldsSeq(v) {
					if !strings.EqualFold(f, "none") {
						r.knownHosts = append(r.knownHosts, expand(f, r, alias))
					}
				}
			}
		}
		if len(r.knownHosts) == 0 {
			r.knownHosts = []string{expand("~/.ssh/known_hosts", r, alias), "/etc/ssh/ssh_known_hosts"}
		}
	}
	return r, nil
}

// over returns o with its zero fields taken from defaults. Address, host key and jump are a host's own.
func (o Options) over(defaults Options) Options {
	o.User, o.Port, o.Agent = cmp.Or(o.User, defaults.User), cmp.Or(o.Port, defaults.Port), cmp.Or(o.Agent, defaults.Agent)
	if o.PrivateKey == "" && o.PrivateKeyFile == "" {
		o.PrivateKey, o.PrivateKeyFile = defaults.PrivateKey, defaults.PrivateKeyFile
	}
	return o
}

// parseDestination reads [user@]host[:port]; an IPv6 address with a port stands in brackets.
func parseDestination(s string) (Options, string, error) {
	var o Options
	host := s
	if i := strings.LastIndex(host, "@"); i >= 0 {
		o.User, host = host[:i], host[i+1:]
	}
	if strings.HasPrefix(host, "[") || strings.Count(host, ":") == 1 {
		if h, port, err := net.SplitHostPort(host); err == nil {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil || n == 0 {
				return o, "", fmt.Errorf("port %q of %q is not a number from 1 to 65535", port, s)
			}
			o.Port, host = int(n), h
		}
	}
	host = strings.Trim(host, "[]")
	if host == "" {
		return o, "", fmt.Errorf("%q names no host", s)
	}
	return o, host, nil
}

// settings asks ssh_config about one host.
func (p *Pool) settings(ctx context.Context, alias string, own Options) (settings, error) {
	file := p.cfg.ConfigFile
	if file != "" && !strings.EqualFold(file, "none") {
		file = expandHome(file)
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("config_file: %w", err)
		}
	}
	program := p.cfg.SSH
	if program == "" {
		program, _ = exec.LookPath("ssh")
	}
	if program == "" {
		return readSettings(file, alias)
	}
	args := []string{"-G"}
	if file != "" {
		args = append(args, "-F", file)
	}
	if own.Address != "" {
		args = append(args, "-o", "HostName="+own.Address)
	}
	if own.User != "" {
		args = append(args, "-l", own.User)
	}
	if own.Port != 0 {
		args = append(args, "-p", strconv.Itoa(own.Port))
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append(args, "--", alias)...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &stderr, time.Second
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("ssh -G %s: %w: %s", alias, err, strings.TrimSpace(stderr.String()))
	}
	conf := settings{}
	lines := bufio.NewScanner(&out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), " ")
		conf[key] = append(conf[key], value)
	}
	return conf, lines.Err()
}

// readSettings is for machines without an ssh program.
func readSettings(file, alias string) (settings, error) {
	if strings.EqualFold(file, "none") {
		return settings{}, nil
	}
	files := []string{file}
	if file == "" {
		files = []string{expandHome("~/.ssh/config"), "/etc/ssh/ssh_config"}
	}
	conf := settings{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parsed, err := ssh_config.DecodeBytes(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w (no ssh program was found, and its files can only be read in part without it)", f, err)
		}
		for _, key := range []string{"HostName", "User", "Port", "IdentityFile", "IdentitiesOnly", "IdentityAgent",
			"ProxyJump", "ProxyCommand", "UserKnownHostsFile", "GlobalKnownHostsFile", "HostKeyAlias"} {
			values, err := parsed.GetAll(alias, key)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", f, key, err)
			}
			low := strings.ToLower(key)
			if len(conf[low]) == 0 || low == "identityfile" {
				conf[low] = append(conf[low], values...)
			}
		}
	}
	if len(conf["identityfile"]) == 0 {
		conf["identityfile"] = []string{"~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"}
	}
	if name := conf.first("hostname"); strings.Contains(name, "%") {
		conf["hostname"] = []string{strings.NewReplacer("%h", alias, "%%", "%").Replace(name)}
	}
	return conf, nil
}

// expand replaces ~ and those tokens of ssh_config(5) that are known before a connection is made.
func expand(s string, r *resolved, alias string) string {
	if s == "" {
		return ""
	}
	home, _ := os.UserHomeDir()
	return strings.NewReplacer("%%", "%", "%d", home, "%h", r.address, "%n", alias, "%p", strconv.Itoa(r.port),
		"%r", r.user, "%u", localUser(), "%k", cmp.Or(r.hostKeyAlias, alias)).Replace(expandHome(s))
}

func expandHome(s string) string {
	if rest, ok := strings.CutPrefix(s, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	return s
}

func localUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return os.Getenv("USER")
}
