package bitlocker

import (
	"fmt"
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
	if err := m.supported(); err != nil {
		return nil, err
	}
	if len(key) != methods[m].keySize {
		return nil, damaged("%d key bytes where %v has %d", len(key), m, methods[m].keySize)
	}
	return methods[m].cipher(key, sectorSize), nil
}

// scratch is the working memory of a cipher call: first tweaks or an IV, and the
// masks of a sector.
type scratch struct {
	first [tweakBatch * blockSize]byte
	masks [4096]byte
}

var scratchPool = sync.Pool{New: func() any { return new(scratch) }}

// xts is AES-XTS (IEEE 1619) with the sector's number as tweak.
type xts struct {
	data, tweak *aesKey
	sectorSize  int
}

func newXTS(key []byte, sectorSize int) sectorCipher {
	half := len(key) / 2
	return &xts{newAESKey(key[:half]), newAESKey(key[half:]), sectorSize}
}

func (c *xts) wipe() {
	c.data.wipe()
	c.tweak.wipe()
}

func (c *xts) encrypt(b []byte, pos int64) { c.crypt((*aesKey).encrypt, b, pos) }
func (c *xts) decrypt(b []byte, pos int64) { c.crypt((*aesKey).decrypt, b, pos) }

// tweakBatch is the number of sectors whose tweaks are encrypted together.
const tweakBatch = 8

func (c *xts) crypt(f func(k *aesKey, b, pre, post []byte), b []byte, pos int64) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	number := uint64(pos) / uint64(c.sectorSize)
	for len(b) > 0 {
		n := min(len(b)/c.sectorSize, tweakBatch)
		first := s.first[:n*blockSize]
		clear(first)
		for i := range n {
			le.PutUint64(first[i*blockSize:], number+uint64(i))
		}
		c.tweak.encrypt(first, zeros[:], zeros[:])
		for i := range n {
			fillTweaks(s.masks[:c.sectorSize], first[i*blockSize:])
			f(c.data, b[:c.sectorSize], s.masks[:], s.masks[:])
			b = b[c.sectorSize:]
		}
		number += uint64(n)
	}
}

// fillTweaks fills masks with the tweaks of successive blocks: each is the one
// before, times the generator of GF(2^128).
func fillTweaks(masks, first []byte) {
	lo, hi := le.Uint64(first), le.Uint64(first[8:])
	for ; len(masks) >= blockSize; masks = masks[blockSize:] {
		le.PutUint64(masks, lo)
		le.PutUint64(masks[8:], hi)
		carry := hi >> 63
		hi = hi<<1 | lo>>63
		lo = lo<<1 ^ -carry&0x87
	}
}

// cbc is AES-CBC with the encrypted byte offset of the sector as IV.
type cbc struct {
	key        *aesKey
	sectorSize int
}

func newCBC(key []byte, sectorSize int) sectorCipher { return &cbc{newAESKey(key), sectorSize} }

func (c *cbc) wipe() { c.key.wipe() }

func (c *cbc) putIV(iv []byte, pos int64) {
	clear(iv)
	le.PutUint64(iv, uint64(pos))
	c.key.encrypt(iv, zeros[:], zeros[:])
}

func (c *cbc) encrypt(b []byte, pos int64) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for ; len(b) > 0; b, pos = b[c.sectorSize:], pos+int64(c.sectorSize) {
		previous := s.first[:blockSize]
		c.putIV(previous, pos)
		for i := 0; i < c.sectorSize; i += blockSize {
			block := b[i : i+blockSize]
			c.key.encrypt(block, previous, zeros[:])
			previous = block
		}
	}
}

func (c *cbc) decrypt(b []byte, pos int64) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for ; len(b) > 0; b, pos = b[c.sectorSize:], pos+int64(c.sectorSize) {
		c.putIV(s.masks[:blockSize], pos)
		copy(s.masks[blockSize:c.sectorSize], b)
		c.key.decrypt(b[:c.sectorSize], zeros[:], s.masks[:])
	}
}
