package bitlocker

import (
	"fmt"
	"sync"
)

// Method is how a volume's sectors are encrypted; the values are those on disk.
type Method uint16

// The encryption methods of BitLocker.
const (
	AES128Elephant Method = 0x8000
	AES256Elephant Method = 0x8001
	AES128CBC      Method = 0x8002
	AES256CBC      Method = 0x8003
	AES128XTS      Method = 0x8004
	AES256XTS      Method = 0x8005
)

// methods says of each method what it is called, how long its keys are in bytes
// (all of them together, as stored), and how to make its cipher.
var methods = map[Method]struct {
	name    string
	keySize int
	cipher  func(k *kernel, key []byte, sectorSize int) sectorCipher
}{
	AES128Elephant: {"AES-CBC-128 with Elephant diffuser", 64, newElephant(16)},
	AES256Elephant: {"AES-CBC-256 with Elephant diffuser", 64, newElephant(32)},
	AES128CBC:      {"AES-CBC-128", 16, newCBC},
	AES256CBC:      {"AES-CBC-256", 32, newCBC},
	AES128XTS:      {"AES-XTS-128", 32, newXTS},
	AES256XTS:      {"AES-XTS-256", 64, newXTS},
}

// String returns the usual name, such as "AES-XTS-128".
func (m Method) String() string {
	if known, ok := methods[m]; ok {
		return known.name
	}
	return fmt.Sprintf("encryption method %#04x", uint16(m))
}

// KeySize returns how many bytes of keys the method has, as stored, or 0 for an
// unknown one.
func (m Method) KeySize() int { return methods[m].keySize }

// supported reports whether m's sectors can be read and written.
func (m Method) supported() *RefusedError {
	if methods[m].cipher == nil {
		return refused(RefusedMethod, "%v", m)
	}
	return nil
}

// sectorCipher encrypts and decrypts sectors. It may be used concurrently, but
// not after wipe.
type sectorCipher interface {
	// encrypt and decrypt work in place on whole sectors, the first of which
	// lies at byte pos of the volume.
	encrypt(sectors []byte, pos int64)
	decrypt(sectors []byte, pos int64)
	// wipe overwrites the keys and their schedules.
	wipe()
}

// newSectorCipher makes the cipher of a supported method. The caller clears key.
func newSectorCipher(m Method, key []byte, sectorSize int) (sectorCipher, error) {
	return kernels[0].newSectorCipher(m, key, sectorSize)
}

func (k *kernel) newSectorCipher(m Method, key []byte, sectorSize int) (sectorCipher, error) {
	if err := m.supported(); err != nil {
		return nil, err
	}
	if len(key) != m.KeySize() {
		return nil, damaged("%d key bytes where %v has %d", len(key), m, m.KeySize())
	}
	return methods[m].cipher(k, key, sectorSize), nil
}

// sectorBatch is the number of sectors whose tweaks or initialization vectors are
// computed together.
const sectorBatch = 32

// scratch is the working memory of a cipher call: blocks for a batch of sectors,
// a sector, and the words of those that are diffused together.
type scratch struct {
	blocks [sectorBatch * blockSize]byte
	sector [maxSectorSize]byte
	words  [maxLanes * maxSectorSize / 4]uint32
}

const maxSectorSize = 4096

var scratchPool = sync.Pool{New: func() any { return new(scratch) }}
