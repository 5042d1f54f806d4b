package bitlocker

import (
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
)

// sealer makes what a volume holds sealed: protectors, the volume key and the
// checksum of it all. No two items that it seals share a nonce.
type sealer struct {
	vmk   []byte // the caller's to clear
	rand  io.Reader
	now   filetime
	epoch uint64 // first part of all nonces
	next  uint32 // second part of the next one
}

// seal returns secret in a container of the given method, sealed with key.
func (s *sealer) seal(key []byte, method uint32, secret []byte) sealed {
	c := container(method, secret)
	defer clear(c)
	nonce := le.AppendUint32(u64(s.epoch), s.next)
	s.next++
	return seal(key, nonce, c)
}

// appendProtector appends the VMK entry of p: what opens it, then the VMK sealed.
func (s *sealer) appendProtector(b []byte, p ProtectorKey) ([]byte, error) {
	key := make([]byte, keySize)
	defer clear(key)
	children, err := s.protect(p.Key, key)
	if err != nil {
		return nil, err
	}
	children = appendEntry(children, typeProperty, valueSealed, s.seal(key, keyVMK, s.vmk))
	kind := uint32(p.Key.protects()) << 16
	return appendEntry(b, typeVMK, valueVMK, p.ID[:], u64(uint64(s.now)), u32(kind), children), nil
}

// protect sets the key under which c's protector keeps the VMK, and returns the
// entries that lead to it.
func (s *sealer) protect(c Credential, key []byte) ([]byte, error) {
	switch c := c.(type) {
	case ExternalKey:
		c.key(protector{}, key)
		label := appendEntry(nil, typeProperty, valueString, encodeString(externalKeyLabel))
		own := appendEntry(nil, typeProperty, valueSealed, s.seal(s.vmk, keyExternal, key))
		return appendEntry(label, typeProperty, valueUseKey, u32(keyExternal), own), nil
	case RecoveryPassword:
		salt, err := s.stretch(c, key)
		if err != nil {
			return nil, err
		}
		own := appendEntry(nil, typePassword, valueSealed, s.seal(s.vmk, keyPassword, c.bytes()))
		own = appendEntry(own, typePasswordKey, valueSealed, s.seal(s.vmk, keyFromPassword, key))
		return appendEntry(nil, typeProperty, valueStretch, u32(keyPassword), salt, own), nil
	case Passphrase:
		salt, err := s.stretch(c, key)
		if err != nil {
			return nil, err
		}
		own := appendEntry(nil, typeProperty, valueSealed, s.seal(s.vmk, keyFromPassphrase, key))
		return appendEntry(nil, typeProperty, valueStretch, u32(keyPassphrase), salt, own), nil
	case ClearKey:
		if _, err := io.ReadFull(s.rand, key); err != nil {
			return nil, fmt.Errorf("cannot draw a clear key: %w", err)
		}
		return appendEntry(nil, typeProperty, valueKey, u32(keyClear), key), nil
	}
	return nil, fmt.Errorf("no protector can be made of a %T", c)
}

// stretch draws a salt and sets the key stretched from c with it.
func (s *sealer) stretch(c Credential, key []byte) ([]byte, error) {
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(s.rand, salt); err != nil {
		return nil, fmt.Errorf("cannot draw a salt: %w", err)
	}
	c.key(protector{salt: salt}, key)
	return salt, nil
}

// block returns the metadata of one area: the block header and the metadata header
// as they are in front, with lengths and the next nonce filled in, the entries,
// and the validation.
func (s *sealer) block(front, entries []byte) ([]byte, error) {
	size := headerLength + len(entries)
	length := (blockHeaderSize + size + blockUnit - 1) / blockUnit * blockUnit
	if length > areaSize-validationSize {
		return nil, fmt.Errorf("metadata of %d bytes do not fit their area", size)
	}
	b := make([]byte, length, length+validationSize)
	copy(b, front[:entriesAt])
	copy(b[entriesAt:], entries)
	le.PutUint16(b[8:], uint16(length/blockUnit))
	header := b[blockHeaderSize:]
	le.PutUint32(header, uint32(size))
	le.PutUint32(header[12:], uint32(size))
	le.PutUint32(header[32:], s.next+1) // one more is sealed: the validation
	return s.appendValidation(b), nil
}

func (s *sealer) appendValidation(b []byte) []byte {
	hash := sha256.Sum256(b)
	v := le.AppendUint16(nil, uint16(areaSize-len(b)))
	v = le.AppendUint16(v, 2)
	v = le.AppendUint32(v, crc32.ChecksumIEEE(b))
	v = appendEntry(v, typeProperty, valueSealed, s.seal(s.vmk, keyHash, hash[:]))
	return append(b, v...)
}
