// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func takeAll(o *outbox) []Report {
	var all []Report
	for {
		r, ok := o.take()
		if !ok {
			return all
		}
		all = append(all, r)
	}
}

func TestOutboxGathersEventsWhileTheConsumerIsBusy(t *testing.T) {
	t.Parallel()
	o := newOutbox(100)
	o.put(Report{Events: []Event{{Path: "a"}}})
	o.put(Report{Events: []Event{{Path: "b"}}})
	o.put(Report{Fault: ErrRootLost})
	o.put(Report{Restored: true, Events: []Event{{Path: "c"}}})
	o.put(Report{Events: []Event{{Path: "d"}}})
	o.put(Report{Events: []Event{{Path: "e"}}})
	want := []Report{
		{Events: []Event{{Path: "a"}, {Path: "b"}}},
		{Fault: ErrRootLost},
		{Restored: true, Events: []Event{{Path: "c"}}},
		{Events: []Event{{Path: "d"}, {Path: "e"}}},
	}
	if diff := cmp.Diff(want, takeAll(o), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}
}

func TestOutboxPastItsBoundTheRootStandsForAll(t *testing.T) {
	t.Parallel()
	o := newOutbox(20)
	o.put(Report{Fault: ErrRootLost})
	o.put(Report{Restored: true, Events: []Event{{Path: "", Tree: true}}})
	for i := range 10 {
		o.put(Report{Events: []Event{{Path: fmt.Sprint("p", i)}, {Path: fmt.Sprint("q", i)}}})
		if i == 3 {
			o.put(Report{Events: []Event{{Cookie: "c"}}})
		}
	}
	// 1 + 2*10 + 1 = 22 events: the bound is passed with the last two.
	want := []Report{
		{Fault: ErrOverflow, Events: []Event{{Op: Rescan, Dir: true, Tree: true}, {Cookie: "c"}}},
		{Fault: ErrRootLost},
		{Restored: true},
	}
	if diff := cmp.Diff(want, takeAll(o), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}
}

// What is lost in the box must not look like what an overflow has promised.
func TestOutboxPastItsBoundATreeEventIsStillToCome(t *testing.T) {
	t.Parallel()
	root := Event{Op: Rescan, Dir: true, Tree: true}
	much := Report{Events: make([]Event, 30)}
	for name, c := range map[string]struct{ put, want []Report }{
		"it was told":                   {[]Report{{Fault: ErrOverflow}, {Events: []Event{root}}, much}, []Report{{Fault: ErrOverflow, Events: []Event{root}}}},
		"it waits to be taken":          {[]Report{{Fault: ErrOverflow}, much}, []Report{{Events: []Event{root}}, {Fault: ErrOverflow}}},
		"the root is lost, too":         {[]Report{{Fault: ErrOverflow}, {Fault: ErrRootLost}, much}, []Report{{Events: []Event{root}}, {Fault: ErrRootLost}, {Fault: ErrOverflow}}},
		"a second time":                 {[]Report{{Fault: ErrOverflow}, much, much}, []Report{{Events: []Event{root}}, {Fault: ErrOverflow}}},
		"the root was lost, and is not": {[]Report{{Fault: ErrOverflow}, {Restored: true, Events: []Event{root}}, much}, []Report{{Fault: ErrOverflow, Events: []Event{root}}, {Restored: true}}},
	} {
		o := newOutbox(20)
		for _, r := range c.put {
			o.put(r)
		}
		if diff := cmp.Diff(c.want, takeAll(o), cmpopts.EquateErrors()); diff != "" {
			t.Errorf("%s: reports (-want +got):\n%s", name, diff)
		}
	}
	o := newOutbox(20)
	o.put(Report{Fault: ErrOverflow})
	takeAll(o)
	o.put(much)
	if diff := cmp.Diff([]Report{{Events: []Event{root}}, {Fault: ErrOverflow}}, takeAll(o), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("the fault was taken: reports (-want +got):\n%s", diff)
	}
}

func TestOutboxIsBoundedWhateverWaits(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]Report{
		"cookies":  {Events: []Event{{Cookie: "c"}}},
		"faults":   {Fault: ErrRootLost},
		"overflow": {Fault: ErrOverflow, Events: []Event{{Tree: true}}},
		"events":   {Events: make([]Event, 7)},
	} {
		o := newOutbox(64)
		for range 10000 {
			o.put(r)
			if o.held > 64+7 || len(o.queue) > 2*maxHeldFaults+1 {
				t.Fatalf("%s: %d events in %d reports", name, o.held, len(o.queue))
			}
		}
		last := takeAll(o)
		if name == "faults" && !errors.Is(last[len(last)-1].Fault, ErrRootLost) {
			t.Errorf("the last fault was forgotten: %v", last)
		}
	}
}

func TestOutboxRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	o := newOutbox(10)
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan Report), make(chan struct{})
	go func() {
		defer close(done)
		o.run(ctx, out)
	}()
	o.put(Report{Events: []Event{{Path: "a"}}})
	if r := <-out; len(r.Events) != 1 {
		t.Errorf("got %v", r)
	}
	o.put(Report{Events: []Event{{Path: "b"}}}) // nobody takes it
	cancel()
	<-done
}
