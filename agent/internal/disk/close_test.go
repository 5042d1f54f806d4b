package disk

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/protocol"
)

// secret is what must not be readable after a relock.
var secret = slices.Repeat([]byte("customer data. "), 4096)

func TestCloseWithOpenFiles(t *testing.T) {
	m := mounted(t)
	writeSynced(t, m.path("file"), secret)
	file, err := unix.Open(m.path("file"), unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(file)
	buf := make([]byte, 4096)
	if n, err := unix.Pread(file, buf, 0); n != len(buf) || err != nil { // cached, were there a cache
		t.Fatal(n, err)
	}
	m.mustClose(t)
	if n, err := unix.Pread(file, buf, 0); err == nil {
		t.Errorf("read %d bytes after Close", n)
	}
	if n, err := unix.Pwrite(file, buf, 0); err == nil {
		t.Errorf("wrote %d bytes after Close", n)
	}
}

func TestCloseWithMappedFile(t *testing.T) {
	m := mounted(t)
	writeSynced(t, m.path("file"), secret)
	client := exec.Command("python3", "-c", `
import mmap, sys, time
file = open(sys.argv[1], "rb")
data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print(data[:8], flush=True)
time.sleep(60)`, m.path("file"))
	client.Stderr = os.Stderr
	out, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	m.mustClose(t)
	if err := client.Wait(); err == nil || client.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the client lives, and with it the page: %v", err)
	}
}

func TestCloseWithBusyWriters(t *testing.T) {
	m := mounted(t)
	writeSynced(t, m.path("before"), secret)
	// As the agent does, they write below a folder that they have opened: by its
	// path they would find the empty mount point after the relock, and fill that.
	root, err := os.OpenRoot(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var writers sync.WaitGroup
	for i := range 3 {
		writers.Go(func() {
			for n := range 1000 {
				// Of a volume that is full, ntfsresize says nothing but that.
				if root.WriteFile(fmt.Sprintf("w%d-%d", i, n%40), random(300_000), 0o600) != nil {
					return
				}
			}
		})
	}
	writers.Go(func() {
		file, err := root.Create("endless")
		for n := 0; n < 300 && err == nil; n++ {
			_, err = file.WriteAt(random(1<<20), int64(n%32)<<20)
		}
		file.Close()
	})
	time.Sleep(time.Second)
	m.close(t)
	writers.Wait()
	checkNTFS(t, m)
	m.mount(t)
	if got, err := os.ReadFile(m.path("before")); err != nil || !slices.Equal(got, secret) {
		t.Errorf("synced file: %d bytes, %v", len(got), err)
	}
	m.mustClose(t)
}

func TestCloseWithFrozenFileSystem(t *testing.T) {
	m := mounted(t)
	writeSynced(t, m.path("before"), secret)
	freeze(t, m.opened.parts.files.child.PID())
	var client sync.WaitGroup
	client.Go(func() { os.ReadFile(m.path("before")) }) // hangs
	time.Sleep(50 * time.Millisecond)
	if err := m.close(t); err == nil {
		t.Error("Close did not say that it could not sync")
	}
	client.Wait()
	m.mount(t)
	if got, err := os.ReadFile(m.path("before")); err != nil || !slices.Equal(got, secret) {
		t.Errorf("synced file: %d bytes, %v", len(got), err)
	}
	m.mustClose(t)
}

func freeze(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

func TestCloseWithHungClient(t *testing.T) {
	m := mounted(t)
	writeSynced(t, m.path("file"), secret)
	client := exec.Command("sleep", "60")
	client.Dir = m.dir
	file, err := os.Open(m.path("file"))
	if err != nil {
		t.Fatal(err)
	}
	client.Stdin = file
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	file.Close()
	t.Cleanup(func() { client.Process.Kill(); client.Wait() })
	freeze(t, client.Process.Pid)
	m.mustClose(t)
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/fd/0", client.Process.Pid)); err == nil {
		t.Errorf("read %d bytes through the client's descriptor", len(data))
	}
	if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/cwd/", client.Process.Pid)); err == nil {
		t.Errorf("read %v through the client's directory", entries)
	}
}

