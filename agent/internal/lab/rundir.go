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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runDir is the directory of one running lab: DIR/runs/ID. Its file `lock` is locked as long as the
// process that started the lab lives; the kernel drops the lock however that process ends.
type runDir struct {
	dir  string
	lock *os.File

	mu    sync.Mutex
	state runState
}

// runState is what a later process needs to find the lab, or to clear it away: state.json.
type runState struct {
	Owner   process            `json:"owner"`
	Net     string             `json:"net"` // path of the link's network namespace
	Hosts   map[string]process `json:"hosts"`
	Leaders map[string]process `json:"leaders"` // PID 1 of each host, as this machine numbers it
	Nets    map[string]string  `json:"nets"`
	CGroups []string           `json:"cgroups"`
}

// process names a process beyond doubt: numbers are used again, but not with the same start time.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // proc(5) stat field 22, in clock ticks since boot
}

func thisProcess(pid int) process { return process{pid, startTime(pid)} }

func (p process) alive() bool { return p.PID > 0 && p.Start != "" && startTime(p.PID) == p.Start }

// kill sends a signal to the process if it lives.
func (p process) kill(sig syscall.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill pid %d: %w", p.PID, err)
	}
	return nil
}

// startTime is "" for a process that is gone or a zombie.
func startTime(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// Field 2 is the command in parentheses and may hold spaces; field 3, the state, follows the last one.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

// lockRuns keeps other processes from making or clearing labs in dir meanwhile.
func lockRuns(dir string) (unlock func(), err error) {
	runs := filepath.Join(dir, "runs")
	if err := os.MkdirAll(runs, 0o755); err != nil {
		return nil, err
	}
	return flock(filepath.Join(runs, ".lock"), unix.LOCK_EX)
}

func flock(path string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return func() { f.Close() }, nil
}

func newRunDir(dir string) (*runDir, error) {
	unlock, err := lockRuns(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	path, err := os.MkdirTemp(filepath.Join(dir, "runs"), "")
	if err != nil {
		return nil, err
	}
	// unix(7): the path of a socket has 107 bytes.
	if longest := filepath.Join(path, "backup", "notify"); len(longest) > 107 {
		return nil, fmt.Errorf("lab directory %s is too long a path for a socket\nhint: set LOCKSTEP_LAB_CACHE to a shorter one", dir)
	}
	r := &runDir{dir: path}
	if r.lock, err = os.Create(r.path("lock")); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(r.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, &fs.PathError{Op: "lock", Path: r.path("lock"), Err: err}
	}
	return r, r.save(func(s *runState) {
		*s = runState{Owner: thisProcess(os.Getpid()), Hosts: map[string]process{}, Leaders: map[string]process{}, Nets: map[string]string{}}
	})
}

func (r *runDir) id() string              { return filepath.Base(r.dir) }
func (r *runDir) path(name string) string { return filepath.Join(r.dir, name) }

// save changes the recorded state. Cgroups are recorded before they are made; processes right after, and
// until then they die with their parent.
func (r *runDir) save(change func(*runState)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.state)
	data, err := json.MarshalIndent(r.state, "", "  ")
	if err != nil {
		return err
	}
	tmp := r.path("state.json.new")
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, r.path("state.json"))
}

func (r *runDir) remove() error {
	if _, err := os.Stat(r.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r.mu.Lock()
	state := r.state
	r.mu.Unlock()
	err := clearRun(r.dir, state)
	r.lock.Close()
	return err
}

// collect clears away labs whose owner is gone.
func collect(dir string, log io.Writer) error {
	unlock, err := lockRuns(dir)
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(filepath.Join(dir, "runs"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		run := filepath.Join(dir, "runs", e.Name())
		release, err := flock(filepath.Join(run, "lock"), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // its owner lives
		} else if err != nil {
			return err
		}
		var state runState
		if data, err := os.ReadFile(filepath.Join(run, "state.json")); err == nil {
			if err := json.Unmarshal(data, &state); err != nil {
				release()
				return fmt.Errorf("%s: %w", filepath.Join(run, "state.json"), err)
			}
		}
		err = clearRun(run, state)
		release()
		if err != nil {
			return fmt.Errorf("clear away lab %s: %w", e.Name(), err)
		}
		fmt.Fprintf(log, "lab %s: cleared away, its owner (pid %d) is gone\n", e.Name(), state.Owner.PID)
	}
	return nil
}

// clearRun ends the recorded processes that still live and removes the cgroups and the directory.
func clearRun(run string, state runState) error {
	var all []process
	for _, p := range state.Hosts {
		all = append(all, p)
	}
	for _, p := range state.Leaders {
		all = append(all, p)
	}
	for _, p := range all {
		if err := p.kill(syscall.SIGKILL); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, p := range all {
		for p.alive() {
			if time.Now().After(deadline) {
				return fmt.Errorf("pid %d does not end", p.PID)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	for _, c := range state.CGroups {
		if err := removeCGroup(c, deadline); err != nil {
			return err
		}
	}
	if err := refuseMounts(run); err != nil {
		return err
	}
	return os.RemoveAll(run)
}

// removeCGroup removes a cgroup and those below it. Processes leave a cgroup only some time after they died.
func removeCGroup(dir string, deadline time.Time) error {
	for {
		err := removeEmpty(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func removeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeEmpty(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return unix.Rmdir(dir)
}

// refuseMounts guards the removal of a directory: a lab mounts nothing in this mount namespace, so a
// mount below its directory was made by somebody else and leads somewhere else.
func refuseMounts(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		at := unescape(fields[4])
		if at == dir || strings.HasPrefix(at, dir+"/") {
			return fmt.Errorf("%s is a mount point that the lab did not make\nhint: umount it", at)
		}
	}
	return nil
}

// unescape undoes the octal escapes of proc(5) mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
