package bitlocker

import (
	"errors"
	"fmt"
	"time"
)

// BEK is the content of a .BEK file: the external key of one protector.
type BEK struct {
	ID      GUID // of the protector
	Key     ExternalKey
	Created time.Time // to 100 ns
	Volume  GUID      // zero in the older form of the file, which all tools read

	label  string // "ExternalKey"
	nonce  uint32 // the header's next nonce
	header filetime
}

// NewBEK returns the file for key, which it shares with the caller.
func NewBEK(id GUID, key ExternalKey, now time.Time) BEK {
	created := newFiletime(now)
	return BEK{ID: id, Key: key, Created: created.time(), label: externalKeyLabel, nonce: 1, header: created}
}

// Lengths and limits of a .BEK file, in bytes.
const (
	externalKeyLabel = "ExternalKey"
	bekFixed         = 24 // of the startup-key entry: GUID, FILETIME
	maxBEK           = 4096
)

// FileName returns the name by which Windows and other tools look for the file.
func (b BEK) FileName() string { return b.ID.String() + ".BEK" }

// Wipe overwrites the key.
func (b BEK) Wipe() { b.Key.Wipe() }

// Encode returns the file: 156 bytes, or 180 if it names its volume, which some
// tools cannot read. The caller clears it.
func (b BEK) Encode() []byte {
	inner := appendEntry(nil, typeProperty, valueString, encodeString(b.label))
	if b.Volume != (GUID{}) {
		inner = appendEntry(inner, typeVolumeID, valueGUID, b.Volume[:])
	}
	key := appendEntry(nil, typeProperty, valueKey, u32(keyExternal), b.Key.Bytes())
	defer clear(key)
	created := u64(uint64(newFiletime(b.Created)))
	size := uint32(headerLength + entryHeader + bekFixed + len(inner) + len(key))
	f := make([]byte, 0, size) // no growth, which would leave a copy of the key
	for _, field := range []uint32{size, 1, headerLength, size} {
		f = le.AppendUint32(f, field)
	}
	f = append(f, b.ID[:]...)
	f = le.AppendUint32(f, b.nonce)
	f = le.AppendUint32(f, 0)
	f = le.AppendUint64(f, uint64(b.header))
	return appendEntry(f, typeStartupKey, valueExternalKey, b.ID[:], created, inner, key)
}

var errBEK = errors.New("not a .BEK file")

// ParseBEK reads a .BEK file in either form. What Windows writes encodes to the
// same bytes again; unknown entries beside the key are skipped. The caller clears
// b.
func ParseBEK(b []byte) (BEK, error) {
	k, err := parseBEK(b)
	if err != nil {
		k.Wipe()
		return BEK{}, fmt.Errorf("%w: %v", errBEK, err)
	}
	return k, nil
}

func parseBEK(b []byte) (BEK, error) {
	if len(b) < headerLength || len(b) > maxBEK {
		return BEK{}, fmt.Errorf("%d bytes", len(b))
	}
	size := uint32(len(b))
	if le.Uint32(b) != size || le.Uint32(b[4:]) != 1 || le.Uint32(b[8:]) != headerLength || le.Uint32(b[12:]) != size {
		return BEK{}, errors.New("its header does not describe a file of its length")
	}
	k := BEK{ID: GUID(b[16:]), nonce: le.Uint32(b[32:]), header: filetime(le.Uint64(b[40:]))}
	entries, err := parseEntries(b[headerLength:])
	if err != nil {
		return k, err
	}
	if len(entries) != 1 || entries[0].typ != typeStartupKey || entries[0].value != valueExternalKey {
		return k, errors.New("it does not hold exactly one startup key")
	}
	return k, k.parseKey(entries[0])
}

func (k *BEK) parseKey(e entry) error {
	children, err := e.nested(bekFixed)
	if err != nil {
		return err
	}
	if GUID(e.data) != k.ID {
		return errors.New("it names two protectors")
	}
	k.Created = filetime(le.Uint64(e.data[16:])).time()
	if c, ok := find(children, valueString); ok {
		k.label = decodeString(c.data)
	}
	if c, ok := find(children, valueGUID); ok && len(c.data) == len(k.Volume) {
		k.Volume = GUID(c.data)
	}
	c, ok := find(children, valueKey)
	if !ok || len(c.data) != 4+keySize {
		return errors.New("it holds no key of 32 bytes")
	}
	k.Key, err = NewExternalKey(c.data[4:])
	return err
}
