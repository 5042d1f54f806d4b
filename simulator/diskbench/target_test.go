package diskbench

import (
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/simulator/figure"
)

func TestTarget(t *testing.T) {
	fast := figure.Figure{Value: 9, Unit: "GB/s", More: true, Peer: peerOpenSSL, PeerValue: 6}
	cheap := figure.Figure{Value: 0.09, Unit: "s", Peer: peerCryptsetup, PeerValue: 0.18}
	alone := figure.Figure{Value: 101, Unit: "ms"}
	for _, c := range []struct {
		target target
		figure figure.Figure
		want   string
	}{
		{target{what: "w", atLeast: 1.4}, fast, "w|≥ 1.4× openssl|1.50× openssl|met"},
		{target{what: "w", atLeast: 1.6}, fast, "w|≥ 1.6× openssl|1.50× openssl|missed"},
		{target{what: "w"}, fast, "w||1.50× openssl|"},
		{target{what: "w", atMost: 0.9}, cheap, "w|≤ 0.9× cryptsetup|0.50× cryptsetup|met"},
		{target{what: "w", atMost: 0.4}, cheap, "w|≤ 0.4× cryptsetup|0.50× cryptsetup|missed"},
		{target{what: "w", atMost: 100}, alone, "w|≤ 100 ms|101.00 ms|missed"},
		{target{what: "w", atLeast: 100}, alone, "w|≥ 100 ms|101.00 ms|met"},
	} {
		if got := strings.Join(c.target.row(c.figure), "|"); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if len(Names()) != 10 {
		t.Errorf("figures %v", Names())
	}
}
