package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// OrderKey is the key under which the keys of an order's disks are stored,
// wrapped itself.
type OrderKey struct {
	Order    protocol.OrderID
	Tenant   protocol.TenantID
	Customer bool   // the wrapping key is the customer's
	Wrapper  string // id of the wrapping key
	Wrapped  []byte
	Created  time.Time
	Rev      int64
}

var orderKeys = table{"order_keys", "key of order", 1, "order_id, tenant, customer, wrapper, wrapped, created, rev"}

func (r *OrderKey) fields() []any {
	return []any{&r.Order, &r.Tenant, &r.Customer, &r.Wrapper, &r.Wrapped, ms{&r.Created}, &r.Rev}
}

// InsertOrderKey adds r.
func (tx *Tx) InsertOrderKey(ctx context.Context, r *OrderKey) error {
	return insert(ctx, tx, orderKeys, r.fields())
}

// UpdateOrderKey writes r if nobody changed it since it was read.
func (tx *Tx) UpdateOrderKey(ctx context.Context, r *OrderKey) error {
	return update(ctx, tx, orderKeys, &r.Rev, r.fields())
}

// OrderKey reads the key of an order.
func (tx *Tx) OrderKey(ctx context.Context, order protocol.OrderID) (OrderKey, error) {
	return get[OrderKey](ctx, tx, orderKeys, `WHERE order_id = $1`, order)
}

// UseOrderKey is [ErrConflict] unless r is still as it was read. It keeps
// whoever changes r from missing what is stored under it in this transaction.
func (tx *Tx) UseOrderKey(ctx context.Context, r OrderKey) error {
	n, err := exec(ctx, tx, `UPDATE order_keys SET rev = rev + 1 WHERE order_id = $1 AND rev = $2`, r.Order, r.Rev)
	if err == nil && n == 0 {
		err = changed(orderKeys.what, r.Order)
	}
	return err
}

// WrapperUse says how many orders have their key wrapped by one wrapping key.
type WrapperUse struct {
	Wrapper  string
	Customer bool
	Orders   int64
}

var wrapperUses = table{name: "wrapper_uses", cols: "wrapper, customer, orders"}

func (r *WrapperUse) fields() []any { return []any{&r.Wrapper, &r.Customer, &r.Orders} }

// wrapperOfOrder has a row for each order with keys: what wraps the order's key
// or, of an order that has none yet, the keys of its disks.
const wrapperOfOrder = `SELECT order_id, wrapper, customer FROM order_keys
	UNION SELECT order_id, wrapper, 0 FROM disk_keys WHERE order_id NOT IN (SELECT order_id FROM order_keys)`

// WrapperUses reads which wrapping keys are in use.
func (tx *Tx) WrapperUses(ctx context.Context) ([]WrapperUse, error) {
	with := table{name: `(SELECT wrapper, customer, COUNT(*) AS orders FROM (` + wrapperOfOrder + `) GROUP BY wrapper, customer)`, cols: wrapperUses.cols}
	return list[WrapperUse](ctx, tx, with, `ORDER BY customer, wrapper`)
}

// OrdersNotWrappedBy reads up to limit orders whose keys are wrapped by another
// key of the service than wrapper, in order, beginning after an id.
func (tx *Tx) OrdersNotWrappedBy(ctx context.Context, wrapper string, after protocol.OrderID, limit int) ([]protocol.OrderID, error) {
	rows, err := tx.tx.QueryContext(ctx, `SELECT order_id FROM (`+wrapperOfOrder+`)
		WHERE customer = 0 AND wrapper <> $1 AND order_id > $2 ORDER BY order_id LIMIT $3`, wrapper, after, limit)
	if err != nil {
		return nil, refine(err)
	}
	defer rows.Close()
	var out []protocol.OrderID
	for rows.Next() {
		var id protocol.OrderID
		if err := rows.Scan(&id); err != nil {
			return nil, refine(err)
		}
		out = append(out, id)
	}
	return out, refine(rows.Err())
}

