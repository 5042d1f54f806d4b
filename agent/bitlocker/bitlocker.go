// Package bitlocker reads, writes and makes BitLocker volumes of metadata
// version 2 (Windows 7 and later).
//
// A volume is any [io.ReaderAt]. [Open] reads its metadata, which needs no key;
// [Volume.Unlock] turns a credential into a [Plaintext], the decrypted view;
// [Format] makes a volume out of a plain file-system image, in place.
//
// The rules:
//
//   - Nothing on the disk is trusted. Every length and offset is bounded before
//     use, a metadata copy counts only if its CRC fits, and after unlocking only
//     if the SHA-256 sealed under the volume master key fits too.
//   - A credential that opens nothing gets [ErrWrongKey], and no more is said.
//   - Keys live in heap buffers that are overwritten after use. After
//     [Plaintext.Wipe] neither keys nor key schedules remain in memory.
//   - What this package cannot read, it refuses by name, with [ErrUnsupported].
//
// The package is pure: no clock, no files, no network, no logging.
package bitlocker

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Errors that callers branch on. All but [ErrWrongKey] and [ErrWiped] come
// wrapped, with the details.
var (
	ErrNotBitLocker = errors.New("not a BitLocker volume")
	ErrUnsupported  = errors.New("unsupported BitLocker volume")
	ErrDamaged      = errors.New("damaged BitLocker volume")
	ErrTruncated    = errors.New("truncated BitLocker volume")
	ErrNoProtector  = errors.New("no protector of this kind")
	ErrWrongKey     = errors.New("wrong key")
	ErrWiped        = errors.New("volume is locked: its keys were wiped")
	ErrReadOnly     = errors.New("volume was opened read-only")
	ErrReserved     = errors.New("write into an area reserved for BitLocker metadata")
)

// Volume is a locked volume: its metadata has been read, its keys have not.
// It is immutable and safe for concurrent use.
type Volume struct {
	r          io.ReaderAt
	size       int64
	sectorSize int
	copies     []*metadata // the valid ones that differ, in the boot sector's order; never empty
}

// Info is what a locked volume tells everyone.
type Info struct {
	ID            GUID        // of the volume
	Description   string      // usually "COMPUTER LABEL M/D/YYYY"
	Created       time.Time   // when encryption began
	Method        Method      // of the sectors
	SectorSize    int         // bytes: 512 or 4096
	Size          int64       // bytes of the volume, and of its decrypted view
	EncryptedSize int64       // bytes from the start that are encrypted: all, once encryption has completed
	Protectors    []Protector // in the order on disk
}

// Protector is one way to unlock a volume.
type Protector struct {
	ID   GUID
	Kind ProtectorKind
}

// Open reads the metadata of the volume r, which is size bytes long. If r is
// also an [io.WriterAt], the unlocked volume can be written.
func Open(r io.ReaderAt, size int64) (*Volume, error) {
	sector := make([]byte, min(max(size, 0), bootSize))
	if err := readFull(r, sector, 0); err != nil {
		return nil, fmt.Errorf("cannot read the boot sector: %w", err)
	}
	boot, err := parseBoot(sector)
	if err != nil {
		return nil, err
	}
	v := &Volume{r: r, size: size, sectorSize: boot.sectorSize}
	if v.copies, err = readCopies(r, size, boot); err != nil {
		return nil, err
	}
	return v, nil
}

// readCopies returns the metadata copies that are whole. A copy that is damaged
// makes way for the next one; one that is whole and says that the volume cannot
// be read has the last word.
func readCopies(r io.ReaderAt, size int64, boot bootSector) ([]*metadata, error) {
	var copies []*metadata
	var damage []string
	for i, off := range boot.metadata {
		m, err := readCopy(r, size, off, boot.sectorSize)
		switch {
		case errors.Is(err, ErrDamaged):
			what := strings.TrimPrefix(err.Error(), ErrDamaged.Error()+": ")
			damage = append(damage, fmt.Sprintf("copy %d: %s", i+1, what))
		case err != nil:
			return nil, err
		case !slices.ContainsFunc(copies, m.same):
			copies = append(copies, m)
		}
	}
	if len(copies) == 0 {
		return nil, damaged("no metadata copy is whole: %s", strings.Join(damage, "; "))
	}
	return copies, nil
}

func readCopy(r io.ReaderAt, size, off int64, sectorSize int) (*metadata, error) {
	if off < 0 || off > size-areaSize {
		return nil, damaged("its offset %#x lies outside the image of %d bytes", off, size)
	}
	area := make([]byte, areaSize)
	if err := readFull(r, area, off); err != nil {
		return nil, damaged("cannot read it: %v", err)
	}
	m, err := parseMetadata(area)
	if err != nil {
		return nil, err
	}
	if m.encryptedSize > size {
		return nil, fmt.Errorf("%w: %d of %d bytes are there", ErrTruncated, size, m.encryptedSize)
	}
	if m.layout, err = newLayout(m.geometry, size, sectorSize); err != nil {
		return nil, err
	}
	return m, nil
}

// Info returns what the metadata says in clear. Nothing of it is authenticated
// before [Volume.Unlock] has succeeded.
func (v *Volume) Info() Info {
	m := v.copies[0]
	info := Info{
		ID: m.id, Description: m.description, Created: m.created.time(),
		Method: m.method, SectorSize: v.sectorSize,
		Size: v.size, EncryptedSize: m.encryptedSize,
	}
	for _, p := range m.protectors {
		info.Protectors = append(info.Protectors, Protector{p.id, p.kind})
	}
	return info
}

// Unlock opens the volume with c. It fails with [ErrWrongKey] if c fits no
// protector, with [ErrNoProtector] if the volume has none of its kind, with
// [ErrUnsupported] if the encryption method is unknown, and with [ErrDamaged] if
// c fits but the metadata have been altered. A password or passphrase takes a
// noticeable part of a second for each protector of its kind.
//
// The caller wipes c, and the Plaintext when done.
func (v *Volume) Unlock(c Credential) (*Plaintext, error) {
	var errs []error
	for _, m := range v.copies {
		var p *Plaintext
		var err error
		withCleanStack(func() { p, err = v.unlockCopy(m, c) })
		if err == nil {
			return p, nil
		}
		errs = append(errs, err)
	}
	// A copy whose key fitted but whose content did not says more than one
	// that nothing fitted.
	for _, err := range errs {
		if !errors.Is(err, ErrWrongKey) {
			return nil, err
		}
	}
	return nil, ErrWrongKey
}

func (v *Volume) unlockCopy(m *metadata, c Credential) (*Plaintext, error) {
	vmk, err := m.openVMK(c)
	if err != nil {
		return nil, err
	}
	defer clear(vmk)
	if err := m.verify(vmk); err != nil {
		return nil, err
	}
	cipher, err := m.openCipher(vmk, v.sectorSize)
	if err != nil {
		return nil, err
	}
	w, _ := v.r.(io.WriterAt)
	return &Plaintext{r: v.r, w: w, layout: m.layout, sectorSize: v.sectorSize, cipher: cipher}, nil
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

// readFull reads all of b or returns an error.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
