package disk

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/protocol"
)

// modeVariable makes this test binary play another part, see [TestMain].
const modeVariable = "DISK_TEST_MODE"

func TestMain(m *testing.M) {
	switch os.Getenv(modeVariable) {
	case "keeper":
		if err := RunKeeper(os.Stdin); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	case "agent":
		playAgent()
	}
	goleak.VerifyTestMain(m)
}

// mountTest is an image and where it is mounted.
type mountTest struct {
	spec   Spec
	key    bitlocker.ExternalKey
	opened *Opened
	dir    string
}

func newSpec(t testing.TB) (Spec, bitlocker.ExternalKey) {
	t.Helper()
	disktest.NeedMounts(t)
	image, key := disktest.Image(t)
	return Spec{Disk: Disk{ID: "disk1", Image: image}, RunDir: disktest.RunDir(t)}, key
}

func mounted(t testing.TB) *mountTest {
	t.Helper()
	m := &mountTest{}
	m.spec, m.key = newSpec(t)
	m.mount(t)
	return m
}

func (m *mountTest) mount(t testing.TB) {
	t.Helper()
	m.opened = m.open(t)
	var err error
	if m.dir, err = m.opened.Mount(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// open opens the disk. A Close that ran out of time, on a busy machine, may hold
// the image for a moment longer.
func (m *mountTest) open(t testing.TB) *Opened {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(pollTime) {
		opened, err := Open(t.Context(), m.spec, m.key)
		if err == nil {
			t.Cleanup(func() { opened.Close(context.Background()) })
			return opened
		}
		if protocol.CodeOf(err) != protocol.CodeBusy || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// close closes the disk, which has to be in time whatever the error, and checks
// that nothing is left.
func (m *mountTest) close(t *testing.T) error {
	t.Helper()
	began := time.Now()
	err := m.opened.Close(t.Context())
	took := time.Since(began)
	t.Logf("closed in %v", took)
	if took > closeTime+100*time.Millisecond {
		t.Errorf("Close took %v", took)
	}
	disktest.NothingLeft(t, m.spec.RunDir, max(0, closeTime-took))
	if !m.opened.volume.Wiped() {
		t.Error("the keys are still there")
	}
	return err
}

func (m *mountTest) mustClose(t *testing.T) {
	t.Helper()
	if err := m.close(t); err != nil {
		t.Error(err)
	}
}

func (m *mountTest) path(name string) string { return filepath.Join(m.dir, name) }

func writeSynced(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := writeFile(path, data); err != nil {
		t.Fatal(err)
	}
}

func writeFile(path string, data []byte) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Write(data); err != nil {
		return err
	}
	return file.Sync()
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestWriteAndReadBack(t *testing.T) {
	m := mounted(t)
	files := map[string][]byte{
		"small":                []byte("hello"),
		"Ünïcode – 文件.txt":     []byte("name"),
		"big":                  random(20<<20 + 4097),
		"folder/in/folder/a b": random(5000),
	}
	for name, data := range files {
		if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(m.path(name), data, 0o600); err != nil { // not synced: Close does
			t.Fatal(err)
		}
	}
	m.mustClose(t)
	if _, err := os.Stat(m.path("small")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}

	m.mount(t)
	for name, want := range files {
		got, err := os.ReadFile(m.path(name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, %d bytes, want %d", name, err, len(got), len(want))
		}
	}
	m.mustClose(t)
	if t.Failed() {
		return
	}
	checkNTFS(t, m)
}

// checkNTFS lets ntfsfix judge the file system inside the image, and ntfsresize
// count its clusters.
func checkNTFS(t *testing.T, m *mountTest) {
	t.Helper()
	opened := m.open(t)
	defer opened.Close(t.Context())
	plain := make([]byte, disktest.NTFSSize)
	if _, err := opened.volume.ReadAt(plain, 0); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "plain.img")
	if err := os.WriteFile(path, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, judge := range [][]string{{"ntfsfix", "-n", path}, {"ntfsresize", "-i", "-f", path}} {
		if out, err := exec.Command(judge[0], judge[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", judge, err, out)
		}
	}
}

func TestNamesOfTheField(t *testing.T) {
	m := mounted(t)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mounts), "databox-disk1 "+m.spec.RunDir+"/") {
		t.Errorf("no databox-disk1 in\n%s", mounts)
	}
	info, err := os.Stat(m.spec.RunDir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("run directory: %v %v", info.Mode(), err)
	}
	m.mustClose(t)
}

func TestWrongKey(t *testing.T) {
	spec, key := newSpec(t)
	wrong, err := bitlocker.GenerateExternalKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), spec, wrong); protocol.CodeOf(err) != protocol.CodeDiskKey {
		t.Errorf("wrong key: %v", err)
	}
	opened, err := Open(t.Context(), spec, key) // the control
	if err != nil {
		t.Fatal(err)
	}
	if err := opened.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOneOpenAtATime(t *testing.T) {
	spec, key := newSpec(t)
	first, err := Open(t.Context(), spec, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), spec, key); protocol.CodeOf(err) != protocol.CodeBusy {
		t.Errorf("second open: %v", err)
	}
	first.Close(t.Context())
	second, err := Open(t.Context(), spec, key)
	if err != nil {
		t.Fatal(err)
	}
	second.Close(t.Context())
}

func TestRefusals(t *testing.T) {
	spec, key := newSpec(t)
	bad := spec
	bad.ID = "../x"
	if _, err := Open(t.Context(), bad, key); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("bad name: %v", err)
	}
	bad = spec
	bad.Image = filepath.Join(t.TempDir(), "missing")
	if _, err := Open(t.Context(), bad, key); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing image: %v", err)
	}
	if err := os.WriteFile(bad.Image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), bad, key); !errors.Is(err, bitlocker.ErrNotBitLocker) {
		t.Errorf("no volume: %v", err)
	}
}

