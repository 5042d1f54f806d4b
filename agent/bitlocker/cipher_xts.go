package bitlocker

// xts is AES-XTS (IEEE 1619) with the sector's number as tweak.
type xts struct {
	kernel      *kernel
	data, tweak *aesKey
	sectorSize  int
}

func newXTS(k *kernel, key []byte, sectorSize int) sectorCipher {
	half := len(key) / 2
	return &xts{k, k.newKey(key[:half]), k.newKey(key[half:]), sectorSize}
}

func (c *xts) wipe() {
	c.data.wipe()
	c.tweak.wipe()
}

func (c *xts) encrypt(b []byte, pos int64) { c.crypt(c.kernel.encryptXTS, b, pos) }
func (c *xts) decrypt(b []byte, pos int64) { c.crypt(c.kernel.decryptXTS, b, pos) }

func (c *xts) crypt(loop sectorLoop, b []byte, pos int64) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	number := uint64(pos) / uint64(c.sectorSize)
	for len(b) > 0 {
		n := min(len(b)/c.sectorSize, sectorBatch)
		tweaks := s.blocks[:n*blockSize]
		c.kernel.encryptNumbers(c.tweak, tweaks, number, 1)
		loop(c.data, b[:n*c.sectorSize], c.sectorSize, tweaks)
		b, number = b[n*c.sectorSize:], number+uint64(n)
	}
}

func encryptXTS(k *aesKey, sectors []byte, sectorSize int, tweaks []byte) {
	cryptXTS((*aesKey).encrypt, k, sectors, sectorSize, tweaks)
}

func decryptXTS(k *aesKey, sectors []byte, sectorSize int, tweaks []byte) {
	cryptXTS((*aesKey).decrypt, k, sectors, sectorSize, tweaks)
}

func cryptXTS(f func(k *aesKey, b, pre, post []byte), k *aesKey, sectors []byte, sectorSize int, tweaks []byte) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	for ; len(sectors) > 0; sectors, tweaks = sectors[sectorSize:], tweaks[blockSize:] {
		fillTweaks(s.sector[:sectorSize], tweaks)
		f(k, sectors[:sectorSize], s.sector[:], s.sector[:])
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
