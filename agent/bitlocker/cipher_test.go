package bitlocker

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"reflect"
	"testing"
)

// referenceCipher is what all kernels are checked against: the definitions of the
// methods, written down over crypto/aes.
type referenceCipher struct {
	method     Method
	key        []byte
	sectorSize int
}

func (r referenceCipher) encrypt(sectors []byte, pos int64) {
	for ; len(sectors) > 0; sectors, pos = sectors[r.sectorSize:], pos+int64(r.sectorSize) {
		switch r.method {
		case AES128XTS, AES256XTS:
			r.xts(cipher.Block.Encrypt, sectors[:r.sectorSize], pos)
		case AES128CBC, AES256CBC:
			encryptReferenceCBC(r.key, sectors[:r.sectorSize], pos)
		case AES128Elephant, AES256Elephant:
			data, tweak := r.elephantKeys()
			copy(sectors, xor(sectors[:r.sectorSize], referenceSectorKey(tweak, r.sectorSize, pos)))
			d := referenceWords(sectors[:r.sectorSize])
			for range 5 {
				for i := len(d) - 1; i >= 0; i-- {
					d.set(i, d.at(i)-(d.at(i-2)^bits.RotateLeft32(d.at(i-5), []int{9, 0, 13, 0}[i%4])))
				}
			}
			for range 3 {
				for i := len(d) - 1; i >= 0; i-- {
					d.set(i, d.at(i)-(d.at(i+2)^bits.RotateLeft32(d.at(i+5), []int{0, 10, 0, 25}[i%4])))
				}
			}
			d.store(sectors)
			encryptReferenceCBC(data, sectors[:r.sectorSize], pos)
		}
	}
}

func (r referenceCipher) decrypt(sectors []byte, pos int64) {
	for ; len(sectors) > 0; sectors, pos = sectors[r.sectorSize:], pos+int64(r.sectorSize) {
		switch r.method {
		case AES128XTS, AES256XTS:
			r.xts(cipher.Block.Decrypt, sectors[:r.sectorSize], pos)
		case AES128CBC, AES256CBC:
			decryptReferenceCBC(r.key, sectors[:r.sectorSize], pos)
		case AES128Elephant, AES256Elephant:
			data, tweak := r.elephantKeys()
			decryptReferenceCBC(data, sectors[:r.sectorSize], pos)
			d := referenceWords(sectors[:r.sectorSize])
			for range 3 {
				for i := range d {
					d.set(i, d.at(i)+(d.at(i+2)^bits.RotateLeft32(d.at(i+5), []int{0, 10, 0, 25}[i%4])))
				}
			}
			for range 5 {
				for i := range d {
					d.set(i, d.at(i)+(d.at(i-2)^bits.RotateLeft32(d.at(i-5), []int{9, 0, 13, 0}[i%4])))
				}
			}
			d.store(sectors)
			copy(sectors, xor(sectors[:r.sectorSize], referenceSectorKey(tweak, r.sectorSize, pos)))
		}
	}
}

func encryptReferenceCBC(key, sector []byte, pos int64) {
	cipher.NewCBCEncrypter(mustBlock(key), referenceIV(key, pos)).CryptBlocks(sector, sector)
}

func decryptReferenceCBC(key, sector []byte, pos int64) {
	cipher.NewCBCDecrypter(mustBlock(key), referenceIV(key, pos)).CryptBlocks(sector, sector)
}

func referenceIV(key []byte, pos int64) []byte {
	iv := make([]byte, blockSize)
	le.PutUint64(iv, uint64(pos))
	mustBlock(key).Encrypt(iv, iv)
	return iv
}

func (r referenceCipher) elephantKeys() (data, tweak []byte) {
	size := 16
	if r.method == AES256Elephant {
		size = 32
	}
	return r.key[:size], r.key[32 : 32+size]
}

func referenceSectorKey(tweak []byte, sectorSize int, pos int64) []byte {
	key := append(referenceIV(tweak, pos), make([]byte, blockSize)...)
	le.PutUint64(key[blockSize:], uint64(pos))
	key[2*blockSize-1] = 0x80
	mustBlock(tweak).Encrypt(key[blockSize:], key[blockSize:])
	return bytes.Repeat(key, sectorSize/len(key))
}

// ring is the words of a sector, numbered modulo their number.
type ring []uint32

func referenceWords(sector []byte) ring {
	r := make(ring, len(sector)/4)
	for i := range r {
		r[i] = le.Uint32(sector[4*i:])
	}
	return r
}

func (r ring) store(sector []byte) {
	for i, w := range r {
		le.PutUint32(sector[4*i:], w)
	}
}

