package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// PersonCert is a certificate that was issued to a person, with the sign-in that
// it belongs to.
type PersonCert struct {
	Serial   string
	Person   protocol.Person
	SignIn   string // the same for all certificates of one sign-in
	Method   string // how they signed in
	Isolated bool   // by an identity of this control plane alone
	MFA      bool   // with a second factor
	SignedIn time.Time
	Ends     time.Time // when the sign-in is over; zero: it can be renewed for ever
}

var personCerts = table{"person_certs", "certificate", 1, "cert_serial, person, sign_in, method, isolated, mfa, signed_in, ends"}

func (r *PersonCert) fields() []any {
	return []any{&r.Serial, &r.Person, &r.SignIn, &r.Method, &r.Isolated, &r.MFA, ms{&r.SignedIn}, ms{&r.Ends}}
}

// InsertPersonCert adds r.
func (tx *Tx) InsertPersonCert(ctx context.Context, r *PersonCert) error {
	return insert(ctx, tx, personCerts, r.fields())
}

// PersonCert reads one certificate.
func (tx *Tx) PersonCert(ctx context.Context, serial string) (PersonCert, error) {
	return get[PersonCert](ctx, tx, personCerts, `WHERE cert_serial = $1`, serial)
}

// EndPersonCerts ends every certificate that was issued to a person.
func (tx *Tx) EndPersonCerts(ctx context.Context, person protocol.Person, at time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO revoked_certs (cert_serial, subject, time)
		SELECT cert_serial, $1, $2 FROM person_certs WHERE person = $1 ON CONFLICT DO NOTHING`, person, millis(at))
	return err
}

// EndSignIn ends every certificate of one sign-in and returns how many.
func (tx *Tx) EndSignIn(ctx context.Context, signIn string, at time.Time) (int64, error) {
	return exec(ctx, tx, `INSERT INTO revoked_certs (cert_serial, subject, time)
		SELECT cert_serial, person, $2 FROM person_certs WHERE sign_in = $1 ON CONFLICT DO NOTHING`, signIn, millis(at))
}

// PersonSubject is whom an identity provider knows a person as.
type PersonSubject struct {
	Person  protocol.Person
	Issuer  string
	Subject string
	Created time.Time
}

var personSubjects = table{"person_subjects", "subject", 1, "person, issuer, subject, created"}

func (r *PersonSubject) fields() []any {
	return []any{&r.Person, &r.Issuer, &r.Subject, ms{&r.Created}}
}

// InsertPersonSubject adds r. A subject is one person, and a person one subject:
// anything else is [ErrConflict].
func (tx *Tx) InsertPersonSubject(ctx context.Context, r *PersonSubject) error {
	return insert(ctx, tx, personSubjects, r.fields())
}

// PersonSubject reads whom an identity provider knows a person as.
func (tx *Tx) PersonSubject(ctx context.Context, person protocol.Person) (PersonSubject, error) {
	return get[PersonSubject](ctx, tx, personSubjects, `WHERE person = $1`, person)
}

// DeletePersonSubject forgets whom an identity provider knows a person as.
func (tx *Tx) DeletePersonSubject(ctx context.Context, person protocol.Person) error {
	_, err := exec(ctx, tx, `DELETE FROM person_subjects WHERE person = $1`, person)
	return err
}

// SpendIDToken notes that the ID token with that digest was exchanged. It is
// [ErrConflict] if it was before. Tokens that have expired by now are forgotten.
func (tx *Tx) SpendIDToken(ctx context.Context, digest string, expires, now time.Time) error {
	if _, err := exec(ctx, tx, `DELETE FROM spent_id_tokens WHERE expires < $1`, millis(now)); err != nil {
		return err
	}
	n, err := exec(ctx, tx, `INSERT INTO spent_id_tokens (digest, expires) VALUES ($1, $2) ON CONFLICT DO NOTHING`, digest, millis(expires))
	if err == nil && n == 0 {
		err = exists("ID token", digest)
	}
	return err
}
