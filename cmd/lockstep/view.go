// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
)

func watchStatus(ctx context.Context, std stdio, c *client) error { return errors.New("not yet") }
