package lockbox

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// customersOf returns who is told of a request: the tenant's
// administrators, owners and approvers, and the alternate addresses of the subscription. Being told gives
// no right.
func (s *Service) customersOf(ctx context.Context, tx *store.Tx, r store.Request) ([]string, error) {
	var to []string
	for _, role := range []auth.Role{auth.TenantAdmin, auth.Owner, auth.Approver} {
		people, err := tx.People(ctx, r.Tenant, string(role))
		if err != nil {
			return nil, err
		}
		for _, p := range people {
			to = append(to, string(p.Name))
		}
	}
	sub, err := tx.Subscription(ctx, r.Subscription)
	if err != nil {
		return nil, err
	}
	to = append(to, sub.Notify...)
	slices.Sort(to)
	return slices.Compact(to), nil
}

// tell tells people what happened to a request. The customer's webhooks hear of
// it if the customer is told, so that is done once for each thing that happens.
func (s *Service) tell(ctx context.Context, tx *store.Tx, kind notify.Kind, r store.Request, customer bool, to []string, detail string) error {
	return s.cfg.Notify.Tell(ctx, tx, notify.Event{
		Kind: kind, Customer: customer, Tenant: r.Tenant, Subject: string(r.ID), Number: r.Number, State: r.Status,
		Action: r.Action, Device: place(r), To: to, Facts: facts(r), Detail: detail,
	})
}

// facts are what everybody who is told of a request has to know of it.
func facts(r store.Request) []notify.Fact {
	list := []notify.Fact{
		{Name: "Action", Value: r.Action},
		about(r),
		{Name: "Engineer", Value: string(r.Engineer)},
		{Name: "Ticket", Value: string(r.Ticket)},
		{Name: "Reason", Value: r.ReasonCode},
		{Name: "Justification", Value: r.Justification},
		{Name: "Access", Value: fmt.Sprintf("%s for %s", r.Access, r.Duration)},
		{Name: "State", Value: shownStatus(r)},
	}
	switch {
	case !r.AccessEnd.IsZero():
		list = append(list, notify.Fact{Name: "Access until", Value: protocol.Stamp(r.AccessEnd)})
	case StateOf(r.Status).Open():
		list = append(list, notify.Fact{Name: "Expires", Value: protocol.Stamp(r.Expires)})
	}
	return list
}

// about says what a request is about.
func about(r store.Request) notify.Fact {
	if !ofSubscription(r) {
		return notify.Fact{Name: "Device", Value: fmt.Sprintf("%s, order %s", r.Serial, r.Order)}
	}
	return notify.Fact{Name: "About", Value: "what the service knows of the orders and devices of " + place(r) + "; no disk is opened"}
}

// TellExport tells the customer, and the provider's own approvers, that an admin
// takes a disk's recovery password out of custody: no request opens a disk so.
func (s *Service) TellExport(ctx context.Context, caller auth.Caller, k store.DiskKey, reason string) error {
	return s.change(ctx, func(tx *store.Tx) error {
		o, err := tx.Order(ctx, k.Order)
		if err != nil {
			return err
		}
		to, err := s.customersOf(ctx, tx, store.Request{Tenant: o.Tenant, Subscription: o.Subscription})
		if err != nil {
			return err
		}
		event := notify.Event{
			Kind: notify.KeyExported, Customer: true, Tenant: o.Tenant, Subject: string(o.ID), Device: string(k.Node.Serial), To: to,
			Facts: []notify.Fact{
				{Name: "Order", Value: string(o.ID)}, {Name: "Disk", Value: fmt.Sprintf("%s of node %s", k.Disk, k.Node)},
				{Name: "By", Value: string(caller.Person)}, {Name: "Reason", Value: reason},
			},
		}
		if err := s.cfg.Notify.Tell(ctx, tx, event); err != nil {
			return err
		}
		event.Customer = false
		if event.To, err = internalApprovers(ctx, tx); err != nil {
			return err
		}
		return s.cfg.Notify.Tell(ctx, tx, event)
	})
}

// askProvider tells the provider's own approvers.
func (s *Service) askProvider(ctx context.Context, tx *store.Tx, r store.Request, demands []policy.Demand) error {
	to, err := internalApprovers(ctx, tx)
	if err != nil {
		return err
	}
	return s.tell(ctx, tx, notify.InternalApproval, r, false, to, "To be decided by: "+demanded(demands))
}

func internalApprovers(ctx context.Context, tx *store.Tx) ([]string, error) {
	people, err := tx.People(ctx, "", string(auth.InternalApprover))
	var names []string
	for _, p := range people {
		names = append(names, string(p.Name))
	}
	return names, err
}

// askCustomer tells the customer, and records whom.
func (s *Service) askCustomer(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request) error {
	err := s.record(ctx, tx, caller, auditlog.OpNotifyApprovers, auditlog.Success, r, map[string]string{"recipients": strings.Join(auth.MaskedAll(r.Notified), ", ")})
	if err != nil {
		return err
	}
	return s.tellCustomer(ctx, tx, notify.CustomerNotified, r, "Unanswered, the request expires at "+protocol.Stamp(r.Expires)+", and nobody gets access.")
}

// tellEngineer tells the requester what became of the request.
func (s *Service) tellEngineer(ctx context.Context, tx *store.Tx, kind notify.Kind, r store.Request, detail string) error {
	return s.tell(ctx, tx, kind, r, false, []string{string(r.Engineer)}, detail)
}

// tellApprovers tells those who are to decide now.
func (s *Service) tellApprovers(ctx context.Context, tx *store.Tx, kind notify.Kind, r store.Request, detail string) error {
	if StateOf(r.Status) != Initializing {
		return s.tellCustomer(ctx, tx, kind, r, detail)
	}
	to, err := internalApprovers(ctx, tx)
	if err != nil {
		return err
	}
	return s.tell(ctx, tx, kind, r, false, to, detail)
}

// tellCustomer tells those who were asked, if anybody was yet.
func (s *Service) tellCustomer(ctx context.Context, tx *store.Tx, kind notify.Kind, r store.Request, detail string) error {
	if len(r.Notified) == 0 {
		return nil
	}
	return s.tell(ctx, tx, kind, r, true, r.Notified, detail)
}

// tellBoth tells both sides the same.
func (s *Service) tellBoth(ctx context.Context, tx *store.Tx, kind notify.Kind, r store.Request, detail string) error {
	if err := s.tellCustomer(ctx, tx, kind, r, detail); err != nil {
		return err
	}
	return s.tellEngineer(ctx, tx, kind, r, detail)
}

// tellRelocked tells both sides that the device has confirmed its relock at the
// end of a request, the first time it does.
func (s *Service) tellRelocked(ctx context.Context, tx *store.Tx, r store.Request) error {
	told, err := tx.HasNotice(ctx, string(notify.Relocked), string(r.ID))
	if err != nil || told {
		return err
	}
	return s.tellBoth(ctx, tx, notify.Relocked, r, "")
}

// noticeOf is what people are told when a request came to its end.
func noticeOf(r store.Request) notify.Kind {
	switch StateOf(r.Status) {
	case Denied, Denying:
		return notify.RequestDenied
	case Expired:
		return notify.RequestExpired
	case Completed, Completing:
		return notify.RequestCompleted
	case Revoked, Revoking:
		if r.CloseReason == policyReplaced {
			return notify.RequestVoided
		}
		if r.AccessEnd.IsZero() {
			return notify.RequestCancelled
		}
		return notify.RequestRevoked
	}
	return notify.RequestError
}
