// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// tone is how a text looks; what it means is never in the colour alone.
type tone int

const (
	plain tone = iota
	bold
	dim
	good
	warn
	bad
	goodBadge
	warnBadge
	badBadge
)

// span is a text of one tone, row a line of them.
type span struct {
	text string
	tone tone
}

type row []span

// clip shortens a row to a number of columns. Every character counts as one, which is wrong for some; the terminal is told
// not to wrap.
func (r row) clip(width int) row {
	var out row
	for _, s := range r {
		n := utf8.RuneCountInString(s.text)
		switch {
		case width <= 0:
			return out
		case n > width:
			return append(out, span{clip(s.text, width), s.tone})
		}
		out, width = append(out, s), width-n
	}
	return out
}

type glyphSet struct {
	bars  []rune
	arrow string
}

var (
	unicodeGlyphs = glyphSet{[]rune("▁▂▃▄▅▆▇█"), "→"}
	asciiGlyphs   = glyphSet{[]rune("_.:-=+*#"), "->"}
)

// spark draws values as bars of eight heights, the highest value as the highest bar.
func (g glyphSet) spark(values []float64, width int) string {
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
			i = int(v / top * (float64(len(g.bars)) - 0.001))
		}
		b.WriteRune(g.bars[i])
	}
	return b.String()
}

// page is one picture of the live view, no larger than the terminal: one pair in full, or several in a table.
func page(pairs []*watched, width, height int, now time.Time, g glyphSet) []row {
	var rows []row
	if len(pairs) == 1 {
		rows = pairPage(pairs[0], width, height, now, g)
	} else {
		rows = tablePage(pairs, width, now, g)
	}
	// What matters most stands first, so that a small terminal shows it.
	if len(rows) > height && height > 0 {
		rows = slices.DeleteFunc(rows, func(r row) bool { return len(r) == 0 })
	}
	if len(rows) > height && height > 0 {
		rows = rows[:height]
	}
	return rows
}

// head is the first row: what it is, and the time at the right.
func head(title, rest string, width int, now time.Time) row {
	clock := now.Format(time.TimeOnly)
	left := row{{title, bold}, {rest, dim}}.clip(max(0, width-len(clock)-2))
	used := 0
	for _, s := range left {
		used += utf8.RuneCountInString(s.text)
	}
	return append(left, span{strings.Repeat(" ", max(2, width-used-len(clock))), plain}, span{clock, dim})
}

func badge(s replicate.State) (badge, text tone) {
	switch s {
	case replicate.InStep, replicate.HooksOnly:
		return goodBadge, good
	case replicate.Held, replicate.Failing:
		return badBadge, bad
	case replicate.Starting, replicate.Behind, replicate.Degraded, replicate.Paused:
		return warnBadge, warn
	}
	return badBadge, bad
}

// labelled is a row with a name before it.
func labelled(label string, spans ...span) row {
	return append(row{{fmt.Sprintf("%-11s", label), dim}}, spans...)
}

// wrapped breaks a text at its spaces into at most three rows below a label.
func wrapped(label, text string, t tone, width int) (rows []row) {
	width = max(width-11, 20)
	var line string
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width || len(rows) == 2:
			line += " " + word
		default:
			rows = append(rows, labelled(label, span{line, t}))
			line, label = word, ""
		}
	}
	if line != "" {
		rows = append(rows, labelled(label, span{line, t}))
	}
	return rows
}

