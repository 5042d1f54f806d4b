package fleet_test

import (
	"context"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/controlplane"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/fleet"
	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// TestMain lets the test's program be started again as a part of a measurement.
func TestMain(m *testing.M) {
	fleet.PartMain()
	goleak.VerifyTestMain(m)
}

// newWorld is a world with a control plane that was never started.
func newWorld(t *testing.T) *world.World {
	t.Helper()
	p, err := profile.Get("databox")
	if err != nil {
		t.Fatal(err)
	}
	w, err := world.New(world.Config{Dir: t.TempDir(), Profile: p})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.RemoveRun(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// running is something that runs in this process.
type running struct {
	stop  context.CancelFunc
	ended chan error
}

func start(t *testing.T, run func(context.Context) error) *running {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r := &running{stop, make(chan error, 1)}
	go func() { r.ended <- run(ctx) }() // its end is awaited by end
	t.Cleanup(func() { r.end(t) })
	return r
}

// end ends it, once.
func (r *running) end(t *testing.T) {
	t.Helper()
	if r.ended == nil {
		return
	}
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	r.ended = nil
}

func startControl(t *testing.T, w *world.World) (*running, *controlplane.ControlPlane) {
	t.Helper()
	cfg, err := controlplane.LoadConfig(w.ControlConfig())
	if err != nil {
		t.Fatal(err)
	}
	c, err := controlplane.New(cfg, controlplane.Options{Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return start(t, c.Run), c
}

func awaitOnline(t *testing.T, c *controlplane.ControlPlane, n int) {
	t.Helper()
	for range 3000 {
		if c.Online() == n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d of %d devices are connected", c.Online(), n)
}

func TestFleetComesBackAfterARestart(t *testing.T) {
	const n = 10
	w := newWorld(t)
	running, control := startControl(t, w)
	crew, err := w.Register(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer crew.Close()
	told := atomic.Int64{}
	if err := fleet.Make(t.Context(), w, crew, n, func(int) { told.Add(1) }); err != nil {
		t.Fatal(err)
	}
	if told.Load() != n {
		t.Errorf("was told %d times of progress, want %d", told.Load(), n)
	}
	devices := start(t, func(ctx context.Context) error { return fleet.Run(ctx, fleet.Dir(w), zerolog.Nop()) })
	awaitOnline(t, control, n)
	shown, err := crew.As("sam").Devices.ListDevices(t.Context(), &lockboxv1.ListDevicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(shown.Devices) != n || !shown.Devices[0].Nodes[0].Online {
		t.Errorf("the API shows %d devices, the first %v", len(shown.Devices), shown.Devices)
	}

	running.end(t)
	running, control = startControl(t, w)
	awaitOnline(t, control, n)

	devices.end(t)
	awaitOnline(t, control, 0)
	running.end(t)
}

func TestFleetOfNone(t *testing.T) {
	w := newWorld(t)
	if err := fleet.Make(t.Context(), w, nil, 0, nil); err == nil {
		t.Error("made a fleet of no devices")
	}
	if err := fleet.Run(t.Context(), t.TempDir(), zerolog.Nop()); err == nil {
		t.Error("ran a fleet of no devices")
	}
}

func TestCosts(t *testing.T) {
	const n = 10
	costs := fleet.Costs{Dir: t.TempDir(), Devices: n, Memory: true, Reconnect: true, Settle: time.Second, Note: io.Discard}
	figures, err := costs.Measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(figures) != 2 {
		t.Fatalf("measured %v, want two figures", figures)
	}
	memory, reconnect := figures[0], figures[1]
	if memory.Name != fleet.FigureMemory || memory.Peer != "rawtls" || memory.Value <= 0 || memory.PeerValue <= 0 {
		t.Errorf("the memory is %v", memory)
	}
	// All devices wait at most a second before they dial, and two if refused.
	if reconnect.Name != "reconnect_10" || reconnect.Value <= 0 || reconnect.Value > 30 {
		t.Errorf("the way back is %v", reconnect)
	}
}

func TestUnlockTimes(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("disks are mounted for real: run the tests as root")
		}
		t.Skip("disks are mounted for real, which takes root")
	}
	dir := t.TempDir()
	figures, err := fleet.UnlockTimes(t.Context(), dir, 2, nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if len(figures) != 3 {
		t.Fatalf("measured %v, want three figures", figures)
	}
	for _, f := range figures {
		if f.Value <= 0 || f.Unit != "ms" {
			t.Errorf("%v makes no sense", f)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Error("a mount was left behind")
	}
}

func TestRequestRate(t *testing.T) {
	f, err := fleet.RequestRate(t.Context(), t.TempDir(), 2, 2, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if f.Name != "requests_per_s" || f.Value <= 0 {
		t.Errorf("measured %v", f)
	}
}

func TestPartThatDoesNotExist(t *testing.T) {
	if err := fleet.Part(t.Context(), []string{"nothing", "at all"}, strings.NewReader(""), io.Discard); err == nil {
		t.Error("ran a part that does not exist")
	}
}
