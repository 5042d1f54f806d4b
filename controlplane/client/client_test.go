package client_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a control plane in this process, and the first admin's token.
func running(t *testing.T) (server, token, dataDir string) {
	t.Helper()
	cfg := controlplane.DefaultConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.API.Address, cfg.Tunnel.Address = "127.0.0.1:0", "127.0.0.1:0"
	c, err := controlplane.New(cfg, controlplane.Options{Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	data, err := os.ReadFile(filepath.Join(cfg.DataDir, "first-admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(c.APIAddress(), "127.0.0.1", "localhost", 1), strings.TrimSpace(string(data)), cfg.DataDir
}

func TestLoginNeedsThePinnedRoot(t *testing.T) {
	server, token, _ := running(t)
	_, otherToken, _ := running(t)
	pin := token[strings.LastIndex(token, ".")+1:]
	otherPin := otherToken[strings.LastIndex(otherToken, ".")+1:]
	for name, bad := range map[string]string{
		"the pin of another installation": strings.Replace(token, pin, otherPin, 1),
		"half a pin":                      token[:len(token)-32],
		"no pin":                          strings.TrimSuffix(token, "."+pin),
		"a join token":                    "lbxjoin" + strings.TrimPrefix(token, "lbxlogin"),
	} {
		if id, _, err := client.Login(t.Context(), server, bad); err == nil || id != nil {
			t.Errorf("%s: logged in", name)
		} else if strings.Contains(err.Error(), token[len("lbxlogin."):len(token)-70]) {
			t.Errorf("%s: the error holds the token: %v", name, err)
		}
	}
	if _, _, err := client.Login(t.Context(), server, token); err != nil { // nothing above spent it
		t.Errorf("control: %v", err)
	}
	for _, server := range []string{"", "localhost", ":443", "localhost:"} {
		if _, _, err := client.Login(t.Context(), server, token); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("server %q: %v", server, err)
		}
	}
}

// login answers logins as it likes, under the right server root.
type login struct {
	lockboxv1.UnimplementedAccountServiceHandler
	answer func(*lockboxv1.LoginRequest) *lockboxv1.LoginResponse
}

func (l login) Login(_ context.Context, in *lockboxv1.LoginRequest) (*lockboxv1.LoginResponse, error) {
	return l.answer(in), nil
}

func TestLoginAnswersAreChecked(t *testing.T) {
	a, _, err := certs.Open(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := certs.Open(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	serverKey, serverCSR := request(t)
	chain, err := a.IssueServer(serverCSR, []string{"localhost"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	source, err := certs.NewSource(serverKey, chain, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	person := func(csr []byte) [][]byte {
		chain, err := a.IssuePerson(csr, "olga@x", time.Hour)
		if err != nil {
			t.Error(err)
		}
		return chain
	}
	right, other := [][]byte{a.Roots().Servers.Raw}, [][]byte{b.Roots().Servers.Raw}
	for name, answer := range map[string]func(*lockboxv1.LoginRequest) *lockboxv1.LoginResponse{
		"": func(in *lockboxv1.LoginRequest) *lockboxv1.LoginResponse {
			return &lockboxv1.LoginResponse{Chain: person(in.Csr), ServerRoots: right}
		},
		"another root": func(in *lockboxv1.LoginRequest) *lockboxv1.LoginResponse {
			return &lockboxv1.LoginResponse{Chain: person(in.Csr), ServerRoots: other}
		},
		"no root": func(in *lockboxv1.LoginRequest) *lockboxv1.LoginResponse {
			return &lockboxv1.LoginResponse{Chain: person(in.Csr)}
		},
		"no certificate": func(*lockboxv1.LoginRequest) *lockboxv1.LoginResponse {
			return &lockboxv1.LoginResponse{ServerRoots: right}
		},
		"a certificate for another key": func(*lockboxv1.LoginRequest) *lockboxv1.LoginResponse {
			_, csr := request(t)
			return &lockboxv1.LoginResponse{Chain: person(csr), ServerRoots: right}
		},
		"garbage": func(*lockboxv1.LoginRequest) *lockboxv1.LoginResponse {
			return &lockboxv1.LoginResponse{Chain: [][]byte{{1}}, ServerRoots: [][]byte{{2}}}
		},
	} {
		s := rpc.NewServer(func(context.Context, string, error) {})
		lockboxv1.RegisterAccountServiceHandler(s, login{answer: answer})
		mux := http.NewServeMux()
		rpc.Mount(mux, s)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: mux}
		go server.Serve(tls.NewListener(ln, certs.APIListener(source, a.Roots().People, nil)))
		address := strings.Replace(ln.Addr().String(), "127.0.0.1", "localhost", 1)
		_, _, err = client.Login(t.Context(), address, "lbxlogin.1.2."+strings.TrimPrefix(certs.Pin(a.Roots().Servers), "sha256:"))
		if (err == nil) != (name == "") {
			t.Errorf("%q: %v", name, err)
		}
		server.Close()
	}
}

// request makes a key and a certificate request for it.
func request(t *testing.T) (ed25519.PrivateKey, []byte) {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

func TestIdentityOnDisk(t *testing.T) {
	server, token, _ := running(t)
	dir := filepath.Join(t.TempDir(), "home")
	if _, err := client.LoadIdentity(dir); !errors.Is(err, client.ErrNotLoggedIn) {
		t.Errorf("got %v", err)
	}
	id, person, err := client.Login(t.Context(), server, token)
	if err != nil || person.Role != "admin" {
		t.Fatal(err)
	}
	if err := id.Save(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
		os.Chmod(path, 0o640)
		if _, err := client.LoadIdentity(dir); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("%s is open to others: %v", e.Name(), err)
		}
		os.Chmod(path, 0o600)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	back, err := client.LoadIdentity(dir)
	if err != nil || !back.Key.Equal(id.Key) || back.Server != server {
		t.Fatalf("%+v, %v", back, err)
	}
	c, err := client.New(back)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fresh, err := c.Renew(t.Context(), back)
	if err != nil || !fresh.Key.Equal(back.Key) {
		t.Fatal(err)
	}
	if err := fresh.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := client.RemoveIdentity(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := client.LoadIdentity(dir); !errors.Is(err, client.ErrNotLoggedIn) {
		t.Errorf("after removal: %v", err)
	}
}

// A new key never lies beside the certificate of the old one.
func TestSaveReplacesWholeOrTakesAway(t *testing.T) {
	server, token, _ := running(t)
	dir := t.TempDir()
	id, _, err := client.Login(t.Context(), server, token)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Save(dir); err != nil {
		t.Fatal(err)
	}
	other := *id
	if other.Key, err = certs.NewKey(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "certificate.pem")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "certificate.pem"), 0o700); err != nil { // it cannot be written
		t.Fatal(err)
	}
	if err := other.Save(dir); err == nil {
		t.Fatal("saved over a directory")
	}
	if _, err := client.LoadIdentity(dir); !errors.Is(err, client.ErrNotLoggedIn) {
		t.Errorf("half an identity is there: %v", err)
	}
}

func TestTimeoutBoundsEveryCall(t *testing.T) {
	server, token, _ := running(t)
	id, _, err := client.Login(t.Context(), server, token)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	id.Server = strings.Replace(ln.Addr().String(), "127.0.0.1", "localhost", 1)
	c, err := client.New(id)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetTimeout(200 * time.Millisecond)
	at := time.Now()
	_, err = c.Accounts.WhoAmI(t.Context(), &lockboxv1.WhoAmIRequest{})
	if code := protocol.CodeOf(err); code != protocol.CodeTimeout && code != protocol.CodeUnavailable || time.Since(at) > 3*time.Second {
		t.Errorf("got %v after %s", err, time.Since(at))
	}
}

func TestWrongClocksAreSaid(t *testing.T) {
	server, token, dir := running(t)
	id, _, err := client.Login(t.Context(), server, token)
	if err != nil {
		t.Fatal(err)
	}
	a, _, err := certs.Open(filepath.Join(dir, "authority"))
	if err != nil {
		t.Fatal(err)
	}
	a.Now = func() time.Time { return time.Now().Add(3 * time.Hour) }
	csr, err := certs.NewCSR(id.Key)
	if err != nil {
		t.Fatal(err)
	}
	if id.Chain, err = a.IssuePerson(csr, "admin@lockbox.local", time.Hour); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(id)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Accounts.WhoAmI(t.Context(), &lockboxv1.WhoAmIRequest{}); err == nil || !strings.Contains(err.Error(), "compare the two clocks") {
		t.Errorf("got %v", err)
	}
}
