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
	// gulpEvery is how often output is read while rsync runs.
	gulpEvery = 20 * time.Millisecond

	// gulpSize is how much gathers meanwhile: 15,000 lines of progress. It is what anybody may ask for, see pipe(7).
	gulpSize = 1 << 20
)

// gulps is a pipe for what a child says that is read at intervals. Rsync writes its progress file by file, and at 10,000
// files a second being woken for each line takes more processor time than all the rest that we do.
//
// The pipe that exec.Cmd makes for an io.Writer is closed killDelay after the end of the child, and what is in it then is lost: while
// whoever is told of a comparison is busy, nobody reads.
type gulps struct {
	r    int
	w    *os.File // for the child
	quit chan struct{}
	done chan struct{}
}

// newGulps makes the pipe, with room for size bytes if that is more than usual. Either run and finish, or close must follow; the child
// and nobody else may have its end when the end of the pipe is waited for.
func newGulps(size int) (*gulps, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	g := &gulps{r: p[0], w: os.NewFile(uintptr(p[1]), "|1"), quit: make(chan struct{}), done: make(chan struct{})}
	if err := unix.SetNonblock(g.r, true); err != nil {
		g.close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	if size > 0 {
		_, _ = unix.FcntlInt(uintptr(g.r), unix.F_SETPIPE_SZ, size) // without it rsync waits for us now and then
	}
	return g, nil
}

// run reads until the last writer has closed the pipe, or until finish.
func (g *gulps) run(to io.Writer) {
	go func() {
		defer close(g.done)
		buf := make([]byte, 64<<10)
		tick := time.NewTicker(gulpEvery)
		defer tick.Stop()
		// What the pipe holds when the child has ended is its own. A child of it may keep the pipe, and write on for ever.
		for rest := gulpSize; rest > 0; {
			ended := g.ended()
			n, err := ignoringEINTR(func() (int, error) { return unix.Read(g.r, buf) })
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
				case <-g.quit:
				}
			}
		}
	}()
}

func (g *gulps) ended() bool {
	select {
	case <-g.quit:
		return true
	default:
		return false
	}
}

// finish returns when what the child has written is read. The child has ended.
func (g *gulps) finish() {
	close(g.quit)
	<-g.done
	closeFD(g.r)
}

// close is for a pipe that no child got.
func (g *gulps) close() {
	_ = g.w.Close()
	closeFD(g.r)
}
