package disk

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ntfsOptions of ntfs-3g: in the foreground, for root only. Extended attributes would become alternate data streams in the customer's files
// (streams_interface=none).
const ntfsOptions = "no_detach,no_def_opts,silent,noatime,windows_names,big_writes,streams_interface=none,uid=0,gid=0,fmask=0177,dmask=0077"

// fileSystem is a running ntfs-3g.
type fileSystem struct {
	dir    string // its mount point
	device string // its number, as in [mountPoint]
	child  *Child
}

// mountNTFS mounts the file system on device at p.files.
//
// ntfs-3g takes the kernel's fuseblk for block devices, whose mount keeps the
// device open as long as anyone has a file open in it, so that a client could hold
// up a relock. It takes plain fuse where /proc/filesystems knows no other. So it
// starts on a thread with a mount table of its own, where that is what the file
// says; its mount is then moved to everybody's table.
func mountNTFS(ctx context.Context, device string, p *places, spec Spec) (*fileSystem, error) {
	path, err := exec.LookPath("ntfs-3g")
	if err != nil {
		return nil, fmt.Errorf("%w: install the package ntfs-3g", err)
	}
	options := ntfsOptions
	if spec.ReadOnly {
		options += ",ro"
	}
	var said tail
	cmd := exec.Command(path, "-o", options, device, p.files)
	cmd.Stderr = &said
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = time.Second
	tree := -1
	child, err := startChild(cmd, spec.Keeper, thread{
		before: func() error { return ownMountTable(p.types) },
		after: func(c *Child) (err error) {
			tree, err = takeMount(ctx, c, p.files)
			return err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: ntfs-3g said: %s", err, said.String())
	}
	defer unix.Close(tree)
	f := &fileSystem{dir: p.files, child: child}
	if err := f.show(tree, spec.Keeper); err != nil {
		child.Kill()
		f.cutOff()
		return nil, err
	}
	return f, nil
}

// ownMountTable gives the calling thread, and the processes it starts, a mount
// table of their own, in which there is no FUSE mount and no fuseblk.
func ownMountTable(types string) error {
	if err := os.WriteFile(types, []byte("nodev\tfuse\n"), 0o600); err != nil {
		return err
	}
	defer os.Remove(types)
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot get a mount table: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot separate the mount table: %w", err)
	}
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		// The copies would keep other disks' mounts alive.
		if m.fsType == filesType || strings.HasPrefix(m.fsType, "fuse.") {
			unix.Unmount(m.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
	if err := unix.Mount(types, "/proc/filesystems", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cannot hide fuseblk: %w", err)
	}
	return nil
}

// takeMount waits until c has mounted at dir, in the calling thread's mount table,
// and takes the mount out of it. The caller closes tree.
func takeMount(ctx context.Context, c *Child, dir string) (tree int, err error) {
	for {
		if _, mounted := mountAt(dir); mounted {
			break
		}
		select {
		case <-c.Done():
			return -1, fmt.Errorf("ntfs-3g ended: %v", c.Err())
		case <-ctx.Done():
			return -1, ctx.Err()
		case <-time.After(pollTime):
		}
	}
	tree, err = unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("cannot take the mount: %w", err)
	}
	unix.Unmount(dir, unix.MNT_DETACH)
	return tree, nil
}

// show puts the mount where everybody sees it.
func (f *fileSystem) show(tree int, keeper *Keeper) error {
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, f.dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot mount at %s: %w", f.dir, err)
	}
	mount, ok := mountAt(f.dir)
	if !ok {
		return fmt.Errorf("the mount at %s is gone", f.dir)
	}
	f.device = mount.device
	if err := keeper.watch(thing{Cache: f.device}); err != nil {
		return err
	}
	return f.refusePoll()
}

// cutOff fails what the users of the files have under way and try later.
// It waits for nobody.
func (f *fileSystem) cutOff() error { return unmount(f.dir) }

// refusePoll lets ntfs-3g tell the kernel that it knows no poll. Otherwise the
// first file that this process opens makes the Go runtime wait for ntfs-3g in a
// place where it cannot run what ntfs-3g waits for.
func (f *fileSystem) refusePoll() error {
	file, err := unix.Open(filepath.Join(f.dir, "$MFT"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("the file system does not answer: %w", err)
	}
	defer unix.Close(file)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(file), Events: unix.POLLIN}}, 0)
	return err
}
