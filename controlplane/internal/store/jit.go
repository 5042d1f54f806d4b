package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// JITPolicies is a set of JIT policies that was in force from Since on.
type JITPolicies struct {
	ID     int64 // in the order in which they came into force
	Digest string
	Files  json.RawMessage // their texts, by name
	Since  time.Time
}

var jitPolicies = table{"jit_policies", "set of JIT policies", 1, "id, digest, files, since"}

func (r *JITPolicies) fields() []any {
	return []any{&r.ID, &r.Digest, text{&r.Files}, ms{&r.Since}}
}

// InsertJITPolicies adds r as the newest.
func (tx *Tx) InsertJITPolicies(ctx context.Context, r *JITPolicies) error {
	if err := tx.tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(id), 0) + 1 FROM jit_policies`).Scan(&r.ID); err != nil {
		return refine(err)
	}
	return insert(ctx, tx, jitPolicies, r.fields())
}

// JITPolicies reads the newest set with that digest; the newest of all if digest
// is "".
func (tx *Tx) JITPolicies(ctx context.Context, digest string) (JITPolicies, error) {
	return get[JITPolicies](ctx, tx, jitPolicies, `WHERE $1 = '' OR digest = $1 ORDER BY id DESC LIMIT 1`, digest)
}

// ContactRequest asks to read a customer's contact address.
type ContactRequest struct {
	ID        string
	Tenant    protocol.TenantID
	Order     protocol.OrderID // "" if it is about the whole tenant
	Requester protocol.Person
	Reason    string
	State     string // asked | approved | denied
	Created   time.Time
	Expires   time.Time // asked: until when it can be decided; approved: until when it can be read
	DecidedBy protocol.Person
	Decided   time.Time
	LastRead  time.Time
	Rev       int64
}

var contactRequests = table{"contact_requests", "contact request", 1, "id, tenant, order_id, requester, reason, state, created, expires, decided_by, decided, last_read, rev"}

func (r *ContactRequest) fields() []any {
	return []any{
		&r.ID, &r.Tenant, &r.Order, &r.Requester, &r.Reason, &r.State, ms{&r.Created}, ms{&r.Expires}, &r.DecidedBy, ms{&r.Decided},
		ms{&r.LastRead}, &r.Rev,
	}
}

// InsertContactRequest adds r.
func (tx *Tx) InsertContactRequest(ctx context.Context, r *ContactRequest) error {
	return insert(ctx, tx, contactRequests, r.fields())
}

// UpdateContactRequest writes r if nobody changed it since it was read.
func (tx *Tx) UpdateContactRequest(ctx context.Context, r *ContactRequest) error {
	return update(ctx, tx, contactRequests, &r.Rev, r.fields())
}

// ContactRequest reads one of them.
func (tx *Tx) ContactRequest(ctx context.Context, id string) (ContactRequest, error) {
	return get[ContactRequest](ctx, tx, contactRequests, `WHERE id = $1`, id)
}

// ContactRequests reads the newest of them, newest first.
func (tx *Tx) ContactRequests(ctx context.Context, limit int) ([]ContactRequest, error) {
	return list[ContactRequest](ctx, tx, contactRequests, `ORDER BY created DESC, id LIMIT $1`, limit)
}

// NewestPersonCert reads the certificate of somebody's newest sign-in, unless it
// was ended.
func (tx *Tx) NewestPersonCert(ctx context.Context, person protocol.Person) (PersonCert, error) {
	return get[PersonCert](ctx, tx, personCerts, `WHERE person = $1 AND NOT EXISTS
		(SELECT 1 FROM revoked_certs WHERE revoked_certs.cert_serial = person_certs.cert_serial) ORDER BY signed_in DESC, cert_serial LIMIT 1`, person)
}
