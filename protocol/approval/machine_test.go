package approval_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// machines is an unlock of two nodes after the approval, before anything is
// signed.
type machines struct {
	subject              Digest
	nodes                []NodeRef
	challenge            Challenge
	challengeKey         string // name of the signing key
	order                Order
	orderKey             string
	opened               []Opened
	openedKeys           []string
	commit               Commit
	commitKey            string
	now                  int64
	changeOrder, changed func(*Envelope) // of the order, of every other envelope; after signing
}

func newMachines(t testing.TB) *machines {
	t.Helper()
	subject := DigestOf([]byte("a statement"))
	m := &machines{
		subject: subject, nodes: []NodeRef{node(1), node(2)}, now: created + 720,
		challenge: Challenge{
			Node: "DBX0001/1", NodeKey: machinePublic("node 1"), RequestDigest: subject,
			Nonce: seed("nonce"), HPKEKey: seed("hpke key"), Expires: created + 760,
		},
		challengeKey: "node 1",
		order: Order{
			Purpose: protocol.SupportAccess, Node: "DBX0001/1", RequestDigest: subject,
			DecisionsDigest: DigestOf([]byte("decisions")), Nonce: seed("nonce"), IssuedAt: created + 710,
			Keys:          []SealedKey{{Disk: "disk1", KeyType: "bitlocker-external-key", Ciphertext: seed("sealed")}},
			LogCheckpoint: []byte("log.lockbox.example\n1\n"), LogRecord: []byte(`{"op":"unlock"}`), LogProof: [][]byte{seed("left")},
		},
		orderKey: "service", commitKey: "service", openedKeys: []string{"node 1", "node 2"},
	}
	for i, n := range m.nodes {
		m.opened = append(m.opened, Opened{
			Node: NameOf(n.ID()), NodeKey: machinePublic(m.openedKeys[i]), RequestDigest: subject, OpenedAt: created + 715,
			IntentDigest: DigestOf(m.order.LogRecord),
		})
	}
	m.commit = Commit{RequestDigest: subject, IssuedAt: created + 718}
	return m
}

func (m *machines) sign(t testing.TB, doc Document, key string, change func(*Envelope)) []byte {
	t.Helper()
	e := must[Envelope](t)(NewEnvelope(doc))
	if err := e.SignEd25519(machineKey(key)); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&e)
	}
	return must[[]byte](t)(e.Encode())
}

// signed is what the machines send.
type signedMachines struct {
	challenge, order, commit []byte
	opened                   [][]byte
	orderDigest              Digest
}

func (m *machines) signAll(t testing.TB) signedMachines {
	t.Helper()
	s := signedMachines{
		challenge: m.sign(t, m.challenge, m.challengeKey, m.changed),
		order:     m.sign(t, m.order, m.orderKey, m.changeOrder),
	}
	s.orderDigest = digestOfPayload(t, s.order)
	for i, o := range m.opened {
		if o.OrderDigest == "" {
			o.OrderDigest = s.orderDigest
		}
		s.opened = append(s.opened, m.sign(t, o, m.openedKeys[i], m.changed))
	}
	if m.commit.Opened == nil {
		m.commit.Opened = s.opened
	}
	s.commit = m.sign(t, m.commit, m.commitKey, m.changed)
	return s
}

// verify runs the verification of one step.
func (m *machines) verify(t testing.TB, step string) error {
	t.Helper()
	s := m.signAll(t)
	p := must[*Policy](t)(VerifyPolicyV1(newScene(t).policy.envelope(t)))
	var err error
	switch step {
	case "challenge":
		_, err = VerifyChallenge(s.challenge, m.nodes[0], m.subject, time.Unix(m.now, 0))
	case "order":
		_, _, err = p.VerifyOrder(s.order)
	case "opened":
		_, err = VerifyOpened(s.opened[0], m.nodes[0], m.subject)
	case "commit":
		_, err = p.VerifyCommit(m.commitRequest(s))
	}
	return err
}

func (m *machines) commitRequest(s signedMachines) CommitRequest {
	return CommitRequest{
		Commit: s.commit, Subject: m.subject, Nodes: m.nodes, Self: m.nodes[0].ID(),
		OrderDigest: s.orderDigest, IntentDigest: m.order.IntentDigest(), Now: time.Unix(m.now, 0),
	}
}

