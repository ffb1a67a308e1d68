// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// root is the part of [transfer.Root] that is used here, so that tests can put a made-up tree in its place.
type root interface {
	Close() error
	Identity() (transfer.Identity, error)
	Empty() (bool, error)
	Lstat(path string) (transfer.Entry, error)
	OpenForWriting(path string) bool
	Children(dir string) ([]transfer.Child, error)
	MountedOn(dir string) bool
}

// engine is what moves the bytes: rsync, or a fake in tests.
type engine interface {
	Open() (root, error)
	Run(ctx context.Context, r root, job transfer.Job, progress func(transfer.Progress)) transfer.Result
	List(ctx context.Context, r root, opts transfer.ListOptions, each func(transfer.Item) error) transfer.Result
	BackupEmpty(ctx context.Context, r root) bool // false when it cannot be told
	ListMissing(ctx context.Context, r root, paths []string, each func(transfer.Item) error) transfer.Result
	Probe(ctx context.Context) transfer.Result
	Children() []int // process ids
	Close()          // dismisses what stands by for a job
}

// rsync is the engine that runs the real thing.
type rsync struct {
	path   string
	runner *transfer.Runner
}

func (e rsync) Open() (root, error) {
	r, err := transfer.OpenRoot(e.path)
	if err != nil {
		return nil, err // not a nil *transfer.Root in a root
	}
	return r, nil
}

func (e rsync) Run(ctx context.Context, r root, job transfer.Job, progress func(transfer.Progress)) transfer.Result {
	return e.runner.Run(ctx, handle(r), job, progress)
}

func (e rsync) List(ctx context.Context, r root, opts transfer.ListOptions, each func(transfer.Item) error) transfer.Result {
	return e.runner.List(ctx, handle(r), opts, each)
}

func (e rsync) BackupEmpty(ctx context.Context, r root) bool {
	empty, _ := e.runner.BackupEmpty(ctx, handle(r)) // what it met, the comparison that follows meets too
	return empty
}

func (e rsync) ListMissing(ctx context.Context, r root, paths []string, each func(transfer.Item) error) transfer.Result {
	return e.runner.ListMissing(ctx, handle(r), paths, each)
}

func (e rsync) Probe(ctx context.Context) transfer.Result { return e.runner.Probe(ctx) }

func (e rsync) Children() []int { return e.runner.Children() }

func (e rsync) Close() { e.runner.Close() }

func handle(r root) *transfer.Root {
	t, ok := r.(*transfer.Root)
	if !ok {
		panic("bug: a root that this engine did not open")
	}
	return t
}
