package orders

import (
	"context"
	"fmt"
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Where a ticket comes from.
const (
	FromCustomer     = "customer"
	ProviderDetected = "provider-detected"
)

// maxText bounds what a person wrote, in bytes.
const maxText = 1024

// FileTicket files a support ticket about an order. Its origin is recorded: the
// customer's own, or a problem that the provider found. Who works on it is for
// staff to say: a ticket of anybody else's is nobody's until they assign it.
func (s *Service) FileTicket(ctx context.Context, caller auth.Caller, in *lockboxv1.FileTicketRequest) (*lockboxv1.Ticket, error) {
	origin, err := originOf(caller, in.Origin)
	if err != nil {
		return nil, err
	}
	if in.Owner != "" && !caller.Is(auth.Admin, auth.Staff) {
		return nil, protocol.Errorf(protocol.CodeForbidden, "%s may not choose who works on a ticket: leave the owner out, staff assign it", caller.Person)
	}
	if in.Title == "" || len(in.Title) > maxText {
		return nil, invalid("a ticket's title has 1 to %d bytes", maxText)
	}
	var id protocol.TicketID
	err = s.change(ctx, string(caller.Person), auditlog.OpFileTicket, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		if err := checkEngineer(ctx, tx, in.Owner, true); err != nil {
			return err
		}
		all, err := tx.Tickets(ctx, "", "")
		if err != nil {
			return err
		}
		t := store.Ticket{
			ID: protocol.TicketID(fmt.Sprintf("SR-%d", 2001+len(all))), Order: o.ID, Tenant: o.Tenant,
			Title: in.Title, Origin: origin, Owner: protocol.Person(in.Owner), Created: s.now(),
		}
		id = t.ID
		s.aboutTicket(rec, o, t)
		rec.Properties["origin"] = origin
		if err := tx.InsertTicket(ctx, &t); err != nil {
			return err
		}
		return s.ticketLine(ctx, tx, t, "Filed", fmt.Sprintf("%s, by %s: %s", origin, caller.Person, in.Title))
	})
	if err != nil {
		return nil, err
	}
	return s.GetTicket(ctx, caller, &lockboxv1.GetTicketRequest{Id: string(id)})
}

// originOf returns where a ticket of caller's comes from. Staff may file one for
// a customer who called; a customer files their own only, and an engineer what
// the provider found.
func originOf(caller auth.Caller, origin string) (string, error) {
	customer := caller.Role.OfCustomer()
	switch {
	case origin == "" && customer:
		return FromCustomer, nil
	case origin == "":
		return ProviderDetected, nil
	case origin != FromCustomer && origin != ProviderDetected:
		return "", invalid("origin %q is unknown: want %s or %s", origin, FromCustomer, ProviderDetected)
	case customer && origin != FromCustomer:
		return "", invalid("a customer's ticket has the origin %s", FromCustomer)
	case caller.Is(auth.Engineer) && origin != ProviderDetected:
		return "", invalid("an engineer's ticket has the origin %s", ProviderDetected)
	}
	return origin, nil
}

// GetTicket shows a ticket with its history.
func (s *Service) GetTicket(ctx context.Context, caller auth.Caller, in *lockboxv1.GetTicketRequest) (*lockboxv1.Ticket, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Ticket, error) {
		t, err := ticket(ctx, tx, caller, in.Id)
		if err != nil {
			return nil, err
		}
		return showTicket(ctx, tx, t)
	})
}

// ListTickets shows the tickets that the caller may see.
func (s *Service) ListTickets(ctx context.Context, caller auth.Caller, in *lockboxv1.ListTicketsRequest) (*lockboxv1.ListTicketsResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListTicketsResponse, error) {
		list, err := tx.Tickets(ctx, caller.Scope(), protocol.OrderID(in.Order))
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListTicketsResponse{}
		for _, t := range list {
			if !caller.Sees(t.Tenant) {
				continue
			}
			shown, err := showTicket(ctx, tx, t)
			if err != nil {
				return nil, err
			}
			out.Tickets = append(out.Tickets, shown)
		}
		return out, nil
	})
}

