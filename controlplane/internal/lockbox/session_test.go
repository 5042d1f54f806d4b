package lockbox_test

import (
	"slices"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (w *world) sessionOn(node int) *lockboxv1.Session {
	w.t.Helper()
	s, err := w.lockbox.EnableSession(w.t.Context(), w.as(orderstest.Erin), &lockboxv1.EnableSessionRequest{
		Serial: orderstest.Serial, Node: int32(node), Ticket: w.ticket,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// unlock asks custody directly, as a control plane gone wrong could.
func (w *world) unlock(id string) error {
	_, err := w.Custody.Unlock(w.t.Context(), w.as(orderstest.Erin), custody.UnlockIn{Request: protocol.RequestID(id)}, nil)
	return err
}

func TestSessions(t *testing.T) {
	c := &clock{time.Now().Truncate(time.Second)}
	w := halted(t, 1, c.Now)
	ctx := t.Context()
	in := &lockboxv1.EnableSessionRequest{Serial: orderstest.Serial, Ticket: w.ticket}
	_, err := w.lockbox.EnableSession(ctx, w.as(orderstest.Eve), in)
	wantCode(t, err, protocol.CodeForbidden)
	_, err = w.lockbox.EnableSession(ctx, w.as(orderstest.Admin), in)
	wantCode(t, err, protocol.CodeForbidden)
	_, err = w.lockbox.EnableSession(ctx, w.as(orderstest.Erin), &lockboxv1.EnableSessionRequest{Serial: orderstest.Serial, Ticket: w.ticket, DurationSeconds: 8*3600 + 1})
	wantCode(t, err, protocol.CodeInvalid)
	_, err = w.lockbox.EnableSession(ctx, w.as(orderstest.Erin), &lockboxv1.EnableSessionRequest{Serial: orderstest.Serial, Ticket: "SR-1"})
	wantCode(t, err, protocol.CodeNotFound)
	if _, err := w.Orders.AssignTicket(ctx, orderstest.Staff, &lockboxv1.AssignTicketRequest{Id: w.ticket, Engineer: string(orderstest.Eve.Person), Escalate: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.lockbox.EnableSession(ctx, w.as(orderstest.Eve), in); err != nil {
		t.Errorf("the control, escalated: %v", err)
	}

	s := w.session()
	if s.State != "enabled" || s.Expires-s.Created != 2*3600 || !slices.Contains(w.Nodes[0].Sessions(), s.Id) {
		t.Errorf("%v", s)
	}
	_, err = w.lockbox.EnableSession(ctx, w.as(orderstest.Erin), in)
	wantCode(t, err, protocol.CodeConflict)

	cert := func(who string, key string) error {
		caller := orderstest.Erin
		if who == "eve" {
			caller = orderstest.Eve
		}
		_, err := w.lockbox.IssueCertificate(ctx, w.as(caller), &lockboxv1.IssueCertificateRequest{Session: s.Id, PublicKey: key})
		return err
	}
	own := w.Keys.Line(orderstest.Erin.Person)
	wantCode(t, cert("eve", w.Keys.Line(orderstest.Eve.Person)), protocol.CodeForbidden)
	wantCode(t, cert("eve", own), protocol.CodeForbidden)
	wantCode(t, cert("erin", w.Keys.Line(orderstest.Eve.Person)), protocol.CodeForbidden)
	wantCode(t, cert("erin", "junk"), protocol.CodeInvalid)
	resp, err := w.lockbox.IssueCertificate(ctx, w.as(orderstest.Erin), &lockboxv1.IssueCertificateRequest{Session: s.Id, PublicKey: own})
	if err != nil || resp.Principal != s.Id || resp.Expires-c.now.Unix() != int64(lockbox.CertificateTTL/time.Second) || resp.KnownHosts == "" {
		t.Errorf("%v, %v", resp, err)
	}
	known := w.Nodes[0].Sessions()
	node, err := w.lockbox.Connect(ctx, w.as(orderstest.Erin), protocol.SessionID(s.Id))
	if err != nil || node != w.Nodes[0].ID {
		t.Errorf("%v, %v", node, err)
	}
	_, err = w.lockbox.Connect(ctx, w.as(orderstest.Eve), protocol.SessionID(s.Id))
	wantCode(t, err, protocol.CodeForbidden)
	if got := w.Nodes[0].Sessions(); !slices.Equal(got, known) {
		t.Errorf("the node knew of the session and was told again: %v, before %v", got, known)
	}
	w.Nodes[0].Restart()
	if _, err := w.lockbox.Connect(ctx, w.as(orderstest.Erin), protocol.SessionID(s.Id)); err != nil {
		t.Errorf("after a restart of the node: %v", err)
	}
	if !slices.Contains(w.Nodes[0].Sessions(), s.Id) {
		t.Error("a node that restarted was not told of the session again")
	}

	disable := &lockboxv1.DisableSessionRequest{Id: s.Id, Reason: "done"}
	_, err = w.lockbox.DisableSession(ctx, w.as(orderstest.Eve), disable)
	wantCode(t, err, protocol.CodeForbidden)
	_, err = w.lockbox.DisableSession(ctx, w.as(orderstest.Mallory), disable)
	wantCode(t, err, protocol.CodeNotFound)
	if _, err := w.lockbox.DisableSession(ctx, w.as(orderstest.Erin), disable); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(w.Nodes[0].Sessions(), s.Id) {
		t.Error("the node still has the session")
	}
	wantCode(t, cert("erin", own), protocol.CodeConflict)
	_, err = w.lockbox.Connect(ctx, w.as(orderstest.Erin), protocol.SessionID(s.Id))
	wantCode(t, err, protocol.CodeConflict)
	_, err = w.lockbox.DisableSession(ctx, w.as(orderstest.Erin), disable)
	wantCode(t, err, protocol.CodeConflict)
	list, err := w.lockbox.ListSessions(ctx, w.as(orderstest.Olga), &lockboxv1.ListSessionsRequest{Serial: orderstest.Serial})
	if err != nil || len(list.Sessions) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	list, err = w.lockbox.ListSessions(ctx, w.as(orderstest.Mallory), &lockboxv1.ListSessionsRequest{})
	if err != nil || len(list.Sessions) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// A session that does not reach the node is no session, and does not end what
// the engineer does in another.
func TestSessionThatDoesNotReachTheNode(t *testing.T) {
	w := halted(t, 2, time.Now)
	r := w.approved()
	w.sessionOn(1)
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Fatal(err)
	}
	w.Nodes[1].SetOffline(true)
	_, err := w.lockbox.EnableSession(t.Context(), w.as(orderstest.Erin), &lockboxv1.EnableSessionRequest{Serial: orderstest.Serial, Node: 2, Ticket: w.ticket})
	wantCode(t, err, protocol.CodeOffline)
	list, err := w.lockbox.ListSessions(t.Context(), w.as(orderstest.Erin), &lockboxv1.ListSessionsRequest{Serial: orderstest.Serial})
	if err != nil || len(list.Sessions) != 2 || list.Sessions[1].State != "disabled" {
		t.Errorf("%v, %v", list, err)
	}
	w.wantStatus(r.Id, lockbox.Approved)
	w.wantNodes(protocol.Unlocked)
}

// A session that ends while the request still waits changes nothing.
func TestSessionEndLeavesWaitingRequestsAlone(t *testing.T) {
	w := halted(t, 1, time.Now)
	waiting, approved := w.create(), w.approved()
	s := w.session()
	if _, err := w.lockbox.DisableSession(t.Context(), w.as(orderstest.Erin), &lockboxv1.DisableSessionRequest{Id: s.Id}); err != nil {
		t.Fatal(err)
	}
	w.wantStatus(waiting.Id, lockbox.Initializing)
	w.wantStatus(approved.Id, lockbox.Approved)
	if n := len(w.Records(auditlog.OpCompleteRequest)); n != 0 {
		t.Errorf("%d requests completed", n)
	}
}
