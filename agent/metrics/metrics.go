// SPDX-License-Identifier: Apache-2.0

// Package metrics writes numbers in the text format of Prometheus.
//
// It keeps nothing: whoever has the numbers writes them when they are asked for. Names are
// lockstep_<noun>_<unit>[_total] in base units, which [Writer] makes sure of, so that a slip shows in the first test.
package metrics

import (
	"bufio"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// ContentType is the content type of what a Writer writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Writer writes metrics. All values of one metric must follow each other.
type Writer struct {
	w      *bufio.Writer
	labels []string // of every value: name, value, name, value
	last   string
	seen   map[string]bool
}

// NewWriter returns a Writer that gives every value the labels, written as name, value, name, value.
func NewWriter(w io.Writer, labels ...string) *Writer {
	return &Writer{w: bufio.NewWriter(w), labels: labels, seen: map[string]bool{}}
}

// Gauge writes a value that goes up and down. Its name must not end in _total.
func (w *Writer) Gauge(name, help string, value float64, labels ...string) {
	if strings.HasSuffix(name, "_total") {
		panic("bug: gauge " + name + " ends in _total")
	}
	w.value(name, "gauge", help, value, labels)
}

// Counter writes a value that only grows. Its name must end in _total.
func (w *Writer) Counter(name, help string, value float64, labels ...string) {
	if !strings.HasSuffix(name, "_total") {
		panic("bug: counter " + name + " does not end in _total")
	}
	w.value(name, "counter", help, value, labels)
}

// Bool writes a gauge that is 1 or 0.
func (w *Writer) Bool(name, help string, value bool, labels ...string) {
	v := 0.0
	if value {
		v = 1
	}
	w.Gauge(name, help, v, labels...)
}

// Flush writes what is buffered, and tells of the first error.
func (w *Writer) Flush() error { return w.w.Flush() }

var validName = regexp.MustCompile(`^lockstep_[a-z0-9]+(_[a-z0-9]+)*$`)

var (
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

func (w *Writer) value(name, kind, help string, value float64, labels []string) {
	if name != w.last {
		if w.seen[name] || !validName.MatchString(name) {
			panic("bug: metric " + name + " is misnamed or scattered")
		}
		w.seen[name], w.last = true, name
		w.put("# HELP ", name, " ", escapeHelp.Replace(help), "\n# TYPE ", name, " ", kind, "\n")
	}
	w.put(name)
	sep := "{"
	for _, ls := range [][]string{w.labels, labels} {
		for i := 0; i+1 < len(ls); i += 2 {
			w.put(sep, ls[i], `="`, escapeLabel.Replace(strings.ToValidUTF8(ls[i+1], "\uFFFD")), `"`)
			sep = ","
		}
	}
	if sep == "," {
		w.put("}")
	}
	w.put(" ", strconv.FormatFloat(value, 'g', -1, 64), "\n")
}

// put leaves errors to Flush: bufio keeps the first one.
func (w *Writer) put(parts ...string) {
	for _, p := range parts {
		_, _ = w.w.WriteString(p)
	}
}
