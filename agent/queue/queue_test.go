// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/watch"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }

func newQueue() *Queue {
	q := New(Options{Delay: 20 * time.Millisecond, MaxDelay: 5 * time.Second})
	q.ticks(t0)
	return q
}

func touch(paths ...string) []watch.Event {
	var out []watch.Event
	for _, p := range paths {
		out = append(out, watch.Event{Path: p, Op: watch.Modify})
	}
	return out
}

// next returns what is handed out at a time, trees with a trailing slash.
func next(t *testing.T, q *Queue, ms int) (Batch, string) {
	t.Helper()
	b, ok := q.Next(at(ms), 1000)
	if ok == (len(b.Entries) == 0) {
		t.Fatalf("Next = %v with %d entries", ok, len(b.Entries))
	}
	return b, show(b)
}

func show(b Batch) string {
	var out []string
	for _, e := range b.Entries {
		s := e.Path
		if e.Tree {
			s += "/"
		}
		if e.Compare {
			s += "?"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func wantNext(t *testing.T, q *Queue, ms int, want string) Batch {
	t.Helper()
	b, got := next(t, q, ms)
	if got != want {
		t.Fatalf("at %d ms: handed out %q, want %q", ms, got, want)
	}
	return b
}

func wantWake(t *testing.T, q *Queue, ms int) {
	t.Helper()
	got, ok := q.Wake()
	if !ok || !got.Equal(at(ms)) {
		t.Fatalf("wake = %v, %v; want %d ms", got.Sub(t0), ok, ms)
	}
}

func TestPathWaitsUntilItIsQuiet(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("a"))
	wantNext(t, q, 19, "")
	q.Add(at(19), touch("a"))
	wantNext(t, q, 20, "")
	wantWake(t, q, 39)
	wantNext(t, q, 39, "a")
	if _, ok := q.Wake(); ok {
		t.Error("an empty queue wants to be woken")
	}
}

func TestPathThatNeverGoesQuietIsDueAfterMaxDelay(t *testing.T) {
	q := newQueue()
	for ms := 0; ms < 5000; ms += 10 {
		q.Add(at(ms), touch("log"))
		wantNext(t, q, ms, "")
	}
	wantNext(t, q, 4999, "")
	b := wantNext(t, q, 5000, "log")
	if got := b.Entries[0].First; !got.Equal(t0) {
		t.Errorf("dirty since %v, want its first event", got)
	}
	q.Done(at(5001), b, nil)
	q.Add(at(5002), touch("log"))
	wantNext(t, q, 5021, "")
	wantNext(t, q, 5022, "log")
}

func TestParentsComeBeforeTheirChildren(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("a/b/c", "a/b", "a", "a-x", "a/b.c"))
	wantNext(t, q, 100, "a a-x a/b a/b.c a/b/c")
}

func TestEventForPathInFlightMakesItDirtyAgain(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("a"))
	b := wantNext(t, q, 20, "a")
	q.Add(at(25), touch("a"))
	wantNext(t, q, 100, "")
	q.Done(at(101), b, nil)
	b = wantNext(t, q, 101, "a")
	q.Done(at(102), b, nil)
	wantNext(t, q, 10000, "")
	if q.Len() != 0 {
		t.Errorf("Len = %d", q.Len())
	}
}

func TestNothingNestedIsInFlight(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("d/x"))
	below := wantNext(t, q, 20, "d/x")
	q.Add(at(20), touch("d", "d/y"))
	side := wantNext(t, q, 100, "d/y") // d lies above d/x
	q.Done(at(100), below, nil)
	wantNext(t, q, 100, "")
	q.Done(at(100), side, nil)
	above := wantNext(t, q, 101, "d")
	q.Add(at(101), touch("d/z/deep"))
	wantNext(t, q, 200, "")
	q.Done(at(200), above, nil)
	wantNext(t, q, 200, "d/z/deep")
}

