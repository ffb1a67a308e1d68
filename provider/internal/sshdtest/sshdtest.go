// SPDX-License-Identifier: Apache-2.0

// Package sshdtest runs the real OpenSSH server on loopback for tests: own host keys, own configuration, a
// port chosen at run time, and nothing outside the test's temporary directory.
package sshdtest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// Server is one sshd.
type Server struct {
	Dir       string
	Port      int
	User      string // the only user that may log in: the one who runs the test
	HostKey   string // "ssh-ed25519 AAAA…"
	ClientKey string // the file of the private key that is let in
	program   string
	cmd       *exec.Cmd
}

// Options change what the server does.
type Options struct {
	Env    map[string]string // environment of every session; may hold PATH
	Config string            // further lines of sshd_config(5)
	Types  []string          // kinds of host keys besides Ed25519: ecdsa, rsa
}

// Require skips the test when there is no OpenSSH server, and fails it in CI.
func Require(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"sshd", "/usr/sbin/sshd", "/usr/local/sbin/sshd"} {
		if program, err := exec.LookPath(name); err == nil {
			return program
		}
	}
	const msg = "SKIPPED: no sshd on this machine (apt install openssh-server); the provider's ssh is not tested"
	if os.Getenv("CI") == "true" {
		t.Fatal(msg)
	}
	t.Skip(msg)
	return ""
}

// Start starts a server that runs until the test ends.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{Dir: t.TempDir(), program: Require(t), Port: freePort(t)}
	if u, err := user.Current(); err == nil {
		s.User = u.Username
	}
	if os.Geteuid() == 0 {
		// sshd started by root insists on its empty privilege separation directory, which is gone after a boot.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var config strings.Builder
	fmt.Fprintf(&config, "Port %d\nListenAddress 127.0.0.1\nPidFile none\nUsePAM no\nStrictModes no\n"+
		"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n"+
		"AuthorizedKeysFile %s\nSubsystem sftp /bin/false\n", s.Port, s.path("authorized_keys"))
	s.HostKey = newKey(t, s.path("host_ed25519"))
	fmt.Fprintf(&config, "HostKey %s\n", s.path("host_ed25519"))
	for _, kind := range o.Types {
		name := s.path("host_" + kind)
		if out, err := exec.Command("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", name).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
		fmt.Fprintf(&config, "HostKey %s\n", name)
	}
	s.ClientKey = s.path("client")
	write(t, s.path("authorized_keys"), newKey(t, s.ClientKey)+"\n")
	env := []string{fmt.Sprintf("%q", "HOME="+s.Dir)} // not the start-up files of whoever runs the test
	for k, v := range o.Env {
		env = append(env, fmt.Sprintf("%q", k+"="+v))
	}
	sort.Strings(env)
	fmt.Fprintf(&config, "SetEnv %s\n", strings.Join(env, " "))
	config.WriteString(o.Config)
	write(t, s.path("sshd_config"), config.String())
	s.Resume(t)
	t.Cleanup(func() { s.Halt() })
	return s
}

func (s *Server) path(name string) string { return filepath.Join(s.Dir, name) }

// Address is host:port.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// At is user@host:port, as error messages name the server.
func (s *Server) At() string { return s.User + "@" + s.Address() }

// KnownHosts is the server's line of a known_hosts file.
func (s *Server) KnownHosts() string { return fmt.Sprintf("[127.0.0.1]:%d %s\n", s.Port, s.HostKey) }

// Resume starts the server, again after [Server.Halt], and waits until it answers.
func (s *Server) Resume(t testing.TB) {
	t.Helper()
	var stderr bytes.Buffer
	s.cmd = exec.Command(s.program, "-D", "-e", "-f", s.path("sshd_config"))
	s.cmd.Stderr = &stderr
	// Its sessions die with it, and a Ctrl-C for the test does not reach it first.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.cmd.WaitDelay = 5 * time.Second
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", s.Address(), time.Second)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			s.Halt()
			t.Fatalf("sshd did not listen on %s: %v\n%s", s.Address(), err, stderr.String())
		}
	}
}

// Halt stops the server and cuts its connections. Twice is once.
func (s *Server) Halt() {
	if s.cmd == nil {
		return
	}
	// Each connection is a session of its own, below the server; cut them through their parents.
	for _, pid := range children(s.cmd.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// children lists the processes below pid.
func children(pid int) []int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var all []int
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
				all = append(all, children(child)...)
			}
		}
	}
	return all
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // only asked for a free port
	_, port, _ := net.SplitHostPort(l.Addr().String())
	n, _ := strconv.Atoi(port)
	return n
}

// newKey writes a private key and returns its public line.
func newKey(t testing.TB, name string) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := gossh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	write(t, name, string(pem.EncodeToMemory(block)))
	key, err := gossh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(gossh.MarshalAuthorizedKey(key)))
	write(t, name+".pub", line+"\n")
	return line
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
