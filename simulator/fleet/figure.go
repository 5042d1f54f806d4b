package fleet

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Figure is something that was measured. Less is better.
type Figure struct {
	Name  string
	Value float64
	Unit  string

	Peer      string  // what it is compared with; "" if nothing
	PeerValue float64 // of the peer, in the same unit
}

// String returns the figure as one line, with the ratio that says how many times
// better it is than its peer.
func (f Figure) String() string {
	line := fmt.Sprintf("figure=%s value=%s unit=%s", f.Name, number(f.Value), f.Unit)
	if f.Peer == "" {
		return line
	}
	return line + fmt.Sprintf(" peer=%s peer_value=%s ratio=%.2f", f.Peer, number(f.PeerValue), f.PeerValue/f.Value)
}

// number has three decimals below a thousand, none above.
func number(v float64) string {
	if math.Abs(v) >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// percentile returns the smallest of times that share percent of them do not
// exceed.
func percentile(times []time.Duration, share int) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[(len(sorted)*share+99)/100-1]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
