// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/lockstep-sync/lockstep/agent/apply"
	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

const hostHelp = `
A pair definition (YAML), or a request (JSON) as Terraform and Ansible send it, is read from standard input, unless
--definition names a file. The reply is for people, or one JSON object with --json. Needs root.
`

const applyHelp = `
Two hosts by hand, from one data.yaml:

  source#  lockstep apply --role source --definition data.yaml --prepare > nfs01.key
           makes this host's key, prints its public half, and changes nothing else
  backup#  lockstep apply --role backup --definition data.yaml --recipient @nfs01.key > data.sealed
           makes the module, and a password that only the source host can open
  source#  lockstep apply --role source --definition data.yaml --sealed-password @data.sealed

What is passed between the hosts is not secret. After the first time, lockstep apply with only --role and
--definition puts back what was changed by hand, on either host; only a lost password needs the exchange
again. To rotate it, add --rotate to the second command, and end with the fingerprint that the third prints:

  backup#  lockstep apply --role backup --definition data.yaml --fingerprint FINGERPRINT

With a password of your own, in a file on both hosts, there is nothing to pass:

  backup#  lockstep apply --role backup --definition data.yaml --password-file FILE
  source#  lockstep apply --role source --definition data.yaml --password-file FILE
`

func runPlan(ctx context.Context, std stdio, args []string) error {
	return runHost(ctx, std, plan.Plan, args)
}

func runApply(ctx context.Context, std stdio, args []string) error {
	return runHost(ctx, std, plan.Apply, args)
}

func runRead(ctx context.Context, std stdio, args []string) error {
	return runHost(ctx, std, plan.Read, args)
}

func runDestroy(ctx context.Context, std stdio, args []string) error {
	return runHost(ctx, std, plan.Destroy, args)
}

// hostFlags is the command line of plan, apply, read and destroy.
type hostFlags struct {
	role, definition, recipient, sealed, fingerprint string
	password                                         string // a file
	json, rotate, prepare                            bool
	name                                             string
}

func parseHostFlags(std stdio, verb plan.Verb, args []string) (hostFlags, error) {
	var f hostFlags
	call, more := string(verb)+" --role source|backup [--definition FILE] [--json]", ""
	switch verb {
	case plan.Plan:
		more = "Nothing is changed.\n"
	case plan.Apply:
		more = "When something is in the way, nothing is changed, and it tells why.\n"
	case plan.Read, plan.Destroy:
		call += " [NAME]"
	}
	more += hostHelp
	if verb == plan.Apply {
		more += applyHelp
	}
	set := newFlags(std, more, call)
	set.StringVar(&f.role, "role", "", "what this host is for the pair: `source or backup`")
	set.StringVar(&f.definition, "definition", "", "read the pair definition from `FILE` instead of standard input")
	set.BoolVar(&f.json, "json", false, "print the reply as JSON")
	if verb == plan.Apply {
		set.StringVar(&f.recipient, "recipient", "", "backup: seal the password to this public `KEY`, or to that in @FILE")
		set.StringVar(&f.sealed, "sealed-password", "", "source: the backup host's sealed password `TEXT`, or @FILE")
		set.StringVar(&f.password, "password-file", "", "take the password from the first line of `FILE`, on both hosts the same, instead of a generated one")
		set.BoolVar(&f.prepare, "prepare", false, "source: only print this host's public key, which is made when there is none")
		set.BoolVar(&f.rotate, "rotate", false, "backup: make a new password; the old one works until --fingerprint tells that the source has switched")
		set.StringVar(&f.fingerprint, "fingerprint", "", "backup: the `FINGERPRINT` that the source host printed; ends a rotation")
	}
	name, err := oneArgument(set, args)
	if err != nil {
		return f, err
	}
	if verb == plan.Read || verb == plan.Destroy {
		f.name, name = name, ""
	}
	switch {
	case name != "":
		return f, usageError(fmt.Errorf("unexpected argument %q\nhint: %s reads a definition: write --definition FILE", name, verb))
	case f.role == "":
		return f, usageError(errors.New("--role is missing\nhint: write --role source or --role backup"))
	case f.role != string(plan.Source) && f.role != string(plan.Backup):
		return f, usageError(fmt.Errorf("%q is no role\nhint: write --role source or --role backup", f.role))
	case f.name != "" && !plan.ValidName(f.name):
		return f, notAName(f.name)
	}
	return f, f.ofTheOtherRole()
}

