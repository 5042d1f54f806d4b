package controlplane

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// keeper is a control plane with the recordings of a node.
type keeper struct {
	*testing.T
	*ControlPlane
}

var (
	recorderNode = protocol.NodeID{Serial: storetest.Serial, Node: 1}
	recorderKey  = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
)

func keeperConfig(t *testing.T) Config {
	cfg := DefaultConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.API.Address, cfg.Tunnel.Address = "127.0.0.1:0", "127.0.0.1:0"
	return cfg
}

func keep(t *testing.T, cfg Config) keeper {
	t.Helper()
	c, err := New(cfg, Options{Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return keeper{t, c}
}

func recID(n int) string { return fmt.Sprintf("REC-%032x", n) }

// recorded is recording n, of so many outputs.
func recorded(t *testing.T, n, outputs int) []byte {
	t.Helper()
	e, data, err := recording.NewEncoder(recording.Meta{ID: recID(n), Kind: recording.Shares, Node: recorderNode.String(), Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	for range outputs {
		frame, err := e.Append(time.Now(), recording.Output{Channel: "c1", Data: bytes.Repeat([]byte{byte(n)}, 1000)})
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, frame...)
	}
	end, err := e.End(time.Now(), recording.EndDone, recorderKey)
	if err != nil {
		t.Fatal(err)
	}
	return append(data, end...)
}

// bring sends a recording from an offset up to another, as its node does.
func (k keeper) bring(n int, data []byte, from, to int) *devicev1.AppendRecordingResponse {
	k.Helper()
	in := &devicev1.AppendRecordingRequest{Recording: recID(n), Offset: int64(from), Data: data[from:to], Closed: to == len(data)}
	if in.Closed {
		in.Digest = string(approval.DigestOf(data))
	}
	out, err := k.services.Recordings.Append(k.Context(), recorderNode, in)
	if err != nil {
		k.Fatal(err)
	}
	return out
}

// played is what an administrator is shown of a recording.
func (k keeper) played(n int) ([]byte, error) {
	var data []byte
	err := k.services.Recordings.ReadRecording(k.Context(), auth.Caller{Person: "ada@provider.example", Role: auth.Admin}, &lockboxv1.ReadRecordingRequest{Id: recID(n)},
		func(m *lockboxv1.ReadRecordingResponse) error { data = append(data, m.Data...); return nil })
	return data, err
}

// TestBackupHasRecordings: those that had ended are whole after a restore and
// verify; one that grew goes on where the backup was; what came later is asked for
// again.
func TestBackupHasRecordings(t *testing.T) {
	first := keep(t, keeperConfig(t))
	storetest.Fill(t, first.store, time.Now(), 1)
	storetest.Tx(t, first.store, func(ctx context.Context, tx *store.Tx) error {
		n, err := tx.Node(ctx, recorderNode)
		if err != nil {
			return err
		}
		n.KeyFingerprint = string(approval.KeyFingerprint(recorderKey.Public().(ed25519.PublicKey)))
		return tx.UpdateNode(ctx, &n)
	})
	ended, grew, later, gone := recorded(t, 1, 400), recorded(t, 2, 400), recorded(t, 3, 4), recorded(t, 4, 4)
	for at := 0; at < len(ended); {
		at = int(first.bring(1, ended, at, min(at+200_000, len(ended))).Acked)
	}
	there := int(first.bring(2, grew, 0, 150_000).Acked)
	first.bring(4, gone, 0, len(gone))
	// The daemon is writing a frame, and one was deleted meanwhile.
	f, err := os.OpenFile(filepath.Join(first.cfg.RecordingsDir(), recID(2)+".rec"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Write(grew[there : there+500])
	f.Close()
	if err := os.Remove(filepath.Join(first.cfg.RecordingsDir(), recID(4)+".rec")); err != nil {
		t.Fatal(err)
	}
	file, without := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "without")
	if err := Backup(t.Context(), first.cfg, file, BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := Backup(t.Context(), first.cfg, without, BackupOptions{WithoutRecordings: true}); err != nil {
		t.Fatal(err)
	}
	first.bring(3, later, 0, len(later))
	if err := first.close(); err != nil {
		t.Fatal(err)
	}

	t.Run("with recordings", func(t *testing.T) {
		cfg := keeperConfig(t)
		if err := Restore(cfg, file); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(cfg.RecordingsDir(), "*"+restoring)); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if info, err := os.Stat(filepath.Join(cfg.RecordingsDir(), recID(1)+".rec")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("a recording: %v, %v", info, err)
		}
		k := keep(t, cfg)
		defer k.close()
		if data, err := k.played(1); err != nil || !bytes.Equal(data, ended) {
			t.Errorf("%d bytes are there of %d: %v", len(data), len(ended), err)
		}
		if out := k.bring(1, ended, len(ended), len(ended)); !out.Confirmed {
			t.Errorf("what is there is asked for again: %v", out)
		}
		if data, err := os.ReadFile(filepath.Join(cfg.RecordingsDir(), recID(2)+".rec")); err != nil || !bytes.Equal(data, grew[:there]) {
			t.Errorf("of one that grew %d bytes are there, want %d: %v", len(data), there, err)
		}
		// Its node believes that more is there.
		at := int(k.bring(2, grew, 300_000, 310_000).Acked)
		if at != there {
			t.Errorf("one that grew goes on from %d, not from %d", at, there)
		}
		for at < len(grew) {
			at = int(k.bring(2, grew, at, min(at+200_000, len(grew))).Acked)
		}
		// Its node believes that all is there.
		if out := k.bring(3, later, len(later), len(later)); out.Confirmed || out.Acked != 0 {
			t.Errorf("what came after the backup: %v", out)
		}
		k.bring(3, later, 0, len(later))
		for n, want := range map[int][]byte{2: grew, 3: later} {
			data, err := k.played(n)
			if _, bad := recording.Verify(bytes.NewReader(data), recording.Expect{Digest: approval.DigestOf(want)}); err != nil || bad != nil {
				t.Errorf("recording %d: %v, %v", n, err, bad)
			}
		}
	})
	t.Run("without", func(t *testing.T) {
		cfg := keeperConfig(t)
		if err := Restore(cfg, without); err != nil {
			t.Fatal(err)
		}
		k := keep(t, cfg)
		defer k.close()
		if _, err := k.played(1); protocol.CodeOf(err) != protocol.CodeNotFound || !strings.Contains(err.Error(), "not here") {
			t.Errorf("played: %v", err)
		}
		at := int(k.bring(1, ended, len(ended), len(ended)).Acked)
		for at < len(ended) {
			at = int(k.bring(1, ended, at, min(at+200_000, len(ended))).Acked)
		}
		if data, err := k.played(1); err != nil || !bytes.Equal(data, ended) {
			t.Errorf("sent again: %v", err)
		}
	})
	if a, b := size(t, file), size(t, without); a-b < int64(len(ended)+there) || a-b > int64(len(ended)+there)+10_000 {
		t.Errorf("the backups have %d and %d bytes", a, b)
	}
}

func size(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
