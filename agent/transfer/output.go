// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// maxLine bounds one line of rsync's output. A name has up to 4 KiB, four times that when each byte is
// escaped, and some messages have two.
const maxLine = 64 << 10

// lines is an io.Writer that hands on lines without their end. A longer line than maxLine is cut.
type lines struct {
	each    func(line string)
	returns bool // a carriage return ends a line too
	buf     []byte
	skip    bool
}

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if l.returns {
			i = bytes.IndexAny(p, "\r\n") // each by itself, and the one that is not there is looked for to the end, for every line
		}
		part, end := p, i >= 0
		if end {
			part, p = p[:i], p[i+1:]
		} else {
			p = nil
		}
		if !l.skip {
			l.buf = append(l.buf, part...)
			if len(l.buf) > maxLine {
				l.buf, l.skip = l.buf[:maxLine], true
			}
		}
		if end {
			l.flush()
		}
	}
	return n, nil
}

// flush hands on what came after the last line end.
func (l *lines) flush() {
	if len(l.buf) > 0 {
		l.each(string(l.buf))
	}
	l.buf, l.skip = l.buf[:0], false
}

// tail keeps the end of what is written.
type tail struct {
	max int
	buf []byte
}

func (t *tail) add(line string) {
	if line == "" {
		return
	}
	t.buf = append(t.buf, line...)
	t.buf = append(t.buf, '\n')
	if len(t.buf) > 2*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
	}
}

func (t *tail) String() string {
	if len(t.buf) > t.max {
		return string(t.buf[len(t.buf)-t.max:])
	}
	return string(t.buf)
}

// unescape undoes what rsync does to names in its output: \#ooo stands for the byte with that octal number, and a
// backslash that could be taken for such a beginning is escaped itself.
func unescape(s string) string {
	i := strings.Index(s, `\#`)
	if i < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for ; i >= 0; i = strings.Index(s, `\#`) {
		b = append(b, s[:i]...)
		if n, ok := octal(s[i+2:]); ok {
			b = append(b, n)
			s = s[i+5:]
		} else {
			b = append(b, `\#`...)
			s = s[i+2:]
		}
	}
	return string(append(b, s...))
}

func octal(s string) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	n := 0
	for _, c := range []byte(s[:3]) {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n<<3 | int(c-'0')
	}
	return byte(n), n < 256
}

// parseItem reads a line of outFormat.
func parseItem(line string) (Item, bool) {
	rest, ok := strings.CutPrefix(line, itemMark)
	if !ok || len(rest) < 12 || rest[11] != ' ' {
		return Item{}, false
	}
	it := Item{What: rest[:11], Path: unescape(rest[12:])}
	it.Path = strings.TrimPrefix(it.Path, "./")
	if p, dir := strings.CutSuffix(it.Path, "/"); dir {
		it.Path, it.Dir = p, true
	}
	if it.Path == "." || rest[12:] == "./" {
		it.Path, it.Dir = "", true
	}
	if strings.HasPrefix(it.What, "*deleting") {
		it.Extraneous = true
		return it, true
	}
	it.New = strings.HasSuffix(it.What, "+++++++++")
	return it, true
}

var progressLine = regexp.MustCompile(
	`^ *([0-9]+) +([0-9]+)% +(\S+) +([0-9]+):([0-9]{2}):([0-9]{2})(?: \(xfr#([0-9]+), (to|ir)-chk=([0-9]+)/([0-9]+)\))?`)

// progressEvery is how often one of them is looked at.
const progressEvery = 100 * time.Millisecond

// maybeProgress reports whether a line looks like one of --info=progress2, for the price of a glance. No message does.
func maybeProgress(line string) bool {
	line = strings.TrimLeft(line, " ")
	return line != "" && line[0] >= '0' && line[0] <= '9' && strings.Contains(line, "% ")
}

// progressParser reads the lines of --info=progress2. Only those that follow a finished file have the counts in brackets.
type progressParser struct{ last Progress }

func (pp *progressParser) parse(line string) (Progress, bool) {
	m := progressLine.FindStringSubmatch(line)
	if m == nil {
		return Progress{}, false
	}
	p := &pp.last
	p.Bytes, p.Rate = number(m[1]), m[3]
	if m[7] != "" {
		p.Files, p.ToCheck, p.Total = number(m[7]), number(m[9]), number(m[10])
		p.Listed = m[8] == "to"
	}
	p.Percent, p.ETA = 0, 0
	if p.Listed {
		p.Percent = int(number(m[2]))
		p.ETA = time.Duration(number(m[4]))*time.Hour + time.Duration(number(m[5]))*time.Minute + time.Duration(number(m[6]))*time.Second
	}
	return *p, true
}

func number(s string) int64 {
	n, err := strconv.ParseInt(strings.ReplaceAll(s, ",", ""), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// statLine takes in a line of --stats and reports whether it was one.
func (s *Stats) statLine(line string) bool {
	name, value, ok := strings.Cut(line, ": ")
	if !ok {
		return false
	}
	value, _, _ = strings.Cut(value, " ")
	var field *int64
	switch name {
	case "Number of files":
		field = &s.Files
	case "Number of created files":
		field = &s.Created
	case "Number of deleted files":
		field = &s.Deleted
	case "Number of regular files transferred":
		field = &s.Transferred
	case "Total transferred file size":
		field = &s.Bytes
	case "Total bytes sent":
		field = &s.Sent
	default:
		return false
	}
	*field = number(value)
	return true
}
