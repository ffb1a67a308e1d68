// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

// Options says what to run.
type Options struct {
	Binary     string // the lockstep binary
	Dir        string // where source, backup and everything else are made; removed after a success
	Seed       uint64
	Steps      int           // operations
	Faults     bool          // kill, stop and cut what runs, now and then
	Definition []string      // further lines of the pair definition, as in "watch: {backend: inotify}"
	Soak       time.Duration // go on with the same agent for so long, in rounds of Steps that end with an empty tree: it must not grow
	Settle     time.Duration // how long after the last operation and fault the trees may take to be equal; default 60 s
	Verbose    func(format string, args ...any)
}

// Outcome is what one run did.
type Outcome struct {
	Operations, Faults int
	Settled            time.Duration // from the last operation to equal trees
	Rounds             int           // of a soak
	Files, Goroutines  int           // of the agent in the end
	RSS                int64         // bytes, in the end
}

// A Failure is a broken promise of the mirror: everything a person needs to see and to repeat it.
type Failure struct {
	Seed  uint64
	What  string
	Diffs []rsynctest.Difference
	Log   []string // the last operations and faults
	Dir   string   // left in place
}

func (f *Failure) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %s", f.Seed, f.What)
	for i, d := range f.Diffs {
		if i == 10 {
			fmt.Fprintf(&b, "\n  … and %d more", len(f.Diffs)-i)
			break
		}
		fmt.Fprintf(&b, "\n  %v", d)
	}
	fmt.Fprintf(&b, "\nlast operations:\n  %s\nleft in %s", strings.Join(f.Log, "\n  "), f.Dir)
	return b.String()
}

// run is one history against one pair.
type run struct {
	opts   Options
	rnd    *rand.Rand // for faults, so that the history does not depend on them
	h      *history
	server *rsynctest.Server
	src    string
	disk   string // holds dst; a filesystem of its own, as root
	ownFS  bool
	dst    string
	agent  *exec.Cmd
	waited chan struct{}
	faults int

	mu   sync.Mutex
	log  []string
	lost []string // pinned files that were seen to go
}

// Run runs one history and returns a *Failure when a promise was broken.
func Run(ctx context.Context, opts Options) (out Outcome, err error) {
	if opts.Settle == 0 {
		opts.Settle = 60 * time.Second
	}
	r := &run{opts: opts, rnd: rand.New(rand.NewPCG(opts.Seed, 2)), src: filepath.Join(opts.Dir, "src"), disk: filepath.Join(opts.Dir, "disk")}
	r.dst = filepath.Join(r.disk, "dst")
	if err := r.mountDisk(); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, r.unmountDisk(err == nil)) }()
	outside := filepath.Join(opts.Dir, "outside")
	for _, d := range []string{r.src, outside, filepath.Join(opts.Dir, "state"), filepath.Join(opts.Dir, "run")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return out, err
		}
	}
	r.h = newHistory(opts.Seed, r.src, outside, r.note)
	r.h.xattrs = hasXattrs(r.src) && hasXattrs(r.disk)
	pinned, err := r.h.pin(30)
	if err != nil {
		return out, err
	}
	for range 40 { // something is there before the agent starts
		if err := r.h.step(); err != nil {
			return out, err
		}
	}
	if r.server, err = rsynctest.Start(rsynctest.Options{Dir: opts.Dir, Path: r.dst}); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, r.server.Kill()) }()
	if err := r.startAgent(ctx); err != nil {
		return out, err
	}
	defer func() {
		r.signalAgent(syscall.SIGKILL)
		var failure *Failure
		if err != nil && !errors.As(err, &failure) {
			err = fmt.Errorf("seed %d: %w\nleft in %s", opts.Seed, err, opts.Dir)
		}
	}()
	if diffs := r.settle(ctx, opts.Settle); diffs != nil {
		return out, r.fail("not equal after the start", diffs)
	}
	watcher, err := r.watchPinned(pinned)
	if err != nil {
		return out, err
	}
	began := time.Now()
	var held []footprint
	for opts.Soak > 0 || len(held) == 0 {
		if err := r.round(ctx, &out); err != nil {
			return out, err
		}
		if opts.Soak > 0 {
			if err := r.clear(ctx); err != nil {
				return out, err
			}
		}
		now, err := r.footprint(ctx)
		if err != nil {
			return out, err
		}
		held = append(held, now)
		out.Files, out.Goroutines, out.RSS = now.files, now.goroutines, now.rss
		if opts.Soak > 0 {
			r.note("round %d: %d descriptors, %d goroutines, %d MB", len(held), now.files, now.goroutines, now.rss>>20)
		}
		if len(held) >= soakRounds && time.Since(began) >= opts.Soak {
			break
		}
	}
	out.Rounds, out.Faults = len(held), r.faults
	if opts.Soak > 0 {
		if err := growth(held); err != nil {
			return out, r.fail(err.Error(), nil)
		}
	}
	if err := watcher.Close(); err != nil {
		return out, err
	}
	r.mu.Lock()
	lost := r.lost
	r.mu.Unlock()
	if len(lost) > 0 {
		return out, r.fail(fmt.Sprintf("files that nobody touched were missing on the backup for a while: %q", lost), nil)
	}
	return out, nil
}

