package disk

import (
	"bufio"
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The file system types of a mounted disk, as the kernel lists them.
const (
	exportType = "fuse.databox" // the decrypted volume
	filesType  = "fuse"         // ntfs-3g
)

// mountPoint is one line of a process's list of mounts.
type mountPoint struct {
	device string // number of the file system, "major:minor"
	dir    string
	fsType string
	source string
}

// mountPoints lists the mounts that the calling thread sees, oldest first.
func mountPoints() ([]mountPoint, error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []mountPoint
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		place, kind, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(place), strings.Fields(kind)
		if ok && len(left) >= 5 && len(right) >= 2 {
			mounts = append(mounts, mountPoint{left[2], unescape(left[4]), right[0], unescape(right[1])})
		}
	}
	return mounts, nil
}

// mountAt returns the mount that the calling thread sees at dir.
func mountAt(dir string) (mountPoint, bool) {
	mounts, err := mountPoints()
	if err != nil {
		return mountPoint{}, false
	}
	i := slices.IndexFunc(mounts, func(m mountPoint) bool { return m.dir == dir })
	if i < 0 {
		return mountPoint{}, false
	}
	return mounts[i], true
}

// unescape undoes the octal escapes of blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	if plain, err := strconv.Unquote(`"` + strings.ReplaceAll(s, `"`, `\"`) + `"`); err == nil {
		return plain
	}
	return s
}

// below reports whether path lies below dir.
func below(path, dir string) bool { return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") }

// unmount takes the mount at dir out of sight and fails what its users have under
// way and whatever they try later. It does not wait. It is no error if nothing is
// mounted there.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == unix.EINVAL || err == unix.ENOENT {
		return nil
	}
	return err
}
