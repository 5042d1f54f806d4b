package lockbox_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func TestStoryOfARequest(t *testing.T) {
	for nodes := 1; nodes <= 2; nodes++ {
		w := halted(t, nodes, time.Now)
		r := w.create()
		if r.Status != "Initializing" || r.ShownStatus != "Awaiting internal approval" || r.Number != 1 || len(r.Disks) != 2*nodes {
			t.Fatalf("%+v", r)
		}
		if !r.Evaluation.Passed || len(r.Evaluation.Factors) != 7 {
			t.Errorf("evaluation %v", r.Evaluation)
		}
		if r.Expires-r.Created != 4*24*3600 {
			t.Errorf("it lives %d s", r.Expires-r.Created)
		}
		wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)

		r = w.mustDecide(orderstest.Ian, r.Id, "approve")
		if r.Status != "Pending" || r.ShownStatus != "Customer Notified" || !slices.Contains(r.Notified, "s…@contoso.example") {
			t.Fatalf("%+v", r)
		}
		wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)

		r = w.mustDecide(orderstest.Olga, r.Id, "approve")
		if r.Status != "Approved" || r.AccessEnd-r.AccessStart != 8*3600 || r.Executed {
			t.Fatalf("%+v", r)
		}
		w.wantNodes(protocol.Locked)
		wantCode(t, w.execute(orderstest.Eve, r.Id), protocol.CodeForbidden)
		s := w.session()
		if err := w.execute(orderstest.Erin, "1"); err != nil { // by its short number
			t.Fatal(err)
		}
		w.wantNodes(protocol.Unlocked)
		if !w.get(r.Id).Executed {
			t.Error("not marked executed")
		}
		wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeBusy)
		if !w.get(r.Id).Executed {
			t.Error("a second execution that was refused undid the first")
		}
		w.wantNodes(protocol.Unlocked)

		resp, err := w.lockbox.DisableSession(t.Context(), w.as(orderstest.Erin), &lockboxv1.DisableSessionRequest{Id: s.Id, Reason: "done"})
		if err != nil || len(resp.Relocked) != nodes || !resp.Relocked[0].Confirmed {
			t.Fatalf("%v, %v", resp, err)
		}
		w.wantNodes(protocol.Locked)
		w.wantStatus(r.Id, lockbox.Completed)
		for _, n := range w.Nodes {
			if !n.Spent(r.Statement.Digest) {
				t.Errorf("node %s would take the approval again", n.ID)
			}
		}
		wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
		for _, op := range []auditlog.Operation{
			auditlog.OpEvaluateJIT, auditlog.OpCreateRequest, auditlog.OpInternalApprove, auditlog.OpNotifyApprovers,
			auditlog.OpApproveRequest, auditlog.OpUnlockIntent, auditlog.OpExecuteRequest, auditlog.OpCompleteRequest,
			auditlog.OpEnableSession, auditlog.OpDisableSession, auditlog.OpLockVolume,
		} {
			if len(w.Records(op)) == 0 {
				t.Errorf("no record of %s", op)
			}
		}
	}
}

