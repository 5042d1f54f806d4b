package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// TrustPolicy is a signed version of an order's trust policy.
type TrustPolicy struct {
	Order    protocol.OrderID
	Version  int64
	Digest   string // sha256:<hex> of Payload
	Payload  []byte
	Envelope []byte
	Created  time.Time
}

var trustPolicies = table{"trust_policies", "trust policy", 2, "order_id, version, digest, payload, envelope, created"}

func (r *TrustPolicy) fields() []any {
	return []any{&r.Order, &r.Version, &r.Digest, &r.Payload, &r.Envelope, ms{&r.Created}}
}

// InsertTrustPolicy adds r. A version exists once.
func (tx *Tx) InsertTrustPolicy(ctx context.Context, r *TrustPolicy) error {
	return insert(ctx, tx, trustPolicies, r.fields())
}

// TrustPolicy reads an order's policy with that digest; the highest version if
// digest is "".
func (tx *Tx) TrustPolicy(ctx context.Context, order protocol.OrderID, digest string) (TrustPolicy, error) {
	if digest == "" {
		return get[TrustPolicy](ctx, tx, trustPolicies, `WHERE order_id = $1 ORDER BY version DESC LIMIT 1`, order)
	}
	return get[TrustPolicy](ctx, tx, trustPolicies, `WHERE order_id = $1 AND digest = $2`, order, digest)
}

// TrustPolicies reads every version of an order's policy, from the first on.
func (tx *Tx) TrustPolicies(ctx context.Context, order protocol.OrderID) ([]TrustPolicy, error) {
	return list[TrustPolicy](ctx, tx, trustPolicies, `WHERE order_id = $1 ORDER BY version`, order)
}

// Consent is a data-copy consent, or the draft of one.
type Consent struct {
	ID       protocol.ConsentID
	Order    protocol.OrderID
	Digest   string // sha256:<hex> of Payload
	Payload  []byte
	Envelope []byte // nil while only a draft
	Created  time.Time
	Expires  time.Time
	Signed   time.Time
	Revoked  time.Time
	Rev      int64
}

var consents = table{"consents", "consent", 1, "id, order_id, digest, payload, envelope, created, expires, signed, revoked, rev"}

func (r *Consent) fields() []any {
	return []any{&r.ID, &r.Order, &r.Digest, &r.Payload, &r.Envelope, ms{&r.Created}, ms{&r.Expires}, ms{&r.Signed}, ms{&r.Revoked}, &r.Rev}
}

// InsertConsent adds r.
func (tx *Tx) InsertConsent(ctx context.Context, r *Consent) error {
	return insert(ctx, tx, consents, r.fields())
}

// UpdateConsent writes r if nobody changed it since it was read.
func (tx *Tx) UpdateConsent(ctx context.Context, r *Consent) error {
	return update(ctx, tx, consents, &r.Rev, r.fields())
}

// Consent reads one consent.
func (tx *Tx) Consent(ctx context.Context, id protocol.ConsentID) (Consent, error) {
	return get[Consent](ctx, tx, consents, `WHERE id = $1`, id)
}

// ConsentByDigest reads the consent with that digest.
func (tx *Tx) ConsentByDigest(ctx context.Context, digest string) (Consent, error) {
	return get[Consent](ctx, tx, consents, `WHERE digest = $1`, digest)
}

// Consents reads an order's consents and drafts, oldest first.
func (tx *Tx) Consents(ctx context.Context, order protocol.OrderID) ([]Consent, error) {
	return list[Consent](ctx, tx, consents, `WHERE order_id = $1 ORDER BY created, id`, order)
}

// Decision is a signed decision over a request.
type Decision struct {
	Request        protocol.RequestID
	Role           string // provider | customer
	Person         protocol.Person
	Verdict        string
	Reason         string
	KeyFingerprint string
	MaxDuration    time.Duration // 0: as requested
	Time           time.Time
	Envelope       []byte
}

var decisions = table{"decisions", "decision", 3, "request, role, person, verdict, reason, key_fingerprint, max_duration, time, envelope"}

func (r *Decision) fields() []any {
	return []any{&r.Request, &r.Role, &r.Person, &r.Verdict, &r.Reason, &r.KeyFingerprint, msd{&r.MaxDuration}, ms{&r.Time}, &r.Envelope}
}

// InsertDecision adds r. One person decides once per request and role.
func (tx *Tx) InsertDecision(ctx context.Context, r *Decision) error {
	return insert(ctx, tx, decisions, r.fields())
}

// Decisions reads the decisions over a request, oldest first.
func (tx *Tx) Decisions(ctx context.Context, request protocol.RequestID) ([]Decision, error) {
	return list[Decision](ctx, tx, decisions, `WHERE request = $1 ORDER BY id`, request)
}

// Revocation ends a request or a consent.
type Revocation struct {
	SubjectDigest string // of the statement or the consent
	Subject       string // id of the request or consent
	Person        protocol.Person
	Reason        string
	Time          time.Time
	Envelope      []byte // nil when nobody signed it
}

var revocations = table{"revocations", "revocation", 0, "subject_digest, subject, person, reason, time, envelope"}

func (r *Revocation) fields() []any {
	return []any{&r.SubjectDigest, &r.Subject, &r.Person, &r.Reason, ms{&r.Time}, &r.Envelope}
}

// InsertRevocation adds r.
func (tx *Tx) InsertRevocation(ctx context.Context, r *Revocation) error {
	return insert(ctx, tx, revocations, r.fields())
}

// Revocations reads what revoked a statement or consent, oldest first.
func (tx *Tx) Revocations(ctx context.Context, subjectDigest string) ([]Revocation, error) {
	return list[Revocation](ctx, tx, revocations, `WHERE subject_digest = $1 ORDER BY id`, subjectDigest)
}
