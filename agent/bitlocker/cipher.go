package bitlocker

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"fmt"
	"math/bits"
	"sync"
)

// Method is how a volume's sectors are encrypted; the values are those on disk.
type Method uint16

// The encryption methods of BitLocker. The two with the Elephant diffuser are
// named, so that they can be refused by name.
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
	cipher  func(key []byte, sectorSize int) sectorCipher
}{
	AES128Elephant: {"AES-CBC-128 with Elephant diffuser", 64, nil},
	AES256Elephant: {"AES-CBC-256 with Elephant diffuser", 64, nil},
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

// supported reports whether m's sectors can be read and written.
func (m Method) supported() error {
	if methods[m].cipher == nil {
		return unsupported("%v", m)
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
	if err := m.supported(); err != nil {
		return nil, err
	}
	if len(key) != methods[m].keySize {
		return nil, damaged("%d key bytes where %v has %d", len(key), m, methods[m].keySize)
	}
	return methods[m].cipher(key, sectorSize), nil
}

func newBlock(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("bitlocker: internal error: " + err.Error())
	}
	return b
}

// scratch holds one block of work for a cipher call. It is on the heap because
// what is passed to a [cipher.Block] is.
type scratch [aes.BlockSize]byte

var scratchPool = sync.Pool{New: func() any { return new(scratch) }}

// xts is AES-XTS (IEEE 1619) with the sector's number as tweak.
type xts struct {
	data, tweak cipher.Block
	sectorSize  int
}

func newXTS(key []byte, sectorSize int) sectorCipher {
	half := len(key) / 2
	return &xts{newBlock(key[:half]), newBlock(key[half:]), sectorSize}
}

func (c *xts) wipe() {
	wipeBlock(c.data)
	wipeBlock(c.tweak)
}

func (c *xts) encrypt(b []byte, pos int64) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for ; len(b) > 0; b, pos = b[c.sectorSize:], pos+int64(c.sectorSize) {
		t := c.firstTweak(s, pos)
		for i := 0; i < c.sectorSize; i += aes.BlockSize {
			block := b[i : i+aes.BlockSize : i+aes.BlockSize]
			t.xor(block)
			c.data.Encrypt(block, block)
			t.xor(block)
			t.double()
		}
	}
}

// decrypt uses [subtle.XORBytes] after each block for its side effect: AES
// decryption ends with the raw data key in a vector register, from which a
// signal or a preemption would save it to memory; XORBytes reuses that register.
func (c *xts) decrypt(b []byte, pos int64) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for ; len(b) > 0; b, pos = b[c.sectorSize:], pos+int64(c.sectorSize) {
		t := c.firstTweak(s, pos)
		for i := 0; i < c.sectorSize; i += aes.BlockSize {
			block := b[i : i+aes.BlockSize : i+aes.BlockSize]
			t.xor(block)
			t.put(s)
			c.data.Decrypt(block, block)
			subtle.XORBytes(block, block, s[:])
			t.double()
		}
	}
}

func (c *xts) firstTweak(s *scratch, pos int64) tweak {
	clear(s[:])
	le.PutUint64(s[:], uint64(pos)/uint64(c.sectorSize))
	c.tweak.Encrypt(s[:], s[:])
	return tweak{le.Uint64(s[:]), le.Uint64(s[8:])}
}

// tweak is an element of GF(2^128), low half first.
type tweak struct{ lo, hi uint64 }

// double multiplies by the generator.
func (t *tweak) double() {
	lo, carry := bits.Add64(t.lo, t.lo, 0)
	hi, carry := bits.Add64(t.hi, t.hi, carry)
	t.lo, t.hi = lo^(-carry&0x87), hi
}

func (t *tweak) xor(block []byte) {
	le.PutUint64(block, le.Uint64(block)^t.lo)
	le.PutUint64(block[8:], le.Uint64(block[8:])^t.hi)
}

func (t *tweak) put(s *scratch) {
	le.PutUint64(s[:], t.lo)
	le.PutUint64(s[8:], t.hi)
}

// cbc is AES-CBC with the encrypted byte offset of the sector as IV.
type cbc struct {
	block      cipher.Block
	sectorSize int
}

func newCBC(key []byte, sectorSize int) sectorCipher { return &cbc{newBlock(key), sectorSize} }

func (c *cbc) wipe() { wipeBlock(c.block) }

func (c *cbc) iv(s *scratch, pos int64) []byte {
	clear(s[:])
	le.PutUint64(s[:], uint64(pos))
	c.block.Encrypt(s[:], s[:])
	return s[:]
}

func (c *cbc) encrypt(b []byte, pos int64) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for ; len(b) > 0; b, pos = b[c.sectorSize:], pos+int64(c.sectorSize) {
		previous := c.iv(s, pos)
		for i := 0; i < c.sectorSize; i += aes.BlockSize {
			block := b[i : i+aes.BlockSize]
			subtle.XORBytes(block, block, previous)
			c.block.Encrypt(block, block)
			previous = block
		}
	}
}

// decrypt goes backwards through a sector, where the previous ciphertext block
// is still in place.
func (c *cbc) decrypt(b []byte, pos int64) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for ; len(b) > 0; b, pos = b[c.sectorSize:], pos+int64(c.sectorSize) {
		for i := c.sectorSize - aes.BlockSize; i >= 0; i -= aes.BlockSize {
			block := b[i : i+aes.BlockSize]
			c.block.Decrypt(block, block)
			if i > 0 {
				subtle.XORBytes(block, block, b[i-aes.BlockSize:i])
			}
		}
		subtle.XORBytes(b, b[:aes.BlockSize], c.iv(s, pos))
	}
}