func TestBigFileInFlightDoesNotHoldBackItsDirectory(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("d/big", "d/small"))
	b := wantNext(t, q, 20, "d/big d/small")
	big := q.Split(&b, func(e Entry) bool { return e.Path == "d/big" })
	if show(big) != "d/big" || show(b) != "d/small" {
		t.Fatalf("split into %q and %q", show(big), show(b))
	}
	q.Alone(big)
	q.Done(at(30), b, nil)
	q.Add(at(30), touch("d", "d/big", "d/small"))
	q.Done(at(60), wantNext(t, q, 60, "d d/small"), nil)
	q.Mark(at(70), at(70), "d", true)
	wantNext(t, q, 100, "") // recursion would send the big file twice at once
	q.Done(at(200), big, nil)
	wantNext(t, q, 200, "d/?")
}

func TestWholeTreeDoesNotWaitForWhatIsInFlight(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("d/big", "e"))
	b := wantNext(t, q, 20, "d/big e")
	big := q.Split(&b, func(e Entry) bool { return e.Path == "d/big" })
	q.Alone(big)
	q.Add(at(30), []watch.Event{{Op: watch.Rescan, Dir: true, Tree: true}})
	q.Add(at(35), touch("f"))
	if q.Whole(at(49)) {
		t.Error("before it is due")
	}
	wantNext(t, q, 49, "")
	wantWake(t, q, 50)
	if !q.Whole(at(50)) || q.Whole(at(50)) || q.Len() != 0 {
		t.Errorf("not told once; %d paths are left", q.Len())
	}
	q.Add(at(60), touch("d/small", "e"))
	wantNext(t, q, 80, "d/small") // e is in flight
	q.Done(at(90), b, nil)
	wantNext(t, q, 90, "e")
}

func TestDirectoryInFlightDoesNotHoldBackWhatIsBelow(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("", "d"))
	b := wantNext(t, q, 20, " d")
	q.Add(at(30), touch("d/x", "e"))
	wantNext(t, q, 50, "")
	q.Light(b, func(e Entry) bool { return e.Path == "" })
	side := wantNext(t, q, 50, "e")
	q.Light(b, func(Entry) bool { return true })
	below := wantNext(t, q, 50, "d/x")
	if !q.Covers("d/x/y") || !q.Covers("d") || q.Covers("d/z") {
		t.Error("Covers:", q.Covers("d/x/y"), q.Covers("d"), q.Covers("d/z"))
	}
	q.Add(at(60), touch("d"))
	q.Done(at(60), b, nil)
	wantNext(t, q, 100, "") // d lies above d/x
	if _, ok := q.Reserve(at(100), "d"); ok {
		t.Error("reserved what is above something in flight")
	}
	q.Done(at(100), below, nil)
	q.Done(at(100), side, nil)
	q.Done(at(101), wantNext(t, q, 101, "d"), nil)
	if !q.root.kids.empty() || q.root.busy != 0 {
		t.Error("nodes are left behind")
	}
}

func TestTreeStandsForWhatIsBelow(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("d/a", "d/b/c", "e"))
	q.Add(at(1), []watch.Event{{Path: "d", Op: watch.Create, Dir: true, Tree: true}})
	q.Add(at(2), touch("d/new"))
	if q.Len() != 2 {
		t.Errorf("Len = %d, want d and e", q.Len())
	}
	b := wantNext(t, q, 50, "d/ e")
	if !b.Entries[0].First.Equal(t0) || !b.Entries[0].Created {
		t.Errorf("entry %+v", b.Entries[0])
	}
}

func TestTreeNeedsComparisonWhenDeletionsMayHideInIt(t *testing.T) {
	for name, events := range map[string][]watch.Event{
		"directory replaced":   {{Path: "d", Op: watch.Delete | watch.Move, Dir: true}, {Path: "d", Op: watch.Create, Dir: true}},
		"rescan":               {{Path: "d", Op: watch.Rescan, Tree: true}},
		"deleted before":       {{Path: "d/x", Op: watch.Delete}, {Path: "d", Op: watch.Create, Dir: true, Tree: true}},
		"deleted in it":        {{Path: "d", Op: watch.Create, Dir: true, Tree: true}, {Path: "d/x", Op: watch.Delete}},
		"directory deleted in": {{Path: "d", Op: watch.Create, Tree: true}, {Path: "d/x", Op: watch.Delete, Dir: true}},
	} {
		q := newQueue()
		q.Add(at(0), events)
		if _, got := next(t, q, 20); got != "d/?" {
			t.Errorf("%s: handed out %q, want d/?", name, got)
		}
	}
	q := newQueue()
	q.Add(at(0), []watch.Event{{Path: "d", Op: watch.Create, Dir: true, Tree: true}, {Path: "d/x", Op: watch.Create}})
	wantNext(t, q, 20, "d/")
}

