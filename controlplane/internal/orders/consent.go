package orders

import (
	"context"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// DraftConsent makes the data-copy consent for the customer to sign. It names
// every node with its key, the disks and the destinations, so all nodes must be
// enrolled, and no destination may belong to another tenant.
func (s *Service) DraftConsent(ctx context.Context, caller auth.Caller, in *lockboxv1.DraftConsentRequest) (*lockboxv1.Document, error) {
	var doc *lockboxv1.Document
	err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		c, err := s.draftConsent(ctx, tx, o, in.Until)
		if err != nil {
			return err
		}
		if err := s.claim(ctx, tx, o); err != nil {
			return err
		}
		shown, err := document("consent", c)
		if err != nil {
			return err
		}
		doc = shown
		return tx.InsertConsent(ctx, &store.Consent{
			ID: c.ConsentID, Order: o.ID, Digest: shown.Digest, Payload: shown.Payload,
			Created: time.Unix(c.Created, 0), Expires: time.Unix(c.Until, 0),
		})
	})
	if err != nil {
		return nil, err
	}
	return doc, nil
}

func (s *Service) draftConsent(ctx context.Context, tx *store.Tx, o store.Order, until int64) (approval.Consent, error) {
	now := s.now()
	end := now.Add(ConsentTTL)
	if until != 0 {
		end = time.Unix(until, 0)
	}
	if Finished(o) {
		return approval.Consent{}, conflict("order %s is %s: there is nothing left to copy", o.ID, o.Stage)
	}
	if !end.After(now) || end.After(now.Add(MaxConsentTTL)) {
		return approval.Consent{}, invalid("the consent would end at %s: want a time within a year from now", protocol.Stamp(end))
	}
	policy, err := TrustPolicy(ctx, tx, o)
	if err != nil {
		return approval.Consent{}, err
	}
	nodes, disks, err := Place(ctx, tx, o)
	if err != nil {
		return approval.Consent{}, err
	}
	c := approval.Consent{
		ConsentID: protocol.ConsentID("CON-" + newGUID()), TenantID: o.Tenant, SubscriptionID: o.Subscription, OrderID: o.ID,
		Nodes: nodes, Disks: disks, PolicyDigest: policy.Digest(), Created: now.Unix(), Until: end.Unix(),
	}
	for _, d := range o.Destinations {
		c.Destinations = append(c.Destinations, approval.Destination{Account: d.Account, Endpoint: d.Endpoint})
	}
	return c, nil
}

// Place returns what an approval about an order's device has to name: every
// node, with the key it enrolled with, and all disks. It refuses while a node
// is not enrolled, or was revoked.
func Place(ctx context.Context, tx *store.Tx, o store.Order) ([]approval.NodeRef, []approval.DiskRef, error) {
	nodes, err := tx.NodesOfOrder(ctx, o.ID)
	if err != nil {
		return nil, nil, err
	}
	if len(nodes) == 0 {
		return nil, nil, conflict("order %s has no device yet", o.ID)
	}
	var refs []approval.NodeRef
	for _, n := range nodes {
		if n.KeyFingerprint == "" {
			return nil, nil, conflict("node %s is not enrolled yet: its key has to be known first", n.ID)
		}
		if !n.Revoked.IsZero() {
			return nil, nil, conflict("node %s was revoked: enrol it again with a replacing join token", n.ID)
		}
		refs = append(refs, approval.NodeRef{Serial: n.ID.Serial, Node: n.ID.Node, KeyFingerprint: approval.Digest(n.KeyFingerprint)})
	}
	rows, err := tx.DisksOfOrder(ctx, o.ID)
	if err != nil {
		return nil, nil, err
	}
	var disks []approval.DiskRef
	for _, d := range rows {
		disks = append(disks, approval.DiskRef{Node: approval.NameOf(d.Node), Disk: d.ID})
	}
	return refs, disks, nil
}

