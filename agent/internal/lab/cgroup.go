// SPDX-License-Identifier: Apache-2.0

//go:build linux

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// cgroups returns the cgroups that a start of the host joins, and a wrapper for its command. Two hosts in
// one cgroup would kill each other's processes: systemd in a container takes the cgroup that it finds for its own.
func (h *Host) cgroups() (dirs, wrap []string, err error) {
	name := "lockstep-lab-" + h.lab.ID + "-" + h.Name
	if _, err := os.Stat("/run/systemd/system"); err == nil { // sd_booted(3): then cgroups are systemd's to give
		return nil, []string{"systemd-run", "--scope", "--quiet", "--collect", "--unit=" + name, "--property=Delegate=yes",
			"--description=" + h.Name + " of lab " + h.lab.ID, "--"}, nil
	}
	parents, err := cgroupParents()
	if err != nil {
		return nil, nil, err
	}
	for _, parent := range parents {
		dir := filepath.Join(parent, name)
		if err := h.lab.run.save(func(s *runState) {
			s.CGroups = append(s.CGroups, dir)
		}); err != nil {
			return nil, nil, err
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, nil, fmt.Errorf("%w\nhint: in a container, start it with --privileged", err)
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil, nil
}

// cgroupParents returns this process's cgroup in the hierarchies that systemd in a host writes to: the
// unified one and, on cgroup v1, systemd's own (cgroups(7), proc(5) mountinfo).
func cgroupParents() ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	path := func(controllers string) string {
		for line := range strings.Lines(string(own)) {
			if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] == controllers {
				return f[2]
			}
		}
		return "/"
	}
	var parents []string
	seen := map[string]bool{}
	for line := range strings.Lines(string(mounts)) {
		mount, super, ok := strings.Cut(line, " - ")
		f, s := strings.Fields(mount), strings.Fields(super)
		if !ok || len(f) < 5 || len(s) < 3 {
			continue
		}
		kind, inside := "", ""
		switch {
		case s[0] == "cgroup2":
			kind, inside = "cgroup2", path("")
		case s[0] == "cgroup" && strings.Contains(s[2], "name=systemd"):
			kind, inside = "systemd", path("name=systemd")
		default:
			continue
		}
		dir := filepath.Join(unescape(f[4]), inside)
		if _, err := os.Stat(dir); err != nil {
			dir = unescape(f[4]) // a mount of something below: then its top is ours
		}
		if !seen[kind] {
			seen[kind] = true
			parents = append(parents, dir)
		}
	}
	return parents, nil
}
