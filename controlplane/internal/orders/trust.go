package orders

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
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
	customers := d.groups(in.CustomerGroups, approval.Group{Name: "customer-approvers", Threshold: 1}, o.Tenant, auth.TenantAdmin, auth.Owner, auth.Approver)
	providers := d.groups(in.ProviderGroups, approval.Group{Name: "internal-approvers", Threshold: 1}, "", auth.InternalApprover)
	longest := int64(DefaultMaxTime / time.Second)
	if in.MaxDurationSeconds != 0 {
		longest = in.MaxDurationSeconds
	}
	exclusions := d.exclusions(in.Exclusions, longest)
	if d.err != nil {
		return approval.TrustPolicy{}, d.err
	}
	doc := approval.TrustPolicy{
		TenantID: o.Tenant, OrderID: o.ID, Version: o.TrustPolicyVersion + 1, PreviousDigest: approval.Digest(o.TrustPolicyDigest),
		Keys: d.keys, Exclusions: exclusions,
		Rules: []approval.Rule{
			{Action: approval.UnlockDatabox, CustomerGroups: customers, ProviderGroups: providers, Service: true, MaxDuration: longest},
			{Action: approval.CopyData, CustomerGroups: customers, Service: true, MaxDuration: longest},
		},
		ServiceKeys: [][]byte{s.cfg.ServiceKey}, LogKey: s.cfg.Audit.VerifierKey(),
	}
	current, err := policyIfAny(ctx, tx, o)
	if err != nil {
		return doc, err
	}
	doc.RecoveryKey, doc.NoRecovery, err = recoveryOf(o, in, current)
	return doc, err
}

// recoveryOf returns the recovery key that was asked for, or that there is none;
// where nothing was asked for, what holds now.
func recoveryOf(o store.Order, in *lockboxv1.DraftTrustPolicyRequest, current *approval.Policy) (*approval.Key, bool, error) {
	switch {
	case in.RecoveryKey != "" && in.NoRecovery:
		return nil, false, invalid("name a recovery key, or say that there is to be none, not both")
	case in.RecoveryKey != "":
		fingerprint, err := approval.SSHFingerprint(in.RecoveryKey)
		if err != nil {
			return nil, false, err
		}
		k, err := approval.NewSSHKey(fingerprint, protocol.Person("recovery@"+string(o.Tenant)), in.RecoveryKey)
		return &k, false, err
	case in.NoRecovery || current == nil:
		return nil, in.NoRecovery, nil
	}
	return current.Document().RecoveryKey, current.Document().NoRecovery, nil
}

// drafter gathers the keys of a policy's people. Its first error sticks.
type drafter struct {
	ctx  context.Context
	tx   *store.Tx
	keys []approval.Key
	err  error
}

// exclusions returns those that were asked for, each of which may last for
// longest unless it was asked to be shorter.
func (d *drafter) exclusions(asked []*lockboxv1.PolicyExclusion, longest int64) []approval.ExclusionRule {
	var out []approval.ExclusionRule
	for _, a := range asked {
		out = append(out, approval.ExclusionRule{
			Kind:           approval.Exclusion(a.Kind),
			ProviderGroups: d.groups(a.Groups, approval.Group{Name: "internal-approvers", Threshold: 2}, "", auth.InternalApprover),
			Access:         cmp.Or(approval.Access(a.Access), approval.ReadWrite), MaxDuration: cmp.Or(a.MaxDurationSeconds, longest),
		})
	}
	return out
}

