// SPDX-License-Identifier: Apache-2.0

// Package hooks tells others what has arrived on the backup: a command, a socket or a URL.
//
// It promises two things. Whoever tells it of an arrival never waits: a hook that hangs or fails costs nothing but its
// own queue, which has a bound. And what does not fit is not dropped silently: past the bound the paths become one
// batch that is full, which lists none and stands for the whole tree. What a hook was to be told when the agent
// ends is forgotten, and so is what it did not take after its retries.
package hooks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// maxBatches is how many batches wait for a hook one by one. What comes then joins the last of them.
	maxBatches = 64

	// maxPaths is how many paths wait for a hook, at about 100 bytes each. With more, all become one full batch.
	maxPaths = 10_000

	// The wait after a call that failed doubles from retryInitial to retryMax.
	retryInitial = time.Second
	retryMax     = 30 * time.Second
)

// pathPlace is what the path replaces in Argv and URL.
const pathPlace = "{path}"

// Hook is one hook. Type says which of the fields below Retries count.
type Hook struct {
	Name string
	Type string // command, socket, http
	// Include tells which paths the hook cares for; nil: all.
	Include func(path string, dir bool) bool
	Timeout time.Duration // of one call
	Retries int           // further calls after one that failed

	Argv         []string // with the element {path}: one call for each path
	IgnoreErrors bool     // any exit status is a success

	Network string // tcp, unix
	Address string

	URL         string // with {path} in it: one call for each path
	Method      string
	Match       string // held against the absolute path; its first group becomes {path}
	Kind        string // "", file, dir
	HeadersFile string
}

// Arrival is what has arrived on the backup in one go. Paths are relative to the source directory.
type Arrival struct {
	Sent    []string // they are on the backup as they were on the source
	Deleted []string // they are gone on the backup
	Full    bool     // more than is listed: anything may have arrived
}

// Status tells how a hook does. Its JSON form is an interface: fields are added, never renamed.
type Status struct {
	Name      string     `json:"name"`
	Type      string     `json:"type"`
	Calls     int64      `json:"calls"`    // those that were tried again count each time
	Failures  int64      `json:"failures"` // of the calls
	GivenUp   int64      `json:"given_up"` // what failed at each retry too
	Skipped   int64      `json:"skipped"`  // full batches and paths that have no call: see Hook.Kind and Hook.Match
	Collapsed int64      `json:"dropped_to_full"`
	Pending   int        `json:"pending"` // paths that wait; a full batch counts as one
	LastError string     `json:"last_error,omitempty"`
	LastAt    *time.Time `json:"last_error_at,omitempty"`
}

// Runner calls the hooks of one pair.
//
// Run is called once, blocks until its context ends, and has ended every call then. Notify and Status may be called at
// any time from any goroutine.
type Runner struct {
	hooks []*worker
}

// worker is one hook with its queue. Its goroutine alone makes calls.
type worker struct {
	Hook
	pair, root string
	log        *slog.Logger
	initial    time.Duration // the first wait after a failure
	match      *regexp.Regexp
	perPath    bool
	client     *http.Client
	wake       chan struct{}

	mu     sync.Mutex
	queue  []*batch
	paths  int // in all of queue
	status Status
	faulty bool // the last call failed, which was logged
	child  int  // the process of a running command; 0: none
}

// batch is some arrivals that are told together.
type batch struct {
	at    time.Time
	paths []change
	known map[string]int // path → index in paths
	full  bool
}

type change struct {
	path string
	kind string // "" until somebody looked at the disk
}

// New checks the hooks; root is the source directory. It starts nothing.
func New(pair, root string, hooks []Hook, log *slog.Logger) (*Runner, error) {
	r := &Runner{}
	for _, h := range hooks {
		w := &worker{Hook: h, pair: pair, root: root, log: log.With("hook", h.Name), initial: retryInitial, wake: make(chan struct{}, 1)}
		w.status.Name, w.status.Type = h.Name, h.Type
		if w.Timeout <= 0 {
			return nil, fmt.Errorf("hook %q: a timeout of %v", h.Name, h.Timeout)
		}
		switch h.Type {
		case "command":
			if len(h.Argv) == 0 || !filepath.IsAbs(h.Argv[0]) {
				return nil, fmt.Errorf("hook %q: argv does not begin with the absolute path of a program", h.Name)
			}
			w.perPath = slices.Contains(h.Argv, pathPlace)
		case "socket":
		case "http":
			w.perPath = strings.Contains(h.URL, pathPlace)
			w.client = newClient()
			if h.Match != "" {
				var err error
				// (?s): the name of a file may have line breaks.
				if w.match, err = regexp.Compile("(?s)" + h.Match); err != nil {
					return nil, fmt.Errorf("hook %q: %w", h.Name, err)
				}
				if w.match.NumSubexp() < 1 {
					return nil, fmt.Errorf("hook %q: %q has no group", h.Name, h.Match)
				}
			}
		default:
			return nil, fmt.Errorf("hook %q: unknown type %q", h.Name, h.Type)
		}
		r.hooks = append(r.hooks, w)
	}
	return r, nil
}