// Every factor blocks by itself, with all of them in the message and on record.
func TestJITBlocks(t *testing.T) {
	w := halted(t, 1, time.Now)
	ask := func(c auth.Caller, change func(*lockboxv1.CreateRequestRequest)) error {
		in := w.ask()
		change(in)
		_, err := w.lockbox.CreateRequest(t.Context(), c, in)
		return err
	}
	same := func(*lockboxv1.CreateRequestRequest) {}
	for i, test := range []struct {
		factor string
		err    error
	}{
		{"ticket-ownership", ask(w.as(orderstest.Eve), same)},
		{"permission-level", ask(w.as(orderstest.Admin), same)},
		{"isolated-identity", ask(orderstest.Erin, same)},
		{"reason-code", ask(w.as(orderstest.Erin), func(in *lockboxv1.CreateRequestRequest) { in.ReasonCode = "curious" })},
		{"duration", ask(w.as(orderstest.Erin), func(in *lockboxv1.CreateRequestRequest) { in.DurationSeconds = 9 * 3600 })},
	} {
		wantCode(t, test.err, protocol.CodeJITBlocked)
		if test.err == nil || !strings.Contains(test.err.Error(), "BLOCKED  "+test.factor) || !strings.Contains(test.err.Error(), "passed   resource-scope") {
			t.Errorf("%v does not show all factors", test.err)
		}
		records := w.Records(auditlog.OpEvaluateJIT)
		if len(records) != 5 || records[i].Result != auditlog.Refused || !strings.HasPrefix(records[i].Properties["factor."+test.factor], "blocked: ") {
			t.Fatalf("%d records of evaluations after %s", len(records), test.factor)
		}
	}
	w.Nodes[0].SetOffline(true)
	node := w.Nodes[0].Report()
	node.Status.State = string(protocol.Unlocked)
	if _, err := w.Orders.Heartbeat(t.Context(), w.Nodes[0].ID, node); err != nil {
		t.Fatal(err)
	}
	wantCode(t, ask(w.as(orderstest.Erin), same), protocol.CodeJITBlocked)
	w.Heartbeat()
	if err := ask(w.as(orderstest.Erin), same); err != nil {
		t.Errorf("the control: %v", err)
	}
	if n := len(w.Records(auditlog.OpCreateRequest)); n != 1 {
		t.Errorf("%d requests recorded, want the one that passed", n)
	}
}

func TestWithoutLockboxNobodyGetsAccess(t *testing.T) {
	w := halted(t, 1, time.Now)
	if _, err := w.Orders.DisableLockbox(t.Context(), orderstest.Olga, &lockboxv1.DisableLockboxRequest{Tenant: orderstest.Tenant}); err != nil {
		t.Fatal(err)
	}
	_, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), w.ask())
	wantCode(t, err, protocol.CodeNotEnabled)
	if n := len(w.Records(auditlog.OpEvaluateJIT)); n != 1 {
		t.Errorf("%d records of the refusal", n)
	}
	if _, err := w.Orders.EnableLockbox(t.Context(), orderstest.Olga, &lockboxv1.EnableLockboxRequest{Tenant: orderstest.Tenant}); err != nil {
		t.Fatal(err)
	}
	w.create() // the control
}

func TestEngineersCannotBeApprovers(t *testing.T) {
	w := newWorld(t, 1, time.Now)
	w.People()
	w.Enable()
	w.Place()
	// Somebody who approves for the provider cannot be in the trust policy and
	// ask: their person, or their key, counts for no approving role.
	w.Trust(&lockboxv1.DraftTrustPolicyRequest{}, orderstest.Olga)
	w.Arrive()
	w.Enrol()
	w.Consent(orderstest.Olga)
	w.Halt()
	w.ticket = w.Ticket()
	r := w.create()
	_, err := w.decide(orderstest.Erin, r.Id, "approve")
	wantCode(t, err, protocol.CodeSignerEngineer)
	st, err := approval.ParseStatement(r.Statement.Payload)
	if err != nil || st.Engineer.Person != orderstest.Erin.Person || st.Engineer.SSHKey != r.EngineerKey {
		t.Errorf("%+v, %v", st, err)
	}
	w.wantStatus(r.Id, lockbox.Initializing)
}

