// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/replicate"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

// runRoot has the runtime directory of each agent; see lockstep(8) FILES.
const runRoot = "/run/lockstep"

// client talks to one agent over its status socket.
type client struct {
	name   string // of the pair, or its runtime directory
	socket string
	limit  time.Duration // for the answer to a question
	http   http.Client
}

// answerLimit is how long an agent may take to say how it is: less than the 10 s after which Nagios ends a plugin.
const answerLimit = 8 * time.Second

func newClient(name, runtimeDir string) *client {
	c := &client{name: name, socket: filepath.Join(runtimeDir, replicate.SocketName), limit: answerLimit}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.socket)
		},
	}
	return c
}

// who names the agent for an error: by its pair, or stand-alone by its runtime directory.
func (c *client) who() string {
	if filepath.IsAbs(c.name) {
		return "the agent in " + c.name
	}
	return fmt.Sprintf("pair %q", c.name)
}

// whereToLook is what to do about an agent that does not answer.
func (c *client) whereToLook() string {
	switch {
	case filepath.IsAbs(c.name):
		return "is `lockstep run` with this --runtime-dir running?"
	case missing(plan.DefinitionFile(c.name)):
		return pairsHere()
	case onlyBackup("", c.name):
		return "this is the pair's backup host; ask on its source host, where the agent runs"
	}
	return "systemctl status " + unit.AgentName(c.name)
}

// pairsHere tells whoever named a pair that this host does not have which ones it has.
func pairsHere() string {
	names := defined("")
	if len(names) == 0 {
		return "no pair is applied on this host; is it the right one?"
	}
	return "this host has no pair of that name; it has " + strings.Join(names, ", ")
}

// defined lists the pairs whose definitions apply has put on the host whose files are below root, "" for this one.
func defined(root string) []string {
	files, err := filepath.Glob(root + plan.DefinitionFile("*"))
	if err != nil {
		return nil // only for a malformed pattern
	}
	names := make([]string, len(files))
	for i, file := range files {
		names[i] = strings.TrimSuffix(filepath.Base(file), ".yaml")
	}
	return names
}

// keepsBackup is whether the host is the backup host of a pair. It may be its source host as well.
func keepsBackup(root, pair string) bool {
	return exists(root+plan.SecretsFile(pair)) || exists(root+plan.ModuleFile(pair)) || exists(root+plan.SSHConfFile(pair))
}

// onlyBackup is whether the host is the backup host of a pair and not its source host as well. Whoever is not root may not look for the
// password; the state of the agent tells as well, once it has been started.
func onlyBackup(root, pair string) bool {
	if !keepsBackup(root, pair) {
		return false
	}
	secret := root + plan.SecretFile(pair)
	return missing(secret) || !exists(secret) && missing(filepath.Join(root+plan.StateDir, pair))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// missing is not the contrary of exists: what may not be looked at is neither.
func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// pairFlags are the flags of every command that talks to an agent.
type pairFlags struct {
	*flag.FlagSet
	runtimeDir string
}

func newPairFlags(std stdio, name, args string) *pairFlags {
	f := &pairFlags{FlagSet: newFlags(std, "", name+" "+args)}
	f.StringVar(&f.runtimeDir, "runtime-dir", "", "runtime `directory` of a stand-alone agent")
	return f
}

// parse gives the pair's name, "" without one.
func (f *pairFlags) parse(args []string) (name string, err error) {
	if name, err = oneArgument(f.FlagSet, args); err != nil {
		return "", err
	}
	if filepath.Base(name) != name && name != "" {
		return "", usageError(fmt.Errorf("%q is not the name of a pair", name))
	}
	return name, nil
}

// flagError ends a command after package flag has said what is wrong.
func flagError(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return &statusError{status: exitOK}
	}
	return &statusError{status: exitUsage}
}

func usageError(err error) error { return &statusError{exitUsage, err} }

func noAgent() error {
	hint := pairsHere()
	if len(defined("")) > 0 {
		hint = "systemctl list-units --all 'lockstep@*'; on a backup host there is none, ask on the source host"
	}
	return &statusError{exitNoAgent, errors.New("no agent runs on this host\nhint: " + hint)}
}

// one returns the client for the one agent that the arguments name: by name, by its runtime directory, or because it is
// the only one on this host.
func (f *pairFlags) one(args []string) (*client, error) {
	name, err := f.parse(args)
	if err != nil {
		return nil, err
	}
	return f.client(name)
}

func (f *pairFlags) client(name string) (*client, error) {
	switch {
	case f.runtimeDir != "":
		dir, err := filepath.Abs(f.runtimeDir)
		if err != nil {
			return nil, err
		}
		return newClient(dir, dir), nil
	case name != "":
		return newClient(name, filepath.Join(runRoot, name)), nil
	}
	return only(agents(""))
}

// only is the one pair that there is.
func only(all []*client) (*client, error) {
	switch len(all) {
	case 0:
		return nil, noAgent()
	case 1:
		return all[0], nil
	default:
		var names []string
		for _, c := range all {
			names = append(names, c.name)
		}
		return nil, usageError(fmt.Errorf("this host has %d pairs: name one of %s", len(names), strings.Join(names, ", ")))
	}
}

