package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// frame makes a yamux frame header.
func frame(kind byte, flags uint16, id, length uint32) []byte {
	h := make([]byte, headerSize)
	h[1] = kind
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint32(h[4:], id)
	binary.BigEndian.PutUint32(h[8:], length)
	return h
}

const (
	typeWindow = 1
	flagSYN    = 1
	flagACK    = 2
	flagFIN    = 4
)

// pair returns two sessions that talk to each other over loopback TCP, the
// server's end first. What the server's end accepts goes to accepted.
func pair(t testing.TB, c class, limits Limits) (server, device *session, accepted chan *stream) {
	t.Helper()
	limits = limits.withDefaults()
	a, b := tcpPair(t)
	server = mustSession(t, a, c, false, &limits)
	device = mustSession(t, b, c, true, &limits)
	accepted = make(chan *stream, limits.Streams)
	run(t, server, func(st *stream) { accepted <- st })
	run(t, device, func(st *stream) { st.Close() })
	return server, device, accepted
}

func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if b, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if a, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func mustSession(t testing.TB, conn net.Conn, c class, device bool, limits *Limits) *session {
	t.Helper()
	s, err := newSession(conn, c, device, limits, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run serves s until the test ends.
func run(t testing.TB, s *session, deliver func(*stream)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serve(deliver)
	}()
	t.Cleanup(func() {
		s.fail(ErrEnded)
		<-done
	})
}

func mustOpen(t testing.TB, s *session) *stream {
	t.Helper()
	st, err := s.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// streams returns both ends of one stream.
func streams(t testing.TB, limits Limits) (near, far *stream) {
	t.Helper()
	_, device, accepted := pair(t, control, limits)
	near = mustOpen(t, device)
	if _, err := near.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	far = within(t, patience, accepted)
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// Hazard: a slow write returns a timeout with the frame still queued and the
// session open.
func TestWriteThatThePeerDoesNotTakeEndsTheSession(t *testing.T) {
	limits := quick().withDefaults()
	a, b := tcpPair(t)
	device := mustSession(t, b, bulk, true, &limits)
	run(t, device, func(st *stream) { st.Close() })
	a.(*net.TCPConn).SetReadBuffer(4 << 10)
	st := mustOpen(t, device)
	a.Write(frame(typeWindow, flagACK, 1, 15<<20)) // the stream's window is open, but nobody reads the connection
	began := time.Now()
	_, err := io.Copy(st, zeros{})
	if err == nil || device.reason() == nil {
		t.Fatalf("the write ended with %v, the session with %v", err, device.reason())
	}
	if took := time.Since(began); took > soon {
		t.Errorf("it took %v", took)
	}
	if _, err := device.open(t.Context()); err == nil {
		t.Error("the session still opens streams")
	}
}

// Hazard: a write to a peer that closed its stream, or does not read it, blocks
// for minutes.
func TestWriteToAClosedOrUnreadStreamEnds(t *testing.T) {
	for _, closed := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed=%v", closed), func(t *testing.T) {
			near, far := streams(t, quick())
			if closed {
				far.Close()
			}
			began := time.Now()
			_, err := io.Copy(near, zeros{})
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took > soon {
				t.Errorf("it took %v", took)
			}
			if err := near.session.reason(); err != nil {
				t.Errorf("the session ended: %v", err)
			}
		})
	}
}

// A person holds the output of a terminal: upgraded streams wait longer, at
// both ends.
func TestUpgradedStreamWaitsForItsReader(t *testing.T) {
	limits := relaxed()
	limits.StallTimeout = 200 * time.Millisecond
	const size = 1 << 20 // more than the window
	written := make(chan error, 2)
	s := startServer(t, withLimits(limits))
	startClient(t, s.address, node1, func(c *ClientConfig) { c.Limits = limits }, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		conn, err := AcceptUpgrade(w, r)
		if err != nil {
			return
		}
		defer conn.Close()
		_, err = io.CopyN(conn, zeros{}, size)
		written <- err
		io.CopyN(io.Discard, conn, size)
	}))
	conn, err := s.peer(t, node1).Upgrade(t.Context(), "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, err := io.CopyN(conn, zeros{}, size)
		written <- err
	}()
	time.Sleep(3 * limits.StallTimeout)
	if _, err := io.CopyN(io.Discard, conn, size); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(within(t, patience, written), within(t, patience, written)); err != nil {
		t.Fatal(err)
	}
}

