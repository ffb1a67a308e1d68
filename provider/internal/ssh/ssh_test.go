// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/lockstep-sync/lockstep/provider/internal/sshdtest"
)

// options reach a server with its pinned key.
func options(s *sshdtest.Server) Options {
	return Options{Address: "127.0.0.1", Port: s.Port, HostKeys: s.HostKey, PrivateKeyFile: s.ClientKey}
}

// pool is closed when the test ends. ssh_config of the machine plays no part.
func pool(t *testing.T, cfg Config) *Pool {
	t.Helper()
	if cfg.ConfigFile == "" {
		cfg.ConfigFile = "none"
	}
	p := New(cfg)
	t.Cleanup(p.Close)
	return p
}

// refused runs a command that must not start, and returns why.
func refused(t *testing.T, p *Pool, host string) *Error {
	t.Helper()
	_, err := p.Run(t.Context(), host, "true", nil)
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("Run: %v, want an *Error", err)
	}
	t.Logf("%v\nhint: %s", e, e.Hint)
	return e
}

func mention(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not mention %q", text, part)
		}
	}
}

func TestRunGivesOutputErrorsAndStatus(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": options(s)}})
	for _, tt := range []struct {
		command, stdin string
		want           Result
	}{
		{"cat; echo oops >&2; exit 7", "a\x00b\n", Result{Stdout: []byte("a\x00b\n"), Stderr: "oops\n", Status: 7}},
		{"true", strings.Repeat("x", 1<<20), Result{Stdout: []byte{}}},
	} {
		got, err := p.Run(t.Context(), "nfs01", tt.command, strings.NewReader(tt.stdin))
		if err != nil || !bytes.Equal(got.Stdout, tt.want.Stdout) || got.Stderr != tt.want.Stderr || got.Status != tt.want.Status {
			t.Errorf("Run(%q) = %+v, %v; want %+v", tt.command, got, err, tt.want)
		}
	}
	if key, err := p.HostKey(t.Context(), "nfs01"); err != nil || key != s.HostKey {
		t.Errorf("HostKey = %q, %v; want %q", key, err, s.HostKey)
	}
}

func TestManyCommandsShareOneConnection(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{Config: fmt.Sprintf("MaxSessions %d\n", maxSessions)})
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": options(s)}})
	var wg sync.WaitGroup
	clients := make([]string, 12) // more than maxSessions: those over it wait instead of being refused
	for i := range clients {
		wg.Go(func() {
			r, err := p.Run(t.Context(), "nfs01", "echo $SSH_CLIENT", nil)
			if err != nil {
				t.Error(err)
			}
			clients[i] = string(r.Stdout)
		})
	}
	wg.Wait()
	for _, c := range clients {
		if c != clients[0] || c == "" {
			t.Errorf("commands came over different connections: %q", clients)
			break
		}
	}
}

func TestUnknownHostKeyIsRefusedAndPrintedReadyToPaste(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{Types: []string{"ecdsa"}})
	o := options(s)
	o.HostKeys = ""
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": o}, KnownHostsFile: filepath.Join(t.TempDir(), "none")})
	e := refused(t, p, "nfs01")
	if e.Step != "host key" || e.Unreachable {
		t.Errorf("step %q, unreachable %t", e.Step, e.Unreachable)
	}
	mention(t, e.Error(), s.At(), "not known", s.HostKey, "SHA256:")
	mention(t, e.Hint, fmt.Sprintf("hosts = { \"nfs01\" = { host_key = %q } }", s.HostKey), strings.TrimSpace(s.KnownHosts()), "ssh-keygen -lf")
}

func TestChangedHostKeyIsRefusedUnderEveryPolicyButInsecure(t *testing.T) {
	t.Parallel()
	s, other := sshdtest.Start(t, sshdtest.Options{}), sshdtest.Start(t, sshdtest.Options{})
	for _, policy := range []Policy{Strict, AcceptNew, Insecure} {
		o := options(s)
		o.HostKeys = other.HostKey
		p := pool(t, Config{Hosts: map[string]Options{"nfs01": o}, Policy: policy})
		if policy == Insecure {
			if err := p.Connect(t.Context(), "nfs01"); err != nil {
				t.Errorf("insecure: %v", err)
			}
			continue
		}
		e := refused(t, p, "nfs01")
		mention(t, e.Error(), s.At(), "NOT THE KNOWN ONE", s.HostKey, "known: ssh-ed25519 SHA256:")
		mention(t, e.Hint, "do not go on", "host_key = ")
	}
}

