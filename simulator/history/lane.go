package history

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/fleet"
	"github.com/databox-lockbox/lockbox/simulator/netfault"
)

const (
	callTimeout = 15 * time.Second
	lookEvery   = 40 * time.Millisecond
)

// lane is one history: a device, and what the model knows of it.
type lane struct {
	*play
	name   string
	rng    *rand.Rand // of the one that acts
	serial protocol.DeviceSerial
	config string // file
	ticket string
	line   *netfault.Proxy
	cut    func()            // ends the line
	ended  map[string]string // the terminal state of a request, by its id

	mu       sync.Mutex // guards what follows
	device   *fleet.Process
	requests []*request
	asked    bool      // somebody tried to execute since the device was locked last
	cutSince time.Time // the line is cut; zero: it is whole
	ahead    time.Time // the device's clock is a day ahead since; zero: it is not
	state    protocol.LockState
}

// request is what the model knows of a request. A moment is the latest at which
// it can have been.
type request struct {
	id       string
	internal bool      // may be approved by the provider
	approved time.Time // may be approved by the customer, at the latest then; zero: cannot
	sure     bool      // the customer's approval was confirmed
	duration time.Duration
	over     time.Time // nothing may be open under it any more; zero: its window decides
}

// begin makes the device, its ticket, and starts it.
func (l *lane) begin(ctx context.Context) error {
	l.guard.RLock()
	defer l.guard.RUnlock()
	var err error
	if l.line, err = netfault.New(l.w.Tunnel); err != nil {
		return err
	}
	running, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // ends when l.cut is called
		defer close(ended)
		_ = l.line.Run(running) // what it cannot carry is a cut
	}()
	l.cut = func() { stop(); <-ended }
	cfg, err := fleet.NewDevice(ctx, l.w, l.crew, l.serial)
	if err == nil {
		l.config = filepath.Join(filepath.Dir(cfg.StateDir), "agent.yaml")
		err = os.WriteFile(l.config, []byte(agentConfig(cfg, l.line)), 0o600)
	}
	if err == nil {
		err = l.crew.Ship(ctx, fleet.OrderOf(l.serial))
	}
	if err == nil {
		l.ticket, err = l.fileTicket(ctx)
	}
	if err == nil {
		l.device, err = fleet.StartAgent(ctx, l.config)
	}
	if err != nil {
		l.cut()
	}
	return err
}

// agentConfig has a device dial through its line.
func agentConfig(cfg agent.Config, line *netfault.Proxy) string {
	_, port, _ := net.SplitHostPort(line.Addr())
	return fmt.Sprintf(`serial: %s
bare: true
state_dir: %s
run_dir: %s
disks:
  - id: %s
    image: %s
control_plane:
  tunnel_address: localhost:%s
lock:
  dead_man: %s
reconnect:
  min: 50ms
  max: 300ms
`, cfg.Serial, cfg.StateDir, cfg.RunDir, cfg.Disks[0].ID, cfg.Disks[0].Image, port, deadMan)
}

func (l *lane) fileTicket(ctx context.Context) (string, error) {
	t, err := l.crew.As("olga").Tickets.FileTicket(ctx, &lockboxv1.FileTicketRequest{Order: string(fleet.OrderOf(l.serial)), Title: "it has halted"})
	if err != nil {
		return "", err
	}
	_, err = l.crew.As("sam").Tickets.AssignTicket(ctx, &lockboxv1.AssignTicketRequest{Id: t.Id, Engineer: string(l.w.People["erin"].Name)})
	return t.Id, err
}

// end ends the device and its line.
func (l *lane) end() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.cut()
	if l.device == nil {
		return nil
	}
	return l.device.Stop()
}

// look looks at the device's lock until ctx ends.
func (l *lane) look(ctx context.Context) {
	for ctx.Err() == nil {
		l.once(ctx)
		wait(ctx, lookEvery)
	}
}

// once holds what the device does against what it may.
func (l *lane) once(ctx context.Context) {
	down, _ := l.downSince()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.device == nil {
		return
	}
	began := time.Now()
	state, err := l.device.State(ctx)
	if err != nil {
		if ctx.Err() == nil {
			l.violated("%s: the agent does not answer: %v", l.name, err)
		}
		return
	}
	before := l.state
	l.state = state
	l.play.mu.Lock()
	l.report.Looks++
	if state == protocol.Unlocked && before != protocol.Unlocked {
		l.report.Openings++
	}
	l.play.mu.Unlock()
	if state != protocol.Unlocked {
		return
	}
	if why := l.forbidden(began, down); why != "" {
		l.violated("%s: unlocked, though %s", l.name, why)
	}
}

// forbidden says why a device must not be unlocked at a moment, "" if it may.
func (l *lane) forbidden(now, down time.Time) string {
	late := func(since time.Time, within time.Duration) bool {
		return !since.IsZero() && now.Sub(since) > within+slack
	}
	switch {
	case !l.asked:
		return "nobody has executed anything since it was locked last"
	case late(l.cutSince, deadMan):
		return "its line is cut since " + l.cutSince.Format("15:04:05.000")
	case late(down, deadMan):
		return "the control plane is down since " + down.Format("15:04:05.000")
	case late(l.ahead, 0):
		return "its clock is a day ahead since " + l.ahead.Format("15:04:05.000")
	}
	why := "there is no request"
	for _, r := range l.requests {
		switch {
		case !r.internal || r.approved.IsZero():
			why = r.id + " was not approved"
		case late(r.approved, r.duration):
			why = fmt.Sprintf("the %s of %s are over, it was approved at %s", r.duration, r.id, r.approved.Format("15:04:05.000"))
		case late(r.over, 0):
			why = r.id + " ended at " + r.over.Format("15:04:05.000")
		default:
			return ""
		}
	}
	return why
}

// crash kills the agent, as a loss of power does, and starts it again.
func (l *lane) crash(ctx context.Context, after time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.device.Kill(); err != nil {
		return err
	}
	l.device, l.asked, l.state = nil, false, protocol.Locked
	wait(ctx, after)
	var err error
	l.device, err = fleet.StartAgent(ctx, l.config)
	l.ahead = time.Time{} // its clock is right again
	return err
}

// setClock sets the device's wall clock off.
func (l *lane) setClock(ctx context.Context, off time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.device.SetClock(ctx, off); err != nil {
		return err
	}
	switch {
	case off <= 0:
		l.ahead = time.Time{}
	case l.ahead.IsZero():
		l.ahead = time.Now()
	}
	return nil
}

// cutLine cuts the line, silently or not, and heals it after a while.
func (l *lane) cutLine(ctx context.Context, silently bool, after time.Duration) {
	l.mu.Lock()
	l.cutSince = time.Now()
	l.mu.Unlock()
	if silently {
		l.line.Blackhole()
	} else {
		l.line.Cut()
	}
	wait(ctx, after)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line.Heal()
	l.cutSince = time.Time{}
}

// execute executes a request to its end.
func (l *lane) execute(ctx context.Context, id string) error {
	l.mu.Lock()
	l.asked = true
	l.mu.Unlock()
	return l.crew.Execute(ctx, id)
}

func openCheckpoint(signed []byte, key string) (auditlog.Checkpoint, error) {
	v, err := note.NewVerifier(key)
	if err != nil {
		return auditlog.Checkpoint{}, err
	}
	return auditlog.OpenCheckpoint(signed, v)
}
