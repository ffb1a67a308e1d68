// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// round holds what one round measured, by name: "U" and other references in seconds, "W1/lockstep/p99" and so on.
type round map[string]float64

// bench runs workloads against contenders.
type bench struct {
	dir     string
	sizes   sizes
	compare func(src, dst string) error // nil when the trees are equal
	samples map[string][]time.Duration  // latencies of all rounds, by workload and contender, for the plot
	load    load
	wrong   []string // runs that did not end with equal trees: a fast wrong run is a failure
	log     func(format string, args ...any)
}

// session is one contender at work on one site.
type session struct {
	*site
	cmd    *exec.Cmd
	cancel context.CancelFunc
	from   usage // when the workload began
	fromD  usage
}

func (b *bench) begin(ctx context.Context, c contender, prepare func(*site) error) (*session, error) {
	s, err := newSite(b.dir)
	if err != nil {
		return nil, err
	}
	if prepare != nil {
		if err := prepare(s); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	ses := &session{site: s, cancel: cancel}
	if ses.cmd, err = c.start(ctx, s); err != nil {
		cancel()
		return nil, errors.Join(err, s.close())
	}
	if c.ready != nil {
		if err := c.ready(ctx, s); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", c.name, err), ses.end())
		}
	}
	return ses, ses.mark()
}

func (s *session) mark() (err error) {
	if s.from, err = usageOf(s.cmd.Process.Pid); err != nil {
		return err
	}
	s.fromD, err = usageOf(s.PID())
	return err
}

// spent adds what contender and daemon have used since mark to r.
func (s *session) spent(r round, key string) error {
	u, err := usageOf(s.cmd.Process.Pid)
	if err != nil {
		return err
	}
	d, err := usageOf(s.PID())
	if err != nil {
		return err
	}
	r[key+"/cpu"] = (u.cpu - s.from.cpu).Seconds()
	r[key+"/daemon cpu"] = (d.cpu - s.fromD.cpu).Seconds()
	r[key+"/peak MB"] = float64(u.peak) / (1 << 20)
	r[key+"/rss MB"] = float64(u.rss) / (1 << 20)
	return nil
}

func (s *session) end() error {
	s.cancel()
	_ = s.cmd.Wait() // ended by our signal: its status says nothing
	return s.close()
}

// peerWait is how long a peer gets until the trees have to be equal. Some never make the times of directories so.
const peerWait = 20 * time.Second

// equal waits until the trees are equal and gives the time since start, or notes a wrong run.
func (b *bench) equal(ctx context.Context, s *session, key string, start time.Time) time.Duration {
	var last error
	var at time.Duration
	err := poll(ctx, b.patience(key), soon, func() error {
		at = time.Since(start)
		last = b.compare(s.src, s.dst)
		return last
	})
	if err != nil {
		b.wrong = append(b.wrong, fmt.Sprintf("%s: %v", key, last))
		b.log("%s: NOT EQUAL: %v", key, last)
	}
	return at
}

// settled waits until the directories of a burst have their times on the backup, or for what equal waits: to compare all files over and
// over would take a core from what is measured.
func (b *bench) settled(ctx context.Context, s *session, key string, dirs int) {
	_ = poll(ctx, b.patience(key), soon, func() error { // equal tells what is wrong
		for i := dirs - 1; i >= 0; i-- {
			rel := burstDir("burst", i)
			src, err := os.Lstat(filepath.Join(s.src, rel))
			if err != nil {
				return err
			}
			dst, err := os.Lstat(filepath.Join(s.dst, rel))
			if err != nil {
				return err
			}
			if !dst.ModTime().Equal(src.ModTime()) {
				return errors.New(rel)
			}
		}
		return nil
	})
}

// patience is how long a contender gets until the trees have to be equal.
func (b *bench) patience(key string) time.Duration {
	if !strings.Contains(key, "/lockstep") {
		return min(b.sizes.wait, peerWait)
	}
	return b.sizes.wait
}

