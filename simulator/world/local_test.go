package world_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const day = 24 * time.Hour

// setClock is a wall clock that can be set, over a boot clock that cannot.
type setClock struct {
	off   atomic.Int64 // nanoseconds
	began time.Time
}

func (c *setClock) Now() time.Time      { return time.Now().Round(0).Add(time.Duration(c.off.Load())) }
func (c *setClock) Boot() time.Duration { return time.Since(c.began) }
func (c *setClock) set(d time.Duration) { c.off.Store(int64(d)) }

// local is a world in this process: a control plane and the bare device, whose
// clock can be set.
type local struct {
	t     *testing.T
	w     *world.World
	crew  *world.Crew
	clock *setClock
}

// newLocal starts a world. before is done to it before its agent runs.
func newLocal(t *testing.T, before ...func(*world.World)) *local {
	t.Helper()
	p, err := profile.Get("databox")
	if err != nil {
		t.Fatal(err)
	}
	l := &local{t: t, clock: &setClock{began: time.Now()}}
	l.w, err = world.New(world.Config{Dir: filepath.Join(t.TempDir(), "world"), Profile: p})
	l.must(err)
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() {
		if l.crew != nil {
			l.crew.Close()
		}
		stop()
		all.Wait()
		l.must(l.w.RemoveRun())
	})
	ready := make(chan struct{})
	all.Go(func() {
		if err := l.w.RunControlPlane(ctx, zerolog.Nop(), func() { close(ready) }); err != nil {
			t.Errorf("control plane: %v", err)
		}
	})
	<-ready
	l.crew, err = l.w.Register(t.Context())
	l.must(err)
	l.enrol()
	for _, f := range before {
		f(l.w)
	}
	all.Go(func() {
		if err := l.w.RunAgent(ctx, l.w.Other.Nodes[0], agent.Options{Log: zerolog.Nop(), Clock: l.clock}); err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	l.reports(protocol.Locked)
	return l
}

// enrol has the bare device ordered, prepared and enrolled.
func (l *local) enrol() {
	l.t.Helper()
	ctx, d := l.t.Context(), l.w.Other
	_, err := l.w.PrepareDevice(ctx, d, nil)
	l.must(err)
	prepared, err := l.w.Prepared(d)
	l.must(err)
	policy, err := l.crew.Order(ctx, d.SKU, l.w.Destinations(), prepared)
	l.must(err)
	l.must(l.crew.Ship(ctx, d.Order))
	l.must(l.crew.EnrolNode(ctx, l.w, d.Order, d.Nodes[0], policy))
}

func (l *local) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// node is the device's node as the control plane shows it.
func (l *local) node() *lockboxv1.DeviceNode {
	l.t.Helper()
	d, err := l.crew.As("sam").Devices.GetDevice(l.t.Context(), &lockboxv1.GetDeviceRequest{Serial: string(l.w.Other.Serial)})
	l.must(err)
	return d.Nodes[0]
}

// reports waits until the node has reported a state.
func (l *local) reports(want protocol.LockState) *lockboxv1.DeviceNode {
	l.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		n := l.node()
		if n.Online && n.State == string(want) {
			return n
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("the node reports %q (online: %t), not %q", n.State, n.Online, want)
		}
	}
}

// approved raises a request and has it approved by everybody.
func (l *local) approved() *lockboxv1.Request {
	l.t.Helper()
	ctx := l.t.Context()
	ticket, err := l.crew.As("olga").Tickets.FileTicket(ctx, &lockboxv1.FileTicketRequest{
		Order: string(l.w.Other.Order), Title: "it has halted",
	})
	l.must(err)
	_, err = l.crew.As("sam").Tickets.AssignTicket(ctx, &lockboxv1.AssignTicketRequest{Id: ticket.Id, Engineer: string(l.w.People["erin"].Name)})
	l.must(err)
	r, err := l.crew.Request(ctx, l.w.Other.Serial, ticket.Id)
	l.must(err)
	for _, short := range []string{"ivan", "olga"} {
		yes, err := l.crew.Approval(ctx, short, r.Id)
		l.must(err)
		_, err = l.crew.As(short).Requests.Decide(ctx, &lockboxv1.DecideRequest{Id: r.Id, Envelope: yes})
		l.must(err)
	}
	return l.request(r.Id)
}

func (l *local) request(id string) *lockboxv1.Request {
	l.t.Helper()
	r, err := l.crew.As("olga").Requests.GetRequest(l.t.Context(), &lockboxv1.GetRequestRequest{Id: id})
	l.must(err)
	return r
}

