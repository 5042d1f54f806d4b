package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/figure"
	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// onlineWithin is how long a node that was just started may take to connect.
const onlineWithin = 30 * time.Second

// UnlockTimes measures how long a customer's yes takes to open the shares of a
// device with four real disks, and how long a revocation takes to lock them,
// in a new world below dir. keeper starts the keeper of the agent's mounts; it
// may be nil. It needs root.
//
// A run begins when the customer's signed decision is sent and its first part
// ends when the execution has reported the shares open and their port answers.
// Its second part goes from sending the revocation to its answer, which holds
// the node's own word that it is locked.
func UnlockTimes(ctx context.Context, dir string, runs int, keeper []string, note io.Writer) (figures []figure.Figure, err error) {
	if runs < 1 {
		return nil, fmt.Errorf("%d runs: want at least 1", runs)
	}
	s, err := newScene(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.bringDevice(ctx, keeper, note); err != nil {
		return nil, err
	}
	var opened, locked []time.Duration
	for i := range runs {
		open, lock, err := s.unlockOnce(ctx)
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", i+1, err)
		}
		opened, locked = append(opened, open), append(locked, lock)
	}
	return []figure.Figure{
		{Name: "approve_to_open_p50", Value: figure.Milliseconds(figure.Percentile(opened, 50)), Unit: "ms"},
		{Name: "approve_to_open_p99", Value: figure.Milliseconds(figure.Percentile(opened, 99)), Unit: "ms"},
		{Name: "revoke_to_locked_p99", Value: figure.Milliseconds(figure.Percentile(locked, 99)), Unit: "ms"},
	}, nil
}

// scene is a world with a control plane that runs in a process of its own.
type scene struct {
	w       *world.World
	crew    *world.Crew
	control *Process
	devices *Process // nil until there are some
	ticket  string
}

func newScene(ctx context.Context, dir string) (_ *scene, err error) {
	p, err := profile.Get("databox")
	if err != nil {
		return nil, err
	}
	s := &scene{}
	if s.w, err = world.New(world.Config{Dir: dir, Profile: p}); err != nil {
		return nil, err
	}
	if err := s.startControl(ctx); err != nil {
		return nil, err
	}
	if s.crew, err = s.w.Register(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *scene) startControl(ctx context.Context) (err error) {
	s.control, err = StartControlPlane(ctx, s.w.ControlConfig())
	return err
}

// close ends everything, devices first: they have something to lock.
func (s *scene) close() error {
	errs := []error{s.stopDevices()}
	if s.crew != nil {
		s.crew.Close()
	}
	if s.control != nil {
		errs = append(errs, s.control.Stop())
	}
	return errors.Join(append(errs, s.w.RemoveRun())...)
}

func (s *scene) stopDevices() error {
	if s.devices == nil {
		return nil
	}
	err := s.devices.Stop()
	s.devices = nil
	return err
}

// bringDevice makes the world's device and runs its agent.
func (s *scene) bringDevice(ctx context.Context, keeper []string, note io.Writer) error {
	fmt.Fprintf(note, "making %d real disks\n", len(s.w.Device.Nodes[0].Disks))
	if _, err := s.w.PrepareDevices(ctx, nil); err != nil {
		return err
	}
	d := s.w.Device
	prepared, err := s.w.Prepared(d)
	if err != nil {
		return err
	}
	policy, err := s.crew.Order(ctx, d.SKU, s.w.Destinations(), prepared)
	if err != nil {
		return err
	}
	if err := s.crew.Ship(ctx, d.Order); err != nil {
		return err
	}
	if err := s.crew.EnrolNode(ctx, s.w, d.Order, d.Nodes[0], policy); err != nil {
		return err
	}
	if s.devices, err = startPart(ctx, append([]string{partAgent, d.Nodes[0].ConfigFile()}, keeper...)...); err != nil {
		return err
	}
	if err := s.control.Await(ctx, 1, onlineWithin); err != nil {
		return err
	}
	if s.ticket, err = s.fileTicket(ctx, d.Order); err != nil {
		return err
	}
	return s.reported(ctx, d.Serial, protocol.Locked)
}

// fileTicket files a ticket about an order, and has it assigned to the engineer.
func (s *scene) fileTicket(ctx context.Context, order protocol.OrderID) (string, error) {
	ticket, err := s.crew.As("olga").Tickets.FileTicket(ctx, &lockboxv1.FileTicketRequest{
		Order: string(order), Title: "files are in the wrong folder",
	})
	if err != nil {
		return "", err
	}
	_, err = s.crew.As("sam").Tickets.AssignTicket(ctx, &lockboxv1.AssignTicketRequest{Id: ticket.Id, Engineer: string(s.w.People["erin"].Name)})
	return ticket.Id, err
}

// reported waits until a device has told the control plane its state: another
// request is possible only then.
func (s *scene) reported(ctx context.Context, serial protocol.DeviceSerial, want protocol.LockState) error {
	for deadline := time.Now().Add(onlineWithin); ; time.Sleep(10 * time.Millisecond) {
		d, err := s.crew.As("sam").Devices.GetDevice(ctx, &lockboxv1.GetDeviceRequest{Serial: string(serial)})
		if err != nil {
			return err
		}
		if d.Nodes[0].State == string(want) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("device %s reports %q, not %q, after %s", serial, d.Nodes[0].State, want, onlineWithin)
		}
	}
}

