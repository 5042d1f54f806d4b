package lockbox_test

import (
	"slices"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// An approver's kill ends the session, locks the device, and spends all that the
// engineer was approved for on it.
func TestKillSession(t *testing.T) {
	w := halted(t, 1, time.Now)
	ctx := t.Context()
	executed, approved, waiting := w.approved(), w.approved(), w.create()
	s := w.session()
	if err := w.execute(orderstest.Erin, executed.Id); err != nil {
		t.Fatal(err)
	}
	kill := &lockboxv1.KillSessionRequest{Session: s.Id, Reason: "not what was agreed"}
	_, err := w.lockbox.KillSession(ctx, w.as(orderstest.Mallory), kill)
	wantCode(t, err, protocol.CodeNotFound)
	_, err = w.lockbox.KillSession(ctx, w.as(orderstest.Erin), kill)
	wantCode(t, err, protocol.CodeForbidden)
	_, err = w.lockbox.KillSession(ctx, w.as(orderstest.Ian), kill)
	wantCode(t, err, protocol.CodeForbidden)
	w.wantNodes(protocol.Unlocked)

	resp, err := w.lockbox.KillSession(ctx, w.as(orderstest.Olga), kill)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Session.State != lockbox.SessionKilled || len(resp.Nodes) == 0 || !resp.Nodes[0].Confirmed {
		t.Errorf("got %v", resp)
	}
	w.wantNodes(protocol.Locked)
	w.wantStatus(executed.Id, lockbox.Revoked)
	w.wantStatus(approved.Id, lockbox.Revoked)
	w.wantStatus(waiting.Id, lockbox.Initializing)
	n := w.Nodes[0]
	if slices.Contains(n.Sessions(), s.Id) || !n.Spent(n.Locks()[0].SubjectDigest) || n.Locks()[0].Reason != "session-killed" {
		t.Errorf("the node has sessions %v, and was told %v", n.Sessions(), n.Locks())
	}
	wantCode(t, w.execute(orderstest.Erin, approved.Id), protocol.CodeNotApproved)
	rec := w.Records(auditlog.OpKillSession)
	if len(rec) != 1 || rec[0].Caller != string(orderstest.Olga.Person) || rec[0].Properties["reason"] != kill.Reason {
		t.Errorf("recorded %v", rec)
	}
	_, err = w.lockbox.KillSession(ctx, w.as(orderstest.Olga), kill)
	wantCode(t, err, protocol.CodeConflict)
}

// A session without an access is killed all the same; a node that does not answer
// has its bytes cut here, and is told again.
func TestKillSessionOfANodeThatIsAway(t *testing.T) {
	var cut []protocol.SessionID
	w := halted(t, 1, time.Now, func(c *lockbox.Config) {
		c.SessionEnded = func(id protocol.SessionID) { cut = append(cut, id) }
	})
	s := w.session()
	w.Nodes[0].SetOffline(true)
	resp, err := w.lockbox.KillSession(t.Context(), w.as(orderstest.Adam), &lockboxv1.KillSessionRequest{Session: s.Id})
	if err != nil {
		t.Fatal(err)
	}
	if n := resp.Nodes; len(n) != 1 || n[0].Confirmed || n[0].LocksBy != s.Expires {
		t.Errorf("got %v", n)
	}
	if !slices.Equal(cut, []protocol.SessionID{protocol.SessionID(s.Id)}) {
		t.Errorf("cut %v", cut)
	}
	again := w.session
	w.Nodes[0].SetOffline(false)
	resp, err = w.lockbox.KillSession(t.Context(), w.as(orderstest.Adam), &lockboxv1.KillSessionRequest{Session: again().Id})
	if err != nil {
		t.Fatal(err)
	}
	if n := resp.Nodes; len(n) != 1 || !n[0].Confirmed || n[0].ConfirmedAt == 0 || n[0].State != string(protocol.Locked) {
		t.Errorf("got %v", n)
	}
	if len(cut) != 1 {
		t.Errorf("cut although the node confirmed: %v", cut)
	}
}
