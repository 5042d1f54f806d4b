package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/figure"
)

// RequestRate measures how many requests a control plane over SQLite carries from
// their creation through both approvals to open disks, on as many bare devices at
// once, each of which goes through several requests. That each is revoked again,
// to free its device, is part of the time.
func RequestRate(ctx context.Context, dir string, devices, each int, note io.Writer) (_ figure.Figure, err error) {
	if each < 1 {
		return figure.Figure{}, fmt.Errorf("%d requests a device: want at least 1", each)
	}
	s, err := newScene(ctx, dir)
	if err != nil {
		return figure.Figure{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.makeFleet(ctx, Costs{Devices: devices, Note: note}); err != nil {
		return figure.Figure{}, err
	}
	if s.devices, err = startPart(ctx, partFleet, Dir(s.w)); err != nil {
		return figure.Figure{}, err
	}
	if err := s.control.Await(ctx, devices, connectWithin); err != nil {
		return figure.Figure{}, err
	}
	lanes := make([]lane, devices)
	for i := range lanes {
		if lanes[i], err = s.newLane(ctx, serialOf(int64(i+1))); err != nil {
			return figure.Figure{}, err
		}
	}
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range lanes {
		g.Go(func() error {
			for range each {
				if err := l.once(ctx); err != nil {
					return fmt.Errorf("device %s: %w", l.serial, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return figure.Figure{}, err
	}
	rate := float64(devices*each) / time.Since(began).Seconds()
	return figure.Figure{Name: "requests_per_s", Value: rate, Unit: "requests/s", More: true}, nil
}

// lane is a device that goes through one request after the other.
type lane struct {
	*scene
	serial protocol.DeviceSerial
	ticket string
}

// newLane brings a device of the fleet to the datacenter, with a ticket for it.
func (s *scene) newLane(ctx context.Context, serial protocol.DeviceSerial) (lane, error) {
	order := OrderOf(serial)
	if err := s.crew.Ship(ctx, order); err != nil {
		return lane{}, err
	}
	ticket, err := s.fileTicket(ctx, order)
	if err != nil {
		return lane{}, err
	}
	return lane{s, serial, ticket}, s.reported(ctx, serial, protocol.Locked)
}

// once carries one request through, and frees the device.
func (l lane) once(ctx context.Context) error {
	r, err := l.crew.Request(ctx, l.serial, l.ticket)
	if err != nil {
		return err
	}
	for _, who := range []string{"ivan", "olga"} {
		if err := l.decide(ctx, who, r.Id); err != nil {
			return err
		}
	}
	if err := l.execute(ctx, r.Id); err != nil {
		return err
	}
	if _, err := l.crew.As("olga").Requests.RevokeRequest(ctx, &lockboxv1.RevokeRequestRequest{Id: r.Id, Reason: "measured"}); err != nil {
		return err
	}
	return l.reported(ctx, l.serial, protocol.Locked)
}
