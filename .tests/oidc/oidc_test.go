// Package oidctest signs in by a real OpenID Connect provider, zitadel's, through
// a control plane and the lockbox command. It is a module of its own so that what
// the provider needs is nothing that the product needs.
package oidctest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/controlplane/internal/cli"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// The people whom the provider knows. Ivan uses a second factor. Nobody has made
// Nora a person of the control plane.
const (
	erin     = "erin@provider.example"
	ivan     = "ivan@provider.example"
	nora     = "nora@provider.example"
	password = "verysecure"
)

// The provider is one for all tests: this process trusts its certificate from the
// start.
var provider *httptest.Server

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "oidctest")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	var handler http.Handler
	provider = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	defer provider.Close()
	roots := filepath.Join(dir, "roots.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: provider.Certificate().Raw})
	if err := os.WriteFile(roots, block, 0o600); err != nil {
		panic(err)
	}
	os.Setenv("SSL_CERT_FILE", roots)
	store := &oidcStore{storage.NewStorageWithClients(users{}, map[string]*storage.Client{"lockbox": nil, "another": nil})}
	handler = exampleop.SetupServer(provider.URL, store, slog.New(slog.DiscardHandler), false)
	return m.Run()
}

// users are who may sign in at the provider, which knows them by their names.
type users struct{}

func (users) ExampleClientID() string { return "service" }

func (u users) GetUserByID(name string) *storage.User { return u.GetUserByUsername(name) }

func (users) GetUserByUsername(name string) *storage.User {
	if !slices.Contains([]string{erin, ivan, nora}, name) {
		return nil
	}
	return &storage.User{ID: name, Username: name, Password: password, Email: name, EmailVerified: true}
}

// oidcStore is the example's, with public clients that may do what a command does.
type oidcStore struct{ *storage.Storage }

func (s *oidcStore) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	return command{storage.NativeClient(id, "http://127.0.0.1/callback")}, nil
}

func (s *oidcStore) AuthRequestByCode(ctx context.Context, code string) (op.AuthRequest, error) {
	r, err := s.Storage.AuthRequestByCode(ctx, code)
	if err == nil && r.GetSubject() == ivan {
		r = twoFactors{r}
	}
	return r, err
}

type twoFactors struct{ op.AuthRequest }

func (twoFactors) GetAMR() []string { return []string{"pwd", "otp", "mfa"} }

// command is a client that gets a person's address in the ID token.
type command struct{ *storage.Client }

func (command) IDTokenUserinfoClaimsAssertion() bool { return true }

func (command) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeDeviceCode}
}

// world is a control plane whose people sign in by the provider.
type world struct {
	t       *testing.T
	control *controlplane.ControlPlane
	server  string
	pin     string
	admin   *client.Client
}

