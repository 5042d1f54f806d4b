package bitlocker

import (
	"fmt"
	"io"
	"sync"
)

// Plaintext is the decrypted view of an unlocked volume, of the same length as
// the volume. It implements [io.ReaderAt] and [io.WriterAt] for any range, and
// is safe for concurrent use: writes to different bytes never undo each other.
//
// Where BitLocker keeps its metadata the view shows zeros, and refuses writes
// with [ErrReserved]. A write that fails may have been done in part.
type Plaintext struct {
	r          io.ReaderAt
	w          io.WriterAt // nil if read-only
	layout     layout
	sectorSize int
	protector  Protector

	edge sync.Mutex // held while part of a sector is replaced

	key    sync.RWMutex // guards cipher; held while computing, never during input and output
	cipher sectorCipher // nil once wiped
}

// Size returns the length of the view in bytes.
func (p *Plaintext) Size() int64 { return p.layout.size() }

// Protector returns the protector that the credential opened.
func (p *Plaintext) Protector() Protector { return p.protector }

// Wipe overwrites the keys. When it returns, no key is left in memory, and every
// read and write that has not finished its cryptography ends with [ErrWiped]; so
// does every later one. It waits for computations, microseconds, and not for the
// backing storage. It may be called more than once.
func (p *Plaintext) Wipe() {
	p.key.Lock()
	defer p.key.Unlock()
	if p.cipher != nil {
		p.cipher.wipe()
		p.cipher = nil
	}
}

// Wiped reports whether [Plaintext.Wipe] has been called.
func (p *Plaintext) Wiped() bool {
	p.key.RLock()
	defer p.key.RUnlock()
	return p.cipher == nil
}

// cryptChunk is how much is computed at a time, in bytes: it bounds how long
// Wipe waits, and how large the buffers of writes are.
const cryptChunk = 64 << 10

var (
	chunkPool = sync.Pool{New: func() any { return new([cryptChunk]byte) }}
	edgePool  = sync.Pool{New: func() any { return new([4096]byte) }}
)

// crypt runs f on b, whole sectors beginning at physical offset pos.
func (p *Plaintext) crypt(f func(c sectorCipher, b []byte, pos int64), b []byte, pos int64) error {
	for len(b) > 0 {
		n := min(len(b), cryptChunk)
		if err := p.cryptChunk(f, b[:n], pos); err != nil {
			return err
		}
		b, pos = b[n:], pos+int64(n)
	}
	return nil
}

func (p *Plaintext) cryptChunk(f func(c sectorCipher, b []byte, pos int64), b []byte, pos int64) error {
	p.key.RLock()
	defer p.key.RUnlock()
	if p.cipher == nil {
		return ErrWiped
	}
	f(p.cipher, b, pos)
	return nil
}

// ReadAt implements [io.ReaderAt].
func (p *Plaintext) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at offset %d", off)
	}
	if p.Wiped() {
		return 0, ErrWiped
	}
	return p.walk(b, off, p.readSpan, io.EOF)
}

// WriteAt implements [io.WriterAt]. A write beyond the end fails with
// [io.ErrShortWrite] after writing what fits.
func (p *Plaintext) WriteAt(b []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("write at offset %d", off)
	case p.Wiped():
		return 0, ErrWiped
	case p.w == nil:
		return 0, ErrReadOnly
	}
	return p.walk(b, off, p.writeSpan, io.ErrShortWrite)
}

// walk calls do for each piece of b that lies in one span, and returns end if b
// reaches beyond the view.
func (p *Plaintext) walk(b []byte, off int64, do func(s span, b []byte, off int64) error, end error) (int, error) {
	n := 0
	for n < len(b) {
		if off >= p.Size() {
			return n, end
		}
		s := p.layout.at(off)
		piece := b[n:]
		if left := s.end - off; left < int64(len(piece)) {
			piece = piece[:left]
		}
		if err := do(s, piece, off); err != nil {
			return n, err
		}
		n, off = n+len(piece), off+int64(len(piece))
	}
	return n, nil
}

func (p *Plaintext) readSpan(s span, b []byte, off int64) error {
	switch s.kind {
	case reserved:
		clear(b)
		return nil
	case plain:
		return readFull(p.r, b, off)
	}
	return p.pieces(b, off+s.shift, p.readSectors, p.readPart)
}

func (p *Plaintext) writeSpan(s span, b []byte, off int64) error {
	switch s.kind {
	case reserved:
		return fmt.Errorf("%w, at %#x", ErrReserved, off)
	case plain:
		return fmt.Errorf("%w: %#x is beyond the encrypted part", ErrReserved, off)
	}
	return p.pieces(b, off+s.shift, p.writeSectors, p.writePart)
}

// pieces splits the range of b at physical offset pos into whole sectors and the
// parts of sectors before and behind them.
func (p *Plaintext) pieces(b []byte, pos int64, whole, part func(b []byte, pos int64) error) error {
	if within := int(pos % int64(p.sectorSize)); within > 0 {
		n := min(len(b), p.sectorSize-within)
		if err := part(b[:n], pos); err != nil {
			return err
		}
		b, pos = b[n:], pos+int64(n)
	}
	if n := len(b) - len(b)%p.sectorSize; n > 0 {
		if err := whole(b[:n], pos); err != nil {
			return err
		}
		b, pos = b[n:], pos+int64(n)
	}
	if len(b) > 0 {
		return part(b, pos)
	}
	return nil
}

func (p *Plaintext) readSectors(b []byte, pos int64) error {
	if err := readFull(p.r, b, pos); err != nil {
		return err
	}
	return p.crypt(sectorCipher.decrypt, b, pos)
}

func (p *Plaintext) writeSectors(b []byte, pos int64) error {
	chunk := chunkPool.Get().(*[cryptChunk]byte)
	defer chunkPool.Put(chunk)
	for len(b) > 0 {
		n := copy(chunk[:], b)
		if err := p.crypt(sectorCipher.encrypt, chunk[:n], pos); err != nil {
			clear(chunk[:n])
			return err
		}
		if err := writeFull(p.w, chunk[:n], pos); err != nil {
			return err
		}
		b, pos = b[n:], pos+int64(n)
	}
	return nil
}

// readPart reads a part of one sector.
func (p *Plaintext) readPart(b []byte, pos int64) error {
	return p.withSector(pos, func(sector []byte, start int64) error {
		copy(b, sector[pos-start:])
		return nil
	})
}

// writePart replaces a part of one sector.
func (p *Plaintext) writePart(b []byte, pos int64) error {
	p.edge.Lock()
	defer p.edge.Unlock()
	return p.withSector(pos, func(sector []byte, start int64) error {
		copy(sector[pos-start:], b)
		return p.writeSectors(sector, start)
	})
}

// withSector runs f on the plaintext of the sector that holds pos.
func (p *Plaintext) withSector(pos int64, f func(sector []byte, start int64) error) error {
	buf := edgePool.Get().(*[4096]byte)
	defer edgePool.Put(buf)
	sector := buf[:p.sectorSize]
	defer clear(sector)
	start := pos - pos%int64(p.sectorSize)
	if err := p.readSectors(sector, start); err != nil {
		return err
	}
	return f(sector, start)
}

// writeFull writes all of b or returns an error.
func writeFull(w io.WriterAt, b []byte, off int64) error {
	n, err := w.WriteAt(b, off)
	if err == nil && n != len(b) {
		return io.ErrShortWrite
	}
	return err
}

var (
	_ io.ReaderAt = (*Plaintext)(nil)
	_ io.WriterAt = (*Plaintext)(nil)
)
