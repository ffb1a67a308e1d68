// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// schedule starts whatever can be started.
func (l *loop) schedule(now time.Time) {
	l.lookAtSource(now)
	if !l.source.ok || l.paused {
		return
	}
	if o := l.outage; o != nil {
		if now.Before(o.next) && !o.probed {
			return
		}
		if o.probes() && !o.probed {
			l.probe(now)
			return
		}
		for len(l.jobs) == 0 && l.startTrial(now) { // one job at a time
		}
		if len(l.jobs) == 0 {
			l.endOutage() // nothing is left that could fail
		}
		return
	}
	for l.startOne(now) {
	}
	if at, ok := l.probeDue(); ok && !now.Before(at) {
		l.probe(now)
	}
}

// startTrial starts what may tell that the outage is over. Where the backup is full, what makes room comes first.
func (l *loop) startTrial(now time.Time) bool {
	full := l.outage.class == transfer.NoSpace
	return full && (l.startPassed(now) || l.startInspection(now)) || l.startOne(now)
}

// startOne starts the most urgent thing that can be started, and reports whether there was one.
func (l *loop) startOne(now time.Time) bool {
	small, slow := l.jobs.slots(l.pair.Transfer.Parallel)
	if slow > 0 && l.startWaiting(now, true) {
		return true
	}
	if small > 0 {
		if l.startWaiting(now, false) || l.startPassed(now) || l.startBatch(now) || l.startLedger(now) {
			return true
		}
	}
	return l.startInspection(now) || l.startHeldCheck(now) || l.startFull(now)
}

// sleep returns how long nothing has to be done.
func (l *loop) sleep(now time.Time) time.Duration {
	at := now.Add(tick)
	if d := l.agent.opts.Watchdog; d > 0 {
		at = now.Add(min(tick, d/2))
	}
	consider := func(t time.Time, ok bool) {
		if ok && t.Before(at) {
			at = t
		}
	}
	if l.watch.failed != nil {
		consider(l.watch.retry, true)
	}
	switch small, _ := l.jobs.slots(l.pair.Transfer.Parallel); {
	case !l.source.ok:
		consider(l.source.next, !l.source.looking)
	case l.paused:
	case l.outage != nil:
		// A probe or a trial that runs wakes the loop at its end.
		consider(l.outage.next, !l.outage.probed && !l.jobs.has("probe") && (l.outage.probes() || len(l.jobs) == 0))
	default:
		if small > 0 {
			if wake, ok := l.q.Wake(); ok {
				consider(later(wake, l.gathering()), true)
			}
			consider(l.ledger.wake())
		}
		consider(l.door.due())
		consider(l.fullWake())
		consider(l.probeDue())
		consider(l.heldCheck, l.door.held != nil)
	}
	consider(l.childrenWake())
	// What is due now but could not be started waits for the end of something, which wakes the loop by itself.
	return max(at.Sub(now), time.Millisecond)
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
