package files

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// File is an open file. It is safe for concurrent use. Whoever opened it closes
// it: only then is the content recorded, and durable.
type File struct {
	f      *os.File
	system *System
	place  place  // where it was when it was opened
	dir    string // of the share, to the kernel
	write  bool
	append bool
	made   bool         // it is new: its name is not durable yet
	stage  *stage       // nil if it is written where it is
	begins func() error // records the first write to what was there; nil if its opening said it
	read   transfer
	wrote  transfer

	mu     sync.Mutex // guards what follows
	offset int64
	synced bool
	closed bool
}

// Open opens a file for reading.
func (s *System) Open(name string) (*File, error) { return s.OpenFile(name, os.O_RDONLY, 0) }

// Create opens a file for writing that is new, or loses what it held: then see
// [System.Replace].
func (s *System) Create(name string) (*File, error) {
	return s.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
}

// OpenFile opens a file as [os.OpenFile] does, and nothing but a regular one.
// What O_TRUNC would empty is replaced when the file is closed, see
// [System.Replace].
func (s *System) OpenFile(name string, flag int, perm fs.FileMode) (*File, error) {
	f := &File{system: s, read: transfer{again: true}, write: flag&(os.O_WRONLY|os.O_RDWR) != 0, append: flag&os.O_APPEND != 0}
	op, find := recording.OpOpen, s.find
	if f.write {
		find = func(op, name string) (place, error) { return s.toWrite(recording.Op(op), name) }
	}
	p, err := find(string(op), name)
	if err != nil {
		return nil, err
	}
	f.place = p
	info, err := p.Stat(p.name)
	if flag&os.O_TRUNC != 0 && f.write && err == nil && info.Mode().IsRegular() && info.Size() > 0 && flag&os.O_EXCL == 0 {
		p.Close()
		return s.Replace(name)
	}
	e := s.event(op, p)
	if errors.Is(err, fs.ErrNotExist) && f.write && flag&os.O_CREATE != 0 {
		f.made, e.Op = true, recording.OpCreate
		err = checkNew(path.Base(p.name))
	} else {
		err = regular(info, err)
	}
	if err == nil {
		err = f.open(flag, perm)
	}
	if err := s.opened(f, e, err); err != nil {
		return nil, err
	}
	if f.write && !f.made {
		f.begins = sync.OnceValue(func() error { return s.record(s.event(recording.OpWrite, f.where())) })
	}
	return f, nil
}

// open opens the file. Nothing in it is cut here, and nothing waits for a pipe.
func (f *File) open(flag int, perm fs.FileMode) (err error) {
	wanted := flag&^(os.O_TRUNC|os.O_APPEND) | syscall.O_NONBLOCK
	if f.made {
		f.f, err = f.place.OpenFile(f.place.name, wanted|os.O_EXCL, perm)
		if flag&os.O_EXCL != 0 || !errors.Is(err, fs.ErrExist) {
			return err
		}
		f.made = false // somebody was faster
	}
	f.f, err = f.place.OpenFile(f.place.name, wanted, perm)
	return err
}

// opened records that a file was opened, or why not.
func (s *System) opened(f *File, e recording.FileEvent, err error) error {
	if err == nil {
		f.dir = s.kernelDir(f.place)
		if err = regular(f.f.Stat()); err == nil { // it may be another one by now
			err = s.record(e)
		}
		if err == nil {
			return nil
		}
		f.f.Close()
	}
	return s.done(f.place, e, err)
}

// Replace opens new content for a file, which takes the place of the old when it
// is closed: until then, and if it is abandoned, nothing has changed. To replace
// what is there needs an approval that says delete.
func (s *System) Replace(name string) (*File, error) {
	p, err := s.toWrite(recording.OpCreate, name)
	if err != nil {
		return nil, err
	}
	f := &File{system: s, place: p, write: true}
	e := s.event(recording.OpCreate, p)
	err = p.mayReplace()
	if err == nil {
		f.stage, err = newStage(p)
	}
	if err != nil {
		return nil, s.done(p, e, err)
	}
	f.f = f.stage.file
	if err := s.record(e); err != nil {
		f.stage.drop()
		p.Close()
		return nil, err
	}
	return f, nil
}

