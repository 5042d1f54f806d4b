package custody_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	if file := os.Getenv(rotateChild); file != "" {
		rotateUntilKilled(file)
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	requestID = protocol.RequestID("LockboxRequest_1")
	consentID = protocol.ConsentID("CON-1")
	password  = "000011-000022-000033-000044-000055-000066-000077-000088"
	deadMan   = 60 * time.Second
)

var (
	engineer = auth.Caller{Person: storetest.Engineer, Role: auth.Engineer}
	admin    = auth.Caller{Person: "adam@provider.example", Role: auth.Admin}
	owner    = auth.Caller{Person: "olga@contoso.example", Role: auth.Owner, Tenant: storetest.Tenant}
	stranger = auth.Caller{Person: "frank@fabrikam.example", Role: auth.Owner, Tenant: "fabrikam"}
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// world is a control plane with one device whose approvals are all given.
type world struct {
	t         *testing.T
	store     *store.Store
	audit     *audit.Service
	custody   *custody.Service
	service   ed25519.PrivateKey
	customer  ssh.Signer
	nodes     []*fakeNode
	policy    *approval.Policy
	statement []byte
	logKey    ed25519.PrivateKey
	master    string
	client    *http.Client
}

// worlds lets fake nodes find the refs of all nodes of their device.
var worlds sync.Map

func allRefs(t *testing.T) []approval.NodeRef {
	w, _ := worlds.Load(t)
	return w.(*world).refs()
}

func (w *world) refs() []approval.NodeRef {
	var refs []approval.NodeRef
	for _, n := range w.nodes {
		refs = append(refs, n.ref())
	}
	return refs
}

// Node reaches a fake node over HTTP.
func (w *world) Node(id protocol.NodeID) (devicev1.NodeServiceClient, error) {
	for _, n := range w.nodes {
		n.mu.Lock()
		offline := n.offline
		n.mu.Unlock()
		if n.id == id && !offline {
			return devicev1.NewNodeServiceClient(rpc.NewClient(w.client, n.server.URL)), nil
		}
	}
	return nil, protocol.Errorf(protocol.CodeOffline, "node %s is not connected", id)
}

func newWorld(t *testing.T, nodes int) *world {
	t.Helper()
	w := &world{t: t, store: storetest.New(t), client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	worlds.Store(t, w)
	t.Cleanup(func() { worlds.Delete(t) })
	now := time.Now()
	storetest.Fill(t, w.store, now, nodes)
	_, w.logKey, _ = ed25519.GenerateKey(rand.Reader)
	_, w.service, _ = ed25519.GenerateKey(rand.Reader)
	_, customer, _ := ed25519.GenerateKey(rand.Reader)
	w.customer = must(ssh.NewSignerFromKey(customer))(t)
	w.audit = must(audit.New(t.Context(), audit.Config{Store: w.store, Key: w.logKey}))(t)
	w.master = filepath.Join(t.TempDir(), "master.key")
	w.custody = custody.New(custody.Config{
		Store: w.store, Audit: w.audit, Nodes: w, Keys: must(custody.OpenMasterKey(w.master, true))(t),
		Signer: w.service, DeadMan: deadMan, Logger: zerolog.Nop(),
	})
	for n := 1; n <= nodes; n++ {
		w.nodes = append(w.nodes, newFakeNode(t, protocol.NodeID{Serial: storetest.Serial, Node: n}, "disk1", "disk2"))
	}
	w.deposit(now)
	w.approve(now)
	return w
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// deposit enrols the nodes and gives their keys into custody.
func (w *world) deposit(now time.Time) {
	w.t.Helper()
	k := must(w.custody.OpenOrderKey(w.t.Context(), storetest.Order))(w.t)
	defer k.Wipe()
	storetest.Tx(w.t, w.store, func(ctx context.Context, tx *store.Tx) error {
		var in []custody.Deposit
		for _, n := range w.nodes {
			row, err := tx.Node(ctx, n.id)
			if err != nil {
				return err
			}
			row.SPKI, row.KeyFingerprint, row.Enrolled = n.spki(), string(n.ref().KeyFingerprint), now
			if err := tx.UpdateNode(ctx, &row); err != nil {
				return err
			}
			for id, key := range n.disks {
				if err := tx.InsertDisk(ctx, &store.Disk{Node: n.id, ID: id, Order: storetest.Order, VolumeGUID: "{" + string(id) + "}", Created: now}); err != nil {
					return err
				}
				in = append(in, custody.Deposit{Node: n.id, Disk: id, ExternalKey: bytes.Clone(key), RecoveryPassword: password})
			}
		}
		if err := w.custody.Deposit(ctx, tx, admin, k, in); err != nil {
			return err
		}
		for _, d := range in {
			if !bytes.Equal(d.ExternalKey, make([]byte, 32)) {
				w.t.Error("a deposited key was not wiped")
			}
		}
		return nil
	})
}

// approve makes a trust policy, a request that the customer approved, and a
// consent that the customer signed.
func (w *world) approve(now time.Time) {
	t := w.t
	t.Helper()
	key := must(approval.NewSSHKey("olga", owner.Person, string(ssh.MarshalAuthorizedKey(w.customer.PublicKey()))))(t)
	group := []approval.Group{{Name: "owners", Threshold: 1, Keys: []string{"olga"}}}
	policy := w.sign(approval.TrustPolicy{
		TenantID: storetest.Tenant, OrderID: storetest.Order, Version: 1, Keys: []approval.Key{key},
		Rules: []approval.Rule{
			{Action: approval.UnlockDatabox, CustomerGroups: group, Service: true, MaxDuration: 8 * 3600},
			{Action: approval.CopyData, CustomerGroups: group, Service: true, MaxDuration: 8 * 3600},
		},
		ServiceKeys: [][]byte{w.service.Public().(ed25519.PublicKey)}, LogKey: w.audit.VerifierKey(), NoRecovery: true,
	})
	w.policy = must(approval.VerifyPolicyV1(policy))(t)
	for _, n := range w.nodes {
		n.policy = w.policy
	}
	var disks []approval.DiskRef
	for _, n := range w.nodes {
		for _, d := range []protocol.DiskID{"disk1", "disk2"} {
			disks = append(disks, approval.DiskRef{Node: approval.NameOf(n.id), Disk: d})
		}
	}
	w.statement = must(approval.Statement{
		RequestID: requestID, Action: approval.UnlockDatabox, TenantID: storetest.Tenant, SubscriptionID: storetest.Subscription,
		OrderID: storetest.Order, Nodes: w.refs(), Disks: disks, Purpose: protocol.SupportAccess, Access: approval.ReadWrite,
		ReasonCode: "copied-to-wrong-folder", Ticket: storetest.Ticket,
		Engineer:    approval.Engineer{Person: storetest.Engineer, SSHKey: "SHA256:" + strings.Repeat("A", 43)},
		MaxDuration: 3600, PolicyDigest: w.policy.Digest(), Created: now.Unix(), Expires: now.Add(time.Hour).Unix(),
	}.Encode())(t)
	digest := approval.DigestOf(w.statement)
	decision := w.sign(approval.Decision{
		RequestDigest: digest, Role: approval.Customer, Verdict: approval.Approve, MaxDuration: 3600, DecidedAt: now.Unix(), Signer: "olga",
	})
	consent := w.sign(approval.Consent{
		ConsentID: consentID, TenantID: storetest.Tenant, SubscriptionID: storetest.Subscription, OrderID: storetest.Order,
		Nodes: w.refs(), Disks: disks, Destinations: []approval.Destination{{Account: "a", Endpoint: "file:///srv/blobs"}},
		PolicyDigest: w.policy.Digest(), Created: now.Unix(), Until: now.Add(24 * time.Hour).Unix(),
	})
	payload := must(approval.ParseEnvelope(consent))(t).Payload
	policyPayload := must(approval.ParseEnvelope(policy))(t).Payload
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
		steps := []error{
			tx.InsertTrustPolicy(ctx, &store.TrustPolicy{Order: storetest.Order, Version: 1, Digest: string(w.policy.Digest()), Payload: policyPayload, Envelope: policy}),
			tx.InsertRequest(ctx, &store.Request{
				ID: requestID, Number: 1, Status: "Approved", Tenant: storetest.Tenant, Subscription: storetest.Subscription, Order: storetest.Order,
				Serial: storetest.Serial, Engineer: storetest.Engineer, Purpose: protocol.SupportAccess, Statement: w.statement, StatementDigest: string(digest),
			}),
			tx.InsertDecision(ctx, &store.Decision{Request: requestID, Role: "customer", Person: owner.Person, Verdict: "approve", Envelope: decision}),
			tx.InsertConsent(ctx, &store.Consent{ID: consentID, Order: storetest.Order, Digest: string(approval.DigestOf(payload)), Payload: payload, Envelope: consent}),
		}
		for _, err := range steps {
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// sign is the customer's signature.
func (w *world) sign(doc approval.Document) []byte {
	w.t.Helper()
	e := must(approval.NewEnvelope(doc))(w.t)
	if err := e.SignSSH("olga", w.customer); err != nil {
		w.t.Fatal(err)
	}
	return must(e.Encode())(w.t)
}

func (w *world) unlock() (custody.UnlockOut, error) {
	return w.custody.Unlock(w.t.Context(), engineer, custody.UnlockIn{Request: requestID}, nil)
}

func (w *world) operations() []auditlog.Operation {
	w.t.Helper()
	var ops []auditlog.Operation
	err := w.store.View(w.t.Context(), func(tx *store.Tx) error {
		rows, err := tx.AuditRows(w.t.Context(), store.AuditFilter{Limit: 1000})
		for _, r := range rows {
			ops = append(ops, auditlog.Operation(r.Operation))
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return ops
}

func (w *world) attempts() []store.Attempt {
	w.t.Helper()
	var list []store.Attempt
	err := w.store.View(w.t.Context(), func(tx *store.Tx) error {
		for _, subject := range []string{string(requestID), string(consentID)} {
			more, err := tx.Attempts(w.t.Context(), subject)
			if err != nil {
				return err
			}
			list = append(list, more...)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

func (w *world) allAre(state protocol.LockState) {
	w.t.Helper()
	for _, n := range w.nodes {
		if got := n.is(); got != state {
			w.t.Errorf("node %s is %s, want %s", n.id, got, state)
		}
	}
}

func TestUnlockOpensAllNodes(t *testing.T) {
	for _, in := range []custody.UnlockIn{{Request: requestID}, {Consent: consentID}} {
		t.Run(string(in.Request)+string(in.Consent), func(t *testing.T) {
			w := newWorld(t, 2)
			var mu sync.Mutex
			var phases []string
			out, err := w.custody.Unlock(t.Context(), engineer, in, func(e *lockboxv1.ProgressEvent) {
				if !mu.TryLock() {
					t.Error("progress is called concurrently")
					return
				}
				defer mu.Unlock()
				if !slices.Contains(phases, e.Phase) {
					phases = append(phases, e.Phase)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			w.allAre(protocol.Unlocked)
			last := "shares-open"
			if in.Consent != "" {
				last = "running"
			}
			if want := []string{"challenge", "recording", "sealing", "open", "commit", last}; !slices.Equal(phases, want) {
				t.Errorf("phases %v, want %v", phases, want)
			}
			if left := time.Until(out.LeaseEnd); left < 58*time.Minute || left > time.Hour || len(out.Shares) != 2 {
				t.Errorf("lease of %s, %d shares", left, len(out.Shares))
			}
			if a := w.attempts(); len(a) != 1 || a[0].State != store.AttemptCommitted || a[0].ID != out.Attempt {
				t.Errorf("attempts %+v", a)
			}
		})
	}
}

func TestIntentIsRecordedBeforeAnyOrderLeaves(t *testing.T) {
	w := newWorld(t, 1)
	w.nodes[0].fault = func(step string) error {
		if has := slices.Contains(w.operations(), auditlog.OpUnlockIntent); has != (step != "challenge") {
			t.Errorf("at %s the intent is recorded: %v", step, has)
		}
		return nil
	}
	if _, err := w.unlock(); err != nil {
		t.Fatal(err)
	}
}

// counted is a key service that says when a key is about to be in clear.
type counted struct {
	custody.KeyService
	count func()
}

func (c counted) Key(ctx context.Context, id string) (custody.KeyWrapper, error) {
	w, err := c.KeyService.Key(ctx, id)
	return unwraps{w, c.count}, err
}

type unwraps struct {
	custody.KeyWrapper
	count func()
}

func (u unwraps) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	u.count()
	return u.KeyWrapper.Unwrap(ctx, wrapped, aad)
}

func TestNothingIsUnwrappedUnlessApprovedAndRecorded(t *testing.T) {
	w := newWorld(t, 1)
	count := 0
	w.custody.Keys = counted{w.custody.Keys, func() {
		count++
		if !slices.Contains(w.operations(), auditlog.OpUnlockIntent) {
			t.Error("a key was unwrapped before the intent was recorded")
		}
	}}
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
		return tx.InsertRevocation(ctx, &store.Revocation{SubjectDigest: string(approval.DigestOf(w.statement)), Subject: string(requestID)})
	})
	if _, err := w.unlock(); protocol.CodeOf(err) != protocol.CodeRevoked {
		t.Errorf("a revoked request gave %v", err)
	}
	if count != 0 || slices.Contains(w.operations(), auditlog.OpUnlockIntent) {
		t.Errorf("%d keys were unwrapped for a revoked request", count)
	}
	w.allAre(protocol.Locked)
	// Control: the consent is not revoked, and opens.
	if _, err := w.custody.Unlock(t.Context(), engineer, custody.UnlockIn{Consent: consentID}, nil); err != nil || count != 1 {
		t.Errorf("%v, %d keys unwrapped, want that of the order", err, count)
	}
}

func TestCustodyVerifiesApprovalsItself(t *testing.T) {
	w := newWorld(t, 1)
	// The row says approved, but the one decision is signed by somebody else.
	_, mallory, _ := ed25519.GenerateKey(rand.Reader)
	real := w.customer
	w.customer = must(ssh.NewSignerFromKey(mallory))(t)
	forged := w.sign(approval.Decision{
		RequestDigest: approval.DigestOf(w.statement), Role: approval.Customer, Verdict: approval.Approve, MaxDuration: 3600,
		DecidedAt: time.Now().Unix(), Signer: "olga",
	})
	w.customer = real
	good := w.replaceDecision(forged)
	if _, err := w.unlock(); protocol.CodeOf(err) != protocol.CodeSignatureInvalid {
		t.Errorf("a forged decision gave %v", err)
	}
	w.allAre(protocol.Locked)
	if slices.Contains(w.operations(), auditlog.OpUnlockIntent) {
		t.Error("an intent was recorded for a forged decision")
	}
	w.replaceDecision(good) // control
	if _, err := w.unlock(); err != nil {
		t.Error(err)
	}
}

// replaceDecision swaps the envelope of the one decision and returns the old
// one. It does what only somebody with the database could.
func (w *world) replaceDecision(envelope []byte) (old []byte) {
	w.t.Helper()
	storetest.Tx(w.t, w.store, func(ctx context.Context, tx *store.Tx) error {
		list, err := tx.Decisions(ctx, requestID)
		if err != nil {
			return err
		}
		old = list[0].Envelope
		return nil
	})
	storetest.Exec(w.t, w.store, `UPDATE decisions SET envelope = $1`, envelope)
	return old
}

func TestAnyFailureLocksAllNodes(t *testing.T) {
	fail := protocol.Errorf(protocol.CodeFaulted, "injected")
	for _, step := range []string{"challenge", "unlock", "commit", "after unlock", "after commit"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t, 2)
			bad := w.nodes[1]
			hook := func(at string) error {
				if strings.TrimPrefix(step, "after ") == at {
					return fail
				}
				return nil
			}
			if strings.HasPrefix(step, "after") {
				bad.hook(nil, hook)
			} else {
				bad.hook(hook, nil)
			}
			_, err := w.unlock()
			if protocol.CodeOf(err) != protocol.CodeFaulted || !strings.Contains(err.Error(), bad.id.String()) {
				t.Fatalf("got %v, want the node's own code and its name", err)
			}
			w.allAre(protocol.Locked)
			for _, n := range w.nodes {
				if len(n.locks) == 0 || n.locks[0].Spend {
					t.Errorf("node %s got %d locks: %v", n.id, len(n.locks), n.locks)
				}
			}
			if a := w.attempts(); a[0].State != store.AttemptFailed || a[0].ErrorCode != protocol.CodeFaulted {
				t.Errorf("attempt %+v", a[0])
			}
			if !slices.Contains(w.operations(), auditlog.OpRefuseUnlock) {
				t.Error("the refusal is not recorded")
			}
			// Control: with the fault repaired, the same approval opens.
			bad.hook(nil, nil)
			if _, err := w.unlock(); err != nil {
				t.Fatalf("after the fault was repaired: %v", err)
			}
			w.allAre(protocol.Unlocked)
		})
	}
}

func TestOfflineNodeIsToldAtOnce(t *testing.T) {
	w := newWorld(t, 2)
	w.nodes[1].offline = true
	if _, err := w.unlock(); protocol.CodeOf(err) != protocol.CodeOffline {
		t.Errorf("got %v", err)
	}
	if slices.Contains(w.nodes[0].calls, "challenge") {
		t.Error("the other node was challenged in vain")
	}
}

func TestAnotherEnrolledKeyIsRefused(t *testing.T) {
	w := newWorld(t, 1)
	other := newFakeNode(t, w.nodes[0].id)
	var old []byte
	swap := func(spki []byte) {
		storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
			n, err := tx.Node(ctx, w.nodes[0].id)
			if err != nil {
				return err
			}
			old, n.SPKI = n.SPKI, spki
			return tx.UpdateNode(ctx, &n)
		})
	}
	swap(other.spki())
	if _, err := w.unlock(); protocol.CodeOf(err) != protocol.CodeNode {
		t.Errorf("got %v, want node-mismatch", err)
	}
	swap(old)
	if _, err := w.unlock(); err != nil {
		t.Error(err)
	}
}

func TestChallengeOfAnotherKeyIsRefused(t *testing.T) {
	w := newWorld(t, 1)
	real := w.nodes[0].key
	_, w.nodes[0].key, _ = ed25519.GenerateKey(rand.Reader)
	if _, err := w.unlock(); protocol.CodeOf(err) != protocol.CodeNode {
		t.Errorf("got %v, want node-mismatch", err)
	}
	w.nodes[0].key = real
	if _, err := w.unlock(); err != nil {
		t.Error(err)
	}
}

func TestRevokedWhileOpeningStopsBeforeCommit(t *testing.T) {
	w := newWorld(t, 1)
	w.nodes[0].after = func(step string) error {
		if step == "unlock" {
			storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
				return tx.InsertRevocation(ctx, &store.Revocation{SubjectDigest: string(approval.DigestOf(w.statement)), Subject: string(requestID)})
			})
		}
		return nil
	}
	if _, err := w.unlock(); protocol.CodeOf(err) != protocol.CodeRevoked {
		t.Errorf("got %v, want revoked", err)
	}
	w.allAre(protocol.Locked)
	if slices.Contains(w.nodes[0].calls, "commit") {
		t.Error("the node was committed")
	}
}

func TestProofOfAnEarlierOrderIsRefused(t *testing.T) {
	w := newWorld(t, 1)
	w.nodes[0].stale = true
	if _, err := w.unlock(); protocol.CodeOf(err) != protocol.CodeNotOpened {
		t.Errorf("got %v, want not-opened", err)
	}
	if slices.Contains(w.nodes[0].calls, "commit") {
		t.Error("the node was committed")
	}
	w.nodes[0].stale = false
	if _, err := w.unlock(); err != nil {
		t.Error(err)
	}
}

func TestALockIsCarriedOutWhoeverWaits(t *testing.T) {
	w := newWorld(t, 2)
	if _, err := w.unlock(); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	w.custody.Lock(gone, custody.LockIn{Caller: owner, Nodes: []protocol.NodeID{w.nodes[0].id, w.nodes[1].id}, Reason: "revoked"})
	w.allAre(protocol.Locked)
	if !slices.Contains(w.operations(), auditlog.OpLockVolume) {
		t.Error("the lock is not recorded")
	}
}

func TestANodeThatDoesNotLockIsNotConfirmed(t *testing.T) {
	w := newWorld(t, 1)
	w.nodes[0].stuck = true
	in := custody.LockIn{Caller: owner, Nodes: []protocol.NodeID{w.nodes[0].id}, Reason: "revoked"}
	if r := w.custody.Lock(t.Context(), in)[0]; r.Confirmed || r.LocksBy == 0 {
		t.Errorf("got %v", r)
	}
	w.nodes[0].stuck = false
	if r := w.custody.Lock(t.Context(), in)[0]; !r.Confirmed {
		t.Errorf("got %v", r)
	}
}

func TestAStoreThatHangsMeansARefusal(t *testing.T) {
	w := newWorld(t, 2)
	w.custody.Keys = counted{w.custody.Keys, func() { t.Error("a key was unwrapped without a record") }}
	release := func() {}
	var once sync.Once
	w.nodes[0].hook(func(step string) error {
		if step == "challenge" {
			once.Do(func() { release = storetest.Hold(t, w.store) })
		}
		return nil
	}, nil)
	begin := time.Now()
	_, err := w.unlock()
	took := time.Since(begin)
	w.allAre(protocol.Locked)
	release()
	if protocol.CodeOf(err) != protocol.CodeNotRecorded || took > 5*time.Second {
		t.Errorf("got %v after %s, want not-recorded within 5 s", err, took)
	}
	// What could not be written down then is, once the store answers.
	w.nodes[0].hook(nil, nil)
	left, err := w.custody.Recover(t.Context())
	for deadline := time.Now().Add(10 * time.Second); (err != nil || left > 0) && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
		left, err = w.custody.Recover(t.Context())
	}
	if err != nil || w.attempts()[0].State != store.AttemptFailed {
		t.Errorf("%v, attempt %+v", err, w.attempts()[0])
	}
}

func TestOnlyOneAttemptAtATime(t *testing.T) {
	w := newWorld(t, 1)
	inside, leave := make(chan struct{}), make(chan struct{})
	w.nodes[0].fault = func(step string) error {
		if step == "unlock" {
			close(inside)
			<-leave
		}
		return nil
	}
	first := make(chan error, 1)
	go func() { _, err := w.unlock(); first <- err }()
	<-inside
	if _, err := w.unlock(); protocol.CodeOf(err) != protocol.CodeBusy {
		t.Errorf("the second got %v, want busy", err)
	}
	if left, err := w.custody.Recover(t.Context()); left != 1 || err != nil {
		t.Errorf("recovery of a running attempt: %d left, %v", left, err)
	}
	if w.nodes[0].is() == protocol.Locked {
		t.Error("recovery locked a running attempt")
	}
	close(leave)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestWhatCouldNotBeLockedIsLockedLater(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	n.fault = func(step string) error {
		if step == "lock" {
			return protocol.Errorf(protocol.CodeUnavailable, "injected")
		}
		return nil
	}
	n.after = func(step string) error {
		if step == "commit" {
			return protocol.Errorf(protocol.CodeUnavailable, "the answer is lost")
		}
		return nil
	}
	if _, err := w.unlock(); err == nil {
		t.Fatal("unlocked")
	}
	if n.is() != protocol.Unlocked || w.attempts()[0].State != store.AttemptLocking {
		t.Fatalf("node %s, attempt %s", n.is(), w.attempts()[0].State)
	}
	if _, err := w.unlock(); protocol.CodeOf(err) != protocol.CodeBusy {
		t.Errorf("a new attempt before the old one is locked: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.custody.Run(ctx) }()
	n.hook(nil, nil)
	deadline := time.Now().Add(5 * time.Second)
	for w.attempts()[0].State != store.AttemptFailed && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if n.is() != protocol.Locked || w.attempts()[0].State != store.AttemptFailed {
		t.Errorf("node %s, attempt %s", n.is(), w.attempts()[0].State)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestLockSaysWhenAnUnreachableNodeLocks(t *testing.T) {
	w := newWorld(t, 2)
	if _, err := w.unlock(); err != nil {
		t.Fatal(err)
	}
	w.nodes[1].offline = true
	results := w.custody.Lock(t.Context(), custody.LockIn{
		Caller: owner, Nodes: []protocol.NodeID{w.nodes[0].id, w.nodes[1].id}, Reason: "revoked",
		Subject: approval.DigestOf(w.statement), Spend: true, Tenant: storetest.Tenant, Correlation: string(requestID),
	})
	if r := results[0]; !r.Confirmed || r.State != string(protocol.Locked) || r.LocksBy != 0 {
		t.Errorf("the reachable node: %v", r)
	}
	if r := results[1]; r.Confirmed || time.Until(time.Unix(r.LocksBy, 0)) > deadMan || time.Until(time.Unix(r.LocksBy, 0)) < deadMan-5*time.Second {
		t.Errorf("the unreachable node: %v", r)
	}
	if got := w.nodes[0].locks[0]; !got.Spend || got.Reason != "revoked" || got.SubjectDigest != string(approval.DigestOf(w.statement)) {
		t.Errorf("the node was told %v", got)
	}
	if !slices.Contains(w.operations(), auditlog.OpLockVolume) {
		t.Error("the lock is not recorded")
	}
}

func TestLockLeavesAnotherSubjectsLease(t *testing.T) {
	w := newWorld(t, 1)
	lock := func(subject approval.Digest) bool {
		in := custody.LockIn{Caller: owner, Nodes: []protocol.NodeID{w.nodes[0].id}, Reason: "unlock-failed", Subject: subject}
		return w.custody.Lock(t.Context(), in)[0].Confirmed
	}
	ours := approval.DigestOf(w.statement)
	w.nodes[0].foreign = approval.DigestOf([]byte("another"))
	if !lock(ours) {
		t.Error("a node that is open under another subject does not count as locked for ours: it would be asked forever")
	}
	w.nodes[0].foreign = ours
	if lock(ours) {
		t.Error("a node that stays open under our subject counts as locked")
	}
}

func TestExportIsRecordedFirst(t *testing.T) {
	w := newWorld(t, 1)
	ask := func(caller auth.Caller, reason string) (*lockboxv1.ExportRecoveryPasswordResponse, error) {
		return w.custody.ExportRecoveryPassword(t.Context(), caller, &lockboxv1.ExportRecoveryPasswordRequest{
			Serial: string(storetest.Serial), Node: 1, Disk: "disk1", Reason: reason,
		})
	}
	if _, err := ask(engineer, "curious"); protocol.CodeOf(err) != protocol.CodeForbidden {
		t.Errorf("an engineer got %v", err)
	}
	if _, err := ask(admin, "  "); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("without reason: %v", err)
	}
	if slices.Contains(w.operations(), auditlog.OpExportRecoveryPassword) {
		t.Fatal("a refused export is recorded as one")
	}
	told := false
	keys := w.custody.Keys
	w.custody.Keys = counted{keys, func() {
		if !told {
			t.Error("the password was unwrapped before the customer was told")
		}
	}}
	w.custody.Exporting = func(_ context.Context, caller auth.Caller, k store.DiskKey, reason string) error {
		if !slices.Contains(w.operations(), auditlog.OpExportRecoveryPassword) {
			t.Error("the customer was told before the export was recorded")
		}
		if caller.Person != admin.Person || k.Disk != "disk1" || reason != "foreign judge" {
			t.Errorf("told of %s, %s, %q", caller.Person, k.Disk, reason)
		}
		if told = !told; told {
			return nil
		}
		return errors.New("cannot tell")
	}
	resp, err := ask(admin, "foreign judge")
	if err != nil || resp.RecoveryPassword != password {
		t.Errorf("got %v", err)
	}
	if resp, err := ask(admin, "foreign judge"); err == nil {
		t.Errorf("nobody could be told, and %q came out", resp.RecoveryPassword)
	}
}

func TestListKeysRevealsNothing(t *testing.T) {
	w := newWorld(t, 1)
	in := &lockboxv1.ListKeysRequest{Order: string(storetest.Order)}
	resp, err := w.custody.ListKeys(t.Context(), owner, in)
	if err != nil || len(resp.Keys) != 2 {
		t.Fatalf("%v, %v", resp, err)
	}
	if k := resp.Keys[0]; k.Disk != "disk1" || k.WrappedBy != custody.ServiceKey || k.VolumeGuid != "{disk1}" {
		t.Errorf("got %v", k)
	}
	if _, err := w.custody.ListKeys(t.Context(), stranger, in); protocol.CodeOf(err) != protocol.CodeNotFound {
		t.Errorf("another tenant got %v", err)
	}
}

func TestNoKeyInClearInTheStore(t *testing.T) {
	w := newWorld(t, 1)
	if _, err := w.unlock(); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	if err := w.store.BackupTo(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	secrets := [][]byte{[]byte(password)}
	for _, key := range w.nodes[0].disks {
		secrets = append(secrets, key, []byte(hexOf(key)))
	}
	for _, secret := range secrets {
		if bytes.Contains(data, secret) {
			t.Error("a key is in the store in clear")
		}
	}
	if !bytes.Contains(data, []byte(storetest.Serial)) { // control: the search finds what is there
		t.Error("the search does not find the serial")
	}
}

func TestBadDepositIsRefused(t *testing.T) {
	w := newWorld(t, 1)
	k := must(w.custody.OpenOrderKey(t.Context(), storetest.Order))(t)
	defer k.Wipe()
	good := custody.Deposit{Node: w.nodes[0].id, Disk: "disk3", RecoveryPassword: password}
	for name, change := range map[string]func(*custody.Deposit){
		"short key":       func(d *custody.Deposit) { d.ExternalKey = d.ExternalKey[:31] },
		"no password":     func(d *custody.Deposit) { d.RecoveryPassword = "" },
		"not of eleven":   func(d *custody.Deposit) { d.RecoveryPassword = "000012" + password[6:] },
		"group too large": func(d *custody.Deposit) { d.RecoveryPassword = "720896" + password[6:] },
	} {
		d := good
		d.ExternalKey = bytes.Repeat([]byte{1}, 32)
		change(&d)
		err := w.store.Tx(t.Context(), func(tx *store.Tx) error { return w.custody.Deposit(t.Context(), tx, admin, k, []custody.Deposit{d}) })
		if protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMasterKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "master.key")
	if _, err := custody.OpenMasterKey(path, false); err == nil {
		t.Error("a missing key was accepted")
	}
	one := must(custody.OpenMasterKey(path, true))(t)
	info := must(os.Stat(path))(t)
	if info.Mode().Perm() != 0o600 || info.Size() != custody.MasterKeySize {
		t.Errorf("mode %v, %d bytes", info.Mode(), info.Size())
	}
	wrapped := must(current(t, one).Wrap(t.Context(), []byte("key"), []byte("aad")))(t)
	again := current(t, must(custody.OpenMasterKey(path, true))(t))
	if key, err := again.Unwrap(t.Context(), wrapped, []byte("aad")); err != nil || string(key) != "key" {
		t.Errorf("the same file does not unwrap: %v", err)
	}
	if _, err := again.Unwrap(t.Context(), wrapped, []byte("other")); err == nil {
		t.Error("another place unwraps")
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o700} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := custody.OpenMasterKey(path, true); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	short := filepath.Join(dir, "short.key")
	if err := os.WriteFile(short, make([]byte, 31), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := custody.OpenMasterKey(short, true); err == nil || !strings.Contains(err.Error(), "31 bytes") {
		t.Errorf("a short key: %v", err)
	}
	line := func(version, key string) string { return version + " " + key + "\n" }
	good := strings.Repeat("0a", 32)
	for text, fine := range map[string]bool{
		line("2", good):                       true,
		line("1", good) + line("3", good):     true,
		"":                                    false,
		"\n":                                  false,
		line("0", good):                       false,
		line("-1", good):                      false,
		line("x", good):                       false,
		line("1", good[2:]):                   false,
		line("1", good+"00"):                  false,
		line("1", "zz"+good[2:]):              false,
		line("2", good) + line("2", good):     false,
		line("2", good) + line("1", good):     false,
		line("1", good) + "\n":                false,
		strings.Repeat(line("1", good), 2):    false,
		line("1", good) + "2 " + good[:10]:    false,
		strings.Repeat("x", 1<<16):            false,
		line("1", good) + line("2", good)[:5]: false,
	} {
		odd := filepath.Join(dir, "odd.key")
		if err := os.WriteFile(odd, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := custody.OpenMasterKey(odd, true); (err == nil) != fine || err != nil && strings.Contains(err.Error(), good) {
			t.Errorf("%.80q: %v", text, err)
		}
	}
	link := filepath.Join(dir, "link.key")
	if err := os.Symlink(short, link); err != nil {
		t.Fatal(err)
	}
	if _, err := custody.OpenMasterKey(link, true); err == nil {
		t.Error("a link was followed")
	}
}

func current(t *testing.T, keys custody.KeyService) custody.KeyWrapper {
	t.Helper()
	return must(keys.Current(t.Context()))(t)
}

func TestKeysAreBoundToTheirDisk(t *testing.T) {
	w := newWorld(t, 1)
	storetest.Exec(t, w.store, `UPDATE disk_keys SET wrapped = (SELECT wrapped FROM disk_keys WHERE disk = 'disk2' AND kind = 'external-key')
		WHERE disk = 'disk1' AND kind = 'external-key'`)
	if _, err := w.unlock(); err == nil || !strings.Contains(err.Error(), "cannot unwrap") {
		t.Errorf("keys were swapped in the database, and it gave %v", err)
	}
	w.allAre(protocol.Locked)
}
