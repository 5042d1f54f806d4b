package bitlocker

import (
	"fmt"
	"unicode/utf16"
)

// entryHeader is the header of an entry in bytes: size, entry type, value type,
// version, each a u16.
const entryHeader = 8

// Entry types: what an entry is for.
const (
	typeProperty    = 0x00
	typeVMK         = 0x02
	typeFVEK        = 0x03
	typeStartupKey  = 0x06
	typeDescription = 0x07
	typeHeaderArea  = 0x0F
	typePassword    = 0x12 // the raw recovery password, under the VMK
	typePasswordKey = 0x13 // the key stretched from it, under the VMK
	typeVolumeID    = 0x19
)

// Value types: how an entry's data is laid out.
const (
	valueKey         = 0x01
	valueString      = 0x02
	valueStretch     = 0x03
	valueUseKey      = 0x04
	valueSealed      = 0x05
	valueVMK         = 0x08
	valueExternalKey = 0x09
	valueHeaderArea  = 0x0F
	valueGUID        = 0x17
)

// entry is one datum of the metadata or of a .BEK file.
type entry struct {
	typ, value, version uint16
	data                []byte // a view of the parsed bytes
}

// parseEntries reads entries up to a zero size or the end of b. What kind they
// are is for the caller to judge: unknown ones are skipped, never refused.
func parseEntries(b []byte) ([]entry, error) {
	var entries []entry
	for len(b) >= 2 && le.Uint16(b) != 0 {
		size := int(le.Uint16(b))
		if size < entryHeader || size > len(b) {
			return nil, fmt.Errorf("entry of %d bytes where %d are left", size, len(b))
		}
		entries = append(entries, entry{
			typ: le.Uint16(b[2:]), value: le.Uint16(b[4:]), version: le.Uint16(b[6:]),
			data: b[entryHeader:size:size],
		})
		b = b[size:]
	}
	return entries, nil
}

// nested reads the entries inside e, behind the given number of fixed bytes.
func (e entry) nested(fixed int) ([]entry, error) {
	if len(e.data) < fixed {
		return nil, fmt.Errorf("entry of type %#x, value %#x, with %d bytes of data is too short", e.typ, e.value, len(e.data))
	}
	return parseEntries(e.data[fixed:])
}

// find returns the first entry of the given value type.
func find(entries []entry, value uint16) (entry, bool) {
	for _, e := range entries {
		if e.value == value {
			return e, true
		}
	}
	return entry{}, false
}

// appendEntry appends an entry of version 1 with the concatenated data.
func appendEntry(b []byte, typ, value uint16, data ...[]byte) []byte {
	size := entryHeader
	for _, d := range data {
		size += len(d)
	}
	for _, field := range []uint16{uint16(size), typ, value, 1} {
		b = le.AppendUint16(b, field)
	}
	for _, d := range data {
		b = append(b, d...)
	}
	return b
}

// encodeEntries returns the entries as they were read.
func encodeEntries(entries []entry) []byte {
	var b []byte
	for _, e := range entries {
		for _, field := range []uint16{uint16(entryHeader + len(e.data)), e.typ, e.value, e.version} {
			b = le.AppendUint16(b, field)
		}
		b = append(b, e.data...)
	}
	return b
}

func u32(n uint32) []byte { return le.AppendUint32(nil, n) }
func u64(n uint64) []byte { return le.AppendUint64(nil, n) }

// encodeString returns s as UTF-16LE with a terminating zero.
func encodeString(s string) []byte {
	var b []byte
	for _, unit := range utf16.Encode([]rune(s)) {
		b = le.AppendUint16(b, unit)
	}
	return append(b, 0, 0)
}

// decodeString reads UTF-16LE up to a zero or the end.
func decodeString(b []byte) string {
	var units []uint16
	for ; len(b) >= 2 && le.Uint16(b) != 0; b = b[2:] {
		units = append(units, le.Uint16(b))
	}
	return string(utf16.Decode(units))
}
