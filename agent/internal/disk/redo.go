package disk

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

// redoImage is an image whose writes take effect all at once, at every sync.
//
// NTFS as ntfs-3g writes it has no journal, and the kernel writes back what is
// dirty in any order. A file system that is cut off between two syncs, by a kill or
// a power cut, could lose even what was synced long ago: a folder, half of whose
// index is new. So what is written goes to a log beside the image, in the encrypted
// form in which it will be on the disk. A sync ends the batch with a mark, makes
// the log durable, and only then copies the batch to the image. A batch without its
// mark is dropped; one with its mark is copied again when the disk is next opened.
// ntfs-3g syncs between two of its operations, never within one, so each batch
// leads from one consistent state to the next.
//
// The log is a header and records:
//
//	header  magic 8, volume 16, epoch 8, CRC 4
//	record  CRC 4, length 4, offset in the image 8, data
//
// Numbers are little-endian, CRCs are CRC-32C. A record's covers the epoch and all
// that follows it, so that remains of an earlier epoch never count. A record of
// length 0 is the mark. Once what it holds is in the image, durably, the log begins
// a new epoch over the old one: to write what is allocated already costs the host's
// file system no change of its own.
type redoImage struct {
	image *os.File
	path  string        // of the log
	full  chan struct{} // 1 slot: the log is due for a sync

	writing sync.Mutex // held while writing and syncing; guards what follows
	id      bitlocker.GUID
	log     *os.File // nil before the first write
	epoch   uint64
	end     int64 // of the log
	batch   []redoRecord
	scratch []byte
	failed  error // of a sync that may have lost something: nothing is written any more

	reading sync.RWMutex    // held while reading; guards what follows, without which the log is not read
	pending map[int64]int64 // sector → where in the log its latest content is
}

// redoRecord is one write in the log.
type redoRecord struct {
	off int64 // in the image
	at  int64 // of the data in the log
	n   int
}