// ofTheOtherRole refuses an option that means nothing on this host: whoever gave it expects something that would not happen.
func (f hostFlags) ofTheOtherRole() error {
	for _, option := range []struct {
		name  string
		given bool
		role  plan.Role
	}{
		{"prepare", f.prepare, plan.Source},
		{"sealed-password", f.sealed != "", plan.Source},
		{"recipient", f.recipient != "", plan.Backup},
		{"rotate", f.rotate, plan.Backup},
		{"fingerprint", f.fingerprint != "", plan.Backup},
	} {
		if option.given && f.role != string(option.role) {
			return usageError(fmt.Errorf("--%s is for the %s host, not with --role %s\nhint: run it there with --role %s, or leave --%s out",
				option.name, option.role, f.role, option.role, option.name))
		}
	}
	return nil
}

func runHost(ctx context.Context, std stdio, verb plan.Verb, args []string) error {
	f, err := parseHostFlags(std, verb, args)
	if err != nil {
		return err
	}
	req, reply, err := f.request(std, verb)
	if err != nil {
		return err
	}
	status := exitUsage // a definition with problems
	if len(reply.Problems) == 0 {
		status = exitFailure
		machine, err := host.New()
		if err != nil {
			return err
		}
		defer machine.Close()
		cmd := apply.Command{Verb: verb, Role: plan.Role(f.role), Version: version, Identity: identity, ByHand: !f.json,
			Fanotify: func(path string) bool { return canFanotify(ctx, path) },
			// It is said every minute, too: who is not there any more to read it has closed the pipe, and SIGPIPE ends the wait.
			Waiting: func(holder string) { fmt.Fprintf(std.err, "lockstep: waiting for %s\n", holder) }}
		if !f.json && needsExchange(ctx, machine, cmd, req) {
			req.Prepare = true
		}
		reply = apply.Run(ctx, machine, cmd, req)
	}
	if f.json {
		if err := json.NewEncoder(std.out).Encode(reply); err != nil {
			return err
		}
	} else {
		printReply(std, verb, plan.Role(f.role), req, reply)
	}
	switch {
	case len(reply.Problems) > 0:
		return &statusError{status: status}
	case !f.json && (verb == plan.Plan && reply.Changed || req.Prepare && !f.prepare):
		return &statusError{status: exitDiffers}
	}
	return nil
}

// identity tells directories apart as the agent does.
func identity(path string) (string, error) {
	root, err := transfer.OpenRoot(path)
	if err != nil {
		return "", err
	}
	defer root.Close() //nolint:errcheck // only a handle
	id, err := root.Identity()
	return id.String(), err
}

// fanotifyTimeout bounds a try; it takes a millisecond.
const fanotifyTimeout = 5 * time.Second

// canFanotify is whether a watcher with fanotify becomes ready on the directory.
func canFanotify(ctx context.Context, path string) bool {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return false // a watcher would wait for it
	}
	w, err := watch.New(watch.Options{Root: path, Backend: "fanotify"})
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, fanotifyTimeout)
	defer cancel()
	ready := make(chan bool)
	go func() {
		isReady := false
		for reports := w.Reports(); reports != nil; {
			select {
			case <-w.Ready():
				isReady, reports = true, nil
			case _, open := <-reports:
				if !open {
					reports = nil
				}
			}
		}
		cancel()
		for range w.Reports() { // until Run has ended
		}
		ready <- isReady
	}()
	_ = w.Run(ctx) // why not does not matter here
	return <-ready
}

// request reads the request; a reply with problems is returned instead when it is not valid.
func (f hostFlags) request(std stdio, verb plan.Verb) (plan.Request, plan.Reply, error) {
	empty := plan.Reply{Protocol: plan.Protocol, Changes: []plan.Change{}, Checks: map[string]string{}}
	if f.name != "" {
		return plan.Request{Protocol: plan.Protocol, Pair: plan.Definition{Name: f.name}}, empty, nil
	}
	if in, ok := std.in.(*os.File); ok && f.definition == "" && term.IsTerminal(int(in.Fd())) {
		hint := "write --definition FILE, or give the definition on standard input"
		if verb == plan.Read || verb == plan.Destroy {
			hint = "name the pair, as lockstep " + string(verb) + " --role " + f.role + " NAME; or " + hint
		}
		empty.Problems = plan.Problems{{Msg: "no definition was given", Hint: hint}}
		return plan.Request{}, empty, nil
	}
	data, err := readInput(std, cmp.Or(f.definition, "-"))
	if err != nil {
		return plan.Request{}, empty, err
	}
	req, problems := plan.ParseRequest(data, verb)
	empty.Problems = problems
	for _, field := range []struct {
		name, from string
		to         *string
	}{{"recipient", f.recipient, &req.Recipient}, {"sealed-password", f.sealed, &req.SealedPassword}, {"fingerprint", f.fingerprint, &req.Fingerprint}} {
		if field.from == "" {
			continue
		}
		if *field.to, err = textOrFile(field.from); err != nil {
			return req, empty, fmt.Errorf("--%s: %w", field.name, err)
		}
	}
	if f.password != "" {
		text, err := os.ReadFile(f.password)
		if err != nil {
			return req, empty, fmt.Errorf("--password-file: %w", err)
		}
		req.Password, _, _ = strings.Cut(string(text), "\n")
		req.Password = strings.TrimSuffix(req.Password, "\r")
		if req.Password == "" {
			return req, empty, fmt.Errorf("--password-file %s: the first line is empty\nhint: write the password into its first line", f.password)
		}
	}
	req.Rotate, req.Prepare = req.Rotate || f.rotate, req.Prepare || f.prepare
	return req, empty, nil
}