func (r ring) at(i int) uint32     { return r[(i+len(r))%len(r)] }
func (r ring) set(i int, w uint32) { r[i] = w }

// xts follows IEEE 1619, section 5: the tweak of block j is the encrypted number of
// the sector, as a polynomial over GF(2), times x^j, modulo x^128+x^7+x^2+x+1.
func (r referenceCipher) xts(crypt func(c cipher.Block, dst, src []byte), sector []byte, pos int64) {
	half := len(r.key) / 2
	data, tweak := mustBlock(r.key[:half]), mustBlock(r.key[half:])
	t := make([]byte, blockSize)
	le.PutUint64(t, uint64(pos)/uint64(r.sectorSize))
	tweak.Encrypt(t, t)
	for ; len(sector) > 0; sector = sector[blockSize:] {
		block := sector[:blockSize]
		copy(block, xor(block, t))
		crypt(data, block, block)
		copy(block, xor(block, t))
		t = timesX(t)
	}
}

func timesX(t []byte) []byte {
	product := make([]byte, len(t))
	carry := byte(0)
	for i, c := range t {
		product[i] = c<<1 | carry
		carry = c >> 7
	}
	product[0] ^= carry * 0x87
	return product
}

func mustBlock(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	return b
}

// checkKernels compares what all kernels make of the sectors with the reference.
func checkKernels(t *testing.T, m Method, key, sectors []byte, sectorSize int, pos int64) {
	t.Helper()
	reference := referenceCipher{m, key, sectorSize}
	encrypted, decrypted := bytes.Clone(sectors), bytes.Clone(sectors)
	reference.encrypt(encrypted, pos)
	reference.decrypt(decrypted, pos)
	for _, k := range kernels {
		c, err := k.newSectorCipher(m, key, sectorSize)
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range map[string]struct {
			f    func(b []byte, pos int64)
			want []byte
		}{"encrypts": {c.encrypt, encrypted}, "decrypts": {c.decrypt, decrypted}} {
			around := append(append(randomBytes(1, 64), sectors...), randomBytes(2, 64)...)
			v.f(around[64:64+len(sectors)], pos)
			if !bytes.Equal(around[64:64+len(sectors)], v.want) {
				t.Fatalf("%s, %v: %s %d sectors of %d bytes at %#x wrong", k.name, m, name, len(sectors)/sectorSize, sectorSize, pos)
			}
			if !bytes.Equal(around[:64], randomBytes(1, 64)) || !bytes.Equal(around[64+len(sectors):], randomBytes(2, 64)) {
				t.Fatalf("%s, %v: %s beyond its sectors", k.name, m, name)
			}
		}
	}
}

// TestKernels compares all kernels with the reference, for as many sectors as make
// lanes and batches full and not, and any number of them.
func TestKernels(t *testing.T) {
	t.Logf("on this processor: %v", Kernels())
	r := rand.New(rand.NewPCG(1, 2))
	counts := []int{0, 1, 2, 3, 7, 8, 9, sectorBatch - 1, sectorBatch, sectorBatch + 1, 2*sectorBatch + 1}
	for range 3 {
		counts = append(counts, r.IntN(3*sectorBatch))
	}
	if testing.Short() {
		counts = []int{1, 9, sectorBatch + 1}
	}
	for m := range methods {
		for _, sectorSize := range []int{512, 4096} {
			t.Run(fmt.Sprintf("%v/%d", m, sectorSize), func(t *testing.T) {
				for _, sectors := range counts {
					pos := r.Int64N(1<<40) * int64(sectorSize)
					b := randomBytes(byte(sectors), sectors*sectorSize)
					checkKernels(t, m, randomBytes(byte(3*sectors), m.KeySize()), b, sectorSize, pos)
				}
			})
		}
	}
}

// TestEncryptNumbers checks that kernels write as many numbers as they are asked for.
func TestEncryptNumbers(t *testing.T) {
	const first, step = 1<<64 - 4096, 512
	key := randomBytes(1, 32)
	for _, k := range kernels {
		for blocks := 1; blocks <= sectorBatch; blocks++ {
			want := randomBytes(2, (blocks+4)*blockSize)
			got := bytes.Clone(want)
			for i := range blocks {
				block := want[i*blockSize:][:blockSize]
				clear(block)
				le.PutUint64(block, uint64(i)*step+first) // wraps
				mustBlock(key).Encrypt(block, block)
			}
			k.encryptNumbers(k.newKey(key), got[:blocks*blockSize], first, step)
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: %d numbers are wrong, or too many", k.name, blocks)
			}
		}
	}
}

