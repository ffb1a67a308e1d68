// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span written as Go does: 20ms, 5s, 24h.
type Duration time.Duration

// ParseDuration reads a span such as 20ms, 5s, 1h30m. A number without a unit is refused: nobody can
// tell seconds from minutes in it.
func ParseDuration(s string) (Duration, error) {
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return 0, errors.New("a number without a unit is not a duration")
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New(strconv.Quote(s) + " is not a duration")
	}
	return Duration(d), nil
}

// DurationHint is how to write what [ParseDuration] refuses.
func DurationHint(s string) string {
	if decimal.MatchString(s) && s != "0" && !strings.HasPrefix(s, "-") {
		return "write " + s + "s if seconds are meant"
	}
	return "write it as 20ms, 5s or 24h"
}

// String renders the duration the way [Parse] reads it, without the zero units that package time adds.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText makes JSON show the duration as [Duration.String] does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
