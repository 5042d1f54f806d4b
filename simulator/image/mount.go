package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// How long ntfs-3g may take.
const (
	mountTimeout   = 20 * time.Second
	unmountTimeout = 30 * time.Second
	mountPoll      = 5 * time.Millisecond
)

// withMount mounts the file system in image, runs use on its root, and unmounts
// it, whatever happened. When it returns without an error, everything has been
// written to the image.
func withMount(ctx context.Context, image string, use func(root string) error) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(image), "databox-image-mount-*")
	if err != nil {
		return err
	}
	// Not RemoveAll: should it still be mounted, the content must stay.
	defer os.Remove(dir)
	m, err := startMount(image, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.unmount()) }()
	if err := m.wait(ctx); err != nil {
		return err
	}
	return use(dir)
}

// mount is a running ntfs-3g.
type mount struct {
	dir      string
	cmd      *exec.Cmd
	exited   chan struct{} // closed when ntfs-3g has ended, and with it the mount
	problems bytes.Buffer  // to be read after exited
}

// startMount starts ntfs-3g in the foreground, so that its end says that all is
// written. It unmounts on SIGTERM, which it also gets when this process dies.
func startMount(image, dir string) (*mount, error) {
	path, err := tool("ntfs-3g")
	if err != nil {
		return nil, err
	}
	m := &mount{dir: dir, exited: make(chan struct{})}
	m.cmd = exec.Command(path, "-o", "no_detach", image, dir)
	m.cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	m.cmd.Stderr = &m.problems
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start ntfs-3g: %w", err)
	}
	go func() {
		defer close(m.exited)
		_ = m.cmd.Wait() // the caller of unmount reads the exit code
	}()
	return m, nil
}

// wait returns when the file system answers at dir.
func (m *mount) wait(ctx context.Context) error {
	before, err := deviceOf(filepath.Dir(m.dir))
	if err != nil {
		return err
	}
	tick := time.NewTicker(mountPoll)
	defer tick.Stop()
	timeout := time.NewTimer(mountTimeout)
	defer timeout.Stop()
	for {
		if now, err := deviceOf(m.dir); err == nil && now != before {
			return nil
		}
		select {
		case <-tick.C:
		case <-m.exited:
			return fmt.Errorf("cannot mount: ntfs-3g ended: %s", lastLine(m.problems.Bytes()))
		case <-timeout.C:
			return fmt.Errorf("cannot mount: ntfs-3g did not within %v", mountTimeout)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unmount ends ntfs-3g, which first unmounts and writes what it holds.
func (m *mount) unmount() error {
	_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-m.exited:
	case <-time.After(unmountTimeout):
		_ = m.cmd.Process.Kill()
		<-m.exited
		_ = syscall.Unmount(m.dir, syscall.MNT_DETACH)
		return fmt.Errorf("cannot unmount %s: ntfs-3g did not end within %v", m.dir, unmountTimeout)
	}
	if m.cmd.ProcessState.ExitCode() != 0 {
		_ = syscall.Unmount(m.dir, syscall.MNT_DETACH) // a killed ntfs-3g leaves a dead mount
		return fmt.Errorf("ntfs-3g failed: %s", lastLine(m.problems.Bytes()))
	}
	return nil
}

func deviceOf(path string) (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Dev, nil
}

func lastLine(b []byte) []byte {
	b = bytes.TrimSpace(b)
	return b[bytes.LastIndexByte(b, '\n')+1:]
}
