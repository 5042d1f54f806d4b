package controlplane

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// The assembled control plane ends a removed person's sessions and streams, and
// nobody else's.
func TestRemovalEndsSessionsAndStreams(t *testing.T) {
	cfg := DefaultConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.API.Address, cfg.Tunnel.Address = "127.0.0.1:0", "127.0.0.1:0"
	c, err := New(cfg, Options{Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	storetest.Fill(t, c.store, time.Now(), 1)
	storetest.Tx(t, c.store, func(ctx context.Context, tx *store.Tx) error {
		return tx.InsertSession(ctx, &store.Session{
			ID: "SES-1", Node: protocol.NodeID{Serial: storetest.Serial, Node: 1}, Order: storetest.Order, Tenant: storetest.Tenant,
			Ticket: storetest.Ticket, Engineer: storetest.Engineer, State: lockbox.SessionEnabled,
			Created: time.Now(), Expires: time.Now().Add(time.Hour),
		})
	})
	theirs, device := net.Pipe()
	defer theirs.Close()
	other, otherDevice := net.Pipe()
	defer other.Close()
	c.streams.add(storetest.Engineer, "SES-1", device)
	c.streams.add("eve@provider.example", "SES-2", otherDevice)

	admin := auth.Caller{Person: firstAdminName, Role: auth.Admin}
	_, err = c.services.Accounts.RemovePerson(t.Context(), admin, &lockboxv1.RemovePersonRequest{Name: string(storetest.Engineer)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.services.Lockbox.GetSession(t.Context(), admin, &lockboxv1.GetSessionRequest{Id: "SES-1"})
	if err != nil || s.State != lockbox.SessionDisabled {
		t.Errorf("the session is %v, %v", s, err)
	}
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the stream of the removed person ends with %v", err)
	}
	go otherDevice.Write([]byte("x"))
	if _, err := other.Read(make([]byte, 1)); err != nil {
		t.Errorf("the stream of somebody else: %v", err)
	}
}

func TestStreamsForgetWhatWasClosed(t *testing.T) {
	var s streams
	a, b := net.Pipe()
	defer a.Close()
	conn := s.add("erin@provider.example", "SES-1", b)
	if len(s.of("erin@provider.example")) != 1 {
		t.Error("the stream is not among the open ones")
	}
	conn.Close()
	if len(s.open) != 0 {
		t.Errorf("kept %v", s.open)
	}
}
