package api_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a control plane in this process, with an admin who is logged in.
type world struct {
	t           *testing.T
	cfg         controlplane.Config
	control     *controlplane.ControlPlane
	authorities *certs.Authorities
	admin       *client.Client
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, cfg: controlplane.DefaultConfig()}
	w.cfg.DataDir = filepath.Join(t.TempDir(), "data")
	w.cfg.API.Address, w.cfg.Tunnel.Address = "127.0.0.1:0", "127.0.0.1:0"
	var err error
	if w.control, err = controlplane.New(w.cfg, controlplane.Options{Log: zerolog.Nop()}); err != nil {
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
	if w.authorities, _, err = certs.Open(w.cfg.AuthorityDir()); err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(w.cfg.DataDir, "first-admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	w.admin = w.login(strings.TrimSpace(string(token)))
	return w
}

// at is an address of the control plane under the name of its certificate.
func at(address string) string { return strings.Replace(address, "127.0.0.1", "localhost", 1) }

func (w *world) login(token string) *client.Client {
	w.t.Helper()
	id, _, err := client.Login(w.t.Context(), at(w.control.APIAddress()), token)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := client.New(id)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

// register makes a person and returns a certificate of theirs.
func (w *world) register(name, role, tenant string) *certs.Source {
	w.t.Helper()
	_, err := w.admin.Accounts.CreatePerson(w.t.Context(), &lockboxv1.CreatePersonRequest{Name: name, Role: role, Tenant: tenant})
	if err != nil {
		w.t.Fatal(err)
	}
	return person(w.t, w.authorities, name, time.Hour)
}

func person(t *testing.T, a *certs.Authorities, name string, ttl time.Duration) *certs.Source {
	t.Helper()
	return issued(t, func(csr []byte) ([][]byte, error) { return a.IssuePerson(csr, protocol.Person(name), ttl) })
}

// deviceKey is the key of the tests' one device, so that a certificate is
// wrong only in what the test makes wrong.
var deviceKey = sync.OnceValues(certs.NewKey)

func device(t *testing.T, a *certs.Authorities) *certs.Source {
	t.Helper()
	key, err := deviceKey()
	if err != nil {
		t.Fatal(err)
	}
	return issuedFor(t, key, func(csr []byte) ([][]byte, error) {
		return a.IssueDevice(csr, protocol.NodeID{Serial: storetest.Serial, Node: 1}, time.Hour)
	})
}

// enrolDevice puts the tests' device into the store, enrolled with its key.
func (w *world) enrolDevice() {
	w.t.Helper()
	key, err := deviceKey()
	if err != nil {
		w.t.Fatal(err)
	}
	s := storetest.Open(w.t, w.cfg.StorePath())
	storetest.Fill(w.t, s, time.Now(), 1)
	storetest.Tx(w.t, s, func(ctx context.Context, tx *store.Tx) error {
		node, err := tx.Node(ctx, protocol.NodeID{Serial: storetest.Serial, Node: 1})
		if err != nil {
			return err
		}
		node.KeyFingerprint, node.Enrolled = string(approval.KeyFingerprint(key.Public().(ed25519.PublicKey))), time.Now()
		return tx.UpdateNode(ctx, &node)
	})
}

func issued(t *testing.T, issue func(csr []byte) ([][]byte, error)) *certs.Source {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return issuedFor(t, key, issue)
}

func issuedFor(t *testing.T, key ed25519.PrivateKey, issue func(csr []byte) ([][]byte, error)) *certs.Source {
	t.Helper()
	csr, err := certs.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := issue(csr)
	if err != nil {
		t.Fatal(err)
	}
	s, err := certs.NewSource(key, chain, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dialer is the TLS of a client with a certificate, or without if who is nil.
func dialer(servers *x509.Certificate, who *certs.Source) *tls.Config {
	if who != nil {
		return certs.PersonDialer(who, servers, "localhost")
	}
	roots := x509.NewCertPool()
	roots.AddCert(servers)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost"}
}

// httpAs is an HTTP client of somebody.
func (w *world) httpAs(who *certs.Source) *http.Client {
	transport := &http.Transport{TLSClientConfig: dialer(w.authorities.Roots().Servers, who)}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// answer is what came back for a call.
type answer struct {
	status int
	body   string
}

func (w *world) post(h *http.Client, path, contentType, body string) (answer, error) {
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "https://"+at(w.control.APIAddress())+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Connect-Protocol-Version", "1")
	resp, err := h.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(data)}, err
}
