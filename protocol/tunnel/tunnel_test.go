package tunnel

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRequestsGoBothWays(t *testing.T) {
	s := startServer(t)
	c := startClient(t, s.address, node1)
	startClient(t, s.address, node2)
	mustGet(t, c.HTTP(), "/up", "server to DBX0001/1 /up")
	mustGet(t, s.peer(t, node1).Client(), "/down", "device DBX0001/1 /down")
	mustGet(t, s.peer(t, node2).Client(), "/down", "device DBX0002/1 /down")
	p := s.peer(t, node1)
	if p.ID() != node1 || p.Fingerprint() != "fingerprint of DBX0001/1" || time.Since(p.Since()) > time.Minute || p.RemoteAddr() == nil {
		t.Errorf("the peer is %v %q since %v from %v", p.ID(), p.Fingerprint(), p.Since(), p.RemoteAddr())
	}
	if n := len(s.Peers()); n != 2 {
		t.Errorf("got %d peers, want 2", n)
	}
}

func TestNobodyElseGetsIn(t *testing.T) {
	other := newAuthority()
	tests := []struct {
		name   string
		config func() *tls.Config
		want   string // in what the server is told
	}{
		{"control", func() *tls.Config { return testAuthority().deviceTLS(node1) }, ""},
		{"no certificate", func() *tls.Config { c := testAuthority().deviceTLS(node1); c.Certificates = nil; return c }, "didn't provide a certificate"},
		{"unknown root", func() *tls.Config { c := other.deviceTLS(node1); c.RootCAs = testAuthority().pool(); return c }, "unknown authority"},
		{"no node in the certificate", func() *tls.Config {
			c := testAuthority().deviceTLS(node1)
			c.Certificates = []tls.Certificate{testAuthority().leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })}
			return c
		}, "has no name"},
		{"TLS 1.2", func() *tls.Config {
			c := testAuthority().deviceTLS(node1)
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}, "version"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startServer(t)
			startClient(t, s.address, node1, func(c *ClientConfig) { c.TLS = tt.config() })
			if tt.want == "" {
				s.event(t, "connected DBX0001/1")
				return
			}
			if err := within(t, patience, s.refused); !strings.Contains(err.Error(), tt.want) {
				t.Errorf("refused for %q, want %q", err, tt.want)
			}
		})
	}
}

func TestOtherApplicationProtocolsAreRefused(t *testing.T) {
	s := startServer(t)
	for _, protos := range [][]string{{"h2"}, nil} {
		config := testAuthority().deviceTLS(node1)
		config.NextProtos = protos
		if conn, err := tls.Dial("tcp", s.address, config); err == nil {
			conn.SetReadDeadline(time.Now().Add(patience))
			if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%q: the server keeps the connection: %v", protos, err)
			}
			conn.Close()
		}
		within(t, patience, s.refused)
	}
}

func TestReconnectsAfterRestart(t *testing.T) {
	s := startServer(t)
	c := startClient(t, s.address, node1)
	mustGet(t, c.HTTP(), "/a", "server to DBX0001/1 /a")
	s.stop()
	for range 3 {
		within(t, patience, c.ended)
	}
	ln, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	s = startServerOn(t, ln)
	mustGet(t, c.HTTP(), "/b", "server to DBX0001/1 /b") // waits for the connection
	mustGet(t, s.peer(t, node1).Client(), "/c", "device DBX0001/1 /c")
}

