// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

func TestVerifySaysInWhatAFileDiffers(t *testing.T) {
	t.Parallel()
	for itemized, want := range map[string]string{
		">fcst......": "  (contents, size, time)",
		">fc........": "  (contents)",
		".f...pog...": "  (mode, owner, group)",
		".d..t......": "  (time)",
		"cL..T......": "  (time)",
		".f.......ax": "  (ACL, extended attributes)",
		"":            "",
	} {
		if got := attributes(&replicate.Drift{What: "edited", Detail: itemized}); got != want {
			t.Errorf("%s: %q, want %q", itemized, got, want)
		}
	}
	if got := attributes(&replicate.Drift{What: "missing", Detail: ">f+++++++++"}); got != "" {
		t.Errorf("missing: %q", got)
	}
}

// streaming is a client of an agent that answers with these updates and then goes on with the last one, until nobody listens.
func streaming(t *testing.T, status replicate.Status, updates ...replicate.Update) *client {
	t.Helper()
	return serving(t, status.Pair, func(w http.ResponseWriter, r *http.Request) {
		enc := json.NewEncoder(w)
		if r.Method == http.MethodGet {
			if err := enc.Encode(status); err != nil {
				t.Error(err)
			}
			return
		}
		u := replicate.Update{Status: &status}
		for i := 0; r.Context().Err() == nil && !u.Done; i++ {
			if i < len(updates) {
				u = updates[i]
			}
			if enc.Encode(u) != nil {
				return
			}
			http.NewResponseController(w).Flush() //nolint:errcheck // then nobody listens
			if i >= len(updates) {
				time.Sleep(time.Millisecond)
			}
		}
	})
}

// A verification waits until everything is on the backup. Where nothing gets there, it ends and says why.
func TestVerifyOfAPairThatStandsStillSaysWhy(t *testing.T) {
	t.Parallel()
	held := replicate.Status{Pair: "data", State: replicate.Held, Reason: "6 of 9 entries", Hint: "lockstep approve data"}
	paused := replicate.Status{Pair: "data", State: replicate.Paused, Reason: "nothing is sent"}
	failing := replicate.Status{Pair: "data", State: replicate.Failing, Reason: "no connection"}
	ledger := replicate.Status{Pair: "data", State: replicate.Degraded, Reason: "9 directories are not watched",
		Ledger: replicate.LedgerStatus{Count: 2, Entries: []replicate.LedgerEntry{{Path: "a", Reason: "denied"}}}}
	unread := replicate.Status{Pair: "data", State: replicate.Degraded, Reason: "not complete", Full: replicate.FullStatus{Problem: "not complete"}}
	unwatched := replicate.Status{Pair: "data", State: replicate.Degraded, Reason: "9 directories are not watched"}
	behind := replicate.Status{Pair: "data", State: replicate.Behind, Reason: "3 paths"}
	comparing := held
	comparing.InFlight = []replicate.JobStatus{{Kind: "verify"}}
	update := func(s replicate.Status) replicate.Update { return replicate.Update{Status: &s} }
	differs := replicate.Update{Drift: &replicate.Drift{Path: "a", What: "added"}}
	done := replicate.Update{Done: true}
	for _, tt := range []struct {
		name      string
		updates   []replicate.Update
		repair    bool
		want      int
		out, errs string
	}{
		{"held", []replicate.Update{update(held)}, false, exitTimeout, "",
			"lockstep: nothing was compared: the pair is held: 6 of 9 entries\nhint: lockstep approve data\n"},
		{"paused", []replicate.Update{update(paused)}, false, exitTimeout, "",
			"lockstep: nothing was compared: the pair is paused: nothing is sent\nhint: lockstep resume data\n"},
		{"failing at last", []replicate.Update{update(behind), update(failing)}, false, exitTimeout, "",
			"nothing is compared yet; the pair is behind: 3 paths\nlockstep: nothing was compared: the pair is failing: no connection\n"},
		{"with paths that cannot be sent", []replicate.Update{update(ledger)}, false, exitTimeout, "",
			"lockstep: nothing was compared: the pair is degraded: 2 paths could not be sent, among them \"a\": denied\n" +
				"hint: lockstep status data names them; lockstep sync data tries them at once\n"},
		{"that could not be compared", []replicate.Update{update(unread)}, false, exitTimeout, "",
			"lockstep: nothing was compared: the pair is degraded: not complete\nhint: lockstep sync data\n"},
		{"not all watched, which a comparison makes up for", []replicate.Update{update(unwatched), done}, false, exitOK, "source and backup are equal\n",
			"nothing is compared yet; the pair is degraded: 9 directories are not watched\n"},
		{"held while it is compared", []replicate.Update{update(comparing), update(held), differs, update(held), update(held), done}, false, exitDiffers, "added    a\n",
			"comparing the contents of both trees\nlockstep: 1 difference\nhint: lockstep verify --repair\n"},
		{"held by the repair", []replicate.Update{differs, update(held), differs, update(held)}, true, exitTimeout, "added    a\nadded    a\n",
			"lockstep: not all that differed is on the backup: the pair is held: 6 of 9 entries\nhint: lockstep approve data\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c := streaming(t, *cmp.Or(tt.updates[0].Status, &held), tt.updates...)
			args := []string{"verify", "--runtime-dir", filepath.Dir(c.socket)}
			if tt.repair {
				args = append(args, "--repair")
			}
			var out, stderr bytes.Buffer
			if got := dispatch(ctx, stdio{strings.NewReader(""), &out, &stderr}, args); got != tt.want || out.String() != tt.out || stderr.String() != tt.errs {
				t.Errorf("status %d, want %d\n%s%s", got, tt.want, &out, &stderr)
			}
		})
	}
}

