package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// RequestApprover is somebody who might decide about a request when it was made,
// and the role for which.
type RequestApprover struct {
	Request protocol.RequestID
	Person  protocol.Person
	Role    string
	Groups  []string // of internal approvers
}

var requestApprovers = table{"request_approvers", "approver", 2, "request, person, role, member_of"}

func (r *RequestApprover) fields() []any {
	return []any{&r.Request, &r.Person, &r.Role, js[string]{&r.Groups}}
}

// InsertRequestApprover adds r.
func (tx *Tx) InsertRequestApprover(ctx context.Context, r *RequestApprover) error {
	return insert(ctx, tx, requestApprovers, r.fields())
}

// RequestApprovers reads who might decide about a request when it was made.
func (tx *Tx) RequestApprovers(ctx context.Context, request protocol.RequestID) ([]RequestApprover, error) {
	return list[RequestApprover](ctx, tx, requestApprovers, `WHERE request = $1 ORDER BY person`, request)
}

// PendingDocument is a document that waits for more signatures.
type PendingDocument struct {
	Digest   string // sha256:<hex> of the payload
	Order    protocol.OrderID
	Kind     string // payload type
	Envelope []byte // with the signatures so far
	Person   protocol.Person
	Created  time.Time
	Rev      int64
}

var pendingDocuments = table{"pending_documents", "pending document", 1, "digest, order_id, kind, envelope, person, created, rev"}

func (r *PendingDocument) fields() []any {
	return []any{&r.Digest, &r.Order, &r.Kind, &r.Envelope, &r.Person, ms{&r.Created}, &r.Rev}
}

// InsertPendingDocument adds r.
func (tx *Tx) InsertPendingDocument(ctx context.Context, r *PendingDocument) error {
	return insert(ctx, tx, pendingDocuments, r.fields())
}

// UpdatePendingDocument writes r if nobody changed it since it was read.
func (tx *Tx) UpdatePendingDocument(ctx context.Context, r *PendingDocument) error {
	return update(ctx, tx, pendingDocuments, &r.Rev, r.fields())
}

// PendingDocument reads the one with that digest.
func (tx *Tx) PendingDocument(ctx context.Context, digest string) (PendingDocument, error) {
	return get[PendingDocument](ctx, tx, pendingDocuments, `WHERE digest = $1`, digest)
}

// PendingDocuments reads an order's, oldest first.
func (tx *Tx) PendingDocuments(ctx context.Context, order protocol.OrderID) ([]PendingDocument, error) {
	return list[PendingDocument](ctx, tx, pendingDocuments, `WHERE order_id = $1 ORDER BY created, digest`, order)
}

// DeletePendingDocument removes one, if it is there.
func (tx *Tx) DeletePendingDocument(ctx context.Context, digest string) error {
	_, err := exec(ctx, tx, `DELETE FROM pending_documents WHERE digest = $1`, digest)
	return err
}

// DeletePendingDocuments removes all of an order's.
func (tx *Tx) DeletePendingDocuments(ctx context.Context, order protocol.OrderID) error {
	_, err := exec(ctx, tx, `DELETE FROM pending_documents WHERE order_id = $1`, order)
	return err
}

// PolicyDelivery is the newest trust policy that a node is to have.
type PolicyDelivery struct {
	Node        protocol.NodeID
	Order       protocol.OrderID
	Digest      string
	Attempts    int64
	NextAttempt time.Time
	Delivered   time.Time // zero until the node has it
	LastError   string
}

var policyDeliveries = table{"policy_deliveries", "delivery to node", 2, "serial, node, order_id, digest, attempts, next_attempt, delivered, last_error"}

func (r *PolicyDelivery) fields() []any {
	return []any{
		&r.Node.Serial, &r.Node.Node, &r.Order, &r.Digest, &r.Attempts, ms{&r.NextAttempt}, ms{&r.Delivered}, &r.LastError,
	}
}

