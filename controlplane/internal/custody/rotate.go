package custody

import (
	"context"
	"errors"
	"fmt"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// GetKeyStatus tells which keys wrap the keys of orders, and how the newest
// rotation stands.
func (s *Service) GetKeyStatus(ctx context.Context, caller auth.Caller, _ *lockboxv1.GetKeyStatusRequest) (*lockboxv1.KeyStatus, error) {
	if caller.Scope() != "" {
		return nil, protocol.Errorf(protocol.CodeForbidden, "the keys of the service are none of one customer: 'lockbox order key show' tells of your orders")
	}
	out := &lockboxv1.KeyStatus{}
	asked, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	if current, err := s.Keys.Current(asked); err != nil {
		out.Problem = keyError(false, err).Error()
	} else {
		out.Current = current.ID()
	}
	err := s.Store.View(ctx, func(tx *store.Tx) error {
		uses, err := tx.WrapperUses(ctx)
		if err != nil {
			return err
		}
		for _, u := range uses {
			out.Keys = append(out.Keys, &lockboxv1.WrappingKey{Id: u.Wrapper, KekType: kekType(u.Customer), Orders: u.Orders})
		}
		r, err := tx.LastKeyRotation(ctx)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		out.Rotation = &lockboxv1.KeyRotation{
			Target: r.Target, Person: string(r.Person), Orders: r.Total, Done: r.Done, Problem: r.Problem, Started: r.Started.Unix(),
		}
		if !r.Finished.IsZero() {
			out.Rotation.Finished = r.Finished.Unix()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// RotateKey makes another key at the key service, if that makes its keys itself,
// and begins to wrap the keys of all orders that the service manages under its
// current one. [Service.Run] goes on with it. Until an order's turn comes, its
// old wrapping is good; when none is left, the old keys are destroyed.
func (s *Service) RotateKey(ctx context.Context, caller auth.Caller, _ *lockboxv1.RotateKeyRequest) (*lockboxv1.KeyStatus, error) {
	if !caller.Is(auth.Admin) {
		return nil, protocol.Errorf(protocol.CodeForbidden, "only an admin rotates the service's key")
	}
	s.rotating.Lock()
	defer s.rotating.Unlock()
	if err := s.refuseRotation(ctx); err != nil {
		return nil, err
	}
	rec := s.rotationRecord(auditlog.Start, caller.Person)
	if _, err := s.Audit.RecordIntent(ctx, rec); err != nil {
		return nil, err
	}
	if err := s.beginRotation(ctx, caller.Person); err != nil {
		s.recordFailure(ctx, s.rotationRecord(auditlog.Failure, caller.Person), err)
		return nil, err
	}
	signal(s.keysWake)
	return s.GetKeyStatus(ctx, caller, &lockboxv1.GetKeyStatusRequest{})
}

func (s *Service) refuseRotation(ctx context.Context) error {
	return s.Store.View(ctx, func(tx *store.Tx) error {
		r, err := tx.LastKeyRotation(ctx)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil && r.Finished.IsZero() {
			err = protocol.Errorf(protocol.CodeConflict, "a rotation is under way, %d of %d orders done: 'lockbox key show' says what it waits for", r.Done, r.Total)
		}
		return err
	})
}

func (s *Service) beginRotation(ctx context.Context, person protocol.Person) error {
	asked, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	if r, ok := s.Keys.(Rotator); ok {
		if err := r.Rotate(asked); err != nil {
			return keyError(false, err)
		}
	}
	to, err := s.Keys.Current(asked)
	if err != nil {
		return keyError(false, err)
	}
	return s.Store.Tx(ctx, func(tx *store.Tx) error {
		uses, err := tx.WrapperUses(ctx)
		if err != nil {
			return err
		}
		r := store.KeyRotation{Target: to.ID(), Person: person, Started: s.Now()}
		for _, u := range uses {
			if !u.Customer && u.Wrapper != r.Target {
				r.Total += u.Orders
			}
		}
		return tx.InsertKeyRotation(ctx, &r)
	})
}

// rotationBatch is how many orders a rotation looks up at a time.
const rotationBatch = 100

// ContinueRotation carries on with the rotation that is under way, if one is. An
// order that cannot be wrapped anew does not keep the others waiting, but keeps
// the rotation from its end.
func (s *Service) ContinueRotation(ctx context.Context) error {
	var r store.KeyRotation
	err := s.Store.View(ctx, func(tx *store.Tx) (err error) { r, err = tx.LastKeyRotation(ctx); return err })
	if errors.Is(err, store.ErrNotFound) || err == nil && !r.Finished.IsZero() {
		return nil
	}
	if err != nil {
		return err
	}
	err = s.rewrapAll(ctx, &r)
	if err == nil {
		err = s.finishRotation(ctx, &r)
	}
	if err != nil && ctx.Err() == nil {
		r.Problem = err.Error()
		err = errors.Join(err, s.Store.Tx(ctx, func(tx *store.Tx) error { return tx.UpdateKeyRotation(ctx, &r) }))
	}
	return err
}

func (s *Service) rewrapAll(ctx context.Context, r *store.KeyRotation) (failed error) {
	to, err := s.rotationTarget(ctx, r)
	if err != nil {
		return err
	}
	for after := protocol.OrderID(""); ; {
		var orders []protocol.OrderID
		err := s.Store.View(ctx, func(tx *store.Tx) (err error) {
			orders, err = tx.OrdersNotWrappedBy(ctx, r.Target, after, rotationBatch)
			return err
		})
		if err != nil || len(orders) == 0 {
			return errors.Join(failed, err)
		}
		for _, order := range orders {
			if err := s.rewrapOne(ctx, r, to, order); err != nil {
				failed = fmt.Errorf("order %s: %w", order, err)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		after = orders[len(orders)-1]
	}
}

func (s *Service) rotationTarget(ctx context.Context, r *store.KeyRotation) (KeyWrapper, error) {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	to, err := s.wrapper(ctx, r.Target, false)
	return to, keyError(false, err)
}

// rewrapOne wraps one order anew and counts it, both or neither.
func (s *Service) rewrapOne(ctx context.Context, r *store.KeyRotation, to KeyWrapper, order protocol.OrderID) error {
	next := *r
	next.Done++
	_, err := s.rewrap(ctx, rewrapIn{order: order, to: to, also: func(tx *store.Tx) error {
		counted := next // the transaction may be run for nothing
		if err := tx.UpdateKeyRotation(ctx, &counted); err != nil {
			return err
		}
		next.Rev = counted.Rev
		return nil
	}})
	if err == nil {
		*r = next
	}
	return err
}

// finishRotation destroys the old keys, now that they wrap nothing, and says so.
func (s *Service) finishRotation(ctx context.Context, r *store.KeyRotation) error {
	asked, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	current, err := s.Keys.Current(asked)
	if err != nil {
		return keyError(false, err)
	}
	// Another service may have been configured since the rotation began.
	if rotator, ok := s.Keys.(Rotator); ok && current.ID() == r.Target {
		if err := rotator.Retire(asked); err != nil {
			return keyError(false, err)
		}
	}
	next := *r
	next.Finished, next.Problem = s.Now(), ""
	rec := s.rotationRecord(auditlog.Success, r.Person)
	rec.Properties["to"], rec.Properties["orders"] = r.Target, fmt.Sprint(r.Done)
	return s.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := tx.UpdateKeyRotation(ctx, &next); err != nil {
			return err
		}
		_, err := s.Audit.Record(ctx, tx, rec)
		return err
	})
}

func (s *Service) rotationRecord(result auditlog.Result, person protocol.Person) auditlog.Record {
	rec := auditlog.NewRecord(s.Now(), auditlog.OpRotateMasterKey, result)
	rec.Caller, rec.ResourceID, rec.Properties = string(person), "/keys", map[string]string{}
	return rec
}
