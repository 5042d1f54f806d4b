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

// locate finds the blob root that a destination lies below, and the rest of its
// path.
func (j *Job) locate(d approval.Destination) (root, rest string, err error) {
	u, err := url.Parse(d.Endpoint)
	if err != nil || u.Scheme != "file" || u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		!filepath.IsAbs(u.Path) || filepath.Clean(u.Path) != u.Path {
		return "", "", protocol.Errorf(protocol.CodeAction,
			"this device cannot write to %q of account %q: it knows file:///<clean absolute path> only", d.Endpoint, d.Account)
	}
	for _, root := range j.cfg.BlobRoots {
		if rest, err := filepath.Rel(root, u.Path); err == nil && filepath.IsLocal(rest) {
			return root, rest, nil
		}
	}
	return "", "", protocol.Errorf(protocol.CodeAction,
		"this device may not write to %q of account %q: it lies below none of its blob_roots", d.Endpoint, d.Account)
}

// open opens the store of a destination.
func (j *Job) open(d approval.Destination) (ObjectStore, error) {
	base, rest, err := j.locate(d)
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

// Stat implements [ObjectStore]. It reads the object to know its CRC64.
func (f *Folder) Stat(ctx context.Context, account, container, blob string) (size int64, crc64 uint64, ok bool, err error) {
	name, err := objectPath(account, container, blob)
	if err != nil {
		return 0, 0, false, err
	}
	size, crc64, err = f.readBack(ctx, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return 0, 0, false, nil
	}
	return size, crc64, err == nil, err
}

func (f *Folder) readBack(ctx context.Context, name string) (size int64, crc64 uint64, err error) {
	file, err := checksum(ctx, f.root, name)
	return file.Size, file.CRC64, err
}

// Put implements [ObjectStore].
func (f *Folder) Put(ctx context.Context, account, container, blob string, r io.Reader, size int64, crc64 uint64) (err error) {
	name, err := objectPath(account, container, blob)
	if err != nil {
		return err
	}
	if err := f.makeDir(incoming); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(name))
	temp := path.Join(incoming, hex.EncodeToString(sum[:])) // the same after a crash, so nothing piles up
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(f.root.Remove(temp)))
		}
	}()
	if err := f.receive(temp, r, size, crc64); err != nil {
		return err
	}
	gotSize, gotCRC, err := f.readBack(ctx, temp)
	if err != nil {
		return fmt.Errorf("cannot read back object %q: %w", name, err)
	}
	if gotSize != size || gotCRC != crc64 {
		return fmt.Errorf("object %q is not as it was written: %d bytes with CRC64 %016x", name, gotSize, gotCRC)
	}
	if err := f.makeDir(path.Dir(name)); err != nil {
		return err
	}
	if err := f.root.Rename(temp, name); err != nil {
		return fmt.Errorf("cannot name object %q: %w", name, err)
	}
	return syncDir(f.root, path.Dir(name))
}

// receive writes and syncs what r yields, and refuses what was not announced.
func (f *Folder) receive(temp string, r io.Reader, size int64, crc64 uint64) error {
	out, err := f.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	crc := manifest.NewCRC64()
	n, err := io.Copy(io.MultiWriter(out, crc), io.LimitReader(r, size+1))
	if err == nil && (n != size || crc.Sum64() != crc64) {
		err = fmt.Errorf("%w: %d bytes with CRC64 %016x, not %d with %016x", ErrContent, n, crc.Sum64(), size, crc64)
	}
	return errors.Join(err, out.Sync(), out.Close())
}

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