// A server shows the kind of key that the client asks for first; a good host must not look changed.
func TestOnlyTheKnownKindOfHostKeyIsAskedFor(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{Types: []string{"ecdsa", "rsa"}})
	for _, kind := range []string{"ecdsa", "rsa", "ed25519"} {
		line, err := os.ReadFile(filepath.Join(s.Dir, "host_"+kind+".pub"))
		if err != nil {
			t.Fatal(err)
		}
		o := options(s)
		o.HostKeys = ""
		p := pool(t, Config{Hosts: map[string]Options{"nfs01": o}, KnownHosts: fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, line)})
		if err := p.Connect(t.Context(), "nfs01"); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestHostWithoutAKeyOfTheKnownKindIsRefused(t *testing.T) {
	t.Parallel()
	s, other := sshdtest.Start(t, sshdtest.Options{}), sshdtest.Start(t, sshdtest.Options{Types: []string{"ecdsa"}})
	line, err := os.ReadFile(filepath.Join(other.Dir, "host_ecdsa.pub"))
	if err != nil {
		t.Fatal(err)
	}
	o := options(s)
	o.HostKeys = string(line)
	e := refused(t, pool(t, Config{Hosts: map[string]Options{"nfs01": o}}), "nfs01")
	mention(t, e.Error(), s.At(), "host key", "no key of the kind")
}

