// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// conn is one live connection. Its keep-alive goroutine ends with it.
type conn struct {
	client  *gossh.Client
	at      string
	hostKey string
	gone    chan struct{} // closed when the connection has ended, or is given up
	once    sync.Once
}

// close gives the connection up: from now on it is dead to [Pool.enter], which need not wait for keepAlive to notice.
func (c *conn) close() {
	c.once.Do(func() {
		close(c.gone)
		_ = c.client.Close()
	})
}

func (c *conn) dead() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// connection gives the live connection to a host, dialling it, and every hop before it, if need be.
func (p *Pool) connection(ctx context.Context, host string) (*entry, *conn, error) {
	r, err := p.resolve(ctx, host)
	if err != nil {
		return nil, nil, err
	}
	// A circle is found before anybody waits for anybody's turn in it.
	route := []string{host}
	for next := r; len(next.jump) > 0; {
		hop := next.jump[0]
		if slices.Contains(route, hop) {
			return nil, nil, &Error{Host: host, At: r.at(), Step: "resolve",
				Err: fmt.Errorf("the jump hosts lead in a circle: %s", strings.Join(append(route, hop), " → "))}
		}
		route = append(route, hop)
		if next, err = p.resolve(ctx, hop); err != nil {
			return nil, nil, behind(err, host, r)
		}
	}
	return p.enter(ctx, host, r, func(ctx context.Context) (*conn, error) {
		var via *conn
		for i, hop := range r.jump {
			var err error
			if i == 0 { // the first hop may itself lie behind others; the next ones are reached from the one before
				_, via, err = p.connection(ctx, hop)
			} else {
				via, err = p.through(ctx, strings.Join(r.jump[:i], ",")+","+hop, hop, via)
			}
			if err != nil {
				return nil, behind(err, host, r)
			}
		}
		return p.dial(ctx, r, via)
	})
}

// through gives the connection to hop over via, ignoring what ssh_config says about the way to hop.
func (p *Pool) through(ctx context.Context, key, hop string, via *conn) (*conn, error) {
	r, err := p.resolve(ctx, hop)
	if err != nil {
		return nil, err
	}
	_, c, err := p.enter(ctx, key, r, func(ctx context.Context) (*conn, error) { return p.dial(ctx, r, via) })
	return c, err
}

// behind says whom a jump host's error keeps us from.
func behind(err error, host string, r *resolved) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	out := *e
	out.Host = host
	out.Err = fmt.Errorf("%w (it is the jump host to %s)", e.Err, r.at())
	return &out
}

// enter gives the live connection of one entry, or its recent refusal, or calls dial. One caller dials, the
// others wait for it.
func (p *Pool) enter(ctx context.Context, key string, r *resolved, dial func(context.Context) (*conn, error)) (*entry, *conn, error) {
	p.mu.Lock()
	e := p.entries[key]
	if e == nil {
		e = &entry{turn: make(chan struct{}, 1), sessions: make(chan struct{}, maxSessions)}
		p.entries[key] = e
	}
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return nil, nil, &Error{Host: r.name, At: r.at(), Step: "connect", Err: net.ErrClosed}
	}
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return nil, nil, &Error{Host: r.name, At: r.at(), Step: "connect", Err: ctx.Err()}
	}
	if e.conn != nil && !e.conn.dead() {
		return e, e.conn, nil
	}
	if e.err != nil && (!e.err.Unreachable || time.Now().Before(e.until)) {
		return nil, nil, e.err
	}
	e.conn, e.err = nil, nil
	c, err := dial(ctx)
	if err == nil {
		e.conn = c
		return e, c, nil
	}
	var failure *Error
	if !errors.As(err, &failure) {
		failure = &Error{Host: r.name, At: r.at(), Step: "connect", Err: err}
	}
	if ctx.Err() == nil { // the caller's own end says nothing about the host
		e.err, e.until = failure, time.Now().Add(breakFor)
	}
	return nil, nil, failure
}

