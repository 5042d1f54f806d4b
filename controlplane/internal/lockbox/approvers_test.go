package lockbox_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// More people of both sides, and the customer's recovery key, which is in a safe.
var (
	oscar = auth.Caller{Person: "oscar@contoso.example", Role: auth.Owner, Tenant: orderstest.Tenant}
	sara  = auth.Caller{Person: "sara@contoso.example", Role: auth.Approver, Tenant: orderstest.Tenant}
	ida   = auth.Caller{Person: "ida@provider.example", Role: auth.InternalApprover}
	safe  = auth.Caller{Person: "safe@contoso.example"}
)

// strictPolicy asks for two of three owners and one of security, has a recovery
// key, and lets two of the provider in for these reasons.
func strictPolicy(exclusions ...string) *lockboxv1.DraftTrustPolicyRequest {
	in := &lockboxv1.DraftTrustPolicyRequest{
		CustomerGroups: []*lockboxv1.PolicyGroup{
			{Name: "owners", Threshold: 2, People: []string{string(orderstest.Olga.Person), string(oscar.Person), string(orderstest.Adam.Person)}},
			{Name: "security", Threshold: 1, People: []string{string(sara.Person)}},
		},
		RecoveryKey: keys{}.Line(safe.Person),
	}
	for _, x := range exclusions {
		in.Exclusions = append(in.Exclusions, &lockboxv1.PolicyExclusion{Kind: x, MaxDurationSeconds: 3600})
	}
	return in
}

// strict is a world under such a policy, in which the story has come to the
// ticket.
func strict(t *testing.T, now func() time.Time, exclusions ...string) *world {
	t.Helper()
	w := newWorld(t, 1, now)
	w.People()
	w.Register(oscar, sara, ida)
	w.Enable()
	w.Place()
	w.Trust(strictPolicy(exclusions...), orderstest.Olga, oscar, sara)
	w.Arrive()
	w.Enrol()
	w.Consent(orderstest.Olga, oscar, sara)
	w.Halt()
	w.ticket = w.Ticket()
	return w
}

// Two of the owners and one of security: the request is not approved before, and
// the device opens.
func TestEveryGroupHasToAgree(t *testing.T) {
	w := strict(t, time.Now)
	r := w.create()
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.mustDecide(orderstest.Olga, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Approving)
	w.mustDecide(sara, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Approving)
	wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
	_, err := w.decide(orderstest.Olga, r.Id, "approve")
	wantCode(t, err, protocol.CodeConflict)
	w.mustDecide(oscar, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Approved)
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Unlocked)
}

// Who decides held the role when the request was made, and holds it still, with
// the key that the trust policy names.
func TestApproversAreThoseOfTheRequestsDay(t *testing.T) {
	w := strict(t, time.Now)
	late := auth.Caller{Person: "lara@contoso.example", Role: auth.Owner, Tenant: orderstest.Tenant}
	r := w.create()
	w.Register(late)
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	_, err := w.decide(late, r.Id, "approve")
	wantCode(t, err, protocol.CodeForbidden)
	promoted := orderstest.Adam
	promoted.Role = auth.Owner
	_, err = w.decide(promoted, r.Id, "approve")
	wantCode(t, err, protocol.CodeForbidden)

	doc, err := w.lockbox.DraftDecision(t.Context(), w.as(sara), &lockboxv1.DraftDecisionRequest{Id: r.Id, Verdict: "approve"})
	if err != nil {
		t.Fatal(err)
	}
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		return tx.DeletePersonKey(ctx, sara.Person, w.KeyID(sara))
	})
	in := &lockboxv1.DecideRequest{Id: r.Id, Envelope: w.Sign(sara, doc)}
	_, err = w.lockbox.Decide(t.Context(), w.as(sara), in)
	wantCode(t, err, protocol.CodeSignerUnknown)
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		return tx.InsertPersonKey(ctx, &store.PersonKey{
			Fingerprint: w.KeyID(sara), Tenant: orderstest.Tenant, Person: sara.Person, PublicKey: keys{}.Line(sara.Person), Created: w.Now(),
		})
	})
	if _, err = w.lockbox.Decide(t.Context(), w.as(sara), in); err != nil {
		t.Errorf("the control: %v", err)
	}
}

