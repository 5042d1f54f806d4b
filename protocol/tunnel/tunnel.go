// Package tunnel carries HTTP both ways over one mutual TLS connection that the
// device dials.
package tunnel

import (
	"net"
	"net/http"
	"time"
)

// Application protocols of the two connections.
const (
	ALPNControl = "databox/1"
	ALPNBulk    = "databox-bulk/1"
)

// BaseURL is the base of every URL called through the tunnel. Its host means nothing.
const BaseURL = "http://tunnel"

// Limits bound what one peer can cost. Zero values mean the defaults.
type Limits struct {
	Streams          int           // concurrent streams a peer may have opened; default 32
	HeaderBytes      int           // of a request or response header; default 16 KiB
	BodyBytes        int64         // of a request or response body; default 16 MiB
	HandshakeTimeout time.Duration // default 10 s
	WriteTimeout     time.Duration // of one write; default 10 s
	HeaderTimeout    time.Duration // until a request's header is read; default 10 s
	BodyTimeout      time.Duration // until a request's body is read; default 1 min
	StreamIdle       time.Duration // silence in both directions after which a stream ends; default 15 min
	BulkIdle         time.Duration // a bulk connection without streams ends after this; default 1 min
	Handshakes       int           // server: handshakes computing at once; default 2 × GOMAXPROCS
	Waiting          int           // server: connections not yet identified, the oldest is dropped beyond; default 4096
}

// AcceptUpgrade answers an upgrade request made by [Peer.Upgrade] and returns its byte stream.
func AcceptUpgrade(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	return nil, errUnfinished
}