// Inotify may not know that what went was a directory.
func TestDeletionStandsForAllBelowWhateverItsKind(t *testing.T) {
	q := newQueue()
	q.Add(at(0), []watch.Event{{Path: "d/x", Op: watch.Modify}, {Path: "d", Op: watch.Delete}, {Path: "d", Op: watch.Create, Dir: true}})
	wantNext(t, q, 20, "d/?")
}

func TestWhatIsGivenBackStaysDirty(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("a", "b"))
	b := wantNext(t, q, 20, "a b")
	q.Done(at(30), b, []Again{{Entry: b.Entries[0], At: at(500)}})
	wantNext(t, q, 30, "")
	wantWake(t, q, 500)
	first, _ := q.Oldest()
	if !first.Equal(t0) {
		t.Errorf("oldest is %v, want the first event", first)
	}
	// An event brings it forward, and further ones don't put it off.
	q.Add(at(100), touch("a"))
	q.Add(at(110), touch("a"))
	wantNext(t, q, 119, "")
	wantNext(t, q, 120, "a")
}

func TestOldestIsNeverYoungerThanTheTruth(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("a"))
	b := wantNext(t, q, 20, "a")
	q.Add(at(100), touch("x"))
	q.Add(at(200), touch("y"))
	q.Done(at(210), b, []Again{{Entry: b.Entries[0], At: at(9999)}})
	if got, _ := q.Oldest(); !got.Equal(t0) {
		t.Errorf("oldest %v, want %v", got, t0)
	}
	q.Add(at(300), []watch.Event{{Path: "x", Op: watch.Rescan, Tree: true}})
	if got, _ := q.Oldest(); !got.Equal(t0) {
		t.Errorf("oldest %v, want %v", got, t0)
	}
}

func TestReserveKeepsASubtreeForADeletion(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("d/x", "e"))
	b := wantNext(t, q, 20, "d/x e")
	for _, p := range []string{"d", "d/x", "d/x/y", "e", ""} {
		if _, ok := q.Reserve(at(20), p); ok {
			t.Errorf("reserved %q although it overlaps with what is in flight", p)
		}
	}
	q.Done(at(30), b, nil)
	gone, ok := q.Reserve(at(30), "d")
	other, ok2 := q.Reserve(at(30), "d2")
	if _, nested := q.Reserve(at(30), "d/x"); !ok || !ok2 || nested {
		t.Fatal("reserve:", ok, ok2, nested)
	}
	gone.Join(other)
	q.Add(at(40), touch("d/x", "d2", "f"))
	wantNext(t, q, 100, "f")
	q.Done(at(200), gone, nil)
	wantNext(t, q, 200, "d/x d2")
}

func TestFlushMakesEverythingDue(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("a"))
	q.Settle(at(0), "d", at(0), time.Second)
	wantNext(t, q, 1, "")
	q.Flush(at(2))
	wantNext(t, q, 2, "a d")
}

func TestSettleWaitsLongerButNotForEver(t *testing.T) {
	q := newQueue()
	for ms := 0; ms < 4900; ms += 100 {
		q.Settle(at(ms), "d", at(ms), 500*time.Millisecond)
		wantNext(t, q, ms, "")
	}
	wantNext(t, q, 5000, "d")
}

func TestLongestWaitingComesFirst(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("z"))
	q.Add(at(1), touch("a", "b"))
	b, _ := q.Next(at(100), 2)
	if show(b) != "a z" {
		t.Errorf("handed out %q, want the two oldest", show(b))
	}
	if wake, ok := q.Wake(); !ok || wake.After(at(100)) {
		t.Errorf("wake = %v, %v: too late for b", wake.Sub(t0), ok)
	}
	wantNext(t, q, 100, "b")
}

