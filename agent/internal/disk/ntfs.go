package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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

	released chan struct{} // closed when we have nothing open in it any more
}

// filesReadAhead is how far the kernel reads ahead in a file of ntfs-3g's, in KiB:
// far enough to keep ntfs-3g, which does one thing at a time, always busy.
const filesReadAhead = "1024"

// exitCorrupt is how ntfs-3g ends where its writes were cut off in the middle.
const exitCorrupt = 13

// mountNTFS mounts the file system on device at p.files. One that is inconsistent
// after a crash is repaired first, as far as that needs no decisions.
func mountNTFS(ctx context.Context, device string, p *places, spec Spec) (*fileSystem, error) {
	options := ntfsOptions
	if spec.ReadOnly {
		options += ",ro"
	}
	f, err := startNTFS(ctx, p, spec.Keeper, options, device)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == exitCorrupt {
		if err := repairNTFS(ctx, device, p, spec.Keeper); err != nil {
			return nil, err
		}
		return startNTFS(ctx, p, spec.Keeper, options, device)
	}
	return f, err
}

// repairNTFS makes the two copies of the file system's vital records the same
// again, and empties its journal, which ntfs-3g does not use. It has a mount table
// of its own, for ntfsfix refuses a device whose name stands in the table, as after
// an agent that was killed with another disk on it.
func repairNTFS(ctx context.Context, device string, p *places, keeper *Keeper) error {
	var said tail
	cmd, err := program("ntfsfix", &said, device)
	if err != nil {
		return err
	}
	cmd.Stdout = &said
	child, err := startChild(cmd, keeper, thread{before: func() error { return ownMountTable(p.types) }})
	if err != nil {
		return err
	}
	select {
	case <-child.Done():
	case <-ctx.Done():
		child.Kill()
		<-child.Done()
	}
	if err := child.Err(); err != nil {
		return fmt.Errorf("the file system is damaged, and repairing it failed: %w: %s", err, said.String())
	}
	return nil
}

// program is a command of the package ntfs-3g.
func program(name string, stderr io.Writer, args ...string) (*exec.Cmd, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%w: install the package ntfs-3g", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stderr = stderr
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = time.Second
	return cmd, nil
}

// startNTFS starts ntfs-3g.
//
// It takes the kernel's fuseblk for block devices, whose mount keeps the device
// open as long as anyone has a file open in it, so that a client could hold up a
// relock. It takes plain fuse where /proc/filesystems knows no other. So it starts
// on a thread with a mount table of its own, where that is what the file says; its
// mount is then moved to everybody's table.
func startNTFS(ctx context.Context, p *places, keeper *Keeper, options, device string) (*fileSystem, error) {
	var said tail
	cmd, err := program("ntfs-3g", &said, "-o", options, device, p.files)
	if err != nil {
		return nil, err
	}
	tree := -1
	child, err := startChild(cmd, keeper, thread{
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
	f := &fileSystem{dir: p.files, child: child, released: make(chan struct{})}
	if err := f.show(tree, keeper); err != nil {
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
	if err := separateMounts(); err != nil {
		return err
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

var errNoMount = errors.New("without a mount")

// takeMount waits until c has mounted at dir, in the calling thread's mount table,
// and takes the mount out of it. The caller closes tree.
func takeMount(ctx context.Context, c *Child, dir string) (tree int, err error) {
	for {
		if _, mounted := mountAt(dir); mounted {
			break
		}
		select {
		case <-c.Done():
			return -1, fmt.Errorf("ntfs-3g ended: %w", cmp.Or(c.Err(), errNoMount))
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
	writeSetting("/sys/class/bdi/"+f.device+"/read_ahead_kb", filesReadAhead)
	if err := keeper.watch(thing{Cache: f.device}); err != nil {
		return err
	}
	if err := refusePoll(filepath.Join(f.dir, "$MFT")); err != nil {
		return fmt.Errorf("the file system does not answer: %w", err)
	}
	return nil
}

// cutOff fails what the users of the files have under way and try later.
// It waits for nobody.
func (f *fileSystem) cutOff() error { return unmount(f.dir) }

// syncTime is how often the files are synced though nobody asked: it bounds what a
// crash loses, in time and in the length of the log.
const syncTime = time.Second

// syncRegularly syncs the files until ntfs-3g has ended, also when full says so.
// They are synced through ntfs-3g, so that it happens between two operations.
func (f *fileSystem) syncRegularly(full <-chan struct{}) {
	root, err := unix.Open(f.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(root)
	for tick := time.NewTicker(syncTime); ; {
		select {
		case <-f.child.Done():
			tick.Stop()
			return
		case <-full:
		case <-tick.C:
		}
		unix.Fsync(root)
	}
}