// Run calls the hooks until ctx ends.
func (r *Runner) Run(ctx context.Context) error {
	var group errgroup.Group
	for _, w := range r.hooks {
		group.Go(func() error {
			w.run(ctx)
			if w.client != nil {
				w.client.CloseIdleConnections()
			}
			return nil
		})
	}
	return group.Wait()
}

// Notify tells the hooks what has arrived. It never blocks.
func (r *Runner) Notify(a Arrival) {
	if r == nil {
		return
	}
	now := time.Now()
	for _, w := range r.hooks {
		w.add(now, a)
	}
}

// Status returns the state of every hook, in the order of the definition.
func (r *Runner) Status() []Status {
	if r == nil {
		return nil
	}
	all := make([]Status, 0, len(r.hooks))
	for _, w := range r.hooks {
		w.mu.Lock()
		s := w.status
		s.Pending = w.paths
		for _, b := range w.queue {
			if b.full {
				s.Pending++
			}
		}
		w.mu.Unlock()
		all = append(all, s)
	}
	return all
}

// Owns reports whether a child of this process is a command of a hook: whoever watches over the other children must
// leave it alone.
func (r *Runner) Owns(pid int) bool {
	if r == nil {
		return false
	}
	for _, w := range r.hooks {
		if pid != 0 && w.running() == pid {
			return true
		}
	}
	return false
}

// running returns the process of the command that runs, 0 for none.
func (w *worker) running() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.child
}

func (w *worker) setChild(pid int) {
	w.mu.Lock()
	w.child = pid
	w.mu.Unlock()
}

// add queues what the hook may care for. Whether a path is a directory is found out later, off the caller's way.
func (w *worker) add(now time.Time, a Arrival) {
	changes := make([]change, 0, len(a.Sent)+len(a.Deleted))
	for _, list := range []struct {
		paths []string
		kind  string
	}{{a.Sent, ""}, {a.Deleted, "deleted"}} {
		for _, p := range list.paths {
			if w.Include == nil || w.Include(p, false) || w.Include(p, true) {
				changes = append(changes, change{p, list.kind})
			}
		}
	}
	if len(changes) == 0 && !a.Full {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}()
	if w.paths+len(changes) > maxPaths {
		w.status.Collapsed += int64(w.paths + len(changes))
		changes, a.Full = nil, true
	}
	if a.Full {
		// It stands for all that waits, and for what came with it.
		w.queue, w.paths = []*batch{{at: now, full: true}}, 0
		return
	}
	if n := len(w.queue); n >= maxBatches {
		last := w.queue[n-1]
		w.paths -= len(last.paths)
		last.join(now, changes)
		w.paths += len(last.paths)
		return
	}
	w.queue = append(w.queue, &batch{at: now, paths: changes})
	w.paths += len(changes)
}

// join adds changes to a batch. Of two changes of a path the later one counts. A full batch has them all.
func (b *batch) join(now time.Time, changes []change) {
	b.at = now
	if b.full {
		return
	}
	if b.known == nil {
		b.known = make(map[string]int, len(b.paths)+len(changes))
		for i, c := range b.paths {
			b.known[c.path] = i
		}
	}
	for _, c := range changes {
		if i, ok := b.known[c.path]; ok {
			b.paths[i] = c
			continue
		}
		b.known[c.path] = len(b.paths)
		b.paths = append(b.paths, c)
	}
}

func (w *worker) next() *batch {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return nil
	}
	b := w.queue[0]
	w.queue[0] = nil
	w.queue = w.queue[1:]
	w.paths -= len(b.paths)
	return b
}

