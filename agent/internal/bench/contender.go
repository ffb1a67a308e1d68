// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
	"github.com/lockstep-sync/lockstep/agent/replicate"
	"github.com/lockstep-sync/lockstep/agent/unit"
)

// site is one source directory and one rsync daemon with a module for it, all below dir. The daemon is set up as lockstep
// provisions it, with TCP_NODELAY on its side too.
type site struct {
	*rsynctest.Server
	dir, src, dst string
}

func newSite(parent string) (*site, error) {
	dir, err := os.MkdirTemp(parent, "lockstep-bench-")
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, src: filepath.Join(dir, "src"), dst: filepath.Join(dir, "dst")}
	if err := os.Mkdir(s.src, 0o755); err != nil {
		return nil, err
	}
	s.Server, err = rsynctest.Start(rsynctest.Options{Dir: dir, Path: s.dst})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// close ends the daemon and removes everything.
func (s *site) close() error { return errors.Join(s.Stop(), os.RemoveAll(s.dir)) }

func (s *site) url() string {
	return fmt.Sprintf("rsync://%s@%s:%d/%s/", s.User, s.Address, s.Port, s.Module)
}

// rsync runs a plain rsync from the source directory to the module and says how long it took and what CPU time it used.
func (s *site) rsync(ctx context.Context, args ...string) (wall, cpu time.Duration, err error) {
	args = append([]string{"--sockopts=TCP_NODELAY", "--password-file=" + s.PasswordFile}, args...)
	cmd := exec.CommandContext(ctx, "rsync", append(args, "./", s.url())...)
	cmd.Dir = s.src
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, 0, fmt.Errorf("rsync %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return time.Since(start), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// contender is a program that replicates a site.
type contender struct {
	name string
	// start begins replication of the site; the process ends with its context.
	start func(ctx context.Context, s *site) (*exec.Cmd, error)
	// ready blocks until live changes are noticed. It may use what start left in the site's directory.
	ready func(ctx context.Context, s *site) error
}

func lockstep(binary, name string, definition ...string) contender {
	return contender{
		name: name,
		start: func(ctx context.Context, s *site) (*exec.Cmd, error) {
			lines := append([]string{
				"name: bench",
				"source: {host: localhost, path: " + s.src + "}",
				"backup: {host: 127.0.0.1, path: " + s.dst + ", module: " + s.Module + ", port: " + strconv.Itoa(s.Port) + "}",
				"auth: {user: " + s.User + "}",
				"delete: {max_files: 1000000, max_percent: 100}", // W7 deletes nearly everything, and nobody is there to approve
			}, definition...)
			file := filepath.Join(s.dir, "pair.yaml")
			if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
				return nil, err
			}
			for _, d := range []string{"state", "run"} {
				if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
					return nil, err
				}
			}
			cmd := exec.CommandContext(ctx, binary, "run", "--definition", file, "--password-file", s.PasswordFile,
				"--state-dir", filepath.Join(s.dir, "state"), "--runtime-dir", filepath.Join(s.dir, "run"))
			return cmd, withSlack(unit.TimerSlack, func() error { return startQuietly(cmd, filepath.Join(s.dir, "lockstep.log")) })
		},
		ready: func(ctx context.Context, s *site) error {
			return poll(ctx, 60*time.Second, later, func() error {
				st, err := lockstepStatus(ctx, s)
				if err == nil && st.State != "in step" {
					err = fmt.Errorf("lockstep is %q", st.State)
				}
				return err
			})
		},
	}
}

// withSlack calls start, and the process that it makes has the timer slack that its unit gives it: that of the thread that makes it.
func withSlack(slack time.Duration, start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	err := start()
	return errors.Join(err, unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)) // 0: what it was
}

// status is what the benchmark reads of the agent's status.
type status struct {
	State string `json:"state"`
	Watch struct {
		Backend   string `json:"backend"`
		Overflows int    `json:"overflows"`
	} `json:"watch"`
}

// lockstepStatus asks the agent itself: to run `lockstep status` every few milliseconds would take half of a core from what is measured.
func lockstepStatus(ctx context.Context, s *site) (st status, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.dir, "run", replicate.SocketName))
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return st, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

func lsyncd() contender {
	return contender{
		name: "lsyncd",
		start: func(ctx context.Context, s *site) (*exec.Cmd, error) {
			conf := filepath.Join(s.dir, "lsyncd.lua")
			text := fmt.Sprintf(`settings { nodaemon = true, statusFile = %q, statusInterval = 1 }
sync { default.rsync, delay = 1, source = %q, target = %q, rsync = { archive = true, password_file = %q } }
`, filepath.Join(s.dir, "lsyncd.status"), s.src, s.url(), s.PasswordFile)
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				return nil, err
			}
			cmd := exec.CommandContext(ctx, "lsyncd", "-nodaemon", conf)
			return cmd, startQuietly(cmd, filepath.Join(s.dir, "lsyncd.log"))
		},
		ready: func(ctx context.Context, s *site) error { return probe(ctx, s) },
	}
}

// script is the loop around inotifywait(1) that many write for themselves: one rsync of the directory for each event.
func script() contender {
	return contender{
		name: "inotifywait",
		start: func(ctx context.Context, s *site) (*exec.Cmd, error) {
			const loop = `cd "$1" || exit; while IFS= read -r dir; do rsync -a --dirs --relative --delete --password-file="$2" "$dir" "$3"; done \
				< <(exec inotifywait -mrq --format %w -e close_write,create,delete,move,attrib .)`
			cmd := exec.CommandContext(ctx, "bash", "-c", loop, "inotifywait-loop", s.src, s.PasswordFile, s.url())
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			err := startQuietly(cmd, filepath.Join(s.dir, "inotifywait.log"))
			cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) } // inotifywait is a child
			return cmd, err
		},
		ready: func(ctx context.Context, s *site) error {
			time.Sleep(2 * time.Second) // nothing tells when it watches, and what comes before is lost
			return probe(ctx, s)
		},
	}
}

func startQuietly(cmd *exec.Cmd, log string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd.Start()
}

// probe makes a file and waits until it has arrived, then removes it and waits until that has arrived too.
func probe(ctx context.Context, s *site) error {
	const name = "bench-probe"
	if err := os.WriteFile(filepath.Join(s.src, name), []byte("probe"), 0o644); err != nil {
		return err
	}
	if err := poll(ctx, 60*time.Second, soon, func() error { _, err := os.Lstat(filepath.Join(s.dst, name)); return err }); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(s.src, name)); err != nil {
		return err
	}
	return poll(ctx, 60*time.Second, soon, func() error {
		if _, err := os.Lstat(filepath.Join(s.dst, name)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is still on the backup", name)
		}
		return nil
	})
}

// Pauses between two looks at what is waited for.
const (
	soon  = 5 * time.Millisecond
	later = 50 * time.Millisecond // where to look costs the agent something
)

func poll(ctx context.Context, limit, pause time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v: %w", limit, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// usage is what a process and its ended children have used: proc_pid_stat(5) fields 14 to 17, and VmHWM, VmRSS.
type usage struct {
	cpu       time.Duration
	peak, rss int64 // bytes
}

func usageOf(pid int) (usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return usage{}, err
		}
		ticks += n
	}
	u := usage{cpu: time.Duration(ticks) * time.Second / 100} // USER_HZ is 100 on every Linux that Go supports
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return usage{}, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kb); n == 1 {
			u.peak = kb << 10
		}
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			u.rss = kb << 10
		}
	}
	return u, nil
}
