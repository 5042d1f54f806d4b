package bitlocker

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// FormatOptions say how [Format] makes a volume.
type FormatOptions struct {
	Method     Method // 0 is AES-XTS-128
	SectorSize int    // bytes, 512 or 4096; 0 is 512

	// Metadata are the offsets of the three metadata areas of 64 KiB and
	// HeaderCopy that of the 8 KiB area for the file system's own beginning: all
	// multiples of the sector size, not overlapping, behind the first 8 KiB. What
	// was there is lost; the volume shows zeros.
	Metadata   [3]int64
	HeaderCopy int64

	ID          GUID   // of the volume
	Description string // usually "COMPUTER LABEL M/D/YYYY"

	// At least one of the two protectors is wanted. The external key comes
	// first on disk, because some tools cannot do without.
	ExternalKey        ExternalKey
	ExternalKeyID      GUID
	RecoveryPassword   RecoveryPassword
	RecoveryPasswordID GUID

	// HeaderOnly leaves all but the first 8 KiB as they are: they decrypt to
	// noise, and a sparse image stays sparse.
	HeaderOnly bool

	Rand io.Reader // of the volume's keys and salts
	Now  time.Time // creation time
}

// Storage is an image that can be written.
type Storage interface {
	io.ReaderAt
	io.WriterAt
}

// Format encrypts the size bytes of rw in place. The order of the writes is
// data, metadata, boot sector: an image on which Format was interrupted is no
// BitLocker volume yet, and its file system is lost.
func Format(rw Storage, size int64, opts FormatOptions) error {
	f, err := newFormatter(opts, size)
	if err != nil {
		return fmt.Errorf("cannot format: %w", err)
	}
	var block []byte
	withCleanStack(func() { block, err = f.drawKeys() })
	if err != nil {
		return fmt.Errorf("cannot format: %w", err)
	}
	defer f.cipher.wipe()
	if err := f.encrypt(rw); err != nil {
		return fmt.Errorf("cannot encrypt: %w", err)
	}
	return f.writeMetadata(rw, block)
}

// formatter is one volume in the making.
type formatter struct {
	FormatOptions
	geometry
	layout layout
	cipher sectorCipher
	now    filetime
	nonces uint32 // the next one; no two items are sealed with the same
}

func newFormatter(o FormatOptions, size int64) (*formatter, error) {
	if o.Method == 0 {
		o.Method = AES128XTS
	}
	if o.SectorSize == 0 {
		o.SectorSize = 512
	}
	if err := o.Method.supported(); err != nil {
		return nil, err
	}
	if !validSectorSize(o.SectorSize) {
		return nil, fmt.Errorf("sectors of %d bytes: want 512 or 4096", o.SectorSize)
	}
	if o.ExternalKey.IsZero() && o.RecoveryPassword.IsZero() {
		return nil, errors.New("no protector: want an external key or a recovery password")
	}
	if o.Rand == nil {
		return nil, errors.New("no source of randomness")
	}
	f := &formatter{FormatOptions: o, now: newFiletime(o.Now), nonces: 2}
	f.geometry = geometry{
		encryptedSize: size, metadata: o.Metadata, headerCopy: o.HeaderCopy,
		headerSize: headerSize, headerSectors: int64(headerSize / o.SectorSize),
	}
	var err error
	f.layout, err = newLayout(f.geometry, size, o.SectorSize)
	return f, err
}

// drawKeys makes the volume's keys, sets the cipher, and returns the metadata
// block that holds the keys sealed. The keys themselves are gone then.
func (f *formatter) drawKeys() ([]byte, error) {
	keys := make([]byte, keySize+methods[f.Method].keySize)
	defer clear(keys)
	if _, err := io.ReadFull(f.Rand, keys); err != nil {
		return nil, fmt.Errorf("cannot draw the volume's keys: %w", err)
	}
	vmk, fvek := keys[:keySize], keys[keySize:]
	entries, err := f.entries(vmk, fvek)
	if err != nil {
		return nil, err
	}
	if f.cipher, err = newSectorCipher(f.Method, fvek, f.SectorSize); err != nil {
		return nil, err
	}
	return f.block(vmk, entries), nil
}

// entries returns the metadata entries of a finished volume.
func (f *formatter) entries(vmk, fvek []byte) ([]byte, error) {
	b := appendEntry(nil, typeDescription, valueString, encodeString(f.Description))
	if !f.ExternalKey.IsZero() {
		b = f.appendExternalKey(b, vmk)
	}
	if !f.RecoveryPassword.IsZero() {
		var err error
		if b, err = f.appendRecoveryPassword(b, vmk); err != nil {
			return nil, err
		}
	}
	b = appendEntry(b, typeFVEK, valueSealed, f.seal(vmk, uint32(f.Method), fvek))
	b = appendEntry(b, typeHeaderArea, valueHeaderArea, u64(uint64(f.headerCopy)), u64(uint64(f.headerSize)))
	if len(b) > areaSize-entriesAt-blockUnit-validationSize {
		return nil, errors.New("the description is too long")
	}
	return b, nil
}

