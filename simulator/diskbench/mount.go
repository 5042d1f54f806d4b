package diskbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/simulator/figure"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

// fileName is the file that is read in the file system. It takes up three
// quarters of the volume.
const fileName = "large.bin"

// mounts measures reading a volume, and a file in it, from page cache through a
// mount that was just made: mount, dd, unmount.
func (b *bench) mounts(ctx context.Context) error {
	if !b.wants("mount_read", "ntfs_read") {
		return nil
	}
	keys, err := b.makeVolume(ctx)
	if err != nil {
		return err
	}
	defer keys.Wipe()
	defer os.Remove(b.path("volume.img"))
	speeds := map[string]map[string][]float64{"mount_read": {}, "ntfs_read": {}}
	for i := range b.Runs {
		b.note("mounts, run %d of %d", i+1, b.Runs)
		for _, r := range b.readers(keys) {
			if !b.wants(r.figure) {
				continue
			}
			err := r.mount(ctx, func(path string) error {
				speed, err := readSpeed(ctx, path)
				b.note("  %s, %s: %.2f GB/s", r.figure, r.who, speed)
				speeds[r.figure][r.who] = append(speeds[r.figure][r.who], speed)
				return err
			})
			if err != nil {
				return fmt.Errorf("%s of %s: %w", r.figure, r.who, err)
			}
		}
	}
	for _, t := range targets {
		if all, ok := speeds[t.figure]; ok && b.wants(t.figure) {
			b.show(figure.Figure{Name: t.figure, Value: median(all, ours), Unit: "GB/s", More: true, Peer: t.peer, PeerValue: median(all, t.peer)})
		}
	}
	return nil
}

// makeVolume makes volume.img, and its key as volume.bek.
func (b *bench) makeVolume(ctx context.Context) (image.Keys, error) {
	b.note("making a volume of %d MiB", b.Volume>>20)
	content := b.path("content")
	if err := writeNoise(content, b.Volume/4*3); err != nil {
		return image.Keys{}, err
	}
	defer os.RemoveAll(content)
	keys, err := image.Create(ctx, image.Spec{Path: b.path("volume.img"), SizeBytes: b.Volume, Label: "BENCH", Source: os.DirFS(content)})
	if err != nil {
		return image.Keys{}, err
	}
	return keys, errors.Join(os.WriteFile(b.path("volume.bek"), keys.BEK.Encode(), 0o600), b.settle())
}

// writeNoise makes a folder with a file of so many random bytes.
func writeNoise(dir string, size int64) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, fileName))
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), size)
	return errors.Join(err, f.Close())
}

// settle has the image on disk and all of it in the page cache.
func (b *bench) settle() error {
	f, err := os.Open(b.path("volume.img"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, f)
	return err
}

// reader is a way to read the volume or a file in it.
type reader struct {
	figure, who string
	// mount mounts what use gets the path of, and unmounts it.
	mount func(ctx context.Context, use func(path string) error) error
}

func (b *bench) readers(keys image.Keys) []reader {
	img, bek := b.path("volume.img"), b.path("volume.bek")
	mounted := func(ctx context.Context, use func(*agent.MountedDisk) error) (err error) {
		m, err := agent.MountDisk(ctx, img, b.path("run"), keys.ExternalKey, false)
		if err != nil {
			return err
		}
		// Closing it drops the image from the page cache.
		defer func() { err = errors.Join(err, m.Close(ctx), b.settle()) }()
		return use(m)
	}
	dislocker := func(ctx context.Context, use func(path string) error) error {
		dir := b.path("dislocker")
		command := []string{"dislocker-fuse", "-q", "-V", img, "-f", bek, "--", dir}
		return withMount(ctx, dir, command, func() error { return use(filepath.Join(dir, "dislocker-file")) })
	}
	return []reader{
		{"mount_read", ours, func(ctx context.Context, use func(string) error) error {
			return mounted(ctx, func(m *agent.MountedDisk) error { return use(m.Volume) })
		}},
		{"mount_read", peerDislocker, dislocker},
		{"mount_read", peerBdemount, func(ctx context.Context, use func(string) error) error {
			dir := b.path("bdemount")
			return withMount(ctx, dir, []string{"bdemount", "-s", bek, img, dir}, func() error { return use(filepath.Join(dir, "bde1")) })
		}},
		{"ntfs_read", ours, func(ctx context.Context, use func(string) error) error {
			return mounted(ctx, func(m *agent.MountedDisk) error { return use(filepath.Join(m.Files, fileName)) })
		}},
		{"ntfs_read", peerDislocker, func(ctx context.Context, use func(string) error) error {
			return dislocker(ctx, func(volume string) error {
				dir := b.path("ntfs")
				return withMount(ctx, dir, []string{"ntfs-3g", "-o", "ro", volume, dir}, func() error { return use(filepath.Join(dir, fileName)) })
			})
		}},
	}
}

// readSpeed returns how fast dd reads the file at path, in GB/s.
func readSpeed(ctx context.Context, path string) (float64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	s, err := run(ctx, nil, "dd", "if="+path, "of=/dev/null", "bs=1M", "status=none")
	if err != nil {
		return 0, err
	}
	return float64(info.Size()) / s.wall.Seconds() / 1e9, nil
}