func TestRequestWaitsForASessionUntilItsContextEnds(t *testing.T) {
	c := startClient(t, "127.0.0.1:1", node1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := get(ctx, c.HTTP(), "/"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestBackoff(t *testing.T) {
	const low, high = 100 * time.Millisecond, 10 * time.Second
	for attempt, longest := range map[int]time.Duration{0: low, 1: 2 * low, 3: 8 * low, 7: high, 40: high, 100_000: high} {
		var least, most, sum time.Duration = high, 0, 0
		const n = 2000
		for range n {
			d := backoff(attempt, low, high)
			least, most, sum = min(least, d), max(most, d), sum+d
		}
		if most > longest || least > longest/20 || most < longest*19/20 {
			t.Errorf("attempt %d: waits from %v to %v, want them spread over all of 0 to %v", attempt, least, most, longest)
		}
		if mean := sum / n; mean < longest*2/5 || mean > longest*3/5 {
			t.Errorf("attempt %d: mean wait %v, want about half of %v", attempt, mean, longest)
		}
	}
}

func TestBackoffGrowsWhileSessionsAreShort(t *testing.T) {
	var waits []time.Duration
	enough := make(chan struct{})
	s := startServer(t, func(c *ServerConfig) { c.Connected = func(p *Peer) { go p.Close("not now") } })
	startClient(t, s.address, node1, func(c *ClientConfig) {
		c.BackoffMin, c.BackoffMax = time.Millisecond, 10*time.Second
		c.Disconnected = func(_ error, retry time.Duration) {
			if waits = append(waits, retry); len(waits) == 8 {
				close(enough)
			}
		}
	})
	within(t, patience, enough)
	for i, w := range waits {
		if w > time.Millisecond<<i {
			t.Errorf("wait %d was %v, want at most %v", i, w, time.Millisecond<<i)
		}
	}
}

func TestNewerConnectionReplacesTheOlder(t *testing.T) {
	s := startServer(t, func(c *ServerConfig) {
		told := c.Disconnected
		c.Disconnected = func(p *Peer, err error) { // a slow hook is still called before the next
			time.Sleep(100 * time.Millisecond)
			told(p, err)
		}
	})
	first := startClient(t, s.address, node1, func(c *ClientConfig) { c.BackoffMin, c.BackoffMax = time.Hour, time.Hour })
	s.event(t, "connected DBX0001/1")
	old := s.peer(t, node1)
	startClient(t, s.address, node1)
	s.event(t, "disconnected DBX0001/1: "+ErrReplaced.Error())
	s.event(t, "connected DBX0001/1")
	within(t, patience, old.Done())
	within(t, patience, first.ended)
	if p := s.peer(t, node1); p == old {
		t.Error("the old connection is still the node's")
	}
	mustGet(t, s.peer(t, node1).Client(), "/", "device DBX0001/1 /")
	if _, err := get(t.Context(), old.Client(), "/"); !errors.Is(err, ErrReplaced) {
		t.Errorf("a call on the old connection: got %v", err)
	}
}

func TestCloseAndDisconnect(t *testing.T) {
	s := startServer(t)
	c := startClient(t, s.address, node1)
	s.event(t, "connected")
	s.peer(t, node1).Close("revoked")
	s.event(t, "disconnected DBX0001/1: revoked")
	s.event(t, "connected")
	if err := c.DialBulk(t.Context()); err != nil {
		t.Fatal(err)
	}
	bulk, err := s.Bulk(t.Context(), node1)
	if err != nil {
		t.Fatal(err)
	}
	s.Disconnect(node1, "decommissioned")
	s.event(t, "disconnected DBX0001/1: decommissioned")
	within(t, patience, bulk.Done())
	s.Disconnect(node2, "never seen")
}

func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := AcceptUpgrade(w, r)
	if err != nil {
		return
	}
	defer conn.Close()
	io.Copy(conn, conn)
}

func TestUpgradeCarries64MiBOverBulk(t *testing.T) {
	s := startServer(t)
	c := startClient(t, s.address, node1, withDeviceHandler(echo))
	s.event(t, "connected")
	if err := c.DialBulk(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := s.Bulk(t.Context(), node1)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := p.Upgrade(t.Context(), "/ssh?x=1", http.Header{"X-Session": {"SES-1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 64 << 20
	sent, got := sha256.New(), sha256.New()
	failed := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.MultiWriter(sent, conn), rand.Reader, size)
		failed <- err
	}()
	if _, err := io.CopyN(got, conn, size); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if string(sent.Sum(nil)) != string(got.Sum(nil)) {
		t.Error("the bytes that came back are not those sent")
	}
}

func TestUpgradeSendsEarlyBytes(t *testing.T) {
	s := startServer(t)
	startClient(t, s.address, node1, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		conn, err := AcceptUpgrade(w, r)
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "hello ") // in one go with the answer, or not
		io.WriteString(conn, "there")
	}))
	conn, err := s.peer(t, node1).Upgrade(t.Context(), "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello there" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestUpgradeRefused(t *testing.T) {
	s := startServer(t)
	startClient(t, s.address, node1, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/busy":
			http.Error(w, "another session is open", http.StatusConflict)
		case "/mute":
			<-r.Context().Done()
		case "/stream":
			echo(w, r)
		}
	}))
	p := s.peer(t, node1)
	_, err := p.Upgrade(t.Context(), "/busy", nil)
	if e, ok := errors.AsType[*UpgradeError](err); !ok || e.StatusCode != http.StatusConflict || e.Message != "another session is open" {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Upgrade(ctx, "/mute", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	resp, err := p.Client().Get(BaseURL + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("a plain request for a stream: got %s", resp.Status)
	}
}

func TestBulkConnection(t *testing.T) {
	s := startServer(t)
	c := startClient(t, s.address, node1, withDeviceHandler(echo))
	s.event(t, "connected")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Bulk(ctx, node1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("before the device dialled: got %v", err)
	}
	arrived := make(chan *Peer, 1)
	go func() {
		p, _ := s.Bulk(context.Background(), node1)
		arrived <- p
	}()
	for range 3 { // the later ones find the first
		if err := c.DialBulk(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p := within(t, patience, arrived)
	conn, err := p.Upgrade(t.Context(), "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * relaxed().BulkIdle / 2) // a silent stream keeps it
	fmt.Fprint(conn, "x")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatalf("a connection with a stream on it was dropped: %v", err)
	}
	conn.Close()
	within(t, patience, p.Done()) // idle now
	if err := c.DialBulk(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Bulk(t.Context(), node1); err != nil || again == p {
		t.Errorf("got %v, %v, want another connection", again, err)
	}
}

func TestBulkNeedsARunningClient(t *testing.T) {
	s := startServer(t)
	c := startClient(t, s.address, node1)
	c.stop()
	if err := c.DialBulk(t.Context()); err == nil {
		t.Error("an ended client dialled")
	}
}

func TestBulkDoesNotDelayControl(t *testing.T) {
	s := startServer(t)
	c := startClient(t, s.address, node1, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/control" {
			return
		}
		conn, err := AcceptUpgrade(w, r)
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(io.Discard, conn)
	}))
	s.event(t, "connected")
	if err := c.DialBulk(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := s.Bulk(t.Context(), node1)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := p.Upgrade(t.Context(), "/bulk", nil)
	if err != nil {
		t.Fatal(err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(conn, zeros{})
	}()
	for range 20 {
		began := time.Now()
		mustGet(t, s.peer(t, node1).Client(), "/control", "")
		if took := time.Since(began); took > soon {
			t.Errorf("a control request took %v", took)
		}
	}
	conn.Close()
	within(t, patience, copied)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestServerStreamingAndCancellation(t *testing.T) {
	cancelled := make(chan struct{})
	s := startServer(t)
	startClient(t, s.address, node1, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // net/http notices a caller that left only then
		for i := 0; r.Context().Err() == nil; i++ {
			fmt.Fprintln(w, i)
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Millisecond)
		}
		close(cancelled)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, BaseURL, strings.NewReader("body"))
	resp, err := s.peer(t, node1).Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	cancel()
	within(t, patience, cancelled)
}

func TestLongAnswersOutliveTheBodyTimeout(t *testing.T) {
	limits := relaxed()
	limits.BodyTimeout = 500 * time.Millisecond
	s := startServer(t)
	startClient(t, s.address, node1, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-time.After(2 * limits.BodyTimeout):
			io.WriteString(w, "done")
		}
	}), func(c *ClientConfig) { c.Limits = limits })
	resp, err := s.peer(t, node1).Client().Post(BaseURL, "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "done" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestHandlerPanicCostsItsRequestOnly(t *testing.T) {
	s := startServer(t)
	startClient(t, s.address, node1, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("a bug")
		}
	}))
	if _, err := get(t.Context(), s.peer(t, node1).Client(), "/panic"); err == nil {
		t.Error("no error")
	}
	mustGet(t, s.peer(t, node1).Client(), "/", "")
}

