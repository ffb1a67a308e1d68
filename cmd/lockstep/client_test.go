// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"testing"
)

func TestWhoNamesNoPairMeansTheOnlyOne(t *testing.T) {
	t.Parallel()
	data, mail := newClient("data", "/run/lockstep/data"), newClient("mail", "/run/lockstep/mail")
	if c, err := only([]*client{data}); c != data || err != nil {
		t.Errorf("%v, %v", c, err)
	}
	var status *statusError
	if c, err := only(nil); c != nil || !errors.As(err, &status) || status.status != exitNoAgent {
		t.Errorf("%v, %v", c, err)
	}
	if c, err := only([]*client{data, mail}); c != nil || !errors.As(err, &status) || status.status != exitUsage ||
		status.err.Error() != "2 agents run on this host: name one of data, mail" {
		t.Errorf("%v, %v", c, err)
	}
}
