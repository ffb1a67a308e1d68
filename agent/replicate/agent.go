// SPDX-License-Identifier: Apache-2.0

// Package replicate keeps a backup equal to the source: it joins watch, queue and transfer.
//
// It promises three things. No change is lost: what cannot be sent stays dirty or in the ledger, and every start,
// overflow or loss of the source directory is followed by a comparison of both trees. Nothing is deleted on
// the backup unless it passed the door, which looks at the disk, the identity of the source directory and
// the size of the deletion. And the state `in step` is only claimed when nothing is known to differ.
package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// Options configures an Agent.
type Options struct {
	Pair         pair.Pair
	User         string // of the rsync module; "" means Pair.Auth.User
	PasswordFile string
	SSHKey       string // files: the pair's private key, and what the backup host must show; for transport ssh
	KnownHosts   string
	StateDir     string // made when missing
	RuntimeDir   string // made when missing; holds status.sock
	Rsync        string // "" looks in PATH
	Version      string // of lockstep, for the status
	Log          *slog.Logger
	// Notify sends a state to the service manager, as sd_notify(3) does. Nil means that there is none.
	Notify func(state string)
	// Watchdog is how often the service manager wants to hear from us; 0 means never.
	Watchdog time.Duration
	// Reload is called for a reload and returns the definition and the user as they are now.
	Reload func() (pair.Pair, string, error)
}

// Agent replicates one pair.
//
// Run is called once and blocks until its context ends; everything it started has ended then. Reload may be called at
// any time from any goroutine.
type Agent struct {
	opts   Options
	reload chan struct{}
	// These are the constants of that name; tests have less patience.
	manyDiffer    int
	childrenEvery time.Duration
	watcher       func(p pair.Pair, exclude *watch.Exclude, cookies string, progress func(int)) (watch.Watcher, error)
}

// New checks the options. It opens nothing.
func New(opts Options) (*Agent, error) {
	for _, dir := range []struct{ name, path string }{{"state", opts.StateDir}, {"runtime", opts.RuntimeDir}} {
		if !filepath.IsAbs(dir.path) {
			return nil, fmt.Errorf("%s directory %q is not absolute", dir.name, dir.path)
		}
		if isBelow(filepath.Clean(dir.path), filepath.Clean(opts.Pair.Source.Path)) {
			return nil, fmt.Errorf("%s directory %s lies in the source directory %s: what is written there would be replicated for ever", dir.name, dir.path, opts.Pair.Source.Path)
		}
	}
	if opts.User == "" {
		opts.User = opts.Pair.Auth.User
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Notify == nil {
		opts.Notify = func(string) {}
	}
	return &Agent{opts: opts, reload: make(chan struct{}, 1), watcher: newWatcher, manyDiffer: manyDiffer, childrenEvery: childrenEvery}, nil
}

// Reload makes the agent read its definition anew.
func (a *Agent) Reload() {
	select {
	case a.reload <- struct{}{}:
	default: // one is pending, and will see the newest definition
	}
}

// ErrRunning is returned by Run when another agent has the same state directory.
var ErrRunning = errors.New("another agent runs for this pair")

// Run replicates until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	cookies := filepath.Join(a.opts.RuntimeDir, "cookies")
	for _, dir := range []string{a.opts.StateDir, a.opts.RuntimeDir, cookies} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
	}
	unlock, killed, err := lock(ctx, filepath.Join(a.opts.StateDir, "lock"))
	if err != nil {
		return err
	}
	clean := false
	defer func() { unlock(clean) }()
	removeCookies(cookies)

	eng, version, err := a.engine(a.opts.Pair, a.opts.User, nil)
	if err != nil {
		return err
	}
	known, err := readSource(a.opts.StateDir, a.opts.Pair.Source.Path)
	if err != nil {
		return err
	}
	l, err := newLoop(a, eng, known)
	if err != nil {
		return err
	}
	l.versions = Versions{Lockstep: a.opts.Version, Rsync: version}
	l.paused = a.opts.Pair.Paused || exists(filepath.Join(a.opts.StateDir, pausedFile))
	l.cookies = cookies
	if l.mounts, err = readMounts(a.opts.StateDir); err != nil {
		return err
	}

	listeners, err := a.listen()
	if err != nil {
		return err
	}
	// The servers outlive the loop's context: the status must be told during the shutdown too.
	serverCtx, stopServers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServers()
	servers, serverCtx := errgroup.WithContext(serverCtx)
	for _, ln := range listeners {
		servers.Go(func() error { return serve(serverCtx, ln, l) })
	}
	if killed {
		l.cutOff(time.Now())
	}
	err = l.run(ctx)
	clean = err == nil && l.leftovers.none()
	stopServers()
	return errors.Join(err, servers.Wait())
}