// textOrFile is the text itself, or what is in the file after an @.
func textOrFile(arg string) (string, error) {
	name, ok := strings.CutPrefix(arg, "@")
	if !ok {
		return arg, nil
	}
	data, err := os.ReadFile(name)
	return strings.TrimSpace(string(data)), err
}

// needsExchange is whether an apply by hand on a source host can only begin: it has no password yet.
func needsExchange(ctx context.Context, m *host.Machine, cmd apply.Command, req plan.Request) bool {
	if cmd.Verb != plan.Apply || cmd.Role != plan.Source || req.SealedPassword != "" || req.Password != "" || req.Pair.HooksOnly() {
		return false
	}
	cmd.Verb = plan.Read
	now := apply.Run(ctx, m, cmd, req)
	return len(now.Problems) == 0 && now.Fingerprint == "" && now.Checks["secret"] != plan.InSync
}

// printReply tells a person. What another host needs goes to standard output alone, so that it can be kept in a file.
func printReply(std stdio, verb plan.Verb, role plan.Role, req plan.Request, reply plan.Reply) {
	name := req.Pair.Name
	tell := std.out
	if req.Prepare || reply.SealedPassword != "" {
		tell = std.err
	}
	for _, c := range reply.Changes {
		fmt.Fprintf(tell, "%s: %s %s\n", c.Object, c.Action, c.Path)
		for line := range strings.Lines(c.Diff) {
			fmt.Fprintf(tell, "    %s", line)
		}
	}
	for _, w := range reply.Warnings {
		fmt.Fprintf(std.err, "lockstep: warning: %s\n", w)
	}
	if len(reply.Problems) > 0 {
		for _, p := range reply.Problems {
			fmt.Fprintf(std.err, "lockstep: %s\n", p)
		}
		return
	}
	switch {
	case req.Prepare:
		fmt.Fprintln(std.out, reply.PublicKey)
		fmt.Fprintf(std.err, "standard output was this host's public key; pair %q is applied on this host once it has a password\n"+
			"hint: on the backup host, give the key to lockstep apply --role backup --definition FILE --recipient KEY,\n"+
			"      and here, what that prints to lockstep apply --role source --definition FILE --sealed-password TEXT\n", name)
	case verb == plan.Plan && !reply.Changed:
		fmt.Fprintf(tell, "pair %q: nothing to change on this %s host\n", name, role)
	case verb == plan.Plan:
		fmt.Fprintf(tell, "pair %q: apply would make %d changes on this %s host\n", name, len(reply.Changes), role)
	case verb == plan.Apply && !reply.Changed:
		fmt.Fprintf(tell, "pair %q: nothing changed on this %s host\n", name, role)
	case verb == plan.Apply:
		fmt.Fprintf(tell, "pair %q: %d changes made on this %s host\n", name, len(reply.Changes), role)
	case verb == plan.Destroy && !reply.Changed:
		fmt.Fprintf(tell, "pair %q: nothing of it on this %s host; %d pairs remain\n", name, role, reply.Remaining)
	case verb == plan.Destroy:
		fmt.Fprintf(tell, "pair %q: removed from this %s host, its data left as it is; %d pairs remain\n", name, role, reply.Remaining)
	case !reply.Exists:
		fmt.Fprintf(tell, "pair %q is not on this %s host\n", name, role)
	}
	if verb == plan.Read && reply.Exists || verb == plan.Apply && !req.Prepare {
		for _, object := range slices.Sorted(maps.Keys(reply.Checks)) {
			fmt.Fprintf(tell, "  %-12s %s\n", object, reply.Checks[object])
		}
		if reply.Fingerprint != "" {
			fmt.Fprintf(tell, "  %-12s %s\n", "fingerprint", reply.Fingerprint)
		}
	}
	if reply.SealedPassword != "" {
		fmt.Fprintln(std.out, reply.SealedPassword)
	}
}
