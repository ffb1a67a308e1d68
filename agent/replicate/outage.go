// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"math/rand/v2"
	"time"

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
	// probed is set when a probe has succeeded: one job at a time is let through, and its success ends the outage.
	probed bool
}

// probes tells whether a probe shows that the outage is over. It cannot for a full disk.
func (o *outage) probes() bool { return o.class == transfer.Transient || o.class == transfer.Permanent }

// fail notes one more failure and sets the time of the next try. Permanent causes need a person, so there is
// no hurry; `lockstep sync` and a reload try at once.
func (o *outage) fail(now time.Time, res transfer.Result, initial, limit time.Duration) {
	if o.failures == 0 {
		o.since = now
	}
	o.failures++
	o.class, o.message, o.hint, o.probed = res.Class, res.Message, res.Hint, false
	wait := backoff(o.failures, initial, limit)
	if o.class == transfer.Permanent {
		wait = backoff(1, limit, limit)
	}
	o.next = now.Add(wait)
}
