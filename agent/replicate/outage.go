// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// backoff returns how long to wait after the given number of failures in a row: doubling from initial to
// limit, less up to a quarter, so that many agents don't come back in step with each other.
func backoff(failures int, initial, limit time.Duration) time.Duration {
	d := limit
	if failures = max(failures, 1); failures < 32 && initial<<(failures-1) < limit && initial<<(failures-1) > 0 {
		d = initial << (failures - 1)
	}
	return d - rand.N(d/4+1)
}

// outage is a time during which nothing can be sent. It ends when a probe, or one job let through as a
// trial, succeeds.
type outage struct {
	class    transfer.Class
	message  string
	hint     string
	since    time.Time
	failures int
	next     time.Time
	away     bool // more than a try in vain, or another disk or module: the backup may not be what it was
	// probed is set when a probe has succeeded: one job at a time is let through, and its success ends the outage.
	probed bool
}

// diskEvery is how long at most a backup is left alone whose disk is full or not mounted: somebody may make room at any time, in the source too,
// and a host that goes down or comes up answers without its disks for a moment.
const diskEvery = 30 * time.Second

// probes tells whether a probe shows that the outage is over. It cannot for a full disk.
func (o *outage) probes() bool { return o.class != transfer.NoSpace }

// fail notes one more failure and sets the time of the next try. Permanent causes need a person, so there is
// no hurry; `lockstep sync` and a reload try at once.
func (o *outage) fail(now time.Time, res transfer.Result, initial, limit time.Duration) {
	if o.failures == 0 {
		o.since = now
	}
	o.failures++
	o.class, o.message, o.hint, o.probed = res.Class, res.Message, res.Hint, false
	o.away = o.away || o.probes() && (o.failures > 1 || o.class != transfer.Transient)
	wait := backoff(o.failures, initial, limit)
	switch o.class {
	case transfer.Permanent:
		wait = backoff(1, limit, limit)
	case transfer.NoSpace, transfer.NoDirectory:
		wait = min(wait, diskEvery)
	}
	o.next = now.Add(wait)
}

// learn takes from any result whether the backup can be reached.
func (l *loop) learn(now time.Time, res transfer.Result) {
	if res.Hidden {
		l.leftovers.lookLater(now, time.Duration(l.pair.Transfer.Timeout))
	}
	if res.PartsLeft {
		l.partsLeft(now)
	}
	if res.Class == transfer.Done && res.Status < 0 {
		return // there was nothing to do for rsync, so it did not run
	}
	l.counters.Transfers[className(res.Class)]++
	switch res.Class {
	case transfer.Done:
		l.unknown, l.heard = 0, now
		switch o := l.outage; {
		case o == nil:
		case o.class == transfer.NoSpace && res.Stats.Transferred == 0:
			o.next = now // a deletion has made room, or nothing needed any: the next trial tells
		default:
			l.log.Info("the backup takes files again", "elapsed", now.Sub(o.since), "attempt", o.failures)
			if o.failures > 1 {
				l.note(now, "the backup takes files again")
			}
			l.endOutage()
		}
	case transfer.Transient, transfer.NoSpace, transfer.NoDirectory, transfer.Permanent:
		l.fail(now, res)
	case transfer.Stopped, transfer.Unknown:
	}
}

// endOutage notes that the backup can be reached. A host that was away may have crashed, and lost what it had not written to disk yet; or it was
// made anew, or its disk was put back: so a comparison follows, unless only one try failed.
func (l *loop) endOutage() {
	if l.outage.away {
		l.full.away, l.full.valid = true, false
	}
	l.outage = nil
}

// fail notes that nothing can be sent for now.
func (l *loop) fail(now time.Time, res transfer.Result) {
	initial, limit := time.Duration(l.pair.Retry.Initial), time.Duration(l.pair.Retry.Max)
	o := l.outage
	switch {
	case o == nil:
		l.outage = &outage{}
		l.outage.fail(now, res, initial, limit)
		l.log.Warn("nothing can be sent; trying again", "class", className(res.Class), "status", res.Status, "err", res.Message, "hint", res.Hint, "next", l.outage.next.Sub(now))
	case o.probed || !now.Before(o.next):
		if o.message != res.Message {
			l.log.Warn("nothing can be sent; trying again", "class", className(res.Class), "status", res.Status, "err", res.Message, "hint", res.Hint, "attempt", o.failures+1)
		}
		o.fail(now, res, initial, limit)
		l.log.Debug("still nothing can be sent", "class", className(res.Class), "err", res.Message, "attempt", o.failures, "next", o.next.Sub(now))
	}
	// Else it is another run that was on its way when the outage began: no second failure.
}

// A pair with nothing to do is not in step with a backup that is gone: it is asked after this time whether it is there.
const (
	idleProbe    = time.Minute
	idleProbeSSH = 5 * time.Minute // sshd logs each login
)

// probeLate is how long a probe lasts that tells of a backup host that accepts connections and does nothing: an answer takes some ms.
const probeLate = 2 * time.Second

// probeDue returns when it is to be asked whether the backup can still be reached: for the sake of a running transfer, or because nothing was
// transferred for a time.
func (l *loop) probeDue() (at time.Time, ok bool) {
	if at, ok = l.jobs.suspect(); !ok {
		every := idleProbe
		if l.pair.Transport == pair.SSH {
			every = idleProbeSSH
		}
		at, ok = l.heard.Add(every), !l.pair.HooksOnly()
	}
	return later(at, l.nextProbe), ok && !l.jobs.has("probe")
}

// probe asks the backup whether it takes anything.
func (l *loop) probe(now time.Time) {
	if l.jobs.has("probe") {
		return
	}
	l.nextProbe = now.Add(suspectAfter)
	eng := l.eng
	l.start(now, &job{kind: "probe", what: l.pair.Backup.Address, can: true}, func(ctx context.Context) {
		res := eng.Probe(ctx)
		l.post(func(now time.Time) {
			l.counters.Transfers[className(res.Class)]++
			switch res.Class {
			case transfer.Stopped:
			case transfer.Done:
				l.heard = now
				if l.outage != nil {
					l.outage.probed = true
					l.jobs.endStale(l.outage.since)
				}
			case transfer.Unknown:
				res.Class = transfer.Transient
				l.fail(now, res)
			default:
				l.fail(now, res)
			}
		})
	})
}

func className(c transfer.Class) string {
	switch c {
	case transfer.Done:
		return "done"
	case transfer.Transient:
		return "transient"
	case transfer.Stopped:
		return "stopped"
	case transfer.NoSpace:
		return "no_space"
	case transfer.NoDirectory:
		return "no_directory"
	case transfer.Permanent:
		return "permanent"
	default:
		return "unknown"
	}
}
