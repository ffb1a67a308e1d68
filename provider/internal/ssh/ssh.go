// SPDX-License-Identifier: Apache-2.0

// Package ssh runs commands on hosts the way the user's own `ssh` would reach them.
//
// A [Pool] keeps one connection for each host and bounds how many commands run over it at once. It
// dials when the first command comes, checks the host key before anything is sent, and gives up at
// once, for a while, on a host that has just refused: twenty pairs do not wait for twenty timeouts.
// A command is never run twice: what was lost on the way is reported, not repeated.
// What the commands mean is left to the caller.
package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

const (
	// maxSessions stays below the MaxSessions 10 that sshd_config(5) sets by default, so that the
	// administrator's own multiplexed sessions are not the ones that are refused.
	maxSessions = 4
	// maxStdout bounds what a command may answer; the largest reply is a diff of a few files.
	maxStdout = 16 << 20
	// maxStderr is how much of a command's standard error is kept, from its end.
	maxStderr = 64 << 10
	// breakFor is how long a host that could not be reached is not tried again.
	breakFor = time.Minute
	// keepAliveEvery and keepAliveMax find a connection that is dead without a reset.
	keepAliveEvery = 15 * time.Second
	keepAliveMax   = 3
	// defaultConnectTimeout bounds dialling and the handshake together, for each hop.
	defaultConnectTimeout = 15 * time.Second
	// openTries is how often a session is asked for again.
	openTries = 6
	// retryEvery is the pause between two tries of [Pool.Wait].
	retryEvery = 2 * time.Second
)

// Policy says what to do with a host key that is not known.
type Policy string

const (
	Strict    Policy = "strict"     // refuse, and print the key
	AcceptNew Policy = "accept-new" // record it in the known_hosts file; a changed key is refused
	Insecure  Policy = "insecure"   // accept any key, changed ones too
)

// Options are the settings of one host. A zero field is taken from [Config.Defaults], then from ssh_config.
type Options struct {
	Address        string
	User           string
	Port           int
	HostKeys       string // one or several lines, as in a .pub file or in known_hosts
	PrivateKey     string // PEM
	PrivateKeyFile string
	Agent          *bool
	Jump           []string // nil: as ssh_config says; empty: no jump
}

// Config is everything a [Pool] knows beforehand.
type Config struct {
	Defaults       Options
	Hosts          map[string]Options // by the name that the caller uses
	ConfigFile     string             // "" = as ssh does; "none" = no file
	KnownHosts     string             // content of a known_hosts file
	KnownHostsFile string             // "" = as ssh_config says, or none if KnownHosts is given
	Policy         Policy
	ConnectTimeout time.Duration
	// SSH is the ssh program that is asked (`ssh -G`) what ssh_config says. Empty: found on PATH; when
	// there is none, the files are read with a parser that knows Host and Include, but not Match.
	SSH string
	Log *slog.Logger // nil: silent
}

// Result is what a command left behind.
type Result struct {
	Stdout []byte
	Stderr string // its end, if it was long
	Status int    // exit status; 128+n when it died of a signal
}

// Error is why a host could not be used. Its text names the host as user@address:port.
type Error struct {
	Host string // as the caller named it
	At   string // user@address:port, as far as known
	Step string // what was being done: resolve, connect, host key, log in, run
	Err  error
	Hint string // what to do, if known
	// Unreachable is set when no answer came, or none from an ssh server: the host may be down or booting.
	Unreachable bool
}

func (e *Error) Error() string {
	where := e.At
	if where == "" {
		where = e.Host
	}
	return fmt.Sprintf("%s: %s: %v", where, e.Step, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Pool holds the connections. Its methods may be called from any goroutine.
type Pool struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	entries map[string]*entry    // by route: the host's name, after the hops that were given for it
	known   map[string]*resolved // by name
	closed  bool
	running sync.WaitGroup // keep-alive goroutines and those that wait for commands
}

// entry is one host. Whoever holds turn may dial; the fields below are guarded by it.
type entry struct {
	turn     chan struct{}
	sessions chan struct{} // one token for each running command
	conn     *conn
	err      *Error // why the last dial failed
	until    time.Time
}

// New builds a pool. It touches neither the network nor any file.
func New(cfg Config) *Pool {
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = defaultConnectTimeout
	}
	if cfg.Policy == "" {
		cfg.Policy = Strict
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Pool{cfg: cfg, log: log, entries: map[string]*entry{}, known: map[string]*resolved{}}
}

// Close ends all connections and waits for what the pool started.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	var conns []*conn
	for _, e := range p.entries {
		select {
		case e.turn <- struct{}{}:
			if e.conn != nil {
				conns = append(conns, e.conn)
			}
			<-e.turn
		default: // being dialled: its context is the caller's to cancel
		}
	}
	p.mu.Unlock()
	for _, c := range conns {
		c.close()
	}
	p.running.Wait()
}

