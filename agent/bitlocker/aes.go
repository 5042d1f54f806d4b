package bitlocker

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"math/bits"
	"reflect"
)

// aesKey is an expanded AES key, which can be wiped. It may be used
// concurrently, but not after wipe.
//
// Two things set it apart from [aes.NewCipher]: its schedule can be overwritten;
// and where the processor allows, which is on amd64, no round key is ever held in a
// register, but only what has been mixed with one. The standard library's decryption
// leaves the raw key in one, and there it is copied into the process's memory by
// every signal and preemption that comes at that moment, out of anyone's reach.
type aesKey struct {
	rounds   int
	enc, dec []byte       // round keys in the order of use, keyStride bytes apart
	block    cipher.Block // instead of them, in the generic kernel
}

const (
	blockSize = aes.BlockSize
	// scheduleSize is enough for the 15 round keys of AES-256. The allocator
	// aligns what has the size of a power of two to its size, as the widest memory
	// operands want it.
	scheduleSize = 16 * keyStride
)

// zeros is the mask that changes nothing, for up to one sector.
var zeros [4096]byte

// newAESKey expands a key of 16 or 32 bytes, which the caller clears, for the
// fastest kernel.
func newAESKey(key []byte) *aesKey { return kernels[0].newKey(key) }

// newOwnKey makes a key for the kernels in assembly.
func newOwnKey(key []byte) *aesKey {
	k := &aesKey{rounds: 6 + len(key)/4, enc: make([]byte, scheduleSize), dec: make([]byte, scheduleSize)}
	k.expand(key)
	return k
}

// newStandardKey makes a key for the generic kernel.
func newStandardKey(key []byte) *aesKey {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("bitlocker: internal error: " + err.Error())
	}
	return &aesKey{block: b}
}

// wipe overwrites the key. That of the standard library has no way to be, but
// the value behind its pointer is settable by reflection as a whole, although its
// fields are not.
func (k *aesKey) wipe() {
	clear(k.enc)
	clear(k.dec)
	if v := reflect.ValueOf(k.block); v.Kind() == reflect.Pointer {
		v.Elem().SetZero()
	}
}

// encrypt encrypts whole blocks in place, each XORed with pre before and with
// post after. The masks are at least as long as b; post may be pre.
func (k *aesKey) encrypt(b, pre, post []byte) {
	if k.block == nil {
		encryptBlocks(&k.enc[0], k.rounds, &b[0], &pre[:len(b)][0], &post[:len(b)][0], len(b)/blockSize)
		return
	}
	subtle.XORBytes(b, b, pre)
	for i := 0; i < len(b); i += blockSize {
		k.block.Encrypt(b[i:i+blockSize], b[i:i+blockSize])
	}
	subtle.XORBytes(b, b, post)
}

// decrypt is the same for decryption.
func (k *aesKey) decrypt(b, pre, post []byte) {
	if k.block == nil {
		decryptBlocks(&k.dec[0], k.rounds, &b[0], &pre[:len(b)][0], &post[:len(b)][0], len(b)/blockSize)
		return
	}
	subtle.XORBytes(b, b, pre)
	for i := 0; i < len(b); i += blockSize {
		k.block.Decrypt(b[i:i+blockSize], b[i:i+blockSize])
	}
	subtle.XORBytes(b, b, post)
}

// encryptBlock encrypts one block in place.
func (k *aesKey) encryptBlock(b []byte) {
	if k.block == nil {
		k.encrypt(b, zeros[:], zeros[:])
		return
	}
	k.block.Encrypt(b, b)
}

// encryptNumbers is that of a [kernel].
func encryptNumbers(k *aesKey, dst []byte, first, step uint64) {
	clear(dst)
	for i := 0; i < len(dst); i += blockSize {
		le.PutUint64(dst[i:], first)
		first += step
	}
	k.encrypt(dst, zeros[:], zeros[:])
}

// expand fills the schedules (FIPS 197, sections 5.2 and 5.3.5), a word at a
// time: words of a key in general registers are not the key.
func (k *aesKey) expand(key []byte) {
	keyWords, words := len(key)/4, 4*(k.rounds+1)
	rcon := uint32(1)
	for i := range words {
		if i < keyWords {
			putKeyWord(k.enc, i, le.Uint32(key[4*i:]))
			continue
		}
		w := keyWord(k.enc, i-1)
		switch {
		case i%keyWords == 0:
			w = subWord(bits.RotateLeft32(w, -8)) ^ rcon
			rcon = multiply2(rcon)
		case keyWords == 8 && i%keyWords == 4:
			w = subWord(w)
		}
		putKeyWord(k.enc, i, keyWord(k.enc, i-keyWords)^w)
	}
	for i := range words {
		w := keyWord(k.enc, i)
		if 4 <= i && i < words-4 {
			w = invMixColumn(w)
		}
		putKeyWord(k.dec, words-4-i/4*4+i%4, w)
	}
}

func keyWord(schedule []byte, i int) uint32 { return le.Uint32(schedule[i/4*keyStride+i%4*4:]) }

// putKeyWord puts a word of a round key into each copy of it.
func putKeyWord(schedule []byte, i int, w uint32) {
	for at := 0; at < keyStride; at += blockSize {
		le.PutUint32(schedule[i/4*keyStride+at+i%4*4:], w)
	}
}

// subWord applies the S-box to each byte. It lets the last round of AES do so,
// under a zero key: with four equal columns, its ShiftRows changes nothing.
func subWord(w uint32) uint32 {
	b := make([]byte, blockSize)
	for i := range 4 {
		le.PutUint32(b[4*i:], w)
	}
	encryptBlocks(&zeros[0], 1, &b[0], &zeros[0], &zeros[0], 1)
	w = le.Uint32(b)
	clear(b)
	return w
}

// multiply2 multiplies each byte by 2 in the field of AES.
func multiply2(w uint32) uint32 { return w<<1&0xFEFEFEFE ^ w>>7&0x01010101*0x1B }

func invMixColumn(w uint32) uint32 {
	w2 := multiply2(w)
	w4 := multiply2(w2)
	w8 := multiply2(w4)
	w9 := w8 ^ w
	return w8 ^ w4 ^ w2 ^ bits.RotateLeft32(w9^w2, -8) ^ bits.RotateLeft32(w9^w4, -16) ^ bits.RotateLeft32(w9, -24)
}

// copyKey copies a key byte by byte. The built-in copy would take it through
// vector registers, see [aesKey].
func copyKey(dst, src []byte) {
	//lint:ignore S1001 copy is what this is not
	for i, c := range src {
		dst[i] = c
	}
}