func TestInspect(t *testing.T) {
	spec, _ := newSpec(t)
	info, err := spec.Inspect()
	if err != nil {
		t.Fatal(err)
	}
	if info.Description != "DISKTEST" || info.Method.String() == "" {
		t.Errorf("info: %+v", info)
	}
}

func TestBare(t *testing.T) {
	spec, key := newSpec(t)
	spec.Bare = true
	opened, err := Open(t.Context(), spec, key)
	if err != nil {
		t.Fatal(err)
	}
	if dir, err := opened.Mount(t.Context()); dir != "" || err != nil {
		t.Errorf("Mount: %q, %v", dir, err)
	}
	if left := disktest.Left(t, spec.RunDir); left != nil {
		t.Errorf("a bare disk left %v", left)
	}
	if err := opened.Close(t.Context()); err != nil {
		t.Error(err)
	}
	<-opened.Done()
	if _, err := opened.volume.ReadAt(make([]byte, 512), 0); !errors.Is(err, bitlocker.ErrWiped) {
		t.Errorf("read after Close: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	m := mounted(t)
	writeSynced(t, m.path("file"), []byte("content"))
	m.mustClose(t)
	before := imageSum(t, m.spec.Image)
	m.spec.ReadOnly = true
	m.mount(t)
	if got, err := os.ReadFile(m.path("file")); err != nil || string(got) != "content" {
		t.Errorf("read: %q, %v", got, err)
	}
	if err := os.WriteFile(m.path("new"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write: %v", err)
	}
	m.mustClose(t)
	if imageSum(t, m.spec.Image) != before {
		t.Error("the image has changed")
	}
}

func imageSum(t *testing.T, path string) [32]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(data)
}

// TestLoopIsRootsAlone checks that no group can read a volume by its loop device,
// as that of the group disk under udev, and that udev stays away meanwhile.
func TestLoopIsRootsAlone(t *testing.T) {
	disktest.NeedMounts(t)
	backing := filepath.Join(t.TempDir(), "backing")
	if err := os.WriteFile(backing, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	shared := owner{0o660, 0, 6} // what udev does
	l := attachShared(t, backing, shared)
	if got := nodeOwner(t, l.path); got != (owner{0o600, 0, 0}) {
		t.Errorf("while it is ours: %+v", got)
	}
	udev, err := os.Open(l.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(udev.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != syscall.EWOULDBLOCK {
		t.Errorf("udev may give the device away: %v", err)
	}
	udev.Close()
	if err := l.detach(time.Second); err != nil {
		t.Error(err)
	}
	if got := nodeOwner(t, l.path); got != shared {
		t.Errorf("given back: %+v", got)
	}
}

// attachShared attaches a loop device whose node was shared before. Others may
// take the one that was made ready: then it tries again.
func attachShared(t *testing.T, backing string, shared owner) *loop {
	t.Helper()
	tag := loopTag(t.TempDir(), "disk1")
	for range 20 {
		first, err := attachLoop(backing, tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(first.detach(time.Second), shared.restore(first.path)); err != nil {
			t.Fatal(err)
		}
		l, err := attachLoop(backing, tag)
		if err != nil {
			t.Fatal(err)
		}
		if l.path == first.path {
			t.Cleanup(func() { first.before.restore(first.path) })
			return l
		}
		if err := errors.Join(l.detach(time.Second), first.before.restore(first.path)); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("others take every free loop device")
	return nil
}

func nodeOwner(t *testing.T, path string) owner {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return owner{stat.Mode & 0o7777, int(stat.Uid), int(stat.Gid)}
}

func TestEvidence(t *testing.T) {
	m := mounted(t)
	got, err := m.spec.Evidence(m.spec.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Exports) != 1 || len(got.Loops) != 1 || cmp.Diff(got.Mounts, []string{m.dir}) != "" || got.None() {
		t.Errorf("while mounted: %+v", got)
	}
	other, err := Disk{ID: "disk2", Image: m.spec.Image}.Evidence(m.spec.RunDir)
	if err != nil || !other.None() {
		t.Errorf("of another disk: %+v, %v", other, err)
	}
	m.mustClose(t)
	if got, err = m.spec.Evidence(m.spec.RunDir); err != nil || !got.None() {
		t.Errorf("after Close: %+v, %v", got, err)
	}
}

func TestEvidenceOfStrangers(t *testing.T) {
	spec, _ := newSpec(t)
	out, err := exec.Command("losetup", "-f", "--show", spec.Image).Output()
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", device).Run()
	got, err := spec.Evidence(spec.RunDir)
	if want := (Evidence{Loops: []string{device}}); err != nil || cmp.Diff(got, want) != "" {
		t.Errorf("a stranger's loop device: %+v, %v, want %+v", got, err, want)
	}
}
