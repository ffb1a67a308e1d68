// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/lockstep-sync/lockstep/agent/unit"
)

// runUnit prints a unit for the packages, so that they and an applying binary have one source for it.
func runUnit(_ context.Context, std stdio, args []string) error {
	flags := newFlags(std, "", "unit [--binary PATH]")
	binary := flags.String("binary", "/usr/bin/lockstep", "the `PATH` at which lockstep will be installed")
	if err := noArguments(flags, args); err != nil {
		return err
	}
	_, err := std.out.Write(unit.Agent(*binary).Render())
	return err
}
