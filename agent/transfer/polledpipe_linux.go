// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pollEvery is how often output is read while rsync runs.
	pollEvery = 20 * time.Millisecond

	// pipeSize is how much gathers meanwhile: 15,000 lines of progress. It is what anybody may ask for, see pipe(7).
	pipeSize = 1 << 20
)

// polledPipe is a pipe for what a child says that is read at intervals. Rsync writes its progress file by file, and at 10,000
// files a second being woken for each line takes more processor time than all the rest that we do.
//
// The pipe that exec.Cmd makes for an io.Writer is closed killDelay after the end of the child, and what is in it then is lost: while
// whoever is told of a comparison is busy, nobody reads.
type polledPipe struct {
	r    int
	w    *os.File // for the child
	quit chan struct{}
	done chan struct{}
}

// newPolledPipe makes the pipe, with room for size bytes if that is more than usual. Either run and finish, or close must follow; the child
// and nobody else may have its end when the end of the pipe is waited for.
func newPolledPipe(size int) (*polledPipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &polledPipe{r: fds[0], w: os.NewFile(uintptr(fds[1]), "|1"), quit: make(chan struct{}), done: make(chan struct{})}
	if err := unix.SetNonblock(p.r, true); err != nil {
		p.close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	if size > 0 {
		_, _ = unix.FcntlInt(uintptr(p.r), unix.F_SETPIPE_SZ, size) // without it rsync waits for us now and then
	}
	return p, nil
}

// run reads until the last writer has closed the pipe, or until finish.
func (p *polledPipe) run(to io.Writer) {
	go func() {
		defer close(p.done)
		buf := make([]byte, 64<<10)
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		// What the pipe holds when the child has ended is its own. A child of it may keep the pipe, and write on for ever.
		for rest := pipeSize; rest > 0; {
			ended := isClosed(p.quit)
			n, err := ignoringEINTR(func() (int, error) { return unix.Read(p.r, buf) })
			switch {
			case n > 0:
				_, _ = to.Write(buf[:n]) // lines takes everything
				if ended {
					rest -= n
				}
			case !errors.Is(err, unix.EAGAIN) || ended: // the end; there is no other error
				return
			default:
				select {
				case <-tick.C:
				case <-p.quit:
				}
			}
		}
	}()
}

// finish returns when what the child has written is read. The child has ended.
func (p *polledPipe) finish() {
	close(p.quit)
	<-p.done
	closeFD(p.r)
}

// close is for a pipe that no child got.
func (p *polledPipe) close() {
	_ = p.w.Close()
	closeFD(p.r)
}