// Hazard: Open takes no context and blocks, and succeeds beyond the peer's
// backlog.
func TestOpenEndsWithItsContext(t *testing.T) {
	limits := quick()
	limits.Streams = 4
	limits = limits.withDefaults()
	_, b := tcpPair(t) // nobody answers
	device := mustSession(t, b, control, true, &limits)
	run(t, device, func(st *stream) { st.Close() })
	before := runtime.NumGoroutine()
	for i := range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		st, err := device.open(ctx)
		cancel()
		switch {
		case i < limits.Streams && err != nil:
			t.Errorf("stream %d: %v", i, err)
		case i >= limits.Streams && !errors.Is(err, context.DeadlineExceeded):
			t.Errorf("stream %d: got %v, %v", i, st, err)
		}
	}
	if n := runtime.NumGoroutine(); n > before+limits.Streams {
		t.Errorf("%d goroutines where there were %d", n, before)
	}
}

// The same where yamux itself is what blocks: slots are free again, but the
// peer has not acknowledged the streams that are closed by now.
func TestOpenEndsWithItsContextWithinYamux(t *testing.T) {
	limits := quick()
	limits.Streams = 4
	limits = limits.withDefaults()
	_, b := tcpPair(t)
	device := mustSession(t, b, control, true, &limits)
	run(t, device, func(st *stream) { st.Close() })
	for range limits.Streams {
		mustOpen(t, device).Close()
	}
	before := runtime.NumGoroutine()
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, err := device.open(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		cancel()
	}
	if n := runtime.NumGoroutine(); n > before+limits.Streams {
		t.Errorf("%d goroutines where there were %d", n, before)
	}
}

// Hazard: the in-flight table leaks an entry for each stream that the peer
// resets.
func TestPeerThatResetsEveryStreamIsDropped(t *testing.T) {
	limits := quick().withDefaults()
	a, b := tcpPair(t)
	device := mustSession(t, b, control, true, &limits)
	run(t, device, func(st *stream) { st.Close() })
	go func() { // resets whatever is opened
		h := make([]byte, headerSize)
		for {
			if _, err := io.ReadFull(a, h); err != nil {
				return
			}
			if binary.BigEndian.Uint16(h[2:])&flagSYN != 0 {
				a.Write(frame(typeWindow, flagRST, binary.BigEndian.Uint32(h[4:]), 0))
			}
		}
	}()
	opened := 0
	for ; opened < 2*maxResets; opened++ {
		st, err := device.open(t.Context())
		if err != nil {
			break
		}
		if _, err := st.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && device.reason() == nil {
			t.Fatalf("got %v, want a reset", err)
		}
		st.Close()
	}
	if opened > maxResets+1 || !errors.Is(device.reason(), ErrFlood) {
		t.Errorf("after %d resets the session ended with %v", opened, device.reason())
	}
}

// Hazard: a stream accepted late kills the session.
func TestStreamAcceptedLateWorks(t *testing.T) {
	limits := relaxed()
	limits.Streams = 1
	s := startServer(t)
	release := make(chan struct{})
	startClient(t, s.address, node1, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-release
		}
	}), func(c *ClientConfig) { c.Limits = limits })
	p := s.peer(t, node1)
	slow := make(chan error, 1)
	go func() { _, err := get(context.Background(), p.Client(), "/slow"); slow <- err }()
	time.Sleep(50 * time.Millisecond)
	waiting := make(chan error, 1)
	go func() { _, err := get(context.Background(), p.Client(), "/"); waiting <- err }()
	time.Sleep(200 * time.Millisecond)
	close(release)
	if err := errors.Join(within(t, patience, slow), within(t, patience, waiting)); err != nil {
		t.Error(err)
	}
	if p.session.reason() != nil {
		t.Errorf("the session ended: %v", p.session.reason())
	}
	if c := p.session; c.mux.IsClosed() {
		t.Error("closed")
	}
}

