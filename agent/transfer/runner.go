// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
)

// Runner runs rsync against one target. Its methods may be called at once from several goroutines.
type Runner struct{ opts Options }

// New finds rsync and refuses one that is too old. It does not connect.
func New(opts Options) (*Runner, error) { return nil, errors.ErrUnsupported }

// Version returns the version of the rsync that runs here, as in 3.5.0.
func (r *Runner) Version() string { return "" }

// Run does one job. progress, when not nil, is called from one goroutine while a Tree job runs.
func (r *Runner) Run(ctx context.Context, root *Root, job Job, progress func(Progress)) Result {
	return Result{Class: Unknown, Status: -1}
}

// List compares the source with the backup and changes neither. each gets every difference, in rsync's order.
func (r *Runner) List(ctx context.Context, root *Root, opts ListOptions, each func(Item) error) Result {
	return Result{Class: Unknown, Status: -1}
}

// ListMissing lists everything that a Delete job of these paths would delete on the backup, and changes nothing.
func (r *Runner) ListMissing(ctx context.Context, root *Root, paths []string, each func(Item) error) Result {
	return Result{Class: Unknown, Status: -1}
}

// Probe makes one empty, authenticated connection: is the module there, and will it take us?
func (r *Runner) Probe(ctx context.Context) Result { return Result{Class: Unknown, Status: -1} }

// Canary creates, updates and deletes a small tree `.lockstep-canary-XXXX` on the backup with the options of real runs.
func (r *Runner) Canary(ctx context.Context) Result { return Result{Class: Unknown, Status: -1} }

// RequiredOptions lists the rsync options, as `refuse options` of rsyncd.conf(5) names them, that a module
// must not refuse.
func RequiredOptions() []string { return nil }
