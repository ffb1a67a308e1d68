// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

func runStatus(ctx context.Context, std stdio, args []string) error {
	f := newPairFlags(std, "status", "[NAME] [--json|--watch|--nagios [--max-lag 5m]] [--runtime-dir DIR]")
	asJSON := f.Bool("json", false, "print JSON")
	live := f.Bool("watch", false, "a live view, until interrupted")
	plugin := f.Bool("nagios", false, "print one line for a monitor, and exit as its plugins do")
	var maxLag time.Duration
	durationVar(f.FlagSet, &maxLag, "max-lag", 5*time.Minute, "with --nagios: the lag (a `time`) from which on there is a warning; twice as much is critical")
	name, err := f.parse(args)
	if err != nil {
		return err
	}
	if *asJSON && *live || *asJSON && *plugin || *live && *plugin {
		return usageError(errors.New("--json, --watch and --nagios are three answers: give one of them"))
	}
	if !*plugin && f.given("max-lag") {
		return usageError(errors.New("--max-lag is for --nagios\nhint: write lockstep status --nagios --max-lag TIME"))
	}
	if *plugin && name == "" && f.runtimeDir == "" {
		return nagios(ctx, std, agents(""), maxLag)
	}
	if name == "" && f.runtimeDir == "" {
		if *live {
			return watchStatus(ctx, std, func() []*client { return agents("") })
		}
		return statusOfAll(ctx, std, agents(""), *asJSON)
	}
	c, err := f.client(name)
	if err != nil {
		return err
	}
	if *plugin {
		return nagios(ctx, std, []*client{c}, maxLag)
	}
	if *live {
		return watchStatus(ctx, std, func() []*client { return []*client{c} })
	}
	s, err := c.status(ctx)
	if err != nil {
		return err
	}
	if *asJSON {
		err = printJSON(std.out, s)
	} else {
		err = printStatus(std.out, s, time.Now())
	}
	if err != nil {
		return err
	}
	return &statusError{status: stateStatus(s.State)}
}

// stateStatus is the exit status for a state.
func stateStatus(s replicate.State) int {
	switch s {
	case replicate.InStep, replicate.HooksOnly:
		return exitOK
	case replicate.Held:
		return exitHeld
	case replicate.Failing:
		return exitFailing
	case replicate.Starting, replicate.Behind, replicate.Degraded, replicate.Paused:
		return exitNotInStep
	}
	return exitFailure
}

// severity orders exit statuses: the status of several pairs is the worst.
func severity(status int) int {
	for i, s := range []int{exitOK, exitNotInStep, exitHeld, exitFailing, exitNoAgent} {
		if s == status {
			return i
		}
	}
	return 5
}

// The states of a pair whose agent does not tell one. They are of the command line alone.
const (
	noAgentState  replicate.State = "no agent"
	noAnswerState replicate.State = "no answer"
)

// silent is the status of a pair whose agent has not told one.
func silent(c *client, err error) replicate.Status {
	s := replicate.Status{Pair: c.name, State: noAnswerState, InFlight: []replicate.JobStatus{}, Events: []replicate.Note{}}
	s.Ledger.Entries, s.Counters.Transfers = []replicate.LedgerEntry{}, map[string]int64{}
	if errors.Is(err, errNoAgent) {
		s.State = noAgentState
	}
	s.Reason, s.Hint, _ = strings.Cut(err.Error(), "\nhint: ")
	s.Reason = strings.TrimPrefix(s.Reason, c.who()+": ")
	return s
}

