// SPDX-License-Identifier: Apache-2.0

// Bench compares lockstep with plain rsync and with lsyncd side by side, and writes BENCHMARKS.md and two plots.
//
// Every figure is a ratio to a reference of the same round, because absolute times of a shared machine mean little: U, one
// empty authenticated rsync connection; P, one plain `rsync -a` of the same data; L, lsyncd with delay 1. Contenders
// alternate. Every run ends with a full comparison of both trees: a fast wrong run is a failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

func main() {
	binary := flag.String("binary", "build/lockstep", "lockstep binary")
	dir := flag.String("dir", "/dev/shm", "where the trees are made; tmpfs by default, since ext4 on virtual disks is erratic")
	rounds := flag.Int("rounds", 3, "rounds of each workload")
	only := flag.String("workloads", "W1,W2,W3,W4,W5,W6,W7,W8,W9,W10,allocations", "workloads to run")
	out := flag.String("out", "", "directory for BENCHMARKS.md and docs/*.svg; empty prints the table only")
	small := flag.Bool("quick", false, "small sizes, to try the benchmark itself")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *dir, *rounds, strings.Split(*only, ","), *out, *small); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, dir string, rounds int, only []string, out string, small bool) error {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	for _, tool := range []string{binary, "rsync", "lsyncd", "inotifywait"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w\nhint: make bench installs rsync, lsyncd and inotify-tools, and builds lockstep", err)
		}
	}
	b := &bench{dir: dir, sizes: full, compare: equal, samples: map[string][]time.Duration{}, load: loadNow()}
	if small {
		b.sizes = quick
	}
	start := time.Now()
	b.log = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	var all []round
	for i := range rounds {
		b.log("round %d of %d", i+1, rounds)
		r := round{}
		if err := b.round(ctx, r, binary, only, i); err != nil {
			return err
		}
		all = append(all, r)
	}
	report := render(all, b, time.Since(start))
	fmt.Print(report)
	if out != "" {
		if err := os.WriteFile(filepath.Join(out, "BENCHMARKS.md"), []byte(report), 0o644); err != nil {
			return err
		}
		for name, svg := range map[string]string{"latency.svg": plotLatency(b.samples), "convergence.svg": plotConvergence(all)} {
			if err := os.WriteFile(filepath.Join(out, "docs", name), []byte(svg), 0o644); err != nil {
				return err
			}
		}
	}
	// Only lockstep's own wrong runs fail the benchmark; that a peer does not converge is a finding.
	var wrong []error
	for _, w := range b.wrong {
		if strings.Contains(w, "/lockstep") {
			wrong = append(wrong, errors.New(w))
		}
	}
	return errors.Join(wrong...)
}

// round runs every workload once with every contender; odd rounds in reverse order.
func (b *bench) round(ctx context.Context, r round, binary string, only []string, n int) error {
	ls := lockstep(binary, "lockstep")
	eco := lockstep(binary, "lockstep-100ms", "watch: {delay: 100ms}")
	contenders := []contender{ls, lsyncd()}
	with := func(more ...contender) []contender {
		l := append(slices.Clone(contenders), more...)
		if n%2 == 1 {
			slices.Reverse(l)
		}
		return l
	}
	if err := b.connection(ctx, r); err != nil {
		return err
	}
	sz := b.sizes
	for _, w := range only {
		err := func() error {
			switch w {
			case "W1", "W2":
				rate := map[string]int{"W1": 200, "W2": 1000}[w]
				all := with(eco)
				if w == "W1" {
					all = with(eco, script())
				}
				for _, c := range all {
					if err := b.latency(ctx, r, w+"/"+c.name, c, 10, nil, func(ctx context.Context, s *site, dirs []string, wrote func(string, uint64)) error {
						return creates(ctx, s, dirs, rate*sz.seconds, rate, wrote)
					}); err != nil {
						return err
					}
				}
			case "W3", "W7":
				files, perDir, size := sz.burst, 100, 4096
				if w == "W7" {
					files, size = sz.untar, 12_000
				}
				if err := b.plainBurst(ctx, r, w, files, perDir, size); err != nil {
					return err
				}
				for _, c := range with() {
					if err := b.bursts(ctx, r, w+"/"+c.name, c, files, perDir, size, w == "W7"); err != nil {
						return err
					}
				}
			case "W4":
				for _, c := range with() {
					if err := b.churned(ctx, r, w+"/"+c.name, c, uint64(n)+42); err != nil {
						return err
					}
				}
			case "W5":
				return b.w5(ctx, r, binary)
			case "W6":
				for _, c := range with() {
					if err := b.latency(ctx, r, w+"/"+c.name, c, 1, func(s *site) error { return bigFile(s, sz.big) }, func(ctx context.Context, s *site, dirs []string, wrote func(string, uint64)) error {
						return bigUpdates(ctx, s, dirs[0], sz.big, sz.bigUpdates, wrote)
					}); err != nil {
						return err
					}
				}
			case "W8":
				for _, c := range with() {
					if err := b.latency(ctx, r, w+"/"+c.name, c, 1, nil, func(ctx context.Context, s *site, dirs []string, wrote func(string, uint64)) error {
						return saves(ctx, s, dirs, 100*sz.seconds, 100, wrote)
					}); err != nil {
						return err
					}
				}
			case "W9":
				for _, c := range backends(binary) {
					if err := b.events(ctx, r, w+"/"+c.name, c); err != nil {
						return err
					}
				}
			case "W10":
				if n > 0 {
					return nil // it takes two minutes, and its bound has no reference
				}
				return b.pending(ctx, r, w+"/"+ls.name, ls)
			case "allocations":
				return b.allocations(ctx, r)
			default:
				return fmt.Errorf("unknown workload %q", w)
			}
			return nil
		}()
		if err != nil {
			return fmt.Errorf("%s: %w", w, err)
		}
	}
	return nil
}

func (b *bench) w5(ctx context.Context, r round, binary string) (err error) {
	s, err := newSite(b.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for _, root := range []string{s.src, s.dst} {
		if err := manyDirs(root, b.sizes.trees, b.sizes.files); err != nil {
			return err
		}
	}
	if err := b.plainManyDirs(ctx, r, s); err != nil {
		return err
	}
	for _, c := range backends(binary) {
		if err := b.manyDirs(ctx, r, s, "W5/"+c.name, c); err != nil {
			return err
		}
	}
	return nil
}

// backends is lockstep with each way to watch.
func backends(binary string) (all []contender) {
	for _, backend := range []string{"inotify", "fanotify"} {
		all = append(all, lockstep(binary, "lockstep-"+backend, "watch: {backend: "+backend+"}"))
	}
	return all
}

// equal is nil when two trees do not differ in anything.
func equal(src, dst string) error {
	diffs, err := rsynctest.Compare(src, dst, rsynctest.CompareOptions{})
	if err == nil && len(diffs) > 0 {
		err = fmt.Errorf("%d differences, the first: %v", len(diffs), diffs[0])
	}
	return err
}
