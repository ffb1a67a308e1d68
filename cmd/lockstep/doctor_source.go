// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/replicate"
	"github.com/lockstep-sync/lockstep/agent/transfer"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

func (d *doctor) source() {
	root, err := transfer.OpenRoot(d.pair.Source.Path)
	if err != nil {
		d.failure("source", err, "mount or make the directory; nothing is deleted on the backup while it is missing")
		return
	}
	defer root.Close() //nolint:errcheck // only a handle
	id, err := root.Identity()
	if err != nil {
		d.failure("source", err, "")
		return
	}
	if d.name != "" {
		var known struct{ Path, Identity string }
		// The directory is the agent's, which is not root: what is there need not be a file.
		f, err := d.machine.Files.Read(filepath.Join(plan.StateDir, d.name, "source.json"))
		noted := err == nil && json.Unmarshal(f.Data, &known) == nil && known.Path == d.pair.Source.Path
		d.right = noted && known.Identity == id.String()
		if noted && !d.right {
			d.tell("source", levelFail, d.pair.Source.Path+" is not the directory that the pair was made for: it was unmounted or replaced, and nothing is sent",
				"mount it; or, if this directory is meant, lockstep approve "+d.name)
			return
		}
	}
	empty, err := root.Empty()
	switch {
	case errors.Is(err, fs.ErrPermission):
		d.tell("source", levelWarn, d.pair.Source.Path+" may not be read by this user", "run doctor as root; the agent of a unit may read it")
	case err != nil:
		d.failure("source", err, "")
	case empty:
		d.tell("source", levelWarn, d.pair.Source.Path+" is empty", "is something to be mounted there?")
	default:
		d.tell("source", levelOK, fmt.Sprintf("%s is there (%s)", d.pair.Source.Path, id), "")
	}
}

func (d *doctor) unit(ctx context.Context) {
	if d.name == "" {
		d.tell("unit", levelSkip, "stand-alone, no unit", "")
		return
	}
	name := unit.AgentName(d.name)
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	u, err := d.machine.Units.Unit(ctx, name)
	switch apply := "lockstep apply --role source --definition " + d.files.definition + " puts it back"; {
	case err != nil:
		d.tell("unit", levelSkip, strings.ReplaceAll(err.Error(), "\n", "; "), "")
	case u.Masked:
		d.tell("unit", levelFail, name+" is masked", "systemctl unmask "+name)
	case !u.Loaded:
		d.tell("unit", levelFail, "systemd has no "+name, apply)
	case !u.Active:
		d.tell("unit", levelFail, name+" is "+u.State, "journalctl -u "+name+"; systemctl start "+name)
	case !u.Ready:
		d.tell("unit", levelWarn, fmt.Sprintf("%s is %s, not ready yet: %s", name, u.State, u.Status), "journalctl -u "+name)
	case !u.Enabled:
		d.tell("unit", levelWarn, name+" runs and is not enabled: it will not come back after a reboot", "systemctl enable "+name)
	case u.Stale:
		d.tell("unit", levelWarn, name+" runs, and its file was changed since", "systemctl daemon-reload; systemctl restart "+name)
	default:
		d.tell("unit", levelOK, name+" is enabled and "+u.State, "")
	}
}

// agent asks the one that runs, if there is one.
func (d *doctor) agent(ctx context.Context) {
	if d.files.runtime == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	s, err := newClient(cmp.Or(d.name, d.files.runtime), d.files.runtime).status(ctx)
	if err != nil {
		d.failure("agent", err, "")
		return
	}
	d.backend = s.Watch.Backend
	words := string(s.State)
	if s.Reason != "" {
		words += ": " + s.Reason
	}
	switch s.State {
	case replicate.InStep, replicate.Behind, replicate.Starting, replicate.HooksOnly:
		d.right = d.right || s.State != replicate.Starting
		d.tell("agent", levelOK, words, "")
	case replicate.Degraded, replicate.Paused, replicate.Held:
		d.right = d.right || s.State == replicate.Degraded
		d.tell("agent", levelWarn, words, s.Hint)
	case replicate.Failing:
		d.tell("agent", levelFail, words, s.Hint)
	default:
		d.tell("agent", levelWarn, words+" (of another version)", s.Hint)
	}
	for _, fault := range s.Watch.Faults {
		d.tell("agent", levelWarn, "watch: "+fault, s.Hint)
	}
}

// limits is about inotify; with fanotify there is none to speak of.
func (d *doctor) limits(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	if d.backend == "fanotify" || d.backend == "" && d.pair.Watch.Backend != "inotify" && canFanotify(ctx, d.pair.Source.Path) {
		d.tell("limits", levelOK, "fanotify can watch "+d.pair.Source.Path+" with one mark; no limit matters", "")
		return
	}
	facts, err := d.machine.System.Inspect(ctx, host.Query{Sysctls: []string{plan.MaxUserWatches}, CountIn: d.pair.Source.Path})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		d.failure("limits", err, "")
		return
	}
	limit, _ := strconv.Atoi(facts.Sysctls[plan.MaxUserWatches]) // 0: not known
	atLeast := ""
	if !facts.CountAll {
		atLeast = "at least "
	}
	saw := fmt.Sprintf("inotify needs %s%d watches for %s, %s allows %d", atLeast, facts.Count, d.pair.Source.Path, plan.MaxUserWatches, limit)
	switch do := fmt.Sprintf("sysctl -w %s=%d, and lockstep apply --role source --definition %s for the next boot", plan.MaxUserWatches, 4*max(facts.Count, 1<<16), d.files.definition); {
	case limit == 0:
		d.tell("limits", levelSkip, plan.MaxUserWatches+" cannot be read here", "")
	case facts.Count > limit:
		d.tell("limits", levelFail, saw, do)
	case 10*facts.Count > 8*limit:
		d.tell("limits", levelWarn, saw, do)
	default:
		d.tell("limits", levelOK, saw, "")
	}
}
