package orders_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// The customer's third approver, their recovery key, which lies in a safe, and
// the one after it.
var (
	oscar   = auth.Caller{Person: "oscar@contoso.example", Role: auth.Owner, Tenant: orderstest.Tenant}
	safe    = auth.Caller{Person: "safe@contoso.example"}
	newSafe = auth.Caller{Person: "new-safe@contoso.example"}
)

// trust is a world whose device trusts two of Olga, Adam and Oscar.
type trust struct {
	*orderstest.World
	t *testing.T
}

func newTrust(t *testing.T, nodes int) *trust {
	t.Helper()
	w := &trust{newWorld(t, nodes), t}
	w.People()
	w.Register(oscar)
	w.Enable()
	w.Place()
	w.Trust(w.policy(2, safe, orderstest.Olga, orderstest.Adam, oscar), orderstest.Olga, oscar)
	w.Arrive()
	w.Enrol()
	return w
}

// policy asks for a number of these people; recovery is the recovery key's, or
// nobody's.
func (w *trust) policy(threshold int32, recovery auth.Caller, people ...auth.Caller) *lockboxv1.DraftTrustPolicyRequest {
	in := &lockboxv1.DraftTrustPolicyRequest{Order: orderstest.Order, CustomerGroups: []*lockboxv1.PolicyGroup{{Name: "owners", Threshold: threshold}}}
	for _, who := range people {
		in.CustomerGroups[0].People = append(in.CustomerGroups[0].People, string(who.Person))
	}
	if recovery.Person == "" {
		in.NoRecovery = true
	} else {
		in.RecoveryKey = keys{}.Line(recovery.Person)
	}
	return in
}

