package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

func TestCreate(t *testing.T) {
	needs(t)
	dir := t.TempDir()
	s := Spec{Path: filepath.Join(dir, "disk.img"), SizeBytes: MinSize, Label: "DISK1", Source: content()}
	var stages []Stage
	last := map[Stage]int64{}
	s.Progress = func(stage Stage, done, total int64) {
		if !slices.Contains(stages, stage) {
			stages = append(stages, stage)
		}
		if done < last[stage] || done > total {
			t.Errorf("%s: %d of %d bytes, after %d", stage, done, total, last[stage])
		}
		last[stage] = done
	}
	keys, err := Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Wipe()
	if want := []Stage{StageFileSystem, StageCopy, StageEncrypt}; !slices.Equal(stages, want) || last[StageEncrypt] != MinSize {
		t.Errorf("stages %q, want %q; %d bytes encrypted, want %d", stages, want, last[StageEncrypt], MinSize)
	}
	onlyFile(t, dir, "disk.img")
	info, err := Inspect(s.Path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Method != bitlocker.AES128XTS || info.SectorSize != 512 || info.Size != MinSize || info.EncryptedSize != MinSize ||
		!strings.HasPrefix(info.Description, "DATABOX DISK1 ") || len(info.Protectors) != 2 || info.Protectors[0].ID != keys.BEK.ID {
		t.Errorf("volume %+v", info)
	}
	if !keys.BEK.Key.Equal(keys.ExternalKey) {
		t.Error("the .BEK file holds another key")
	}
	if _, err := Create(t.Context(), s); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("a second image of the same name: %v", err)
	}
}

// onlyFile checks that a folder has exactly one entry, or none if name is empty.
func onlyFile(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != name {
		t.Errorf("the folder holds %q, want %q", names, name)
	}
}

// noMounts checks that nothing is mounted below dir.
func noMounts(t *testing.T, dir string) {
	t.Helper()
	if mounted(t, dir) {
		t.Errorf("something is still mounted below %s", dir)
	}
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(mounts), dir)
}

// TestCancel cancels at every stage, and while content is copied: nothing is
// left, neither file nor mount.
func TestCancel(t *testing.T) {
	needs(t)
	for _, stage := range []Stage{StageFileSystem, StageCopy, StageEncrypt} {
		ctx, cancel := context.WithCancel(t.Context())
		dir := t.TempDir()
		s := Spec{Path: filepath.Join(dir, "disk.img"), SizeBytes: MinSize, Source: content()}
		s.Progress = func(at Stage, done, total int64) {
			if at == stage {
				cancel()
			}
		}
		if _, err := Create(ctx, s); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled while %s: %v", stage, err)
		}
		onlyFile(t, dir, "")
		noMounts(t, dir)
		cancel()
	}
}

// TestFailures has the content fail, and not fit.
func TestFailures(t *testing.T) {
	needs(t)
	for name, v := range map[string]struct {
		source fs.FS
		says   string
	}{
		"too much":   {fstest.MapFS{"big": {Data: make([]byte, MinSize)}}, "no space"},
		"a symlink":  {fstest.MapFS{"link": {Mode: fs.ModeSymlink}}, "neither a folder nor a regular file"},
		"unreadable": {brokenFS{content()}, "broken"},
	} {
		dir := t.TempDir()
		_, err := Create(t.Context(), Spec{Path: filepath.Join(dir, "disk.img"), SizeBytes: MinSize, Source: v.source})
		if err == nil || !strings.Contains(err.Error(), v.says) {
			t.Errorf("%s: %v, want an error with %q", name, err, v.says)
		}
		onlyFile(t, dir, "")
		noMounts(t, dir)
	}
}

// brokenFS cannot open what it lists.
type brokenFS struct{ fstest.MapFS }

func (b brokenFS) Open(name string) (fs.File, error) {
	if strings.HasSuffix(name, ".bin") {
		return nil, errors.New("broken")
	}
	return b.MapFS.Open(name)
}

// blockingFS never opens what it lists.
type blockingFS struct{ fstest.MapFS }

func (b blockingFS) Open(name string) (fs.File, error) {
	if strings.HasSuffix(name, ".bin") {
		fmt.Println("mounted")
		select {}
	}
	return b.MapFS.Open(name)
}

// TestKilled kills a process that has an image mounted: the mount goes, too.
func TestKilled(t *testing.T) {
	needs(t)
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+filepath.Join(dir, "disk.img"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Error("the child did not mount the image: ", err)
	}
	if !mounted(t, dir) {
		t.Error("nothing is mounted")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	for deadline := time.Now().Add(10 * time.Second); mounted(t, dir); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the mount is still there 10 s after its process was killed")
		}
	}
}

