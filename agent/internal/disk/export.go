package disk

import (
	"context"
	"fmt"
	"io"
	"log"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// volumeName is the only file of an export.
const volumeName = "volume"

// maxRequest is the most one FUSE request carries, in bytes.
const maxRequest = 1 << 20

// export is a FUSE file system with one file, the decrypted volume. It dies with
// this process: the kernel then fails every request.
type export struct {
	dir    string        // its mount point
	file   string        // the decrypted volume
	served chan struct{} // closed when the last request is answered
}

// newExport mounts volume at dir. Only root can enter. What is written is durable
// once sync has returned.
func newExport(spec Spec, dir string, volume view, sync func() error) (*export, error) {
	fd, err := mountFUSE("databox-"+string(spec.ID), dir)
	if err != nil {
		return nil, err
	}
	root := &exportRoot{file: &volumeFile{volume: volume, sync: sync}}
	forever := time.Hour
	opts := &fs.Options{AttrTimeout: &forever, EntryTimeout: &forever}
	opts.MaxWrite = maxRequest
	opts.DisableSplice = true
	opts.DisableXAttrs = true
	// The loop device reads and writes directly: this lets it do several at once.
	opts.ExtraCapabilities = fuse.CAP_ASYNC_DIO
	opts.MountOptions.Logger = log.New(io.Discard, "", 0)
	server, err := fuse.NewServer(fs.NewNodeFS(root, opts), fmt.Sprintf("/dev/fd/%d", fd), &opts.MountOptions)
	if err != nil {
		unmount(dir)
		unix.Close(fd)
		return nil, fmt.Errorf("cannot serve the decrypted volume: %w", err)
	}
	e := &export{dir: dir, file: filepath.Join(dir, volumeName), served: make(chan struct{})}
	go func() {
		defer close(e.served)
		server.Serve()
	}()
	if err := refusePoll(e.file); err != nil {
		unmount(dir)
		e.wait(undoTime)
		return nil, fmt.Errorf("the decrypted volume does not answer: %w", err)
	}
	return e, nil
}

// refusePoll lets whoever serves the file at path tell the kernel that they know no
// poll. Otherwise the first file there that this process opens makes the Go runtime
// wait for the answer in a place where it cannot run who gives it: an export, or the
// agent below ntfs-3g.
func refusePoll(path string) error {
	file, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(file), Events: unix.POLLIN}}, 0)
	return err
}

// mountFUSE mounts without the help of go-fuse, which would let every child
// inherit the descriptor: the export would then outlive this process.
func mountFUSE(source, dir string) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot open /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d", fd, maxRequest)
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME
	if err := unix.Mount(source, dir, exportType, flags, data); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("cannot mount at %s: %w", dir, err)
	}
	return fd, nil
}

// wait waits for the last request after the export was unmounted.
func (e *export) wait(limit time.Duration) error {
	return waitFor(e.served, limit, "the decrypted volume is still being served")
}

type exportRoot struct {
	fs.Inode
	file *volumeFile
}

// OnAdd implements [fs.NodeOnAdder].
func (r *exportRoot) OnAdd(ctx context.Context) {
	r.AddChild(volumeName, r.NewPersistentInode(ctx, r.file, fs.StableAttr{Mode: fuse.S_IFREG}), false)
}

// volumeFile is the decrypted volume. The kernel caches nothing of it.
type volumeFile struct {
	fs.Inode
	volume view
	sync   func() error
	broken atomic.Bool // a write has failed
}

var (
	_ fs.NodeOnAdder   = (*exportRoot)(nil)
	_ fs.NodeGetattrer = (*volumeFile)(nil)
	_ fs.NodeOpener    = (*volumeFile)(nil)
	_ fs.NodeReader    = (*volumeFile)(nil)
	_ fs.NodeWriter    = (*volumeFile)(nil)
	_ fs.NodeFsyncer   = (*volumeFile)(nil)
)

// Getattr implements [fs.NodeGetattrer].
func (f *volumeFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o600
	out.Size = uint64(f.volume.Size())
	return fs.OK
}

// Open implements [fs.NodeOpener].
func (f *volumeFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, fs.OK
}

// Read implements [fs.NodeReader]. It is not worth while to split a request among
// the cores: to copy takes longer than to decrypt, and whoever reads ahead, as the
// loop device does, has several requests under way.
func (f *volumeFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := f.volume.ReadAt(dest, off)
	if err != nil && err != io.EOF {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:n]), fs.OK
}

// Write implements [fs.NodeWriter].
func (f *volumeFile) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if _, err := f.volume.WriteAt(data, off); err != nil {
		f.broken.Store(true)
		return 0, syscall.EIO
	}
	return uint32(len(data)), fs.OK
}

// Fsync implements [fs.NodeFsyncer]. Everything written before is durable when it
// returns. After a write that failed there are no more syncs: what the kernel has
// dropped would be missing among what it has not.
func (f *volumeFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if f.broken.Load() {
		return syscall.EIO
	}
	return fs.ToErrno(f.sync())
}