// sign drafts a policy and has these people sign it, one after the other.
func (w *trust) sign(in *lockboxv1.DraftTrustPolicyRequest, signers ...auth.Caller) (*lockboxv1.Document, error) {
	w.t.Helper()
	doc, err := w.Orders.DraftTrustPolicy(w.t.Context(), orderstest.Olga, in)
	if err != nil {
		return nil, err
	}
	var out *lockboxv1.Document
	for _, who := range signers {
		out, err = w.submit(w.Sign(who, doc))
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (w *trust) submit(envelope []byte) (*lockboxv1.Document, error) {
	return w.Orders.SubmitTrustPolicy(w.t.Context(), orderstest.Olga, &lockboxv1.SubmitTrustPolicyRequest{Order: orderstest.Order, Envelope: envelope})
}

// wantVersion fails unless that version is in force, and on every node.
func (w *trust) wantVersion(version int64) {
	w.t.Helper()
	if got := w.Order().TrustPolicyVersion; got != version {
		w.t.Errorf("version %d is in force, want %d", got, version)
	}
	for _, n := range w.Nodes {
		if got := n.Policy().Document().Version; got != version {
			w.t.Errorf("node %s has version %d, want %d", n.ID, got, version)
		}
	}
}

// accepts reports whether the device takes the signature of these people for a
// consent: what it takes from then on.
func (w *trust) accepts(signers ...auth.Caller) error {
	w.t.Helper()
	doc, err := w.Orders.DraftConsent(w.t.Context(), orderstest.Olga, &lockboxv1.DraftConsentRequest{Order: orderstest.Order})
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.Nodes[0].Policy().AuthorizeCopy(approval.CopyRequest{Consent: w.SignAll(doc, signers...), Now: w.Now()})
	return err
}

// Signatures come one after the other, each at its own desk. Whose are missing is
// said, and nothing is in force before all are there.
func TestSignaturesAreGathered(t *testing.T) {
	w := newTrust(t, 1)
	in := w.policy(2, safe, orderstest.Olga, orderstest.Adam, oscar)
	doc, err := w.Orders.DraftTrustPolicy(t.Context(), orderstest.Olga, in)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time changes nothing
		got, err := w.submit(w.Sign(orderstest.Adam, doc))
		if err != nil || !strings.Contains(got.Missing, "1 of the 2") || !slices.Equal(got.Signers, []string{string(orderstest.Adam.Person)}) {
			t.Fatalf("%v, %v", got, err)
		}
	}
	w.wantVersion(1)
	for name, envelope := range map[string][]byte{
		"a stranger's": w.Sign(orderstest.Mallory, doc), "the provider's": w.Sign(orderstest.Ian, doc),
		"one for another key": w.Keys.Sign(t, orderstest.Mallory.Person, w.KeyID(orderstest.Olga), doc),
	} {
		if _, err := w.submit(envelope); err == nil {
			t.Errorf("%s signature was kept", name)
		}
	}
	list, err := w.Orders.ListPendingDocuments(t.Context(), oscar, &lockboxv1.ListPendingDocumentsRequest{Order: orderstest.Order})
	if err != nil || len(list.Documents) != 1 || list.Documents[0].Digest != doc.Digest || list.Documents[0].Missing == "" || list.Documents[0].Kind != "trust-policy" {
		t.Fatalf("%v, %v", list, err)
	}
	_, err = w.Orders.ListPendingDocuments(t.Context(), orderstest.Mallory, &lockboxv1.ListPendingDocumentsRequest{Order: orderstest.Order})
	wantCode(t, err, protocol.CodeNotFound)
	if _, err := w.submit(w.Sign(oscar, list.Documents[0])); err != nil {
		t.Fatal(err)
	}
	w.wantVersion(2)
	list, err = w.Orders.ListPendingDocuments(t.Context(), oscar, &lockboxv1.ListPendingDocumentsRequest{Order: orderstest.Order})
	if err != nil || len(list.Documents) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if n := len(w.Records(auditlog.OpCoSign)); n != 2 {
		t.Errorf("%d records of a signature that completed nothing", n)
	}
	if got, err := w.sign(w.policy(2, safe, orderstest.Olga, orderstest.Adam), oscar); err != nil || got.Missing == "" {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := w.sign(w.policy(2, safe, orderstest.Olga, oscar), oscar, orderstest.Olga); err != nil {
		t.Fatal(err)
	}
	list, _ = w.Orders.ListPendingDocuments(t.Context(), oscar, &lockboxv1.ListPendingDocumentsRequest{Order: orderstest.Order})
	if len(list.Documents) != 0 {
		t.Errorf("a draft under the policy before still waits: %v", list.Documents)
	}
}

// A consent is gathered likewise.
func TestAConsentIsGathered(t *testing.T) {
	w := newTrust(t, 1)
	doc, err := w.Orders.DraftConsent(t.Context(), orderstest.Olga, &lockboxv1.DraftConsentRequest{Order: orderstest.Order})
	if err != nil {
		t.Fatal(err)
	}
	for i, who := range []auth.Caller{orderstest.Adam, oscar} {
		got, err := w.Orders.SubmitConsent(t.Context(), who, &lockboxv1.SubmitConsentRequest{Order: orderstest.Order, Envelope: w.Sign(who, doc)})
		if err != nil || (got.Missing == "") != (i == 1) {
			t.Fatalf("%v, %v", got, err)
		}
		if in := w.Order().Consent != ""; in != (i == 1) {
			t.Errorf("in force after signature %d: %v", i+1, in)
		}
	}
	if err := w.Orders.StartJob(t.Context(), orderstest.Staff, &lockboxv1.StartJobRequest{Order: orderstest.Order}, silent); err != nil {
		t.Fatal(err)
	}
}

// What a key signed that was removed since does not count for a consent.
func TestARemovedKeySignsNoConsent(t *testing.T) {
	w := newTrust(t, 1)
	doc, err := w.Orders.DraftConsent(t.Context(), orderstest.Olga, &lockboxv1.DraftConsentRequest{Order: orderstest.Order})
	if err != nil {
		t.Fatal(err)
	}
	submit := func(who auth.Caller) (*lockboxv1.Document, error) {
		return w.Orders.SubmitConsent(t.Context(), who, &lockboxv1.SubmitConsentRequest{Order: orderstest.Order, Envelope: w.Sign(who, doc)})
	}
	if got, err := submit(orderstest.Adam); err != nil || got.Missing == "" {
		t.Fatalf("%v, %v", got, err)
	}
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		fingerprint, err := approval.SSHFingerprint(keys{}.Line(orderstest.Adam.Person))
		if err != nil {
			return err
		}
		return tx.DeletePersonKey(ctx, orderstest.Adam.Person, fingerprint)
	})
	if got, err := submit(oscar); err != nil || got.Missing == "" || w.Order().Consent != "" {
		t.Errorf("%v, %v: adam's key counts still", got, err)
	}
	_, err = submit(orderstest.Adam)
	wantCode(t, err, protocol.CodeSignerUnknown)
	if _, err = submit(orderstest.Olga); err != nil || w.Order().Consent == "" {
		t.Errorf("two with their keys: %v, in force: %v", err, w.Order().Consent != "")
	}
}

