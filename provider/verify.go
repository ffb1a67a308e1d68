// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"

	"github.com/lockstep-sync/lockstep/agent/plan"
)

// verify reports what is still not right after everything was applied.
func (j *job) verify(ctx context.Context, out outcome, lockstep string) diag.Diagnostics {
	var diags diag.Diagnostics
	for _, role := range roles {
		for _, object := range slices.Sorted(maps.Keys(*out.checks.at(role))) {
			if words := (*out.checks.at(role))[object]; words != plan.InSync {
				diags.AddAttributeError(path.Root(string(role)), fmt.Sprintf("%s host %q: %s: %s", role, j.host(role).name, object, words),
					fmt.Sprintf("Everything was applied, and this is left. Found on %s.", j.host(role).pool.At(ctx, j.host(role).name)))
			}
		}
	}
	if diags.HasError() || j.pair.Paused {
		return diags
	}
	status, err := j.settle(ctx, lockstep)
	if err != nil {
		diags.Append(hostDiagnostic(plan.Source, err))
		return diags
	}
	at := j.source.pool.At(ctx, j.source.name)
	detail := func(more string) string {
		text := fmt.Sprintf("%s: lockstep status %s says %q: %s", at, j.pair.Name, status.State, cmp.Or(status.Reason, "no reason given"))
		if status.Hint != "" {
			text += "\n\n" + status.Hint
		}
		return text + more
	}
	switch status.State {
	case "failing":
		diags.AddAttributeError(path.Root("source"), fmt.Sprintf("source host %q: nothing can be sent to the backup host", j.source.name), detail(""))
	case "held", "degraded":
		diags.AddAttributeWarning(path.Root("source"), fmt.Sprintf("source host %q: the pair is %s", j.source.name, status.State), detail(""))
	}
	if !diags.HasError() {
		diags.Append(j.examine(ctx, lockstep)...)
	}
	return diags
}

// finding is one step of `lockstep doctor`.
type finding struct {
	Check string `json:"check"`
	Level string `json:"level"` // ok, warn, fail, skip
	Saw   string `json:"saw"`
	Do    string `json:"do"`
}

// pathSteps are the steps of the doctor without which nothing arrives. What else it finds, the agent copes with.
var pathSteps = []string{"rsync", "password", "name", "connect", "greeting", "login", "canary"}

// examine runs the whole path once: a file is created, changed and deleted on the backup. A new pair that
// does not work is an error; one that was working before is not undone by anything, so it is a warning.
func (j *job) examine(ctx context.Context, lockstep string) diag.Diagnostics {
	var diags diag.Diagnostics
	const step = "lockstep doctor"
	result, err := j.source.lockstep(ctx, step, lockstep, nil, "doctor", j.pair.Name, "--json")
	var reply struct {
		OK     bool      `json:"ok"`
		Checks []finding `json:"checks"`
	}
	if err == nil {
		err = j.source.decode(ctx, step, lockstep, result, &reply)
	}
	if err != nil {
		diags.Append(hostDiagnostic(plan.Source, err))
		return diags
	}
	at := j.source.pool.At(ctx, j.source.name)
	for _, f := range reply.Checks {
		summary := fmt.Sprintf("source host %q: %s: %s", j.source.name, f.Check, f.Saw)
		detail := fmt.Sprintf("Found by lockstep doctor %s on %s.", j.pair.Name, at)
		if f.Do != "" {
			detail += "\n\n" + f.Do
		}
		switch {
		case f.Level == "fail" && j.create && slices.Contains(pathSteps, f.Check):
			diags.AddAttributeError(path.Root("source"), j.source.redact(summary), j.source.redact(detail))
		case f.Level == "fail", f.Level == "warn" && j.create:
			diags.AddAttributeWarning(path.Root("source"), j.source.redact(summary), j.source.redact(detail))
		}
	}
	return diags
}

// settleTime is how long a new pair may take to say how it is. A first full batch may take hours; that the
// backup host lets it begin is known in a moment. One that is behind is given some time: of a small tree, or one that was in step
// before, the first comparison is over then, and what it has found to be held can be told.
const (
	settleTime   = 20 * time.Second
	settleBehind = time.Second
	settlePause  = 100 * time.Millisecond
)

// settle waits until the agent has an opinion.
func (j *job) settle(ctx context.Context, lockstep string) (agentStatus, error) {
	began := time.Now()
	for {
		status, err := j.source.status(ctx, lockstep, j.pair.Name)
		if err != nil {
			return status, err
		}
		patience := time.Duration(0)
		switch status.State {
		case "starting", notRunning:
			patience = settleTime
		case "behind":
			patience = settleBehind
		}
		if time.Since(began) >= patience {
			return status, nil
		}
		select {
		case <-ctx.Done():
			return status, j.source.fail(ctx, "wait for the agent", ctx.Err(), "")
		case <-time.After(settlePause):
		}
	}
}

// agentStatus is what `lockstep status NAME --json` says, as far as the provider shows it.
type agentStatus struct {
	State      string     `json:"state"`
	Reason     string     `json:"reason"`
	Hint       string     `json:"hint"`
	Since      time.Time  `json:"since"`
	LagSeconds float64    `json:"lag_seconds"`
	LastInStep *time.Time `json:"last_in_step"`
	Backlog    struct {
		Paths int64 `json:"paths"`
	} `json:"backlog"`
	Held *struct {
		Reason string   `json:"reason"`
		Count  int64    `json:"count"`
		Paths  []string `json:"paths"`
	} `json:"held"`
	Ledger struct {
		Count int64 `json:"count"`
	} `json:"ledger"`
	Watch struct {
		Backend string `json:"backend"`
	} `json:"watch"`
	Full struct {
		Running bool       `json:"running"`
		Last    *time.Time `json:"last"`
	} `json:"full"`
	Latency struct {
		P50 float64 `json:"p50_seconds"`
		P99 float64 `json:"p99_seconds"`
	} `json:"latency"`
}

// notRunning is the state of a pair whose agent does not answer.
const notRunning = "not running"

// status asks the agent of a pair.
func (h *host) status(ctx context.Context, lockstep, name string) (agentStatus, error) {
	const step = "lockstep status"
	result, err := h.lockstep(ctx, step, lockstep, nil, "status", name, "--json")
	if err != nil {
		return agentStatus{}, err
	}
	var s agentStatus
	if len(strings.TrimSpace(string(result.Stdout))) == 0 && result.Status == 6 { // lockstep(8): no agent answers
		reason, hint, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(result.Stderr), "lockstep: "), "\nhint: ")
		return agentStatus{State: notRunning, Reason: reason, Hint: hint}, nil
	}
	if err := h.decode(ctx, step, lockstep, result, &s); err != nil {
		return agentStatus{}, err
	}
	if s.State == "" {
		return s, h.fail(ctx, step, fmt.Errorf("exit status %d: %s", result.Status, tail(cmp.Or(result.Stderr, string(result.Stdout)))), "")
	}
	return s, nil
}