func TestManyDirtyPathsBelowADirectoryBecomeATree(t *testing.T) {
	sizes := map[string]int{}
	q := New(Options{Delay: 20 * time.Millisecond, MaxDelay: 5 * time.Second, Size: func(dir string) int { return sizes[dir] }})
	fill := func(now time.Time, dir string, n int, op watch.Op) {
		for i := range n {
			q.Add(now, []watch.Event{{Path: fmt.Sprintf("%s/%d", dir, i), Op: op}})
		}
	}
	sizes[""] = 1_000_000
	fill(at(0), "top/d", denseTree, watch.Modify)
	fill(at(0), "top", 10, watch.Modify)
	sizes["top"] = 10 * denseTree * 2
	b, ok := q.Next(at(100), 100)
	if !ok || !strings.HasSuffix(show(b), " top/d/") || len(b.Entries) != 11 {
		t.Fatalf("handed out %d entries: %.200s", len(b.Entries), show(b))
	}
	q.Done(at(100), b, nil)

	sizes["sparse"] = 10*denseTree + 1
	fill(at(200), "sparse", denseTree, watch.Modify)
	b, _ = q.Next(at(300), denseTree+1)
	if len(b.Entries) != denseTree {
		t.Fatalf("a directory of which less than a tenth is dirty: handed out %d entries", len(b.Entries))
	}
	q.Done(at(300), b, nil)

	q.Add(at(400), []watch.Event{{Path: "fresh", Op: watch.Create, Dir: true}})
	fill(at(400), "fresh/sub", freshTree, watch.Create)
	if b, _ = q.Next(at(500), 1000); show(b) != "fresh/" {
		t.Fatalf("handed out %d entries, want fresh as a tree", len(b.Entries))
	}
}

// A tree would wait for what is in flight below it. Its paths go on, each by itself, and it becomes a tree after that.
func TestDirectoryWithSomethingInFlightBelowBecomesATreeLater(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("d/first"))
	flying := wantNext(t, q, 100, "d/first")
	for i := range denseTree + 1 {
		q.Add(at(200), touch(fmt.Sprintf("d/%d", i)))
	}
	b, ok := q.Next(at(300), 1)
	if !ok || b.Entries[0].Tree {
		t.Fatalf("%q is handed out", show(b))
	}
	q.Done(at(300), b, []Again{{Entry: b.Entries[0], At: at(300)}})
	if b, ok = q.Next(at(300), 1); !ok || b.Entries[0].Tree {
		t.Fatalf("%q is handed out the second time", show(b))
	}
	q.Done(at(300), b, []Again{{Entry: b.Entries[0], At: at(300)}})
	q.Done(at(300), flying, nil)
	wantNext(t, q, 300, "d/")
}

// The time stamp of a directory goes with what is in it.
func TestTreeIsNotPutOff(t *testing.T) {
	for name, f := range map[string]func(q *Queue){
		"by its time stamp": func(q *Queue) { q.Settle(at(100), "d", at(100), time.Second) },
		"by an event":       func(q *Queue) { q.Add(at(100), touch("d")) },
	} {
		q := newQueue()
		q.Mark(at(100), at(100), "d", true)
		f(q)
		b, ok := q.Next(at(100), 10)
		if !ok || show(b) != "d/?" {
			t.Errorf("%s: %q, %v", name, show(b), ok)
		}
	}
}