// mayReplace refuses what cannot be the new content of a file.
func (p place) mayReplace() error {
	if p.name == "." {
		return errNoShare
	}
	if above, err := p.Stat(path.Dir(p.name)); err != nil {
		return err
	} else if !above.IsDir() {
		return syscall.ENOTDIR
	}
	info, err := p.Lstat(p.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return checkNew(path.Base(p.name))
	case err == nil && info.Mode()&fs.ModeSymlink != 0:
		return errors.New("is a symbolic link: name the file that it leads to")
	}
	if err := regular(info, err); err != nil {
		return err
	}
	return p.mayDelete(p.full + " would be replaced")
}

// Name returns the path that the engineer sees, as it is now.
func (f *File) Name() string { return f.where().full }

// Stat describes the open file.
func (f *File) Stat() (fs.FileInfo, error) { return f.f.Stat() }

// Read reads on.
func (f *File) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.ReadAt(p, f.offset)
	f.offset += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt implements [io.ReaderAt].
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.f.ReadAt(p, off)
	f.read.add(off, p[:n])
	return n, f.explain("read", err)
}

// Write writes on, at the end if the file was opened with O_APPEND.
func (f *File) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.writeAtLocked(p, f.offset)
	f.offset += int64(n)
	return n, err
}

// WriteAt implements [io.WriterAt]. It writes at the end if the file was opened
// with O_APPEND.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if f.append {
		return f.Write(p)
	}
	return f.writeAt(p, off)
}

func (f *File) writeAtLocked(p []byte, off int64) (int, error) {
	if f.append {
		info, err := f.f.Stat()
		if err != nil {
			return 0, f.explain("write", err)
		}
		off = info.Size()
	}
	return f.writeAt(p, off)
}

func (f *File) writeAt(p []byte, off int64) (int, error) {
	if f.begins != nil {
		if err := f.begins(); err != nil {
			return 0, err
		}
	}
	n, err := f.f.WriteAt(p, off)
	f.wrote.add(off, p[:n])
	return n, f.explain("write", err)
}

// Seek implements [io.Seeker].
func (f *File) Seek(offset int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += f.offset
	case io.SeekEnd:
		info, err := f.f.Stat()
		if err != nil {
			return 0, f.explain("seek", err)
		}
		offset += info.Size()
	}
	if offset < 0 {
		return 0, f.explain("seek", syscall.EINVAL)
	}
	f.offset = offset
	return offset, nil
}

// Truncate gives the file another size. To make it shorter needs an approval
// that says delete.
func (f *File) Truncate(size int64) error {
	e := f.system.event(recording.OpTruncate, f.where())
	e.Size = size
	info, err := f.f.Stat()
	if err == nil && size < info.Size() && f.stage == nil {
		err = f.place.mayDelete(f.place.full + " would be cut short")
	}
	if err == nil {
		if err = f.system.record(e); err == nil {
			if size != info.Size() {
				f.wrote.spoil()
			}
			err = f.f.Truncate(size)
		}
	}
	if err != nil {
		return f.system.failed(e, f.explain("truncate", err))
	}
	return nil
}

// Sync makes what was written durable. What replaces a file does so at Close.
func (f *File) Sync() error {
	err := f.f.Sync()
	if err == nil {
		f.mu.Lock()
		f.synced = true
		f.mu.Unlock()
	}
	return f.explain("sync", err)
}

func (f *File) explain(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &fs.PathError{Op: op, Path: f.place.full, Err: state.Coded(reason(err))}
}

// Close makes what was written durable and records what was transferred. Only
// when it returns nil is the content what was written.
func (f *File) Close() error { return f.close(true) }

// Abandon closes the file without its new content taking the place of the old. A
// file that was made by opening it, and never synced, is removed again: what is
// in it is not what somebody wanted there. What was written to a file that was
// there before stays; nobody waits for it to be durable, so that many files are
// abandoned, and recorded, soon.
func (f *File) Abandon() error { return f.close(false) }

