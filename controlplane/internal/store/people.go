package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Person is somebody who may call. The row outlives the person's removal, so
// that a name never means two people.
type Person struct {
	Name    protocol.Person
	Role    string
	Tenant  protocol.TenantID // "" for people of the provider
	Created time.Time
	Removed time.Time
	Groups  []string // of internal approvers
	Rev     int64
}

var people = table{"people", "person", 1, "name, role, tenant, created, removed, member_of, rev"}

func (r *Person) fields() []any {
	return []any{&r.Name, &r.Role, &r.Tenant, ms{&r.Created}, ms{&r.Removed}, js[string]{&r.Groups}, &r.Rev}
}

// InsertPerson adds r.
func (tx *Tx) InsertPerson(ctx context.Context, r *Person) error {
	return insert(ctx, tx, people, r.fields())
}

// UpdatePerson writes r if nobody changed it since it was read.
func (tx *Tx) UpdatePerson(ctx context.Context, r *Person) error {
	return update(ctx, tx, people, &r.Rev, r.fields())
}

// Person reads one person, removed ones included.
func (tx *Tx) Person(ctx context.Context, name protocol.Person) (Person, error) {
	return get[Person](ctx, tx, people, `WHERE name = $1`, name)
}

// People reads people who are not removed, by name. Empty arguments leave
// nobody out.
func (tx *Tx) People(ctx context.Context, tenant protocol.TenantID, role string) ([]Person, error) {
	return list[Person](ctx, tx, people, `WHERE removed = 0 AND ($1 = '' OR tenant = $1) AND ($2 = '' OR role = $2) ORDER BY name`, tenant, role)
}

// PersonKey is an SSH public key with which a person signs and opens sessions.
type PersonKey struct {
	Fingerprint string            // "SHA256:…"
	Tenant      protocol.TenantID // of the person
	Person      protocol.Person
	PublicKey   string // authorized_keys line
	Created     time.Time
}

var personKeys = table{"person_keys", "key", 2, "fingerprint, tenant, person, public_key, created"}

func (r *PersonKey) fields() []any {
	return []any{&r.Fingerprint, &r.Tenant, &r.Person, &r.PublicKey, ms{&r.Created}}
}

// InsertPersonKey adds r. Within a tenant, and within the provider, a key belongs
// to one person only.
func (tx *Tx) InsertPersonKey(ctx context.Context, r *PersonKey) error {
	return insert(ctx, tx, personKeys, r.fields())
}

// PersonKeys reads a person's keys, oldest first.
func (tx *Tx) PersonKeys(ctx context.Context, person protocol.Person) ([]PersonKey, error) {
	return list[PersonKey](ctx, tx, personKeys, `WHERE person = $1 ORDER BY created, fingerprint`, person)
}

// DeletePersonKeys removes a person's keys.
func (tx *Tx) DeletePersonKeys(ctx context.Context, person protocol.Person) error {
	_, err := exec(ctx, tx, `DELETE FROM person_keys WHERE person = $1`, person)
	return err
}

// LoginToken lets a person log in once. Only a hash of its secret is kept.
type LoginToken struct {
	ID          string
	Person      protocol.Person
	SecretHash  []byte
	Created     time.Time
	Expires     time.Time
	Used        time.Time
	Failures    int64     // wrong secrets since the last lock-out
	LockedUntil time.Time // after too many of them
	Rev         int64
}

var loginTokens = table{"login_tokens", "login token", 1, "id, person, secret_hash, created, expires, used, failures, locked_until, rev"}

func (r *LoginToken) fields() []any {
	return []any{&r.ID, &r.Person, &r.SecretHash, ms{&r.Created}, ms{&r.Expires}, ms{&r.Used}, &r.Failures, ms{&r.LockedUntil}, &r.Rev}
}

// InsertLoginToken adds r.
func (tx *Tx) InsertLoginToken(ctx context.Context, r *LoginToken) error {
	return insert(ctx, tx, loginTokens, r.fields())
}

// UpdateLoginToken writes r if nobody changed it since it was read.
func (tx *Tx) UpdateLoginToken(ctx context.Context, r *LoginToken) error {
	return update(ctx, tx, loginTokens, &r.Rev, r.fields())
}

// LoginToken reads one token.
func (tx *Tx) LoginToken(ctx context.Context, id string) (LoginToken, error) {
	return get[LoginToken](ctx, tx, loginTokens, `WHERE id = $1`, id)
}

// DeleteOpenTokens removes every token, for logging in and for enrolling, with
// which nobody came yet.
func (tx *Tx) DeleteOpenTokens(ctx context.Context) error {
	if _, err := exec(ctx, tx, `DELETE FROM login_tokens WHERE used = 0`); err != nil {
		return err
	}
	_, err := exec(ctx, tx, `DELETE FROM join_tokens WHERE used = 0`)
	return err
}

// DeleteLoginTokens removes a person's tokens, used or not.
func (tx *Tx) DeleteLoginTokens(ctx context.Context, person protocol.Person) error {
	_, err := exec(ctx, tx, `DELETE FROM login_tokens WHERE person = $1`, person)
	return err
}
