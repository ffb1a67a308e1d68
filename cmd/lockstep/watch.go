// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// historyLength is how many seconds the live view remembers.
const historyLength = 120

// history is what the live view remembers of a pair from second to second.
type history struct {
	lag, backlog, rate []float64 // seconds, paths, bytes per second
	last               replicate.Counters
	at                 time.Time
}

func (h *history) add(s replicate.Status, now time.Time) {
	rate := 0.0
	// An agent that was started again counts from 0.
	if d := now.Sub(h.at).Seconds(); !h.at.IsZero() && d > 0 && s.Counters.Bytes >= h.last.Bytes {
		rate = float64(s.Counters.Bytes-h.last.Bytes) / d
	}
	h.last, h.at = s.Counters, now
	for _, v := range []struct {
		of    *[]float64
		value float64
	}{{&h.lag, s.LagSeconds}, {&h.backlog, float64(s.Backlog.Paths)}, {&h.rate, rate}} {
		if *v.of = append(*v.of, v.value); len(*v.of) > historyLength {
			*v.of = (*v.of)[1:]
		}
	}
}

// watched is one pair of the live view: what it said last, and what it has said before.
type watched struct {
	client *client
	status replicate.Status
	err    error
	history
}

// askLimit is how long an agent may take to answer; another second, and the view would stand still.
const askLimit = 2 * time.Second

func (w *watched) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	s, err := w.client.status(ctx)
	if w.err = err; err == nil {
		w.status = s
		w.add(s, time.Now())
	}
}

// watchStatus shows every second how pairs are, until ctx ends. On a terminal the view has a screen of its own, which is gone
// afterwards; elsewhere each change of state is a line.
func watchStatus(ctx context.Context, std stdio, clients func() []*client) error {
	pairs, err := lookAt(ctx, nil, clients())
	if err != nil {
		return err
	}
	if _, _, ok := terminal(std.out); !ok || !canGoBack() {
		return watchLines(ctx, std, pairs, clients)
	}
	// The terminal goes back to what it was, with one line for each pair below.
	enter := func() { fmt.Fprint(std.out, "\x1b[?1049h\x1b[?25l\x1b[?7l") }
	leave := func() { fmt.Fprint(std.out, "\x1b[?7h\x1b[?25h\x1b[?1049l") }
	enter()
	defer func() {
		leave()
		for _, w := range pairs {
			fmt.Fprintln(std.out, w.line())
		}
	}()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGWINCH, syscall.SIGTSTP, syscall.SIGCONT)
	defer signal.Stop(signals)
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		width, height, _ := terminal(std.out)
		if err := show(std, page(pairs, width, height, time.Now(), glyphs()), width); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case sig := <-signals:
			if sig != syscall.SIGTSTP {
				continue
			}
			// Ctrl-Z: the shell gets its screen back until it lets us go on.
			leave()
			if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
				return err
			}
			for sig != syscall.SIGCONT {
				select {
				case sig = <-signals:
				case <-ctx.Done():
					return nil
				}
			}
			enter()
		case <-t.C:
			if pairs, err = lookAt(ctx, pairs, clients()); err != nil && ctx.Err() == nil && len(pairs) == 0 {
				return err
			}
		}
	}
}

// lookAt asks every agent. Those that have gone stay, with the error; when the first look finds nobody at all, that is an error.
func lookAt(ctx context.Context, pairs []*watched, clients []*client) ([]*watched, error) {
	first := len(pairs) == 0
	for _, c := range clients {
		if !slices.ContainsFunc(pairs, func(w *watched) bool { return w.client.socket == c.socket }) {
			pairs = append(pairs, &watched{client: c})
		}
	}
	if len(pairs) == 0 {
		return nil, noAgent()
	}
	var group sync.WaitGroup
	for _, w := range pairs {
		group.Go(func() { w.ask(ctx) })
	}
	group.Wait()
	var silent []error
	for _, w := range pairs {
		if w.err != nil {
			silent = append(silent, w.err)
		}
	}
	if first && len(silent) == len(pairs) {
		return nil, &statusError{exitNoAgent, errors.Join(silent...)}
	}
	return pairs, nil
}

// line is a pair in one line.
func (w *watched) line() string {
	if w.err != nil {
		first, _, _ := strings.Cut(w.err.Error(), "\n")
		return first
	}
	line := fmt.Sprintf("pair %q: %s", w.status.Pair, w.status.State)
	if w.status.Reason != "" {
		line += ": " + visible(w.status.Reason)
	}
	return line
}

// watchLines prints a line whenever the state of a pair changes.
func watchLines(ctx context.Context, std stdio, pairs []*watched, clients func() []*client) error {
	said := map[*watched]string{}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		for _, w := range pairs {
			what := string(w.status.State)
			if w.err != nil {
				what = "no answer"
			}
			if said[w] == what {
				continue
			}
			said[w] = what
			if _, err := fmt.Fprintf(std.out, "%s %s\n", time.Now().Format(time.DateTime), w.line()); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			pairs, _ = lookAt(ctx, pairs, clients()) // what it has to tell stands in each pair
		}
	}
}

// show draws a page over the one before: home, each line cleared behind its text, and nothing below. No flicker.
func show(std stdio, rows []row, width int) error {
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, r := range rows {
		if i > 0 {
			b.WriteString("\r\n")
		}
		for _, s := range r.clip(width) {
			b.WriteString(s.tone.paint(s.text))
		}
		b.WriteString("\x1b[K")
	}
	b.WriteString("\x1b[J")
	_, err := fmt.Fprint(std.out, b.String())
	return err
}

// paint gives a text its colour, if colours are wanted (https://no-color.org).
func (t tone) paint(s string) string {
	codes := map[tone]string{bold: "1", dim: "2", good: "32", warn: "33", bad: "31", goodBadge: "30;42", warnBadge: "30;43", badBadge: "97;41"}
	if codes[t] == "" || os.Getenv("NO_COLOR") != "" {
		return s
	}
	return "\x1b[" + codes[t] + "m" + s + "\x1b[0m"
}

// glyphs are the characters that the locale has.
func glyphs() glyphSet {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := strings.ToUpper(os.Getenv(name)); value != "" {
			if strings.Contains(value, "UTF-8") || strings.Contains(value, "UTF8") {
				return unicodeGlyphs
			}
			return asciiGlyphs
		}
	}
	return asciiGlyphs
}
