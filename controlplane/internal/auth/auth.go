// Package auth knows who is calling: people, their roles and keys, and the
// certificates they call with.
//
// Its rules:
//
//   - A person calls with a certificate over a key that never leaves them. The
//     first one comes from a login token: one use, 24 hours, and a lock-out
//     after five wrong secrets. It is renewed for that key only, and a new token
//     ends it: that is how a stolen one is got rid of.
//   - Or it comes from an identity provider: an ID token, whose nonce names the
//     key, is exchanged once for a certificate of an hour, which is renewed while
//     the sign-in lasts. A provider speaks for its own domains only, and a person
//     is whom it knew at their first sign-in.
//   - A certificate says only who somebody is. What they may do is read from
//     the store on every call, so a removal takes effect at once; what the person
//     had opened ends in the same transaction.
//   - A name, once removed, is never given to another person. An owner gives
//     names of their own domain only: those of others are not theirs to take.
//   - A key belongs to one person of a tenant, and of the provider. Who registers
//     the public key of somebody elsewhere gets nothing by it and blocks nobody.
package auth

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// Role is what a person is to the product. Each person has one.
type Role string

// The roles. Tenant administrators, owners and approvers belong to a tenant, the
// others to the provider.
const (
	Admin            Role = "admin"
	Staff            Role = "staff"
	Engineer         Role = "engineer"
	InternalApprover Role = "internal-approver"
	TenantAdmin      Role = "tenant-admin" // Tenant administrator: an owner who decides for the whole tenant too
	Owner            Role = "owner"
	Approver         Role = "approver"
	Auditor          Role = "auditor"

	// System is the service itself, as when a timer is due. Nobody can log in
	// as System.
	System Role = "system"
)

// Roles are the roles that people can have.
func Roles() []Role {
	return []Role{Admin, Staff, Engineer, InternalApprover, TenantAdmin, Owner, Approver, Auditor}
}

// OfCustomer reports whether r belongs to a tenant.
func (r Role) OfCustomer() bool { return r == TenantAdmin || r == Owner || r == Approver }

// Caller is who calls a service method. The zero Caller may do nothing.
type Caller struct {
	Person  protocol.Person
	Role    Role
	Tenant  protocol.TenantID // "" for people of the provider
	Expires time.Time         // of the certificate; zero for the service itself
	Cert    string            // serial of the certificate; "" for the service itself
	Key     string            // SHA-256 of the certificate's key; "" for the service itself

	// How they signed in. Zero for the service itself, and for a certificate that
	// this service did not note when it issued it.
	Method   string // login-token, or oidc: and the provider's id
	Isolated bool   // by an identity of this control plane alone
	MFA      bool   // with a second factor, as the provider says
	SignedIn time.Time
	Ends     time.Time // when certificates are no longer renewed; zero: never
}

// SystemCaller is who calls when the service acts by itself.
func SystemCaller() Caller { return Caller{Person: "lockboxd", Role: System} }

// Is reports whether c has one of roles.
func (c Caller) Is(roles ...Role) bool { return slices.Contains(roles, c.Role) }

// Sees reports whether c may know of what belongs to tenant. What a caller may
// not see is to be answered as not found.
func (c Caller) Sees(tenant protocol.TenantID) bool {
	if c.Role.OfCustomer() {
		return c.Tenant != "" && c.Tenant == tenant
	}
	return c.Role != ""
}

// Scope is the tenant to which lists for c are limited: "" if to none.
func (c Caller) Scope() protocol.TenantID {
	if c.Role.OfCustomer() {
		return c.Tenant
	}
	return ""
}

// Recorder writes to the activity log, in the transaction of what it records.
type Recorder interface {
	Record(ctx context.Context, tx *store.Tx, rec auditlog.Record) (index int64, err error)
}

// Authority issues certificates.
type Authority interface {
	// IssuePerson answers a certificate request with a chain (DER, leaf first)
	// valid for ttl.
	IssuePerson(csr []byte, person protocol.Person, ttl time.Duration) ([][]byte, error)
	// Roots returns the roots that callers verify the service against.
	Roots() certs.Roots
}

// EndPerson ends what a person has opened on the floors above, within the
// transaction that removes them. The function it returns is called once that is
// committed, to tell the world outside.
type EndPerson func(ctx context.Context, tx *store.Tx, caller Caller, name protocol.Person) (tell func(context.Context), err error)

// Config are the parts of a [Service]. Store, Audit and Authority are needed.
type Config struct {
	Store     *store.Store
	Audit     Recorder
	Authority Authority
	Now       func() time.Time    // default time.Now
	May       func(Role) []string // procedures a role may call, for WhoAmI; default none
	EndPerson EndPerson           // default: nothing else has to end
	Providers []Provider          // default: people sign in with login tokens only
}

// Service answers AccountService. Its methods may be called concurrently.
type Service struct {
	Config
	providers []*provider
}

// New returns a service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.May == nil {
		cfg.May = func(Role) []string { return nil }
	}
	if cfg.EndPerson == nil {
		cfg.EndPerson = func(context.Context, *store.Tx, Caller, protocol.Person) (func(context.Context), error) {
			return func(context.Context) {}, nil
		}
	}
	s := &Service{Config: cfg}
	for _, p := range cfg.Providers {
		s.providers = append(s.providers, newProvider(p))
	}
	return s
}

// Identify names the person at the other end of a connection. Whoever has no
// certificate, a certificate of somebody removed, or one that was ended, is
// refused with [protocol.CodeUnauthenticated].
func (s *Service) Identify(ctx context.Context, state tls.ConnectionState) (Caller, error) {
	if len(state.PeerCertificates) == 0 {
		return Caller{}, unauthenticated("log in first: no certificate was presented")
	}
	name, serial, err := certs.PersonFromState(state)
	if err != nil {
		return Caller{}, unauthenticated("%v", err)
	}
	return s.caller(ctx, name, serial, state.PeerCertificates[0])
}

func (s *Service) caller(ctx context.Context, name protocol.Person, serial string, leaf *x509.Certificate) (Caller, error) {
	now := s.Now()
	if now.After(leaf.NotAfter) {
		return Caller{}, unauthenticated("the certificate of %s expired at %s: log in again", name, protocol.Stamp(leaf.NotAfter))
	}
	var p store.Person
	var cert store.PersonCert
	err := s.Store.View(ctx, func(tx *store.Tx) (err error) {
		ended, err := tx.CertRevoked(ctx, serial)
		if err == nil && ended {
			err = unauthenticated("the certificate of %s was ended: log in again", name)
		}
		if err != nil {
			return err
		}
		if cert, err = tx.PersonCert(ctx, serial); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		p, err = tx.Person(ctx, name)
		return err
	})
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !p.Removed.IsZero() {
		return Caller{}, unauthenticated("%s is not registered any more", name)
	}
	if err != nil {
		return Caller{}, err
	}
	return Caller{
		Person: p.Name, Role: Role(p.Role), Tenant: p.Tenant, Expires: leaf.NotAfter, Cert: serial, Key: keyOf(leaf.RawSubjectPublicKeyInfo),
		Method: cert.Method, Isolated: cert.Isolated, MFA: cert.MFA, SignedIn: cert.SignedIn, Ends: cert.Ends,
	}, nil
}

// keyOf names a key by the SHA-256 of its SPKI.
func keyOf(spki []byte) string {
	sum := sha256.Sum256(spki)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func unauthenticated(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeUnauthenticated, format, args...)
}
