package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/protocol/gather"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// Limits bound what the clients of the API port can cost. A zero field means
// its default.
type Limits struct {
	Connections   int           // at once; default 4096
	PerAddress    int           // of them from one IPv4 address or IPv6 /64; default 512
	HeaderBytes   int           // of a request; default 32 KiB
	HeaderTimeout time.Duration // of the handshake, and until a request's header is read; default 10 s
	ReadTimeout   time.Duration // until a whole request is read; default 1 min
	WriteTimeout  time.Duration // until a whole answer is written; default 3 min
	IdleTimeout   time.Duration // between two requests; default 1 min
	Grace         time.Duration // for calls under way when the server ends; default 3 s
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Connections:   cmp.Or(l.Connections, 4096),
		PerAddress:    cmp.Or(l.PerAddress, 512),
		HeaderBytes:   cmp.Or(l.HeaderBytes, 32<<10),
		HeaderTimeout: cmp.Or(l.HeaderTimeout, 10*time.Second),
		ReadTimeout:   cmp.Or(l.ReadTimeout, time.Minute),
		WriteTimeout:  cmp.Or(l.WriteTimeout, 3*time.Minute),
		IdleTimeout:   cmp.Or(l.IdleTimeout, time.Minute),
		Grace:         cmp.Or(l.Grace, 3*time.Second),
	}
}

// Sizes of request bodies, in bytes. Whoever has not shown who they are has no
// reason to send much.
const (
	maxBody     = rpc.MaxMessage + 1<<10
	maxOpenBody = 64 << 10
)

// ServerConfig are the parts of a [Server].
type ServerConfig struct {
	Handler http.Handler // see [NewHandler]
	TLS     *tls.Config
	Limits  Limits
	Log     zerolog.Logger
}

// Server serves the API port.
type Server struct {
	cfg     ServerConfig
	running sync.RWMutex // held for reading by every call
	ended   bool         // guarded by running
}

// NewServer returns a server that starts with [Server.Serve].
func NewServer(cfg ServerConfig) *Server {
	cfg.Limits = cfg.Limits.withDefaults()
	return &Server{cfg: cfg}
}

// Serve answers calls on ln until ctx ends, and then returns nil: calls under
// way have a moment to end by themselves. It closes ln, and everything it
// started has ended when it returns. It is called once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	calls, endCalls := context.WithCancel(context.WithoutCancel(ctx))
	defer endCalls()
	server := s.newHTTP(calls)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(calls, s.cfg.Limits.Grace)
		defer cancel()
		_ = server.Shutdown(grace) // what is left is closed below
	})
	err := server.ServeTLS(s.limit(ln), "", "")
	if stop() {
		err = fmt.Errorf("the API port failed: %w", err)
	} else {
		<-ended
		err = nil
	}
	endCalls()
	server.Close()
	s.wait()
	return err
}

func (s *Server) newHTTP(calls context.Context) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // SSH upgrades need it, and one protocol is less to attack
	l := s.cfg.Limits
	return &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		TLSConfig:         s.cfg.TLS,
		Protocols:         protocols,
		ReadHeaderTimeout: l.HeaderTimeout,
		ReadTimeout:       l.ReadTimeout,
		WriteTimeout:      l.WriteTimeout,
		IdleTimeout:       l.IdleTimeout,
		MaxHeaderBytes:    l.HeaderBytes,
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(calls, lifetimeKey{}, calls)
		},
		ErrorLog: stdlog.New(httpLog{s.cfg.Log}, "", 0),
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.running.RLock()
	defer s.running.RUnlock()
	if s.ended {
		http.Error(w, "the control plane is stopping", http.StatusServiceUnavailable)
		return
	}
	s.cfg.Handler.ServeHTTP(w, r)
}

// wait returns when no call is under way, and lets none begin after.
func (s *Server) wait() {
	s.running.Lock()
	defer s.running.Unlock()
	s.ended = true
}

// lifetimeKey finds, in a call's context, the context that ends with the
// server.
type lifetimeKey struct{}

// detached returns a context for what goes on when its caller has gone: it ends
// after timeout, or with the server.
func detached(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	server, ok := ctx.Value(lifetimeKey{}).(context.Context)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	if !ok {
		return ctx, cancel
	}
	stop := context.AfterFunc(server, cancel)
	return ctx, func() { stop(); cancel() }
}

// limitBodies bounds what a request's body may hold. The request is copied for
// it: net/http takes what is left of a body for the next request unless it finds
// its own body in the request it made.
func limitBodies(next http.Handler, open map[string]bool) http.Handler {
	large, small := http.MaxBytesHandler(next, maxBody), http.MaxBytesHandler(next, maxOpenBody)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if open[r.URL.Path] {
			small.ServeHTTP(w, r)
		} else {
			large.ServeHTTP(w, r)
		}
	})
}

// limit bounds the connections of ln. Those beyond are closed at once, so that
// one address that takes all it can get leaves room for others.
func (s *Server) limit(ln net.Listener) net.Listener {
	return &limitedListener{Listener: ln, limits: s.cfg.Limits, log: s.cfg.Log, from: map[netip.Prefix]int{}}
}

type limitedListener struct {
	net.Listener
	limits Limits
	log    zerolog.Logger

	mu   sync.Mutex
	open int                  // guarded by mu
	from map[netip.Prefix]int // guarded by mu
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := sourceOf(c.RemoteAddr())
		if l.take(from) {
			return &limitedConn{Conn: gather.New(c, sshIdle), release: sync.OnceFunc(func() { l.release(from) })}, nil
		}
		l.log.Debug().Stringer("remote", c.RemoteAddr()).Msg("too many connections")
		c.Close()
	}
}

func (l *limitedListener) take(from netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.limits.Connections || l.from[from] >= l.limits.PerAddress {
		return false
	}
	l.open++
	l.from[from]++
	return true
}

func (l *limitedListener) release(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[from]--; l.from[from] == 0 {
		delete(l.from, from)
	}
}

// sourceOf is what counts as one client: an IPv4 address, or the IPv6 network
// that one customer line has.
func sourceOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

type limitedConn struct {
	*gather.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite lets net/http end an answer before the connection.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// httpLog passes the lines of net/http on to the log: bad handshakes, mostly.
type httpLog struct{ zerolog.Logger }

func (l httpLog) Write(line []byte) (int, error) {
	l.Debug().Bytes("line", bytes.TrimSpace(line)).Msg("http")
	return len(line), nil
}
