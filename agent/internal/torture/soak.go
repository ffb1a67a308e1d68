// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// soakRounds is the least number of rounds that tell growth from chance.
const soakRounds = 8

// footprint is what the agent holds while nothing happens.
type footprint struct {
	files, goroutines int
	rss               int64 // bytes
}

// slack is what may come and go from one quiet moment to another: a connection that asks for the status, memory that Go gives back late.
var slack = footprint{files: 2, goroutines: 2, rss: 4 << 20}

// growth says what has grown from round to round: in the last quarter it was never as little as it was at most in the first half. The first
// round does not count, because caches and pools fill in it.
func growth(rounds []footprint) error {
	if len(rounds) < soakRounds {
		return nil
	}
	early, late := rounds[1:len(rounds)/2], rounds[len(rounds)-len(rounds)/4:]
	var all []error
	for _, what := range []struct {
		name string
		of   func(footprint) int64
	}{
		{"descriptors", func(f footprint) int64 { return int64(f.files) }},
		{"goroutines", func(f footprint) int64 { return int64(f.goroutines) }},
		{"bytes of memory", func(f footprint) int64 { return f.rss }},
	} {
		values := func(rounds []footprint) []int64 {
			var v []int64
			for _, f := range rounds {
				v = append(v, what.of(f))
			}
			return v
		}
		if most, least := slices.Max(values(early)), slices.Min(values(late)); least > most+what.of(slack) {
			all = append(all, fmt.Errorf("%s grew from %d at most to %d at least: %v", what.name, most, least, values(rounds)))
		}
	}
	return errors.Join(all...)
}

// footprint reads what the agent holds now.
func (r *run) footprint(ctx context.Context) (f footprint, err error) {
	dir := filepath.Join("/proc", strconv.Itoa(r.agent.Process.Pid))
	if f.goroutines, err = r.goroutines(ctx); err != nil {
		return f, err
	}
	entries, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return f, err
	}
	f.files = len(entries)
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return f, err
	}
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &f.rss); n == 1 {
			f.rss <<= 10
		}
	}
	return f, nil
}

// goroutines asks the agent for its metrics. The connection is over when it returns.
func (r *run) goroutines(ctx context.Context) (n int, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(r.opts.Dir, "run", "status.sock"))
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "lockstep_agent_goroutines{") {
			return strconv.Atoi(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]))
		}
	}
	return 0, errors.New("the agent does not tell its goroutines")
}
