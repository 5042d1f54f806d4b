package orderstest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// Node is a node without disks, in this process. It verifies what a device
// verifies, with the real code, and remembers what it was told.
type Node struct {
	devicev1.UnimplementedNodeServiceHandler
	ID    protocol.NodeID
	Key   ed25519.PrivateKey
	Disks map[protocol.DiskID][]byte // the keys that open them

	now    func() time.Time
	client devicev1.NodeServiceClient

	mu       sync.Mutex
	hangs    bool
	offline  bool
	broken   string // the step that fails; "" if none
	policy   *approval.Policy
	peers    []approval.NodeRef
	state    protocol.LockState
	purpose  protocol.Purpose
	nonce    []byte
	hpke     *sealing.PrivateKey
	order    approval.Digest
	intent   approval.Digest // that was recorded for it
	subject  approval.Digest
	end      time.Time
	spent    []approval.Digest
	sessions []string
	locks    []*devicev1.LockRequest
	opened   int
}

func newNode(id protocol.NodeID, now func() time.Time, disks ...protocol.DiskID) *Node {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	n := &Node{ID: id, Key: key, Disks: make(map[protocol.DiskID][]byte), now: now, state: protocol.Locked}
	for _, d := range disks {
		n.Disks[d] = make([]byte, 32)
		rand.Read(n.Disks[d])
	}
	server := connect.NewServer()
	devicev1.RegisterNodeServiceHandler(server, n)
	n.client = devicev1.NewNodeServiceClient(connect.NewClient(connectinprocess.New(server)))
	return n
}

func (n *Node) public() ed25519.PublicKey { return n.Key.Public().(ed25519.PublicKey) }

func (n *Node) ref() approval.NodeRef {
	return approval.NodeRef{Serial: n.ID.Serial, Node: n.ID.Node, KeyFingerprint: approval.KeyFingerprint(n.public())}
}

// hostKey is the node's key as an SSH host key, in wire form.
func (n *Node) hostKey() []byte {
	var b []byte
	for _, field := range [][]byte{[]byte("ssh-ed25519"), n.public()} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return b
}

// SetOffline cuts the node off, or brings it back.
func (n *Node) SetOffline(offline bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.offline = offline
}

// Break has a step fail from now on: challenge, unlock, commit, lock, session,
// update, erase; "" mends the node.
func (n *Node) Break(step string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = step
}

// Hang has the node give no answer to a lock any more, or answer again.
func (n *Node) Hang(hang bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hangs = hang
}

// State is the state of the node's lock.
func (n *Node) State() protocol.LockState {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

// Policy is the trust policy that the node holds.
func (n *Node) Policy() *approval.Policy {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.policy
}

// Opened is how often the node's disks have been opened.
func (n *Node) Opened() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.opened
}

// Spent reports whether the node will never again take this approval.
func (n *Node) Spent(subject string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.spent, approval.Digest(subject))
}

// Locks are the orders to lock that the node was given.
func (n *Node) Locks() []*devicev1.LockRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.locks)
}

// Sessions are the support sessions that are enabled on the node.
func (n *Node) Sessions() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.sessions)
}

// Relock locks the node by itself, without spending anything, as when its copy
// job halts.
func (n *Node) Relock() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lockLocked()
}

// Restart locks the node by itself and has it forget its sessions, as a start of
// its agent does.
func (n *Node) Restart() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lockLocked()
	n.sessions = nil
}

// Report is what the node's heartbeat says.
func (n *Node) Report() *devicev1.HeartbeatRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &devicev1.HeartbeatRequest{Status: n.statusLocked()}
}

func (n *Node) lockLocked() {
	n.state, n.nonce, n.subject, n.purpose, n.end = protocol.Locked, nil, "", "", time.Time{}
}

func (n *Node) statusLocked() *devicev1.NodeStatus {
	s := &devicev1.NodeStatus{
		Serial: string(n.ID.Serial), Node: int32(n.ID.Node), State: string(n.state), Purpose: string(n.purpose),
		RequestDigest: string(n.subject), Time: n.now().Unix(),
	}
	if n.policy != nil {
		s.TrustPolicyVersion, s.TrustPolicyDigest = int32(n.policy.Document().Version), string(n.policy.Digest())
	}
	for d := range n.Disks {
		s.Disks = append(s.Disks, &devicev1.DiskStatus{Disk: string(d), State: "locked"})
	}
	slices.SortFunc(s.Disks, func(a, b *devicev1.DiskStatus) int { return bytes.Compare([]byte(a.Disk), []byte(b.Disk)) })
	for _, id := range n.sessions {
		s.Sessions = append(s.Sessions, &devicev1.SessionStatus{Session: id})
	}
	return s
}

