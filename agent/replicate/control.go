// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// pausedFile, in the state directory, keeps a pause over a restart.
const pausedFile = "paused"

// Why a pair is paused that no resume can help.
const (
	pausedByDefinition = "the definition says `paused: true`"
	unpauseHint        = "write `paused: false` in the definition, and apply it"
)

// status describes the agent. It is called by the loop.
func (l *loop) status(now time.Time) Status {
	s := Status{
		Pair:     l.pair.Name,
		State:    l.standing.state,
		Reason:   l.words(now),
		Hint:     l.hint(l.standing.state),
		Since:    l.standing.since,
		Started:  l.started,
		PID:      os.Getpid(),
		Source:   l.pair.Source.Path,
		Target:   target(l.pair, l.user),
		InFlight: []JobStatus{},
		Ledger:   LedgerStatus{Count: len(l.ledger.entries), Entries: l.ledger.list(shownLedger)},
		Watch: WatchStatus{
			Backend:     l.watch.info.Backend,
			Reason:      l.watch.info.Reason,
			Ready:       l.watch.ready,
			Directories: l.watch.info.Directories,
			Overflows:   l.watch.overflows,
		},
		Full:     l.full.status(),
		Counters: l.counters,
		Latency:  l.latency.status(),
		Events:   append([]Note{}, l.notes...),
		Hooks:    l.hooks.runner.Status(),
		Versions: l.versions,
	}
	if l.pair.HooksOnly() {
		s.Target = ""
	}
	if l.watch.w != nil {
		s.Watch.Directories = l.watch.w.Info().Directories
	}
	s.Counters.Transfers = map[string]int64{}
	for class, n := range l.counters.Transfers {
		s.Counters.Transfers[class] = n
	}
	s.Full.Entries = l.door.total
	s.Backlog.Deletion = len(l.door.pending) + len(l.door.checking) + len(l.passed)
	s.Backlog.Paths = l.backlog()
	if first, ok := l.oldest(); ok {
		s.LagSeconds = max(0, now.Sub(first).Seconds())
	}
	if !l.standing.inStep.IsZero() {
		at := l.standing.inStep // the status is read outside the loop
		s.LastInStep = &at
	}
	for j := range l.jobs {
		s.InFlight = append(s.InFlight, JobStatus{Kind: j.kind, What: j.what, Paths: j.paths, Bytes: j.bytes, Started: j.started, Progress: j.status(now)})
	}
	for _, w := range l.waiting {
		s.InFlight = append(s.InFlight, JobStatus{Kind: w.kind.String(), What: nameBatch(w.batch), Paths: len(w.batch.Entries)})
	}
	if h := l.door.held; h != nil {
		paths := h.paths()
		s.Held = &HeldStatus{Reason: h.reason, Since: h.since, Count: h.count, Paths: paths, More: len(h.items) - len(paths), Foreign: h.foreign}
	}
	for _, err := range []error{l.watch.fault, l.watch.failed} {
		if err != nil {
			s.Watch.Faults = append(s.Watch.Faults, err.Error())
		}
	}
	if o := l.outage; o != nil {
		s.Outage = &OutageStatus{Class: className(o.class), Message: o.message, Hint: o.hint, Since: o.since, Failures: o.failures, Next: o.next}
	}
	return s
}

func (f *full) status() FullStatus {
	s := FullStatus{Running: f.running, Phase: f.phase, Cause: f.cause, Started: f.started, Done: f.done, Differs: f.differs, Extra: f.extra, Problem: f.problem}
	if f.job != nil {
		s.Progress = progressStatus(f.job.progress)
	}
	if !f.last.IsZero() {
		last := f.last
		s.Last, s.LastSeconds = &last, f.took.Seconds()
	}
	if !f.next.IsZero() {
		next := f.next
		s.Next = &next
	}
	return s
}

// status tells how far a job is. Of a known size, that is more exact than what rsync says, which knows the percentage of
// a list only after the first file of it.
func (j *job) status(now time.Time) Progress {
	p := progressStatus(j.progress)
	if elapsed := now.Sub(j.started).Seconds(); j.bytes > 0 && p.DoneBytes > 0 && elapsed > 0 {
		p.Percent = int(min(100, p.DoneBytes*100/j.bytes))
		p.ETASeconds = float64(max(0, j.bytes-p.DoneBytes)) / (float64(p.DoneBytes) / elapsed)
	}
	return p
}

