// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/queue"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

const (
	// batchPaths bounds one batch: at 50 µs an entry it takes a quarter of a second to list.
	batchPaths = 5000

	// settleDir is how long a directory must be quiet whose time stamp may be stale on the backup. It is sent with
	// the time stamp that it has then, once instead of with every batch.
	settleDir = 150 * time.Millisecond

	// stopGrace is how long running transfers may go on after the agent was told to stop. The unit's
	// TimeoutStopSec must be longer.
	stopGrace = 10 * time.Second

	// inboxSize lets jobs and handlers go on while the loop is busy; its order is what counts, not its size.
	inboxSize = 64

	// ledgerBatch is how many paths of the ledger are tried in one run: a bad one is told by name.
	ledgerBatch = 100

	// shownLedger is how many entries of the ledger the status names.
	shownLedger = 50

	// tick is the longest time the loop sleeps: ages and the watchdog go on.
	tick = 10 * time.Second
)

// loop owns all state. Everything else runs in goroutines that post what they found to the inbox.
type loop struct {
	agent    *Agent
	pair     pair.Pair
	user     string
	eng      engine
	retired  []engine // from before a reload, while their jobs run
	log      *slog.Logger
	versions Versions
	cookies  string

	inbox chan func(now time.Time)
	quit  chan struct{} // closed when the loop reads the inbox no more
	group sync.WaitGroup
	// jobsCtx ends when running transfers must stop; it outlives the context of run.
	jobsCtx context.Context

	q         *queue.Queue
	door      *door
	ledger    *ledger
	outage    *outage
	source    source
	full      full
	watch     watchState
	links     links
	leftovers leftovers
	walked    walked
	mounts    mounts // below the source, seen once
	open      map[string]openFile
	distrust  map[string]struct{} // paths that must be sent by their contents
	paused    bool
	// notReloaded is why the definition on disk is not in force; nil when it is.
	notReloaded error
	stopping    bool

	jobs    map[*job]struct{}
	flying  map[*work]struct{} // in flight in the queue: running or waiting
	waiting []*work            // prepared, without a slot yet
	passed  []finding          // deletions that the door let through
	unknown int                // transfers in a row that ended in a way that is not understood

	started    time.Time
	state      State
	reason     string
	stateSince time.Time
	lastInStep time.Time
	counters   Counters
	latency    latencies
	notes      []Note
	barriers   map[string]*barrier
	moving     map[string]struct{} // paths handed out while a verification runs; nil without one
	told       string              // the last STATUS=
	ready      bool                // READY=1 was sent
	lastPing   time.Time
	children   children
	nextProbe  time.Time // for the sake of a suspect transfer
	heldCheck  time.Time // when held deletions are next held against the disk
	hooks      hookRun
}

// source is what is known of the directory at the source path.
type source struct {
	want     *transfer.Identity // nil until the first look
	got      transfer.Identity  // the one that is there instead
	other    bool               // another one was there since ok
	ok       bool
	looked   bool // at least once
	err      error
	looking  bool
	next     time.Time
	failures int
	lost     bool // the watcher says that the directory is gone
}

// watchState is what is known of the watcher.
type watchState struct {
	w         watch.Watcher
	info      watch.Info
	ready     bool
	fault     error // standing
	failed    error // the watcher ended; it is started again at retry
	retry     time.Time
	failures  int
	overflows int64
	dirs      int // watched so far, while not ready
	end       context.CancelFunc
	again     bool // it was told to end, and another must follow
}

