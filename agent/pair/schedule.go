// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

func (v *validator) schedule(p Pair) {
	if _, err := p.Full.Schedule(); err != nil {
		v.add("full.every", err.Error(), `write a duration such as 24h, a cron line such as "0 3 * * *", or "" for only at start`)
	}
	r := p.Retry
	v.span("retry.initial", r.Initial, time.Millisecond, 24*time.Hour)
	if v.span("retry.max", r.Max, time.Millisecond, 24*time.Hour) && r.Max < r.Initial {
		v.add("retry.max", fmt.Sprintf("%s is shorter than retry.initial, %s", r.Max, r.Initial), "write "+r.Initial.String()+" or more")
	}
}

// Schedule returns when full batches are due beside the one at every start, nil for never. The cron line
// is read in the time zone of the time that its Next is asked about.
func (f Full) Schedule() (cron.Schedule, error) {
	s := f.Every
	if s == "" {
		return nil, nil
	}
	if d, err := ParseDuration(s); err == nil {
		if time.Duration(d) < time.Minute {
			return nil, fmt.Errorf("%s is shorter than a minute", d)
		}
		return interval(d), nil
	}
	fields := strings.Fields(s)
	switch {
	case len(fields) == 1 && decimal.MatchString(s):
		return nil, fmt.Errorf("%s: a number without a unit is not a duration", s)
	case len(fields) == 1 && slices.Contains([]string{"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"}, s):
	case strings.HasPrefix(s, "TZ=") || strings.HasPrefix(s, "CRON_TZ="):
		return nil, fmt.Errorf("%q: the time zone is the source host's", s)
	case len(fields) != 5:
		return nil, fmt.Errorf("%q is neither a duration nor a cron line of five fields", s)
	}
	schedule, err := cron.ParseStandard(strings.Join(fields, " "))
	if err != nil {
		return nil, fmt.Errorf("%q is not a cron line: %w", s, err)
	}
	// Next gives up after five years: 30 February. The start is a fixed one to keep the answer the same every day.
	if schedule.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fmt.Errorf("%q never comes", s)
	}
	return schedule, nil
}

type interval time.Duration

func (i interval) Next(t time.Time) time.Time { return t.Add(time.Duration(i)) }
