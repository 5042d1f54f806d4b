// Package disktest makes real disks for tests, and looks at the machine from
// outside for what they left behind.
package disktest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

// NeedMounts skips the test where disks cannot be mounted; under CI=true it fails
// instead.
func NeedMounts(t testing.TB) {
	t.Helper()
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(path); err != nil {
			missing(t, path)
		}
	}
	NeedPrograms(t, "mkntfs", "ntfs-3g")
}

// NeedPrograms skips the test if it does not run as root or one of the programs is
// missing; under CI=true it fails instead.
func NeedPrograms(t testing.TB, names ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing(t, name)
		}
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("the test needs %s", what)
	}
	t.Skipf("the test needs %s", what)
}

// NTFSSize is how long the file system at the beginning of an image is, in bytes.
// Behind it is what BitLocker keeps for itself.
const NTFSSize = 92 << 20

const imageSize = 96 << 20

// Image makes a BitLocker volume with NTFS inside, and returns its path and the
// key that opens it.
func Image(t testing.TB) (path string, key bitlocker.ExternalKey) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk.img")
	image, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	check(t, err)
	defer image.Close()
	check(t, image.Truncate(imageSize))
	mkntfs := exec.Command("mkntfs", "-q", "-Q", "-F", "-s", "512", path, fmt.Sprint(NTFSSize/512))
	if out, err := mkntfs.CombinedOutput(); err != nil {
		t.Fatalf("mkntfs: %v: %s", err, out)
	}
	key, err = bitlocker.GenerateExternalKey(rand.Reader)
	check(t, err)
	check(t, bitlocker.Format(image, imageSize, bitlocker.FormatOptions{
		Metadata:    [3]int64{NTFSSize + 1<<20, NTFSSize + 2<<20, NTFSSize + 3<<20},
		HeaderCopy:  NTFSSize + 64<<10,
		ID:          newGUID(t),
		Description: "DISKTEST",
		Protectors:  []bitlocker.ProtectorKey{{ID: newGUID(t), Key: key}},
		Rand:        rand.Reader,
		Now:         time.Now(),
	}))
	return path, key
}

func newGUID(t testing.TB) bitlocker.GUID {
	t.Helper()
	id, err := bitlocker.NewGUID(rand.Reader)
	check(t, err)
	return id
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Left lists what the machine has of runDir: mounts, loop devices and processes
// other than this one. Nothing of it comes from the packages under test.
func Left(t testing.TB, runDir string) []string {
	t.Helper()
	var left []string
	mounts, err := os.ReadFile("/proc/self/mounts")
	check(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, runDir+"/") {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, loop := range loops {
		// The kernel tells of the place of a file that is unmounted no more, so the
		// device's name counts too.
		file, err := os.ReadFile(loop)
		name := loopName("/dev/" + strings.Split(loop, "/")[3])
		if err == nil && (strings.HasPrefix(string(file), runDir+"/") || strings.Contains(name, fmt.Sprintf("-%.6x-", sha256.Sum256([]byte(runDir))))) {
			left = append(left, loop+" "+name+" "+strings.TrimSpace(string(file)))
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, process := range processes {
		args, err := os.ReadFile(process)
		if err == nil && bytes.Contains(args, []byte(runDir+"/")) && process != fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) {
			left = append(left, process+" "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return left
}

// loopName returns the name that was given to a loop device.
func loopName(path string) string {
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

// NothingLeft fails the test if anything of runDir is left within limit.
func NothingLeft(t testing.TB, runDir string, limit time.Duration) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		left := Left(t, runDir)
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("left after %v:\n%s", limit, strings.Join(left, "\n"))
			return
		}
	}
}

// RunDir returns a new run directory, with a path short enough for sockets in it.
func RunDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "databox-")
	check(t, err)
	t.Cleanup(func() {
		if left := Left(t, dir); len(left) > 0 {
			t.Errorf("left at the end:\n%s", strings.Join(left, "\n"))
			return
		}
		os.RemoveAll(dir)
	})
	return dir
}