// successor has a new version signed by these, or by the recovery key.
func (w *world) successor(in *lockboxv1.DraftTrustPolicyRequest, signers ...auth.Caller) (*lockboxv1.Document, error) {
	w.t.Helper()
	in.Order = orderstest.Order
	doc, err := w.Orders.DraftTrustPolicy(w.t.Context(), orderstest.Olga, in)
	if err != nil {
		return nil, err
	}
	return w.Orders.SubmitTrustPolicy(w.t.Context(), orderstest.Olga, &lockboxv1.SubmitTrustPolicyRequest{
		Order: orderstest.Order, Envelope: w.SignAll(doc, signers...),
	})
}

// A request that waits is void under another trust policy, and so is an approval
// that was not used; they are raised again with one command.
func TestAnotherTrustPolicyVoidsWhatWaits(t *testing.T) {
	w := strict(t, time.Now)
	waiting, unused := w.create(), w.create()
	for _, who := range []auth.Caller{orderstest.Ian, orderstest.Olga, oscar, sara} {
		w.mustDecide(who, unused.Id, "approve")
	}
	w.mustDecide(orderstest.Ian, waiting.Id, "approve")
	w.mustDecide(orderstest.Olga, waiting.Id, "approve")
	if _, err := w.successor(strictPolicy(), orderstest.Olga, oscar, sara); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{waiting.Id, unused.Id} {
		w.wantStatus(id, lockbox.Revoked)
		if r := w.get(id); !strings.Contains(r.ShownStatus, "trust policy was replaced") || r.CloseReason != "policy-replaced" {
			t.Errorf("shown as %q, %q", r.ShownStatus, r.CloseReason)
		}
		_, err := w.decide(sara, id, "approve")
		wantCode(t, err, protocol.CodeConflict)
	}
	again, err := w.lockbox.RaiseRequestAgain(t.Context(), w.as(orderstest.Erin), &lockboxv1.RaiseRequestAgainRequest{Id: waiting.Id})
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []auth.Caller{orderstest.Ian, orderstest.Olga, oscar, sara} {
		w.mustDecide(who, again.Id, "approve")
	}
	if err := w.execute(orderstest.Erin, again.Id); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Unlocked)
}

// Using the recovery key is told to everybody, and recorded as that.
func TestRecoveryIsToldToEverybody(t *testing.T) {
	w := strict(t, time.Now)
	if _, err := w.successor(strictPolicy(), safe); err != nil {
		t.Fatal(err)
	}
	if n := len(w.Records(auditlog.OpRecoverTrustPolicy)); n != 1 {
		t.Errorf("%d records of the recovery", n)
	}
	var told []string
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		words, err := tx.WordsAbout(ctx, orderstest.Order)
		for _, one := range words {
			n, err := tx.Notice(ctx, one.Notice)
			if err != nil {
				return err
			}
			if !strings.Contains(n.Text, "THE RECOVERY KEY ALONE") {
				t.Errorf("a notice does not say so: %s", n.Text)
			}
			told = append(told, one.Recipient)
		}
		return err
	})
	for _, who := range []auth.Caller{orderstest.Olga, oscar, orderstest.Adam, sara, orderstest.Ian, ida} {
		if !slices.Contains(told, string(who.Person)) {
			t.Errorf("%s was not told, only %v", who.Person, told)
		}
	}
	if !slices.Contains(told, "security@contoso.example") {
		t.Errorf("the alternate address was not told, only %v", told)
	}
}

// Both sides are told that a recovery password leaves custody, whoever asked.
func TestAnExportIsToldToEverybody(t *testing.T) {
	w := strict(t, time.Now)
	key := store.DiskKey{Order: orderstest.Order, Node: protocol.NodeID{Serial: "DBX0001", Node: 1}, Disk: "disk1"}
	if err := w.lockbox.TellExport(t.Context(), auth.Caller{Person: "root", Role: auth.Admin}, key, "a legal demand"); err != nil {
		t.Fatal(err)
	}
	var told []string
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		words, err := tx.WordsAbout(ctx, orderstest.Order)
		for _, one := range words {
			n, err := tx.Notice(ctx, one.Notice)
			if err != nil {
				return err
			}
			if !strings.Contains(n.Text, "a legal demand") || !strings.Contains(n.Text, "disk1") {
				t.Errorf("a notice does not say what and why: %s", n.Text)
			}
			told = append(told, one.Recipient)
		}
		return err
	})
	for _, who := range []auth.Caller{orderstest.Olga, orderstest.Adam, orderstest.Ian} {
		if !slices.Contains(told, string(who.Person)) {
			t.Errorf("%s was not told, only %v", who.Person, told)
		}
	}
}

