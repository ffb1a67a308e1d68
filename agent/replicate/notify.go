// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// manager is what the service manager was told.
type manager struct {
	ready  bool   // READY=1
	status string // the last STATUS=
	pinged time.Time
}

// tell keeps the service manager informed, as sd_notify(3) describes.
func (l *loop) tell(now time.Time) {
	notify := l.agent.opts.Notify
	// The first full batch may take hours: it has begun, and STATUS= tells how far it is. When the source is not mounted
	// or the backup does not answer there is nothing to wait for either: the agent does what it can, and a restart by the
	// service manager would not help.
	if !l.manager.ready && (l.watch.ready && l.full.started > 0 || l.standing.state == Held || l.standing.state == Failing || l.standing.state == Paused) {
		l.manager.ready = true
		notify("READY=1")
	}
	words := string(l.standing.state)
	switch {
	case !quietState(l.standing.state):
		words = joinWords(words, l.standing.reason)
	case l.standing.state == Behind && !l.full.valid: // else in step and behind follow each other all day long
		words = joinWords(words, l.fullWords())
	}
	if words != l.manager.status {
		l.manager.status = words
		notify("STATUS=" + oneLine(words))
	}
	// The ping comes from the loop that does the work, so it stops when the loop does, and when a transfer is stuck
	// that cannot even be ended.
	if d := l.agent.opts.Watchdog; d > 0 && now.Sub(l.manager.pinged) >= d/4 && l.healthy() {
		l.manager.pinged = now
		notify("WATCHDOG=1")
	}
}

// extend asks the service manager for more time while a huge tree is being watched.
func (l *loop) extend() {
	if l.manager.ready {
		return
	}
	l.agent.opts.Notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=starting: watching, %d directories so far", (30 * time.Second).Microseconds(), l.watch.dirs))
}

// reloading tells the service manager that a reload has begun; READY=1 ends it.
func (l *loop) reloading() {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return // sd_notify(3) wants the time stamp; without it the reload goes unnoticed
	}
	l.agent.opts.Notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", ts.Nano()/1000))
}

// oneLine keeps a status text from being read as more than one field.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }

// latencies remembers how long the newest paths took from their first event to the backup.
type latencies struct {
	ring  [4096]time.Duration
	count int64
}

func (l *latencies) add(d time.Duration) {
	l.ring[l.count%int64(len(l.ring))] = d
	l.count++
}

func (l *latencies) status() Latency {
	n := min(l.count, int64(len(l.ring)))
	if n == 0 {
		return Latency{}
	}
	sorted := slices.Clone(l.ring[:n])
	slices.Sort(sorted)
	return Latency{Count: l.count, P50: sorted[n/2].Seconds(), P99: sorted[min(n-1, n*99/100)].Seconds()}
}
