// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/queue"
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
	exclude  *watch.Exclude
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
	kept      kept
	watch     watchState
	links     links
	leftovers leftovers
	walked    walked
	mounts    mounts // below the source, seen once
	open      openFiles
	distrust  distrust
	paused    bool
	// notReloaded is why the definition on disk is not in force; nil when it is.
	notReloaded error
	stopping    bool

	jobs    jobs
	standby standby
	flying  map[*work]struct{} // in flight in the queue: running or waiting
	waiting []*work            // prepared, without a slot yet
	passed  []finding          // deletions that the door let through
	unknown int                // transfers in a row that ended in a way that is not understood

	started   time.Time
	standing  standing
	manager   manager
	counters  Counters
	latency   latencies
	notes     []Note
	barriers  map[string]*barrier
	moving    moving // nil when no verification runs
	children  children
	nextProbe time.Time // not before
	heard     time.Time // when the backup last took something, or answered a probe
	heldCheck time.Time // when held deletions are next held against the disk
	hooks     hookRun
}

// newLoop takes what is known of the source directory; nil when that is nothing.
func newLoop(a *Agent, eng engine, known *provisioned) (*loop, error) {
	l := &loop{
		agent:    a,
		pair:     a.opts.Pair,
		user:     a.opts.User,
		eng:      eng,
		log:      a.opts.Log,
		inbox:    make(chan func(time.Time), inboxSize),
		quit:     make(chan struct{}),
		open:     openFiles{},
		distrust: distrust{},
		walked:   walked{},
		jobs:     jobs{},
		flying:   map[*work]struct{}{},
		barriers: map[string]*barrier{},
		standing: standing{state: Starting},
	}
	p := l.pair
	l.q = queue.New(queue.Options{
		Delay:    time.Duration(p.Watch.Delay),
		MaxDelay: time.Duration(p.Watch.MaxDelay),
		Size:     l.sizeBelow,
	})
	l.door = newDoor(p.Delete.Enabled, p.Delete.MaxFiles, p.Delete.MaxPercent, time.Duration(p.Watch.MaxDelay))
	l.door.foreign = known == nil || known.Mirror != mirrorOf(p)
	if known != nil {
		l.source.want = &known.Identity
	}
	l.ledger = newLedger(time.Duration(p.Retry.Initial), time.Duration(p.Retry.Max))
	l.counters.Transfers = map[string]int64{}
	var err error
	if l.exclude, err = watch.NewExclude(p.Exclude); err != nil {
		return nil, err
	}
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

// post hands f to the loop, which runs it unless it has ended.
func (l *loop) post(f func(now time.Time)) {
	select {
	case l.inbox <- f:
	case <-l.quit:
	}
}

// call runs f in the loop and waits until it has. When it returns an error because ctx has ended, f may run nevertheless: whoever
// must undo it posts that whatever call returns, and it runs after f.
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
	l.started, l.standing.since, l.heard = now, now, now
	jobsCtx, stopJobs := context.WithCancel(context.WithoutCancel(ctx))
	defer stopJobs()
	l.jobsCtx = jobsCtx
	watchCtx, stopWatch := context.WithCancel(jobsCtx)
	defer stopWatch()
	if err := l.startHooks(ctx, l.pair); err != nil {
		return err
	}
	l.requestFull(atStart)
	if l.leftovers.wanted {
		l.full.retry = l.leftovers.at // so that one comparison does for both
	}
	reports := l.startWatcher(watchCtx, now)
	defer func() {
		l.group.Wait()
		l.eng.Close()
	}()
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
			l.jobs.endInterruptible()
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
			l.startReload()
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
		l.lookBehindHeld()
		l.completeFull(now)
		l.checkBarriers() // before the schedule: it may ask for a full batch
		l.schedule(now)
		l.watchChildren(now)
		l.setState(now)
		l.tell(now)
		timer.Reset(l.sleep(now))
	}
}
