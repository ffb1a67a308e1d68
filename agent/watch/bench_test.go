// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// benchFiles is how many files one round creates: fewer events than the kernel's queue holds.
const benchFiles = 2000

// BenchmarkEvents creates empty files in 20 directories and waits until all have been reported, with events gathered as
// the agent has them with its default delay. allocs/event is what the watcher allocates for one, without the cookie that tells the end.
func BenchmarkEvents(b *testing.B) {
	for _, backend := range []string{"inotify", "fanotify"} {
		b.Run(backend, func(b *testing.B) {
			root, cookies := b.TempDir(), b.TempDir()
			for i := range 20 {
				if err := os.Mkdir(fmt.Sprintf("%s/d%02d", root, i), 0o755); err != nil {
					b.Fatal(err)
				}
			}
			w, err := New(Options{Root: root, Backend: backend, CookieDir: cookies, Gather: 1250 * time.Microsecond})
			if err != nil {
				b.Skip(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error)
			go func() { done <- w.Run(ctx) }()
			<-w.Ready()
			paths := make([][]byte, benchFiles)
			for i := range paths {
				paths[i] = fmt.Appendf(nil, "%s/d%02d/file-of-usual-length-%d\x00", root, i%20, i)
			}
			mallocs := func() float64 {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return float64(m.Mallocs)
			}
			const alone = 100
			before := mallocs()
			for i := range alone {
				waitCookie(b, w, cookies, -i-1)
			}
			cookie := (mallocs() - before) / alone
			events, rounds, allocated := 0, 0, 0.0
			for b.Loop() {
				rounds++
				before := mallocs()
				for _, p := range paths {
					create(b, p)
				}
				events += waitCookie(b, w, cookies, rounds)
				b.StopTimer()
				allocated += mallocs() - before - cookie
				for _, p := range paths {
					if err := os.Remove(string(p[:len(p)-1])); err != nil {
						b.Fatal(err)
					}
				}
				waitCookie(b, w, cookies, -alone-rounds)
				b.StartTimer()
			}
			b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(events)/float64(rounds*benchFiles), "events/file")
			b.ReportMetric(allocated/float64(events), "allocs/event")
			cancel()
			for range w.Reports() {
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}

// create makes an empty file without allocating.
func create(b *testing.B, path []byte) {
	fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(unix.AT_FDCWD&(1<<32-1)), uintptr(unsafe.Pointer(&path[0])), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644, 0, 0)
	if errno != 0 {
		b.Fatal(errno)
	}
	_ = unix.Close(int(fd))
}

func waitCookie(b *testing.B, w Watcher, dir string, n int) (events int) {
	name := fmt.Sprint("c", n)
	if err := os.WriteFile(dir+"/"+name, nil, 0o644); err != nil {
		b.Fatal(err)
	}
	defer os.Remove(dir + "/" + name)
	for r := range w.Reports() {
		if r.Fault != nil {
			b.Fatal(r.Fault)
		}
		for i := range r.Events {
			if r.Events[i].Cookie == name {
				return events
			}
			events++
		}
	}
	b.Fatal("ended")
	return 0
}

// BenchmarkStart is the time until a tree of 20,000 directories is watched.
func BenchmarkStart(b *testing.B) {
	root := b.TempDir()
	for i := range 200 {
		for j := range 99 {
			if err := os.MkdirAll(fmt.Sprintf("%s/%d/%d", root, i, j), 0o755); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, backend := range []string{"inotify", "fanotify"} {
		b.Run(backend, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w, err := New(Options{Root: root, Backend: backend})
				if err != nil {
					b.Skip(err)
				}
				ctx, cancel := context.WithCancel(b.Context())
				done := make(chan error)
				go func() { done <- w.Run(ctx) }()
				<-w.Ready()
				b.StopTimer()
				cancel()
				for range w.Reports() {
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