// kindsAbout are the kinds of notices about a request that Olga was sent, in order.
func (w *world) kindsAbout(id string) []string {
	w.t.Helper()
	var kinds []string
	storetest.Tx(w.t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		words, err := tx.WordsAbout(ctx, id)
		for _, one := range words {
			if one.Recipient == string(orderstest.Olga.Person) {
				kinds = append(kinds, one.Kind)
			}
		}
		return err
	})
	return kinds
}

func (w *world) askFor(exclusion string) (*lockboxv1.Request, error) {
	w.t.Helper()
	in := w.ask()
	in.ReasonCode, in.Exclusion = "", exclusion
	return w.lockbox.CreateRequest(w.t.Context(), w.as(orderstest.Erin), in)
}

// The glass is broken by two of the provider, where the trust policy allows it;
// the customer is told first, each time, and can stop it.
func TestBreakGlass(t *testing.T) {
	w := strict(t, time.Now, "break-glass")
	r, err := w.askFor("break-glass")
	if err != nil {
		t.Fatal(err)
	}
	if r.Exclusion != "break-glass" || r.ReasonCode != "break-glass" || r.Status != "Initializing" || r.DurationSeconds != 3600 {
		t.Errorf("%+v", r)
	}
	if got := w.kindsAbout(r.Id); !slices.Equal(got, []string{"break-glass"}) {
		t.Errorf("before anybody decided, the customer was told %v", got)
	}
	_, err = w.decide(orderstest.Olga, r.Id, "approve")
	wantCode(t, err, protocol.CodeForbidden)
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Initializing)
	wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
	_, err = w.decide(orderstest.Ian, r.Id, "approve")
	wantCode(t, err, protocol.CodeConflict)
	w.mustDecide(ida, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Approved)
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Unlocked)
	if got := w.kindsAbout(r.Id); len(got) < 3 || !slices.Equal(got[:3], []string{"break-glass", "break-glass", "break-glass"}) {
		t.Errorf("the customer was told %v", got)
	}
	var order []auditlog.Operation
	for _, rec := range w.Records("") {
		if rec.CorrelationID == r.Id && (rec.Operation == auditlog.OpBreakGlass || rec.Operation == auditlog.OpUnlockIntent) {
			order = append(order, rec.Operation)
		}
	}
	glass := auditlog.OpBreakGlass
	if want := []auditlog.Operation{glass, glass, glass, auditlog.OpUnlockIntent}; !slices.Equal(order, want) {
		t.Errorf("recorded %q, want %q", order, want)
	}
	intents := w.Records(auditlog.OpUnlockIntent)
	if intents[len(intents)-1].Properties[auditlog.PropertyExclusion] != "break-glass" {
		t.Errorf("the intent keeps silent: %v", intents[len(intents)-1].Properties)
	}
	if _, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: r.Id, Reason: "stop"}); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Locked)
}

// Nobody gets in without the customer by what the trust policy does not allow,
// and nothing is opened of which the customer was not told.
func TestExclusionsAreTheTrustPolicysToAllow(t *testing.T) {
	w := strict(t, time.Now, "break-glass")
	for _, x := range []string{"external-legal-demand", "inadvertent-exposure"} {
		_, err := w.askFor(x)
		wantCode(t, err, protocol.CodeAction)
	}
	if n := len(w.Records(auditlog.OpCreateRequest)); n != 0 {
		t.Errorf("%d requests were recorded", n)
	}
	for _, x := range []string{"lockbox-off", "boredom"} {
		_, err := w.askFor(x)
		wantCode(t, err, protocol.CodeInvalid)
	}
	in := w.ask()
	in.ReasonCode = "break-glass"
	_, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	wantCode(t, err, protocol.CodeInvalid)
	in = w.ask()
	in.Exclusion, in.Access = "break-glass", "delete"
	_, err = w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	wantCode(t, err, protocol.CodeAction)

	r, err := w.askFor("break-glass")
	if err != nil {
		t.Fatal(err)
	}
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.mustDecide(ida, r.Id, "approve")
	storetest.Exec(t, w.Store, `DELETE FROM deliveries`)
	storetest.Exec(t, w.Store, `UPDATE notices SET kind = 'test'`)
	if _, err := w.Custody.Unlock(t.Context(), w.as(orderstest.Erin), custody.UnlockIn{Request: protocol.RequestID(r.Id)}, nil); protocol.CodeOf(err) != protocol.CodeNotRecorded {
		t.Errorf("opened although nobody was told: %v", err)
	}
	w.wantNodes(protocol.Locked)
	if err := w.execute(orderstest.Erin, r.Id); err != nil { // which tells them first
		t.Errorf("the control: %v", err)
	}
}

