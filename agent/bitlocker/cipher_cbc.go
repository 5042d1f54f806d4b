package bitlocker

import "crypto/subtle"

// cbc is AES-CBC with the encrypted byte offset of the sector as initialization
// vector.
type cbc struct {
	kernel     *kernel
	key        *aesKey
	sectorSize int
}

func newCBC(k *kernel, key []byte, sectorSize int) sectorCipher {
	return &cbc{k, k.newKey(key), sectorSize}
}

func (c *cbc) wipe() { c.key.wipe() }

func (c *cbc) encrypt(b []byte, pos int64) { c.crypt(c.kernel.encryptCBC, b, pos) }
func (c *cbc) decrypt(b []byte, pos int64) { c.crypt(c.kernel.decryptCBC, b, pos) }

func (c *cbc) crypt(loop sectorLoop, b []byte, pos int64) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for len(b) > 0 {
		n := min(len(b)/c.sectorSize, sectorBatch)
		ivs := s.blocks[:n*blockSize]
		c.kernel.encryptNumbers(c.key, ivs, uint64(pos), uint64(c.sectorSize))
		loop(c.key, b[:n*c.sectorSize], c.sectorSize, ivs)
		b, pos = b[n*c.sectorSize:], pos+int64(n*c.sectorSize)
	}
}

// cbcStreams is the number of sectors that encryptCBC encrypts together: a block
// waits for the one before, and the processor works on other sectors meanwhile.
const cbcStreams = 4

func encryptCBC(k *aesKey, sectors []byte, sectorSize int, ivs []byte) {
	for len(sectors) > 0 {
		n := min(len(sectors)/sectorSize, cbcStreams)
		for at := 0; at < sectorSize; at += blockSize {
			for i := range n {
				block, previous := sectors[i*sectorSize+at:][:blockSize], ivs[i*blockSize:]
				if at > 0 {
					previous = sectors[i*sectorSize+at-blockSize:]
				}
				subtle.XORBytes(block, block, previous)
				k.encryptBlock(block)
			}
		}
		sectors, ivs = sectors[n*sectorSize:], ivs[n*blockSize:]
	}
}

func decryptCBC(k *aesKey, sectors []byte, sectorSize int, ivs []byte) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for ; len(sectors) > 0; sectors, ivs = sectors[sectorSize:], ivs[blockSize:] {
		copy(s.sector[:blockSize], ivs)
		copy(s.sector[blockSize:sectorSize], sectors)
		k.decrypt(sectors[:sectorSize], zeros[:], s.sector[:])
	}
}
