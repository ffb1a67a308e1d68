// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

var d0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func dms(n int) time.Time { return d0.Add(time.Duration(n) * time.Millisecond) }

// testDoor lets 10 deletions pass, or a fifth of the backup.
func testDoor(total int) *door {
	d := newDoor(true, 10, 20, 5*time.Second)
	d.count(d0, total)
	return d
}

// through takes deletions of one entry each to the door and says what became of them.
func through(t *testing.T, d *door, ms int, names ...string) (passed []string) {
	t.Helper()
	for _, n := range names {
		d.add(dms(ms), deletion{path: n, first: dms(ms)})
	}
	d.countedAt = dms(ms) // as if a comparison had just been made
	return judge(d, ms+1000, 1)
}

func judge(d *door, ms, each int) (passed []string) {
	var v verdict
	for _, del := range d.take() {
		v.gone = append(v.gone, finding{del, each})
	}
	for _, f := range d.judge(dms(ms), v) {
		passed = append(passed, f.path)
	}
	return passed
}

func names(prefix string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("%s%03d", prefix, i))
	}
	return out
}

func TestBudgetHasTwoLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		total, n int
		pass     bool
	}{
		{1000, 10, true},  // within max_files
		{15, 10, true},    // most of the backup, but few
		{1000, 200, true}, // many, but max_percent
		{1000, 201, false},
		{15, 11, false},
	} {
		d := testDoor(c.total)
		passed := through(t, d, 0, names("f", c.n)...)
		if got := len(passed) == c.n; got != c.pass || got != (d.held == nil) {
			t.Errorf("%d of %d: %d passed, held %v", c.n, c.total, len(passed), d.held)
		}
		if !c.pass && (len(passed) != 0 || d.held.count != c.n) {
			t.Errorf("%d of %d: %d passed, %d held", c.n, c.total, len(passed), d.held.count)
		}
	}
}

func TestDeletionsOfOneBurstCountTogether(t *testing.T) {
	t.Parallel()
	d := testDoor(20)
	if n := len(through(t, d, 0, names("a", 6)...)); n != 6 {
		t.Fatalf("%d passed", n)
	}
	d.deleted(dms(1000), 6, nil)
	if n := len(through(t, d, 5000, names("b", 5)...)); n != 0 || d.held == nil || d.held.count != 5 {
		t.Fatalf("%d passed within the burst, held %+v", n, d.held)
	}
	if !strings.Contains(d.held.reason, "11 of 20") {
		t.Errorf("reason %q", d.held.reason)
	}
	// What comes long after the burst is judged by itself.
	if n := len(through(t, d, 60_000, names("c", 3)...)); n != 3 {
		t.Errorf("%d of 3 passed after the burst", n)
	}
}

// However slow, an `rm -rf` must not trickle through.
func TestDeletionCannotTrickleThrough(t *testing.T) {
	t.Parallel()
	d := testDoor(100)
	passed := 0
	for i := range 90 {
		n := len(through(t, d, i*9000, fmt.Sprint("f", i)))
		d.deleted(dms(i*9000+1000), n, nil)
		passed += n
	}
	if passed != 20 || d.held == nil || d.held.count != 70 {
		t.Errorf("%d of 90 passed, held %+v", passed, d.held)
	}
	if want := "; 20 of them went just before"; d.held != nil && !strings.HasSuffix(d.held.reason, want) {
		t.Errorf("%q does not end in %q", d.held.reason, want)
	}
}

// A tree in which files come and go all day long is not being wiped.
func TestComingAndGoingDoesNotAddUp(t *testing.T) {
	t.Parallel()
	d := testDoor(100)
	for i := range 1000 {
		d.created(5)
		if n := len(through(t, d, i*5000, names(fmt.Sprint("f", i, "-"), 5)...)); n != 5 {
			t.Fatalf("%d of 5 passed in round %d, held %+v", n, i, d.held)
		}
		d.deleted(dms(i*5000+1000), 5, nil)
	}
	if d.total != 100 {
		t.Errorf("the backup is thought to have %d entries, has 100", d.total)
	}
}

