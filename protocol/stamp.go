package protocol

import (
	"strings"
	"time"
)

// Stamp shows a time as people read it everywhere, in UTC and to the second, as
// in "2026-11-22 04:50:55 UTC". Programs are given RFC 3339.
func Stamp(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }

// Clock is Stamp within a day that is known: "04:50:55".
func Clock(t time.Time) string { return t.UTC().Format(time.TimeOnly) }

// Until is Stamp with what is left of it, as in "(in 3h5m)", or "(over)".
func Until(t, now time.Time) string {
	left := t.Sub(now)
	if left < 0 {
		return Stamp(t) + " (over)"
	}
	return Stamp(t) + " (in " + span(left) + ")"
}

// Since is Stamp with how long ago that was, as in "(5m10s ago)".
func Since(t, now time.Time) string {
	return Stamp(t) + " (" + span(max(0, now.Sub(t))) + " ago)"
}

// span shows how long something is: in seconds up to an hour, then in minutes.
func span(d time.Duration) string {
	unit := time.Second
	if d >= time.Hour {
		unit = time.Minute
	}
	text := d.Round(unit).String()
	if short, ok := strings.CutSuffix(text, "m0s"); ok {
		return short + "m"
	}
	return text
}