// Nobody pushes out what another has begun to sign.
func TestPendingDocumentsAreTheirSubmitters(t *testing.T) {
	w := newTrust(t, 1)
	draft := func() *lockboxv1.Document {
		doc, err := w.Orders.DraftConsent(t.Context(), orderstest.Olga, &lockboxv1.DraftConsentRequest{Order: orderstest.Order})
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	submit := func(who auth.Caller, doc *lockboxv1.Document) *lockboxv1.Document {
		got, err := w.Orders.SubmitConsent(t.Context(), who, &lockboxv1.SubmitConsentRequest{Order: orderstest.Order, Envelope: w.Sign(who, doc)})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := draft()
	submit(oscar, first)
	for range 20 {
		submit(orderstest.Adam, draft())
	}
	list, err := w.Orders.ListPendingDocuments(t.Context(), oscar, &lockboxv1.ListPendingDocumentsRequest{Order: orderstest.Order})
	if err != nil || len(list.Documents) > 10 {
		t.Errorf("%d documents wait, %v", len(list.GetDocuments()), err)
	}
	if got := submit(orderstest.Olga, first); got.Missing != "" {
		t.Errorf("oscar's signature was pushed out: %s", got.Missing)
	}
}

// No loss locks the customer out that can be helped: each has its way, tried here
// through the service and the device.
func TestNoLossLocksTheCustomerOut(t *testing.T) {
	t.Run("one approver of many loses their key", func(t *testing.T) {
		w := newTrust(t, 1)
		if _, err := w.sign(w.policy(2, safe, orderstest.Olga, oscar), orderstest.Olga, oscar); err != nil {
			t.Fatal(err)
		}
		w.wantVersion(2)
		wantCode(t, w.accepts(orderstest.Adam, oscar), protocol.CodeSignerUnknown)
		wantCode(t, w.accepts(orderstest.Olga, oscar), "")
	})
	t.Run("an approver has another key", func(t *testing.T) {
		w := newTrust(t, 1)
		spare := protocol.Person("spare of adam@contoso.example")
		storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
			fingerprint, err := approval.SSHFingerprint(keys{}.Line(spare))
			if err != nil {
				return err
			}
			if err := tx.DeletePersonKey(ctx, orderstest.Adam.Person, w.KeyID(orderstest.Adam)); err != nil {
				return err
			}
			return tx.InsertPersonKey(ctx, &store.PersonKey{
				Fingerprint: fingerprint, Tenant: orderstest.Tenant, Person: orderstest.Adam.Person, PublicKey: keys{}.Line(spare), Created: w.Now(),
			})
		})
		if _, err := w.sign(w.policy(2, safe, orderstest.Olga, orderstest.Adam, oscar), orderstest.Olga, oscar); err != nil {
			t.Fatal(err)
		}
		wantCode(t, w.accepts(orderstest.Adam, oscar), protocol.CodeSignerUnknown)
		wantCode(t, w.accepts(auth.Caller{Person: spare}, oscar), "")
	})
	t.Run("too few keys are left: the recovery key", func(t *testing.T) {
		w := newTrust(t, 1)
		if got, err := w.sign(w.policy(1, safe, oscar), oscar); err != nil || got.Missing == "" {
			t.Fatalf("%v, %v", got, err)
		}
		w.wantVersion(1)
		if _, err := w.sign(w.policy(1, safe, oscar), safe); err != nil {
			t.Fatal(err)
		}
		w.wantVersion(2)
		wantCode(t, w.accepts(oscar), "")
		if n := len(w.Records(auditlog.OpRecoverTrustPolicy)); n != 1 {
			t.Errorf("%d records of the recovery", n)
		}
	})
	t.Run("the recovery key is lost: the customers name another", func(t *testing.T) {
		w := newTrust(t, 1)
		in := func(key auth.Caller) *lockboxv1.DraftTrustPolicyRequest {
			return w.policy(2, key, orderstest.Olga, orderstest.Adam, oscar)
		}
		_, err := w.sign(in(newSafe), safe) // whoever found it cannot keep it
		wantCode(t, err, protocol.CodePolicyDigest)
		if _, err := w.sign(in(newSafe), orderstest.Olga, oscar); err != nil {
			t.Fatal(err)
		}
		_, err = w.sign(in(newSafe), safe)
		wantCode(t, err, protocol.CodeSignerUnknown)
		if _, err := w.sign(w.policy(1, newSafe, oscar), newSafe); err != nil {
			t.Fatal(err)
		}
		w.wantVersion(3)
	})
	t.Run("a policy is replaced before its device enrols", func(t *testing.T) {
		w := newTrust(t, 1)
		n := w.Nodes[0]
		if _, err := w.sign(w.policy(2, safe, orderstest.Olga, oscar), orderstest.Olga, oscar); err != nil {
			t.Fatal(err)
		}
		// The device was prepared with version 1, and enrols again.
		storetest.Exec(t, w.Store, `UPDATE nodes SET key_fingerprint = ''`)
		first, err := w.Orders.GetTrustPolicy(t.Context(), orderstest.Olga, &lockboxv1.GetTrustPolicyRequest{Order: orderstest.Order})
		if err != nil || len(first.Earlier) != 1 {
			t.Fatalf("%v, %v", first, err)
		}
		one, err := approval.VerifyPolicyV1(first.Earlier[0])
		if err != nil {
			t.Fatal(err)
		}
		enrol := w.EnrolRequest(n, w.Token(n))
		enrol.TrustPolicyDigest = string(one.Digest())
		if _, err := w.Orders.Enrol(t.Context(), enrol); err != nil {
			t.Fatal(err)
		}
	})
	// All keys lost, the recovery key too: nothing, by design. Everybody else
	// together cannot make the device trust anybody.
	t.Run("all is lost", func(t *testing.T) {
		w := newTrust(t, 1)
		for _, who := range []auth.Caller{orderstest.Staff, orderstest.Admin, orderstest.Ian, orderstest.Erin, orderstest.Mallory} {
			doc, err := w.Orders.DraftTrustPolicy(t.Context(), orderstest.Olga, w.policy(1, safe, oscar))
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.submit(w.Sign(who, doc))
			wantCode(t, err, protocol.CodeSignerUnknown)
			_, err = w.Nodes[0].UpdateTrustPolicy(t.Context(), &devicev1.UpdateTrustPolicyRequest{Policy: w.Sign(who, doc)})
			wantCode(t, err, protocol.CodeSignerUnknown)
		}
		w.wantVersion(1)
	})
}

