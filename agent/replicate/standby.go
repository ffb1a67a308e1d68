// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

const (
	// streamGap is how soon after the end of one the next batch of a stream begins.
	streamGap = 20 * time.Millisecond

	// standbyFor is how long an rsync stands by for the next batch of a stream, after the end of the last. As long as it does, the source
	// directory cannot be unmounted.
	standbyFor = 25 * time.Millisecond

	// standbyTakes is how long it takes to start rsync and to log in, on two hosts of one network.
	standbyTakes = 8 * time.Millisecond

	// standbyPays is how long a run may take for one to stand by for the next. With ssh, or on the way to a far host, the login takes longer
	// than a stream waits.
	standbyPays = 100 * time.Millisecond
)

// standby tells whether batches follow one another closely. Then an rsync stands by for the next one, which grows until that is ready.
type standby struct {
	ended time.Time     // when the last run of a batch ended
	took  time.Duration // how long it took
	ready time.Time     // when the rsync that stands by should be
}

// begin returns how long an rsync is to stand by for the next batch when one begins: 0 is not at all.
func (s *standby) begin(now time.Time) time.Duration {
	if now.Sub(s.ended) < streamGap && s.took < standbyPays {
		return standbyFor
	}
	return 0
}

// end notes the result of the run of a batch that began.
func (s *standby) end(now, began time.Time, res transfer.Result) {
	s.ended, s.took = now, res.Elapsed
	if res.Standby {
		s.ready = began.Add(standbyTakes)
	}
}
