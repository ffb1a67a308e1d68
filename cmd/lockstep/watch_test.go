// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

var update = flag.Bool("update", false, "write what the tests of this package compare with")

// aWatchedPair is what the live view has gathered in two minutes.
func aWatchedPair(now time.Time) *watched {
	w := &watched{client: newClient("data", "/run/lockstep/data")}
	minute := func(m float64) time.Time { return now.Add(-time.Duration(m * float64(time.Minute))) }
	last, next := minute(37), now.Add(23*time.Hour+23*time.Minute)
	s := replicate.Status{
		Pair: "data", State: replicate.Behind, Since: now.Add(-6 * time.Second), Started: minute(26 * 60), Source: "/data",
		Reason: "214 paths, the oldest for 2.41s", Target: "rsync://lockstep-1@172.16.1.41:873/data",
		Latency: replicate.Latency{Count: 4096, P50: 0.061, P99: 0.412},
		Full:    replicate.FullStatus{Entries: 184203, Last: &last, LastSeconds: 1.9, Next: &next},
		Events: []replicate.Note{
			{Time: minute(26 * 60), Text: "in step"},
			{Time: minute(14), Text: "failing: no connection to 172.16.1.41:873: Connection refused"},
			{Time: minute(12.5), Text: "the backup takes files again"},
			{Time: minute(12.4), Text: "in step"},
		},
	}
	at := now.Add(-historyLength * time.Second)
	for i := range historyLength {
		at = at.Add(time.Second)
		wave := math.Max(0, math.Sin(float64(i)/7)+math.Sin(float64(i)/3)/2) / 1.5
		s.LagSeconds, s.Backlog.Paths = 2.2*wave, int(190*wave)
		s.Counters.Bytes += int64(wave * 41e6)
		s.Counters.Files += int64(wave * 400)
		if i == historyLength-1 {
			s.LagSeconds, s.Backlog.Paths = 2.41, 214
			s.Counters.Bytes += 38e6
			s.Counters.Files += 300
		}
		w.add(s, at)
	}
	s.Counters.Deleted = 12
	s.InFlight = []replicate.JobStatus{
		{Kind: "send", What: "180 paths", Paths: 180, Bytes: 9e6, Started: now.Add(-300 * time.Millisecond)},
		{Kind: "big", What: "video/raw/take-7.mov", Paths: 1, Bytes: 3.2e9, Started: now.Add(-41 * time.Second),
			Progress: replicate.Progress{Percent: 62, Rate: "48.11MB/s", ETASeconds: 25}},
	}
	w.status = s
	return w
}

