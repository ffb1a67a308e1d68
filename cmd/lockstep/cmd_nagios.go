// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// Exit statuses of a monitoring plugin, of the Monitoring Plugins development guidelines.
const (
	nagiosOK = iota
	nagiosWarning
	nagiosCritical
	nagiosUnknown
)

var nagiosWord = [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}

// nagios prints one line for the pairs of clients, the worst first, with performance data, and ends with its status. What
// follows the first line is long output, which monitors show on demand.
func nagios(ctx context.Context, std stdio, clients []*client, maxLag time.Duration) error {
	if len(clients) == 0 {
		fmt.Fprintln(std.out, "LOCKSTEP CRITICAL - no agent runs on this host")
		return &statusError{status: nagiosCritical}
	}
	worst, words := nagiosOK, ""
	var long, perf []string
	for _, a := range askAll(ctx, clients) {
		level, line := nagiosCritical, ""
		if a.err != nil {
			line, _, _ = strings.Cut(a.err.Error(), "\n")
		} else {
			level, line = nagiosLevel(a.status, maxLag)
			perf = append(perf, nagiosPerformance(a.status, maxLag, len(clients) > 1)...)
		}
		line = visible(strings.ReplaceAll(line, "|", "/")) // what follows a bar is performance data
		if level > worst || words == "" {
			worst, words = max(level, worst), line
		}
		long = append(long, nagiosWord[level]+" - "+line)
	}
	line := "LOCKSTEP " + nagiosWord[worst] + " - " + words
	if len(clients) > 1 {
		line += fmt.Sprintf(" (%d pairs)", len(clients))
	}
	if len(perf) > 0 {
		line += " | " + strings.Join(perf, " ")
	}
	fmt.Fprintln(std.out, line)
	if len(clients) > 1 {
		for _, l := range long {
			fmt.Fprintln(std.out, l)
		}
	}
	return &statusError{status: worst}
}

// nagiosLevel judges one pair.
func nagiosLevel(s replicate.Status, maxLag time.Duration) (level int, line string) {
	line = s.Pair + ": " + string(s.State)
	if s.Reason != "" {
		line += ": " + s.Reason
	}
	switch s.State {
	case replicate.InStep, replicate.Behind, replicate.HooksOnly:
	case replicate.Starting, replicate.Degraded, replicate.Paused:
		level = nagiosWarning
	case replicate.Held, replicate.Failing:
		level = nagiosCritical
	default:
		return nagiosUnknown, line
	}
	lag := time.Duration(s.LagSeconds * float64(time.Second))
	switch {
	case lag >= 2*maxLag:
		level = nagiosCritical
	case lag >= maxLag:
		level = max(level, nagiosWarning)
	}
	if s.Backlog.Paths > 0 {
		line += fmt.Sprintf(", %s behind, the oldest for %s", count(s.Backlog.Paths, "path"), short(lag))
	}
	return level, line
}

func nagiosPerformance(s replicate.Status, maxLag time.Duration, named bool) []string {
	prefix := ""
	if named {
		prefix = s.Pair + "_"
	}
	held := 0
	if s.Held != nil {
		held = s.Held.Count
	}
	return []string{
		fmt.Sprintf("%slag=%.3fs;%g;%g;0", prefix, s.LagSeconds, maxLag.Seconds(), 2*maxLag.Seconds()),
		fmt.Sprintf("%sbacklog=%d;;;0", prefix, s.Backlog.Paths),
		fmt.Sprintf("%sheld=%d;;;0", prefix, held),
		fmt.Sprintf("%sledger=%d;;;0", prefix, s.Ledger.Count),
		fmt.Sprintf("%ssent=%dB", prefix, s.Counters.SentBytes),
	}
}
