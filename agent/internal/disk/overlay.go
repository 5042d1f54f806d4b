package disk

import (
	"errors"
	"io"
	"sync"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

// view is the decrypted volume as it is exported.
type view interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
}

// The overlay keeps whole blocks, and as many as the repair of a file system
// needs, most of it for the largest journal there is.
const (
	overlayBlock = 4 << 10
	overlayMax   = (96 << 20) / overlayBlock
)

var errOverlayFull = errors.New("too much is written to a read-only disk")

// overlay keeps in memory what is written to a volume that is read-only, so that
// a file system can be repaired for reading without a change to the image.
type overlay struct {
	volume *bitlocker.Plaintext

	mu     sync.Mutex
	blocks map[int64]*[overlayBlock]byte // by number
}

func newOverlay(volume *bitlocker.Plaintext) *overlay {
	return &overlay{volume: volume, blocks: map[int64]*[overlayBlock]byte{}}
}

// Size returns the length in bytes.
func (o *overlay) Size() int64 { return o.volume.Size() }

// ReadAt implements [io.ReaderAt].
func (o *overlay) ReadAt(b []byte, off int64) (int, error) {
	n, err := o.volume.ReadAt(b, off)
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.blocks) == 0 {
		return n, err
	}
	eachBlock(b[:n], off, func(piece []byte, number, within int64) error {
		if block := o.blocks[number]; block != nil {
			copy(piece, block[within:])
		}
		return nil
	})
	return n, err
}

// WriteAt implements [io.WriterAt].
func (o *overlay) WriteAt(b []byte, off int64) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := eachBlock(b, off, func(piece []byte, number, within int64) error {
		block, err := o.blockLocked(number)
		if err == nil {
			copy(block[within:], piece)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// blockLocked returns the block, which begins as what the volume has.
func (o *overlay) blockLocked(number int64) (*[overlayBlock]byte, error) {
	if block := o.blocks[number]; block != nil {
		return block, nil
	}
	if len(o.blocks) >= overlayMax {
		return nil, errOverlayFull
	}
	block := new([overlayBlock]byte)
	if _, err := o.volume.ReadAt(block[:], number*overlayBlock); err != nil && err != io.EOF {
		return nil, err
	}
	o.blocks[number] = block
	return block, nil
}

// wipe forgets what was written.
func (o *overlay) wipe() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, block := range o.blocks {
		clear(block[:])
	}
	clear(o.blocks)
}

// eachBlock calls f for the pieces of b that lie in one block each.
func eachBlock(b []byte, off int64, f func(piece []byte, number, within int64) error) error {
	for len(b) > 0 {
		within := off % overlayBlock
		n := min(int64(len(b)), overlayBlock-within)
		if err := f(b[:n], off/overlayBlock, within); err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return nil
}