// PutPolicyDelivery replaces what r.Node is to have.
func (tx *Tx) PutPolicyDelivery(ctx context.Context, r *PolicyDelivery) error {
	if _, err := exec(ctx, tx, `DELETE FROM policy_deliveries WHERE serial = $1 AND node = $2`, r.Node.Serial, r.Node.Node); err != nil {
		return err
	}
	return insert(ctx, tx, policyDeliveries, r.fields())
}

// UpdatePolicyDelivery notes how handing over r.Digest went. A node that is to
// have another policy by now is left alone.
func (tx *Tx) UpdatePolicyDelivery(ctx context.Context, r *PolicyDelivery) error {
	_, err := exec(ctx, tx, `UPDATE policy_deliveries SET attempts = $1, next_attempt = $2, delivered = $3, last_error = $4
		WHERE serial = $5 AND node = $6 AND digest = $7`,
		r.Attempts, ms{&r.NextAttempt}, ms{&r.Delivered}, r.LastError, r.Node.Serial, r.Node.Node, r.Digest)
	return err
}

// PolicyDeliveries reads what an order's nodes are to have.
func (tx *Tx) PolicyDeliveries(ctx context.Context, order protocol.OrderID) ([]PolicyDelivery, error) {
	return list[PolicyDelivery](ctx, tx, policyDeliveries, `WHERE order_id = $1 ORDER BY serial, node`, order)
}

// OpenPolicyDeliveries reads what nodes do not have yet, the longest waiting first.
func (tx *Tx) OpenPolicyDeliveries(ctx context.Context) ([]PolicyDelivery, error) {
	return list[PolicyDelivery](ctx, tx, policyDeliveries, `WHERE delivered = 0 ORDER BY next_attempt, serial, node`)
}

// StandingConsent is what a customer decided before anybody asked.
type StandingConsent struct {
	ID       string
	Order    protocol.OrderID
	Digest   string // sha256:<hex> of the payload
	Envelope []byte
	Person   protocol.Person // who completed it
	Created  time.Time
	Expires  time.Time
	Revoked  time.Time
	Rev      int64
}

var standingConsents = table{"standing_consents", "standing consent", 1, "id, order_id, digest, envelope, person, created, expires, revoked, rev"}

func (r *StandingConsent) fields() []any {
	return []any{&r.ID, &r.Order, &r.Digest, &r.Envelope, &r.Person, ms{&r.Created}, ms{&r.Expires}, ms{&r.Revoked}, &r.Rev}
}

// InsertStandingConsent adds r.
func (tx *Tx) InsertStandingConsent(ctx context.Context, r *StandingConsent) error {
	return insert(ctx, tx, standingConsents, r.fields())
}

// UpdateStandingConsent writes r if nobody changed it since it was read.
func (tx *Tx) UpdateStandingConsent(ctx context.Context, r *StandingConsent) error {
	return update(ctx, tx, standingConsents, &r.Rev, r.fields())
}

// StandingConsent reads one by its id.
func (tx *Tx) StandingConsent(ctx context.Context, id string) (StandingConsent, error) {
	return get[StandingConsent](ctx, tx, standingConsents, `WHERE id = $1`, id)
}

// StandingConsents reads an order's, oldest first.
func (tx *Tx) StandingConsents(ctx context.Context, order protocol.OrderID) ([]StandingConsent, error) {
	return list[StandingConsent](ctx, tx, standingConsents, `WHERE order_id = $1 ORDER BY created, id`, order)
}

// DeletePersonKey removes one of a person's keys.
func (tx *Tx) DeletePersonKey(ctx context.Context, person protocol.Person, fingerprint string) error {
	n, err := exec(ctx, tx, `DELETE FROM person_keys WHERE person = $1 AND fingerprint = $2`, person, fingerprint)
	if err == nil && n == 0 {
		err = notFound("key", fingerprint)
	}
	return err
}
