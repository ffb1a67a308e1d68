// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExcludeMatch(t *testing.T) {
	t.Parallel()
	tests := []struct {
		patterns []string
		path     string // a trailing slash means a directory
		want     bool
	}{
		{nil, "a", false},
		{[]string{"*.tmp"}, "a.tmp", true},
		{[]string{"*.tmp"}, "d/a.tmp", true},
		{[]string{"*.tmp"}, "d.tmp/a", true},
		{[]string{"*.tmp"}, "a.tmp2", false},
		{[]string{".cache/"}, ".cache", false},
		{[]string{".cache/"}, ".cache/", true},
		{[]string{".cache/"}, "home/.cache/x/y", true},
		{[]string{"/a"}, "a", true},
		{[]string{"/a"}, "b/a", false},
		{[]string{"a/b"}, "a/b", true},
		{[]string{"a/b"}, "x/a/b", true},
		{[]string{"a/b"}, "xa/b", false},
		{[]string{"a/*"}, "x/a/b/", true},
		{[]string{"a/*"}, "a/", false},
		{[]string{"a/**"}, "a/b/c", true},
		{[]string{"a/**"}, "a/", false},
		{[]string{"a/***"}, "a/", true},
		{[]string{"a/***"}, "a", false},
		{[]string{"/foo/**/bar"}, "foo/bar", false},
		{[]string{"/foo/**/bar"}, "foo/x/y/bar", true},
		{[]string{"**/x"}, "x", true},
		{[]string{"**/x"}, "a/b/x", true},
		{[]string{"/**/x"}, "x", false},
		{[]string{"a?b"}, "a/b", false},
		{[]string{"a[!x]b"}, "ayb", true},
		{[]string{"[]-]x"}, "]x", true},
		{[]string{"[a-c]"}, "b", true},
		{[]string{"[[:digit:]]"}, "7", true},
		{[]string{"[[:digits:]]"}, "7", false},
		{[]string{"x["}, "x[", false},
		{[]string{`a\b`}, `a\b`, true},
		{[]string{`a\b*`}, "abc", true},
		{[]string{`a\**`}, "a*", true},
		{[]string{`a\**`}, "ab", false},
		{[]string{"+ *.c", "*"}, "x.c", false},
		{[]string{"+ *.c", "*"}, "x.h", true},
		{[]string{"+ *.c", "*"}, "d/x.c", true},
		{[]string{"x", "!", "y"}, "x", false},
		{[]string{"x", "!", "y"}, "y", true},
		{[]string{"- x"}, "x", true},
		{[]string{""}, "x", false},
		{[]string{"/"}, "x", false},
		{[]string{"*"}, "", false},
		{[]string{"\xff*"}, "\xff\xfe", true},
		{[]string{"?"}, "\xff", true},
		{[]string{"a\nb"}, "a\nb", true},
	}
	for _, tt := range tests {
		e, err := NewExclude(tt.patterns)
		if err != nil {
			t.Errorf("NewExclude(%q): %v", tt.patterns, err)
			continue
		}
		path, dir := strings.CutSuffix(tt.path, "/")
		if got := e.Match(path, dir); got != tt.want {
			t.Errorf("%q: Match(%q, %t) = %t", tt.patterns, path, dir, got)
		}
	}
	var none *Exclude
	if none.Match("a", false) || none.Patterns() != nil {
		t.Error("a nil *Exclude excludes something")
	}
}

func TestExcludeRefusesWhatRsyncRefuses(t *testing.T) {
	t.Parallel()
	for p, want := range map[string]string{
		"- ":                      `exclude pattern "- ": nothing after the prefix`,
		"+ ":                      `exclude pattern "+ ": nothing after the prefix`,
		"a\x00b":                  `exclude pattern "a\x00b": has a NUL byte`,
		strings.Repeat("x", 5000): "is longer than 4095 bytes",
	} {
		if _, err := NewExclude([]string{p}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewExclude(%.20q): %v, want %q", p, err, want)
		}
	}
}

func TestExcludeIncludesMoreThan(t *testing.T) {
	t.Parallel()
	tests := []struct {
		old, new []string
		want     bool
	}{
		{nil, []string{"a"}, false},
		{[]string{"a"}, []string{"a"}, false},
		{[]string{"a"}, []string{"b", "a"}, false},
		{[]string{"a", "b"}, []string{"b"}, true},
		{[]string{"a"}, nil, true},
		{[]string{"a"}, []string{"+ a", "a"}, true},
		{[]string{"+ a", "*"}, []string{"*"}, true},
		{[]string{"a"}, []string{"a", "!"}, true},
	}
	for _, tt := range tests {
		older, newer := mustExclude(t, tt.old...), mustExclude(t, tt.new...)
		if got := newer.includesMoreThan(older); got != tt.want {
			t.Errorf("%q after %q: %t, want %t", tt.new, tt.old, got, tt.want)
		}
	}
}

