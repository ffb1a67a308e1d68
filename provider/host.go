// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/provider/internal/ssh"
)

// become says how to get root's rights after the log-in.
type become struct {
	Method   string // sudo, none; "" is sudo unless the log-in is root's
	Password string
}

// hostError is what went wrong on one host, or on the way to it, with what to do about it.
type hostError struct {
	Host        string // as the user named it
	At          string // user@address:port
	Step        string
	Err         error
	Hint        string
	Unreachable bool
}

func (e *hostError) Error() string {
	s := fmt.Sprintf("%s: %v", e.Step, e.Err)
	if e.Hint != "" {
		s += "\nhint: " + e.Hint
	}
	return s
}

func (e *hostError) Unwrap() error { return e.Err }

// withHint is the error with more to do about it.
func (e *hostError) withHint(more string) *hostError {
	advised := *e
	advised.Hint = strings.TrimPrefix(e.Hint+"\n\n", "\n\n") + more
	return &advised
}

// host is one machine as the provider uses it: how to run a command there as root, and where its lockstep is.
// Its methods may be called from any goroutine.
type host struct {
	name    string
	pool    *ssh.Pool
	become  become
	install string
	carried *carried
	paths   paths
	redact  func(string) string

	// using counts the operations that rely on lockstep being installed here; the removal of the binary
	// takes all of it. Operations on two hosts take them in the order of their names.
	using *semaphore.Weighted

	installing chan struct{} // held while the binary is installed

	turn   chan struct{} // guards what follows; held while it is being found out
	facts  *facts
	staged *staged
	sudo   map[string]sudoMode // by program
}

// allOfIt is more operations than Terraform runs at once.
const allOfIt = 1 << 20

func newHost(name string, pool *ssh.Pool, b become, install string, c *carried, at paths, redact func(string) string) *host {
	return &host{name: name, pool: pool, become: b, install: install, carried: c, paths: at, redact: redact,
		using: semaphore.NewWeighted(allOfIt), installing: make(chan struct{}, 1), turn: make(chan struct{}, 1), sudo: map[string]sudoMode{}}
}

// useBoth keeps lockstep installed on the hosts until release is called.
func useBoth(ctx context.Context, a, b *host) (release func(), err error) {
	if b.name < a.name {
		a, b = b, a
	}
	if err := a.using.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	if a == b {
		return func() { a.using.Release(1) }, nil
	}
	if err := b.using.Acquire(ctx, 1); err != nil {
		a.using.Release(1)
		return nil, err
	}
	return func() { b.using.Release(1); a.using.Release(1) }, nil
}

// fail says what happened to this host. An error of the ssh package keeps its own step and hint.
func (h *host) fail(ctx context.Context, step string, err error, hint string) *hostError {
	if known, ok := errors.AsType[*hostError](err); ok {
		return known
	}
	e := &hostError{Host: h.name, Step: step, Err: err, Hint: hint}
	if s, ok := errors.AsType[*ssh.Error](err); ok {
		e.At, e.Step, e.Err, e.Unreachable = s.At, s.Step, s.Err, s.Unreachable
		if s.Step == "run" {
			e.Step = step
		}
		e.Hint = cmp.Or(s.Hint, hint)
	}
	if e.At == "" {
		e.At = h.pool.At(ctx, h.name)
	}
	return e
}

type sudoMode int

const (
	sudoNone     sudoMode = iota // the log-in has the rights
	sudoFree                     // sudo asks for no password
	sudoPassword                 // sudo reads the password from the first line of standard input
)

// root runs a program with root's rights. probe are arguments with which the program does nothing.
func (h *host) root(ctx context.Context, step, program string, probe, args []string, stdin io.Reader) (ssh.Result, error) {
	mode, err := h.sudoFor(ctx, program, probe)
	if err != nil {
		return ssh.Result{}, err
	}
	argv := append([]string{program}, args...)
	switch mode {
	case sudoFree:
		argv = append([]string{"sudo", "-n", "--"}, argv...)
	case sudoPassword:
		// -k: a password that sudo remembers would leave ours for the program to read.
		argv = append([]string{"sudo", "-k", "-S", "-p", "", "--"}, argv...)
		stdin = io.MultiReader(strings.NewReader(h.become.Password+"\n"), stdin)
	}
	result, err := h.pool.Run(ctx, h.name, shellJoin(argv), stdin)
	result.Stderr = h.redact(result.Stderr)
	if err != nil {
		failed := h.fail(ctx, step, err, "")
		if words := tail(result.Stderr); words != "" && ctx.Err() != nil { // lockstep says what it waits for
			failed.Err = fmt.Errorf("%w; its last words: %s", failed.Err, words)
		}
		return result, failed
	}
	if mode != sudoNone {
		if err := h.sudoRefusal(ctx, result); err != nil {
			return result, err
		}
	}
	return result, nil
}

