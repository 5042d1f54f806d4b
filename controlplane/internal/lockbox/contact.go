package lockbox

import (
	"context"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Reading a customer's contact address is an operation of its own: somebody asks,
// a manager who is somebody else approves, and each reading is recorded and told
// to the customer before the address is shown. Elsewhere the provider's people see
// it masked.

// Times of a contact request.
const (
	ContactExpiry = 24 * time.Hour // undecided
	ContactAccess = time.Hour      // approved
)

// States of a contact request.
const (
	contactAsked    = "asked"
	contactApproved = "approved"
	contactDenied   = "denied"
	contactExpired  = "expired" // shown only: nothing is done about it
)

// contactList is how many contact requests are listed.
const contactList = 200

// AskContact asks to read the contact address of the customer behind an order, or
// of a whole tenant.
func (s *Service) AskContact(ctx context.Context, caller auth.Caller, in *lockboxv1.AskContactRequest) (*lockboxv1.ContactRequest, error) {
	if in.Reason == "" || len(in.Reason) > maxText {
		return nil, invalid("a reason has 1 to %d bytes", maxText)
	}
	if (in.Order == "") == (in.Tenant == "") {
		return nil, invalid("name the order or the tenant, one of them")
	}
	now := s.now()
	c := store.ContactRequest{
		ID: "CON-" + newGUID(), Tenant: protocol.TenantID(in.Tenant), Order: protocol.OrderID(in.Order), Requester: caller.Person,
		Reason: in.Reason, State: contactAsked, Created: now, Expires: now.Add(ContactExpiry),
	}
	err := s.change(ctx, func(tx *store.Tx) error {
		if c.Order != "" {
			o, err := orderOf(ctx, tx, caller, in.Order)
			if err != nil {
				return err
			}
			c.Tenant = o.Tenant
		}
		if _, err := tx.Tenant(ctx, c.Tenant); err != nil {
			return err
		}
		if err := tx.InsertContactRequest(ctx, &c); err != nil {
			return err
		}
		if err := s.recordContact(ctx, tx, caller, auditlog.OpAskContact, auditlog.Success, c); err != nil {
			return err
		}
		return s.askManagers(ctx, tx, c)
	})
	if err != nil {
		return nil, err
	}
	return s.showContact(c), nil
}

// askManagers tells those who can decide.
func (s *Service) askManagers(ctx context.Context, tx *store.Tx, c store.ContactRequest) error {
	people, err := tx.People(ctx, "", string(auth.InternalApprover))
	if err != nil {
		return err
	}
	var to []string
	for _, p := range people {
		if p.Name != c.Requester && auth.InGroup(p.Groups, auth.ManagerGroup) {
			to = append(to, string(p.Name))
		}
	}
	if len(to) == 0 {
		return conflict("no other internal approver is in the group %s, so nobody could approve: have an admin put somebody into it", auth.ManagerGroup)
	}
	return s.cfg.Notify.Tell(ctx, tx, notify.Event{
		Kind: notify.ContactAsked, Tenant: c.Tenant, Subject: c.ID, State: c.State, To: to, Facts: contactFacts(c),
		Detail: "To decide, type\n\n    lockbox contact approve " + c.ID,
	})
}

func contactFacts(c store.ContactRequest) []notify.Fact {
	list := []notify.Fact{{Name: "Who", Value: string(c.Requester)}, {Name: "Reason", Value: c.Reason}}
	if c.Order != "" {
		list = append(list, notify.Fact{Name: "Order", Value: string(c.Order)})
	}
	if c.DecidedBy != "" {
		list = append(list, notify.Fact{Name: "Approved by", Value: string(c.DecidedBy)})
	}
	return list
}

// DecideContact is for a manager: an internal approver in that group, and not who
// asked.
func (s *Service) DecideContact(ctx context.Context, caller auth.Caller, in *lockboxv1.DecideContactRequest) (*lockboxv1.ContactRequest, error) {
	op := auditlog.OpApproveContact
	if !in.Approve {
		op = auditlog.OpDenyContact
	}
	return s.onContact(ctx, caller, in.Id, op, func(tx *store.Tx, c *store.ContactRequest) error {
		if err := isManager(ctx, tx, caller); err != nil {
			return err
		}
		switch {
		case caller.Person == c.Requester:
			return forbidden("%s asked for it and cannot decide: another manager does", caller.Person)
		case s.contactState(*c) != contactAsked:
			return conflict("contact request %s is %s: there is nothing left to decide", c.ID, s.contactState(*c))
		}
		c.State, c.DecidedBy, c.Decided = contactDenied, caller.Person, s.now()
		if in.Approve {
			c.State, c.Expires = contactApproved, s.now().Add(ContactAccess)
		}
		return nil
	})
}

func isManager(ctx context.Context, tx *store.Tx, caller auth.Caller) error {
	p, err := tx.Person(ctx, caller.Person)
	if err == nil && !(caller.Is(auth.InternalApprover) && auth.InGroup(p.Groups, auth.ManagerGroup)) {
		err = forbidden("%s is not in the group %s: an internal approver who is decides", caller.Person, auth.ManagerGroup)
	}
	return err
}

// ReadContact shows the addresses to who asked, while the approval lasts. It is
// recorded and the customer told first.
func (s *Service) ReadContact(ctx context.Context, caller auth.Caller, in *lockboxv1.ReadContactRequest) (*lockboxv1.ReadContactResponse, error) {
	var addresses []string
	c, err := s.onContact(ctx, caller, in.Id, auditlog.OpReadContactEmail, func(tx *store.Tx, c *store.ContactRequest) (err error) {
		switch state := s.contactState(*c); {
		case caller.Person != c.Requester:
			return forbidden("contact request %s is of %s: ask for one of your own", c.ID, c.Requester)
		case state == contactAsked:
			return protocol.Errorf(protocol.CodeNotApproved, "contact request %s waits for a manager's approval", c.ID)
		case state != contactApproved:
			return protocol.Errorf(protocol.CodeNotApproved, "contact request %s is %s: ask again", c.ID, state)
		}
		c.LastRead = s.now()
		if addresses, err = s.contactOf(ctx, tx, *c); err != nil {
			return err
		}
		return s.cfg.Notify.Tell(ctx, tx, notify.Event{
			Kind: notify.ContactRead, Customer: true, Tenant: c.Tenant, Subject: c.ID, State: c.State, To: addresses, Facts: contactFacts(*c),
		})
	})
	if err != nil {
		return nil, err
	}
	return &lockboxv1.ReadContactResponse{Request: c, Addresses: addresses}, nil
}

// contactOf are the addresses of a tenant: its owners, and those to be notified
// of the order's subscription, or of all.
func (s *Service) contactOf(ctx context.Context, tx *store.Tx, c store.ContactRequest) ([]string, error) {
	owners, err := tx.People(ctx, c.Tenant, string(auth.Owner))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range owners {
		out = append(out, string(p.Name))
	}
	subscriptions, err := tx.Subscriptions(ctx, c.Tenant)
	if err != nil {
		return nil, err
	}
	only := protocol.SubscriptionID("")
	if c.Order != "" {
		o, err := tx.Order(ctx, c.Order)
		if err != nil {
			return nil, err
		}
		only = o.Subscription
	}
	for _, sub := range subscriptions {
		if only == "" || sub.ID == only {
			out = append(out, sub.Notify...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// ListContacts lists contact requests: to who asked their own, to those who
// decide or look after it, all.
func (s *Service) ListContacts(ctx context.Context, caller auth.Caller, in *lockboxv1.ListContactsRequest) (*lockboxv1.ListContactsResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListContactsResponse, error) {
		rows, err := tx.ContactRequests(ctx, contactList)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListContactsResponse{}
		for _, c := range rows {
			all := caller.Is(auth.InternalApprover, auth.Admin, auth.Auditor)
			if all || c.Requester == caller.Person || caller.Role.OfCustomer() && caller.Sees(c.Tenant) {
				if !in.Pending || s.contactState(c) == contactAsked {
					out.Requests = append(out.Requests, s.showContact(c))
				}
			}
		}
		return out, nil
	})
}

// onContact changes a contact request and records it; a refusal is recorded too.
func (s *Service) onContact(ctx context.Context, caller auth.Caller, id string, op auditlog.Operation, f func(*store.Tx, *store.ContactRequest) error) (*lockboxv1.ContactRequest, error) {
	var c store.ContactRequest
	var why error
	err := s.change(ctx, func(tx *store.Tx) error {
		var err error
		if c, err = tx.ContactRequest(ctx, id); err != nil {
			return err
		}
		if why = f(tx, &c); why != nil {
			return why
		}
		if err := tx.UpdateContactRequest(ctx, &c); err != nil {
			return err
		}
		return s.recordContact(ctx, tx, caller, op, auditlog.Success, c)
	})
	if why != nil && protocol.CodeOf(why) != protocol.CodeInternal {
		if err := s.change(ctx, func(tx *store.Tx) error { return s.recordContact(ctx, tx, caller, op, auditlog.Refused, c) }); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	return s.showContact(c), nil
}

func (s *Service) recordContact(ctx context.Context, tx *store.Tx, caller auth.Caller, op auditlog.Operation, result auditlog.Result, c store.ContactRequest) error {
	rec := auditlog.NewRecord(s.now(), op, result)
	rec.Caller, rec.ResourceID, rec.CorrelationID = string(caller.Person), "/tenants/"+string(c.Tenant)+"/contact", c.ID
	rec.Properties = map[string]string{
		audit.PropertyTenant: string(c.Tenant), "order": string(c.Order), "requester": string(c.Requester),
		"reason": c.Reason, "state": s.contactState(c), "approvedBy": string(c.DecidedBy),
	}
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

func (s *Service) contactState(c store.ContactRequest) string {
	if c.State != contactDenied && !s.now().Before(c.Expires) {
		return contactExpired
	}
	return c.State
}

func (s *Service) showContact(c store.ContactRequest) *lockboxv1.ContactRequest {
	return &lockboxv1.ContactRequest{
		Id: c.ID, Tenant: string(c.Tenant), Order: string(c.Order), Requester: string(c.Requester), Reason: c.Reason,
		State: s.contactState(c), Created: c.Created.Unix(), Expires: c.Expires.Unix(), DecidedBy: string(c.DecidedBy),
		Decided: unix(c.Decided), LastRead: unix(c.LastRead),
	}
}