// ReplaceDiskKey writes how a key is wrapped now, if it is still wrapped as old
// says.
func (tx *Tx) ReplaceDiskKey(ctx context.Context, old DiskKey, wrapper string, wrapped []byte) error {
	n, err := exec(ctx, tx, `UPDATE disk_keys SET wrapper = $5, wrapped = $6
		WHERE serial = $1 AND node = $2 AND disk = $3 AND kind = $4 AND wrapped = $7`,
		old.Node.Serial, old.Node.Node, old.Disk, old.Kind, wrapper, wrapped, old.Wrapped)
	if err == nil && n == 0 {
		err = changed(diskKeys.what, old.Node, old.Disk, old.Kind)
	}
	return err
}

// Erasure says that replaced wrappings of an order may lie in the database's
// files.
type Erasure struct {
	Order protocol.OrderID
	Since time.Time // another one for each replacement
}

var erasures = table{"key_erasures", "erasure", 1, "order_id, since"}

func (r *Erasure) fields() []any { return []any{&r.Order, ms{&r.Since}} }

// AddErasure notes that wrappings of an order were replaced.
func (tx *Tx) AddErasure(ctx context.Context, order protocol.OrderID, at time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO key_erasures (order_id, since) VALUES ($1, $2)
		ON CONFLICT (order_id) DO UPDATE SET since = MAX(since + 1, excluded.since)`, order, millis(at))
	return err
}

// Erasures reads what is to be erased.
func (tx *Tx) Erasures(ctx context.Context) ([]Erasure, error) {
	return list[Erasure](ctx, tx, erasures, `ORDER BY order_id`)
}

// Erasure reads what is to be erased of an order.
func (tx *Tx) Erasure(ctx context.Context, order protocol.OrderID) (Erasure, error) {
	return get[Erasure](ctx, tx, erasures, `WHERE order_id = $1`, order)
}

// DeleteErasure notes that it is erased. What was replaced since r was read
// stays to be.
func (tx *Tx) DeleteErasure(ctx context.Context, r Erasure) error {
	_, err := exec(ctx, tx, `DELETE FROM key_erasures WHERE order_id = $1 AND since = $2`, r.Order, millis(r.Since))
	return err
}

// KeyRotation is a rotation of the service's own wrapping key.
type KeyRotation struct {
	ID       int64
	Target   string // id of the key that wraps from then on
	Person   protocol.Person
	Total    int64 // orders to wrap again
	Done     int64
	Problem  string // what it waits for
	Started  time.Time
	Finished time.Time
	Rev      int64
}

var keyRotations = table{"key_rotations", "key rotation", 1, "id, target, person, total, done, problem, started, finished, rev"}

func (r *KeyRotation) fields() []any {
	return []any{&r.ID, &r.Target, &r.Person, &r.Total, &r.Done, &r.Problem, ms{&r.Started}, ms{&r.Finished}, &r.Rev}
}

// InsertKeyRotation adds r and gives it an ID. It is [ErrConflict] while another
// is under way.
func (tx *Tx) InsertKeyRotation(ctx context.Context, r *KeyRotation) error {
	err := tx.tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(id), 0) + 1 FROM key_rotations`).Scan(&r.ID)
	if err != nil {
		return refine(err)
	}
	return insert(ctx, tx, keyRotations, r.fields())
}

// UpdateKeyRotation writes r if nobody changed it since it was read.
func (tx *Tx) UpdateKeyRotation(ctx context.Context, r *KeyRotation) error {
	return update(ctx, tx, keyRotations, &r.Rev, r.fields())
}

// LastKeyRotation reads the newest rotation.
func (tx *Tx) LastKeyRotation(ctx context.Context) (KeyRotation, error) {
	return get[KeyRotation](ctx, tx, keyRotations, `ORDER BY id DESC LIMIT 1`)
}