func newWorld(t *testing.T) *world {
	t.Helper()
	cfg := controlplane.DefaultConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.API.Address, cfg.Tunnel.Address = "127.0.0.1:0", "127.0.0.1:0"
	cfg.SignIn = []controlplane.ProviderConfig{
		{ID: "corp", Issuer: provider.URL, ClientID: "lockbox", Domains: []string{"provider.example"}, DeviceCode: true},
		{ID: "other", Issuer: provider.URL, ClientID: "another", Domains: []string{"other.example"}},
	}
	w := &world{t: t}
	var err error
	if w.control, err = controlplane.New(cfg, controlplane.Options{Log: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.control.Run(ctx) }()
	t.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	w.server = strings.Replace(w.control.APIAddress(), "127.0.0.1", "localhost", 1)
	token, err := os.ReadFile(filepath.Join(cfg.DataDir, "first-admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := client.Login(t.Context(), w.server, strings.TrimSpace(string(token)))
	if err != nil {
		t.Fatal(err)
	}
	if w.pin, err = id.Pin(); err != nil {
		t.Fatal(err)
	}
	if w.admin, err = client.New(id); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.admin.Close)
	for _, name := range []string{erin, ivan} {
		if _, err := w.admin.Accounts.CreatePerson(t.Context(), &lockboxv1.CreatePersonRequest{Name: name, Role: "engineer"}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// browser is a person at the provider's pages.
type browser struct {
	t *testing.T
	*http.Client
}

func newBrowser(t *testing.T) browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: provider.Client().Transport.(*http.Transport).TLSClientConfig.Clone()}
	t.Cleanup(transport.CloseIdleConnections)
	return browser{t, &http.Client{Jar: jar, Transport: transport, Timeout: 30 * time.Second}}
}

// read returns the page that a request leads to.
func (b browser) read(resp *http.Response, err error) (*http.Response, string) {
	b.t.Helper()
	if err != nil {
		b.t.Error(err)
		return nil, ""
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Error(err)
	}
	return resp, string(page)
}

var formID = regexp.MustCompile(`name="id" value="([^"]*)"`)

// signIn opens the address that a command shows, and logs in. It returns the last
// page.
func (b browser) signIn(address, name string) string {
	b.t.Helper()
	_, page := b.read(b.Get(address))
	id := formID.FindStringSubmatch(page)
	if id == nil {
		b.t.Errorf("no login form in\n%s", page)
		return page
	}
	_, page = b.read(b.PostForm(provider.URL+"/login/username", url.Values{"username": {name}, "password": {password}, "id": {id[1]}}))
	return page
}

// typeCode goes to the provider's page for codes of devices, and allows one.
func (b browser) typeCode(code, name string) {
	b.t.Helper()
	_, page := b.read(b.PostForm(provider.URL+"/device/login", url.Values{"user_code": {code}, "username": {name}, "password": {password}}))
	if !strings.Contains(page, "lockbox") {
		b.t.Errorf("after the login: %s", page)
	}
	if _, page = b.read(b.Get(provider.URL + "/device/confirm?action=allowed")); !strings.Contains(page, "allowed") {
		b.t.Errorf("after allowing: %s", page)
	}
}

// lockbox runs the command. see is called for each line that it tells the person.
func (w *world) lockbox(home string, see func(line string), args ...string) (code int, out, errOut string) {
	w.t.Helper()
	var stdout, stderr bytes.Buffer
	r, pipe := io.Pipe()
	var all sync.WaitGroup
	all.Go(func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			stderr.WriteString(lines.Text() + "\n")
			if see != nil {
				see(lines.Text())
			}
		}
	})
	code = cli.Run(w.t.Context(), append([]string{"--home", home}, args...), strings.NewReader(""), &stdout, pipe)
	pipe.Close()
	all.Wait()
	return code, stdout.String(), stderr.String()
}

func (w *world) login(home, name string) (code int, out, errOut string) {
	w.t.Helper()
	b := newBrowser(w.t)
	var visit sync.WaitGroup
	defer visit.Wait()
	return w.lockbox(home, func(line string) {
		if strings.HasPrefix(line, provider.URL) {
			visit.Go(func() { b.signIn(line, name) })
		}
	}, "login", "--server", w.server, "--provider", "corp", "--pin", w.pin, "--no-browser")
}

func TestLoginWhoamiLogout(t *testing.T) {
	w := newWorld(t)
	for name, factor := range map[string]string{erin: "no", ivan: "yes"} {
		home := filepath.Join(t.TempDir(), "home")
		if code, out, errOut := w.login(home, name); code != 0 || !strings.Contains(out, "as "+name) {
			t.Fatalf("login: %d\n%s%s", code, out, errOut)
		}
		code, out, errOut := w.lockbox(home, nil, "whoami")
		for _, want := range []string{"by oidc:corp", "Second factor +" + factor, "Sign-in until +", w.pin} {
			if code != 0 || !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("%q is missing: %d\n%s%s", want, code, out, errOut)
			}
		}
		stolen := filepath.Join(t.TempDir(), "stolen")
		if err := os.CopyFS(stolen, os.DirFS(home)); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(stolen, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.Chmod(f, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if code, out, errOut := w.lockbox(home, nil, "logout"); code != 0 {
			t.Errorf("logout: %d\n%s%s", code, out, errOut)
		}
		if code, _, errOut := w.lockbox(stolen, nil, "whoami"); code != cli.ExitRefused || !strings.Contains(errOut, "unauthenticated") {
			t.Errorf("a copy of the key after logging out: %d %s", code, errOut)
		}
		// The pin is remembered.
		if code, _, errOut := w.lockbox(home, nil, "login", "--server", w.server, "--provider", "nobody"); code == 0 || !strings.Contains(errOut, "knows no identity provider") {
			t.Errorf("login without --pin: %d %s", code, errOut)
		}
	}
}

func TestWhoIsNoPersonHereGetsNothing(t *testing.T) {
	w := newWorld(t)
	if code, _, errOut := w.login(t.TempDir(), nora); code != cli.ExitRefused || !strings.Contains(errOut, "no such person") {
		t.Errorf("nobody's login: %d %s", code, errOut)
	}
	if _, err := w.admin.Accounts.RemovePerson(t.Context(), &lockboxv1.RemovePersonRequest{Name: erin}); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := w.login(t.TempDir(), erin); code != cli.ExitRefused || !strings.Contains(errOut, "no such person") {
		t.Errorf("a removed person's login: %d %s", code, errOut)
	}
}

func TestLoginByDeviceCode(t *testing.T) {
	w := newWorld(t)
	b := newBrowser(t)
	home := filepath.Join(t.TempDir(), "home")
	say := regexp.MustCompile(`Open (\S+) on any machine, and type the code (\S+) there`)
	code, out, errOut := w.lockbox(home, func(line string) {
		if m := say.FindStringSubmatch(line); m != nil {
			b.typeCode(m[2], erin)
		}
	}, "login", "--server", w.server, "--provider", "corp", "--pin", w.pin, "--device-code")
	if code != 0 || !strings.Contains(out, "as "+erin) {
		t.Fatalf("login: %d\n%s%s", code, out, errOut)
	}
	code, _, errOut = w.lockbox(t.TempDir(), nil, "login", "--server", w.server, "--provider", "other", "--pin", w.pin, "--device-code")
	if code == 0 || !strings.Contains(errOut, "no device code") {
		t.Errorf("at a provider whose codes are not taken: %d %s", code, errOut)
	}
}

// between is what lies between a command and the provider. It can change what is
// sent, and sees the ID token.
type between struct {
	change func(form url.Values)
	token  string
}

func (b *between) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.change != nil {
		sent, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		form, err := url.ParseQuery(string(sent))
		if err != nil {
			return nil, err
		}
		b.change(form)
		r = r.Clone(r.Context())
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(form.Encode())), int64(len(form.Encode()))
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	var answer struct {
		IDToken string `json:"id_token"`
	}
	if json.Unmarshal(body, &answer) == nil && answer.IDToken != "" {
		b.token = answer.IDToken
	}
	return resp, err
}

// signIn is a sign-in of Erin's by the client itself.
func (w *world) signIn(b *between, browse func(address string) error) error {
	w.t.Helper()
	_, _, err := client.SignIn{
		Server: w.server, Pin: w.pin, Provider: "corp", HTTP: &http.Client{Transport: b, Timeout: 30 * time.Second}, Browse: browse,
	}.Run(w.t.Context())
	return err
}

// visit logs Erin in while the client waits.
func (w *world) visit(all *sync.WaitGroup) func(string) error {
	b := newBrowser(w.t)
	return func(address string) error {
		all.Go(func() { b.signIn(address, erin) })
		return nil
	}
}

func TestATokenIsForOneServiceAndOneUse(t *testing.T) {
	w := newWorld(t)
	var seen between
	var all sync.WaitGroup
	err := w.signIn(&seen, w.visit(&all))
	all.Wait()
	if err != nil || seen.token == "" {
		t.Fatal(err)
	}
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	for provider, says := range map[string]string{"corp": "used before", "other": "audience"} {
		_, err := w.admin.Accounts.SignIn(t.Context(), &lockboxv1.SignInRequest{Provider: provider, IdToken: seen.token, Csr: csr})
		if protocol.CodeOf(err) != protocol.CodeUnauthenticated || !strings.Contains(err.Error(), says) {
			t.Errorf("the token at %s: %v", provider, err)
		}
	}
}

func TestTheProviderChecksPKCE(t *testing.T) {
	w := newWorld(t)
	var all sync.WaitGroup
	err := w.signIn(&between{change: func(form url.Values) { form.Set("code_verifier", strings.Repeat("x", 43)) }}, w.visit(&all))
	all.Wait()
	if err == nil || !strings.Contains(err.Error(), "the provider refused") {
		t.Errorf("with another verifier: %v", err)
	}
}

// What comes back without the state of this sign-in changes nothing.
func TestAnAnswerToAnotherSignIn(t *testing.T) {
	w := newWorld(t)
	b := newBrowser(t)
	var all sync.WaitGroup
	defer all.Wait()
	err := w.signIn(new(between), func(address string) error {
		u, err := url.Parse(address)
		if err != nil {
			return err
		}
		back := u.Query().Get("redirect_uri")
		for _, forged := range []string{"", "?code=x", "?code=x&state=y", "?error=access_denied&state=y"} {
			resp, page := b.read(b.Get(back + forged))
			if resp == nil || resp.StatusCode != http.StatusBadRequest {
				return errors.New("a forged answer was taken: " + page)
			}
		}
		all.Go(func() { b.signIn(address, erin) })
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
