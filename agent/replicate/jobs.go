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

func (l *loop) cancelInterruptible() {
	for j := range l.jobs {
		if j.can {
			j.cancel()
		}
	}
}
