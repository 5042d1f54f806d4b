package api

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// rate is what one node gets: so much every second, and at most burst at once.
type rate struct{ perSecond, burst float64 }

// The rates of one node. They are far above what an honest node needs, also when
// it brings what it kept while it was cut off, and far below what would fill the
// store or keep others waiting. A node that is told to slow down tries again.
var (
	nodeCalls   = rate{50, 200} // calls; those that write cost more than one
	nodeRecords = rate{512, 4096}
	nodeBytes   = rate{256 << 10, 64 << 20}
	// What is recorded has room of its own, see package recordings.
	recordingBytes = rate{4 << 20, 256 << 20}
)

// What a call costs of nodeCalls.
const (
	cheap  = 1  // writes nothing, or what is bounded otherwise
	dear   = 10 // adds rows
	dearer = 50 // adds rows, once in days
)

// limits keeps every node to its rates, over all its connections.
type limits struct {
	now func() time.Time

	mu    sync.Mutex
	nodes map[protocol.NodeID]*allowance // guarded by mu; as many as are enrolled
}

// allowance is what one node has left.
type allowance struct{ calls, records, bytes, recordings bucket }

func newLimits(now func() time.Time) *limits {
	return &limits{now: now, nodes: make(map[protocol.NodeID]*allowance)}
}

// admit takes one call from what a node has left, or refuses with
// [protocol.CodeLimit].
func (l *limits) admit(node protocol.NodeID, cost float64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ofLocked(node).calls.take(nodeCalls, l.now(), cost) {
		return protocol.Errorf(protocol.CodeLimit, "node %s calls too often: slow down", node)
	}
	return nil
}

// weigh takes a message from what a node has left, or refuses with
// [protocol.CodeLimit].
func (l *limits) weigh(node protocol.NodeID, m any) error {
	size, records := 0, 0
	if m, ok := m.(proto.Message); ok {
		size = proto.Size(m)
	}
	if m, ok := m.(*devicev1.AppendRecordsRequest); ok {
		records = len(m.Records)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	a, now := l.ofLocked(node), l.now()
	bytes, most := &a.bytes, nodeBytes
	if _, ok := m.(*devicev1.AppendRecordingRequest); ok {
		bytes, most = &a.recordings, recordingBytes
	}
	if !bytes.take(most, now, float64(size)) || !a.records.take(nodeRecords, now, float64(records)) {
		return protocol.Errorf(protocol.CodeLimit, "node %s sends too much at once: slow down", node)
	}
	return nil
}

func (l *limits) ofLocked(node protocol.NodeID) *allowance {
	a := l.nodes[node]
	if a == nil {
		a = &allowance{}
		l.nodes[node] = a
	}
	return a
}

// bucket is a token bucket, full at first.
type bucket struct {
	left   float64
	filled time.Time
}

// take takes n out, unless there is less.
func (b *bucket) take(r rate, now time.Time, n float64) bool {
	if b.filled.IsZero() {
		b.left = r.burst
	} else {
		b.left = min(r.burst, b.left+max(0, now.Sub(b.filled).Seconds())*r.perSecond)
	}
	b.filled = now
	if n > b.left {
		return false
	}
	b.left -= n
	return true
}
