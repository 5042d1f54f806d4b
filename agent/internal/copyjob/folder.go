package copyjob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// incoming is the folder in which objects are written before they are named.
const incoming = ".incoming"

// folders are those below which a file:// endpoint must lie. It implements
// [Opener].
type folders []string

func schemeOf(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	return u.Scheme
}

// Check implements [Opener].
func (roots folders) Check(d approval.Destination) error {
	_, _, err := roots.locate(d)
	return err
}

// locate finds the blob root that a destination lies below, and the rest of its
// path.
func (roots folders) locate(d approval.Destination) (root, rest string, err error) {
	u, err := url.Parse(d.Endpoint)
	if err != nil || u.Scheme != "file" || u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		!filepath.IsAbs(u.Path) || filepath.Clean(u.Path) != u.Path {
		return "", "", protocol.Errorf(protocol.CodeAction,
			"this device cannot write to %q of account %q: want file:///<clean absolute path>", d.Endpoint, d.Account)
	}
	for _, root := range roots {
		if rest, err := filepath.Rel(root, u.Path); err == nil && filepath.IsLocal(rest) {
			return root, rest, nil
		}
	}
	return "", "", protocol.Errorf(protocol.CodeAction,
		"this device may not write to %q of account %q: it lies below none of its blob_roots", d.Endpoint, d.Account)
}

// Open implements [Opener].
func (roots folders) Open(t Target) (ObjectStore, error) {
	base, rest, err := roots.locate(t.Destination)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return nil, protocol.Errorf(protocol.CodeUnavailable, "cannot open the blob store: %v", err)
	}
	defer root.Close()
	if err := root.MkdirAll(rest, 0o700); err != nil {
		return nil, protocol.Errorf(protocol.CodeUnavailable, "cannot open the blob store: %v", err)
	}
	store, err := root.OpenRoot(rest)
	if err != nil {
		return nil, protocol.Errorf(protocol.CodeUnavailable, "cannot open the blob store: %v", err)
	}
	return &Folder{store}, nil
}

// Folder is a store in a folder: an object is the file
// <account>/<container>/<blob>. Nothing leads out of the folder.
type Folder struct{ root *os.Root }

// OpenFolder opens the store in the folder dir, which must be there.
func OpenFolder(dir string) (*Folder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the blob store: %w", err)
	}
	return &Folder{root}, nil
}

// Close gives the folder back.
func (f *Folder) Close() error { return f.root.Close() }

func objectPath(account, container, blob string) (string, error) {
	name := account + "/" + container + "/" + blob
	if !filepath.IsLocal(name) || path.Clean(name) != name || account == incoming {
		return "", protocol.Errorf(protocol.CodeInvalid, "%q is not the name of an object", name)
	}
	return name, nil
}

// Takes implements [ObjectStore]: a folder holds files of all kinds.
func (f *Folder) Takes(manifest.Kind) bool { return true }

// Find implements [ObjectStore]. It reads the object to know its CRC64.
func (f *Folder) Find(ctx context.Context, o Object) (bool, error) {
	name, err := objectPath(o.Account, o.Container, o.Name)
	if err != nil {
		return false, err
	}
	info, err := f.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return false, nil
	case err != nil:
		return false, err
	case !info.Mode().IsRegular() || info.Size() != o.Size:
		return false, fmt.Errorf("%w: %q", ErrExists, name)
	}
	_, crc, err := f.readBack(ctx, name)
	if err == nil && crc != o.CRC64 {
		err = fmt.Errorf("%w: %q", ErrExists, name)
	}
	if err != nil {
		return false, err
	}
	return true, timeKept(info, o)
}

// timeKept is [ErrNotKept] if a stored file has another time of modification.
func timeKept(info fs.FileInfo, o Object) error {
	if !info.ModTime().Equal(o.Modified) {
		return fmt.Errorf("%w: it is %s, not %s", ErrNotKept, info.ModTime(), o.Modified)
	}
	return nil
}

func (f *Folder) readBack(ctx context.Context, name string) (size int64, crc64 uint64, err error) {
	file, err := checksum(ctx, f.root, name)
	return file.Size, file.CRC64, err
}

// Put implements [ObjectStore]. The object is read back before it gets its name,
// and its file has the time of modification.
func (f *Folder) Put(ctx context.Context, o Object, r io.Reader, sent func(int64)) (err error) {
	name, err := objectPath(o.Account, o.Container, o.Name)
	if err != nil {
		return err
	}
	if err := f.makeDir(incoming); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(name))
	temp := path.Join(incoming, hex.EncodeToString(sum[:])) // the same after a crash, so nothing piles up
	defer func() { err = errors.Join(err, ignoreMissing(f.root.Remove(temp))) }()
	if err := f.receive(temp, r, o, sent); err != nil {
		return err
	}
	size, crc, err := f.readBack(ctx, temp)
	if err != nil {
		return fmt.Errorf("cannot read back object %q: %w", name, err)
	}
	if size != o.Size || crc != o.CRC64 {
		return fmt.Errorf("object %q is not as it was written: %d bytes with CRC64 %016x", name, size, crc)
	}
	_ = f.root.Chtimes(temp, o.Modified, o.Modified) // what it does not keep is found below, as what the file system cuts off is
	info, err := f.root.Lstat(temp)
	if err != nil {
		return err
	}
	if err := f.makeDir(path.Dir(name)); err != nil {
		return err
	}
	if err := f.root.Link(temp, name); errors.Is(err, fs.ErrExist) { // unlike a rename, it overwrites nothing
		_, err = f.Find(ctx, o)
		return err
	} else if err != nil {
		return fmt.Errorf("cannot name object %q: %w", name, err)
	}
	if err := syncDir(f.root, path.Dir(name)); err != nil {
		return err
	}
	return timeKept(info, o)
}

// receive writes and syncs what r yields, and refuses what was not announced.
func (f *Folder) receive(temp string, r io.Reader, o Object, sent func(int64)) error {
	out, err := f.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	crc := manifest.NewCRC64()
	count := writerFunc(func(b []byte) (int, error) {
		sent(int64(len(b)))
		return len(b), nil
	})
	n, err := io.Copy(io.MultiWriter(out, crc, count), io.LimitReader(r, o.Size+1))
	if err == nil && (n != o.Size || crc.Sum64() != o.CRC64) {
		err = fmt.Errorf("%w: %d bytes with CRC64 %016x, not %d with %016x", ErrContent, n, crc.Sum64(), o.Size, o.CRC64)
	}
	return errors.Join(err, out.Sync(), out.Close())
}

// writerFunc is an [io.Writer].
type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// makeDir makes a folder with all above it, durably.
func (f *Folder) makeDir(name string) error {
	if info, err := f.root.Stat(name); err == nil && info.IsDir() {
		return nil
	}
	if err := f.root.MkdirAll(name, 0o700); err != nil {
		return fmt.Errorf("cannot make folder %q: %w", name, err)
	}
	for name != "." {
		name = path.Dir(name)
		if err := syncDir(f.root, name); err != nil {
			return err
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