func TestDecisionsAreRefused(t *testing.T) {
	c := &clock{time.Now().Truncate(time.Second)}
	w := halted(t, 1, c.Now)
	r := w.create()
	ctx := t.Context()

	// The customer does not decide before the provider has.
	_, err := w.decide(orderstest.Olga, r.Id, "approve")
	wantCode(t, err, protocol.CodeConflict)
	// Neither staff nor another customer decide at all.
	_, err = w.decide(orderstest.Staff, r.Id, "approve")
	wantCode(t, err, protocol.CodeForbidden)
	_, err = w.decide(orderstest.Mallory, r.Id, "approve")
	wantCode(t, err, protocol.CodeNotFound)

	w.mustDecide(orderstest.Ian, r.Id, "approve")
	_, err = w.decide(orderstest.Ian, r.Id, "approve")
	wantCode(t, err, protocol.CodeConflict)

	good := approval.Decision{
		RequestDigest: approval.Digest(r.Statement.Digest), Role: approval.Customer, Verdict: approval.Approve,
		MaxDuration: 3600, DecidedAt: c.now.Unix(), Signer: w.KeyID(orderstest.Olga),
	}
	submit := func(as, signer auth.Caller, change func(*approval.Decision)) error {
		d := good
		change(&d)
		_, err := w.lockbox.Decide(ctx, w.as(as), &lockboxv1.DecideRequest{Id: r.Id, Envelope: w.Keys.Sign(t, signer.Person, d.Signer, document(t, d))})
		return err
	}
	same := func(*approval.Decision) {}
	olga := orderstest.Olga
	wantCode(t, submit(orderstest.Adam, olga, same), protocol.CodeForbidden)
	wantCode(t, submit(olga, orderstest.Adam, same), protocol.CodeSignatureInvalid)
	wantCode(t, submit(olga, olga, func(d *approval.Decision) { d.Role = approval.Provider }), protocol.CodeForbidden)
	wantCode(t, submit(olga, olga, func(d *approval.Decision) { d.Signer = "SHA256:unknown" }), protocol.CodeSignerUnknown)
	wantCode(t, submit(olga, olga, func(d *approval.Decision) { d.Signer = w.KeyID(orderstest.Ian) }), protocol.CodeSignerUnknown)
	wantCode(t, submit(olga, olga, func(d *approval.Decision) { d.RequestDigest = approval.DigestOf([]byte("other")) }), protocol.CodeSignatureInvalid)
	wantCode(t, submit(olga, olga, func(d *approval.Decision) { d.DecidedAt = c.now.Add(3 * time.Minute).Unix() }), protocol.CodeWindow)
	wantCode(t, submit(olga, olga, func(d *approval.Decision) { d.DecidedAt = c.now.Add(-3 * time.Minute).Unix() }), protocol.CodeWindow)
	_, err = w.lockbox.Decide(ctx, w.as(olga), &lockboxv1.DecideRequest{Id: r.Id, Envelope: []byte("junk")})
	wantCode(t, err, protocol.CodeInvalid)
	w.wantStatus(r.Id, lockbox.Pending)
	if got := w.get(r.Id); len(got.Decisions) != 1 {
		t.Errorf("%d decisions kept, want the one of the provider", len(got.Decisions))
	}
	refused := 0
	for _, rec := range w.Records(auditlog.OpApproveRequest) {
		if rec.Result == auditlog.Refused {
			refused++
		}
	}
	if refused != 7 {
		t.Errorf("%d refused approvals on record, want 7", refused)
	}

	// Exactly at its expiry a request takes no decision, a moment before it does.
	expires := time.Unix(r.Expires, 0)
	c.now = expires
	wantCode(t, submit(olga, olga, func(d *approval.Decision) { d.DecidedAt = expires.Unix() - 1 }), protocol.CodeConflict)
	c.now = expires.Add(-time.Second)
	if err := submit(olga, olga, func(d *approval.Decision) { d.DecidedAt = expires.Unix() - 1 }); err != nil {
		t.Errorf("the control: %v", err)
	}
	if got := w.get(r.Id); got.Status != "Approved" || got.AccessEnd-got.AccessStart != 3600 {
		t.Errorf("the shortest of all durations counts: %+v", got)
	}
}

