// Package files is what a support session sees of its node: the shares of its
// lease, below /shares, and nothing else, ever.
//
//   - Every operation asks for the grant anew. While the node is locked there is
//     nothing, and read-only means that nothing changes.
//   - Read-write is for adding, moving and changing. What makes data disappear
//     needs an approval that says delete: to remove, to replace what is there, to
//     cut a file short.
//   - No path, link or race leads out of a share: every access begins at the
//     share's own folder ([os.Root]), and none waits for a pipe or a device.
//   - Every operation is in the [FileLog] before its answer goes out; what changes
//     names is there before it happens, and so is the first write to a file that was
//     there. Content is there when its file is closed, under the name that the file
//     has then, with its size and, if all of it was transferred, its SHA-256.
//   - What was written is durable when [File.Close] returns, and moved when
//     [System.Rename] does. Whatever replaces a file is made whole aside, on the
//     same disk: at any moment there is the old content or the new.
package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Dir is the folder of the shares. Above and beside it is nothing.
const Dir = "/shares"

// FileLog records operations on files. It may be called concurrently. An error
// means that an operation cannot be recorded: it must not happen, and whoever
// asked for it ends.
type FileLog interface {
	File(recording.FileEvent) error
}

// Share is one share's folder.
type Share struct {
	Name string // as the engineer sees it
	Dir  string // its folder, at the root of a mounted disk
}

// Grant is what may be used now.
type Grant struct {
	Access approval.Access
	Shares []Share
}

// Config is what a System is made of.
type Config struct {
	// Grant is asked at each operation. Its error, a refusal that says what to do,
	// is that of the operation.
	Grant  func() (Grant, error)
	Log    FileLog
	Via    recording.Via
	Client string // address or channel, as it is recorded
}

// System is the file system of a session. Its names are the paths that the
// engineer sees, "/shares/<share>/…", and its errors know no others. It is safe
// for concurrent use.
type System struct {
	cfg Config

	mu   sync.Mutex       // guards what follows
	dirs map[Share]string // the kernel's paths of their folders
}

// New returns the file system that cfg describes.
func New(cfg Config) *System { return &System{cfg: cfg, dirs: make(map[Share]string)} }

// ErrUnrecorded is an operation that could not be recorded. The session ends.
var ErrUnrecorded = errors.New("this cannot be recorded, so the session ends")

// place is a path within one share. Its root keeps every access below the
// share's folder. The caller closes it.
type place struct {
	*os.Root
	full   string // as the engineer sees it
	share  Share
	name   string // relative to the share; "." is the share itself
	access approval.Access
	shares []Share // of the grant
}

// split cleans a path and takes the share off it; "" for the folders above.
func split(name string) (full, share, inside string) {
	full = path.Clean("/" + name)
	rest, _ := strings.CutPrefix(full, Dir+"/")
	if rest == full {
		return full, "", "."
	}
	share, inside, _ = strings.Cut(rest, "/")
	if inside == "" {
		inside = "."
	}
	return full, share, inside
}

// find opens the share that a path lies in.
func (s *System) find(op, name string) (place, error) {
	grant, err := s.cfg.Grant()
	if err != nil {
		return place{}, err
	}
	full, share, inside := split(name)
	for _, sh := range grant.Shares {
		if sh.Name != share {
			continue
		}
		root, err := openShare(sh)
		if err != nil {
			return place{}, &fs.PathError{Op: op, Path: full, Err: reason(err)}
		}
		return place{root, full, sh, inside, grant.Access, grant.Shares}, nil
	}
	err = fs.ErrNotExist
	if full == "/" || full == Dir {
		err = errNoShare
	}
	return place{}, &fs.PathError{Op: op, Path: full, Err: err}
}

// openShare opens a share's folder, and no other to which something in its
// place may lead.
func openShare(sh Share) (*os.Root, error) {
	root, err := os.OpenRoot(sh.Dir)
	if err != nil {
		return nil, err
	}
	want, err := os.Lstat(sh.Dir)
	got, err2 := root.Stat(".")
	if err := errors.Join(err, err2); err != nil || !os.SameFile(want, got) {
		root.Close()
		return nil, fs.ErrNotExist
	}
	return root, nil
}

var (
	errNoShare = errors.New("a share itself, and what is above it, cannot be changed")
	errNotFile = errors.New("not a regular file")
)

// toWrite opens the share of something that is to be changed, if the approval
// allows it.
func (s *System) toWrite(op recording.Op, name string) (place, error) {
	p, err := s.find(string(op), name)
	if err != nil {
		return place{}, err
	}
	if p.access != approval.ReadWrite && p.access != approval.Delete {
		return place{}, s.refuse(p, op, protocol.Errorf(protocol.CodeForbidden, "the approval is %s: nothing can be changed", p.access))
	}
	return p, nil
}

// mayDelete refuses unless the approval lets data disappear.
func (p place) mayDelete(what string) error {
	if p.access == approval.Delete {
		return nil
	}
	return protocol.Errorf(protocol.CodeForbidden, "%s, and the approval does not say delete: raise a request with --access delete", what)
}

// refuse closes a place and records what was not done there.
func (s *System) refuse(p place, op recording.Op, err error) error {
	p.Close()
	return s.failed(s.event(op, p), err)
}

// done closes a place. It makes err one about the path that the engineer sees,
// and records it if there is one.
func (s *System) done(p place, e recording.FileEvent, err error) error {
	p.Close()
	if err == nil {
		return nil
	}
	return s.failed(e, &fs.PathError{Op: string(e.Op), Path: p.full, Err: reason(err)})
}

func (s *System) event(op recording.Op, p place) recording.FileEvent {
	return recording.FileEvent{Via: s.cfg.Via, Client: s.cfg.Client, Op: op, Share: p.share.Name, Path: p.name, Size: -1}
}

// record records an operation.
func (s *System) record(e recording.FileEvent) error {
	if err := s.cfg.Log.File(e); err != nil {
		return fmt.Errorf("%w: %w", ErrUnrecorded, err)
	}
	return nil
}

// failed records that an operation failed and returns why.
func (s *System) failed(e recording.FileEvent, err error) error {
	if errors.Is(err, ErrUnrecorded) {
		return err
	}
	e.Error = err.Error()
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		e.Error = p.Err.Error()
	}
	if unrecorded := s.record(e); unrecorded != nil {
		return unrecorded
	}
	return err
}

// reason takes the device's own paths out of an error.
func reason(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	if l, ok := errors.AsType[*os.LinkError](err); ok {
		return l.Err
	}
	if s, ok := errors.AsType[*os.SyscallError](err); ok {
		return s.Err
	}
	return err
}

// regular refuses what is not a file, so that nothing waits for a pipe and no
// device is acted on.
func regular(info fs.FileInfo, err error) error {
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return syscall.EISDIR
	case !info.Mode().IsRegular():
		return errNotFile
	}
	return nil
}
