package custody_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// childDir makes this test binary a control plane that unlocks once, as the
// file plan.json in that directory says.
const childDir = "LOCKBOX_TEST_CUSTODY_CHILD"

// plan is what a child needs to be the control plane of a world.
type plan struct {
	Store, Master   string
	Service, LogKey []byte
	Nodes           map[string]string // base URLs
}

// Node reaches the fake nodes in the parent.
func (p plan) Node(id protocol.NodeID) (devicev1.NodeServiceClient, error) {
	return devicev1.NewNodeServiceClient(rpc.NewClient(http.DefaultClient, p.Nodes[id.String()])), nil
}

func child(dir string) {
	ctx := context.Background()
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "plan.json"))
	check(err)
	var p plan
	check(json.Unmarshal(data, &p))
	s, err := store.Open(ctx, p.Store)
	check(err)
	log, err := audit.New(ctx, audit.Config{Store: s, Key: ed25519.PrivateKey(p.LogKey)})
	check(err)
	keys, err := custody.OpenMasterKey(p.Master, false)
	check(err)
	c := custody.New(custody.Config{
		Store: s, Audit: log, Nodes: p, Keys: keys, Signer: ed25519.PrivateKey(p.Service), DeadMan: deadMan, Logger: zerolog.Nop(),
	})
	_, err = c.Unlock(ctx, engineer, custody.UnlockIn{Request: requestID}, nil)
	check(err)
}

func TestKillInTheMiddleEndsLocked(t *testing.T) {
	for _, step := range []string{"challenge", "unlock", "after unlock", "commit", "after commit"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t, 2)
			dir := t.TempDir()
			p := plan{Store: w.store.Path(), Master: w.master, Service: w.service, LogKey: w.logKey, Nodes: map[string]string{}}
			for _, n := range w.nodes {
				p.Nodes[n.id.String()] = n.server.URL
			}
			data := must(json.Marshal(p))(t)
			if err := os.WriteFile(filepath.Join(dir, "plan.json"), data, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childDir+"="+dir)
			started := make(chan struct{})
			var once sync.Once
			kill := func(at string) error {
				if strings.TrimPrefix(step, "after ") == at {
					<-started
					once.Do(func() { cmd.Process.Signal(unix.SIGKILL) })
				}
				return nil
			}
			bad := w.nodes[0]
			if strings.HasPrefix(step, "after") {
				bad.hook(nil, kill)
			} else {
				bad.hook(kill, nil)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			close(started)
			if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
				t.Fatalf("the child ended by itself: %v", err)
			}
			bad.hook(nil, nil)
			if a := w.attempts(); len(a) != 1 || a[0].State == store.AttemptCommitted || a[0].State == store.AttemptFailed {
				t.Fatalf("attempts after the kill: %+v", a)
			}
			left, err := w.custody.Recover(t.Context())
			if err != nil || left != 0 {
				t.Fatalf("%d attempts left, %v", left, err)
			}
			w.allAre(protocol.Locked)
			if a := w.attempts()[0]; a.State != store.AttemptFailed {
				t.Errorf("attempt %+v", a)
			}
			// The approval is not spent: it opens again.
			if _, err := w.unlock(); err != nil {
				t.Error(err)
			}
			w.allAre(protocol.Unlocked)
		})
	}
}
