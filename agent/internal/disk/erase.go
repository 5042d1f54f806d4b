package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

// Erase destroys the log beside the image and the keys on the volume, for good,
// and reads back that they are gone; see [bitlocker.Erase]. It is durable when it
// returns nil, may be called again after a loss of power, and is refused with
// [protocol.CodeBusy] while the disk is open.
func (d Disk) Erase() error {
	image, err := openImage(Spec{Disk: d})
	if err != nil {
		return err
	}
	defer closeImage(image)
	if err := eraseLog(redoPath(d.Image)); err != nil {
		return fmt.Errorf("cannot erase the log of disk %s: %w", d.ID, err)
	}
	size, err := image.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := bitlocker.Erase(image, size); err != nil {
		return fmt.Errorf("disk %s: %w", d.ID, err)
	}
	return nil
}

// Erased reports whether the keys on the volume were destroyed.
func (d Disk) Erased() (bool, error) {
	image, err := os.Open(d.Image)
	if err != nil {
		return false, err
	}
	defer image.Close()
	size, err := image.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	return bitlocker.Erased(image, size)
}

// eraseLog overwrites a log, which holds nothing but encrypted sectors, and
// removes it: it must not be replayed into what is erased.
func eraseLog(path string) error {
	log, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return err
	}
	if _, err := io.CopyN(log, zeros{}, info.Size()); err != nil {
		return err
	}
	return errors.Join(log.Sync(), os.Remove(path), syncDir(filepath.Dir(path)))
}

// zeros yields zeros.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
