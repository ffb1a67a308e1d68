// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// job is one goroutine that runs rsync, or looks at the disk. Its fields belong to the loop.
type job struct {
	kind     string
	what     string
	paths    int
	started  time.Time
	slot     bool     // counts against transfer.parallel
	slow     bool     // may take long
	can      bool     // may be interrupted at any time without a loss
	trees    []string // what it sends by recursion
	progress transfer.Progress
	sign     time.Time // the last sign of progress
	bytes    int64
	cancel   context.CancelFunc
}

// start runs f in a goroutine and takes the job off the list when f has ended. What f posts is run before.
func (l *loop) start(now time.Time, j *job, f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(l.jobsCtx)
	j.started, j.sign, j.cancel = now, now, cancel
	l.jobs[j] = struct{}{}
	l.walked.begin(j.trees)
	l.group.Go(func() {
		defer cancel()
		f(ctx)
		l.post(func(now time.Time) {
			delete(l.jobs, j)
			l.walked.end(now, j.trees)
		})
	})
}

// progressOf returns a callback that notes how far a job is. It posts at most twice a second.
func (l *loop) progressOf(j *job) func(transfer.Progress) {
	var last time.Time
	return func(p transfer.Progress) {
		if now := time.Now(); now.Sub(last) >= 500*time.Millisecond {
			last = now
			l.post(func(now time.Time) { j.progress, j.sign = p, now })
		}
	}
}

// jobs are those that run.
type jobs map[*job]struct{}

// has reports whether a job of a kind runs.
func (js jobs) has(kind string) bool {
	_, ok := js.begun(kind)
	return ok
}

// begun returns when the job of a kind began that runs, if one does.
func (js jobs) begun(kind string) (at time.Time, ok bool) {
	for j := range js {
		if j.kind == kind {
			return j.started, true
		}
	}
	return at, false
}

// sendsSince reports whether a run is still there that began before a time and may send.
func (js jobs) sendsSince(t time.Time) bool {
	for j := range js {
		if j.slot && j.started.Before(t) {
			return true
		}
	}
	return false
}

// slots returns how many more may be started of parallel runs: any, and slow ones, which must leave one for the small.
func (js jobs) slots(parallel int) (small, slow int) {
	parallel = max(parallel, 1)
	small, slow = parallel, max(parallel-1, 1)
	for j := range js {
		switch {
		case !j.slot:
		case j.slow:
			small--
			slow--
		default:
			small--
		}
	}
	return small, min(slow, small)
}

// gathering returns until when no further batch is started because one is on its way, while the next one grows. One that takes
// longer than watch.delay, because it carries much or goes far, has company.
func (l *loop) gathering() (until time.Time) {
	for j := range l.jobs {
		if t := j.started.Add(time.Duration(l.pair.Watch.Delay)); j.slot && !j.slow && t.After(until) {
			until = t
		}
	}
	if l.outage != nil {
		return until
	}
	return later(until, l.standby.ready)
}

// suspectAfter is how long a transfer may show no progress before it is asked whether the backup can still be reached.
// Rsync itself waits for transfer.timeout, and until then the pair would look as if it were only behind.
const suspectAfter = 10 * time.Second

// suspect returns when the first transfer becomes suspect.
func (js jobs) suspect() (at time.Time, ok bool) {
	for j := range js {
		if t := j.sign.Add(suspectAfter); j.slot && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	return at, ok
}

// endStale ends transfers that were under way when the backup could not be reached any more and have made no progress
// since: their connections are dead, which they may notice much later.
func (js jobs) endStale(since time.Time) {
	for j := range js {
		if (j.slot || j.can) && j.kind != "probe" && j.kind != "source" && j.sign.Before(since) {
			j.cancel()
		}
	}
}

// endInterruptible ends what loses nothing by it.
func (js jobs) endInterruptible() {
	for j := range js {
		if j.can {
			j.cancel()
		}
	}
}

// endBig ends the transfer of a big file that is gone from the source: it would hold up the deletion of path for as
// long as it takes.
func (js jobs) endBig(path string) {
	for j := range js {
		if j.kind == workBig.String() && isBelow(j.what, path) {
			j.cancel()
		}
	}
}
