package lockbox_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (w *world) extend(who auth.Caller, id string, lasts time.Duration) (*lockboxv1.Request, error) {
	return w.lockbox.ExtendRequest(w.t.Context(), w.as(who), &lockboxv1.ExtendRequestRequest{Id: id, DurationSeconds: int64(lasts / time.Second)})
}

func (w *world) again(who auth.Caller, id string) (*lockboxv1.Request, error) {
	return w.lockbox.RaiseRequestAgain(w.t.Context(), w.as(who), &lockboxv1.RaiseRequestAgainRequest{Id: id})
}

// scope is what a request asks for, and nothing of when.
func scope(t *testing.T, r *lockboxv1.Request) approval.Statement {
	t.Helper()
	st, err := approval.ParseStatement(r.Statement.Payload)
	if err != nil {
		t.Fatal(err)
	}
	st.RequestID, st.Created, st.Expires = "", 0, 0
	return st
}

// An extension is a request like any other: it grants nothing by itself, and what
// it goes on with ends when it is executed, not later than it would have.
func TestExtension(t *testing.T) {
	c := &clock{time.Now().Truncate(time.Second)}
	w := halted(t, 2, c.Now)
	in := w.ask()
	in.Access, in.Disks, in.Shares, in.DurationSeconds = "read-only", []string{"1/disk1", "2/disk2"}, []string{orderstest.Share}, 3600
	first, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.extend(orderstest.Erin, first.Id, 0)
	wantCode(t, err, protocol.CodeConflict) // nothing to go on with
	w.mustDecide(orderstest.Ian, first.Id, "approve")
	first = w.mustDecide(orderstest.Olga, first.Id, "approve")
	if err := w.execute(orderstest.Erin, first.Id); err != nil {
		t.Fatal(err)
	}
	w.Heartbeat() // it says that the disks are open

	_, err = w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	wantCode(t, err, protocol.CodeJITBlocked) // the control: a request of its own is blocked by open disks
	_, err = w.extend(orderstest.Eve, first.Id, 0)
	wantCode(t, err, protocol.CodeForbidden)
	c.advance(50 * time.Minute)
	second, err := w.extend(orderstest.Erin, first.Id, 0)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(scope(t, first), scope(t, second)); diff != "" || second.Extends != first.Id {
		t.Errorf("it extends %q with another scope:\n%s", second.Extends, diff)
	}
	_, err = w.extend(orderstest.Erin, first.Id, 0)
	wantCode(t, err, protocol.CodeConflict) // asked for already
	wantCode(t, w.execute(orderstest.Erin, second.Id), protocol.CodeNotApproved)
	w.mustDecide(orderstest.Ian, second.Id, "approve")
	second = w.mustDecide(orderstest.Olga, second.Id, "approve")
	if got := w.get(first.Id); got.AccessEnd != first.AccessEnd || got.Status != string(lockbox.Approved) {
		t.Errorf("the approval of the second changed the first: %s until %d", got.Status, got.AccessEnd)
	}
	if second.AccessEnd != c.now.Add(time.Hour).Unix() {
		t.Errorf("the second ends at %d", second.AccessEnd)
	}
	if err := w.execute(orderstest.Erin, second.Id); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Unlocked)
	if got := w.get(first.Id); got.Status != string(lockbox.Completed) || got.CloseReason != "extended" || !w.Nodes[0].Spent(first.Statement.Digest) {
		t.Errorf("the first is %s because of %q", got.Status, got.CloseReason)
	}
	w.wantStatus(second.Id, lockbox.Approved)
	wantCode(t, w.execute(orderstest.Erin, first.Id), protocol.CodeNotApproved)
}

