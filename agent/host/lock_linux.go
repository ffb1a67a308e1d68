// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const lockPath = "/run/lockstep/apply.lock"

// lockPoll is how often a taken lock is tried again; flock(2) has no timeout.
const lockPoll = 50 * time.Millisecond

// A wait that nobody notices needs no words; a long one is told again, so that what is told stays true.
const (
	lockQuiet = time.Second
	lockAgain = time.Minute
)

func (*system) Lock(ctx context.Context, holder string, waiting func(string)) (Unlock, error) {
	return lock(ctx, lockPath, holder, waiting)
}

func lock(ctx context.Context, path, holder string, waiting func(string)) (Unlock, error) {
	tell := time.Now().Add(lockQuiet)
	for {
		f, err := openLock(path)
		if errors.Is(err, os.ErrNotExist) { // another holder removed it meanwhile
			select {
			case <-ctx.Done():
				return nil, err
			case <-time.After(time.Millisecond):
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(f, path) {
			text := fmt.Sprintf("process %d: %s\n", os.Getpid(), holder)
			if err := f.Truncate(0); err == nil {
				_, _ = f.WriteAt([]byte(text), 0) // only for the message to who waits
			}
			return func(forget bool) {
				if forget {
					os.Remove(path)
					os.Remove(filepath.Dir(path)) // stays when an agent has its directory there
				}
				f.Close()
			}, nil
		}
		who := make([]byte, 200)
		n, _ := f.ReadAt(who, 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		other := cmp.Or(strings.TrimSpace(string(who[:n])), "another process")
		if now := time.Now(); waiting != nil && now.After(tell) {
			waiting(other)
			tell = now.Add(lockAgain)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s is held by %s: %w", path, other, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// openLock opens the file and makes it, and its directory, where they are missing: Unlock may have removed both.
// What it finds there and then gone again reads as ErrNotExist. Agents have their sockets below this directory, and systemd leaves
// it as it is: with the umask of whoever applies first, the group that may ask them could not get there.
func openLock(path string) (*os.File, error) {
	dir := filepath.Dir(path)
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
}

// sameFile is false when another holder removed the file between our opening and our locking it.
func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