// Hazard: a ping flood from a peer that never reads grows goroutines without
// bound.
func TestPingFloodIsDropped(t *testing.T) {
	limits := quick().withDefaults()
	a, b := tcpPair(t)
	b.(*net.TCPConn).SetReadBuffer(4 << 10)
	server := mustSession(t, a, control, false, &limits)
	before := runtime.NumGoroutine()
	ended := make(chan error, 1)
	go func() { ended <- server.serve(func(st *stream) { st.Close() }) }()
	b.Write(bytes.Repeat(frame(typePing, flagSYN, 0, 7), 100_000))
	if err := within(t, patience, ended); !errors.Is(err, ErrFlood) {
		t.Errorf("got %v", err)
	}
	if n := runtime.NumGoroutine(); n > before+maxPings+8 {
		t.Errorf("%d goroutines where there were %d", n, before)
	}
}

// Hazard: deadline errors are not os.ErrDeadlineExceeded. And what else a
// net.Conn promises.
func TestStreamIsANetConn(t *testing.T) {
	limits := quick()
	limits.StreamIdle, limits.StallTimeout = time.Minute, time.Minute
	buf := make([]byte, 10)
	later := func() time.Time { return time.Now().Add(50 * time.Millisecond) }
	fill := func(st *stream) { // no window is left
		st.SetWriteDeadline(later())
		io.Copy(st, zeros{})
		st.SetWriteDeadline(time.Time{})
	}
	tests := []struct {
		name string
		do   func(near, far *stream) error
		want error
	}{
		{"read deadline", func(n, f *stream) error { n.SetReadDeadline(later()); _, err := n.Read(buf); return err }, os.ErrDeadlineExceeded},
		{"read deadline moved earlier", func(n, f *stream) error {
			time.AfterFunc(20*time.Millisecond, func() { n.SetReadDeadline(time.Now()) })
			_, err := n.Read(buf)
			return err
		}, os.ErrDeadlineExceeded},
		{"read deadline moved later", func(n, f *stream) error {
			n.SetReadDeadline(later())
			time.AfterFunc(10*time.Millisecond, func() { n.SetReadDeadline(time.Now().Add(time.Minute)) })
			time.AfterFunc(100*time.Millisecond, func() { f.Write(buf) })
			_, err := n.Read(buf)
			return err
		}, nil},
		{"past deadline though there is data", func(n, f *stream) error {
			f.Write(buf)
			time.Sleep(20 * time.Millisecond)
			n.SetDeadline(past)
			_, err := n.Read(buf)
			return err
		}, os.ErrDeadlineExceeded},
		{"read again after a deadline", func(n, f *stream) error {
			n.SetReadDeadline(past)
			n.Read(buf)
			n.SetReadDeadline(time.Time{})
			f.Write(buf)
			_, err := n.Read(buf)
			return err
		}, nil},
		{"write deadline", func(n, f *stream) error { n.SetWriteDeadline(later()); _, err := io.Copy(n, zeros{}); return err }, os.ErrDeadlineExceeded},
		{"past write deadline", func(n, f *stream) error { n.SetDeadline(past); _, err := n.Write(buf); return err }, os.ErrDeadlineExceeded},
		{"close ends a read", func(n, f *stream) error {
			time.AfterFunc(20*time.Millisecond, func() { n.Close() })
			_, err := n.Read(buf)
			return err
		}, net.ErrClosed},
		{"close ends a write", func(n, f *stream) error {
			fill(n)
			time.AfterFunc(20*time.Millisecond, func() { n.Close() })
			_, err := n.Write(buf)
			return err
		}, net.ErrClosed},
		{"read after close", func(n, f *stream) error { n.Close(); _, err := n.Read(buf); return err }, net.ErrClosed},
		{"write after close", func(n, f *stream) error { n.Close(); _, err := n.Write(buf); return err }, net.ErrClosed},
		{"deadline after close", func(n, f *stream) error { n.Close(); return n.SetDeadline(time.Time{}) }, net.ErrClosed},
		{"close twice", func(n, f *stream) error { n.Close(); return n.Close() }, nil},
		{"the other end closes", func(n, f *stream) error { f.Close(); _, err := n.Read(buf); return err }, io.EOF},
		{"what was sent before a close arrives", func(n, f *stream) error {
			f.Write(make([]byte, 100_000))
			f.Close()
			if got, err := io.ReadAll(n); err != nil || len(got) != 100_000 {
				return fmt.Errorf("%d bytes, %v", len(got), err)
			}
			return nil
		}, nil},
		{"the session ends: no clean end", func(n, f *stream) error {
			time.AfterFunc(20*time.Millisecond, func() { n.session.fail(ErrReplaced) })
			_, err := n.Read(buf)
			return err
		}, ErrReplaced},
		{"the connection breaks: no clean end", func(n, f *stream) error {
			time.AfterFunc(20*time.Millisecond, func() { f.session.fail(ErrEnded) })
			if _, err := n.Read(buf); err == io.EOF {
				return err
			}
			return nil
		}, nil},
		{"empty read", func(n, f *stream) error { _, err := n.Read(nil); return err }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			near, far := streams(t, limits)
			result := make(chan error, 1)
			go func() { result <- tt.do(near, far) }()
			err := within(t, patience, result)
			if tt.want == nil && err != nil || !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if e, ok := errors.AsType[net.Error](err); tt.want == os.ErrDeadlineExceeded && (!ok || !e.Timeout()) {
				t.Errorf("%v is no timeout", err)
			}
		})
	}
}

