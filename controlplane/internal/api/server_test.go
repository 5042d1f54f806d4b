package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/api"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// port is a server of its own, with limits as short as a test's patience.
type port struct {
	t       *testing.T
	address string
	dial    *tls.Config
	end     func() error // ends the server, and says how that went
}

var short = api.Limits{
	Connections: 40, PerAddress: 20,
	HeaderTimeout: 300 * time.Millisecond, ReadTimeout: 600 * time.Millisecond, WriteTimeout: 900 * time.Millisecond,
	IdleTimeout: 400 * time.Millisecond, Grace: 200 * time.Millisecond,
}

func newPort(t *testing.T, h http.Handler, limits api.Limits) *port {
	t.Helper()
	a, _, err := certs.Open(t.TempDir() + "/authority")
	if err != nil {
		t.Fatal(err)
	}
	server := issued(t, func(csr []byte) ([][]byte, error) { return a.IssueServer(csr, []string{"localhost"}, time.Hour) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := api.NewServer(api.ServerConfig{Handler: h, TLS: certs.APIListener(server, a.Roots().People, nil), Limits: limits, Log: zerolog.Nop()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln) }()
	p := &port{t: t, address: ln.Addr().String(), dial: dialer(a.Roots().Servers, person(t, a, "sam@x", time.Hour))}
	p.end = func() error {
		cancel()
		err := <-ended
		ended <- nil
		return err
	}
	t.Cleanup(func() {
		if err := p.end(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// conn is a connection to the port after its handshake. On a busy machine that can
// take longer than short limits allow.
func (p *port) conn() *tls.Conn {
	p.t.Helper()
	c, err := tls.Dial("tcp", p.address, p.dial)
	for tries := 1; err != nil && tries < 10; tries++ {
		c, err = tls.Dial("tcp", p.address, p.dial)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// gone waits for a connection to be closed by the server, within its limits.
func gone(t *testing.T, what string, c net.Conn, within time.Duration) {
	t.Helper()
	began := time.Now()
	c.SetReadDeadline(began.Add(5 * time.Second))
	_, err := io.Copy(io.Discard, c)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Errorf("%s: the connection is still there", what)
	} else if took := time.Since(began); took > within+time.Second {
		t.Errorf("%s: it took %s", what, took)
	}
}

func TestSlowClientsEnd(t *testing.T) {
	p := newPort(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		for range 64 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}), short)
	raw, err := net.Dial("tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	gone(t, "no handshake", raw, short.HeaderTimeout)
	gone(t, "no request", p.conn(), short.IdleTimeout)

	header := p.conn()
	go drip(header, "GET / HTTP/1.1\r\nX-A: "+strings.Repeat("a", 1000))
	gone(t, "a header byte by byte", header, short.ReadTimeout)
	body := p.conn()
	go drip(body, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("a", 1000))
	gone(t, "a body byte by byte", body, short.ReadTimeout)

	reader := p.conn()
	fmt.Fprintf(reader, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	time.Sleep(short.WriteTimeout + 500*time.Millisecond) // without reading
	n, _ := io.Copy(io.Discard, reader)
	if n >= 64<<20 {
		t.Errorf("a client that does not read got all %d bytes", n)
	}
}

// drip writes text byte by byte until that fails.
func drip(c net.Conn, text string) {
	for i := range len(text) {
		if _, err := c.Write([]byte{text[i]}); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestConnectionsAreCountedByAddress(t *testing.T) {
	p := newPort(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }),
		api.Limits{Connections: 40, PerAddress: 20})
	var taken []net.Conn
	defer func() {
		for _, c := range taken {
			c.Close()
		}
	}()
	for range 60 {
		c, err := net.Dial("tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, c)
	}
	gone(t, "one connection too many", taken[59], 0)
	hello := func(from string) error {
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, Config: p.dial}
		c, err := d.Dial("tcp", p.address)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		answer, err := io.ReadAll(c)
		if !bytes.HasSuffix(answer, []byte("hello")) {
			return fmt.Errorf("answered %q, %v", answer, err)
		}
		return nil
	}
	if hello("127.0.0.1") == nil {
		t.Error("the address that took all it can get gets more")
	}
	for range 40 { // each gives its place back
		if err := hello("127.0.0.2"); err != nil {
			t.Fatalf("another address: %v", err)
		}
	}
	for _, c := range taken[:30] {
		c.Close()
	}
	deadline := time.Now().Add(5 * time.Second)
	for hello("127.0.0.1") != nil {
		if time.Now().After(deadline) {
			t.Fatal("places are not given back")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestServeEndsWithHungCalls(t *testing.T) {
	began := make(chan string, 2)
	released := make(chan struct{}, 2)
	p := newPort(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/upgrade" {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
		}
		began <- r.URL.Path
		<-r.Context().Done()
		time.Sleep(100 * time.Millisecond) // it has something to put away
		released <- struct{}{}
	}), short)
	for _, path := range []string{"/hung", "/upgrade"} {
		fmt.Fprintf(p.conn(), "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		<-began
	}
	at := time.Now()
	if err := p.end(); err != nil {
		t.Error(err)
	}
	if took := time.Since(at); took < short.Grace || took > 2*time.Second {
		t.Errorf("it ended after %s", took)
	}
	if len(released) != 2 {
		t.Errorf("%d of 2 calls had ended when Serve returned", len(released))
	}
}

func TestCallsUnderWayMayEnd(t *testing.T) {
	began := make(chan struct{})
	limits := short
	limits.Grace = 5 * time.Second
	p := newPort(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		select {
		case <-time.After(300 * time.Millisecond):
			io.WriteString(w, "done")
		case <-r.Context().Done():
		}
	}), limits)
	c := p.conn()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-began
	go p.end()
	if answer, _ := io.ReadAll(c); !bytes.HasSuffix(answer, []byte("done")) {
		t.Errorf("answered %q", answer)
	}
}

// secret is what must not leave.
const secret = "constraint failed: people.ssh_key 'AAAAC3'"

func TestInternalErrorsSayNothing(t *testing.T) {
	var log bytes.Buffer
	h := api.NewHandler(api.Config{
		Log: zerolog.New(&log),
		Identify: func(context.Context, tls.ConnectionState) (auth.Caller, error) {
			return auth.Caller{}, errors.New(secret)
		},
		DialSession: func(context.Context, auth.Caller, protocol.SessionID) (net.Conn, error) {
			return nil, errors.New(secret)
		},
	})
	p := newPort(t, h, short)
	for _, request := range []string{
		"POST " + whoami + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		"GET /v1/sessions/SES-00/ssh HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: databox-ssh\r\n\r\n",
	} {
		c := p.conn()
		io.WriteString(c, request)
		answer, _ := io.ReadAll(c)
		if !bytes.Contains(answer, []byte("internal error")) || bytes.Contains(answer, []byte("constraint")) {
			t.Errorf("answered %s", answer)
		}
	}
	if err := p.end(); err != nil { // so that the log is written
		t.Error(err)
	}
	if strings.Count(log.String(), "constraint failed") != 2 {
		t.Errorf("the log says %s", log.String())
	}
}

func TestNodesAreKnownByTheirTunnel(t *testing.T) {
	h := api.NewNodeHandler(api.NodeServices{
		Heartbeat: func(_ context.Context, n protocol.NodeID, _ *devicev1.HeartbeatRequest) (*devicev1.HeartbeatResponse, error) {
			return nil, protocol.Errorf(protocol.CodeConflict, "you are %s", n)
		},
	}, zerolog.Nop())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h(protocol.NodeID{Serial: "DBX0007", Node: 2})}
	go s.Serve(ln)
	defer s.Close()
	resp, err := http.Post("http://"+ln.Addr().String()+"/device.v1.ControlService/Heartbeat", "application/proto", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); !bytes.Contains(body, []byte("you are DBX0007/2")) {
		t.Errorf("answered %s", body)
	}
}

// pair is a TCP connection from both ends.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// spliced returns the far ends of two spliced connections.
func spliced(t *testing.T) (client, device *net.TCPConn, cancel func(), ended <-chan struct{}) {
	t.Helper()
	client, near := pair(t)
	device, far := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		api.Splice(ctx, near, far, near)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return client, device, cancel, done
}

func TestSpliceEndsBothEnds(t *testing.T) {
	for name, end := range map[string]func(client, device *net.TCPConn, cancel func()){
		"the client closes": func(c, _ *net.TCPConn, _ func()) { c.Close() },
		"the device closes": func(_, d *net.TCPConn, _ func()) { d.Close() },
		"the client resets": func(c, _ *net.TCPConn, _ func()) { c.SetLinger(0); c.Close() },
		"the device resets": func(_, d *net.TCPConn, _ func()) { d.SetLinger(0); d.Close() },
		"the server stops":  func(_, _ *net.TCPConn, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, device, cancel, ended := spliced(t)
			end(client, device, cancel)
			select {
			case <-ended:
			case <-time.After(8 * time.Second):
				t.Fatal("it goes on")
			}
			gone(t, "the client's end", client, 0)
			gone(t, "the device's end", device, 0)
		})
	}
}

func TestTheLastWordsArrive(t *testing.T) {
	client, near := pair(t)
	device, far := net.Pipe() // which takes nothing back when it is closed
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		api.Splice(t.Context(), near, far, near)
	}()
	last := bytes.Repeat([]byte("exit status 0 "), 100_000)
	go func() {
		device.Write(last)
		device.Close()
	}()
	time.Sleep(100 * time.Millisecond) // a client that is slow to read,
	fmt.Fprintf(client, "too late")    // and says what nobody reads any more
	time.Sleep(100 * time.Millisecond)
	got, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(got, last) {
		t.Errorf("%d of %d bytes arrived, %v", len(got), len(last), err)
	}
	client.Close()
	<-ended
}
