// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// killAfter is how long a command may take to end after SIGTERM.
	killAfter = 2 * time.Second

	// maxOutput is how much of a command's output is kept for the log.
	maxOutput = 4096
)

// passedOn lists what a command gets of the agent's environment: nothing that names a socket of the service manager,
// a directory of credentials or a token.
var passedOn = []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR"}

// environ is the environment of commands.
func (w *worker) environ(full bool) []string {
	var env []string
	for _, line := range os.Environ() {
		if name, _, _ := strings.Cut(line, "="); slices.Contains(passedOn, name) || strings.HasPrefix(name, "LC_") {
			env = append(env, line)
		}
	}
	flag := "0"
	if full {
		flag = "1"
	}
	return append(env, "LOCKSTEP_PAIR="+w.pair, "LOCKSTEP_HOOK="+w.Name, "LOCKSTEP_SOURCE="+w.root, "LOCKSTEP_FULL="+flag)
}

// stdin is what a command reads that is called once a batch: absolute paths, a NUL after each.
func (w *worker) stdin(b *batch) []byte {
	var in bytes.Buffer
	for _, c := range b.paths {
		in.WriteString(w.absolute(c.path))
		in.WriteByte(0)
	}
	if b.full {
		in.WriteString(w.root)
		in.WriteByte(0)
	}
	return in.Bytes()
}

// command runs a program until it ends or ctx does, in a process group of its own, which is gone then.
func (w *worker) command(ctx context.Context, argv []string, stdin []byte, full bool) error {
	out := &tail{}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = w.environ(full)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = killAfter
	w.log.Debug("command", "argv", argv)
	if err := start(cmd); err != nil {
		return err
	}
	w.setChild(cmd.Process.Pid)
	err := cmd.Wait()
	w.setChild(0)
	if ctx.Err() != nil {
		// Whoever of the group did not heed SIGTERM. While one of them lives, no other group can have the number.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		return ctx.Err()
	}
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it left a child behind that has its output open
		return nil
	case errors.As(err, &exit) && w.IgnoreErrors:
		return nil
	}
	if text := strings.TrimSpace(out.String()); text != "" {
		return fmt.Errorf("%s: %w: %q", argv[0], err, text)
	}
	return fmt.Errorf("%s: %w", argv[0], err)
}

// start starts a command without the agent's ambient capabilities, which let it read every file. They belong to a
// thread, and the child gets those of the thread that forks; see capabilities(7). The thread ends with the goroutine,
// because it is never unlocked.
func start(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a kernel before 4.3 has none
			done <- fmt.Errorf("drop the capabilities of %s: %w", cmd.Path, err)
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

// tail keeps the end of what is written to it. The copying goroutine of os/exec alone writes.
type tail struct {
	buf []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - maxOutput; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
		t.cut = true
	}
	return len(p), nil
}

func (t *tail) String() string {
	if t.cut {
		return "…" + string(t.buf)
	}
	return string(t.buf)
}
