// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"slices"
	"strings"
	"time"
)

// shownPaths is how many held paths the status names.
const shownPaths = 20

// heldDeletions waits for approval.
type heldDeletions struct {
	reason  string
	since   time.Time
	items   map[string]finding
	count   int    // entries that would go on the backup
	over    int    // of count: those that are not in items, because they are too many
	more    bool   // a comparison found more than it kept, some of which may be neither in items nor in count
	empty   bool   // because the source directory was empty
	foreign bool   // for no other reason than that a comparison found it; see door
	mount   string // because this directory below it had lost what is mounted there; "" if not
}

// hold keeps deletions until they are approved or lapse.
func (d *door) hold(now time.Time, gone []finding, dropped int, reason string) {
	if d.held == nil {
		d.held = &heldDeletions{since: now, items: map[string]finding{}}
	}
	d.held.reason, d.held.foreign = reason, false
	for _, f := range gone {
		if f.count == 0 {
			continue
		}
		if old, ok := d.held.items[f.path]; ok {
			d.held.drop(old)
		}
		d.held.put(f)
	}
	d.held.count += dropped
	d.held.over += dropped
}

// again makes what is held pending: the reason for it may not hold any more.
func (d *door) again(now time.Time) {
	h := d.release()
	for _, f := range h.items {
		d.add(now, f.deletion)
	}
	d.dropped += h.over
	d.emptied = d.emptied || h.empty
}

// approve lets everything pass that is held now, and nothing else. A later deletion begins a new burst.
func (d *door) approve() []finding {
	if d.held == nil {
		return nil
	}
	out := make([]finding, 0, len(d.held.items))
	for _, f := range d.held.items {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b finding) int { return strings.Compare(a.path, b.path) })
	d.release()
	d.done, d.made = 0, 0
	return out
}

// lapse takes out what is held of a path.
func (d *door) lapse(path string) bool {
	if d.held == nil {
		return false
	}
	f, ok := d.held.items[path]
	if !ok {
		return false
	}
	d.held.drop(f)
	if len(d.held.items) == 0 {
		d.release()
	}
	return true
}

// cleared notes that a comparison, begun then, has found no more on the backup that is not in the source than extra: what else an earlier one has
// found was taken away there.
func (d *door) cleared(begun time.Time, extra []string) {
	if d.held == nil {
		return
	}
	still := make(map[string]bool, len(extra))
	for _, path := range extra {
		still[path] = true
	}
	for path, f := range d.held.items {
		if f.found && !f.blocked && f.first.Before(begun) && !isBelowAny(path, still) {
			d.lapse(path)
		}
	}
}

// release ends the holding.
func (d *door) release() *heldDeletions {
	h := d.held
	d.held = nil
	d.unseen = d.unseen || h.over > 0 || h.more
	return h
}

// absorb takes out what overlaps with held deletions: it waits with them. Else they could pass one by one, when
// something happens to them again.
func (h *heldDeletions) absorb(gone []finding) (rest []finding) {
	if h == nil {
		return gone
	}
	above := map[string]bool{}
	for path := range h.items {
		for dir, ok := parentOf(path); ok && !above[dir]; dir, ok = parentOf(dir) {
			above[dir] = true
		}
	}
	for _, f := range gone {
		switch {
		case h.covers(f.path):
		case above[f.path]:
			h.dropBelow(f.path)
			h.put(f)
			h.foreign = h.foreign && f.found
		default:
			rest = append(rest, f)
		}
	}
	return rest
}

// covers reports whether path or a directory above it is held.
func (h *heldDeletions) covers(path string) bool {
	for ok := true; ok; path, ok = parentOf(path) {
		if _, held := h.items[path]; held {
			return true
		}
	}
	return false
}

// dropBelow takes out everything below a directory.
func (h *heldDeletions) dropBelow(dir string) {
	for path, f := range h.items {
		if isBelow(path, dir) {
			h.drop(f)
		}
	}
}

func (h *heldDeletions) put(f finding) {
	h.count += f.count
	if len(h.items) >= maxPending {
		h.over += f.count
		return
	}
	h.items[f.path] = f
}

func (h *heldDeletions) drop(f finding) {
	delete(h.items, f.path)
	h.count -= f.count
}

// paths returns the first held paths in order, directories with what goes with them.
func (h *heldDeletions) paths() []string {
	all := make([]string, 0, len(h.items))
	for p := range h.items {
		all = append(all, p)
	}
	slices.Sort(all)
	if len(all) > shownPaths {
		all = all[:shownPaths]
	}
	return all
}
