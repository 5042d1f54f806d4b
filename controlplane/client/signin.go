package client

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// SignIn says how to sign in by an identity provider.
type SignIn struct {
	Server   string // host:port of the API
	Pin      string // of the server's root, see [certs.Pin]
	Provider string // its id; may be left out if there is one only

	// Browse is given the address that the person opens in a browser on this
	// machine. If it is nil, DeviceCode is used.
	Browse func(address string) error
	// DeviceCode is given the address that the person opens anywhere, and the
	// code they type there.
	DeviceCode func(address, code string) error

	HTTP *http.Client // towards the provider; one with a deadline if nil
}

// Run makes a key, has the person sign in, and exchanges the ID token for a
// certificate over that key. It ends when ctx does.
func (s SignIn) Run(ctx context.Context) (*Identity, *lockboxv1.Person, error) {
	host, err := splitServer(s.Server)
	if err != nil {
		return nil, nil, err
	}
	config, err := certs.PinnedDialer(s.Pin, host)
	if err != nil {
		return nil, nil, err
	}
	c := open(s.Server, config)
	defer c.Close()
	provider, err := s.choose(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	key, err := certs.NewKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		return nil, nil, err
	}
	token, err := s.token(ctx, provider, key)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot sign in by %s: %w", provider.Id, err)
	}
	resp, err := c.Accounts.SignIn(ctx, &lockboxv1.SignInRequest{Provider: provider.Id, IdToken: token, Csr: csr})
	if err != nil {
		return nil, nil, fmt.Errorf("cannot log in at %s: %w", s.Server, err)
	}
	id, err := newIdentity(s.Server, s.Pin, key, resp)
	return id, resp.GetPerson(), err
}

// choose asks the control plane for its identity providers and picks one.
func (s SignIn) choose(ctx context.Context, c *Client) (*lockboxv1.SignInProvider, error) {
	resp, err := c.Accounts.ListSignIns(ctx, &lockboxv1.ListSignInsRequest{})
	if err != nil {
		return nil, fmt.Errorf("cannot log in at %s: %w", s.Server, err)
	}
	if s.Provider == "" && len(resp.Providers) == 1 {
		return resp.Providers[0], nil
	}
	var names []string
	for _, p := range resp.Providers {
		if p.Id == s.Provider {
			return p, nil
		}
		names = append(names, p.Id)
	}
	switch {
	case len(names) == 0:
		return nil, protocol.Errorf(protocol.CodeNotFound, "%s knows no identity provider: log in with a token from an administrator", s.Server)
	case s.Provider == "":
		return nil, protocol.Errorf(protocol.CodeInvalid, "%s knows several identity providers: name one of %s", s.Server, strings.Join(names, ", "))
	}
	return nil, protocol.Errorf(protocol.CodeNotFound, "%s knows no identity provider %q: name one of %s", s.Server, s.Provider, strings.Join(names, ", "))
}

// token gets an ID token for key.
func (s SignIn) token(ctx context.Context, p *lockboxv1.SignInProvider, key ed25519.PrivateKey) (string, error) {
	for _, address := range []string{p.AuthorizationEndpoint, p.TokenEndpoint, p.DeviceAuthorizationEndpoint} {
		if err := checkEndpoint(address); err != nil {
			return "", err
		}
	}
	client := cmp.Or(s.HTTP, &http.Client{
		Timeout:       headerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	})
	ctx = context.WithValue(ctx, oauth2.HTTPClient, client)
	config := &oauth2.Config{ClientID: p.ClientId, Scopes: p.Scopes, Endpoint: oauth2.Endpoint{
		AuthURL: p.AuthorizationEndpoint, TokenURL: p.TokenEndpoint, DeviceAuthURL: p.DeviceAuthorizationEndpoint,
		AuthStyle: oauth2.AuthStyleInParams, // a command holds no secret to log in with
	}}
	var token *oauth2.Token
	var err error
	if s.Browse != nil {
		token, err = s.byBrowser(ctx, config, p.Issuer, key)
	} else {
		token, err = s.byDeviceCode(ctx, config)
	}
	if err != nil {
		return "", explainOAuth(err)
	}
	id, _ := token.Extra("id_token").(string)
	if id == "" {
		return "", errors.New("the provider sent no ID token")
	}
	return id, nil
}

// checkEndpoint refuses addresses at which others could listen.
func checkEndpoint(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("%q is no address", address)
	}
	ip := net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if address != "" && u.Scheme != "https" && !(u.Scheme == "http" && local) {
		return fmt.Errorf("the provider's address %s is not https", address)
	}
	return nil
}

// explainOAuth says what a provider answered, without what it was sent.
func explainOAuth(err error) error {
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		if e.ErrorCode != "" {
			return fmt.Errorf("the provider refused: %s", strings.TrimSpace(e.ErrorCode+" "+e.ErrorDescription))
		}
		return fmt.Errorf("the provider answered %s", e.Response.Status)
	}
	return err
}

