package agent

import (
	"context"

	"github.com/databox-lockbox/lockbox/agent/internal/cli"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/agent/internal/share/nfs"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// ServedFolder is one folder that is served over NFS to this machine, read-only, as
// the agent serves shares, without an agent: for measuring. Nothing is recorded.
type ServedFolder struct{ running share.Running }

// ServeFolder serves folder under name. The program is databox-agent's path. It needs
// root. The caller ends with [ServedFolder.Close].
func ServeFolder(ctx context.Context, program, name, folder string) (*ServedFolder, error) {
	protocol := nfs.New(nfs.Config{Self: []string{program, cli.NFSCommand}})
	running, err := protocol.Start(ctx, []share.Share{{Name: name, Dir: folder}}, approval.ReadOnly, unrecorded{})
	if err != nil {
		return nil, err
	}
	return &ServedFolder{running}, nil
}

// Address returns the host and port at which the folder is served.
func (f *ServedFolder) Address() string { return f.running.Address() }

// Close ends the server.
func (f *ServedFolder) Close(ctx context.Context) error { return f.running.Stop(ctx) }

// unrecorded keeps nothing of what clients do.
type unrecorded struct{}

func (unrecorded) File(recording.FileEvent) error { return nil }
func (unrecorded) Failed() <-chan struct{}        { return nil }

func (unrecorded) Err() error { return nil }
