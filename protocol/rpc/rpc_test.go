package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

type node struct {
	devicev1.UnimplementedNodeServiceHandler
	fail  error
	calls *atomic.Int32
}

func (n node) Challenge(_ context.Context, r *devicev1.ChallengeRequest) (*devicev1.ChallengeResponse, error) {
	n.calls.Add(1)
	return &devicev1.ChallengeResponse{Challenge: []byte(r.SubjectDigest)}, n.fail
}

func (n node) Unlock(_ context.Context, _ *devicev1.UnlockRequest, s devicev1.NodeServiceUnlockServerStream) error {
	if err := s.Send(&devicev1.UnlockResponse{Disk: "disk1"}); err != nil {
		return err
	}
	return n.fail
}

func serve(t *testing.T, fail error) (devicev1.NodeServiceClient, *[]error) {
	c, internal, _ := serveCounting(t, fail)
	return c, internal
}

func serveCounting(t *testing.T, fail error) (devicev1.NodeServiceClient, *[]error, *atomic.Int32) {
	internal, calls := new([]error), new(atomic.Int32)
	s := NewServer(func(_ context.Context, _ string, err error) { *internal = append(*internal, err) })
	devicev1.RegisterNodeServiceHandler(s, node{fail: fail, calls: calls})
	mux := http.NewServeMux()
	Mount(mux, s)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return devicev1.NewNodeServiceClient(NewClient(srv.Client(), srv.URL)), internal, calls
}

func TestErrorsKeepTheirCode(t *testing.T) {
	for _, tt := range []struct {
		fail     error
		code     protocol.Code
		text     string
		internal int
	}{
		{protocol.Errorf(protocol.CodeSpent, "spent"), protocol.CodeSpent, "spent (spent)", 0},
		{fmt.Errorf("cannot unlock: %w", protocol.Errorf(protocol.CodeNotFound, "no disk")), protocol.CodeNotFound, "no disk (not-found)", 0},
		{errors.New("a secret detail"), protocol.CodeInternal, "internal error (internal)", 1},
	} {
		c, internal := serve(t, tt.fail)
		_, err := c.Challenge(t.Context(), &devicev1.ChallengeRequest{})
		if protocol.CodeOf(err) != tt.code || err.Error() != tt.text {
			t.Errorf("got %v, want %s", err, tt.text)
		}
		stream, err := c.Unlock(t.Context(), &devicev1.UnlockRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if m, err := stream.Receive(); err != nil || m.Disk != "disk1" {
			t.Fatalf("first message: %v, %v", m, err)
		}
		if _, err := stream.Receive(); protocol.CodeOf(err) != tt.code {
			t.Errorf("stream ended with %v, want %s", err, tt.code)
		}
		if len(*internal) != 2*tt.internal {
			t.Errorf("onInternal was told %d times, want %d", len(*internal), 2*tt.internal)
		}
	}
}

func TestStreamEndsWithEOF(t *testing.T) {
	c, _ := serve(t, nil)
	stream, err := c.Unlock(t.Context(), &devicev1.UnlockRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stream.Receive()
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want EOF", err)
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	c, _, calls := serveCounting(t, nil)
	_, err := c.Challenge(t.Context(), &devicev1.ChallengeRequest{SubjectDigest: strings.Repeat("x", MaxMessage+1)})
	if protocol.CodeOf(err) != protocol.CodeLimit {
		t.Errorf("got %v, want %s", err, protocol.CodeLimit)
	}
	if n := calls.Load(); n != 0 {
		t.Errorf("the call was made %d times, with something else in place of the message", n)
	}
}
