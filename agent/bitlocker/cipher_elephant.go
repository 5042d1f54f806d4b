package bitlocker

import "math/bits"

// elephant is AES-CBC over a diffuser, which spreads each bit over the sector and
// mixes in a key of the sector's own.
type elephant struct {
	cbc   *cbc
	tweak *aesKey
}

// newElephant takes 64 bytes, of which the key of the CBC and that of the sector
// keys are at the start of either half.
func newElephant(keySize int) func(k *kernel, key []byte, sectorSize int) sectorCipher {
	return func(k *kernel, key []byte, sectorSize int) sectorCipher {
		return &elephant{&cbc{k, k.newKey(key[:keySize]), sectorSize}, k.newKey(key[32:][:keySize])}
	}
}

func (c *elephant) wipe() {
	c.cbc.wipe()
	c.tweak.wipe()
}

func (c *elephant) encrypt(b []byte, pos int64) {
	c.diffuse(b, pos, true)
	c.cbc.encrypt(b, pos)
}

func (c *elephant) decrypt(b []byte, pos int64) {
	c.cbc.decrypt(b, pos)
	c.diffuse(b, pos, false)
}

// diffuse mixes in the sector keys and diffuses, or undoes that, with as many sectors
// together as the diffuser has lanes.
func (c *elephant) diffuse(b []byte, pos int64, forward bool) {
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	diffuser, sectorSize := &c.cbc.kernel.diffuser, c.cbc.sectorSize
	words := s.words[:diffuser.lanes*sectorSize/4]
	for len(b) > 0 {
		n := min(len(b)/sectorSize, diffuser.lanes)
		keys := s.blocks[:diffuser.lanes*sectorKeySize]
		c.putSectorKeys(keys, pos)
		if forward {
			diffuser.load(words, b[:n*sectorSize], sectorSize, keys)
			diffuser.forward(words)
			diffuser.store(words, b[:n*sectorSize], sectorSize, zeros[:])
		} else {
			diffuser.load(words, b[:n*sectorSize], sectorSize, zeros[:])
			diffuser.backward(words)
			diffuser.store(words, b[:n*sectorSize], sectorSize, keys)
		}
		b, pos = b[n*sectorSize:], pos+int64(n*sectorSize)
	}
}

// sectorKeySize is the size of a sector's own key, which is repeated over it.
const sectorKeySize = 2 * blockSize

// putSectorKeys puts the keys of successive sectors from pos on: the encrypted
// position, and the same with the highest bit set.
func (c *elephant) putSectorKeys(keys []byte, pos int64) {
	clear(keys)
	for i := 0; i < len(keys); i += sectorKeySize {
		le.PutUint64(keys[i:], uint64(pos))
		le.PutUint64(keys[i+blockSize:], uint64(pos))
		keys[i+sectorKeySize-1] = 0x80
		pos += int64(c.cbc.sectorSize)
	}
	c.tweak.encrypt(keys, zeros[:], zeros[:])
}

// diffuser mixes the words of sectors, as many together as it has lanes: word i of
// sector s is at d[i*lanes+s].
type diffuser struct {
	lanes int
	// load sets d to the words of up to so many sectors, each XORed with its key;
	// store sets the sectors to those of d, likewise. There is a key for every lane,
	// even if there are fewer sectors.
	load, store       func(d []uint32, sectors []byte, sectorSize int, keys []byte)
	forward, backward func(d []uint32)
}

// maxLanes is the largest number of lanes of any diffuser.
const maxLanes = 8

// genericDiffuser takes one sector.
var genericDiffuser = diffuser{
	lanes: 1,
	load:  loadWords, store: storeWords,
	forward: diffuseWords, backward: undiffuseWords,
}

func loadWords(d []uint32, sector []byte, _ int, key []byte) {
	for i := range d {
		d[i] = le.Uint32(sector[4*i:]) ^ le.Uint32(key[4*i%sectorKeySize:])
	}
}

func storeWords(d []uint32, sector []byte, _ int, key []byte) {
	for i, w := range d {
		le.PutUint32(sector[4*i:], w^le.Uint32(key[4*i%sectorKeySize:]))
	}
}

// How far, and over how many passes, the two parts of the diffuser rotate words.
const (
	passesA, passesB = 5, 3
	rotateA0         = 9
	rotateA2         = 13
	rotateB1         = 10
	rotateB3         = 25
)

// diffuseWords is diffuser A and then B. The number of words is a power of two. What
// a pass has just changed, it keeps in near and nearer instead of loading it again.
func diffuseWords(d []uint32) {
	mask := len(d) - 1
	for range passesA {
		for i := len(d) - 4; i >= 0; i -= 4 {
			d[i+3] -= d[i+1] ^ d[(i-2)&mask]
			d[i+2] -= d[i] ^ bits.RotateLeft32(d[(i-3)&mask], rotateA2)
			d[i+1] -= d[(i-1)&mask] ^ d[(i-4)&mask]
			d[i] -= d[(i-2)&mask] ^ bits.RotateLeft32(d[(i-5)&mask], rotateA0)
		}
	}
	for range passesB {
		near, nearer := d[1], d[0]
		for i := len(d) - 4; i >= 0; i -= 4 {
			q := d[i : i+4 : i+4]
			near = q[3] - (near ^ bits.RotateLeft32(d[(i+8)&mask], rotateB3))
			nearer = q[2] - (nearer ^ d[(i+7)&mask])
			q[3], q[2] = near, nearer
			near = q[1] - (near ^ bits.RotateLeft32(d[(i+6)&mask], rotateB1))
			nearer = q[0] - (nearer ^ d[(i+5)&mask])
			q[1], q[0] = near, nearer
		}
	}
}

// undiffuseWords undoes what diffuseWords does.
func undiffuseWords(d []uint32) {
	mask := len(d) - 1
	for range passesB {
		for i := 0; i < len(d); i += 4 {
			d[i] += d[i+2] ^ d[(i+5)&mask]
			d[i+1] += d[i+3] ^ bits.RotateLeft32(d[(i+6)&mask], rotateB1)
			d[i+2] += d[(i+4)&mask] ^ d[(i+7)&mask]
			d[i+3] += d[(i+5)&mask] ^ bits.RotateLeft32(d[(i+8)&mask], rotateB3)
		}
	}
	for range passesA {
		near, nearer := d[mask-1], d[mask]
		for i := 0; i < len(d); i += 4 {
			q := d[i : i+4 : i+4]
			near = q[0] + (near ^ bits.RotateLeft32(d[(i-5)&mask], rotateA0))
			nearer = q[1] + (nearer ^ d[(i-4)&mask])
			q[0], q[1] = near, nearer
			near = q[2] + (near ^ bits.RotateLeft32(d[(i-3)&mask], rotateA2))
			nearer = q[3] + (nearer ^ d[(i-2)&mask])
			q[2], q[3] = near, nearer
		}
	}
}
