// SPDX-License-Identifier: Apache-2.0

//go:build integration

package torture

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRandomHistoriesWithFaultsEndEqual is the short form of `make torture`, with an agent that looks for data races.
func TestRandomHistoriesWithFaultsEndEqual(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "lockstep")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-race", "-buildvcs=false", "-o", binary, "../../../cmd/lockstep").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for seed := range uint64(6) {
		backend := []string{"inotify", "auto"}[seed%2]
		t.Run(fmt.Sprintf("%s seed %d", backend, seed), func(t *testing.T) {
			// Not parallel: what rsync does while it waits for a processor is another test.
			opts := Options{
				Binary: binary, Dir: t.TempDir(), Seed: seed, Steps: 300, Faults: true,
				Definition: []string{"watch: {backend: " + backend + "}"},
			}
			t.Cleanup(func() { _ = unix.Unmount(filepath.Join(opts.Dir, "disk"), unix.MNT_DETACH) }) // stays after a failure
			out, err := Run(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d operations, %d faults, equal %v after the end", out.Operations, out.Faults, out.Settled)
		})
	}
}

// TestLongHistoryLeavesTheAgentAsSmallAsItWas is the short form of `make soak`.
func TestLongHistoryLeavesTheAgentAsSmallAsItWas(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "lockstep")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", binary, "../../../cmd/lockstep").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	opts := Options{Binary: binary, Dir: t.TempDir(), Seed: 1, Steps: 60, Faults: true, Soak: time.Second, Definition: []string{"watch: {backend: inotify}"}}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(opts.Dir, "disk"), unix.MNT_DETACH) }) // stays after a failure
	out, err := Run(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rounds, %d faults; in the end %d descriptors, %d goroutines, %d MB", out.Rounds, out.Faults, out.Files, out.Goroutines, out.RSS>>20)
}
