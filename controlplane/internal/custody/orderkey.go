package custody

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
)

// underOrderKey is the wrapper of a disk's key that is encrypted under the key of
// its order. Keys that were stored before orders had one name a wrapping key.
const underOrderKey = "order-key"

// orderKeySize is the size of an order's key in bytes.
const orderKeySize = 32

// OrderKey is the key of an order in clear, for one operation. It encrypts the
// keys of the order's disks.
type OrderKey struct {
	row      store.OrderKey
	stored   bool
	rotation int64 // the newest when it was wrapped, if it is not stored
	key      []byte
	aead     cipher.AEAD
}

// Wipe ends k, which may be nil.
func (k *OrderKey) Wipe() {
	if k != nil {
		clear(k.key)
	}
}

func (k *OrderKey) use(key []byte) (err error) {
	k.key = key
	k.aead, err = NewAEAD(key)
	return err
}

func (k *OrderKey) seal(key []byte, row store.DiskKey) []byte {
	return k.aead.Seal(nil, nil, key, associatedData(row))
}

func (k *OrderKey) open(row store.DiskKey) ([]byte, error) {
	if row.Order != k.row.Order {
		return nil, ErrNotWrapped
	}
	key, err := k.aead.Open(nil, nil, row.Wrapped, associatedData(row))
	if err != nil {
		return nil, ErrNotWrapped
	}
	return key, nil
}

