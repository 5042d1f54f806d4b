// Package figure is how measurements are told: one line each.
package figure

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Figure is something that was measured.
type Figure struct {
	Name  string
	Value float64
	Unit  string
	More  bool // more is better; less is otherwise

	Peer      string  // what it is compared with; "" if nothing
	PeerValue float64 // of the peer, in the same unit
}

// Ratio returns how many times better than its peer it is.
func (f Figure) Ratio() float64 {
	if f.More {
		return f.Value / f.PeerValue
	}
	return f.PeerValue / f.Value
}

// String returns the figure as one line, with its ratio.
func (f Figure) String() string {
	line := fmt.Sprintf("figure=%s value=%s unit=%s", f.Name, Number(f.Value), f.Unit)
	if f.Peer == "" {
		return line
	}
	return line + fmt.Sprintf(" peer=%s peer_value=%s ratio=%.2f", f.Peer, Number(f.PeerValue), f.Ratio())
}

// Number prints v with three decimals below a thousand, with none above.
func Number(v float64) string {
	if math.Abs(v) >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// Percentile returns the smallest of values that share percent of them do not
// exceed; with 50, a median.
func Percentile[T float64 | time.Duration](values []T, share int) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)*share+99)/100-1]
}

// Milliseconds returns d in milliseconds.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
