package api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

var (
	rogue  = protocol.NodeID{Serial: "DBX0001", Node: 1}
	honest = protocol.NodeID{Serial: "DBX0002", Node: 1}
)

// passed counts how many of n calls are let through.
func passed(n int, call func() error) (count int) {
	for range n {
		if call() == nil {
			count++
		}
	}
	return count
}

func TestANodeIsKeptToItsRates(t *testing.T) {
	now := time.Now()
	l := newLimits(func() time.Time { return now })
	calls := func() error { return l.admit(rogue, cheap) }
	if got := passed(1000, calls); got != 200 {
		t.Errorf("%d calls at once, want the burst of 200", got)
	}
	if err := l.admit(honest, cheap); err != nil {
		t.Errorf("another node: %v", err)
	}
	now = now.Add(time.Second)
	if got := passed(1000, calls); got != 50 {
		t.Errorf("%d calls after a second, want 50", got)
	}
	now = now.Add(time.Hour)
	if got := passed(1000, func() error { return l.admit(rogue, dear) }); got != 20 {
		t.Errorf("%d calls that write, want 20", got)
	}
	if code := protocol.CodeOf(l.admit(rogue, dear)); code != protocol.CodeLimit {
		t.Errorf("refused with %q", code)
	}
}

func TestANodesRecordsAndBytesAreLimited(t *testing.T) {
	now := time.Now()
	l := newLimits(func() time.Time { return now })
	batch := &devicev1.AppendRecordsRequest{}
	for range 256 {
		batch.Records = append(batch.Records, &devicev1.ChainRecord{Record: []byte("x")})
	}
	if got := passed(100, func() error { return l.weigh(rogue, batch) }); got != 16 {
		t.Errorf("%d batches at once, want 16", got)
	}
	now = now.Add(time.Second)
	if got := passed(100, func() error { return l.weigh(rogue, batch) }); got != 2 {
		t.Errorf("%d batches after a second, want 2", got)
	}
	big := &devicev1.ReportManifestRequest{Manifests: []*devicev1.Manifest{{Bom: make([]byte, 1<<20)}}}
	if got := passed(200, func() error { return l.weigh(honest, big) }); got < 60 || got > 64 {
		t.Errorf("%d MiB at once, want about 64", got)
	}
}

// The limit holds where nodes call, and over a node's connections.
func TestTheDevicePortLimitsEachNode(t *testing.T) {
	handlers := NewNodeHandler(NodeServices{
		Heartbeat: func(context.Context, protocol.NodeID, *devicev1.HeartbeatRequest) (*devicev1.HeartbeatResponse, error) {
			return &devicev1.HeartbeatResponse{}, nil
		},
	}, zerolog.Nop())
	beat := func(node protocol.NodeID) func() error {
		server := httptest.NewServer(handlers(node))
		t.Cleanup(server.Close)
		transport := &http.Transport{}
		t.Cleanup(transport.CloseIdleConnections)
		client := devicev1.NewControlServiceClient(rpc.NewClient(&http.Client{Transport: transport}, server.URL))
		return func() error {
			_, err := client.Heartbeat(t.Context(), &devicev1.HeartbeatRequest{})
			if code := protocol.CodeOf(err); err != nil && code != protocol.CodeLimit {
				t.Errorf("refused with %v", err)
			}
			return err
		}
	}
	began := time.Now()
	got := passed(1000, beat(rogue)) + passed(100, beat(rogue))
	most := 200 + int(50*time.Since(began).Seconds()) + 1
	if got < 200 || got > most {
		t.Errorf("%d calls were let through, want 200 to %d", got, most)
	}
	if got := passed(100, beat(honest)); got != 100 {
		t.Errorf("%d of 100 calls of another node", got)
	}
}
