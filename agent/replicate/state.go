// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// standing is the state as it was last decided.
type standing struct {
	state  State
	reason string
	since  time.Time
	inStep time.Time // when the state was last InStep
	told   State     // the last one that was news
}

// decide is the one place where the state is decided.
func (l *loop) decide() (State, string) {
	switch {
	case l.paused && l.pair.Paused:
		return Paused, pausedByDefinition
	case l.paused:
		return Paused, "nothing is sent until `lockstep resume`"
	case l.source.err != nil && !l.source.ok:
		var other *errNotProvisioned
		if errors.As(l.source.err, &other) {
			return Held, l.source.err.Error()
		}
		if l.source.lost || errors.Is(l.source.err, watch.ErrRootLost) {
			return Held, fmt.Sprintf("the source directory %s is gone", l.pair.Source.Path)
		}
		return Failing, l.source.err.Error()
	case l.watch.failed != nil:
		return Failing, "the source cannot be watched: " + l.watch.failed.Error()
	case l.outage != nil && (l.outage.failures > 1 || l.outage.class != transfer.Transient):
		return Failing, l.outage.message
	case l.door.held != nil:
		return Held, l.door.held.reason
	case l.full.started == 0 || !l.source.ok:
		if n := l.watch.dirs; n > 0 && !l.watch.ready {
			return Starting, fmt.Sprintf("watching: %d directories so far", n)
		}
		return Starting, ""
	case l.watch.fault != nil:
		return Degraded, l.watch.fault.Error()
	case len(l.ledger.entries) > 0:
		e := l.ledger.list(1)[0]
		return Degraded, fmt.Sprintf("%s could not be sent, among them %q: %s", plural(len(l.ledger.entries), "path"), e.Path, e.Reason)
	case l.full.problem != "":
		return Degraded, l.full.problem
	case l.kept.reason != "":
		return Degraded, l.kept.reason
	case l.notReloaded != nil:
		return Degraded, "the definition was not reloaded, and the one before stays in force: " + strings.Join(strings.Fields(l.notReloaded.Error()), " ")
	}
	switch {
	case l.pair.HooksOnly() && l.watch.ready:
		return HooksOnly, ""
	case l.backlog() > 0, !l.full.valid, !l.watch.ready:
		return Behind, "" // it changes all the time: see words
	}
	return InStep, ""
}

// backlog is how many paths are on their way.
func (l *loop) backlog() int {
	return l.q.Len() + l.flyingPaths() + len(l.door.pending) + len(l.door.checking)
}

// flyingPaths is how many paths are in flight.
func (l *loop) flyingPaths() int {
	n := len(l.passed)
	for w := range l.flying {
		n += len(w.batch.Entries)
	}
	return n
}

// oldest returns since when the longest waiting change is not on the backup. What is held or in the ledger does not count.
func (l *loop) oldest() (first time.Time, ok bool) {
	note := func(t time.Time, have bool) {
		if have && (!ok || t.Before(first)) {
			first, ok = t, true
		}
	}
	note(l.q.Oldest())
	note(l.door.oldest())
	for w := range l.flying {
		note(w.first, true)
	}
	for i := range l.passed {
		note(l.passed[i].first, true)
	}
	return first, ok
}

// words is the reason of the state.
func (l *loop) words(now time.Time) string {
	if l.standing.state != Behind {
		return l.standing.reason
	}
	n := l.backlog()
	if n == 0 {
		return l.fullWords()
	}
	first, ok := l.oldest()
	if !ok {
		first = now
	}
	reason := fmt.Sprintf("%s, the oldest for %s", plural(n, "path"), now.Sub(first).Round(time.Millisecond))
	if begun, ok := l.jobs.begun("probe"); ok && now.Sub(begun) >= probeLate {
		reason += fmt.Sprintf("; the backup host was asked %s ago and has not answered", now.Sub(begun).Round(time.Second))
	}
	if !l.full.valid {
		reason += "; " + l.fullWords()
	}
	return reason
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (l *loop) setState(now time.Time) {
	state, reason := l.decide()
	if state == InStep {
		l.standing.inStep = now
	}
	was := l.standing.state
	l.standing.state, l.standing.reason = state, reason
	if state == was {
		return
	}
	l.standing.since = now
	if quietState(state) && l.standing.told == InStep {
		return // in step and behind follow each other all day long, which is no news
	}
	l.standing.told = state
	level := slog.LevelInfo
	if state == Failing || state == Held || state == Degraded {
		level = slog.LevelWarn
	}
	words := l.words(now)
	l.note(now, joinWords(string(state), words))
	l.log.Log(context.Background(), level, "state", "state", string(state), "was", string(was), "reason", words, "hint", l.hint(state))
}

func quietState(s State) bool { return s == InStep || s == Behind }

func joinWords(state, reason string) string {
	if reason == "" {
		return state
	}
	return state + ": " + reason
}

// hint says what a person can do about a state.
func (l *loop) hint(s State) string {
	var other *errNotProvisioned
	var limit *watch.LimitError
	switch {
	case s == Paused && l.pair.Paused:
		return unpauseHint
	case s == Held && errors.As(l.source.err, &other):
		return fmt.Sprintf("mount the right filesystem at %s; if this directory is meant to replace the old one: lockstep approve %s", other.path, l.pair.Name)
	case s == Held && !l.source.ok:
		return "it goes on by itself when the directory is back"
	case s == Held:
		return "lockstep approve " + l.pair.Name + " lets them pass; they lapse when the files are back"
	case s == Failing && l.outage != nil:
		return l.outage.hint
	case s == Degraded && errors.As(l.watch.fault, &limit):
		return fmt.Sprintf("sysctl -w %s=%d", limit.Sysctl, limit.Need)
	case s == Degraded && len(l.ledger.entries) > 0:
		return "lockstep status " + l.pair.Name + " names them; they are tried again by themselves"
	case s == Degraded && l.watch.fault == nil && l.full.problem != "":
		return "see to what is named; lockstep sync " + l.pair.Name + " compares again at once"
	case s == Degraded && l.kept.reason != "":
		return l.kept.hint
	case s == Degraded && l.notReloaded != nil:
		return "mend the definition, or restart the agent where that is asked for; lockstep check FILE tells all that is wrong with it"
	case s == Failing && errors.Is(l.source.err, syscall.ENOSPC):
		return "make room on this host; lockstep goes on by itself"
	}
	return ""
}

// note keeps something for the status that is worth knowing.
func (l *loop) note(now time.Time, text string) {
	const keep = 20
	if len(l.notes) >= keep {
		l.notes = slices.Delete(l.notes, 0, len(l.notes)-keep+1)
	}
	l.notes = append(l.notes, Note{now, text})
}