func pairPage(w *watched, width, height int, now time.Time, g glyphSet) (rows []row) {
	add := func(r ...row) { rows = append(rows, r...) }
	s := w.status
	blank := row{}
	ends := "  " + visible(s.Source)
	if s.Target != "" {
		ends += " " + g.arrow + " " + visible(s.Target)
	}
	add(head("lockstep  "+cmp.Or(s.Pair, w.client.name), ends, width, now), blank)
	if w.err != nil {
		said, hint, _ := strings.Cut(w.err.Error(), "\nhint: ")
		add(labelled("state", span{" NO ANSWER ", badBadge}, span{" what follows is the last that it said", dim}))
		add(wrapped("", said, bad, width)...)
		add(wrapped("to do", hint, bold, width)...)
	} else {
		b, t := badge(s.State)
		add(labelled("state", span{" " + strings.ToUpper(string(s.State)) + " ", b}, span{" for " + short(max(0, now.Sub(s.Since))), plain}))
		add(wrapped("", visible(s.Reason), t, width)...)
		add(wrapped("to do", visible(s.Hint), bold, width)...)
	}
	if s.Pair == "" {
		return rows // it has never answered
	}
	add(blank)

	// Three curves with one time axis: a second is a column.
	columns := max(0, min(historyLength, width-11-11-20))
	curve := func(label, value string, values []float64, peak string, t tone) {
		r := labelled(label, span{fmt.Sprintf("%-11s", value), t})
		if columns >= 10 {
			r = append(r, span{fmt.Sprintf("%-*s", columns, g.spark(values, columns)), t}, span{"  peak " + peak, dim})
		}
		add(r)
	}
	peak := func(values []float64) float64 {
		if len(values) > columns {
			values = values[len(values)-columns:]
		}
		return slices.Max(append([]float64{0}, values...))
	}
	lagTone := plain
	if s.LagSeconds >= 60 {
		lagTone = warn
	}
	rate := 0.0
	if n := len(w.rate); n > 0 {
		rate = w.rate[n-1]
	}
	curve("lag", lag(s), w.lag, short(time.Duration(peak(w.lag)*float64(time.Second))), lagTone)
	curve("backlog", count(s.Backlog.Paths, "path"), w.backlog, count(int(peak(w.backlog)), "path"), plain)
	curve("sending", size(int64(rate))+"/s", w.rate, size(int64(peak(w.rate)))+"/s", plain)

	if s.Held != nil {
		add(labelled("held", span{count(s.Held.Count, "deletion") + " wait for approval", bad}))
		paths := s.Held.Paths
		if limit := max(2, min(5, height/6)); len(paths) > limit {
			paths = paths[:limit]
		}
		for _, p := range paths {
			add(labelled("", span{visible(p), plain}))
		}
		if more := len(s.Held.Paths) - len(paths) + s.Held.More; more > 0 {
			add(labelled("", span{fmt.Sprintf("and %d more", more), dim}))
		}
	} else {
		add(labelled("held", span{"no deletion", plain}))
	}
	for i, e := range s.Ledger.Entries {
		if i == 3 {
			add(labelled("", span{fmt.Sprintf("and %d more", s.Ledger.Count-i), dim}))
			break
		}
		label := "not sent"
		if i > 0 {
			label = ""
		}
		add(labelled(label, span{visible(e.Path) + ": " + visible(e.Reason), warn}))
	}
	for i, j := range s.InFlight {
		if i == 4 {
			add(labelled("", span{fmt.Sprintf("and %d more", len(s.InFlight)-i), dim}))
			break
		}
		label := "running"
		if i > 0 {
			label = ""
		}
		add(labelled(label, span{job(j, now), plain}))
	}
	add(labelled("sent", span{fmt.Sprintf("%s in %s, %s deleted, since %s", size(s.Counters.Bytes), count(int(s.Counters.Files), "file"),
		count(int(s.Counters.Deleted), "entry"), s.Started.Local().Format("2 Jan 15:04")), plain}))
	if s.Latency.Count > 0 {
		add(labelled("latency", span{fmt.Sprintf("median %s, 99 %% within %s", millis(s.Latency.P50), millis(s.Latency.P99)), plain}))
	}
	add(labelled("full", span{fullLine(s.Full, now), plain}))
	add(blank)
	for i := len(s.Events) - 1; i >= 0; i-- {
		e := s.Events[i]
		when := e.Time.Local().Format(time.TimeOnly)
		if now.Sub(e.Time) >= 24*time.Hour {
			when = e.Time.Local().Format("2 Jan")
		}
		add(labelled(when, span{visible(e.Text), plain}))
	}
	return rows
}

// tablePage is several pairs, the worst first.
func tablePage(pairs []*watched, width int, now time.Time, g glyphSet) []row {
	rank := func(w *watched) int {
		if w.err != nil {
			return severity(exitNoAgent)
		}
		return severity(stateStatus(w.status.State))
	}
	pairs = slices.Clone(pairs)
	slices.SortStableFunc(pairs, func(a, b *watched) int {
		return cmp.Or(cmp.Compare(rank(b), rank(a)), strings.Compare(a.client.name, b.client.name))
	})
	name := len("PAIR")
	inStep := 0
	for _, w := range pairs {
		name = max(name, utf8.RuneCountInString(w.client.name))
		if w.err == nil && w.status.State == replicate.InStep {
			inStep++
		}
	}
	rows := []row{head("lockstep", fmt.Sprintf("  %d pairs, %d in step", len(pairs), inStep), width, now), {}}
	columns := max(0, min(historyLength, width-name-2-12-9-10-8-10-2))
	title := fmt.Sprintf("%-*s  %-12s%-9s%-10s%-8s%-12s", name, "PAIR", "STATE", "LAG", "BACKLOG", "HELD", "SENDING")
	if columns >= 8 {
		title += "LAG HISTORY"
	}
	rows = append(rows, row{{title, dim}})
	for _, w := range pairs {
		s := w.status
		if w.err != nil {
			said, _, _ := strings.Cut(w.err.Error(), "\n")
			rows = append(rows, row{{fmt.Sprintf("%-*s  ", name, w.client.name), bold}, {"no answer", bad}}, row{{"  " + said, bad}})
			continue
		}
		held, rate := 0, 0.0
		if s.Held != nil {
			held = s.Held.Count
		}
		if n := len(w.rate); n > 0 {
			rate = w.rate[n-1]
		}
		_, t := badge(s.State)
		r := row{{fmt.Sprintf("%-*s  ", name, s.Pair), bold}, {fmt.Sprintf("%-12s", s.State), t},
			{fmt.Sprintf("%-9s%-10d%-8d%-12s", lag(s), s.Backlog.Paths, held, size(int64(rate))+"/s"), plain}}
		if columns >= 8 {
			r = append(r, span{g.spark(w.lag, columns), plain})
		}
		rows = append(rows, r)
		if s.Reason != "" && s.State != replicate.Behind {
			rows = append(rows, row{{"  " + visible(s.Reason), t}})
		}
	}
	return rows
}
