// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/internal/rsynctest"
)

func benchPaths() []string {
	var paths []string
	for d := range 50 {
		for f := range 100 {
			paths = append(paths, fmt.Sprintf("dir%d/sub/file%d", d, f))
		}
	}
	return paths
}

func BenchmarkFileList(b *testing.B) {
	paths := benchPaths()
	for b.Loop() {
		fileList(paths)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(paths)), "ns/path")
}

func BenchmarkParseItem(b *testing.B) {
	for b.Loop() {
		if _, ok := parseItem(`@ <f.st...... some/directory/na\#012me of a file`); !ok {
			b.Fatal("no item")
		}
	}
}

func BenchmarkErrLine(b *testing.B) {
	rep := newReport(runTree, nil, []string{""})
	for b.Loop() {
		rep.errLine(`rsync: [receiver] mkstemp "/some/directory/.file.abc123" (in data) failed: Permission denied (13)`)
	}
}

func BenchmarkLstat(b *testing.B) {
	root, err := OpenRoot(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	if err := rsynctest.Make(root.path, dir{"a": dir{"b": dir{"f": file("")}}}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := root.Lstat("a/b/f"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenForWriting(b *testing.B) {
	root, err := OpenRoot(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	if err := rsynctest.Make(root.path, dir{"a": dir{"f": file("")}}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if root.OpenForWriting("a/f") {
			b.Fatal("open for writing")
		}
	}
}

func benchRunner(b *testing.B, change func(*Options)) (*Runner, *Root) {
	b.Helper()
	d := rsynctest.Daemon(b, rsynctest.Options{})
	opts := Options{Timeout: 20 * time.Second, Target: Target{Address: d.Address, Port: d.Port, Module: d.Module, User: d.User, PasswordFile: d.PasswordFile}}
	change(&opts)
	r, err := New(opts)
	if err != nil {
		b.Fatal(err)
	}
	root, err := OpenRoot(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { root.Close() })
	return r, root
}

func BenchmarkProbe(b *testing.B) {
	r, _ := benchRunner(b, func(*Options) {})
	for b.Loop() {
		if res := r.Probe(b.Context()); res.Class != Done {
			b.Fatalf("%+v", res)
		}
	}
}

func BenchmarkSendOneFile(b *testing.B) {
	for _, c := range []struct {
		name    string
		exclude []string
	}{{"plain", nil}, {"exclude", []string{"*.tmp", "cache/"}}} {
		b.Run(c.name, func(b *testing.B) {
			r, root := benchRunner(b, func(o *Options) { o.Exclude = c.exclude })
			if err := rsynctest.Make(root.path, dir{"a": dir{"b": dir{}}}); err != nil {
				b.Fatal(err)
			}
			n := 0
			for b.Loop() {
				n++
				if err := os.WriteFile(filepath.Join(root.path, "a/b/f"), fmt.Append(nil, n), 0o644); err != nil {
					b.Fatal(err)
				}
				if res := r.Run(b.Context(), root, Job{Kind: Send, Paths: []string{"a/b/f"}}, nil); res.Class != Done {
					b.Fatalf("%+v", res)
				}
			}
		})
	}
}

// BenchmarkLines is the names of 1000 files that a comparison tells.
func BenchmarkLines(b *testing.B) {
	text := []byte(strings.Repeat(itemMark+">f+++++++++ some/directory/with/a/file.txt\n", 1000))
	l := &lines{returns: true, each: func(string) {}}
	for b.Loop() {
		_, _ = l.Write(text)
	}
}