// Protocols returns those beside SMB over which a node of an order's device says
// that it serves shares, sorted.
func Protocols(ctx context.Context, tx *store.Tx, o store.Order) ([]approval.Protocol, error) {
	nodes, err := tx.NodesOfOrder(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	var list []approval.Protocol
	for _, n := range nodes {
		status, err := Status(n)
		if err != nil {
			return nil, err
		}
		for _, s := range status.ShareServices {
			if p := approval.Protocol(s.Protocol); p == approval.NFS {
				list = append(list, p)
			}
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(list))), nil
}

// SubmitConsent takes the signed envelope of a draft. It replaces the consent in
// force; while signatures are missing it is kept with those that came, and the
// document says whose are.
func (s *Service) SubmitConsent(ctx context.Context, caller auth.Caller, in *lockboxv1.SubmitConsentRequest) (*lockboxv1.Document, error) {
	var out *lockboxv1.Document
	err := s.change(ctx, string(caller.Person), auditlog.OpSignConsent, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		about(rec, o)
		row, err := s.draftedConsent(ctx, tx, o, in.Envelope)
		if err != nil {
			return err
		}
		rec.CorrelationID = string(row.ID)
		policy, err := TrustPolicy(ctx, tx, o)
		if err != nil {
			return err
		}
		g, err := Gather(ctx, tx, caller, o, in.Envelope, s.now(), func(all []byte) error {
			held, err := WithoutRemovedKeys(ctx, tx, policy, all)
			if err == nil {
				_, err = policy.AuthorizeCopy(approval.CopyRequest{Consent: held, Now: s.now()})
			}
			return err
		})
		if err != nil {
			return err
		}
		if out, err = Pending("consent", policy, g); err != nil {
			return err
		}
		if g.Missing != nil {
			return cosigned(rec, g)
		}
		return s.consented(ctx, tx, rec, o, row, g.Envelope)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// draftedConsent finds the draft that an envelope is of.
func (s *Service) draftedConsent(ctx context.Context, tx *store.Tx, o store.Order, envelope []byte) (store.Consent, error) {
	e, err := approval.ParseEnvelope(envelope)
	if err != nil {
		return store.Consent{}, err
	}
	row, err := tx.ConsentByDigest(ctx, string(e.Digest()))
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && row.Order != o.ID {
		err = invalid("the consent is none that was drafted for order %s: draft it here, then sign those bytes", o.ID)
	}
	if err == nil && !row.Signed.IsZero() {
		err = conflict("consent %s was signed already", row.ID)
	}
	return row, err
}

// consented puts a consent in force that everybody signed who has to.
func (s *Service) consented(ctx context.Context, tx *store.Tx, rec *auditlog.Record, o store.Order, row store.Consent, envelope []byte) error {
	rec.Properties["digest"] = row.Digest
	row.Envelope, row.Signed = envelope, s.now()
	if err := tx.UpdateConsent(ctx, &row); err != nil {
		return err
	}
	o.Consent, o.ConsentDigest, o.Updated = row.ID, row.Digest, s.now()
	if err := tx.UpdateOrder(ctx, &o); err != nil {
		return err
	}
	return s.addHistory(ctx, tx, o, "ConsentSigned", row.Digest)
}

// RevokeConsent ends the data-copy consent in force and locks what is open
// under it. Ending it takes effect before any device is asked.
func (s *Service) RevokeConsent(ctx context.Context, caller auth.Caller, in *lockboxv1.RevokeConsentRequest) (*lockboxv1.Order, error) {
	if len(in.Reason) > maxText {
		return nil, invalid("a reason has at most %d bytes", maxText)
	}
	var lock custody.LockIn
	err := s.change(ctx, string(caller.Person), auditlog.OpRevokeConsent, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		if o.Consent == "" {
			return conflict("order %s has no consent in force", o.ID)
		}
		row, err := tx.Consent(ctx, o.Consent)
		if err != nil {
			return err
		}
		about(rec, o)
		rec.CorrelationID, rec.Properties["reason"], rec.Properties["digest"] = string(row.ID), in.Reason, row.Digest
		c, err := approval.ParseConsent(row.Payload)
		if err != nil {
			return err
		}
		lock = custody.LockIn{
			Caller: caller, Reason: "revoked", Subject: approval.Digest(row.Digest), Spend: true,
			Tenant: o.Tenant, Correlation: string(row.ID),
		}
		for _, n := range c.Nodes {
			lock.Nodes = append(lock.Nodes, n.ID())
		}
		row.Revoked = s.now()
		if err := tx.UpdateConsent(ctx, &row); err != nil {
			return err
		}
		err = tx.InsertRevocation(ctx, &store.Revocation{
			SubjectDigest: row.Digest, Subject: string(row.ID), Person: caller.Person, Reason: in.Reason, Time: s.now(),
		})
		if err != nil {
			return err
		}
		o.Consent, o.ConsentDigest, o.Updated = "", "", s.now()
		if err := tx.UpdateOrder(ctx, &o); err != nil {
			return err
		}
		return s.addHistory(ctx, tx, o, "ConsentRevoked", "by "+string(caller.Person)+": "+in.Reason)
	})
	if err != nil {
		return nil, err
	}
	s.cfg.Custody.Lock(ctx, lock)
	return s.GetOrder(ctx, caller, &lockboxv1.GetOrderRequest{Id: in.Order})
}