func TestTwoGroupsMustBothApprove(t *testing.T) {
	w := newWorld(t, 1, time.Now)
	w.People()
	w.Enable()
	w.Place()
	w.Trust(twoGroups(), orderstest.Olga, orderstest.Adam)
	w.Arrive()
	w.Enrol()
	w.Consent(orderstest.Olga, orderstest.Adam)
	w.Halt()
	w.ticket = w.Ticket()
	r := w.create()
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.mustDecide(orderstest.Olga, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Approving)
	wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
	_, err := w.decide(orderstest.Olga, r.Id, "approve")
	if err == nil {
		t.Error("one person counted twice")
	}
	w.mustDecide(orderstest.Adam, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Approved)
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Error(err)
	}

	// Any one of them can deny.
	other := w.newRequestAfterRelock(r.Id)
	w.mustDecide(orderstest.Ian, other, "approve")
	w.mustDecide(orderstest.Olga, other, "approve")
	w.mustDecide(orderstest.Adam, other, "deny")
	w.wantStatus(other, lockbox.Denied)
}

// newRequestAfterRelock ends a request and raises another.
func (w *world) newRequestAfterRelock(id string) string {
	w.t.Helper()
	if _, err := w.lockbox.RevokeRequest(w.t.Context(), w.as(orderstest.Erin), &lockboxv1.RevokeRequestRequest{Id: id, Reason: "done"}); err != nil {
		w.t.Fatal(err)
	}
	w.Heartbeat()
	return w.create().Id
}

func TestDeniedStaysDenied(t *testing.T) {
	for _, by := range []auth.Caller{orderstest.Ian, orderstest.Olga} {
		w := halted(t, 1, time.Now)
		r := w.create()
		if by.Role.OfCustomer() {
			w.mustDecide(orderstest.Ian, r.Id, "approve")
		}
		w.mustDecide(by, r.Id, "deny")
		w.wantStatus(r.Id, lockbox.Denied)
		for _, who := range []auth.Caller{orderstest.Ian, orderstest.Olga, orderstest.Adam} {
			if _, err := w.decide(who, r.Id, "approve"); err == nil {
				t.Errorf("%s approved what %s had denied", who.Person, by.Person)
			}
		}
		wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
		_, err := w.lockbox.CancelRequest(t.Context(), w.as(orderstest.Erin), &lockboxv1.CancelRequestRequest{Id: r.Id})
		wantCode(t, err, protocol.CodeConflict)
		_, err = w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: r.Id})
		wantCode(t, err, protocol.CodeConflict)
		w.wantStatus(r.Id, lockbox.Denied)
		if w.Nodes[0].Opened() != 1 { // by the copy job
			t.Error("the device was opened")
		}
	}
}

func TestRevokeEndsAccess(t *testing.T) {
	w := halted(t, 2, time.Now)
	r := w.approved()
	s := w.session()
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Fatal(err)
	}
	resp, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Adam), &lockboxv1.RevokeRequestRequest{Id: r.Id, Reason: "no longer wanted"})
	if err != nil || len(resp.Relocked) != 2 || resp.Request.Status != "Revoked" {
		t.Fatalf("%v, %v", resp, err)
	}
	w.wantNodes(protocol.Locked)
	for _, n := range w.Nodes {
		last := n.Locks()[len(n.Locks())-1]
		if last.Reason != "revoked" || !last.Spend || last.SubjectDigest != r.Statement.Digest {
			t.Errorf("node %s was told %v", n.ID, last)
		}
	}
	wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
	if len(resp.Sessions) != 1 || resp.Sessions[0].Id != s.Id || resp.Sessions[0].State != lockbox.SessionDisabled {
		t.Errorf("the sessions that were closed: %v", resp.Sessions)
	}
	w.wantSession(s.Id, lockbox.SessionDisabled)
	for _, n := range w.Nodes {
		if open := n.Sessions(); len(open) != 0 {
			t.Errorf("node %s still has sessions %v", n.ID, open)
		}
	}
	if got := w.get(r.Id); got.LockConfirmed == 0 || got.LocksBy != 0 || got.LockConfirmed != resp.Relocked[0].ConfirmedAt {
		t.Errorf("locked at %d, by %d; the node said %v", got.LockConfirmed, got.LocksBy, resp.Relocked[0])
	}
}