// unlockOnce measures one request, from the customer's decision on.
func (s *scene) unlockOnce(ctx context.Context) (open, lock time.Duration, err error) {
	r, err := s.crew.Request(ctx, s.w.Device.Serial, s.ticket)
	if err != nil {
		return 0, 0, err
	}
	if err := s.decide(ctx, "ivan", r.Id); err != nil {
		return 0, 0, err
	}
	yes, err := s.crew.Approval(ctx, "olga", r.Id)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if _, err := s.crew.As("olga").Requests.Decide(ctx, &lockboxv1.DecideRequest{Id: r.Id, Envelope: yes}); err != nil {
		return 0, 0, err
	}
	if err := s.execute(ctx, r.Id); err != nil {
		return 0, 0, err
	}
	if !s.served(ctx) {
		return 0, 0, errors.New("the shares are said to be open, but nobody serves them")
	}
	open = time.Since(began)

	began = time.Now()
	resp, err := s.crew.As("olga").Requests.RevokeRequest(ctx, &lockboxv1.RevokeRequestRequest{Id: r.Id, Reason: "measured"})
	if err != nil {
		return 0, 0, err
	}
	lock = time.Since(began)
	if len(resp.Relocked) != 1 || !resp.Relocked[0].Confirmed || s.served(ctx) {
		return 0, 0, fmt.Errorf("the node did not lock: %v", resp.Relocked)
	}
	return open, lock, s.reported(ctx, s.w.Device.Serial, protocol.Locked)
}

func (s *scene) decide(ctx context.Context, short, request string) error {
	yes, err := s.crew.Approval(ctx, short, request)
	if err != nil {
		return err
	}
	_, err = s.crew.As(short).Requests.Decide(ctx, &lockboxv1.DecideRequest{Id: request, Envelope: yes})
	return err
}

// execute executes a request and follows its progress to the end.
func (s *scene) execute(ctx context.Context, request string) error {
	progress, err := s.crew.As("erin").Requests.ExecuteRequest(ctx, &lockboxv1.ExecuteRequestRequest{Id: request})
	if err != nil {
		return err
	}
	defer progress.Close()
	last := ""
	for {
		event, err := progress.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		last = event.Phase
	}
	if last != "done" {
		return fmt.Errorf("the execution ended at %q", last)
	}
	return nil
}

// served reports whether somebody answers at the port of the shares.
func (s *scene) served(ctx context.Context) bool {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(s.w.Device.Nodes[0].SMB))
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
