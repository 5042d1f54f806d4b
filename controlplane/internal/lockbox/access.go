package lockbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// A request for access to a subscription, or to all of a tenant's, is asked for,
// decided and ended like one to unlock, and opens no device. There is nothing to
// execute: while it lasts, its engineer reads in full what the service knows of
// the orders there. It is judged by the trust policy of the order that its ticket
// is about, for trust policies are an order's, and a ticket always is about one.

// reasonAccess is the reason code of a request for access that names none: those of
// the field are reasons to touch data.
const reasonAccess = "subscription-access"

// actions are the names of actions for people, by those in statements.
var actions = map[approval.Action]string{
	approval.UnlockDatabox:      policy.ActionUnlock,
	approval.AccessSubscription: policy.ActionAccess,
}

// ofSubscription reports whether r opens no device. Where its statement cannot be
// read, it is taken for one that opens the device that it names.
func ofSubscription(r store.Request) bool {
	st, err := approval.ParseStatement(r.Statement)
	if err != nil {
		return r.Serial == ""
	}
	return st.Action == approval.AccessSubscription
}

// scopeOf is how far r reaches, "" if it opens a device or cannot be read.
func scopeOf(r store.Request) approval.Scope {
	st, _ := approval.ParseStatement(r.Statement)
	return st.Scope
}

// place names for people what r is about.
func place(r store.Request) string {
	switch scopeOf(r) {
	case approval.OfSubscription:
		return "subscription " + string(r.Subscription)
	case approval.OfTenant:
		return "tenant " + string(r.Tenant)
	}
	return string(r.Serial)
}

// authorize judges a request as its action wants: an unlock as the device does.
func authorize(trust *approval.Policy, r store.Request, in approval.Request) (approval.Grant, error) {
	if ofSubscription(r) {
		return trust.AuthorizeAccess(in)
	}
	return trust.Authorize(in)
}

// ofSubscription reports whether d asks for access to a subscription.
func (d *draft) ofSubscription() bool { return d.in.Action == policy.ActionAccess }

// checkAccess checks what is asked for beside the subscription.
func (d *draft) checkAccess() error {
	in := d.in
	in.Scope = cmp.Or(in.Scope, string(approval.OfSubscription))
	in.ReasonCode, in.Access = cmp.Or(in.ReasonCode, reasonAccess), cmp.Or(in.Access, string(approval.ReadOnly))
	switch {
	case in.Serial != "" || len(in.Disks)+len(in.Shares) > 0:
		return invalid("%s opens no device: leave out device, disks and shares, or ask for %s", policy.ActionAccess, policy.ActionUnlock)
	case in.Exclusion != "":
		return invalid("%s has no exclusion: the customer is always asked", policy.ActionAccess)
	case in.Access != string(approval.ReadOnly):
		return invalid("%s is read-only", policy.ActionAccess)
	case in.Scope != string(approval.OfSubscription) && in.Scope != string(approval.OfTenant):
		return invalid("scope %q is unknown: want %s or %s", in.Scope, approval.OfSubscription, approval.OfTenant)
	}
	return nil
}

// loadSubscription reads the order that the ticket is about, whose trust policy
// judges the request.
func (d *draft) loadSubscription(ctx context.Context, tx *store.Tx) (err error) {
	if d.order, err = tx.Order(ctx, d.ticket.Order); err != nil {
		return err
	}
	d.in.Subscription = cmp.Or(d.in.Subscription, string(d.order.Subscription))
	_, err = tx.Subscription(ctx, protocol.SubscriptionID(d.in.Subscription))
	return err
}

// resource is what d asks for, as the activity log names it.
func (d *draft) resource() string {
	switch {
	case !d.ofSubscription():
		return resourceID(d.order)
	case d.in.Scope == string(approval.OfTenant):
		return "/tenants/" + string(d.order.Tenant)
	}
	return "/subscriptions/" + d.in.Subscription
}

// scoped completes a statement with what it is about: disks of the order's device,
// or the subscription.
func (d *draft) scoped(ctx context.Context, tx *store.Tx, st *approval.Statement) error {
	if !d.ofSubscription() {
		return d.device(ctx, tx, st)
	}
	if d.in.Subscription != string(d.order.Subscription) {
		return invalid("ticket %s is about an order of subscription %s, not of %s", d.ticket.ID, d.order.Subscription, d.in.Subscription)
	}
	st.Action, st.Scope = approval.AccessSubscription, approval.Scope(d.in.Scope)
	return nil
}

// decidedByTenant refuses a request for the whole tenant that its administrators
// could never approve: they alone decide about it, with keys of the trust policy.
func (d *draft) decidedByTenant(ctx context.Context, tx *store.Tx, trust *approval.Policy, st approval.Statement) error {
	if st.Scope != approval.OfTenant {
		return nil
	}
	rule, err := trust.RuleFor(st)
	if err != nil {
		return err
	}
	people, err := tx.People(ctx, d.order.Tenant, string(auth.TenantAdmin))
	if err != nil {
		return err
	}
	owner := make(map[string]protocol.Person)
	for _, k := range trust.Document().Keys {
		owner[k.ID] = k.Person
	}
	for _, g := range rule.CustomerGroups {
		can := 0
		for _, p := range people {
			if slices.ContainsFunc(g.Keys, func(id string) bool { return owner[id] == p.Name }) {
				can++
			}
		}
		if can < g.Threshold {
			return protocol.Errorf(protocol.CodeJITBlocked, "the request is blocked: tenant administrators alone decide for a whole tenant, group %q of the trust policy of order %s asks for %d people, "+
				"and names %d administrators of %s: have some registered (role %s) and put into the trust policy, or ask for one subscription",
				g.Name, d.order.ID, g.Threshold, can, d.order.Tenant, auth.TenantAdmin)
		}
	}
	return nil
}

// customersAsked are the roles of the customer's people who decide about r.
func customersAsked(r store.Request) []auth.Role {
	if scopeOf(r) == approval.OfTenant {
		return []auth.Role{auth.TenantAdmin}
	}
	return []auth.Role{auth.TenantAdmin, auth.Owner, auth.Approver}
}

// accessOver finishes a request that opened nothing.
func (s *Service) accessOver(ctx context.Context, id protocol.RequestID) error {
	return s.change(ctx, func(tx *store.Tx) error {
		r, err := tx.Request(ctx, id)
		if err != nil {
			return err
		}
		if !StateOf(r.Status).Terminal() {
			if err := s.move(ctx, tx, &r, Relocked); err != nil {
				return err
			}
		}
		return tx.CancelTimer(ctx, timerRelock, string(id))
	})
}

// useWith says what an engineer does with an approval.
func useWith(r store.Request) string {
	if ofSubscription(r) {
		return fmt.Sprintf("There is nothing to execute. What the service knows of %s is shown in full, and what you read is recorded. To see its orders, type\n\n    lockbox order list", place(r))
	}
	return fmt.Sprintf("To open the disks, type\n\n    lockbox request execute %d", r.Number)
}
