package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRenameNew has many move files to one name at once, each with folders that it
// opened itself, as processes of their own would.
func TestRenameNew(t *testing.T) {
	for name, rename := range map[string]func(*os.File, string, *os.File, string) error{"flag": RenameNew, "lock": lockedRename} {
		t.Run(name, func(t *testing.T) {
			for range 50 {
				oneTarget(t, rename)
			}
		})
	}
}

// lockedRename is [RenameNew] as on ntfs-3g.
func lockedRename(from *os.File, old string, to *os.File, name string) error {
	unlock, err := LockNames(to)
	if err != nil {
		return err
	}
	defer unlock()
	return renameFree(from, old, to, name)
}

func oneTarget(t *testing.T, rename func(*os.File, string, *os.File, string) error) {
	const movers = 8
	from, to := t.TempDir(), t.TempDir()
	var moved atomic.Int32
	var all sync.WaitGroup
	for i := range movers {
		name := fmt.Sprint("f", i)
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			a, errA := os.Open(from)
			b, errB := os.Open(to)
			if err := errors.Join(errA, errB); err != nil {
				t.Error(err)
				return
			}
			defer a.Close()
			defer b.Close()
			switch err := rename(a, name, b, "target"); err {
			case nil:
				moved.Add(1)
			case unix.EEXIST:
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	left, err := os.ReadDir(from)
	if err != nil || moved.Load() != 1 || len(left) != movers-1 {
		t.Fatalf("%d moved, %d left, %v: want 1 and %d", moved.Load(), len(left), err, movers-1)
	}
}
