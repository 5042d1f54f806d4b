package orders

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// deviceCall is the deadline of one call to a node.
const deviceCall = 10 * time.Second

// TrustPolicy reads and verifies the trust policy in force for an order, as its
// devices do: version 1, then every successor.
func TrustPolicy(ctx context.Context, tx *store.Tx, o store.Order) (*approval.Policy, error) {
	rows, err := tx.TrustPolicies(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, conflict("order %s has no trust policy yet: the customer has to sign one first", o.ID)
	}
	var later [][]byte
	for _, row := range rows[1:] {
		later = append(later, row.Envelope)
	}
	return approval.VerifyPolicies(rows[0].Envelope, later...)
}

// DraftTrustPolicy makes the next version of an order's trust policy, for the
// customer to sign. Groups that are left out are everybody of that side who has
// a key, of whom one is enough.
func (s *Service) DraftTrustPolicy(ctx context.Context, caller auth.Caller, in *lockboxv1.DraftTrustPolicyRequest) (*lockboxv1.Document, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Document, error) {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return nil, err
		}
		doc, err := s.draftPolicy(ctx, tx, o, in)
		if err != nil {
			return nil, err
		}
		if err := doc.Validate(); err != nil {
			return nil, err
		}
		return document("trust-policy", doc)
	})
}

func (s *Service) draftPolicy(ctx context.Context, tx *store.Tx, o store.Order, in *lockboxv1.DraftTrustPolicyRequest) (approval.TrustPolicy, error) {
	d := drafter{ctx: ctx, tx: tx}
	customers := d.groups(in.CustomerGroups, "customer-approvers", o.Tenant, auth.Owner, auth.Approver)
	providers := d.groups(in.ProviderGroups, "internal-approvers", "", auth.InternalApprover)
	if d.err != nil {
		return approval.TrustPolicy{}, d.err
	}
	longest := int64(DefaultMaxTime / time.Second)
	if in.MaxDurationSeconds != 0 {
		longest = in.MaxDurationSeconds
	}
	doc := approval.TrustPolicy{
		TenantID: o.Tenant, OrderID: o.ID, Version: o.TrustPolicyVersion + 1, PreviousDigest: approval.Digest(o.TrustPolicyDigest),
		Keys: d.keys,
		Rules: []approval.Rule{
			{Action: approval.UnlockDatabox, CustomerGroups: customers, ProviderGroups: providers, Service: true, MaxDuration: longest},
			{Action: approval.CopyData, CustomerGroups: customers, Service: true, MaxDuration: longest},
		},
		ServiceKeys: [][]byte{s.cfg.ServiceKey}, LogKey: s.cfg.Audit.VerifierKey(),
	}
	if o.TrustPolicyVersion == 0 {
		return doc, nil
	}
	current, err := TrustPolicy(ctx, tx, o)
	if err != nil {
		return doc, err
	}
	doc.RecoveryKey = current.Document().RecoveryKey
	return doc, nil
}

// drafter gathers the keys of a policy's people. Its first error sticks.
type drafter struct {
	ctx  context.Context
	tx   *store.Tx
	keys []approval.Key
	err  error
}

// groups returns the groups that were asked for; else one group, called name,
// of all people with one of roles who have a key.
func (d *drafter) groups(asked []*lockboxv1.PolicyGroup, name string, tenant protocol.TenantID, roles ...auth.Role) []approval.Group {
	if len(asked) == 0 {
		return []approval.Group{d.everybody(name, tenant, roles)}
	}
	var out []approval.Group
	for _, a := range asked {
		g := approval.Group{Name: a.Name, Threshold: int(a.Threshold)}
		for _, who := range a.People {
			keys := d.keysOf(protocol.Person(who), tenant, roles)
			if d.err == nil && len(keys) == 0 {
				d.err = invalid("%s has no SSH key: nobody can count their approval", who)
			}
			g.Keys = append(g.Keys, keys...)
		}
		out = append(out, g)
	}
	return out
}

func (d *drafter) everybody(name string, tenant protocol.TenantID, roles []auth.Role) approval.Group {
	g := approval.Group{Name: name, Threshold: 1}
	for _, role := range roles {
		people, err := d.tx.People(d.ctx, tenant, string(role))
		d.fail(err)
		for _, p := range people {
			g.Keys = append(g.Keys, d.keysOf(p.Name, tenant, roles)...)
		}
	}
	if d.err == nil && len(g.Keys) == 0 {
		d.err = conflict("nobody with role %v has an SSH key: register people before the trust policy is made", roles)
	}
	return g
}

// keysOf takes the keys of one person in and returns their ids.
func (d *drafter) keysOf(who protocol.Person, tenant protocol.TenantID, roles []auth.Role) []string {
	p, err := d.tx.Person(d.ctx, who)
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && (!p.Removed.IsZero() || p.Tenant != tenant || !slices.Contains(roles, auth.Role(p.Role))) {
		err = invalid("%q has none of the roles %v on this side: they cannot be in the trust policy", who, roles)
	}
	d.fail(err)
	rows, err := d.tx.PersonKeys(d.ctx, who)
	d.fail(err)
	var ids []string
	for _, row := range rows {
		k, err := approval.NewSSHKey(row.Fingerprint, who, row.PublicKey)
		d.fail(err)
		if !slices.ContainsFunc(d.keys, func(known approval.Key) bool { return known.ID == k.ID }) {
			d.keys = append(d.keys, k)
		}
		ids = append(ids, k.ID)
	}
	return ids
}

