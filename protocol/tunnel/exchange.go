package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// exchange answers the requests that arrive on the streams of any number of
// sessions. One HTTP server serves them all, so an idle session has none.
type exchange struct {
	limits  *Limits
	server  http.Server
	streams chan net.Conn
	closed  chan struct{}
	serving sync.WaitGroup // streams being answered
}

// newExchange returns an exchange that works once [exchange.run] is called.
func newExchange(limits *Limits, errorLog *log.Logger) *exchange {
	e := &exchange{limits: limits, streams: make(chan net.Conn), closed: make(chan struct{})}
	if errorLog == nil {
		errorLog = log.New(io.Discard, "", 0)
	}
	e.server = http.Server{
		Handler:           e,
		ReadHeaderTimeout: limits.HeaderTimeout,
		MaxHeaderBytes:    limits.HeaderBytes,
		ErrorLog:          errorLog,
		ConnState:         e.changed,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, streamKey{}, c)
		},
	}
	e.server.SetKeepAlivesEnabled(false)
	return e
}

type streamKey struct{}

// run answers requests until [exchange.close].
func (e *exchange) run() { e.server.Serve((*streamListener)(e)) }

// close ends run, and waits until all requests are answered. Their sessions must
// have ended.
func (e *exchange) close() {
	close(e.closed)
	e.server.Close()
	e.serving.Wait()
}

// deliver has the requests on a stream answered.
func (e *exchange) deliver(st *stream) {
	e.serving.Add(1)
	select {
	case e.streams <- st:
	case <-e.closed:
		st.Close()
		e.serving.Done()
	}
}

// changed notes that the HTTP server is done with a stream. One that a handler
// took over counts until the handler returns.
func (e *exchange) changed(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateHijacked:
		c.(*stream).upgrade()
	case http.StateClosed:
		e.serving.Done()
	}
}

// ServeHTTP answers one request with the handler of the session it came on.
func (e *exchange) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	st := r.Context().Value(streamKey{}).(*stream)
	hijacked := &hijackNoter{ResponseWriter: w}
	defer func() {
		if hijacked.done {
			e.serving.Done()
		}
	}()
	if r.ContentLength != 0 {
		st.SetReadDeadline(time.Now().Add(e.limits.BodyTimeout)) // net/http lifts it at the body's end
		r.Body = http.MaxBytesReader(w, r.Body, e.limits.BodyBytes)
	}
	st.session.handler().ServeHTTP(hijacked, r)
}

// hijackNoter notes that a handler took the stream over.
type hijackNoter struct {
	http.ResponseWriter
	done bool
}

func (h *hijackNoter) Unwrap() http.ResponseWriter { return h.ResponseWriter }

func (h *hijackNoter) Flush() { http.NewResponseController(h.ResponseWriter).Flush() }

func (h *hijackNoter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	h.done = err == nil
	return conn, rw, err
}

// streamListener is the exchange as the HTTP server sees it.
type streamListener exchange

func (l *streamListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.streams:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *streamListener) Close() error   { return nil }
func (l *streamListener) Addr() net.Addr { return streamAddr{} }

type streamAddr struct{}

func (streamAddr) Network() string { return "tunnel" }
func (streamAddr) String() string  { return "tunnel" }