// At is user@address:port of a host, for messages. It falls back to the name alone.
func (p *Pool) At(ctx context.Context, host string) string {
	r, err := p.resolve(ctx, host)
	if err != nil {
		return host
	}
	return r.at()
}

// HostKey is the key that a host has shown, as the line of a .pub file. It connects if need be.
func (p *Pool) HostKey(ctx context.Context, host string) (string, error) {
	_, c, err := p.connection(ctx, host)
	if err != nil {
		return "", err
	}
	return c.hostKey, nil
}

// Connect dials a host, checks its key and logs in, unless that is already done.
func (p *Pool) Connect(ctx context.Context, host string) error {
	_, _, err := p.connection(ctx, host)
	return err
}

// Wait is [Pool.Connect] for a host that may still be booting: as long as it is unreachable, it is tried
// again, until it answers, limit has passed, or it answers with a refusal that time does not heal.
func (p *Pool) Wait(ctx context.Context, host string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		err := p.Connect(ctx, host)
		var e *Error
		if err == nil || !errors.As(err, &e) || !e.Unreachable || !time.Now().Add(retryEvery).Before(deadline) {
			return err
		}
		if !pause(ctx, retryEvery) {
			return err
		}
		p.forgive(host)
	}
}

// pause waits and reports whether ctx is still good.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// forgive lets the next call try an unreachable host, and the hops before it, at once.
func (p *Pool) forgive(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.entries {
		select {
		case e.turn <- struct{}{}:
			if e.err != nil && e.err.Unreachable {
				e.err = nil
			}
			<-e.turn
		default: // somebody is dialling it just now
		}
	}
	p.log.Debug("trying again", "host", host)
}

// Run starts command under the login shell of the user and waits for it. A status other than 0 is not
// an error. When the connection is lost after the command began, the error says so: it may have run.
func (p *Pool) Run(ctx context.Context, host, command string, stdin io.Reader) (Result, error) {
	s, err := p.Start(ctx, host, command, stdin)
	if err != nil {
		return Result{}, err
	}
	s.Release()
	return s.Wait()
}

// Session is a command that runs on a host.
type Session struct {
	ctx     context.Context
	host    string
	at      string
	done    chan struct{} // closed when the command has ended; err is set then
	err     error
	let     chan struct{} // closed by Release
	release func()
	stdout  *bounded
	stderr  *bounded
	started time.Time
	log     *slog.Logger
}

