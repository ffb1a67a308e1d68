// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package watch

import (
	"errors"
	"fmt"
)

// New returns an error: inotify and fanotify are Linux interfaces.
func New(Options) (Watcher, error) {
	return nil, fmt.Errorf("watch: %w", errors.ErrUnsupported)
}
