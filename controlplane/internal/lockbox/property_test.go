package lockbox_test

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Whatever people do, in whatever order, while clocks are set, lines are cut and
// programs crash: nothing leaves a terminal state, a device is open for support
// only under a request that both sides approved, within its window, no request is
// lost, and the log verifies and holds an intent for each opening.
func TestRandomStories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := &clock{time.Now().Truncate(time.Second)}
		m := &model{c: c, ended: map[string]string{}, yes: map[string]map[auth.Role]bool{}}
		// Each story has a world of its own, in a test of its own so that the
		// world ends with it. How it failed is for rapid, which makes it shorter.
		var failed any
		t.Run("story", func(t *testing.T) {
			defer func() { failed = recover() }()
			m.world = halted(t, 1, c.Now)
			m.copied = m.Nodes[0].Opened()
			rt.Repeat(map[string]func(*rapid.T){
				"create":  m.create,
				"decide":  m.decideAny,
				"execute": m.executeAny,
				"revoke":  m.revokeAny,
				"cancel":  m.cancelAny,
				"session": m.sessionAny,
				"wait":    m.wait,
				"clock":   m.setClock,
				"cut":     m.cutOrHeal,
				"crash":   m.crash,
				"":        m.check,
			})
			m.checkLog()
		})
		if failed != nil {
			panic(failed)
		}
	})
}

type model struct {
	*world
	c      *clock
	ids    []string
	ended  map[string]string             // terminal state by request
	yes    map[string]map[auth.Role]bool // who approved what
	copied int                           // openings by the copy job
	opened int                           // openings by requests
	cut    bool                          // the device is out of reach
}

func (m *model) id(rt *rapid.T) string {
	if len(m.ids) == 0 {
		rt.Skip("no request yet")
	}
	return rapid.SampledFrom(m.ids).Draw(rt, "request")
}

func (m *model) create(rt *rapid.T) {
	if len(m.ids) > 4 {
		rt.Skip("enough requests")
	}
	m.Heartbeat()
	r, err := m.lockbox.CreateRequest(m.t.Context(), m.as(orderstest.Erin), m.ask())
	if err == nil {
		m.ids = append(m.ids, r.Id)
		m.yes[r.Id] = map[auth.Role]bool{}
	}
}

func (m *model) decideAny(rt *rapid.T) {
	id := m.id(rt)
	who := rapid.SampledFrom([]auth.Caller{orderstest.Ian, orderstest.Olga, orderstest.Adam, orderstest.Erin, orderstest.Mallory}).Draw(rt, "who")
	verdict := rapid.SampledFrom([]string{"approve", "approve", "approve", "deny"}).Draw(rt, "verdict")
	if _, err := m.decide(who, id, verdict); err == nil && verdict == "approve" {
		role := who.Role
		if role.OfCustomer() {
			role = auth.Owner
		}
		m.yes[id][role] = true
	}
}

func (m *model) executeAny(rt *rapid.T) {
	id := m.id(rt)
	if err := m.execute(orderstest.Erin, id); err != nil {
		return
	}
	m.opened++
	r := m.get(id)
	if !m.yes[id][auth.InternalApprover] || !m.yes[id][auth.Owner] {
		rt.Fatalf("executed with the approvals %v", m.yes[id])
	}
	if m.ended[id] != "" || m.c.now.Unix() >= r.AccessEnd {
		rt.Fatalf("executed while %s, at %v of %v", r.Status, m.c.now.Unix(), r.AccessEnd)
	}
}

func (m *model) revokeAny(rt *rapid.T) {
	id := m.id(rt)
	who := rapid.SampledFrom([]auth.Caller{orderstest.Olga, orderstest.Erin, orderstest.Ian}).Draw(rt, "who")
	_, err := m.lockbox.RevokeRequest(m.t.Context(), m.as(who), &lockboxv1.RevokeRequestRequest{Id: id})
	if (err == nil) == (m.ended[id] != "") {
		rt.Fatalf("revoked what was %q: %v", m.ended[id], err)
	}
}

