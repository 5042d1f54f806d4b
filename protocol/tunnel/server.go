package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// ServerConfig configures a [Server].
type ServerConfig struct {
	TLS          *tls.Config                                                // asks for and verifies device certificates; the ALPN is set here
	Identify     func(tls.ConnectionState) (protocol.NodeID, string, error) // names a verified peer: node and key fingerprint
	Handler      func(*Peer) http.Handler                                   // answers requests that come from the device
	Connected    func(*Peer)                                                // optional; must not block
	Disconnected func(*Peer, error)                                         // optional; must not block
	Refused      func(remote net.Addr, err error)                           // optional; a connection that never became a peer
	Limits       Limits
}

// Server is the control plane's end of the tunnel.
type Server struct{ cfg ServerConfig }

// NewServer returns a server that starts with [Server.Serve].
func NewServer(cfg ServerConfig) *Server { return &Server{cfg: cfg} }

// Serve accepts devices on ln until ctx ends. Everything it started has ended when it returns.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error { return errUnfinished }

// Peer returns the control connection of node.
func (s *Server) Peer(node protocol.NodeID) (*Peer, bool) { return nil, false }

// Peers returns all control connections.
func (s *Server) Peers() []*Peer { return nil }

// Bulk waits until node has a bulk connection. The caller asks the device to dial it.
func (s *Server) Bulk(ctx context.Context, node protocol.NodeID) (*Peer, error) {
	return nil, errUnfinished
}

// Disconnect ends node's connections, control and bulk.
func (s *Server) Disconnect(node protocol.NodeID, reason string) {}

// Peer is one connection of a device.
type Peer struct{}

// ID names the node at the other end.
func (p *Peer) ID() protocol.NodeID { return protocol.NodeID{} }

// Fingerprint is the fingerprint of the node's key.
func (p *Peer) Fingerprint() string { return "" }

// Since is when the connection was made.
func (p *Peer) Since() time.Time { return time.Time{} }

// Client calls the device: HTTP/1.1, one fresh stream per request, base URL [BaseURL].
func (p *Peer) Client() *http.Client { return nil }

// Upgrade turns a request for path into a byte stream to the device.
func (p *Peer) Upgrade(ctx context.Context, path string, header http.Header) (net.Conn, error) {
	return nil, errUnfinished
}

// Close ends the connection and every stream on it.
func (p *Peer) Close(reason string) {}

// Done is closed when the connection has ended.
func (p *Peer) Done() <-chan struct{} { return nil }

var errUnfinished = errors.New("not yet")