const (
	redoMagic  = "DBXREDO1"
	redoHeader = 8 + 16 + 8 + 4
	redoRecHdr = 4 + 4 + 8
	redoSector = 512

	// redoMaxWrite is the longest write that goes into one record, in bytes.
	redoMaxWrite = 1 << 20
	// redoBuffer is how much of a log is read at a time, in bytes.
	redoBuffer = 64 << 10
	// redoFull is the length from which the log is emptied at a sync, and a sync
	// asked for.
	redoFull = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// redoPath returns where the log of an image is.
func redoPath(image string) string { return image + ".redo" }

func newRedoImage(image *os.File, id bitlocker.GUID) *redoImage {
	// A random first epoch: what an earlier log left in blocks that the host's
	// file system hands out again never passes for this one's.
	var epoch [8]byte
	rand.Read(epoch[:])
	return &redoImage{
		image: image, path: redoPath(image.Name()), id: id, epoch: binary.LittleEndian.Uint64(epoch[:]),
		pending: map[int64]int64{}, full: make(chan struct{}, 1),
	}
}

// ReadAt implements [io.ReaderAt]: it returns what was written last, synced or not.
func (r *redoImage) ReadAt(b []byte, off int64) (int, error) {
	r.reading.RLock()
	defer r.reading.RUnlock()
	n, err := r.image.ReadAt(b, off)
	if len(r.pending) == 0 {
		return n, err
	}
	for done := 0; done < n; {
		length, at, logged := r.runLocked(off+int64(done), n-done)
		if logged {
			if _, err := r.log.ReadAt(b[done:done+length], at); err != nil {
				return done, fmt.Errorf("cannot read %s: %w", r.path, err)
			}
		}
		done += length
	}
	return n, err
}

// runLocked returns how many of the n bytes at off are together, in the log at at,
// or else not in the log.
func (r *redoImage) runLocked(off int64, n int) (length int, at int64, logged bool) {
	sector, within := off/redoSector, off%redoSector
	start, logged := r.pending[sector]
	length = int(redoSector - within)
	for length < n {
		sector++
		next, ok := r.pending[sector]
		if ok != logged || ok && next != start+within+int64(length) {
			break
		}
		length += redoSector
	}
	return min(length, n), start + within, logged
}

// WriteAt implements [io.WriterAt] for whole sectors.
func (r *redoImage) WriteAt(b []byte, off int64) (int, error) {
	if off%redoSector != 0 || len(b)%redoSector != 0 {
		return 0, fmt.Errorf("write of %d bytes at %d: not whole sectors", len(b), off)
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	if r.failed != nil {
		return 0, r.failed
	}
	n := 0
	for n < len(b) {
		piece := b[n:min(len(b), n+redoMaxWrite)]
		at, err := r.appendLocked(off+int64(n), piece)
		if err != nil {
			return n, err
		}
		r.pend(redoRecord{off + int64(n), at, len(piece)})
		n += len(piece)
	}
	if r.end > redoFull {
		select {
		case r.full <- struct{}{}:
		default:
		}
	}
	return n, nil
}

// pend makes rec, which is in the log, part of the batch.
func (r *redoImage) pend(rec redoRecord) {
	r.batch = append(r.batch, rec)
	r.reading.Lock()
	defer r.reading.Unlock()
	for i := int64(0); i < int64(rec.n); i += redoSector {
		r.pending[(rec.off+i)/redoSector] = rec.at + i
	}
}

// appendLocked appends a record and returns where its data is.
func (r *redoImage) appendLocked(off int64, data []byte) (at int64, err error) {
	if r.log == nil {
		if err := r.createLocked(); err != nil {
			return 0, r.failLocked(fmt.Errorf("cannot make the log of the disk: %w", err))
		}
	}
	rec := append(r.scratch[:0], make([]byte, redoRecHdr)...)
	rec = append(rec, data...)
	r.scratch = rec
	binary.LittleEndian.PutUint32(rec[4:], uint32(len(data)))
	binary.LittleEndian.PutUint64(rec[8:], uint64(off))
	binary.LittleEndian.PutUint32(rec, redoSum(r.epoch, rec))
	if _, err := r.log.WriteAt(rec, r.end); err != nil {
		return 0, fmt.Errorf("cannot write the log of the disk: %w", err)
	}
	at = r.end + redoRecHdr
	r.end += int64(len(rec))
	return at, nil
}

// redoSum returns the CRC of a record, whose first four bytes are left out.
func redoSum(epoch uint64, rec []byte) uint32 {
	sum := crc32.Update(0, castagnoli, binary.LittleEndian.AppendUint64(nil, epoch))
	return crc32.Update(sum, castagnoli, rec[4:])
}

// createLocked makes the log, durably, before the first write.
func (r *redoImage) createLocked() error {
	log, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	r.log = log
	if err := r.restartLocked(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(r.path))
}

// restartLocked begins a new epoch. What the log held is in the image, durably.
func (r *redoImage) restartLocked() error {
	if r.end > 2*redoFull { // keep no more than is of use
		if err := r.log.Truncate(redoFull); err != nil {
			return err
		}
	}
	r.epoch++
	header := append([]byte(redoMagic), r.id[:]...)
	header = binary.LittleEndian.AppendUint64(header, r.epoch)
	header = binary.LittleEndian.AppendUint32(header, crc32.Checksum(header, castagnoli))
	if _, err := r.log.WriteAt(header, 0); err != nil {
		return err
	}
	r.end = redoHeader
	return syncData(r.log)
}

// Sync makes everything written so far take effect, durably and all at once. After
// an error nothing has, or it will when the disk is next opened.
func (r *redoImage) Sync() error {
	r.writing.Lock()
	defer r.writing.Unlock()
	if r.failed != nil {
		return r.failed
	}
	if len(r.batch) > 0 {
		if _, err := r.appendLocked(0, nil); err != nil {
			return err // for want of room, say: nothing has changed, a later sync may succeed
		}
		if err := r.applyLocked(); err != nil {
			return r.failLocked(err)
		}
	}
	if r.end > redoFull {
		if err := r.checkpointLocked(); err != nil {
			return r.failLocked(err)
		}
	}
	return nil
}

// applyLocked makes the batch durable in the log, and copies it to the image. Those
// who read meanwhile find it in the log.
func (r *redoImage) applyLocked() error {
	if err := syncData(r.log); err != nil {
		return err
	}
	for _, rec := range r.batch {
		if err := r.copyLocked(rec); err != nil {
			return err
		}
	}
	r.batch = r.batch[:0]
	r.reading.Lock()
	defer r.reading.Unlock()
	clear(r.pending)
	return nil
}

// failLocked gives the disk up until it is opened again. A sync that failed may
// have lost what it was to write, and the next one would not say so.
func (r *redoImage) failLocked(err error) error {
	r.failed = err
	return err
}

// copyLocked copies a record to the image.
func (r *redoImage) copyLocked(rec redoRecord) error {
	b := append(r.scratch[:0], make([]byte, rec.n)...)
	r.scratch = b
	if _, err := r.log.ReadAt(b, rec.at); err != nil {
		return err
	}
	_, err := r.image.WriteAt(b, rec.off)
	return err
}

// checkpointLocked ends the use of a log without a batch.
func (r *redoImage) checkpointLocked() error {
	if err := syncData(r.image); err != nil {
		return err
	}
	return r.restartLocked()
}

// finish syncs, and makes the image whole without the log.
func (r *redoImage) finish() error {
	if err := r.Sync(); err != nil {
		return err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	if r.log == nil {
		return nil
	}
	if err := syncData(r.image); err != nil {
		return err
	}
	if err := os.Remove(r.path); err != nil {
		return err
	}
	log := r.log
	r.log = nil
	return log.Close()
}

// close drops what was not synced. It leaves the log, if any, to be used when the
// disk is next opened.
func (r *redoImage) close() {
	r.writing.Lock()
	defer r.writing.Unlock()
	if r.log != nil {
		r.log.Close()
	}
}

// Recover brings the image up to date after a crash, with what was synced to the
// disk and had not reached the image. It needs no key. [Open] does it too; it is
// for those who want to read the image otherwise. It is refused with
// [protocol.CodeBusy] while the disk is open.
func (d Disk) Recover() error {
	if _, err := os.Lstat(redoPath(d.Image)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	image, err := openImage(Spec{Disk: d})
	if err != nil {
		return err
	}
	defer closeImage(image)
	log, err := os.Open(redoPath(d.Image)) // again: only whoever holds the image may look
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer log.Close()
	volume, err := readVolume(image)
	if err != nil {
		return err
	}
	if err := redo(image, log, volume.Info().ID); err != nil {
		return fmt.Errorf("cannot bring disk %s up to date: %w", d.ID, err)
	}
	return os.Remove(log.Name())
}

// redo copies the complete batches of log to image, with one record in memory at a
// time. A log of another volume, or one that was just begun, has none.
func redo(image *os.File, log io.ReadSeeker, id bitlocker.GUID) error {
	header := make([]byte, redoHeader)
	if _, err := io.ReadFull(log, header); err != nil {
		return ignoreEnd(err)
	}
	sum := binary.LittleEndian.Uint32(header[redoHeader-4:])
	if !bytes.HasPrefix(header, append([]byte(redoMagic), id[:]...)) || sum != crc32.Checksum(header[:redoHeader-4], castagnoli) {
		return nil
	}
	epoch := binary.LittleEndian.Uint64(header[8+16:])
	marked := int64(redoHeader) // where the last complete batch ends
	_, err := eachRecord(log, epoch, math.MaxInt64, func(rec []byte, end int64) error {
		if len(rec) == redoRecHdr {
			marked = end
		}
		return nil
	})
	if err != nil || marked == redoHeader {
		return err
	}
	end, err := eachRecord(log, epoch, marked, func(rec []byte, _ int64) error {
		if len(rec) == redoRecHdr {
			return nil
		}
		_, err := image.WriteAt(rec[redoRecHdr:], int64(binary.LittleEndian.Uint64(rec[8:])))
		return err
	})
	if err == nil && end != marked {
		err = errors.New("its log has changed while it was read")
	}
	return errors.Join(err, syncData(image))
}

// eachRecord calls f with the valid records of the epoch that end at limit or
// before, from the first one on, and with where each ends. It returns where the
// last one ends. f does not keep rec.
func eachRecord(log io.ReadSeeker, epoch uint64, limit int64, f func(rec []byte, end int64) error) (end int64, err error) {
	end, err = log.Seek(redoHeader, io.SeekStart)
	in := bufio.NewReaderSize(log, redoBuffer)
	rec := make([]byte, redoRecHdr)
	for err == nil && end < limit {
		rec, err = readRecord(in, epoch, rec)
		if len(rec) == 0 {
			break
		}
		end += int64(len(rec))
		err = f(rec, end)
	}
	return end, err
}

// readRecord reads a record into b, or a longer buffer if it needs one. It returns
// nothing if the log ends before the record does, or the record is not valid.
func readRecord(log io.Reader, epoch uint64, b []byte) ([]byte, error) {
	b = b[:redoRecHdr]
	if _, err := io.ReadFull(log, b); err != nil {
		return nil, ignoreEnd(err)
	}
	n := int(binary.LittleEndian.Uint32(b[4:]))
	if n > redoMaxWrite {
		return nil, nil
	}
	b = slices.Grow(b, n)[:redoRecHdr+n]
	if _, err := io.ReadFull(log, b[redoRecHdr:]); err != nil {
		return nil, ignoreEnd(err)
	}
	if binary.LittleEndian.Uint32(b) != redoSum(epoch, b) {
		return nil, nil
	}
	return b, nil
}

func ignoreEnd(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return err
}

// syncData makes what was written to file durable, and no more of its metadata than
// it takes to find that again.
func syncData(file *os.File) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var syncErr error
	err = conn.Control(func(fd uintptr) {
		for syncErr = unix.EINTR; syncErr == unix.EINTR; {
			syncErr = unix.Fdatasync(int(fd))
		}
	})
	return errors.Join(err, os.NewSyscallError("fdatasync", syncErr))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// closeImage ends what openImage began.
func closeImage(image *os.File) {
	// A child being started shares the descriptor for a moment, so closing is not
	// enough.
	unix.Flock(int(image.Fd()), unix.LOCK_UN)
	image.Close()
}