// With Lockbox off the provider gets in only if the tenant says so, and the
// customer's trust policy too.
func TestLockboxOff(t *testing.T) {
	off := func(w *world, without string) {
		t.Helper()
		in := &lockboxv1.DisableLockboxRequest{Tenant: orderstest.Tenant, WithoutLockbox: without}
		got, err := w.Orders.DisableLockbox(t.Context(), orderstest.Olga, in)
		if err != nil || got.LockboxEnabled || without != "" && got.WithoutLockbox != without {
			t.Fatalf("%v, %v", got, err)
		}
	}
	ask := func(w *world) (*lockboxv1.Request, error) {
		return w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), w.ask())
	}
	w := strict(t, time.Now, "lockbox-off")
	_, err := w.Orders.DisableLockbox(t.Context(), orderstest.Olga, &lockboxv1.DisableLockboxRequest{Tenant: orderstest.Tenant, WithoutLockbox: "anything"})
	wantCode(t, err, protocol.CodeInvalid)
	off(w, "")
	_, err = ask(w)
	wantCode(t, err, protocol.CodeNotEnabled)
	off(w, "provider-approval")
	r, err := ask(w)
	if err != nil || r.Exclusion != "lockbox-off" {
		t.Fatalf("%v, %v", r, err)
	}
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Initializing)
	w.mustDecide(ida, r.Id, "approve")
	if got := w.kindsAbout(r.Id); len(got) != 2 {
		t.Errorf("the customer was told %v", got)
	}
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Unlocked)
	if n := len(w.Records(auditlog.OpWithoutLockbox)); n != 3 {
		t.Errorf("%d records of access without Lockbox", n)
	}

	w = strict(t, time.Now)
	off(w, "provider-approval")
	_, err = ask(w)
	wantCode(t, err, protocol.CodeNotEnabled)
	if err == nil || !strings.Contains(err.Error(), "trust policy") {
		t.Errorf("the reason is not said: %v", err)
	}
}

// stands has the customer sign a standing consent.
func (w *world) stands(in *lockboxv1.DraftStandingConsentRequest, signers ...auth.Caller) string {
	w.t.Helper()
	in.Order = orderstest.Order
	doc, err := w.lockbox.DraftStandingConsent(w.t.Context(), orderstest.Olga, in)
	if err != nil {
		w.t.Fatal(err)
	}
	for i, who := range signers { // one after the other
		out, err := w.lockbox.SubmitStandingConsent(w.t.Context(), who, &lockboxv1.SubmitStandingConsentRequest{Order: orderstest.Order, Envelope: w.Sign(who, doc)})
		if err != nil || (out.Missing == "") != (i == len(signers)-1) {
			w.t.Fatalf("signature %d: %v, %v", i, out, err)
		}
	}
	st, err := approval.ParseStanding(doc.Payload)
	if err != nil {
		w.t.Fatal(err)
	}
	return st.StandingID
}

func automatic(verdict, access string) *lockboxv1.DraftStandingConsentRequest {
	in := &lockboxv1.DraftStandingConsentRequest{Verdict: verdict, ReasonCodes: []string{"copied-to-wrong-folder"}, Access: access}
	if verdict == "approve" {
		in.MaxDurationSeconds = 1800
	}
	return in
}

// A standing consent decides for the customer about what it covers, once the
// provider has looked at it, and no longer than it stands.
func TestAutoApprove(t *testing.T) {
	w := strict(t, time.Now)
	id := w.stands(automatic("approve", "read-write"), orderstest.Olga, sara, oscar)
	r := w.create()
	w.wantStatus(r.Id, lockbox.Initializing)
	r = w.mustDecide(orderstest.Ian, r.Id, "approve")
	if r.Status != "Approved" || r.StandingConsent != id || r.AccessEnd-r.AccessStart != 1800 {
		t.Fatalf("%+v", r)
	}
	if n := len(w.Records(auditlog.OpAutoApproveRequest)); n != 1 {
		t.Errorf("%d records of the automatic approval", n)
	}
	if got := w.kindsAbout(r.Id); !slices.Equal(got, []string{"request-approved"}) {
		t.Errorf("the customer was told %v", got)
	}
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Fatal(err)
	}
	w.wantNodes(protocol.Unlocked)

	// Revoked, it ends what it allowed, and allows nothing more.
	s, err := w.lockbox.RevokeStandingConsent(t.Context(), sara, &lockboxv1.RevokeStandingConsentRequest{Id: id, Reason: "enough"})
	if err != nil || s.State != "revoked" {
		t.Fatalf("%v, %v", s, err)
	}
	w.wantNodes(protocol.Locked)
	w.wantStatus(r.Id, lockbox.Revoked)
	w.Heartbeat()
	r = w.create()
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Pending)
}

