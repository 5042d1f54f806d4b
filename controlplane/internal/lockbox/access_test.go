package lockbox_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// tara is a tenant administrator of Contoso.
var tara = auth.Caller{Person: "tara@contoso.example", Role: auth.TenantAdmin, Tenant: orderstest.Tenant}

func (w *world) askAccess() *lockboxv1.CreateRequestRequest {
	return &lockboxv1.CreateRequestRequest{
		Action: string(approval.AccessSubscription), Subscription: orderstest.Subscription, Ticket: w.ticket, Justification: "see which orders fail",
	}
}

func (w *world) createAccess(in *lockboxv1.CreateRequestRequest) *lockboxv1.Request {
	w.t.Helper()
	r, err := w.lockbox.CreateRequest(w.t.Context(), w.as(orderstest.Erin), in)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// granted is an access to the subscription that everybody approved.
func (w *world) granted() *lockboxv1.Request {
	w.t.Helper()
	r := w.createAccess(w.askAccess())
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	return w.mustDecide(orderstest.Olga, r.Id, "approve")
}

func TestAccessIsAsked(t *testing.T) {
	w := halted(t, 1, (&clock{time.Now()}).Now)
	r := w.createAccess(w.askAccess())
	if r.Action != policy.ActionAccess || r.Scope != "subscription" || r.Serial != "" || len(r.Disks) > 0 || r.Access != "read-only" ||
		r.ResourceId != "/subscriptions/"+orderstest.Subscription || r.Status != string(lockbox.Initializing) {
		t.Errorf("raised as %v", r)
	}
	st, err := approval.ParseStatement(r.Statement.Payload)
	if err != nil || st.Action != approval.AccessSubscription || len(st.Nodes) > 0 || string(st.PolicyDigest) != w.Order().TrustPolicyDigest {
		t.Errorf("the statement is %+v: %v", st, err)
	}
	if r := w.mustDecide(orderstest.Ian, r.Id, "approve"); r.ShownStatus != "Customer Notified" {
		t.Errorf("shown as %s", r.ShownStatus)
	}
	if r := w.mustDecide(orderstest.Olga, r.Id, "approve"); r.Status != string(lockbox.Approved) || r.AccessEnd == 0 {
		t.Errorf("approved: %v", r)
	}
	for _, tt := range []struct {
		name   string
		change func(in *lockboxv1.CreateRequestRequest)
		code   protocol.Code
	}{
		{"with a device", func(in *lockboxv1.CreateRequestRequest) { in.Serial = orderstest.Serial }, protocol.CodeInvalid},
		{"with a disk", func(in *lockboxv1.CreateRequestRequest) { in.Disks = []string{"1/disk1"} }, protocol.CodeInvalid},
		{"to write", func(in *lockboxv1.CreateRequestRequest) { in.Access = "read-write" }, protocol.CodeInvalid},
		{"as break-glass", func(in *lockboxv1.CreateRequestRequest) { in.Exclusion = "break-glass" }, protocol.CodeInvalid},
		{"of everything", func(in *lockboxv1.CreateRequestRequest) { in.Scope = "service" }, protocol.CodeInvalid},
		{"of a subscription that is not", func(in *lockboxv1.CreateRequestRequest) { in.Subscription = "none" }, protocol.CodeNotFound},
		{"of another subscription", func(in *lockboxv1.CreateRequestRequest) {
			_, err := w.Orders.CreateSubscription(t.Context(), orderstest.Admin, &lockboxv1.CreateSubscriptionRequest{Id: "22222222-2222-3333-4444-555555555555", Tenant: orderstest.Tenant, SupportPlan: "Developer"})
			if err != nil {
				t.Fatal(err)
			}
			in.Subscription = "22222222-2222-3333-4444-555555555555"
		}, protocol.CodeJITBlocked},
		{"for a tenant without administrators", func(in *lockboxv1.CreateRequestRequest) { in.Scope = "tenant" }, protocol.CodeJITBlocked},
		{"an unlock of a subscription", func(in *lockboxv1.CreateRequestRequest) { in.Action = policy.ActionUnlock }, protocol.CodeInvalid},
		{"with somebody else's ticket", nil, protocol.CodeJITBlocked},
	} {
		in, who := w.askAccess(), orderstest.Erin
		if tt.change != nil {
			tt.change(in)
		} else {
			who = orderstest.Eve
		}
		if _, err := w.lockbox.CreateRequest(t.Context(), w.as(who), in); protocol.CodeOf(err) != tt.code {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.code)
		}
	}
}