// engine makes the engine of a definition. Runs of the one before it, if there was one, may go on beside it.
func (a *Agent) engine(p pair.Pair, user string, before engine) (engine, string, error) {
	if p.HooksOnly() {
		return alone{p.Source.Path}, "", nil
	}
	var after *transfer.Runner
	if e, ok := before.(rsync); ok {
		after = e.runner
	}
	runner, err := transfer.New(transfer.Options{
		Rsync: a.opts.Rsync,
		Path:  p.Source.Path,
		Target: transfer.Target{
			Address:      p.Backup.Address,
			Port:         p.Backup.Port,
			Module:       p.Backup.Module,
			User:         user,
			PasswordFile: a.opts.PasswordFile,
			Shell:        a.shell(p),
		},
		Exclude:        p.Exclude,
		Filter:         p.Filter,
		FullExclude:    p.Full.Exclude,
		Compress:       p.Transfer.Compress,
		BandwidthLimit: p.Transfer.BandwidthLimit,
		Timeout:        time.Duration(p.Transfer.Timeout),
		Extra:          p.Transfer.Options,
		Log:            a.opts.Log,
		After:          after,
	})
	if err != nil {
		return nil, "", err
	}
	for _, w := range runner.Warnings() {
		a.opts.Log.Warn("this version of rsync has a known fault", "reason", w)
	}
	return rsync{p.Source.Path, runner}, runner.Version(), nil
}

// target names the module for people, in the form of a URL.
func target(p pair.Pair, user string) string {
	scheme := "rsync"
	if p.Transport == pair.SSH {
		scheme = "rsync+ssh"
	}
	return fmt.Sprintf("%s://%s@%s/%s", scheme, user, net.JoinHostPort(p.Backup.Address, strconv.Itoa(p.Backup.Port)), p.Backup.Module)
}

// shell is the command that rsync reaches the backup host by; nil when it dials the daemon.
func (a *Agent) shell(p pair.Pair) []string {
	if p.Transport != pair.SSH {
		return nil
	}
	return p.RemoteShell(a.opts.SSHKey, a.opts.KnownHosts)
}

func newWatcher(p pair.Pair, exclude *watch.Exclude, cookies string, progress func(int)) (watch.Watcher, error) {
	return watch.New(watch.Options{
		Root:      p.Source.Path,
		Backend:   p.Watch.Backend,
		Exclude:   exclude,
		CookieDir: cookies,
		Progress:  progress,
		Gather:    min(time.Duration(p.Watch.Delay)/gatherPart, maxGather),
	})
}

const (
	// gatherPart is the part of watch.delay for which the watcher gathers events. It is half of the time without events
	// after which the queue lets a new path go.
	gatherPart = 16
	// maxGather bounds it: inotify's queue holds 16,384 events, and a writer can make 200,000 a second.
	maxGather = 10 * time.Millisecond
)

const (
	// lockPatience is for a lock that outlives an agent that was killed: a child of it, between fork and exec, has it too.
	lockPatience = time.Second
	// lockPoll is how often a lock that is taken is tried again; flock(2) has no timeout.
	lockPoll = 10 * time.Millisecond
)

// lock makes sure that one agent at a time works for a pair: two would undo each other's deletions. The file holds the
// process id for as long as it runs; killed is true when the agent before could not clear it.
func lock(ctx context.Context, name string) (unlock func(clean bool), killed bool, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lockPatience, ErrRunning)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			select {
			case <-ctx.Done():
				err = context.Cause(ctx)
			case <-time.After(lockPoll):
				continue
			}
		}
		f.Close()
		return nil, false, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	if fi, err := f.Stat(); err == nil {
		killed = fi.Size() > 0
	}
	_, _ = f.WriteAt(fmt.Appendf(nil, "%-10d\n", os.Getpid()), 0) // a full disk is no reason to replicate nothing
	return func(clean bool) {
		if clean {
			_ = f.Truncate(0) // it costs a later start half a second at most
		}
		// Closing is not enough while a child, between fork and exec, has the descriptor too.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close()
	}, killed, nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// removeCookies clears away what a killed agent left behind.
func removeCookies(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		os.Remove(filepath.Join(dir, e.Name()))
	}
}
