package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"time"
)

const (
	connectWithin = 5 * time.Minute // all devices of a fleet
	// settle is how long a fleet is left alone before it counts as idle: longer
	// than the agents' heartbeat, so that every device has had a quiet one.
	settle = 20 * time.Second
)

// Choice says what [FleetCosts] measures.
type Choice struct{ Memory, Reconnect bool }

// The figures' names, but for the number of devices.
const (
	FigureMemory    = "idle_device_rss"
	FigureReconnect = "reconnect_"
)

// FleetCosts makes a fleet of n devices in a new world below dir, and measures
// the control plane with it:
//
//   - its resident memory for each device that is connected and idle, above what
//     it has just after its start with the same data, next to that of a server
//     that only holds as many raw TLS connections; and
//   - how long after kill -9 and a restart all devices are connected again,
//     counted from the kill, with the agents' default pauses between dials.
func FleetCosts(ctx context.Context, dir string, n int, want Choice, note io.Writer) (figures []Figure, err error) {
	s, err := newScene(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.makeFleet(ctx, n, note); err != nil {
		return nil, err
	}
	held, err := s.connectFleet(ctx, n, note)
	if err != nil {
		return nil, err
	}
	if want.Reconnect {
		took, err := s.reconnect(ctx, n)
		if err != nil {
			return nil, err
		}
		figures = append(figures, Figure{Name: FigureReconnect + strconv.Itoa(n), Value: took.Seconds(), Unit: "s"})
	}
	if !want.Memory {
		return figures, nil
	}
	if err := s.devices.Stop(); err != nil {
		return nil, err
	}
	s.devices = nil
	raw, err := s.rawMemory(ctx, n, note)
	if err != nil {
		return nil, err
	}
	return append([]Figure{{Name: FigureMemory, Value: held, Unit: "bytes", Peer: "rawtls", PeerValue: raw}}, figures...), nil
}

func (s *scene) makeFleet(ctx context.Context, n int, note io.Writer) error {
	began := time.Now()
	err := Make(ctx, s.w, s.crew, n, func(done int) {
		if done%500 == 0 {
			fmt.Fprintf(note, "%d of %d devices made and enrolled, after %s\n", done, n, time.Since(began).Round(time.Second))
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
func (s *scene) connectFleet(ctx context.Context, n int, note io.Writer) (float64, error) {
	return perDevice(ctx, s.control, n, note, func() (err error) {
		s.devices, err = startPart(ctx, partFleet, Dir(s.w))
		return err
	})
}

// perDevice returns the resident memory that n connections cost a server, each.
// connect has them made.
func perDevice(ctx context.Context, server *Process, n int, note io.Writer, connect func() error) (float64, error) {
	before, err := server.Resident(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := connect(); err != nil {
		return 0, err
	}
	if err := server.Await(ctx, n, connectWithin); err != nil {
		return 0, err
	}
	fmt.Fprintf(note, "%d devices connected to the %s within %s\n", n, server.name, time.Since(began).Round(100*time.Millisecond))
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := server.Resident(ctx)
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(note, "%s: %d kB before, %d kB with %d devices\n", server.name, before>>10, after>>10, n)
	if have, err := server.Count(ctx); err != nil || have != n {
		return 0, errors.Join(err, fmt.Errorf("%d of %d devices are connected to the %s", have, n, server.name))
	}
	return float64(after-before) / float64(n), nil
}

// reconnect kills the control plane, starts it again, and waits for all devices.
func (s *scene) reconnect(ctx context.Context, n int) (time.Duration, error) {
	began := time.Now()
	if err := s.control.Kill(); err != nil {
		return 0, err
	}
	if err := s.startControl(ctx); err != nil {
		return 0, err
	}
	if err := s.control.Await(ctx, n, connectWithin); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

// rawMemory is what connectFleet returns, of a server of raw TLS connections.
func (s *scene) rawMemory(ctx context.Context, n int, note io.Writer) (held float64, err error) {
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
	return perDevice(ctx, server, n, note, func() (err error) {
		clients, err = startPart(ctx, partRawClients, authority, server.said, strconv.Itoa(n))
		return err
	})
}
