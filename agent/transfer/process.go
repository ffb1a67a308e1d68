// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"io"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// process is one rsync. It runs in a directory, and waits for the list of its paths on standard input. What it says is read from
// [process.hear] on; before, it stays in the pipes.
type process struct {
	args     []string
	place    place // of a standby process: the directory that it is in
	cmd      *exec.Cmd
	in       io.WriteCloser
	out, err *polledPipe
	ended    chan struct{} // closed at its end
	wait     error         // of exec.Cmd.Wait, once it has ended

	ctx  context.Context
	stop context.CancelCauseFunc // ends it with SIGTERM
}

// launch starts rsync in the root's directory.
func (r *Runner) launch(root *Root, args []string) (*process, error) {
	p := &process{args: args, ended: make(chan struct{})}
	p.ctx, p.stop = context.WithCancelCause(context.Background())
	cmd := exec.CommandContext(p.ctx, r.rsync, args...)
	cmd.Env = environment()
	if r.opts.Target.PasswordFile == "" {
		// Else rsync asks for a password on the terminal, or takes our file list for one.
		cmd.Env = append(cmd.Env, "RSYNC_PASSWORD=")
	}
	cmd.Dir = "/"
	if root != nil {
		cmd.Dir = root.dir()
	}
	// A session of its own is a group of its own, and has no terminal to ask on. When we are killed, rsync ends too, and
	// does not go on beside the next agent.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = killDelay
	p.cmd = cmd
	var err error
	if p.out, err = newPolledPipe(pipeSize); err != nil {
		return nil, err
	}
	if p.err, err = newPolledPipe(0); err != nil {
		p.out.close()
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = p.out.w, p.err.w
	if p.in, err = cmd.StdinPipe(); err == nil {
		err = start(cmd)
	}
	if err != nil {
		p.out.close()
		p.err.close()
		return nil, err
	}
	_, _ = p.out.w.Close(), p.err.w.Close() // the child has them
	forget := r.children.add(cmd.Process.Pid)
	go func() {
		defer close(p.ended)
		p.wait = cmd.Wait()
		forget()
	}()
	return p, nil
}

// start starts a command on a thread that ends with the agent and not before: the kernel sends Pdeathsig when the thread ends that forked
// (PR_SET_PDEATHSIG in prctl(2)), and Go ends that of a goroutine which is never unlocked, as package hooks has them, whatever it forked before.
func start(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	starts() <- func() { started <- cmd.Start() }
	return <-started
}

var starts = sync.OnceValue(func() chan<- func() {
	todo := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range todo {
			f()
		}
	}()
	return todo
})

// feed gives it its list.
func (p *process) feed(list []byte) {
	go func() {
		_, _ = p.in.Write(list) // an error means that rsync has ended, and it tells why
		_ = p.in.Close()
	}()
}

// hear hands on what it says, each output in a goroutine of its own, and returns when it has ended and all is said.
func (p *process) hear(out, errs io.Writer) {
	p.out.run(out)
	p.err.run(errs)
	<-p.ended
	p.out.finish()
	p.err.finish()
}

// dismissDelay is how long rsync may take to end when it has nothing to do.
const dismissDelay = time.Second

// dismiss ends it without a job. With nothing to do it ends by itself, and the backup host logs no broken connection.
func (p *process) dismiss() {
	late := time.AfterFunc(dismissDelay, func() { p.stop(nil) })
	defer late.Stop()
	p.feed(nil)
	p.hear(io.Discard, io.Discard)
}

func (p *process) hasEnded() bool { return isClosed(p.ended) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
