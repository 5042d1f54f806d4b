package lock

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// realDisks are BitLocker volumes with NTFS inside.
type realDisks struct {
	disk.Disk
	runDir string
}

func (r realDisks) Open(ctx context.Context, _ protocol.DiskID, key bitlocker.ExternalKey, readOnly bool) (Disk, error) {
	return disk.Open(ctx, disk.Spec{Disk: r.Disk, RunDir: r.runDir, ReadOnly: readOnly}, key)
}

func (r realDisks) Cleanup(ctx context.Context) error { return disk.Cleanup(ctx, r.runDir) }

func (r realDisks) Status() []*devicev1.DiskStatus {
	s := &devicev1.DiskStatus{Disk: string(r.ID), State: "locked"}
	if e, err := r.Evidence(r.runDir); err == nil {
		s.Exports, s.LoopDevices, s.Mounts = e.Exports, e.Loops, e.Mounts
	}
	return []*devicev1.DiskStatus{s}
}

// The lock over a real volume: files are there while it is unlocked, locking
// with an open file takes less than two seconds and leaves nothing, and the copy
// job brings what was shipped to the blob store.
func TestRealDisk(t *testing.T) {
	disktest.NeedMounts(t)
	runDir, blobs := disktest.RunDir(t), t.TempDir()
	image, diskKey := disktest.Image(t)
	disks := realDisks{disk.Disk{ID: "disk1", Image: image}, runDir}
	s := newScene(t, func(s *scene) {
		s.disks.ids = []protocol.DiskID{"disk1"}
		s.cfg.DiskIDs, s.cfg.Disks, s.cfg.Clock = s.disks.ids, disks, nil
		s.cfg.Jobs = copyjob.New(copyjob.Config{BlobRoots: []string{blobs}})
	})
	attempt := func(p protocol.Purpose) *attempt {
		a := s.newAttempt(p)
		a.key = func(protocol.DiskID) []byte { return diskKey.Bytes() }
		a.consent.Destinations = []approval.Destination{{Account: "contosodata", Endpoint: "file://" + blobs}}
		return a
	}

	a := attempt(protocol.SupportAccess)
	a.open()
	root := s.Status().Disks[0].Mounts[0]
	photo := filepath.Join(root, "contosodata_BlockBlob", "photos", "a.jpg")
	if err := os.MkdirAll(filepath.Dir(photo), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(photo, []byte(strings.Repeat("data", 100_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	held, err := os.OpenFile(photo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	took, err := s.Lock(t.Context(), Operator, "", false)
	if err != nil || took > lockWithin {
		t.Errorf("locking with an open file: %v after %v", err, took)
	}
	s.lockedBecause(Operator)
	if _, err := held.ReadAt(make([]byte, 10), 0); err == nil {
		t.Error("the open file can still be read")
	}
	disktest.NothingLeft(t, runDir, time.Second)

	a.open()
	l, ok := s.Lease()
	if !ok || len(l.Shares) != 1 {
		t.Fatalf("lease: %+v, %v", l, ok)
	}
	if _, err := copyjob.PrepareToShip(t.Context(), l.Shares); err != nil {
		t.Fatal(err)
	}
	must(s.Lock(t.Context(), EngineerDone, "", false))
	disktest.NothingLeft(t, runDir, time.Second)

	attempt(protocol.DataCopy).open()
	for end := time.Now().Add(10 * time.Second); s.Status().State != string(protocol.Locked) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	s.lockedBecause(JobCompleted)
	if got, err := os.ReadFile(filepath.Join(blobs, "contosodata", "photos", "a.jpg")); err != nil || len(got) != 400_000 {
		t.Errorf("in the blob store: %d bytes, %v", len(got), err)
	}
	disktest.NothingLeft(t, runDir, time.Second)
}
