package scenario

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/simulator/netfault"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// heavy is a Heavy whose nodes reach the control plane each over a line of their
// own.
type heavy struct {
	*stage
	lines []*netfault.Proxy
}

// newHeavy plays the story until a request for a Heavy is approved.
func newHeavy(t *testing.T) *heavy {
	t.Helper()
	h := &heavy{}
	h.stage = newStage(t, world.Config{Profile: smallProfile(t, "databox-heavy"), DeadMan: shortDeadMan}, func(w *world.World) {
		ctx, stop := context.WithCancel(context.Background())
		var all sync.WaitGroup
		t.Cleanup(func() { stop(); all.Wait() })
		for _, n := range w.Device.Nodes {
			line, err := netfault.New(w.Tunnel)
			if err != nil {
				t.Fatal(err)
			}
			all.Go(func() {
				if err := line.Run(ctx); err != nil {
					t.Error(err)
				}
			})
			if err := dialsThrough(n, line); err != nil {
				t.Fatal(err)
			}
			h.lines = append(h.lines, line)
		}
	})
	h.toApproved()
	return h
}

// dialsThrough has a node's agent dial the control plane over a line.
func dialsThrough(n world.Node, line *netfault.Proxy) error {
	f, err := os.OpenFile(n.ConfigFile(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, port, _ := net.SplitHostPort(line.Addr())
	_, err = fmt.Fprintf(f, "control_plane:\n  tunnel_address: localhost:%s\n", port)
	return err
}

// The line to one node of a Heavy breaks at some byte of the unlock. Whatever
// the step: within the dead-man time both nodes are unlocked or none.
func TestHeavyIsCutAtEveryStep(t *testing.T) {
	t.Parallel()
	h := newHeavy(t)
	in, out := h.measure()
	for i, part := range []float64{0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1} {
		h.in(fmt.Sprintf("towards the node at %.0f %%", part*100), func(s *stage) {
			(&heavy{s, h.lines}).cutAt(netfault.In, int64(part*float64(in)), i%2 == 0, h.lines[1])
		})
	}
	for i, part := range []float64{0.05, 0.5, 0.8, 0.95} {
		h.in(fmt.Sprintf("towards the control plane at %.0f %%", part*100), func(s *stage) {
			(&heavy{s, h.lines}).cutAt(netfault.Out, int64(part*float64(out)), i%2 == 1, h.lines[1])
		})
	}
	h.in("both nodes, while they open", func(s *stage) {
		(&heavy{s, h.lines}).cutAt(netfault.In, in/2, true, h.lines...)
	})
	h.in("both nodes, at the commit", func(s *stage) {
		(&heavy{s, h.lines}).cutAt(netfault.Out, out*4/5, false, h.lines...)
	})
}

// measure unlocks once and returns how many bytes pass to and from node 2.
func (h *heavy) measure() (in, out int64) {
	h.do("an unlock without a fault", func(ctx context.Context) {
		line := h.lines[1]
		h.online(ctx, h.w.Device, protocol.Locked)
		in, out = line.Passed(netfault.In), line.Passed(netfault.Out)
		h.ok(ctx, "erin", "request", "execute", h.number)
		in, out = line.Passed(netfault.In)-in, line.Passed(netfault.Out)-out
		h.online(ctx, h.w.Device, protocol.Unlocked)
		h.lockAll(ctx)
	})
	return in, out
}

// lockAll has staff lock both nodes.
func (h *heavy) lockAll(ctx context.Context) {
	for _, n := range h.w.Device.Nodes {
		c := h.agent(ctx, n, "lock")
		h.hold(c.code == 0, "databox-agent lock: %s", c.err)
	}
	h.online(ctx, h.w.Device, protocol.Locked)
}

// cutAt breaks lines once so many bytes of an unlock have passed on that to node
// 2: by closing them, or by swallowing what comes.
func (h *heavy) cutAt(dir netfault.Direction, bytes int64, hole bool, lines ...*netfault.Proxy) {
	heal := func() {
		for _, line := range lines {
			line.Heal()
		}
	}
	h.do("the line to a node breaks", func(ctx context.Context) {
		h.online(ctx, h.w.Device, protocol.Locked)
		cut := make(chan struct{})
		defer heal()
		h.lines[1].After(dir, bytes, func() {
			for _, line := range lines {
				if hole {
					line.Blackhole()
				} else {
					line.Cut()
				}
			}
			close(cut)
		})
		execution := h.background(ctx, "erin", "request", "execute", h.number)
		select {
		case <-cut:
		case <-time.After(patience):
			h.fail("the unlock and its heartbeats came to less than %d bytes", bytes)
		}
		h.t.Logf("seen: %s", strings.Join(h.bothOrNone(ctx), ", "))
		heal()
		c := execution.wait()
		h.t.Logf("execute exited with %d: %s", c.code, c.err)
		h.online(ctx, h.w.Device, protocol.Locked)
		h.nothingOpen()
	})
	h.do("with the line repaired it opens", func(ctx context.Context) {
		h.opensAgain(ctx)
		h.lockAll(ctx)
	})
}

// opensAgain opens once the unlock that was cut has come to its end at the control
// plane, which locks both nodes then: before, another is refused as busy.
func (h *heavy) opensAgain(ctx context.Context) {
	h.online(ctx, h.w.Device, protocol.Locked)
	for began := time.Now(); time.Since(began) < patience; time.Sleep(100 * time.Millisecond) {
		c := h.lockbox(ctx, "erin", "request", "execute", h.number)
		if c.code == 0 {
			h.online(ctx, h.w.Device, protocol.Unlocked)
			return
		}
		h.hold(strings.Contains(c.err, "("+string(protocol.CodeBusy)+")"), "the next unlock: %s", c.err)
	}
	h.fail("an unlock that was cut is under way for %s", patience)
}

// bothOrNone watches the nodes after lines were cut, until the dead-man time is
// over and none is unlocked. In all that time they are not for longer than the
// dead-man time one unlocked and one not. It returns what it saw. A node may be
// challenged or opened for longer: nothing is shared then, and it locks when its
// own time for that is up, or when it is told.
func (h *heavy) bothOrNone(ctx context.Context) []string {
	const margin = 2 * time.Second // for the relock, and for looking
	var seen []string
	began, apart := time.Now(), time.Time{}
	for {
		states := h.states(ctx)
		if saw := strings.Join(states, "+"); !slices.Contains(seen, saw) {
			seen = append(seen, saw)
		}
		unlocked := count(states, protocol.Unlocked)
		switch {
		case unlocked != 1:
			apart = time.Time{}
		case apart.IsZero():
			apart = time.Now()
		default:
			h.hold(time.Since(apart) < shortDeadMan+margin, "the nodes are %v since %s", states, time.Since(apart))
		}
		waited := time.Since(began)
		if waited > shortDeadMan && unlocked == 0 {
			return seen
		}
		h.hold(waited < 2*shortDeadMan+margin, "%s after the cut, the nodes are %v", waited, states)
		time.Sleep(50 * time.Millisecond) // looking takes both cores, which others could use
	}
}

// states asks both nodes' agents, side by side.
func (h *heavy) states(ctx context.Context) []string {
	list := make([]string, len(h.w.Device.Nodes))
	var all sync.WaitGroup
	for i, n := range h.w.Device.Nodes {
		all.Go(func() {
			status, err := h.status(ctx, n)
			if err != nil {
				status = &devicev1.NodeStatus{State: err.Error()}
			}
			list[i] = status.State
		})
	}
	all.Wait()
	return list
}

func count(states []string, state protocol.LockState) (n int) {
	for _, s := range states {
		if s == string(state) {
			n++
		}
	}
	return n
}
