// SPDX-License-Identifier: Apache-2.0

package rsynctest

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options says what daemon to start. The zero value of each field has a default.
type Options struct {
	Rsync    string   // default: in PATH
	Dir      string   // for configuration, secrets, log; required by Start
	Path     string   // the module's path; made when missing; required by Start
	Module   string   // default: data
	User     string   // default: lockstep
	Password string   // default: correct horse
	Settings []string // further lines of the module; one that names a default's parameter replaces it
	Global   []string // further lines before the module
}

// Server is a daemon. Its methods may not be called at once from several goroutines.
type Server struct {
	Address      string
	Port         int
	Module       string
	User         string
	Password     string
	PasswordFile string // for the client, mode 0600
	Secrets      string // secrets file of the module
	Path         string // what the module exports
	Config       string // path of rsyncd.conf, which the daemon reads anew for every connection

	opts   Options
	log    string
	cmd    *exec.Cmd
	waited chan struct{} // closed when the daemon process has ended
	stderr *lockedBuffer
}

// startTimeout bounds how long a daemon may take until it greets. It is generous: tests run beside others.
const startTimeout = 20 * time.Second

// Start starts a daemon on a free port of 127.0.0.1 and returns when it greets.
func Start(opts Options) (*Server, error) {
	opts.Rsync = cmp.Or(opts.Rsync, "rsync")
	s := &Server{
		Address:  "127.0.0.1",
		Module:   cmp.Or(opts.Module, "data"),
		User:     cmp.Or(opts.User, "lockstep"),
		Password: cmp.Or(opts.Password, "correct horse"),
		Path:     opts.Path,
		opts:     opts,
		log:      filepath.Join(opts.Dir, "rsyncd.log"),
		Config:   filepath.Join(opts.Dir, "rsyncd.conf"),
		Secrets:  filepath.Join(opts.Dir, "secrets"),
	}
	s.PasswordFile = filepath.Join(opts.Dir, "password")
	if err := os.MkdirAll(s.Path, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.Secrets, []byte(s.User+":"+s.Password+"\n"), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.PasswordFile, []byte(s.Password+"\n"), 0o600); err != nil {
		return nil, err
	}
	// Between closing the probe listener and the daemon's bind(2) another process can take the port.
	var err error
	for range 5 {
		if s.Port, err = freePort(); err != nil {
			return nil, err
		}
		if err = s.Configure(opts.Settings...); err != nil {
			return nil, err
		}
		if err = s.Start(); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}

// Configure writes rsyncd.conf with these further lines of the module. It holds from the next connection on.
func (s *Server) Configure(settings ...string) error {
	global := []string{
		"port = " + strconv.Itoa(s.Port),
		"address = " + s.Address,
		"log file = " + s.log,
		"socket options = TCP_NODELAY",
		"use chroot = no",
		"reverse lookup = no",
	}
	module := []string{
		"path = " + s.Path,
		"read only = no",
		"write only = yes",
		"list = no",
		"munge symlinks = no",
		"numeric ids = yes",
		"auth users = " + s.User,
		"secrets file = " + s.Secrets,
		"lock file = " + filepath.Join(s.opts.Dir, "lock"),
	}
	if os.Geteuid() == 0 {
		module = append(module, "use chroot = yes", "uid = 0", "gid = *")
	}
	var b strings.Builder
	for _, l := range replace(global, s.opts.Global) {
		fmt.Fprintln(&b, l)
	}
	fmt.Fprintf(&b, "[%s]\n", s.Module)
	for _, l := range replace(module, settings) {
		fmt.Fprintln(&b, l)
	}
	tmp := s.Config + ".new"
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.Config)
}

// replace appends settings to defaults, less the defaults that they name.
func replace(defaults, settings []string) []string {
	key := func(line string) string {
		k, _, _ := strings.Cut(line, "=")
		return strings.TrimSpace(k)
	}
	set := map[string]bool{}
	for _, l := range settings {
		set[key(l)] = true
	}
	var out []string
	for _, l := range defaults {
		if !set[key(l)] {
			out = append(out, l)
		}
	}
	return append(out, settings...)
}

