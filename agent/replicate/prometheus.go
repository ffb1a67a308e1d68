// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"maps"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/agent/metrics"
)

func (l *loop) serveMetrics(w http.ResponseWriter, r *http.Request) {
	s, err := l.current(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", metrics.ContentType)
	m := metrics.NewWriter(w, "pair", s.Pair)
	writeMetrics(m, s, time.Now())
	if err := m.Flush(); err != nil {
		return // the client went away
	}
}

// writeMetrics is the one list of metrics.
func writeMetrics(m *metrics.Writer, s *Status, now time.Time) {
	for _, state := range States() {
		m.Bool("lockstep_state", "Whether the pair is in the state of the label; exactly one is 1.", s.State == state, "state", string(state))
	}
	m.Gauge("lockstep_state_since_timestamp_seconds", "When the state began.", seconds(s.Since))
	if s.LastInStep != nil {
		m.Gauge("lockstep_last_in_step_timestamp_seconds", "When the pair was last in step.", seconds(*s.LastInStep))
	}
	m.Gauge("lockstep_start_timestamp_seconds", "When the agent was started.", seconds(s.Started))
	m.Gauge("lockstep_agent_goroutines", "Goroutines of the agent; a number that grows for ever is a bug.", float64(runtime.NumGoroutine()))
	m.Gauge("lockstep_lag_seconds", "Age of the oldest change that is not on the backup.", s.LagSeconds)
	m.Gauge("lockstep_backlog_paths", "Paths that are not on the backup yet; a tree counts as one.", float64(s.Backlog.Paths))
	m.Gauge("lockstep_inflight_transfers", "Running rsync processes.", float64(running(s.InFlight)))
	held, paths := 0, 0
	if s.Held != nil {
		held, paths = s.Held.Count, len(s.Held.Paths)+s.Held.More
	}
	m.Gauge("lockstep_held_entries", "Entries on the backup whose deletion is held.", float64(held))
	m.Gauge("lockstep_held_paths", "Top-most paths whose deletion is held.", float64(paths))
	m.Gauge("lockstep_ledger_paths", "Paths that could not be sent and are tried again.", float64(s.Ledger.Count))
	m.Counter("lockstep_events_total", "Events taken in from the watch.", float64(s.Counters.Events))
	for _, class := range slices.Sorted(maps.Keys(s.Counters.Transfers)) {
		m.Counter("lockstep_transfers_total", "Runs of rsync by what became of them.", float64(s.Counters.Transfers[class]), "class", class)
	}
	m.Counter("lockstep_files_total", "Regular files sent.", float64(s.Counters.Files))
	m.Counter("lockstep_files_bytes_total", "Size of the files sent.", float64(s.Counters.Bytes))
	m.Counter("lockstep_sent_bytes_total", "Bytes sent over the network.", float64(s.Counters.SentBytes))
	m.Counter("lockstep_deleted_entries_total", "Entries deleted on the backup.", float64(s.Counters.Deleted))
	m.Counter("lockstep_stalled_transfers_total", "Transfers that were ended because they made no progress.", float64(s.Counters.Stalled))
	m.Gauge("lockstep_latency_p50_seconds", "Median time from a change to its arrival, of the newest paths.", s.Latency.P50)
	m.Gauge("lockstep_latency_p99_seconds", "99th percentile of the time from a change to its arrival.", s.Latency.P99)
	m.Bool("lockstep_watch_backend", "The backend of the watch; always 1.", true, "backend", s.Watch.Backend)
	m.Bool("lockstep_watch_ready", "Whether the whole tree is watched.", s.Watch.Ready)
	m.Bool("lockstep_watch_faulty", "Whether the watch is incomplete.", len(s.Watch.Faults) > 0)
	m.Gauge("lockstep_watch_directories", "Watched directories; 0 where one mark covers the filesystem.", float64(s.Watch.Directories))
	m.Counter("lockstep_watch_overflows_total", "Overflows of the kernel's event queue.", float64(s.Watch.Overflows))
	m.Bool("lockstep_full_running", "Whether a full batch runs.", s.Full.Running)
	m.Counter("lockstep_full_batches_total", "Full batches begun.", float64(s.Full.Started))
	m.Gauge("lockstep_full_entries", "Entries on the backup, as the guard of deletions goes by them.", float64(s.Full.Entries))
	if s.Full.Last != nil {
		m.Gauge("lockstep_full_last_timestamp_seconds", "When a full batch was last completed.", seconds(*s.Full.Last))
		m.Gauge("lockstep_full_last_duration_seconds", "How long that one took.", s.Full.LastSeconds)
	}
	for _, h := range s.Hooks {
		m.Counter("lockstep_hook_calls_total", "Calls of a hook, each try.", float64(h.Calls), "hook", h.Name)
	}
	for _, h := range s.Hooks {
		m.Counter("lockstep_hook_failures_total", "Calls of a hook that failed.", float64(h.Failures), "hook", h.Name)
	}
	for _, h := range s.Hooks {
		m.Counter("lockstep_hook_given_up_total", "Batches or paths that a hook did not take after all its retries.", float64(h.GivenUp), "hook", h.Name)
	}
	for _, h := range s.Hooks {
		m.Counter("lockstep_hook_skipped_total", "Full batches and paths that a hook has no call for.", float64(h.Skipped), "hook", h.Name)
	}
	for _, h := range s.Hooks {
		m.Counter("lockstep_hook_dropped_paths_total", "Paths told to a hook as a full batch, because too many waited.", float64(h.Collapsed), "hook", h.Name)
	}
	for _, h := range s.Hooks {
		m.Gauge("lockstep_hook_pending_paths", "Paths that wait for a hook; a full batch counts as one.", float64(h.Pending), "hook", h.Name)
	}
	m.Bool("lockstep_version_info", "What runs; always 1.", true, "lockstep", s.Versions.Lockstep, "rsync", s.Versions.Rsync)
	m.Gauge("lockstep_scrape_timestamp_seconds", "When these values were read.", seconds(now))
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func running(jobs []JobStatus) int {
	n := 0
	for _, j := range jobs {
		if !j.Started.IsZero() && j.Kind != "source" {
			n++
		}
	}
	return n
}
