package protocol

import (
	"testing"
	"time"
)

func TestTimesForPeople(t *testing.T) {
	now := time.Date(2026, 11, 22, 4, 50, 55, 999, time.UTC)
	tokyo := time.FixedZone("JST", 9*3600)
	for want, got := range map[string]string{
		"2026-11-22 04:50:55 UTC":             Stamp(now.In(tokyo)),
		"04:50:55":                            Clock(now.In(tokyo)),
		"2026-11-22 04:50:57 UTC (in 2s)":     Until(now.Add(2*time.Second), now),
		"2026-11-22 04:55:55 UTC (in 5m)":     Until(now.Add(5*time.Minute), now),
		"2026-11-22 05:50:54 UTC (in 59m59s)": Until(now.Add(time.Hour-time.Second), now),
		"2026-11-22 07:50:53 UTC (in 3h0m)":   Until(now.Add(3*time.Hour-2*time.Second), now),
		"2026-11-22 04:50:54 UTC (over)":      Until(now.Add(-time.Second), now),
		"2026-11-22 04:45:45 UTC (5m10s ago)": Since(now.Add(-310*time.Second), now),
		"2026-11-22 04:50:56 UTC (0s ago)":    Since(now.Add(time.Second), now),
		"2026-11-20 04:50:55 UTC (48h0m ago)": Since(now.Add(-48*time.Hour), now),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
