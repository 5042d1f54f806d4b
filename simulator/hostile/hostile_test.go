package hostile_test

import (
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/simulator/hostile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Whoever has every key of the control plane opens nothing without the customer.
func TestNothingOpens(t *testing.T) {
	dir, err := os.MkdirTemp("", "hostile") // short, for the sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	r, err := hostile.Run(t.Context(), hostile.Config{Dir: dir, Devices: 1, Attacks: 500, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range r.Opened {
		t.Error(o)
	}
	var table strings.Builder
	if err := r.Print(&table); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d attacks, %d controls\n%s", r.Attacks, r.Controls, table.String())
	if r.Attacks < 500 || r.Controls < len(r.Codes) {
		t.Errorf("%d attacks and %d controls of %d kinds were made", r.Attacks, r.Controls, len(r.Codes))
	}
}