// latency runs a workload whose writes are observed one by one: W1, W2, W6, W8.
func (b *bench) latency(ctx context.Context, r round, key string, c contender, dirs int, prepare func(*site) error,
	work func(context.Context, *site, []string, func(string, uint64)) error) (err error) {
	var names []string
	ses, err := b.begin(ctx, c, func(s *site) error {
		var err error
		if names, err = makeDirs(dirs, s.src, s.dst); err != nil || prepare == nil {
			return err
		}
		return prepare(s)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ses.end()) }()
	o, err := observe(ses.dst, names)
	if err != nil {
		return err
	}
	if err := work(ctx, ses.site, names, o.wrote); err != nil {
		return err
	}
	end := time.Now()
	samples, missing, err := o.finish(b.patience(key))
	if err != nil {
		return err
	}
	r[key+"/converge"] = b.equal(ctx, ses, key, end).Seconds()
	if err := ses.spent(r, key); err != nil {
		return err
	}
	for name, q := range map[string]float64{"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1} {
		r[key+"/"+name] = quantile(samples, q).Seconds()
	}
	r[key+"/lost"] = float64(missing)
	b.samples[key] = append(b.samples[key], samples...)
	b.log("%-22s p50 %6.1f ms  p99 %7.1f ms  lost %d  cpu %.2f s", key, 1e3*r[key+"/p50"], 1e3*r[key+"/p99"], missing, r[key+"/cpu"])
	return nil
}

// bursts runs W3 and W7: many files at once; with remove also how long their deletion takes to arrive.
func (b *bench) bursts(ctx context.Context, r round, key string, c contender, n, perDir, size int, remove bool) (err error) {
	ses, err := b.begin(ctx, c, func(s *site) error { return os.WriteFile(filepath.Join(s.src, "keep"), []byte("keep"), 0o644) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ses.end()) }()
	start := time.Now()
	top := filepath.Join(ses.src, "burst")
	if err := os.Mkdir(top, 0o755); err != nil {
		return err
	}
	if err := burst(top, n, perDir, size); err != nil {
		return err
	}
	end := time.Now()
	b.settled(ctx, ses, key, n/perDir)
	r[key+"/converge"] = b.equal(ctx, ses, key, end).Seconds()
	r[key+"/total"] = r[key+"/converge"] + end.Sub(start).Seconds()
	if err := ses.spent(r, key); err != nil {
		return err
	}
	if remove {
		if err := os.RemoveAll(top); err != nil {
			return err
		}
		end := time.Now()
		if err := poll(ctx, b.sizes.wait, soon, func() error {
			if _, err := os.Lstat(filepath.Join(ses.dst, "burst")); !errors.Is(err, os.ErrNotExist) {
				return errors.New("the removed tree is still on the backup")
			}
			return nil
		}); err != nil {
			b.wrong = append(b.wrong, key+": "+err.Error())
		}
		r[key+"/rm"] = time.Since(end).Seconds()
		b.equal(ctx, ses, key+" after rm", end)
	}
	b.log("%-22s converged %.2f s after the end, total %.2f s, rm %.2f s, cpu %.2f s", key, r[key+"/converge"], r[key+"/total"], r[key+"/rm"], r[key+"/cpu"])
	return nil
}