func newLoop(a *Agent, eng engine, want *transfer.Identity) (*loop, error) {
	l := &loop{
		agent:    a,
		pair:     a.opts.Pair,
		user:     a.opts.User,
		eng:      eng,
		log:      a.opts.Log,
		inbox:    make(chan func(time.Time), inboxSize),
		quit:     make(chan struct{}),
		open:     map[string]openFile{},
		distrust: map[string]struct{}{},
		walked:   walked{},
		jobs:     map[*job]struct{}{},
		flying:   map[*work]struct{}{},
		barriers: map[string]*barrier{},
		state:    Starting,
	}
	l.source.want = want
	p := l.pair
	l.q = queue.New(queue.Options{
		Delay:    time.Duration(p.Watch.Delay),
		MaxDelay: time.Duration(p.Watch.MaxDelay),
		Size:     l.sizeBelow,
	})
	l.door = newDoor(p.Delete.Enabled, p.Delete.MaxFiles, p.Delete.MaxPercent, time.Duration(p.Watch.MaxDelay))
	l.ledger = newLedger(time.Duration(p.Retry.Initial), time.Duration(p.Retry.Max))
	l.counters.Transfers = map[string]int64{}
	var err error
	l.full.schedule, err = p.Full.Schedule()
	return l, err
}

// sizeBelow is known of the root only.
func (l *loop) sizeBelow(dir string) int {
	if dir == "" && l.door.counted {
		return l.door.total
	}
	return 0
}

// post hands f to the loop. It reports whether the loop will run it.
func (l *loop) post(f func(now time.Time)) bool {
	select {
	case l.inbox <- f:
		return true
	case <-l.quit:
		return false
	}
}

