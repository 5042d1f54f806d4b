package custody_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// fakeNode is a node without disks: it answers over HTTP, verifies with the
// real code what a device verifies, and can be made to fail at any step.
type fakeNode struct {
	devicev1.UnimplementedNodeServiceHandler
	t      *testing.T
	id     protocol.NodeID
	key    ed25519.PrivateKey
	disks  map[protocol.DiskID][]byte // the keys that open them
	server *httptest.Server

	mu      sync.Mutex
	policy  *approval.Policy
	state   protocol.LockState
	nonce   []byte
	hpke    *sealing.PrivateKey
	order   approval.Digest
	intent  approval.Digest
	request approval.Digest
	seen    *auditlog.Checkpoint // of the activity log
	locks   []*devicev1.LockRequest
	access  map[string]string // by account, that came with the last order
	calls   []string
	offline bool
	stale   bool                    // proves opening under an earlier order
	stuck   bool                    // answers a lock, but does not lock
	foreign approval.Digest         // it is open under this other subject, which a lock for ours leaves alone
	fault   func(step string) error // before the step is done; a nil func never fails
	after   func(step string) error // after the step is done: the answer is lost
}

func newFakeNode(t *testing.T, id protocol.NodeID, disks ...protocol.DiskID) *fakeNode {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{t: t, id: id, key: key, disks: map[protocol.DiskID][]byte{}, state: protocol.Locked}
	for _, d := range disks {
		n.disks[d] = make([]byte, 32)
		rand.Read(n.disks[d])
	}
	srv := rpc.NewServer(func(_ context.Context, procedure string, err error) { t.Logf("%s %s: %v", id, procedure, err) })
	devicev1.RegisterNodeServiceHandler(srv, n)
	mux := http.NewServeMux()
	rpc.Mount(mux, srv)
	n.server = httptest.NewServer(mux)
	t.Cleanup(n.server.Close)
	return n
}

func (n *fakeNode) public() ed25519.PublicKey { return n.key.Public().(ed25519.PublicKey) }

func (n *fakeNode) ref() approval.NodeRef {
	return approval.NodeRef{Serial: n.id.Serial, Node: n.id.Node, KeyFingerprint: approval.KeyFingerprint(n.public())}
}

func (n *fakeNode) spki() []byte {
	der, err := x509.MarshalPKIXPublicKey(n.key.Public())
	if err != nil {
		n.t.Fatal(err)
	}
	return der
}

func (n *fakeNode) ids() []protocol.DiskID {
	var ids []protocol.DiskID
	for id := range n.disks {
		ids = append(ids, id)
	}
	return ids
}

// hook sets what happens before and after each step.
func (n *fakeNode) hook(fault, after func(step string) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fault, n.after = fault, after
}

// step notes a call and fails if that is wanted.
func (n *fakeNode) step(name string) error {
	n.mu.Lock()
	n.calls = append(n.calls, name)
	fault := n.fault
	n.mu.Unlock()
	if fault != nil {
		return fault(name)
	}
	return nil
}

func (n *fakeNode) done(name string) error {
	n.mu.Lock()
	after := n.after
	n.mu.Unlock()
	if after != nil {
		return after(name)
	}
	return nil
}

func (n *fakeNode) is() protocol.LockState {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

func (n *fakeNode) Challenge(_ context.Context, in *devicev1.ChallengeRequest) (*devicev1.ChallengeResponse, error) {
	if err := n.step("challenge"); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	hpke, err := sealing.GenerateKey()
	if err != nil {
		return nil, err
	}
	n.hpke, n.nonce, n.state = hpke, make([]byte, approval.NonceSize), protocol.Challenged
	rand.Read(n.nonce)
	envelope, err := approval.SignEd25519(approval.Challenge{
		Node: approval.NameOf(n.id), NodeKey: n.public(), RequestDigest: approval.Digest(in.SubjectDigest),
		Nonce: n.nonce, HPKEKey: hpke.Public(), Expires: time.Now().Add(time.Minute).Unix(),
	}, n.key)
	resp := &devicev1.ChallengeResponse{Challenge: envelope}
	if n.seen != nil {
		resp.LogSize = n.seen.Size
	}
	return resp, err
}

func (n *fakeNode) Unlock(_ context.Context, in *devicev1.UnlockRequest, stream devicev1.NodeServiceUnlockServerStream) error {
	if err := n.step("unlock"); err != nil {
		return err
	}
	opened, err := n.open(in)
	if err != nil {
		return err
	}
	for disk := range n.disks {
		if err := stream.Send(&devicev1.UnlockResponse{Disk: string(disk), Phase: "open"}); err != nil {
			return err
		}
	}
	if err := n.done("unlock"); err != nil {
		return err
	}
	return stream.Send(&devicev1.UnlockResponse{Opened: opened})
}

// open does what a device does with an order, but for the disks.
func (n *fakeNode) open(in *devicev1.UnlockRequest) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	order, digest, err := n.policy.VerifyOrder(in.Order)
	if err != nil {
		return nil, err
	}
	if n.state != protocol.Challenged || !bytes.Equal(order.Nonce, n.nonce) {
		return nil, protocol.Errorf(protocol.CodeNonce, "no such nonce is outstanding")
	}
	decisions, subject, err := n.authorize(in)
	if err != nil {
		return nil, err
	}
	if order.RequestDigest != subject || order.DecisionsDigest != decisions {
		return nil, protocol.Errorf(protocol.CodeDecisionMissing, "the order is for other decisions")
	}
	if err := n.checkLog(order); err != nil {
		return nil, err
	}
	for _, k := range order.Keys {
		key, err := n.hpke.Open(sealing.Context{
			RequestDigest: string(subject), DecisionsDigest: string(decisions), Nonce: n.nonce, Node: n.id, Disk: k.Disk,
			Purpose: order.Purpose, KeyType: sealing.KeyType(k.KeyType),
		}, k.Ciphertext)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(key, n.disks[k.Disk]) {
			return nil, protocol.Errorf(protocol.CodeDiskKey, "the key does not open disk %s", k.Disk)
		}
	}
	if len(order.Keys) != len(n.disks) {
		return nil, protocol.Errorf(protocol.CodeDisks, "%d keys for %d disks", len(order.Keys), len(n.disks))
	}
	n.access = make(map[string]string)
	for _, a := range order.Access {
		query, err := n.hpke.Open(sealing.Context{
			RequestDigest: string(subject), DecisionsDigest: string(decisions), Nonce: n.nonce, Node: n.id, Account: a.Account, Endpoint: a.Endpoint,
			Purpose: order.Purpose, KeyType: sealing.KeyType(a.KeyType),
		}, a.Ciphertext)
		if err != nil {
			return nil, err
		}
		n.access[a.Account] = string(query)
	}
	n.state, n.order, n.intent, n.request = protocol.Opened, digest, order.IntentDigest(), subject
	if n.stale {
		digest = approval.DigestOf([]byte("an earlier order"))
	}
	return approval.SignEd25519(approval.Opened{
		Node: approval.NameOf(n.id), NodeKey: n.public(), OrderDigest: digest, IntentDigest: n.intent,
		RequestDigest: subject, OpenedAt: time.Now().Unix(),
	}, n.key)
}

