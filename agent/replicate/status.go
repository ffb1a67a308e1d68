// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"time"

	"github.com/lockstep-sync/lockstep/agent/hooks"
)

// State is what the agent says of its pair, in the words of the user's documentation.
type State string

const (
	Starting State = "starting" // the watch is not live yet, or the first full batch has not begun
	InStep   State = "in step"  // the backup is equal to the source, as far as can be known
	Behind   State = "behind"   // changes are on their way
	Degraded State = "degraded" // works, but not as it should: Reason says why
	Held     State = "held"     // deletions wait for approval, or the source is not the provisioned directory
	Paused   State = "paused"   // nothing is sent until resume
	Failing  State = "failing"  // nothing can be sent: Reason says why, Since since when

	HooksOnly State = "hooks only" // the pair has no backup; the source is watched and hooks are told
)

// States lists every state, for whoever shows all of them.
func States() []State {
	return []State{Starting, InStep, Behind, Degraded, Held, Paused, Failing, HooksOnly}
}

// Status is what the agent tells about itself. Its JSON form is an interface: fields are added, never renamed.
type Status struct {
	Pair    string    `json:"pair"`
	State   State     `json:"state"`
	Reason  string    `json:"reason,omitempty"`
	Hint    string    `json:"hint,omitempty"`
	Since   time.Time `json:"since"` // when State began
	Started time.Time `json:"started"`
	PID     int       `json:"pid"`
	Source  string    `json:"source"` // the watched directory
	Target  string    `json:"target"` // rsync://user@host:port/module; "" without a backup

	Backlog    Backlog        `json:"backlog"`
	LagSeconds float64        `json:"lag_seconds"`            // age of the oldest change that is not on the backup
	LastInStep *time.Time     `json:"last_in_step,omitempty"` // when the state was last `in step`
	InFlight   []JobStatus    `json:"in_flight"`
	Held       *HeldStatus    `json:"held,omitempty"`
	Ledger     LedgerStatus   `json:"ledger"`
	Watch      WatchStatus    `json:"watch"`
	Full       FullStatus     `json:"full"`
	Outage     *OutageStatus  `json:"outage,omitempty"`
	Counters   Counters       `json:"counters"`
	Latency    Latency        `json:"latency"`
	Events     []Note         `json:"events"` // the newest last
	Hooks      []hooks.Status `json:"hooks,omitempty"`
	Versions   Versions       `json:"versions"`
}

// Backlog counts what is not on the backup yet.
type Backlog struct {
	Paths    int `json:"paths"`    // a tree counts as one
	Deletion int `json:"deletion"` // of them: gone from the source, being judged
}

// JobStatus is one running rsync, or one that waits for its turn.
type JobStatus struct {
	Kind    string    `json:"kind"` // send, big, tree, delete, compare, probe, full
	What    string    `json:"what"` // a path, or how many
	Paths   int       `json:"paths"`
	Bytes   int64     `json:"bytes,omitempty"`
	Started time.Time `json:"started,omitzero"` // zero: waits
	Progress
}

// Progress is how far a long job is.
type Progress struct {
	Percent    int     `json:"percent,omitempty"`
	DoneBytes  int64   `json:"done_bytes,omitempty"`
	DoneFiles  int64   `json:"done_files,omitempty"`
	Total      int64   `json:"total_files,omitempty"`
	Rate       string  `json:"rate,omitempty"`
	ETASeconds float64 `json:"eta_seconds,omitempty"`
}

// HeldStatus tells about deletions that wait for approval.
type HeldStatus struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Count  int       `json:"count"` // entries that would go on the backup
	Paths  []string  `json:"paths"` // the first of the top-most ones
	More   int       `json:"more"`  // top-most paths that Paths leaves out
	// Foreign says that nothing of it is known to have been in the source. Who waits for what happened there does not wait for it.
	Foreign bool `json:"foreign"`
}

// LedgerStatus tells about the paths that could not be sent.
type LedgerStatus struct {
	Count   int           `json:"count"`
	Entries []LedgerEntry `json:"entries"` // the first of them
}

// WatchStatus tells how the source is watched.
type WatchStatus struct {
	Backend     string   `json:"backend"`
	Reason      string   `json:"reason,omitempty"` // why not the better one
	Ready       bool     `json:"ready"`
	Directories int      `json:"directories"`
	Faults      []string `json:"faults,omitempty"`
	Overflows   int64    `json:"overflows"`
}

// FullStatus tells about the comparison of both trees.
type FullStatus struct {
	Running bool   `json:"running"`
	Phase   string `json:"phase,omitempty"` // compare, send, settle
	Cause   string `json:"cause,omitempty"`
	Started int64  `json:"started"`  // how many have begun since the start of the agent
	Done    int64  `json:"done"`     // the number of the newest that was completed
	Entries int    `json:"entries"`  // on the backup, as of the last one
	Differs int    `json:"differed"` // what the last one found
	Extra   int    `json:"extraneous"`
	Progress
	Last        *time.Time `json:"last,omitempty"` // when one was last completed
	LastSeconds float64    `json:"last_seconds,omitempty"`
	Next        *time.Time `json:"next,omitempty"`
	Problem     string     `json:"problem,omitempty"` // why the last one was not complete
}

// OutageStatus tells why nothing can be sent.
type OutageStatus struct {
	Class    string    `json:"class"`
	Message  string    `json:"message"`
	Hint     string    `json:"hint,omitempty"`
	Since    time.Time `json:"since"`
	Failures int       `json:"failures"`
	Next     time.Time `json:"next"`
}

// Counters count since the start of the agent.
type Counters struct {
	Events    int64            `json:"events"`
	Transfers map[string]int64 `json:"transfers"` // by class
	Files     int64            `json:"files"`
	Bytes     int64            `json:"bytes"`      // of the files sent
	SentBytes int64            `json:"sent_bytes"` // on the wire
	Deleted   int64            `json:"deleted"`
	Kept      int64            `json:"kept"` // directories that excluded files kept on the backup
	Stalled   int64            `json:"stalled"`
}

// Latency is the time from a change to its arrival, over the newest paths sent.
type Latency struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50_seconds"`
	P99   float64 `json:"p99_seconds"`
}

// Note is something worth knowing that happened.
type Note struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
}

// Versions names what runs.
type Versions struct {
	Lockstep string `json:"lockstep"`
	Rsync    string `json:"rsync"`
}
