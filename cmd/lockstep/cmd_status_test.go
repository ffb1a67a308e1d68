// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"
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

// A pair whose agent does not run is told, and decides the exit status, however well the others are.
func TestStatusOfAllTellsOfAPairWithoutAnAgent(t *testing.T) {
	t.Parallel()
	clients := []*client{answering(t, replicate.Status{Pair: "data", State: replicate.InStep}), newClient("pw", t.TempDir())}
	run := func(asJSON bool) (out, errs string) {
		var stdout, stderr bytes.Buffer
		err := statusOfAll(t.Context(), stdio{out: &stdout, err: &stderr}, clients, asJSON)
		var status *statusError
		if !errors.As(err, &status) || status.status != exitNoAgent {
			t.Errorf("json %v: %v", asJSON, err)
		}
		return stdout.String(), stderr.String()
	}
	out, errs := run(false)
	for _, line := range []string{`data +in step +0 +0s +0 +0`, `pw +no agent +- +- +- +- +no agent answers at /.*/status\.sock`} {
		if !regexp.MustCompile(`(?m)^` + line + ` *$`).MatchString(out) {
			t.Errorf("%s is not in:\n%s", line, out)
		}
	}
	if !strings.HasPrefix(errs, `lockstep: pair "pw": no agent answers at /`) || !strings.Contains(errs, "\nhint: ") {
		t.Errorf("standard error: %s", errs)
	}
	out, _ = run(true)
	var list []replicate.Status
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 2 || list[1].Pair != "pw" || list[1].State != "no agent" ||
		!strings.HasPrefix(list[1].Reason, "no agent answers at /") || list[1].Hint == "" {
		t.Errorf("%v: %s", err, out)
	}
}

// An agent that is stuck has no answer, and the others are heard all the same.
func TestAStuckAgentHoldsUpNobody(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	stuck := func(pair string) *client {
		c := serving(t, pair, func(http.ResponseWriter, *http.Request) { <-release })
		c.limit = 50 * time.Millisecond
		return c
	}
	clients := []*client{stuck("a"), stuck("b"), answering(t, replicate.Status{Pair: "data", State: replicate.InStep})}
	t.Cleanup(func() { close(release) })
	var out, stderr bytes.Buffer
	var status *statusError
	if err := statusOfAll(t.Context(), stdio{out: &out, err: &stderr}, clients, false); !errors.As(err, &status) || status.status != exitNoAgent {
		t.Errorf("%v", err)
	}
	for _, line := range []string{`a +no answer +- +- +- +- +the agent does not answer`, `data +in step +0 +0s +0 +0`} {
		if !regexp.MustCompile(`(?m)^` + line + ` *$`).MatchString(out.String()) {
			t.Errorf("%s is not in:\n%s", line, &out)
		}
	}
	if !strings.HasPrefix(stderr.String(), "lockstep: pair \"a\": the agent does not answer\nhint: ") {
		t.Errorf("standard error: %s", &stderr)
	}
	out.Reset()
	if err := nagios(t.Context(), stdio{out: &out}, clients, time.Minute); !errors.As(err, &status) || status.status != nagiosCritical ||
		!strings.Contains(out.String(), "CRITICAL - pair \"b\": the agent does not answer\nOK - data: in step\n") {
		t.Errorf("%v: %s", err, &out)
	}
}