// text is a page without its colours.
func text(rows []row) string {
	var b strings.Builder
	for _, r := range rows {
		var line strings.Builder
		for _, s := range r {
			line.WriteString(s.text)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// No page is larger than its terminal, and what matters most is on each of them.
func TestTheLiveViewFitsEveryTerminal(t *testing.T) {
	t.Parallel()
	well := aWatchedPair(noon)
	held := aWatchedPair(noon)
	held.status.State, held.status.Reason, held.status.Hint = replicate.Held, strings.Repeat("a long reason ", 30), "lockstep approve data"
	held.status.Held = &replicate.HeldStatus{Count: 6000, Paths: []string{"a", "b\x1b[2J", "c", "d", "e", "f"}, More: 200}
	held.status.Ledger = replicate.LedgerStatus{Count: 9, Entries: []replicate.LedgerEntry{{Path: "x", Reason: "denied"}, {Path: "y"}, {Path: "z"}, {Path: "zz"}}}
	gone := aWatchedPair(noon)
	gone.err = errors.New("pair \"data\": no agent answers at /run/lockstep/data/status.sock\nhint: systemctl status lockstep@data")
	never := &watched{client: newClient("mail", "/run/lockstep/mail"), err: gone.err}
	for name, pairs := range map[string][]*watched{"well": {well}, "held": {held}, "gone": {gone}, "never": {never}, "several": {well, held, gone, never}} {
		for _, size := range [][2]int{{80, 24}, {120, 40}, {40, 10}, {10, 3}, {1, 1}, {300, 100}} {
			for _, g := range []glyphSet{unicodeGlyphs, asciiGlyphs} {
				rows := page(pairs, size[0], size[1], noon, g)
				if len(rows) > size[1] {
					t.Errorf("%s at %v: %d rows", name, size, len(rows))
				}
				for i, r := range rows {
					rows[i] = r.clip(size[0])
				}
				got := text(rows)
				for line := range strings.Lines(got) {
					if utf8.RuneCountInString(strings.TrimRight(line, "\n")) > size[0] {
						t.Errorf("%s at %v: %q is too long", name, size, line)
					}
				}
				if strings.Contains(got, "\x1b") {
					t.Errorf("%s: a file name talks to the terminal:\n%s", name, got)
				}
				want := map[string][]string{"well": {"data", "BEHIND", "2.41s", "214 paths"}, "held": {"HELD", "a long reason"},
					"gone": {"NO ANSWER", "systemctl status"}, "never": {"NO ANSWER"}, "several": {"data", "held", "no answer"}}[name]
				for _, w := range want {
					if size[0] >= 40 && !strings.Contains(got, w) {
						t.Errorf("%s at %v: %q is not there:\n%s", name, size, w, got)
					}
				}
			}
		}
	}
	if got := text(page([]*watched{held}, 80, 40, noon, asciiGlyphs)); !strings.Contains(got, "6000 deletions wait for approval") || !strings.Contains(got, "to do      lockstep approve data") ||
		!strings.Contains(got, "and 201 more") || !strings.Contains(got, "not sent   x: denied") || !strings.Contains(got, "and 6 more") {
		t.Errorf("held:\n%s", got)
	}
	for _, r := range got7bit(page([]*watched{well}, 80, 40, noon, asciiGlyphs)) {
		t.Errorf("%q is not ASCII", r)
	}
}

// got7bit gives the characters that are not ASCII, apart from the ellipsis of a text that is cut.
func got7bit(rows []row) (odd []rune) {
	for _, r := range text(rows) {
		if r > 0x7e {
			odd = append(odd, r)
		}
	}
	return odd
}

// Every state has a look of its own: the two good ones are not alarming.
func TestEveryStateHasItsBadge(t *testing.T) {
	t.Parallel()
	for _, s := range replicate.States() {
		b, _ := badge(s)
		want := map[int]tone{exitOK: goodBadge, exitNotInStep: warnBadge, exitHeld: badBadge, exitFailing: badBadge}[stateStatus(s)]
		if b != want {
			t.Errorf("%q: tone %d, want %d", s, b, want)
		}
	}
}

// An agent that starts again counts from 0, and nothing was sent backwards.
func TestARestartIsNoNegativeRate(t *testing.T) {
	t.Parallel()
	var h history
	var s replicate.Status
	for i, bytes := range []int64{1000, 3000, 50, 150} {
		s.Counters.Bytes = bytes
		h.add(s, noon.Add(time.Duration(i)*2*time.Second))
	}
	if got, want := fmt.Sprint(h.rate), "[0 1000 0 50]"; got != want {
		t.Errorf("rates %s, want %s", got, want)
	}
}

// Without a terminal, the live view is a line for each change of state, also over the end of an agent.
func TestTheLiveViewWithoutATerminal(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "lockstep") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	states := make(chan replicate.State, 1)
	serve := func() *http.Server {
		l, err := net.Listen("unix", filepath.Join(dir, replicate.SocketName))
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			state := <-states
			states <- state
			if err := json.NewEncoder(w).Encode(replicate.Status{Pair: "data", State: state, Reason: "why"}); err != nil {
				t.Error(err)
			}
		})}
		go server.Serve(l) //nolint:errcheck // ends with Close
		return server
	}
	states <- replicate.InStep
	server := serve()
	lines := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- watchStatus(ctx, stdio{nil, lineWriter(lines), nil}, func() []*client { return []*client{newClient("data", dir)} })
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-lines:
			if !strings.Contains(got, want) {
				t.Errorf("it says %q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("it does not say %q", want)
		}
	}
	expect(`pair "data": in step: why`)
	<-states
	states <- replicate.Failing
	expect(`pair "data": failing: why`)
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	expect(`pair "data": no agent answers`)
	server = serve()
	t.Cleanup(func() { server.Close() })
	expect(`pair "data": failing: why`)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v", err)
	}

	nobody := []*client{newClient("data", filepath.Join(dir, "nowhere")), newClient("mail", filepath.Join(dir, "nor here"))}
	var status *statusError
	err = watchStatus(t.Context(), stdio{nil, lineWriter(lines), nil}, func() []*client { return nobody })
	if !errors.As(err, &status) || status.status != exitNoAgent || !strings.Contains(err.Error(), `"data"`) || !strings.Contains(err.Error(), `"mail"`) {
		t.Errorf("without an agent, it ends with %v", err)
	}
}

type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

// The picture in README.md is the live view.
func TestThePictureOfTheLiveViewIsCurrent(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.Local)
	got := svg(page([]*watched{aWatchedPair(now)}, 100, 24, now, unicodeGlyphs), 100)
	name := filepath.Join(repository, "docs/status-watch.svg")
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || string(want) != got {
		t.Errorf("%s is not what the view shows now (%v)\nhint: go test ./cmd/lockstep -run Picture -update", name, err)
	}
}

// svg draws a page as a terminal would.
func svg(rows []row, columns int) string {
	const wide, high, margin = 8.4, 18, 14
	colours := map[tone]string{plain: "#d4d4d4", bold: "#ffffff", dim: "#8a8a8a", good: "#73c991", warn: "#e2c08d", bad: "#f48771",
		goodBadge: "#1e1e1e", warnBadge: "#1e1e1e", badBadge: "#ffffff"}
	badges := map[tone]string{goodBadge: "#73c991", warnBadge: "#e2c08d", badBadge: "#c74e39"}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d" font-family="ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace" font-size="14">`+"\n",
		float64(columns)*wide+2*margin, len(rows)*high+2*margin)
	b.WriteString("<title>lockstep status data --watch</title>\n" + `<rect width="100%" height="100%" rx="8" fill="#1e1e1e"/>` + "\n")
	for i, r := range rows {
		column := 0
		for _, s := range r.clip(columns) {
			n := utf8.RuneCountInString(s.text)
			x, y := margin+float64(column)*wide, margin+i*high
			column += n
			if strings.TrimSpace(s.text) == "" {
				continue
			}
			if fill := badges[s.tone]; fill != "" {
				fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x, y, float64(n)*wide, high, fill)
			}
			weight := ""
			if s.tone == bold || badges[s.tone] != "" {
				weight = ` font-weight="bold"`
			}
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="%s"%s xml:space="preserve" textLength="%.1f">%s</text>`+"\n",
				x, y+high-5, colours[s.tone], weight, float64(n)*wide, html.EscapeString(s.text))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}
