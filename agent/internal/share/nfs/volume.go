package nfs

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/go-git/go-billy/v5"
	gonfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/file"

	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// volume is one share. Paths within it are slash separated, "." is its top.
type volume struct {
	name string
	root *os.Root
	top  *node
}

// view is a share as one connection has it: the [billy.Filesystem] that the library
// works on. It remembers how its last operation failed.
type view struct {
	name string // first, for the library compares views field by field
	*volume
	conn *conn
}

func split(path string) []string {
	if path == "" || path == "." {
		return nil
	}
	return strings.Split(path, "/")
}

func join(path []string) string { return cmp.Or(strings.Join(path, "/"), ".") }

// lstat returns what NFS says of a file.
func (v *volume) lstat(name string) (info, error) {
	i, err := v.root.Lstat(name)
	return info{FileInfo: i}, err
}

// info is a file's information for clients, whoever they are: what is allowed is
// the approval's to say, not the file's.
type info struct {
	fs.FileInfo
	readOnly bool
}

// Mode implements [fs.FileInfo].
func (i info) Mode() fs.FileMode {
	mode := i.FileInfo.Mode() & fs.ModeType
	if i.IsDir() {
		mode |= 0o111
	}
	if !i.readOnly {
		mode |= 0o222
	}
	return mode | 0o444
}

// ModTime implements [fs.FileInfo]: NFS has no time before 1970.
func (i info) ModTime() time.Time {
	if t := i.FileInfo.ModTime(); t.Unix() >= 0 {
		return t
	}
	return time.Unix(0, 0)
}

// Sys implements [fs.FileInfo] as the library wants it. Everything is root's.
func (i info) Sys() any {
	return &file.FileInfo{Nlink: 1, Fileid: i.number()}
}

// number returns the file's number in its file system.
func (i info) number() uint64 { return i.FileInfo.Sys().(*syscall.Stat_t).Ino }

func (v *view) stat(name string) (info, error) {
	i, err := v.lstat(name)
	i.readOnly = !v.conn.order.writable()
	return i, err
}

// failed remembers an operation's error for the reply.
func (v *view) failed(err error) error {
	v.conn.err = err
	return err
}

// done records an operation and remembers its error for the reply.
func (v *view) done(op recording.Op, name string, err error) error {
	v.conn.report(recording.FileEvent{Op: op, Share: v.name, Path: name, Size: -1}, err)
	return v.failed(err)
}

// report records what the client did.
func (c *conn) report(e recording.FileEvent, err error) {
	e.Time, e.Client = time.Now(), c.client
	if err != nil {
		e.Error = cause(err).Error()
	}
	c.events.File(e)
}

// cause is an error without the path, which the event has.
func cause(err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		return failed.Err
	}
	if failed, ok := errors.AsType[*os.LinkError](err); ok {
		return failed.Err
	}
	return err
}

// Lstat implements [billy.Filesystem].
func (v *view) Lstat(name string) (os.FileInfo, error) {
	i, err := v.stat(name)
	return i, v.failed(err)
}

// Stat implements [billy.Filesystem]. No link is followed.
func (v *view) Stat(name string) (os.FileInfo, error) { return v.Lstat(name) }

// ReadDir implements [billy.Filesystem].
func (v *view) ReadDir(name string) ([]os.FileInfo, error) {
	list, err := v.list(name)
	return list, v.done(recording.OpList, name, err)
}

func (v *view) list(name string) ([]os.FileInfo, error) {
	dir, err := v.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	list, err := dir.Readdir(-1)
	for i := range list {
		list[i] = info{list[i], !v.conn.order.writable()}
	}
	return list, err
}

// MkdirAll implements [billy.Filesystem]; it makes one folder.
func (v *view) MkdirAll(name string, _ os.FileMode) error {
	err := v.root.Mkdir(name, 0o700)
	if err == nil {
		err = v.syncDir(path.Dir(name))
	}
	return v.done(recording.OpMkdir, name, err)
}

