// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// runApprove is `lockstep approve`: it lets pass what is held now, and nothing that comes later.
func runApprove(ctx context.Context, std stdio, args []string) error {
	f := newPairFlags(std, "approve", "[NAME] [--runtime-dir DIR]")
	c, err := f.one(args)
	if err != nil {
		return err
	}
	var a replicate.Approval
	if err := c.get(ctx, http.MethodPost, "/approve", &a); err != nil {
		return err
	}
	switch {
	case a.Source != "":
		_, err = fmt.Fprintf(std.out, "the directory that is there now is the source from now on (%s)\n", a.Source)
	case a.Paths == 0:
		_, err = fmt.Fprintln(std.out, "nothing is held")
	default:
		_, err = fmt.Fprintf(std.out, "%s on the backup approved, %s\n", count(a.Deletions, "deletion"), count(a.Paths, "top-most path"))
	}
	return err
}
