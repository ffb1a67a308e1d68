// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// terminal returns the size of the terminal that w is, or ok false. A dumb terminal counts: it only
// cannot go back.
func terminal(w io.Writer) (width, height int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	return width, height, true
}

// canGoBack reports whether a terminal understands the few escape sequences that we use.
func canGoBack() bool {
	t := os.Getenv("TERM")
	return t != "" && t != "dumb"
}

// progressLine shows one line that changes in place. On anything but a terminal a line is printed when it changes,
// at most every ten seconds.
type progressLine struct {
	w     io.Writer
	back  bool
	last  string
	kept  string
	shown time.Time
}

func newProgressLine(w io.Writer) *progressLine {
	_, _, ok := terminal(w)
	return &progressLine{w: w, back: ok && canGoBack()}
}

func (p *progressLine) set(text string) {
	width, _, ok := terminal(p.w)
	switch {
	case p.back && ok:
		fmt.Fprint(p.w, "\r\x1b[K"+clip(text, width-1))
	case text != p.last && time.Since(p.shown) >= 10*time.Second:
		p.shown = time.Now()
		fmt.Fprintln(p.w, text)
	}
	p.last = text
}

// keep prints lines that stay, once.
func (p *progressLine) keep(text string) {
	p.end()
	if p.kept != text {
		fmt.Fprintln(p.w, text)
	}
	p.kept = text
}

// end leaves an empty line for what comes next.
func (p *progressLine) end() {
	if p.back && p.last != "" {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	p.last = ""
}

// clip shortens a line to a number of columns. Every character counts as one, which is wrong for some; the line
// is then cut by the terminal.
func clip(s string, width int) string {
	if width < 1 || utf8.RuneCountInString(s) <= width {
		return s
	}
	r := []rune(s)
	return string(r[:width-1]) + "…"
}
