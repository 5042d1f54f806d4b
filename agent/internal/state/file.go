package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"

	"github.com/databox-lockbox/lockbox/protocol"
)

// WriteFile puts data in the place of what path held, with mode 0600. When it
// returns nil, the new content survives a loss of power; when it returns an
// error, path holds the old content or the new one, whole.
func WriteFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o600)); err != nil {
		return Coded(err)
	}
	return SyncDir(dir)
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return Coded(errors.Join(dir.Sync(), dir.Close()))
}

// removeTemporary removes what a WriteFile left that was interrupted.
func removeTemporary(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && e.Type().IsRegular() {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// PrivateDir makes the directory at path if it is missing, and refuses one that
// somebody else owns or may enter. It removes what an interrupted [WriteFile]
// left there, so the directory must be in use by nobody else yet.
func PrivateDir(path string) error {
	if err := os.Mkdir(path, 0o700); err == nil {
		return SyncDir(filepath.Dir(path))
	} else if !errors.Is(err, fs.ErrExist) {
		return Coded(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("directory %s may be entered by others (%04o): chmod it to 0700", path, perm)
	}
	if stat := info.Sys().(*syscall.Stat_t); int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("directory %s belongs to user %d: the agent runs as user %d", path, stat.Uid, os.Geteuid())
	}
	return removeTemporary(path)
}

// Coded gives an error of the file system [protocol.CodeStorageFull] if there
// is no room, by whatever limit. Other errors and nil stay as they are.
func Coded(err error) error {
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, full) {
			return protocol.Errorf(protocol.CodeStorageFull, "%v: free some space on that file system", err)
		}
	}
	return err
}