// byDeviceCode has the person sign in on any machine (RFC 8628).
func (s SignIn) byDeviceCode(ctx context.Context, config *oauth2.Config) (*oauth2.Token, error) {
	if config.Endpoint.DeviceAuthURL == "" || s.DeviceCode == nil {
		return nil, errors.New("the provider offers no device code, or none is taken here: sign in with a browser on this machine")
	}
	code, err := config.DeviceAuth(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.DeviceCode(cmp.Or(code.VerificationURIComplete, code.VerificationURI), code.UserCode); err != nil {
		return nil, err
	}
	return config.DeviceAccessToken(ctx, code)
}

// byBrowser has the person sign in by a browser on this machine: an authorization
// code with PKCE comes back to a port of it (RFC 8252).
func (s SignIn) byBrowser(ctx context.Context, config *oauth2.Config, issuer string, key ed25519.PrivateKey) (*oauth2.Token, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	back, err := listenBack(issuer)
	if err != nil {
		return nil, err
	}
	defer back.close()
	config.RedirectURL = back.address()
	verifier := oauth2.GenerateVerifier()
	address := config.AuthCodeURL(back.state, oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", certs.SignInNonce(spki)))
	if err := s.Browse(address); err != nil {
		return nil, err
	}
	code, err := back.wait(ctx)
	if err != nil {
		return nil, err
	}
	return config.Exchange(ctx, code, oauth2.VerifierOption(verifier))
}

// callbackPath is where the browser comes back to.
const callbackPath = "/callback"

// back waits for a browser to come back with a code.
type back struct {
	issuer, state string
	listener      net.Listener
	server        *http.Server
	answers       chan answer // 1 slot: the first counts
	done          chan struct{}
}

type answer struct {
	code string
	err  error
}

// listenBack takes a port of this machine.
func listenBack(issuer string) (*back, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &back{issuer: issuer, state: rand.Text(), listener: ln, answers: make(chan answer, 1), done: make(chan struct{})}
	b.server = &http.Server{
		Handler: b, ReadTimeout: dialTimeout, WriteTimeout: dialTimeout, IdleTimeout: time.Second, MaxHeaderBytes: 64 << 10,
	}
	go func() {
		defer close(b.done)
		_ = b.server.Serve(ln) // until close
	}()
	return b, nil
}

func (b *back) address() string { return "http://" + b.listener.Addr().String() + callbackPath }

// close ends the server once the browser has its answer.
func (b *back) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = b.server.Shutdown(ctx) // what is left is closed below
	b.server.Close()
	<-b.done
}

func (b *back) wait(ctx context.Context) (string, error) {
	select {
	case a := <-b.answers:
		return a.code, a.err
	case <-ctx.Done():
		return "", fmt.Errorf("nobody signed in: %w", ctx.Err())
	}
}

// ServeHTTP takes what the browser brings. Anything without the state of this
// sign-in is somebody else's, and changes nothing.
func (b *back) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if r.URL.Path != callbackPath || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(b.state)) != 1 {
		http.Error(w, "This is not the sign-in that is under way.", http.StatusBadRequest)
		return
	}
	a := answer{code: q.Get("code")}
	switch iss := q["iss"]; {
	case len(iss) > 0 && !slices.Equal(iss, []string{b.issuer}): // RFC 9207
		a = answer{err: fmt.Errorf("the answer is of another provider, %s", iss[0])}
	case q.Get("error") != "":
		a = answer{err: fmt.Errorf("the provider refused: %s", strings.TrimSpace(q.Get("error")+" "+q.Get("error_description")))}
	case a.code == "":
		a = answer{err: errors.New("the provider sent no code")}
	}
	select {
	case b.answers <- a:
	default: // it has come before
	}
	text := "You can close this window and go back to the command."
	if a.err != nil {
		text = "It did not work: " + a.err.Error() + "."
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'")
	w.Header().Set("Connection", "close")
	fmt.Fprintf(w, "<!DOCTYPE html><title>Lockbox</title><p>%s</p>\n", html.EscapeString(text))
}

// newIdentity makes an identity of what a control plane answered to a login.
func newIdentity(server, pin string, key ed25519.PrivateKey, resp *lockboxv1.LoginResponse) (*Identity, error) {
	if len(resp.Chain) == 0 || len(resp.ServerRoots) == 0 {
		return nil, fmt.Errorf("cannot log in at %s: the answer has no certificate", server)
	}
	root, err := x509.ParseCertificate(resp.ServerRoots[0])
	if err != nil || certs.Pin(root) != pin {
		return nil, fmt.Errorf("cannot log in at %s: the answer names another server root than the pin", server)
	}
	if _, err := certs.NewSource(key, resp.Chain, nil, nil); err != nil {
		return nil, fmt.Errorf("cannot log in at %s: the answer's certificate does not fit: %w", server, err)
	}
	return &Identity{Server: server, Key: key, Chain: resp.Chain, ServerRoot: resp.ServerRoots[0]}, nil
}
