package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Limits of tokens and certificates.
const (
	TokenTTL       = 24 * time.Hour   // of a login token
	CertificateTTL = 12 * time.Hour   // of a person's certificate
	MaxFailures    = 5                // refusals of one token before it is locked
	LockOut        = 15 * time.Minute // how long it then stays locked
)

// tokenWord begins every login token: "lbxlogin.<id>.<secret>.<pin>".
const tokenWord = "lbxlogin"

// errToken is the one answer to whatever is wrong with a login token, so that
// guessing teaches nothing.
var errToken = protocol.Errorf(protocol.CodeUnauthenticated, "the login token is not valid, was used, or has expired: ask an admin for a new one")

// Login exchanges a login token and a certificate request for a certificate.
// It needs no caller.
func (s *Service) Login(ctx context.Context, in *lockboxv1.LoginRequest) (*lockboxv1.LoginResponse, error) {
	id, secret, ok := splitToken(in.Token)
	if !ok {
		return nil, errToken
	}
	var out *lockboxv1.LoginResponse
	var refused error
	err := s.Store.Tx(ctx, func(tx *store.Tx) error {
		token, err := tx.LoginToken(ctx, id)
		if protocol.CodeOf(err) == protocol.CodeNotFound {
			refused = errToken
			return nil
		}
		if err != nil {
			return err
		}
		if refused, err = s.judge(ctx, tx, &token, secret); refused != nil || err != nil {
			return err
		}
		out, err = s.admit(ctx, tx, token, in.Csr)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case refused != nil:
		return nil, refused
	}
	return out, nil
}

// judge says why a token is refused, and counts that: a token that is refused too
// often is locked, so that nobody guesses, or fills the log. What it writes must
// be committed even though the login is refused.
func (s *Service) judge(ctx context.Context, tx *store.Tx, token *store.LoginToken, secret string) (refused, err error) {
	now := s.Now()
	if now.Before(token.LockedUntil) {
		return protocol.Errorf(protocol.CodeLimit, "too many wrong login tokens: locked until %s", protocol.Stamp(token.LockedUntil)), nil
	}
	sum := sha256.Sum256([]byte(secret))
	why := "wrong secret"
	if subtle.ConstantTimeCompare(sum[:], token.SecretHash) == 1 {
		if token.Used.IsZero() && now.Before(token.Expires) {
			return nil, nil
		}
		why = "used or expired"
	}
	token.Failures++
	if token.Failures >= MaxFailures {
		token.Failures, token.LockedUntil = 0, now.Add(LockOut)
	}
	if err := tx.UpdateLoginToken(ctx, token); err != nil {
		return nil, err
	}
	return errToken, s.refuse(ctx, tx, token.Person, why)
}

func (s *Service) refuse(ctx context.Context, tx *store.Tx, person protocol.Person, why string) error {
	rec := auditlog.NewRecord(s.Now(), auditlog.OpRefuseLogin, auditlog.Refused)
	rec.Caller, rec.ResourceID = string(person), "/people/"+string(person)
	rec.Properties = map[string]string{"reason": why}
	_, err := s.Audit.Record(ctx, tx, rec)
	return err
}

// admit spends the token and issues the certificate.
func (s *Service) admit(ctx context.Context, tx *store.Tx, token store.LoginToken, csr []byte) (*lockboxv1.LoginResponse, error) {
	row, err := tx.Person(ctx, token.Person)
	if err != nil {
		return nil, err
	}
	if !row.Removed.IsZero() {
		return nil, errToken
	}
	token.Used = s.Now()
	if err := tx.UpdateLoginToken(ctx, &token); err != nil {
		return nil, err
	}
	return s.welcome(ctx, tx, row, csr, store.PersonCert{Method: byToken, Isolated: true, SignedIn: s.Now()})
}

// welcome issues the first certificate of a sign-in, and records it.
func (s *Service) welcome(ctx context.Context, tx *store.Tx, row store.Person, csr []byte, cert store.PersonCert) (*lockboxv1.LoginResponse, error) {
	cert.Person = row.Name
	chain, err := s.issue(ctx, tx, csr, cert)
	if err != nil {
		return nil, err
	}
	rec := s.record(Caller{Person: row.Name}, auditlog.OpLogin, row)
	rec.Properties["method"], rec.Properties["mfa"] = cert.Method, strconv.FormatBool(cert.MFA)
	if _, err := s.Audit.Record(ctx, tx, rec); err != nil {
		return nil, err
	}
	person, err := show(ctx, tx, row)
	if err != nil {
		return nil, err
	}
	return &lockboxv1.LoginResponse{Chain: chain, ServerRoots: [][]byte{s.Authority.Roots().Servers.Raw}, Person: person}, nil
}

// RenewCertificate replaces the caller's certificate before it expires, for the
// same key, while the sign-in lasts.
func (s *Service) RenewCertificate(ctx context.Context, caller Caller, in *lockboxv1.RenewCertificateRequest) (*lockboxv1.RenewCertificateResponse, error) {
	csr, err := x509.ParseCertificateRequest(in.Csr)
	if err != nil {
		return nil, protocol.Errorf(protocol.CodeInvalid, "the certificate request cannot be read")
	}
	if keyOf(csr.RawSubjectPublicKeyInfo) != caller.Key {
		return nil, protocol.Errorf(protocol.CodeForbidden, "a certificate is renewed for its own key only: for another, log in with a new token")
	}
	var chain [][]byte
	err = s.Store.Tx(ctx, func(tx *store.Tx) error {
		row, err := s.stillIn(ctx, tx, caller)
		if err != nil {
			return err
		}
		cert, err := tx.PersonCert(ctx, caller.Cert)
		if err != nil {
			return err
		}
		if chain, err = s.issue(ctx, tx, in.Csr, cert); err != nil {
			return err
		}
		_, err = s.Audit.Record(ctx, tx, s.record(caller, auditlog.OpRenewLogin, row))
		return err
	})
	if err != nil {
		return nil, err
	}
	return &lockboxv1.RenewCertificateResponse{Chain: chain}, nil
}

// stillIn reads the caller, who was identified before: their certificate may
// have been ended, or they removed, since.
func (s *Service) stillIn(ctx context.Context, tx *store.Tx, caller Caller) (store.Person, error) {
	row, err := tx.Person(ctx, caller.Person)
	if err != nil {
		return row, err
	}
	ended, err := tx.CertRevoked(ctx, caller.Cert)
	if err == nil && (ended || !row.Removed.IsZero()) {
		err = unauthenticated("the certificate of %s was ended: log in again", caller.Person)
	}
	return row, err
}

// issue makes a certificate of a sign-in and notes it, so that it can be ended. The
// first names the sign-in.
func (s *Service) issue(ctx context.Context, tx *store.Tx, csr []byte, cert store.PersonCert) ([][]byte, error) {
	ttl := s.lifetime(cert)
	if ttl <= 0 {
		return nil, unauthenticated("the sign-in of %s is over: sign in again", cert.Person)
	}
	chain, err := s.Authority.IssuePerson(csr, cert.Person, ttl)
	if err != nil {
		return nil, protocol.Errorf(protocol.CodeInvalid, "%v", err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	cert.Serial = certs.Serial(leaf)
	cert.SignIn = cmp.Or(cert.SignIn, cert.Serial)
	return chain, tx.InsertPersonCert(ctx, &cert)
}

// newToken ends a person's earlier tokens and makes a new one. Only a hash of
// its secret is stored.
func (s *Service) newToken(ctx context.Context, tx *store.Tx, person protocol.Person) (string, error) {
	if err := tx.DeleteLoginTokens(ctx, person); err != nil {
		return "", err
	}
	id, secret := randomHex(8), randomHex(32)
	sum := sha256.Sum256([]byte(secret))
	now := s.Now()
	err := tx.InsertLoginToken(ctx, &store.LoginToken{ID: id, Person: person, SecretHash: sum[:], Created: now, Expires: now.Add(TokenTTL)})
	if err != nil {
		return "", err
	}
	pin := strings.TrimPrefix(certs.Pin(s.Authority.Roots().Servers), "sha256:")
	return strings.Join([]string{tokenWord, id, secret, pin}, "."), nil
}

// maxToken is longer than any token that is made here.
const maxToken = 256

func splitToken(token string) (id, secret string, ok bool) {
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 4 || parts[0] != tokenWord {
		return "", "", false
	}
	return parts[1], parts[2], true
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b)
	return hex.EncodeToString(b)
}
