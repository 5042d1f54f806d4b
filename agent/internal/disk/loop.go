package disk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol"
)

// maxDirty bounds the decrypted data per disk that waits to be written, in
// bytes: what a relock has to sync within a second, and a crash may lose.
const maxDirty = 16 << 20

// loopReadAhead is how far the kernel reads ahead in the device, in KiB: far enough
// to keep the agent decrypting while ntfs-3g and its clients copy.
const loopReadAhead = "8192"

// loop is a loop device over the decrypted volume. The kernel detaches it when
// the last process that has it open is gone.
type loop struct {
	path   string // of the device, e.g. /dev/loop0
	tag    string // its name
	device *os.File
	before owner  // of the device's node, which is root's alone while it is ours
	ahead  string // how far the kernel read ahead before, in KiB
}

// owner is who may open a device's node.
type owner struct {
	mode     uint32
	uid, gid int
}

// loopTag names the loop device of a disk, within the 64 bytes the kernel keeps.
// It tells the disks of one run directory from those of others.
func loopTag(runDir string, id protocol.DiskID) string {
	return runTag(runDir) + string(id)
}

// runTag is how the tags of all disks of a run directory begin.
func runTag(runDir string) string {
	return fmt.Sprintf("databox-%.6x-", sha256.Sum256([]byte(runDir)))
}

// attachLoop attaches a free loop device to file.
func attachLoop(file, tag string) (*loop, error) {
	// Not os.Open: it would poll the file, which this very process serves.
	backing, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the decrypted volume: %w", err)
	}
	defer unix.Close(backing)
	config := unix.LoopConfig{Fd: uint32(backing)}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_AUTOCLEAR
	copy(config.Info.File_name[:len(config.Info.File_name)-1], tag)

	device, before, err := configureFree(&config)
	if err != nil {
		return nil, fmt.Errorf("cannot attach a loop device: %w", err)
	}
	l := &loop{path: device.Name(), tag: tag, device: device, before: before}
	l.tune()
	return l, nil
}

// configureFree configures the first free loop device. Others may be faster:
// then it tries the next.
func configureFree(config *unix.LoopConfig) (*os.File, owner, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, owner{}, err
	}
	defer control.Close()
	for range 256 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, owner{}, err
		}
		device, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, owner{}, err
		}
		before, err := configure(device, config)
		if err == nil {
			return device, before, nil
		}
		device.Close()
		switch {
		case errors.Is(err, unix.EWOULDBLOCK): // udev has a look at it
			time.Sleep(pollTime)
		case !errors.Is(err, unix.EBUSY):
			return nil, owner{}, err
		}
	}
	return nil, owner{}, errors.New("others take every free one: try again")
}

// configure makes the device's node root's alone before there is anything to read
// from it. udev, which would give it to the group disk again, leaves a device
// alone that somebody else has locked, which we have until we close it.
func configure(device *os.File, config *unix.LoopConfig) (before owner, err error) {
	fd := int(device.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return owner{}, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return owner{}, err
	}
	before = owner{stat.Mode & 0o7777, int(stat.Uid), int(stat.Gid)}
	if err := errors.Join(unix.Fchmod(fd, 0o600), unix.Fchown(fd, 0, 0)); err != nil {
		return owner{}, err
	}
	if err := unix.IoctlLoopConfigure(fd, config); err != nil {
		return owner{}, errors.Join(err, before.restore(device.Name()))
	}
	return before, nil
}

// restore gives the node at path back to its owner.
func (o owner) restore(path string) error {
	return errors.Join(unix.Chown(path, o.uid, o.gid), unix.Chmod(path, o.mode))
}

// tune bounds dirty pages and reads ahead, where the kernel lets us. Without the
// bound, a relock loses more of what was not synced, and is no slower.
func (l *loop) tune() {
	l.set("strict_limit", "1")
	l.set("max_bytes", strconv.Itoa(maxDirty))
	if before, err := os.ReadFile(l.setting("read_ahead_kb")); err == nil {
		l.ahead = strings.TrimSpace(string(before))
	}
	l.set("read_ahead_kb", loopReadAhead)
}

// untune gives the next user of the device the kernel's defaults. None of the
// settings makes the kernel wait for what the device has under way, as those of its
// queue would.
func (l *loop) untune() {
	l.set("max_ratio", "100")
	l.set("strict_limit", "0")
	l.set("read_ahead_kb", l.ahead)
}

func (l *loop) set(name, value string) { writeSetting(l.setting(name), value) }

// setting returns the file in which a setting of the device's cache is.
func (l *loop) setting(name string) string {
	return filepath.Join("/sys/block", filepath.Base(l.path), "bdi", name)
}

// writeSetting writes to a file in /sys, unless it is not there.
func writeSetting(path, value string) {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer file.Close()
	file.WriteString(value)
}

// sync returns when all that was written to the device is in the image, durably.
func (l *loop) sync() error {
	if err := l.device.Sync(); err != nil {
		return fmt.Errorf("the latest writes are lost: %w", err)
	}
	return nil
}

// detach drops what is cached of the device and waits until it is free, which it
// is once ntfs-3g is gone. Not before is its node given back; after a crash, and
// after an error, udev does that.
func (l *loop) detach(limit time.Duration) error {
	flushDevice(l.device)
	l.untune()
	l.device.Close()
	for end := time.Now().Add(limit); readTag(l.path) == l.tag; time.Sleep(pollTime) {
		if time.Now().After(end) {
			return fmt.Errorf("%s is still attached", l.path)
		}
	}
	return l.before.restore(l.path)
}

// flushDevice writes back what is dirty, which fails once the keys are wiped, and
// drops what is cached.
func flushDevice(device *os.File) { unix.IoctlSetInt(int(device.Fd()), unix.BLKFLSBUF, 0) }

// attachedLoop is a loop device in use, on this machine, by anyone.
type attachedLoop struct {
	path    string // e.g. /dev/loop0
	tag     string // the name given to it, at most 63 bytes
	backing string // the file behind it; what the kernel tells may be cut or stale
}

// attachedLoops lists the loop devices in use.
func attachedLoops() ([]attachedLoop, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var loops []attachedLoop
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil {
			continue // detached meanwhile
		}
		path := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file)))
		loops = append(loops, attachedLoop{path, readTag(path), strings.TrimSuffix(string(backing), "\n")})
	}
	return loops, nil
}

// readTag returns the tag of the loop device at path, "" if it is free.
func readTag(path string) string {
	device, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer device.Close()
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.File_name[:])
}

// releaseLoops detaches the loop devices whose tag matches, as far as that is
// possible while others have them open.
func releaseLoops(match func(tag string) bool) error {
	loops, err := attachedLoops()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range loops {
		if match(l.tag) {
			errs = append(errs, releaseLoop(l.path))
		}
	}
	return errors.Join(errs...)
}

func releaseLoop(path string) error {
	device, err := os.Open(path)
	if err != nil {
		return err
	}
	defer device.Close()
	flushDevice(device)
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("cannot detach %s: %w", path, err)
	}
	return nil
}
