package bitlocker

import (
	"errors"
	"fmt"
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
	Description string // usually "COMPUTER LABEL M/D/YYYY"; at most 1024 bytes

	// Protectors are the keys that open the volume: at least one, not counting
	// clear keys. Recovery passwords go behind the others on disk, because some
	// tools cannot do without; some only ever try the first of a kind.
	Protectors []ProtectorKey

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

// Syncer is storage that says when what was written will survive a power cut.
type Syncer interface {
	// Sync returns when all that was written before is durable.
	Sync() error
}

// Format encrypts the size bytes of rw in place. The order of the writes is data,
// metadata copies 3, 2 and 1, boot sector, each durable before the next if rw is a
// [Syncer]: an image on which Format was interrupted is no BitLocker volume yet,
// and its file system is lost. It refuses an image that is one.
func Format(rw Storage, size int64, opts FormatOptions) error {
	f, err := newFormatter(opts, size)
	if err == nil {
		err = checkPlain(rw)
	}
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

// checkPlain refuses an image that is a BitLocker volume: its old metadata would
// make one of what is half encrypted anew.
func checkPlain(r io.ReaderAt) error {
	sector := make([]byte, bootSize)
	if err := readFull(r, sector, 0); err != nil {
		return err
	}
	if _, err := parseBoot(sector); !errors.Is(err, ErrNotBitLocker) {
		return errors.New("the image is a BitLocker volume already")
	}
	return nil
}

// maxDescription bounds a volume's description, in bytes.
const maxDescription = 1024

// formatter is one volume in the making.
type formatter struct {
	FormatOptions
	geometry
	layout layout
	cipher sectorCipher
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
	if err := checkProtectors(nil, o.Protectors); err != nil {
		return nil, err
	}
	if o.Rand == nil {
		return nil, errors.New("no source of randomness")
	}
	if len(o.Description) > maxDescription {
		return nil, fmt.Errorf("the description of %d bytes is too long: want at most %d", len(o.Description), maxDescription)
	}
	f := &formatter{FormatOptions: o}
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
	block, err := f.block(keys[:keySize], keys[keySize:])
	if err != nil {
		return nil, err
	}
	f.cipher, err = newSectorCipher(f.Method, keys[keySize:], f.SectorSize)
	return block, err
}

// block returns the metadata of one area of the finished volume.
func (f *formatter) block(vmk, fvek []byte) ([]byte, error) {
	now := newFiletime(f.Now)
	s := sealer{vmk: vmk, rand: f.Rand, now: now, epoch: uint64(now), next: 2}
	b := appendEntry(nil, typeDescription, valueString, encodeString(f.Description))
	for _, p := range f.Protectors {
		var err error
		if b, err = s.appendProtector(b, p); err != nil {
			return nil, err
		}
	}
	b = appendEntry(b, typeFVEK, valueSealed, s.seal(vmk, uint32(f.Method), fvek))
	b = appendEntry(b, typeHeaderArea, valueHeaderArea, u64(uint64(f.headerCopy)), u64(uint64(f.headerSize)))
	entries, err := parseEntries(b)
	if err != nil {
		return nil, err
	}
	return s.block(f.front(), encodeEntries(recoveryLast(entries)))
}

// front returns the block header and the metadata header, but for their lengths.
func (f *formatter) front() []byte {
	b := make([]byte, entriesAt)
	copy(b, signature)
	le.PutUint16(b[10:], 2)
	le.PutUint16(b[12:], stateEncrypted)
	le.PutUint16(b[14:], stateEncrypted)
	le.PutUint64(b[16:], uint64(f.encryptedSize))
	le.PutUint32(b[28:], uint32(f.headerSectors))
	for i, off := range f.metadata {
		le.PutUint64(b[32+8*i:], uint64(off))
	}
	le.PutUint64(b[56:], uint64(f.headerCopy))
	header := b[blockHeaderSize:]
	le.PutUint32(header[4:], 1)
	le.PutUint32(header[8:], headerLength)
	copy(header[16:], f.ID[:])
	le.PutUint16(header[36:], uint16(f.Method))
	le.PutUint16(header[38:], uint16(f.Method))
	le.PutUint64(header[40:], uint64(newFiletime(f.Now)))
	return b
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
	return syncStorage(rw)
}

// writeMetadata writes the three copies, the last one first, then zeros over the
// header, and the boot sector at the very end.
func (f *formatter) writeMetadata(w io.WriterAt, block []byte) error {
	area := make([]byte, areaSize)
	copy(area, block)
	for i := len(f.metadata) - 1; i >= 0; i-- {
		if err := writeDurably(w, area, f.metadata[i]); err != nil {
			return fmt.Errorf("cannot write metadata copy %d: %w", i+1, err)
		}
	}
	boot := bootSector{sectorSize: f.SectorSize, identifier: offIdentifier, metadata: f.metadata}.encode()
	if err := writeDurably(w, make([]byte, headerSize-len(boot)), int64(len(boot))); err != nil {
		return fmt.Errorf("cannot clear the header: %w", err)
	}
	if err := writeDurably(w, boot, 0); err != nil {
		return fmt.Errorf("cannot write the boot sector: %w", err)
	}
	return nil
}

// writeDurably writes b and makes it durable, where the storage can.
func writeDurably(w io.WriterAt, b []byte, off int64) error {
	if err := writeFull(w, b, off); err != nil {
		return err
	}
	return syncStorage(w)
}

// syncStorage makes writes durable, where the storage can.
func syncStorage(w any) error {
	if s, ok := w.(Syncer); ok {
		return s.Sync()
	}
	return nil
}
