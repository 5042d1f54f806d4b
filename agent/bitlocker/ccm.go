package bitlocker

import "crypto/subtle"

// AES-256-CCM (RFC 3610) in the one shape that BitLocker uses: 12-byte nonce,
// 16-byte MAC, 3-byte length, no associated data. On disk the MAC comes before
// the ciphertext.
const (
	nonceSize    = 12
	macSize      = 16
	flagsFirst   = 0x3A // 16-byte MAC, 3-byte length
	flagsCounter = 0x02 // 3-byte length
)

// sealed is a sealed item as it lies on disk: nonce, MAC, ciphertext.
type sealed []byte

// size returns the length of the plaintext in bytes.
func (s sealed) size() int { return max(0, len(s)-nonceSize-macSize) }

// open returns the plaintext, or false if key does not fit. The caller clears
// the plaintext after use.
func (s sealed) open(key []byte) ([]byte, bool) {
	if len(s) < nonceSize+macSize {
		return nil, false
	}
	c := newCCM(key, s[:nonceSize])
	defer c.wipe()
	text := make([]byte, len(s)-nonceSize-macSize)
	copy(text, s[nonceSize+macSize:])
	c.xorStream(text)
	if subtle.ConstantTimeCompare(c.mac(text), s[nonceSize:nonceSize+macSize]) != 1 {
		clear(text)
		return nil, false
	}
	return text, true
}

// seal returns text sealed with key. A nonce must never be used twice with one
// key.
func seal(key, nonce, text []byte) sealed {
	c := newCCM(key, nonce)
	defer c.wipe()
	s := make(sealed, nonceSize+macSize+len(text))
	copy(s, nonce)
	copy(s[nonceSize:], c.mac(text))
	copy(s[nonceSize+macSize:], text)
	c.xorStream(s[nonceSize+macSize:])
	return s
}

// ccm seals or opens one item. Its scratch lives on the heap, where it is
// cleared.
type ccm struct {
	key     *aesKey
	nonce   []byte
	scratch []byte // two blocks: one for the MAC, one for the key stream
}

func newCCM(key, nonce []byte) *ccm {
	return &ccm{newAESKey(key), nonce, make([]byte, 2*blockSize)}
}

func (c *ccm) wipe() {
	c.key.wipe()
	clear(c.scratch)
}

// counterBlock fills dst with the CCM block of the given flags and number.
func (c *ccm) counterBlock(dst []byte, flags byte, n int) {
	dst[0] = flags
	copy(dst[1:], c.nonce)
	dst[13], dst[14], dst[15] = byte(n>>16), byte(n>>8), byte(n)
}

// xorStream encrypts or decrypts text in place.
func (c *ccm) xorStream(text []byte) {
	stream := c.scratch[blockSize:]
	for n := 1; len(text) > 0; n++ {
		c.counterBlock(stream, flagsCounter, n)
		c.encrypt(stream)
		text = text[subtle.XORBytes(text, text, stream):]
	}
}

// mac returns the MAC of the plaintext, in scratch.
func (c *ccm) mac(text []byte) []byte {
	mac, stream := c.scratch[:blockSize], c.scratch[blockSize:]
	c.counterBlock(mac, flagsFirst, len(text))
	c.encrypt(mac)
	for len(text) > 0 {
		text = text[subtle.XORBytes(mac, mac, text):]
		c.encrypt(mac)
	}
	c.counterBlock(stream, flagsCounter, 0)
	c.encrypt(stream)
	subtle.XORBytes(mac, mac, stream)
	return mac
}

func (c *ccm) encrypt(block []byte) { c.key.encrypt(block, zeros[:], zeros[:]) }
