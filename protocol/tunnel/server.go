package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/gather"
)

// ServerConfig configures a [Server].
type ServerConfig struct {
	// TLS asks for device certificates and verifies them. The server sets its
	// application protocols.
	TLS *tls.Config
	// Identify names a peer whose certificate was verified: its node and its
	// key's fingerprint.
	Identify func(tls.ConnectionState) (protocol.NodeID, string, error)
	// Handler answers the requests of a device. It is called at a connection's
	// first request.
	Handler func(*Peer) http.Handler

	// Hooks, all optional. They must not block. For one node they are called in
	// order: a connection that replaces another is connected once the other is
	// disconnected. Bulk connections have no hooks.
	Connected    func(*Peer)
	Disconnected func(p *Peer, reason error)
	// Refused is told of connections that never became a peer.
	Refused func(remote net.Addr, reason error)

	ErrorLog *log.Logger // of net/http: panics of handlers; nil for none
	Limits   Limits
}

// Server is the control plane's end of the tunnel. It is safe for concurrent
// use.
type Server struct {
	cfg      ServerConfig
	tls      *tls.Config
	exchange *exchange
	gate     chan struct{} // a slot per handshake that computes
	waiting  waitlist
	running  sync.WaitGroup // connections

	mu      sync.Mutex
	peers   map[peerKey]*Peer // guarded by mu
	arrived chan struct{}     // guarded by mu; closed and replaced when a bulk connection arrives
	ended   bool              // guarded by mu
}

type peerKey struct {
	node protocol.NodeID
	alpn string
}

// NewServer returns a server that starts with [Server.Serve].
func NewServer(cfg ServerConfig) *Server {
	cfg.Limits = cfg.Limits.withDefaults()
	s := &Server{
		cfg:     cfg,
		tls:     cfg.TLS.Clone(),
		gate:    make(chan struct{}, cfg.Limits.Handshakes),
		waiting: waitlist{max: cfg.Limits.Waiting},
		peers:   make(map[peerKey]*Peer),
		arrived: make(chan struct{}),
	}
	s.tls.NextProtos = []string{ALPNControl, ALPNBulk}
	s.exchange = newExchange(&s.cfg.Limits, cfg.ErrorLog)
	return s
}

// Serve accepts devices on ln until ctx ends, then returns nil, or until ln
// fails. It closes ln, and everything it started has ended when it returns. It
// is called once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var answering sync.WaitGroup
	answering.Go(s.exchange.run)
	err := s.accept(ctx, ln)
	cancel()
	ln.Close()
	s.end()
	s.running.Wait()
	s.exchange.close()
	answering.Wait()
	return err
}

func (s *Server) accept(ctx context.Context, ln net.Listener) error {
	const longest = time.Second
	for pause := time.Duration(0); ; {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			s.running.Go(func() { s.connection(ctx, conn) })
		case ctx.Err() != nil:
			return nil
		case isTemporary(err): // mostly out of file descriptors: others end and free some
			pause = min(max(2*pause, 5*time.Millisecond), longest)
			sleep(ctx, pause)
		default:
			return fmt.Errorf("cannot accept devices any more: %w", err)
		}
	}
}

// isTemporary reports whether accepting may work again by itself.
func isTemporary(err error) bool {
	return slices.ContainsFunc([]error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED,
	}, func(e error) bool { return errors.Is(err, e) })
}

// connection serves one TCP connection from its first byte to its end.
func (s *Server) connection(ctx context.Context, conn net.Conn) {
	remote := conn.RemoteAddr()
	p, err := s.admit(ctx, conn)
	if err == nil {
		err = s.register(p)
	}
	if err != nil {
		conn.Close()
		if s.cfg.Refused != nil && ctx.Err() == nil {
			s.cfg.Refused(remote, err)
		}
		return
	}
	s.running.Go(func() { s.serve(p) }) // on a stack that no handshake has grown
}

