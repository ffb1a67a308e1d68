// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// goal is a bound on the ratio of a measured value to a reference of the same round. With no reference the value itself is bounded.
type goal struct {
	text, value string
	ref         func(round) float64
	bound       float64
	unit        string // of a value without reference
}

func key(name string) func(round) float64 { return func(r round) float64 { return r[name] } }

var goals = []goal{
	{"W1 latency p50 / U", "W1/lockstep/p50", key("U"), 2, ""},
	{"W1 latency p99 / U", "W1/lockstep/p99", key("U"), 3, ""},
	{"W1, delay 100 ms: p99 / lsyncd p99", "W1/lockstep-100ms/p99", key("W1/lsyncd/p99"), 0.2, ""},
	{"W1, delay 100 ms: source CPU / lsyncd CPU", "W1/lockstep-100ms/cpu", key("W1/lsyncd/cpu"), 0.4, ""},
	{"W2 latency p99 / U", "W2/lockstep/p99", key("U"), 10, ""},
	{"W2 source CPU / lsyncd CPU", "W2/lockstep/cpu", key("W2/lsyncd/cpu"), 0.2, ""},
	{"W3 converged after the last write / P", "W3/lockstep/converge", key("W3/P"), 0.8, ""},
	{"W3 first write to identical / (writer alone + P)", "W3/lockstep/total", func(r round) float64 { return r["W3/writer"] + r["W3/P"] }, 1.3, ""},
	{"W4 churn: equal after the end", "W4/lockstep/converge", nil, 1, "s"},
	{"W5 inotify: first live file / bare walk", "W5/lockstep-inotify/first live", key("W5/walk"), 1.3, ""},
	{"W5 fanotify: first live file / U", "W5/lockstep-fanotify/first live", key("U"), 20, ""},
	{"W5 inotify: verified in step / no-op rsync", "W5/lockstep-inotify/verified", key("W5/noop"), 1.1, ""},
	{"W5 fanotify: verified in step / no-op rsync", "W5/lockstep-fanotify/verified", key("W5/noop"), 1.1, ""},
	{"W5 inotify: idle CPU", "W5/lockstep-inotify/idle %", nil, 0.1, "%"},
	{"W5 inotify: RSS", "W5/lockstep-inotify/rss MB", nil, 40, "MB"},
	{"W5 fanotify: RSS", "W5/lockstep-fanotify/rss MB", nil, 25, "MB"},
	{"W6 latency p50 / lsyncd p50", "W6/lockstep/p50", key("W6/lsyncd/p50"), 0.7, ""},
	{"W7 converged after the end / P", "W7/lockstep/converge", key("W7/P"), 1.2, ""},
	{"W7 source CPU / CPU of P", "W7/lockstep/cpu", key("W7/P cpu"), 1.5, ""},
	{"W7 rm -rf / one recursive delete", "W7/lockstep/rm", key("W7/delete"), 1.2, ""},
	{"W8 latency p99 / U", "W8/lockstep/p99", key("U"), 3, ""},
	{"W9 inotify: overflows of the kernel's queue", "W9/lockstep-inotify/overflows", nil, 0, ""},
	{"W9 fanotify: overflows of the kernel's queue", "W9/lockstep-fanotify/overflows", nil, 0, ""},
	{"W10: peak of resident memory", "W10/lockstep/peak MB", nil, 150, "MB"},
	{"inotify: allocations an event, watch and queue", "allocations/inotify", nil, 3, ""},
	{"fanotify: allocations an event, watch and queue", "allocations/fanotify", nil, 3, ""},
}

func median(l []float64) float64 {
	if len(l) == 0 {
		return math.NaN()
	}
	l = slices.Sorted(slices.Values(l))
	return (l[(len(l)-1)/2] + l[len(l)/2]) / 2
}

// of gives the goal's ratio in every round that measured it.
func (g goal) of(rounds []round) (ratios []float64) {
	for _, r := range rounds {
		v, ok := r[g.value]
		if !ok {
			continue
		}
		if g.ref != nil {
			ref := g.ref(r)
			if ref == 0 {
				continue
			}
			v /= ref
		}
		ratios = append(ratios, v)
	}
	return ratios
}

