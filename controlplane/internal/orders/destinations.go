package orders

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// SetDestinationAccess takes into custody what lets the copy job into one of an
// order's accounts, on the word of an owner of the customer's, in the place of what
// was there. It goes to the device only with an unlock under a consent that names
// the account and its endpoint, and is destroyed when the order is completed. The
// credential in the request is wiped.
func (s *Service) SetDestinationAccess(ctx context.Context, caller auth.Caller, in *lockboxv1.SetDestinationAccessRequest) (*lockboxv1.Order, error) {
	defer clear(in.Credential)
	o, d, err := s.destination(ctx, caller, in.Order, in.Account)
	switch {
	case err != nil:
		return nil, err
	case !needsAccess(d):
		return nil, invalid("account %s of order %s goes to a folder of the device, %s: that takes no credential", d.Account, o.ID, d.Endpoint)
	}
	still := func(tx *store.Tx) error { return s.stillCopies(ctx, tx, o.ID) }
	if _, err := s.cfg.Custody.PutAccess(ctx, caller, o, d, in.Credential, still); err != nil {
		return nil, err
	}
	return s.GetOrder(ctx, caller, &lockboxv1.GetOrderRequest{Id: in.Order})
}

// RemoveDestinationAccess destroys what lets the copy job into one of an order's
// accounts. A job that runs has it until its lease ends.
func (s *Service) RemoveDestinationAccess(ctx context.Context, caller auth.Caller, in *lockboxv1.RemoveDestinationAccessRequest) (*lockboxv1.Order, error) {
	o, d, err := s.destination(ctx, caller, in.Order, in.Account)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Custody.RemoveAccess(ctx, caller, o, d.Account); err != nil {
		return nil, err
	}
	return s.GetOrder(ctx, caller, &lockboxv1.GetOrderRequest{Id: in.Order})
}

// destination finds an account of an order for somebody who speaks for it.
func (s *Service) destination(ctx context.Context, caller auth.Caller, id, account string) (o store.Order, d store.Destination, err error) {
	o, err = view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Order, error) { return order(ctx, tx, caller, id) })
	if err != nil {
		return o, d, err
	}
	if !caller.Is(auth.Owner, auth.TenantAdmin) || caller.Tenant != o.Tenant {
		return o, d, protocol.Errorf(protocol.CodeForbidden, "only an owner of %s speaks for the accounts of order %s", o.Tenant, o.ID)
	}
	i := slices.IndexFunc(o.Destinations, func(d store.Destination) bool { return d.Account == account })
	if i < 0 {
		return o, d, invalid("order %s does not go to account %q", o.ID, account)
	}
	return o, o.Destinations[i], nil
}

// stillCopies refuses an order that is over.
func (s *Service) stillCopies(ctx context.Context, tx *store.Tx, id protocol.OrderID) error {
	o, err := tx.Order(ctx, id)
	if err == nil && Finished(o) {
		err = conflict("order %s is %s: nothing more is copied", o.ID, o.Stage)
	}
	return err
}

// needsAccess reports whether a destination lets nobody in without a credential.
func needsAccess(d store.Destination) bool { return !strings.HasPrefix(d.Endpoint, "file:") }

// hasAccess refuses to copy while something is missing, or over, that lets into an
// account of the order.
func (s *Service) hasAccess(ctx context.Context, tx *store.Tx, o store.Order) error {
	rows, err := tx.DestinationAccess(ctx, o.ID)
	if err != nil {
		return err
	}
	for _, d := range o.Destinations {
		i := slices.IndexFunc(rows, func(r store.DestinationAccess) bool { return r.Account == d.Account && r.Endpoint == d.Endpoint })
		switch {
		case !needsAccess(d):
		case i < 0:
			return conflict("nothing lets the copy job of order %[1]s into account %[2]s yet: its owner hands it over with 'lockbox order destination set-credential %[1]s %[2]s'", o.ID, d.Account)
		case !rows[i].Expires.IsZero() && !rows[i].Expires.After(s.now()):
			return conflict("what let the copy job of order %[1]s into account %[2]s ended at %[3]s: its owner hands over another with 'lockbox order destination set-credential %[1]s %[2]s'",
				o.ID, d.Account, rows[i].Expires.Format(time.RFC3339))
		}
	}
	return nil
}

// dropAccess destroys what lets into the accounts of an order if it is over. erase is
// to be called once that is committed.
func (s *Service) dropAccess(ctx context.Context, tx *store.Tx, id protocol.OrderID) (erase func(), err error) {
	o, err := tx.Order(ctx, id)
	if err != nil || !Finished(o) {
		return func() {}, err
	}
	return s.cfg.Custody.DropAccess(ctx, tx, auth.SystemCaller(), o)
}

func showDestinations(ctx context.Context, tx *store.Tx, o store.Order) ([]*lockboxv1.Destination, error) {
	rows, err := tx.DestinationAccess(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	var out []*lockboxv1.Destination
	for _, d := range o.Destinations {
		shown := &lockboxv1.Destination{Account: d.Account, Endpoint: d.Endpoint, Shares: d.Shares}
		for _, r := range rows {
			if r.Account == d.Account {
				shown.Access = &lockboxv1.DestinationAccess{Kind: r.Kind, Allows: r.Detail, Expires: unix(r.Expires), Person: string(r.Person), Created: unix(r.Created)}
			}
		}
		out = append(out, shown)
	}
	return out, nil
}
