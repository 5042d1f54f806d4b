package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// The states of an unlock attempt. Committed and failed are final. Whatever
// else is found at a start was cut off, and its nodes have to be locked.
const (
	AttemptChallenging = "challenging" // nodes are asked for challenges
	AttemptRecorded    = "recorded"    // the intent is in the activity log
	AttemptOrdered     = "ordered"     // sealed keys may have left
	AttemptOpened      = "opened"      // every node proved that it opened
	AttemptCommitted   = "committed"   // every node published or started its job
	AttemptLocking     = "locking"     // it failed and its nodes are being locked
	AttemptFailed      = "failed"      // it failed, and its nodes are locked or will lock by themselves
)

// Attempt is one run of the unlock saga over all nodes of a device.
type Attempt struct {
	ID            string
	Order         protocol.OrderID
	Tenant        protocol.TenantID
	Subject       string // request or consent id
	SubjectDigest string
	Purpose       protocol.Purpose
	Serial        protocol.DeviceSerial
	Nodes         []string // "<serial>/<n>"
	State         string
	ErrorCode     protocol.Code
	IntentIndex   int64 // of the intent record; -1 before
	LeaseEnd      time.Time
	Started       time.Time
	Updated       time.Time
	Rev           int64
}

var attempts = table{"unlock_attempts", "unlock attempt", 1, "id, order_id, tenant, subject, subject_digest, purpose, serial, nodes, state, error_code, " +
	"intent_index, lease_end, started, updated, rev"}

func (r *Attempt) fields() []any {
	return []any{
		&r.ID, &r.Order, &r.Tenant, &r.Subject, &r.SubjectDigest, &r.Purpose, &r.Serial, js[string]{&r.Nodes}, &r.State, &r.ErrorCode,
		&r.IntentIndex, ms{&r.LeaseEnd}, ms{&r.Started}, ms{&r.Updated}, &r.Rev,
	}
}

// InsertAttempt adds r. It is [ErrConflict] while another attempt on the same
// device is under way.
func (tx *Tx) InsertAttempt(ctx context.Context, r *Attempt) error {
	return insert(ctx, tx, attempts, r.fields())
}

// UpdateAttempt writes r if nobody changed it since it was read.
func (tx *Tx) UpdateAttempt(ctx context.Context, r *Attempt) error {
	return update(ctx, tx, attempts, &r.Rev, r.fields())
}

// Attempt reads one attempt.
func (tx *Tx) Attempt(ctx context.Context, id string) (Attempt, error) {
	return get[Attempt](ctx, tx, attempts, `WHERE id = $1`, id)
}

// OpenAttempts reads the attempts that are not in a final state.
func (tx *Tx) OpenAttempts(ctx context.Context) ([]Attempt, error) {
	return list[Attempt](ctx, tx, attempts, `WHERE state NOT IN ('committed', 'failed') ORDER BY started, id`)
}

// Attempts reads the attempts made under a request or consent, oldest first.
func (tx *Tx) Attempts(ctx context.Context, subject string) ([]Attempt, error) {
	return list[Attempt](ctx, tx, attempts, `WHERE subject = $1 ORDER BY started, id`, subject)
}
