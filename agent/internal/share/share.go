// Package share publishes folders of unlocked disks over SMB.
package share

import (
	"context"
	"errors"

	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

var errDraft = errors.New("share: not written yet")

// Config says where the server runs.
type Config struct {
	RunDir  string       // private directory of the agent; the server's own lies below and is removed at its end
	SMBD    string       // path of smbd; "" looks it up
	Address string       // IP address to listen on; "" is 127.0.0.1
	Port    int          // TCP port; 0 is 445
	Keeper  *disk.Keeper // ends the server when the agent dies; may be nil in tests
}

// Share is one folder that is published.
type Share struct {
	Name string // e.g. "contosodata_BlockBlob"
	Dir  string // the folder, on a mounted disk
}

// Server is a running SMB server of one lease.
type Server struct{}

// Start returns when the server answers.
func Start(ctx context.Context, cfg Config, shares []Share, access approval.Access) (*Server, error) {
	return nil, errDraft
}

// Credentials returns the only user that the server knows. They end with it.
func (s *Server) Credentials() (user, password string) { return "", "" }

// Address returns the host and port the server listens on.
func (s *Server) Address() string { return "" }

// Done is closed when the server has ended, by Stop or by itself.
func (s *Server) Done() <-chan struct{} { return nil }

// Stop kills the server with all its connections and removes its directory.
func (s *Server) Stop(ctx context.Context) error { return errDraft }

// Cleanup removes what an earlier agent left of runDir.
func Cleanup(ctx context.Context, runDir string) error { return errDraft }
