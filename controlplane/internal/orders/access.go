package orders

import (
	"context"
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
)

// Engineers see all of an order that they work on a ticket about, and of those to
// which they were given access on their request. Of others they see an outline. The
// other people of the provider see orders whole, and of the names of files what
// their role allows.

// What is read of orders, as the activity log says it.
const (
	readOrder    = "order"
	readOrders   = "orders"
	readDevice   = "device"
	readDevices  = "devices"
	readCopyLog  = "copy log"
	readManifest = "manifest"
)

// sight is what a caller sees whole.
type sight struct {
	all     bool
	tickets []protocol.OrderID // that they work on tickets about
	reach   store.Reach
}

func (v sight) whole(o store.Order) bool {
	return v.all || slices.Contains(v.tickets, o.ID) || v.reach.Covers(o)
}

// sightOf returns what caller sees whole, once it is on record that they read an
// order, or if it is nil a list, by an access that they were given.
func (s *Service) sightOf(ctx context.Context, caller auth.Caller, operation string, of *store.Order) (sight, error) {
	if !caller.Is(auth.Engineer) {
		return sight{all: true}, nil
	}
	var id protocol.OrderID
	if of != nil {
		id = of.ID
	}
	v, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (v sight, err error) {
		list, err := tx.Tickets(ctx, "", id)
		for _, t := range list {
			if t.Owner == caller.Person || slices.Contains(t.EscalatedTo, caller.Person) {
				v.tickets = append(v.tickets, t.Order)
			}
		}
		return v, err
	})
	if err != nil || of != nil && v.whole(*of) {
		return v, err
	}
	v.reach, err = s.cfg.Reach(ctx, caller, operation, of)
	return v, err
}

// seesWhole reads an order that caller may see, and reports whether they see all of
// it.
func (s *Service) seesWhole(ctx context.Context, caller auth.Caller, id, operation string) (store.Order, bool, error) {
	o, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Order, error) { return order(ctx, tx, caller, id) })
	if err != nil {
		return o, false, err
	}
	v, err := s.sightOf(ctx, caller, operation, &o)
	return o, v.whole(o), err
}

// orderWithFiles reads an order of which caller may know the names of files: the
// customer, staff and admins, and the engineers who see all of it.
func (s *Service) orderWithFiles(ctx context.Context, caller auth.Caller, id, operation string) (store.Order, error) {
	o, whole, err := s.seesWhole(ctx, caller, id, operation)
	if err == nil && (!whole || !caller.Role.OfCustomer() && !caller.Is(auth.Admin, auth.Staff, auth.Engineer)) {
		err = AskForAccess(caller, o)
	}
	return o, err
}

// AskForAccess refuses an engineer what is the customer's, and says how to ask for
// it.
func AskForAccess(caller auth.Caller, o store.Order) error {
	return protocol.Errorf(protocol.CodeForbidden, "%s works on no ticket about order %s: what is known of its files is the customer's. "+
		"Ask for access: lockbox request create --action access-subscription --subscription %s --ticket TICKET --justification TEXT", caller.Person, o.ID, o.Subscription)
}
