// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/watch"
)

// startReload reads the definition in a goroutine of its own; the loop goes on.
func (l *loop) startReload() {
	if l.agent.opts.Reload == nil {
		return
	}
	l.reloading()
	l.group.Go(func() {
		p, user, err := l.agent.opts.Reload()
		l.post(func(now time.Time) {
			if err == nil {
				err = l.apply(now, p, user)
			}
			l.notReloaded = err
			if err != nil {
				l.log.Error("the definition was not reloaded; the one before stays in force", "err", err)
				l.note(now, "not reloaded: "+err.Error())
			}
			// READY=1 ends the reload, and must not be the first one.
			if l.manager.ready {
				l.agent.opts.Notify("READY=1")
			}
			l.manager.status = ""
		})
	})
}

// needRestart lists the changed fields that a running agent cannot take over.
func needRestart(was, is pair.Pair) []string {
	var out []string
	for _, f := range []struct {
		name    string
		was, is any
	}{
		{"name", was.Name, is.Name},
		{"transport", was.Transport, is.Transport},
		{"source.path", was.Source.Path, is.Source.Path},
		{"watch.backend", was.Watch.Backend, is.Watch.Backend},
		{"metrics.listen", was.Metrics.Listen, is.Metrics.Listen},
		{"backup.path", was.Backup.Path, is.Backup.Path},
		{"backup.module", was.Backup.Module, is.Backup.Module},
		{"backup.address", was.Backup.Address, is.Backup.Address},
		{"backup.port", was.Backup.Port, is.Backup.Port},
	} {
		if f.was != f.is {
			out = append(out, f.name)
		}
	}
	return out
}

// apply takes over a changed definition.
func (l *loop) apply(now time.Time, p pair.Pair, user string) error {
	if fields := needRestart(l.pair, p); len(fields) > 0 {
		return fmt.Errorf("%s changed\nhint: systemctl restart lockstep@%s", strings.Join(fields, ", "), l.pair.Name)
	}
	if user == "" {
		user = p.Auth.User
	}
	schedule, err := p.Full.Schedule()
	if err != nil {
		return err
	}
	exclude, err := watch.NewExclude(p.Exclude)
	if err != nil {
		return err
	}
	eng, version, err := l.agent.engine(p, user, l.eng)
	if err != nil {
		return err
	}
	if err := l.startHooks(l.hooks.ctx, p); err != nil {
		return err
	}
	was := l.pair
	l.retired = append(l.retired, l.eng)
	l.group.Go(l.eng.Close)
	l.pair, l.exclude, l.user, l.eng, l.versions.Rsync = p, exclude, user, eng, version
	l.q.SetDelays(time.Duration(p.Watch.Delay), time.Duration(p.Watch.MaxDelay))
	l.door.enabled, l.door.maxFiles, l.door.maxPercent = p.Delete.Enabled, p.Delete.MaxFiles, p.Delete.MaxPercent
	l.door.maxDelay = time.Duration(p.Watch.MaxDelay)
	if !p.Delete.Enabled {
		// What is pending is looked at, and dropped then. The full batch finds whatever else there is to do about it.
		l.door.held, l.door.dropped, l.passed = nil, 0, nil
	}
	l.ledger.initial, l.ledger.limit = time.Duration(p.Retry.Initial), time.Duration(p.Retry.Max)
	if !reflect.DeepEqual(was.Full.Every, p.Full.Every) {
		l.full.schedule, l.full.next = schedule, time.Time{}
		if schedule != nil {
			l.full.next = schedule.Next(now)
		}
	}
	if !slices.Equal(was.Exclude, p.Exclude) && l.watch.w != nil {
		l.watch.w.SetExclude(exclude)
	}
	if !slices.Equal(was.Exclude, p.Exclude) || !slices.Equal(was.Filter, p.Filter) || was.Delete.Enabled != p.Delete.Enabled ||
		!slices.Equal(was.Full.Exclude, p.Full.Exclude) || !slices.Equal(was.Watch.Events, p.Watch.Events) || !slices.Equal(was.Transfer.Options, p.Transfer.Options) {
		l.full.valid = false
		l.requestFull("the definition was changed")
	}
	l.paused = p.Paused || exists(filepath.Join(l.agent.opts.StateDir, pausedFile))
	l.hurry(now)
	l.log.Info("the definition was reloaded")
	l.note(now, "the definition was reloaded")
	return nil
}

// hurry makes everything that waits for its next try due now: a person may have mended the cause.
func (l *loop) hurry(now time.Time) {
	if l.outage != nil {
		l.outage.next = now
	}
	l.source.next = now
	l.ledger.hurry(now)
	l.full.retry = time.Time{}
}
