package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// States of a [Recording].
const (
	RecordingGrows    = "recording"
	RecordingComplete = "complete" // closed, verified, and signed by its node
	RecordingBroken   = "broken"   // what came of it contradicts itself, or its node
	RecordingDeleted  = "deleted"  // too old: only the row is left
)

// Recording is what is known of one part of a recording, which may be all of it.
// What is in it is a file.
type Recording struct {
	ID       string
	Kind     string // session | shares
	Node     protocol.NodeID
	Tenant   protocol.TenantID
	Order    protocol.OrderID
	Session  protocol.SessionID
	Request  protocol.RequestID
	Engineer protocol.Person
	Ticket   protocol.TicketID
	Began    time.Time
	Ended    time.Time // zero: not yet
	Reason   string    // why it ended
	Size     int64     // bytes, once it has ended
	Digest   string    // "sha256:…" of all of it, once it has ended
	NodeKey  string    // fingerprint of the key that signed its end
	State    string
	Problem  string // what is wrong with it, when broken
	Logged   bool   // the activity log has this digest from the node
	Parts    Parts
	Rev      int64
}

// Parts says which part of a recording one is.
type Parts struct {
	Whole        string // id of the first part, by which all are called
	Part         int    // its number, from 1 on
	Before       string // the part before; "" of the first
	BeforeDigest string // the digest of that, as this one has it
	Next         string // the part that goes on, once this one has ended; "" if none does
}

var recordings = table{"recordings", "recording", 1, "id, kind, serial, node, tenant, order_id, session, request, engineer, ticket, " +
	"began, ended, reason, size, digest, node_key, state, problem, logged, whole, part, before, before_digest, next, rev"}

func (r *Recording) fields() []any {
	return []any{
		&r.ID, &r.Kind, &r.Node.Serial, &r.Node.Node, &r.Tenant, &r.Order, &r.Session, &r.Request, &r.Engineer, &r.Ticket,
		ms{&r.Began}, ms{&r.Ended}, &r.Reason, &r.Size, &r.Digest, &r.NodeKey, &r.State, &r.Problem, &r.Logged,
		&r.Parts.Whole, &r.Parts.Part, &r.Parts.Before, &r.Parts.BeforeDigest, &r.Parts.Next, &r.Rev,
	}
}

// InsertRecording adds r.
func (tx *Tx) InsertRecording(ctx context.Context, r *Recording) error {
	return insert(ctx, tx, recordings, r.fields())
}

// UpdateRecording writes r if nobody changed it since it was read.
func (tx *Tx) UpdateRecording(ctx context.Context, r *Recording) error {
	return update(ctx, tx, recordings, &r.Rev, r.fields())
}

// Recording reads one recording.
func (tx *Tx) Recording(ctx context.Context, id string) (Recording, error) {
	return get[Recording](ctx, tx, recordings, `WHERE id = $1`, id)
}

// RecordingFilter says which recordings are wanted. Empty fields leave none out.
type RecordingFilter struct {
	Tenant   protocol.TenantID
	Serial   protocol.DeviceSerial
	Session  protocol.SessionID
	Engineer protocol.Person
	Reader   protocol.Person // their own, and what lies within Reach
	Reach    Reach
	State    string
	Request  *Request  // of this request, or of its engineer on its device during its access
	Unlogged bool      // ended, and the activity log was not seen to have their digest
	Before   time.Time // ended earlier, and under no legal hold
	Limit    int       // at most so many; all if 0
	Offset   int       // of what is wanted, so many are left out; with Limit only
}

// during finds what belongs to a request: its id, its device and engineer, and
// the time of its access in milliseconds.
const during = `(request = $%d OR serial = $%d AND engineer = $%d AND began < $%d AND (ended = 0 OR ended > $%d))`

// readable finds what is Reader's, and what lies within Reach.
func (f RecordingFilter) readable() string {
	conditions := []string{"engineer = $%d"}
	for range f.Reach.Tenants {
		conditions = append(conditions, "tenant = $%d")
	}
	for range f.Reach.Subscriptions {
		conditions = append(conditions, "order_id IN (SELECT id FROM orders WHERE subscription = $%d)")
	}
	return "(" + strings.Join(conditions, " OR ") + ")"
}

// unheld finds recordings under no legal hold.
const unheld = `NOT EXISTS (SELECT 1 FROM legal_holds h WHERE h.released = 0 AND h.tenant IN ('', recordings.tenant)
	AND h.serial IN ('', recordings.serial) AND h.correlation IN ('', recordings.id, recordings.whole, recordings.session, recordings.request))`

func (f RecordingFilter) where() (string, []any) {
	conditions := []string{"TRUE"}
	var args []any
	and := func(condition string, values ...any) {
		marks := make([]any, len(values))
		for i := range values {
			marks[i] = len(args) + i + 1
		}
		args = append(args, values...)
		conditions = append(conditions, fmt.Sprintf(condition, marks...))
	}
	for _, c := range []struct{ column, want string }{
		{"tenant", string(f.Tenant)}, {"serial", string(f.Serial)}, {"session", string(f.Session)},
		{"engineer", string(f.Engineer)}, {"state", f.State},
	} {
		if c.want != "" {
			and(c.column+" = $%d", c.want)
		}
	}
	if f.Reader != "" {
		and(f.readable(), append([]any{f.Reader}, f.Reach.args()...)...)
	}
	if r := f.Request; r != nil {
		start, end := millis(r.AccessStart), millis(r.AccessEnd)
		and(during, r.ID, r.Serial, r.Engineer, end, start)
	}
	if f.Unlogged {
		and("state = $%d AND logged = 0", RecordingComplete)
	}
	if !f.Before.IsZero() {
		and("ended > 0 AND ended < $%d AND state <> $%d AND "+unheld, millis(f.Before), RecordingDeleted)
	}
	query := "WHERE " + strings.Join(conditions, " AND ") + " ORDER BY began DESC, part DESC, id"
	if f.Limit > 0 {
		args = append(args, f.Limit, f.Offset)
		query += fmt.Sprintf(" LIMIT $%d OFFSET $%d", len(args)-1, len(args))
	}
	return query, args
}

// Recordings reads the recordings that f wants, newest first.
func (tx *Tx) Recordings(ctx context.Context, f RecordingFilter) ([]Recording, error) {
	where, args := f.where()
	return list[Recording](ctx, tx, recordings, where, args...)
}