// lockstep runs lockstep as root.
func (h *host) lockstep(ctx context.Context, step, binary string, stdin []byte, args ...string) (ssh.Result, error) {
	return h.root(ctx, step, binary, []string{"version"}, args, bytes.NewReader(stdin))
}

// script runs a script of sh(1) as root.
func (h *host) script(ctx context.Context, step, script string, args ...string) (ssh.Result, error) {
	return h.root(ctx, step, "sh", []string{"-c", "true"}, append([]string{"-s", "--"}, args...), strings.NewReader(script))
}

// sudoFor finds out how sudo treats a program. That it asks for no password must be known before one is
// sent: it would be read by the program.
func (h *host) sudoFor(ctx context.Context, program string, probe []string) (sudoMode, error) {
	f, err := h.look(ctx)
	if err != nil {
		return 0, err
	}
	switch {
	case h.become.Method == "none" || f.UID == "0" && h.become.Method == "":
		return sudoNone, nil
	case h.become.Password == "":
		return sudoFree, nil
	}
	if err := h.lock(ctx); err != nil {
		return 0, err
	}
	defer h.unlock()
	if mode, ok := h.sudo[program]; ok {
		return mode, nil
	}
	result, err := h.pool.Run(ctx, h.name, shellJoin(append([]string{"sudo", "-k", "-n", "--", program}, probe...)), nil)
	if err != nil {
		return 0, h.fail(ctx, "sudo", err, "")
	}
	mode := sudoPassword
	if result.Status == 0 {
		mode = sudoFree
	}
	h.sudo[program] = mode
	return mode, nil
}

// sudoRefusal tells the words of sudo from those of the program that it was to run.
func (h *host) sudoRefusal(ctx context.Context, r ssh.Result) error {
	if r.Status == 0 || len(bytes.TrimSpace(r.Stdout)) > 0 {
		return nil
	}
	text := strings.TrimSpace(r.Stderr)
	low := strings.ToLower(text)
	at := h.pool.At(ctx, h.name)
	user, _, _ := strings.Cut(at, "@")
	// Terraform keeps the breaks of lines that are indented.
	rule := fmt.Sprintf("on the host, as root:\n\n    echo '%s ALL=(root) NOPASSWD: ALL' > /etc/sudoers.d/lockstep\n    chmod 0440 /etc/sudoers.d/lockstep", user)
	hint := ""
	switch {
	case r.Status == 127 && strings.Contains(low, "sudo"):
		hint = fmt.Sprintf("sudo is not installed there: apt-get install sudo (or dnf install sudo), or log in as root: hosts = { %q = { user = \"root\" } }", h.name)
	case strings.Contains(low, "password is required"), strings.Contains(low, "a terminal is required"):
		hint = "set become = { password = var.sudo_password } in the provider block, or let " + user + " use sudo without one, " + rule
	case strings.Contains(low, "incorrect password"), strings.Contains(low, "no password was provided"), strings.Contains(low, "sorry, try again"):
		hint = "become.password is not the password of " + user
	case strings.Contains(low, "must have a tty"):
		hint = "remove requiretty from /etc/sudoers, or add: Defaults:" + user + " !requiretty"
	case strings.Contains(low, "not in the sudoers"), strings.Contains(low, "may not run sudo"), strings.Contains(low, "is not allowed to"):
		hint = "give the user the right, " + rule
	case strings.HasPrefix(low, "sudo:"):
		hint = "see what sudo said; `sudo -l` on the host lists what " + user + " may do"
	default:
		return nil
	}
	return h.fail(ctx, "sudo", fmt.Errorf("refused user %s: %s", user, text), hint)
}

