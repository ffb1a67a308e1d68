// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/lockstep-sync/lockstep/agent/unit"
)

// runUnit prints a unit for the packages, so that they and an applying binary have one source for it.
func runUnit(_ context.Context, std stdio, args []string) error {
	flags := newFlags(std, "", "unit [--binary PATH]")
	binary := flags.String("binary", "/usr/bin/lockstep", "the `PATH` at which lockstep will be installed")
	if err := flags.Parse(args); err != nil {
		return flagError(err)
	}
	if flags.NArg() > 0 {
		return usageError(fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}
	_, err := std.out.Write(unit.Agent(*binary).Render())
	return err
}
