package agent

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// sharing returns what serves shares in tests, over NFS too.
func sharing(t *testing.T) shares {
	t.Helper()
	cfg := DefaultConfig()
	cfg.RunDir = disktest.RunDir(t)
	cfg.Share.NFS.Enabled, cfg.Share.NFS.Port = true, 0
	self := must(os.Executable())
	return must(newShares(cfg, Options{NFS: []string{"/usr/bin/env", modeVariable + "=nfs", self}}, nil, nil))
}

// TestNFSOpensOnlyWhenApproved starts the shares of a lease whose approvers saw
// that NFS is on, and of one whose approvers did not.
func TestNFSOpensOnlyWhenApproved(t *testing.T) {
	disktest.NeedMounts(t)
	s := sharing(t)
	folders := []lock.Folder{{Name: "contosodata_BlockBlob", Dir: t.TempDir()}}
	for _, protocols := range [][]approval.Protocol{nil, {"webdav"}, {approval.NFS}} {
		server, err := s.Start(t.Context(), lock.Lease{Access: approval.ReadOnly, Protocols: protocols}, folders)
		if err != nil {
			t.Fatal(err)
		}
		services := server.Services()
		got := services[len(services)-1]
		if got.Protocol != share.ProtocolNFS {
			t.Fatalf("services: %v", services)
		}
		if protocols == nil || protocols[0] != approval.NFS {
			if got.Address != "" || !strings.Contains(got.Trouble, "approved request") {
				t.Errorf("approved %v: %+v", protocols, got)
			}
		} else if conn, err := net.Dial("tcp", got.Address); err != nil || got.Trouble != "" {
			t.Errorf("approved %v: %+v, %v", protocols, got, err)
		} else {
			conn.Close()
		}
		if err := server.Stop(context.Background(), lock.AgentStopped); err != nil {
			t.Error(err)
		}
		<-server.Done()
	}
	if got := s.Services(); got[len(got)-1].Trouble != "" {
		t.Errorf("while locked: %v", got)
	}
}
