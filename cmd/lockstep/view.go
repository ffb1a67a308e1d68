// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// terminal returns the size of the terminal that w is, or ok false. A dumb terminal counts: it only
// cannot go back.
func terminal(w io.Writer) (width, height int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	return width, height, true
}

// canGoBack reports whether a terminal understands the few escape sequences that we use.
func canGoBack() bool {
	t := os.Getenv("TERM")
	return t != "" && t != "dumb"
}

// progressLine shows one line that changes in place. On anything but a terminal a line is printed when it changes,
// at most every ten seconds.
type progressLine struct {
	w     io.Writer
	back  bool
	last  string
	shown time.Time
}

func newProgressLine(w io.Writer) *progressLine {
	_, _, ok := terminal(w)
	return &progressLine{w: w, back: ok && canGoBack()}
}

func (p *progressLine) set(text string) {
	width, _, ok := terminal(p.w)
	switch {
	case p.back && ok:
		fmt.Fprint(p.w, "\r\x1b[K"+clip(text, width-1))
	case text != p.last && time.Since(p.shown) >= 10*time.Second:
		p.shown = time.Now()
		fmt.Fprintln(p.w, text)
	}
	p.last = text
}

// end leaves an empty line for what comes next.
func (p *progressLine) end() {
	if p.back && p.last != "" {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	p.last = ""
}

// clip shortens a line to a number of columns. Every character counts as one, which is wrong for some; the line
// is then cut by the terminal.
func clip(s string, width int) string {
	if width < 1 || utf8.RuneCountInString(s) <= width {
		return s
	}
	r := []rune(s)
	return string(r[:width-1]) + "…"
}

// history is what the live view remembers from second to second.
type history struct {
	lag   []float64
	bytes int64
	files int64
	at    time.Time
	rate  float64 // bytes per second
	speed float64 // files per second
}

// historyLength is how many seconds the sparkline shows at most.
const historyLength = 120

func (h *history) add(s replicate.Status, now time.Time) {
	if h.lag = append(h.lag, s.LagSeconds); len(h.lag) > historyLength {
		h.lag = h.lag[1:]
	}
	if d := now.Sub(h.at).Seconds(); !h.at.IsZero() && d > 0 {
		h.rate = float64(s.Counters.Bytes-h.bytes) / d
		h.speed = float64(s.Counters.Files-h.files) / d
	}
	h.bytes, h.files, h.at = s.Counters.Bytes, s.Counters.Files, now
}

// sparkline draws values as bars of eight heights, the highest value as the highest bar.
func sparkline(values []float64, width int) string {
	const bars = "▁▂▃▄▅▆▇█"
	if len(values) > width {
		values = values[len(values)-max(width, 0):]
	}
	top := 0.0
	for _, v := range values {
		top = max(top, v)
	}
	var b strings.Builder
	for _, v := range values {
		i := 0
		if top > 0 {
			i = int(v / top * 7.999)
		}
		b.WriteString(string([]rune(bars)[i]))
	}
	return b.String()
}

// watchStatus shows the status every second until ctx ends. On a terminal the view stays in place; elsewhere each
// change of state is a line.
func watchStatus(ctx context.Context, std stdio, c *client) error {
	var h history
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var last string
	for {
		s, err := c.status(ctx)
		if ctx.Err() != nil {
			return nil
		}
		now := time.Now()
		h.add(s, now)
		width, height, ok := terminal(std.out)
		switch {
		case ok && canGoBack():
			page := viewPage(s, err, &h, width, height, now)
			// Go home, clear each line behind its text, and clear what is below: no flicker, and no
			// other screen to come back from.
			_, err = fmt.Fprint(std.out, "\x1b[H"+strings.ReplaceAll(page, "\n", "\x1b[K\n")+"\x1b[J")
		default:
			line := fmt.Sprintf("%s %s", s.State, visible(s.Reason))
			if err != nil {
				line = err.Error()
			}
			if state := string(s.State); state != last || err != nil {
				last = state
				_, err = fmt.Fprintf(std.out, "%s %s\n", now.Format(time.DateTime), line)
			} else {
				err = nil
			}
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// viewPage is one picture of the live view, no larger than the terminal.
func viewPage(s replicate.Status, err error, h *history, width, height int, now time.Time) string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	add("lockstep  %s  %s", s.Pair, now.Format(time.TimeOnly))
	if err != nil {
		add("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	} else {
		add("state     %s for %s", s.State, short(max(0, now.Sub(s.Since))))
		if s.Reason != "" {
			add("          %s", visible(s.Reason))
		}
		if s.Hint != "" {
			add("hint      %s", visible(s.Hint))
		}
		add("lag       %-8s %s", lag(s), sparkline(h.lag, width-19))
		add("backlog   %s", count(s.Backlog.Paths, "path"))
		add("sending   %s/s, %.0f files/s; %s in %s since the start", size(int64(h.rate)), h.speed, size(s.Counters.Bytes), count(int(s.Counters.Files), "file"))
		if s.Latency.Count > 0 {
			add("latency   median %s, 99 %% within %s", millis(s.Latency.P50), millis(s.Latency.P99))
		}
		add("full      %s", fullLine(s.Full, now))
		for _, j := range s.InFlight {
			add("running   %s", job(j, now))
		}
		if s.Held != nil {
			add("held      %s: %s", count(s.Held.Count, "deletion"), s.Held.Reason)
			for i, p := range s.Held.Paths {
				if i == 5 {
					add("          and %d more", len(s.Held.Paths)-i+s.Held.More)
					break
				}
				add("          %s", visible(p))
			}
		}
		for i, e := range s.Ledger.Entries {
			if i == 5 {
				add("          and %d more", s.Ledger.Count-i)
				break
			}
			add("ledger    %s: %s", visible(e.Path), visible(e.Reason))
		}
		for i := len(s.Events) - 1; i >= 0; i-- {
			add("%s  %s", s.Events[i].Time.Local().Format(time.TimeOnly), visible(s.Events[i].Text))
		}
	}
	if len(lines) > height-1 {
		lines = lines[:max(height-1, 1)]
	}
	for i := range lines {
		lines[i] = clip(lines[i], width)
	}
	return strings.Join(lines, "\n") + "\n"
}
