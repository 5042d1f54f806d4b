// Package disk turns one BitLocker image into a mounted folder, and back within
// two seconds.
//
//	image ─ bitlocker ─ FUSE file ─ loop device ─ ntfs-3g ─ folder
//
// The rules:
//
//   - Only this process holds keys. The decrypted volume is one file that only
//     root can open; whatever lies above it dies with the process.
//   - What a caller was told is synced stays, whoever is killed next, and in a
//     file system that opens. Until the disk is closed or opened again, some of it
//     may be in a log beside the image instead of the image.
//   - [Opened.Close] waits for nobody: not for a client, not for a file system
//     that hangs. Keys are gone after 1.5 s, everything else after 2 s.
//   - Decrypted data is cached in one place, the loop device, which goes with the
//     last of its users; a file held open over a relock reads nothing any more.
//   - A [Keeper] undoes what a killed agent leaves, and [Cleanup] what a dead
//     machine leaves.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/protocol"
)

// Disk is one configured disk of the node.
type Disk struct {
	ID    protocol.DiskID
	Image string // path of the image file
}

// Inspect reads what the volume says in clear. It needs no key and changes
// nothing. Its errors are those of [bitlocker.Open], with the path added.
func (d Disk) Inspect() (bitlocker.Info, error) {
	image, err := os.Open(d.Image)
	if err != nil {
		return bitlocker.Info{}, err
	}
	defer image.Close()
	volume, err := readVolume(image)
	if err != nil {
		return bitlocker.Info{}, err
	}
	return volume.Info(), nil
}

// readVolume reads the volume's metadata from image. The volume is read-only.
func readVolume(image *os.File) (*bitlocker.Volume, error) {
	size, err := image.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	volume, err := bitlocker.Open(io.NewSectionReader(image, 0, size), size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", image.Name(), err)
	}
	return volume, nil
}

// Spec says which disk is opened, and how.
type Spec struct {
	Disk
	RunDir   string  // the agent's private run directory, made if missing; the disk's things are in <RunDir>/disks/<ID>
	ReadOnly bool    // the image is opened read-only
	Bare     bool    // no folder: Mount does nothing and returns ""
	Keeper   *Keeper // undoes the mount when the agent is killed; nil only where that does not matter
}

// disksDir returns the folder below runDir that holds a folder per disk.
func disksDir(runDir string) string { return filepath.Join(runDir, "disks") }

// places are where one disk is found while it is mounted.
type places struct {
	runDir string // as the kernel names it
	base   string // the folder of the disk
	export string // mount point of the decrypted volume
	files  string // mount point of the file system inside
	types  string // what ntfs-3g reads as /proc/filesystems while it starts
	tag    string // name of the loop device
}

func placesOf(runDir string, id protocol.DiskID) *places {
	base := filepath.Join(disksDir(runDir), string(id))
	return &places{
		runDir: runDir,
		base:   base,
		export: filepath.Join(base, "volume"),
		files:  filepath.Join(base, "files"),
		types:  filepath.Join(base, "filesystems"),
		tag:    loopTag(runDir, id),
	}
}

// makePlaces makes the run directory, for root only, and the disk's folders in it.
func makePlaces(spec Spec) (*places, error) {
	if err := os.MkdirAll(spec.RunDir, 0o700); err != nil {
		return nil, err
	}
	runDir, err := realPath(spec.RunDir)
	if err != nil {
		return nil, err
	}
	p := placesOf(runDir, spec.ID)
	for _, dir := range []string{p.export, p.files} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// remove removes the disk's folders. It never removes what is in the mount points:
// should something still be mounted there, it fails.
func (p *places) remove() error {
	for _, path := range []string{p.types, p.files, p.export, p.base} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// things are what the keeper undoes, in this order.
func (p *places) things() []thing {
	return []thing{{Mount: p.files}, {Mount: p.export}, {Loop: p.tag}}
}

// realPath returns path as the kernel names it.
func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}