// tired is a listener that fails a few times before it works.
type tired struct {
	net.Listener
	failures []error
}

func (l *tired) Accept() (net.Conn, error) {
	if len(l.failures) > 0 {
		err := l.failures[0]
		l.failures = l.failures[1:]
		return nil, err
	}
	return l.Listener.Accept()
}

func TestAcceptingGoesOnAfterTemporaryFailures(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := startServerOn(t, &tired{ln, []error{&net.OpError{Op: "accept", Err: syscall.EMFILE}, syscall.ECONNABORTED}})
	startClient(t, s.address, node1)
	s.event(t, "connected")
}

func TestServeEndsWhenTheListenerBreaks(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerConfig{TLS: testAuthority().serverTLS(), Identify: identify})
	broken := errors.New("broken")
	if err := s.Serve(t.Context(), &tired{ln, []error{broken}}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestTimeoutsOfTheKernel(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := setTimeouts(conn, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	raw, _ := conn.(*net.TCPConn).SyscallConn()
	raw.Control(func(fd uintptr) {
		for option, want := range map[int]int{unix.TCP_USER_TIMEOUT: 20_000, unix.TCP_KEEPIDLE: 15, unix.TCP_KEEPINTVL: 5} {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil || got != want {
				t.Errorf("option %d is %d, %v; want %d", option, got, err, want)
			}
		}
	})
}
