package custody

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
)

// MasterKeySize is the size of a master key in bytes.
const MasterKeySize = 32

// ServiceKey is the ID of the first master key. Those after it are called
// service-key/2 and so on.
const ServiceKey = "service-key"

// maxMasterKeys bounds how many keys a file holds. Two are usual, during a
// rotation.
const maxMasterKeys = 16

// Local is the key service over a master key file. It wraps with AES-256-GCM.
//
// The file holds 32 bytes, the first master key. From the first rotation on it
// is text, a line for each key: its version and the key in hexadecimal. The last
// one is current.
type Local struct {
	path string

	mu   sync.Mutex
	keys []masterKey // ascending; guarded by mu
}

type masterKey struct {
	version int
	aead    cipher.AEAD
}

// MasterKeyID returns the ID of a version of the master key, 1 or more.
func MasterKeyID(version int) string {
	if version == 1 {
		return ServiceKey
	}
	return ServiceKey + "/" + strconv.Itoa(version)
}

// IsMasterKeyID reports whether an ID is one of a master key.
func IsMasterKeyID(id string) bool { return id == ServiceKey || strings.HasPrefix(id, ServiceKey+"/") }

func (k masterKey) ID() string { return MasterKeyID(k.version) }

// Wrap encrypts key under the master key.
func (k masterKey) Wrap(_ context.Context, key, aad []byte) ([]byte, error) {
	return k.aead.Seal(nil, nil, key, aad), nil
}

// Unwrap decrypts what Wrap encrypted.
func (k masterKey) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	key, err := k.aead.Open(nil, nil, wrapped, aad)
	if err != nil {
		return nil, ErrNotWrapped
	}
	return key, nil
}

// OpenMasterKey reads the master key file at path, and makes one if there is
// none and create is set. It refuses a file that anyone but its owner can use,
// and one that holds no keys.
func OpenMasterKey(path string, create bool) (*Local, error) {
	if _, err := os.Lstat(path); create && errors.Is(err, fs.ErrNotExist) {
		if err := makeMasterKey(path); err != nil {
			return nil, fmt.Errorf("cannot make the master key: %w", err)
		}
	}
	ring, err := readKeyring(path)
	if err != nil {
		return nil, err
	}
	defer ring.wipe()
	l := &Local{path: path}
	return l, l.use(ring)
}

// MasterKeyIDs lists the IDs of the keys in a master key file.
func MasterKeyIDs(path string) ([]string, error) {
	ring, err := readKeyring(path)
	if err != nil {
		return nil, err
	}
	defer ring.wipe()
	var ids []string
	for _, k := range ring {
		ids = append(ids, MasterKeyID(k.version))
	}
	return ids, nil
}

// use makes the keys of a ring those of l.
func (l *Local) use(ring keyring) error {
	var keys []masterKey
	for _, k := range ring {
		aead, err := NewAEAD(k.key)
		if err != nil {
			return fmt.Errorf("cannot use the master key: %w", err)
		}
		keys = append(keys, masterKey{k.version, aead})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys = keys
	return nil
}

// Current returns the newest master key.
func (l *Local) Current(context.Context) (KeyWrapper, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keys[len(l.keys)-1], nil
}

// Key returns the master key of that ID.
func (l *Local) Key(_ context.Context, id string) (KeyWrapper, error) {
	if !IsMasterKeyID(id) {
		return nil, ErrForeignKey
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.keys, func(k masterKey) bool { return k.ID() == id })
	if i < 0 {
		return nil, fmt.Errorf("master key %q is not in %s: restore the store and the master key from one backup", id, l.path)
	}
	return l.keys[i], nil
}

// Rotate adds a key to the file.
func (l *Local) Rotate(context.Context) error {
	return l.rewrite(func(ring keyring) (keyring, error) {
		if len(ring) == maxMasterKeys {
			return ring, fmt.Errorf("%s holds %d keys: finish a rotation before the next", l.path, len(ring))
		}
		key := make([]byte, MasterKeySize)
		rand.Read(key)
		return append(ring, ringKey{ring[len(ring)-1].version + 1, key}), nil
	})
}

// Retire removes all keys but the newest from the file and overwrites what the
// file was before.
func (l *Local) Retire(context.Context) error {
	return l.rewrite(func(ring keyring) (keyring, error) { return ring[len(ring)-1:], nil })
}

// rewrite replaces the file, durably, and then its keys in memory.
func (l *Local) rewrite(change func(keyring) (keyring, error)) error {
	old, err := readKeyring(l.path)
	if err != nil {
		return err
	}
	defer old.wipe()
	next, err := change(old)
	defer next.wipe()
	if err != nil {
		return err
	}
	before, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot rewrite the master key: %w", err)
	}
	defer before.Close()
	text := next.encode()
	defer clear(text)
	if err := writeKeyFile(l.path, text); err != nil {
		return fmt.Errorf("cannot rewrite the master key: %w", err)
	}
	if err := l.use(next); err != nil {
		return err
	}
	return overwrite(before)
}

