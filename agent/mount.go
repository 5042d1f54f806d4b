package agent

import (
	"context"
	"errors"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
)

// MountedDisk is one disk, mounted as the agent mounts it, without an agent: for
// measuring what a mount costs. No approval is asked for, because whoever has the
// key needs none.
type MountedDisk struct {
	Volume string // the decrypted volume, as one file that only root can read
	Files  string // the folder with the files in it

	opened *disk.Opened
}

// MountDisk opens the image with key, which the caller wipes, and mounts it below
// runDir. It needs root, /dev/fuse, loop devices and ntfs-3g. The caller ends with
// [MountedDisk.Close]; nothing undoes the mount when this process is killed.
func MountDisk(ctx context.Context, image, runDir string, key bitlocker.ExternalKey, readOnly bool) (*MountedDisk, error) {
	opened, err := disk.Open(ctx, disk.Spec{Disk: disk.Disk{ID: "disk1", Image: image}, RunDir: runDir, ReadOnly: readOnly}, key)
	if err != nil {
		return nil, err
	}
	files, err := opened.Mount(ctx)
	if err != nil {
		return nil, errors.Join(err, opened.Close(ctx))
	}
	return &MountedDisk{Volume: opened.VolumeFile(), Files: files, opened: opened}, nil
}

// Close syncs and undoes the mount within two seconds, as a relock does.
func (m *MountedDisk) Close(ctx context.Context) error { return m.opened.Close(ctx) }
