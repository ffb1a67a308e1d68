// SPDX-License-Identifier: Apache-2.0

//go:build linux

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Found is a lab that another process runs.
type Found struct {
	ID    string
	Owner int // pid
	dir   string
	state runState
}

// List returns the labs that run now below dir; "" is the default.
func List(dir string) ([]Found, error) {
	dir = Dir(dir)
	locks, err := filepath.Glob(filepath.Join(dir, "runs", "*", "lock"))
	if err != nil {
		return nil, err
	}
	var found []Found
	for _, lock := range locks {
		release, err := flock(lock, unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			release() // its owner is gone
			continue
		} else if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		f := Found{dir: filepath.Dir(lock)}
		data, err := os.ReadFile(filepath.Join(f.dir, "state.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it begins, or ends, right now
		} else if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, &f.state); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(f.dir, "state.json"), err)
		}
		f.ID, f.Owner = filepath.Base(f.dir), f.state.Owner.PID
		found = append(found, f)
	}
	return found, nil
}

// Find returns the lab with this ID, or the only one that runs when id is empty.
func Find(dir, id string) (*Found, error) {
	labs, err := List(dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, f := range labs {
		ids = append(ids, f.ID)
	}
	switch {
	case id != "":
		if i := slices.Index(ids, id); i >= 0 {
			return &labs[i], nil
		}
		return nil, fmt.Errorf("no lab %q runs; running: %s", id, strings.Join(ids, ", "))
	case len(labs) == 0:
		return nil, fmt.Errorf("no lab runs\nhint: make lab, in another terminal")
	case len(labs) > 1:
		return nil, fmt.Errorf("several labs run: %s\nhint: say which with -lab", strings.Join(ids, ", "))
	}
	return &labs[0], nil
}

// SSHConfigFile is as in [Lab.SSHConfigFile].
func (f *Found) SSHConfigFile() string { return filepath.Join(f.dir, "ssh_config") }

// LinkArgv is the command line that runs argv on the lab's link, as [Lab.Command] does.
func (f *Found) LinkArgv(argv ...string) []string {
	return enterLink(f.state.Net, filepath.Join(f.dir, "hosts"), argv)
}

// HostArgv is the command line that runs argv on a host, as [Host.Command] does.
func (f *Found) HostArgv(host string, argv ...string) ([]string, error) {
	leader, ok := f.state.Leaders[host]
	if !ok || !leader.alive() {
		return nil, fmt.Errorf("no host %q is on in lab %s", host, f.ID)
	}
	return enterHost(leader.PID, argv), nil
}

// Collect clears away what labs left behind whose owners were killed.
func Collect(dir string, log io.Writer) error { return collect(Dir(dir), log) }
