package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// class says how a kind of connection is tuned.
type class struct {
	alpn   string
	window uint32 // bytes a stream may have on its way; yamux refuses less than 256 KiB
	chunk  int    // bytes per frame at most; yamux keeps a buffer of the largest one sent
}

// A bulk chunk and its frame header fill one TLS record.
var (
	control = class{alpn: ALPNControl, window: 256 << 10, chunk: 4 << 10}
	bulk    = class{alpn: ALPNBulk, window: 16 << 20, chunk: poolFrame}
)

// closeLinger is how long a stream that we closed may wait for the peer to read
// what is left and to close its side.
const closeLinger = 2 * time.Minute

// halfClosed is how many streams yamux may remember per allowed one, closed
// ones included. An honest peer stays below 6.
const halfClosed = 8

// session is one yamux session and the streams on it. It ends as a whole on the
// first error that leaves it unclear what the peer got.
type session struct {
	mux     *yamux.Session
	class   class
	limits  *Limits
	handler func() http.Handler // answers the peer's requests

	ours   chan struct{} // a slot per stream that we opened
	theirs chan struct{} // a slot per stream of theirs that we serve

	mu    sync.Mutex
	cause error       // guarded by mu; why the session ended
	live  int         // guarded by mu; open streams
	idle  *time.Timer // guarded by mu; nil unless the session ends when idle
}

// newSession starts a session over conn, on which the TLS handshake is done.
// device says which end this is. The session ends with [session.fail] or with
// the connection.
func newSession(conn net.Conn, c class, device bool, limits *Limits, handler func() http.Handler) (*session, error) {
	frames := &frameConn{Conn: conn, timeout: limits.WriteTimeout, maxFrame: c.window}
	config := &yamux.Config{
		AcceptBacklog:          limits.Streams,
		EnableKeepAlive:        false,       // TCP finds dead peers, see setTimeouts
		KeepAliveInterval:      time.Second, // unused, but checked
		ConnectionWriteTimeout: limits.WriteTimeout,
		MaxStreamWindowSize:    c.window,
		StreamOpenTimeout:      0, // it would end the session for a stream accepted late
		StreamCloseTimeout:     closeLinger,
		Logger:                 silent{},
	}
	start := yamux.Server
	if device {
		start = yamux.Client
	}
	mux, err := start(frames, config)
	if err != nil {
		return nil, fmt.Errorf("cannot start a session: %w", err)
	}
	return &session{
		mux:     mux,
		class:   c,
		limits:  limits,
		handler: handler,
		ours:    make(chan struct{}, limits.Streams),
		theirs:  make(chan struct{}, limits.Streams),
	}, nil
}

// serve hands the peer's streams to deliver until the session ends, and returns
// why it did. Streams beyond the limit wait within yamux; beyond its backlog it
// resets them.
func (s *session) serve(deliver func(*stream)) error {
	for {
		select {
		case s.theirs <- struct{}{}:
		case <-s.mux.CloseChan():
			return s.reason()
		}
		y, err := s.mux.AcceptStream()
		if err != nil {
			return s.fail(err)
		}
		if n := s.mux.NumStreams(); n > halfClosed*s.limits.Streams {
			return s.fail(fmt.Errorf("%w: %d streams, counting those it never closed", ErrFlood, n))
		}
		deliver(s.newStream(y, s.theirs))
	}
}

// open opens a stream. It waits for a free slot, and for yamux, as long as ctx
// lets it.
func (s *session) open(ctx context.Context) (*stream, error) {
	select {
	case s.ours <- struct{}{}:
	case <-s.mux.CloseChan():
		return nil, s.reason()
	case <-ctx.Done():
		return nil, fmt.Errorf("cannot open a stream, %d are open: %w", s.limits.Streams, context.Cause(ctx))
	}
	opened := make(chan *stream)
	failed := make(chan error, 1)
	go func() { // ends when yamux answers, or with the session; its slot bounds how many there are
		y, err := s.mux.OpenStream()
		if err != nil {
			<-s.ours
			failed <- s.fail(err)
			return
		}
		st := s.newStream(y, s.ours)
		select {
		case opened <- st:
		case <-ctx.Done():
			st.Close()
		}
	}()
	select {
	case st := <-opened:
		return st, nil
	case err := <-failed:
		return nil, err
	case <-ctx.Done():
		return nil, fmt.Errorf("cannot open a stream: %w", context.Cause(ctx))
	}
}

// fail ends the session and every stream on it, for the first reason given, and
// returns that reason. It may be called again, from anywhere.
func (s *session) fail(reason error) error {
	if s.mux.IsClosed() {
		reason = s.muxError()
	}
	s.mu.Lock()
	if s.cause == nil {
		s.cause = reason
	}
	if s.idle != nil {
		s.idle.Stop()
	}
	cause := s.cause
	s.mu.Unlock()
	s.mux.Close()
	return cause
}

// reason returns why the session ended, or nil while it lives.
func (s *session) reason() error {
	if !s.mux.IsClosed() {
		return nil
	}
	return s.fail(nil)
}

// muxError returns the error with which a closed yamux session ended. It tells
// only who accepts, and gives the streams that wait first.
func (s *session) muxError() error {
	for range s.limits.Streams + 1 {
		if _, err := s.mux.AcceptStream(); err != nil && err != yamux.ErrSessionShutdown {
			return err
		}
	}
	return yamux.ErrSessionShutdown
}

// endWhenIdle makes the session end once it had no stream for d.
func (s *session) endWhenIdle(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = time.AfterFunc(d, func() {
		s.mu.Lock()
		idle := s.live == 0
		s.mu.Unlock()
		if idle {
			s.fail(ErrIdle)
		}
	})
}

// count adds a stream, or takes one away with -1.
func (s *session) count(delta int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live += delta
	if s.idle == nil || s.cause != nil {
		return
	}
	if s.live == 0 {
		s.idle.Reset(s.limits.BulkIdle)
	} else {
		s.idle.Stop()
	}
}

// silent is a yamux logger: what matters comes back as an error.
type silent struct{}

func (silent) Print(...any)          {}
func (silent) Printf(string, ...any) {}
func (silent) Println(...any)        {}

var errSlow = errors.New("the peer takes nothing any more")