func TestSilentStreamEndsButNotWhileBytesGoEitherWay(t *testing.T) {
	limits := relaxed()
	limits.StreamIdle = time.Second
	near, far := streams(t, limits)
	began := time.Now()
	go func() {
		for range 6 {
			time.Sleep(250 * time.Millisecond)
			near.Write([]byte("x"))
		}
	}()
	go io.Copy(io.Discard, far)
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took < 2*time.Second || took > soon {
		t.Errorf("the read ended after %v, want a second after the last of 6 writes", took)
	}
}

// recorder notes the sizes of frames on their way out.
type recorder struct {
	net.Conn
	largest atomic.Int64
}

func (r *recorder) Write(p []byte) (int, error) {
	r.largest.Store(max(r.largest.Load(), int64(len(p))))
	return r.Conn.Write(p)
}

// Hazard: one large write leaves hundreds of kB held by an idle session.
func TestLargeWritesLeaveInSmallFrames(t *testing.T) {
	for _, c := range []class{control, bulk} {
		limits := quick().withDefaults()
		a, b := tcpPair(t)
		rec := &recorder{Conn: b}
		device := mustSession(t, rec, c, true, &limits)
		server := mustSession(t, a, c, false, &limits)
		run(t, device, func(st *stream) { st.Close() })
		run(t, server, func(st *stream) { io.Copy(io.Discard, st); st.Close() })
		st := mustOpen(t, device)
		if _, err := st.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if got, want := rec.largest.Load(), int64(c.chunk+headerSize); got != want {
			t.Errorf("%s: the largest write has %d bytes, want %d", c.alpn, got, want)
		}
	}
}

// Limits: concurrent streams of a peer.
func TestStreamsOfAPeerAreBounded(t *testing.T) {
	limits := relaxed()
	limits.Streams = 4
	var now, most atomic.Int32
	s := startServer(t, withLimits(limits), withHandler(func(w http.ResponseWriter, r *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		time.Sleep(100 * time.Millisecond)
	}))
	conn := dialRaw(t, s, node1, ALPNControl)
	for i := range uint32(20) {
		req := "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
		conn.Write(frame(typeData, flagSYN, 2*i+1, uint32(len(req))))
		io.WriteString(conn, req)
	}
	resets, answers := 0, 0
	h := make([]byte, headerSize)
	conn.SetReadDeadline(time.Now().Add(patience))
	for resets+answers < 20 {
		if _, err := io.ReadFull(conn, h); err != nil {
			t.Fatal(err)
		}
		if flags := binary.BigEndian.Uint16(h[2:]); flags&flagRST != 0 {
			resets++
		} else if flags&flagFIN != 0 {
			answers++
		}
		if h[1] == typeData {
			io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(h[8:])))
		}
	}
	if most.Load() > 4 || answers < 4 || resets < 1 {
		t.Errorf("%d were answered, %d at once, and %d reset", answers, most.Load(), resets)
	}
	startClient(t, s.address, node2)
	s.peer(t, node2)
}