func TestDirectoryCountsWithAllThatIsInIt(t *testing.T) {
	t.Parallel()
	d := testDoor(100)
	d.add(d0, deletion{path: "dir"})
	d.countedAt = d0.Add(1)
	if passed := judge(d, 1000, 50); len(passed) != 0 || d.held.count != 50 {
		t.Errorf("passed %v, held %+v", passed, d.held)
	}
}

func TestLargeDeletionWaitsForAFreshCount(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{false, true} {
		d := newDoor(true, 10, 20, 5*time.Second)
		if known {
			d.count(dms(-60_000), 12)
		}
		for _, n := range names("f", 11) {
			d.add(d0, deletion{path: n, first: d0})
		}
		if passed := judge(d, 1000, 1); len(passed) != 0 || d.held != nil || !d.recount || len(d.pending) != 11 {
			t.Fatalf("passed %v, held %v, %d pending", passed, d.held, len(d.pending))
		}
		if _, ok := d.due(); ok {
			t.Error("due before the count")
		}
		d.count(dms(2000), 1000) // it has grown
		if at, ok := d.due(); !ok || at.After(dms(2000)) {
			t.Errorf("due at %v, %v", at, ok)
		}
		if passed := judge(d, 2000, 1); len(passed) != 11 {
			t.Errorf("%d passed", len(passed))
		}
	}
}

func TestBurstIsOverWhenNothingMoreComes(t *testing.T) {
	t.Parallel()
	d := testDoor(100)
	if _, ok := d.due(); ok {
		t.Error("due without a deletion")
	}
	for ms := 0; ms <= 4950; ms += 50 {
		d.add(dms(ms), deletion{path: fmt.Sprint(ms)})
		if at, _ := d.due(); !at.After(dms(ms)) {
			t.Fatalf("due at %v in the middle of a burst", at.Sub(d0))
		}
	}
	if at, _ := d.due(); !at.Equal(dms(5000)) {
		t.Errorf("due at %v, want max_delay after the first", at.Sub(d0))
	}
	d = testDoor(100)
	d.add(dms(0), deletion{path: "a"})
	d.add(dms(30), deletion{path: "b"})
	d.add(dms(60), deletion{path: "a"}) // the same again
	if at, _ := d.due(); !at.Equal(dms(130)) {
		t.Errorf("due at %v", at.Sub(d0))
	}
}

func TestHeldDeletionsCannotPassOneByOne(t *testing.T) {
	t.Parallel()
	d := testDoor(20)
	through(t, d, 0, names("d/f", 11)...)
	if d.held == nil {
		t.Fatal("not held")
	}
	for i, path := range []string{"d/f003", "d/f003/x"} {
		if passed := through(t, d, 60_000*(i+1), path); len(passed) != 0 || d.held.count != 11 {
			t.Errorf("%s: passed %v, held %d", path, passed, d.held.count)
		}
	}
	// The directory is gone altogether: it stands for what was held in it.
	d.add(dms(300_000), deletion{path: "d"})
	d.countedAt = dms(300_001)
	if passed := judge(d, 301_000, 5); len(passed) != 0 || len(d.held.items) != 1 || d.held.count != 5 {
		t.Errorf("passed %v, held %+v", passed, d.held)
	}
	if passed := through(t, d, 400_000, "other"); len(passed) != 1 {
		t.Error("what has nothing to do with it is held too")
	}
}

func TestApprovalIsForWhatIsHeldNow(t *testing.T) {
	t.Parallel()
	d := testDoor(20)
	if got := d.approve(); got != nil {
		t.Errorf("approved %v", got)
	}
	through(t, d, 0, names("a", 11)...)
	if got := d.approve(); len(got) != 11 || d.held != nil || !slices.IsSortedFunc(got, func(a, b finding) int { return strings.Compare(a.path, b.path) }) {
		t.Errorf("approved %v", got)
	}
	d.deleted(dms(2000), 11, nil)
	if passed := through(t, d, 3000, names("b", 11)...); len(passed) != 0 || d.held == nil {
		t.Errorf("passed %v after an approval", passed)
	}
}

