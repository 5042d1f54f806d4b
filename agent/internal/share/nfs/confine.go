package nfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Where things are in the confined process's file system.
const (
	sharesDir = "/shares"
	program   = "/agent"
)

// confine starts the program again, in this process, where it sees the shared
// folders and itself and may do nothing else. It returns only to say why that
// cannot be. The process must have a mount table of its own.
func confine(o order) error {
	runtime.LockOSThread() // rights are a thread's; the program started takes this one's
	if err := buildRoot(o); err != nil {
		return fmt.Errorf("cannot confine: %w", err)
	}
	if err := dropRights(); err != nil {
		return fmt.Errorf("cannot drop rights: %w", err)
	}
	return syscall.Exec(program, os.Args, append(os.Environ(), confinedVariable+"=1"))
}

// branch is a folder, or a file, for the new root.
type branch struct {
	fd int
	at string
}

// buildRoot makes an empty file system with the shared folders in it the root.
func buildRoot(o order) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	branches, err := takeBranches(o)
	if err != nil {
		return err
	}
	const root = "/proc" // any folder that exists; what it hides is of no use any more
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k,mode=0755"); err != nil {
		return err
	}
	for _, b := range branches {
		if err := b.plant(root); err != nil {
			return fmt.Errorf("%s: %w", b.at, err)
		}
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "size=64k,mode=0755"); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// takeBranches takes what the new root will hold, each with fewer rights.
func takeBranches(o order) ([]branch, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var branches []branch
	take := func(from, at string, rights uint64) {
		if err != nil {
			return
		}
		b := branch{at: at}
		if b.fd, err = unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err == nil {
			err = unix.MountSetattr(b.fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | rights})
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", from, err)
		}
		branches = append(branches, b)
	}
	take(self, program, unix.MOUNT_ATTR_RDONLY)
	for _, dir := range libraries(self) {
		take(dir, dir, unix.MOUNT_ATTR_RDONLY)
	}
	for _, s := range o.Shares {
		rights := uint64(unix.MOUNT_ATTR_NOEXEC)
		if !o.writable() {
			rights |= unix.MOUNT_ATTR_RDONLY
		}
		take(s.Dir, filepath.Join(sharesDir, s.Name), rights)
	}
	return branches, err
}

// libraries are the folders that a program which is not linked statically, as a
// test is, needs to start.
func libraries(path string) []string {
	f, err := elf.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var dirs []string
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		for _, dir := range []string{"/lib", "/lib64", "/usr/lib"} {
			if _, err := os.Stat(dir); err == nil {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// plant shows the branch below root.
func (b branch) plant(root string) error {
	at := filepath.Join(root, b.at)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	var err error
	if b.at == program {
		err = os.WriteFile(at, nil, 0o500)
	} else {
		err = os.Mkdir(at, 0o755)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return unix.MoveMount(b.fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// maxFiles is how many descriptors the process may have: connections, and files of
// its cache.
const maxFiles = 512

// dropRights gives up every capability for good, and bounds what the process may
// use.
func dropRights() error {
	for limit, value := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: maxFiles, unix.RLIMIT_MEMLOCK: 0} {
		if err := unix.Setrlimit(limit, &unix.Rlimit{Cur: value, Max: value}); err != nil {
			return err
		}
	}
	const noRoot = 0xef // user 0 has no capabilities by being user 0, neither now nor after exec; locked (capabilities(7))
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noRoot, 0, 0, 0); err != nil {
		return err
	}
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return err // EINVAL: this kernel does not know it
		}
	}
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}
