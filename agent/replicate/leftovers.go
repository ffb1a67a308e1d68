// SPDX-License-Identifier: Apache-2.0

package replicate

import "time"

const (
	// cleanUp is how long rsync on the backup host gets to put away what it had not finished when its connection broke.
	cleanUp = 500 * time.Millisecond

	// lateCleanUp comes on top of transfer.timeout, after which rsync on the backup host gives up a connection that is silent.
	lateCleanUp = 5 * time.Second
)

// leftovers says when to look for what broken transfers have left on the backup: a temporary file (rsync was killed) or a
// part of one in rsync's directory for such (rsync noticed). Where the network was cut, rsync on the backup host notices
// last of all; and what it had in full it may put in place after a later run has sent a newer version. A comparison finds all that, at most a
// tenth of the time (see linksPace).
type leftovers struct {
	wanted bool      // the pair is not in step until then
	at     time.Time // not before
	late   time.Time // a second look; zero: none
	again  bool      // a look soon, if one passes over what may be of a transfer that runs
}

// cutOff notes that a transfer did not come to its end, or that one has left something that is still there.
func (l *loop) cutOff(now time.Time) {
	l.leftovers = leftovers{
		wanted: true,
		at:     now.Add(cleanUp),
		late:   now.Add(time.Duration(l.pair.Transfer.Timeout) + lateCleanUp),
		again:  true,
	}
	l.full.valid = false
}

// partsLeft notes that parts of no use were passed over. Where nothing is deleted, they stay for good.
func (l *loop) partsLeft(now time.Time) {
	if l.door.enabled {
		l.cutOff(now)
	}
}

// passedOver notes that a comparison of everything has passed over temporary files, which may be of transfers that run. After a broken
// one they may be what it left: a look that begins when none of those runs any more knows.
func (l *loop) passedOver(now time.Time) {
	o := &l.leftovers
	if !o.again || o.wanted {
		return
	}
	o.again = l.jobs.sendsSince(l.full.listFrom)
	o.wanted, o.at = true, now.Add(cleanUp)
	l.full.valid = false
}

// none reports whether nothing is to be looked for.
func (o *leftovers) none() bool { return !o.wanted && o.late.IsZero() }

// lookLater asks for a second look, and leaves alone one that is asked for already.
func (o *leftovers) lookLater(now time.Time, timeout time.Duration) {
	if o.late.IsZero() {
		o.late = now.Add(timeout + lateCleanUp)
	}
}

// looked notes that a comparison begins.
func (o *leftovers) looked(now time.Time) {
	if o.wanted && !now.Before(o.at) {
		o.wanted = false
	}
	if !now.Before(o.late) {
		o.late = time.Time{}
	}
}

// lookDue tells when a comparison may begin that a file with several names, an outage or a broken transfer asks for.
func (l *loop) lookDue() (at time.Time, why string, ok bool) {
	paced := l.full.listFrom.Add((linksPace + 1) * l.full.listing)
	after := func(t time.Time) time.Time {
		if t.After(paced) {
			return t
		}
		return paced
	}
	switch o := &l.leftovers; {
	case l.links.wanted:
		return paced, "a file with several names was changed", true
	case l.full.away:
		return paced, "the backup host was away, and may have lost something", true
	case o.wanted:
		return after(o.at), "a broken transfer may have left something", true
	case !o.late.IsZero():
		return after(o.late), "a broken transfer may have left something, late", true
	}
	return at, "", false
}