// CommentTicket adds to a ticket's history.
func (s *Service) CommentTicket(ctx context.Context, caller auth.Caller, in *lockboxv1.CommentTicketRequest) (*lockboxv1.Ticket, error) {
	if in.Text == "" || len(in.Text) > maxText {
		return nil, invalid("a comment has 1 to %d bytes", maxText)
	}
	return s.updateTicket(ctx, caller, in.Id, func(tx *store.Tx, t *store.Ticket, _ *auditlog.Record) (what, detail string, err error) {
		return "Comment", fmt.Sprintf("%s: %s", caller.Person, in.Text), nil
	})
}

// AssignTicket makes an engineer the ticket's owner, or escalates it to one.
func (s *Service) AssignTicket(ctx context.Context, caller auth.Caller, in *lockboxv1.AssignTicketRequest) (*lockboxv1.Ticket, error) {
	engineer := protocol.Person(in.Engineer)
	return s.updateTicket(ctx, caller, in.Id, func(tx *store.Tx, t *store.Ticket, rec *auditlog.Record) (what, detail string, err error) {
		if err := checkEngineer(ctx, tx, in.Engineer, false); err != nil {
			return "", "", err
		}
		rec.Properties["engineer"] = in.Engineer
		if !in.Escalate {
			t.Owner = engineer
			return "Assigned", fmt.Sprintf("to %s, by %s", engineer, caller.Person), nil
		}
		if !slices.Contains(t.EscalatedTo, engineer) {
			t.EscalatedTo = append(t.EscalatedTo, engineer)
		}
		return "Escalated", fmt.Sprintf("to %s, by %s", engineer, caller.Person), nil
	})
}

func (s *Service) updateTicket(ctx context.Context, caller auth.Caller, id string, f func(*store.Tx, *store.Ticket, *auditlog.Record) (what, detail string, err error)) (*lockboxv1.Ticket, error) {
	err := s.change(ctx, string(caller.Person), auditlog.OpUpdateTicket, func(tx *store.Tx, rec *auditlog.Record) error {
		t, err := ticket(ctx, tx, caller, id)
		if err != nil {
			return err
		}
		o, err := tx.Order(ctx, t.Order)
		if err != nil {
			return err
		}
		s.aboutTicket(rec, o, t)
		what, detail, err := f(tx, &t, rec)
		if err != nil {
			return err
		}
		rec.Properties["change"] = what
		if err := tx.UpdateTicket(ctx, &t); err != nil {
			return err
		}
		return s.ticketLine(ctx, tx, t, what, detail)
	})
	if err != nil {
		return nil, err
	}
	return s.GetTicket(ctx, caller, &lockboxv1.GetTicketRequest{Id: id})
}

// ticket reads a ticket that caller may see.
func ticket(ctx context.Context, tx *store.Tx, caller auth.Caller, id string) (store.Ticket, error) {
	t, err := tx.Ticket(ctx, protocol.TicketID(id))
	if err == nil && !caller.Sees(t.Tenant) {
		err = notFound("ticket", id)
	}
	return t, err
}

// checkEngineer refuses a name that is not an engineer's.
func checkEngineer(ctx context.Context, tx *store.Tx, name string, mayBeNobody bool) error {
	if name == "" && mayBeNobody {
		return nil
	}
	p, err := tx.Person(ctx, protocol.Person(name))
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && (auth.Role(p.Role) != auth.Engineer || !p.Removed.IsZero()) {
		return invalid("%q is not an engineer: name one", name)
	}
	return err
}

func (s *Service) aboutTicket(rec *auditlog.Record, o store.Order, t store.Ticket) {
	about(rec, o)
	rec.ResourceID += "/tickets/" + string(t.ID)
	rec.CorrelationID = string(t.ID)
}

func (s *Service) ticketLine(ctx context.Context, tx *store.Tx, t store.Ticket, what, detail string) error {
	return tx.AddHistory(ctx, store.TicketHistory, string(t.ID), store.HistoryLine{Time: s.now(), What: what, Detail: detail})
}

func showTicket(ctx context.Context, tx *store.Tx, t store.Ticket) (*lockboxv1.Ticket, error) {
	lines, err := tx.History(ctx, store.TicketHistory, string(t.ID))
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.Ticket{
		Id: string(t.ID), Order: string(t.Order), Title: t.Title, Origin: t.Origin, Owner: string(t.Owner),
		History: history(lines), Created: t.Created.Unix(),
	}
	for _, p := range t.EscalatedTo {
		out.EscalatedTo = append(out.EscalatedTo, string(p))
	}
	return out, nil
}
