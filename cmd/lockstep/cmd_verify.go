// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/replicate"
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
	drift := 0
	var failed error
	err = c.stream(ctx, path, func(u replicate.Update) {
		switch {
		case u.Drift != nil:
			show.end()
			drift++
			if *asJSON {
				failed = enc.Encode(u.Drift)
				return
			}
			_, failed = fmt.Fprintf(std.out, "%-8s %s%s\n", u.Drift.What, visible(cmp.Or(u.Drift.Path, ".")), attributes(u.Drift))
		case u.Status != nil:
			show.set("comparing the contents of both trees")
		}
	})
	show.end()
	switch {
	case err != nil:
		return err
	case failed != nil:
		return failed
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

// itemized are the attributes that rsync tells of by a letter each; see --itemize-changes in rsync(1). The first two letters are
// the kind of update and of file.
var itemized = []string{"contents", "size", "time", "mode", "owner", "group", "", "ACL", "extended attributes"}

// attributes says in words in what a file on the backup differs.
func attributes(d *replicate.Drift) string {
	if d.What != "edited" || len(d.Detail) < 2+len(itemized) {
		return ""
	}
	var words []string
	for i, word := range itemized {
		if c := d.Detail[2+i]; word != "" && c != '.' && c != ' ' && c != '+' {
			words = append(words, word)
		}
	}
	if len(words) == 0 {
		return ""
	}
	return "  (" + strings.Join(words, ", ") + ")"
}