func TestAcceptNewRecordsTheKeyOnce(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	file := filepath.Join(t.TempDir(), "new", "known_hosts")
	o := options(s)
	o.HostKeys = ""
	for range 2 {
		p := pool(t, Config{Hosts: map[string]Options{"nfs01": o}, Policy: AcceptNew, KnownHostsFile: file})
		if err := p.Connect(t.Context(), "nfs01"); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := os.ReadFile(file); string(got) != s.KnownHosts() {
		t.Errorf("known_hosts is %q, want %q", got, s.KnownHosts())
	}
}

func TestWrongKeyIsNamedWithWhatWasOffered(t *testing.T) {
	t.Parallel()
	s, other := sshdtest.Start(t, sshdtest.Options{}), sshdtest.Start(t, sshdtest.Options{})
	o := options(s)
	o.PrivateKeyFile = other.ClientKey
	e := refused(t, pool(t, Config{Hosts: map[string]Options{"nfs01": o}}), "nfs01")
	if e.Step != "log in" {
		t.Errorf("step is %q", e.Step)
	}
	mention(t, e.Error(), s.At(), "refused user", other.ClientKey, "SHA256:")
	mention(t, e.Hint, "authorized_keys", fmt.Sprintf("ssh -v -p %d", s.Port))
}

func TestKeyFromTextWorksAndABadOneSaysHow(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	o := options(s)
	text, err := os.ReadFile(s.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	o.PrivateKeyFile, o.PrivateKey = "", string(text)
	if err := pool(t, Config{Hosts: map[string]Options{"nfs01": o}}).Connect(t.Context(), "nfs01"); err != nil {
		t.Error(err)
	}
	o.PrivateKey = "~/.ssh/id_ed25519"
	e := refused(t, pool(t, Config{Hosts: map[string]Options{"nfs01": o}}), "nfs01")
	mention(t, e.Error(), "private_key", "-----BEGIN")
	if strings.Contains(e.Error(), "id_ed25519") {
		t.Error("the error repeats what was given as a private key")
	}
}

func TestAgentHoldsTheKeyOfALockedFile(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	pemText, err := os.ReadFile(s.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := gossh.ParseRawPrivateKey(pemText)
	if err != nil {
		t.Fatal(err)
	}
	block, err := gossh.MarshalPrivateKeyWithPassphrase(*raw.(*ed25519.PrivateKey), "", []byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "agent") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file, socket := filepath.Join(dir, "id"), filepath.Join(dir, "agent.sock")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "config")
	if err := os.WriteFile(conf, []byte("Host *\n  IdentityAgent "+socket+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options(s)
	o.PrivateKeyFile = file
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": o}, ConfigFile: conf})
	e := refused(t, p, "nfs01")
	mention(t, e.Error(), file, "passphrase", "ssh-add")

	keyring := agent.NewKeyring()
	for range maxIdentities + 2 { // keys that would use up MaxAuthTries if they were offered
		_, stray, _ := ed25519.GenerateKey(nil)
		if err := keyring.Add(agent.AddedKey{PrivateKey: stray}); err != nil {
			t.Fatal(err)
		}
	}
	if err := keyring.Add(agent.AddedKey{PrivateKey: raw}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { agent.ServeAgent(keyring, c) })
		}
	})
	p = pool(t, Config{Hosts: map[string]Options{"nfs01": o}, ConfigFile: conf})
	if err := p.Connect(t.Context(), "nfs01"); err != nil {
		t.Error(err)
	}
}

func TestAnAgentThatDoesNotAnswerIsNotWaitedForLongerThanAHost(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "agent") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, conf := filepath.Join(dir, "agent.sock"), filepath.Join(dir, "config")
	l, err := net.Listen("unix", socket) // it takes connections, and nobody reads them
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.WriteFile(conf, []byte("Host *\n  IdentityAgent "+socket+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": {Address: "127.0.0.1", Port: 1}}, ConfigFile: conf, ConnectTimeout: 50 * time.Millisecond})
	e := refused(t, p, "nfs01")
	mention(t, e.Error(), "log in", "ssh-agent "+socket, "no answer within 50ms")
}

func TestSshConfigSaysWhereAHostIs(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	dir := t.TempDir()
	known, conf := filepath.Join(dir, "known"), filepath.Join(dir, "config")
	if err := os.WriteFile(known, []byte("storage "+s.HostKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("Host nfs*\n  HostName 127.0.0.1\n  Port %d\n  User %s\n  IdentityFile %s\n  IdentitiesOnly yes\n  UserKnownHostsFile %s\n  HostKeyAlias storage\n",
		s.Port, s.User, s.ClientKey, known)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"", "/nonexistent/ssh"} {
		t.Run("ssh="+program, func(t *testing.T) {
			p := pool(t, Config{ConfigFile: conf})
			if program != "" { // as on a machine without ssh
				c, err := readSettings(conf, "nfs01")
				if err != nil {
					t.Fatal(err)
				}
				if got := c.first("hostname") + " " + c.first("port") + " " + c.first("hostkeyalias"); got != fmt.Sprintf("127.0.0.1 %d storage", s.Port) {
					t.Errorf("read %q", got)
				}
				return
			}
			if err := p.Connect(t.Context(), "nfs01"); err != nil {
				t.Error(err)
			}
			if at := p.At(t.Context(), "nfs01"); at != s.At() {
				t.Errorf("At = %q, want %q", at, s.At())
			}
		})
	}
	e := refused(t, pool(t, Config{ConfigFile: filepath.Join(dir, "missing")}), "nfs01")
	mention(t, e.Error(), "config_file", "missing")
}

func TestProxyCommandOfSshConfigIsUsed(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("SKIPPED: no ssh on this machine (apt install openssh-client)")
	}
	s := sshdtest.Start(t, sshdtest.Options{})
	conf := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf("Host nfs01\n  HostName 192.0.2.7\n  ProxyCommand ssh -F none -i %s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -W 127.0.0.1:%d -p %d 127.0.0.1\n",
		s.ClientKey, s.Port, s.Port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := pool(t, Config{ConfigFile: conf, Hosts: map[string]Options{"nfs01": {HostKeys: s.HostKey, PrivateKeyFile: s.ClientKey}}})
	r, err := p.Run(t.Context(), "nfs01", "echo hello", nil)
	if err != nil || string(r.Stdout) != "hello\n" {
		t.Errorf("Run = %q, %v", r.Stdout, err)
	}
}

func TestJumpHostsAreChainedAndTheirKeysChecked(t *testing.T) {
	t.Parallel()
	first, second, last := sshdtest.Start(t, sshdtest.Options{}), sshdtest.Start(t, sshdtest.Options{}), sshdtest.Start(t, sshdtest.Options{})
	final := options(last)
	final.Jump = []string{"first", "second"}
	hosts := map[string]Options{"first": options(first), "second": options(second), "nfs01": final}
	p := pool(t, Config{Hosts: hosts})
	r, err := p.Run(t.Context(), "nfs01", "echo $SSH_CONNECTION", nil)
	if err != nil {
		t.Fatal(err)
	}
	if fields := strings.Fields(string(r.Stdout)); len(fields) != 4 || fields[3] != fmt.Sprint(last.Port) {
		t.Errorf("SSH_CONNECTION is %q", r.Stdout)
	}

	bad := options(second)
	bad.HostKeys = first.HostKey
	hosts["second"] = bad
	e := refused(t, pool(t, Config{Hosts: hosts}), "nfs01")
	mention(t, e.Error(), second.At(), "NOT THE KNOWN ONE", "jump host to "+last.At())

	circle := options(first)
	circle.Jump = []string{"nfs01"}
	hosts["first"] = circle
	e = refused(t, pool(t, Config{Hosts: hosts}), "nfs01")
	mention(t, e.Error(), "circle", "nfs01 → first → nfs01")
}

func TestUnreachableHostIsTriedOnceForManyCallers(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never says a word
	if err != nil {
		t.Fatal(err)
	}
	var accepted atomic.Int32
	var held sync.WaitGroup
	t.Cleanup(func() { l.Close(); held.Wait() })
	held.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			held.Go(func() { io.Copy(io.Discard, c); c.Close() })
		}
	})
	p := pool(t, Config{ConnectTimeout: 300 * time.Millisecond, Policy: Insecure,
		Hosts: map[string]Options{"nfs01": {Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, User: "ops"}}})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := p.Run(t.Context(), "nfs01", "true", nil)
			var e *Error
			if !errors.As(err, &e) || !e.Unreachable || !strings.Contains(err.Error(), "no answer within 300ms") {
				t.Errorf("Run: %v", err)
			}
		})
	}
	wg.Wait()
	if n := accepted.Load(); n != 1 {
		t.Errorf("%d connections were made, want 1", n)
	}
}