// dial makes one connection: TCP (or a channel through via, or ProxyCommand), host key, log-in.
func (p *Pool) dial(parent context.Context, r *resolved, via *conn) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(parent, p.cfg.ConnectTimeout,
		fmt.Errorf("no answer within %s", p.cfg.ConnectTimeout))
	defer cancel()
	fail := func(step string, err error, hint string) (*conn, error) {
		return nil, &Error{Host: r.name, At: r.at(), Step: step, Err: err, Hint: hint}
	}
	verify, err := p.newVerifier(r)
	if err != nil {
		return fail("host key", err, "")
	}
	ids, err := p.identities(ctx, r)
	if err != nil {
		return fail("log in", err, "")
	}

	p.log.Debug("dialling", "host", r.name, "at", r.at(), "jump", r.jump)
	var nc net.Conn
	switch {
	case via != nil:
		nc, err = via.client.DialContext(ctx, "tcp", r.dialAddress())
	case r.proxyCommand != "":
		nc, err = startProxy(r)
	default:
		nc, err = (&net.Dialer{}).DialContext(ctx, "tcp", r.dialAddress())
	}
	if err != nil {
		return nil, p.unreachable(ctx, r, via, err)
	}
	// x/crypto/ssh takes no context: the connection is closed under the handshake when time is up.
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	sc, chans, reqs, err := gossh.NewClientConn(nc, r.dialAddress(), &gossh.ClientConfig{
		User:              r.user,
		Auth:              []gossh.AuthMethod{gossh.PublicKeys(ids.signers...)},
		HostKeyCallback:   verify.check,
		HostKeyAlgorithms: verify.algorithms(),
		ClientVersion:     "SSH-2.0-lockstep",
	})
	if !stop() && err == nil {
		_ = sc.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = nc.Close()
		var negotiation *gossh.AlgorithmNegotiationError
		var key *HostKeyError
		switch {
		case errors.As(verify.err, &key):
			return fail("host key", key, verify.hint(key))
		case verify.err != nil:
			return fail("host key", verify.err, "")
		case ctx.Err() != nil:
			return nil, p.unreachable(ctx, r, via, context.Cause(ctx))
		case errors.As(err, &negotiation) && strings.Contains(err.Error(), "host key"):
			key := &HostKeyError{Err: negotiation}
			return fail("host key", key, verify.hint(key))
		case strings.Contains(err.Error(), "unable to authenticate"):
			return fail("log in", fmt.Errorf("the host refused user %q: %s", r.user, ids.describe()),
				fmt.Sprintf("add the public key to ~%s/.ssh/authorized_keys on the host, or set user and private_key_file (or agent) in the provider's ssh block; `ssh -v -p %d %s@%s` shows the host's side",
					r.user, r.port, r.user, r.address))
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			e := p.unreachable(ctx, r, via, fmt.Errorf("the connection was closed before a log-in: %w", err))
			e.Hint = "is it an ssh server that listens there? It may also be booting, or refuse by /etc/hosts.deny, fail2ban or MaxStartups"
			return nil, e
		default:
			return fail("log in", err, "")
		}
	}
	c := &conn{client: gossh.NewClient(sc, chans, reqs), at: r.at(), hostKey: verify.seen, gone: make(chan struct{})}
	p.running.Go(func() { p.keepAlive(c, nc) })
	return c, nil
}

func (p *Pool) unreachable(ctx context.Context, r *resolved, via *conn, err error) *Error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	e := &Error{Host: r.name, At: r.at(), Step: "connect", Err: err, Unreachable: true}
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		e.Hint = fmt.Sprintf("give the address in the provider block: hosts = { %q = { address = \"192.0.2.1\" } }", r.name)
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Hint = "no sshd listens there: is it running, and is the port right?"
	case via != nil:
		e.Hint = "it was dialled from the jump host " + via.at
	default:
		e.Hint = "is the host up, and does a firewall let the port through?"
	}
	return e
}

// keepAlive ends a connection whose other end is silently gone. It returns when the connection ends.
func (p *Pool) keepAlive(c *conn, nc net.Conn) {
	defer c.close()
	ended := make(chan struct{})
	go func() {
		_ = c.client.Wait()
		close(ended)
	}()
	tick := time.NewTicker(keepAliveEvery)
	defer tick.Stop()
	answered := make(chan struct{}, 1)
	missed, asking := 0, false
	for {
		select {
		case <-ended:
			_ = nc.Close()
			return
		case <-answered:
			missed, asking = 0, false
		case <-tick.C:
			if asking {
				if missed++; missed >= keepAliveMax {
					_ = nc.Close() // ends client.Wait, and with it the pending request
				}
				continue
			}
			asking = true
			p.running.Go(func() {
				if _, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil); err == nil {
					answered <- struct{}{}
				}
			})
		}
	}
}

// proxy is the connection that a ProxyCommand of ssh_config makes.
type proxy struct {
	io.Reader
	io.WriteCloser
	cmd  *exec.Cmd
	once sync.Once
	addr proxyAddr
}

type proxyAddr string

func (proxyAddr) Network() string  { return "proxycommand" }
func (a proxyAddr) String() string { return string(a) }

func startProxy(r *resolved) (net.Conn, error) {
	line := expand(r.proxyCommand, r, r.name)
	cmd := exec.Command("sh", "-c", "exec "+line)
	cmd.SysProcAttr = ownGroup()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("ProxyCommand %q: %w", line, err)
	}
	return &proxy{Reader: out, WriteCloser: in, cmd: cmd, addr: proxyAddr(r.dialAddress())}, nil
}

// Close ends the command and waits for it.
func (c *proxy) Close() error {
	c.once.Do(func() {
		_ = c.WriteCloser.Close()
		killGroup(c.cmd)
		_ = c.cmd.Wait()
	})
	return nil
}

func (c *proxy) LocalAddr() net.Addr              { return c.addr }
func (c *proxy) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4zero} }
func (c *proxy) SetDeadline(time.Time) error      { return nil } // dial closes it when time is up
func (c *proxy) SetReadDeadline(time.Time) error  { return nil }
func (c *proxy) SetWriteDeadline(time.Time) error { return nil }
