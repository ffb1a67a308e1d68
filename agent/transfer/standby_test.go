// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
	"golang.org/x/sys/unix"
)

// standbyLong is how long a process waits in tests: longer than they take.
const standbyLong = time.Minute

// standbyAfter runs a job after which one stands by for the next, and returns that.
func (f *fixture) standbyAfter(path string) *process {
	f.Helper()
	f.done(f.run(Job{Kind: Send, Paths: []string{path}, Standby: standbyLong}))
	p := f.standby()
	if p == nil {
		f.Fatal("no process stands by")
	}
	f.Cleanup(func() { f.r.Close() })
	return p
}

func (f *fixture) standby() *process {
	f.r.standby.mu.Lock()
	defer f.r.standby.mu.Unlock()
	return f.r.standby.process
}

func (f *fixture) ended(p *process) {
	f.Helper()
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		f.Fatal("it does not end")
	}
}

func TestOneRsyncStandsBy(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"keep": file(""), "d": dir{}})
	p := f.standbyAfter("keep")
	for i := range 5 {
		// It looks at the disk when it gets its list: what was made, changed or removed since it was started counts.
		name := fmt.Sprintf("d/f%d", i)
		f.write(name, "1")
		f.done(f.run(Job{Kind: Send, Paths: []string{"d", name}, Standby: standbyLong}))
		f.ended(p) // it was the one that did the job
		if status := p.cmd.ProcessState.ExitCode(); status != ExitOK {
			t.Errorf("status %d", status)
		}
		next := f.standby()
		if next == nil || next == p {
			t.Fatal("no other process stands by")
		}
		p = next
	}
	f.same()
	f.rm("d/f0")
	f.perPath(f.send("d/f0", "d/f1"), Result{Class: Done, Changed: []string{"d/f0"}})
	f.ended(p)
	if f.standby() != nil {
		t.Error("another stands by, for which nobody asked")
	}
}

func TestNoJobOfAnotherKindTakesTheStandbyRsync(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"keep": file(""), "p": dir{"f": file("")}})
	f.full()
	p := f.standbyAfter("keep")
	f.rm("p")
	f.write("p", "a file now")
	f.make(dir{"d": dir{"f": file("")}})
	f.done(f.run(Job{Kind: Send, Paths: []string{"p"}, Force: true}))
	f.done(f.run(Job{Kind: Send, Paths: []string{"keep"}, Checksum: true}))
	f.done(f.run(Job{Kind: Tree, Paths: []string{"d"}}))
	f.same()
	if f.standby() != p || p.hasEnded() {
		t.Error("it was taken")
	}
}

// It has connected, and ends without a job as a run with nothing to do: no error in the log of the backup host.
func TestStandbyRsyncGoesWhenNoJobComes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"keep": file("")})
	f.done(f.run(Job{Kind: Send, Paths: []string{"keep"}, Standby: 50 * time.Millisecond}))
	p := f.standby()
	if p == nil {
		t.Skip("it has gone already: this machine is busy")
	}
	f.ended(p)
	if status := p.cmd.ProcessState.ExitCode(); status != ExitOK || f.standby() != nil {
		t.Errorf("status %d, or it still stands by", status)
	}
	f.done(f.send("keep"))
}

// The path of the source directory leads to another directory meanwhile: what waits is in the old one.
func TestStandbyRsyncSendsFromNoOtherDirectory(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file("of the old one")})
	p := f.standbyAfter("a")
	f.ok(os.Rename(f.src, f.src+".old"))
	f.make(dir{"a": file("of the new one, which is longer")})
	f.done(f.send("a"))
	f.same()
	f.ended(p)
}

// Nothing of that may reach whoever asked for the job: it would look as if the backup host could not be reached.
func TestJobDoesNotFailWithTheStandbyRsync(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(f *fixture, p *process) error{
		"killed":             func(_ *fixture, p *process) error { return p.cmd.Process.Kill() },
		"connection killed":  func(f *fixture, _ *process) error { return f.d.KillConnections() },
		"daemon made anew":   func(f *fixture, _ *process) error { return restarted(f.d) },
		"killed and noticed": func(f *fixture, p *process) error { defer f.ended(p); return p.cmd.Process.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.make(dir{"a": file("")})
			p := f.standbyAfter("a")
			for f.connections() == 0 { // it has connected
				time.Sleep(time.Millisecond)
			}
			f.ok(breakIt(f, p))
			f.write("b", "1")
			f.done(f.send("b"))
			f.same()
			f.ended(p)
		})
	}
}

func restarted(d *rsynctest.Server) error {
	if err := d.KillConnections(); err != nil {
		return err
	}
	if err := d.Stop(); err != nil {
		return err
	}
	return d.Start()
}

func (f *fixture) connections() int {
	n, err := f.d.Connections()
	f.ok(err)
	return n
}

// It is stopped by a signal, and so neither does its job nor ends: the job ends when it is told to.
func TestJobOfAFrozenRsyncEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file("")})
	p := f.standbyAfter("a")
	f.ok(syscall.Kill(p.cmd.Process.Pid, syscall.SIGSTOP))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	go func() {
		for !pending(p.cmd.Process.Pid, syscall.SIGTERM) && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		_ = syscall.Kill(p.cmd.Process.Pid, syscall.SIGCONT) // else it takes killDelay
	}()
	if res := f.r.Run(ctx, f.root(), Job{Kind: Send, Paths: []string{"a"}}, nil); res.Class != Stopped {
		t.Errorf("%+v", res)
	}
	f.ended(p)
}

// The thread of the goroutine that needs rsync may end: that of a goroutine which was locked to it does.
func TestRsyncOutlivesTheThreadThatWantedIt(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file("1")})
	root := f.root()
	type launched struct {
		p      *process
		err    error
		thread int
	}
	c := make(chan launched)
	l := launched{thread: os.Getpid()}
	for l.thread == os.Getpid() { // Go does not end the thread of main, nor gives it to another goroutine
		go func() {
			runtime.LockOSThread() // for good
			p, err := f.r.launch(root, f.r.args(run{mode: sendMode}))
			c <- launched{p, err, unix.Gettid()}
		}()
		l = <-c
		f.ok(l.err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", l.thread)); errors.Is(err, fs.ErrNotExist) {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("the thread does not end")
		}
	}
	l.p.feed(fileList([]string{"a"}))
	l.p.hear(io.Discard, io.Discard)
	if l.p.wait != nil {
		t.Error(l.p.wait)
	}
	f.same()
}

// pending reports whether a signal waits for a process that is stopped. See ShdPnd in proc_pid_status(5).
func pending(pid int, sig syscall.Signal) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(status), "\nShdPnd:")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	return err == nil && mask&(1<<(sig-1)) != 0
}

// What is in the way of unmounting is gone after a moment.
func TestStandbyRsyncLeavesTheDirectory(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(dir{"a": file("")})
	p := f.standbyAfter("a")
	where, err := os.Readlink(filepath.Join("/proc", fmt.Sprint(p.cmd.Process.Pid), "cwd"))
	if err != nil || where != f.src {
		t.Errorf("it is in %q: %v", where, err)
	}
	f.r.Close()
	if !p.hasEnded() {
		t.Error("it has not ended")
	}
	f.r.Close()
}
