// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"context"
	"errors"

	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// errNoBackup answers whoever asks to compare the source with a backup that there is not.
var errNoBackup = errors.New("the pair has transport none: it has no backup, only hooks\nhint: there is nothing to compare; lockstep status NAME --json tells how its hooks do")

// alone is the engine of a pair without a backup. What it is to bring anywhere has arrived at once, and what it is to
// compare is equal; the hooks are told of the rest.
type alone struct{ path string }

func (e alone) Open() (root, error) { return rsync{path: e.path}.Open() }

func (e alone) Run(_ context.Context, _ root, job transfer.Job, _ func(transfer.Progress)) transfer.Result {
	return transfer.Result{Class: transfer.Done}
}

func (e alone) List(context.Context, root, transfer.ListOptions, func(transfer.Item) error) transfer.Result {
	return transfer.Result{Class: transfer.Done}
}

func (e alone) BackupEmpty(context.Context, root) bool { return true }

func (e alone) ListMissing(context.Context, root, []string, func(transfer.Item) error) transfer.Result {
	return transfer.Result{Class: transfer.Done}
}

func (e alone) Probe(context.Context) transfer.Result { return transfer.Result{Class: transfer.Done} }

func (e alone) Children() []int { return nil }

func (e alone) Close() {}
