package bitlocker

import "encoding/binary"

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// bootSize is the part of the boot sector that has a meaning, in bytes. With
// larger sectors the rest is zero.
const bootSize = 512

const (
	signature       = "-FVE-FS-" // of boot sector and metadata areas
	signatureToGo   = "MSWIN4.1" // of a To Go volume, and of any FAT32
	offIdentifier   = 160
	offIdentToGo    = 424
	jumpVista       = 0x52 // second byte of the boot sector; 0x58 since Windows 7
	headerSize      = 8192 // bytes at the start that Windows moves aside
	numberOfCopies  = 3
	mediaDescriptor = 0xF8
)

var (
	identifierNormal = MustGUID("4967D63B-2E29-4AD8-8399-F6A339E3D001")
	identifierEOW    = MustGUID("92A84D3B-DD80-4D0E-9E4E-B1E3284EAED8")
)

// bootSector is what the first sector of a volume says.
type bootSector struct {
	sectorSize int                   // bytes: 512 or 4096
	identifier int                   // where its GUID is, with the offsets behind
	metadata   [numberOfCopies]int64 // offsets of the metadata copies, unchecked
	refused    *RefusedError         // why the volume is not opened
}

func (s bootSector) toGo() bool { return s.identifier == offIdentToGo }

// putOffsets writes the metadata offsets into the boot sector b.
func (s bootSector) putOffsets(b []byte) {
	for i, off := range s.metadata {
		le.PutUint64(b[s.identifier+len(GUID{})+8*i:], uint64(off))
	}
}

func parseBoot(b []byte) (bootSector, error) {
	if len(b) < bootSize {
		return bootSector{}, ErrNotBitLocker
	}
	s := bootSector{identifier: offIdentifier}
	switch string(b[3:11]) {
	case signature:
		if b[1] == jumpVista {
			return bootSector{}, refused(RefusedVista, "made by Windows Vista")
		}
	case signatureToGo:
		s.identifier = offIdentToGo
	default:
		return bootSector{}, ErrNotBitLocker
	}
	switch GUID(b[s.identifier:]) {
	case identifierNormal:
	case identifierEOW:
		s.refused = refused(RefusedEncryptOnWrite, "encrypt-on-write (used space only) has not been converted")
	default:
		return bootSector{}, ErrNotBitLocker
	}
	if s.sectorSize = int(le.Uint16(b[11:])); s.sectorSize == 0 {
		s.sectorSize = 512
	}
	if !validSectorSize(s.sectorSize) {
		return bootSector{}, refused(RefusedSectorSize, "sectors of %d bytes (want 512 or 4096)", s.sectorSize)
	}
	for i := range s.metadata {
		s.metadata[i] = int64(le.Uint64(b[s.identifier+len(GUID{})+8*i:]))
	}
	return s, nil
}

func validSectorSize(n int) bool { return n == 512 || n == 4096 }

// encode returns the boot sector of a normal volume, sectorSize bytes.
func (s bootSector) encode() []byte {
	b := make([]byte, s.sectorSize)
	copy(b, "\xEB\x58\x90"+signature)
	le.PutUint16(b[11:], uint16(s.sectorSize))
	b[13] = byte(4096 / s.sectorSize) // sectors per cluster
	b[21] = mediaDescriptor
	le.PutUint16(b[24:], 0x3F) // sectors per track
	le.PutUint16(b[26:], 0xFF) // heads
	le.PutUint32(b[36:], 0x1FE0)
	le.PutUint16(b[48:], 1)
	le.PutUint16(b[50:], 6)
	b[64], b[66] = 0x80, 0x29
	copy(b[71:], "NO NAME    FAT32   ")
	copy(b[offIdentifier:], identifierNormal[:])
	s.putOffsets(b)
	b[510], b[511] = 0x55, 0xAA
	return b
}
