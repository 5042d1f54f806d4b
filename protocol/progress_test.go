package protocol

import "testing"

func TestTransfer(t *testing.T) {
	for _, test := range []struct {
		done, total, rate int64
		want              string
	}{
		{0, 0, 0, "0 B"},
		{1023, 0, 0, "1023 B"},
		{1 << 30, 4 << 30, 0, "1.0 GiB of 4.0 GiB (25 %)"},
		{1 << 30, 4 << 30, 107374182, "1.0 GiB of 4.0 GiB (25 %), 102.4 MiB/s, 30s left"},
		{4 << 30, 4 << 30, 1 << 20, "4.0 GiB of 4.0 GiB (100 %), 1.0 MiB/s"},
		{0, 1 << 60, 1, "0 B of 1.0 EiB (0 %), 1 B/s"},
	} {
		if got := Transfer(test.done, test.total, test.rate); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}
