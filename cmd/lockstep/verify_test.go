// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/lockstep-sync/lockstep/agent/replicate"
)

func TestVerifySaysInWhatAFileDiffers(t *testing.T) {
	t.Parallel()
	for itemized, want := range map[string]string{
		">fcst......": "  (contents, size, time)",
		">fc........": "  (contents)",
		".f...pog...": "  (mode, owner, group)",
		".d..t......": "  (time)",
		"cL..T......": "  (time)",
		".f.......ax": "  (ACL, extended attributes)",
		"":            "",
	} {
		if got := attributes(&replicate.Drift{What: "edited", Detail: itemized}); got != want {
			t.Errorf("%s: %q, want %q", itemized, got, want)
		}
	}
	if got := attributes(&replicate.Drift{What: "missing", Detail: ">f+++++++++"}); got != "" {
		t.Errorf("missing: %q", got)
	}
}
