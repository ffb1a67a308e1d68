// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// mountsFile, in the state directory, lists the directories below the source on which something was seen mounted. While
// nothing is mounted on one of them, what is missing there was not deleted.
const mountsFile = "mounts.json"

// mounts is the set of such directories. It is replaced and never changed: jobs read it too.
type mounts map[string]bool

func readMounts(stateDir string) (mounts, error) {
	name := filepath.Join(stateDir, mountsFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []string
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%s: %w\nhint: remove the file if everything below the source is mounted now", name, err)
	}
	m := mounts{}
	for _, path := range list {
		m[path] = true
	}
	return m, nil
}

func (m mounts) write(stateDir string) error {
	data, err := json.Marshal(slices.Sorted(maps.Keys(m)))
	if err != nil {
		return err
	}
	return writeState(filepath.Join(stateDir, mountsFile), append(data, '\n'))
}

// missing returns the directory of m with which a path is gone because it is not mounted; ok is false when there is none.
func (m mounts) missing(r root, path string) (dir string, ok bool) {
	for dir := range m {
		if (isBelow(path, dir) || isBelow(dir, path)) && !r.MountedOn(dir) {
			return dir, true
		}
	}
	return "", false
}

// lookAtMounts remembers what is mounted below the source.
func (l *loop) lookAtMounts(now time.Time) {
	if l.watch.w == nil {
		return
	}
	found := slices.DeleteFunc(slices.Clone(l.watch.w.Info().Mounts), func(path string) bool { return l.mounts[path] })
	if len(found) == 0 {
		return
	}
	eng, path, want := l.eng, l.pair.Source.Path, l.source.want
	l.start(now, &job{kind: "mounts", what: plural(len(found), "path"), can: true}, func(context.Context) {
		r, err := openSource(eng, path, want)
		if err != nil {
			return // the next full batch looks again
		}
		defer r.Close()
		found = slices.DeleteFunc(found, func(path string) bool { return !r.MountedOn(path) })
		l.post(func(time.Time) { l.setMounts(found, nil) })
	})
}

// setMounts adds some directories to those that are remembered, and forgets those that f reports.
func (l *loop) setMounts(add []string, f func(path string) bool) {
	m := mounts{}
	maps.Copy(m, l.mounts)
	for _, path := range add {
		m[path] = true
	}
	if f != nil {
		maps.DeleteFunc(m, func(path string, _ bool) bool { return f(path) })
	}
	if maps.Equal(m, l.mounts) {
		return
	}
	l.mounts = m
	if err := m.write(l.agent.opts.StateDir); err != nil {
		l.log.Error("what is mounted below the source cannot be noted", "err", err)
	}
}

// takeUnmounted takes out of an inspection what is gone with a filesystem that is not mounted.
func (in *inspection) takeUnmounted(r root, m mounts) {
	if len(m) == 0 {
		return
	}
	var rest []finding
	for _, f := range in.gone {
		if dir, ok := m.missing(r, f.path); ok && f.count > 0 && !f.blocked {
			in.unmounted, in.mount = append(in.unmounted, f), dir
		} else {
			rest = append(rest, f)
		}
	}
	in.gone = rest
}