func TestBoundLosesPrecisionNotPaths(t *testing.T) {
	q := New(Options{Delay: time.Millisecond, MaxDelay: time.Second, MaxPaths: 1000})
	rng := rand.New(rand.NewPCG(1, 2))
	dirtied := map[string]bool{}
	for i := range 20000 {
		p := fmt.Sprintf("%d/%d/%d", rng.IntN(30), rng.IntN(20), rng.IntN(50))
		if i%7 == 0 {
			p = fmt.Sprintf("flat%d", i)
		}
		dirtied[p] = true
		q.Add(t0, touch(p))
		if q.Len() > 1000 {
			t.Fatalf("%d paths held", q.Len())
		}
	}
	b, _ := q.Next(at(5000), 1<<30)
	covered := map[string]bool{}
	for _, e := range b.Entries {
		covered[e.Path] = covered[e.Path] || e.Tree
	}
	for p := range dirtied {
		if _, ok := covered[p]; ok {
			continue
		}
		ok := covered[""]
		for i := range p {
			ok = ok || p[i] == '/' && covered[p[:i]]
		}
		if !ok {
			t.Fatalf("%q was lost", p)
		}
	}
}

// The untouched part of a tree must not be sent again because of a burst elsewhere.
func TestBoundSparesOtherDirectories(t *testing.T) {
	q := New(Options{Delay: time.Millisecond, MaxDelay: time.Second, MaxPaths: 1000})
	q.Add(t0, touch("other/a", "other/b/c"))
	for i := range 5000 {
		q.Add(t0, touch(fmt.Sprintf("burst/%d/%d", i%10, i)))
	}
	b, _ := q.Next(at(5000), 1<<30)
	for _, e := range b.Entries {
		if e.Path == "" || e.Path == "other" {
			t.Errorf("%q is handed out as a whole", e.Path)
		}
	}
}

func TestStepOfTheClockDoesNotMatter(t *testing.T) {
	// time.Now carries a monotonic reading, which a step of the clock leaves alone: only differences count.
	q := New(Options{Delay: 20 * time.Millisecond, MaxDelay: time.Second})
	now := time.Now()
	q.Add(now, touch("a"))
	if _, ok := q.Next(now.Add(20*time.Millisecond), 1); !ok {
		t.Error("not due")
	}
}

func TestEmptyQueueHoldsNoNodes(t *testing.T) {
	q := newQueue()
	for i := range 1000 {
		q.Add(at(0), touch(fmt.Sprintf("%d/%d/%d", i%3, i%11, i)))
	}
	for q.Len() > 0 {
		b, ok := q.Next(at(100), 64)
		if !ok {
			t.Fatal("nothing due")
		}
		q.Done(at(100), b, nil)
	}
	if !q.root.kids.empty() || q.root.below != 0 || q.root.busy != 0 {
		t.Errorf("left behind: %+v", q.root)
	}
}

func TestEntriesAreComplete(t *testing.T) {
	q := newQueue()
	q.Add(at(3), []watch.Event{{Path: "a", Op: watch.Create}, {Cookie: "c"}})
	b := wantNext(t, q, 50, "a")
	if diff := cmp.Diff([]Entry{{Path: "a", Created: true, First: at(3)}}, b.Entries); diff != "" {
		t.Error(diff)
	}
}

func TestFullQueueStaysSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a queue of the default size")
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	q := newQueue()
	for i := range 1_000_000 {
		q.Add(at(0), []watch.Event{{Path: fmt.Sprintf("archive/2026/customer-%04d/invoice-%09d.pdf", i%5000, i), Op: watch.Create}})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 50<<20 {
		t.Errorf("a million dirty paths hold %d MB", grown>>20)
	}
	runtime.KeepAlive(q)
}

func BenchmarkAddNewPaths(b *testing.B) {
	paths := make([]string, 100_000)
	for i := range paths {
		paths[i] = fmt.Sprintf("archive/customer-%04d/invoice-%09d.pdf", i%1000, i)
	}
	b.ReportAllocs()
	i := 0
	q := newQueue()
	events := make([]watch.Event, 1)
	for b.Loop() {
		if i == len(paths) {
			q, i = newQueue(), 0
		}
		events[0] = watch.Event{Path: paths[i], Op: watch.Create}
		q.Add(t0, events)
		i++
	}
}

func BenchmarkAddSamePath(b *testing.B) {
	q := newQueue()
	events := touch("archive/customer-0001/invoice.pdf")
	b.ReportAllocs()
	for b.Loop() {
		q.Add(t0, events)
	}
}

