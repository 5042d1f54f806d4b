package files

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// copyBuffer is what is read at once, in bytes.
const copyBuffer = 1 << 20

// ErrChanged is a file that somebody changed while it was copied.
var ErrChanged = errors.New("somebody changes it: it was left as it is")

// Copy copies a file, durably: the copy is written aside, read back from the
// disk and compared, and then takes its place; see [System.Replace]. With
// keepTime it has the source's time of change. progress, if it is not nil, is
// told of the bytes written.
func (s *System) Copy(ctx context.Context, from, to string, keepTime bool, progress func(int64)) error {
	_, err := s.copy(ctx, from, to, keepTime, progress)
	return err
}

// copy returns what the source was when it was copied.
func (s *System) copy(ctx context.Context, from, to string, keepTime bool, progress func(int64)) (fs.FileInfo, error) {
	in, err := s.Open(from)
	if err != nil {
		return nil, err
	}
	info, err := in.Stat()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	if target, err := s.Stat(to); err == nil && os.SameFile(info, target) {
		in.Close()
		return nil, fmt.Errorf("%s is the same file", to)
	}
	out, err := s.Replace(to)
	if err != nil {
		in.Close()
		return nil, err
	}
	if err := transferAll(ctx, in, out, info, progress); err != nil {
		return nil, errors.Join(err, out.Abandon(), in.Close())
	}
	if err := errors.Join(in.Close(), out.Close()); err != nil {
		return nil, err
	}
	if keepTime {
		err = s.Chtimes(to, time.Time{}, info.ModTime())
	}
	return info, err
}

// transferAll copies in to out and makes sure of it.
func transferAll(ctx context.Context, in, out *File, info fs.FileInfo, progress func(int64)) error {
	h := sha256.New()
	w := io.MultiWriter(out, h, progressWriter{ctx, progress})
	n, err := io.CopyBuffer(w, struct{ io.Reader }{in}, make([]byte, copyBuffer))
	if err != nil {
		return err
	}
	now, err := in.Stat()
	if err != nil {
		return err
	}
	if n != info.Size() || now.Size() != n || !now.ModTime().Equal(info.ModTime()) {
		return &fs.PathError{Op: "copy", Path: in.Name(), Err: ErrChanged}
	}
	return out.Check(ctx, h.Sum(nil))
}

// progressWriter tells of progress, and ends with its context.
type progressWriter struct {
	ctx  context.Context
	tell func(int64)
}

func (p progressWriter) Write(b []byte) (int, error) {
	if p.tell != nil {
		p.tell(int64(len(b)))
	}
	return len(b), p.ctx.Err()
}

// Check makes what was written durable, reads it back from the disk, and fails
// unless its SHA-256 is sum.
func (f *File) Check(ctx context.Context, sum []byte) error {
	if err := f.f.Sync(); err != nil {
		return f.explain("sync", err)
	}
	unix.Fadvise(int(f.f.Fd()), 0, 0, unix.FADV_DONTNEED) // if it can be had from the disk, it shall
	info, err := f.f.Stat()
	if err != nil {
		return f.explain("check", err)
	}
	h := sha256.New()
	w := io.MultiWriter(h, progressWriter{ctx, nil})
	if _, err := io.CopyBuffer(w, struct{ io.Reader }{io.NewSectionReader(f.f, 0, info.Size())}, make([]byte, copyBuffer)); err != nil {
		return f.explain("check", err)
	}
	if !bytes.Equal(h.Sum(nil), sum) {
		return f.explain("check", errors.New("what was read back is not what was written"))
	}
	return nil
}

// Move moves a file or folder as [System.Rename] does, between disks too. There
// it copies all, see [System.Copy], and removes the source only when the copies
// are durable; what was changed or added meanwhile stays where it is, with an
// error. Nothing that is there is replaced but a file, and that with replace.
func (s *System) Move(ctx context.Context, from, to string, replace bool, progress func(int64)) error {
	err := s.Rename(from, to, replace)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	info, err := s.Lstat(from)
	if err != nil {
		return err
	}
	if !replace || info.IsDir() {
		if _, err := s.Lstat(to); err == nil {
			return &fs.PathError{Op: "move", Path: to, Err: fs.ErrExist}
		}
	}
	m := mover{System: s, from: path.Clean("/" + from), to: path.Clean("/" + to), progress: progress}
	if err := m.copyAll(ctx, m.from, info); err != nil {
		return err
	}
	return m.removeAll(ctx)
}

// mover moves a tree from disk to disk.
type mover struct {
	*System
	from, to string
	progress func(int64)
	files    []copied
	folders  []string // those above before those below
}

type copied struct {
	name string
	info fs.FileInfo
}

func (m *mover) copyAll(ctx context.Context, name string, info fs.FileInfo) error {
	to := m.to + strings.TrimPrefix(name, m.from)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case info.Mode().IsRegular():
		was, err := m.copy(ctx, name, to, true, m.progress)
		m.files = append(m.files, copied{name, was})
		return err
	case !info.IsDir():
		return &fs.PathError{Op: "move", Path: name, Err: errors.New("is neither a file nor a folder: it cannot go to another disk")}
	}
	if err := m.Mkdir(to); err != nil {
		return err
	}
	m.folders = append(m.folders, name)
	list, err := m.ReadDir(name)
	if err != nil {
		return err
	}
	for _, sub := range list {
		if err := m.copyAll(ctx, path.Join(name, sub.Name()), sub); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes what was copied, and nothing else.
func (m *mover) removeAll(ctx context.Context) error {
	for _, f := range m.files {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := m.removeMoved(f.name, recording.OpRemove, f.info); err != nil {
			return err
		}
	}
	for i := len(m.folders) - 1; i >= 0; i-- {
		if err := m.removeMoved(m.folders[i], recording.OpRmdir, nil); err != nil {
			return err
		}
	}
	return nil
}

// removeMoved removes the source of a copy, if it is still what was copied.
// Nothing disappears by that: it asks for no approval beyond the move's.
func (m *mover) removeMoved(name string, op recording.Op, was fs.FileInfo) error {
	p, err := m.toWrite(op, name)
	if err != nil {
		return err
	}
	e := m.event(op, p)
	err = p.removeOnly(func(now fs.FileInfo) error {
		if was != nil && (!os.SameFile(now, was) || now.Size() != was.Size() || !now.ModTime().Equal(was.ModTime())) {
			return ErrChanged
		}
		return m.record(e)
	})
	return m.done(p, e, err)
}