// round is a history from one quiet moment to the next.
func (r *run) round(ctx context.Context, out *Outcome) error {
	for range r.opts.Steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.h.step(); err != nil {
			return fmt.Errorf("operation: %w", err)
		}
		if r.opts.Faults && r.rnd.IntN(r.opts.Steps/4+1) == 0 {
			if err := r.fault(ctx); err != nil {
				return fmt.Errorf("fault: %w", err)
			}
		}
		if r.rnd.IntN(10) == 0 { // bursts and pauses, not a metronome
			time.Sleep(time.Duration(r.rnd.IntN(30)) * time.Millisecond)
		}
		out.Operations++
	}
	end := time.Now()
	if diffs := r.settle(ctx, r.opts.Settle); diffs != nil {
		return r.fail("not equal after the end", diffs)
	}
	out.Settled = time.Since(end)
	return nil
}

// clear leaves nothing of the history but the pinned files.
func (r *run) clear(ctx context.Context) error {
	if err := r.h.clear(); err != nil {
		return err
	}
	if diffs := r.settle(ctx, r.opts.Settle); diffs != nil {
		return r.fail("not equal after everything was removed", diffs)
	}
	return nil
}

func (r *run) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if r.opts.Verbose != nil {
		r.opts.Verbose("%s", line)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.log = append(r.log, line); len(r.log) > 60 {
		r.log = r.log[1:]
	}
}

func (r *run) fail(what string, diffs []rsynctest.Difference) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st, err := r.status(context.Background()); err == nil {
		what += "; status " + st
	} else {
		what += "; status: " + err.Error()
	}
	// What is shortest to tell comes first: a directory before all that is in it.
	slices.SortStableFunc(diffs, func(a, b rsynctest.Difference) int { return len(a.Path) - len(b.Path) })
	return &Failure{Seed: r.opts.Seed, What: what, Diffs: diffs, Log: r.log, Dir: r.opts.Dir}
}

func (r *run) startAgent(ctx context.Context) error {
	definition := filepath.Join(r.opts.Dir, "pair.yaml")
	options := ""
	if r.h.xattrs {
		options = "--xattrs, --acls"
	}
	lines := append([]string{
		"name: torture",
		"source: {host: localhost, path: " + r.src + "}",
		"backup: {host: " + r.server.Address + ", path: " + r.dst + ", port: " + strconv.Itoa(r.server.Port) + ", module: " + r.server.Module + "}",
		"auth: {user: " + r.server.User + "}",
		"transfer: {options: [" + options + "]}",
		"retry: {initial: 100ms, max: 2s}",
		// The guard has tests of its own; here every deletion has to arrive.
		"delete: {max_files: 1000000, max_percent: 100}",
	}, r.opts.Definition...)
	if err := os.WriteFile(definition, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(r.opts.Dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, r.opts.Binary, "run", "--definition", definition, "--password-file", r.server.PasswordFile,
		"--state-dir", filepath.Join(r.opts.Dir, "state"), "--runtime-dir", filepath.Join(r.opts.Dir, "run"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	waited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it ends by our signal
		close(waited)
	}()
	r.agent, r.waited = cmd, waited
	return nil
}

// signalAgent ends the agent and returns when it is gone.
func (r *run) signalAgent(sig syscall.Signal) {
	if err := r.agent.Process.Signal(sig); err != nil {
		return // gone already
	}
	<-r.waited
}

// fault breaks something for a moment. What it breaks is whole again when it returns, or restarted.
func (r *run) fault(ctx context.Context) error {
	r.faults++
	pause := time.Duration(50+r.rnd.IntN(400)) * time.Millisecond
	during := func(n int) error { // the history goes on while something is broken
		for range n {
			if err := r.h.step(); err != nil {
				return err
			}
		}
		time.Sleep(pause)
		return nil
	}
	kinds := 8
	if r.ownFS {
		kinds = 11
	}
	kind := r.rnd.IntN(kinds)
	if r.opts.Soak > 0 {
		kind = 2 + r.rnd.IntN(kinds-2) // it is about one agent
	}
	switch kind {
	case 0:
		r.note("FAULT kill -9 the agent")
		r.signalAgent(syscall.SIGKILL)
		return errors.Join(during(10), r.startAgent(ctx))
	case 1:
		r.note("FAULT terminate and restart the agent")
		r.signalAgent(syscall.SIGTERM)
		return errors.Join(during(5), r.startAgent(ctx))
	case 2:
		r.note("FAULT kill -9 the daemon and its connections")
		if err := r.server.Kill(); err != nil {
			return err
		}
		return errors.Join(during(20), r.server.Start())
	case 3:
		r.note("FAULT kill -9 the connections")
		return r.server.KillConnections()
	case 4:
		r.note("FAULT stop the agent with SIGSTOP for %v", pause)
		return errors.Join(r.agent.Process.Signal(syscall.SIGSTOP), during(30), r.agent.Process.Signal(syscall.SIGCONT))
	case 5:
		r.note("FAULT the module is read only for a while")
		return errors.Join(r.server.Configure("read only = yes", "write only = no"), during(15), r.server.Configure())
	case 6:
		r.note("FAULT stop the daemon with SIGSTOP for %v", pause)
		pid := r.server.PID()
		return errors.Join(syscall.Kill(-pid, syscall.SIGSTOP), during(10), syscall.Kill(-pid, syscall.SIGCONT))
	case 7:
		r.note("FAULT kill -9 what rsync the agent runs")
		for range 20 { // most runs are short
			if err := r.h.step(); err != nil {
				return err
			}
			if _, err := r.status(ctx); err != nil {
				// It has just been started, and asks rsync for its version. Without an answer it ends, for systemd to start it again.
				time.Sleep(10 * time.Millisecond)
				continue
			}
			children, err := r.children()
			if err != nil {
				return err
			}
			if len(children) > 0 {
				return rsynctest.KillAll(children)
			}
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	case 8:
		r.note("FAULT the backup's disk is full for a while")
		return errors.Join(r.fillDisk(), during(40), os.Remove(r.filler()))
	case 9:
		r.note("FAULT the backup's filesystem is read-only for a while")
		// Busy while rsync writes to it; then there was no fault.
		if err := unix.Mount("", r.disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return during(1)
		}
		return errors.Join(during(25), unix.Mount("", r.disk, "", unix.MS_REMOUNT, ""))
	default:
		r.note("FAULT a directory of the backup takes nothing for a while")
		return r.immutable(func() error { return during(25) })
	}
}

// children are the processes that the agent has started.
func (r *run) children() ([]int, error) {
	lists, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(r.agent.Process.Pid), "task", "*", "children"))
	if err != nil {
		return nil, err
	}
	var all []int
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for word := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return nil, err
			}
			all = append(all, pid)
		}
	}
	return all, nil
}

