package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

// LockNames keeps every [RenameNew] to a folder waiting, of this process and of
// others, until what it returns is called or dir is closed.
func LockNames(dir *os.File) (unlock func(), err error) {
	if err := again(func() error { return unix.Flock(int(dir.Fd()), unix.LOCK_EX) }); err != nil {
		return nil, err
	}
	return func() { _ = unix.Flock(int(dir.Fd()), unix.LOCK_UN) }, nil // closing does it, too
}

// RenameNew moves a name from one open folder to another, where nothing may have it
// yet: else the error is [unix.EEXIST]. Of several moves to one name at the same
// time, by this process and others, one succeeds and none replaces another.
func RenameNew(from *os.File, old string, to *os.File, name string) error {
	unlock, err := LockNames(to)
	if err != nil {
		return err
	}
	defer unlock()
	err = again(func() error { return unix.Renameat2(int(from.Fd()), old, int(to.Fd()), name, unix.RENAME_NOREPLACE) })
	if err == unix.EINVAL || err == unix.ENOSYS { // ntfs-3g does not know the flag
		return renameFree(from, old, to, name)
	}
	return err
}

// renameFree is [RenameNew] where the lock is all there is.
func renameFree(from *os.File, old string, to *os.File, name string) error {
	var st unix.Stat_t
	switch err := again(func() error { return unix.Fstatat(int(to.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err {
	case unix.ENOENT:
		return again(func() error { return unix.Renameat(int(from.Fd()), old, int(to.Fd()), name) })
	case nil:
		return unix.EEXIST
	default:
		return err
	}
}

// again repeats what a signal interrupted.
func again(do func() error) error {
	for {
		if err := do(); err != unix.EINTR {
			return err
		}
	}
}
