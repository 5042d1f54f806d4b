package lockbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// remove removes somebody the way the whole control plane does.
func (w *world) remove(who auth.Caller) {
	w.t.Helper()
	people := auth.New(auth.Config{Store: w.Store, Audit: w.Audit, Authority: w.Authority, EndPerson: w.lockbox.EndPerson})
	_, err := people.RemovePerson(w.t.Context(), orderstest.Admin, &lockboxv1.RemovePersonRequest{Name: string(who.Person)})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wantSession(id, want string) {
	w.t.Helper()
	got, err := w.lockbox.GetSession(context.Background(), orderstest.Admin, &lockboxv1.GetSessionRequest{Id: id})
	if err != nil || got.State != want {
		w.t.Errorf("the session is %v, %v, want %s", got.GetState(), err, want)
	}
}

func TestRemovingAnEngineerEndsWhatTheyOpened(t *testing.T) {
	w := halted(t, 1, time.Now)
	s := w.session()
	r := w.approved()
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Unlocked)
	w.remove(orderstest.Eve) // the control: somebody else's removal
	w.wantNodes(protocol.Unlocked)
	w.wantSession(s.Id, lockbox.SessionEnabled)

	w.remove(orderstest.Erin)
	w.wantNodes(protocol.Locked)
	w.wantStatus(r.Id, lockbox.Revoked)
	w.wantSession(s.Id, lockbox.SessionDisabled)
	if open := w.Nodes[0].Sessions(); len(open) != 0 {
		t.Errorf("the node still has sessions %v", open)
	}
	wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
}

func TestRemovingAnEngineerEndsTheirOpenRequests(t *testing.T) {
	w := halted(t, 1, time.Now)
	waiting := w.create()
	approved := w.approved()
	w.remove(orderstest.Erin)
	w.wantStatus(waiting.Id, lockbox.Revoked)
	w.wantStatus(approved.Id, lockbox.Revoked)
	_, err := w.decide(orderstest.Ian, waiting.Id, "approve")
	wantCode(t, err, protocol.CodeConflict)
}

// A device that is away when its engineer is removed locks when it is back.
func TestARemovalReachesADeviceThatWasAway(t *testing.T) {
	c := &clock{time.Now()}
	w := halted(t, 1, c.Now)
	s := w.session()
	r := w.approved()
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Fatal(err)
	}
	w.Nodes[0].SetOffline(true)
	w.remove(orderstest.Erin)
	w.wantNodes(protocol.Unlocked)
	w.wantStatus(r.Id, lockbox.Revoked)
	w.wantSession(s.Id, lockbox.SessionDisabled)
	w.Nodes[0].SetOffline(false)
	c.advance(time.Minute)
	defer w.run()()
	for range 100 {
		if w.Nodes[0].State() == protocol.Locked && len(w.Nodes[0].Sessions()) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("the node is %s with sessions %v", w.Nodes[0].State(), w.Nodes[0].Sessions())
}

func TestRemovingAnApproverLeavesTheirDecisions(t *testing.T) {
	w := halted(t, 1, time.Now)
	r := w.approved()
	w.remove(orderstest.Olga)
	w.wantStatus(r.Id, lockbox.Approved)
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Error(err)
	}
}
