// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"time"
)

// barrier waits until everything from before it is on the backup. A file made in a directory that the same kernel queue
// watches, its cookie, comes out of the queue after all earlier events.
type barrier struct {
	seen bool      // the cookie came out of the queue
	at   time.Time // when it did: what is dirty since then or longer is waited for
	full int64     // where not everything is watched: the full batch that has to be done first; 0 before it was asked for
	done chan struct{}
}

// wait returns when everything that happened in the source before the call is on the backup, or ctx ends.
func (l *loop) wait(ctx context.Context) error {
	b := &barrier{done: make(chan struct{})}
	name := "wait-" + rand.Text()
	defer l.post(func(time.Time) { delete(l.barriers, name) })
	// First the entry, then the file: its event may come at any time after that.
	if err := l.call(ctx, func(time.Time) { l.barriers[name] = b }); err != nil {
		return err
	}
	file := filepath.Join(l.cookies, name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	defer os.Remove(file)
	select {
	case <-b.done:
		l.leave(ctx)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.quit:
		return errStopped
	}
}

// leave dismisses the standby rsync, which keeps the source directory busy: who has waited may want to unmount it.
func (l *loop) leave(ctx context.Context) {
	var eng engine
	if l.call(ctx, func(time.Time) { eng = l.eng }) == nil {
		eng.Close()
	}
}

// cookieSeen notes that the events from before a barrier have all been taken in.
func (l *loop) cookieSeen(now time.Time, name string) {
	b := l.barriers[name]
	if b == nil || b.seen {
		return
	}
	b.seen, b.at = true, now
	l.q.Flush(now)
}

// checkBarriers ends the barriers behind which nothing is left.
func (l *loop) checkBarriers() {
	for name, b := range l.barriers {
		if b.seen && l.full.valid && l.outage == nil && l.watch.ready && l.source.ok && (l.door.held == nil || l.door.held.foreign) &&
			len(l.ledger.entries) == 0 && l.settledBefore(later(b.at, l.ledger.left)) && l.allSeen(b) {
			close(b.done)
			delete(l.barriers, name)
		}
	}
}

// allSeen reports whether no change from before the barrier can be unknown. Where directories are not watched, only a
// comparison that began after it can tell.
func (l *loop) allSeen(b *barrier) bool {
	if l.watch.fault != nil && b.full == 0 {
		b.full = l.full.started + 1
		l.requestFull("not everything is watched, and somebody waits")
	}
	return l.full.done >= b.full && l.full.problem == ""
}
