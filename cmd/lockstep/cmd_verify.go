// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/replicate"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// runVerify is `lockstep verify`: it compares the contents of both trees and names what differs.
func runVerify(ctx context.Context, std stdio, args []string) error {
	f := newPairFlags(std, "verify", "[NAME] [--repair] [--json] [--runtime-dir DIR]")
	repair := f.Bool("repair", false, "send what differs, and take what was added on the backup to the guard of deletions")
	asJSON := f.Bool("json", false, "print one JSON object a line")
	c, err := f.one(args)
	if err != nil {
		return err
	}
	path := "/verify"
	if *repair {
		path += "?repair=1"
	}
	show := newProgressLine(std.err)
	enc := json.NewEncoder(std.out)
	drift, compared := 0, false
	stalled := 0 // updates in a row that tell of a standstill
	err = c.stream(ctx, path, func(u replicate.Update) error {
		switch {
		case u.Drift != nil:
			show.end()
			drift++
			compared, stalled = true, 0
			if *asJSON {
				return enc.Encode(u.Drift)
			}
			_, err := fmt.Fprintf(std.out, "%-8s %s%s\n", u.Drift.What, visible(cmp.Or(u.Drift.Path, ".")), attributes(u.Drift))
			return err
		case u.Status == nil || u.Done:
			return nil
		case slices.ContainsFunc(u.Status.InFlight, func(j replicate.JobStatus) bool { return j.Kind == "verify" }):
			compared = true
			show.set("comparing the contents of both trees")
			return nil
		case compared && !*repair:
			return nil
		}
		// What is on its way has to be on the backup first, or it would look like a difference; of a repair, afterwards too.
		end := "nothing was compared"
		words := "nothing is compared yet"
		if compared {
			end = "not all that differed is on the backup"
			words = "what differed is being sent"
		}
		why := standstill(u.Status)
		if why == "" {
			stalled = 0
			if u.Status.State != replicate.InStep {
				words += "; the pair is " + string(u.Status.State) + strings.TrimSuffix(": "+visible(u.Status.Reason), ": ")
			}
			show.set(words)
			return nil
		}
		if stalled++; compared && stalled < 2 {
			return nil // there may be more differences to come, which are told between two of these
		}
		return &statusError{exitTimeout, fmt.Errorf("%s: the pair is %s", end, why)}
	})
	show.end()
	switch {
	case err != nil:
		return err
	case drift == 0:
		if !*asJSON {
			fmt.Fprintln(std.out, "source and backup are equal")
		}
		return nil
	case *repair:
		fmt.Fprintf(std.err, "%s repaired\n", count(drift, "difference"))
		return nil
	default:
		return &statusError{exitDiffers, fmt.Errorf("%s\nhint: lockstep verify --repair", count(drift, "difference"))}
	}
}

// attributes says in words in what a file on the backup differs.
func attributes(d *replicate.Drift) string {
	words := transfer.Attributes(d.Detail)
	if d.What != "edited" || words == "" {
		return ""
	}
	return "  (" + words + ")"
}
