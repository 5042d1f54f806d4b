package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// evict drops what the kernel has cached of the files of a file system that was
// cut off, which would stay readable for whoever has them open. A process that has
// mapped such a file into its memory is killed, because from there nothing can be
// dropped. device is the file system's number, as in [mountPoint].
func evict(device string) error {
	if _, err := os.Stat("/sys/class/bdi/" + device); errors.Is(err, fs.ErrNotExist) {
		return nil // nobody had anything open: the file system is gone, and its cache
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	var errs []error
	for _, process := range processes {
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil {
			continue
		}
		errs = append(errs, evictOpen(pid, device))
		if start := startTime(pid); pid != os.Getpid() && maps(pid, device) {
			errs = append(errs, killProcess(pid, start))
		}
	}
	return errors.Join(errs...)
}

// evictOpen drops what is cached of the files on device that the process has open.
func evictOpen(pid int, device string) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // gone
	}
	var errs []error
	for _, entry := range entries {
		var stat unix.Statx_t
		path := filepath.Join(dir, entry.Name())
		if unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, 0, &stat) != nil ||
			fmt.Sprintf("%d:%d", stat.Dev_major, stat.Dev_minor) != device {
			continue
		}
		if fd, err := strconv.Atoi(entry.Name()); err == nil {
			errs = append(errs, evictFile(pid, fd))
		}
	}
	return errors.Join(errs...)
}

// evictFile drops what is cached of the file that is fd in the process. The file
// itself cannot be opened any more.
func evictFile(pid, fd int) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone
	}
	defer unix.Close(process)
	file, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return nil // closed
	}
	defer unix.Close(file)
	if err := unix.Fadvise(file, 0, 0, unix.FADV_DONTNEED); err != nil && !errors.Is(err, unix.EBADF) { // O_PATH
		return fmt.Errorf("cannot drop what is cached for process %d: %w", pid, err)
	}
	return nil
}

// maps reports whether the process has mapped a file on device.
func maps(pid int, device string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		var major, minor int
		if fields := strings.Fields(line); len(fields) > 3 {
			fmt.Sscanf(fields[3], "%x:%x", &major, &minor)
			if fmt.Sprintf("%d:%d", major, minor) == device {
				return true
			}
		}
	}
	return false
}
