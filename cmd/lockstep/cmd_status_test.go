// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// What was on the backup before a full batch is not what the full batch has done: of the first one it is nothing.
func TestFullBatchInWords(t *testing.T) {
	t.Parallel()
	ended, next := noon.Add(-620*time.Millisecond), noon.Add(time.Hour)
	sending := replicate.FullStatus{Running: true, Phase: "send", Progress: replicate.Progress{Percent: 12, DoneFiles: 3, ETASeconds: 40}}
	for want, f := range map[string]replicate.FullStatus{
		"none yet":                                              {},
		"last 620ms ago in 100ms":                               {Last: &ended, LastSeconds: 0.1, Entries: 0},
		"last 620ms ago in 1.9s":                                {Last: &ended, LastSeconds: 1.9, Entries: 184203},
		"comparing both trees":                                  {Running: true, Phase: "compare"},
		"none yet; next in 1h0m":                                {Next: &next},
		"none yet; the backup is down":                          {Problem: "the backup is down"},
		"sending what differed; last 620ms ago in 100ms":        {Running: true, Phase: "settle", Last: &ended, LastSeconds: 0.1},
		"sending the whole tree, 12 %, 3 files, about 40s left": sending,
	} {
		if got := fullLine(f, noon); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
