package broker_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/broker"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var id = protocol.NodeID{Serial: "DBX0001", Node: 1}

// device answers as a node does, at the other end of a real tunnel.
type device struct {
	devicev1.UnimplementedNodeServiceHandler
	client *tunnel.Client
}

func (d *device) Status(context.Context, *devicev1.StatusRequest) (*devicev1.StatusResponse, error) {
	return &devicev1.StatusResponse{Status: &devicev1.NodeStatus{Serial: string(id.Serial)}}, nil
}

func (d *device) OpenBulk(ctx context.Context, _ *devicev1.OpenBulkRequest) (*devicev1.OpenBulkResponse, error) {
	return &devicev1.OpenBulkResponse{}, d.client.DialBulk(ctx)
}

// ssh echoes the session's name and then whatever comes.
func (d *device) ssh(w http.ResponseWriter, r *http.Request) {
	conn, err := tunnel.AcceptUpgrade(w, r)
	if err != nil {
		return
	}
	defer conn.Close()
	io.WriteString(conn, r.URL.Query().Get("session")+"\n")
	io.Copy(conn, conn)
}

func (d *device) handler(t *testing.T) http.Handler {
	srv := rpc.NewServer(func(_ context.Context, procedure string, err error) { t.Logf("%s: %v", procedure, err) })
	devicev1.RegisterNodeServiceHandler(srv, d)
	mux := http.NewServeMux()
	rpc.Mount(mux, srv)
	mux.HandleFunc("/ssh", d.ssh)
	return mux
}

func source(t *testing.T, issue func(csr []byte) ([][]byte, error)) *certs.Source {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
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

// connected runs a broker and a device until the test ends.
func connected(t *testing.T) (*broker.Broker, <-chan struct{}) {
	t.Helper()
	a, _, err := certs.Open(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	server := source(t, func(csr []byte) ([][]byte, error) { return a.IssueServer(csr, []string{"localhost"}, time.Hour) })
	node := source(t, func(csr []byte) ([][]byte, error) { return a.IssueDevice(csr, id, time.Hour) })
	up := make(chan struct{}, 8)
	b := broker.New(tunnel.NewServer(tunnel.ServerConfig{
		TLS: certs.DeviceListener(server, a.Roots().Devices, func(string) bool { return false }),
		Identify: func(s tls.ConnectionState) (protocol.NodeID, string, error) {
			id, fingerprint, _, err := certs.DeviceFromState(s)
			return id, fingerprint, err
		},
		Handler:   func(*tunnel.Peer) http.Handler { return http.NotFoundHandler() },
		Connected: func(*tunnel.Peer) { up <- struct{}{} },
	}))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &device{}
	d.client = tunnel.NewClient(tunnel.ClientConfig{
		Address: ln.Addr().String(), TLS: certs.DeviceDialer(node, a.Roots().Servers, "localhost"), Handler: d.handler(t),
		BackoffMin: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- b.Serve(ctx, ln) }()
	go func() { ended <- d.client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	return b, up
}

func wait(t *testing.T, up <-chan struct{}) {
	t.Helper()
	select {
	case <-up:
	case <-time.After(10 * time.Second):
		t.Fatal("the device did not connect")
	}
}

func TestOfflineAtOnce(t *testing.T) {
	b, up := connected(t)
	wait(t, up)
	stranger := protocol.NodeID{Serial: "DBX0002", Node: 1}
	if _, err := b.Node(stranger); protocol.CodeOf(err) != protocol.CodeOffline {
		t.Errorf("got %v, want device-offline", err)
	}
	if _, err := b.SSH(t.Context(), stranger, "SES-1"); protocol.CodeOf(err) != protocol.CodeOffline {
		t.Errorf("got %v, want device-offline", err)
	}
	if b.Online(stranger) || !b.Online(id) {
		t.Error("the wrong node is online")
	}
}

func TestNodeAnswers(t *testing.T) {
	b, up := connected(t)
	wait(t, up)
	node, err := b.Node(id)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := node.Status(t.Context(), &devicev1.StatusRequest{})
	if err != nil || resp.Status.Serial != string(id.Serial) {
		t.Errorf("got %v, %v", resp, err)
	}
	// It has no Lock, and says so with a code.
	if _, err := node.Lock(t.Context(), &devicev1.LockRequest{}); err == nil {
		t.Error("a call that does not exist succeeded")
	}
}

func TestSSHGoesOverASecondConnection(t *testing.T) {
	b, up := connected(t)
	wait(t, up)
	conn, err := b.SSH(t.Context(), id, "SES-1&x")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("SES-1&x\nhello"))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "SES-1&x\nhello" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDisconnect(t *testing.T) {
	b, up := connected(t)
	wait(t, up)
	conn, err := b.SSH(t.Context(), id, "SES-1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b.Disconnect(id, "test")
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, conn); err != nil && isTimeout(err) {
		t.Error("a session outlived the tunnel of its node")
	}
	wait(t, up) // the device comes back: nothing keeps it out but its certificate
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}