// TestScheduleAlignment guards what scheduleSize relies on: a memory operand across two
// cache lines takes half as long again.
func TestScheduleAlignment(t *testing.T) {
	for range 100 {
		k := newOwnKey(make([]byte, 32))
		for _, schedule := range [][]byte{k.enc, k.dec} {
			if at := reflect.ValueOf(schedule).Pointer(); at%keyStride != 0 {
				t.Fatalf("round keys are at %#x", at)
			}
		}
	}
}

// FuzzSectorCiphers compares all kernels with the reference.
func FuzzSectorCiphers(f *testing.F) {
	f.Add(uint16(AES128XTS), false, []byte("key"), []byte("text"), uint16(33), uint64(1<<63))
	f.Add(uint16(AES256XTS), true, []byte("key"), bytes.Repeat([]byte{0xFF}, 8192), uint16(3), uint64(0))
	f.Add(uint16(AES128CBC), true, []byte("key"), []byte("text"), uint16(9), uint64(1))
	f.Add(uint16(AES256Elephant), false, []byte("key"), []byte("text"), uint16(17), uint64(1<<40))
	f.Fuzz(func(t *testing.T, method uint16, large bool, key, text []byte, sectors uint16, number uint64) {
		m := AES128Elephant + Method(method%6)
		sectorSize := 512
		if large {
			sectorSize = 4096
		}
		k, b := make([]byte, m.KeySize()), make([]byte, int(sectors%70)*sectorSize)
		copy(k, key)
		for i := 0; i < len(b) && len(text) > 0; i += len(text) {
			copy(b[i:], text)
		}
		pos := number >> 1 / uint64(sectorSize) * uint64(sectorSize) // below 2^63
		checkKernels(t, m, k, b, sectorSize, int64(pos))
	})
}

func TestNewSectorCipher(t *testing.T) {
	key := randomBytes(1, AES128XTS.KeySize())
	if names := Kernels(); names[len(names)-1] != KernelGeneric {
		t.Errorf("kernels are %v, want generic to be the last", names)
	}
	for name, f := range map[string]func() (*SectorCipher, error){
		"unknown kernel":      func() (*SectorCipher, error) { return NewSectorCipher("abacus", AES128XTS, key, 512) },
		"unknown method":      func() (*SectorCipher, error) { return NewSectorCipher(KernelGeneric, 0x7FFF, key, 512) },
		"wrong length of key": func() (*SectorCipher, error) { return NewSectorCipher(KernelGeneric, AES256XTS, key, 512) },
		"unknown sector size": func() (*SectorCipher, error) { return NewSectorCipher(KernelGeneric, AES128XTS, key, 1024) },
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c, err := NewSectorCipher(Kernels()[0], AES128XTS, key, 512)
	if err != nil {
		t.Fatal(err)
	}
	b := randomBytes(2, 1024)
	c.Encrypt(b, 4096)
	want := randomBytes(2, 1024)
	referenceCipher{AES128XTS, key, 512}.encrypt(want, 4096)
	if !bytes.Equal(b, want) {
		t.Error("Encrypt differs from the reference")
	}
	c.Decrypt(b, 4096)
	if !bytes.Equal(b, randomBytes(2, 1024)) {
		t.Error("Decrypt does not undo Encrypt")
	}
	for name, f := range map[string]func(){
		"part of a sector":  func() { c.Encrypt(b[:100], 0) },
		"within a sector":   func() { c.Decrypt(b, 16) },
		"negative position": func() { c.Decrypt(b, -512) },
	} {
		if !panics(f) {
			t.Errorf("%s: no panic", name)
		}
	}
	c.Wipe()
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

func BenchmarkSectorCipher(b *testing.B) {
	for _, k := range kernels {
		for _, v := range []struct {
			m          Method
			sectorSize int
		}{{AES128XTS, 512}, {AES128XTS, 4096}, {AES256XTS, 512}, {AES128CBC, 512}, {AES128CBC, 4096}, {AES128Elephant, 512}, {AES128Elephant, 4096}} {
			c, err := k.newSectorCipher(v.m, randomBytes(1, v.m.KeySize()), v.sectorSize)
			if err != nil {
				b.Fatal(err)
			}
			for name, f := range map[string]func(b []byte, pos int64){"encrypt": c.encrypt, "decrypt": c.decrypt} {
				b.Run(fmt.Sprintf("%s/%v/%d/%s", k.name, v.m, v.sectorSize, name), func(b *testing.B) {
					buf := make([]byte, 64<<10)
					b.SetBytes(int64(len(buf)))
					for b.Loop() {
						f(buf, 1<<20)
					}
				})
			}
		}
	}
}
