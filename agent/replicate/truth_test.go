// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/agent/queue"
)

func TestDirectoryThatIsSentItselfIsSettled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := rsync{path: dir}.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, path := range []string{"d", ""} {
		p := prepare(time.Now(), r, []queue.Entry{{Path: path, First: time.Now()}}, &writers{})
		before, err := r.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ { // the clock of the filesystem may be a coarse one
			if err := os.WriteFile(filepath.Join(dir, path, fmt.Sprint(i)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if st, err := r.Lstat(path); err != nil {
				t.Fatal(err)
			} else if !st.ChangeTime.Equal(before.ChangeTime) {
				break
			}
		}
		if moved := p.dirs.moved(r); !slices.ContainsFunc(moved, func(e queue.Entry) bool { return e.Path == path }) {
			t.Errorf("%q is not among %v", path, moved)
		}
	}
}