func TestLapse(t *testing.T) {
	t.Parallel()
	d := testDoor(20)
	through(t, d, 0, names("a", 11)...)
	if _, known := d.forget("elsewhere"); known {
		t.Error("forgot what was not known")
	}
	for _, n := range names("a", 11) {
		if _, known := d.forget(n); !known {
			t.Errorf("%s was not known", n)
		}
	}
	if d.held != nil {
		t.Errorf("still held: %+v", d.held)
	}
	d.add(d0, deletion{path: "blocked", blocked: true})
	if _, known := d.forget("blocked"); known || len(d.pending) != 1 {
		t.Error("a path that is blocked is on disk all the time")
	}
}

func TestFailedDeletionsAreJudgedAgain(t *testing.T) {
	t.Parallel()
	d := testDoor(20)
	passed := through(t, d, 0, names("a", 10)...)
	if len(passed) != 10 || d.done != 10 {
		t.Fatalf("%d passed, %d done", len(passed), d.done)
	}
	var fs []finding
	for _, p := range passed {
		fs = append(fs, finding{deletion{path: p}, 1})
	}
	d.failed(dms(2000), fs)
	if d.done != 0 || len(d.pending) != 10 {
		t.Errorf("%d done, %d pending", d.done, len(d.pending))
	}
	d.take()
	d.giveBack(dms(3000))
	if len(d.pending) != 10 || d.checking != nil {
		t.Errorf("%d pending", len(d.pending))
	}
}

func TestTooManyDeletionsAreCounted(t *testing.T) {
	t.Parallel()
	d := newDoor(true, 10, 20, time.Second)
	d.count(d0, 1_000_000)
	for i := range maxPending + 50 {
		d.add(d0, deletion{path: fmt.Sprint(i)})
	}
	if len(d.pending) != maxPending || d.dropped != 50 {
		t.Errorf("%d pending, %d dropped", len(d.pending), d.dropped)
	}
	d.maxPercent = 10
	d.countedAt = d0.Add(1)
	if passed := judge(d, 1000, 1); len(passed) != 0 || d.held.count != maxPending+50 || d.held.over != 50 {
		t.Errorf("%d passed, held %d and %d", len(passed), d.held.count, d.held.over)
	}
	if got := d.held.paths(); len(got) != shownPaths {
		t.Errorf("%d paths shown", len(got))
	}
}

func TestNothingOnTheBackupNeedsNoJudgement(t *testing.T) {
	t.Parallel()
	d := testDoor(10)
	for _, n := range names("a", 500) {
		d.add(d0, deletion{path: n})
	}
	if passed := judge(d, 1000, 0); len(passed) != 0 || d.held != nil || d.done != 0 {
		t.Errorf("passed %v, held %v", passed, d.held)
	}
}

func TestTopMost(t *testing.T) {
	t.Parallel()
	got := topMost([]string{"a/b/c", "a-b", "a", "b/x", "a/b", "b.x", "b/x/y", "a.b"})
	if diff := cmp.Diff([]string{"a", "a-b", "a.b", "b/x", "b.x"}, got); diff != "" {
		t.Error(diff)
	}
	if got := topMost([]string{"x", "", "y/z"}); !slices.Equal(got, []string{""}) {
		t.Errorf("below the root: %q", got)
	}
}