// syncDir makes what changed in a folder durable, as NFS promises.
func (v *view) syncDir(name string) error {
	dir, err := v.root.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Remove implements [billy.Filesystem].
func (v *view) Remove(name string) error {
	op, folder := recording.OpRemove, v.conn.call.proc == uint32(gonfs.NFSProcedureRmDir)
	if folder {
		op = recording.OpRmdir
	}
	return v.done(op, name, v.remove(name, folder))
}

func (v *view) remove(name string, folder bool) error {
	i, err := v.lstat(name)
	switch {
	case err != nil:
		return err
	case v.conn.order.Access != approval.Delete:
		return syscall.EACCES
	case folder && !i.IsDir():
		return syscall.ENOTDIR
	case !folder && i.IsDir():
		return syscall.EISDIR
	}
	v.conn.open.drop(v.conn.tree.id(v.volume, split(name)))
	if err := v.root.Remove(name); err != nil {
		return err
	}
	v.conn.tree.remove(v.volume, split(name))
	return v.syncDir(path.Dir(name))
}

// Rename implements [billy.Filesystem].
func (v *view) Rename(from, to string) error {
	err := v.rename(from, to)
	v.conn.report(recording.FileEvent{Op: recording.OpRename, Share: v.name, Path: from, To: v.name + "/" + to, Size: -1}, err)
	return v.failed(err)
}

// rename moves a file. Over another one, which is gone then, it needs an approval
// that says delete.
func (v *view) rename(from, to string) error {
	v.conn.naming.Lock()
	defer v.conn.naming.Unlock()
	if _, err := v.lstat(to); v.conn.order.Access != approval.Delete && !errors.Is(err, fs.ErrNotExist) {
		return syscall.EACCES
	}
	v.conn.open.drop(v.conn.tree.id(v.volume, split(to)))
	move := v.root.Rename
	if v.conn.order.Access != approval.Delete {
		move = v.renameNew // others may have put something there by now
	}
	if err := move(from, to); err != nil {
		return err
	}
	v.conn.tree.move(v.volume, split(from), split(to))
	return errors.Join(v.syncDir(path.Dir(from)), v.syncDir(path.Dir(to)))
}

// renameNew moves a file to where nothing is.
func (v *volume) renameNew(from, to string) error {
	fromDir, err := v.root.Open(path.Dir(from))
	if err != nil {
		return err
	}
	defer fromDir.Close()
	toDir, err := v.root.Open(path.Dir(to))
	if err != nil {
		return err
	}
	defer toDir.Close()
	return disk.RenameNew(fromDir, path.Base(from), toDir, path.Base(to))
}

// OpenFile implements [billy.Filesystem]. The library truncates with it, nothing
// else.
func (v *view) OpenFile(name string, _ int, _ os.FileMode) (billy.File, error) {
	f, err := v.openRegular(name, os.O_WRONLY)
	return &truncated{File: f, view: v, name: name}, v.failed(err)
}

// openRegular opens a file that is one, and no link.
func (v *volume) openRegular(name string, flag int) (*os.File, error) {
	i, err := v.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if i.IsDir() {
		return nil, syscall.EISDIR
	}
	if !i.Mode().IsRegular() {
		return nil, syscall.EINVAL
	}
	return v.root.OpenFile(name, flag|syscall.O_NONBLOCK, 0)
}

// truncated is a file whose length the library sets.
type truncated struct {
	*os.File
	view *view
	name string
}

// Truncate implements [billy.File]. To cut a file short needs an approval that says
// delete.
func (t *truncated) Truncate(size int64) error {
	i, err := t.Stat()
	switch {
	case err != nil:
	case size < i.Size() && t.view.conn.order.Access != approval.Delete:
		err = syscall.EACCES
	default:
		if err = t.File.Truncate(size); err == nil {
			err = t.Sync()
		}
	}
	if err != nil {
		t.Close() // the library does not
	}
	t.view.conn.report(recording.FileEvent{Op: recording.OpTruncate, Share: t.view.name, Path: t.name, Size: size}, err)
	return t.view.failed(err)
}

// Lock implements [billy.File].
func (t *truncated) Lock() error { return billy.ErrNotSupported }

// Unlock implements [billy.File].
func (t *truncated) Unlock() error { return billy.ErrNotSupported }

// Chtimes implements [billy.Change].
func (v *view) Chtimes(name string, atime, mtime time.Time) error {
	i, err := v.root.Lstat(name)
	if err == nil && i.Mode()&fs.ModeSymlink != 0 {
		err = syscall.EINVAL
	}
	if err == nil {
		err = v.root.Chtimes(name, atime, mtime)
	}
	return v.done(recording.OpSetattr, name, err)
}

// Chmod implements [billy.Change]. Files have no mode of their own here; clients
// set one whenever they create a file.
func (v *view) Chmod(string, os.FileMode) error { return nil }

// Lchown implements [billy.Change], as Chmod does.
func (v *view) Lchown(string, int, int) error { return nil }

// Chown implements [billy.Change], as Chmod does.
func (v *view) Chown(string, int, int) error { return nil }

// Capabilities implements [billy.Capable].
func (v *view) Capabilities() billy.Capability {
	if !v.conn.order.writable() {
		return billy.ReadCapability | billy.SeekCapability
	}
	return billy.DefaultCapabilities
}

// Join implements [billy.Filesystem].
func (v *view) Join(elem ...string) string { return join(elem) }

// Root implements [billy.Filesystem].
func (v *view) Root() string { return "/" + v.name }

// What follows is never asked for; it is part of [billy.Filesystem].

// Create implements [billy.Filesystem].
func (v *view) Create(string) (billy.File, error) { return nil, v.failed(billy.ErrNotSupported) }

// Open implements [billy.Filesystem].
func (v *view) Open(string) (billy.File, error) { return nil, v.failed(billy.ErrNotSupported) }

// TempFile implements [billy.Filesystem].
func (v *view) TempFile(_, _ string) (billy.File, error) {
	return nil, v.failed(billy.ErrNotSupported)
}

// Symlink implements [billy.Filesystem].
func (v *view) Symlink(_, _ string) error { return v.failed(billy.ErrNotSupported) }

// Readlink implements [billy.Filesystem].
func (v *view) Readlink(string) (string, error) { return "", v.failed(billy.ErrNotSupported) }

// Chroot implements [billy.Filesystem].
func (v *view) Chroot(string) (billy.Filesystem, error) {
	return nil, v.failed(billy.ErrNotSupported)
}

// statuses of errors (RFC 1813, 2.6).
var statuses = map[syscall.Errno]gonfs.NFSStatus{
	syscall.EPERM: gonfs.NFSStatusPerm, syscall.ENOENT: gonfs.NFSStatusNoEnt, syscall.EIO: gonfs.NFSStatusIO,
	syscall.EACCES: gonfs.NFSStatusAccess, syscall.EEXIST: gonfs.NFSStatusExist, syscall.EXDEV: gonfs.NFSStatusXDev,
	syscall.ENOTDIR: gonfs.NFSStatusNotDir, syscall.EISDIR: gonfs.NFSStatusIsDir, syscall.EINVAL: gonfs.NFSStatusInval,
	syscall.EFBIG: gonfs.NFSStatusFBig, syscall.ENOSPC: gonfs.NFSStatusNoSPC, syscall.EROFS: gonfs.NFSStatusROFS,
	syscall.ENAMETOOLONG: gonfs.NFSStatusNameTooLong, syscall.ENOTEMPTY: gonfs.NFSStatusNotEmpty,
	syscall.EDQUOT: gonfs.NFSStatusDQuot, syscall.ESTALE: gonfs.NFSStatusStale, syscall.EOPNOTSUPP: gonfs.NFSStatusNotSupp,
}

// statusOf returns what NFS calls an error. What the system did not say is a path
// that leads out of the share.
func statusOf(err error) gonfs.NFSStatus {
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return gonfs.NFSStatusAccess
	}
	if status, ok := statuses[errno]; ok {
		return status
	}
	return gonfs.NFSStatusIO
}