// Custody refuses a revoked request by itself, whatever its state says.
func TestCustodyHearsOfTheEnd(t *testing.T) {
	w := halted(t, 1, time.Now)
	r := w.approved()
	if _, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Erin), &lockboxv1.RevokeRequestRequest{Id: r.Id}); err != nil {
		t.Fatal(err)
	}
	w.wantStatus(r.Id, lockbox.Completed)
	wantCode(t, w.unlock(r.Id), protocol.CodeRevoked)
}

func TestCancel(t *testing.T) {
	w := halted(t, 1, time.Now)
	r := w.create()
	cancel := &lockboxv1.CancelRequestRequest{Id: r.Id, Reason: "not needed"}
	_, err := w.lockbox.CancelRequest(t.Context(), w.as(orderstest.Eve), cancel)
	wantCode(t, err, protocol.CodeForbidden)
	got, err := w.lockbox.CancelRequest(t.Context(), w.as(orderstest.Erin), cancel)
	if err != nil || got.Status != "Revoked" || got.ShownStatus != "Cancelled" {
		t.Fatalf("%v, %v", got, err)
	}
	if n := len(w.Records(auditlog.OpCancelRequest)); n != 1 {
		t.Errorf("%d records", n)
	}
	_, err = w.decide(orderstest.Ian, r.Id, "approve")
	wantCode(t, err, protocol.CodeConflict)
	approved := w.approved()
	_, err = w.lockbox.CancelRequest(t.Context(), w.as(orderstest.Erin), &lockboxv1.CancelRequestRequest{Id: approved.Id})
	wantCode(t, err, protocol.CodeConflict)
}

// A first execution that fails leaves the request as it was, to be tried again.
func TestFailedExecutionCanBeRepeated(t *testing.T) {
	for _, step := range []string{"offline", "challenge", "unlock", "commit"} {
		w := halted(t, 2, time.Now)
		r := w.approved()
		if step == "offline" {
			w.Nodes[1].SetOffline(true)
		} else {
			w.Nodes[1].Break(step)
		}
		if err := w.execute(orderstest.Erin, r.Id); err == nil {
			t.Fatalf("%s: executed", step)
		}
		if w.Nodes[0].State() == protocol.Unlocked {
			t.Errorf("%s: one node stayed open", step)
		}
		if got := w.get(r.Id); got.Executed || got.Status != "Approved" {
			t.Errorf("%s: executed %v, %s", step, got.Executed, got.Status)
		}
		// A session that ends now leaves the approval alone.
		s := w.sessionOn(w.Nodes[0].ID.Node)
		if _, err := w.lockbox.DisableSession(t.Context(), w.as(orderstest.Erin), &lockboxv1.DisableSessionRequest{Id: s.Id}); err != nil {
			t.Fatal(err)
		}
		w.wantStatus(r.Id, lockbox.Approved)
		w.Nodes[1].SetOffline(false)
		w.Nodes[1].Break("")
		if err := w.execute(orderstest.Erin, r.Id); err != nil {
			t.Errorf("%s: the control: %v", step, err)
		}
		w.wantNodes(protocol.Unlocked)
	}
}

