// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

// runSync is `lockstep sync`: a full batch now, with progress.
func runSync(ctx context.Context, std stdio, args []string) error {
	f := newPairFlags(std, "sync", "[NAME] [--runtime-dir DIR]")
	c, err := f.one(args)
	if err != nil {
		return err
	}
	last, err := c.status(ctx)
	if err != nil {
		return err
	}
	if err := refusesSync(&last); err != nil {
		return err
	}
	show := newProgressLine(std.err)
	err = c.stream(ctx, "/sync", func(u replicate.Update) error {
		if u.Status == nil {
			return nil
		}
		last = *u.Status
		if err := refusesSync(&last); err != nil {
			return err
		}
		if (last.State == replicate.Held || last.State == replicate.Failing) && !last.Full.Running && !u.Done {
			show.keep("waiting, the pair is " + standing(&last))
			return nil
		}
		switch o := last.Outage; {
		case o != nil:
			show.set(o.Message)
		case last.Full.Running:
			show.set(fullLine(last.Full, time.Now()))
		}
		return nil
	})
	show.end()
	if err != nil {
		return err
	}
	full := last.Full
	fmt.Fprintf(std.out, "both trees compared in %s: %s differed, %d were only on the backup\n",
		short(time.Duration(full.LastSeconds*float64(time.Second))), count(full.Differs, "entry"), full.Extra)
	if last.State != replicate.InStep && last.State != replicate.Behind {
		return &statusError{stateStatus(last.State), fmt.Errorf("pair %q is %s: %s", last.Pair, last.State, visible(last.Reason))}
	}
	return nil
}

// refusesSync is why there is nothing to wait for: a paused pair compares and sends nothing.
func refusesSync(s *replicate.Status) error {
	if s.State != replicate.Paused {
		return nil
	}
	return &statusError{stateStatus(s.State), fmt.Errorf("pair %q is %s", s.Pair, standstill(s))}
}