// Start starts the daemon again, on the same port, after Stop or Kill.
func (s *Server) Start() error {
	if s.cmd != nil {
		return errors.New("the daemon runs already")
	}
	cmd := exec.Command(s.opts.Rsync, "--daemon", "--no-detach", "--config="+s.Config)
	connects := s.connects()
	s.stderr = &lockedBuffer{}
	cmd.Stderr = s.stderr
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	// A group of its own holds the daemon and the processes of its connections, so that all can be ended by id.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	waited := make(chan struct{})
	go func() {
		cmd.Wait() //nolint:errcheck // it ends by our signal
		close(waited)
	}()
	s.cmd, s.waited = cmd, waited
	err := s.waitForGreeting(connects)
	if err != nil {
		return errors.Join(err, s.Kill())
	}
	return nil
}

// connects is how many connections the daemon has logged.
func (s *Server) connects() int { return strings.Count(s.Log(), " connect from ") }

// waitForGreeting waits until a connection is greeted that this daemon has logged, which had logged some before: the daemon of another test that has
// taken the port meanwhile would greet, too.
func (s *Server) waitForGreeting(before int) error {
	deadline := time.Now().Add(startTimeout)
	for {
		err := greeted(net.JoinHostPort(s.Address, strconv.Itoa(s.Port)))
		if err == nil {
			if s.connects() > before {
				return nil
			}
			err = errors.New("its log tells of no connection")
		}
		select {
		case <-s.waited:
			return fmt.Errorf("rsync --daemon ended at once: %s%s", s.stderr, s.Log())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("rsync --daemon does not greet: %w", err)
		}
	}
}

func greeted(address string) error {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "@RSYNCD:") {
		return fmt.Errorf("greeting %q", line)
	}
	return nil
}

// Stop ends the daemon and its connections with SIGTERM and returns when the daemon is gone. Stopping a
// stopped daemon does nothing.
func (s *Server) Stop() error { return s.signal(syscall.SIGTERM) }

// Kill ends the daemon and all its connections with SIGKILL, as a crash of the host would.
func (s *Server) Kill() error { return s.signal(syscall.SIGKILL) }

func (s *Server) signal(sig syscall.Signal) error {
	if s.cmd == nil {
		return nil
	}
	err := syscall.Kill(-s.cmd.Process.Pid, sig)
	select {
	case <-s.waited:
	case <-time.After(startTimeout):
		err = errors.Join(err, syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL))
		<-s.waited
	}
	s.cmd = nil
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// KillConnections ends the processes that serve connections with SIGKILL and lets the daemon run.
func (s *Server) KillConnections() error {
	if s.cmd == nil {
		return nil
	}
	pids, err := s.connections()
	if err != nil {
		return err
	}
	return KillAll(pids)
}

// KillAll ends processes with SIGKILL. Some may have ended by themselves.
func KillAll(pids []int) error {
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// Connections counts the processes that serve connections now: none, or one or two for each.
func (s *Server) Connections() (int, error) {
	if s.cmd == nil {
		return 0, nil
	}
	pids, err := s.connections()
	return len(pids), err
}

// connections lists the members of the daemon's process group but the daemon itself.
func (s *Server) connections() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == s.cmd.Process.Pid {
			continue
		}
		pgid, err := syscall.Getpgid(pid)
		if err == nil && pgid == s.cmd.Process.Pid && !isZombie(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func isZombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, ok := bytes.Cut(b, []byte(") "))
	return ok && bytes.HasPrefix(rest, []byte("Z"))
}

// PID returns the process id of the daemon, 0 when it does not run.
func (s *Server) PID() int {
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Log returns what the daemon has logged so far.
func (s *Server) Log() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// lockedBuffer is a buffer that one goroutine writes and another reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