// execute executes a request to its end.
func (l *local) execute(id string) error {
	return l.crew.Execute(l.t.Context(), id)
}

// Setting the device's wall clock by a day, either way, opens nothing while a
// request is approved and moves no window; while the device is unlocked it moves
// no lease: set forward it locks, and the approval is not spent.
func TestWallClockSetByADay(t *testing.T) {
	l := newLocal(t)
	r := l.approved()
	windowUnmoved := func(when string) {
		t.Helper()
		now := l.request(r.Id)
		if now.Status != "Approved" || now.AccessStart != r.AccessStart || now.AccessEnd != r.AccessEnd {
			t.Errorf("%s: the request is %s from %d to %d, was %s from %d to %d", when, now.Status, now.AccessStart, now.AccessEnd, r.Status, r.AccessStart, r.AccessEnd)
		}
	}
	for _, off := range []time.Duration{day, -day} {
		l.clock.set(off)
		if err := l.execute(r.Id); protocol.CodeOf(err) != protocol.CodeClock {
			t.Errorf("with the clock off by %s: %v, want %s", off, err, protocol.CodeClock)
		}
		windowUnmoved(fmt.Sprintf("approved, off by %s", off))
	}
	l.clock.set(0)
	if err := l.execute(r.Id); err != nil {
		t.Fatalf("the control, with the clock right: %v", err)
	}
	if end := l.reports(protocol.Unlocked).LeaseEnd; end != r.AccessEnd {
		t.Errorf("the lease ends at %d, the window at %d", end, r.AccessEnd)
	}

	l.clock.set(-day)
	time.Sleep(time.Second) // the lock looks at its clocks many times in that
	if err := l.execute(r.Id); protocol.CodeOf(err) != protocol.CodeBusy {
		t.Errorf("while it is unlocked: %v, want %s", err, protocol.CodeBusy)
	}
	if n := l.reports(protocol.Unlocked); n.LeaseEnd != r.AccessEnd {
		t.Errorf("with the clock set back the lease ends at %d, want %d", n.LeaseEnd, r.AccessEnd)
	}

	l.clock.set(day)
	if n := l.reports(protocol.Locked); n.LastRelockReason != "clock-set" {
		t.Errorf("with the clock set forward it locked because of %q", n.LastRelockReason)
	}
	windowUnmoved("unlocked and set forward")
	l.clock.set(0)
	if err := l.execute(r.Id); err != nil {
		t.Fatalf("with the clock right again: %v", err)
	}
	if end := l.reports(protocol.Unlocked).LeaseEnd; end != r.AccessEnd {
		t.Errorf("the second lease ends at %d, the window at %d", end, r.AccessEnd)
	}
}

// stranger makes a certificate for a node, by an authority, over a new key.
func stranger(t *testing.T, a *certs.Authorities, id protocol.NodeID) *certs.Source {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return certify(t, a, id, key)
}

