package tunnel

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority signs the certificates of a test, of both ends.
type authority struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

var testAuthority = sync.OnceValue(newAuthority)

func newAuthority() *authority {
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
	if err != nil {
		panic(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) leaf(change func(*x509.Certificate)) tls.Certificate {
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) serverTLS() *tls.Config {
	cert := a.leaf(func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{"server.test"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: a.pool(),
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}
}

func (a *authority) deviceTLS(node protocol.NodeID) *tls.Config {
	cert := a.leaf(func(c *x509.Certificate) {
		c.URIs, c.ExtKeyUsage = []*url.URL{node.URI()}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: a.pool(), ServerName: "server.test", MinVersion: tls.VersionTLS13}
}

func identify(state tls.ConnectionState) (protocol.NodeID, string, error) {
	leaf := state.VerifiedChains[0][0]
	if len(leaf.URIs) != 1 {
		return protocol.NodeID{}, "", errors.New("not a device")
	}
	node, err := protocol.ParseNodeURI(leaf.URIs[0])
	return node, "fingerprint of " + node.String(), err
}

var (
	node1 = protocol.NodeID{Serial: "DBX0001", Node: 1}
	node2 = protocol.NodeID{Serial: "DBX0002", Node: 1}
)

// patience is how long tests wait for what must come, on a machine that is busy.
const patience = 30 * time.Second

// soon is how long what has a limit of a second or less may take.
const soon = patience / 3

// relaxed are limits that no honest peer meets.
func relaxed() Limits { return Limits{BulkIdle: time.Second} }

// quick are limits that a peer meets within a test's time.
func quick() Limits {
	return Limits{
		HandshakeTimeout: time.Second,
		WriteTimeout:     500 * time.Millisecond,
		StallTimeout:     500 * time.Millisecond,
		HeaderTimeout:    500 * time.Millisecond,
		BodyTimeout:      500 * time.Millisecond,
		StreamIdle:       time.Second,
		BulkIdle:         300 * time.Millisecond,
	}
}

// testServer is a running server that notes what its hooks are told.
type testServer struct {
	*Server
	address string
	events  chan string
	refused chan error
	stop    func() // idempotent; returns when Serve has
}

type serverOption func(*ServerConfig)

func withLimits(l Limits) serverOption { return func(c *ServerConfig) { c.Limits = l } }

func withHandler(h http.HandlerFunc) serverOption {
	return func(c *ServerConfig) { c.Handler = func(*Peer) http.Handler { return h } }
}

func startServer(t testing.TB, options ...serverOption) *testServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startServerOn(t, ln, options...)
}

func startServerOn(t testing.TB, ln net.Listener, options ...serverOption) *testServer {
	t.Helper()
	s := &testServer{address: ln.Addr().String(), events: make(chan string, 10_000), refused: make(chan error, 10_000)}
	cfg := ServerConfig{
		TLS:      testAuthority().serverTLS(),
		Identify: identify,
		Handler: func(p *Peer) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "server to "+p.ID().String()+" "+r.URL.Path)
			})
		},
		Connected:    func(p *Peer) { s.events <- "connected " + p.ID().String() },
		Disconnected: func(p *Peer, err error) { s.events <- "disconnected " + p.ID().String() + ": " + err.Error() },
		Refused:      func(_ net.Addr, err error) { s.refused <- err },
		Limits:       relaxed(),
	}
	for _, o := range options {
		o(&cfg)
	}
	s.Server = NewServer(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := within(t, patience, done); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

// event waits for the next event and checks how it begins.
func (s *testServer) event(t testing.TB, prefix string) {
	t.Helper()
	if got := within(t, patience, s.events); !strings.HasPrefix(got, prefix) {
		t.Fatalf("got event %q, want %q", got, prefix)
	}
}

// peer waits until node is connected.
func (s *testServer) peer(t testing.TB, node protocol.NodeID) *Peer {
	t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		if p, ok := s.Peer(node); ok {
			return p
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%s did not connect", node)
	return nil
}

// testClient is a running client.
type testClient struct {
	*Client
	ended chan error
	stop  func()
}

func startClient(t testing.TB, address string, node protocol.NodeID, options ...func(*ClientConfig)) *testClient {
	t.Helper()
	c := &testClient{ended: make(chan error, 1000)}
	cfg := ClientConfig{
		Address: address,
		TLS:     testAuthority().deviceTLS(node),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "device "+node.String()+" "+r.URL.Path)
		}),
		Disconnected: func(err error, _ time.Duration) { c.ended <- err },
		BackoffMin:   10 * time.Millisecond,
		BackoffMax:   50 * time.Millisecond,
		Limits:       relaxed(),
	}
	for _, o := range options {
		o(&cfg)
	}
	c.Client = NewClient(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := within(t, patience, done); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(c.stop)
	return c
}

func withDeviceHandler(h http.HandlerFunc) func(*ClientConfig) {
	return func(c *ClientConfig) { c.Handler = h }
}

// within receives from ch or fails the test.
func within[T any](t testing.TB, d time.Duration, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(d):
		t.Fatalf("nothing came within %v", d)
		panic("unreachable")
	}
}

// get calls url and returns the body.
func get(ctx context.Context, c *http.Client, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, BaseURL+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func mustGet(t testing.TB, c *http.Client, path, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if got, err := get(ctx, c, path); err != nil || got != want {
		t.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

// dialRaw connects as node would, and leaves what follows to the caller.
func dialRaw(t testing.TB, s *testServer, node protocol.NodeID, alpn string) *tls.Conn {
	t.Helper()
	config := testAuthority().deviceTLS(node)
	config.NextProtos = []string{alpn}
	conn, err := tls.Dial("tcp", s.address, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.NetConn().Close() })
	return conn
}