// call runs one verb of the host contract and returns the reply. Problems that the host found come back in
// the reply; an error means that there is none.
func (h *host) call(ctx context.Context, binary string, verb plan.Verb, role plan.Role, req plan.Request) (plan.Reply, error) {
	reply, _, err := h.ask(ctx, binary, verb, role, req)
	return reply, err
}

// ask is call, and tells why the definition in the reply is refused, if it is.
func (h *host) ask(ctx context.Context, binary string, verb plan.Verb, role plan.Role, req plan.Request) (reply plan.Reply, refused, err error) {
	step := "lockstep " + string(verb)
	req.Protocol = plan.Protocol
	body, err := json.Marshal(req)
	if err != nil {
		return reply, nil, h.fail(ctx, step, err, "")
	}
	result, err := h.lockstep(ctx, step, binary, body, string(verb), "--role", string(role), "--json")
	if err != nil {
		return reply, nil, err
	}
	var wire struct {
		plan.Reply
		Pair json.RawMessage `json:"pair"` // hides the other, which would be judged
	}
	if err := h.decode(ctx, step, binary, result, &wire); err != nil {
		return reply, nil, err
	}
	reply = wire.Reply
	reply.Pair, refused = stored(wire.Pair)
	if reply.Protocol != plan.Protocol {
		return reply, nil, h.fail(ctx, step, fmt.Errorf("%s speaks protocol %d, this provider %d", binary, reply.Protocol, plan.Protocol),
			"upgrade the older of the two: the lockstep package on the host, or the provider")
	}
	if result.Status != 0 && len(reply.Problems) == 0 {
		return reply, nil, h.fail(ctx, step, fmt.Errorf("exit status %d: %s", result.Status, tail(result.Stderr)), "")
	}
	return reply, refused, nil
}

// stored reads the definition that a host has. An older lockstep may have taken what this version refuses; of such a definition
// there is what tells whose it is.
func stored(text json.RawMessage) (p *pair.Pair, refused error) {
	if refused = json.Unmarshal(text, &p); len(text) == 0 || refused == nil {
		return p, nil
	}
	var known struct {
		Name      string      `json:"name"`
		Source    pair.Source `json:"source"`
		Backup    pair.Backup `json:"backup"`
		Transport string      `json:"transport"`
	}
	_ = json.Unmarshal(text, &known) // what does not fit stays empty
	return &pair.Pair{Name: known.Name, Source: known.Source, Backup: known.Backup, Transport: known.Transport}, refused
}

// decode reads the JSON that a lockstep command printed.
func (h *host) decode(ctx context.Context, step, binary string, result ssh.Result, into any) error {
	out := result.Stdout
	if i := bytes.IndexByte(out, '{'); i > 0 { // what a login script prints comes first
		out = out[i:]
	}
	if err := json.Unmarshal(out, into); err != nil {
		switch {
		case len(bytes.TrimSpace(out)) == 0 && strings.TrimSpace(result.Stderr) != "":
			err = fmt.Errorf("exit status %d: %s", result.Status, tail(result.Stderr))
		default:
			err = fmt.Errorf("exit status %d and an answer that is not JSON (%w): %s", result.Status, err, tail(h.redact(string(out))+result.Stderr))
		}
		return h.fail(ctx, step, err, fmt.Sprintf("run `%s version` on the host: is it lockstep, and not older than this provider?", binary))
	}
	return nil
}

// tail keeps the end of a long text: the last words of a program are the ones that tell why it stopped.
func tail(s string) string {
	const most = 2000
	s = strings.TrimSpace(s)
	if len(s) > most {
		s = "…" + strings.ToValidUTF8(s[len(s)-most:], "")
	}
	return s
}

func (h *host) lock(ctx context.Context) error {
	select {
	case h.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return h.fail(ctx, "wait", ctx.Err(), "")
	}
}

func (h *host) unlock() { <-h.turn }

// shellJoin quotes words so that every login shell reads them as they are.
func shellJoin(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		if w != "" && strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=+,@") == "" {
			out[i] = w
			continue
		}
		out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(out, " ")
}

// onBoth calls f for the two ends at the same time and waits for both.
func onBoth(f func(role plan.Role)) {
	var wg sync.WaitGroup
	wg.Go(func() { f(plan.Source) })
	wg.Go(func() { f(plan.Backup) })
	wg.Wait()
}
