package custody

import (
	"context"
	"errors"
	"strconv"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// DestroyKeys destroys all keys of an order's disks, the key of the order and what
// lets into its accounts, in
// the store's files too: the caller has verified that the disks are erased. It is
// recorded before. What is gone already is left alone; what cannot be erased from
// the files now is left to [Service.Run].
func (s *Service) DestroyKeys(ctx context.Context, caller auth.Caller, o store.Order) error {
	gone, err := s.wrappings(ctx, o)
	if err != nil || len(gone) == 0 {
		return err
	}
	if _, err := s.Audit.RecordIntent(ctx, s.destroyRecord(caller, o, auditlog.Start, len(gone))); err != nil {
		return err
	}
	err = s.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := errors.Join(tx.DeleteKeys(ctx, o.ID), tx.AddErasure(ctx, o.ID, s.Now())); err != nil {
			return err
		}
		_, err := s.Audit.Record(ctx, tx, s.destroyRecord(caller, o, auditlog.Success, len(gone)))
		return err
	})
	if err != nil {
		s.recordFailure(ctx, s.destroyRecord(caller, o, auditlog.Failure, len(gone)), err)
		return err
	}
	s.eraseNow(ctx, o.ID, gone)
	return nil
}

// wrappings returns what is stored of the keys of an order.
func (s *Service) wrappings(ctx context.Context, o store.Order) (gone [][]byte, err error) {
	err = s.Store.View(ctx, func(tx *store.Tx) error {
		disks, err := tx.DiskKeys(ctx, o.ID)
		if err != nil {
			return err
		}
		for _, d := range disks {
			gone = append(gone, d.Wrapped)
		}
		access, err := tx.DestinationAccess(ctx, o.ID)
		if err != nil {
			return err
		}
		gone = append(gone, wrappedAccess(access)...)
		k, err := tx.OrderKey(ctx, o.ID)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		gone = append(gone, k.Wrapped)
		return err
	})
	return gone, err
}

// KeysDestroyed reports whether nothing is left of the keys of an order.
func (s *Service) KeysDestroyed(ctx context.Context, tx *store.Tx, o store.Order) (bool, error) {
	disks, err := tx.DiskKeys(ctx, o.ID)
	if err != nil || len(disks) > 0 {
		return false, err
	}
	access, err := tx.DestinationAccess(ctx, o.ID)
	if err != nil || len(access) > 0 {
		return false, err
	}
	_, err = tx.OrderKey(ctx, o.ID)
	if err == nil {
		return false, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	_, err = tx.Erasure(ctx, o.ID)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	return false, err
}

func (s *Service) destroyRecord(caller auth.Caller, o store.Order, result auditlog.Result, keys int) auditlog.Record {
	rec := auditlog.NewRecord(s.Now(), auditlog.OpDeleteDiskKeys, result)
	rec.Caller, rec.CorrelationID, rec.ResourceID = string(caller.Person), string(o.ID), "/orders/"+string(o.ID)
	rec.Properties = map[string]string{
		audit.PropertyTenant: string(o.Tenant), audit.PropertySerial: string(o.Serial), "keys": strconv.Itoa(keys),
		"why": "the disks are erased",
	}
	return rec
}
