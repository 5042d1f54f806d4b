// Package image makes the disks of a simulated device: image files that are real
// BitLocker volumes.
//
// [Create] makes an NTFS with content in a sparse file, lays BitLocker's areas
// out as Windows does, owned by files in "System Volume Information", and
// encrypts the image in place. It needs root, and mkntfs, ntfs-3g and ntfsinfo
// (Debian package ntfs-3g). [CreateBare] makes a volume with nothing in it, in
// milliseconds, without root or tools, for fleets of thousands. [Open], [Inspect],
// [Verify] and [Copy] are for those who have an image, whoever made it.
//
// The rules:
//
//   - An image appears under its name only when it is complete. Until then it is
//     "<name>.making-*" beside it.
//   - What is mounted, at "databox-image-mount-*" beside the image, is unmounted
//     on every path, and when this process dies.
package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

// Spec says what image to make. Only Path and SizeBytes are needed.
type Spec struct {
	Path      string // of the image; a file of this name is refused unless Overwrite is set
	SizeBytes int64  // a multiple of 4096; at least [MinSize], or [MinBareSize]
	Label     string // of the file system, and in the volume's description

	// From is a file with an NTFS, which is copied and becomes the volume's, if it
	// is not empty: SizeBytes is its length. Source is then ignored.
	From string

	// Source is copied into the file system: folders and regular files, with
	// their modification times. Nil copies nothing. [CreateBare] ignores it.
	Source fs.FS

	Method     bitlocker.Method // 0 is AES-XTS-128
	SectorSize int              // bytes, 512 or 4096; 0 is 512

	// Protectors are the keys of the volume. Nil draws an external key and a
	// recovery password, and returns them.
	Protectors []bitlocker.ProtectorKey

	// NoRecoveryPassword leaves out the recovery password, which costs a tenth of
	// a second or more to make.
	NoRecoveryPassword bool

	// Durable has the image survive a power cut from when it is there.
	Durable bool

	// Overwrite replaces a file that has the image's name, when the image is
	// complete.
	Overwrite bool

	// Progress is called from time to time, if it is not nil, with bytes done and
	// to do in the given stage. It must not block.
	Progress func(stage Stage, done, total int64)
}

// Stage is a part of the work of [Create], for progress reports.
type Stage string

// The stages, in order.
const (
	StageFileSystem Stage = "making file system" // or copying it
	StageCopy       Stage = "copying content"
	StageEncrypt    Stage = "encrypting"
)

// The smallest images, in bytes.
const (
	MinSize     = 16 << 20
	MinBareSize = 1 << 20
)

// sizeUnit is what sizes are multiples of, in bytes: the cluster size of the
// file system, and the largest sector.
const sizeUnit = 4096

// Keys open the volume. Both protectors are on it, unless the Spec asked for no
// recovery password. They are empty if the Spec has Protectors.
type Keys struct {
	ExternalKey      bitlocker.ExternalKey
	RecoveryPassword bitlocker.RecoveryPassword
	BEK              bitlocker.BEK // holds ExternalKey, and its protector's ID
}

// Wipe overwrites the keys.
func (k Keys) Wipe() {
	k.ExternalKey.Wipe()
	k.RecoveryPassword.Wipe()
}

// Create makes the image. The caller wipes the keys.
func Create(ctx context.Context, s Spec) (Keys, error) {
	return s.make(MinSize, func(file *os.File, opts *bitlocker.FormatOptions) error {
		if err := s.fileSystem(ctx, file); err != nil {
			return err
		}
		if err := fill(ctx, s, file.Name()); err != nil {
			return err
		}
		if err := findAreas(ctx, file, opts); err != nil {
			return err
		}
		rw := &watchedFile{file: file, check: ctx.Err, wrote: func(n int64) { s.report(StageEncrypt, n, s.SizeBytes) }}
		return bitlocker.Format(rw, s.SizeBytes, *opts)
	})
}

// CreateBare makes a volume whose content is noise, in a sparse file of which
// about 256 KiB are really there. The caller wipes the keys.
func CreateBare(ctx context.Context, s Spec) (Keys, error) {
	return s.make(MinBareSize, func(file *os.File, opts *bitlocker.FormatOptions) error {
		opts.Metadata = [3]int64{128 << 10, 256 << 10, 384 << 10}
		opts.HeaderCopy = 512 << 10
		opts.HeaderOnly = true
		rw := &watchedFile{file: file, check: ctx.Err, wrote: func(int64) {}}
		return bitlocker.Format(rw, s.SizeBytes, *opts)
	})
}

// fileSystem makes the file system, or copies it.
func (s Spec) fileSystem(ctx context.Context, file *os.File) error {
	if s.From != "" {
		return copyFrom(ctx, s, file)
	}
	s.report(StageFileSystem, 0, s.SizeBytes)
	return makeNTFS(ctx, s, file.Name())
}