func TestCloseTwiceAndAtOnce(t *testing.T) {
	m := mounted(t)
	var closers sync.WaitGroup
	for range 4 {
		closers.Go(func() {
			if err := m.opened.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	closers.Wait()
	disktest.NothingLeft(t, m.spec.RunDir, 0)
	if _, err := m.opened.Mount(t.Context()); protocol.CodeOf(err) != protocol.CodeLocked {
		t.Errorf("Mount after Close: %v", err)
	}
}

func TestCloseAtAnyMomentOfMount(t *testing.T) {
	spec, key := newSpec(t)
	for delay := time.Duration(0); delay < 120*time.Millisecond; delay += 9 * time.Millisecond {
		opened, err := Open(t.Context(), spec, key)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := opened.Mount(t.Context())
			ended <- err
		}()
		time.Sleep(delay)
		began := time.Now()
		opened.Close(t.Context())
		if took := time.Since(began); took > closeTime {
			t.Errorf("closed after %v: took %v", delay, took)
		}
		err = <-ended
		disktest.NothingLeft(t, spec.RunDir, 0)
		t.Logf("closed after %v: Mount: %v", delay, err)
	}
}

func TestCloseDeadline(t *testing.T) {
	m := mounted(t)
	freeze(t, m.opened.parts.files.child.PID())
	ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
	defer cancel()
	began := time.Now()
	wiped := make(chan time.Duration, 1)
	go func() {
		for !m.opened.volume.Wiped() {
			time.Sleep(time.Millisecond)
		}
		wiped <- time.Since(began)
	}()
	m.opened.Close(ctx)
	if took, wiped := time.Since(began), <-wiped; took > 1800*time.Millisecond || wiped > 1100*time.Millisecond {
		t.Errorf("wiped after %v, closed after %v", wiped, took)
	}
	disktest.NothingLeft(t, m.spec.RunDir, 0)
}

func TestWipeEndsAccessAtOnce(t *testing.T) {
	m := mounted(t)
	writeSynced(t, m.path("file"), random(40<<20))
	m.mustClose(t)
	m.mount(t) // so that nothing is cached
	m.opened.Wipe()
	if _, err := os.ReadFile(m.path("file")); err == nil {
		t.Error("read a file after Wipe")
	}
	m.close(t)
}

func TestDoneWhenTheFileSystemDies(t *testing.T) {
	m := mounted(t)
	select {
	case <-m.opened.Done():
		t.Fatal("done at once")
	case <-time.After(20 * time.Millisecond):
	}
	m.opened.parts.files.child.Kill()
	select {
	case <-m.opened.Done():
	case <-time.After(time.Second):
		t.Error("not done")
	}
	m.close(t)
}

func TestMountFailures(t *testing.T) {
	spec, key := newSpec(t)
	t.Setenv("PATH", t.TempDir()) // no ntfs-3g
	opened, err := Open(t.Context(), spec, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opened.Mount(t.Context()); err == nil {
		t.Error("mounted without ntfs-3g")
	} else {
		t.Log(err)
	}
	if err := opened.Close(t.Context()); err != nil {
		t.Error(err)
	}
	disktest.NothingLeft(t, spec.RunDir, 0)
}

func TestManyDisksAtOnce(t *testing.T) {
	disktest.NeedMounts(t)
	runDir := disktest.RunDir(t)
	var disks sync.WaitGroup
	for i := range 4 {
		image, key := disktest.Image(t)
		disks.Go(func() {
			spec := Spec{Disk: Disk{ID: protocol.DiskID(fmt.Sprintf("disk%d", i)), Image: image}, RunDir: runDir}
			for range 3 {
				opened, err := Open(t.Context(), spec, key)
				if err != nil {
					t.Error(err)
					return
				}
				dir, err := opened.Mount(t.Context())
				if err == nil {
					err = writeFile(filepath.Join(dir, "file"), secret)
				}
				if err != nil {
					t.Error(err)
				}
				if err := opened.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	disks.Wait()
	disktest.NothingLeft(t, runDir, 0)
}

// TestLoopSettings checks that what is dirty is bounded, how far the kernel reads
// ahead, and that the next user of the device finds the settings as they were.
func TestLoopSettings(t *testing.T) {
	m := mounted(t)
	l := m.opened.parts.loop
	strict, ahead := l.setting("strict_limit"), l.setting("read_ahead_kb")
	if _, err := os.Stat(strict); err != nil && os.Getenv("CI") != "true" {
		t.Skip("the kernel has no strict_limit")
	}
	files := "/sys/class/bdi/" + m.opened.parts.files.device + "/read_ahead_kb"
	for path, want := range map[string]string{strict: "1", ahead: loopReadAhead, files: filesReadAhead} {
		if got := readSetting(t, path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	m.mustClose(t)
	for path, want := range map[string]string{strict: "0", ahead: l.ahead} {
		if got := readSetting(t, path); got != want && readTag(l.path) == "" { // else somebody else has taken the device
			t.Errorf("after Close %s is %s, want %s", path, got, want)
		}
	}
}

func readSetting(t *testing.T, path string) string {
	t.Helper()
	return strings.TrimSpace(string(read(t, path)))
}
