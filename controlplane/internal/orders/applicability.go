package orders

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// ReportApplicability says of each subscription, order and node that the caller
// may see whether Lockbox protects it, and if not, why: control 3.13 of the cloud
// security benchmark.
func (s *Service) ReportApplicability(ctx context.Context, caller auth.Caller, in *lockboxv1.ReportApplicabilityRequest) (*lockboxv1.ReportApplicabilityResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ReportApplicabilityResponse, error) {
		tenants, err := reportedTenants(ctx, tx, caller, in.Tenant)
		if err != nil {
			return nil, err
		}
		r := applicability{tx: tx, out: &lockboxv1.ReportApplicabilityResponse{}}
		for _, t := range tenants {
			if err := r.tenant(ctx, t); err != nil {
				return nil, err
			}
		}
		return r.out, nil
	})
}

func reportedTenants(ctx context.Context, tx *store.Tx, caller auth.Caller, id string) ([]store.Tenant, error) {
	if id != "" {
		t, err := tenant(ctx, tx, caller, id)
		return []store.Tenant{t}, err
	}
	all, err := tx.Tenants(ctx)
	return slices.DeleteFunc(all, func(t store.Tenant) bool { return !caller.Sees(t.ID) }), err
}

// applicability collects a report.
type applicability struct {
	tx  *store.Tx
	out *lockboxv1.ReportApplicabilityResponse
}

// add reports a resource, which is protected if there is no reason why not.
func (r *applicability) add(t store.Tenant, kind, id, why string) {
	r.out.Resources = append(r.out.Resources, &lockboxv1.ApplicableResource{
		Tenant: string(t.ID), Type: kind, Id: id, On: why == "", Reason: why,
	})
}

func (r *applicability) tenant(ctx context.Context, t store.Tenant) error {
	subscriptions, err := r.tx.Subscriptions(ctx, t.ID)
	if err != nil {
		return err
	}
	why := map[string]string{} // by subscription
	for _, sub := range subscriptions {
		id := string(sub.ID)
		why[id] = whyNotSubscription(t, sub)
		r.add(t, "subscription", id, why[id])
	}
	orders, err := r.tx.Orders(ctx, t.ID)
	if err != nil {
		return err
	}
	for _, o := range orders {
		reason := why[string(o.Subscription)]
		if reason == "" && o.TrustPolicyDigest == "" {
			reason = "the customer has signed no trust policy yet"
		}
		r.add(t, "order", string(o.ID), reason)
		if err := r.nodes(ctx, t, o, reason); err != nil {
			return err
		}
	}
	return nil
}

func whyNotSubscription(t store.Tenant, sub store.Subscription) string {
	switch {
	case slices.Index(supportPlans, sub.SupportPlan) < slices.Index(supportPlans, lowestPlan):
		return fmt.Sprintf("its support plan is %s: Lockbox needs %s or higher", sub.SupportPlan, lowestPlan)
	case !t.LockboxEnabled:
		return fmt.Sprintf("Lockbox is off for the tenant: 'lockbox tenant enable-lockbox %s'. Until then access is handled by %q", t.ID, t.WithoutLockbox)
	}
	return ""
}

func (r *applicability) nodes(ctx context.Context, t store.Tenant, o store.Order, why string) error {
	nodes, err := r.tx.NodesOfOrder(ctx, o.ID)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		reason := why
		if reason == "" {
			reason = whyNotNode(o, n)
		}
		r.add(t, "node", n.ID.String(), reason)
	}
	return nil
}

// whyNotNode believes what the node last said of itself.
func whyNotNode(o store.Order, n store.Node) string {
	var status devicev1.NodeStatus
	switch {
	case !n.Revoked.IsZero():
		return "its certificate was ended: enrol it again"
	case n.Enrolled.IsZero():
		return "it is not enrolled yet, and locked"
	case n.LastSeen.IsZero() || proto.Unmarshal(n.Status, &status) != nil:
		return "it has not reported since it was enrolled"
	case status.TrustPolicyDigest != o.TrustPolicyDigest:
		return fmt.Sprintf("it holds trust policy version %d, while version %d is signed", status.TrustPolicyVersion, o.TrustPolicyVersion)
	}
	return ""
}
