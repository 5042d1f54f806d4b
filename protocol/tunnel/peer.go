package tunnel

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Peer is one connection of a device, as the control plane sees it. It is safe
// for concurrent use.
type Peer struct {
	id          protocol.NodeID
	fingerprint string
	since       time.Time
	session     *session
	client      func() *http.Client // made at first use
	done        chan struct{}       // closed when the connection has ended and the hooks know
}

func newPeer(s *Server, conn net.Conn, c class, id protocol.NodeID, fingerprint string) (*Peer, error) {
	p := &Peer{id: id, fingerprint: fingerprint, since: time.Now(), done: make(chan struct{})}
	sess, err := newSession(conn, c, false, &s.cfg.Limits, sync.OnceValue(func() http.Handler { return s.cfg.Handler(p) }))
	if err != nil {
		return nil, err
	}
	p.session = sess
	p.client = sync.OnceValue(func() *http.Client {
		return newCaller(sess.limits, func(context.Context) (*session, error) { return sess, nil })
	})
	return p, nil
}

func (p *Peer) key() peerKey { return peerKey{p.id, p.session.class.alpn} }

// ID names the node at the other end.
func (p *Peer) ID() protocol.NodeID { return p.id }

// Fingerprint is the fingerprint of the node's key.
func (p *Peer) Fingerprint() string { return p.fingerprint }

// Since is when the connection was made.
func (p *Peer) Since() time.Time { return p.since }

// RemoteAddr is the network address of the other end.
func (p *Peer) RemoteAddr() net.Addr { return p.session.mux.RemoteAddr() }

// Client calls the device on this connection: HTTP/1.1, a fresh stream per
// request, URLs below [BaseURL]. Requests end with their context; responses
// larger than BodyBytes fail.
func (p *Peer) Client() *http.Client { return p.client() }

// Upgrade asks the device for path, which may have a query, and returns the byte
// stream that the device opens with [AcceptUpgrade], or an [*UpgradeError]. ctx
// is for the asking only; the caller closes the stream.
func (p *Peer) Upgrade(ctx context.Context, path string, header http.Header) (net.Conn, error) {
	return upgrade(ctx, p.session, path, header)
}

// Close ends the connection and every stream on it, for a reason that the hooks
// are told.
func (p *Peer) Close(reason string) { p.session.fail(errors.New(reason)) }

// Done is closed when the connection has ended.
func (p *Peer) Done() <-chan struct{} { return p.done }
