// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"testing"

	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
)

// A resource is a pair of two hosts. One without a backup is refused with the way to have it, before any host is asked.
func TestPairOfHooksOnlyIsRefusedWithTheWayToHaveIt(t *testing.T) {
	t.Parallel()
	needTerraform(t)
	l := newHosts(t)
	resource.UnitTest(t, resource.TestCase{ProtoV6ProviderFactories: l.factories(), Steps: []resource.TestStep{
		{Config: l.hcl("", pairHCL("  transport = \"none\"\n")), PlanOnly: true, ExpectError: wrapped("lockstep apply --role source --definition FILE")},
	}})
}
