// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

// A connection that one half has just given up counts as taken until the daemon's process for it has ended too, a little later than ours. So the
// other half asks that often, with that pause before each time.
const (
	askAgain = 10
	askPause = 100 * time.Millisecond
)

// class is about half of the bytes that names begin and end with, in brackets as rsync(1) takes them in a pattern: every other digit and
// letter, and half of those that end a character of UTF-8.
const (
	class  = "[" + odd + "]"
	others = "[!" + odd + "]"
	odd    = "13579acegikmoqsuwyACEGIKMOQSUWY\x80-\x9f"
)

// halves are rules that split a tree in two: of the names directly in it, each is excluded by exactly one. They go by the first byte and the last,
// since names often have one of the two in common (example.org, a001).
var halves = [2][]string{
	{"- /" + class + "*" + class, "- /" + others + "*" + others, "- /?"},
	{"- /" + class + "*" + others, "- /" + others + "*" + class},
}

// splits reports whether two rsyncs compare the whole tree, a half each, which takes half of the time where each side has two processors: one
// rsync keeps about one busy in all. Not where it must see both names of a hard link, would have more than its bandwidth, or reads the
// contents, for which a disk may have to seek.
func (r *Runner) splits(opts ListOptions) bool {
	return len(opts.Paths) == 0 && opts.Delete && !opts.Checksum && !r.hasExtra("--checksum", "-c", "--hard-links", "-H") &&
		r.opts.BandwidthLimit == "" && r.opts.Target.Path == ""
}

// listHalves compares the whole tree by two runs at once, or one after the other where the module takes no more connections. What both call each
// with comes one at a time.
func (r *Runner) listHalves(ctx context.Context, root *Root, c run, each func(Item) error) Result {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var ended error // by each
	list := func(half int) Result {
		c := c
		c.first = halves[half]
		return r.exec(ctx, runList, root, []string{""}, nil, r.args(c), func(line string) error {
			it, ok := parseItem(line)
			if !ok || it.Path == "" && half > 0 {
				return nil // both tell of the directory itself
			}
			it.Half = half
			mu.Lock()
			defer mu.Unlock()
			if ended == nil {
				ended = each(it)
			}
			return ended
		})
	}
	var found [len(halves)]Result
	var runs sync.WaitGroup
	for i := range found {
		runs.Go(func() {
			if found[i] = list(i); found[i].Class != Done && !turnedAway(found[i]) {
				cancel() // the other would be for nothing
			}
		})
	}
	runs.Wait()
	for i := range found {
		for try := 0; try < askAgain && turnedAway(found[i]) && found[1-i].Class == Done; try++ {
			select {
			case <-ctx.Done():
			case <-time.After(askPause):
			}
			found[i] = list(i)
		}
	}
	res := joined(found[0], found[1])
	if ended != nil {
		return withVerdict(res, Stopped, "stopped", "") // whatever became of the other half
	}
	return res
}

// turnedAway reports whether all connections of the module were taken, by the other half perhaps.
func turnedAway(res Result) bool {
	return res.Class == Transient && strings.Contains(res.Stderr, "@ERROR: max connections")
}

// joined is the result of a comparison of which each half has one.
func joined(a, b Result) Result {
	if a.Class == Done || a.Class == Stopped && b.Class != Done {
		a, b = b, a // a tells what went wrong; one that was stopped because of the other does not
	}
	a.Failed = append(a.Failed, b.Failed...)
	slices.SortStableFunc(a.Failed, func(a, b PathFailure) int { return strings.Compare(a.Path, b.Path) })
	a.Failed = slices.CompactFunc(a.Failed, func(a, b PathFailure) bool { return a.Path == b.Path })
	a.Changed = union(a.Changed, b.Changed)
	a.Blocked = union(a.Blocked, b.Blocked)
	a.Kept = union(a.Kept, b.Kept)
	a.Incomplete = a.Incomplete || b.Incomplete
	a.Cut = a.Cut || b.Cut
	if a.Stats.Files > 0 && b.Stats.Files > 0 {
		a.Stats.Files-- // the directory itself is in both
	}
	a.Stats.add(b.Stats)
	return a
}

func (s *Stats) add(t Stats) {
	s.Files += t.Files
	s.Transferred += t.Transferred
	s.Created += t.Created
	s.Deleted += t.Deleted
	s.Bytes += t.Bytes
	s.Sent += t.Sent
}
