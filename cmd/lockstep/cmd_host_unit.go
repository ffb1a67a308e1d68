// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"

	"github.com/lockstep-sync/lockstep/agent/unit"
)

// runUnit prints a unit for the packages, so that they and an applying binary have one source for it.
func runUnit(_ context.Context, std stdio, args []string) error {
	set := flag.NewFlagSet("lockstep unit", flag.ContinueOnError)
	set.SetOutput(std.err)
	binary := set.String("binary", "/usr/bin/lockstep", "where lockstep will be installed")
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return &statusError{status: exitOK}
		}
		return &statusError{status: exitUsage}
	}
	_, err := std.out.Write(unit.Agent(*binary).Render())
	return err
}