// OpenOrderKey returns the key of an order, and makes one if it has none yet. No
// transaction may be open: a key service is asked. The caller wipes the key.
func (s *Service) OpenOrderKey(ctx context.Context, order protocol.OrderID) (*OrderKey, error) {
	k, err := s.storedOrderKey(ctx, order)
	if err != nil || k != nil {
		return k, err
	}
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	k = &OrderKey{row: store.OrderKey{Order: order}}
	err = s.Store.View(ctx, func(tx *store.Tx) error {
		o, err := tx.Order(ctx, order)
		if err != nil {
			return err
		}
		k.row.Tenant = o.Tenant
		k.rotation, err = lastRotation(ctx, tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	current, err := s.Keys.Current(ctx)
	if err != nil {
		return nil, keyError(false, err)
	}
	return k, s.wrapFresh(ctx, k, current, false)
}

// storedOrderKey returns the key of an order, or nil if it has none yet.
func (s *Service) storedOrderKey(ctx context.Context, order protocol.OrderID) (*OrderKey, error) {
	row, err := s.orderKeyRow(ctx, order)
	for err == nil && row.Order != "" {
		var key []byte
		key, err = s.unwrap(ctx, row.Wrapper, row.Customer, row.Wrapped, orderData(row))
		if err == nil {
			k := &OrderKey{row: row, stored: true}
			return k, k.use(key)
		}
		// It may have been wrapped anew since it was read, and what wrapped it
		// before destroyed.
		again, failed := s.orderKeyRow(ctx, order)
		if failed != nil || again.Rev == row.Rev {
			if protocol.CodeOf(err) == protocol.CodeInternal {
				err = fmt.Errorf("cannot unwrap the key of order %s: %w", order, err)
			}
			return nil, err
		}
		row, err = again, nil
	}
	return nil, err
}

// orderKeyRow reads the row of an order's key, the zero value if it has none.
func (s *Service) orderKeyRow(ctx context.Context, order protocol.OrderID) (row store.OrderKey, err error) {
	err = s.Store.View(ctx, func(tx *store.Tx) (err error) { row, err = tx.OrderKey(ctx, order); return err })
	if errors.Is(err, store.ErrNotFound) {
		return store.OrderKey{}, nil
	}
	return row, err
}

// wrapFresh gives k a new key, wrapped by to, and makes sure that to unwraps it:
// what cannot be opened again must never replace what can.
func (s *Service) wrapFresh(ctx context.Context, k *OrderKey, to KeyWrapper, customer bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	key := make([]byte, orderKeySize)
	rand.Read(key)
	if err := k.use(key); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			k.Wipe()
			err = keyError(customer, fmt.Errorf("cannot wrap the key of order %s: %w", k.row.Order, err))
		}
	}()
	k.row.Wrapper, k.row.Customer, k.row.Created = to.ID(), customer, s.Now()
	if k.row.Wrapped, err = to.Wrap(ctx, key, orderData(k.row)); err != nil {
		return err
	}
	again, err := to.Unwrap(ctx, k.row.Wrapped, orderData(k.row))
	defer clear(again)
	if err == nil && !bytes.Equal(again, key) {
		err = errors.New("what it unwraps is not what it wrapped")
	}
	return err
}

// put puts k into the store within tx, or makes sure that it is still there.
func (k *OrderKey) put(ctx context.Context, tx *store.Tx) error {
	if k.stored {
		return tx.UseOrderKey(ctx, k.row)
	}
	if err := k.checkRotation(ctx, tx); err != nil {
		return err
	}
	return tx.InsertOrderKey(ctx, &k.row)
}

// checkRotation refuses a key that was wrapped before a rotation began, and may
// not have been seen by it: what wraps it may be destroyed already.
func (k *OrderKey) checkRotation(ctx context.Context, tx *store.Tx) error {
	last, err := lastRotation(ctx, tx)
	if err == nil && last != k.rotation {
		err = protocol.Errorf(protocol.CodeConflict, "the service's key was rotated meanwhile: repeat")
	}
	return err
}

// lastRotation is the ID of the newest rotation, 0 if there was none.
func lastRotation(ctx context.Context, tx *store.Tx) (int64, error) {
	r, err := tx.LastKeyRotation(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	return r.ID, err
}

// unwrap asks the key service that has a wrapping key. The caller wipes the
// result.
func (s *Service) unwrap(ctx context.Context, wrapper string, customer bool, wrapped, aad []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	w, err := s.wrapper(ctx, wrapper, customer)
	if err != nil {
		return nil, keyError(customer, err)
	}
	key, err := w.Unwrap(ctx, wrapped, aad)
	return key, keyError(customer, err)
}

// wrapper finds a wrapping key.
func (s *Service) wrapper(ctx context.Context, id string, customer bool) (KeyWrapper, error) {
	if customer {
		if s.CustomerKeys == nil {
			return nil, fmt.Errorf("the key %s is its customer's, and keys.key_vault is not set up", id)
		}
		return s.CustomerKeys.Key(ctx, id)
	}
	for _, service := range append([]KeyService{s.Keys}, s.OlderKeys...) {
		w, err := service.Key(ctx, id)
		if !errors.Is(err, ErrForeignKey) {
			return w, err
		}
	}
	return nil, fmt.Errorf("no key service that is set up has the key %q", id)
}

// openDiskKey returns a disk's key in clear. k is the key of its order, nil if
// it has none. The caller wipes the result.
func (s *Service) openDiskKey(ctx context.Context, k *OrderKey, row store.DiskKey) (key []byte, err error) {
	switch {
	case row.Wrapper != underOrderKey:
		key, err = s.unwrap(ctx, row.Wrapper, false, row.Wrapped, associatedData(row))
	case k == nil:
		err = errors.New("the key of its order is missing")
	default:
		key, err = k.open(row)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot unwrap the %s of disk %s of %s: %w", row.Kind, row.Disk, row.Node, err)
	}
	return key, nil
}

// orderData binds the wrapped key of an order to it.
func orderData(k store.OrderKey) []byte {
	return fields("databox-custody-order-v1", string(k.Tenant), string(k.Order), k.Wrapper)
}

// associatedData binds the key of a disk to its place.
func associatedData(k store.DiskKey) []byte {
	return fields("databox-custody-v1", string(k.Tenant), string(k.Order), k.Node.String(), string(k.Disk), k.Kind, k.Wrapper)
}

// fields encodes every field with its length before it, so that no two lists
// have the same bytes.
func fields(list ...string) []byte {
	var b []byte
	for _, field := range list {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return b
}
