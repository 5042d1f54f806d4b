package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Evidence is what of a disk is open on this machine, by whomever.
type Evidence struct {
	Exports []string // mount points of the decrypted volume as a file
	Loops   []string // loop devices over the decrypted volume, or over the image
	Mounts  []string // mount points of the file system inside
}

// None reports whether nothing is open.
func (e Evidence) None() bool { return len(e.Exports)+len(e.Loops)+len(e.Mounts) == 0 }

// Evidence looks at the machine for what is open of d, which the agent of runDir
// may have mounted. It believes the kernel, not the agent's own books.
func (d Disk) Evidence(runDir string) (Evidence, error) {
	runDir, err := realPath(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // never used: only the image can be open
	}
	if err != nil {
		return Evidence{}, err
	}
	image, err := realPath(d.Image)
	if err != nil {
		return Evidence{}, err
	}
	mounts, err := mountPoints()
	if err != nil {
		return Evidence{}, err
	}
	loops, err := attachedLoops()
	if err != nil {
		return Evidence{}, err
	}
	var e Evidence
	p := placesOf(runDir, d.ID)
	for _, m := range mounts {
		switch m.dir {
		case p.export:
			e.Exports = append(e.Exports, m.dir)
		case p.files:
			e.Mounts = append(e.Mounts, m.dir)
		}
	}
	for _, l := range loops {
		if l.tag == p.tag || l.backing == image || below(l.backing, p.export) {
			e.Loops = append(e.Loops, l.path)
		}
	}
	return e, nil
}

// Cleanup undoes what an earlier agent left of runDir, and of no other: its
// processes, mounts, loop devices and folders. The caller makes sure that no agent
// of runDir is running.
func Cleanup(ctx context.Context, runDir string) error {
	runDir, err := realPath(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	end := time.Now().Add(closeTime)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	disks := disksDir(runDir)
	ours := func(tag string) bool { return strings.HasPrefix(tag, runTag(runDir)) }
	return within(end, "undo in time what an earlier agent left below "+runDir, func() error {
		return errors.Join(
			KillUsers(disks, "ntfs-3g"),
			unmountBelow(disks),
			releaseLoops(ours),
			waitDetached(ours, end),
			removePlaces(runDir),
		)
	})
}

// unmountBelow unmounts what is mounted below dir, the latest first.
func unmountBelow(dir string) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if below(m.dir, dir) {
			errs = append(errs, unmount(m.dir), evict(m.device))
		}
	}
	return errors.Join(errs...)
}

// waitDetached waits until no loop device has a tag that matches.
func waitDetached(match func(tag string) bool, end time.Time) error {
	for ; ; time.Sleep(pollTime) {
		loops, err := attachedLoops()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(loops, func(l attachedLoop) bool { return match(l.tag) })
		if i < 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is still attached: another process has it open", loops[i].path)
		}
	}
}

func removePlaces(runDir string) error {
	entries, err := os.ReadDir(disksDir(runDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, entry := range entries {
		errs = append(errs, placesOf(runDir, protocol.DiskID(entry.Name())).remove())
	}
	return errors.Join(errs...)
}

// removeTree removes dir and what is in it, unless something is mounted there.
func removeTree(dir string) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.dir == dir || below(m.dir, dir) {
			return fmt.Errorf("cannot remove %s: something is mounted at %s", dir, m.dir)
		}
	}
	return os.RemoveAll(dir)
}

// KillUsers kills the processes of the program of that name which have an argument
// that names something below dir, as in "/dir/x" or "--file=/dir/x".
func KillUsers(dir, program string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil && uses(pid, dir, program) {
			errs = append(errs, killProcess(pid, startTime(pid)))
		}
	}
	return errors.Join(errs...)
}

func uses(pid int, dir, program string) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(bytes.TrimRight(cmdline, "\x00")), "\x00")
	return filepath.Base(args[0]) == program &&
		slices.ContainsFunc(args[1:], func(arg string) bool {
			_, value, _ := strings.Cut(arg, "=")
			return below(arg, dir) || below(value, dir)
		})
}

// killProcess kills the process of that id, if it is the one that started then.
func killProcess(pid int, start uint64) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone
	}
	defer unix.Close(process)
	if startTime(pid) != start {
		return nil
	}
	return unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0)
}
