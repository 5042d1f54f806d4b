package store_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
)

// needRoot skips where mounting is impossible, but never in CI.
func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") == "true":
		t.Fatal("this test mounts file systems and has to run as root")
	default:
		t.Skip("this test mounts file systems: run it as root")
	}
}

// smallDisk mounts an empty file system of 16 MiB that can fill up and freeze.
func smallDisk(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "truncate", "-s", "16M", image)
	run(t, "mkfs.ext4", "-q", "-m", "0", image)
	run(t, "mount", "-o", "loop", image, mnt)
	t.Cleanup(func() {
		for range 50 {
			if unix.Unmount(mnt, 0) == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Error("cannot unmount " + mnt)
	})
	return mnt
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func note(s *store.Store, n int) error {
	return s.Tx(context.Background(), func(tx *store.Tx) error {
		line := store.HistoryLine{Time: at(0), What: strconv.Itoa(n), Detail: string(make([]byte, 8<<10))}
		return tx.AddHistory(context.Background(), store.OrderHistory, "o", line)
	})
}

func notes(t *testing.T, s *store.Store) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := s.View(t.Context(), func(tx *store.Tx) error {
		lines, err := tx.History(t.Context(), store.OrderHistory, "o")
		for _, l := range lines {
			found[l.What] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestFullDiskRefusesAndLosesNothing(t *testing.T) {
	mnt := smallDisk(t)
	path := filepath.Join(mnt, "store.db")
	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var stored int
	var refused error
	for refused == nil {
		begin := time.Now()
		if refused = note(s, stored); refused == nil {
			stored++
		}
		if took := time.Since(begin); took > store.Limit+time.Second {
			t.Fatalf("note %d took %s", stored, took)
		}
		if stored > 10_000 {
			t.Fatal("the disk never filled up")
		}
	}
	if protocol.CodeOf(refused) != protocol.CodeStorageFull {
		t.Fatalf("a full disk gave %v, want storage-full", refused)
	}
	if stored == 0 {
		t.Fatal("nothing was stored before")
	}
	check := func(s *store.Store) {
		t.Helper()
		found := notes(t, s)
		for n := range stored {
			if !found[strconv.Itoa(n)] {
				t.Fatalf("note %d of %d is lost", n, stored)
			}
		}
		if found[strconv.Itoa(stored)] {
			t.Error("the refused note is there")
		}
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = storetest.Open(t, path)
	check(s)
}

func TestFrozenDiskRefusesWithinLimit(t *testing.T) {
	mnt := smallDisk(t)
	s, err := store.Open(t.Context(), filepath.Join(mnt, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := note(s, 1); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(mnt)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const fifreeze, fithaw = 0xc0045877, 0xc0045878
	if err := unix.IoctlSetInt(int(dir.Fd()), fifreeze, 0); err != nil {
		t.Skipf("this file system cannot be frozen: %v", err)
	}
	thawed := false
	thaw := func() {
		if !thawed {
			thawed = true
			unix.IoctlSetInt(int(dir.Fd()), fithaw, 0)
		}
	}
	defer thaw()
	begin := time.Now()
	err = note(s, 2)
	took := time.Since(begin)
	second := time.Now()
	errSecond := note(s, 3)
	tookSecond := time.Since(second)
	thaw()
	if protocol.CodeOf(err) != protocol.CodeUnavailable || took > store.Limit+time.Second {
		t.Errorf("a frozen disk gave %v after %s, want unavailable within %s", err, took, store.Limit)
	}
	if protocol.CodeOf(errSecond) != protocol.CodeUnavailable || tookSecond > store.Limit+time.Second {
		t.Errorf("the next call got %v after %s", errSecond, tookSecond)
	}
	// Control: once the disk answers again, so does the store.
	deadline := time.Now().Add(store.Limit)
	for err = note(s, 4); err != nil && time.Now().Before(deadline); err = note(s, 4) {
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("after the disk is back: %v", err)
	}
	if found := notes(t, s); !found["1"] || !found["4"] {
		t.Errorf("found %v", found)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
