// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import "errors"

func openFanotify(*watcher) (backend, error) { return nil, errors.ErrUnsupported }

// errFilesystem says that a filesystem cannot do what fanotify needs.
var errFilesystem = errors.New("filesystem cannot be watched by fanotify")
