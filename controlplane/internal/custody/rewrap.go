package custody

import (
	"context"
	"errors"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
)

// rewrapIn says how an order is wrapped anew.
type rewrapIn struct {
	order    protocol.OrderID
	to       KeyWrapper
	customer bool
	also     func(*store.Tx) error // in the transaction that takes the new wrappings; may be nil
}

// rewrap gives an order another key, wrapped by in.to, encrypts the keys of its
// disks under it, and returns what is replaced. The old wrappings are good until
// the new ones are on disk, all at once.
func (s *Service) rewrap(ctx context.Context, in rewrapIn) (gone [][]byte, err error) {
	old, err := s.storedOrderKey(ctx, in.order)
	if err != nil {
		return nil, err
	}
	defer old.Wipe()
	next := &OrderKey{row: store.OrderKey{Order: in.order}}
	var disks []store.DiskKey
	var access []store.DestinationAccess
	err = s.Store.View(ctx, func(tx *store.Tx) error {
		o, err := tx.Order(ctx, in.order)
		if err != nil {
			return err
		}
		next.row.Tenant = o.Tenant
		if next.rotation, err = lastRotation(ctx, tx); err != nil {
			return err
		}
		if disks, err = tx.DiskKeys(ctx, in.order); err != nil {
			return err
		}
		access, err = tx.DestinationAccess(ctx, in.order)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.wrapFresh(ctx, next, in.to, in.customer); err != nil {
		return nil, err
	}
	defer next.Wipe()
	wrapped, err := s.reseal(ctx, old, next, disks)
	if err != nil {
		return nil, err
	}
	if old != nil {
		gone = append(gone, old.row.Wrapped)
	}
	for _, d := range disks {
		gone = append(gone, d.Wrapped)
	}
	resealed, err := resealAccess(old, next, access)
	if err != nil {
		return nil, err
	}
	gone = append(gone, wrappedAccess(access)...)
	return gone, s.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := next.replace(ctx, tx, old); err != nil {
			return err
		}
		for i, d := range disks {
			if err := tx.ReplaceDiskKey(ctx, d, underOrderKey, wrapped[i]); err != nil {
				return err
			}
		}
		for i := range resealed {
			row := resealed[i] // the transaction may be run for nothing
			if err := tx.UpdateDestinationAccess(ctx, &row); err != nil {
				return err
			}
		}
		if in.also == nil {
			return nil
		}
		return in.also(tx)
	})
}

// resealAccess encrypts what lets into accounts under another key of their order.
func resealAccess(old, next *OrderKey, access []store.DestinationAccess) ([]store.DestinationAccess, error) {
	var out []store.DestinationAccess
	for _, row := range access {
		secret, err := old.openAccess(row)
		if err != nil {
			return nil, err
		}
		row.Wrapped = next.sealAccess(secret, row)
		clear(secret)
		out = append(out, row)
	}
	return out, nil
}

// reseal encrypts the keys of disks under another key of their order.
func (s *Service) reseal(ctx context.Context, old, next *OrderKey, disks []store.DiskKey) ([][]byte, error) {
	var out [][]byte
	for _, d := range disks {
		key, err := s.openDiskKey(ctx, old, d)
		if err != nil {
			return nil, err
		}
		d.Wrapper = underOrderKey
		out = append(out, next.seal(key, d))
		clear(key)
	}
	return out, nil
}

// replace puts k in the place of old, which is nil if the order had none.
func (k *OrderKey) replace(ctx context.Context, tx *store.Tx, old *OrderKey) error {
	if !k.row.Customer {
		if err := k.checkRotation(ctx, tx); err != nil {
			return err
		}
	}
	if old == nil {
		return tx.InsertOrderKey(ctx, &k.row)
	}
	k.row.Rev = old.row.Rev
	return tx.UpdateOrderKey(ctx, &k.row)
}

// Bounds of erasing what was replaced: while somebody waits for it, and later.
const (
	eraseTimeout = 20 * time.Second
	eraseLater   = 10 * time.Minute
)

// eraseNow erases what the former key of an order wrapped. What cannot be done
// now is left to [Service.Run].
func (s *Service) eraseNow(ctx context.Context, order protocol.OrderID, gone [][]byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eraseTimeout)
	defer cancel()
	s.noteGone(order, gone)
	if err := s.eraseOne(ctx, order); err != nil {
		s.Logger.Warn().Err(err).Str("order", string(order)).Msg("old wrappings of an order's key are not erased yet")
		signal(s.keysWake)
	}
}

// eraseSoon leaves that to [Service.Run].
func (s *Service) eraseSoon(order protocol.OrderID, gone [][]byte) {
	s.noteGone(order, gone)
	signal(s.keysWake)
}

func (s *Service) noteGone(order protocol.OrderID, gone [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone[order] = append(s.gone[order], gone...)
}

// erase erases what earlier moves left.
func (s *Service) erase(ctx context.Context) error {
	var due []store.Erasure
	err := s.Store.View(ctx, func(tx *store.Tx) (err error) { due, err = tx.Erasures(ctx); return err })
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, eraseLater)
	defer cancel()
	for _, d := range due {
		err = errors.Join(err, s.eraseOne(ctx, d.Order))
	}
	return err
}

// eraseOne erases what former keys of an order wrapped, one order at a time. What
// an earlier process replaced nobody knows any more, so that the store is written
// anew.
func (s *Service) eraseOne(ctx context.Context, order protocol.OrderID) error {
	select {
	case s.erasing <- struct{}{}:
		defer func() { <-s.erasing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var due store.Erasure
	err := s.Store.View(ctx, func(tx *store.Tx) (err error) { due, err = tx.Erasure(ctx, order); return err })
	noted := !errors.Is(err, store.ErrNotFound)
	if err != nil && noted {
		return err
	}
	s.mu.Lock()
	gone := s.gone[order]
	s.mu.Unlock()
	if !noted && len(gone) == 0 {
		return nil // somebody else did it meanwhile
	}
	if err := s.Store.Purge(ctx, gone...); err != nil {
		return err
	}
	if noted {
		if err := s.Store.Tx(ctx, func(tx *store.Tx) error { return tx.DeleteErasure(ctx, due) }); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone[order] = s.gone[order][len(gone):]; len(s.gone[order]) == 0 {
		delete(s.gone, order)
	}
	return nil
}
