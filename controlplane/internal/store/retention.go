package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// LegalHold keeps records of the activity log from being pruned: those that match
// all of Tenant, Serial and Correlation that are not empty.
type LegalHold struct {
	ID          string
	Tenant      protocol.TenantID
	Serial      protocol.DeviceSerial
	Correlation string
	Reason      string
	PlacedBy    protocol.Person
	Placed      time.Time
	ReleasedBy  protocol.Person
	Released    time.Time
	Rev         int64
}

var legalHolds = table{"legal_holds", "legal hold", 1, "id, tenant, serial, correlation, reason, placed_by, placed, released_by, released, rev"}

func (r *LegalHold) fields() []any {
	return []any{
		&r.ID, &r.Tenant, &r.Serial, &r.Correlation, &r.Reason, &r.PlacedBy, ms{&r.Placed}, &r.ReleasedBy, ms{&r.Released}, &r.Rev,
	}
}

// InsertLegalHold adds r.
func (tx *Tx) InsertLegalHold(ctx context.Context, r *LegalHold) error {
	return insert(ctx, tx, legalHolds, r.fields())
}

// UpdateLegalHold writes r if nobody changed it since it was read.
func (tx *Tx) UpdateLegalHold(ctx context.Context, r *LegalHold) error {
	return update(ctx, tx, legalHolds, &r.Rev, r.fields())
}

// LegalHold reads one legal hold.
func (tx *Tx) LegalHold(ctx context.Context, id string) (LegalHold, error) {
	return get[LegalHold](ctx, tx, legalHolds, `WHERE id = $1`, id)
}

// LegalHolds reads all legal holds, released ones included, oldest first.
func (tx *Tx) LegalHolds(ctx context.Context) ([]LegalHold, error) {
	return list[LegalHold](ctx, tx, legalHolds, `ORDER BY placed, id`)
}

// AuditIndexAt returns the lowest index of a record from t or later: all records
// below it are older. It is the size of the log if there is none.
func (tx *Tx) AuditIndexAt(ctx context.Context, t time.Time) (int64, error) {
	var n int64
	err := tx.tx.QueryRowContext(ctx, `SELECT COALESCE((SELECT MIN(idx) FROM audit_records WHERE time >= $1),
		(SELECT MAX(idx) + 1 FROM audit_records), 0)`, millis(t)).Scan(&n)
	return n, refine(err)
}

// prunable is the condition for records from $1 to below $2 that may be pruned.
const prunable = ` idx >= $1 AND idx < $2 AND pruned = 0
	AND NOT EXISTS (SELECT 1 FROM json_each($3) WHERE value = operation)
	AND NOT EXISTS (SELECT 1 FROM legal_holds h WHERE h.released = 0
		AND h.tenant IN ('', audit_records.tenant) AND h.serial IN ('', audit_records.serial)
		AND h.correlation IN ('', audit_records.correlation))`

// CountPrunable returns how many records with an index from first to below limit
// can be pruned: none of the operations in keep, and none under a legal hold.
func (tx *Tx) CountPrunable(ctx context.Context, first, limit int64, keep []string) (n int64, err error) {
	err = tx.tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM audit_records WHERE`+prunable, first, limit, js[string]{&keep}).Scan(&n)
	return n, refine(err)
}

// PruneAudit empties the records that [Tx.CountPrunable] counts.
func (tx *Tx) PruneAudit(ctx context.Context, first, limit int64, keep []string) (int64, error) {
	return exec(ctx, tx, `UPDATE audit_records SET record = x'', caller = '', correlation = '', serial = '', tenant = '', pruned = 1
		WHERE`+prunable, first, limit, js[string]{&keep})
}