func render(rounds []round, b *bench, took time.Duration) string {
	var w strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&w, format, args...) }
	p("# Benchmarks\n\n")
	p("Written by `make bench` on %s in %v: %d rounds, contenders in turn, every run ended with a full comparison of both trees\n(content, type, mode, owner, times in nanoseconds). Ratios are to a reference of the same round; absolute times on a shared machine mean little.\n\n",
		time.Now().UTC().Format("2006-01-02"), took.Round(time.Second), len(rounds))
	p("Machine: %s. Trees on `%s`. Load average before the first round: %s.\n\n", machine(), b.dir, b.load)
	if b.load.busy() {
		p("**The machine was busy with other work: these figures are worse than on a quiet one, those of lockstep more than those of lsyncd, which waits a second anyway.**\n\n")
	}
	p("U = one empty authenticated rsync connection (TCP_NODELAY at both ends). P = one plain `rsync -a` of the same data. lsyncd runs with delay 1.\nW1: 200 new files of 10 to 100 KB a second. W2: 1000 a second. W3: %d files of 4 KB at once. W4: random churn, 200 operations a second.\nW5: start on %d directories and %d files in step. W6: a file of %d MiB changed every second. W7: %d files of 12 KB at once, then `rm -rf`. W8: 100 atomic saves a second.\nW9: new files that are deleted at once, %d events a second.\nW10: %d new files while the backup host is down. inotifywait is a loop around it with one rsync of the directory for each event.\n\n",
		b.sizes.burst, b.sizes.trees, b.sizes.files, b.sizes.big>>20, b.sizes.untar, eventRate, b.sizes.pending)
	p("## Goals\n\n| goal | bound | min | median | max | reached |\n|---|---|---|---|---|---|\n")
	for _, g := range goals {
		ratios := g.of(rounds)
		if len(ratios) == 0 {
			continue
		}
		m := median(ratios)
		reached := "yes"
		if m > g.bound {
			reached = "**no**"
		}
		unit := g.unit
		if unit != "" {
			unit = " " + unit
		}
		p("| %s | ≤ %g%s | %.2f | **%.2f** | %.2f | %s |\n", g.text, g.bound, unit, slices.Min(ratios), m, slices.Max(ratios), reached)
	}
	if len(b.wrong) > 0 {
		p("\n## Runs that did not end with equal trees\n\n")
		for _, s := range b.wrong {
			p("- %s\n", s)
		}
	} else {
		p("\nEvery run ended with equal trees.\n")
	}
	p("\n![latency](docs/latency.svg)\n![convergence](docs/convergence.svg)\n")
	p("\n## All medians\n\nTimes in seconds.\n\n| measured | min | median | max |\n|---|---|---|---|\n")
	values := map[string][]float64{}
	for _, r := range rounds {
		for k, v := range r {
			values[k] = append(values[k], v)
		}
	}
	names := make([]string, 0, len(values))
	for k := range values {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		p("| %s | %.4g | %.4g | %.4g |\n", k, slices.Min(values[k]), median(values[k]), slices.Max(values[k]))
	}
	return w.String()
}

// load is the load average of the last minute (proc_loadavg(5)).
type load float64

func loadNow() load {
	var l float64
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		if _, err := fmt.Sscan(string(text), &l); err != nil {
			return load(math.NaN())
		}
	}
	return load(l)
}

func (l load) String() string { return fmt.Sprintf("%.1f", float64(l)) }

// busy reports whether others used more than half of the machine.
func (l load) busy() bool { return float64(l) > float64(runtime.NumCPU())/2 }

func machine() string {
	var u unix.Utsname
	kernel := "unknown kernel"
	if err := unix.Uname(&u); err == nil {
		kernel = "Linux " + unix.ByteSliceToString(u.Release[:])
	}
	cpu := "unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for _, line := range strings.Split(string(text), "\n") {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	first := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil && len(out) == 0 {
			return name + " (version unknown)"
		}
		line, _, _ := strings.Cut(string(out), "\n")
		return strings.Join(strings.Fields(line), " ")
	}
	return fmt.Sprintf("%d × %s, %s, %s, %s, %s, %s", runtime.NumCPU(), cpu, kernel, first("rsync", "--version"), first("lsyncd", "--version"), first("inotifywait", "--help"), runtime.Version())
}
