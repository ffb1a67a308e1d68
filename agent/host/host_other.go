// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package host

import (
	"errors"
	"fmt"
)

// New fails: lockstep keeps Linux hosts only.
func New() (*Machine, error) {
	return nil, fmt.Errorf("only Linux hosts: %w", errors.ErrUnsupported)
}

// Close does nothing.
func (*Machine) Close() {}