// Limits: streams that a peer never closes.
func TestStreamsLeftHalfOpenEndTheConnection(t *testing.T) {
	limits := quick()
	limits.Streams, limits.HeaderTimeout = 4, 20*time.Millisecond
	s := startServer(t, withLimits(limits))
	conn := dialRaw(t, s, node1, ALPNControl)
	go func() {
		for i := uint32(1); ; i += 2 {
			if _, err := conn.Write(frame(typeWindow, flagSYN, i, 0)); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	go io.Copy(io.Discard, conn)
	s.event(t, "connected")
	s.event(t, "disconnected DBX0001/1: "+ErrFlood.Error())
}

// Limits: time for a handshake. A silent connection goes, and meanwhile it costs
// others nothing.
func TestSlowHandshakes(t *testing.T) {
	limits := quick()
	limits.Handshakes, limits.Waiting = 1, 8
	s := startServer(t, withLimits(limits))
	silent, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	startClient(t, s.address, node1)
	s.event(t, "connected") // though the only handshake slot could be taken
	began := time.Now()
	silent.SetReadDeadline(time.Now().Add(patience))
	if _, err := silent.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a silent connection is kept")
	}
	if took := time.Since(began); took > soon {
		t.Errorf("it was kept for %v", took)
	}
	within(t, patience, s.refused)
}

// A peer that begins a handshake and stalls in it holds no slot either.
func TestStalledHandshakesHoldNoSlot(t *testing.T) {
	limits := quick()
	limits.Handshakes, limits.HandshakeTimeout = 1, time.Minute
	s := startServer(t, withLimits(limits))
	config := testAuthority().deviceTLS(node2)
	config.NextProtos = []string{ALPNControl}
	var stalled sync.WaitGroup
	defer stalled.Wait()
	began, end := make(chan struct{}), make(chan struct{})
	defer close(end)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		began <- struct{}{}
		<-end
		return nil, errors.New("never")
	}
	for range 5 {
		stalled.Go(func() { tls.Dial("tcp", s.address, config) })
	}
	for range 5 { // more than there are slots
		within(t, patience, began)
	}
	startClient(t, s.address, node1, func(c *ClientConfig) { c.Limits.HandshakeTimeout = time.Minute })
	s.event(t, "connected")
}

// Limits: unnamed connections. The oldest goes first, so newcomers get in.
func TestSilentConnectionsDoNotFillTheServer(t *testing.T) {
	limits := quick()
	limits.Waiting, limits.HandshakeTimeout = 8, time.Minute
	s := startServer(t, withLimits(limits))
	var conns []net.Conn
	for range 50 {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	startClient(t, s.address, node1)
	s.event(t, "connected")
	conns[0].SetReadDeadline(time.Now().Add(patience))
	if _, err := conns[0].Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the oldest connection is kept")
	}
}

// Limits: size and time of headers and bodies, of requests and of responses.
func TestRequestLimits(t *testing.T) {
	limits := relaxed()
	limits.HeaderBytes, limits.BodyBytes = 8<<10, 100_000
	s := startServer(t, withLimits(limits), withHandler(func(w http.ResponseWriter, r *http.Request) {
		if n, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, fmt.Sprintf("after %d bytes: %v", n, err), http.StatusRequestEntityTooLarge)
		}
	}))
	c := startClient(t, s.address, node1, func(c *ClientConfig) { c.Limits = limits })
	s.event(t, "connected")
	tests := []struct {
		name   string
		body   int
		header int
		status int
	}{
		{"control", 100_000, 1000, http.StatusOK},
		{"body", 100_001, 0, http.StatusRequestEntityTooLarge},
		{"huge body", 1_000_000, 0, http.StatusRequestEntityTooLarge},
		{"header", 0, 20_000, http.StatusRequestHeaderFieldsTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, BaseURL, bytes.NewReader(make([]byte, tt.body)))
			req.Header.Set("X", strings.Repeat("x", tt.header))
			resp, err := c.HTTP().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != tt.status {
				t.Errorf("got %s, want %d", resp.Status, tt.status)
			}
		})
	}
}

func TestResponseLimits(t *testing.T) {
	limits := relaxed()
	limits.HeaderBytes, limits.BodyBytes = 8<<10, 100_000
	s := startServer(t, withLimits(limits))
	startClient(t, s.address, node1, withDeviceHandler(func(w http.ResponseWriter, r *http.Request) {
		var n int
		fmt.Sscanf(r.URL.Path, "/%d", &n)
		if r.URL.RawQuery == "header" {
			w.Header().Set("X", strings.Repeat("x", n))
			return
		}
		w.Write(make([]byte, n))
	}))
	for path, ok := range map[string]bool{
		"/100000": true, "/100001": false, "/2000000": false, "/1000?header": true, "/20000?header": false,
	} {
		body, err := get(t.Context(), s.peer(t, node1).Client(), path)
		if (err == nil) != ok || ok && !strings.Contains(path, "header") && len(body) != 100_000 {
			t.Errorf("%s: got %d bytes, %v", path, len(body), err)
		}
	}
}