func (d *drafter) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// SubmitTrustPolicy takes a signed trust policy: version 1, or a successor that
// is signed as the one in force asks. A successor is installed on the enrolled
// nodes that are online; submitting it again reaches those that were not.
func (s *Service) SubmitTrustPolicy(ctx context.Context, caller auth.Caller, in *lockboxv1.SubmitTrustPolicyRequest) (*lockboxv1.Document, error) {
	var o store.Order
	err := s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		o, err = order(ctx, tx, caller, in.Order)
		return err
	})
	if err != nil {
		return nil, err
	}
	envelope, err := approval.ParseEnvelope(in.Envelope)
	if err != nil {
		return nil, err
	}
	if string(envelope.Digest()) != o.TrustPolicyDigest {
		if err := s.storePolicy(ctx, caller, in); err != nil {
			return nil, err
		}
	}
	if err := s.installPolicy(ctx, o.ID, in.Envelope); err != nil {
		return nil, err
	}
	return s.GetTrustPolicy(ctx, caller, &lockboxv1.GetTrustPolicyRequest{Order: in.Order})
}

func (s *Service) storePolicy(ctx context.Context, caller auth.Caller, in *lockboxv1.SubmitTrustPolicyRequest) error {
	return s.change(ctx, string(caller.Person), auditlog.OpSignTrustPolicy, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		p, err := s.verifyPolicy(ctx, tx, o, in.Envelope)
		if err != nil {
			return err
		}
		payload, err := p.Document().Encode()
		if err != nil {
			return err
		}
		row := store.TrustPolicy{
			Order: o.ID, Version: p.Document().Version, Digest: string(p.Digest()),
			Payload: payload, Envelope: in.Envelope, Created: s.now(),
		}
		if err := tx.InsertTrustPolicy(ctx, &row); err != nil {
			return err
		}
		about(rec, o)
		rec.Properties["version"], rec.Properties["digest"] = fmt.Sprint(row.Version), row.Digest
		rec.Properties["byRecovery"] = fmt.Sprint(p.ByRecovery())
		o.TrustPolicyVersion, o.TrustPolicyDigest, o.Updated = row.Version, row.Digest, s.now()
		if err := tx.UpdateOrder(ctx, &o); err != nil {
			return err
		}
		return s.addHistory(ctx, tx, o, "TrustPolicySigned", fmt.Sprintf("version %d, %s", row.Version, row.Digest))
	})
}

// verifyPolicy verifies signatures as a device does, and that the policy is for
// this order, this service and this log: one that is not would lock the device
// for good.
func (s *Service) verifyPolicy(ctx context.Context, tx *store.Tx, o store.Order, envelope []byte) (*approval.Policy, error) {
	var p *approval.Policy
	var err error
	if o.TrustPolicyVersion == 0 {
		p, err = approval.VerifyPolicyV1(envelope)
	} else {
		var current *approval.Policy
		if current, err = TrustPolicy(ctx, tx, o); err == nil {
			p, err = current.VerifySuccessor(envelope)
		}
	}
	if err != nil {
		return nil, err
	}
	doc := p.Document()
	ours := func(key []byte) bool { return bytes.Equal(key, s.cfg.ServiceKey) }
	switch {
	case doc.TenantID != o.Tenant || doc.OrderID != "" && doc.OrderID != o.ID:
		return nil, protocol.Errorf(protocol.CodePolicyDigest, "the trust policy is for tenant %s, order %q: this is %s, %s", doc.TenantID, doc.OrderID, o.Tenant, o.ID)
	case !slices.ContainsFunc(doc.ServiceKeys, ours):
		return nil, protocol.Errorf(protocol.CodePolicyDigest, "the trust policy does not name the key of this service: draft it anew")
	case doc.LogKey != s.cfg.Audit.VerifierKey():
		return nil, protocol.Errorf(protocol.CodePolicyDigest, "the trust policy names another activity log: draft it anew")
	}
	return p, nil
}

// installPolicy hands a successor to the nodes that are enrolled. What is not
// reached is reported after the others were tried.
func (s *Service) installPolicy(ctx context.Context, id protocol.OrderID, envelope []byte) error {
	nodes, err := view(ctx, s.cfg.Store, func(tx *store.Tx) ([]store.Node, error) { return tx.NodesOfOrder(ctx, id) })
	if err != nil {
		return err
	}
	var failed []error
	for _, n := range nodes {
		if n.KeyFingerprint == "" || !n.Revoked.IsZero() {
			continue
		}
		if err := s.installOn(ctx, n.ID, envelope); err != nil {
			failed = append(failed, fmt.Errorf("the policy is signed but node %s does not have it yet, submit it again: %w", n.ID, err))
		}
	}
	return errors.Join(failed...)
}

func (s *Service) installOn(ctx context.Context, id protocol.NodeID, envelope []byte) error {
	node, err := s.cfg.Tunnels.Node(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deviceCall)
	defer cancel()
	_, err = node.UpdateTrustPolicy(ctx, &devicev1.UpdateTrustPolicyRequest{Policy: envelope})
	return err
}

// GetTrustPolicy shows a signed trust policy of an order.
func (s *Service) GetTrustPolicy(ctx context.Context, caller auth.Caller, in *lockboxv1.GetTrustPolicyRequest) (*lockboxv1.Document, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Document, error) {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return nil, err
		}
		row, err := tx.TrustPolicy(ctx, o.ID, in.Digest)
		if err != nil {
			return nil, err
		}
		return &lockboxv1.Document{
			Kind: "trust-policy", Payload: row.Payload, PayloadType: string(approval.KindPolicy), Digest: row.Digest, Envelope: row.Envelope,
		}, nil
	})
}

// document shows a document for somebody to sign.
func document(kind string, doc approval.Document) (*lockboxv1.Document, error) {
	payload, err := doc.Encode()
	if err != nil {
		return nil, err
	}
	return &lockboxv1.Document{
		Kind: kind, Payload: payload, PayloadType: string(doc.Kind()), Digest: string(approval.DigestOf(payload)),
	}, nil
}
