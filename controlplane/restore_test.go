package controlplane

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
)

// A token is for once. One that was open when the backup was made may have been
// used since, and a restore must not make it good again.
func TestARestoreClosesOpenTokens(t *testing.T) {
	cfg := DefaultConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.API.Address, cfg.Tunnel.Address = "127.0.0.1:0", "127.0.0.1:0"
	c, err := New(cfg, Options{Log: zerolog.Nop()}) // with a login token for the first administrator
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, c.store, time.Now(), 1)
	node := protocol.NodeID{Serial: storetest.Serial, Node: 1}
	storetest.Tx(t, c.store, func(ctx context.Context, tx *store.Tx) error {
		for id, used := range map[string]time.Time{"open": {}, "used": time.Now()} {
			err := tx.InsertJoinToken(ctx, &store.JoinToken{ID: id, SecretHash: []byte{1}, Order: storetest.Order, Node: node, Expires: time.Now().Add(time.Hour), Used: used})
			if err != nil {
				return err
			}
			err = tx.InsertLoginToken(ctx, &store.LoginToken{ID: id, Person: storetest.Engineer, SecretHash: []byte{1}, Expires: time.Now().Add(time.Hour), Used: used})
			if err != nil {
				return err
			}
		}
		return nil
	})
	file := filepath.Join(t.TempDir(), "backup")
	if err := Backup(t.Context(), cfg, file, BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	if err := Restore(cfg, file); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(cfg.DataDir, "*"+restoring+"*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	storetest.Tx(t, storetest.Open(t, cfg.StorePath()), func(ctx context.Context, tx *store.Tx) error {
		for id, want := range map[string]protocol.Code{"open": protocol.CodeNotFound, "used": ""} {
			if _, err := tx.JoinToken(ctx, id); protocol.CodeOf(err) != want {
				t.Errorf("the join token %q: %v", id, err)
			}
			if _, err := tx.LoginToken(ctx, id); protocol.CodeOf(err) != want {
				t.Errorf("the login token %q: %v", id, err)
			}
		}
		return nil
	})
}