// slowly sends a request a byte at a time and returns when the server ends it.
func slowly(t *testing.T, c *session, text string) time.Duration {
	t.Helper()
	st := mustOpen(t, c)
	defer st.Close()
	began := time.Now()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(io.Discard, st)
	}()
	for i := 0; ; i++ {
		select {
		case <-ended:
			return time.Since(began)
		case <-time.After(20 * time.Millisecond):
			st.Write([]byte{text[min(i, len(text)-1)]})
		}
	}
}

func TestSlowRequestsEnd(t *testing.T) {
	s := startServer(t, withLimits(quick()), withHandler(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	conn := dialRaw(t, s, node1, ALPNControl)
	limits := quick().withDefaults()
	device := mustSession(t, conn, control, true, &limits)
	run(t, device, func(st *stream) { st.Close() })
	if took := slowly(t, device, "GET / HTTP/1.1\r\nX: xxx"); took > soon {
		t.Errorf("a slow header was awaited for %v", took)
	}
	st := mustOpen(t, device)
	defer st.Close()
	began := time.Now()
	io.WriteString(st, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
	go func() {
		for range 1000 {
			if _, err := st.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	io.Copy(io.Discard, st)
	if took := time.Since(began); took > soon {
		t.Errorf("a slow body was awaited for %v", took)
	}
}

// Malformed and flooding peers: each is dropped, for the reason given.
func TestPeersThatBreakTheRulesAreDropped(t *testing.T) {
	tests := []struct {
		name string
		send func(io.Writer) // what follows the handshake
		want string
	}{
		{"garbage", func(w io.Writer) { w.Write(bytes.Repeat([]byte("GARBAGE!"), 1000)) }, "disconnected DBX0001/1: "},
		{"unknown type", func(w io.Writer) { w.Write(frame(9, 0, 0, 0)) }, "disconnected DBX0001/1: "},
		{"frame above the window", func(w io.Writer) { w.Write(frame(typeData, flagSYN, 1, 1<<31)) }, "disconnected DBX0001/1: " + ErrFlood.Error()},
		{"half a header", func(w io.Writer) { w.Write(frame(typeData, flagSYN, 1, 10)[:5]) }, "disconnected DBX0001/1: "},
		{"half a frame", func(w io.Writer) { w.Write(frame(typeData, flagSYN, 1, 10)) }, "disconnected DBX0001/1: "},
		{"duplicate stream", func(w io.Writer) {
			w.Write(frame(typeWindow, flagSYN, 1, 0))
			w.Write(frame(typeWindow, flagSYN, 1, 0))
		}, "disconnected DBX0001/1: "},
		{"pings", func(w io.Writer) { w.Write(bytes.Repeat(frame(typePing, flagSYN, 0, 1), maxPings+1)) }, "disconnected DBX0001/1: " + ErrFlood.Error()},
		{"resets", func(w io.Writer) { w.Write(bytes.Repeat(frame(typeWindow, flagRST, 1, 0), maxResets+1)) }, "disconnected DBX0001/1: " + ErrFlood.Error()},
		{"small frames", func(w io.Writer) { w.Write(bytes.Repeat(frame(typeWindow, 0, 1, 0), 2*maxSmallFrames)) }, "disconnected DBX0001/1: " + ErrFlood.Error()},
		{"opens", func(w io.Writer) {
			for i := uint32(1); i < 200_000; i += 2 {
				if _, err := w.Write(frame(typeWindow, flagSYN, i, 0)); err != nil {
					return
				}
			}
		}, "disconnected DBX0001/1: "},
		{"goes away", func(w io.Writer) { w.(net.Conn).Close() }, "disconnected DBX0001/1: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startServer(t, withLimits(quick()))
			conn := dialRaw(t, s, node1, ALPNControl)
			s.event(t, "connected")
			tt.send(conn)
			s.event(t, tt.want)
		})
	}
}

// All of them at once cost a healthy peer nothing that matters.
func TestBadPeersCostOthersNothing(t *testing.T) {
	patient := Limits{HandshakeTimeout: time.Second} // the attackers take this machine's processors too
	s := startServer(t, withLimits(patient), func(c *ServerConfig) { c.Connected, c.Disconnected, c.Refused = nil, nil, nil })
	healthy := startClient(t, s.address, node1, func(c *ClientConfig) { c.Limits = patient })
	mustGet(t, healthy.HTTP(), "/", "server to DBX0001/1 /")
	p := s.peer(t, node1)
	ctx, cancel := context.WithCancel(t.Context())
	var bad sync.WaitGroup
	defer bad.Wait()
	defer cancel()
	attacks := []func(*tls.Conn){
		func(c *tls.Conn) { c.Write(bytes.Repeat(frame(typePing, flagSYN, 0, 1), 10_000)) },
		func(c *tls.Conn) { c.Write(bytes.Repeat(frame(typeWindow, 0, 1, 0), 200_000)) },
		func(c *tls.Conn) { c.Write(bytes.Repeat([]byte{0xff}, 100_000)) },
		func(c *tls.Conn) {
			for i := uint32(1); i < 2000; i += 2 {
				c.Write(frame(typeData, flagSYN, i, 20_000))
				if _, err := c.Write(bytes.Repeat([]byte("x"), 20_000)); err != nil {
					return
				}
			}
		},
		func(c *tls.Conn) { time.Sleep(20 * time.Millisecond) },
	}
	for i, attack := range attacks {
		config := testAuthority().deviceTLS(node2)
		config.NextProtos = []string{[]string{ALPNControl, ALPNBulk}[i%2]}
		bad.Go(func() {
			for ctx.Err() == nil {
				conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", s.address, config)
				if err != nil {
					continue
				}
				conn.SetDeadline(time.Now().Add(time.Second))
				attack(conn)
				conn.NetConn().Close()
			}
		})
	}
	bad.Go(func() {
		for ctx.Err() == nil { // never says hello
			if conn, err := net.Dial("tcp", s.address); err == nil {
				time.Sleep(5 * time.Millisecond)
				conn.Close()
			}
		}
	})
	var slowest time.Duration
	for began := time.Now(); time.Since(began) < 2*time.Second; {
		start := time.Now()
		mustGet(t, healthy.HTTP(), "/up", "server to DBX0001/1 /up")
		mustGet(t, p.Client(), "/down", "device DBX0001/1 /down")
		slowest = max(slowest, time.Since(start))
	}
	t.Logf("slowest pair of requests: %v", slowest)
	if slowest > soon {
		t.Errorf("a pair of requests took %v", slowest)
	}
	if again, ok := s.Peer(node1); !ok || again != p {
		t.Error("the healthy peer lost its connection")
	}
}

// Whatever comes in, a session ends or goes on; it does not panic or hang.
func FuzzSession(f *testing.F) {
	f.Add(frame(typeWindow, flagSYN, 1, 0))
	f.Add(append(frame(typeData, flagSYN, 1, 3), "GET"...))
	f.Add(append(frame(typePing, flagSYN, 0, 3), frame(3, 0, 0, 1)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		limits := quick().withDefaults()
		near, far := net.Pipe()
		server, err := newSession(near, control, false, &limits, nil)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			server.serve(func(st *stream) { st.Close() })
		}()
		go io.Copy(io.Discard, far)
		far.SetWriteDeadline(time.Now().Add(patience))
		far.Write(data)
		far.Close()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the session hangs")
		}
	})
}

// However the bytes are cut, the same frames are seen.
func FuzzFramesAreSeenHoweverTheyAreCut(f *testing.F) {
	f.Add(bytes.Repeat(frame(typePing, flagSYN, 0, 1), maxPings+1), uint8(5))
	f.Add(append(frame(typeData, 0, 1, 300), make([]byte, 300)...), uint8(11))
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		whole := &frameConn{maxFrame: 1 << 18}
		pieces := &frameConn{maxFrame: 1 << 18}
		want := whole.inspect(data)
		var got error
		for rest := data; len(rest) > 0 && got == nil; {
			n := min(len(rest), int(cut)+1)
			got = pieces.inspect(rest[:n])
			rest = rest[n:]
		}
		if (want == nil) != (got == nil) {
			t.Errorf("whole: %v, in pieces: %v", want, got)
		}
		if want == nil && (whole.body != pieces.body || whole.have != pieces.have) {
			t.Errorf("whole: %d %d, in pieces: %d %d", whole.body, whole.have, pieces.body, pieces.have)
		}
	})
}