// failsLocked fails a step that was broken.
func (n *Node) failsLocked(step string) error {
	if n.broken == step {
		return protocol.Errorf(protocol.CodeFaulted, "node %s fails to %s", n.ID, step)
	}
	return nil
}

// Status implements NodeService.
func (n *Node) Status(context.Context, *devicev1.StatusRequest) (*devicev1.StatusResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &devicev1.StatusResponse{Status: n.statusLocked()}, nil
}

// Challenge implements NodeService.
func (n *Node) Challenge(_ context.Context, in *devicev1.ChallengeRequest) (*devicev1.ChallengeResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.failsLocked("challenge"); err != nil {
		return nil, err
	}
	if n.state != protocol.Locked && n.state != protocol.Challenged {
		return nil, protocol.Errorf(protocol.CodeBusy, "node %s is %s for %s", n.ID, n.state, n.purpose)
	}
	hpke, err := sealing.GenerateKey()
	if err != nil {
		return nil, err
	}
	n.hpke, n.nonce, n.state, n.purpose = hpke, make([]byte, approval.NonceSize), protocol.Challenged, protocol.Purpose(in.Purpose)
	rand.Read(n.nonce)
	envelope, err := approval.SignEd25519(approval.Challenge{
		Node: approval.NameOf(n.ID), NodeKey: n.public(), RequestDigest: approval.Digest(in.SubjectDigest),
		Nonce: n.nonce, HPKEKey: hpke.Public(), Expires: n.now().Add(time.Minute).Unix(),
	}, n.Key)
	return &devicev1.ChallengeResponse{Challenge: envelope}, err
}

// Unlock implements NodeService.
func (n *Node) Unlock(_ context.Context, in *devicev1.UnlockRequest, stream devicev1.NodeServiceUnlockServerStream) error {
	opened, err := n.open(in)
	if err != nil {
		return err
	}
	return stream.Send(&devicev1.UnlockResponse{Phase: "open", Opened: opened})
}

func (n *Node) open(in *devicev1.UnlockRequest) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.failsLocked("unlock"); err != nil {
		return nil, err
	}
	order, digest, err := n.policy.VerifyOrder(in.Order)
	if err != nil {
		return nil, err
	}
	if n.state != protocol.Challenged || !bytes.Equal(order.Nonce, n.nonce) {
		return nil, protocol.Errorf(protocol.CodeNonce, "no such nonce is outstanding")
	}
	subject, decisions, err := n.authorizeLocked(in)
	if err != nil {
		return nil, err
	}
	if err := sayExclusion(order, in.Statement); err != nil {
		return nil, err
	}
	if slices.Contains(n.spent, subject) {
		return nil, protocol.Errorf(protocol.CodeSpent, "the approval is spent")
	}
	for _, k := range order.Keys {
		key, err := n.hpke.Open(sealing.Context{
			RequestDigest: string(subject), DecisionsDigest: string(decisions), Nonce: n.nonce, Node: n.ID, Disk: k.Disk,
			Purpose: order.Purpose, KeyType: sealing.KeyType(k.KeyType),
		}, k.Ciphertext)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(key, n.Disks[k.Disk]) {
			return nil, protocol.Errorf(protocol.CodeDiskKey, "the key does not open disk %s", k.Disk)
		}
	}
	n.state, n.order, n.intent, n.subject = protocol.Opened, digest, order.IntentDigest(), subject
	return approval.SignEd25519(approval.Opened{
		Node: approval.NameOf(n.ID), NodeKey: n.public(), OrderDigest: digest, IntentDigest: n.intent,
		RequestDigest: subject, OpenedAt: n.now().Unix(),
	}, n.Key)
}

// sayExclusion refuses an order whose logged intent does not say that the
// customer was not asked, or says so where they were.
func sayExclusion(order approval.Order, statement []byte) error {
	var x approval.Exclusion
	if st, err := approval.ParseStatement(statement); err == nil {
		x = st.Exclusion
	}
	rec, err := auditlog.ParseRecord(order.LogRecord)
	if err != nil || rec.Properties[auditlog.PropertyExclusion] != string(x) {
		return protocol.Errorf(protocol.CodeCheckpoint, "the logged intent keeps silent about exclusion %q", x)
	}
	return nil
}

func (n *Node) authorizeLocked(in *devicev1.UnlockRequest) (subject, decisions approval.Digest, err error) {
	ref := n.ref()
	var disks []protocol.DiskID
	for d := range n.Disks {
		disks = append(disks, d)
	}
	if len(in.Consent) > 0 {
		g, err := n.policy.AuthorizeCopy(approval.CopyRequest{Consent: in.Consent, Revocations: in.Revocations, Self: &ref, SelfDisks: disks, Now: n.now()})
		n.peers, n.end = g.Consent.Nodes, g.End
		return g.ConsentDigest, g.DecisionsDigest, err
	}
	g, err := n.policy.Authorize(approval.Request{
		Statement: in.Statement, Decisions: in.Decisions, Revocations: in.Revocations, Self: &ref, SelfDisks: disks, Now: n.now(),
	})
	n.peers, n.end = g.Statement.Nodes, g.End
	return g.RequestDigest, g.DecisionsDigest, err
}

