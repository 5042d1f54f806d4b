package disk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

func TestOverlay(t *testing.T) {
	spec, key := newSpec(t)
	before := imageSum(t, spec.Image)
	spec.ReadOnly, spec.Bare = true, true
	opened, err := Open(t.Context(), spec, key)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close(t.Context())
	const size = 1 << 20
	want := make([]byte, size)
	if _, err := opened.volume.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		off := rand.IntN(size)
		piece := random(1 + rand.IntN(min(20_000, size-off)))
		copy(want[off:], piece)
		if n, err := opened.overlay.WriteAt(piece, int64(off)); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
		from := rand.IntN(size)
		got := make([]byte, rand.IntN(size-from))
		if _, err := opened.overlay.ReadAt(got, int64(from)); err != nil || !bytes.Equal(got, want[from:from+len(got)]) {
			t.Fatalf("read of %d at %d: %v", len(got), from, err)
		}
	}
	opened.Wipe()
	if _, err := opened.overlay.ReadAt(make([]byte, 512), 0); !errors.Is(err, bitlocker.ErrWiped) {
		t.Errorf("read after Wipe: %v", err)
	}
	if imageSum(t, spec.Image) != before {
		t.Error("the image has changed")
	}
}