// What a person has to do is said while a sync waits; for a paused pair it does not wait.
func TestSyncOfAPairThatStandsStillSaysWhy(t *testing.T) {
	t.Parallel()
	failing := replicate.Status{Pair: "data", State: replicate.Failing, Reason: "no connection", Hint: "start it"}
	paused := replicate.Status{Pair: "data", State: replicate.Paused, Reason: "nothing is sent"}
	well := replicate.Status{Pair: "data", State: replicate.InStep}
	for _, tt := range []struct {
		name      string
		status    replicate.Status
		updates   []replicate.Update
		want      int
		out, errs string
	}{
		{"paused", paused, nil, exitNotInStep, "", "lockstep: pair \"data\" is paused: nothing is sent\nhint: lockstep resume data\n"},
		{"paused by its definition", replicate.Status{Pair: "data", State: replicate.Paused, Reason: "the definition says so", Hint: "change it"}, nil, exitNotInStep, "",
			"lockstep: pair \"data\" is paused: the definition says so\nhint: change it\n"},
		{"paused meanwhile", well, []replicate.Update{{Status: &paused}}, exitNotInStep, "",
			"lockstep: pair \"data\" is paused: nothing is sent\nhint: lockstep resume data\n"},
		{"failing for a while", failing, []replicate.Update{{Status: &failing}, {Status: &failing}, {Status: &well, Done: true}}, exitOK,
			"both trees compared in 0s: 0 entries differed, 0 were only on the backup\n", "waiting, the pair is failing: no connection\nhint: start it\n"},
		{"while nothing runs yet and when it has run", well, []replicate.Update{{Status: &well}, {Status: &well, Done: true}}, exitOK,
			"both trees compared in 0s: 0 entries differed, 0 were only on the backup\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c := streaming(t, tt.status, tt.updates...)
			var out, stderr bytes.Buffer
			got := dispatch(ctx, stdio{strings.NewReader(""), &out, &stderr}, []string{"sync", "--runtime-dir", filepath.Dir(c.socket)})
			if got != tt.want || out.String() != tt.out || stderr.String() != tt.errs {
				t.Errorf("status %d, want %d\n%s%s", got, tt.want, &out, &stderr)
			}
		})
	}
}

func TestWhoeverInterruptsIsToldSo(t *testing.T) {
	t.Parallel()
	c := streaming(t, replicate.Status{Pair: "data", State: replicate.Behind})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	time.AfterFunc(50*time.Millisecond, cancel)
	for _, command := range []string{"verify", "sync", "wait"} {
		var out, stderr bytes.Buffer
		got := dispatch(ctx, stdio{strings.NewReader(""), &out, &stderr}, []string{command, "--runtime-dir", filepath.Dir(c.socket)})
		if got != exitFailure || !strings.HasSuffix(stderr.String(), "lockstep: interrupted\n") || strings.Contains(stderr.String(), "canceled") {
			t.Errorf("%s: status %d: %s", command, got, &stderr)
		}
	}
}
