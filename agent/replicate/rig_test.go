// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// bubble runs a test in its own time.
func bubble(t *testing.T, change func(*pair.Pair), test func(t *testing.T, r *rig)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, change)
		test(t, r)
		if r.cancel != nil {
			r.stop()
		}
	})
}

// rig is a loop between fakes, inside a synctest bubble: time passes only when everything waits.
type rig struct {
	t    *testing.T
	e    *fakeEngine
	w    *fakeWatcher
	l    *loop
	log  *logBuffer
	told []string

	mu       sync.Mutex
	watchers int   // made so far
	watchErr error // for the next one
	mounts   []string
	cancel   context.CancelFunc
	ended    chan error
}

func newRig(t *testing.T, change func(*pair.Pair)) *rig {
	t.Helper()
	r := &rig{t: t, e: newFakeEngine(), log: &logBuffer{}}
	p := pair.Defaults()
	p.Name = "data"
	p.Source = pair.Source{Host: "nfs01", Path: "/data"}
	p.Backup.Host, p.Backup.Path = "backup", "/backup"
	p.Full.Every = ""
	p.Complete()
	if change != nil {
		change(&p)
	}
	agent, err := New(Options{
		Pair: p, StateDir: t.TempDir(), RuntimeDir: t.TempDir(),
		Log:    slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Notify: func(s string) { r.mu.Lock(); r.told = append(r.told, s); r.mu.Unlock() },
	})
	if err != nil {
		t.Fatal(err)
	}
	agent.watcher = func(pair.Pair, *watch.Exclude, string, func(int)) (watch.Watcher, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.watchers++
		if r.watchErr != nil {
			return nil, r.watchErr
		}
		r.w = &fakeWatcher{reports: make(chan watch.Report), ready: make(chan struct{}), end: make(chan error), info: watch.Info{Backend: "fake", Mounts: r.mounts}}
		close(r.w.ready)
		return r.w, nil
	}
	if r.l, err = newLoop(agent, r.e, nil); err != nil {
		t.Fatal(err)
	}
	r.l.door.foreign = false // it was in step before; see mirror_test.go
	r.l.cookies = t.TempDir()
	return r
}

// begin starts with these files in the source, and lets the first full batch come to its end.
func (r *rig) begin(files ...string) {
	for _, p := range files {
		r.e.src.put(p, node{data: "1"})
	}
	r.start()
	r.after(time.Second)
}

// start runs the loop and lets the first full batch come to its end.
func (r *rig) start() *rig {
	ctx, cancel := context.WithCancel(r.t.Context())
	r.cancel, r.ended = cancel, make(chan error, 1)
	go func() { r.ended <- r.l.run(ctx) }()
	synctest.Wait()
	return r
}

// settles lets time pass, after which the pair must be in step.
func (r *rig) settles(d time.Duration) {
	r.t.Helper()
	r.after(d)
	r.wantState(InStep)
	r.wantEqual()
}

func (r *rig) stop() {
	r.t.Helper()
	r.cancel()
	if err := <-r.ended; err != nil {
		r.t.Errorf("the loop ended with %v", err)
	}
	if r.t.Failed() {
		r.t.Logf("end of the log:\n%s", r.log.tail(60))
		all := append(slices.Clone(r.e.runs), r.e.told...)
		slices.SortStableFunc(all, func(a, b fakeRun) int { return int(a.at - b.at) })
		for _, run := range all[max(0, len(all)-120):] {
			r.t.Log(run)
		}
	}
}

// toldManager is what the service manager was told so far.
func (r *rig) toldManager() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.told)
}

// after lets time pass.
func (r *rig) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// events delivers events.
func (r *rig) events(events ...watch.Event) {
	told := fakeRun{at: time.Since(r.e.began), what: "events"}
	for _, e := range events {
		told.job = append(told.job, fmt.Sprintf("%s %d dir=%v tree=%v", e.Path, e.Op, e.Dir, e.Tree))
	}
	r.e.set(func() { r.e.told = append(r.e.told, told) })
	r.w.reports <- watch.Report{Events: events}
}

