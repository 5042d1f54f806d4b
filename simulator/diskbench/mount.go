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
	volumes, files := map[string][]float64{}, map[string][]float64{}
	for i := range b.Runs {
		b.note("mounts, run %d of %d", i+1, b.Runs)
		for name, mount := range b.mounters(keys) {
			if name == peerBdemount && !b.wants("mount_read") {
				continue
			}
			err := mount(ctx, func(volume string) error {
				return b.readInto(ctx, volumes, name, "mount_read", volume)
			}, func(root string) error {
				return b.readInto(ctx, files, name, "ntfs_read", filepath.Join(root, fileName))
			})
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if b.wants("mount_read") {
		for _, peer := range []string{peerDislocker, peerBdemount} {
			b.show(figure.Figure{Name: "mount_read", Value: median(volumes, "ours"), Unit: "GB/s", More: true, Peer: peer, PeerValue: median(volumes, peer)})
		}
	}
	if b.wants("ntfs_read") {
		b.show(figure.Figure{Name: "ntfs_read", Value: median(files, "ours"), Unit: "GB/s", More: true, Peer: peerDislocker, PeerValue: median(files, peerDislocker)})
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

// mounter mounts the volume and has its parts read, if they are to be: the
// decrypted volume, and the file system in it.
type mounter func(ctx context.Context, volume, files func(path string) error) error

// mounters returns ours and those of the peers, by name.
func (b *bench) mounters(keys image.Keys) map[string]mounter {
	img, bek := b.path("volume.img"), b.path("volume.bek")
	return map[string]mounter{
		"ours": func(ctx context.Context, volume, files func(string) error) (err error) {
			m, err := agent.MountDisk(ctx, img, b.path("run"), keys.ExternalKey, false)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, m.Close(ctx), b.settle()) }()
			return errors.Join(volume(m.Volume), files(m.Files))
		},
		peerDislocker: func(ctx context.Context, volume, files func(string) error) error {
			dir := b.path("dislocker")
			command := []string{"dislocker-fuse", "-q", "-V", img, "-f", bek, "--", dir}
			err := withMount(ctx, dir, command, func() error { return volume(filepath.Join(dir, "dislocker-file")) })
			if err != nil {
				return err
			}
			return withMount(ctx, dir, command, func() error {
				root := b.path("ntfs")
				return withMount(ctx, root, []string{"ntfs-3g", "-o", "ro", filepath.Join(dir, "dislocker-file"), root}, func() error { return files(root) })
			})
		},
		peerBdemount: func(ctx context.Context, volume, _ func(string) error) error {
			dir := b.path("bdemount")
			return withMount(ctx, dir, []string{"bdemount", "-s", bek, img, dir}, func() error { return volume(filepath.Join(dir, "bde1")) })
		},
	}
}

// readInto reads the file at path, if its figure is wanted, and books how fast it
// was, in GB/s.
func (b *bench) readInto(ctx context.Context, all map[string][]float64, name, wanted, path string) error {
	if !b.wants(wanted) {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	s, err := run(ctx, nil, "dd", "if="+path, "of=/dev/null", "bs=1M", "status=none")
	if err != nil {
		return err
	}
	b.note("  %s, %s: %.2fs", wanted, name, s.wall.Seconds())
	all[name] = append(all[name], float64(info.Size())/s.wall.Seconds()/1e9)
	return nil
}
