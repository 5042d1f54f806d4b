package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// The ways to sign in. That by an identity provider has its id after the prefix.
const (
	byToken    = "login-token"
	byProvider = "oidc:"
)

// scopes are what a client asks an identity provider for.
var scopes = []string{oidc.ScopeOpenID, "email", "profile"}

// ListSignIns names the identity providers that answer. It needs no caller.
func (s *Service) ListSignIns(ctx context.Context, _ *lockboxv1.ListSignInsRequest) (*lockboxv1.ListSignInsResponse, error) {
	out := &lockboxv1.ListSignInsResponse{}
	var failures []error
	for _, p := range s.providers {
		found, err := p.discover(ctx, s.Now())
		if err != nil {
			failures = append(failures, err)
			continue
		}
		endpoint := found.Endpoint()
		shown := &lockboxv1.SignInProvider{
			Id: p.ID, Issuer: p.Issuer, ClientId: p.ClientID, Scopes: scopes,
			AuthorizationEndpoint: endpoint.AuthURL, TokenEndpoint: endpoint.TokenURL,
		}
		if p.DeviceCode {
			shown.DeviceAuthorizationEndpoint = endpoint.DeviceAuthURL
		}
		out.Providers = append(out.Providers, shown)
	}
	if len(out.Providers) == 0 && len(failures) > 0 {
		return nil, protocol.Errorf(protocol.CodeUnavailable, "%v", errors.Join(failures...))
	}
	return out, nil
}

// SignIn exchanges an ID token and a certificate request for a certificate of an
// hour. It needs no caller. The token is good for the key of the request only, as
// its nonce says, and once.
func (s *Service) SignIn(ctx context.Context, in *lockboxv1.SignInRequest) (*lockboxv1.LoginResponse, error) {
	i := slices.IndexFunc(s.providers, func(p *provider) bool { return p.ID == in.Provider })
	if i < 0 {
		return nil, protocol.Errorf(protocol.CodeNotFound, "there is no identity provider %q here", in.Provider)
	}
	p := s.providers[i]
	csr, err := x509.ParseCertificateRequest(in.Csr)
	if err != nil {
		return nil, protocol.Errorf(protocol.CodeInvalid, "the certificate request cannot be read")
	}
	said, err := s.verify(ctx, p, in.IdToken)
	if err != nil {
		return nil, err
	}
	var out *lockboxv1.LoginResponse
	var refused error
	err = s.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := tx.SpendIDToken(ctx, digestOf(in.IdToken), said.Expires.Add(maxTokenAge), s.Now()); err != nil {
			if errors.Is(err, store.ErrConflict) {
				err = unauthenticated("the ID token was used before: sign in again")
			}
			return err
		}
		row, why, err := s.whoIs(ctx, tx, p, said, csr)
		if err != nil {
			return err
		}
		if why != "" { // which must be committed
			refused = unauthenticated("%s cannot sign in by %s: %s", said.Name, p.ID, why)
			return s.refuse(ctx, tx, protocol.Person(said.Name), why)
		}
		out, err = s.welcome(ctx, tx, row, in.Csr, store.PersonCert{
			Method: byProvider + p.ID, MFA: said.MFA, SignedIn: s.Now(), Ends: s.Now().Add(p.Session),
		})
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

// verify checks a token, a few at once only: whoever sends bad ones must not have
// this service ask the provider for its keys without end.
func (s *Service) verify(ctx context.Context, p *provider, token string) (claims, error) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	default:
		return claims{}, protocol.Errorf(protocol.CodeLimit, "too many sign-ins by %s at once: try again", p.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, providerTimeout)
	defer cancel()
	return p.verify(ctx, token, s.Now())
}

// digestOf names an ID token by what is signed of it. The signature itself can
// have several forms.
func digestOf(token string) string {
	sum := sha256.Sum256([]byte(token[:strings.LastIndexByte(token, '.')]))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// whoIs returns the person that a verified token names, or why they may not sign
// in with it.
func (s *Service) whoIs(ctx context.Context, tx *store.Tx, p *provider, said claims, csr *x509.CertificateRequest) (row store.Person, why string, err error) {
	name := protocol.Person(said.Name)
	nonce := certs.SignInNonce(csr.RawSubjectPublicKeyInfo)
	switch {
	case said.Nonce == "" && !p.DeviceCode:
		return row, "the ID token has no nonce, and device codes are not taken", nil
	case said.Nonce != "" && subtle.ConstantTimeCompare([]byte(said.Nonce), []byte(nonce)) != 1:
		return row, "the ID token is for another key", nil
	case !slices.Contains(p.Domains, domainOf(name)):
		return row, "it does not speak for names of that domain", nil
	}
	row, err = tx.Person(ctx, name)
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !row.Removed.IsZero() {
		return row, "there is no such person here: ask an admin to create them", nil
	}
	if err != nil {
		return row, "", err
	}
	why, err = s.sameSubject(ctx, tx, said, row)
	return row, why, err
}

// sameSubject binds a person to whom the provider knows them as, at their first
// sign-in, and holds them to it from then on.
func (s *Service) sameSubject(ctx context.Context, tx *store.Tx, said claims, row store.Person) (why string, err error) {
	known, err := tx.PersonSubject(ctx, row.Name)
	if errors.Is(err, store.ErrNotFound) {
		err = tx.InsertPersonSubject(ctx, &store.PersonSubject{Person: row.Name, Issuer: said.Issuer, Subject: said.Subject, Created: s.Now()})
		if errors.Is(err, store.ErrConflict) {
			return "the provider knows them as somebody who has another name here", nil
		}
		return "", err
	}
	if err == nil && (known.Issuer != said.Issuer || known.Subject != said.Subject) {
		return "the provider knows them as somebody else than before: if that is right, have an admin make them a login token", nil
	}
	return "", err
}

// Logout ends every certificate of the caller's sign-in.
func (s *Service) Logout(ctx context.Context, caller Caller, _ *lockboxv1.LogoutRequest) (*lockboxv1.LogoutResponse, error) {
	out := &lockboxv1.LogoutResponse{}
	err := s.Store.Tx(ctx, func(tx *store.Tx) error {
		row, err := s.stillIn(ctx, tx, caller)
		if err != nil {
			return err
		}
		cert, err := tx.PersonCert(ctx, caller.Cert)
		if err != nil {
			return err
		}
		ended, err := tx.EndSignIn(ctx, cert.SignIn, s.Now())
		if err != nil {
			return err
		}
		out.Ended = int32(ended)
		_, err = s.Audit.Record(ctx, tx, s.record(caller, auditlog.OpLogout, row))
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// lifetime is how long a certificate of a sign-in lasts that is issued now, 0 if
// the sign-in is over.
func (s *Service) lifetime(c store.PersonCert) time.Duration {
	if c.Ends.IsZero() {
		return CertificateTTL
	}
	return max(0, min(signInTTL, c.Ends.Sub(s.Now())))
}
