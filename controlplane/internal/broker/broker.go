// Package broker reaches devices: it holds the live tunnels and nothing else.
//
// Its rules:
//
//   - A node without a tunnel is [protocol.CodeOffline], at once: nothing waits
//     for a device to come back.
//   - Bytes of sessions go over the node's second connection, which the node
//     dials when asked.
//   - What a node may say and do is decided by the services above.
package broker

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

// dialTimeout bounds how long a node may take to bring up a session's bytes.
const dialTimeout = 10 * time.Second

// Broker finds the tunnels of nodes. Its methods may be called concurrently.
type Broker struct{ server *tunnel.Server }

// New returns a broker over the tunnels of server.
func New(server *tunnel.Server) *Broker { return &Broker{server} }

// Serve takes tunnels in on ln until ctx ends. Everything it started has ended
// when it returns.
func (b *Broker) Serve(ctx context.Context, ln net.Listener) error { return b.server.Serve(ctx, ln) }

// Node returns a client for the node's own service. The caller sets a deadline
// on every call.
func (b *Broker) Node(id protocol.NodeID) (devicev1.NodeServiceClient, error) {
	peer, ok := b.server.Peer(id)
	if !ok {
		return nil, offline(id)
	}
	return devicev1.NewNodeServiceClient(rpc.NewClient(peer.Client(), tunnel.BaseURL)), nil
}

// Count returns how many nodes have a tunnel now.
func (b *Broker) Count() int { return len(b.server.Peers()) }

// Online reports whether the node has a tunnel now.
func (b *Broker) Online(id protocol.NodeID) bool {
	_, ok := b.server.Peer(id)
	return ok
}

// SSH opens a byte stream to the SSH server of a support session on the node.
func (b *Broker) SSH(ctx context.Context, id protocol.NodeID, session protocol.SessionID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	node, err := b.Node(id)
	if err != nil {
		return nil, err
	}
	if _, err := node.OpenBulk(ctx, &devicev1.OpenBulkRequest{}); err != nil {
		return nil, err
	}
	peer, err := b.server.Bulk(ctx, id)
	if err != nil {
		return nil, protocol.Errorf(protocol.CodeOffline, "node %s did not bring up its second connection: %v", id, err)
	}
	return peer.Upgrade(ctx, "/ssh?session="+url.QueryEscape(string(session)), http.Header{})
}

// Disconnect ends the node's connections. reason is for people and logs.
func (b *Broker) Disconnect(id protocol.NodeID, reason string) { b.server.Disconnect(id, reason) }

func offline(id protocol.NodeID) error {
	return protocol.Errorf(protocol.CodeOffline, "node %s is not connected: it locks by itself within its dead-man time", id)
}
