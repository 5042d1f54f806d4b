package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"time"

	"github.com/databox-lockbox/lockbox/simulator/figure"
)

// connectWithin bounds the time until all devices of a fleet are connected.
const connectWithin = 5 * time.Minute

// Settle is how long a fleet is left alone before it counts as idle: longer than
// the agents' heartbeat, so that every device has had a quiet one.
const Settle = 20 * time.Second

// The figures' names, but for the number of devices.
const (
	FigureMemory    = "idle_device_rss"
	FigureReconnect = "reconnect_"
)

// Costs says what is measured with a fleet.
type Costs struct {
	Dir       string // of the world; made
	Devices   int
	Memory    bool          // measure it
	Reconnect bool          // measure it
	Settle    time.Duration // before memory is read, see [Settle]
	Note      io.Writer     // told of progress
}

// Measure makes the fleet in a new world, and measures the control plane with it:
//
//   - its resident memory for each device that is connected and idle, above what
//     it has just after its start with the same data, next to that of a server
//     that only holds as many raw TLS connections; and
//   - how long after kill -9 and a restart all devices are connected again,
//     counted from the kill, with the agents' default pauses between dials.
func (c Costs) Measure(ctx context.Context) (figures []figure.Figure, err error) {
	s, err := newScene(ctx, c.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.makeFleet(ctx, c); err != nil {
		return nil, err
	}
	held, err := s.connectFleet(ctx, c)
	if err != nil {
		return nil, err
	}
	if c.Reconnect {
		took, err := s.reconnect(ctx, c)
		if err != nil {
			return nil, err
		}
		figures = append(figures, figure.Figure{Name: FigureReconnect + strconv.Itoa(c.Devices), Value: took.Seconds(), Unit: "s"})
	}
	if !c.Memory {
		return figures, nil
	}
	if err := s.stopDevices(); err != nil {
		return nil, err
	}
	raw, err := s.rawMemory(ctx, c)
	if err != nil {
		return nil, err
	}
	return append([]figure.Figure{{Name: FigureMemory, Value: held, Unit: "bytes", Peer: "rawtls", PeerValue: raw}}, figures...), nil
}

func (s *scene) makeFleet(ctx context.Context, c Costs) error {
	began := time.Now()
	err := Make(ctx, s.w, s.crew, c.Devices, func(done int) {
		if done%500 == 0 {
			fmt.Fprintf(c.Note, "%d of %d devices made and enrolled, after %s\n", done, c.Devices, time.Since(began).Round(time.Second))
		}
	})
	if err != nil {
		return err
	}
	// The process that enrolled them has seen more than idle devices.
	if err := s.control.Stop(); err != nil {
		return err
	}
	return s.startControl(ctx)
}

// connectFleet starts the fleet and returns the bytes that each of its devices
// holds at the control plane once it is idle.
func (s *scene) connectFleet(ctx context.Context, c Costs) (float64, error) {
	return c.perDevice(ctx, s.control, func() (err error) {
		s.devices, err = startPart(ctx, partFleet, Dir(s.w))
		return err
	})
}

// perDevice returns the resident memory that the connections cost a server, each.
// connect has them made.
func (c Costs) perDevice(ctx context.Context, server *Process, connect func() error) (float64, error) {
	before, err := server.Resident(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := connect(); err != nil {
		return 0, err
	}
	if err := server.Await(ctx, c.Devices, connectWithin); err != nil {
		return 0, err
	}
	fmt.Fprintf(c.Note, "%d devices connected to the %s within %s\n", c.Devices, server.name, time.Since(began).Round(100*time.Millisecond))
	select {
	case <-time.After(c.Settle):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := server.Resident(ctx)
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(c.Note, "%s: %d kB before, %d kB with %d devices\n", server.name, before>>10, after>>10, c.Devices)
	if have, err := server.Count(ctx); err != nil || have != c.Devices {
		return 0, errors.Join(err, fmt.Errorf("%d of %d devices are connected to the %s", have, c.Devices, server.name))
	}
	return float64(after-before) / float64(c.Devices), nil
}

// reconnect kills the control plane, starts it again, and waits for all devices.
func (s *scene) reconnect(ctx context.Context, c Costs) (time.Duration, error) {
	began := time.Now()
	if err := s.control.Kill(); err != nil {
		return 0, err
	}
	if err := s.startControl(ctx); err != nil {
		return 0, err
	}
	if err := s.control.Await(ctx, c.Devices, connectWithin); err != nil {
		return 0, err
	}
	took := time.Since(began)
	used, err := s.control.CPU()
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(c.Note, "all %d devices are back; the control plane used %s of processor time since its start, %s a device\n",
		c.Devices, used, (used / time.Duration(c.Devices)).Round(time.Microsecond))
	return took, nil
}

// rawMemory is what connectFleet returns, of a server of raw TLS connections.
func (s *scene) rawMemory(ctx context.Context, c Costs) (held float64, err error) {
	authority := filepath.Join(s.w.DataDir(), "authority")
	server, err := startPart(ctx, partRawServer, authority)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	var clients *Process
	defer func() {
		if clients != nil {
			err = errors.Join(err, clients.Stop())
		}
	}()
	return c.perDevice(ctx, server, func() (err error) {
		clients, err = startPart(ctx, partRawClients, authority, server.said, strconv.Itoa(c.Devices))
		return err
	})
}