// certify makes a certificate for a node, by an authority, over a key.
func certify(t *testing.T, a *certs.Authorities, id protocol.NodeID, key ed25519.PrivateKey) *certs.Source {
	t.Helper()
	csr, err := certs.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.IssueDevice(csr, id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	source, err := certs.NewSource(key, chain, nil, a.Now)
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// nodeKey is the node's own key, taken from its state directory.
func (l *local) nodeKey() ed25519.PrivateKey {
	l.t.Helper()
	data, err := os.ReadFile(filepath.Join(l.w.Other.Nodes[0].StateDir(), "node.key"))
	l.must(err)
	key, err := certs.DecodeKey(data)
	l.must(err)
	return key
}

// dial connects to the device port as the node of a certificate and returns the
// connection, which the server may refuse only at the first read.
func (l *local) dial(source *certs.Source, root *certs.Authorities) (*tls.Conn, error) {
	cfg := certs.DeviceDialer(source, root.Roots().Servers, "localhost")
	cfg.NextProtos = []string{tunnel.ALPNControl}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: cfg}
	conn, err := dialer.DialContext(l.t.Context(), "tcp", l.w.Tunnel)
	if err != nil {
		return nil, err
	}
	l.t.Cleanup(func() { conn.Close() })
	return conn.(*tls.Conn), nil
}

// admitted reports whether the server keeps a connection.
func admitted(conn *tls.Conn, err error) bool {
	if err != nil {
		return false
	}
	conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	_, err = conn.Read(make([]byte, 1))
	return err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err)
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// The real device port lets nobody in whose certificate is expired, of another
// authority or revoked, and takes no harm from them, nor from peers that flood
// it or say nothing: a device that behaves is unlocked and locked as ever.
func TestStrangersAtTheDevicePort(t *testing.T) {
	l := newLocal(t)
	own, created, err := certs.Open(filepath.Join(l.w.DataDir(), "authority"))
	l.must(err)
	if created {
		t.Fatal("the control plane's authorities are not where this test looks")
	}
	id := l.w.Other.Nodes[0].ID
	l.reports(protocol.Locked) // the control: with its own key and certificate the node is in
	if admitted(l.dial(stranger(t, own, id), own)) {
		t.Error("a certificate of our own authority for another key than the node enrolled with was admitted")
	}
	if admitted(l.dial(stranger(t, own, protocol.NodeID{Serial: "DBX0777", Node: 1}), own)) {
		t.Error("a certificate for a serial that nobody enrolled was admitted")
	}

	foreign, _, err := certs.Open(filepath.Join(t.TempDir(), "authority"))
	l.must(err)
	if admitted(l.dial(stranger(t, foreign, id), own)) {
		t.Error("a certificate of another authority was admitted")
	}
	past, _, err := certs.Open(filepath.Join(l.w.DataDir(), "authority"))
	l.must(err)
	past.Now = func() time.Time { return time.Now().Add(-2 * time.Hour) }
	if admitted(l.dial(certify(t, past, id, l.nodeKey()), own)) {
		t.Error("an expired certificate was admitted")
	}

	l.flood(own)
	r := l.approved()
	if err := l.execute(r.Id); err != nil {
		t.Fatalf("under load: %v", err)
	}
	l.reports(protocol.Unlocked)
	began := time.Now()
	resp, err := l.crew.As("olga").Requests.RevokeRequest(t.Context(), &lockboxv1.RevokeRequestRequest{Id: r.Id, Reason: "enough"})
	l.must(err)
	if took := time.Since(began); took > 2*time.Second || !resp.Relocked[0].Confirmed {
		t.Errorf("revoked and relocked in %s under load: %v", took, resp.Relocked)
	}

	_, err = l.crew.As("admin").Devices.RevokeDevice(t.Context(), &lockboxv1.RevokeDeviceRequest{Serial: string(l.w.Other.Serial), Node: 1, Reason: "stolen"})
	l.must(err)
	time.Sleep(time.Second) // in which it dials again several times
	if n := l.node(); n.Online || !n.Revoked {
		t.Errorf("a revoked device is online: %t (revoked: %t)", n.Online, n.Revoked)
	}
}

// flood has many peers misbehave at the device port until the test ends: silent
// ones, ones that talk nonsense, ones that drip bytes, and one with a good
// certificate that sends junk as fast as it can, again and again.
func (l *local) flood(own *certs.Authorities) {
	l.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	l.t.Cleanup(func() { stop(); all.Wait() })
	bad := func(pause time.Duration, first string) {
		for ctx.Err() == nil {
			conn, err := net.DialTimeout("tcp", l.w.Tunnel, time.Second)
			if err != nil {
				continue
			}
			end := context.AfterFunc(ctx, func() { conn.Close() })
			io.WriteString(conn, first)
			for {
				if _, err := io.WriteString(conn, "\x16"); err != nil {
					break
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
			end()
			conn.Close()
		}
	}
	for range 100 {
		all.Go(func() { bad(time.Hour, "") })
	}
	for range 20 {
		all.Go(func() { bad(100*time.Millisecond, "\x16\x03\x01") })
		all.Go(func() { bad(50*time.Millisecond, "GET / HTTP/1.1\r\n\r\n") })
	}
	junk := stranger(l.t, own, protocol.NodeID{Serial: "DBX0666", Node: 1})
	cfg := certs.DeviceDialer(junk, own.Roots().Servers, "localhost")
	cfg.NextProtos = []string{tunnel.ALPNControl}
	all.Go(func() {
		for ctx.Err() == nil {
			conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", l.w.Tunnel)
			if err != nil {
				continue
			}
			end := context.AfterFunc(ctx, func() { conn.Close() })
			for err == nil {
				_, err = conn.Write(make([]byte, 16<<10))
			}
			end()
			conn.Close()
		}
	})
	time.Sleep(300 * time.Millisecond) // let them begin
}
