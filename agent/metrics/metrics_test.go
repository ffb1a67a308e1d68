// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestText(t *testing.T) {
	var b strings.Builder
	w := NewWriter(&b, "pair", `da"ta\`)
	w.Gauge("lockstep_lag_seconds", "Age of the oldest change.\nNew \\ line.", 1.5)
	w.Counter("lockstep_transfers_total", "Runs.", 3, "class", "done")
	w.Counter("lockstep_transfers_total", "Runs.", 1e12, "class", "a\nb\xff")
	w.Bool("lockstep_watch_ready", "Ready.", true)
	w.Bool("lockstep_full_running", "Running.", false)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	want := `# HELP lockstep_lag_seconds Age of the oldest change.\nNew \\ line.
# TYPE lockstep_lag_seconds gauge
lockstep_lag_seconds{pair="da\"ta\\"} 1.5
# HELP lockstep_transfers_total Runs.
# TYPE lockstep_transfers_total counter
lockstep_transfers_total{pair="da\"ta\\",class="done"} 3
lockstep_transfers_total{pair="da\"ta\\",class="a\nb�"} 1e+12
# HELP lockstep_watch_ready Ready.
# TYPE lockstep_watch_ready gauge
lockstep_watch_ready{pair="da\"ta\\"} 1
# HELP lockstep_full_running Running.
# TYPE lockstep_full_running gauge
lockstep_full_running{pair="da\"ta\\"} 0
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestWithoutLabels(t *testing.T) {
	var b strings.Builder
	w := NewWriter(&b)
	w.Gauge("lockstep_x", "X.", 0)
	if err := w.Flush(); err != nil || !strings.HasSuffix(b.String(), "\nlockstep_x 0\n") {
		t.Errorf("%v, %q", err, b.String())
	}
}

func TestMisnamedMetricIsABug(t *testing.T) {
	for name, f := range map[string]func(*Writer){
		"gauge with total":      func(w *Writer) { w.Gauge("lockstep_x_total", "", 1) },
		"counter without total": func(w *Writer) { w.Counter("lockstep_x", "", 1) },
		"foreign prefix":        func(w *Writer) { w.Gauge("up", "", 1) },
		"capitals":              func(w *Writer) { w.Gauge("lockstep_X", "", 1) },
		"scattered": func(w *Writer) {
			w.Gauge("lockstep_a", "", 1)
			w.Gauge("lockstep_b", "", 1)
			w.Gauge("lockstep_a", "", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f(NewWriter(&strings.Builder{}))
		})
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestFlushTellsOfTheError(t *testing.T) {
	w := NewWriter(brokenPipe{})
	w.Gauge("lockstep_x", "X.", 0)
	if w.Flush() == nil {
		t.Error("no error")
	}
}