// groups returns the groups that were asked for; else the one called fallback,
// of all people with one of roles who have a key.
func (d *drafter) groups(asked []*lockboxv1.PolicyGroup, fallback approval.Group, tenant protocol.TenantID, roles ...auth.Role) []approval.Group {
	if len(asked) == 0 {
		return []approval.Group{d.everybody(fallback, tenant, roles)}
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

func (d *drafter) everybody(g approval.Group, tenant protocol.TenantID, roles []auth.Role) approval.Group {
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
// is signed as the one in force asks, or by its recovery key. While signatures are
// missing it is kept with those that came, and the document says whose are. A
// successor is handed to the nodes that are online, and by [Service.Run] to the
// others when they are back.
func (s *Service) SubmitTrustPolicy(ctx context.Context, caller auth.Caller, in *lockboxv1.SubmitTrustPolicyRequest) (*lockboxv1.Document, error) {
	e, err := approval.ParseEnvelope(in.Envelope)
	if err != nil {
		return nil, err
	}
	o, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Order, error) { return order(ctx, tx, caller, in.Order) })
	if err != nil {
		return nil, err
	}
	if string(e.Digest()) != o.TrustPolicyDigest {
		pending, err := s.acceptPolicy(ctx, caller, in)
		if err != nil || pending != nil {
			return pending, err
		}
	}
	if err := s.deliverNow(ctx, o.ID); err != nil {
		return nil, err
	}
	return s.GetTrustPolicy(ctx, caller, &lockboxv1.GetTrustPolicyRequest{Order: in.Order})
}

// acceptPolicy puts a policy in force, or keeps it and returns it while
// signatures are missing.
func (s *Service) acceptPolicy(ctx context.Context, caller auth.Caller, in *lockboxv1.SubmitTrustPolicyRequest) (pending *lockboxv1.Document, err error) {
	var after func(context.Context)
	err = s.change(ctx, string(caller.Person), auditlog.OpSignTrustPolicy, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		about(rec, o)
		current, err := policyIfAny(ctx, tx, o)
		if err != nil {
			return err
		}
		var next *approval.Policy
		g, err := Gather(ctx, tx, caller, o, in.Envelope, s.now(), func(all []byte) (err error) {
			next, err = s.verifyPolicy(ctx, tx, o, current, all)
			return err
		})
		if err != nil {
			return err
		}
		if g.Missing != nil {
			if pending, err = Pending("trust-policy", current, g); err != nil {
				return err
			}
			return cosigned(rec, g)
		}
		after, err = s.putInForce(ctx, tx, caller, rec, o, current, next, g.Envelope)
		return err
	})
	if err != nil {
		return nil, err
	}
	if after != nil {
		after(ctx)
	}
	return pending, nil
}

// putInForce writes a policy that was verified, and what follows from it.
func (s *Service) putInForce(ctx context.Context, tx *store.Tx, caller auth.Caller, rec *auditlog.Record, o store.Order, current, next *approval.Policy, envelope []byte) (after func(context.Context), err error) {
	payload, err := next.Document().Encode()
	if err != nil {
		return nil, err
	}
	row := store.TrustPolicy{
		Order: o.ID, Version: next.Document().Version, Digest: string(next.Digest()),
		Payload: payload, Envelope: envelope, Created: s.now(),
	}
	if err := tx.InsertTrustPolicy(ctx, &row); err != nil {
		return nil, err
	}
	what := "TrustPolicySigned"
	if next.ByRecovery() {
		what = "TrustPolicyRecovered"
		rec.Operation, rec.Category, rec.Level = auditlog.OpRecoverTrustPolicy, auditlog.OpRecoverTrustPolicy.Category(), auditlog.Warning
	}
	rec.Properties["version"], rec.Properties["digest"] = fmt.Sprint(row.Version), row.Digest
	rec.Properties["byRecovery"] = fmt.Sprint(next.ByRecovery())
	o.TrustPolicyVersion, o.TrustPolicyDigest, o.Updated = row.Version, row.Digest, s.now()
	if err := tx.UpdateOrder(ctx, &o); err != nil {
		return nil, err
	}
	if err := tx.DeletePendingDocuments(ctx, o.ID); err != nil { // they were made under the one before
		return nil, err
	}
	if err := s.addHistory(ctx, tx, o, what, fmt.Sprintf("version %d, %s", row.Version, row.Digest)); err != nil {
		return nil, err
	}
	if current == nil {
		return nil, nil
	}
	return s.replaced(ctx, tx, caller, o, next)
}

// replaced does what the replacement of a policy brings with it: the nodes are to
// have the new one, and what was asked for under the old one is void.
func (s *Service) replaced(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, next *approval.Policy) (after func(context.Context), err error) {
	nodes, err := tx.NodesOfOrder(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if n.KeyFingerprint == "" || !n.Revoked.IsZero() {
			continue
		}
		if err := s.expectPolicy(ctx, tx, n.ID, o); err != nil {
			return nil, err
		}
	}
	if s.cfg.PolicyReplaced == nil {
		return nil, nil
	}
	return s.cfg.PolicyReplaced(ctx, tx, caller, o, next)
}

