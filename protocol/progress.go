package protocol

import (
	"fmt"
	"time"
)

// Bytes shows a number of bytes as people read it, as in "1.4 GiB".
func Bytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	value, i := float64(n), 0
	for ; value >= 1024 && i < len(units)-1; i++ {
		value /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[i])
}

// Transfer shows how far a transfer is, as in "1.0 GiB of 4.0 GiB (25 %), 102.4
// MiB/s, 30s left". rate is in bytes per second; what is 0 is left out.
func Transfer(done, total, rate int64) string {
	text := Bytes(done)
	if total > 0 {
		text += fmt.Sprintf(" of %s (%d %%)", Bytes(total), int(100*float64(done)/float64(total)))
	}
	if rate <= 0 {
		return text
	}
	text += fmt.Sprintf(", %s/s", Bytes(rate))
	if left := float64(total-done) / float64(rate); total > done && left < (1000*time.Hour).Seconds() {
		text += fmt.Sprintf(", %s left", time.Duration(left+0.5)*time.Second)
	}
	return text
}