// plainBurst measures the references of W3 and W7: the writer alone, one plain rsync, one recursive delete.
func (b *bench) plainBurst(ctx context.Context, r round, key string, n, perDir, size int) (err error) {
	s, err := newSite(b.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	top := filepath.Join(s.src, "burst")
	if err := os.Mkdir(top, 0o755); err != nil {
		return err
	}
	start := time.Now()
	if err := burst(top, n, perDir, size); err != nil {
		return err
	}
	r[key+"/writer"] = time.Since(start).Seconds()
	wall, cpu, err := s.rsync(ctx, "-a")
	if err != nil {
		return err
	}
	r[key+"/P"], r[key+"/P cpu"] = wall.Seconds(), cpu.Seconds()
	if err := os.RemoveAll(top); err != nil {
		return err
	}
	wall, _, err = s.rsync(ctx, "-a", "--delete")
	r[key+"/delete"] = wall.Seconds()
	b.log("%-22s writer %.2f s, P %.2f s (cpu %.2f s), recursive delete %.2f s", key, r[key+"/writer"], r[key+"/P"], cpu.Seconds(), wall.Seconds())
	return err
}

// connection measures U: the median of nine empty authenticated rsync connections.
func (b *bench) connection(ctx context.Context, r round) (err error) {
	s, err := newSite(b.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var all []float64
	for range 9 {
		wall, _, err := s.rsync(ctx, "-a", "--files-from=/dev/null")
		if err != nil {
			return err
		}
		all = append(all, wall.Seconds())
	}
	r["U"] = median(all)
	b.log("%-22s U %.1f ms", "reference", 1e3*r["U"])
	return nil
}

// churned is W4: random operations, and then how long until the trees are equal.
func (b *bench) churned(ctx context.Context, r round, key string, c contender, seed uint64) (err error) {
	ses, err := b.begin(ctx, c, func(s *site) error { return os.WriteFile(filepath.Join(s.src, "keep"), []byte("keep"), 0o644) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ses.end()) }()
	if err := churn(ctx, ses.src, b.sizes.churn, seed); err != nil {
		return err
	}
	r[key+"/converge"] = b.equal(ctx, ses, key, time.Now()).Seconds()
	b.log("%-22s equal after %.2f s", key, r[key+"/converge"])
	return ses.spent(r, key)
}

// eventRate is how many events a second W9 makes.
const eventRate = 100_000

// events is W9: whether the kernel's queue overflows under many events.
func (b *bench) events(ctx context.Context, r round, key string, c contender) (err error) {
	var dirs []string
	ses, err := b.begin(ctx, c, func(s *site) (err error) {
		dirs, err = makeDirs(10, s.src, s.dst)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ses.end()) }()
	rate := eventRate/3 + eventRate/100 // a little more, or a late writer makes less
	n := rate * b.sizes.seconds
	start := time.Now()
	var writers errgroup.Group
	for half := range 2 { // one writer alone does not make as many
		writers.Go(func() error { return comeAndGo(ctx, ses.src, dirs[5*half:5*half+5], n/2, rate/2) })
	}
	if err := writers.Wait(); err != nil {
		return err
	}
	end := time.Now()
	r[key+"/events a second"] = 3 * float64(n) / end.Sub(start).Seconds()
	st, err := lockstepStatus(ctx, ses.site)
	if err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	if r[key+"/events a second"] >= eventRate {
		r[key+"/overflows"] = float64(st.Watch.Overflows)
	}
	r[key+"/converge"] = b.equal(ctx, ses, key, end).Seconds()
	b.log("%-22s %.0f events a second, %d overflows, equal after %.2f s", key, r[key+"/events a second"], st.Watch.Overflows, r[key+"/converge"])
	return ses.spent(r, key)
}

// pending is W10: what the agent needs while the backup host is down and everything changes.
func (b *bench) pending(ctx context.Context, r round, key string, c contender) (err error) {
	var dirs []string
	ses, err := b.begin(ctx, c, func(s *site) (err error) {
		dirs, err = makeDirs(1000, s.src, s.dst)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ses.end()) }()
	if err := ses.Stop(); err != nil {
		return err
	}
	for i := range b.sizes.pending {
		if err := os.WriteFile(filepath.Join(ses.src, dirs[i%len(dirs)], strconv.Itoa(i)), nil, 0o644); err != nil {
			return err
		}
	}
	time.Sleep(5 * time.Second) // all events are read
	u, err := usageOf(ses.cmd.Process.Pid)
	if err != nil {
		return err
	}
	r[key+"/peak MB"] = float64(u.peak) / (1 << 20)
	if err := ses.Start(); err != nil {
		return err
	}
	start := time.Now()
	if err := poll(ctx, b.sizes.wait, later, func() error {
		st, err := lockstepStatus(ctx, ses.site)
		if err == nil && st.State != "in step" {
			err = fmt.Errorf("lockstep is %q", st.State)
		}
		return err
	}); err != nil {
		return err
	}
	r[key+"/converge"] = b.equal(ctx, ses, key, start).Seconds()
	b.log("%-22s %d paths pending: peak %.0f MB, equal %.1f s after the backup is back", key, b.sizes.pending, r[key+"/peak MB"], r[key+"/converge"])
	return nil
}

// allocations runs the micro-benchmarks of the way of an event: what the watcher makes of a new file, and the queue.
func (b *bench) allocations(ctx context.Context, r round) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^Benchmark(Events|AddNewPaths)$", "./agent/watch", "./agent/queue")
	cmd.Env = append(os.Environ(), "TMPDIR="+b.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go test: %w: %s", err, out)
	}
	found := map[string]float64{}
	for _, m := range allocsPer.FindAllStringSubmatch(string(out), -1) {
		if found[m[1]], err = strconv.ParseFloat(m[2], 64); err != nil {
			return err
		}
	}
	queue, ok := found["AddNewPaths"]
	if !ok {
		return fmt.Errorf("go test tells of no allocations: %s", out)
	}
	for _, backend := range []string{"inotify", "fanotify"} {
		if watch, ok := found["Events/"+backend]; ok { // fanotify needs root
			r["allocations/"+backend] = watch + queue
			b.log("%-22s %.2f an event", "allocations/"+backend, watch+queue)
		}
	}
	return nil
}

var allocsPer = regexp.MustCompile(`(?m)^Benchmark(\S+?)(?:-\d+)?\s.*\s([\d.]+) allocs/(?:op|event)`)

// manyDirs is W5: start on a large tree that is in step already.
func (b *bench) manyDirs(ctx context.Context, r round, s *site, key string, c contender) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	start := time.Now()
	cmd, err := c.start(ctx, s)
	if err != nil {
		cancel()
		return err
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // ended by our signal: its status says nothing
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, "state")))
	}()
	// A probe every 50 ms from the start: the first to arrive tells when live changes are served.
	probes := make(chan struct{})
	go func() {
		defer close(probes)
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := os.Lstat(filepath.Join(s.dst, "a000", "probe")); err == nil {
				r[key+"/first live"] = time.Since(start).Seconds()
				return
			}
			if i%10 == 0 {
				if err := os.WriteFile(filepath.Join(s.src, "a000", "probe"), []byte(time.Now().String()), 0o644); err != nil {
					b.log("%s: %v", key, err)
					return
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	err = poll(ctx, b.sizes.wait, later, func() error {
		st, err := lockstepStatus(ctx, s)
		if err == nil && st.State != "in step" {
			err = fmt.Errorf("lockstep is %q", st.State)
		}
		return err
	})
	r[key+"/verified"] = time.Since(start).Seconds()
	<-probes
	if err != nil {
		return err
	}
	before, err := usageOf(cmd.Process.Pid)
	if err != nil {
		return err
	}
	const idle = 10 * time.Second
	time.Sleep(idle)
	after, err := usageOf(cmd.Process.Pid)
	if err != nil {
		return err
	}
	r[key+"/idle %"] = 100 * (after.cpu - before.cpu).Seconds() / idle.Seconds()
	r[key+"/rss MB"], r[key+"/peak MB"] = float64(after.rss)/(1<<20), float64(after.peak)/(1<<20)
	b.log("%-22s first live %.2f s, verified %.2f s, idle %.2f %%, rss %.0f MB", key, r[key+"/first live"], r[key+"/verified"], r[key+"/idle %"], r[key+"/rss MB"])
	for _, root := range []string{s.src, s.dst} { // as it was, for the next contender
		if err := os.Remove(filepath.Join(root, "a000", "probe")); err != nil {
			return err
		}
		at := time.Unix(1_700_000_000, 123_456_789)
		if err := os.Chtimes(filepath.Join(root, "a000"), at, at); err != nil {
			return err
		}
	}
	return nil
}

// plainManyDirs measures the references of W5: a bare walk of all directories, and a no-op rsync.
func (b *bench) plainManyDirs(ctx context.Context, r round, s *site) error {
	start := time.Now()
	var walk func(dir string) error
	walk = func(dir string) error {
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				err = errors.Join(err, walk(dir+"/"+e.Name()))
			}
		}
		return err
	}
	if err := walk(s.src); err != nil {
		return err
	}
	r["W5/walk"] = time.Since(start).Seconds()
	wall, _, err := s.rsync(ctx, "-a", "--delete")
	r["W5/noop"] = wall.Seconds()
	b.log("%-22s walk %.2f s, no-op rsync %.2f s", "W5", r["W5/walk"], r["W5/noop"])
	return err
}
