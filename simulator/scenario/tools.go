package scenario

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// controlPlane is the name of lockboxd among the processes.
const controlPlane = "lockboxd"

// patience is how long the story waits for something that takes no time.
const patience = 20 * time.Second

// lockbox runs the lockbox command as somebody.
func (s *Story) lockbox(ctx context.Context, who string, args ...string) command {
	s.out.tried("lockbox %s   (%s)", shown(args), who)
	return s.quietly(ctx, who, args...)
}

// quietly is lockbox without a word in the report.
func (s *Story) quietly(ctx context.Context, who string, args ...string) command {
	home := s.w.People[who].Home()
	c, err := run(ctx, "", filepath.Join(s.cfg.Bin, "lockbox"), append([]string{"--home", home}, args...)...)
	s.must(err)
	return c
}

// shown is a command line as a person would type it.
func shown(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if strings.ContainsAny(a, " '\"$&;|<>") {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

// ok runs the command, which must succeed, and shows what it printed.
func (s *Story) ok(ctx context.Context, who string, args ...string) string {
	c := s.lockbox(ctx, who, args...)
	s.hold(c.code == 0, "lockbox %s exited with %d: %s%s", shown(args), c.code, c.out, c.err)
	s.out.back(c.out)
	return c.out
}

// signs runs a command that signs, and shows what it showed before it did.
func (s *Story) signs(ctx context.Context, who string, args ...string) {
	c := s.lockbox(ctx, who, args...)
	s.hold(c.code == 0, "lockbox %s exited with %d: %s%s", shown(args), c.code, c.out, c.err)
	s.hold(strings.Contains(c.err, "bytes will be signed"), "the command did not show the bytes it signed")
	s.out.back(c.err + c.out)
}

// refused runs the command, which must be refused with one of the codes.
func (s *Story) refused(ctx context.Context, codes []protocol.Code, who string, args ...string) {
	c := s.lockbox(ctx, who, args...)
	s.out.back(c.err)
	s.hold(c.code == 3, "lockbox %s exited with %d, want a refusal (3): %s%s", shown(args), c.code, c.out, c.err)
	for _, code := range codes {
		if strings.Contains(c.err, "("+string(code)+")") {
			return
		}
	}
	s.fail("lockbox %s was refused, but not with one of %v: %s", shown(args), codes, c.err)
}

// ask runs the command with raw JSON output and reads it into m.
func (s *Story) ask(ctx context.Context, m proto.Message, who string, args ...string) {
	c := s.quietly(ctx, who, append([]string{"--output", "raw"}, args...)...)
	s.hold(c.code == 0, "lockbox %s exited with %d: %s", shown(args), c.code, c.err)
	s.must(protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(c.out), m))
}

// tell is ask with the command in the report. What came of it is shown by
// another command.
func (s *Story) tell(ctx context.Context, m proto.Message, who string, args ...string) {
	s.out.tried("lockbox %s   (%s)", shown(args), who)
	s.ask(ctx, m, who, args...)
}

// agent runs a databox-agent command on a node.
func (s *Story) agent(ctx context.Context, n world.Node, args ...string) command {
	s.out.tried("databox-agent --config %s %s   (datacenter staff)", filepath.Base(n.Dir)+"/agent.yaml", shown(args))
	c, err := run(ctx, "", filepath.Join(s.cfg.Bin, "databox-agent"), append([]string{"--config", n.ConfigFile()}, args...)...)
	s.must(err)
	return c
}

// status asks a node's agent how it is.
func (s *Story) status(ctx context.Context, n world.Node) (*devicev1.NodeStatus, error) {
	c, err := run(ctx, "", filepath.Join(s.cfg.Bin, "databox-agent"), "--config", n.ConfigFile(), "status", "--output", "raw")
	if err != nil {
		return nil, err
	}
	if c.code != 0 {
		return nil, errors.New(strings.TrimSpace(c.err))
	}
	m := &devicev1.NodeStatus{}
	return m, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(c.out), m)
}

// until waits for something to become true.
func (s *Story) until(ctx context.Context, what string, true func() bool) {
	deadline := time.Now().Add(patience)
	for !true() {
		s.must(ctx.Err())
		s.hold(time.Now().Before(deadline), "waited %s in vain for this: %s", patience, what)
		time.Sleep(50 * time.Millisecond)
	}
}

// agentName is the name of a node's agent among the processes.
func agentName(n world.Node) string {
	return fmt.Sprintf("agent-%s-%d", n.ID.Serial, n.ID.Node)
}

