package sessionbench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/agent"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// patience is how long a step may take that takes no time.
const patience = 30 * time.Second

// share is where files are put.
const share = "contosodata_BlockBlob"

// session is a support session on an unlocked device.
type session struct {
	world   *world.World
	crew    *world.Crew
	running *errgroup.Group
	stop    context.CancelFunc
	client  client
	folder  string // of the share, on this machine
	dir     string
}

// raise makes a world with one device, unlocks it for its engineer, and opens
// their session. Its node is changed before it starts. The caller ends it.
func raise(ctx context.Context, cfg Config, changes ...func(*world.World, *agent.Options) error) (_ *session, err error) {
	p := profile.Profile{
		Name: "databox", DiskSize: max(3*cfg.Size, 64<<20, cfg.Disk) + 64<<20,
		Nodes: []profile.Node{{Disks: []profile.Disk{{ID: "disk1", Shares: []profile.Share{{Name: share, Files: map[string]string{"bench/first": "x"}}}}}}},
	}
	w, err := world.New(world.Config{Dir: filepath.Join(cfg.Dir, "world"), Profile: p})
	if err != nil {
		return nil, err
	}
	s := &session{world: w, dir: cfg.Dir}
	running, stop := context.WithCancel(ctx)
	s.running, running = errgroup.WithContext(running)
	s.stop = stop
	defer func() {
		if err != nil {
			err = errors.Join(err, s.end())
		}
	}()
	if _, err := w.PrepareDevice(ctx, w.Device, func(text string) { fmt.Fprintln(cfg.Note, text) }); err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	s.running.Go(func() error { return w.RunControlPlane(running, zerolog.Nop(), func() { close(ready) }) })
	select {
	case <-ready:
	case <-running.Done():
		return nil, s.running.Wait()
	}
	if s.crew, err = w.Register(ctx); err != nil {
		return nil, err
	}
	if err := s.deliver(ctx); err != nil {
		return nil, err
	}
	opts := agent.Options{Log: zerolog.Nop()}
	for _, change := range changes {
		if err := change(w, &opts); err != nil {
			return nil, err
		}
	}
	s.running.Go(func() error { return w.RunAgent(running, w.Device.Nodes[0], opts) })
	if err := s.unlock(ctx); err != nil {
		return nil, err
	}
	return s, s.connect(ctx, cfg.Lockbox)
}

// deliver orders the device and takes it to the datacenter.
func (s *session) deliver(ctx context.Context) error {
	d := s.world.Device
	prepared, err := s.world.Prepared(d)
	if err != nil {
		return err
	}
	policy, err := s.crew.Order(ctx, d.SKU, s.world.Destinations(), prepared)
	if err != nil {
		return err
	}
	return errors.Join(s.crew.Ship(ctx, d.Order), s.crew.EnrolNode(ctx, s.world, d.Order, d.Nodes[0], policy))
}

// unlock has the engineer let in, and the device unlocked for them.
func (s *session) unlock(ctx context.Context) error {
	d, as := s.world.Device, s.crew.As
	if err := s.online(ctx); err != nil {
		return err
	}
	ticket, err := as("olga").Tickets.FileTicket(ctx, &lockboxv1.FileTicketRequest{Order: string(d.Order), Title: "to be measured"})
	if err != nil {
		return err
	}
	_, err = as("sam").Tickets.AssignTicket(ctx, &lockboxv1.AssignTicketRequest{Id: ticket.Id, Engineer: string(s.world.People["erin"].Name)})
	if err != nil {
		return err
	}
	_, err = as("erin").Sessions.EnableSession(ctx, &lockboxv1.EnableSessionRequest{Serial: string(d.Serial), Ticket: ticket.Id})
	if err != nil {
		return err
	}
	r, err := as("erin").Requests.CreateRequest(ctx, &lockboxv1.CreateRequestRequest{
		Action: "Unlock Databox", Serial: string(d.Serial), Ticket: ticket.Id, Access: "delete",
		ReasonCode: "copied-to-wrong-folder", Justification: "files are put in and taken out",
	})
	if err != nil {
		return err
	}
	for _, short := range []string{"ivan", "olga"} {
		yes, err := s.crew.Approval(ctx, short, r.Id)
		if err != nil {
			return err
		}
		if _, err := as(short).Requests.Decide(ctx, &lockboxv1.DecideRequest{Id: r.Id, Envelope: yes}); err != nil {
			return err
		}
	}
	return s.crew.Execute(ctx, r.Id)
}

// online waits until the device has reported.
func (s *session) online(ctx context.Context) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		d, err := s.crew.As("sam").Devices.GetDevice(ctx, &lockboxv1.GetDeviceRequest{Serial: string(s.world.Device.Serial)})
		if err != nil {
			return err
		}
		if d.Nodes[0].Online && d.Nodes[0].State == "Locked" {
			return nil
		}
	}
	return fmt.Errorf("the device does not report within %s", patience)
}

// connect makes stock clients know the way, and finds the share's folder.
func (s *session) connect(ctx context.Context, program string) error {
	erin := s.world.People["erin"]
	block, err := exec.CommandContext(ctx, program, "--home", erin.Home(), "config", "ssh", "--key", erin.KeyFile()).Output()
	if err != nil {
		return fmt.Errorf("lockbox config ssh: %w", err)
	}
	s.client = client{filepath.Join(s.dir, "ours.conf"), string(s.world.Device.Serial), "/shares/" + share + "/bench", "put"}
	if err := os.WriteFile(s.client.config, block, 0o600); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(s.world.Device.Nodes[0].Run, "disks", "disk1", "*", share, "bench"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("the unlocked disk is mounted at %q: want one place", found)
	}
	s.folder = found[0]
	return nil
}

// end stops the device, which locks, and the control plane.
func (s *session) end() error {
	if s.crew != nil {
		s.crew.Close()
	}
	s.stop()
	err := s.running.Wait()
	return errors.Join(err, s.world.RemoveRun())
}