func BenchmarkBatchOf1000(b *testing.B) {
	q := newQueue()
	var events []watch.Event
	for i := range 1000 {
		events = append(events, touch(fmt.Sprintf("d%02d/f%04d", i%20, i))...)
	}
	b.ReportAllocs()
	for b.Loop() {
		q.Add(at(0), events)
		batch, _ := q.Next(at(100), 1000)
		q.Done(at(100), batch, nil)
	}
}

// A larger delay is worth its latency only if it makes batches larger.
func made(paths ...string) []watch.Event {
	var out []watch.Event
	for _, p := range paths {
		out = append(out, watch.Event{Path: p, Op: watch.Create | watch.Modify})
	}
	return out
}

// The delay is 20 ms, so the pace is one path every 2.5 ms.
func TestPathThatWasJustMadeGoesWhenNothingMoreHappens(t *testing.T) {
	q := newQueue()
	q.Add(at(0), made("a"))
	q.Add(at(0), touch("log"))
	wantNext(t, q, 2, "")
	b := wantNext(t, q, 3, "a")
	q.Done(at(5), b, nil)
	wantNext(t, q, 19, "")
	wantNext(t, q, 20, "log")
}

func TestPathsThatAreMadeOneByOneGoOneByOne(t *testing.T) {
	q := newQueue()
	q.Add(at(0), touch("log"))
	for ms := 0; ms < 100; ms += 5 {
		q.Add(at(ms), made(fmt.Sprint(ms)))
		q.Add(at(ms+1), touch("log")) // something always happens
		q.Add(at(ms+2), touch("log"))
		q.Add(at(ms+3), touch("log"))
		wantNext(t, q, ms+1, "")
		q.Done(at(ms+4), wantNext(t, q, ms+3, fmt.Sprint(ms)), nil)
	}
}

func TestPathsThatAreMadeByTheHundredGoTogether(t *testing.T) {
	q := newQueue()
	var batches []int
	for ms := range 200 {
		q.Add(at(ms), made(fmt.Sprintf("%03d", ms)))
		if b, ok := q.Next(at(ms), 1000); ok {
			batches = append(batches, len(b.Entries))
			q.Done(at(ms), b, nil)
		}
	}
	for _, n := range batches {
		if n < 40 {
			t.Fatalf("batches of %v paths: they should wait for twice the delay", batches)
		}
	}
	if len(batches) < 4 {
		t.Fatalf("%d batches: they should not wait for more than twice the delay", len(batches))
	}
}

func TestPathThatIsBeingWrittenGoesWhenItIsQuiet(t *testing.T) {
	q := newQueue()
	q.Add(at(0), made("big"))
	for ms := 1; ms < 60; ms++ {
		q.Add(at(ms), append(touch("big"), made(fmt.Sprint(ms/2))...)) // many others are made
	}
	if _, got := next(t, q, 59); !strings.HasPrefix(got, "0 1 10") || strings.Contains(got, "big") {
		t.Fatalf("handed out %q", got)
	}
}

func TestWhatIsQuietForAQuarterOfTheDelayGoesAlong(t *testing.T) {
	t.Parallel()
	q := New(Options{Delay: 100 * time.Millisecond, MaxDelay: 5 * time.Second})
	for i := range 100 {
		q.Mark(t0, t0, fmt.Sprint("unrelated", i), false)
	}
	if b, ok := q.Next(t0, 1000); !ok || len(b.Entries) != 100 {
		t.Fatalf("%d entries, want the 100 that are due", len(b.Entries))
	}
	for i := range 20 { // one path every 5 ms
		q.Add(t0.Add(time.Duration(i)*5*time.Millisecond), touch(fmt.Sprint("f", i)))
	}
	if b, ok := q.Next(t0.Add(99*time.Millisecond), 1000); ok {
		t.Fatalf("%d entries before the first is due", len(b.Entries))
	}
	b, ok := q.Next(t0.Add(100*time.Millisecond), 1000)
	if !ok || len(b.Entries) != 16 { // quiet for 100, 95, … 25 ms
		t.Fatalf("%d entries, want 16", len(b.Entries))
	}
}
