package copyjob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// Share is one share's folder on one mounted disk.
type Share struct {
	manifest.Share
	Disk protocol.DiskID
	Root string // the mounted disk; the share is the folder of its name in it
}

// Dir returns the share's folder.
func (s Share) Dir() string { return path.Join(s.Root, s.String()) }

// Shares lists the shares of a mounted disk, sorted by name: the folders at its
// root that are named as shares are.
func Shares(disk protocol.DiskID, root string) ([]Share, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("cannot list the shares of disk %s: %w", disk, err)
	}
	var shares []Share
	for _, e := range entries {
		if s, err := manifest.ParseShare(e.Name()); err == nil && e.IsDir() {
			shares = append(shares, Share{s, disk, root})
		}
	}
	return shares, nil
}

// open opens the share's folder so that nothing in it leads out of it.
func (s Share) open() (*os.Root, error) {
	disk, err := os.OpenRoot(s.Root)
	if err != nil {
		return nil, fmt.Errorf("cannot open disk %s: %w", s.Disk, err)
	}
	defer disk.Close()
	dir, err := disk.OpenRoot(s.String())
	if err != nil {
		return nil, fmt.Errorf("cannot open share %s of disk %s: %w", s, s.Disk, err)
	}
	return dir, nil
}

// found is something in a share's folder that is not a folder itself.
type found struct {
	path    string // relative to the share, with slashes
	size    int64
	changed time.Time
	regular bool
	err     error // why a folder could not be read; path is the folder's
}

// walk calls visit for everything below dir, folders excepted, in the order of
// names. It follows no link. It ends with the first error of visit.
func walk(root *os.Root, dir string, visit func(found) error) error {
	entries, err := readDir(root, dir)
	if err != nil {
		return visit(found{path: dir, err: err})
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			if err := walk(root, name, visit); err != nil {
				return err
			}
			continue
		}
		f := found{path: name}
		if info, err := e.Info(); err != nil {
			f.err = err
		} else {
			f.size, f.changed, f.regular = info.Size(), info.ModTime(), info.Mode().IsRegular()
		}
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}

func readDir(root *os.Root, dir string) ([]fs.DirEntry, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return entries, err
}

// openRegular opens a file for reading, and nothing that would block.
func openRegular(root *os.Root, name string) (*os.File, int64, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// readerFunc is an [io.Reader].
type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// until reads from r until ctx ends. What goes wrong on this side is put into
// failure, so that it can be told from what goes wrong where the bytes go.
func until(ctx context.Context, r io.Reader, failure *error) io.Reader {
	return readerFunc(func(b []byte) (int, error) {
		n, err := 0, ctx.Err()
		if err == nil {
			n, err = r.Read(b)
		}
		if err != nil && err != io.EOF {
			*failure = err
		}
		return n, err
	})
}

// file is one file of a job.
type file struct {
	share    Share
	path     string // relative to the share
	size     int64
	modified time.Time
	crc64    uint64 // as the bill of materials has it
	object   manifest.Object
	codes    []manifest.ErrorCode // what is wrong; empty if nothing
}

// copied reports whether the file is at its destination.
func (f *file) copied() bool {
	return !slices.ContainsFunc(f.codes, func(c manifest.ErrorCode) bool { return c != TimeNotKept })
}

// ending is how a job with only this file would end.
func (f *file) ending() State {
	switch {
	case len(f.codes) == 0:
		return Completed
	case f.copied():
		return CompletedWithWarnings
	case slices.ContainsFunc(f.codes, func(c manifest.ErrorCode) bool { return c != ReadFailed }):
		return Halted // people can do something about it
	}
	return CompletedWithErrors
}

// plan lists the files of all shares, and those that are missing, with what is
// wrong with each.
func plan(ctx context.Context, shares []Share, stores map[string]store) ([]*file, error) {
	var files []*file
	taken := make(map[string]bool) // destinations
	for _, s := range shares {
		list, err := planShare(ctx, s)
		if err != nil {
			return nil, err
		}
		for _, f := range list {
			to := path.Join(s.Account, f.object.Container, f.object.Name)
			if len(f.codes) == 0 && taken[to] {
				f.codes = append(f.codes, DuplicateName)
			}
			if !stores[s.Account].Takes(s.Kind) && !slices.Contains(f.codes, manifest.TypeUnsupported) {
				f.codes = append(f.codes, manifest.TypeUnsupported)
			}
			taken[to] = true
		}
		files = append(files, list...)
	}
	return files, nil
}

func planShare(ctx context.Context, s Share) ([]*file, error) {
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	shipped, err := shippedFiles(s)
	if err != nil {
		return nil, err
	}
	var files []*file
	err = walk(root, ".", func(found found) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if found.err != nil && found.path == "." {
			return found.err // nothing is known of the share
		}
		files = append(files, planFile(s, found, shipped))
		delete(shipped, found.path)
		return nil
	})
	for _, gone := range shipped {
		f := &file{share: s, path: gone.Path, size: gone.Size, object: s.Classify(gone.Path, gone.Size)}
		f.codes = []manifest.ErrorCode{NotAsShipped}
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *file) int { return cmp.Compare(a.path, b.path) })
	return files, err
}

// planFile says what is to become of what was found, with every code at once.
func planFile(s Share, found found, shipped map[string]manifest.File) *file {
	f := &file{share: s, path: found.path, size: found.size, modified: found.changed, object: s.Classify(found.path, found.size)}
	switch {
	case found.err != nil:
		f.codes = []manifest.ErrorCode{ReadFailed}
		return f
	case !found.regular:
		f.codes = []manifest.ErrorCode{manifest.TypeUnsupported}
		return f
	}
	f.codes = f.object.Codes
	was, ok := shipped[found.path]
	if !ok || was.Size != found.size {
		f.codes = append(f.codes, NotAsShipped)
	}
	f.crc64 = was.CRC64
	return f
}

// errRead: the disk did not give a file.
var errRead = errors.New("cannot read the file")

// findAbove is the size, in bytes, from which on it is asked for a file before
// it is uploaded, even if the job never ran before.
const findAbove = 1 << 20

// upload brings the file to its destination, unless it is there already. The
// first run of a job asks only for large ones: what is there refuses the rest.
func (f *file) upload(ctx context.Context, to ObjectStore, resumed bool, sent func(int64)) error {
	o := Object{
		Account: f.share.Account, Kind: f.share.Kind, Container: f.object.Container, Name: f.object.Name,
		Size: f.size, CRC64: f.crc64, Modified: f.modified,
	}
	if resumed || f.size > findAbove {
		if ok, err := to.Find(ctx, o); ok || err != nil {
			return err
		}
	}
	root, err := f.share.open()
	if err != nil {
		return errors.Join(errRead, err)
	}
	defer root.Close()
	in, _, err := openRegular(root, f.path)
	if err != nil {
		return errors.Join(errRead, err)
	}
	defer in.Close()
	var failure error
	err = to.Put(ctx, o, until(ctx, in, &failure), sent)
	if failure != nil {
		return errors.Join(errRead, failure)
	}
	return err
}
