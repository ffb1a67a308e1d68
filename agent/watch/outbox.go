// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// maxHeld bounds the events that wait for a slow consumer, about 10 MB with paths of usual length.
// Past it the root stands for all of them.
const maxHeld = 1 << 16

// maxHeldFaults bounds the faults that wait. The oldest go first: it is the last that stands.
const maxHeldFaults = 16

// outbox holds what the consumer has not taken yet, so that the watcher never waits for it.
type outbox struct {
	max  int
	wake chan struct{} // holds one token while there may be something to send

	mu    sync.Mutex
	queue []Report
	held  int  // events in queue
	owed  bool // ErrOverflow was put without events, and the Tree event for the root was not yet
}

func newOutbox(limit int) *outbox {
	return &outbox{max: limit, wake: make(chan struct{}, 1)}
}

// put adds a report. It owns the events from then on. Events without a fault join the report before.
func (o *outbox) put(r Report) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if errors.Is(r.Fault, ErrOverflow) && len(r.Events) == 0 {
		o.owed = true
	}
	if o.owed {
		o.owed = !slices.ContainsFunc(r.Events, func(e Event) bool { return e.Tree && e.Path == "" })
	}
	o.held += len(r.Events)
	last := len(o.queue) - 1
	if last >= 0 && r.Fault == nil && !r.Restored && o.queue[last].Fault == nil && !o.queue[last].Restored {
		o.queue[last].Events = append(o.queue[last].Events, r.Events...)
	} else {
		o.queue = append(o.queue, r)
	}
	if o.held > o.max || len(o.queue) > 2*maxHeldFaults {
		o.collapse()
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// collapse replaces all events by one for the root. Cookies follow it: what they prove is then still true.
func (o *outbox) collapse() {
	lost := Report{Fault: ErrOverflow, Events: []Event{{Op: Rescan, Dir: true, Tree: true}}}
	var standing []Report
	for _, r := range o.queue {
		for _, e := range r.Events {
			if e.Cookie != "" {
				lost.Events = append(lost.Events, e)
			}
		}
		if r.Restored || r.Fault != nil && !errors.Is(r.Fault, ErrOverflow) {
			r.Events = nil
			standing = append(standing, r)
		}
	}
	if n := len(standing); n > maxHeldFaults {
		standing = standing[n-maxHeldFaults:]
	}
	// Cookies that nobody takes away must not fill the box either; their waiters have a deadline.
	if n := len(lost.Events); n > o.max/2 {
		lost.Events = append(lost.Events[:1], lost.Events[n-o.max/4:]...)
	}
	if o.owed { // another Tree event for the root: this one stands only for what was in the box
		lost.Fault = nil
		standing = append(standing, Report{Fault: ErrOverflow})
	}
	o.queue = append([]Report{lost}, standing...)
	o.held = len(lost.Events)
}

// run hands reports to out until ctx ends.
func (o *outbox) run(ctx context.Context, out chan<- Report) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		}
		for {
			r, ok := o.take()
			if !ok {
				break
			}
			select {
			case <-ctx.Done():
				return
			case out <- r:
			}
		}
	}
}

func (o *outbox) take() (Report, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 {
		return Report{}, false
	}
	r := o.queue[0]
	o.held -= len(r.Events)
	if o.queue[0] = (Report{}); len(o.queue) == 1 {
		o.queue = o.queue[:0]
	} else {
		o.queue = o.queue[1:]
	}
	return r, true
}
