package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Provider is an OpenID Connect identity provider by which people may sign in.
type Provider struct {
	ID         string
	Issuer     string // as it stands in ID tokens
	ClientID   string // the audience of ID tokens for this service
	Domains    []string
	NameClaim  string   // the claim that holds a person's name; "email" if empty, which has to be verified then
	AMR        []string // any of these in amr means a second factor; "mfa" if none
	ACR        []string // any of these as acr does too
	DeviceCode bool     // takes ID tokens without a nonce, which are all that a device code brings
	Session    time.Duration
	Roots      *x509.CertPool // nil: the system's
}

// Limits of identity providers.
const (
	defaultSession  = 8 * time.Hour // of a sign-in, over all its certificates
	signInTTL       = time.Hour     // of one certificate
	clockSkew       = time.Minute   // between their clock and ours
	maxTokenAge     = 10 * time.Minute
	maxIDToken      = 16 << 10         // bytes
	maxProviderBody = 1 << 20          // bytes
	providerTimeout = 10 * time.Second // of one call
	verifications   = 4                // at once
	afterFailure    = 5 * time.Second  // a provider that cannot be reached is left alone
)

// provider talks to a [Provider]. What is known of it is asked for at first use,
// so that the service starts without it.
type provider struct {
	Provider
	client *http.Client
	slots  chan struct{} // verifications under way

	mu     sync.Mutex
	found  *oidc.Provider // guarded by mu
	failed error          // guarded by mu
	again  time.Time      // guarded by mu
}

func newProvider(p Provider) *provider {
	if p.NameClaim == "" {
		p.NameClaim = "email"
	}
	if len(p.AMR) == 0 {
		p.AMR = []string{"mfa"}
	}
	if p.Session == 0 {
		p.Session = defaultSession
	}
	return &provider{
		Provider: p,
		slots:    make(chan struct{}, verifications),
		client: &http.Client{
			Timeout: providerTimeout,
			Transport: bounded{&http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				TLSClientConfig:        &tls.Config{RootCAs: p.Roots, MinVersion: tls.VersionTLS12},
				TLSHandshakeTimeout:    providerTimeout,
				MaxResponseHeaderBytes: 64 << 10,
				DisableKeepAlives:      true, // it is asked once in a while
			}},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// bounded is a transport that reads no more of an answer than it may have.
type bounded struct{ *http.Transport }

func (t bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxProviderBody), resp.Body}
	}
	return resp, err
}

// discover asks a provider for its keys and endpoints, once.
func (p *provider) discover(ctx context.Context, now time.Time) (*oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found != nil {
		return p.found, nil
	}
	if now.Before(p.again) {
		return nil, p.failed
	}
	found, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), p.client), p.Issuer)
	if err != nil {
		p.failed, p.again = fmt.Errorf("the identity provider %s does not answer: %w", p.ID, err), now.Add(afterFailure)
		return nil, p.failed
	}
	p.found = found
	return found, nil
}

// claims are what an ID token says of somebody.
type claims struct {
	Issuer   string
	Subject  string
	Name     string // by the name claim
	Nonce    string
	IssuedAt time.Time
	Expires  time.Time
	MFA      bool
}

// compact is the one form of an ID token: three parts in base64url.
var compact = regexp.MustCompile(`^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

// verify checks who made an ID token, for whom, and when, and returns what it
// says. It does not know whether it was used before, nor for which key it is.
func (p *provider) verify(ctx context.Context, token string, now time.Time) (claims, error) {
	if len(token) > maxIDToken || !compact.MatchString(token) {
		return claims{}, unauthenticated("this is no ID token")
	}
	found, err := p.discover(ctx, now)
	if err != nil {
		return claims{}, err
	}
	// Its times are checked below, with both clocks in the answer.
	id, err := found.VerifierContext(oidc.ClientContext(ctx, p.client), &oidc.Config{ClientID: p.ClientID, SkipExpiryCheck: true}).Verify(ctx, token)
	if err != nil {
		return claims{}, unauthenticated("the ID token is refused: %v", err)
	}
	if err := checkTimes(id, now); err != nil {
		return claims{}, err
	}
	return p.read(id)
}

func checkTimes(id *oidc.IDToken, now time.Time) error {
	said := protocol.Stamp
	switch {
	case id.Expiry.Add(clockSkew).Before(now):
		return unauthenticated("the ID token expired at %s and this server's clock says %s: sign in again; if that fails too, compare the clocks", said(id.Expiry), said(now))
	case id.IssuedAt.After(now.Add(clockSkew)):
		return unauthenticated("the ID token is of %s but this server's clock says %s: compare the clocks of the identity provider and of this server", said(id.IssuedAt), said(now))
	case id.IssuedAt.Add(maxTokenAge + clockSkew).Before(now):
		return unauthenticated("the ID token is of %s and this server's clock says %s: it is taken within %s only; sign in again", said(id.IssuedAt), said(now), maxTokenAge)
	}
	return nil
}

// read takes what is needed from a token that was verified.
func (p *provider) read(id *oidc.IDToken) (claims, error) {
	var said struct {
		AZP           string          `json:"azp"`
		AMR           []string        `json:"amr"`
		ACR           string          `json:"acr"`
		EmailVerified json.RawMessage `json:"email_verified"` // some write it as a string
	}
	all := map[string]any{}
	if err := errors.Join(id.Claims(&said), id.Claims(&all)); err != nil {
		return claims{}, unauthenticated("the ID token cannot be read: %v", err)
	}
	if len(id.Audience) > 1 && said.AZP == "" || said.AZP != "" && said.AZP != p.ClientID {
		return claims{}, unauthenticated("the ID token was issued to %q, not to %q", said.AZP, p.ClientID)
	}
	name, _ := all[p.NameClaim].(string)
	if name == "" || id.Subject == "" {
		return claims{}, unauthenticated("the ID token has no claim %s: have the identity provider %s send it", p.NameClaim, p.ID)
	}
	// Some characters beyond ASCII become ASCII in lower case, as the Kelvin sign
	// becomes k: whoever has such a name would be taken for somebody else.
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return claims{}, unauthenticated("the claim %s of the ID token is %+q: a sign-in name has ASCII letters only", p.NameClaim, name)
	}
	if verified := strings.Trim(string(said.EmailVerified), `"`); p.NameClaim == "email" && verified != "true" {
		return claims{}, unauthenticated("the identity provider %s has not verified the address %s", p.ID, name)
	}
	return claims{
		Issuer: id.Issuer, Subject: id.Subject, Name: strings.ToLower(name), Nonce: id.Nonce, IssuedAt: id.IssuedAt, Expires: id.Expiry,
		MFA: slices.Contains(p.ACR, said.ACR) || slices.ContainsFunc(said.AMR, func(m string) bool { return slices.Contains(p.AMR, m) }),
	}, nil
}