func (w *worker) run(ctx context.Context) {
	for {
		for b := w.next(); b != nil && ctx.Err() == nil; b = w.next() {
			w.tell(ctx, b)
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
	}
}

// tell makes all calls for one batch.
func (w *worker) tell(ctx context.Context, b *batch) {
	w.look(b)
	if len(b.paths) == 0 && !b.full {
		return
	}
	if !w.perPath {
		w.persist(ctx, func(ctx context.Context) error { return w.tellBatch(ctx, b) })
		return
	}
	if b.full {
		b.paths = []change{{"", "dir"}} // the source directory itself stands for everything
	}
	for _, c := range b.paths {
		if ctx.Err() != nil {
			return
		}
		call := w.callFor(c)
		if call == nil {
			w.mu.Lock()
			w.status.Skipped++
			w.mu.Unlock()
			continue
		}
		w.persist(ctx, call)
	}
}

// look finds out what kind of file each path is, and drops those that are not included. A path that is not there any more,
// though its deletion has not arrived, is of kind other.
func (w *worker) look(b *batch) {
	kept := b.paths[:0]
	for _, c := range b.paths {
		if c.kind == "deleted" {
			kept = append(kept, c)
			continue
		}
		c.kind = "other"
		if st, err := os.Lstat(filepath.Join(w.root, c.path)); err == nil {
			switch mode := st.Mode(); {
			case mode.IsRegular():
				c.kind = "file"
			case mode.IsDir():
				c.kind = "dir"
			case mode&os.ModeSymlink != 0:
				c.kind = "symlink"
			}
		}
		if w.Include == nil || w.Include(c.path, c.kind == "dir") {
			kept = append(kept, c)
		}
	}
	b.paths = kept
}

func (w *worker) tellBatch(ctx context.Context, b *batch) error {
	switch w.Type {
	case "command":
		return w.command(ctx, w.Argv, w.stdin(b), b.full)
	case "socket":
		return w.socket(ctx, w.message(b))
	default:
		return w.request(ctx, w.URL, w.message(b))
	}
}

// callFor returns the call for one path, nil if there is none.
func (w *worker) callFor(c change) func(context.Context) error {
	if w.Type == "command" {
		argv := make([]string, len(w.Argv))
		for i, a := range w.Argv {
			if argv[i] = a; a == pathPlace {
				argv[i] = w.absolute(c.path)
			}
		}
		return func(ctx context.Context) error { return w.command(ctx, argv, nil, c.path == "") }
	}
	url, ok := w.urlFor(c)
	if !ok {
		return nil
	}
	return func(ctx context.Context) error { return w.request(ctx, url, nil) }
}

// absolute does not clean: the bytes of a name are what they are.
func (w *worker) absolute(path string) string {
	if path == "" {
		return w.root
	}
	return strings.TrimSuffix(w.root, "/") + "/" + path
}

// errFinal wraps what another try cannot mend.
type errFinal struct{ error }

func (e errFinal) Unwrap() error { return e.error }

// persist makes a call, and makes it again while it fails and retries are left.
func (w *worker) persist(ctx context.Context, call func(context.Context) error) {
	wait := w.initial
	for attempt := 0; ctx.Err() == nil; attempt++ {
		callCtx, cancel := context.WithTimeoutCause(ctx, w.Timeout, fmt.Errorf("no answer within %v", w.Timeout))
		err := call(callCtx)
		if err != nil && callCtx.Err() != nil && ctx.Err() == nil {
			err = context.Cause(callCtx)
		}
		cancel()
		if ctx.Err() != nil {
			return // the agent ends; that is no failure of the hook
		}
		var final errFinal
		giveUp := err != nil && (attempt >= w.Retries || errors.As(err, &final))
		w.count(err, giveUp)
		if err == nil || giveUp {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
		wait = min(2*wait, max(retryMax, w.initial))
	}
}

// count notes a call. A hook that keeps failing is logged once, and once more when it works again.
func (w *worker) count(err error, giveUp bool) {
	w.mu.Lock()
	w.status.Calls++
	was := w.faulty
	w.faulty = err != nil
	if err != nil {
		now := time.Now()
		w.status.Failures++
		w.status.LastError, w.status.LastAt = err.Error(), &now
		if giveUp {
			w.status.GivenUp++
		}
	}
	failures := w.status.Failures
	w.mu.Unlock()
	switch {
	case err != nil && !was:
		w.log.Warn("a hook failed; what is replicated is not touched by that", "err", err)
	case err != nil:
		w.log.Debug("a hook failed again", "err", err, "failures", failures, "given_up", giveUp)
	case was:
		w.log.Info("the hook works again")
	}
}