func TestQueues(t *testing.T) {
	w := halted(t, 1, time.Now)
	first, second := w.create(), w.create()
	w.mustDecide(orderstest.Ian, second.Id, "approve")
	numbers := func(c auth.Caller, pending bool) string {
		t.Helper()
		l, err := w.lockbox.ListRequests(t.Context(), w.as(c), &lockboxv1.ListRequestsRequest{Pending: pending, Tenant: orderstest.Tenant})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range l.Requests {
			out = append(out, fmt.Sprint(r.Number))
		}
		return strings.Join(out, " ")
	}
	for _, test := range []struct {
		who     auth.Caller
		pending bool
		want    string
	}{
		{orderstest.Ian, true, "2 1"}, {orderstest.Olga, true, "2"}, {orderstest.Olga, false, "2 1"}, {orderstest.Mallory, false, ""},
	} {
		if got := numbers(test.who, test.pending); got != test.want {
			t.Errorf("%s, pending %v: %q, want %q", test.who.Person, test.pending, got, test.want)
		}
	}
	_, err := w.lockbox.GetRequest(t.Context(), w.as(orderstest.Mallory), &lockboxv1.GetRequestRequest{Id: first.Id})
	wantCode(t, err, protocol.CodeNotFound)
	for _, name := range []string{"0", "99", "1x", "-1", "", "LockboxRequest_"} {
		if _, err := w.lockbox.GetRequest(t.Context(), orderstest.Admin, &lockboxv1.GetRequestRequest{Id: name}); protocol.CodeOf(err) != protocol.CodeNotFound {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestListsFilterAndPage(t *testing.T) {
	w := halted(t, 1, time.Now)
	for range 7 {
		w.create()
	}
	w.mustDecide(orderstest.Ian, "3", "approve")
	w.mustDecide(orderstest.Ian, "5", "approve")
	w.mustDecide(orderstest.Olga, "5", "deny")
	list := func(c auth.Caller, in *lockboxv1.ListRequestsRequest) string {
		t.Helper()
		l, err := w.lockbox.ListRequests(t.Context(), w.as(c), in)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range l.Requests {
			out = append(out, fmt.Sprint(r.Number))
		}
		if l.Next != 0 {
			out = append(out, fmt.Sprintf("then %d", l.Next))
		}
		return strings.Join(out, " ")
	}
	nobody := auth.Caller{Person: "x@y", Role: auth.Owner}
	for _, test := range []struct {
		who  auth.Caller
		in   *lockboxv1.ListRequestsRequest
		want string
	}{
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{}, "7 6 5 4 3 2 1"},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Limit: 3}, "7 6 5 then 5"},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Limit: 3, Before: 5}, "4 3 2 then 2"},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Limit: 3, Before: 2}, "1"},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Limit: 7}, "7 6 5 4 3 2 1"},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Pending: true, Limit: 2}, "7 6 then 6"},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{State: "denied"}, "5"},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{State: "Denied", Pending: true}, ""},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{State: "Pending", Pending: true}, "3"},
		{orderstest.Olga, &lockboxv1.ListRequestsRequest{Pending: true}, "3"},
		{orderstest.Olga, &lockboxv1.ListRequestsRequest{Tenant: "fabrikam"}, ""},
		{orderstest.Mallory, &lockboxv1.ListRequestsRequest{}, ""},
		{orderstest.Mallory, &lockboxv1.ListRequestsRequest{Tenant: orderstest.Tenant}, ""},
		{nobody, &lockboxv1.ListRequestsRequest{}, ""},
		{auth.Caller{}, &lockboxv1.ListRequestsRequest{}, ""},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Serial: orderstest.Serial, Ticket: w.ticket, Engineer: string(orderstest.Erin.Person), Order: orderstest.Order, Limit: 1}, "7 then 7"},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Serial: "DBX0009"}, ""},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Ticket: "SR-9"}, ""},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Engineer: string(orderstest.Eve.Person)}, ""},
		{orderstest.Ian, &lockboxv1.ListRequestsRequest{Order: "ORD-9"}, ""},
	} {
		if got := list(test.who, test.in); got != test.want {
			t.Errorf("%s lists %v: %q, want %q", test.who.Person, test.in, got, test.want)
		}
	}
	for _, in := range []*lockboxv1.ListRequestsRequest{{Limit: -1}, {Limit: 501}, {Before: -1}, {State: "Nonsense"}} {
		_, err := w.lockbox.ListRequests(t.Context(), w.as(orderstest.Ian), in)
		wantCode(t, err, protocol.CodeInvalid)
	}
}

