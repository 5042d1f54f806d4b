package history_test

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/simulator/fleet"
	"github.com/databox-lockbox/lockbox/simulator/history"
)

// TestMain lets the test's program be started again as the programs of a history.
func TestMain(m *testing.M) {
	fleet.PartMain()
	goleak.VerifyTestMain(m)
}

// Whatever people do and whatever breaks: nothing is open that may not be.
func TestHistories(t *testing.T) {
	dir, err := os.MkdirTemp("", "history") // short, for the sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cfg := history.Config{Dir: filepath.Join(dir, "world"), Histories: 4, Lanes: 4, Steps: 30, Seed: uint64(os.Getpid())}
	r, err := history.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range r.Violations {
		t.Error(v)
	}
	t.Logf("%d openings, %d looks, acts %v, executions answered with %v", r.Openings, r.Looks, r.Acts, r.Answers)
	if r.Histories != cfg.Histories || r.Looks < 100 {
		t.Errorf("%d histories were played, and %d times looked at", r.Histories, r.Looks)
	}
}
