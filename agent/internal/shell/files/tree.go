package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// maxEntries is how many entries of one folder are sorted. The customer's disks
// may have folders that do not fit in memory.
const maxEntries = 100_000

// Stat describes what is at a path, or where a link there leads.
func (s *System) Stat(name string) (fs.FileInfo, error) {
	return s.stat(name, func(p place) (fs.FileInfo, error) { return p.Stat(p.name) })
}

// Lstat describes what is at a path, without following a link there.
func (s *System) Lstat(name string) (fs.FileInfo, error) {
	return s.stat(name, func(p place) (fs.FileInfo, error) { return p.Lstat(p.name) })
}

func (s *System) stat(name string, look func(place) (fs.FileInfo, error)) (info fs.FileInfo, err error) {
	if list, err := s.above(name); list != nil || err != nil {
		return folder(path.Base(path.Clean("/" + name))), err
	}
	p, err := s.find("stat", name)
	if err != nil {
		return nil, err
	}
	e := s.event(recording.OpStat, p)
	if info, err = look(p); err == nil {
		err = s.record(e)
	}
	return info, s.done(p, e, err)
}

// Readlink returns where a link leads. It need not be in the share, and is not
// followed out of it.
func (s *System) Readlink(name string) (target string, err error) {
	p, err := s.find("readlink", name)
	if err != nil {
		return "", err
	}
	e := s.event(recording.OpStat, p)
	if target, err = p.Readlink(p.name); err == nil {
		err = s.record(e)
	}
	return target, s.done(p, e, err)
}

// ReadDir lists a folder, sorted, without following links. A folder of 100,000
// entries or more is refused: see [System.Each].
func (s *System) ReadDir(name string) (list []fs.FileInfo, err error) {
	err = s.Each(name, func(info fs.FileInfo) error {
		if len(list) == maxEntries {
			return fmt.Errorf("the folder has more than %d entries: name some of them, or use find", maxEntries)
		}
		list = append(list, info)
		return nil
	})
	slices.SortFunc(list, func(a, b fs.FileInfo) int {
		switch {
		case a.Name() < b.Name():
			return -1
		case a.Name() > b.Name():
			return 1
		}
		return 0
	})
	return list, err
}

// Each calls do for every entry of a folder, in no order, until do returns an
// error. What disappears meanwhile is left out.
func (s *System) Each(name string, do func(fs.FileInfo) error) error {
	list, err := s.above(name)
	for _, sub := range list {
		if err := do(sub); err != nil {
			return err
		}
	}
	if list != nil || err != nil {
		return err
	}
	p, err := s.find("list", name)
	if err != nil {
		return err
	}
	e := s.event(recording.OpList, p)
	dir, err := p.OpenRoot(p.name)
	if err == nil {
		defer dir.Close()
		err = s.record(e)
	}
	if err = s.done(p, e, err); err != nil {
		return err
	}
	return entries(dir, p.full, do)
}

// entries calls do for every entry of an open folder. What cannot be looked at
// does not hide the others.
func entries(dir *os.Root, full string, do func(fs.FileInfo) error) error {
	names, err := dir.OpenFile(".", os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_DIRECTORY, 0)
	if err != nil {
		return &fs.PathError{Op: "list", Path: full, Err: reason(err)}
	}
	defer names.Close()
	var damaged error
	for {
		batch, err := names.Readdirnames(1024)
		for _, name := range batch {
			info, err := dir.Lstat(name)
			if err == nil {
				err = do(info)
			} else if errors.Is(err, fs.ErrNotExist) {
				err = nil // removed meanwhile
			} else {
				damaged, err = &fs.PathError{Op: "list", Path: path.Join(full, name), Err: reason(err)}, nil
			}
			if err != nil {
				return err
			}
		}
		if err == io.EOF {
			return damaged
		}
		if err != nil {
			return &fs.PathError{Op: "list", Path: full, Err: reason(err)}
		}
	}
}

// above lists the folders above the shares, nil for any other path.
func (s *System) above(name string) ([]fs.FileInfo, error) {
	full := path.Clean("/" + name)
	if full != "/" && full != Dir {
		return nil, nil
	}
	grant, err := s.cfg.Grant()
	if err != nil {
		return nil, err
	}
	if full == "/" {
		return []fs.FileInfo{folder(path.Base(Dir))}, nil
	}
	list := []fs.FileInfo{}
	for _, sh := range grant.Shares {
		list = append(list, folder(sh.Name))
	}
	return list, nil
}

// folder is a folder that no disk has.
type folder string

func (f folder) Name() string     { return string(f) }
func (folder) Size() int64        { return 0 }
func (folder) Mode() fs.FileMode  { return fs.ModeDir | 0o755 }
func (folder) ModTime() time.Time { return time.Time{} }
func (folder) IsDir() bool        { return true }
func (folder) Sys() any           { return nil }

// Mkdir makes a folder. It is durable on return.
func (s *System) Mkdir(name string) error {
	p, err := s.toWrite(recording.OpMkdir, name)
	if err != nil {
		return err
	}
	e := s.event(recording.OpMkdir, p)
	return s.done(p, e, s.mkdir(p, e))
}

func (s *System) mkdir(p place, e recording.FileEvent) error {
	dir, base, err := p.parent()
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := checkNew(base); err != nil {
		return err
	}
	if err := s.record(e); err != nil {
		return err
	}
	if err := again(func() error { return unix.Mkdirat(int(dir.Fd()), base, 0o755) }); err != nil {
		return err
	}
	return dir.Sync()
}

