package custody

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// subject is what allows an unlock, a request or a consent, as it is stored.
// Nothing in it is trusted before authorize.
type subject struct {
	id          string // of the request or consent
	purpose     protocol.Purpose
	order       store.Order
	digest      approval.Digest
	nodes       []approval.NodeRef
	disks       []approval.DiskRef
	statement   []byte             // payload; nil for data-copy
	decisions   [][]byte           // envelopes
	consent     []byte             // envelope; nil for support-access
	revocations [][]byte           // envelopes
	revoked     bool               // by anyone, signed or not
	exclusion   approval.Exclusion // why the customer was not asked; "" if they were
	policy      *approval.Policy
}

// grant is what the approvals allow.
type grant struct {
	decisions    approval.Digest
	end          time.Time
	destinations []approval.Destination // of a consent
}

func (s *Service) load(ctx context.Context, in UnlockIn) (sub subject, err error) {
	err = s.Store.View(ctx, func(tx *store.Tx) error {
		if in.Consent != "" {
			err = sub.loadConsent(ctx, tx, in.Consent)
		} else {
			err = sub.loadRequest(ctx, tx, in.Request)
		}
		if err != nil {
			return err
		}
		if err := sub.loadRevocations(ctx, tx); err != nil {
			return err
		}
		return sub.loadPolicy(ctx, tx)
	})
	return sub, err
}

func (sub *subject) loadRequest(ctx context.Context, tx *store.Tx, id protocol.RequestID) error {
	r, err := tx.Request(ctx, id)
	if err != nil {
		return err
	}
	st, err := approval.ParseStatement(r.Statement)
	if err != nil {
		return err
	}
	if err := checkTold(ctx, tx, r, st.Exclusion); err != nil {
		return err
	}
	decisions, err := tx.Decisions(ctx, id)
	if err != nil {
		return err
	}
	for _, d := range decisions {
		sub.decisions = append(sub.decisions, d.Envelope)
	}
	sub.id, sub.purpose, sub.statement, sub.exclusion = string(id), st.Purpose, r.Statement, st.Exclusion
	sub.digest, sub.nodes, sub.disks = approval.DigestOf(r.Statement), st.Nodes, st.Disks
	sub.order, err = tx.Order(ctx, r.Order)
	return err
}

// toldFirst is the kind of notice without which nothing is opened unless the
// customer agreed: notify.BreakGlass.
const toldFirst = "break-glass"

// checkTold refuses to open without the customer what the customer was not told of
// first.
func checkTold(ctx context.Context, tx *store.Tx, r store.Request, x approval.Exclusion) error {
	if x == "" {
		return nil
	}
	told, err := tx.HasNotice(ctx, toldFirst, string(r.ID))
	if err == nil && !told {
		err = protocol.Errorf(protocol.CodeNotRecorded, "nothing was opened: the customer was not told of request %d (%s) first", r.Number, x)
	}
	return err
}

func (sub *subject) loadConsent(ctx context.Context, tx *store.Tx, id protocol.ConsentID) error {
	r, err := tx.Consent(ctx, id)
	if err != nil {
		return err
	}
	c, err := approval.ParseConsent(r.Payload)
	if err != nil {
		return err
	}
	if r.Envelope == nil {
		return protocol.Errorf(protocol.CodeNotApproved, "consent %s is not signed by the customer yet", id)
	}
	sub.id, sub.purpose, sub.consent = string(id), protocol.DataCopy, r.Envelope
	sub.digest, sub.nodes, sub.disks = approval.DigestOf(r.Payload), c.Nodes, c.Disks
	sub.revoked = !r.Revoked.IsZero()
	sub.order, err = tx.Order(ctx, r.Order)
	return err
}

func (sub *subject) loadRevocations(ctx context.Context, tx *store.Tx) error {
	rows, err := tx.Revocations(ctx, string(sub.digest))
	if err != nil {
		return err
	}
	for _, r := range rows {
		sub.revoked = true
		if r.Envelope != nil {
			sub.revocations = append(sub.revocations, r.Envelope)
		}
	}
	return nil
}

func (sub *subject) loadPolicy(ctx context.Context, tx *store.Tx) error {
	rows, err := tx.TrustPolicies(ctx, sub.order.ID)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return protocol.Errorf(protocol.CodePolicyDigest, "order %s has no signed trust policy", sub.order.ID)
	}
	var later [][]byte
	for _, r := range rows[1:] {
		later = append(later, r.Envelope)
	}
	sub.policy, err = approval.VerifyPolicies(rows[0].Envelope, later...)
	return err
}

// serial is the one device of the subject.
func (sub *subject) serial() protocol.DeviceSerial { return sub.nodes[0].Serial }

func (sub *subject) ids() []protocol.NodeID {
	var ids []protocol.NodeID
	for _, n := range sub.nodes {
		ids = append(ids, n.ID())
	}
	return ids
}

func (sub *subject) disksOf(id protocol.NodeID) []protocol.DiskID {
	var out []protocol.DiskID
	for _, d := range sub.disks {
		if d.Node == approval.NameOf(id) {
			out = append(out, d.Disk)
		}
	}
	return out
}

// authorize verifies everything that people signed, with the same code as the
// device.
func (sub *subject) authorize(now time.Time) (grant, error) {
	if sub.revoked {
		return grant{}, protocol.Errorf(protocol.CodeRevoked, "%s was revoked", sub.id)
	}
	if sub.purpose == protocol.DataCopy {
		g, err := sub.policy.AuthorizeCopy(approval.CopyRequest{Consent: sub.consent, Revocations: sub.revocations, Now: now})
		if err == nil && g.ConsentDigest != sub.digest {
			err = protocol.Errorf(protocol.CodeSignatureInvalid, "what the customer signed is not consent %s", sub.id)
		}
		return grant{g.DecisionsDigest, g.End, g.Destinations}, err
	}
	g, err := sub.policy.Authorize(approval.Request{
		Statement: sub.statement, Decisions: sub.decisions, Revocations: sub.revocations, Now: now,
	})
	return grant{decisions: g.DecisionsDigest, end: g.End}, err
}

// nodeKeys returns the enrolled keys of the subject's nodes, as DER, in their
// order. A node that enrolled with another key since is refused.
func (s *Service) nodeKeys(ctx context.Context, sub *subject) (keys [][]byte, err error) {
	err = s.Store.View(ctx, func(tx *store.Tx) error {
		for _, ref := range sub.nodes {
			node, err := tx.Node(ctx, ref.ID())
			if err != nil {
				return err
			}
			if err := checkEnrolled(node, ref); err != nil {
				return err
			}
			keys = append(keys, node.SPKI)
		}
		return nil
	})
	return keys, err
}

func checkEnrolled(node store.Node, ref approval.NodeRef) error {
	if !node.Revoked.IsZero() {
		return protocol.Errorf(protocol.CodeForbidden, "node %s was revoked: it has to be enrolled again", node.ID)
	}
	key, err := x509.ParsePKIXPublicKey(node.SPKI)
	if err != nil {
		return fmt.Errorf("node %s has no enrolled key: %w", node.ID, err)
	}
	pub, ok := key.(ed25519.PublicKey)
	if !ok || approval.KeyFingerprint(pub) != ref.KeyFingerprint {
		return protocol.Errorf(protocol.CodeNode, "node %s enrolled with another key since this was approved: ask for a new approval", node.ID)
	}
	return nil
}
