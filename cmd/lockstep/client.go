// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/replicate"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

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
