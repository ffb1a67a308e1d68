// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is read at intervals is all there when the run has ended, however much it was and whatever came last.
func TestProgressIsReadToItsEnd(t *testing.T) {
	t.Parallel()
	const files = 60_000
	var out strings.Builder
	for i := range files {
		fmt.Fprintf(&out, "%15d  50%%    1.30MB/s    0:00:13 (xfr#%d, to-chk=%d/%d)\r", i, i+1, files-i, files)
	}
	if out.Len() <= 2*pipeSize {
		t.Fatalf("%d bytes", out.Len())
	}
	out.WriteString("\nfile has vanished: \"a\"\nTotal bytes sent: 12")
	f := newFake(t, fakeRsync{Stdout: out.String(), Status: ExitVanished})
	f.make(dir{"a": file("")})
	var last Progress
	res := f.r.Run(t.Context(), f.root(), Job{Kind: Send, Paths: []string{"a"}}, func(p Progress) { last = p })
	if last.Files != files || res.Stats.Sent != 12 || diff([]string{"a"}, res.Changed) != "" {
		t.Errorf("last progress %+v; %+v", last, res)
	}
}

// Whoever is told of a comparison may be busy for longer than rsync is waited for at its end.
func TestAllOfAComparisonIsTold(t *testing.T) {
	t.Parallel()
	items := strings.Repeat("@ <f+++++++++ a\n", 10_000)
	f := newFake(t, fakeRsync{Stdout: items})
	told := 0
	res := f.r.List(t.Context(), f.root(), ListOptions{Delete: true}, func(it Item) error {
		for deadline := time.Now().Add(20 * time.Second); told == 9000 && len(f.r.Children()) > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Error("the end of rsync waits for whoever is told")
				return ErrStop
			}
		}
		told++
		return nil
	})
	if res.Class != Done || told != 2*10_000 { // by two rsyncs
		t.Errorf("%d told, %+v", told, res)
	}
}

// slowWriter takes so long that there is more to read, if anybody still writes.
type slowWriter struct {
	bytes.Buffer
	fd int
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, 100); err != nil && err != unix.EINTR {
		return 0, err
	}
	return w.Buffer.Write(p)
}

// Neither a child of the child that keeps the pipe, nor one that goes on writing, is waited for.
func TestPolledPipeEndsWithTheChild(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{"keeps": "sleep 60 & echo last", "writes": "echo last; yes &", "closed": "echo last; exec >&-"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, err := newPolledPipe(pipeSize)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("sh", "-c", script)
			cmd.Stdout = g.w
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
			out := slowWriter{fd: g.r}
			_ = g.w.Close() // the child has it
			g.run(&out)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				g.finish()
			}()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatal("it does not end")
			}
			if !strings.Contains(out.String(), "last\n") {
				t.Errorf("%q", out.String()[:min(100, out.Len())])
			}
		})
	}
}
