// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// pty is a terminal of its own: what is written to the second file is read from the first.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { master.Close() })
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// On a terminal the view has a screen of its own, follows its size, and leaves all as it was. Not parallel: it sets
// the environment and sends a signal.
func TestTheLiveViewOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("LC_ALL", "C.UTF-8")
	t.Setenv("NO_COLOR", "")
	master, slave := pty(t)
	resize := func(columns, rows uint16) {
		t.Helper()
		if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
			t.Fatal(err)
		}
	}
	resize(80, 24)
	agent := answering(t, aWatchedPair(time.Now()).status)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	ended := make(chan error, 1)
	go func() {
		ended <- watchStatus(ctx, stdio{nil, slave, nil}, func() []*client { return []*client{agent} })
	}()
	got := ""
	until := func(what string, done func() bool) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for buf := make([]byte, 1<<16); !done(); {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 20 s; the terminal got %q", what, got)
			}
			poll := []unix.PollFd{{Fd: int32(master.Fd()), Events: unix.POLLIN}}
			if n, err := unix.Poll(poll, 100); err != nil || n == 0 {
				continue
			}
			n, err := unix.Read(int(master.Fd()), buf)
			if err != nil {
				t.Fatal(err)
			}
			got += string(buf[:n])
		}
	}
	frame := regexp.MustCompile(`(?s)\x1b\[H(.*?)\x1b\[J`)
	frames := func() int { return len(frame.FindAllString(got, -1)) }
	fits := func(columns, rows int) bool {
		all := frame.FindAllStringSubmatch(got, -1)
		if len(all) == 0 {
			return false
		}
		lines := strings.Split(regexp.MustCompile(`\x1b\[[0-9;]*[mK]`).ReplaceAllString(all[len(all)-1][1], ""), "\r\n")
		for _, line := range lines {
			if utf8.RuneCountInString(strings.TrimRight(line, "\r")) > columns {
				return false
			}
		}
		return len(lines) <= rows
	}
	until("the first picture", func() bool { return frames() >= 1 })
	if !strings.HasPrefix(got, "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H") {
		t.Errorf("it begins with %q", got[:min(60, len(got))])
	}
	if !fits(80, 24) || fits(40, 10) || !strings.Contains(got, "\x1b[30;43m BEHIND \x1b[0m") {
		t.Errorf("the first picture is %q", got)
	}
	resize(40, 10)
	until("a picture for the smaller terminal", func() bool { return fits(40, 10) })
	interrupt()
	const restored = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	until("the terminal as it was", func() bool { return strings.Contains(got, restored) && strings.HasSuffix(got, "\n") })
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, after, _ := strings.Cut(got, restored); strings.TrimSpace(after) != `pair "data": behind: 214 paths, the oldest for 2.41s` {
		t.Errorf("it leaves %q", after)
	}
}

// Nobody types a definition into a terminal: an option that was left out is told, and not waited for.
func TestADefinitionIsNotReadFromATerminal(t *testing.T) {
	t.Parallel()
	_, slave := pty(t)
	for _, tc := range []struct{ verb, hint string }{
		{"plan", "write --definition FILE, or give"}, {"apply", "write --definition FILE, or give"},
		{"read", "name the pair, as lockstep read --role source NAME; or write --definition FILE"},
		{"destroy", "name the pair, as lockstep destroy --role source NAME; or write --definition FILE"},
	} {
		ended := make(chan string, 1)
		go func() {
			var out, errs bytes.Buffer
			status := dispatch(t.Context(), stdio{slave, &out, &errs}, []string{tc.verb, "--role", "source"})
			ended <- fmt.Sprint(status, " ", errs.String())
		}()
		select {
		case got := <-ended:
			if !strings.HasPrefix(got, fmt.Sprint(exitUsage)) || !strings.Contains(got, "no definition was given\n  hint: "+tc.hint) {
				t.Errorf("%s: %s", tc.verb, got)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s waits for a terminal", tc.verb)
		}
	}
}