// TestAccessVerbs does to an access whatever can be done to a request. No device is
// told of any of it, and a session of its engineer goes on.
func TestAccessVerbs(t *testing.T) {
	w := halted(t, 1, (&clock{time.Now()}).Now)
	session := w.session()
	for _, tt := range []struct {
		name string
		do   func(w *world) (*lockboxv1.Request, error)
		want lockbox.State
	}{
		{"denied by the provider", func(w *world) (*lockboxv1.Request, error) {
			return w.decide(orderstest.Ian, w.createAccess(w.askAccess()).Id, "deny")
		}, lockbox.Denied},
		{"denied by the customer", func(w *world) (*lockboxv1.Request, error) {
			r := w.createAccess(w.askAccess())
			w.mustDecide(orderstest.Ian, r.Id, "approve")
			return w.decide(orderstest.Olga, r.Id, "deny")
		}, lockbox.Denied},
		{"cancelled", func(w *world) (*lockboxv1.Request, error) {
			return w.lockbox.CancelRequest(w.t.Context(), w.as(orderstest.Erin), &lockboxv1.CancelRequestRequest{Id: w.createAccess(w.askAccess()).Id})
		}, lockbox.Revoked},
		{"revoked by the customer", func(w *world) (*lockboxv1.Request, error) {
			out, err := w.lockbox.RevokeRequest(w.t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: w.granted().Id})
			return out.GetRequest(), err
		}, lockbox.Revoked},
		{"done", func(w *world) (*lockboxv1.Request, error) {
			out, err := w.lockbox.RevokeRequest(w.t.Context(), w.as(orderstest.Erin), &lockboxv1.RevokeRequestRequest{Id: w.granted().Id})
			return out.GetRequest(), err
		}, lockbox.Completed},
		{"extended", func(w *world) (*lockboxv1.Request, error) {
			first := w.granted()
			r, err := w.lockbox.ExtendRequest(w.t.Context(), w.as(orderstest.Erin), &lockboxv1.ExtendRequestRequest{Id: first.Id})
			if err == nil && (r.Extends != first.Id || r.Scope != "subscription") {
				w.t.Errorf("extended by %v", r)
			}
			return r, err
		}, lockbox.Initializing},
		{"raised again", func(w *world) (*lockboxv1.Request, error) {
			out, err := w.lockbox.RevokeRequest(w.t.Context(), w.as(orderstest.Erin), &lockboxv1.RevokeRequestRequest{Id: w.granted().Id})
			if err != nil {
				return nil, err
			}
			return w.lockbox.RaiseRequestAgain(w.t.Context(), w.as(orderstest.Erin), &lockboxv1.RaiseRequestAgainRequest{Id: out.Request.Id})
		}, lockbox.Initializing},
		{"not executed", func(w *world) (*lockboxv1.Request, error) {
			r := w.granted()
			wantCode(w.t, w.execute(orderstest.Erin, r.Id), protocol.CodeAction)
			return w.get(r.Id), nil
		}, lockbox.Approved},
		{"asked why", func(w *world) (*lockboxv1.Request, error) {
			r := w.granted()
			why, err := w.lockbox.WhyRequest(w.t.Context(), w.as(orderstest.Olga), &lockboxv1.WhyRequestRequest{Id: r.Id})
			if err == nil && (why.Problem != "" || why.Now == nil) {
				w.t.Errorf("why: %v", why)
			}
			return r, err
		}, lockbox.Approved},
	} {
		r, err := tt.do(w)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if r.Status != string(tt.want) || r.LockConfirmed != 0 || r.LocksBy != 0 {
			t.Errorf("%s: %s, locked %d, by %d: want %s", tt.name, r.Status, r.LockConfirmed, r.LocksBy, tt.want)
		}
		if s, err := w.lockbox.GetSession(t.Context(), orderstest.Admin, &lockboxv1.GetSessionRequest{Id: session.Id}); err != nil || s.State != lockbox.SessionEnabled {
			t.Errorf("%s: the session is %v: %v", tt.name, s, err)
		}
	}
}