// admit does the handshake and names the peer.
func (s *Server) admit(ctx context.Context, conn net.Conn) (*Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Limits.HandshakeTimeout)
	defer cancel()
	if err := setTimeouts(conn, s.cfg.Limits.Silence); err != nil {
		return nil, err
	}
	gathered := gather.New(conn, s.cfg.Limits.WriteTimeout)
	gated := &gatedConn{Conn: gathered, gate: s.gate, waiting: &s.waiting}
	secured := tls.Server(gated, s.tls)
	gated.enter()
	err := secured.HandshakeContext(ctx)
	gated.leave()
	if err != nil {
		return nil, fmt.Errorf("the handshake failed: %w", err)
	}
	state := secured.ConnectionState()
	c, ok := map[string]class{ALPNControl: control, ALPNBulk: bulk}[state.NegotiatedProtocol]
	if !ok {
		return nil, fmt.Errorf("the peer speaks neither %s nor %s", ALPNControl, ALPNBulk)
	}
	node, fingerprint, err := s.cfg.Identify(state)
	if err != nil {
		return nil, fmt.Errorf("the peer has no name: %w", err)
	}
	p, err := newPeer(s, secured, c, node, fingerprint)
	if err == nil && c == bulk {
		gathered.Gather()
	}
	return p, err
}

// register makes p the node's connection of its class and ends the one before.
func (s *Server) register(p *Peer) error {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		p.session.fail(ErrEnded)
		return ErrEnded
	}
	old := s.peers[p.key()]
	s.peers[p.key()] = p
	if p.session.class == bulk {
		close(s.arrived)
		s.arrived = make(chan struct{})
	}
	s.mu.Unlock()
	if old != nil {
		old.session.fail(ErrReplaced)
		<-old.done
	}
	return nil
}

// serve runs a registered peer until its connection ends.
func (s *Server) serve(p *Peer) {
	hooked := p.session.class == control
	if hooked && s.cfg.Connected != nil {
		s.cfg.Connected(p)
	}
	reason := p.session.serve(s.exchange.deliver)
	s.mu.Lock()
	if s.peers[p.key()] == p {
		delete(s.peers, p.key())
	}
	s.mu.Unlock()
	if hooked && s.cfg.Disconnected != nil {
		s.cfg.Disconnected(p, reason)
	}
	close(p.done)
}

// end ends all peers and lets no new one in.
func (s *Server) end() {
	s.mu.Lock()
	s.ended = true
	peers := make([]*Peer, 0, len(s.peers))
	for _, p := range s.peers {
		peers = append(peers, p)
	}
	s.mu.Unlock()
	for _, p := range peers {
		p.session.fail(ErrEnded)
	}
}

// Peer returns the control connection of node, if it has one.
func (s *Server) Peer(node protocol.NodeID) (*Peer, bool) { return s.peer(node, ALPNControl) }

func (s *Server) peer(node protocol.NodeID, alpn string) (*Peer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.peers[peerKey{node, alpn}]
	return p, ok
}

// Peers returns the control connections of all nodes, in no order.
func (s *Server) Peers() []*Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	peers := make([]*Peer, 0, len(s.peers))
	for key, p := range s.peers {
		if key.alpn == ALPNControl {
			peers = append(peers, p)
		}
	}
	return peers
}

// Bulk returns the bulk connection of node. If there is none it waits for one,
// as long as ctx lets it; the caller has asked the device to dial. The device
// may drop an idle one at any time: a caller whose first use fails asks again.
func (s *Server) Bulk(ctx context.Context, node protocol.NodeID) (*Peer, error) {
	for {
		s.mu.Lock()
		p, arrived := s.peers[peerKey{node, ALPNBulk}], s.arrived
		s.mu.Unlock()
		if p != nil && p.session.reason() == nil {
			return p, nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, fmt.Errorf("node %s made no bulk connection: %w", node, context.Cause(ctx))
		}
	}
}

// Disconnect ends the control and the bulk connection of node, if there are any.
// Whether it may come back is for the TLS configuration to say.
func (s *Server) Disconnect(node protocol.NodeID, reason string) {
	for _, alpn := range []string{ALPNBulk, ALPNControl} {
		if p, ok := s.peer(node, alpn); ok {
			p.Close(reason)
		}
	}
}
