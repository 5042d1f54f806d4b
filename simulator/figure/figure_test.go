package figure_test

import (
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/simulator/figure"
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
		if got := figure.Percentile(times, c.share); got != c.want {
			t.Errorf("percentile %d is %s, want %s", c.share, got, c.want)
		}
	}
	if got := figure.Percentile(times[:1], 99); got != times[0] {
		t.Errorf("the percentile of one time is %s, want %s", got, times[0])
	}
}

func TestFigure(t *testing.T) {
	for _, c := range []struct {
		figure figure.Figure
		want   string
	}{
		{figure.Figure{Name: "reconnect_2000", Value: 3.25, Unit: "s"}, "figure=reconnect_2000 value=3.250 unit=s"},
		{figure.Figure{Name: "idle_device_rss", Value: 40000, Unit: "bytes", Peer: "rawtls", PeerValue: 20000},
			"figure=idle_device_rss value=40000 unit=bytes peer=rawtls peer_value=20000 ratio=0.50"},
		{figure.Figure{Name: "xts128_512", Value: 9, Unit: "GB/s", More: true, Peer: "openssl", PeerValue: 6},
			"figure=xts128_512 value=9.000 unit=GB/s peer=openssl peer_value=6.000 ratio=1.50"},
	} {
		if got := c.figure.String(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