// TestAccessLeavesUnlockAlone has both kinds at once: what ends one does not end the
// other, and a list tells them apart.
func TestAccessLeavesUnlockAlone(t *testing.T) {
	w := halted(t, 1, (&clock{time.Now()}).Now)
	access, unlock := w.granted(), w.approved()
	if err := w.execute(orderstest.Erin, unlock.Id); err != nil {
		t.Fatal(err)
	}
	if _, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: access.Id}); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Unlocked)
	w.wantStatus(unlock.Id, lockbox.Approved)
	other := w.granted()
	if _, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: unlock.Id}); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Locked)
	w.wantStatus(other.Id, lockbox.Approved)
	for action, want := range map[string]int{"": 3, policy.ActionAccess: 2, policy.ActionUnlock: 1, "access-subscription": 2} {
		list, err := w.lockbox.ListRequests(t.Context(), w.as(orderstest.Olga), &lockboxv1.ListRequestsRequest{Action: action})
		if err != nil || len(list.Requests) != want {
			t.Errorf("%d requests for %q, want %d: %v", len(list.Requests), action, want, err)
		}
	}
}

func TestAccessTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := halted(t, 1, time.Now)
		stop := w.run()
		lasting, waiting := w.granted(), w.createAccess(w.askAccess())
		time.Sleep(8*time.Hour + time.Minute)
		synctest.Wait()
		w.wantStatus(lasting.Id, lockbox.Completed)
		w.wantStatus(waiting.Id, lockbox.Initializing)
		time.Sleep(4*24*time.Hour - 8*time.Hour)
		synctest.Wait()
		w.wantStatus(waiting.Id, lockbox.Expired)
		stop()
		w.deliver()
		if all := strings.Join(w.mails(string(orderstest.Olga.Person)), "\n"); !strings.Contains(all, "Access Subscription on subscription "+orderstest.Subscription) || strings.Contains(all, "locked") {
			t.Errorf("Olga was told %s", all)
		}
	})
}

func TestDamagedAccess(t *testing.T) {
	w := halted(t, 1, (&clock{time.Now()}).Now)
	r := w.createAccess(w.askAccess())
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		row, err := tx.Request(ctx, protocol.RequestID(r.Id))
		if err != nil {
			return err
		}
		row.Action = policy.ActionUnlock
		return tx.UpdateRequest(ctx, &row)
	})
	_, err := w.decide(orderstest.Ian, r.Id, "approve")
	wantCode(t, err, protocol.CodeInternal)
}

// administered is a world with an administrator of the tenant.
func administered(t testing.TB) *world {
	t.Helper()
	w := newWorld(t, 1, (&clock{time.Now()}).Now)
	w.People()
	w.Register(tara)
	w.Enable()
	w.Place()
	w.Trust(&lockboxv1.DraftTrustPolicyRequest{}, orderstest.Olga)
	w.Arrive()
	w.Enrol()
	w.Consent(orderstest.Olga)
	w.Halt()
	w.ticket = w.Ticket()
	return w
}

// TestTenantDecides has a request for the whole tenant decided by its administrators
// alone.
func TestTenantDecides(t *testing.T) {
	w := administered(t)
	in := w.askAccess()
	in.Scope = "tenant"
	r := w.createAccess(in)
	if r.Scope != "tenant" || r.ResourceId != "/tenants/"+orderstest.Tenant {
		t.Errorf("raised as %v", r)
	}
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	for _, who := range []auth.Caller{orderstest.Olga, orderstest.Adam} {
		_, err := w.decide(who, r.Id, "approve")
		wantCode(t, err, protocol.CodeForbidden)
	}
	w.wantStatus(r.Id, lockbox.Pending)
	if r = w.mustDecide(tara, r.Id, "approve"); r.Status != string(lockbox.Approved) {
		t.Errorf("it is %s", r.Status)
	}
	one := w.granted() // by an owner: a subscription is theirs
	w.wantStatus(one.Id, lockbox.Approved)
}