func TestLedgerBacksOffEachPathByItself(t *testing.T) {
	t.Parallel()
	l := newLedger(time.Second, time.Minute)
	_, first := l.fail(d0, "a", false, "Permission denied (13)", true)
	_, second := l.fail(d0, "a", false, "Permission denied (13)", true)
	if !first || second {
		t.Error("which is new?")
	}
	l.fail(d0, "b", true, "x", false)
	at, ok := l.wake()
	if !ok || at.Sub(d0) > time.Second || at.Sub(d0) < 750*time.Millisecond {
		t.Errorf("wake after %v", at.Sub(d0))
	}
	if due := l.due(dms(1000), 10); len(due) != 1 || due[0].Path != "b" {
		t.Errorf("due: %+v", due)
	}
	if due := l.due(dms(1000), 10); len(due) != 0 {
		t.Errorf("tried twice at once: %+v", due)
	}
	if due := l.due(dms(2000), 10); len(due) != 1 || due[0].Path != "a" || due[0].Tries != 2 || !due[0].Remote {
		t.Errorf("due: %+v", due)
	}
	l.postpone(dms(2000), "a")
	if e := l.entries["a"]; e.Tries != 2 || !e.Next.After(dms(2000)) {
		t.Errorf("postponed: %+v", e)
	}
	for range 100 {
		l.fail(dms(3000), "a", false, "x", true)
	}
	if d := l.entries["a"].Next.Sub(dms(3000)); d > time.Minute || d < 45*time.Second {
		t.Errorf("after many tries the next comes in %v", d)
	}
	l.hurry(dms(3000))
	if at, _ := l.wake(); at.After(dms(3000)) {
		t.Error("no hurry")
	}
	l.clear(d0, "a", false, nil)
	l.clear(d0, "b", true, map[string]bool{"b": true})
	if got := l.list(10); len(got) != 1 || got[0].Path != "b" {
		t.Errorf("left: %+v", got)
	}
	l.fail(d0, "", false, "x", true)
	if got := l.list(1); got[0].Path != "." || l.entries[""] == nil {
		t.Errorf("the source directory itself is called %q", got[0].Path)
	}
}

func TestFullLedgerKeepsDirectories(t *testing.T) {
	t.Parallel()
	l := newLedger(time.Second, time.Minute)
	for i := range maxLedger {
		l.fail(d0, fmt.Sprintf("f%d", i), false, "x", false)
	}
	for i := range 1000 {
		l.fail(d0, fmt.Sprintf("d/%d", i), false, "x", false)
	}
	if e := l.entries["d"]; len(l.entries) != maxLedger+1 || e == nil || !e.Tree {
		t.Errorf("%d entries, of d %+v", len(l.entries), e)
	}
	l.clear(d0, "d", true, nil)
	if len(l.entries) != maxLedger {
		t.Errorf("%d entries", len(l.entries))
	}
}

func TestBackoffDoublesWithJitter(t *testing.T) {
	t.Parallel()
	for i, want := range []time.Duration{1, 1, 2, 4, 8, 16, 32, 60, 60} {
		want *= time.Second
		for range 100 {
			if got := backoff(i, time.Second, time.Minute); got > want || got < want*3/4-1 {
				t.Fatalf("after %d failures: %v, want about %v", i, got, want)
			}
		}
	}
	if got := backoff(1000, time.Second, time.Minute); got > time.Minute || got < 45*time.Second {
		t.Errorf("after a thousand failures: %v", got)
	}
}

// Excluded files are kept in a directory that is to make way: to try at once and for ever helps nobody, and nothing was deleted.
func TestDirectoryThatStaysInTheWayIsTriedSlowly(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.e.dst.put("p/x.tmp", node{data: "1"})
		r.e.setAnswer(func(what string, paths []string) *transfer.Result {
			if what == "force" {
				return &transfer.Result{Blocked: paths, Kept: paths}
			}
			return nil
		})
		r.begin("p", "q")
		r.after(time.Minute)
		if n := r.e.count("force"); n == 0 || n > 10 {
			t.Errorf("forced %d times", n)
		}
		r.wantState(Degraded, "in the way")
		if n := r.l.door.done; n != 0 {
			t.Errorf("%d deletions are counted", n)
		}
		r.e.setAnswer(nil)
		r.settles(10 * time.Minute)
	})
}
