// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lockstep-sync/lockstep/agent/pair"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// sourceFile, in the state directory, says which directory was provisioned, and what is a mirror of it:
//
//	{"path": "/data", "identity": "fsid:…/2", "mirror": "backup::data (/backup/nfs01)"}
//
// It is written at the first start when it is not there, and by `lockstep approve` when another directory
// was put in its place on purpose. While the directory at the source path is not this one, nothing is sent. As long as the
// backup is not known as its mirror, what a comparison finds to be only there is held.
const sourceFile = "source.json"

type provisioned struct {
	Path     string            `json:"path"`
	Identity transfer.Identity `json:"identity"`
	Mirror   string            `json:"mirror,omitempty"` // see mirrorOf
}

// readSource returns nil when no directory was provisioned yet, or another path was: the definition has changed since.
func readSource(stateDir, path string) (*provisioned, error) {
	name := filepath.Join(stateDir, sourceFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var p provisioned
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s: %w\nhint: remove the file if the directory that is at %s now is the right one", name, err, path)
	}
	if p.Path != path {
		return nil, nil
	}
	return &p, nil
}

func (p provisioned) write(stateDir string) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return writeState(filepath.Join(stateDir, sourceFile), append(data, '\n'))
}

// mirrorOf names the directory on the backup host that a pair leads to. Its address and the way there may change.
func mirrorOf(p pair.Pair) string {
	return fmt.Sprintf("%s::%s (%s)", p.Backup.Host, p.Backup.Module, p.Backup.Path)
}

// mirrored notes that nothing on the backup is of others than this source directory: it was empty, a comparison found nothing there that is not
// in the source, or what there was has been approved. What was found out about a directory that another has replaced since does not count.
func (l *loop) mirrored(of *transfer.Identity) {
	if !l.door.foreign || of != l.source.want {
		return
	}
	l.door.foreign = false
	p := provisioned{l.pair.Source.Path, *of, mirrorOf(l.pair)}
	if err := p.write(l.agent.opts.StateDir); err != nil {
		l.log.Error("that the backup is a mirror of the source cannot be noted", "err", err)
	}
}

// writeState writes a file whole or not at all, and so that it is still there after a power cut.
func writeState(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// source is what is known of the directory at the source path.
type source struct {
	want     *transfer.Identity // nil until the first look
	got      transfer.Identity  // the one that is there instead
	other    bool               // another one was there since ok
	ok       bool
	looked   bool // at least once
	err      error
	looking  bool
	next     time.Time
	failures int
	lost     bool // the watcher says that the directory is gone
}

// openSource opens the source directory and makes sure that it is the provisioned one.
func openSource(eng engine, path string, want *transfer.Identity) (root, error) {
	r, err := eng.Open()
	if err != nil {
		return nil, err
	}
	got, err := r.Identity()
	if err == nil && want != nil && got != *want {
		err = &errNotProvisioned{path, *want, got}
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// errNotProvisioned says that another directory is at the source path.
type errNotProvisioned struct {
	path      string
	want, got transfer.Identity
}

func (e *errNotProvisioned) Error() string {
	return fmt.Sprintf("%s is not the provisioned directory: it is %s, and should be %s", e.path, e.got, e.want)
}

// startAtSource is start for a job that reads the source directory. When that cannot be opened, or is another one, refused runs in
// the loop in place of f, and nothing is sent until it is there.
func (l *loop) startAtSource(now time.Time, j *job, refused func(now time.Time, err error), f func(ctx context.Context, eng engine, r root)) {
	eng, path, want := l.eng, l.pair.Source.Path, l.source.want
	l.start(now, j, func(ctx context.Context) {
		r, err := openSource(eng, path, want)
		if err != nil {
			l.post(func(now time.Time) {
				refused(now, err)
				l.sourceTrouble(now, err)
			})
			return
		}
		defer r.Close()
		f(ctx, eng, r)
	})
}

// lookAtSource finds out whether the source directory is there and the right one. At the first look ever, what is
// there is the right one.
func (l *loop) lookAtSource(now time.Time) {
	s := &l.source
	if s.ok || s.looking || now.Before(s.next) {
		return
	}
	s.looking = true
	eng, path, want, dir := l.eng, l.pair.Source.Path, s.want, l.agent.opts.StateDir
	l.start(now, &job{kind: "source", what: path, can: true}, func(context.Context) {
		r, err := openSource(eng, path, want)
		var id transfer.Identity
		if err == nil {
			defer r.Close()
			if id, err = r.Identity(); err == nil && want == nil {
				err = provisioned{Path: path, Identity: id}.write(dir)
			}
		}
		l.post(func(now time.Time) { l.sourceSeen(now, id, err) })
	})
}

func (l *loop) sourceSeen(now time.Time, id transfer.Identity, err error) {
	s := &l.source
	s.looking = false
	first := !s.looked
	s.looked = true
	if err != nil {
		l.sourceTrouble(now, err)
		return
	}
	if s.want == nil {
		s.want = &id
		l.log.Info("the source directory is noted as the provisioned one", "path", l.pair.Source.Path, "identity", id.String())
	}
	if s.lost {
		// There it is, but it is for the watcher to say that it is watched again.
		s.next = now.Add(time.Second)
		return
	}
	// While another directory was there, the watcher may have taken to it, and not noticed that it was gone again.
	if s.other {
		l.restartWatcher()
	}
	s.ok, s.err, s.failures, s.other = true, nil, 0, false
	if !first {
		l.log.Info("the source directory is there", "path", l.pair.Source.Path)
		l.note(now, "the source directory is there")
		l.requestFull("the source directory is back")
	}
}

// sourceTrouble stops everything until the source directory is there and the right one.
func (l *loop) sourceTrouble(now time.Time, err error) {
	s := &l.source
	if s.err == nil || s.err.Error() != err.Error() {
		l.log.Error("nothing is sent or deleted", "path", l.pair.Source.Path, "err", err)
		l.note(now, err.Error())
	}
	var other *errNotProvisioned
	if errors.As(err, &other) {
		s.got, s.other = other.got, true
	}
	s.failures++
	s.ok, s.err = false, err
	s.next = now.Add(backoff(s.failures, time.Second, 10*time.Second))
	l.full.valid = false
}