func (f *File) close(keep bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return f.explain("close", fs.ErrClosed)
	}
	f.closed = true
	defer f.place.Close()
	info, failed := f.f.Stat()
	size := int64(-1) // the disk may be gone: what was done is recorded all the same
	if failed == nil {
		size = info.Size()
	}
	events := f.content(size)
	var err error
	switch {
	case f.write && keep:
		err = f.settle()
	case f.stage != nil:
		f.stage.drop()
	}
	err = errors.Join(err, f.f.Close())
	for _, e := range events {
		if err != nil {
			e.Error = reason(err).Error()
		}
		if unrecorded := f.system.record(e); unrecorded != nil {
			return unrecorded
		}
	}
	if f.made && !keep && !f.synced && errors.Join(err, failed) == nil {
		err = f.unmake(info)
	}
	return f.explain("close", err)
}

// unmake removes a file that was made here, if it is where it was made. Otherwise
// somebody has it under another name, or removed it.
func (f *File) unmake(made fs.FileInfo) error {
	err := f.place.removeOnly(func(there fs.FileInfo) error {
		if !os.SameFile(made, there) {
			return fs.SkipAll
		}
		return f.system.record(f.system.event(recording.OpRemove, f.place))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// content returns what is to be recorded of the content that was transferred, of
// a file of a size, -1 if that is unknown.
func (f *File) content(size int64) (events []recording.FileEvent) {
	place := f.where()
	add := func(op recording.Op, t *transfer, always bool) {
		if bytes, sum := t.result(size); bytes > 0 || always {
			e := f.system.event(op, place)
			e.Size, e.SHA256 = bytes, sum
			events = append(events, e)
		}
	}
	add(recording.OpRead, &f.read, false)
	add(recording.OpWrite, &f.wrote, f.write)
	return events
}

// settle makes what was written durable, in its place.
func (f *File) settle() error {
	if f.stage != nil {
		return f.stage.commit(f.place)
	}
	if err := f.f.Sync(); err != nil || !f.made {
		return err
	}
	dir, _, err := f.place.parent()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a folder above it was moved meanwhile, and that is durable
	}
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// maxHeld bounds what a transfer keeps of pieces that came out of order.
const maxHeld = 4 << 20

// transfer hashes what was transferred, if it was all of a file, once and
// nearly in order.
type transfer struct {
	mu      sync.Mutex // guards what follows
	bytes   int64
	sum     hash.Hash
	next    int64            // all before it was hashed
	held    map[int64][]byte // pieces that come later
	size    int              // of held
	again   bool             // overlaps are no changes: it is what was read
	unknown bool             // the hash cannot be known any more
}

func (t *transfer) add(off int64, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes += int64(len(p))
	if off < t.next && t.again { // what is read twice was transferred all the same
		p = p[min(int64(len(p)), t.next-off):]
		off = t.next
	}
	switch {
	case t.unknown || len(p) == 0:
	case off == t.next:
		t.hashLocked(p)
		t.catchUpLocked()
	case off < t.next || t.held[off] != nil || t.size+len(p) > maxHeld:
		t.unknown, t.held, t.sum = true, nil, nil
	default:
		if t.held == nil {
			t.held = make(map[int64][]byte)
		}
		t.held[off] = append([]byte(nil), p...)
		t.size += len(p)
	}
}

// catchUpLocked hashes the held pieces whose turn has come.
func (t *transfer) catchUpLocked() {
	for more := true; more; {
		more = false
		for off, piece := range t.held {
			if off > t.next || off < t.next && !t.again {
				continue
			}
			delete(t.held, off)
			t.size -= len(piece)
			t.hashLocked(piece[min(int64(len(piece)), t.next-off):])
			more = true
		}
	}
}

func (t *transfer) hashLocked(p []byte) {
	if t.sum == nil {
		t.sum = sha256.New()
	}
	t.sum.Write(p)
	t.next += int64(len(p))
}

// spoil says that the content is not what was hashed.
func (t *transfer) spoil() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unknown = true
}

// result returns how much was transferred, and the SHA-256 of a file of that
// size if it was all of it, else "".
func (t *transfer) result(size int64) (int64, string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unknown || len(t.held) > 0 || t.next != size {
		return t.bytes, ""
	}
	if t.sum == nil {
		t.sum = sha256.New()
	}
	return t.bytes, hex.EncodeToString(t.sum.Sum(nil))
}
