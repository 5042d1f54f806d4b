package audit_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

func TestFullDiskRefusesIntents(t *testing.T) {
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") == "true":
		t.Fatal("this test mounts a file system and has to run as root")
	default:
		t.Skip("this test mounts a file system: run it as root")
	}
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(mnt, unix.MNT_DETACH)
	path := filepath.Join(mnt, "store.db")
	s := storetest.Open(t, path)
	a := open(t, s)
	filler := filepath.Join(mnt, "filler")
	var recorded int64
	for {
		begin := time.Now()
		_, err := a.RecordIntent(t.Context(), intent(int(recorded)))
		if took := time.Since(begin); took > store.Limit+time.Second {
			t.Fatalf("a record took %s", took)
		}
		if err != nil {
			if protocol.CodeOf(err) != protocol.CodeNotRecorded {
				t.Fatalf("a full disk gave %v, want not-recorded", err)
			}
			break
		}
		if recorded++; recorded == 5 {
			fill(t, filler)
		}
		if recorded > 10_000 {
			t.Fatal("the disk never filled up")
		}
	}
	// Control: with room on the disk, the log goes on and nothing is lost.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RecordIntent(t.Context(), intent(0)); err != nil {
		t.Fatal(err)
	}
	if got := verify(t, a).Operations[auditlog.OpUnlockIntent]; got != recorded+1 {
		t.Errorf("%d records were acknowledged, the log holds %d", recorded+1, got)
	}
}

// fill writes until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
}
