// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"log/slog"
	"reflect"
	"time"

	"github.com/lockstep-sync/lockstep/agent/hooks"
	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// hookRun is the hooks of one definition, while they run.
type hookRun struct {
	ctx    context.Context // of the loop
	hooks  []pair.Hook
	runner *hooks.Runner
	stop   context.CancelFunc
}

// newHooks gives the hooks of a definition to a runner, which it does not start.
func newHooks(p pair.Pair, log *slog.Logger) (*hooks.Runner, error) {
	if len(p.Hooks) == 0 {
		return nil, nil
	}
	list := make([]hooks.Hook, len(p.Hooks))
	for i, h := range p.Hooks {
		list[i] = hooks.Hook{
			Name: h.Name, Type: h.Type, Timeout: time.Duration(h.Timeout), Retries: h.Retries,
			Argv: h.Argv, IgnoreErrors: h.IgnoreErrors,
			Network: h.Network, Address: h.Address,
			URL: h.URL, Method: h.Method, Match: h.Match, Kind: h.Kind, HeadersFile: h.HeadersFile,
		}
		if len(h.Include) > 0 {
			// What would be excluded by these patterns is what is included.
			include, err := watch.NewExclude(h.Include)
			if err != nil {
				return nil, err
			}
			list[i].Include = include.Match
		}
	}
	return hooks.New(p.Name, p.Source.Path, list, log)
}

// startHooks runs the hooks of a definition in place of those that run. Hooks that did not change go on.
func (l *loop) startHooks(ctx context.Context, p pair.Pair) error {
	if l.hooks.runner != nil && reflect.DeepEqual(l.hooks.hooks, p.Hooks) {
		return nil
	}
	runner, err := newHooks(p, l.log)
	if err != nil {
		return err
	}
	if l.hooks.stop != nil {
		l.hooks.stop()
	}
	l.hooks = hookRun{ctx: ctx, hooks: p.Hooks, runner: runner}
	if runner == nil {
		return nil
	}
	ctx, l.hooks.stop = context.WithCancel(ctx)
	l.group.Go(func() { _ = runner.Run(ctx) }) // it ends with ctx, without an error
	return nil
}

// arrived tells the hooks of a transfer that was done: sent paths, or deleted ones. Those that failed, or changed
// while they were sent, are sent again and told then.
func (l *loop) arrived(res transfer.Result, sent, deleted []string) {
	if l.hooks.runner == nil || res.Class != transfer.Done {
		return
	}
	failed, again := map[string]bool{}, map[string]bool{}
	for _, f := range res.Failed {
		failed[f.Path] = true // and everything below it
	}
	for _, list := range [][]string{res.Blocked, res.Changed, res.Kept} {
		for _, path := range list {
			again[path] = true
		}
	}
	rest := func(paths []string) []string {
		out := make([]string, 0, len(paths))
		for _, path := range paths {
			if path != "" && !again[path] && !isBelowAny(path, failed) {
				out = append(out, path)
			}
		}
		return out
	}
	l.hooks.runner.Notify(hooks.Arrival{Sent: rest(sent), Deleted: rest(deleted)})
}

// arrivedTree tells the hooks that trees were sent as a whole: nobody listed what is in them.
func (l *loop) arrivedTree(res transfer.Result) {
	if l.hooks.runner != nil && res.Class == transfer.Done {
		l.hooks.runner.Notify(hooks.Arrival{Full: true})
	}
}
