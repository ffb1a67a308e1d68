// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/agent/watch"
)

// watchState is what is known of the watcher.
type watchState struct {
	w         watch.Watcher
	info      watch.Info
	ready     bool
	fault     error // standing
	failed    error // the watcher ended; it is started again at retry
	retry     time.Time
	failures  int
	overflows int64
	lost      bool // events were lost, and the event of the whole tree that makes up for them is still to come
	dirs      int  // watched so far, while not ready
	end       context.CancelFunc
	again     bool // it was told to end, and another must follow
}

// startWatcher runs a new watcher. Its reports end when it does.
func (l *loop) startWatcher(ctx context.Context, now time.Time) <-chan watch.Report {
	l.watch.again = false
	w, err := l.agent.watcher(l.pair, l.exclude, l.cookies, func(dirs int) {
		l.post(func(now time.Time) {
			l.watch.dirs = dirs
			l.extend()
		})
	})
	if err != nil {
		l.watcherEnded(now, err)
		return nil
	}
	l.watch.w, l.watch.info, l.watch.ready, l.watch.fault, l.watch.failed = w, w.Info(), false, nil, nil
	l.watch.lost = false // a full batch was asked for
	ctx, end := context.WithCancel(ctx)
	l.watch.end = end
	l.group.Go(func() {
		err := w.Run(ctx)
		if err == nil && ctx.Err() == nil {
			err = errors.New("the watcher ended by itself")
		}
		l.post(func(now time.Time) {
			if ctx.Err() == nil {
				l.watcherEnded(now, err)
			}
			end()
		})
	})
	l.group.Go(func() {
		select {
		case <-w.Ready():
			l.post(func(now time.Time) {
				if l.watch.w == w && ctx.Err() == nil {
					l.watch.ready, l.watch.failures = true, 0
					l.watch.info = w.Info()
					l.log.Info("watching", "backend", l.watch.info.Backend, "directories", l.watch.info.Directories, "reason", l.watch.info.Reason)
				}
			})
		case <-l.quit:
		case <-ctx.Done():
		}
	})
	return w.Reports()
}

// restartWatcher puts a new watcher in place of the one that runs.
func (l *loop) restartWatcher() {
	if l.watch.end == nil || l.watch.failed != nil {
		return // one is to come anyway
	}
	l.watch.end()
	l.watch.again, l.watch.ready = true, false
	l.full.valid = false
	l.requestFull("the watcher was started again")
}

// watcherEnded notes that nothing is watched. The next watcher is followed by a full batch.
func (l *loop) watcherEnded(now time.Time, err error) {
	if l.watch.failed == nil || l.watch.failed.Error() != err.Error() {
		l.log.Error("the source cannot be watched; trying again", "path", l.pair.Source.Path, "err", err)
	}
	l.watch.failures++
	l.watch.failed, l.watch.ready = err, false
	l.full.valid = false
	l.watch.retry = now.Add(backoff(l.watch.failures, time.Second, 30*time.Second))
	l.requestFull("the watcher was started again")
}

// report takes in one delivery of the watcher.
func (l *loop) report(now time.Time, r watch.Report) {
	events := r.Events
	if l.filterEvents() {
		events = slices.DeleteFunc(events, func(e watch.Event) bool { return !l.wanted(e) })
	}
	l.counters.Events += int64(len(events))
	l.doubt(now, events)
	l.q.Add(now, events)
	for i := range events {
		if c := events[i].Cookie; c != "" {
			l.cookieSeen(now, c)
		}
	}
	if slices.ContainsFunc(events, func(e watch.Event) bool { return e.Op&watch.Rescan != 0 && e.Tree }) {
		l.lookAtMounts(now) // a new one is told so
		l.heldCheck = now
		if slices.ContainsFunc(events, func(e watch.Event) bool { return e.Path == "" && e.Tree }) {
			l.watch.lost = false // a full batch follows, as soon as the event leaves the queue
		}
	}
	if r.Fault != nil {
		l.watchFault(now, r)
	}
	if r.Restored {
		if l.source.lost {
			// There is a directory again; whether it is the right one is told by a look.
			l.source.lost, l.source.ok, l.source.next = false, false, now
		} else {
			l.note(now, "the watch is complete again")
			l.log.Info("the watch is complete again", "path", l.pair.Source.Path)
		}
		l.watch.fault = nil
		l.requestFull("the watch was restored")
	}
}

func (l *loop) watchFault(now time.Time, r watch.Report) {
	switch fault := r.Fault; {
	case errors.Is(fault, watch.ErrOverflow):
		l.watch.overflows++
		if len(r.Events) == 0 {
			l.watch.lost, l.full.valid = true, false // nothing is in the queue yet that tells of it
		}
		l.note(now, "the kernel's event queue overflowed; what was lost is scanned again")
		l.log.Warn("the kernel's event queue overflowed; what was lost is scanned again", "path", l.pair.Source.Path,
			"hint", "raise fs.inotify.max_queued_events if this happens often")
	case errors.Is(fault, watch.ErrRootLost):
		if !l.source.lost {
			l.note(now, "the source directory is gone")
			l.log.Error("the source directory is gone: nothing is sent or deleted until it is back", "path", l.pair.Source.Path)
		}
		l.source.lost, l.source.ok, l.source.err = true, false, fault
		l.source.next = now.Add(time.Second)
		l.watch.fault = fault
		l.requestFull("the source directory is back")
	default:
		if l.source.lost { // this fault has taken its place
			l.source.lost, l.source.ok, l.source.next = false, false, now
		}
		if l.watch.fault == nil || l.watch.fault.Error() != fault.Error() {
			l.note(now, fault.Error())
			l.log.Warn("the watch is incomplete: what is not watched is scanned at intervals", "path", l.pair.Source.Path, "err", fault)
		}
		l.watch.fault = fault
	}
}

// filterEvents reports whether some kind of event is switched off in the definition.
func (l *loop) filterEvents() bool { return len(l.pair.Watch.Events) < 5 }

// wanted reports whether an event is of a kind that the definition asks for. What stands for lost events always is.
func (l *loop) wanted(e watch.Event) bool {
	if e.Cookie != "" || e.Op&watch.Rescan != 0 && e.Tree || e.Op == 0 {
		return true
	}
	on := func(name string) bool { return slices.Contains(l.pair.Watch.Events, name) }
	// What is moved in from outside the tree is told as if it was made, and what is moved out as if it was deleted.
	if e.Op&(watch.Move|watch.Create) != 0 && on("move") {
		return true
	}
	ops := e.Op
	if ops&watch.Move != 0 {
		ops &^= watch.Create | watch.Delete // told by the move, which is off
	}
	return ops&watch.Create != 0 && on("create") || ops&watch.Modify != 0 && on("modify") ||
		ops&watch.Attrib != 0 && on("attrib") || ops&watch.Delete != 0 && on("delete")
}