// A policy that locks the customer out is refused before anybody signs it.
func TestAPolicyThatLocksOutIsRefused(t *testing.T) {
	w := newTrust(t, 1)
	refused := func(in *lockboxv1.DraftTrustPolicyRequest, code protocol.Code, signers ...auth.Caller) {
		t.Helper()
		_, err := w.sign(in, signers...)
		wantCode(t, err, code)
	}
	refused(w.policy(3, safe, orderstest.Olga, oscar), protocol.CodeInvalid)
	unsaid := w.policy(2, safe, orderstest.Olga, oscar)
	unsaid.RecoveryKey, unsaid.NoRecovery = keys{}.Line(safe.Person), true
	refused(unsaid, protocol.CodeInvalid)
	approvers := w.policy(2, safe, orderstest.Olga, oscar)
	approvers.RecoveryKey = keys{}.Line(oscar.Person)
	refused(approvers, protocol.CodeInvalid)

	// Oscar is removed between draft and signature: one person is not two.
	doc, err := w.Orders.DraftTrustPolicy(t.Context(), orderstest.Olga, w.policy(2, safe, orderstest.Olga, oscar))
	if err != nil {
		t.Fatal(err)
	}
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		p, err := tx.Person(ctx, oscar.Person)
		if err != nil {
			return err
		}
		p.Removed = w.Now()
		return errors.Join(tx.DeletePersonKeys(ctx, oscar.Person), tx.UpdatePerson(ctx, &p))
	})
	_, err = w.submit(w.SignAll(doc, orderstest.Olga, orderstest.Adam))
	wantCode(t, err, protocol.CodeConflict)
	if err == nil || !strings.Contains(err.Error(), "only 1 of its people") {
		t.Errorf("the reason is not said: %v", err)
	}
	// No recovery key, said so: that is the customer's to decide.
	if _, err := w.sign(w.policy(1, auth.Caller{}, orderstest.Olga, orderstest.Adam), orderstest.Olga, orderstest.Adam); err != nil {
		t.Error(err)
	}
	first := newWorld(t, 1)
	first.People()
	first.Enable()
	first.Place()
	_, err = first.Orders.DraftTrustPolicy(t.Context(), orderstest.Olga, &lockboxv1.DraftTrustPolicyRequest{Order: orderstest.Order})
	wantCode(t, err, protocol.CodeInvalid)
	if err == nil || !strings.Contains(err.Error(), "recoveryKey is missing") {
		t.Errorf("the reason is not said: %v", err)
	}
}

