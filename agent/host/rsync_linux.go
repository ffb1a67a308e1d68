// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

var rsyncVersion = regexp.MustCompile(`^rsync +version v?([0-9]+(?:\.[0-9]+)+\S*)`)

// rsyncTimeout bounds both runs; each takes milliseconds.
const rsyncTimeout = 20 * time.Second

func findRsync(ctx context.Context) Rsync {
	var r Rsync
	r.Path = program("rsync")
	if r.Path == "" {
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, rsyncTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		r.Fault = fmt.Sprintf("it cannot be run: %v", err)
		return r
	}
	if m := rsyncVersion.FindStringSubmatch(string(out)); m != nil {
		r.Version = m[1]
	}
	r.Fault = tryRsync(ctx, r.Path)
	return r
}

// tryRsync deletes a missing argument in a directory of its own. rsync 3.4.3 and what took its changes cannot
// ("invalid file mode 00", RsyncProject/rsync#910), and then no deletion would ever reach a backup.
func tryRsync(ctx context.Context, path string) string {
	dir, err := os.MkdirTemp("", "lockstep-rsync-")
	if err != nil {
		return untried(err)
	}
	defer os.RemoveAll(dir)
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	gone := filepath.Join(to, "gone")
	for _, d := range []string{from, gone} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return untried(err)
		}
	}
	if err := os.WriteFile(filepath.Join(gone, "file"), nil, 0o600); err != nil {
		return untried(err)
	}
	cmd := exec.CommandContext(ctx, path, "-aR", "--from0", "--files-from=-", "--delete-missing-args", "--force", from+"/", to+"/")
	cmd.WaitDelay = time.Second
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader("./gone\x00")
	out, err := cmd.CombinedOutput()
	_, statErr := os.Lstat(gone)
	if err != nil || !os.IsNotExist(statErr) {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return "--delete-missing-args does not work: " + first
	}
	return ""
}

// untried is told of an rsync that may be in order.
func untried(err error) string { return "it cannot be tried: " + err.Error() }
