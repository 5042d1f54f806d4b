package fleet

import (
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	var times []time.Duration
	for i := range 50 {
		times = append(times, time.Duration(50-i)*time.Millisecond)
	}
	for _, c := range []struct {
		share int
		want  time.Duration
	}{{50, 25 * time.Millisecond}, {99, 50 * time.Millisecond}, {100, 50 * time.Millisecond}, {2, time.Millisecond}} {
		if got := percentile(times, c.share); got != c.want {
			t.Errorf("percentile %d is %s, want %s", c.share, got, c.want)
		}
	}
	if got := percentile(times[:1], 99); got != times[0] {
		t.Errorf("the percentile of one time is %s, want %s", got, times[0])
	}
}
