package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Request is a Lockbox request. Everything it asks for is fixed in Statement;
// the other fields are for finding and showing it.
type Request struct {
	ID                protocol.RequestID
	Number            int64 // short number for people, from [Tx.NextRequestNumber]
	Action            string
	Status            string // Initializing, Pending, Approved, …
	Tenant            protocol.TenantID
	Subscription      protocol.SubscriptionID
	Order             protocol.OrderID
	Ticket            protocol.TicketID
	Serial            protocol.DeviceSerial
	Disks             []string // "<serial>/<n> <disk>"
	Shares            []string // all of the disks if empty
	Engineer          protocol.Person
	EngineerKey       string // fingerprint
	ReasonCode        string
	Justification     string
	Access            string
	Purpose           protocol.Purpose
	Duration          time.Duration
	ResourceID        string
	Evaluation        []byte // lockbox.v1.Evaluation
	Statement         []byte // the bytes that are decided over
	StatementDigest   string
	TrustPolicyDigest string
	Notified          []string
	Created           time.Time
	Expires           time.Time
	AccessStart       time.Time
	AccessEnd         time.Time
	Executed          time.Time // first time
	Closed            time.Time // when it was denied, expired, revoked, cancelled or completed
	CloseReason       string
	Extends           protocol.RequestID // whose access it goes on with, "" if it stands alone
	RaisedAgain       protocol.RequestID // that it repeats, "" if none
	LockConfirmed     time.Time          // when all nodes had confirmed that they are locked
	LocksBy           time.Time          // when the last node that could not be reached locks by itself
	Rev               int64
}

var requests = table{"requests", "request", 1, "id, number, action, status, tenant, subscription, order_id, ticket, serial, disks, engineer, engineer_key, " +
	"reason_code, justification, access, purpose, duration, resource_id, evaluation, statement, statement_digest, trust_policy_digest, notified, " +
	"created, expires, access_start, access_end, executed, closed, close_reason, shares, extends, raised_again, lock_confirmed, locks_by, rev"}

func (r *Request) fields() []any {
	return []any{
		&r.ID, &r.Number, &r.Action, &r.Status, &r.Tenant, &r.Subscription, &r.Order, &r.Ticket, &r.Serial, js[string]{&r.Disks}, &r.Engineer, &r.EngineerKey,
		&r.ReasonCode, &r.Justification, &r.Access, &r.Purpose, msd{&r.Duration}, &r.ResourceID, &r.Evaluation, &r.Statement, &r.StatementDigest,
		&r.TrustPolicyDigest, js[string]{&r.Notified}, ms{&r.Created}, ms{&r.Expires}, ms{&r.AccessStart}, ms{&r.AccessEnd}, ms{&r.Executed},
		ms{&r.Closed}, &r.CloseReason, js[string]{&r.Shares}, &r.Extends, &r.RaisedAgain, ms{&r.LockConfirmed}, ms{&r.LocksBy}, &r.Rev,
	}
}