func (s *Story) startControl(ctx context.Context) {
	s.must(s.procs.start(controlPlane, "lockboxd", "--config", s.w.ControlConfig(), "serve"))
	// Its ports are open before it serves: only a handshake says that it does.
	// Whose certificate it shows is checked by everybody who then calls.
	probe := tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}
	s.until(ctx, "lockboxd answers", func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		conn, err := probe.DialContext(ctx, "tcp", s.w.API)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (s *Story) stopControl() { s.must(s.procs.end(controlPlane, syscall.SIGTERM)) }

func (s *Story) startAgent(n world.Node) {
	s.must(s.procs.start(agentName(n), "databox-agent", "--config", n.ConfigFile(), "run"))
}

// device asks the control plane about a device.
func (s *Story) device(ctx context.Context, serial protocol.DeviceSerial) *lockboxv1.Device {
	d := &lockboxv1.Device{}
	s.ask(ctx, d, "sam", "device", "show", string(serial))
	return d
}

// online waits until the control plane has all nodes of a device online and in
// a state.
func (s *Story) online(ctx context.Context, d world.Device, state protocol.LockState) {
	s.until(ctx, fmt.Sprintf("%s is online and %s", d.Serial, state), func() bool {
		shown := s.device(ctx, d.Serial)
		for _, n := range shown.Nodes {
			if !n.Online || n.State != string(state) {
				return false
			}
		}
		return len(shown.Nodes) == len(d.Nodes)
	})
}

// order asks the control plane about the order.
func (s *Story) order(ctx context.Context) *lockboxv1.Order {
	o := &lockboxv1.Order{}
	s.ask(ctx, o, "sam", "order", "show", string(s.w.Device.Order))
	return o
}

// request asks the control plane about a request.
func (s *Story) request(ctx context.Context, number string) *lockboxv1.Request {
	r := &lockboxv1.Request{}
	s.ask(ctx, r, "olga", "request", "show", number)
	return r
}

// provesLocked shows that the device is locked: what the agents say, what the
// kernel shows, and what is in the agents' memory.
func (s *Story) provesLocked(ctx context.Context) {
	for _, n := range s.w.Device.Nodes {
		s.until(ctx, n.ID.String()+" is locked", func() bool {
			status, err := s.status(ctx, n)
			return err == nil && status.State == string(protocol.Locked)
		})
		status, err := s.status(ctx, n)
		s.must(err)
		for _, d := range status.Disks {
			s.hold(d.State == "locked" && len(d.Exports)+len(d.LoopDevices)+len(d.Mounts) == 0, "%s is not locked: %v", d.Disk, d)
		}
		for _, sh := range status.Shares {
			s.hold(sh.State != "open", "share %s is open", sh.Name)
		}
		left := s.mountsOf(n)
		s.hold(len(left) == 0, "still there: %s", strings.Join(left, ", "))
		found, err := findInMemory(s.procs.pid(agentName(n)), s.secretsOf(ctx, n))
		s.must(err)
		s.hold(len(found) == 0, "in the memory of the locked agent: %s", strings.Join(found, ", "))
		s.out.held("%s is locked: %d disks locked, no share, no mount, no loop device, none of %d key values in the agent's memory",
			n.ID, len(status.Disks), len(s.secretsOf(ctx, n)))
	}
}

// mountsOf is what the kernel shows open of a node, its own daemons apart.
func (s *Story) mountsOf(n world.Node) []string {
	var left []string
	for _, l := range leftOf(n) {
		if !strings.HasPrefix(l, "process ") || strings.Contains(l, "ntfs-3g") || strings.Contains(l, "smbd") {
			left = append(left, l)
		}
	}
	return left
}

// keysInMemory shows that the search for keys does find them while unlocked.
func (s *Story) keysInMemory(ctx context.Context, n world.Node) {
	found, err := findInMemory(s.procs.pid(agentName(n)), s.secretsOf(ctx, n))
	s.must(err)
	s.hold(len(found) > 0, "the search of the agent's memory finds no key while %s is unlocked: it proves nothing", n.ID)
	s.out.held("the same search of %s's memory now finds %d key values: it does find them while unlocked", n.ID, len(found))
}

// secretFile writes a secret for a program to read.
func (s *Story) secretFile(name, value string) string {
	file := filepath.Join(s.w.Dir, name)
	s.must(os.WriteFile(file, []byte(value), 0o600))
	return file
}
