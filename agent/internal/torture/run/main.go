// SPDX-License-Identifier: Apache-2.0

// Run tortures a live pair with seeded random histories and faults, until all seeds are done, the time is over, or a promise is
// broken. `make torture SEEDS=200 MINUTES=30` calls it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/torture"
)

func main() {
	binary := flag.String("binary", "build/lockstep", "lockstep binary")
	dir := flag.String("dir", os.TempDir(), "where the trees are made")
	seeds := flag.Int("seeds", 20, "how many seeds")
	first := flag.Uint64("first", 1, "the first seed")
	minutes := flag.Float64("minutes", 60, "stop after so many minutes")
	steps := flag.Int("steps", 400, "operations of each seed")
	faults := flag.Bool("faults", true, "break things now and then")
	soak := flag.Bool("soak", false, "one seed and one agent for all the minutes, which must not grow")
	verbose := flag.Bool("v", false, "print every operation")
	backend := flag.String("backend", "", "inotify or fanotify; empty takes them in turn")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if *soak {
		*seeds = 1
	}
	if err := run(ctx, *binary, *dir, *first, *seeds, *steps, *faults, *verbose, *soak, *backend, time.Duration(*minutes*float64(time.Minute))); err != nil {
		fmt.Fprintf(os.Stderr, "torture: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, dir string, first uint64, seeds, steps int, faults, verbose, soak bool, backend string, limit time.Duration) error {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	start := time.Now()
	done := 0
	for seed := first; seed < first+uint64(seeds) && time.Since(start) < limit; seed++ {
		b := backend
		if b == "" {
			b = []string{"inotify", "fanotify"}[seed%2]
		}
		site, err := os.MkdirTemp(dir, "lockstep-torture-")
		if err != nil {
			return err
		}
		opts := torture.Options{Binary: binary, Dir: site, Seed: seed, Steps: steps, Faults: faults, Definition: []string{"watch: {backend: " + b + "}"}}
		if soak {
			opts.Soak = limit
		}
		if verbose {
			opts.Verbose = func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
		}
		out, err := torture.Run(ctx, opts)
		if err != nil {
			return err
		}
		done++
		left := time.Duration(float64(time.Since(start)) / float64(done) * float64(seeds-done))
		fmt.Printf("seed %d (%s): %d operations, %d faults, equal %v after the end, %d descriptors, %d goroutines, %d MB; %v left\n",
			seed, b, out.Operations, out.Faults, out.Settled.Round(time.Millisecond), out.Files, out.Goroutines, out.RSS>>20, min(left, limit-time.Since(start)).Round(time.Second))
	}
	if soak {
		fmt.Printf("one agent for %v, without a difference and without growth\n", time.Since(start).Round(time.Second))
		return nil
	}
	fmt.Printf("%d seeds without a difference in %v\n", done, time.Since(start).Round(time.Second))
	return nil
}
