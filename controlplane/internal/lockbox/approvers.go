package lockbox

import (
	"context"
	"fmt"
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Approvers are those who held the role when the request was made, and hold it
// still, with the key that the trust policy names. The subscription's owner and
// its approvers decide for the customer, and tenant administrators, who alone
// decide about a whole tenant; which of them, and how many of each group, the trust
// policy says.

// noteApprovers writes down who may decide about a request: whoever gets the role
// later may not.
func noteApprovers(ctx context.Context, tx *store.Tx, r store.Request) error {
	for _, side := range []struct {
		tenant protocol.TenantID
		roles  []auth.Role
	}{
		{r.Tenant, customersAsked(r)},
		{"", []auth.Role{auth.InternalApprover}},
	} {
		for _, role := range side.roles {
			people, err := tx.People(ctx, side.tenant, string(role))
			if err != nil {
				return err
			}
			for _, p := range people {
				if err := tx.InsertRequestApprover(ctx, &store.RequestApprover{Request: r.ID, Person: p.Name, Role: p.Role, Groups: p.Groups}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// heldRole refuses a caller who did not hold their role when the request was made.
func heldRole(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request) error {
	if caller.Role.OfCustomer() && !slices.Contains(customersAsked(r), caller.Role) {
		return forbidden("request %d is for the whole of tenant %s: its administrators decide, %s is %s", r.Number, r.Tenant, caller.Person, caller.Role)
	}
	list, err := tx.RequestApprovers(ctx, r.ID)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(a store.RequestApprover) bool { return a.Person == caller.Person && a.Role == string(caller.Role) }) {
		return forbidden("%s was not %s yet when request %d was made: those decide who were", caller.Person, caller.Role, r.Number)
	}
	return nil
}

// holdsKey refuses a decision with an SSH key that is no longer the signer's. The
// trust policy alone says whose a passkey is.
func (j judgement) holdsKey(ctx context.Context, tx *store.Tx, d approval.Decision) error {
	for _, k := range j.trust.Document().Keys {
		if k.ID != d.Signer || k.Kind != approval.SSHKey {
			continue
		}
		held, err := orders.HasKey(ctx, tx, k.Person, k.Fingerprint())
		if err == nil && !held {
			err = protocol.Errorf(protocol.CodeSignerUnknown, "key %s of %s was removed: nothing that it signs counts any more", k.Fingerprint(), k.Person)
		}
		return err
	}
	return nil
}

// PolicyReplaced does, within the transaction that puts another trust policy in
// force, what follows from that here: it voids the requests that were made under
// the one before, and tells everybody. The function it returns tells the devices;
// it is to be called once the transaction is committed.
func (s *Service) PolicyReplaced(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, next *approval.Policy) (func(context.Context), error) {
	tell, err := s.voidRequests(ctx, tx, caller, o.ID, string(next.Digest()))
	if err != nil {
		return nil, err
	}
	return tell, s.tellPolicy(ctx, tx, caller, o, next)
}

// tellPolicy tells the customer that a trust policy was replaced, and if the
// recovery key did it, the provider's people too.
func (s *Service) tellPolicy(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, next *approval.Policy) error {
	doc := next.Document()
	to, err := s.customersOf(ctx, tx, store.Request{Tenant: o.Tenant, Subscription: o.Subscription})
	if err != nil {
		return err
	}
	event := notify.Event{
		Kind: notify.PolicyReplaced, Customer: true, Tenant: o.Tenant, Subject: string(o.ID), Device: string(o.Serial), To: to,
		Facts: []notify.Fact{
			{Name: "Order", Value: string(o.ID)}, {Name: "Version", Value: fmt.Sprint(doc.Version)},
			{Name: "Digest", Value: string(next.Digest())}, {Name: "Submitted by", Value: string(caller.Person)},
		},
		Detail: "It was signed by as many of your people as the one before asks for. Requests that waited under that one are void, and can be raised again.",
	}
	if !next.ByRecovery() {
		return s.cfg.Notify.Tell(ctx, tx, event)
	}
	event.Detail = "THE RECOVERY KEY ALONE SIGNED IT. Whoever has that key decides from now on who approves. If nobody of yours used it, revoke what is approved and tell your security team at once."
	if err := s.cfg.Notify.Tell(ctx, tx, event); err != nil {
		return err
	}
	if event.To, err = internalApprovers(ctx, tx); err != nil {
		return err
	}
	event.Customer = false
	return s.cfg.Notify.Tell(ctx, tx, event)
}
