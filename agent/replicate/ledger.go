// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"cmp"
	"slices"
	"time"
)

// maxLedger bounds the paths that are kept one by one, at about 200 bytes each. Past it the directory of a
// path stands for it, as a tree.
const maxLedger = 10_000

// LedgerEntry is a path that could not be sent. It is tried again by itself, and while there is one the pair is
// not in step.
type LedgerEntry struct {
	Path   string    `json:"path"`
	Tree   bool      `json:"tree,omitempty"` // stands for everything below
	Reason string    `json:"reason"`
	Remote bool      `json:"remote"` // the backup host could not write it; else the source host could not read it
	Since  time.Time `json:"since"`
	Tries  int       `json:"tries"`
	Next   time.Time `json:"next"`

	compare bool // with Tree: it must be compared too
}

// ledger holds the paths that rsync could not read or write. It is owned by the loop.
type ledger struct {
	initial, limit time.Duration // back-off of one path
	entries        map[string]*LedgerEntry
	trying         map[string]bool
	left           time.Time // when an entry was last cleared; a later try may have found that the path is gone, and so to be deleted
}

func newLedger(initial, limit time.Duration) *ledger {
	return &ledger{initial: initial, limit: limit, entries: map[string]*LedgerEntry{}, trying: map[string]bool{}}
}

// fail notes that a path could not be sent. It returns the entry that stands for it, and whether that is new.
func (l *ledger) fail(now time.Time, path string, tree bool, reason string, remote bool) (e *LedgerEntry, isNew bool) {
	e = l.entries[path]
	if e == nil && len(l.entries) >= maxLedger {
		if parent, ok := parentOf(path); ok {
			path, tree = parent, true
			e = l.entries[path]
		}
	}
	if e == nil {
		isNew = true
		e = &LedgerEntry{Path: path, Since: now}
		l.entries[path] = e
	}
	e.Tree = e.Tree || tree
	e.Reason, e.Remote = reason, remote
	e.Tries++
	e.Next = now.Add(backoff(e.Tries, l.initial, l.limit))
	delete(l.trying, path)
	return e, isNew
}

// restore puts an entry back that was cleared, for the same path or one that stands for it, unless there is one by now.
func (l *ledger) restore(was *LedgerEntry, path string) {
	if was != nil && l.entries[path] == nil {
		e := *was
		e.Path = path
		l.entries[path] = &e
	}
}

// wants reports whether the entry of a directory asks for more than what was done.
func (l *ledger) wants(path string, tree, compare bool) bool {
	e := l.entries[path]
	return e != nil && (e.Tree && !tree || e.compare && !compare)
}

// clear forgets a path that was sent or is gone; with tree everything below it too, except what failed.
func (l *ledger) clear(now time.Time, path string, tree bool, failed map[string]bool) {
	before := len(l.entries)
	if before == 0 {
		return
	}
	if !failed[path] {
		delete(l.entries, path)
		delete(l.trying, path)
	}
	if tree {
		for p := range l.entries {
			if isBelow(p, path) && !failed[p] {
				delete(l.entries, p)
				delete(l.trying, p)
			}
		}
	}
	if len(l.entries) < before {
		l.left = now
	}
}

// due returns at most limit entries whose time has come, and marks them as being tried.
func (l *ledger) due(now time.Time, limit int) []LedgerEntry {
	var out []LedgerEntry
	for _, e := range l.entries {
		if !l.trying[e.Path] && !e.Next.After(now) {
			out = append(out, *e)
		}
	}
	slices.SortFunc(out, func(a, b LedgerEntry) int {
		return cmp.Or(a.Next.Compare(b.Next), cmp.Compare(a.Path, b.Path))
	})
	if len(out) > limit {
		out = out[:limit]
	}
	for _, e := range out {
		l.trying[e.Path] = true
	}
	return out
}

// postpone ends a try that told nothing about the path.
func (l *ledger) postpone(now time.Time, path string) {
	if e := l.entries[path]; e != nil {
		delete(l.trying, path)
		e.Next = now.Add(backoff(e.Tries, l.initial, l.limit))
	}
}

// hurry makes every entry due at once.
func (l *ledger) hurry(now time.Time) {
	for _, e := range l.entries {
		e.Next = now
	}
}

// wake returns when the next entry becomes due.
func (l *ledger) wake() (at time.Time, ok bool) {
	for _, e := range l.entries {
		if !l.trying[e.Path] && (!ok || e.Next.Before(at)) {
			at, ok = e.Next, true
		}
	}
	return at, ok
}

// named is a path for people: the source directory itself has none.
func named(path string) string { return cmp.Or(path, ".") }

// list returns the first n entries by path, for people.
func (l *ledger) list(n int) []LedgerEntry {
	out := make([]LedgerEntry, 0, len(l.entries))
	for _, e := range l.entries {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b LedgerEntry) int { return cmp.Compare(a.Path, b.Path) })
	if len(out) > n {
		out = out[:n]
	}
	for i := range out {
		out[i].Path = named(out[i].Path)
	}
	return out
}