// Everything that narrows a request is in what people sign, and shown.
func TestLeastScope(t *testing.T) {
	w := halted(t, 1, time.Now)
	in := w.ask()
	in.Access, in.Disks, in.Shares, in.DurationSeconds = "delete", []string{"1/disk2"}, []string{orderstest.Share, orderstest.Share}, 900
	r, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	if err != nil {
		t.Fatal(err)
	}
	st := scope(t, r)
	if st.Access != approval.Delete || len(st.Disks) != 1 || st.Disks[0].Disk != "disk2" || !slices.Equal(st.Shares, []string{orderstest.Share}) ||
		st.MaxDuration != 900 || st.ReasonCode != in.ReasonCode || st.Action != approval.UnlockDatabox || string(st.Ticket) != w.ticket {
		t.Errorf("the statement asks for %+v", st)
	}
	if r.Access != "delete" || !slices.Equal(r.Disks, []string{"DBX0001/1 disk2"}) || !slices.Equal(r.Shares, st.Shares) || r.DurationSeconds != 900 {
		t.Errorf("shown is %v", r)
	}
	for _, shares := range [][]string{{"contosodata_AzFile"}, {"../" + orderstest.Share}, {""}} {
		in.Shares = shares
		_, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
		wantCode(t, err, protocol.CodeInvalid)
	}
}

// What is open without a login on the device is in what people sign, and shown.
func TestProtocolWithoutLogin(t *testing.T) {
	w := halted(t, 2, time.Now)
	r, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), w.ask())
	if err != nil || len(r.Protocols) != 0 || len(scope(t, r).Protocols) != 0 {
		t.Errorf("without NFS: %v, %v", r, err)
	}
	report := w.Nodes[1].Report()
	report.Status.ShareServices = []*devicev1.ShareService{{Protocol: "smb", State: "ready"}, {Protocol: "nfs", State: "ready"}, {Protocol: "\x00"}}
	if _, err := w.Orders.Heartbeat(t.Context(), w.Nodes[1].ID, report); err != nil {
		t.Fatal(err)
	}
	if _, err := w.lockbox.CancelRequest(t.Context(), w.as(orderstest.Erin), &lockboxv1.CancelRequestRequest{Id: r.Id}); err != nil {
		t.Fatal(err)
	}
	r, err = w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), w.ask())
	if err != nil {
		t.Fatal(err)
	}
	if st := scope(t, r); !slices.Equal(st.Protocols, []approval.Protocol{approval.NFS}) || !slices.Equal(r.Protocols, []string{"nfs"}) {
		t.Errorf("with NFS on one node: the statement says %v, shown is %v", st.Protocols, r.Protocols)
	}
}

func TestSomeDisksOnly(t *testing.T) {
	w := halted(t, 2, time.Now)
	in := w.ask()
	in.Disks = []string{"1/disk1", "2/disk2"}
	r, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	if err != nil || !slices.Equal(r.Disks, []string{"DBX0001/1 disk1", "DBX0001/2 disk2"}) {
		t.Errorf("%v, %v", r, err)
	}
	for _, disks := range [][]string{{"1/disk9"}, {"disk1"}, {"1/disk1"}} { // the last names none of node 2
		in.Disks = disks
		if _, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%q: %v", disks, err)
		}
	}
}

// The copy job and support exclude each other.
func TestBusy(t *testing.T) {
	w := halted(t, 1, time.Now)
	r := w.approved()
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Fatal(err)
	}
	start := &lockboxv1.StartJobRequest{Order: orderstest.Order}
	wantCode(t, w.Orders.StartJob(t.Context(), orderstest.Staff, start, func(*lockboxv1.ProgressEvent) {}), protocol.CodeBusy)
	w.wantNodes(protocol.Unlocked)
	if o := w.Order(); o.Status != "Data copy halted" {
		t.Errorf("%+v", o)
	}
}
