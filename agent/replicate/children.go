// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// childrenEvery is how often the states of our rsync processes are looked at while some run.
const childrenEvery = 10 * time.Second

// children is what is known of our child processes.
//
// Rsync ends by itself when the other side is silent for --timeout. What it cannot notice is that it was
// stopped itself, by SIGSTOP or by a debugger; then its transfer would be in flight for ever.
type children struct {
	looking bool
	next    time.Time
	frozen  time.Time // since when one of them has been stopped; zero if none is
	ended   time.Time // when the transfers were ended because of that
}

// watchChildren ends transfers whose rsync has been stopped for longer than the other side may be silent.
func (l *loop) watchChildren(now time.Time) {
	c := &l.children
	if len(l.jobs) == 0 {
		c.frozen, c.ended = time.Time{}, time.Time{}
		c.next = now.Add(childrenEvery)
		return
	}
	limit := time.Duration(l.pair.Transfer.Timeout)
	if !c.frozen.IsZero() && c.ended.IsZero() && now.Sub(c.frozen) >= limit {
		c.ended = now
		l.counters.Stalled++
		l.note(now, "an rsync process was stopped by a signal; it is ended and its transfer tried again")
		l.log.Warn("an rsync process was stopped by a signal; it is ended and its transfer tried again", "elapsed", now.Sub(c.frozen))
		for j := range l.jobs {
			if now.Sub(j.started) >= limit {
				j.cancel()
			}
		}
	}
	if c.looking || now.Before(c.next) {
		return
	}
	c.looking = true
	l.group.Go(func() {
		frozen := anyFrozen()
		l.post(func(now time.Time) {
			c.looking, c.next = false, now.Add(childrenEvery)
			switch {
			case !frozen:
				c.frozen, c.ended = time.Time{}, time.Time{}
			case c.frozen.IsZero():
				c.frozen = now
			}
		})
	})
}

func (l *loop) childrenWake() (time.Time, bool) {
	return l.children.next, len(l.jobs) > 0 && !l.children.looking
}

// healthy reports whether no transfer is stuck beyond what ending it could mend.
func (l *loop) healthy(now time.Time) bool {
	c := &l.children
	return c.frozen.IsZero() || c.ended.IsZero() || now.Sub(c.ended) < 30*time.Second
}

// anyFrozen reports whether one of our children is in state T, stopped by a signal, or t, by a debugger (proc(5)).
func anyFrozen() bool {
	lists, err := filepath.Glob("/proc/self/task/*/children") // needs CONFIG_PROC_CHILDREN, which systemd asks for too
	if err != nil {
		return false
	}
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		if err != nil {
			continue // that thread has ended
		}
		for _, pid := range strings.Fields(string(pids)) {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil {
				continue
			}
			// The name before it is in parentheses and may hold anything.
			if i := bytes.LastIndexByte(stat, ')'); i >= 0 && i+2 < len(stat) && (stat[i+2] == 'T' || stat[i+2] == 't') {
				return true
			}
		}
	}
	return false
}