func (f *formatter) appendExternalKey(b, vmk []byte) []byte {
	label := appendEntry(nil, typeProperty, valueString, encodeString(externalKeyLabel))
	own := appendEntry(nil, typeProperty, valueSealed, f.seal(vmk, keyExternal, f.ExternalKey.Bytes()))
	use := appendEntry(nil, typeProperty, valueUseKey, u32(keyExternal), own)
	return f.appendProtector(b, ExternalKeyProtector, f.ExternalKeyID, f.ExternalKey.Bytes(), vmk, label, use)
}

func (f *formatter) appendRecoveryPassword(b, vmk []byte) ([]byte, error) {
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(f.Rand, salt); err != nil {
		return nil, fmt.Errorf("cannot draw a salt: %w", err)
	}
	key := make([]byte, keySize)
	defer clear(key)
	f.RecoveryPassword.key(protector{salt: salt}, key)
	own := appendEntry(nil, typePassword, valueSealed, f.seal(vmk, keyPassword, f.RecoveryPassword.bytes()))
	own = appendEntry(own, typePasswordKey, valueSealed, f.seal(vmk, keyFromPassword, key))
	stretched := appendEntry(nil, typeProperty, valueStretch, u32(keyPassword), salt, own)
	return f.appendProtector(b, RecoveryPasswordProtector, f.RecoveryPasswordID, key, vmk, stretched), nil
}

// appendProtector appends a VMK entry: the given children, then the VMK sealed
// with key.
func (f *formatter) appendProtector(b []byte, kind ProtectorKind, id GUID, key, vmk []byte, children ...[]byte) []byte {
	data := [][]byte{id[:], u64(uint64(f.now)), u32(uint32(kind) << 16)}
	data = append(data, children...)
	data = append(data, appendEntry(nil, typeProperty, valueSealed, f.seal(key, keyVMK, vmk)))
	return appendEntry(b, typeVMK, valueVMK, data...)
}

// seal returns secret in a container of the given method, sealed with key.
func (f *formatter) seal(key []byte, method uint32, secret []byte) sealed {
	c := container(method, secret)
	defer clear(c)
	nonce := le.AppendUint32(u64(uint64(f.now)), f.nonces)
	f.nonces++
	return seal(key, nonce, c)
}

// block returns the metadata of one area: block header, metadata header, entries
// and validation.
func (f *formatter) block(vmk, entries []byte) []byte {
	size := headerLength + len(entries)
	length := (blockHeaderSize + size + blockUnit - 1) / blockUnit * blockUnit
	b := make([]byte, length, length+validationSize)
	copy(b, signature)
	le.PutUint16(b[8:], uint16(length/blockUnit))
	le.PutUint16(b[10:], 2)
	le.PutUint16(b[12:], stateEncrypted)
	le.PutUint16(b[14:], stateEncrypted)
	le.PutUint64(b[16:], uint64(f.encryptedSize))
	le.PutUint32(b[28:], uint32(f.headerSectors))
	for i, off := range f.metadata {
		le.PutUint64(b[32+8*i:], uint64(off))
	}
	le.PutUint64(b[56:], uint64(f.headerCopy))
	f.putHeader(b[blockHeaderSize:], size)
	copy(b[entriesAt:], entries)
	return f.appendValidation(b, vmk)
}

func (f *formatter) putHeader(b []byte, size int) {
	le.PutUint32(b, uint32(size))
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], headerLength)
	le.PutUint32(b[12:], uint32(size))
	copy(b[16:], f.ID[:])
	le.PutUint32(b[32:], f.nonces+1) // one more is sealed: the validation
	le.PutUint16(b[36:], uint16(f.Method))
	le.PutUint16(b[38:], uint16(f.Method))
	le.PutUint64(b[40:], uint64(f.now))
}

func (f *formatter) appendValidation(b, vmk []byte) []byte {
	hash := sha256.Sum256(b)
	v := le.AppendUint16(nil, uint16(areaSize-len(b)))
	v = le.AppendUint16(v, 2)
	v = le.AppendUint32(v, crc32.ChecksumIEEE(b))
	v = appendEntry(v, typeProperty, valueSealed, f.seal(vmk, keyHash, hash[:]))
	return append(b, v...)
}

// formatChunk is how much is encrypted at a time, in bytes.
const formatChunk = 1 << 20

// encrypt moves the file system's beginning aside and encrypts the rest in place.
func (f *formatter) encrypt(rw Storage) error {
	buf := make([]byte, formatChunk)
	for _, s := range f.layout {
		if s.kind != encrypted || f.HeaderOnly && s.shift == 0 {
			continue
		}
		for at := s.start; at < s.end; at += formatChunk {
			b := buf[:min(formatChunk, s.end-at)]
			if err := readFull(rw, b, at); err != nil {
				return err
			}
			f.cipher.encrypt(b, at+s.shift)
			if err := writeFull(rw, b, at+s.shift); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeMetadata writes the three copies, the last one first, then the boot
// sector with the rest of the header zero.
func (f *formatter) writeMetadata(w io.WriterAt, block []byte) error {
	area := make([]byte, areaSize)
	copy(area, block)
	for i := len(f.metadata) - 1; i >= 0; i-- {
		if err := writeFull(w, area, f.metadata[i]); err != nil {
			return fmt.Errorf("cannot write metadata copy %d: %w", i+1, err)
		}
	}
	boot := bootSector{f.SectorSize, f.metadata}
	if err := writeFull(w, boot.encode(), 0); err != nil {
		return fmt.Errorf("cannot write the boot sector: %w", err)
	}
	return nil
}
