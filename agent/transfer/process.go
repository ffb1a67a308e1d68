// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"io"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

// process is one rsync. It runs in a directory, and waits for the list of its paths on standard input. What it says is read from
// [process.hear] on; before, it stays in the pipes.
type process struct {
	args     []string
	place    place // where it was launched ahead
	cmd      *exec.Cmd
	in       io.WriteCloser
	out, err *gulps
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
	if p.out, err = newGulps(gulpSize); err != nil {
		return nil, err
	}
	if p.err, err = newGulps(0); err != nil {
		p.out.close()
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = p.out.w, p.err.w
	if p.in, err = cmd.StdinPipe(); err == nil {
		err = cmd.Start()
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

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// ahead holds the process, if there is one, that was launched before its job is known, so that it is connected and has said its
// password by then. That is most of what a small job takes.
type ahead struct {
	mu      sync.Mutex
	process *process
	expiry  *time.Timer
}

// launchAhead starts the rsync of the next job with these arguments in the root's directory, unless one waits already, and reports
// whether one does. As long as it waits, the filesystem cannot be unmounted: expire must follow.
func (r *Runner) launchAhead(root *Root, args []string) bool {
	a := &r.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	here, ok := root.place()
	if !ok || a.process != nil {
		return ok
	}
	p, err := r.launch(root, args)
	if err != nil {
		return false // the job will say so
	}
	p.place, a.process = here, p
	return true
}

// expire dismisses what waits when no job has come for it within keep from now.
func (a *ahead) expire(keep time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.process
	if p == nil {
		return
	}
	if a.expiry != nil {
		a.expiry.Stop()
	}
	a.expiry = time.AfterFunc(keep, func() {
		if a.release(p) {
			p.dismiss()
		}
	})
}

// release reports whether p still waits, and takes it away.
func (a *ahead) release(p *process) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.process != p {
		return false
	}
	a.process = nil
	if a.expiry != nil {
		a.expiry.Stop()
		a.expiry = nil
	}
	return true
}

// Close ends what waits for a job.
func (r *Runner) Close() {
	a := &r.ahead
	a.mu.Lock()
	p := a.process
	a.mu.Unlock()
	if p != nil && a.release(p) {
		p.dismiss()
	}
}

// launched returns the process that was launched ahead, if it is in the very directory and has the same arguments, else nil.
func (r *Runner) launched(root *Root, args []string) *process {
	a := &r.ahead
	a.mu.Lock()
	p := a.process
	a.mu.Unlock()
	if p == nil || !slices.Equal(p.args, args) || !a.release(p) {
		return nil
	}
	if here, ok := root.place(); !ok || here != p.place || p.hasEnded() {
		go p.dismiss()
		return nil
	}
	return p
}
