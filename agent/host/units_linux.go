// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// stallTimeout is how long a unit may be starting without a new STATUS= before waiting for it ends. A
// large tree takes minutes to watch, but the agent tells how far it is.
const stallTimeout = 60 * time.Second

// slice is what every unit of lockstep runs in; systemd makes it with the first.
const slice = "lockstep.slice"

// units talks to systemd over D-Bus; the connection is made by the first call and kept.
type units struct {
	dial func(context.Context) (*dbus.Conn, error)

	mu   sync.Mutex
	conn *dbus.Conn
}

func (u *units) connect(ctx context.Context) (*dbus.Conn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn != nil && u.conn.Connected() {
		return u.conn, nil
	}
	if u.conn != nil {
		u.conn.Close() // it is two connections, of which one may live
	}
	// The context given here is that of the connection's whole life.
	conn, err := u.dial(context.WithoutCancel(ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}
	u.conn = conn
	return conn, nil
}

func (u *units) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn != nil {
		u.conn.Close()
		u.conn = nil
	}
}

func (u *units) Unit(ctx context.Context, name string) (Unit, error) {
	conn, err := u.connect(ctx)
	if err != nil {
		return Unit{}, err
	}
	p, err := conn.GetUnitPropertiesContext(ctx, name)
	if err != nil {
		return Unit{}, fmt.Errorf("unit %s: %w", name, err)
	}
	text := func(key string) string { s, _ := p[key].(string); return s }
	stale, _ := p["NeedDaemonReload"].(bool)
	active, sub, load, file := text("ActiveState"), text("SubState"), text("LoadState"), text("UnitFileState")
	unit := Unit{
		Loaded:  load == "loaded",
		Active:  active == "active" || active == "activating" || active == "reloading",
		Ready:   active == "active" || active == "reloading",
		Enabled: file == "enabled" || file == "enabled-runtime",
		Masked:  load == "masked" || file == "masked" || file == "masked-runtime",
		Stale:   stale,
		State:   fmt.Sprintf("%s (%s)", active, sub),
	}
	if unit.Loaded {
		service, err := conn.GetUnitTypePropertiesContext(ctx, name, "Service")
		if err != nil {
			return Unit{}, fmt.Errorf("unit %s: %w", name, err)
		}
		if pid, ok := service["MainPID"].(uint32); ok {
			unit.PID = int(pid)
		}
		if unit.PID != 0 { // systemd keeps what a process said that is dead
			unit.Status, _ = service["StatusText"].(string)
		}
	}
	return unit, nil
}

func (u *units) Do(ctx context.Context, name string, action Action) error {
	conn, err := u.connect(ctx)
	if err != nil {
		return err
	}
	job := func(name string, f func(context.Context, string, string, chan<- string) (int, error)) error {
		done := make(chan string, 1) // so that the connection's reader is never held up
		if _, err := f(ctx, name, "replace", done); err != nil {
			return fmt.Errorf("%s %s: %w", action, name, err)
		}
		return u.wait(ctx, name, action, done)
	}
	switch action {
	case Start:
		return job(name, conn.StartUnitContext)
	case Restart:
		return job(name, conn.RestartUnitContext)
	case Reload:
		return job(name, conn.ReloadUnitContext)
	case Stop:
		if err := job(name, conn.StopUnitContext); err != nil {
			return err
		}
		// A unit that failed stays listed as failed. One that did not has nothing to forget: an error then.
		_ = conn.ResetFailedUnitContext(ctx, name)
		// The slice stays active without a unit in it. Whether it goes changes nothing for anybody: an error is none.
		left, err := conn.ListUnitsByPatternsContext(ctx, []string{"active", "activating", "reloading", "deactivating"}, []string{"lockstep@*.service", "lockstep-rsyncd.service"})
		if err == nil && len(left) == 0 {
			_ = job(slice, conn.StopUnitContext)
		}
		return nil
	case Enable:
		if _, err := conn.UnmaskUnitFilesContext(ctx, []string{name}, false); err != nil {
			return fmt.Errorf("unmask %s: %w", name, err)
		}
		if _, _, err := conn.EnableUnitFilesContext(ctx, []string{name}, false, true); err != nil {
			return fmt.Errorf("enable %s: %w", name, err)
		}
		return u.DaemonReload(ctx)
	case Disable:
		if _, err := conn.DisableUnitFilesContext(ctx, []string{name}, false); err != nil {
			return fmt.Errorf("disable %s: %w", name, err)
		}
		return u.DaemonReload(ctx)
	}
	return fmt.Errorf("bug: unit action %q", action)
}

// wait waits for a job, as long as the unit shows progress.
func (u *units) wait(ctx context.Context, name string, action Action, done <-chan string) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var last Unit
	changed := time.Now()
	for {
		select {
		case result := <-done:
			if result != "done" {
				return fmt.Errorf("%s %s: job %s", action, name, result)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s %s: %w", action, name, ctx.Err())
		case <-ticker.C:
			now, err := u.Unit(ctx, name)
			if err != nil {
				return err
			}
			if now != last {
				last, changed = now, time.Now()
			}
			if time.Since(changed) > stallTimeout {
				return fmt.Errorf("%s %s: still %s after %s, status %q", action, name, now.State, stallTimeout, now.Status)
			}
		}
	}
}

func (u *units) DaemonReload(ctx context.Context) error {
	conn, err := u.connect(ctx)
	if err != nil {
		return err
	}
	if err := conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("daemon-reload: %w", err)
	}
	return nil
}

func (u *units) Journal(ctx context.Context, name string, since time.Time, lines int) ([]string, error) {
	cmd := exec.CommandContext(ctx, "journalctl", "--no-pager", "--output=cat", "--quiet", "--unit="+name,
		"--since=@"+strconv.FormatInt(since.Unix(), 10), "--lines="+strconv.Itoa(lines))
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("journalctl: %w", err)
	}
	text := strings.TrimSpace(string(out))
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, "\n"), nil
}

// version is systemd's own: 252 (252.39-1~deb12u1).
func (u *units) version(ctx context.Context) (string, error) {
	conn, err := u.connect(ctx)
	if err != nil {
		return "", err
	}
	v, err := conn.GetManagerProperty("Version")
	if err != nil {
		return "", err
	}
	return strings.Trim(v, `"`), nil
}

type users struct{}

func (users) Add(ctx context.Context, name string) error {
	return run(ctx, "systemd-sysusers", "--inline", fmt.Sprintf("u %s - \"Lockstep agent\" /var/lib/lockstep", name))
}

func (users) Remove(ctx context.Context, name string) error {
	return run(ctx, "userdel", name)
}

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