func TestMissingTools(t *testing.T) {
	needs(t)
	t.Setenv("PATH", t.TempDir())
	if _, err := tool("no-such-tool"); err == nil || !strings.Contains(err.Error(), "install the Debian package ntfs-3g") {
		t.Errorf("%v, want an error that says what to install", err)
	}
}

func TestBadSpec(t *testing.T) {
	dir := t.TempDir()
	for name, s := range map[string]Spec{
		"no path":    {SizeBytes: MinSize},
		"too small":  {Path: filepath.Join(dir, "a"), SizeBytes: MinBareSize - sizeUnit},
		"unaligned":  {Path: filepath.Join(dir, "a"), SizeBytes: MinSize + 512},
		"negative":   {Path: filepath.Join(dir, "a"), SizeBytes: -sizeUnit},
		"long label": {Path: filepath.Join(dir, "a"), SizeBytes: MinSize, Label: strings.Repeat("x", 33)},
		"no folder":  {Path: filepath.Join(dir, "missing", "a"), SizeBytes: MinSize},
		"method":     {Path: filepath.Join(dir, "a"), SizeBytes: MinSize, Method: 0x8006, NoRecoveryPassword: true},
		"there":      {Path: dir, SizeBytes: MinSize},
	} {
		if _, err := CreateBare(t.Context(), s); err == nil {
			t.Errorf("%s: accepted", name)
		}
		onlyFile(t, dir, "")
	}
}

func TestParseRun(t *testing.T) {
	const list = "\tRunlist:\tVCN\t\tLCN\t\tLength\n"
	good := "some lines\n\t0x1\t0x2\t0x3\n" + list + "\t\t\t0x0\t\t0x1200\t\t0x10\nEnd of inode reached\n"
	if at, err := parseRun([]byte(good), "f", MetadataSize, sizeUnit); err != nil || at != 0x1200*sizeUnit {
		t.Errorf("%#x, %v", at, err)
	}
	for name, out := range map[string]string{
		"empty":     "",
		"no runs":   list,
		"two runs":  list + "\t\t\t0x0\t\t0x1200\t\t0x8\n\t\t\t0x8\t\t0x1300\t\t0x8\n",
		"too short": list + "\t\t\t0x0\t\t0x1200\t\t0xf\n",
		"too large": list + "\t\t\t0x0\t\t0xffffffffffffff\t\t0x10\n",
	} {
		if _, err := parseRun([]byte(out), "f", MetadataSize, sizeUnit); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCreateBare(t *testing.T) {
	dir := t.TempDir()
	s := Spec{Path: filepath.Join(dir, "disk.img"), SizeBytes: 4 << 20, Label: "DISK1"}
	keys, err := CreateBare(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	onlyFile(t, dir, "disk.img")
	v := volume{path: s.Path}
	for _, c := range []bitlocker.Credential{keys.ExternalKey, keys.RecoveryPassword} {
		p := v.open(t, c)
		want := bytes.Repeat([]byte("content"), 1000)
		if _, err := p.WriteAt(want, 1<<20+1); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := p.ReadAt(got, 1<<20+1); err != nil || !bytes.Equal(got, want) {
			t.Errorf("what was written is not read again: %v", err)
		}
	}
	keys.Wipe()
	if !bytes.Equal(keys.BEK.Key.Bytes(), make([]byte, 32)) {
		t.Error("Wipe leaves the key in the .BEK file")
	}
}

// TestBareFleet makes many bare volumes as a fleet wants them: quickly, and small
// on disk.
func TestBareFleet(t *testing.T) {
	dir := t.TempDir()
	const count = 100
	start := cpuTime(t)
	for n := range count {
		path := filepath.Join(dir, fmt.Sprintf("%d.img", n))
		if _, err := CreateBare(t.Context(), Spec{Path: path, SizeBytes: 4 << 20, NoRecoveryPassword: true}); err != nil {
			t.Fatal(err)
		}
		if used := blocks(t, path); used > 300<<10 {
			t.Fatalf("a bare volume takes %d bytes on disk", used)
		}
	}
	if each := (cpuTime(t) - start) / count; each > 100*time.Millisecond {
		t.Errorf("a bare volume takes %v of a core to make", each)
	}
}

// cpuTime is what this process has used so far, whatever else the machine does.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func TestInspect(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "zeros")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(path); !errors.Is(err, bitlocker.ErrNotBitLocker) {
		t.Errorf("a file of zeros: %v", err)
	}
	if _, err := Inspect(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
