package bitlocker

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// testSize is the size of most test volumes: not a multiple of 1 MiB, nor of
// the areas.
const testSize = 1<<20 + 4096

var testNow = time.Date(2026, 11, 21, 12, 0, 0, 700, time.UTC)

// memory is a volume in memory.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.NewReader(m.b).ReadAt(b, off)
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off+int64(len(b)) > int64(len(m.b)) {
		return 0, errors.New("write beyond the end")
	}
	return copy(m.b[off:], b), nil
}

// testRand is a source of bytes that are the same in every run.
func testRand(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

func randomBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	io.ReadFull(testRand(seed), b)
	return b
}

// testOptions are those of a volume of testSize with an external key only.
func testOptions(t testing.TB) FormatOptions {
	t.Helper()
	key, err := GenerateExternalKey(testRand(1))
	if err != nil {
		t.Fatal(err)
	}
	return FormatOptions{
		Metadata:   [3]int64{0x10000, 0x30000, 0x60000},
		HeaderCopy: 0x80000,
		ID:         MustGUID("00112233-4455-6677-8899-AABBCCDDEEFF"), Description: "TEST DISK 11/21/2026",
		Protectors: []ProtectorKey{{MustGUID("4381F759-C4F8-4DE0-BB61-FC33A831BDA5"), key}},
		Rand:       testRand(2), Now: testNow,
	}
}

// externalKey returns the first protector's key.
func externalKey(o FormatOptions) ExternalKey { return o.Protectors[0].Key.(ExternalKey) }

// formatted returns a volume made of random content, and its expected view.
func formatted(t testing.TB, o FormatOptions) (m *memory, view []byte) {
	t.Helper()
	m = &memory{b: randomBytes(3, testSize)}
	view = slices.Clone(m.b)
	for _, off := range o.Metadata {
		clear(view[off : off+areaSize])
	}
	clear(view[o.HeaderCopy : o.HeaderCopy+headerSize])
	if err := Format(m, testSize, o); err != nil {
		t.Fatal(err)
	}
	return m, view
}

func unlocked(t testing.TB, r io.ReaderAt, size int64, c Credential) *Plaintext {
	t.Helper()
	v, err := Open(r, size)
	if err != nil {
		t.Fatal(err)
	}
	p, err := v.Unlock(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Wipe)
	return p
}