// Start starts command and returns while it runs; [Session.Wait] must be called. Its standard input stays open
// after stdin has been read, until [Session.Release], so that a command can tell whether this side still lives.
// Cancelling ctx ends it.
func (p *Pool) Start(ctx context.Context, host, command string, stdin io.Reader) (*Session, error) {
	for attempt := 0; ; attempt++ {
		e, c, err := p.connection(ctx, host)
		if err != nil {
			return nil, err
		}
		select {
		case e.sessions <- struct{}{}:
		case <-ctx.Done():
			return nil, &Error{Host: host, At: c.at, Step: "run", Err: ctx.Err()}
		}
		release := sync.OnceFunc(func() { <-e.sessions })
		session, err := c.client.NewSession()
		if err != nil {
			release()
			if refused, ok := errors.AsType[*gossh.OpenChannelError](err); ok {
				// sshd counts a session until it has cleaned up after it, a moment after its status came.
				if attempt < openTries && pause(ctx, time.Duration(attempt+1)*100*time.Millisecond) {
					continue
				}
				return nil, &Error{Host: host, At: c.at, Step: "run", Err: fmt.Errorf("the host refused a session: %s", refused.Message),
					Hint: fmt.Sprintf("sshd_config(5) MaxSessions must allow at least %d", maxSessions)}
			}
			c.close()
			if attempt == 0 { // the connection had died unnoticed; nothing has run yet
				continue
			}
			return nil, &Error{Host: host, At: c.at, Step: "run", Err: err, Unreachable: true}
		}
		s := &Session{ctx: ctx, host: host, at: c.at, done: make(chan struct{}), let: make(chan struct{}),
			stdout: &bounded{max: maxStdout, more: make(chan struct{}, 1)}, stderr: &bounded{max: maxStderr, tail: true}, started: time.Now(), log: p.log}
		s.release = sync.OnceFunc(func() { close(s.let) })
		in, err := session.StdinPipe()
		if err != nil {
			_ = session.Close()
			release()
			return nil, &Error{Host: host, At: c.at, Step: "run", Err: err}
		}
		session.Stdout = s.stdout
		session.Stderr = s.stderr
		p.log.Debug("running", "host", host, "at", c.at, "command", command)
		if err := session.Start(command); err != nil {
			_ = session.Close()
			release()
			return nil, &Error{Host: host, At: c.at, Step: "run", Err: fmt.Errorf("start %q: %w", command, err)}
		}
		// The end of a command that was given up is waited for here, until the connection is closed.
		p.running.Go(func() {
			stop := context.AfterFunc(ctx, func() {
				_ = session.Signal(gossh.SIGTERM)
				_ = session.Close()
			})
			defer stop()
			s.err = session.Wait()
			_ = session.Close()
			release()
			close(s.done)
		})
		p.running.Go(func() {
			defer in.Close() //nolint:errcheck // the command has ended, or reads the end
			if stdin != nil {
				_, _ = io.Copy(in, stdin) // fails when the command has ended without reading it all
			}
			select {
			case <-s.let:
			case <-s.done:
			}
		})
		return s, nil
	}
}

// Expect waits until the command has written text to its standard output. When the command, or ctx, ends
// first, it reports false; [Session.Wait] then tells why.
func (s *Session) Expect(ctx context.Context, text string) bool {
	for {
		if bytes.Contains(s.stdout.bytes(), []byte(text)) {
			return true
		}
		select {
		case <-s.stdout.more:
		case <-ctx.Done():
			return false
		case <-s.ctx.Done():
			return false
		case <-s.done:
			return bytes.Contains(s.stdout.bytes(), []byte(text))
		}
	}
}

// Stdout is what the command has written so far. It may be called while the command runs.
func (s *Session) Stdout() []byte { return s.stdout.bytes() }

// Release closes the command's standard input, once stdin has been read. Twice is once.
func (s *Session) Release() { s.release() }

// Wait waits for the end of the command, or of the context that it was started with.
func (s *Session) Wait() (Result, error) {
	var err error
	select {
	case <-s.done:
		err = s.err
	case <-s.ctx.Done():
		err = s.ctx.Err()
	}
	result := Result{Stdout: s.stdout.bytes(), Stderr: string(s.stderr.bytes())}
	fail := func(err error) (Result, error) {
		return result, &Error{Host: s.host, At: s.at, Step: "run", Err: err}
	}
	var exit *gossh.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		result.Status = exit.ExitStatus()
	case s.ctx.Err() != nil:
		return fail(fmt.Errorf("%w while the command ran: it may have had its effect", context.Cause(s.ctx)))
	default:
		return fail(fmt.Errorf("connection lost while the command ran, it may have had its effect: %w", err))
	}
	if s.stdout.overflowed() {
		return fail(fmt.Errorf("more than %d bytes of output", maxStdout))
	}
	s.log.Debug("ran", "host", s.host, "status", result.Status, "elapsed", time.Since(s.started))
	return result, nil
}

// bounded keeps the first (or, with tail, the last) max bytes. The session writes from its own goroutine.
type bounded struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	max  int
	tail bool
	over bool
	more chan struct{} // told of a write; nil if nobody asks
}

func (b *bounded) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() {
		select {
		case b.more <- struct{}{}:
		default: // told already, or nobody asks
		}
	}()
	n := len(data)
	if b.tail {
		b.buf.Write(data)
		if extra := b.buf.Len() - b.max; extra > 0 {
			b.buf.Next(extra)
			b.over = true
		}
		return n, nil
	}
	if room := b.max - b.buf.Len(); room < n {
		data, b.over = data[:room], true
	}
	b.buf.Write(data)
	return n, nil // reading on lets the command end
}

func (b *bounded) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *bounded) overflowed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.over
}