// alsoSigned adds a second signature.
func alsoSigned(t testing.TB, name string) func(*Envelope) {
	return func(e *Envelope) {
		t.Helper()
		if err := e.SignEd25519(machineKey(name)); err != nil {
			t.Fatal(err)
		}
	}
}

type machineCase struct {
	name, step string
	fault      func(t testing.TB, m *machines)
	code       protocol.Code
}

var machineCases = []machineCase{
	{"challenge-other-node", "challenge", func(_ testing.TB, m *machines) { m.challenge.Node = "DBX0001/2" }, protocol.CodeNode},
	{"challenge-other-key", "challenge", func(_ testing.TB, m *machines) {
		m.challenge.NodeKey, m.challengeKey = machinePublic("thief"), "thief"
	}, protocol.CodeNode},
	{"challenge-signed-by-another", "challenge", func(_ testing.TB, m *machines) { m.challengeKey = "thief" }, protocol.CodeSignatureInvalid},
	{"challenge-signed-twice", "challenge", func(t testing.TB, m *machines) { m.changed = alsoSigned(t, "mallory") }, protocol.CodeSignatureInvalid},
	{"challenge-key-id", "challenge", func(_ testing.TB, m *machines) {
		m.changed = func(e *Envelope) { e.Signatures[0].KeyID = "node-1" }
	}, protocol.CodeSignatureInvalid},
	{"challenge-flipped", "challenge", func(_ testing.TB, m *machines) { m.changed = flip }, protocol.CodeSignatureInvalid},
	{"challenge-other-request", "challenge", func(_ testing.TB, m *machines) { m.challenge.RequestDigest = DigestOf(nil) }, protocol.CodeNonce},
	{"challenge-expired", "challenge", func(_ testing.TB, m *machines) { m.now = m.challenge.Expires }, protocol.CodeNonce},
	{"order-by-another", "order", func(_ testing.TB, m *machines) { m.orderKey = "mallory" }, protocol.CodeServiceSignature},
	{"order-flipped", "order", func(_ testing.TB, m *machines) { m.changeOrder = flip }, protocol.CodeServiceSignature},
	{"order-signed-twice", "order", func(t testing.TB, m *machines) {
		m.changeOrder = alsoSigned(t, "next service")
	}, protocol.CodeServiceSignature},
	{"order-by-approver", "order", func(_ testing.TB, m *machines) {
		m.changeOrder = func(e *Envelope) { e.Signatures[0].KeyID = "alice-laptop" }
	}, protocol.CodeServiceSignature},
	{"opened-by-another", "opened", func(_ testing.TB, m *machines) { m.openedKeys[0] = "node 2" }, protocol.CodeSignatureInvalid},
	{"opened-other-node", "opened", func(_ testing.TB, m *machines) { m.opened[0].Node = "DBX0001/2" }, protocol.CodeNode},
	{"opened-other-request", "opened", func(_ testing.TB, m *machines) { m.opened[0].RequestDigest = DigestOf(nil) }, protocol.CodeNotOpened},
	{"commit-by-another", "commit", func(_ testing.TB, m *machines) { m.commitKey = "mallory" }, protocol.CodeServiceSignature},
	{"commit-by-node", "commit", func(_ testing.TB, m *machines) { m.commitKey = "node 1" }, protocol.CodeServiceSignature},
	{"commit-other-request", "commit", func(_ testing.TB, m *machines) { m.commit.RequestDigest = DigestOf(nil) }, protocol.CodeNotOpened},
	{"commit-lacks-a-node", "commit", func(_ testing.TB, m *machines) {
		m.opened, m.openedKeys = m.opened[:1], m.openedKeys[:1]
	}, protocol.CodeNotOpened},
	{"commit-has-another-node", "commit", func(_ testing.TB, m *machines) { m.nodes = m.nodes[:1] }, protocol.CodeNotOpened},
	{"commit-one-node-twice", "commit", func(_ testing.TB, m *machines) {
		m.opened[1], m.openedKeys[1] = m.opened[0], m.openedKeys[0]
	}, protocol.CodeNotOpened},
	{"commit-forged-proof", "commit", func(_ testing.TB, m *machines) { m.openedKeys[1] = "service" }, protocol.CodeSignatureInvalid},
	{"commit-proof-of-other-key", "commit", func(_ testing.TB, m *machines) {
		m.opened[1].NodeKey, m.openedKeys[1] = machinePublic("thief"), "thief"
	}, protocol.CodeNode},
	{"commit-proof-of-other-request", "commit", func(_ testing.TB, m *machines) { m.opened[1].RequestDigest = DigestOf(nil) }, protocol.CodeNotOpened},
	{"commit-own-proof-of-other-order", "commit", func(_ testing.TB, m *machines) { m.opened[0].OrderDigest = DigestOf(nil) }, protocol.CodeNotOpened},
	{"commit-proof-of-other-attempt", "commit", func(_ testing.TB, m *machines) {
		m.opened[1].IntentDigest = DigestOf([]byte("an earlier attempt"))
	}, protocol.CodeNotOpened},
	{"commit-own-proof-of-other-attempt", "commit", func(_ testing.TB, m *machines) { m.opened[0].IntentDigest = DigestOf(nil) }, protocol.CodeNotOpened},
	{"commit-old-proof", "commit", func(_ testing.TB, m *machines) { m.opened[1].OpenedAt = created + 720 - 121 }, protocol.CodeNotOpened},
	{"commit-proof-of-the-future", "commit", func(_ testing.TB, m *machines) { m.opened[1].OpenedAt = created + 720 + 121 }, protocol.CodeNotOpened},
}