// deliverNow hands the policy in force to the nodes of an order that are online.
func (s *Service) deliverNow(ctx context.Context, id protocol.OrderID) error {
	rows, err := view(ctx, s.cfg.Store, func(tx *store.Tx) ([]store.PolicyDelivery, error) { return tx.PolicyDeliveries(ctx, id) })
	if err != nil {
		return err
	}
	rows = slices.DeleteFunc(rows, func(d store.PolicyDelivery) bool {
		return !d.Delivered.IsZero() || !s.cfg.Tunnels.Online(d.Node)
	})
	s.deliver(context.WithoutCancel(ctx), rows)
	s.wakeRun()
	return nil
}

// verifyPolicy verifies a policy that is to replace current, nil for version 1:
// its signatures as a device does, that it is for this order, this service and
// this log, and that its customers can be asked. One that is not would lock the
// device for good, or the customer out.
func (s *Service) verifyPolicy(ctx context.Context, tx *store.Tx, o store.Order, current *approval.Policy, envelope []byte) (*approval.Policy, error) {
	e, err := approval.ParseEnvelope(envelope)
	if err != nil {
		return nil, err
	}
	doc, err := approval.ParseTrustPolicy(e.Payload)
	if err != nil {
		return nil, err
	}
	ours := func(key []byte) bool { return bytes.Equal(key, s.cfg.ServiceKey) }
	switch {
	case doc.TenantID != o.Tenant || doc.OrderID != "" && doc.OrderID != o.ID:
		return nil, protocol.Errorf(protocol.CodePolicyDigest, "the trust policy is for tenant %s, order %q: this is %s, %s", doc.TenantID, doc.OrderID, o.Tenant, o.ID)
	case !slices.ContainsFunc(doc.ServiceKeys, ours):
		return nil, protocol.Errorf(protocol.CodePolicyDigest, "the trust policy does not name the key of this service: draft it anew")
	case doc.LogKey != s.cfg.Audit.VerifierKey():
		return nil, protocol.Errorf(protocol.CodePolicyDigest, "the trust policy names another activity log: draft it anew")
	}
	if err := checkReachable(ctx, tx, o, doc); err != nil {
		return nil, err
	}
	if current == nil {
		return approval.VerifyPolicyV1(envelope)
	}
	return current.VerifySuccessor(envelope)
}

// checkReachable refuses a policy of which a customer group needs more people
// than there are: owners and approvers of the tenant whose key it names, and who
// hold that key still.
func checkReachable(ctx context.Context, tx *store.Tx, o store.Order, doc approval.TrustPolicy) error {
	for _, r := range doc.Rules {
		for _, g := range r.CustomerGroups {
			able := make(map[protocol.Person]bool)
			for _, k := range doc.Keys {
				if !slices.Contains(g.Keys, k.ID) {
					continue
				}
				holds, err := holdsKey(ctx, tx, o.Tenant, k)
				if err != nil {
					return err
				}
				if holds {
					able[k.Person] = true
				}
			}
			if len(able) < g.Threshold {
				return conflict("customer group %q needs %d people, but only %d of its people are owners or approvers of tenant %s and hold a key that it names: nobody could ever approve", g.Name, g.Threshold, len(able), o.Tenant)
			}
		}
	}
	return nil
}

// holdsKey reports whether the person of a key is an owner or approver of the
// tenant, and the key still theirs. Passkeys are known from the policy alone.
func holdsKey(ctx context.Context, tx *store.Tx, tenant protocol.TenantID, k approval.Key) (bool, error) {
	p, err := tx.Person(ctx, k.Person)
	if protocol.CodeOf(err) == protocol.CodeNotFound {
		return false, nil
	}
	if err != nil || !p.Removed.IsZero() || p.Tenant != tenant || !auth.Role(p.Role).OfCustomer() {
		return false, err
	}
	if k.Kind != approval.SSHKey {
		return true, nil
	}
	return HasKey(ctx, tx, k.Person, k.Fingerprint())
}

// HasKey reports whether an SSH key is registered as a person's.
func HasKey(ctx context.Context, tx *store.Tx, who protocol.Person, fingerprint string) (bool, error) {
	keys, err := tx.PersonKeys(ctx, who)
	return slices.ContainsFunc(keys, func(k store.PersonKey) bool { return k.Fingerprint == fingerprint }), err
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
		all, err := tx.TrustPolicies(ctx, o.ID)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.Document{
			Kind: "trust-policy", Payload: row.Payload, PayloadType: string(approval.KindPolicy), Digest: row.Digest, Envelope: row.Envelope,
		}
		for _, earlier := range all {
			if earlier.Version < row.Version {
				out.Earlier = append(out.Earlier, earlier.Envelope)
			}
		}
		return out, nil
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