func TestWaitOutlastsABootingHost(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	s.Halt()
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": options(s)}})
	e := refused(t, p, "nfs01")
	if !e.Unreachable {
		t.Errorf("%v is not told apart as unreachable", e)
	}
	mention(t, e.Error(), s.At(), "refused")
	result := make(chan error, 1)
	go func() { result <- p.Wait(t.Context(), "nfs01", time.Minute) }()
	s.Resume(t)
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestLostConnectionIsDialledAnew(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": options(s)}})
	if err := p.Connect(t.Context(), "nfs01"); err != nil {
		t.Fatal(err)
	}
	s.Halt()
	s.Resume(t)
	if r, err := p.Run(t.Context(), "nfs01", "echo back", nil); err != nil || string(r.Stdout) != "back\n" {
		t.Errorf("Run = %q, %v", r.Stdout, err)
	}
}

// That a connection has died is found out by the command after, too, which is then the first of a new one.
func TestCommandAfterAnUnnoticedDeathRunsOverANewConnection(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": options(s)}})
	for range 10 {
		_, c, err := p.connection(t.Context(), "nfs01")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.client.Close() // without a word to the pool
		if _, err := p.Run(t.Context(), "nfs01", "true", nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLossInMidCommandIsReportedNotRepeated(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": options(s)}})
	count := filepath.Join(t.TempDir(), "count")
	session, err := p.Start(t.Context(), "nfs01", "echo x >> "+count+"; echo started; sleep 60", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !session.Expect(ctx, "started") {
		t.Fatal("the command did not start")
	}
	s.Halt()
	_, err = session.Wait()
	if err == nil || !strings.Contains(err.Error(), "may have had its effect") {
		t.Errorf("Wait: %v", err)
	}
	if text, _ := os.ReadFile(count); string(text) != "x\n" {
		t.Errorf("the command ran as often as %q says", text)
	}
}

func TestCancelEndsDialAndCommand(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": options(s)}})
	ctx, cancel := context.WithCancel(t.Context())
	session, err := p.Start(ctx, "nfs01", "sleep 60", nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := session.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
	if _, err := pool(t, Config{Hosts: map[string]Options{"nfs01": options(s)}}).Run(ctx, "nfs01", "true", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

func TestStandardInputStaysOpenUntilReleased(t *testing.T) {
	t.Parallel()
	s := sshdtest.Start(t, sshdtest.Options{})
	p := pool(t, Config{Hosts: map[string]Options{"nfs01": options(s)}})
	session, err := p.Start(t.Context(), "nfs01", "head -c 3; echo; cat; echo end", strings.NewReader("abc"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !session.Expect(ctx, "abc\n") || bytes.Contains(session.Stdout(), []byte("end")) {
		t.Errorf("before Release the output is %q", session.Stdout())
	}
	session.Release()
	if r, err := session.Wait(); err != nil || string(r.Stdout) != "abc\nend\n" {
		t.Errorf("Wait = %q, %v", r.Stdout, err)
	}

	session, err = p.Start(t.Context(), "nfs01", "exit 3", nil) // ends although nobody releases it
	if err != nil {
		t.Fatal(err)
	}
	if session.Expect(ctx, "never") {
		t.Error("Expect found what was not written")
	}
	if r, err := session.Wait(); err != nil || r.Status != 3 {
		t.Errorf("Wait = %d, %v", r.Status, err)
	}
}

func TestNamesThatAreNoHostsAreRefused(t *testing.T) {
	t.Parallel()
	p := pool(t, Config{})
	for _, name := range []string{"", "-oProxyCommand=id", "a b", "x;id", "host:0", "host:99999", "$(id)"} {
		if e := refused(t, p, name); e.Step != "resolve" {
			t.Errorf("%q: step %q", name, e.Step)
		}
	}
}
