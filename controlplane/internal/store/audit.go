package store

import (
	"context"
	"fmt"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// AuditRow is one record of the activity log, with what it is found by.
type AuditRow struct {
	Index       int64
	Time        time.Time
	Operation   string
	Correlation string
	Caller      string
	Serial      protocol.DeviceSerial
	Tenant      protocol.TenantID
	Record      []byte // canonical auditlog.Record; empty if it was pruned
	Pruned      bool
}

var auditRecords = table{"audit_records", "audit record", 1, "idx, time, operation, correlation, caller, serial, tenant, record, pruned"}

func (r *AuditRow) fields() []any {
	return []any{&r.Index, ms{&r.Time}, &r.Operation, &r.Correlation, &r.Caller, &r.Serial, &r.Tenant, &r.Record, &r.Pruned}
}

// InsertAuditRow adds r and the Merkle hashes that come with it, which begin at
// hash number firstHash.
func (tx *Tx) InsertAuditRow(ctx context.Context, r *AuditRow, firstHash int64, hashes [][]byte) error {
	if err := insert(ctx, tx, auditRecords, r.fields()); err != nil {
		return err
	}
	for i, h := range hashes {
		if _, err := exec(ctx, tx, `INSERT INTO audit_hashes (idx, hash) VALUES ($1, $2)`, firstHash+int64(i), h); err != nil {
			return err
		}
	}
	return nil
}

// AuditSize returns the number of records in the activity log.
func (tx *Tx) AuditSize(ctx context.Context) (int64, error) {
	var n int64
	err := tx.tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(idx) + 1, 0) FROM audit_records`).Scan(&n)
	return n, refine(err)
}

// AuditHash returns Merkle hash number index of the activity log.
func (tx *Tx) AuditHash(ctx context.Context, index int64) ([]byte, error) {
	var h []byte
	err := tx.tx.QueryRowContext(ctx, `SELECT hash FROM audit_hashes WHERE idx = $1`, index).Scan(&h)
	if err != nil {
		return nil, fmt.Errorf("hash %d of the activity log: %w", index, refine(err))
	}
	return h, nil
}

// AuditFilter says which records are wanted. Empty fields leave none out.
type AuditFilter struct {
	Operation   string
	Correlation string
	Caller      string
	Serial      protocol.DeviceSerial
	Tenant      protocol.TenantID
	Since       time.Time // earliest time of the record
	Until       time.Time // the first time that is too late
	From        int64     // lowest index
	Limit       int
	Pruned      bool // wanted too are records of which only the hash is left
}

// AuditRows reads the records that f wants, in order.
func (tx *Tx) AuditRows(ctx context.Context, f AuditFilter) ([]AuditRow, error) {
	return list[AuditRow](ctx, tx, auditRecords, `WHERE idx >= $1 AND ($2 = '' OR operation = $2) AND ($3 = '' OR correlation = $3)
		AND ($4 = '' OR caller = $4) AND ($5 = '' OR serial = $5) AND ($6 = '' OR tenant = $6) AND time >= $7 AND ($8 = 0 OR time < $8)
		AND pruned <= $9 ORDER BY idx LIMIT $10`,
		f.From, f.Operation, f.Correlation, f.Caller, f.Serial, f.Tenant, millis(f.Since), millis(f.Until), f.Pruned, f.Limit)
}

// AuditRow reads record number index.
func (tx *Tx) AuditRow(ctx context.Context, index int64) (AuditRow, error) {
	return get[AuditRow](ctx, tx, auditRecords, `WHERE idx = $1`, index)
}

// InsertChainHashes adds Merkle hashes of a node's own chain, which begin at
// hash number first.
func (tx *Tx) InsertChainHashes(ctx context.Context, id protocol.NodeID, first int64, hashes [][]byte) error {
	for i, h := range hashes {
		_, err := exec(ctx, tx, `INSERT INTO chain_hashes (serial, node, idx, hash) VALUES ($1, $2, $3, $4)`, id.Serial, id.Node, first+int64(i), h)
		if err != nil {
			return err
		}
	}
	return nil
}

// ChainHash returns Merkle hash number index of a node's own chain.
func (tx *Tx) ChainHash(ctx context.Context, id protocol.NodeID, index int64) ([]byte, error) {
	var h []byte
	err := tx.tx.QueryRowContext(ctx, `SELECT hash FROM chain_hashes WHERE serial = $1 AND node = $2 AND idx = $3`, id.Serial, id.Node, index).Scan(&h)
	if err != nil {
		return nil, fmt.Errorf("hash %d of the chain of %s: %w", index, id, refine(err))
	}
	return h, nil
}
