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
	"io"
	"time"
)

// Volume is a locked volume: its metadata has been read, its keys have not.
// It is immutable and safe for concurrent use.
type Volume struct {
	r          io.ReaderAt
	size       int64
	sectorSize int
	toGo       bool
	copies     []*metadata            // the whole ones that differ, those without a problem first, newer before older; never empty
	damage     [numberOfCopies]string // what is wrong with each copy
	refused    *RefusedError          // why it is not opened
}

// Info is what a locked volume tells everyone. Nothing of it is authenticated
// before [Volume.Unlock] has succeeded.
type Info struct {
	ID            GUID        // of the volume
	Description   string      // usually "COMPUTER LABEL M/D/YYYY"
	Created       time.Time   // when encryption began
	Method        Method      // of the sectors
	SectorSize    int         // bytes: 512 or 4096
	Size          int64       // bytes of the volume, and of its decrypted view
	EncryptedSize int64       // bytes from the start that are encrypted: all, once encryption has completed
	ToGo          bool        // BitLocker To Go over FAT
	State         uint16      // 4 is encrypted
	NextState     uint16      // another one while converting
	Metadata      [3]int64    // offsets of the metadata areas
	HeaderCopy    int64       // offset of the file system's own beginning
	HeaderSize    int64       // its length in bytes
	NextNonce     uint32      // counter of sealed items
	KeyData       int         // bytes of the sealed volume key, with its header of 12
	Damage        [3]string   // what is wrong with each metadata copy; empty if nothing
	Protectors    []Protector // in the order on disk

	// Refused says why nobody here can unlock the volume, whatever the key; nil if
	// it can be.
	Refused *RefusedError
}

// Protector is one way to unlock a volume.
type Protector struct {
	ID       GUID
	Kind     ProtectorKind
	Name     string    // often empty
	Modified time.Time // to 100 ns
	Salt     [16]byte  // of a password's or passphrase's stretch; zero for other kinds
	KeyData  int       // bytes of the sealed master key, with its header of 12; 0 if there is none
}

// Open reads the metadata of the volume r, which is size bytes long. If r is
// also an [io.WriterAt], the unlocked volume can be written. Kinds of volumes that
// cannot be read are refused with a [RefusedError]; [Volume.Unlock] may refuse
// more, whose metadata can be shown.
func Open(r io.ReaderAt, size int64) (*Volume, error) {
	v, err := read(r, size)
	if err != nil {
		return nil, err
	}
	if v.refused != nil {
		return nil, v.refused
	}
	return v, nil
}

// Inspect reads what a volume tells without a key, also of most kinds that are
// refused: Info.Refused then says why. The error is that of [Open] for volumes
// that tell nothing.
func Inspect(r io.ReaderAt, size int64) (Info, error) {
	v, err := read(r, size)
	if err != nil {
		return Info{}, err
	}
	return v.Info(), nil
}

// Info returns what the metadata says in clear.
func (v *Volume) Info() Info {
	m := v.copies[0]
	info := Info{
		ID: m.id, Description: m.description, Created: m.created.time(),
		Method: m.method, SectorSize: v.sectorSize,
		Size: v.size, EncryptedSize: m.encryptedSize, ToGo: v.toGo,
		State: le.Uint16(m.raw[12:]), NextState: le.Uint16(m.raw[14:]),
		Metadata: m.geometry.metadata, HeaderCopy: m.headerCopy, HeaderSize: m.headerSize,
		NextNonce: m.nextNonce, KeyData: m.fvek.size(), Damage: v.damage, Refused: v.refused,
	}
	if info.Refused == nil {
		info.Refused = m.checkOpenable()
	}
	for _, p := range m.protectors {
		info.Protectors = append(info.Protectors, p.Protector)
	}
	return info
}

// Unlock opens the volume with c. It fails with [ErrWrongKey] if c fits no
// protector, with [ErrNoProtector] if the volume has none of its kind, with a
// [RefusedError] if nothing of ours opens any protector or the encryption method
// is unknown, and with [ErrDamaged] if c fits but the metadata have been altered.
// [Plaintext.Protector] says which one it was. A password or passphrase takes a
// noticeable part of a second; with several, use [UnlockAll].
//
// The caller wipes c, and the Plaintext when done.
func (v *Volume) Unlock(c Credential) (*Plaintext, error) {
	var p *Plaintext
	var err error
	withCleanStack(func() { p, err = v.unlock(c) })
	return p, err
}

func (v *Volume) unlock(c Credential) (*Plaintext, error) {
	o, err := v.open(c)
	if err != nil {
		return nil, err
	}
	defer clear(o.vmk)
	w, _ := v.r.(io.WriterAt)
	return &Plaintext{
		r: v.r, w: w, layout: o.layout, sectorSize: v.sectorSize,
		cipher: o.cipher, protector: o.protector,
	}, nil
}

// opened is what a credential gives.
type opened struct {
	*metadata
	vmk       []byte
	cipher    sectorCipher
	protector Protector
}

func (o *opened) wipe() {
	clear(o.vmk)
	o.cipher.wipe()
}

// open tries the copies until one opens with c and proves genuine. The caller
// clears or keeps what it returns.
func (v *Volume) open(c Credential) (*opened, error) {
	if p, ok := c.(password); ok {
		s := v.stretched(p)
		defer wipeKeys(s.keys)
		stretchAll(s.keys)
		c = s
	}
	var errs []error
	for _, m := range v.copies {
		if m.problem != nil {
			break
		}
		o, err := v.openCopy(m, c)
		if err == nil {
			return v.checkOthers(o)
		}
		errs = append(errs, err)
	}
	return nil, worst(errs)
}

// worst returns the error that says most of a volume whose copies each failed: a
// copy whose key fitted but whose content did not says more than one that nothing
// fitted, and that more than one with a method that may be an alteration.
func worst(errs []error) error {
	for _, kind := range []error{ErrDamaged, ErrWrongKey} {
		for _, err := range errs {
			if errors.Is(err, kind) {
				return err
			}
		}
	}
	return errs[0]
}

// checkOthers returns o, unless a copy that is as genuine tells of a problem: o may
// be older.
func (v *Volume) checkOthers(o *opened) (*opened, error) {
	for _, m := range v.copies {
		if m.problem != nil && m.verify(o.vmk) == nil {
			o.wipe()
			return nil, m.problem
		}
	}
	return o, nil
}

func (v *Volume) openCopy(m *metadata, c Credential) (_ *opened, err error) {
	if err := m.checkOpenable(); err != nil {
		return nil, err
	}
	o := &opened{metadata: m}
	defer func() {
		if err != nil {
			clear(o.vmk)
		}
	}()
	if o.vmk, o.protector, err = m.openVMK(c); err != nil {
		return nil, err
	}
	if err := m.verify(o.vmk); err != nil {
		return nil, err
	}
	if o.cipher, err = m.openCipher(o.vmk, v.sectorSize); err != nil {
		return nil, err
	}
	return o, nil
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
