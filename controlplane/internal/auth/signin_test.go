package auth_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// issuer is an identity provider that says whatever it is told to. A real one
// is tested against in .tests/oidc.
type issuer struct {
	*httptest.Server
	key   *rsa.PrivateKey
	asked atomic.Int64 // for its keys
}

var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{
			"issuer": i.URL, "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token", "jwks_uri": i.URL + "/keys",
			"device_authorization_endpoint": i.URL + "/device", "id_token_signing_alg_values_supported": []string{"RS256", "none", "HS256"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		i.asked.Add(1)
		json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]any{
			"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1", "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	return i
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// token signs claims with key.
func (i *issuer) token(t *testing.T, key *rsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed := b64([]byte(`{"alg":"RS256","kid":"1"}`)) + "." + b64(payload)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + b64(signature)
}

// signIns is a world with an identity provider, and somebody at a machine.
type signIns struct {
	*world
	issuer *issuer
	csr    []byte
	nonce  string
}

func newSignIns(t *testing.T, change ...func(*auth.Provider)) *signIns {
	t.Helper()
	s := &signIns{world: newWorld(t), issuer: newIssuer(t)}
	roots := x509.NewCertPool()
	roots.AddCert(s.issuer.Certificate())
	p := auth.Provider{ID: "corp", Issuer: s.issuer.URL, ClientID: "lockbox", Domains: []string{"provider.example"}, ACR: []string{"urn:mfa"}, Roots: roots}
	for _, f := range change {
		f(&p)
	}
	cfg := s.auth.Config
	cfg.Providers = []auth.Provider{p}
	s.auth = auth.New(cfg)
	s.mustCreate("erin@provider.example", "engineer", "")
	s.newMachine()
	return s
}

// newMachine makes the key for which tokens are asked from now on.
func (s *signIns) newMachine() {
	s.t.Helper()
	key, csr := newKey(s.t)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	s.csr, s.nonce = csr, certs.SignInNonce(spki)
}

// claims are those of a good token for Erin.
func (s *signIns) claims() map[string]any {
	return map[string]any{
		"iss": s.issuer.URL, "aud": "lockbox", "sub": "0815", "email": "Erin@Provider.example", "email_verified": true, "nonce": s.nonce,
		"iat": s.now.Unix(), "exp": s.now.Add(5 * time.Minute).Unix(), "amr": []string{"pwd"},
	}
}

func (s *signIns) signIn(claims map[string]any) (auth.Caller, error) {
	s.t.Helper()
	return s.exchange(s.issuer.token(s.t, s.issuer.key, claims))
}

func (s *signIns) exchange(token string) (auth.Caller, error) {
	s.t.Helper()
	resp, err := s.auth.SignIn(s.t.Context(), &lockboxv1.SignInRequest{Provider: "corp", IdToken: token, Csr: s.csr})
	if err != nil {
		return auth.Caller{}, err
	}
	return s.auth.Identify(s.t.Context(), state(s.t, resp.Chain))
}

func (s *signIns) must(claims map[string]any) auth.Caller {
	s.t.Helper()
	c, err := s.signIn(claims)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func TestSignInByAProvider(t *testing.T) {
	s := newSignIns(t)
	list, err := s.auth.ListSignIns(t.Context(), &lockboxv1.ListSignInsRequest{})
	if err != nil || len(list.Providers) != 1 || list.Providers[0].TokenEndpoint != s.issuer.URL+"/token" || list.Providers[0].DeviceAuthorizationEndpoint != "" {
		t.Errorf("providers %v, %v", list, err)
	}
	c := s.must(s.claims())
	if c.Person != "erin@provider.example" || c.Role != auth.Engineer || c.Isolated || c.MFA || c.Method != "oidc:corp" {
		t.Errorf("signed in as %+v", c)
	}
	if left := c.Expires.Sub(s.now); left > time.Hour || left < 59*time.Minute {
		t.Errorf("the certificate lasts %s", left)
	}
	who, err := s.auth.WhoAmI(t.Context(), c, &lockboxv1.WhoAmIRequest{})
	if err != nil || who.SignedInBy != "oidc:corp" || who.Mfa || who.Isolated || who.SignInEnds != s.now.Add(8*time.Hour).Unix() {
		t.Errorf("who am I: %v, %v", who, err)
	}

	// A second factor, as amr or acr says, and a login token for comparison.
	for name, claims := range map[string]map[string]any{"amr": {"amr": []string{"pwd", "mfa"}}, "acr": {"acr": "urn:mfa"}} {
		s.newMachine()
		all := s.claims()
		maps.Copy(all, claims)
		if c := s.must(all); !c.MFA || c.Isolated {
			t.Errorf("%s: %+v", name, c)
		}
	}
	conn, err := s.login(s.mustCreate("ivan@provider.example", "engineer", ""))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := s.auth.Identify(t.Context(), conn); err != nil || c.MFA || !c.Isolated || c.Method != "login-token" {
		t.Errorf("by a login token: %+v, %v", c, err)
	}
}

// Every way in which a token can be wrong, by one thing each.
func TestTokensThatAreNotTaken(t *testing.T) {
	s := newSignIns(t)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s.mustCreate("gone@provider.example", "engineer", "")
	if _, err := s.auth.RemovePerson(t.Context(), admin, &lockboxv1.RemovePersonRequest{Name: "gone@provider.example"}); err != nil {
		t.Fatal(err)
	}
	s.mustCreate("olga@contoso.example", "owner", "contoso")
	s.mustCreate("kim@provider.example", "engineer", "")
	unix := func(d time.Duration) int64 { return s.now.Add(d).Unix() }
	for name, c := range map[string]struct {
		claims map[string]any
		says   string
	}{
		"wrong audience":         {map[string]any{"aud": "another"}, "audience"},
		"several audiences":      {map[string]any{"aud": []string{"lockbox", "another"}}, "issued to"},
		"another party":          {map[string]any{"azp": "another"}, "issued to"},
		"wrong issuer":           {map[string]any{"iss": "https://login.elsewhere.example"}, "issued by a different provider"},
		"expired":                {map[string]any{"exp": unix(-2 * time.Minute)}, "compare the clocks"},
		"of the future":          {map[string]any{"iat": unix(2 * time.Minute)}, "compare the clocks"},
		"old":                    {map[string]any{"iat": unix(-12 * time.Minute)}, "sign in again"},
		"without nonce":          {map[string]any{"nonce": nil}, "no nonce"},
		"another nonce":          {map[string]any{"nonce": "x"}, "for another key"},
		"unknown person":         {map[string]any{"email": "nobody@provider.example"}, "no such person"},
		"person removed":         {map[string]any{"email": "gone@provider.example"}, "no such person"},
		"another's domain":       {map[string]any{"email": "olga@contoso.example"}, "that domain"},
		"domain with more":       {map[string]any{"email": "erin@provider.example@contoso.example"}, "that domain"},
		"address not verified":   {map[string]any{"email_verified": false}, "not verified"},
		"address never verified": {map[string]any{"email_verified": nil}, "not verified"},
		"no address":             {map[string]any{"email": nil}, "no claim email"},
		"address is no text":     {map[string]any{"email": []string{"erin@provider.example"}}, "no claim email"},
		"looks like another":     {map[string]any{"email": "\u212aim@provider.example"}, "ASCII"}, // the Kelvin sign
		"not one line":           {map[string]any{"email": "erin\n@provider.example"}, "ASCII"},
		"no subject":             {map[string]any{"sub": nil}, "claim"},
	} {
		t.Run(name, func(t *testing.T) {
			s.world.t = t
			claims := s.claims()
			maps.Copy(claims, c.claims)
			_, err := s.signIn(claims)
			wantCode(t, name, err, protocol.CodeUnauthenticated)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("the refusal does not say %q: %v", c.says, err)
			}
		})
	}
	s.world.t = t
	good := s.issuer.token(t, s.issuer.key, s.claims())
	head, rest, _ := strings.Cut(good, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	for name, token := range map[string]string{
		"signed by another": s.issuer.token(t, other, s.claims()),
		"not signed":        b64([]byte(`{"alg":"none"}`)) + "." + payload + ".",
		"none, signed":      b64([]byte(`{"alg":"none"}`)) + "." + payload + "." + signature,
		"HMAC with the key": b64([]byte(`{"alg":"HS256","kid":"1"}`)) + "." + payload + "." + signature,
		"changed":           head + "." + b64([]byte(`{"email":"ivan@provider.example"}`)) + "." + signature,
		"as JSON":           `{"payload":"` + payload + `","protected":"` + head + `","signature":"` + signature + `"}`,
		"nothing":           "", "garbage": "a.b.c", "long": strings.Repeat("a", 1<<20) + ".b.c",
	} {
		_, err := s.exchange(token)
		wantCode(t, name, err, protocol.CodeUnauthenticated)
	}
	if !s.log.has(auditlog.OpRefuseLogin) {
		t.Error("no refusal was recorded")
	}
	if _, err := s.exchange(good); err != nil { // control
		t.Error(err)
	}
}

func TestATokenIsGoodForOneKeyOnce(t *testing.T) {
	s := newSignIns(t)
	token := s.issuer.token(t, s.issuer.key, s.claims())
	own := s.csr
	s.newMachine()
	_, err := s.exchange(token) // stolen on its way: of no use for another key, and spent
	wantCode(t, "for another key", err, protocol.CodeUnauthenticated)
	s.csr = own
	_, err = s.exchange(token)
	wantCode(t, "a token that was shown before", err, protocol.CodeUnauthenticated)

	s.newMachine()
	token = s.issuer.token(t, s.issuer.key, s.claims())
	if _, err := s.exchange(token); err != nil {
		t.Fatal(err)
	}
	_, err = s.exchange(token)
	wantCode(t, "the same token again", err, protocol.CodeUnauthenticated)
	_, err = s.exchange(token + "A") // the signature is not what counts
	wantCode(t, "the same token, spelt otherwise", err, protocol.CodeUnauthenticated)
	s.now = s.now.Add(time.Hour)
	_, err = s.exchange(token)
	wantCode(t, "the same token, later", err, protocol.CodeUnauthenticated)
}

// A person is whom the provider knew at their first sign-in, until an admin says
// otherwise.
func TestAnAddressGivenToSomebodyElse(t *testing.T) {
	s := newSignIns(t)
	s.must(s.claims())
	s.newMachine()
	claims := s.claims()
	claims["sub"] = "4711"
	_, err := s.signIn(claims)
	wantCode(t, "another subject with Erin's address", err, protocol.CodeUnauthenticated)

	s.newMachine()
	s.must(s.claims())
	s.newMachine()
	s.mustCreate("erika@provider.example", "engineer", "")
	claims = s.claims()
	claims["email"] = "erika@provider.example"
	_, err = s.signIn(claims)
	wantCode(t, "one subject with two names", err, protocol.CodeUnauthenticated)

	if _, err := s.auth.CreateLoginToken(t.Context(), admin, &lockboxv1.CreateLoginTokenRequest{Name: "erin@provider.example"}); err != nil {
		t.Fatal(err)
	}
	s.newMachine()
	claims = s.claims()
	claims["sub"] = "4711"
	s.must(claims)
}

func TestADeviceCodeBringsNoNonce(t *testing.T) {
	s := newSignIns(t, func(p *auth.Provider) { p.DeviceCode = true })
	list, err := s.auth.ListSignIns(t.Context(), &lockboxv1.ListSignInsRequest{})
	if err != nil || list.Providers[0].DeviceAuthorizationEndpoint == "" {
		t.Errorf("providers %v, %v", list, err)
	}
	claims := s.claims()
	delete(claims, "nonce")
	token := s.issuer.token(t, s.issuer.key, claims)
	if _, err := s.exchange(token); err != nil {
		t.Fatal(err)
	}
	s.newMachine()
	_, err = s.exchange(token)
	wantCode(t, "the same token for another key", err, protocol.CodeUnauthenticated)
	claims["nonce"] = "x"
	_, err = s.signIn(claims)
	wantCode(t, "another nonce", err, protocol.CodeUnauthenticated)
}

func TestASignInEnds(t *testing.T) {
	s := newSignIns(t, func(p *auth.Provider) { p.Session = 90 * time.Minute })
	c := s.must(s.claims())
	renew := func() (auth.Caller, error) {
		t.Helper()
		resp, err := s.auth.RenewCertificate(t.Context(), c, &lockboxv1.RenewCertificateRequest{Csr: s.csr})
		if err != nil {
			return auth.Caller{}, err
		}
		return s.auth.Identify(t.Context(), state(t, resp.Chain))
	}
	again, err := renew()
	if err != nil || again.Method != "oidc:corp" || again.Ends != c.Ends || again.Cert == c.Cert {
		t.Fatalf("renewed %+v, %v", again, err)
	}
	s.now = s.now.Add(45 * time.Minute)
	if again, err = renew(); err != nil || again.Expires.After(c.Ends) {
		t.Errorf("a certificate until %s of a sign-in until %s: %v", again.Expires, c.Ends, err)
	}
	s.now = s.now.Add(46 * time.Minute)
	_, err = renew()
	wantCode(t, "renewing after the sign-in", err, protocol.CodeUnauthenticated)
}

func TestLoggingOutEndsAllOfASignIn(t *testing.T) {
	s := newSignIns(t)
	first := s.must(s.claims())
	resp, err := s.auth.RenewCertificate(t.Context(), first, &lockboxv1.RenewCertificateRequest{Csr: s.csr})
	if err != nil {
		t.Fatal(err)
	}
	renewed := state(t, resp.Chain)
	s.newMachine()
	elsewhere := s.must(s.claims())
	out, err := s.auth.Logout(t.Context(), first, &lockboxv1.LogoutRequest{})
	if err != nil || out.Ended != 2 || !s.log.has(auditlog.OpLogout) {
		t.Fatalf("ended %v, %v", out, err)
	}
	_, err = s.auth.Identify(t.Context(), renewed)
	wantCode(t, "the renewed certificate", err, protocol.CodeUnauthenticated)
	_, err = s.auth.Logout(t.Context(), first, &lockboxv1.LogoutRequest{})
	wantCode(t, "logging out twice", err, protocol.CodeUnauthenticated)
	if _, err := s.auth.Logout(t.Context(), elsewhere, &lockboxv1.LogoutRequest{}); err != nil {
		t.Errorf("the sign-in on another machine has ended too: %v", err)
	}
}

// A provider that is away keeps nobody from starting, and is asked again.
func TestAProviderThatIsAway(t *testing.T) {
	s := newSignIns(t)
	s.issuer.Close()
	for range 3 {
		_, err := s.auth.ListSignIns(t.Context(), &lockboxv1.ListSignInsRequest{})
		wantCode(t, "while the provider is away", err, protocol.CodeUnavailable)
	}
	if _, err := s.signIn(s.claims()); err == nil {
		t.Error("signed in without the provider's keys")
	}
	_, err := s.auth.SignIn(t.Context(), &lockboxv1.SignInRequest{Provider: "other", Csr: s.csr})
	wantCode(t, "a provider that nobody knows", err, protocol.CodeNotFound)
}
