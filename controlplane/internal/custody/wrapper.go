package custody

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/renameio/v2"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// KeyWrapper encrypts keys for storage. Implementations may be called
// concurrently, keep nothing of what they are given, and return in time when
// ctx ends.
type KeyWrapper interface {
	// ID names the wrapping key. It is stored with everything wrapped by it.
	ID() string
	// Wrap encrypts key and binds aad to it.
	Wrap(ctx context.Context, key, aad []byte) ([]byte, error)
	// Unwrap returns the key that Wrap was given, if aad is the same. The
	// caller wipes it.
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

// MasterKeySize is the size of a master key file in bytes.
const MasterKeySize = 32

// ServiceKey is the ID of the wrapper over a master key file.
const ServiceKey = "service-key"

// Local wraps with AES-256-GCM under a master key from a file.
type Local struct{ aead cipher.AEAD }

// OpenMasterKey reads the master key file at path, and makes one if there is
// none and create is set. It refuses a file that anyone but its owner can use,
// and one that is not 32 bytes long.
func OpenMasterKey(path string, create bool) (*Local, error) {
	if _, err := os.Lstat(path); create && errors.Is(err, fs.ErrNotExist) {
		if err := makeMasterKey(path); err != nil {
			return nil, fmt.Errorf("cannot make the master key: %w", err)
		}
	}
	key, err := readMasterKey(path)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("cannot use the master key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("cannot use the master key: %w", err)
	}
	return &Local{aead}, nil
}

// makeMasterKey returns when the file is on disk, whole, under its name.
func makeMasterKey(path string) error {
	key := make([]byte, MasterKeySize)
	defer clear(key)
	rand.Read(key)
	return renameio.WriteFile(path, key, 0o600, renameio.WithStaticPermissions(0o600))
}

func readMasterKey(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the master key, without which no disk can be opened: %w", err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("master key %s is not a regular file", path)
	case mode.Perm()&0o177 != 0:
		return nil, fmt.Errorf("master key %s has mode %04o, wider than 0600: run chmod 600 on it once nobody else can have read it", path, mode.Perm())
	case info.Size() != MasterKeySize:
		return nil, fmt.Errorf("master key %s has %d bytes, want %d: restore it from a backup", path, info.Size(), MasterKeySize)
	}
	key, err := os.ReadFile(path)
	if err == nil && len(key) != MasterKeySize {
		err = errors.New("its size changed while it was read")
	}
	if err != nil {
		clear(key)
		return nil, fmt.Errorf("cannot read the master key: %w", err)
	}
	return key, nil
}

// ID returns [ServiceKey].
func (*Local) ID() string { return ServiceKey }

// Wrap encrypts key under the master key.
func (l *Local) Wrap(_ context.Context, key, aad []byte) ([]byte, error) {
	return l.aead.Seal(nil, nil, key, aad), nil
}

// Unwrap decrypts what [Local.Wrap] encrypted.
func (l *Local) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	key, err := l.aead.Open(nil, nil, wrapped, aad)
	if err != nil {
		return nil, errors.New("it was wrapped by another master key or for another disk, or was changed: restore the store and the master key from one backup")
	}
	return key, nil
}

// associatedData binds a wrapped key to its place: every field with its length
// before it, so that no two places have the same bytes.
func associatedData(k store.DiskKey) []byte {
	var b []byte
	for _, field := range []string{
		"databox-custody-v1", string(k.Tenant), string(k.Order), k.Node.String(), string(k.Disk), k.Kind, k.Wrapper,
	} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return b
}