func mustExclude(t testing.TB, patterns ...string) *Exclude {
	t.Helper()
	e, err := NewExclude(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// rsync finds the real rsync. Without it the matcher is compared with nothing, so CI must have it.
func rsync(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("rsync")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("rsync is not installed\nhint: apt-get install rsync")
	}
	return path
}

// TestExcludeAgreesWithRsync compares with the real rsync: random trees, several random patterns each.
func TestExcludeAgreesWithRsync(t *testing.T) {
	t.Parallel()
	bin := rsync(t)
	if out, err := exec.Command(bin, "--version").Output(); err == nil {
		line, _, _ := strings.Cut(string(out), "\n")
		t.Log(line)
	}
	const seed = 20240917
	t.Logf("seed %d", seed)
	for i := range uint64(4) {
		t.Run(fmt.Sprint("tree ", i), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, i))
			root := t.TempDir()
			paths := randomTree(t, rnd, root)
			excluded, compared := 0, 0
			for range 30 {
				patterns := make([]string, 1+rnd.IntN(4))
				for i := range patterns {
					patterns[i] = randomPattern(rnd, paths)
				}
				want := rsyncList(t, bin, root, patterns)
				e, err := NewExclude(patterns)
				if err != nil {
					t.Fatalf("rsync takes %q: %v", patterns, err)
				}
				var got []string
				for _, p := range paths {
					name, dir := strings.CutSuffix(p, "/")
					if !e.Match(name, dir) {
						got = append(got, p)
					}
				}
				compared += len(paths)
				excluded += len(paths) - len(got)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("exclude %q (-rsync +Match):\n%s", patterns, diff)
				}
			}
			t.Logf("%d paths compared, %d excluded", compared, excluded)
			if excluded < compared/100 || excluded > compared*99/100 {
				t.Error("the patterns are too tame to prove anything")
			}
		})
	}
}

// Every class of characters, and what stands beside it between the brackets, against every byte that a name can have.
func TestExcludeClassesAgreeWithRsync(t *testing.T) {
	t.Parallel()
	bin := rsync(t)
	root := t.TempDir()
	var names []string
	for b := 1; b < 256; b++ {
		if b == '/' {
			continue
		}
		name := "x" + string([]byte{byte(b)})
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	patterns := []string{"x[\x80-\xff]", "x[^\t-~]", `x[\a-\c]`, "x[[:digit:]-z]", "x[a-[:digit:]]", "x[[:alpha:][:digit:]_]", "x[[:alpha]", "x[[:word:]]"}
	for _, class := range []string{"alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "xdigit"} {
		patterns = append(patterns, "x[[:"+class+":]]", "x[![:"+class+":]]")
	}
	for _, pattern := range patterns {
		e, err := NewExclude([]string{pattern})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range names {
			if !e.Match(name, false) {
				got = append(got, name)
			}
		}
		want := rsyncList(t, bin, root, []string{pattern})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("exclude %q (-rsync +Match):\n%s", pattern, diff)
		}
	}
}

// alphabet is small, so that random names and random patterns meet often.
var alphabet = []string{"a", "b", "c", "ab", "abc", "foo", "bar", ".c", "b.c", "x.tmp", "-", "]", `\`, `a\b`, "*", "?", "[a]", " ", "é", "#", "A", "9", "^", "!", "+ a", "- b"}

func randomName(rnd *rand.Rand) string {
	name := alphabet[rnd.IntN(len(alphabet))]
	if rnd.IntN(3) == 0 {
		name += alphabet[rnd.IntN(len(alphabet))]
	}
	return name
}

// randomTree fills root and returns all paths below it, sorted, directories with a trailing slash.
func randomTree(t *testing.T, rnd *rand.Rand, root string) []string {
	t.Helper()
	dirs := []string{""}
	seen := map[string]bool{}
	var paths []string
	for range 120 {
		parent := dirs[rnd.IntN(len(dirs))]
		p := parent + randomName(rnd)
		if seen[p] {
			continue
		}
		seen[p] = true
		full := filepath.Join(root, p)
		if rnd.IntN(2) == 0 && strings.Count(p, "/") < 5 {
			if err := os.Mkdir(full, 0o755); err != nil {
				t.Fatal(err)
			}
			dirs = append(dirs, p+"/")
			p += "/"
		} else if err := os.WriteFile(full, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths
}

// randomPattern is mostly a path of the tree with some of its bytes replaced by wildcards.
func randomPattern(rnd *rand.Rand, paths []string) string {
	var p string
	if rnd.IntN(4) == 0 {
		for range 1 + rnd.IntN(3) {
			p += randomName(rnd) + []string{"", "/", "*", "**"}[rnd.IntN(4)]
		}
	} else {
		p = paths[rnd.IntN(len(paths))]
		parts := strings.Split(strings.TrimSuffix(p, "/"), "/")
		from := rnd.IntN(len(parts))
		p = strings.Join(parts[from:min(len(parts), from+1+rnd.IntN(3))], "/")
	}
	wild := []string{"*", "?", "**", "***", "[a-c]", "[!a]", "[^b/]", "[]a]", "[[:alpha:]]", "[[:punct:]x]", "[", `\`, "/", "[a", `[\]]`, "[a-]", "[[:nope:]]", "[[:]"}
	for range rnd.IntN(4) {
		i := rnd.IntN(len(p) + 1)
		j := min(len(p), i+rnd.IntN(3))
		p = p[:i] + wild[rnd.IntN(len(wild))] + p[j:]
	}
	switch rnd.IntN(10) {
	case 0:
		p = "/" + p
	case 1:
		p += "/"
	case 2:
		p = "**/" + p
	case 3:
		p += "/***"
	case 4:
		p = "+ " + p
	case 5:
		p = "- " + p
	}
	if p == "+ " || p == "- " {
		return "*"
	}
	return p
}

// escaped is a byte that rsync writes in digits.
var escaped = regexp.MustCompile(`\\#[0-3][0-7]{2}`)