// NextRequestNumber returns the number for the next request.
func (tx *Tx) NextRequestNumber(ctx context.Context) (int64, error) {
	var n int64
	err := tx.tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(number), 0) + 1 FROM requests`).Scan(&n)
	return n, refine(err)
}

// InsertRequest adds r.
func (tx *Tx) InsertRequest(ctx context.Context, r *Request) error {
	return insert(ctx, tx, requests, r.fields())
}

// UpdateRequest writes r if nobody changed it since it was read.
func (tx *Tx) UpdateRequest(ctx context.Context, r *Request) error {
	return update(ctx, tx, requests, &r.Rev, r.fields())
}

// Request reads one request.
func (tx *Tx) Request(ctx context.Context, id protocol.RequestID) (Request, error) {
	return get[Request](ctx, tx, requests, `WHERE id = $1`, id)
}

// RequestByNumber reads the request with that short number.
func (tx *Tx) RequestByNumber(ctx context.Context, number int64) (Request, error) {
	return get[Request](ctx, tx, requests, `WHERE number = $1`, number)
}

// RequestByDigest reads the request whose statement has that digest.
func (tx *Tx) RequestByDigest(ctx context.Context, digest string) (Request, error) {
	return get[Request](ctx, tx, requests, `WHERE statement_digest = $1`, digest)
}

// RequestFilter says which requests are wanted. Empty fields leave none out.
type RequestFilter struct {
	Tenant   protocol.TenantID
	Order    protocol.OrderID
	Serial   protocol.DeviceSerial
	Engineer protocol.Person
	Ticket   protocol.TicketID
	Action   string
	Statuses []string // any of these
	Before   int64    // with a lower number only
	Limit    int      // at most so many; all if 0
}

// where is f in SQL, with its arguments.
func (f RequestFilter) where() (string, []any) {
	conditions := []string{"TRUE"}
	var args []any
	for _, c := range []struct{ column, want string }{
		{"tenant", string(f.Tenant)}, {"order_id", string(f.Order)}, {"serial", string(f.Serial)},
		{"engineer", string(f.Engineer)}, {"ticket", string(f.Ticket)}, {"action", f.Action},
	} {
		if c.want != "" {
			args = append(args, c.want)
			conditions = append(conditions, fmt.Sprintf("%s = $%d", c.column, len(args)))
		}
	}
	if len(f.Statuses) > 0 {
		var marks string
		marks, args = placeholders(args, f.Statuses)
		conditions = append(conditions, "status IN ("+marks+")")
	}
	if f.Before > 0 {
		args = append(args, f.Before)
		conditions = append(conditions, fmt.Sprintf("number < $%d", len(args)))
	}
	query := "WHERE " + strings.Join(conditions, " AND ") + " ORDER BY number DESC"
	if f.Limit > 0 {
		args = append(args, f.Limit)
		query += fmt.Sprintf(" LIMIT $%d", len(args))
	}
	return query, args
}

// Requests reads the requests that f wants, newest first.
func (tx *Tx) Requests(ctx context.Context, f RequestFilter) ([]Request, error) {
	where, args := f.where()
	return list[Request](ctx, tx, requests, where, args...)
}

// RequestsWithoutTimer reads the requests with any of statuses for which no
// timer of that kind is set.
func (tx *Tx) RequestsWithoutTimer(ctx context.Context, statuses []string, kind string) ([]Request, error) {
	marks, args := placeholders([]any{kind}, statuses)
	return list[Request](ctx, tx, requests, `WHERE status IN (`+marks+`) AND NOT EXISTS
		(SELECT 1 FROM timers WHERE timers.kind = $1 AND timers.subject = requests.id AND timers.done = 0) ORDER BY number`, args...)
}

// placeholders returns the marks of values that come after args, and all of them.
func placeholders(args []any, values []string) (string, []any) {
	var marks []string
	for _, v := range values {
		args = append(args, v)
		marks = append(marks, fmt.Sprintf("$%d", len(args)))
	}
	return strings.Join(marks, ", "), args
}

// Ticket is a support ticket; its ID is the service request id.
type Ticket struct {
	ID          protocol.TicketID
	Order       protocol.OrderID
	Tenant      protocol.TenantID
	Title       string
	Origin      string // customer | provider-detected
	Owner       protocol.Person
	EscalatedTo []protocol.Person
	Created     time.Time
	Rev         int64
}

var tickets = table{"tickets", "ticket", 1, "id, order_id, tenant, title, origin, owner, escalated_to, created, rev"}

func (r *Ticket) fields() []any {
	return []any{&r.ID, &r.Order, &r.Tenant, &r.Title, &r.Origin, &r.Owner, js[protocol.Person]{&r.EscalatedTo}, ms{&r.Created}, &r.Rev}
}

// InsertTicket adds r.
func (tx *Tx) InsertTicket(ctx context.Context, r *Ticket) error {
	return insert(ctx, tx, tickets, r.fields())
}

// UpdateTicket writes r if nobody changed it since it was read.
func (tx *Tx) UpdateTicket(ctx context.Context, r *Ticket) error {
	return update(ctx, tx, tickets, &r.Rev, r.fields())
}

// Ticket reads one ticket.
func (tx *Tx) Ticket(ctx context.Context, id protocol.TicketID) (Ticket, error) {
	return get[Ticket](ctx, tx, tickets, `WHERE id = $1`, id)
}

// Tickets reads tickets by age. Empty arguments leave none out.
func (tx *Tx) Tickets(ctx context.Context, tenant protocol.TenantID, order protocol.OrderID) ([]Ticket, error) {
	return list[Ticket](ctx, tx, tickets, `WHERE ($1 = '' OR tenant = $1) AND ($2 = '' OR order_id = $2) ORDER BY created, id`, tenant, order)
}

// Session is a support session of one engineer on one node.
type Session struct {
	ID             protocol.SessionID
	Node           protocol.NodeID
	Order          protocol.OrderID
	Tenant         protocol.TenantID
	Ticket         protocol.TicketID
	Engineer       protocol.Person
	KeyFingerprint string
	HostKey        []byte // the node's SSH host key, wire form
	State          string // enabled | disabled | expired
	Created        time.Time
	Expires        time.Time
	Ended          time.Time
	EndReason      string
	Rev            int64
}

var sessions = table{"sessions", "session", 1, "id, serial, node, order_id, tenant, ticket, engineer, key_fingerprint, host_key, state, created, expires, ended, end_reason, rev"}

func (r *Session) fields() []any {
	return []any{
		&r.ID, &r.Node.Serial, &r.Node.Node, &r.Order, &r.Tenant, &r.Ticket, &r.Engineer, &r.KeyFingerprint, &r.HostKey, &r.State,
		ms{&r.Created}, ms{&r.Expires}, ms{&r.Ended}, &r.EndReason, &r.Rev,
	}
}

// InsertSession adds r.
func (tx *Tx) InsertSession(ctx context.Context, r *Session) error {
	return insert(ctx, tx, sessions, r.fields())
}

// UpdateSession writes r if nobody changed it since it was read.
func (tx *Tx) UpdateSession(ctx context.Context, r *Session) error {
	return update(ctx, tx, sessions, &r.Rev, r.fields())
}

// Session reads one session.
func (tx *Tx) Session(ctx context.Context, id protocol.SessionID) (Session, error) {
	return get[Session](ctx, tx, sessions, `WHERE id = $1`, id)
}

// SessionFilter says which sessions are wanted. Empty fields leave none out.
type SessionFilter struct {
	Tenant   protocol.TenantID
	Serial   protocol.DeviceSerial
	Engineer protocol.Person
	State    string
}

// Sessions reads the sessions that f wants, by age.
func (tx *Tx) Sessions(ctx context.Context, f SessionFilter) ([]Session, error) {
	return list[Session](ctx, tx, sessions, `WHERE ($1 = '' OR tenant = $1) AND ($2 = '' OR serial = $2) AND ($3 = '' OR engineer = $3)
		AND ($4 = '' OR state = $4) ORDER BY created, id`, f.Tenant, f.Serial, f.Engineer, f.State)
}