func (m *model) cancelAny(rt *rapid.T) {
	m.lockbox.CancelRequest(m.t.Context(), m.as(orderstest.Erin), &lockboxv1.CancelRequestRequest{Id: m.id(rt)})
}

func (m *model) sessionAny(rt *rapid.T) {
	if m.cut {
		rt.Skip("no session without a device")
	}
	s, err := m.lockbox.EnableSession(m.t.Context(), m.as(orderstest.Erin), &lockboxv1.EnableSessionRequest{Serial: orderstest.Serial, Ticket: m.ticket})
	if err != nil {
		rt.Fatal(err)
	}
	if _, err := m.lockbox.DisableSession(m.t.Context(), m.as(orderstest.Erin), &lockboxv1.DisableSessionRequest{Id: s.Id}); err != nil {
		rt.Fatal(err)
	}
	if m.Nodes[0].State() != protocol.Locked {
		rt.Fatal("the device stayed open when the session ended")
	}
}

// setClock sets the control plane's clock, and the device's with it.
func (m *model) setClock(rt *rapid.T) {
	m.c.advance(rapid.SampledFrom([]time.Duration{-24 * time.Hour, -time.Minute, time.Hour, 30 * 24 * time.Hour}).Draw(rt, "by"))
}

// cutOrHeal cuts the line to the device, or heals it: it reports, and hears what
// it missed.
func (m *model) cutOrHeal(rt *rapid.T) {
	m.cut = !m.cut
	m.Nodes[0].SetOffline(m.cut)
	if m.cut {
		return
	}
	m.Heartbeat()
	if err := m.lockbox.FireDue(m.t.Context()); err != nil {
		rt.Fatal(err)
	}
}

// crash has the device or the control plane start again.
func (m *model) crash(rt *rapid.T) {
	if rapid.Bool().Draw(rt, "device") {
		m.Nodes[0].Restart()
		return
	}
	m.lockbox = lockbox.New(m.config)
	m.PolicyReplaced = m.lockbox.PolicyReplaced
}

// wait lets time pass and has what is due done.
func (m *model) wait(rt *rapid.T) {
	m.c.advance(rapid.SampledFrom([]time.Duration{time.Minute, 5 * time.Hour, 25 * time.Hour}).Draw(rt, "time"))
	if m.cut {
		m.Nodes[0].Relock() // its dead-man time is a minute
	}
	if err := m.lockbox.FireDue(m.t.Context()); err != nil {
		rt.Fatal(err)
	}
}

func (m *model) check(rt *rapid.T) {
	if m.world == nil {
		return
	}
	open := 0
	for _, id := range m.ids {
		r := m.get(id)
		if was := m.ended[id]; was != "" && was != r.Status {
			rt.Fatalf("request %d left %s for %s", r.Number, was, r.Status)
		}
		if lockbox.StateOf(r.Status).Terminal() {
			m.ended[id] = r.Status
		}
		if r.Status == string(lockbox.Approved) && r.Executed {
			open++
		}
	}
	if !m.cut && m.Nodes[0].State() == protocol.Unlocked && open == 0 {
		rt.Fatal("the device is open without an approved request")
	}
	if got := m.Nodes[0].Opened() - m.copied; got != m.opened {
		rt.Fatalf("the device was opened %d times, by %d executions", got, m.opened)
	}
}

// checkLog verifies the activity log whole, and that no opening lacks its intent.
func (m *model) checkLog() {
	m.t.Helper()
	var export bytes.Buffer
	send := func(data []byte) error { export.Write(data); return nil }
	if err := m.Audit.ExportLog(m.t.Context(), orderstest.Admin, &lockboxv1.ExportLogRequest{}, send); err != nil {
		m.t.Fatal(err)
	}
	report, err := auditlog.Verify(&export, m.Audit.VerifierKey(), nil)
	if err != nil {
		m.t.Fatal(err)
	}
	if n := report.Operations[auditlog.OpUnlockIntent]; n < int64(m.copied+m.opened) {
		m.t.Errorf("%d openings, but %d intents on record", m.copied+m.opened, n)
	}
}