// delivery is the state of each node's policy.
func (w *trust) delivery() []string {
	w.t.Helper()
	resp, err := w.Orders.GetPolicyDelivery(w.t.Context(), orderstest.Olga, &lockboxv1.GetPolicyDeliveryRequest{Order: orderstest.Order})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, n := range resp.Nodes {
		out = append(out, n.State)
	}
	return out
}

func (w *trust) wantDelivery(want ...string) {
	w.t.Helper()
	if got := w.delivery(); !slices.Equal(got, want) {
		w.t.Errorf("the nodes' policies are %v, want %v", got, want)
	}
}

// eventually waits for something that happens beside the test.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// A policy reaches the nodes that are online at once, and the others when they
// are back, however many versions they have missed.
func TestAPolicyReachesNodesThatWereAway(t *testing.T) {
	w := newTrust(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Orders.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}()
	w.wantDelivery("installed", "installed")
	away := w.Nodes[1]
	away.SetOffline(true)
	for range 2 {
		if _, err := w.sign(w.policy(2, safe, orderstest.Olga, orderstest.Adam, oscar), orderstest.Olga, oscar); err != nil {
			t.Fatal(err)
		}
	}
	w.wantDelivery("installed", "offline")
	if got := w.Nodes[0].Policy().Document().Version; got != 3 {
		t.Errorf("the node that was there has version %d", got)
	}
	away.SetOffline(false)
	w.Heartbeat()
	eventually(t, "the node that was away has version 3", func() bool { return away.Policy().Document().Version == 3 })
	eventually(t, "that is noted", func() bool { return slices.Equal(w.delivery(), []string{"installed", "installed"}) })

	// One that refuses is shown, and tried again.
	away.Break("update")
	if _, err := w.sign(w.policy(2, safe, orderstest.Olga, orderstest.Adam, oscar), orderstest.Olga, oscar); err != nil {
		t.Fatal(err)
	}
	w.wantDelivery("installed", "refused")
	away.Break("")
	eventually(t, "the node that refused has version 4", func() bool { return away.Policy().Document().Version == 4 })
}

// Older, equal and unsigned policies are refused by the device, whoever sends them.
func TestADeviceTakesSuccessorsOnly(t *testing.T) {
	w := newTrust(t, 1)
	one, err := w.Orders.GetTrustPolicy(t.Context(), orderstest.Olga, &lockboxv1.GetTrustPolicyRequest{Order: orderstest.Order})
	if err != nil {
		t.Fatal(err)
	}
	two, err := w.sign(w.policy(2, safe, orderstest.Olga, oscar), orderstest.Olga, oscar)
	if err != nil {
		t.Fatal(err)
	}
	unsigned, err := w.Orders.DraftTrustPolicy(t.Context(), orderstest.Olga, w.policy(1, safe, orderstest.Olga))
	if err != nil {
		t.Fatal(err)
	}
	byService := approval.Envelope{PayloadType: approval.KindPolicy, Payload: unsigned.Payload}
	if err := byService.SignEd25519(w.Service); err != nil {
		t.Fatal(err)
	}
	signed, err := byService.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		envelope []byte
		code     protocol.Code
	}{
		"older": {one.Envelope, protocol.CodePolicyDigest}, "equal": {two.Envelope, protocol.CodePolicyDigest},
		"signed by one of two":   {w.Sign(orderstest.Olga, unsigned), protocol.CodeDecisionMissing},
		"signed by the service":  {signed, protocol.CodeSignerUnknown},
		"signed by who was left": {w.SignAll(unsigned, orderstest.Adam, orderstest.Olga), protocol.CodeSignerUnknown},
	} {
		_, err := w.Nodes[0].UpdateTrustPolicy(t.Context(), &devicev1.UpdateTrustPolicyRequest{Policy: c.envelope})
		if protocol.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	w.wantVersion(2)
}