// overwrite fills a file whose name is gone with zeros.
func overwrite(f *os.File) error {
	info, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, info.Size()), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("cannot overwrite the old master key: %w", err)
	}
	return nil
}

// makeMasterKey returns when the file is on disk, whole, under its name.
func makeMasterKey(path string) error {
	key := make([]byte, MasterKeySize)
	defer clear(key)
	rand.Read(key)
	return writeKeyFile(path, key)
}

func writeKeyFile(path string, data []byte) error {
	if err := renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600)); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// keyring is what a master key file holds.
type keyring []ringKey

type ringKey struct {
	version int
	key     []byte
}

func (r keyring) wipe() {
	for _, k := range r {
		clear(k.key)
	}
}

func (r keyring) encode() []byte {
	var b []byte
	for _, k := range r {
		b = strconv.AppendInt(b, int64(k.version), 10)
		b = hex.AppendEncode(append(b, ' '), k.key)
		b = append(b, '\n')
	}
	return b
}

// parseKeyring reads 32 bytes, or lines of text in ascending order.
func parseKeyring(data []byte) (keyring, error) {
	if len(data) == MasterKeySize {
		return keyring{{1, bytes.Clone(data)}}, nil
	}
	var ring keyring
	for line := range bytes.Lines(data) {
		version, text, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
		n, err := strconv.Atoi(string(version))
		key := make([]byte, hex.DecodedLen(len(text)))
		if _, bad := hex.Decode(key, text); err != nil || bad != nil || len(key) != MasterKeySize || n < 1 || len(ring) > 0 && n <= ring[len(ring)-1].version {
			clear(key)
			ring.wipe()
			return nil, fmt.Errorf("has %d bytes: neither 32 nor lines of a version and a key", len(data))
		}
		ring = append(ring, ringKey{n, key})
	}
	if len(ring) == 0 || len(ring) > maxMasterKeys {
		ring.wipe()
		return nil, fmt.Errorf("has %d bytes and %d keys: want 1 to %d keys", len(data), len(ring), maxMasterKeys)
	}
	return ring, nil
}

// maxKeyFile is more than a file of [maxMasterKeys] keys has, in bytes.
const maxKeyFile = 4096

func readKeyring(path string) (keyring, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the master key, without which no disk can be opened: %w", err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("master key %s is not a regular file", path)
	case mode.Perm()&0o177 != 0:
		return nil, fmt.Errorf("master key %s has mode %04o, wider than 0600: run chmod 600 on it once nobody else can have read it", path, mode.Perm())
	case info.Size() > maxKeyFile:
		return nil, fmt.Errorf("master key %s has %d bytes and holds no keys: restore it from a backup", path, info.Size())
	}
	data, err := os.ReadFile(path)
	defer clear(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read the master key: %w", err)
	}
	ring, err := parseKeyring(data)
	if err != nil {
		return nil, fmt.Errorf("master key %s %w: restore it from a backup", path, err)
	}
	return ring, nil
}