// settle waits until both trees are equal and the agent says so; it gives the differences when they do not become so in
// time. What `lockstep wait` has said holds at once.
func (r *run) settle(ctx context.Context, limit time.Duration) []rsynctest.Difference {
	waited := exec.CommandContext(ctx, r.opts.Binary, "wait", "--timeout", limit.String(), "--runtime-dir", filepath.Join(r.opts.Dir, "run"))
	if waited.Run() == nil {
		diffs, err := rsynctest.Compare(r.src, r.dst, rsynctest.CompareOptions{Xattrs: r.h.xattrs})
		if err != nil {
			diffs = []rsynctest.Difference{{What: err.Error()}}
		}
		if len(diffs) > 0 {
			return append(diffs, rsynctest.Difference{What: "the agent says that all of it is on the backup"})
		}
		limit = 10 * time.Second // for the status, which takes the time stamps of directories in
	}
	var diffs []rsynctest.Difference
	for deadline := time.Now().Add(limit); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		var err error
		if diffs, err = rsynctest.Compare(r.src, r.dst, rsynctest.CompareOptions{Xattrs: r.h.xattrs}); err != nil {
			diffs = []rsynctest.Difference{{What: err.Error()}}
			continue
		}
		st, err := r.status(ctx)
		if len(diffs) == 0 && err == nil && st == "in step" {
			return nil
		}
		if len(diffs) == 0 {
			diffs = []rsynctest.Difference{{What: fmt.Sprintf("the trees are equal, but the status is %q (%v)", st, err)}}
		} else if st == "in step" {
			// The status may be older than the comparison, so this is only wrong when it lasts.
			diffs = append(diffs, rsynctest.Difference{What: "the status is in step all the same"})
		}
	}
	return diffs
}

func (r *run) status(ctx context.Context) (string, error) {
	// The exit status tells the state; the JSON is printed in any state.
	out, err := exec.CommandContext(ctx, r.opts.Binary, "status", "--json", "--runtime-dir", filepath.Join(r.opts.Dir, "run")).Output()
	if len(out) == 0 {
		return "", err
	}
	var st struct {
		State string `json:"state"`
	}
	err = json.Unmarshal(out, &st)
	return st.State, err
}

// watchPinned notes when a pinned file goes from the backup, if only for a moment.
func (r *run) watchPinned(pinned []string) (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewBufferedWatcher(4096)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, p := range pinned {
		names[filepath.Join(r.dst, p)] = true
		if err := w.Add(filepath.Join(r.dst, filepath.Dir(p))); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	go func() {
		for ev := range w.Events {
			if names[ev.Name] && (ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename)) {
				r.mu.Lock()
				r.lost = append(r.lost, ev.String())
				r.mu.Unlock()
			}
		}
	}()
	return w, nil
}
