// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// lookedAt bounds the paths of one second look, at 50 µs each.
const lookedAt = 5000

// kept says whether the backup keeps what it is given. Rsync ends with 0 also where the filesystem there rounds a time, gives
// everything to one owner, or takes two names for one: the next comparison finds the same differences again, and so does each after it. So what a
// comparison has found, and what was sent because of it, is compared once more before the comparison counts as done.
type kept struct {
	found   []string // by the newest comparison: files, and directories of which the backup had nothing
	again   bool     // found is what differed at the first look, and was sent once more
	looked  bool     // at found, for the last time
	looking bool
	reason  string // what the newest look found; "" is nothing
	hint    string
}

// begin forgets what the comparison before has found.
func (k *kept) begin() { k.found, k.again, k.looked = nil, false, false }

// note takes in what a comparison has found. A directory that is there on both sides would stand for everything in it.
func (k *kept) note(items []transfer.Item) {
	for _, it := range items {
		if len(k.found) < lookedAt && (it.New || !it.Dir) {
			k.found = append(k.found, it.Path)
		}
	}
}

// lookAgain compares once more what the newest comparison has found, when all of it was sent. It reports whether that is to be waited for.
func (l *loop) lookAgain(now time.Time) (wait bool) {
	k := &l.kept
	switch {
	case k.looking:
		return true
	case k.looked:
		return false
	}
	paths, since := k.found, l.full.listFrom
	k.found, k.looked = nil, true
	if len(paths) == 0 {
		k.reason, k.hint = "", ""
		return false
	}
	if l.paused || !l.source.ok || l.outage != nil || l.stopping {
		return false // what was found before stays
	}
	k.looking = true
	refused := func(time.Time, error) { k.looking = false }
	l.startAtSource(now, &job{kind: "compare", what: plural(len(paths), "path"), can: true, slow: true}, refused, func(ctx context.Context, eng engine, r root) {
		var items []transfer.Item
		res := eng.List(ctx, r, transfer.ListOptions{Paths: paths}, func(it transfer.Item) error {
			if it.New || !it.Dir { // the directories above are told of, too
				items = append(items, it)
			}
			return nil
		})
		items = slices.DeleteFunc(items, func(it transfer.Item) bool {
			st, err := r.Lstat(it.Path)
			return err != nil || !st.ChangeTime.Before(since) // changed since: that was sent, or will be
		})
		l.post(func(now time.Time) {
			k.looking = false
			if res.Class == transfer.Done && since.Equal(l.full.listFrom) {
				l.notKept(now, items)
			}
		})
	})
	return true
}

// notKept takes in what still differs after it was sent. What differs for the first time is sent once more, and looked at after that: a change
// may have come between, of which the kernel has yet to tell.
func (l *loop) notKept(now time.Time, items []transfer.Item) {
	k := &l.kept
	items = slices.DeleteFunc(items, func(it transfer.Item) bool { return l.q.Covers(it.Path) || l.toldOf(it.Path) })
	if len(items) > 0 && !k.again {
		k.again, k.looked = true, false
		k.note(items)
		l.differs(now, l.full.begun, items)
		return
	}
	k.reason, k.hint = "", ""
	if len(items) == 0 {
		return
	}
	it := items[0]
	what := transfer.Attributes(it.What)
	if it.New {
		what = "missing"
	}
	paths := plural(len(items), "path")
	if len(items) >= lookedAt {
		paths = "at least " + paths
	}
	k.reason = fmt.Sprintf("what was sent still differs on the backup: %s, among them %q (%s)", paths, it.Path, what)
	switch {
	case what == "time":
		k.hint = "the backup's filesystem does not keep such times; until it is one that does, to the nanosecond, each comparison sends these files again"
	case strings.Contains(what, "owner") || strings.Contains(what, "group") || strings.Contains(what, "mode"):
		k.hint = "the backup's filesystem, or the uid of the module, does not keep them; where that is meant, --no-owner, --no-group and --no-perms in transfer.options leave them out"
	default:
		k.hint = "the backup's filesystem does not keep what it is given, or takes two names for one, as those that differ only in case"
	}
}

// toldOf reports whether the state tells already that a path is not on the backup as it should be.
func (l *loop) toldOf(path string) bool {
	if _, ok := l.door.pending[path]; ok {
		return true
	}
	if h := l.door.held; h != nil {
		if _, ok := h.items[path]; ok {
			return true
		}
	}
	for ok := true; ok; path, ok = parentOf(path) {
		if l.ledger.entries[path] != nil {
			return true
		}
	}
	return false
}