func (n *fakeNode) authorize(in *devicev1.UnlockRequest) (decisions, subject approval.Digest, err error) {
	ref := n.ref()
	if len(in.Consent) > 0 {
		g, err := n.policy.AuthorizeCopy(approval.CopyRequest{Consent: in.Consent, Revocations: in.Revocations, Self: &ref, SelfDisks: n.ids(), Now: time.Now()})
		return g.DecisionsDigest, g.ConsentDigest, err
	}
	g, err := n.policy.Authorize(approval.Request{
		Statement: in.Statement, Decisions: in.Decisions, Revocations: in.Revocations, Self: &ref, SelfDisks: n.ids(), Now: time.Now(),
	})
	return g.DecisionsDigest, g.RequestDigest, err
}

// checkLog verifies that the intent names this nonce and is in the log, and
// that the log continues the one seen last.
func (n *fakeNode) checkLog(order approval.Order) error {
	refuse := func(err error) error {
		return protocol.Errorf(protocol.CodeCheckpoint, "the order's log: %v", err)
	}
	v, err := note.NewVerifier(n.policy.Document().LogKey)
	if err != nil {
		return refuse(err)
	}
	head, err := auditlog.OpenCheckpoint(order.LogCheckpoint, v)
	if err != nil {
		return refuse(err)
	}
	if err := tlog.CheckRecord(hashes(order.LogProof), head.Size, head.Hash, order.LogIndex, auditlog.LeafHash(order.LogRecord)); err != nil {
		return refuse(err)
	}
	rec, err := auditlog.ParseRecord(order.LogRecord)
	if err != nil {
		return refuse(err)
	}
	want := map[string]string{
		auditlog.PropertySubjectDigest: string(order.RequestDigest),
		auditlog.PropertyNonce(n.id):   hexOf(order.Nonce),
	}
	for key, value := range want {
		if rec.Operation != auditlog.OpUnlockIntent || rec.Properties[key] != value {
			return refuse(errors.New("the record is not the intent of this order: " + key))
		}
	}
	if n.seen != nil {
		if err := tlog.CheckTree(hashes(order.LogConsistency), head.Size, head.Hash, n.seen.Size, n.seen.Hash); err != nil {
			return refuse(err)
		}
	}
	n.seen = &head
	return nil
}

func hashes(raw [][]byte) []tlog.Hash {
	var out []tlog.Hash
	for _, h := range raw {
		out = append(out, tlog.Hash(h))
	}
	return out
}

func (n *fakeNode) Commit(_ context.Context, in *devicev1.CommitRequest) (*devicev1.CommitResponse, error) {
	if err := n.step("commit"); err != nil {
		return nil, err
	}
	if err := n.commit(in.Commit); err != nil {
		return nil, err
	}
	if err := n.done("commit"); err != nil {
		return nil, err
	}
	return &devicev1.CommitResponse{
		LeaseEnd: time.Now().Add(time.Hour).Unix(),
		Shares:   []*devicev1.ShareStatus{{Name: n.id.String(), State: "open"}},
	}, nil
}

func (n *fakeNode) commit(envelope []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state != protocol.Opened {
		return protocol.Errorf(protocol.CodeNotOpened, "node %s is %s", n.id, n.state)
	}
	_, err := n.policy.VerifyCommit(approval.CommitRequest{
		Commit: envelope, Subject: n.request, Nodes: allRefs(n.t), Self: n.id, OrderDigest: n.order, IntentDigest: n.intent, Now: time.Now(),
	})
	if err == nil {
		n.state = protocol.Unlocked
	}
	return err
}

func (n *fakeNode) Lock(_ context.Context, in *devicev1.LockRequest) (*devicev1.LockResponse, error) {
	if err := n.step("lock"); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state, n.nonce = protocol.Locked, nil
	if n.stuck {
		n.state = protocol.Locking
	}
	n.locks = append(n.locks, in)
	if n.foreign != "" && in.SubjectDigest != "" {
		return &devicev1.LockResponse{Status: &devicev1.NodeStatus{State: string(protocol.Unlocked), RequestDigest: string(n.foreign)}}, nil
	}
	return &devicev1.LockResponse{Status: &devicev1.NodeStatus{State: string(n.state)}, TookMs: 1}, nil
}
