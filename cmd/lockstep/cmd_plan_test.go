// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"

	"github.com/lockstep-sync/lockstep/agent/plan"
	"github.com/lockstep-sync/lockstep/agent/transfer"
)

// The module that plan writes and the runs of transfer know nothing of each other.
func TestModuleTakesEveryOptionOfTheAgentsRuns(t *testing.T) {
	t.Parallel()
	accepted := plan.AcceptedOptions()
	for _, option := range transfer.RequiredOptions() {
		if !slices.Contains(accepted, option) {
			t.Errorf("the module refuses --%s", option)
		}
	}
}
