// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// childrenEvery is how often our rsync processes are looked at while some run.
const childrenEvery = 5 * time.Second

// children watches over our rsync processes.
//
// Rsync ends by itself when the other side is silent for --timeout, and wakes up at least that often to see. What it cannot
// notice is that it is stuck itself: stopped by SIGSTOP, or in open(2) of a FIFO that was a file when it was
// listed. Then its transfer would be in flight for ever. A process that has neither run nor been woken for longer is
// ended: SIGTERM first, with SIGCONT so that it is heard, then SIGKILL.
type children struct {
	looking bool
	next    time.Time
	seen    map[int]child
	stuck   time.Time // since when one is there that even SIGKILL did not end; zero if none is
}

type child struct {
	activity uint64 // grows whenever the process runs
	since    time.Time
	told     int // signals sent
}

// stuckAfter is how long a child may be without a sign of life.
func (l *loop) stuckAfter() time.Duration {
	timeout := time.Duration(l.pair.Transfer.Timeout)
	return timeout + timeout/2 + time.Second
}

// watchChildren ends children that are stuck.
func (l *loop) watchChildren(now time.Time) {
	c := &l.children
	if len(l.jobs) == 0 {
		c.seen, c.stuck = nil, time.Time{}
		l.retired = nil
		c.next = now.Add(l.agent.childrenEvery)
		return
	}
	if c.looking || now.Before(c.next) {
		return
	}
	c.looking = true
	engines := append([]engine{l.eng}, l.retired...)
	l.group.Go(func() {
		found := map[int]uint64{}
		for _, eng := range engines {
			activities(eng.Children(), found)
		}
		l.post(func(now time.Time) { l.childrenSeen(now, found) })
	})
}

func (l *loop) childrenSeen(now time.Time, found map[int]uint64) {
	c := &l.children
	c.looking, c.next = false, now.Add(l.agent.childrenEvery)
	seen := make(map[int]child, len(found))
	for pid, activity := range found {
		if l.hooks.runner.Owns(pid) {
			continue // it has a timeout of its own
		}
		k := c.seen[pid]
		if k.since.IsZero() || k.activity != activity {
			k = child{activity: activity, since: now, told: k.told}
		}
		if now.Sub(k.since) >= l.stuckAfter() || k.told > 0 {
			l.endChild(now, pid, &k)
		}
		seen[pid] = k
	}
	c.seen = seen
}

// endChild sends the next signal to a stuck child.
func (l *loop) endChild(now time.Time, pid int, k *child) {
	signals := []syscall.Signal{syscall.SIGTERM, syscall.SIGCONT}
	switch k.told++; k.told {
	case 1:
		l.counters.Stalled++
		l.note(now, "an rsync process was stuck; it is ended and its transfer tried again")
		l.log.Warn("an rsync process is stuck; it is ended and its transfer tried again", "elapsed", now.Sub(k.since))
	case 2, 3:
		return // it may have something to tidy up
	case 4:
		signals = []syscall.Signal{syscall.SIGKILL}
	default:
		if l.children.stuck.IsZero() {
			l.children.stuck = now
		}
		return
	}
	for _, sig := range signals {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			l.log.Error("a stuck rsync process cannot be ended", "err", err)
		}
	}
}

func (l *loop) childrenWake() (time.Time, bool) {
	return l.children.next, len(l.jobs) > 0 && !l.children.looking
}

// healthy reports whether no transfer is stuck beyond what ending it could mend.
func (l *loop) healthy() bool { return l.children.stuck.IsZero() }

// activities notes, for each process, a number that grows whenever it runs: processor time and context switches
// together (proc(5)).
func activities(pids []int, out map[int]uint64) {
	for _, pid := range pids {
		if n, ok := activity(pid); ok {
			out[pid] = n
		}
	}
}

func activity(pid int) (n uint64, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0, false // it has ended
	}
	// The name is in parentheses and may hold anything. utime and stime are the 12th and 13th field after it.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 || fields[0][0] == 'Z' {
		return 0, false
	}
	for _, f := range fields[11:13] {
		ticks, err := strconv.ParseUint(string(f), 10, 64)
		if err != nil {
			return 0, false
		}
		n += ticks
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); strings.HasSuffix(name, "voluntary_ctxt_switches") {
			switches, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			if err != nil {
				return 0, false
			}
			n += switches
		}
	}
	return n, true
}
