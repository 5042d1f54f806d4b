package approval

import (
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Policy is a verified trust policy. It is immutable and may be used by
// several goroutines at once.
type Policy struct {
	doc      TrustPolicy
	digest   Digest
	recovery bool
	keys     map[string]policyKey // people's keys by id, the recovery key among them
	services map[string]verifier  // service keys by fingerprint
}

// policyKey is a key that can verify.
type policyKey struct {
	Key
	verifier
}

// VerifyPolicyV1 verifies version 1 of a trust policy, which its own customers
// must have signed: the threshold of every customer group.
func VerifyPolicyV1(envelope []byte) (*Policy, error) {
	e, err := open[TrustPolicy](envelope)
	if err != nil {
		return nil, err
	}
	if e.doc.Version != 1 {
		return nil, protocol.Errorf(protocol.CodePolicyDigest,
			"trust policy has version %d: the first one on a device must be version 1", e.doc.Version)
	}
	p, err := newPolicy(e)
	if err != nil {
		return nil, err
	}
	if err := p.verifyCustomers(e.Envelope); err != nil {
		return nil, err
	}
	return p, nil
}

// VerifySuccessor verifies the policy that is to replace p: of the same tenant
// and order, with the same log key, of a higher version, with p's digest, and
// signed by p's own customers (the threshold of every customer group) or by p's
// recovery key. The customers may name another recovery key, for when theirs is
// lost; the recovery key may not. Under another log key a node could not compare
// the log with what it has seen of it, and would never unlock again.
func (p *Policy) VerifySuccessor(envelope []byte) (*Policy, error) {
	e, err := open[TrustPolicy](envelope)
	if err != nil {
		return nil, err
	}
	if err := p.checkSuccessor(e.doc); err != nil {
		return nil, err
	}
	next, err := newPolicy(e)
	if err != nil {
		return nil, err
	}
	if next.recovery, err = p.verifyRecovery(e); err != nil {
		return nil, err
	}
	if !next.recovery {
		if err := p.verifyCustomers(e.Envelope); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// VerifyPolicies verifies version 1 and its successors in order and returns
// the last one: what a device does with the policies it has kept.
func VerifyPolicies(first []byte, successors ...[]byte) (*Policy, error) {
	p, err := VerifyPolicyV1(first)
	for _, next := range successors {
		if err != nil {
			return nil, err
		}
		p, err = p.VerifySuccessor(next)
	}
	return p, err
}

// Document returns the policy's document. It is shared: do not change it.
func (p *Policy) Document() TrustPolicy { return p.doc }

// Digest returns the digest that statements and consents must name.
func (p *Policy) Digest() Digest { return p.digest }

// ByRecovery reports whether the recovery key alone signed this policy, of
// which everyone must be told.
func (p *Policy) ByRecovery() bool { return p.recovery }

// Rule returns the rule for an action, and whether there is one.
func (p *Policy) Rule(a Action) (Rule, bool) {
	for _, r := range p.doc.Rules {
		if r.Action == a {
			return r, true
		}
	}
	return Rule{}, false
}

func newPolicy(e signed[TrustPolicy]) (*Policy, error) {
	p := &Policy{
		doc:      e.doc,
		digest:   e.Digest(),
		keys:     make(map[string]policyKey),
		services: make(map[string]verifier),
	}
	for _, k := range e.doc.allKeys() {
		v, err := k.verifier()
		if err != nil {
			return nil, invalid("policy: %v", err)
		}
		p.keys[k.ID] = policyKey{k, v}
	}
	for _, k := range e.doc.ServiceKeys {
		p.services[string(KeyFingerprint(k))] = machineVerifier(k)
	}
	return p, nil
}

func (p *Policy) checkSuccessor(next TrustPolicy) error {
	switch {
	case next.Version <= p.doc.Version:
		return p.cannotReplace("its version is %d", next.Version)
	case next.PreviousDigest != p.digest:
		return p.cannotReplace("its previousDigest is %s, want %s", next.PreviousDigest, p.digest)
	case next.TenantID != p.doc.TenantID || next.OrderID != p.doc.OrderID:
		return p.cannotReplace("it is for another tenant or order")
	case next.LogKey != p.doc.LogKey:
		return p.cannotReplace("its logKey differs, which may never change: nodes hold checkpoints signed by the present one")
	}
	return nil
}

func (p *Policy) cannotReplace(format string, args ...any) error {
	return protocol.Errorf(protocol.CodePolicyDigest, "trust policy cannot replace version %d: "+format,
		append([]any{p.doc.Version}, args...)...)
}

// sameKey reports whether two recovery keys are the same key, or both absent.
func sameKey(a, b *Key) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.ID == b.ID && a.Kind == b.Kind && a.PublicKey == b.PublicKey && a.RPID == b.RPID
}

// verifyRecovery reports whether e is signed by the recovery key and no other. It
// refuses one that names another recovery key: whoever found the key could not be
// kept from using theirs.
func (p *Policy) verifyRecovery(e signed[TrustPolicy]) (bool, error) {
	r := p.doc.RecoveryKey
	if r == nil || len(e.Signatures) != 1 || e.Signatures[0].KeyID != r.ID {
		return false, nil
	}
	if err := p.keys[r.ID].verifyIn(e.Envelope, e.Signatures[0]); err != nil {
		return false, err
	}
	if !sameKey(e.doc.RecoveryKey, r) {
		return false, p.cannotReplace("it is signed by the recovery key and names another, which only the customers may")
	}
	return true, nil
}

// verifyCustomers verifies that the customers of every rule of p signed e, and
// nobody else.
func (p *Policy) verifyCustomers(e Envelope) error {
	return p.verifyGroups(e, p.doc.Rules)
}

// verifyGroups verifies every signature of e and that they reach the threshold
// of every customer group of the rules. A signature of anyone else is refused.
func (p *Policy) verifyGroups(e Envelope, rules []Rule) error {
	signers := make(approvals)
	for _, s := range e.Signatures {
		k, ok := p.keys[s.KeyID]
		if !ok || !inRules(rules, s.KeyID) {
			return unknownSigner(e.PayloadType, s.KeyID)
		}
		if err := k.verifyIn(e, s); err != nil {
			return err
		}
		signers.add(k.Person, 0)
	}
	for _, r := range rules {
		if _, err := p.completed(r.CustomerGroups, signers); err != nil {
			return err
		}
	}
	return nil
}

// verifyIn verifies one signature of an envelope.
func (k policyKey) verifyIn(e Envelope, s Signature) error {
	if err := k.verify(e.PayloadType, e.PAE(), s.Sig); err != nil {
		return protocol.Errorf(protocol.CodeSignatureInvalid,
			"signature of %s (%s) on the %s is not valid: %v", k.ID, k.Person, e.PayloadType.name(), err)
	}
	return nil
}

func inRules(rules []Rule, keyID string) bool {
	for _, r := range rules {
		if inGroups(r.CustomerGroups, keyID) {
			return true
		}
	}
	return false
}

func unknownSigner(kind Kind, keyID string) error {
	return protocol.Errorf(protocol.CodeSignerUnknown,
		"%s is signed by key %q, which the trust policy does not name for that", kind.name(), keyID)
}

// unixTime returns the time of a document's field.
func unixTime(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }
