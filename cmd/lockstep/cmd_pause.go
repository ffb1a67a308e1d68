// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

func runPause(ctx context.Context, std stdio, args []string) error {
	return pauseOrResume(ctx, std, args, "pause", "paused: changes are gathered and nothing is sent until `lockstep resume`")
}

func runResume(ctx context.Context, std stdio, args []string) error {
	return pauseOrResume(ctx, std, args, "resume", "resumed")
}

func pauseOrResume(ctx context.Context, std stdio, args []string, name, done string) error {
	f := newPairFlags(std, name, "[NAME] [--runtime-dir DIR]")
	c, err := f.one(args)
	if err != nil {
		return err
	}
	var s replicate.Status
	if err := c.get(ctx, http.MethodPost, "/"+name, &s); err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "pair %s %s\n", s.Pair, done)
	return err
}