// Inspect reads what a volume tells without a key, as [bitlocker.Inspect] does.
func Inspect(path string) (bitlocker.Info, error) {
	f, err := Open(path, Look)
	if err != nil {
		return bitlocker.Info{}, err
	}
	defer f.Close()
	told, err := bitlocker.Inspect(f, f.Size)
	if err != nil {
		return bitlocker.Info{}, fmt.Errorf("cannot inspect %s: %w", path, err)
	}
	return told, nil
}

// make runs build on a sparse file of a temporary name, and gives it its own
// name when build has succeeded.
func (s Spec) make(minimum int64, build func(*os.File, *bitlocker.FormatOptions) error) (keys Keys, err error) {
	if err := s.check(minimum); err != nil {
		return Keys{}, err
	}
	opts, keys, err := s.options(time.Now())
	if err != nil {
		return Keys{}, err
	}
	defer func() {
		if err != nil {
			keys.Wipe()
			keys, err = Keys{}, fmt.Errorf("cannot make the image %s: %w", s.Path, err)
		}
	}()
	path, err := filepath.Abs(s.Path)
	if err != nil {
		return keys, err
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".making-*")
	if err != nil {
		return keys, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if err := file.Truncate(s.SizeBytes); err != nil {
		return keys, err
	}
	if err := build(file, &opts); err != nil {
		return keys, err
	}
	return keys, s.publish(file, path)
}

// publish gives a complete image its own name.
func (s Spec) publish(file *os.File, path string) error {
	if s.Durable {
		if err := file.Sync(); err != nil {
			return err
		}
	}
	name := os.Link
	if s.Overwrite {
		name = os.Rename
	}
	if err := name(file.Name(), path); err != nil || !s.Durable {
		return err
	}
	return SyncFolder(path)
}

// SyncFolder has the name of a file survive a power cut.
func SyncFolder(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func (s Spec) check(minimum int64) error {
	switch {
	case s.Path == "":
		return errors.New("no path for the image")
	case s.SizeBytes < minimum || s.SizeBytes%sizeUnit != 0:
		return fmt.Errorf("image of %d bytes: want a multiple of %d, at least %d", s.SizeBytes, sizeUnit, minimum)
	case len(s.Label) > 32:
		return fmt.Errorf("label %q is longer than 32 bytes", s.Label)
	}
	there, err := os.Lstat(s.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("cannot make the image: %w", err)
	case !s.Overwrite:
		return fmt.Errorf("cannot make the image %s: it is there already", s.Path)
	case !there.Mode().IsRegular():
		return fmt.Errorf("cannot make the image %s: what is there is no regular file", s.Path)
	}
	return nil
}

// options draws the keys and returns all of the volume's options but the places
// of its areas.
func (s Spec) options(now time.Time) (bitlocker.FormatOptions, Keys, error) {
	o := bitlocker.FormatOptions{
		Method: s.Method, SectorSize: s.SectorSize, Rand: rand.Reader, Now: now,
		Description: fmt.Sprintf("DATABOX %s %s", s.Label, now.Format("1/2/2006")),
	}
	var err error
	if o.ID, err = bitlocker.NewGUID(rand.Reader); err != nil {
		return o, Keys{}, err
	}
	if o.Protectors = s.Protectors; o.Protectors != nil {
		return o, Keys{}, nil
	}
	var keys Keys
	if keys.ExternalKey, err = bitlocker.GenerateExternalKey(rand.Reader); err != nil {
		return o, Keys{}, err
	}
	id, err := addProtector(&o, keys.ExternalKey)
	if err != nil {
		return o, Keys{}, err
	}
	keys.BEK = bitlocker.NewBEK(id, keys.ExternalKey, now)
	if s.NoRecoveryPassword {
		return o, keys, nil
	}
	if keys.RecoveryPassword, err = bitlocker.GenerateRecoveryPassword(rand.Reader); err != nil {
		return o, Keys{}, err
	}
	_, err = addProtector(&o, keys.RecoveryPassword)
	return o, keys, err
}

// addProtector gives the volume a protector, and returns its ID.
func addProtector(o *bitlocker.FormatOptions, key bitlocker.Credential) (bitlocker.GUID, error) {
	id, err := bitlocker.NewGUID(rand.Reader)
	o.Protectors = append(o.Protectors, bitlocker.ProtectorKey{ID: id, Key: key})
	return id, err
}

func (s Spec) report(stage Stage, done, total int64) {
	if s.Progress != nil {
		s.Progress(stage, done, total)
	}
}

// watchedFile is a file whose every access may be refused, and which counts what
// is written.
type watchedFile struct {
	file  *os.File
	check func() error
	wrote func(total int64)
	total int64
}

func (w *watchedFile) ReadAt(b []byte, off int64) (int, error) {
	if err := w.check(); err != nil {
		return 0, err
	}
	return w.file.ReadAt(b, off)
}

func (w *watchedFile) WriteAt(b []byte, off int64) (int, error) {
	if err := w.check(); err != nil {
		return 0, err
	}
	n, err := w.file.WriteAt(b, off)
	w.total += int64(n)
	w.wrote(w.total)
	return n, err
}