// parent opens the folder that a path lies in. What is done there by base name
// cannot leave it.
func (p place) parent() (dir *os.File, base string, err error) {
	if p.name == "." {
		return nil, "", errNoShare
	}
	dir, err = p.OpenFile(path.Dir(p.name), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_DIRECTORY, 0)
	return dir, path.Base(p.name), err
}

// Rename moves a file or folder, to another share of the same disk too. With
// replace it takes the place of a file or an empty folder that is there, which
// needs an approval that says delete. It is durable on return. Between disks it
// fails with [syscall.EXDEV].
func (s *System) Rename(from, to string, replace bool) error {
	p, err := s.toWrite(recording.OpRename, from)
	if err != nil {
		return err
	}
	e := s.event(recording.OpRename, p)
	q, err := s.toWrite(recording.OpRename, to)
	if err != nil {
		p.Close()
		return err
	}
	defer q.Close()
	e.To = path.Join(q.share.Name, q.name)
	return s.done(p, e, s.rename(p, q, e, replace))
}

func (s *System) rename(p, q place, e recording.FileEvent, replace bool) error {
	fromDir, from, err := p.parent()
	if err != nil {
		return err
	}
	defer fromDir.Close()
	toDir, to, err := q.parent()
	if err != nil {
		return err
	}
	defer toDir.Close()
	if _, err := p.Lstat(p.name); err != nil {
		return err
	}
	if to != from {
		if err := checkNew(to); err != nil {
			return err
		}
	}
	forbidden := q.mayDelete(q.full + " would be replaced")
	if _, err := q.Lstat(q.name); err == nil {
		if !replace {
			return fs.ErrExist
		}
		if forbidden != nil {
			return forbidden
		}
	}
	if err := s.record(e); err != nil {
		return err
	}
	// Somebody may have put something there by now.
	if err := renameAt(fromDir, from, toDir, to, replace && forbidden == nil); err != nil {
		return err
	}
	return errors.Join(toDir.Sync(), fromDir.Sync())
}

// renameAt moves a name from one open folder to another.
func renameAt(from *os.File, old string, to *os.File, name string, replace bool) error {
	if !replace {
		return disk.RenameNew(from, old, to, name)
	}
	return again(func() error { return unix.Renameat(int(from.Fd()), old, int(to.Fd()), name) })
}

// again repeats what a signal interrupted.
func again(do func() error) error {
	for {
		if err := do(); err != unix.EINTR {
			return err
		}
	}
}

// Remove removes a file, a link or an empty folder. It needs an approval that
// says delete.
func (s *System) Remove(name string) error {
	p, err := s.toWrite(recording.OpRemove, name)
	if err != nil {
		return err
	}
	e := s.event(recording.OpRemove, p)
	return s.done(p, e, s.remove(p, &e))
}

func (s *System) remove(p place, e *recording.FileEvent) error {
	if p.name == "." {
		return errNoShare
	}
	if err := p.mayDelete("this would remove something"); err != nil {
		return err
	}
	info, err := p.Lstat(p.name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		e.Op = recording.OpRmdir
	}
	if err := s.record(*e); err != nil {
		return err
	}
	return p.Root.Remove(p.name)
}

// removeOnly removes what is at a place if may returns nil for it: nobody can move
// something else there meanwhile. If may returns [fs.SkipAll], it stays, which is no
// error.
func (p place) removeOnly(may func(fs.FileInfo) error) error {
	dir, _, err := p.parent()
	if err != nil {
		return err
	}
	defer dir.Close()
	unlock, err := disk.LockNames(dir)
	if err != nil {
		return err
	}
	defer unlock()
	info, err := p.Lstat(p.name)
	if err == nil {
		err = may(info)
	}
	switch {
	case err == nil:
		return p.Root.Remove(p.name)
	case err == fs.SkipAll:
		return nil
	}
	return err
}

// RemoveAll removes a file, or a folder and all that is in it, without following
// links. Each is an operation of its own. It ends with the first error.
func (s *System) RemoveAll(ctx context.Context, name string) error {
	if _, _, inside := split(name); inside == "." {
		return &fs.PathError{Op: "remove", Path: path.Clean("/" + name), Err: errNoShare}
	}
	info, err := s.Lstat(name)
	if err != nil {
		return err
	}
	return s.removeAll(ctx, name, info)
}

func (s *System) removeAll(ctx context.Context, name string, info fs.FileInfo) error {
	for info.IsDir() {
		// A folder that changes is not listed on: it is listed again.
		var batch []fs.FileInfo
		err := s.Each(name, func(sub fs.FileInfo) error {
			if batch = append(batch, sub); len(batch) == 1024 {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil && err != fs.SkipAll {
			return err
		}
		if len(batch) == 0 {
			break
		}
		for _, sub := range batch {
			if err := s.removeAll(ctx, path.Join(name, sub.Name()), sub); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.Remove(name)
}

// Chtimes sets when a file was last used and changed. The zero time leaves one
// as it is.
func (s *System) Chtimes(name string, used, changed time.Time) error {
	p, err := s.toWrite(recording.OpSetattr, name)
	if err != nil {
		return err
	}
	e := s.event(recording.OpSetattr, p)
	if err = s.record(e); err == nil {
		err = p.Root.Chtimes(p.name, used, changed)
	}
	return s.done(p, e, err)
}

// Truncate gives a file another size. To make it shorter needs an approval that
// says delete. It is durable on return.
func (s *System) Truncate(name string, size int64) error {
	f, err := s.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}