func progressStatus(p transfer.Progress) Progress {
	return Progress{Percent: p.Percent, DoneBytes: p.Bytes, DoneFiles: p.Files, Total: p.Total, Rate: p.Rate, ETASeconds: p.ETA.Seconds()}
}

// pause stops sending. Events go on being gathered, and nothing that overflows meanwhile is lost.
func (l *loop) pause(ctx context.Context) error {
	if err := writeState(filepath.Join(l.agent.opts.StateDir, pausedFile), nil); err != nil {
		return err
	}
	return l.call(ctx, func(now time.Time) {
		if !l.paused {
			l.paused = true
			l.note(now, "paused")
		}
	})
}

// resume goes on after a pause. What the definition says holds until it says something else.
func (l *loop) resume(ctx context.Context) error {
	defined := false
	if err := l.call(ctx, func(time.Time) { defined = l.pair.Paused }); err != nil {
		return err
	}
	if defined {
		return fmt.Errorf("%s\nhint: %s", pausedByDefinition, unpauseHint)
	}
	if err := os.Remove(filepath.Join(l.agent.opts.StateDir, pausedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return l.call(ctx, func(now time.Time) {
		if l.paused {
			l.paused = false
			l.note(now, "resumed")
		}
	})
}

// Approval says what an approval let through.
type Approval struct {
	Deletions int    `json:"deletions"` // entries on the backup
	Paths     int    `json:"paths"`     // top-most paths
	Source    string `json:"source,omitempty"`
}

// approve lets pass what is held now. When another directory than the provisioned one is at the source path, it becomes
// the provisioned one.
func (l *loop) approve(ctx context.Context) (Approval, error) {
	var a Approval
	var id *transfer.Identity
	err := l.call(ctx, func(now time.Time) {
		var other *errNotProvisioned
		if errors.As(l.source.err, &other) && !l.source.ok {
			got := l.source.got
			id = &got
			return
		}
		a = l.approveHeld(now)
	})
	if err != nil || id == nil {
		return a, err
	}
	// The file first: a crash between the two must not forget the approval.
	path := ""
	if err := l.call(ctx, func(time.Time) { path = l.pair.Source.Path }); err != nil {
		return a, err
	}
	if err := (provisioned{Path: path, Identity: *id}).write(l.agent.opts.StateDir); err != nil {
		return a, err
	}
	a.Source = id.String()
	return a, l.call(ctx, func(now time.Time) {
		l.source.want, l.source.next, l.door.foreign = id, now, true
		if l.door.held != nil {
			l.door.release() // it was missing in the directory of before; a comparison follows
		}
		l.door.replaced = now
		l.door.failed(now, l.passed)
		l.passed = nil
		l.log.Warn("another directory was approved as the source", "path", path, "identity", id.String())
		l.note(now, "another source directory was approved")
	})
}

func (l *loop) approveHeld(now time.Time) Approval {
	if h := l.door.held; h != nil && h.foreign && h.over == 0 && !h.more {
		l.mirrored(l.source.want)
	}
	fs := l.door.approve()
	a := Approval{Paths: len(fs)}
	for _, f := range fs {
		a.Deletions += f.count
		l.passed = append(l.passed, f)
	}
	l.setMounts(nil, func(dir string) bool { // what is mounted now is found again
		return slices.ContainsFunc(fs, func(f finding) bool { return isBelow(f.path, dir) || isBelow(dir, f.path) })
	})
	l.lookAtMounts(now)
	if len(fs) > 0 {
		l.log.Warn("held deletions were approved", "entries", a.Deletions, "paths", len(fs))
		l.note(now, fmt.Sprintf("%s approved", plural(a.Deletions, "held deletion")))
	}
	return a
}

// sync asks for a full batch and for another try of everything that waits for one. It returns the number of the full
// batch to wait for.
func (l *loop) sync(ctx context.Context) (number int64, err error) {
	if l.agent.opts.Pair.HooksOnly() {
		return 0, errNoBackup
	}
	err = l.call(ctx, func(now time.Time) {
		l.requestFull("sync")
		l.hurry(now)
		number = l.full.started + 1
	})
	return number, err
}
