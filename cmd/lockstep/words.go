// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

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
	case s.State == replicate.Paused && s.Hint == "":
		t.Hint = "lockstep resume " + s.Pair
	case s.State == replicate.Held && s.Held != nil && s.Held.Foreign:
		return ""
	case s.State == replicate.Paused, s.State == replicate.Held, s.State == replicate.Failing:
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

// fullLine leaves f.Entries to --json: it is what the guard goes by, which was counted before the full batch sent anything: 0 of a first one.
func fullLine(f replicate.FullStatus, now time.Time) string {
	var parts []string
	switch {
	case f.Running && f.Phase == "send":
		line := fmt.Sprintf("sending the whole tree, %d %%, %s", f.Percent, count(int(f.DoneFiles), "file"))
		if f.ETASeconds > 0 {
			line += ", about " + short(time.Duration(f.ETASeconds*float64(time.Second))) + " left"
		}
		parts = append(parts, line)
	case f.Running && f.Phase == "compare":
		parts = append(parts, "comparing both trees")
	case f.Running:
		parts = append(parts, "sending what differed")
	}
	if f.Last != nil {
		parts = append(parts, fmt.Sprintf("last %s in %s", ago(now, *f.Last), short(time.Duration(f.LastSeconds*float64(time.Second)))))
	} else if !f.Running {
		parts = append(parts, "none yet")
	}
	if f.Next != nil {
		parts = append(parts, "next in "+short(max(0, f.Next.Sub(now))))
	}
	if f.Problem != "" {
		parts = append(parts, visible(f.Problem))
	}
	return strings.Join(parts, "; ")
}

func job(j replicate.JobStatus, now time.Time) string {
	line := j.Kind + " " + visible(j.What)
	if j.Bytes > 0 {
		line += ", " + size(j.Bytes)
	}
	if j.Started.IsZero() {
		return line + ", waiting"
	}
	if j.Percent > 0 {
		line += fmt.Sprintf(", %d %% at %s", j.Percent, j.Rate)
		if j.ETASeconds > 0 {
			line += ", about " + short(time.Duration(j.ETASeconds*float64(time.Second))) + " left"
		}
	}
	return line + ", for " + short(now.Sub(j.Started))
}

func count(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "y"):
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(what, "y"))
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func lag(s replicate.Status) string {
	if s.LagSeconds == 0 {
		return "0s"
	}
	return short(time.Duration(s.LagSeconds * float64(time.Second)))
}

// short rounds a duration to what a person wants to know.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func millis(seconds float64) string {
	if seconds >= 10 {
		return short(time.Duration(seconds * float64(time.Second)))
	}
	return fmt.Sprintf("%.0f ms", seconds*1000)
}

func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return short(max(0, now.Sub(t))) + " ago"
}

func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for f >= unit && i < 4 {
		f /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[i])
}

// visible shows a file name, which may hold anything, without letting it talk to the terminal.
func visible(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
