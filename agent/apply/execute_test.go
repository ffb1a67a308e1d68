// SPDX-License-Identifier: Apache-2.0

package apply_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/agent/apply"
	"github.com/lockstep-sync/lockstep/agent/host"
	"github.com/lockstep-sync/lockstep/agent/plan"
)

func TestAgentThatDoesNotStartSaysWhy(t *testing.T) {
	t.Parallel()
	h, m := one()
	h.StartError = func(unit string) error {
		if unit == "lockstep@data.service" {
			return errors.New("job failed")
		}
		return nil
	}
	_, err := exchange(m, plan.Request{Pair: dataPair()})
	if err == nil || !strings.Contains(err.Error(), "start lockstep@data.service: job failed; its last words: words of lockstep@data.service") ||
		!strings.Contains(err.Error(), "journalctl -u lockstep@data.service") {
		t.Errorf("error: %v", err)
	}
	if _, ok := h.Files[plan.SecretFile("data")]; ok {
		t.Error("the secret was not taken back")
	}
}

// deaf is a host on which nothing comes to listen.
type deaf struct{ host.System }

func (d deaf) Inspect(ctx context.Context, q host.Query) (host.Facts, error) {
	f, err := d.System.Inspect(ctx, q)
	f.Listener = nil
	return f, err
}

// restless is a host whose units have another process each time they are looked at.
type restless struct {
	host.Units
	pid *int
}

func (r restless) Unit(ctx context.Context, name string) (host.Unit, error) {
	u, err := r.Units.Unit(ctx, name)
	*r.pid++
	u.PID = *r.pid
	return u, err
}

// To systemd, the daemon is active as soon as it is started.
func TestDaemonThatDoesNotWorkIsTakenBack(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		harm   func(*host.Machine)
		limit  time.Duration // of who calls
		waited time.Duration
		want   string
	}{
		{"does not listen", func(m *host.Machine) { m.System = deaf{m.System} }, time.Hour, 10 * time.Second, "start lockstep-rsyncd.service: does not listen on port 8730 after 10s; its last words: "},
		{"the caller ends first", func(m *host.Machine) { m.System = deaf{m.System} }, time.Second, time.Second, "start lockstep-rsyncd.service: context deadline exceeded"},
		{"starts again and again", func(m *host.Machine) { m.System, m.Units = deaf{m.System}, restless{m.Units, new(int)} }, time.Hour, 20 * time.Millisecond, "start lockstep-rsyncd.service: ended at once, it is "},
	} {
		synctest.Test(t, func(t *testing.T) {
			h, m := one()
			before := slices.Sorted(maps.Keys(h.Files))
			tt.harm(m.backup)
			ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
			defer cancel()
			began := time.Now()
			reply := apply.Run(ctx, m.backup, apply.Command{Verb: plan.Apply, Role: plan.Backup}, plan.Request{Pair: dataPair()})
			if len(reply.Problems) != 1 || !strings.HasPrefix(reply.Problems[0].Msg, tt.want) || !strings.HasPrefix(reply.Problems[0].Hint, "nothing was changed") || reply.Changed {
				t.Errorf("%s: %v", tt.name, problems(reply))
			}
			if waited := time.Since(began); waited != tt.waited {
				t.Errorf("%s: after %s", tt.name, waited)
			}
			if after := slices.Sorted(maps.Keys(h.Files)); !slices.Equal(before, after) {
				t.Errorf("%s: there are now %v", tt.name, after)
			}
		})
	}
}

func TestWhatCannotBePutBackIsTold(t *testing.T) {
	t.Parallel()
	h, m := one()
	broken := false
	h.StartError = func(unit string) error {
		if unit != "lockstep@data.service" {
			return nil
		}
		broken = true
		return errors.New("job failed")
	}
	h.Before = func(what string) error {
		if broken && what == "remove "+plan.SecretFile("data") {
			return errors.New("read-only file system")
		}
		return nil
	}
	p := dataPair()
	key := mustRun(t, m.source, plan.Apply, plan.Source, plan.Request{Pair: p, Prepare: true}).PublicKey
	box := mustRun(t, m.backup, plan.Apply, plan.Backup, plan.Request{Pair: p, Recipient: key}).SealedPassword
	reply := run(m.source, plan.Apply, plan.Source, plan.Request{Pair: p, SealedPassword: box})
	if len(reply.Problems) != 2 || !strings.Contains(reply.Problems[0].Msg, "job failed") || strings.Contains(reply.Problems[0].Hint, "nothing was changed") ||
		reply.Problems[1].Msg != "could not be put back: delete "+plan.SecretFile("data")+": read-only file system" || !strings.Contains(reply.Problems[1].Hint, "apply again") {
		t.Errorf("%v", problems(reply))
	}
	for _, file := range []string{plan.SystemdDir + "/lockstep@.service", plan.DropInFile("data")} {
		if _, there := h.Files[file]; there {
			t.Errorf("%s was not put back after another file could not be", file)
		}
	}
	h.StartError, broken = nil, false
	mustExchange(t, m, plan.Request{Pair: p})
	inSync(t, m, p)
}
