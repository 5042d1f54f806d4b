package approval_test

import (
	"io"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// When the story of the tests begins, in Unix seconds.
const created = 1_793_000_000

// hand signs an envelope for one key id.
type hand func(t testing.TB, e *Envelope, keyID string)

func sshHand(signer func(testing.TB) ssh.Signer) hand {
	return func(t testing.TB, e *Envelope, keyID string) {
		t.Helper()
		if err := e.SignSSH(keyID, signer(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func byFile(name string) hand {
	return sshHand(func(t testing.TB) ssh.Signer { return sshSigner(t, name) })
}

func byTouch(name string) hand {
	return sshHand(func(testing.TB) ssh.Signer { return newSecurityKey(name) })
}

// byPasskey signs as name's authenticator does after change.
func byPasskey(name string, change func(*authenticator)) hand {
	return func(t testing.TB, e *Envelope, keyID string) {
		t.Helper()
		a := newAuthenticator(t, name)
		if change != nil {
			change(&a)
		}
		if err := e.AddPasskey(keyID, a.assert(t, e.PasskeyChallenge())); err != nil {
			t.Fatal(err)
		}
	}
}

// byMachine signs with a machine's key and puts keyID over it.
func byMachine(name string) hand {
	return func(t testing.TB, e *Envelope, keyID string) {
		t.Helper()
		if err := e.SignEd25519(machineKey(name)); err != nil {
			t.Fatal(err)
		}
		e.Signatures[len(e.Signatures)-1].KeyID = keyID
	}
}

// byBlob signs with a hand-made SSHSIG.
func byBlob(name string, change func(*sshsig)) hand {
	return func(t testing.TB, e *Envelope, keyID string) {
		t.Helper()
		s := plainSSHSig(e.PayloadType)
		change(&s)
		e.Signatures = append(e.Signatures, Signature{KeyID: keyID, Sig: s.sign(t, sshSigner(t, name), e.PAE())})
	}
}

// restSigner changes what follows the inner signatures of an SSH key.
type restSigner struct {
	ssh.Signer
	change func(rest []byte) []byte
}

func (s restSigner) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	sig, err := s.Signer.Sign(rand, data)
	if err == nil {
		sig.Rest = s.change(sig.Rest)
	}
	return sig, err
}

func byRest(signer func(testing.TB) ssh.Signer, change func(rest []byte) []byte) hand {
	return func(t testing.TB, e *Envelope, keyID string) {
		t.Helper()
		sig := plainSSHSig(e.PayloadType).sign(t, restSigner{signer(t), change}, e.PAE())
		e.Signatures = append(e.Signatures, Signature{KeyID: keyID, Sig: sig})
	}
}

func oneMore(rest []byte) []byte { return append(rest, 0) }

func none([]byte) []byte { return nil }

// hands are those of the people in the base policy.
var hands = map[string]hand{
	"alice-laptop": byFile("alice"),
	"alice-spare":  byFile("alice spare"),
	"bob-passkey":  byPasskey("bob", nil),
	"carol-token":  byTouch("carol"),
	"petra-laptop": byFile("petra"),
	"petra-spare":  byFile("petra spare"),
	"paul-laptop":  byFile("paul"),
	"dave-laptop":  byFile("dave"),
	"vault":        byFile("vault"),
	"erin-laptop":  byFile("erin"),
	"mallory":      byFile("mallory"),
}

// signedDoc is a document and who signs it.
type signedDoc[T Document] struct {
	doc    T
	keyIDs []string
	hand   hand            // in place of the hands of keyIDs
	change func(*Envelope) // after signing
}

func (s signedDoc[T]) envelope(t testing.TB) []byte {
	t.Helper()
	e := must[Envelope](t)(NewEnvelope(s.doc))
	for _, id := range s.keyIDs {
		h := s.hand
		if h == nil {
			h = hands[id]
		}
		h(t, &e, id)
	}
	if s.change != nil {
		s.change(&e)
	}
	return must[[]byte](t)(e.Encode())
}

// scene is a whole request before anything is signed. Digests that are empty
// are filled in when it is built.
type scene struct {
	policy      signedDoc[TrustPolicy]
	statement   Statement
	decisions   []signedDoc[Decision]
	revocations []signedDoc[Revocation]
	consent     signedDoc[Consent]
	standing    *signedDoc[Standing] // comes with the decisions
	self        NodeRef
	selfDisks   []protocol.DiskID
	now         int64

	changeUnlock func(*Request)     // after signing
	changeCopy   func(*CopyRequest) // after signing
}

func (s *scene) decision(keyID string) *signedDoc[Decision] {
	for i := range s.decisions {
		if s.decisions[i].keyIDs[0] == keyID {
			return &s.decisions[i]
		}
	}
	panic("no decision by " + keyID)
}

// without drops the decision by keyID.
func (s *scene) without(keyID string) {
	var rest []signedDoc[Decision]
	for _, d := range s.decisions {
		if d.keyIDs[0] != keyID {
			rest = append(rest, d)
		}
	}
	s.decisions = rest
}

func (s *scene) rule(a Action) *Rule {
	for i := range s.policy.doc.Rules {
		if s.policy.doc.Rules[i].Action == a {
			return &s.policy.doc.Rules[i]
		}
	}
	panic("no rule")
}

func approve(keyID string, role Role, at int64) signedDoc[Decision] {
	return signedDoc[Decision]{
		doc:    Decision{Role: role, Verdict: Approve, MaxDuration: 8 * 3600, DecidedAt: at, Signer: keyID},
		keyIDs: []string{keyID},
	}
}

func sshKey(t testing.TB, id string, person protocol.Person, pub ssh.PublicKey) Key {
	t.Helper()
	return must[Key](t)(NewSSHKey(id, person, authorized(pub)))
}

func logKey(t testing.TB) string {
	t.Helper()
	return must[string](t)(note.NewEd25519VerifierKey("log.lockbox.example", machinePublic("log")))
}

func node(n int) NodeRef {
	return NodeRef{Serial: "DBX0001", Node: n, KeyFingerprint: KeyFingerprint(machinePublic("node " + string(rune('0'+n))))}
}

// basePolicy has two customer groups, one provider group, every kind of key,
// a recovery key, and an exclusion.
func basePolicy(t testing.TB) TrustPolicy {
	t.Helper()
	vault := sshKey(t, "vault", "vault@contoso.example", sshSigner(t, "vault").PublicKey())
	owners := Group{Name: "owners", Threshold: 1, Keys: []string{"alice-laptop", "alice-spare", "bob-passkey"}}
	return TrustPolicy{
		TenantID: "contoso",
		OrderID:  "ORD-1001",
		Version:  1,
		Keys: []Key{
			sshKey(t, "alice-laptop", "alice@contoso.example", sshSigner(t, "alice").PublicKey()),
			sshKey(t, "alice-spare", "alice@contoso.example", sshSigner(t, "alice spare").PublicKey()),
			newAuthenticator(t, "bob").policyKey(t, "bob-passkey", "bob@contoso.example"),
			sshKey(t, "carol-token", "carol@contoso.example", newSecurityKey("carol").PublicKey()),
			sshKey(t, "dave-laptop", "dave@contoso.example", sshSigner(t, "dave").PublicKey()),
			sshKey(t, "petra-laptop", "petra@provider.example", sshSigner(t, "petra").PublicKey()),
			sshKey(t, "petra-spare", "petra@provider.example", sshSigner(t, "petra spare").PublicKey()),
			sshKey(t, "paul-laptop", "paul@provider.example", sshSigner(t, "paul").PublicKey()),
		},
		Rules: []Rule{
			{
				Action:         UnlockDatabox,
				CustomerGroups: []Group{owners, {Name: "security", Threshold: 1, Keys: []string{"carol-token"}}},
				ProviderGroups: []Group{{Name: "support leads", Threshold: 1, Keys: []string{"petra-laptop"}}},
				Service:        true,
				MaxDuration:    8 * 3600,
			},
			{Action: CopyData, CustomerGroups: []Group{owners}, Service: true, MaxDuration: 24 * 3600},
		},
		ServiceKeys: [][]byte{machinePublic("service"), machinePublic("next service")},
		LogKey:      logKey(t),
		RecoveryKey: &vault,
		Exclusions: []ExclusionRule{{
			Kind:           BreakGlass,
			ProviderGroups: []Group{{Name: "duty managers", Threshold: 2, Keys: []string{"petra-laptop", "petra-spare", "paul-laptop"}}},
			Access:         ReadWrite, MaxDuration: 2 * 3600,
		}},
	}
}

func newScene(t testing.TB) *scene {
	t.Helper()
	disks := []DiskRef{{"DBX0001/1", "disk1"}, {"DBX0001/1", "disk2"}}
	return &scene{
		policy: signedDoc[TrustPolicy]{doc: basePolicy(t), keyIDs: []string{"alice-laptop", "carol-token"}},
		statement: Statement{
			RequestID: "LockboxRequest_6f1c1e2a-8f0e-4b7e-9d58-0d1a2b3c4d5e", Action: UnlockDatabox,
			TenantID: "contoso", SubscriptionID: "11111111-2222-3333-4444-555555555555", OrderID: "ORD-1001",
			Nodes: []NodeRef{node(1)}, Disks: disks, Purpose: protocol.SupportAccess, Access: ReadWrite,
			ReasonCode: "copied-to-wrong-folder", Ticket: "SR-2001",
			Engineer:    Engineer{"erin@provider.example", ssh.FingerprintSHA256(sshSigner(t, "erin").PublicKey())},
			MaxDuration: 8 * 3600, Created: created, Expires: created + 4*24*3600,
		},
		decisions: []signedDoc[Decision]{
			approve("petra-laptop", Provider, created+60),
			approve("alice-laptop", Customer, created+120),
			approve("carol-token", Customer, created+600),
		},
		consent: signedDoc[Consent]{
			doc: Consent{
				ConsentID: "CON-0c5b1f4e-52a2-44d3-a7a5-6ddc6d4dbb0a", TenantID: "contoso",
				SubscriptionID: "11111111-2222-3333-4444-555555555555", OrderID: "ORD-1001",
				Nodes: []NodeRef{node(1)}, Disks: disks,
				Destinations: []Destination{{Account: "contosodata", Endpoint: "https://contosodata.blob.example", ServerName: "contosodata.blob.example"}},
				Created:      created, Until: created + 30*24*3600,
			},
			keyIDs: []string{"alice-laptop"},
		},
		self: node(1), selfDisks: []protocol.DiskID{"disk1", "disk2", "disk3"},
		now: created + 700,
	}
}

// unlock signs everything and returns the policy's envelope and the request.
func (s *scene) unlock(t testing.TB) ([]byte, Request) {
	t.Helper()
	policy := s.policy.envelope(t)
	if s.statement.PolicyDigest == "" {
		s.statement.PolicyDigest = digestOfPayload(t, policy)
	}
	statement := must[[]byte](t)(s.statement.Encode())
	in := Request{Statement: statement, Self: &s.self, SelfDisks: s.selfDisks, Now: time.Unix(s.now, 0)}
	for _, d := range s.decisions {
		if d.doc.RequestDigest == "" {
			d.doc.RequestDigest = DigestOf(statement)
		}
		in.Decisions = append(in.Decisions, d.envelope(t))
	}
	if s.standing != nil {
		standing := *s.standing
		if standing.doc.PolicyDigest == "" {
			standing.doc.PolicyDigest = digestOfPayload(t, policy)
		}
		in.Decisions = append(in.Decisions, standing.envelope(t))
	}
	in.Revocations = s.signRevocations(t, DigestOf(statement))
	if s.changeUnlock != nil {
		s.changeUnlock(&in)
	}
	return policy, in
}

// copyRequest signs everything and returns the policy's envelope and the
// request of the copy job.
func (s *scene) copyRequest(t testing.TB) ([]byte, CopyRequest) {
	t.Helper()
	policy := s.policy.envelope(t)
	if s.consent.doc.PolicyDigest == "" {
		s.consent.doc.PolicyDigest = digestOfPayload(t, policy)
	}
	consent := s.consent.envelope(t)
	in := CopyRequest{
		Consent: consent, Revocations: s.signRevocations(t, digestOfPayload(t, consent)),
		Self: &s.self, SelfDisks: s.selfDisks, Now: time.Unix(s.now, 0),
	}
	if s.changeCopy != nil {
		s.changeCopy(&in)
	}
	return policy, in
}

func (s *scene) signRevocations(t testing.TB, subject Digest) [][]byte {
	t.Helper()
	var list [][]byte
	for _, r := range s.revocations {
		if r.doc.SubjectDigest == "" {
			r.doc.SubjectDigest = subject
		}
		list = append(list, r.envelope(t))
	}
	return list
}

func digestOfPayload(t testing.TB, envelope []byte) Digest {
	t.Helper()
	return must[Envelope](t)(ParseEnvelope(envelope)).Digest()
}

// revoke returns a revocation of the request itself, signed by keyID.
func revoke(keyID string) signedDoc[Revocation] {
	return signedDoc[Revocation]{
		doc:    Revocation{Reason: "no longer needed", RevokedAt: created + 650, Signer: keyID},
		keyIDs: []string{keyID},
	}
}

func revokeByService() signedDoc[Revocation] {
	r := revoke(string(KeyFingerprint(machinePublic("service"))))
	r.hand = byMachine("service")
	return r
}

// authorize runs the whole verification of a scene.
func (s *scene) authorize(t testing.TB) (Grant, error) {
	t.Helper()
	policy, in := s.unlock(t)
	p, err := VerifyPolicyV1(policy)
	if err != nil {
		return Grant{}, err
	}
	return p.Authorize(in)
}

func (s *scene) authorizeCopy(t testing.TB) (CopyGrant, error) {
	t.Helper()
	policy, in := s.copyRequest(t)
	p, err := VerifyPolicyV1(policy)
	if err != nil {
		return CopyGrant{}, err
	}
	return p.AuthorizeCopy(in)
}

func wantCode(t *testing.T, err error, want protocol.Code) {
	t.Helper()
	if got := protocol.CodeOf(err); got != want {
		t.Errorf("code is %q (%v), want %q", got, err, want)
	}
}
