// Package fleet runs simulated devices in numbers, in processes of their own,
// and measures what they cost the control plane and how long people wait.
//
//   - The devices of a fleet are bare: one BitLocker volume each, opened and
//     verified as on any node, but never mounted. Everything else is the real
//     agent, one per device, many in one process.
//   - What is measured has a process to itself, so that its memory is nobody
//     else's. All of them are this program started again ([Part]) and end when
//     their standard input does: nothing outlives who started it.
//   - Everything is on 127.0.0.1, and bounded in number and time.
package fleet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/image"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// MaxDevices is the largest fleet: its agents keep about six files open each.
const MaxDevices = 10_000

// makers is how many devices are made at once. The control plane writes one
// change after the other anyway.
const makers = 4

// diskID is the one disk of a device of a fleet.
const diskID = "disk1"

// Dir is where the fleet of a world lies.
func Dir(w *world.World) string { return filepath.Join(w.Dir, "fleet") }

// Make makes n devices, has an order placed for each, and enrols them at the
// world's control plane, which must be running. progress may be nil; it is told
// how many are done, and may be called concurrently.
func Make(ctx context.Context, w *world.World, crew *world.Crew, n int, progress func(done int)) error {
	if n < 1 || n > MaxDevices {
		return fmt.Errorf("a fleet of %d devices: want 1 to %d", n, MaxDevices)
	}
	m := &maker{w: w, crew: crew}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(makers)
	for range n {
		g.Go(func() error {
			if err := m.one(ctx); err != nil {
				return err
			}
			if done := m.done.Add(1); progress != nil {
				progress(int(done))
			}
			return nil
		})
	}
	return g.Wait()
}

// maker makes devices. A device that could not be made, because a machine with
// much else to do stalled the control plane, is left out, and the next tried.
type maker struct {
	w          *world.World
	crew       *world.Crew
	last, done atomic.Int64
}

func (m *maker) one(ctx context.Context) (err error) {
	const tries = 3
	for range tries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		serial := serialOf(m.last.Add(1))
		if _, err = NewDevice(ctx, m.w, m.crew, serial); err == nil {
			return nil
		}
		err = errors.Join(fmt.Errorf("cannot make device %s: %w", serial, err), os.RemoveAll(filepath.Join(Dir(m.w), string(serial))))
	}
	return err
}

func serialOf(n int64) protocol.DeviceSerial { return protocol.DeviceSerial(fmt.Sprintf("FLT%05d", n)) }

// OrderOf is the order of a device of a fleet.
func OrderOf(serial protocol.DeviceSerial) protocol.OrderID { return protocol.OrderID("ORD-" + serial) }

// NewDevice makes a device below [Dir], has its order placed, and enrols it. It
// returns the settings of its agent.
func NewDevice(ctx context.Context, w *world.World, crew *world.Crew, serial protocol.DeviceSerial) (agent.Config, error) {
	cfg := deviceConfig(Dir(w), serial)
	disk, err := makeDisk(ctx, cfg.Disks[0].Image)
	if err != nil {
		return cfg, err
	}
	order := OrderOf(serial)
	policy, err := crew.Order(ctx, "databox", w.Destinations(), &lockboxv1.PrepareDeviceRequest{
		Order: string(order), Serial: string(serial), Disks: []*lockboxv1.PreparedDisk{disk},
	})
	if err != nil {
		return cfg, err
	}
	return cfg, crew.Enrol(ctx, w.API, order, cfg, policy)
}

// deviceConfig has the agent's defaults but for where things lie.
func deviceConfig(dir string, serial protocol.DeviceSerial) agent.Config {
	dir = filepath.Join(dir, string(serial))
	cfg := agent.DefaultConfig()
	cfg.Serial, cfg.Bare = string(serial), true
	cfg.StateDir, cfg.RunDir = filepath.Join(dir, "state"), filepath.Join(dir, "run")
	cfg.Disks = []agent.DiskConfig{{ID: diskID, Image: filepath.Join(dir, diskID+".img")}}
	return cfg
}

// makeDisk makes a volume without a recovery password, which would take longer
// than all else. Custody wants one, so it gets one that opens nothing.
func makeDisk(ctx context.Context, path string) (*lockboxv1.PreparedDisk, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	keys, err := image.CreateBare(ctx, image.Spec{Path: path, SizeBytes: image.MinBareSize, NoRecoveryPassword: true})
	if err != nil {
		return nil, err
	}
	defer keys.Wipe()
	info, err := image.Inspect(path)
	if err != nil {
		return nil, err
	}
	useless, err := bitlocker.GenerateRecoveryPassword(rand.Reader)
	if err != nil {
		return nil, err
	}
	return &lockboxv1.PreparedDisk{
		Node: 1, Disk: diskID, VolumeGuid: info.ID.String(),
		ExternalKey: append([]byte(nil), keys.ExternalKey.Bytes()...), RecoveryPassword: useless.Reveal(),
	}, nil
}

// Run runs the agents of all devices below dir in this process until ctx ends,
// or until the first of them fails. Everything it started has ended when it
// returns.
func Run(ctx context.Context, dir string, log zerolog.Logger) error {
	devices, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(devices) == 0 {
		return errors.New("there is no device in " + dir)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range devices {
		a, err := agent.New(deviceConfig(dir, protocol.DeviceSerial(d.Name())), agent.Options{Log: log})
		if err != nil {
			g.Go(func() error { return fmt.Errorf("cannot start device %s: %w", d.Name(), err) })
			break
		}
		g.Go(func() error { return a.Run(ctx) })
	}
	return g.Wait()
}