func TestRaisedAgain(t *testing.T) {
	expired := func(w *world, c *clock) string {
		r := w.create()
		c.advance(lockbox.RequestExpiry)
		if err := w.lockbox.FireDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r.Id
	}
	withdrawn := func(w *world, _ *clock) string {
		r := w.create()
		if _, err := w.lockbox.CancelRequest(t.Context(), w.as(orderstest.Erin), &lockboxv1.CancelRequestRequest{Id: r.Id}); err != nil {
			t.Fatal(err)
		}
		return r.Id
	}
	completed := func(w *world, _ *clock) string {
		r := w.approved()
		if _, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Erin), &lockboxv1.RevokeRequestRequest{Id: r.Id}); err != nil {
			t.Fatal(err)
		}
		return r.Id
	}
	denied := func(w *world, _ *clock) string {
		r := w.create()
		w.mustDecide(orderstest.Ian, r.Id, "deny")
		return r.Id
	}
	revoked := func(w *world, _ *clock) string {
		r := w.approved()
		if _, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: r.Id}); err != nil {
			t.Fatal(err)
		}
		return r.Id
	}
	waiting := func(w *world, _ *clock) string { return w.create().Id }
	for name, test := range map[string]struct {
		end  func(*world, *clock) string
		want lockbox.State
		code protocol.Code
	}{
		"expired":   {expired, lockbox.Expired, ""},
		"withdrawn": {withdrawn, lockbox.Revoked, ""},
		"completed": {completed, lockbox.Completed, ""},
		"denied":    {denied, lockbox.Denied, protocol.CodeConflict},
		"revoked":   {revoked, lockbox.Revoked, protocol.CodeConflict},
		"waiting":   {waiting, lockbox.Initializing, protocol.CodeConflict},
	} {
		t.Run(name, func(t *testing.T) {
			c := &clock{time.Now().Truncate(time.Second)}
			w := halted(t, 1, c.Now)
			id := test.end(w, c)
			w.Heartbeat()
			w.wantStatus(id, test.want)
			got, err := w.again(orderstest.Erin, id)
			if protocol.CodeOf(err) != test.code {
				t.Fatalf("got %v, want code %q", err, test.code)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(scope(t, w.get(id)), scope(t, got)); diff != "" || got.RaisedAgain != id || got.Status != string(lockbox.Initializing) {
				t.Errorf("%s, again of %q, with another scope:\n%s", got.Status, got.RaisedAgain, diff)
			}
			_, err = w.again(orderstest.Erin, id)
			wantCode(t, err, protocol.CodeConflict) // it waits already
		})
	}
}

// replacePolicy has the customer sign another trust policy, as an order's
// service would put it in force.
func (w *world) replacePolicy(in *lockboxv1.DraftTrustPolicyRequest) {
	w.t.Helper()
	in.Order = orderstest.Order
	doc, err := w.Orders.DraftTrustPolicy(w.t.Context(), orderstest.Olga, in)
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.Orders.SubmitTrustPolicy(w.t.Context(), orderstest.Olga, &lockboxv1.SubmitTrustPolicyRequest{
		Order: orderstest.Order, Envelope: w.SignAll(doc, orderstest.Olga),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	var tell func(context.Context)
	storetest.Tx(w.t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		o, err := tx.Order(ctx, orderstest.Order)
		if err != nil {
			return err
		}
		next, err := orders.TrustPolicy(ctx, tx, o)
		if err != nil {
			return err
		}
		tell, err = w.lockbox.PolicyReplaced(ctx, tx, orderstest.Olga, o, next)
		return err
	})
	tell(w.t.Context())
}

// A policy that is replaced voids what was made under it and is not open; one
// command raises it again, under the new policy.
func TestReplacedPolicyVoidsRequests(t *testing.T) {
	w := halted(t, 1, time.Now)
	waiting, executed, approved := w.create(), w.approved(), w.approved()
	if err := w.execute(orderstest.Erin, executed.Id); err != nil {
		t.Fatal(err)
	}
	w.replacePolicy(&lockboxv1.DraftTrustPolicyRequest{MaxDurationSeconds: 3600})
	for _, id := range []string{waiting.Id, approved.Id} {
		got := w.get(id)
		if got.Status != string(lockbox.Revoked) || got.CloseReason != "policy-replaced" || !strings.HasPrefix(got.ShownStatus, "Voided") {
			t.Errorf("request %d is %s, shown as %q, because of %q", got.Number, got.Status, got.ShownStatus, got.CloseReason)
		}
		if !slices.ContainsFunc(got.History, func(l *lockboxv1.HistoryLine) bool { return strings.Contains(l.Detail, waiting.TrustPolicyDigest) }) {
			t.Errorf("its history does not say which policy was replaced: %v", got.History)
		}
	}
	if !w.Nodes[0].Spent(approved.Statement.Digest) {
		t.Error("the device would still take what was approved under the old policy")
	}
	w.wantStatus(executed.Id, lockbox.Approved) // it was opened, and goes on until its end
	w.wantNodes(protocol.Unlocked)
	if _, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Erin), &lockboxv1.RevokeRequestRequest{Id: executed.Id}); err != nil {
		t.Fatal(err)
	}
	w.Heartbeat()

	got, err := w.again(orderstest.Erin, waiting.Id)
	if err != nil {
		t.Fatal(err)
	}
	if got.TrustPolicyDigest == waiting.TrustPolicyDigest || got.DurationSeconds != 3600 {
		t.Errorf("raised again under %s, for %d s", got.TrustPolicyDigest, got.DurationSeconds)
	}
	w.mustDecide(orderstest.Ian, got.Id, "approve")
	w.mustDecide(orderstest.Olga, got.Id, "approve")
	if err := w.execute(orderstest.Erin, got.Id); err != nil {
		t.Error(err)
	}
}
