// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"strings"
	"testing"
)

// What comes and goes is no growth; what never comes down again is.
func TestGrowthIsToldFromChance(t *testing.T) {
	t.Parallel()
	rounds := func(change func(i int, f *footprint)) []footprint {
		var all []footprint
		for i := range 12 {
			f := footprint{files: 14 + i%2, goroutines: 20 + i%3, rss: int64(18+i%3) << 20}
			change(i, &f)
			all = append(all, f)
		}
		return all
	}
	for what, change := range map[string]func(i int, f *footprint){
		"":                func(int, *footprint) {},
		"descriptors":     func(i int, f *footprint) { f.files += 2 * i },
		"goroutines":      func(i int, f *footprint) { f.goroutines += 2 * i },
		"bytes of memory": func(i int, f *footprint) { f.rss += int64(i) << 21 },
	} {
		err := growth(rounds(change))
		if what == "" {
			if err != nil {
				t.Error(err)
			}
		} else if err == nil || !strings.HasPrefix(err.Error(), what+" grew") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	first := rounds(func(i int, f *footprint) {
		if i == 0 {
			*f = footprint{}
		}
	})
	if err := growth(first); err != nil {
		t.Errorf("the first round counts: %v", err)
	}
}