// newCaller returns an HTTP client that sends every request on a stream of its
// own, on the session that current gives.
func newCaller(limits *Limits, current func(context.Context) (*session, error)) *http.Client {
	return &http.Client{
		Transport: &caller{limits: limits, transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				ctx = ctx.Value(requestKey{}).(context.Context) // the transport dials on when the request is cancelled
				s, err := current(ctx)
				if err != nil {
					return nil, err
				}
				st, err := s.open(ctx)
				if err != nil {
					return nil, err
				}
				return st, nil
			},
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: int64(limits.HeaderBytes),
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type requestKey struct{}

// caller is the transport of a client through the tunnel. It bounds what the
// peer answers.
type caller struct {
	limits    *Limits
	transport *http.Transport
}

func (c *caller) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "http" {
		return nil, fmt.Errorf("cannot call %s through the tunnel: use %s", r.URL.Redacted(), BaseURL)
	}
	ctx := r.Context()
	resp, err := c.transport.RoundTrip(r.WithContext(context.WithValue(ctx, requestKey{}, ctx)))
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{resp.Body, c.limits.BodyBytes}
	return resp, nil
}

// boundedBody fails once more than left bytes were read, where an
// [io.LimitedReader] would pretend that the body ended.
type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errors.New("the response is larger than the tunnel allows: use an upgraded stream for bulk")
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return max(0, n-1), nil
	}
	return n, err
}

// upgradeToken is the protocol to which a request for a byte stream is upgraded.
const upgradeToken = "databox-stream"

// UpgradeError is the answer of a peer that did not open a byte stream.
type UpgradeError struct {
	StatusCode int    // of the HTTP response
	Message    string // the beginning of its body
}

func (e *UpgradeError) Error() string {
	return fmt.Sprintf("the peer opened no stream: %d %s: %s", e.StatusCode, http.StatusText(e.StatusCode), e.Message)
}

// upgrade asks for path and returns the stream as bytes, or an [*UpgradeError].
func upgrade(ctx context.Context, s *session, path string, header http.Header) (net.Conn, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, BaseURL+path, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot ask for %q: %w", path, err)
	}
	if header != nil {
		req.Header = header.Clone()
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", upgradeToken)
	st, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := upgradeOn(ctx, st, req, int64(s.limits.HeaderBytes))
	if err != nil {
		st.Close()
		return nil, err
	}
	st.upgrade()
	return conn, nil
}

func upgradeOn(ctx context.Context, st *stream, req *http.Request, maxHeader int64) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { st.SetDeadline(past) })
	conn, err := askUpgrade(st, req, maxHeader)
	if !stop() {
		return nil, fmt.Errorf("cannot open a byte stream: %w", context.Cause(ctx))
	}
	return conn, err
}

func askUpgrade(st *stream, req *http.Request, maxHeader int64) (net.Conn, error) {
	if err := req.Write(st); err != nil {
		return nil, fmt.Errorf("cannot ask for a byte stream: %w", err)
	}
	bounded := &io.LimitedReader{R: st, N: maxHeader}
	r := bufio.NewReaderSize(bounded, 1<<10)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("cannot read the answer to the request for a byte stream: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(resp.Header.Get("Upgrade"), upgradeToken) {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		resp.Body.Close()
		return nil, &UpgradeError{resp.StatusCode, strings.TrimSpace(string(text))}
	}
	return withRest(st, r)
}

// AcceptUpgrade answers a request made with [Peer.Upgrade] and returns its byte
// stream, which the caller closes. Any other request is answered with 426.
func AcceptUpgrade(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), upgradeToken) || !strings.EqualFold(r.Header.Get("Connection"), "Upgrade") {
		w.Header().Set("Upgrade", upgradeToken)
		http.Error(w, "this path is a byte stream: ask for an upgrade to "+upgradeToken, http.StatusUpgradeRequired)
		return nil, errors.New("the request asks for no byte stream")
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("cannot take the stream over: %w", err)
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+upgradeToken+"\r\n\r\n"); err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot answer the upgrade: %w", err)
	}
	return withRest(conn, rw.Reader)
}

// withRest returns conn, preceded by what r has read of it already.
func withRest(conn net.Conn, r *bufio.Reader) (net.Conn, error) {
	if r.Buffered() == 0 {
		return conn, nil
	}
	rest, err := r.Peek(r.Buffered())
	if err != nil {
		return nil, err
	}
	return &restConn{Conn: conn, rest: append([]byte(nil), rest...)}, nil
}

// restConn gives rest before it reads on.
type restConn struct {
	net.Conn
	rest []byte
}

func (c *restConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}
