// Package tunnel carries HTTP both ways over a mutual TLS connection that the
// device dials.
//
//   - The device dials out: TCP, TLS 1.3 with both certificates, then one yamux
//     session. Each stream carries one HTTP/1.1 request, in either direction, or
//     the byte stream that a request was upgraded to.
//   - The control connection is always on and cheap when idle. The bulk
//     connection has a large window and gathers what it sends; the device dials it
//     when asked and drops it when idle, so that bulk never delays a revocation.
//   - A peer can cost only what [Limits] say: streams, handshakes, sizes and
//     times are bounded, and a peer that breaks the rules loses its connection.
//   - Nothing else imports yamux, whose hazards end here; SPEC.md lists them with
//     the wire format.
//
// The package knows nodes but no certificates: it is given a [tls.Config] and a
// function that names the peer.
package tunnel

import (
	"cmp"
	"errors"
	"runtime"
	"time"
)

// Application protocols (ALPN) of the two connections.
const (
	ALPNControl = "databox/1"
	ALPNBulk    = "databox-bulk/1"
)

// BaseURL begins every URL called through the tunnel. Its host means nothing:
// the peer is whoever is at the other end.
const BaseURL = "http://tunnel"

// Reasons for which a connection ended. They are wrapped by what hooks and
// failed calls get.
var (
	ErrReplaced = errors.New("replaced by a newer connection of the same node")
	ErrIdle     = errors.New("the bulk connection was idle")
	ErrEnded    = errors.New("this end of the tunnel was shut down")
	ErrFlood    = errors.New("the peer sent more than the protocol allows")
)

// Limits bound what one peer can cost. A zero field means its default.
type Limits struct {
	Streams          int           // streams that one side may have open on a connection; as many wait, further ones are reset; default 32
	HeaderBytes      int           // of a request or a response; default 16 KiB
	BodyBytes        int64         // of a request or a response; default 16 MiB
	HandshakeTimeout time.Duration // from TCP connection to named peer; default 10 s
	WriteTimeout     time.Duration // of one write to the connection, and of a pause within a frame; default 10 s
	StallTimeout     time.Duration // of a write to a stream whose other end does not read; default 30 s, for upgraded streams StreamIdle
	HeaderTimeout    time.Duration // until a request's header is read; default 10 s
	BodyTimeout      time.Duration // until a request's body is read; default 1 min
	StreamIdle       time.Duration // silence in both directions after which a stream ends; default 15 min
	BulkIdle         time.Duration // how long a bulk connection without streams is kept by the device; default 1 min
	Silence          time.Duration // how long TCP goes unanswered before the connection is dead, whole seconds; default 20 s
	Handshakes       int           // server: handshakes that compute at once; default 2 × GOMAXPROCS
	Waiting          int           // server: handshakes that wait for the other end; beyond, the longest waiting is dropped; default 4096
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Streams:          cmp.Or(l.Streams, 32),
		HeaderBytes:      cmp.Or(l.HeaderBytes, 16<<10),
		BodyBytes:        cmp.Or(l.BodyBytes, 16<<20),
		HandshakeTimeout: cmp.Or(l.HandshakeTimeout, 10*time.Second),
		WriteTimeout:     cmp.Or(l.WriteTimeout, 10*time.Second),
		StallTimeout:     cmp.Or(l.StallTimeout, 30*time.Second),
		HeaderTimeout:    cmp.Or(l.HeaderTimeout, 10*time.Second),
		BodyTimeout:      cmp.Or(l.BodyTimeout, time.Minute),
		StreamIdle:       cmp.Or(l.StreamIdle, 15*time.Minute),
		BulkIdle:         cmp.Or(l.BulkIdle, time.Minute),
		Silence:          cmp.Or(l.Silence, 20*time.Second),
		Handshakes:       cmp.Or(l.Handshakes, 2*runtime.GOMAXPROCS(0)),
		Waiting:          cmp.Or(l.Waiting, 4096),
	}
}