// agents returns a client for the agent of every pair of the host: of those that have a socket, and of those that should have one.
func agents(root string) []*client {
	sockets, err := filepath.Glob(filepath.Join(root+runRoot, "*", replicate.SocketName))
	if err != nil {
		return nil // only for a malformed pattern
	}
	var names []string
	for _, s := range sockets {
		names = append(names, filepath.Base(filepath.Dir(s)))
	}
	for _, name := range defined(root) {
		if !onlyBackup(root, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var out []*client
	for _, name := range slices.Compact(names) {
		out = append(out, newClient(name, filepath.Join(root+runRoot, name)))
	}
	return out
}

// errNoAgent is that nobody answers at a socket. An agent that runs may give no answer as well: it is stuck, or whoever asks may not.
var errNoAgent = errors.New("no agent answers")

// do sends one request. The caller closes the body.
func (c *client) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		return nil, &statusError{exitNoAgent, fmt.Errorf("%s: %s: permission denied\nhint: run as root or as a member of group lockstep", c.who(), c.socket)}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, &statusError{exitNoAgent, fmt.Errorf("%s: %w at %s\nhint: %s", c.who(), errNoAgent, c.socket, c.whereToLook())}
	case err != nil:
		return nil, &statusError{exitNoAgent, fmt.Errorf("%s: %w", c.who(), err)}
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		var u replicate.Update
		if err := json.NewDecoder(resp.Body).Decode(&u); err != nil || u.Error == "" {
			u.Error = resp.Status
		}
		return nil, fmt.Errorf("%s: %s", c.who(), u.Error)
	}
	return resp, nil
}

// get decodes one answer into v.
func (c *client) get(ctx context.Context, method, path string, v any) error {
	resp, err := c.do(ctx, method, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("%s: answer of the agent: %w", c.who(), err)
	}
	return nil
}

// status asks the agent how it is. A process that is stuck takes the question and never answers.
func (c *client) status(ctx context.Context) (s replicate.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	err = c.get(ctx, http.MethodGet, "/status", &s)
	if errors.Is(err, context.DeadlineExceeded) {
		err = &statusError{exitNoAgent, fmt.Errorf("%s: the agent does not answer\nhint: %s", c.who(), c.whereToLook())}
	}
	return s, err
}

// answer is what an agent says of its pair, or why it says nothing.
type answer struct {
	status replicate.Status
	err    error
}

// askAll asks all agents at once: one that is stuck keeps nobody from hearing the others.
func askAll(ctx context.Context, clients []*client) []answer {
	answers := make([]answer, len(clients))
	var group sync.WaitGroup
	for i, c := range clients {
		group.Go(func() { answers[i].status, answers[i].err = c.status(ctx) })
	}
	group.Wait()
	return answers
}

// stream calls each with every update until the agent is done, or each returns an error.
func (c *client) stream(ctx context.Context, path string, each func(replicate.Update) error) error {
	resp, err := c.do(ctx, http.MethodPost, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	dec := json.NewDecoder(lines)
	for {
		var u replicate.Update
		switch err := dec.Decode(&u); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return &statusError{exitNoAgent, fmt.Errorf("%s: the agent ended", c.who())}
		case err != nil:
			return fmt.Errorf("%s: answer of the agent: %w", c.who(), err)
		}
		if u.Error != "" {
			return fmt.Errorf("%s: %s", c.who(), u.Error)
		}
		if err := each(u); err != nil {
			return err
		}
		if u.Done {
			return nil
		}
	}
}

// standing is the state of a pair with its reason, and a hint on a line of its own.
func standing(s *replicate.Status) string {
	words := string(s.State)
	if s.Reason != "" {
		words += ": " + visible(s.Reason)
	}
	if s.Hint != "" {
		words += "\nhint: " + visible(s.Hint)
	}
	return words
}

// standstill is the standing of a pair of which not everything gets to the backup before somebody, or a later try, has mended
// something; "" when it does. See checkBarriers in package replicate.
func standstill(s *replicate.Status) string {
	t := *s
	switch {
	case s.State == replicate.Paused:
		t.Hint = "lockstep resume " + s.Pair
	case s.State == replicate.Held && s.Held != nil && s.Held.Foreign:
		return ""
	case s.State == replicate.Held, s.State == replicate.Failing:
	case s.Ledger.Count > 0:
		t.Reason = count(s.Ledger.Count, "path") + " could not be sent"
		if len(s.Ledger.Entries) > 0 {
			t.Reason += fmt.Sprintf(", among them %q: %s", s.Ledger.Entries[0].Path, s.Ledger.Entries[0].Reason)
		}
		t.Hint = "lockstep status " + s.Pair + " names them; lockstep sync " + s.Pair + " tries them at once"
	case s.Full.Problem != "" && !s.Full.Running:
		t.Reason, t.Hint = s.Full.Problem, "lockstep sync "+s.Pair
	default:
		return ""
	}
	return standing(&t)
}

// passwordUser returns the rsync user that the second line of a password file may name. Rsync reads only the first.
func passwordUser(name string) (user string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 0; lines.Scan(); n++ {
		if n == 1 {
			user = lines.Text()
		}
	}
	return user, lines.Err()
}
