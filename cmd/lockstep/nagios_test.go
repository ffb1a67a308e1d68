// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// answering is a client of an agent that answers with this status.
func answering(t *testing.T, s replicate.Status) *client {
	t.Helper()
	return serving(t, s.Pair, func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(s); err != nil {
			t.Error(err)
		}
	})
}

// serving is a client of an agent that answers so.
func serving(t *testing.T, pair string, handle http.HandlerFunc) *client {
	t.Helper()
	dir, err := os.MkdirTemp("", "lockstep") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("unix", filepath.Join(dir, replicate.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handle}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		server.Close() //nolint:errcheck // it was only listening
		<-done
	})
	return newClient(pair, dir)
}

func TestNagiosLine(t *testing.T) {
	t.Parallel()
	status := func(state replicate.State, change ...func(*replicate.Status)) replicate.Status {
		s := replicate.Status{Pair: "data", State: state}
		for _, c := range change {
			c(&s)
		}
		return s
	}
	behind := func(seconds float64) func(*replicate.Status) {
		return func(s *replicate.Status) { s.LagSeconds, s.Backlog.Paths = seconds, 3 }
	}
	reason := func(r string) func(*replicate.Status) { return func(s *replicate.Status) { s.Reason = r } }
	const perf = "lag=0.000s;300;600;0 backlog=0;;;0 held=0;;;0 ledger=0;;;0 sent=0B\n"
	for _, tt := range []struct {
		name   string
		status replicate.Status
		want   int
		out    string
	}{
		{"in step", status(replicate.InStep), 0, "LOCKSTEP OK - data: in step | " + perf},
		{"a little behind", status(replicate.Behind, behind(2)), 0,
			"LOCKSTEP OK - data: behind, 3 paths behind, the oldest for 2s | lag=2.000s;300;600;0 backlog=3;;;0 held=0;;;0 ledger=0;;;0 sent=0B\n"},
		{"behind for long", status(replicate.Behind, behind(300)), 1,
			"LOCKSTEP WARNING - data: behind, 3 paths behind, the oldest for 5m0s | lag=300.000s;300;600;0 backlog=3;;;0 held=0;;;0 ledger=0;;;0 sent=0B\n"},
		{"behind for too long", status(replicate.Behind, behind(600)), 2,
			"LOCKSTEP CRITICAL - data: behind, 3 paths behind, the oldest for 10m0s | lag=600.000s;300;600;0 backlog=3;;;0 held=0;;;0 ledger=0;;;0 sent=0B\n"},
		{"starting", status(replicate.Starting), 1, "LOCKSTEP WARNING - data: starting | " + perf},
		{"degraded", status(replicate.Degraded, reason("1 path could not be sent")), 1, "LOCKSTEP WARNING - data: degraded: 1 path could not be sent | " + perf},
		{"paused", status(replicate.Paused), 1, "LOCKSTEP WARNING - data: paused | " + perf},
		{"held", status(replicate.Held, func(s *replicate.Status) { s.Held = &replicate.HeldStatus{Count: 7} }), 2,
			"LOCKSTEP CRITICAL - data: held | lag=0.000s;300;600;0 backlog=0;;;0 held=7;;;0 ledger=0;;;0 sent=0B\n"},
		{"failing, with odd characters", status(replicate.Failing, reason("a|b\x1b[m")), 2, `LOCKSTEP CRITICAL - "data: failing: a/b\x1b[m" | ` + perf},
		{"of another version", status("dancing"), 3, "LOCKSTEP UNKNOWN - data: dancing | " + perf},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := answering(t, tt.status)
			var out, stderr bytes.Buffer
			got := dispatch(t.Context(), stdio{strings.NewReader(""), &out, &stderr}, []string{"status", "--nagios", "--runtime-dir", filepath.Dir(c.socket)})
			if got != tt.want {
				t.Errorf("status %d, want %d", got, tt.want)
			}
			if diff := cmp.Diff(tt.out, out.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
			if stderr.Len() > 0 {
				t.Errorf("standard error: %s", &stderr)
			}
		})
	}
}

// Of several pairs, the worst is on the first line; a pair whose agent does not answer is one of them.
func TestNagiosTellsTheWorstOfAllPairsFirst(t *testing.T) {
	t.Parallel()
	good := answering(t, replicate.Status{Pair: "a", State: replicate.InStep})
	poor := answering(t, replicate.Status{Pair: "b", State: replicate.Degraded})
	gone := newClient("c", t.TempDir())
	run := func(clients ...*client) (int, string) {
		var out bytes.Buffer
		err := nagios(t.Context(), stdio{out: &out}, clients, time.Minute)
		var status *statusError
		if !errors.As(err, &status) {
			t.Fatalf("error %v", err)
		}
		return status.status, out.String()
	}
	status, out := run(good, poor)
	if status != nagiosWarning || !strings.HasPrefix(out, "LOCKSTEP WARNING - b: degraded (2 pairs) | a_lag=") {
		t.Errorf("status %d, output %s", status, out)
	}
	status, out = run(good, poor, gone)
	if status != nagiosCritical || !strings.HasPrefix(out, `LOCKSTEP CRITICAL - pair "c": no agent answers at `) ||
		!strings.Contains(out, "\nOK - a: in step\nWARNING - b: degraded\nCRITICAL - pair \"c\": ") {
		t.Errorf("status %d, output %s", status, out)
	}
	if status, out = run(); status != nagiosCritical {
		t.Errorf("without an agent: status %d, output %s", status, out)
	}
}
