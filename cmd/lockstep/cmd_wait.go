// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// runWait is `lockstep wait`: it ends when everything that happened in the source before is on the backup.
func runWait(ctx context.Context, std stdio, args []string) error {
	f := newPairFlags(std, "wait", "[NAME] [--timeout 60s] [--runtime-dir DIR]")
	var timeout time.Duration
	durationVar(f.FlagSet, &timeout, "timeout", time.Minute, "give up after this `time`")
	c, err := f.one(args)
	if err != nil {
		return err
	}
	waitCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last *replicate.Status
	err = c.stream(waitCtx, "/wait", func(u replicate.Update) error {
		if u.Status != nil {
			last = u.Status
		}
		return nil
	})
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		state := ""
		if last != nil {
			state = ": " + standing(last)
		}
		return &statusError{exitTimeout, fmt.Errorf("%s: not everything is on the backup after %v%s", c.who(), timeout, state)}
	}
	return err
}
