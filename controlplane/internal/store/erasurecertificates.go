package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// ErasureCertificate is what a node signed of the erasure of its disks.
type ErasureCertificate struct {
	Order          protocol.OrderID
	Node           int
	KeyFingerprint string // of the node's key when it was verified
	Digest         string // sha256:<hex> of the payload
	Envelope       []byte
	Time           time.Time
}

var erasureCertificates = table{"erasure_certificates", "erasure certificate", 2, "order_id, node, key_fingerprint, digest, envelope, time"}

func (r *ErasureCertificate) fields() []any {
	return []any{&r.Order, &r.Node, &r.KeyFingerprint, &r.Digest, &r.Envelope, ms{&r.Time}}
}

// InsertErasureCertificate adds r. A node certifies an order once.
func (tx *Tx) InsertErasureCertificate(ctx context.Context, r *ErasureCertificate) error {
	return insert(ctx, tx, erasureCertificates, r.fields())
}

// ErasureCertificates reads the certificates of an order, by node.
func (tx *Tx) ErasureCertificates(ctx context.Context, order protocol.OrderID) ([]ErasureCertificate, error) {
	return list[ErasureCertificate](ctx, tx, erasureCertificates, `WHERE order_id = $1 ORDER BY node`, order)
}

// DeleteKeys deletes the key of an order, those of its disks, and what lets into
// its accounts.
func (tx *Tx) DeleteKeys(ctx context.Context, order protocol.OrderID) error {
	if _, err := exec(ctx, tx, `DELETE FROM disk_keys WHERE order_id = $1`, order); err != nil {
		return err
	}
	if _, err := exec(ctx, tx, `DELETE FROM destination_access WHERE order_id = $1`, order); err != nil {
		return err
	}
	_, err := exec(ctx, tx, `DELETE FROM order_keys WHERE order_id = $1`, order)
	return err
}
