// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel tells of a change under one name only.
func TestChangeThroughOneNameArrivesUnderAllNames(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("a/one", "1")
	s.do(os.MkdirAll(s.path("b"), 0o755))
	s.do(os.Link(s.path("a/one"), s.path("b/two")))
	s.start()
	s.equal()
	for _, content := range []string{"22", "333", "444"} {
		f, err := os.OpenFile(s.path("b/two"), os.O_WRONLY, 0) // not truncated: the same file
		s.do(err)
		_, err = f.WriteString(content)
		s.do(err)
		s.do(f.Close())
		s.equal()
	}
	s.do(os.Chmod(s.path("a/one"), 0o600))
	s.equal()
}

// The attributes of what is no regular file, and has several names, too.
func TestAttributesOfAFifoWithSeveralNamesArrive(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.write("keep", "1")
	s.do(unix.Mkfifo(s.path("one"), 0o644))
	s.do(os.Link(s.path("one"), s.path("two")))
	s.start()
	s.equal()
	s.do(os.Chmod(s.path("two"), 0o600))
	s.equal()
}