func TestAutoApproveCoversWhatItSays(t *testing.T) {
	w := strict(t, time.Now)
	w.stands(automatic("approve", "read-only"), orderstest.Olga, oscar, sara)
	r := w.create() // read-write
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Pending)

	doc, err := w.lockbox.DraftStandingConsent(t.Context(), orderstest.Olga, &lockboxv1.DraftStandingConsentRequest{
		Order: orderstest.Order, Verdict: "approve", ReasonCodes: []string{"copied-to-wrong-folder"}, Access: "delete", MaxDurationSeconds: 60,
	})
	if err != nil {
		t.Fatal(err)
	}
	// The provider cannot sign one, nor can the service, nor another customer.
	for _, who := range []auth.Caller{orderstest.Ian, ida, orderstest.Mallory} {
		_, err := w.lockbox.SubmitStandingConsent(t.Context(), orderstest.Olga, &lockboxv1.SubmitStandingConsentRequest{Order: orderstest.Order, Envelope: w.Sign(who, doc)})
		wantCode(t, err, protocol.CodeSignerUnknown)
	}
	_, err = w.lockbox.SubmitStandingConsent(t.Context(), orderstest.Mallory, &lockboxv1.SubmitStandingConsentRequest{Order: orderstest.Order, Envelope: w.Sign(orderstest.Olga, doc)})
	wantCode(t, err, protocol.CodeNotFound)

	// Another trust policy voids it.
	w.stands(automatic("approve", "delete"), orderstest.Olga, oscar, sara)
	if _, err := w.successor(strictPolicy(), orderstest.Olga, oscar, sara); err != nil {
		t.Fatal(err)
	}
	list, err := w.lockbox.ListStandingConsents(t.Context(), orderstest.Olga, &lockboxv1.ListStandingConsentsRequest{Order: orderstest.Order})
	if err != nil || len(list.Consents) != 2 || list.Consents[0].State != "voided" || list.Consents[1].State != "voided" {
		t.Errorf("%v, %v", list, err)
	}
	r = w.create()
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Pending)
}

// A standing consent that denies ends a request before anybody is asked.
func TestAutoDeny(t *testing.T) {
	w := strict(t, time.Now)
	w.stands(automatic("approve", "delete"), orderstest.Olga, oscar, sara)
	id := w.stands(automatic("deny", "read-write"), orderstest.Olga, oscar, sara)
	r := w.create()
	if r.Status != "Denied" || r.StandingConsent != id {
		t.Fatalf("%+v", r)
	}
	if n := len(w.Records(auditlog.OpAutoDenyRequest)); n != 1 {
		t.Errorf("%d records of the automatic denial", n)
	}
	if got := w.kindsAbout(r.Id); !slices.Equal(got, []string{"request-denied"}) {
		t.Errorf("the customer was told %v", got)
	}
	in := w.ask()
	in.Access = "read-only"
	read, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	if err != nil || read.Status != "Initializing" {
		t.Errorf("what it does not deny: %v, %v", read, err)
	}
}

// A device that is away when a standing consent is revoked is told when it is
// back: from then on it heeds that consent from nobody.
func TestARevokedStandingConsentReachesTheDevice(t *testing.T) {
	c := &clock{time.Now()}
	w := strict(t, c.Now)
	id := w.stands(automatic("approve", "read-write"), orderstest.Olga, sara, oscar)
	w.Nodes[0].SetOffline(true)
	s, err := w.lockbox.RevokeStandingConsent(t.Context(), sara, &lockboxv1.RevokeStandingConsentRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	if w.Nodes[0].Spent(s.Document.Digest) {
		t.Fatal("the node was told while it was away")
	}
	w.Nodes[0].SetOffline(false)
	c.advance(time.Minute)
	defer w.run()()
	for range 100 {
		if w.Nodes[0].Spent(s.Document.Digest) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the device was not told when it was back")
}