// Commit implements NodeService.
func (n *Node) Commit(_ context.Context, in *devicev1.CommitRequest) (*devicev1.CommitResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.failsLocked("commit"); err != nil {
		return nil, err
	}
	if n.state != protocol.Opened {
		return nil, protocol.Errorf(protocol.CodeNotOpened, "node %s is %s", n.ID, n.state)
	}
	_, err := n.policy.VerifyCommit(approval.CommitRequest{
		Commit: in.Commit, Subject: n.subject, Nodes: n.peers, Self: n.ID, OrderDigest: n.order, IntentDigest: n.intent, Now: n.now(),
	})
	if err != nil {
		return nil, err
	}
	n.state = protocol.Unlocked
	n.opened++
	return &devicev1.CommitResponse{LeaseEnd: n.end.Unix()}, nil
}

// Lock implements NodeService. What another approval opened stays open.
func (n *Node) Lock(ctx context.Context, in *devicev1.LockRequest) (*devicev1.LockResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hangs {
		n.mu.Unlock()
		<-ctx.Done()
		n.mu.Lock()
		return nil, ctx.Err()
	}
	if err := n.failsLocked("lock"); err != nil {
		return nil, err
	}
	n.locks = append(n.locks, in)
	subject := approval.Digest(in.SubjectDigest)
	if in.Spend && subject != "" {
		n.spent = append(n.spent, subject)
	}
	if subject == "" || n.subject == "" || n.subject == subject {
		n.lockLocked()
	}
	return &devicev1.LockResponse{Status: n.statusLocked()}, nil
}

// EnableSession implements NodeService.
func (n *Node) EnableSession(_ context.Context, in *devicev1.EnableSessionRequest) (*devicev1.EnableSessionResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.failsLocked("session"); err != nil {
		return nil, err
	}
	n.sessions = append(n.sessions, in.Session)
	return &devicev1.EnableSessionResponse{HostKey: n.hostKey()}, nil
}

// DisableSession implements NodeService.
func (n *Node) DisableSession(_ context.Context, in *devicev1.DisableSessionRequest) (*devicev1.DisableSessionResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.failsLocked("session"); err != nil {
		return nil, err
	}
	n.sessions = slices.DeleteFunc(n.sessions, func(s string) bool { return s == in.Session })
	return &devicev1.DisableSessionResponse{Status: n.statusLocked()}, nil
}

// UpdateTrustPolicy implements NodeService. The first policy is installed by
// staff; the node takes successors only.
func (n *Node) UpdateTrustPolicy(_ context.Context, in *devicev1.UpdateTrustPolicyRequest) (*devicev1.UpdateTrustPolicyResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.failsLocked("update"); err != nil {
		return nil, err
	}
	next, err := n.policy.VerifySuccessor(in.Policy)
	if err != nil {
		return nil, err
	}
	n.policy = next
	return &devicev1.UpdateTrustPolicyResponse{Version: int32(n.policy.Document().Version), Digest: string(n.policy.Digest())}, nil
}

// EraseDisks certifies that the node's disks are erased. Broken at "erase" it
// fails, at "erase-less" it leaves a disk out, at "erase-forged" it signs with a key
// that is not its own.
func (n *Node) EraseDisks(_ context.Context, in *devicev1.EraseDisksRequest) (*devicev1.EraseDisksResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.failsLocked("erase"); err != nil {
		return nil, err
	}
	key, doc := n.Key, approval.Erasure{
		Node: approval.NameOf(n.ID), NodeKey: n.public(), OrderID: protocol.OrderID(in.Order), OrderedBy: protocol.Person(in.OrderedBy),
		Standard: approval.ErasureStandard, Method: approval.ErasurePurge, Technique: approval.ErasureTechnique,
		Tool: "test", ToolVersion: "0", Verification: approval.ErasureVerified, Begun: n.now().Unix(), Finished: n.now().Unix(),
	}
	for d := range n.Disks {
		if n.broken != "erase-less" || d != "disk2" {
			doc.Media = append(doc.Media, approval.ErasedMedium{Disk: d, VolumeGUID: "{" + string(d) + "}", Size: 1, Encryption: "AES-XTS-128"})
		}
	}
	if n.broken == "erase-forged" {
		var err error
		if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	certificate, err := approval.SignEd25519(doc, key)
	return &devicev1.EraseDisksResponse{Certificate: certificate}, err
}