// write changes a file in the source and tells of it.
func (r *rig) write(p, data string) {
	r.e.mu.Lock()
	_, was := r.e.src[p]
	r.e.src.put(p, node{data: data})
	r.e.mu.Unlock()
	op := watch.Modify
	if !was {
		op |= watch.Create
	}
	r.events(watch.Event{Path: p, Op: op})
}

// barrier waits in a goroutine until all that happened is on the backup. Its cookie has come out of the kernel's queue.
func (r *rig) barrier(ctx context.Context) (passed <-chan error) {
	r.t.Helper()
	result := make(chan error, 1)
	go func() { result <- r.l.wait(ctx) }()
	r.cookie()
	return result
}

// passes reports whether a barrier has been passed.
func (r *rig) passes(barrier <-chan error) bool {
	r.t.Helper()
	select {
	case err := <-barrier:
		if err != nil {
			r.t.Errorf("the barrier ended with %v", err)
		}
		return true
	default:
		return false
	}
}

// approve approves what is held.
func (r *rig) approve() Approval {
	r.t.Helper()
	a, err := r.l.approve(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

// cookie tells of the cookie of the one barrier that somebody waits at.
func (r *rig) cookie() {
	r.t.Helper()
	synctest.Wait()
	var cookie string
	if err := r.l.call(r.t.Context(), func(time.Time) {
		for cookie = range r.l.barriers {
		}
	}); err != nil || cookie == "" {
		r.t.Fatalf("no barrier: %v", err)
	}
	r.events(watch.Event{Cookie: cookie})
}

// writeAll makes files in the source and tells of all of them at once.
func (r *rig) writeAll(n node, paths ...string) {
	var events []watch.Event
	r.e.set(func() {
		for _, p := range paths {
			r.e.src.put(p, n)
			events = append(events, watch.Event{Path: p, Op: watch.Create})
		}
	})
	r.events(events...)
}

// numbered are n names.
func numbered(format string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf(format, i)
	}
	return out
}

// rm removes a path with everything below it, and tells of all of it, children first.
func (r *rig) rm(p string) {
	r.e.mu.Lock()
	var events []watch.Event
	gone := r.e.src.below(p)
	slices.Reverse(gone)
	for _, q := range append(gone, p) {
		events = append(events, watch.Event{Path: q, Op: watch.Delete, Dir: r.e.src[q].dir})
	}
	r.e.src.remove(p)
	r.e.mu.Unlock()
	r.events(events...)
}

// backup is the content of a file on the backup.
func (r *rig) backup(p string) string {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	return r.e.dst[p].data
}

func (r *rig) onBackup(p string) bool {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	_, ok := r.e.dst[p]
	return ok
}

func (r *rig) status() Status {
	r.t.Helper()
	var s Status
	if err := r.l.call(r.t.Context(), func(now time.Time) { s = r.l.status(now) }); err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) wantState(want State, words ...string) Status {
	r.t.Helper()
	s := r.status()
	if s.State != want {
		r.t.Errorf("state is %s (%s), want %s", s.State, s.Reason, want)
	}
	for _, w := range words {
		if !strings.Contains(s.Reason+" "+s.Hint, w) {
			r.t.Errorf("reason %q, hint %q: nothing about %q", s.Reason, s.Hint, w)
		}
	}
	return s
}

// wantSleep is for a loop that waits for the end of something.
func (r *rig) wantSleep() {
	r.t.Helper()
	var sleep time.Duration
	if err := r.l.call(r.t.Context(), func(now time.Time) { sleep = r.l.sleep(now) }); err != nil {
		r.t.Fatal(err)
	}
	if sleep <= time.Millisecond {
		r.t.Errorf("the loop wakes up every %v", sleep)
	}
}

// wantEqual compares source and backup.
func (r *rig) wantEqual() {
	r.t.Helper()
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	if !maps.Equal(r.e.src, r.e.dst) {
		r.t.Errorf("source %v\nbackup %v", r.e.src, r.e.dst)
	}
}
