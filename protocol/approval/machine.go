package approval

import (
	"crypto/ed25519"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// VerifyChallenge verifies a challenge for a request, or a consent, that names
// the node: signed by the node's own key, for this subject, not yet expired.
func VerifyChallenge(envelope []byte, node NodeRef, subject Digest, now time.Time) (Challenge, error) {
	e, err := open[Challenge](envelope)
	if err != nil {
		return Challenge{}, err
	}
	c := e.doc
	if err := verifyNode(e.Envelope, node, c.Node, c.NodeKey); err != nil {
		return Challenge{}, err
	}
	if c.RequestDigest != subject {
		return Challenge{}, protocol.Errorf(protocol.CodeNonce, "the challenge of node %s is for another request", c.Node)
	}
	if !now.Before(unixTime(c.Expires)) {
		return Challenge{}, protocol.Errorf(protocol.CodeNonce,
			"the challenge of node %s expired at %s: ask for a new one", c.Node, protocol.Stamp(unixTime(c.Expires)))
	}
	return c, nil
}

// VerifyOrder verifies that the service signed an order, and nothing else, and
// returns it with the digest that a proof of opening must name. Errors carry
// [protocol.CodeServiceSignature] unless the order is malformed.
func (p *Policy) VerifyOrder(envelope []byte) (Order, Digest, error) {
	e, err := open[Order](envelope)
	if err != nil {
		return Order{}, "", err
	}
	if err := p.verifyService(e.Envelope); err != nil {
		return Order{}, "", err
	}
	return e.doc, e.Digest(), nil
}

// CommitRequest is what [Policy.VerifyCommit] judges.
type CommitRequest struct {
	Commit       []byte          // envelope
	Subject      Digest          // of the statement or the consent
	Nodes        []NodeRef       // all nodes that must have opened
	Self         protocol.NodeID // the node that asks
	OrderDigest  Digest          // of the order that node has carried out
	IntentDigest Digest          // of the intent recorded in that order
	Now          time.Time
}

// VerifyCommit verifies that the service signed a commit and that every node
// proves to have opened just now and in the same attempt, this one under the
// order it has carried out. The intent tells attempts apart: it has the nonces of
// all nodes, and this one has found its own in it. What lacks a proof is refused with [protocol.CodeNotOpened].
func (p *Policy) VerifyCommit(in CommitRequest) (Commit, error) {
	e, err := open[Commit](in.Commit)
	if err != nil {
		return Commit{}, err
	}
	if err := p.verifyService(e.Envelope); err != nil {
		return Commit{}, err
	}
	if e.doc.RequestDigest != in.Subject || len(e.doc.Opened) != len(in.Nodes) {
		return Commit{}, notOpened("the commit is for another request, or lacks a node")
	}
	for _, node := range in.Nodes {
		if err := in.findProof(e.doc.Opened, node); err != nil {
			return Commit{}, err
		}
	}
	return e.doc, nil
}

// findProof finds a node's proof among the envelopes and verifies it.
func (in CommitRequest) findProof(envelopes [][]byte, node NodeRef) error {
	for _, data := range envelopes {
		e, err := open[Opened](data)
		if err != nil {
			return err
		}
		if e.doc.Node != NameOf(node.ID()) {
			continue
		}
		if err := verifyNode(e.Envelope, node, e.doc.Node, e.doc.NodeKey); err != nil {
			return err
		}
		return in.checkProof(e.doc)
	}
	return notOpened("the commit has no proof of node %s", node.ID())
}

func (in CommitRequest) checkProof(o Opened) error {
	age := in.Now.Sub(unixTime(o.OpenedAt))
	switch {
	case o.RequestDigest != in.Subject:
		return notOpened("node %s opened for another request", o.Node)
	case o.Node == NameOf(in.Self) && o.OrderDigest != in.OrderDigest:
		return notOpened("the proof of node %s is of an earlier order", o.Node)
	case o.IntentDigest != in.IntentDigest:
		return notOpened("the proof of node %s is of another attempt", o.Node)
	case age > Skew || age < -Skew:
		return notOpened("node %s opened at %s, which is not now", o.Node, protocol.Stamp(unixTime(o.OpenedAt)))
	}
	return nil
}

// VerifyOpened verifies a node's proof of opening: signed by the node's own
// key, for this subject.
func VerifyOpened(envelope []byte, node NodeRef, subject Digest) (Opened, error) {
	e, err := open[Opened](envelope)
	if err != nil {
		return Opened{}, err
	}
	if err := verifyNode(e.Envelope, node, e.doc.Node, e.doc.NodeKey); err != nil {
		return Opened{}, err
	}
	if e.doc.RequestDigest != subject {
		return Opened{}, notOpened("node %s opened for another request", e.doc.Node)
	}
	return e.doc, nil
}

func notOpened(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeNotOpened, format, args...)
}

// verifyService verifies that one of the policy's service keys alone signed e.
func (p *Policy) verifyService(e Envelope) error {
	for _, s := range e.Signatures {
		v, ok := p.services[s.KeyID]
		if !ok || len(e.Signatures) != 1 || v.verify(e.PayloadType, e.PAE(), s.Sig) != nil {
			return protocol.Errorf(protocol.CodeServiceSignature,
				"the %s is not signed by a service key of the trust policy", e.PayloadType.name())
		}
	}
	return nil
}

// verifyNode verifies that a node alone signed e: the node of that name, with
// the key whose fingerprint the approval pins.
func verifyNode(e Envelope, want NodeRef, name NodeName, key ed25519.PublicKey) error {
	if name != NameOf(want.ID()) || KeyFingerprint(key) != want.KeyFingerprint {
		return protocol.Errorf(protocol.CodeNode, "the %s is of node %s with key %s, want %s with key %s",
			e.PayloadType.name(), name, KeyFingerprint(key), want.ID(), want.KeyFingerprint)
	}
	if e.VerifyEd25519(key) != nil {
		return protocol.Errorf(protocol.CodeSignatureInvalid,
			"the %s is not signed by the key of node %s", e.PayloadType.name(), name)
	}
	return nil
}
