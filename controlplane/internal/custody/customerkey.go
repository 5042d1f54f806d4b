package custody

import (
	"context"
	"errors"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Who manages the key that wraps the keys of an order, as Data Box calls it.
const (
	MicrosoftManaged = "MicrosoftManaged"
	CustomerManaged  = "CustomerManaged"
)

func kekType(customer bool) string {
	if customer {
		return CustomerManaged
	}
	return MicrosoftManaged
}

// GetOrderKey tells which key wraps the keys of an order.
func (s *Service) GetOrderKey(ctx context.Context, caller auth.Caller, in *lockboxv1.GetOrderKeyRequest) (*lockboxv1.OrderKey, error) {
	out := &lockboxv1.OrderKey{Order: in.Order, KekType: MicrosoftManaged}
	err := s.Store.View(ctx, func(tx *store.Tx) error {
		if _, err := visibleOrder(ctx, tx, caller, in.Order); err != nil {
			return err
		}
		_, err := tx.Erasure(ctx, protocol.OrderID(in.Order))
		if out.OldDestroyed = errors.Is(err, store.ErrNotFound); err != nil && !out.OldDestroyed {
			return err
		}
		k, err := tx.OrderKey(ctx, protocol.OrderID(in.Order))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		out.KekType, out.Key, out.Since = kekType(k.Customer), k.Wrapper, k.Created.Unix()
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// visibleOrder reads an order that the caller may see.
func visibleOrder(ctx context.Context, tx *store.Tx, caller auth.Caller, id string) (store.Order, error) {
	order, err := tx.Order(ctx, protocol.OrderID(id))
	if err == nil && !caller.Sees(order.Tenant) {
		err = protocol.Errorf(protocol.CodeNotFound, "order %s not found", id)
	}
	return order, err
}

// SetOrderKey moves an order to a key of its customer's, on the word of an owner
// of theirs, at any stage, and from one such key to another. It never goes back,
// unless [Config.AllowReturn] is set. It is recorded before; what the key before
// it wrapped is erased after.
func (s *Service) SetOrderKey(ctx context.Context, caller auth.Caller, in *lockboxv1.SetOrderKeyRequest) (*lockboxv1.OrderKey, error) {
	move := move{caller: caller, back: in.ServiceManaged}
	err := s.Store.View(ctx, func(tx *store.Tx) (err error) {
		if move.order, err = visibleOrder(ctx, tx, caller, in.Order); err != nil {
			return err
		}
		move.from, err = tx.OrderKey(ctx, move.order.ID)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.mayMove(move, in); err != nil {
		return nil, err
	}
	if move.to, err = s.findTarget(ctx, in); err != nil {
		return nil, err
	}
	if move.to.ID() == move.from.Wrapper {
		return nil, protocol.Errorf(protocol.CodeConflict, "order %s has the key %s already", in.Order, move.to.ID())
	}
	if err := s.carryOut(ctx, move); err != nil {
		return nil, err
	}
	return s.GetOrderKey(ctx, caller, &lockboxv1.GetOrderKeyRequest{Order: in.Order})
}

// move is an order on its way to another key.
type move struct {
	caller auth.Caller
	order  store.Order
	from   store.OrderKey // the zero value if it has none yet
	to     KeyWrapper
	back   bool
}

func (s *Service) mayMove(m move, in *lockboxv1.SetOrderKeyRequest) error {
	switch {
	case !m.caller.Is(auth.Owner, auth.TenantAdmin) || m.caller.Tenant != m.order.Tenant:
		return protocol.Errorf(protocol.CodeForbidden, "only an owner of %s decides which key order %s has", m.order.Tenant, m.order.ID)
	case (in.VaultKey != "") == in.ServiceManaged:
		return protocol.Errorf(protocol.CodeInvalid, "name a key in a vault, or ask for the service's key: one of both")
	case m.back && !m.from.Customer:
		return protocol.Errorf(protocol.CodeConflict, "order %s has the service's key already", m.order.ID)
	case m.back && !s.AllowReturn:
		return protocol.Errorf(protocol.CodeForbidden, "order %s has a customer-managed key, and never goes back to the service's: move it to another key of yours instead", m.order.ID)
	case !m.back && s.CustomerKeys == nil:
		return protocol.Errorf(protocol.CodeKeyService, "this service has no identity for customers' vaults: its administrators set up keys.key_vault first")
	}
	return nil
}

// findTarget finds the key that an order moves to, and checks it.
func (s *Service) findTarget(ctx context.Context, in *lockboxv1.SetOrderKeyRequest) (w KeyWrapper, err error) {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	if in.ServiceManaged {
		w, err = s.Keys.Current(ctx)
	} else {
		w, err = s.CustomerKeys.Find(ctx, in.VaultKey)
	}
	return w, keyError(!in.ServiceManaged, err)
}

func (s *Service) carryOut(ctx context.Context, m move) error {
	if _, err := s.Audit.RecordIntent(ctx, s.moveRecord(m, auditlog.Start)); err != nil {
		return err
	}
	gone, err := s.rewrap(ctx, rewrapIn{order: m.order.ID, to: m.to, customer: !m.back, also: func(tx *store.Tx) error {
		if err := tx.AddErasure(ctx, m.order.ID, s.Now()); err != nil {
			return err
		}
		_, err := s.Audit.Record(ctx, tx, s.moveRecord(m, auditlog.Success))
		return err
	}})
	if err != nil {
		s.recordFailure(ctx, s.moveRecord(m, auditlog.Failure), err)
		return err
	}
	s.eraseNow(ctx, m.order.ID, gone)
	return nil
}

func (s *Service) moveRecord(m move, result auditlog.Result) auditlog.Record {
	rec := auditlog.NewRecord(s.Now(), auditlog.OpMoveToCustomerKey, result)
	if m.back {
		rec = auditlog.NewRecord(s.Now(), auditlog.OpMoveToServiceKey, result)
	}
	rec.Caller, rec.CorrelationID = string(m.caller.Person), string(m.order.ID)
	rec.ResourceID = "/orders/" + string(m.order.ID)
	rec.Properties = map[string]string{
		audit.PropertyTenant: string(m.order.Tenant), audit.PropertySerial: string(m.order.Serial),
		"from": m.from.Wrapper, "to": m.to.ID(),
	}
	return rec
}

// recordFailure records that what was begun came to nothing. That it did is no
// less true if this cannot be recorded.
func (s *Service) recordFailure(ctx context.Context, rec auditlog.Record, why error) {
	rec.Properties["code"], rec.Properties["reason"] = string(protocol.CodeOf(why)), why.Error()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), failureTimeout)
	defer cancel()
	err := s.Store.Tx(ctx, func(tx *store.Tx) error { _, err := s.Audit.Record(ctx, tx, rec); return err })
	if err != nil {
		s.Logger.Error().Err(err).Str("operation", string(rec.Operation)).Msg("cannot record that a change of keys failed")
	}
}
