package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// File is an open image, or block device.
type File struct {
	*os.File
	Size int64 // bytes
}

// Access is what an image is opened for.
type Access int

// The ways to open an image. Whoever reads its content shares it; whoever changes
// it has it alone, as an agent does that has unlocked it.
const (
	Look   Access = iota // at what it tells without a key
	Read                 // its content
	Change               // its keys
)

// ErrBusy says that an image is open elsewhere.
var ErrBusy = errors.New("it is open elsewhere, in an agent or another command: try again when that has closed it")

// Open opens an image. It fails with [ErrBusy] if another process stands in the
// way.
func Open(path string, a Access) (_ File, err error) {
	flag, lock := os.O_RDONLY, unix.LOCK_SH
	if a == Change {
		flag, lock = os.O_RDWR, unix.LOCK_EX
	}
	f, err := os.OpenFile(path, flag|unix.O_NONBLOCK, 0) // a named pipe must not block
	if err != nil {
		return File{}, fmt.Errorf("cannot open the image: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if a != Look {
		if err := unix.Flock(int(f.Fd()), lock|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			return File{}, fmt.Errorf("cannot open %s: %w", path, ErrBusy)
		} else if err != nil {
			return File{}, fmt.Errorf("cannot lock %s: %w", path, err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		return File{}, fmt.Errorf("cannot open the image: %w", err)
	}
	if kind := info.Mode().Type(); kind != 0 && kind != fs.ModeDevice {
		return File{}, fmt.Errorf("cannot open %s: it is neither a file nor a disk", path)
	}
	size, err := f.Seek(0, io.SeekEnd) // a disk has no size of its own
	if err != nil {
		return File{}, fmt.Errorf("cannot tell the size of %s: %w", path, err)
	}
	return File{f, size}, nil
}

// CheckRedo refuses an image with writes that are not in it yet: an agent that was
// cut off left them in a log beside it, and copies them when it next opens the disk.
func CheckRedo(path string) error {
	info, err := os.Stat(path + ".redo")
	if err != nil || info.Size() == 0 {
		return nil // no log, no writes
	}
	return fmt.Errorf("%s.redo holds writes of an agent that was cut off: have an agent open the disk first", path)
}

// copyPiece is how much [Copy] reads, decrypts and writes at a time, in bytes.
const copyPiece = 1 << 20

// piece is a part of what is copied.
type piece struct {
	buf   [copyPiece]byte
	off   int64
	n     int
	err   error
	ready chan struct{} // 1 slot: has been read
}

// Copy writes the size bytes of r to w in order, and tells wrote of each piece. It
// reads on all processors, which a decrypted view makes good use of.
func Copy(ctx context.Context, w io.Writer, r io.ReaderAt, size int64, wrote func(n int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	workers := runtime.GOMAXPROCS(0)
	free := make(chan *piece, 2*workers)
	for range cap(free) {
		free <- &piece{ready: make(chan struct{}, 1)}
	}
	work, order := make(chan *piece, cap(free)), make(chan *piece, cap(free))
	wait.Go(func() {
		defer close(work)
		defer close(order)
		for off := int64(0); off < size; off += copyPiece {
			select {
			case p := <-free:
				p.off, p.n = off, int(min(copyPiece, size-off))
				work <- p
				order <- p
			case <-ctx.Done():
				return
			}
		}
	})
	for range workers {
		wait.Go(func() {
			for p := range work {
				p.read(r)
			}
		})
	}
	for p := range order {
		<-p.ready
		if err := p.write(ctx, w); err != nil {
			return err
		}
		wrote(int64(p.n))
		free <- p
	}
	return ctx.Err()
}

func (p *piece) read(r io.ReaderAt) {
	n, err := r.ReadAt(p.buf[:p.n], p.off)
	if n == p.n {
		err = nil
	} else if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	p.err = err
	p.ready <- struct{}{}
}

func (p *piece) write(ctx context.Context, w io.Writer) error {
	if p.err != nil {
		return fmt.Errorf("cannot read at %d: %w", p.off, p.err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := w.Write(p.buf[:p.n])
	return err
}