// call runs f in the loop and waits until it has.
func (l *loop) call(ctx context.Context, f func(now time.Time)) error {
	done := make(chan struct{})
	g := func(now time.Time) {
		f(now)
		close(done)
	}
	select {
	case l.inbox <- g:
	case <-l.quit:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-l.quit:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errStopped = errors.New("the agent is stopping")

// run is the loop. When ctx ends it stops in this order: STOPPING=1, no more events and no new jobs, running
// transfers get stopGrace, then their context ends, which sends SIGTERM and later SIGKILL. What is dirty then
// needs no saving: every start begins with a full batch.
func (l *loop) run(ctx context.Context) error {
	now := time.Now()
	l.started, l.stateSince = now, now
	jobsCtx, stopJobs := context.WithCancel(context.WithoutCancel(ctx))
	defer stopJobs()
	l.jobsCtx = jobsCtx
	watchCtx, stopWatch := context.WithCancel(jobsCtx)
	defer stopWatch()
	if err := l.startHooks(ctx, l.pair); err != nil {
		return err
	}
	l.requestFull(now, atStart)
	if l.leftovers.wanted {
		l.full.retry = l.leftovers.at // so that one comparison does for both
	}
	reports := l.startWatcher(watchCtx, now)
	defer l.group.Wait()
	defer close(l.quit)

	timer := time.NewTimer(0)
	defer timer.Stop()
	stop := ctx.Done()
	var killAt time.Time
	for {
		select {
		case <-stop:
			stop = nil
			now = time.Now()
			l.stopping = true
			killAt = now.Add(stopGrace)
			l.agent.opts.Notify("STOPPING=1")
			l.log.Info("stopping: running transfers get some time to finish", "transfers", len(l.jobs))
			stopWatch()
			l.cancelInterruptible()
		case r, ok := <-reports:
			now = time.Now()
			if ok {
				l.report(now, r)
			} else {
				reports = nil
			}
		case f := <-l.inbox:
			now = time.Now()
			f(now)
		case <-l.agent.reload:
			now = time.Now()
			l.startReload(now)
		case <-timer.C:
			now = time.Now()
		}
		// What has piled up is taken in before anything is decided, so that a batch is as large as it can be.
		for more := true; more; {
			select {
			case r, ok := <-reports:
				if ok {
					l.report(now, r)
				} else {
					reports = nil
				}
			case f := <-l.inbox:
				f(now)
			default:
				more = false
			}
		}
		if l.stopping {
			if !now.Before(killAt) {
				stopJobs()
			}
			if len(l.jobs) == 0 && reports == nil {
				l.setState(now)
				return nil
			}
			timer.Reset(min(time.Second, max(0, killAt.Sub(now))+time.Millisecond))
			continue
		}
		if reports == nil && (l.watch.again || l.watch.failed != nil && !now.Before(l.watch.retry)) {
			reports = l.startWatcher(watchCtx, now)
		}
		l.completeFull(now)
		l.checkBarriers(now) // before the schedule: it may ask for a full batch
		l.schedule(now)
		l.watchChildren(now)
		l.setState(now)
		l.tell(now)
		timer.Reset(l.sleep(now))
	}
}

// startWatcher runs a new watcher. Its reports end when it does.
func (l *loop) startWatcher(ctx context.Context, now time.Time) <-chan watch.Report {
	l.watch.again = false
	w, err := l.agent.watcher(l.pair, l.cookies, func(dirs int) {
		l.post(func(now time.Time) {
			l.watch.dirs = dirs
			l.extend(now)
		})
	})
	if err != nil {
		l.watcherEnded(now, err)
		return nil
	}
	l.watch.w, l.watch.info, l.watch.ready, l.watch.fault, l.watch.failed = w, w.Info(), false, nil, nil
	ctx, l.watch.end = context.WithCancel(ctx)
	l.group.Go(func() {
		err := w.Run(ctx)
		if err == nil && ctx.Err() == nil {
			err = errors.New("the watcher ended by itself")
		}
		l.post(func(now time.Time) {
			if ctx.Err() == nil {
				l.watcherEnded(now, err)
			}
		})
	})
	l.group.Go(func() {
		select {
		case <-w.Ready():
			debug.FreeOSMemory() // the walk needed twice what the watch needs from now on
			l.post(func(now time.Time) {
				if l.watch.w == w && ctx.Err() == nil {
					l.watch.ready, l.watch.failures = true, 0
					l.watch.info = w.Info()
					l.log.Info("watching", "backend", l.watch.info.Backend, "directories", l.watch.info.Directories, "reason", l.watch.info.Reason)
				}
			})
		case <-l.quit:
		case <-ctx.Done():
		}
	})
	return w.Reports()
}

// restartWatcher puts a new watcher in place of the one that runs.
func (l *loop) restartWatcher(now time.Time) {
	if l.watch.end == nil || l.watch.failed != nil {
		return // one is to come anyway
	}
	l.watch.end()
	l.watch.again, l.watch.ready = true, false
	l.full.valid = false
	l.requestFull(now, "the watcher was started again")
}

// watcherEnded notes that nothing is watched. The next watcher is followed by a full batch.
func (l *loop) watcherEnded(now time.Time, err error) {
	if l.watch.failed == nil || l.watch.failed.Error() != err.Error() {
		l.log.Error("the source cannot be watched; trying again", "path", l.pair.Source.Path, "err", err)
	}
	l.watch.failures++
	l.watch.failed, l.watch.ready = err, false
	l.full.valid = false
	l.watch.retry = now.Add(backoff(l.watch.failures, time.Second, 30*time.Second))
	l.requestFull(now, "the watcher was started again")
}

// report takes in one delivery of the watcher.
func (l *loop) report(now time.Time, r watch.Report) {
	events := r.Events
	if l.filterEvents() {
		events = slices.DeleteFunc(events, func(e watch.Event) bool { return !l.wanted(e) })
	}
	l.counters.Events += int64(len(events))
	l.doubt(now, events)
	l.q.Add(now, events)
	for i := range events {
		if c := events[i].Cookie; c != "" {
			l.cookieSeen(now, c)
		}
	}
	if slices.ContainsFunc(events, func(e watch.Event) bool { return e.Op&watch.Rescan != 0 && e.Tree }) {
		l.lookAtMounts(now) // a new one is told so
		l.heldCheck = now
	}
	if r.Fault != nil {
		l.watchFault(now, r.Fault)
	}
	if r.Restored {
		if l.source.lost {
			// There is a directory again; whether it is the right one is told by a look.
			l.source.lost, l.source.ok, l.source.next = false, false, now
		} else {
			l.note(now, "the watch is complete again")
			l.log.Info("the watch is complete again", "path", l.pair.Source.Path)
		}
		l.watch.fault = nil
		l.requestFull(now, "the watch was restored")
	}
}

func (l *loop) watchFault(now time.Time, fault error) {
	switch {
	case errors.Is(fault, watch.ErrOverflow):
		l.watch.overflows++
		l.note(now, "the kernel's event queue overflowed; what was lost is scanned again")
		l.log.Warn("the kernel's event queue overflowed; what was lost is scanned again", "path", l.pair.Source.Path,
			"hint", "raise fs.inotify.max_queued_events if this happens often")
	case errors.Is(fault, watch.ErrRootLost):
		if !l.source.lost {
			l.note(now, "the source directory is gone")
			l.log.Error("the source directory is gone: nothing is sent or deleted until it is back", "path", l.pair.Source.Path)
		}
		l.source.lost, l.source.ok, l.source.err = true, false, fault
		l.source.next = now.Add(time.Second)
		l.watch.fault = fault
		l.requestFull(now, "the source directory is back")
	default:
		if l.source.lost { // this fault has taken its place
			l.source.lost, l.source.ok, l.source.next = false, false, now
		}
		if l.watch.fault == nil || l.watch.fault.Error() != fault.Error() {
			l.note(now, fault.Error())
			l.log.Warn("the watch is incomplete: what is not watched is scanned at intervals", "path", l.pair.Source.Path, "err", fault)
		}
		l.watch.fault = fault
	}
}

// filterEvents reports whether some kind of event is switched off in the definition.
func (l *loop) filterEvents() bool { return len(l.pair.Watch.Events) < 5 }

// wanted reports whether an event is of a kind that the definition asks for. What stands for lost events always is.
func (l *loop) wanted(e watch.Event) bool {
	if e.Cookie != "" || e.Op&watch.Rescan != 0 && e.Tree || e.Op == 0 {
		return true
	}
	on := func(name string) bool { return slices.Contains(l.pair.Watch.Events, name) }
	// What is moved in from outside the tree is told as if it was made, and what is moved out as if it was deleted.
	if e.Op&(watch.Move|watch.Create) != 0 && on("move") {
		return true
	}
	ops := e.Op
	if ops&watch.Move != 0 {
		ops &^= watch.Create | watch.Delete // told by the move, which is off
	}
	return ops&watch.Create != 0 && on("create") || ops&watch.Modify != 0 && on("modify") ||
		ops&watch.Attrib != 0 && on("attrib") || ops&watch.Delete != 0 && on("delete")
}

// schedule starts whatever can be started.
func (l *loop) schedule(now time.Time) {
	l.lookAtSource(now)
	if !l.source.ok || l.paused {
		return
	}
	if o := l.outage; o != nil {
		if now.Before(o.next) && !o.probed {
			return
		}
		if o.probes() && !o.probed {
			l.probe(now)
			return
		}
		for len(l.jobs) == 0 && l.startOne(now) { // one job at a time, as a trial
		}
		if len(l.jobs) == 0 {
			l.outage = nil // nothing is left that could fail
		}
		return
	}
	for l.startOne(now) {
	}
	if at, ok := l.suspect(); ok && !now.Before(at) {
		l.probe(now)
	}
}

// startOne starts the most urgent thing that can be started, and reports whether there was one.
func (l *loop) startOne(now time.Time) bool {
	small, slow := l.slots()
	if slow > 0 && l.startWaiting(now, true) {
		return true
	}
	if small > 0 {
		if l.startWaiting(now, false) || l.startPassed(now) || l.startBatch(now) || l.startLedger(now) {
			return true
		}
	}
	return l.startInspection(now) || l.startHeldCheck(now) || l.startFull(now)
}

// slots returns how many more runs may be started: any, and slow ones, which must leave one for the small.
func (l *loop) slots() (small, slow int) {
	parallel := max(l.pair.Transfer.Parallel, 1)
	small, slow = parallel, max(parallel-1, 1)
	for j := range l.jobs {
		switch {
		case !j.slot:
		case j.slow:
			small--
			slow--
		default:
			small--
		}
	}
	return small, min(slow, small)
}

// gathering returns until when no further batch is started because one is on its way, while the next one grows. A run takes
// about 8 ms, most of which is spent on starting it. One that takes longer than watch.delay, because it carries much or
// goes far, has company.
func (l *loop) gathering() (until time.Time) {
	for j := range l.jobs {
		if t := j.started.Add(time.Duration(l.pair.Watch.Delay)); j.slot && !j.slow && t.After(until) {
			until = t
		}
	}
	return until
}

// sleep returns how long nothing has to be done.
func (l *loop) sleep(now time.Time) time.Duration {
	at := now.Add(tick)
	if d := l.agent.opts.Watchdog; d > 0 {
		at = now.Add(min(tick, d/2))
	}
	consider := func(t time.Time, ok bool) {
		if ok && t.Before(at) {
			at = t
		}
	}
	if l.watch.failed != nil {
		consider(l.watch.retry, true)
	}
	switch small, _ := l.slots(); {
	case !l.source.ok:
		consider(l.source.next, !l.source.looking)
	case l.paused:
	case l.outage != nil:
		consider(l.outage.next, !l.outage.probed)
	default:
		if small > 0 {
			if wake, ok := l.q.Wake(); ok {
				consider(later(wake, l.gathering()), true)
			}
			consider(l.ledger.wake())
		}
		consider(l.door.due())
		consider(l.fullWake())
		consider(l.suspect())
		consider(l.heldCheck, l.door.held != nil)
	}
	consider(l.childrenWake())
	// What is due now but could not be started waits for the end of something, which wakes the loop by itself.
	return max(at.Sub(now), time.Millisecond)
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// flyingPaths is how many paths are in flight.
func (l *loop) flyingPaths() int {
	n := len(l.passed)
	for w := range l.flying {
		n += len(w.batch.Entries)
	}
	return n
}

// oldest returns since when the longest waiting change is not on the backup. What is held or in the ledger does not count.
func (l *loop) oldest() (first time.Time, ok bool) {
	note := func(t time.Time, have bool) {
		if have && (!ok || t.Before(first)) {
			first, ok = t, true
		}
	}
	note(l.q.Oldest())
	note(l.door.oldest())
	for w := range l.flying {
		note(w.first, true)
	}
	for i := range l.passed {
		note(l.passed[i].first, true)
	}
	return first, ok
}

// note keeps something for the status that is worth knowing.
func (l *loop) note(now time.Time, text string) {
	const keep = 20
	if len(l.notes) >= keep {
		l.notes = slices.Delete(l.notes, 0, len(l.notes)-keep+1)
	}
	l.notes = append(l.notes, Note{now, text})
}

// decide is the one place where the state is decided.
func (l *loop) decide(now time.Time) (State, string) {
	switch {
	case l.paused:
		return Paused, "nothing is sent until `lockstep resume`"
	case l.source.err != nil && !l.source.ok:
		var other *errNotProvisioned
		if errors.As(l.source.err, &other) {
			return Held, l.source.err.Error()
		}
		if l.source.lost || errors.Is(l.source.err, watch.ErrRootLost) {
			return Held, fmt.Sprintf("the source directory %s is gone", l.pair.Source.Path)
		}
		return Failing, l.source.err.Error()
	case l.watch.failed != nil:
		return Failing, "the source cannot be watched: " + l.watch.failed.Error()
	case l.outage != nil && (l.outage.failures > 1 || l.outage.class != transfer.Transient):
		return Failing, l.outage.message
	case l.door.held != nil:
		return Held, l.door.held.reason
	case l.full.started == 0 || !l.source.ok:
		if n := l.watch.dirs; n > 0 && !l.watch.ready {
			return Starting, fmt.Sprintf("watching: %d directories so far", n)
		}
		return Starting, ""
	case l.watch.fault != nil:
		return Degraded, l.watch.fault.Error()
	case len(l.ledger.entries) > 0:
		e := l.ledger.list(1)[0]
		return Degraded, fmt.Sprintf("%s could not be sent, among them %q: %s", plural(len(l.ledger.entries), "path"), e.Path, e.Reason)
	case l.full.problem != "":
		return Degraded, l.full.problem
	case l.notReloaded != nil:
		return Degraded, "the definition was not reloaded, and the one before stays in force: " + strings.Join(strings.Fields(l.notReloaded.Error()), " ")
	}
	switch {
	case l.pair.HooksOnly() && l.watch.ready:
		return HooksOnly, ""
	case l.backlog() > 0, !l.full.valid, !l.watch.ready:
		return Behind, "" // it changes all the time: see words
	}
	return InStep, ""
}

// backlog is how many paths are on their way.
func (l *loop) backlog() int {
	return l.q.Len() + l.flyingPaths() + len(l.door.pending) + len(l.door.checking)
}

// words is the reason of the state.
func (l *loop) words(now time.Time) string {
	if l.state != Behind {
		return l.reason
	}
	n := l.backlog()
	if n == 0 {
		return l.fullWords()
	}
	first, ok := l.oldest()
	if !ok {
		first = now
	}
	reason := fmt.Sprintf("%s, the oldest for %s", plural(n, "path"), now.Sub(first).Round(time.Millisecond))
	if !l.full.valid {
		reason += "; " + l.fullWords()
	}
	return reason
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (l *loop) setState(now time.Time) {
	state, reason := l.decide(now)
	if state == InStep {
		l.lastInStep = now
	}
	was := l.state
	l.state, l.reason = state, reason
	if state == was {
		return
	}
	l.stateSince = now
	if quietState(state) && quietState(was) {
		return // in step and behind follow each other all day long, which is no news
	}
	level := slog.LevelInfo
	if state == Failing || state == Held || state == Degraded {
		level = slog.LevelWarn
	}
	words := l.words(now)
	l.note(now, joinWords(string(state), words))
	l.log.Log(context.Background(), level, "state", "state", string(state), "was", string(was), "reason", words, "hint", l.hint(state))
}

func quietState(s State) bool { return s == InStep || s == Behind }

func joinWords(state, reason string) string {
	if reason == "" {
		return state
	}
	return state + ": " + reason
}

// hint says what a person can do about a state.
func (l *loop) hint(s State) string {
	var other *errNotProvisioned
	var limit *watch.LimitError
	switch {
	case s == Held && errors.As(l.source.err, &other):
		return fmt.Sprintf("mount the right filesystem at %s; if this directory is meant to replace the old one: lockstep approve %s", other.path, l.pair.Name)
	case s == Held && !l.source.ok:
		return "it goes on by itself when the directory is back"
	case s == Held:
		return "lockstep approve " + l.pair.Name + " lets them pass; they lapse when the files are back"
	case s == Failing && l.outage != nil:
		return l.outage.hint
	case s == Degraded && errors.As(l.watch.fault, &limit):
		return fmt.Sprintf("sysctl -w %s=%d", limit.Sysctl, limit.Need)
	case s == Degraded && len(l.ledger.entries) > 0:
		return "lockstep status " + l.pair.Name + " names them; they are tried again by themselves"
	case s == Degraded && l.full.problem == "" && l.notReloaded != nil:
		return "mend the definition, or restart the agent where that is asked for; lockstep check FILE tells all that is wrong with it"
	case s == Failing && errors.Is(l.source.err, syscall.ENOSPC):
		return "make room on this host; lockstep goes on by itself"
	}
	return ""
}
