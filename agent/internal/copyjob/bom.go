package copyjob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// ManifestDir is the folder at the root of a disk that holds its bills of
// materials: <share>-BOM.xml is the newest of a share, <share>-BOM.<n>.xml are
// the older ones, from 1 on.
const ManifestDir = "DataBoxManifest"

// maxBOM bounds a bill of materials, in bytes.
const maxBOM = 512 << 20

// maxOld bounds the older bills that are kept of one share.
const maxOld = 10_000

func bomName(s manifest.Share) string { return path.Join(ManifestDir, s.String()+"-BOM.xml") }

func oldBOMName(s manifest.Share, n int) string {
	return path.Join(ManifestDir, fmt.Sprintf("%s-BOM.%d.xml", s, n))
}

// readBOM returns the newest bill of a share as it was written, nil if there is
// none.
func readBOM(disk *os.Root, s manifest.Share) ([]byte, error) {
	f, size, err := openRegular(disk, bomName(s))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the bill of materials of share %s: %w", s, err)
	}
	defer f.Close()
	if size > maxBOM {
		return nil, protocol.Errorf(protocol.CodeLimit, "the bill of materials of share %s has %d bytes: at most %d are read", s, size, maxBOM)
	}
	return io.ReadAll(io.LimitReader(f, maxBOM))
}

// shippedFiles returns what the newest bill of a share lists, by path. A share
// without a bill, or with one that cannot be understood, was never made ready
// to ship: no file counts as listed.
func shippedFiles(s Share) (map[string]manifest.File, error) {
	disk, err := os.OpenRoot(s.Root)
	if err != nil {
		return nil, fmt.Errorf("cannot open disk %s: %w", s.Disk, err)
	}
	defer disk.Close()
	data, err := readBOM(disk, s.Share)
	if err != nil {
		return nil, err
	}
	bom, err := manifest.ParseBOM(data)
	if err != nil || bom.Share != s.Share {
		return map[string]manifest.File{}, nil
	}
	files := make(map[string]manifest.File, len(bom.Files))
	for _, f := range bom.Files {
		files[f.Path] = f
	}
	return files, nil
}

// Manifest is a new bill of materials of one share.
type Manifest struct {
	Share      Share
	BOM        []byte           // XML
	Digest     string           // of BOM
	Previous   string           // digest of the bill before; "" for the first
	Difference manifest.Changes // from the bill before
	Left       []string         // paths of what is no regular file: no bill lists it
	Timeless   []string         // paths of files whose time of modification no destination keeps
}

// PrepareToShip writes a new bill of materials for every share and keeps the one
// before under a number. Each new bill carries the digest of the one before. It
// ends with the first error; bills written until then stay.
func PrepareToShip(ctx context.Context, shares []Share) ([]Manifest, error) {
	var list []Manifest
	for _, s := range shares {
		m, err := prepareShare(ctx, s)
		if err != nil {
			return list, fmt.Errorf("cannot prepare share %s of disk %s to ship: %w", s, s.Disk, err)
		}
		list = append(list, m)
	}
	return list, nil
}

func prepareShare(ctx context.Context, s Share) (Manifest, error) {
	disk, err := os.OpenRoot(s.Root)
	if err != nil {
		return Manifest{}, err
	}
	defer disk.Close()
	before, err := readBOM(disk, s.Share)
	if err != nil {
		return Manifest{}, err
	}
	bom := manifest.BOM{Share: s.Share}
	if before != nil {
		bom.Previous = manifest.Digest(before)
	}
	m := Manifest{Share: s, Previous: bom.Previous}
	if bom.Files, err = m.checksums(ctx); err != nil {
		return Manifest{}, err
	}
	data, err := bom.Encode()
	if err != nil {
		return Manifest{}, err
	}
	if err := writeBOM(disk, s.Share, before, data); err != nil {
		return Manifest{}, err
	}
	old, _ := manifest.ParseBOM(before) // one that cannot be understood lists nothing
	m.BOM, m.Digest, m.Difference = data, manifest.Digest(data), manifest.Diff(old, bom)
	return m, nil
}

// checksums lists the regular files of the share with the CRC64 of each. It notes
// what is there beside them and folders, and whose time will not be kept.
func (m *Manifest) checksums(ctx context.Context) (files []manifest.File, err error) {
	root, err := m.Share.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	err = walk(root, ".", func(found found) error {
		switch {
		case found.err != nil:
			return found.err
		case !found.regular:
			m.Left = append(m.Left, found.path)
			return nil
		case !TimeIsKept(found.changed):
			m.Timeless = append(m.Timeless, found.path)
		}
		f, err := checksum(ctx, root, found.path)
		files = append(files, f)
		return err
	})
	return files, err
}

func checksum(ctx context.Context, root *os.Root, name string) (manifest.File, error) {
	f, _, err := openRegular(root, name)
	if err != nil {
		return manifest.File{}, err
	}
	defer f.Close()
	crc := manifest.NewCRC64()
	var failure error
	size, err := io.Copy(crc, until(ctx, f, &failure))
	return manifest.File{Path: name, Size: size, CRC64: crc.Sum64()}, err
}

// writeBOM puts a new bill in the place of the one before, which is first
// written under its number: at no moment is there none.
func writeBOM(disk *os.Root, s manifest.Share, before, data []byte) error {
	if err := disk.MkdirAll(ManifestDir, 0o755); err != nil {
		return err
	}
	if before != nil && !bytes.Equal(before, data) {
		name, err := freeName(disk, s)
		if err != nil {
			return err
		}
		if err := replaceFile(disk, name, before); err != nil {
			return err
		}
	}
	return replaceFile(disk, bomName(s), data)
}

func freeName(disk *os.Root, s manifest.Share) (string, error) {
	for n := 1; n <= maxOld; n++ {
		name := oldBOMName(s, n)
		if _, err := disk.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name, nil
		}
	}
	return "", protocol.Errorf(protocol.CodeLimit, "share %s has %d old bills of materials: move some away", s, maxOld)
}

// replaceFile writes a file so that it is there whole or not at all, and durable
// on return.
func replaceFile(root *os.Root, name string, data []byte) error {
	temp := name + ".new"
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, root.Remove(temp))
	}
	if err := root.Rename(temp, name); err != nil {
		return err
	}
	return syncDir(root, path.Dir(name))
}

func syncDir(root *os.Root, name string) error {
	dir, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