func TestMachines(t *testing.T) {
	for _, c := range machineCases {
		t.Run(c.name, func(t *testing.T) {
			if err := newMachines(t).verify(t, c.step); err != nil {
				t.Fatalf("control is refused: %v", err)
			}
			m := newMachines(t)
			c.fault(t, m)
			wantCode(t, m.verify(t, c.step), c.code)
		})
	}
}

// TestMachinesReturnWhatWasSigned checks the values that come back.
func TestMachinesReturnWhatWasSigned(t *testing.T) {
	m := newMachines(t)
	s := m.signAll(t)
	p := must[*Policy](t)(VerifyPolicyV1(newScene(t).policy.envelope(t)))
	header := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Header" }, cmp.Ignore())

	challenge := must[Challenge](t)(VerifyChallenge(s.challenge, m.nodes[0], m.subject, time.Unix(m.now, 0)))
	if diff := cmp.Diff(m.challenge, challenge, header); diff != "" {
		t.Error(diff)
	}
	order, digest, err := p.VerifyOrder(s.order)
	if err != nil || digest != s.orderDigest {
		t.Errorf("order digest is %s, %v", digest, err)
	}
	if diff := cmp.Diff(m.order, order, header); diff != "" {
		t.Error(diff)
	}
	commit := must[Commit](t)(p.VerifyCommit(m.commitRequest(s)))
	if diff := cmp.Diff(m.commit, commit, header); diff != "" {
		t.Error(diff)
	}
}

// Access to destinations is for the copy job, and said once for an account.
func TestOrderWithAccess(t *testing.T) {
	one := SealedAccess{Account: "contosodata", Endpoint: "https://contosodata.blob.core.windows.net", KeyType: "azure-storage-credential", Ciphertext: make([]byte, 3184)}
	m := newMachines(t)
	m.order.Purpose, m.order.Access = protocol.DataCopy, []SealedAccess{one}
	if err := m.verify(t, "order"); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(o *Order){
		"for support": func(o *Order) { o.Purpose = protocol.SupportAccess },
		"twice":       func(o *Order) { o.Access = append(o.Access, one) },
		"no account":  func(o *Order) { o.Access[0].Account = "" },
		"no endpoint": func(o *Order) { o.Access[0].Endpoint = "" },
		"no key type": func(o *Order) { o.Access[0].KeyType = "" },
		"too long":    func(o *Order) { o.Access[0].Ciphertext = make([]byte, 4097) },
	} {
		o := m.order
		o.Access = []SealedAccess{one}
		change(&o)
		if _, err := o.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

// TestOrderForManyDisks checks that the order of one node of the largest
// device fits: 70 disks, sealed with the hybrid key.
func TestOrderForManyDisks(t *testing.T) {
	m := newMachines(t)
	m.order.Keys = nil
	for i := range 70 {
		disk := protocol.DiskID("disk" + string(rune('0'+i/10)) + string(rune('0'+i%10)))
		m.order.Keys = append(m.order.Keys, SealedKey{Disk: disk, KeyType: "bitlocker-external-key", Ciphertext: make([]byte, 1168)})
	}
	if err := m.verify(t, "order"); err != nil {
		t.Error(err)
	}
}
