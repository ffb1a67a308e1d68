// SPDX-License-Identifier: Apache-2.0

package hosttest

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/agent/host"
)

type unitState struct {
	active, enabled bool
	pid             int
	started         map[string]string // files as the process has read them
	starts, reloads int
}

// Stop stops a unit by hand, Disable disables it, Restart restarts it with what is on disk.
func (h *Host) Stop(name string)    { h.unit(name).active = false }
func (h *Host) Disable(name string) { h.unit(name).enabled = false }
func (h *Host) Restart(name string) {
	h.load()
	h.run(name)
}

// Starts is how often a unit was started or restarted, and how often reloaded.
func (h *Host) Starts(name string) (starts, reloads int) {
	u := h.unit(name)
	return u.starts, u.reloads
}

// Outdated lists the active units whose process has read something else than is on disk now.
func (h *Host) Outdated() []string {
	var names []string
	for name, u := range h.units {
		if u.active && !maps.Equal(u.started, h.inputs(name)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (h *Host) unit(name string) *unitState {
	if h.units[name] == nil {
		h.units[name] = &unitState{}
	}
	return h.units[name]
}

// unitFiles lists the files that make a unit: the file or that of its template, and drop-ins.
func (h *Host) unitFiles(name string) []string {
	var found []string
	base, suffix, isInstance := strings.Cut(name, "@")
	for _, dir := range []string{"/etc/systemd/system/", "/usr/lib/systemd/system/"} {
		for _, n := range []string{name, base + "@" + path.Ext(suffix)} {
			if _, ok := h.Files[dir+n]; ok && len(found) == 0 && (n == name || isInstance) {
				found = append(found, dir+n)
			}
		}
	}
	for p, f := range h.Files {
		if path.Dir(p) == "/etc/systemd/system/"+name+".d" && !f.Dir {
			found = append(found, p)
		}
	}
	slices.Sort(found)
	return found
}

// inputs are the files that a process of the unit would read when it starts now, with their text.
func (h *Host) inputs(name string) map[string]string {
	texts := map[string]string{}
	paths := h.unitFiles(name)
	if _, instance, ok := strings.Cut(strings.TrimSuffix(name, ".service"), "@"); ok {
		definition, secret := "/etc/lockstep/pairs/"+instance+".yaml", "/etc/lockstep/secrets/"+instance
		paths = append(paths, definition, secret)
		if strings.Contains(string(h.Files[definition].Data), "transport: ssh") {
			paths = append(paths, secret+".ssh", secret+".known_hosts")
		}
	} else {
		paths = append(paths, "/etc/lockstep/rsyncd.conf")
	}
	for _, p := range paths {
		texts[p] = string(h.Files[p].Data)
	}
	return texts
}

func (h *Host) load() {
	clear(h.loaded)
	for p, f := range h.Files {
		if strings.Contains(p, "/systemd/system/") && !f.Dir {
			h.loaded[p] = string(f.Data)
		}
	}
}

func (h *Host) stale(name string) bool {
	for _, p := range h.unitFiles(name) {
		if text, ok := h.loaded[p]; !ok || text != string(h.Files[p].Data) {
			return true
		}
	}
	for p := range h.loaded {
		if path.Dir(p) == "/etc/systemd/system/"+name+".d" {
			if _, ok := h.Files[p]; !ok {
				return true
			}
		}
	}
	return false
}

// isLoaded is whether systemd has read a file of the unit that is still there.
func (h *Host) isLoaded(name string) bool {
	found := h.unitFiles(name)
	if len(found) == 0 {
		return false
	}
	_, ok := h.loaded[found[0]]
	return ok
}

func (h *Host) run(name string) {
	u := h.unit(name)
	h.nextPID++
	u.active, u.pid, u.started = true, h.nextPID, h.inputs(name)
	for _, p := range h.unitFiles(name) {
		u.started[p] = h.loaded[p]
	}
	u.starts++
	if _, instance, ok := strings.Cut(strings.TrimSuffix(name, ".service"), "@"); ok {
		h.Mkdir("/var/lib/lockstep/" + instance) // StateDirectory=
	}
}

// port is where our rsync daemon listens, as it was started.
func (h *Host) port() int {
	u := h.unit("lockstep-rsyncd.service")
	if !u.active {
		return 0
	}
	var n int
	for line := range strings.Lines(u.started["/etc/lockstep/rsyncd.conf"]) {
		if _, err := fmt.Sscanf(line, "port = %d", &n); err == nil {
			return n
		}
	}
	return 873
}

type units Host

func (s *units) Unit(ctx context.Context, name string) (host.Unit, error) {
	h := (*Host)(s)
	u := h.unit(name)
	unit := host.Unit{Loaded: h.isLoaded(name), Active: u.active, Ready: u.active, Enabled: u.enabled, Stale: h.stale(name), State: "inactive (dead)"}
	if f, ok := h.Files["/etc/systemd/system/"+name]; ok && len(f.Data) == 0 {
		unit.Masked = true
	}
	if u.active {
		unit.State, unit.PID = "active (running)", u.pid
	}
	return unit, ctx.Err()
}

func (s *units) Do(ctx context.Context, name string, action host.Action) error {
	h := (*Host)(s)
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.change(string(action)+" "+name, func() error {
		u := h.unit(name)
		if !h.isLoaded(name) && action != host.Stop && action != host.Disable {
			return fmt.Errorf("%s %s: Unit %s not found", action, name, name)
		}
		switch action {
		case host.Start, host.Restart:
			u.active = false
			if h.StartError != nil {
				if err := h.StartError(name); err != nil {
					return err
				}
			}
			h.run(name)
		case host.Reload:
			if !u.active {
				return fmt.Errorf("reload %s: not active", name)
			}
			u.started, u.reloads = h.inputs(name), u.reloads+1
		case host.Stop:
			u.active = false
		case host.Enable:
			u.enabled = true
		case host.Disable:
			u.enabled = false
		}
		return nil
	})
}

func (s *units) DaemonReload(ctx context.Context) error {
	h := (*Host)(s)
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.change("daemon-reload", func() error {
		h.load()
		return nil
	})
}

func (s *units) Journal(_ context.Context, name string, _ time.Time, _ int) ([]string, error) {
	return []string{"words of " + name}, nil
}