// rsyncList returns what rsync would transfer of root, in the form of randomTree.
func rsyncList(t *testing.T, bin, root string, patterns []string) []string {
	t.Helper()
	args := []string{"-rn", "-8", "--out-format=%n"}
	for _, p := range patterns {
		args = append(args, "--exclude="+p)
	}
	args = append(args, root+"/", filepath.Join(root, "no-such-destination")+"/")
	cmd := exec.Command(bin, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.String())
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		// Only lines that name what is there: rsync also says what it creates.
		line = escaped.ReplaceAllStringFunc(strings.TrimSuffix(line, "\n"), func(code string) string {
			c, _ := strconv.ParseUint(code[2:], 8, 8)
			return string([]byte{byte(c)})
		})
		if line == "./" || line == "" || strings.HasPrefix(line, "created directory") {
			continue
		}
		got = append(got, line)
	}
	slices.Sort(got)
	return got
}

// FuzzExclude holds what is true of every pattern: a match needs no memory of earlier ones, what is below an
// excluded directory is excluded, and a pattern made of escaped bytes matches those bytes alone.
func FuzzExclude(f *testing.F) {
	for _, s := range []string{"*.tmp", "a/**/b", "/x/***", "[!a-z]*", `\*`, "**", "+ x", "[[:alpha:]-", "a*b*c*d*e"} {
		f.Add(s, "dir/a.tmp", true)
	}
	f.Fuzz(func(t *testing.T, pattern, path string, dir bool) {
		if path == "." || path == ".." || path != filepath.Clean(path) || strings.HasPrefix(path, "/") || strings.HasPrefix(path, "../") ||
			len(path) > 200 || len(pattern) > 200 || strings.IndexByte(path, 0) >= 0 {
			return
		}
		e, err := NewExclude([]string{pattern})
		if err != nil {
			return
		}
		if e.Match("", true) {
			t.Errorf("%q excludes the root", pattern)
		}
		got := e.Match(path, dir)
		if e.Match(path, dir) != got {
			t.Errorf("%q: a second Match(%q) differs", pattern, path)
		}
		if found, ok := e.Find(path, dir); ok != got || ok && found != pattern {
			t.Errorf("%q: Find(%q) = %q, %t", pattern, path, found, ok)
		}
		if e.Match(path, true) && !e.Match(path+"/below", false) {
			t.Errorf("%q excludes %q but not what is below it", pattern, path)
		}
		if parent := filepath.Dir(path); parent != "." && got != (e.Match(parent, true) || e.entry(path, dir)) {
			t.Errorf("%q: Match(%q) is not that of its parent or its own", pattern, path)
		}
		twice, err := NewExclude([]string{pattern, pattern})
		if err != nil || twice.Match(path, dir) != got {
			t.Errorf("%q: given twice it matches %q otherwise (%v)", pattern, path, err)
		}

		name := path[strings.LastIndexByte(path, '/')+1:]
		quoted := quote(path)
		e = mustExclude(t, "/"+quoted)
		if !e.entry(path, false) {
			t.Errorf("/%q does not match %q", quoted, path)
		}
		if e.entry(path+"x", false) || e.entry("x/"+path, false) {
			t.Errorf("/%q matches more than %q", quoted, path)
		}
		if !mustExclude(t, quote(name)).entry(path, false) {
			t.Errorf("%q does not match the name of %q", quote(name), path)
		}
	})
}

// quote makes a pattern that matches exactly s: a class around one byte is the wildcard that makes backslashes count.
func quote(s string) string {
	var b strings.Builder
	classed := false
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '/':
			b.WriteByte(c)
		case !classed:
			b.WriteString(`[\`)
			b.WriteByte(c)
			b.WriteByte(']')
			classed = true
		default:
			b.WriteByte('\\')
			b.WriteByte(c)
		}
	}
	return b.String()
}

func BenchmarkExcludeMatch(b *testing.B) {
	e := mustExclude(b, "*.tmp", ".cache/", "/var/log/**/*.gz", "**/node_modules/", "~*")
	b.ReportAllocs()
	for b.Loop() {
		if e.Match("srv/www/site/htdocs/images/2024/picture.jpeg", false) {
			b.Fatal("excluded")
		}
	}
}
