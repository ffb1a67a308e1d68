// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"testing"
	"time"
)

func TestWhatWasWalkedCountsForAWhile(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := walked{}
	w.begin([]string{"a/b", "c"})
	w.end(now, []string{"a/b"})
	for _, c := range []struct {
		path  string
		after time.Duration
		want  bool
	}{
		{"a/b", 0, true},
		{"a/b/d/e", walkedFor - 1, true},
		{"a/b/d/e", walkedFor, false},
		{"a", 0, false}, // what is above was not read
		{"a/bb", 0, false},
		{"c/x", 24 * time.Hour, true}, // still being read
		{"", 0, false},
	} {
		if got := w.covers(now.Add(c.after), c.path); got != c.want {
			t.Errorf("%q after %v: %v", c.path, c.after, got)
		}
	}
}

// A tree that is forgotten too soon is one whose deletions may be missed, so past the bound everything counts as walked.
func TestTooManyWalkedTreesAreOne(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := walked{}
	w.begin([]string{"running"})
	const runs, trees = 3, walkedMany / 2
	for run := range runs {
		var of []string
		for i := range trees {
			of = append(of, fmt.Sprintf("d%d-%d", run, i))
		}
		w.begin(of)
		w.end(now, of)
		for _, tree := range of {
			if !w.covers(now, tree+"/x") {
				t.Fatalf("%s is forgotten at once", tree)
			}
		}
	}
	if len(w) > walkedMany {
		t.Errorf("%d trees are remembered", len(w))
	}
	for _, path := range []string{"d0-0/x", "anything", ""} {
		if !w.covers(now.Add(walkedFor-1), path) {
			t.Errorf("%q is forgotten", path)
		}
	}

	later := now.Add(walkedFor + 1)
	for path, want := range map[string]bool{"running/x": true, "d0-0/x": false, "anything": false, "": false} {
		if w.covers(later, path) != want {
			t.Errorf("later, %q counts as walked: %v", path, !want)
		}
	}
}