// statusOfAll prints a line for every pair of this host.
func statusOfAll(ctx context.Context, std stdio, all []*client, asJSON bool) error {
	if len(all) == 0 {
		return noAgent()
	}
	worst := exitOK
	list := []replicate.Status{}
	w := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	if !asJSON {
		fmt.Fprintln(w, "PAIR\tSTATE\tBACKLOG\tLAG\tHELD\tLEDGER\tREASON")
	}
	for i, a := range askAll(ctx, all) {
		s, status := a.status, stateStatus(a.status.State)
		held := 0
		if s.Held != nil {
			held = s.Held.Count
		}
		numbers := fmt.Sprintf("%d\t%s\t%d\t%d", s.Backlog.Paths, lag(s), held, s.Ledger.Count)
		if a.err != nil {
			if ctx.Err() != nil {
				return a.err
			}
			fmt.Fprintf(std.err, "lockstep: %v\n", a.err)
			s, status, numbers = silent(all[i], a.err), exitNoAgent, "-\t-\t-\t-"
		}
		list = append(list, s)
		if !asJSON {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Pair, s.State, numbers, visible(s.Reason))
		}
		if severity(status) > severity(worst) {
			worst = status
		}
	}
	if asJSON {
		if err := printJSON(std.out, list); err != nil {
			return err
		}
	} else if err := w.Flush(); err != nil {
		return err
	}
	return &statusError{status: worst}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printer collects the first error, so that a page of output can be written line by line.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func printStatus(w io.Writer, s replicate.Status, now time.Time) error {
	p := &printer{w: w}
	p.line("pair      %s", s.Pair)
	p.line("state     %s since %s", s.State, ago(now, s.Since))
	if s.Reason != "" {
		p.line("          %s", visible(s.Reason))
	}
	if s.Hint != "" {
		p.line("hint      %s", visible(s.Hint))
	}
	p.line("source    %s", visible(s.Source))
	p.line("target    %s", cmp.Or(s.Target, "no backup: hooks are told of what changes"))
	if s.LastInStep != nil && s.State != replicate.InStep {
		p.line("in step   last %s", ago(now, *s.LastInStep))
	}
	p.line("backlog   %s, lag %s", count(s.Backlog.Paths, "path"), lag(s))
	for _, j := range s.InFlight {
		p.line("running   %s", job(j, now))
	}
	if h := s.Held; h != nil {
		p.line("held      %s on the backup since %s: %s", count(h.Count, "deletion"), ago(now, h.Since), h.Reason)
		for _, path := range h.Paths {
			p.line("          %s", visible(path))
		}
		if h.More > 0 {
			p.line("          and %d more", h.More)
		}
	}
	if s.Ledger.Count > 0 {
		p.line("ledger    %s could not be sent", count(s.Ledger.Count, "path"))
		for _, e := range s.Ledger.Entries {
			side := "source"
			if e.Remote {
				side = "backup"
			}
			p.line("          %s: %s (%s); tried %d times since %s, next in %s", visible(e.Path), visible(e.Reason), side, e.Tries,
				ago(now, e.Since), short(max(0, e.Next.Sub(now))))
		}
		if n := s.Ledger.Count - len(s.Ledger.Entries); n > 0 {
			p.line("          and %d more", n)
		}
	}
	watch := s.Watch.Backend
	if s.Watch.Directories > 0 {
		watch += fmt.Sprintf(", %d directories", s.Watch.Directories)
	}
	if !s.Watch.Ready {
		watch += ", not complete yet"
	}
	if s.Watch.Reason != "" {
		watch += " (" + s.Watch.Reason + ")"
	}
	p.line("watch     %s", visible(watch))
	for _, f := range s.Watch.Faults {
		p.line("          %s", visible(f))
	}
	p.line("full      %s", fullLine(s.Full, now))
	p.line("sent      %s, %s, %s deleted", count(int(s.Counters.Files), "file"), size(s.Counters.Bytes), count(int(s.Counters.Deleted), "entry"))
	if s.Latency.Count > 0 {
		p.line("latency   median %s, 99 %% within %s", millis(s.Latency.P50), millis(s.Latency.P99))
	}
	p.line("versions  lockstep %s, rsync %s", s.Versions.Lockstep, s.Versions.Rsync)
	return p.err
}
