// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// escape is what rsync does to a name with --8-bit-output.
func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		digits := func(s string) bool {
			return len(s) >= 3 && strings.Trim(s[:3], "0123456789") == ""
		}
		switch c := s[i]; {
		case c == '\\' && strings.HasPrefix(s[i+1:], "#") && digits(s[i+2:]), c < ' ' && c != '\t':
			fmt.Fprintf(&b, `\#%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func FuzzUnescape(f *testing.F) {
	for _, n := range oddNames {
		f.Add(n)
	}
	f.Add(`\#\#012`)
	f.Add(`\#0\#12x`)
	f.Fuzz(func(t *testing.T, name string) {
		if got := unescape(escape(name)); got != name {
			t.Errorf("%q is escaped as %q and read as %q", name, escape(name), got)
		}
	})
}

// What rsync writes is no more than a hint of what to expect: any bytes at all must neither end the agent nor
// be taken for a path outside the directory.
func FuzzReport(f *testing.F) {
	f.Add(`rsync: [receiver] mkstemp "/d/.f.Ab12Cd" (in data) failed: Permission denied (13)`)
	f.Add(`rsync: [generator] symlink "/l" (in data) -> "a" failed: Permission denied (13)`)
	f.Add(`file has vanished: "/src/a"`)
	f.Add(`rsync: [receiver] rename "/d/.f.Ab12Cd" (in data) -> "d/f": Operation not permitted (1)`)
	f.Add("@ *deleting   a\\#012/")
	f.Fuzz(func(t *testing.T, line string) {
		rep := newReport(runSend, nil, []string{"a", "d/f"})
		rep.errLine(line)
		rep.outLine(line)
		for _, p := range rep.Failed {
			if !rep.paths[p.Path] && !rep.above[p.Path] {
				t.Errorf("%q names %q", line, p.Path)
			}
		}
		parseItem(line)
		new(progressParser).parse(line)
		new(Stats).statLine(line)
	})
}

func TestParseProgress(t *testing.T) {
	t.Parallel()
	cases := []struct {
		line string
		want Progress
	}{
		{"          1,000   0%    0.00kB/s    0:00:00", Progress{}}, // only with --human-readable
		{"     19045300  99%    1.30MB/s    0:00:13 (xfr#190453, ir-chk=1047/193491)", Progress{Bytes: 19045300, Rate: "1.30MB/s", Files: 190453, ToCheck: 1047, Total: 193491}},
		{"     19045300  95%  607.62kB/s   12:34:56 (xfr#7, to-chk=3/10)  ", Progress{Bytes: 19045300, Listed: true, Percent: 95, Rate: "607.62kB/s", ETA: 12*time.Hour + 34*time.Minute + 56*time.Second, Files: 7, ToCheck: 3, Total: 10}},
		{"        32768   3%    1.00MB/s    0:00:01  ", Progress{Bytes: 32768, Rate: "1.00MB/s"}},
		{"Number of files: 3", Progress{}},
	}
	for _, c := range cases {
		got, ok := new(progressParser).parse(c.line)
		if got != c.want || ok != (c.want != Progress{}) {
			t.Errorf("%q: %+v, %v", c.line, got, ok)
		}
	}
}

func TestLinesAreCutAndBounded(t *testing.T) {
	t.Parallel()
	var got []string
	l := &lines{returns: true, each: func(s string) { got = append(got, s) }}
	for _, part := range []string{"a", "b\nc\rd", "\n\n", strings.Repeat("x", maxLine+10), "y\nlast"} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	l.flush()
	want := []string{"ab", "c", "d", strings.Repeat("x", maxLine), "last"}
	if d := diff(want, got); d != "" {
		t.Error(d)
	}
	tl := tail{max: 100}
	for i := range 1000 {
		tl.add(fmt.Sprint(i))
	}
	if s := tl.String(); len(s) != 100 || !strings.HasSuffix(s, "998\n999\n") || len(tl.buf) > 300 {
		t.Errorf("%q", s)
	}
}

func TestTooManyFailuresAreNotTakenForAll(t *testing.T) {
	t.Parallel()
	rep := newReport(runTree, nil, []string{""})
	for i := range maxNamed + 1 {
		rep.errLine(fmt.Sprintf(`rsync: [receiver] mkstemp "/f%d" (in data) failed: Permission denied (13)`, i))
	}
	if len(rep.Failed) != maxNamed || !rep.overflow {
		t.Errorf("%d failed, overflow %v", len(rep.Failed), rep.overflow)
	}
}
