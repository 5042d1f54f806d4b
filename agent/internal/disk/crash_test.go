package disk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
)

// agentProcess is this test binary, playing an agent that holds a disk.
type agentProcess struct {
	cmd    *exec.Cmd
	stdout *bufio.Scanner
	dir    string // the mounted folder, or the decrypted volume
}

// startAgent starts an agent with the words of mode: "keeper" for one that has a
// keeper, "write" for one that writes files and prints the name of each once it is
// synced, "volume" for one that mounts nothing but the decrypted volume, "open" for
// one that then opens that.
func startAgent(t *testing.T, spec Spec, key bitlocker.ExternalKey, mode string) *agentProcess {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), modeVariable+"=agent", "IMAGE="+spec.Image, "RUNDIR="+spec.RunDir, "MODE="+mode)
	cmd.Stdin = strings.NewReader(hex.EncodeToString(key.Bytes()))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := &agentProcess{cmd: cmd, stdout: bufio.NewScanner(stdout)}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if !a.stdout.Scan() {
		t.Fatal("the agent did not mount")
	}
	a.dir = a.stdout.Text()
	return a
}

func playAgent() {
	text, err := io.ReadAll(os.Stdin)
	must(err)
	raw, err := hex.DecodeString(string(text))
	must(err)
	key, err := bitlocker.NewExternalKey(raw)
	must(err)
	spec := Spec{Disk: Disk{ID: "disk1", Image: os.Getenv("IMAGE")}, RunDir: os.Getenv("RUNDIR")}
	mode := os.Getenv("MODE")
	if strings.Contains(mode, "keeper") {
		exe, err := os.Executable()
		must(err)
		spec.Keeper, err = StartKeeper([]string{"/usr/bin/env", modeVariable + "=keeper", exe})
		must(err)
	}
	opened, err := Open(context.Background(), spec, key)
	must(err)
	if strings.Contains(mode, "volume") {
		playVolume(opened, strings.Contains(mode, "open"))
	}
	dir, err := opened.Mount(context.Background())
	must(err)
	must(writeFile(filepath.Join(dir, "secret"), secret))
	os.Stdout.WriteString(dir + "\n")
	if strings.Contains(mode, "write") {
		for worker := range 3 {
			go writeForever(dir, worker)
		}
	}
	select {}
}

// playVolume shows nothing but the decrypted volume, and opens it, too, if it should.
func playVolume(opened *Opened, open bool) {
	places, err := makePlaces(opened.spec)
	must(err)
	export, err := newExport(opened.spec, places.export, opened.view(), opened.sync)
	must(err)
	os.Stdout.WriteString(export.file + "\n")
	if open {
		runtime.GOMAXPROCS(1)
		file, err := os.Open(export.file)
		must(err)
		must(file.Close())
		os.Stdout.WriteString("opened\n")
	}
	select {}
}

// writeForever writes files whose content follows from their name, more than it
// has time for.
func writeForever(dir string, worker int) {
	for n := range 5000 {
		name := fmt.Sprintf("%d-%d", worker, n)
		if n%20 == 0 {
			dir = filepath.Join(dir, "d"+name)
			must(os.Mkdir(dir, 0o700))
		}
		path := filepath.Join(dir, name)
		must(writeFile(path, contentOf(name)))
		os.Stdout.WriteString(path + "\n")
		if n%3 == 2 {
			must(os.Rename(path, path+moved))
		}
	}
}

// moved is what a file's name may end with, because a rename is not synced.
const moved = "-moved"

func contentOf(name string) []byte {
	var seed [32]byte
	copy(seed[:], name)
	random := rand.NewChaCha8(seed)
	b := make([]byte, 1+random.Uint64()%100_000)
	random.Read(b)
	return b
}

func must(err error) {
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

// TestAgentOpensItsVolume opens the decrypted volume in the process that serves it,
// where the Go runtime must not wait for itself.
func TestAgentOpensItsVolume(t *testing.T) {
	spec, key := smallSpec(t)
	a := startAgent(t, spec, key, "volume open")
	hangs := time.AfterFunc(10*time.Second, func() { Cleanup(context.Background(), spec.RunDir) })
	if !a.stdout.Scan() || !hangs.Stop() {
		t.Error("the agent waits for itself")
	}
	a.cmd.Process.Kill()
	a.cmd.Wait()
	if err := Cleanup(t.Context(), spec.RunDir); err != nil {
		t.Error(err)
	}
}

func TestKilledAgentLeavesNothing(t *testing.T) {
	spec, key := newSpec(t)
	a := startAgent(t, spec, key, "keeper")
	held, err := os.Open(filepath.Join(a.dir, "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if n, err := held.ReadAt(make([]byte, 100), 0); n != 100 || err != nil {
		t.Fatal(n, err)
	}
	a.cmd.Process.Kill()
	killed := time.Now()
	a.cmd.Wait()
	disktest.NothingLeft(t, spec.RunDir, closeTime)
	if _, err := os.ReadFile(filepath.Join(a.dir, "secret")); err == nil {
		t.Error("the folder is readable")
	}
	for err == nil {
		if _, err = held.ReadAt(make([]byte, 100), 0); time.Since(killed) > closeTime {
			t.Fatal("an open file is readable")
		}
	}
}

func TestKilledAgentWhoseFileSystemHangs(t *testing.T) {
	spec, key := newSpec(t)
	a := startAgent(t, spec, key, "keeper write")
	pids, err := exec.Command("pgrep", "-f", "ntfs-3g.*"+spec.RunDir).Output()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	fmt.Sscan(string(pids), &pid)
	freeze(t, pid)
	time.Sleep(100 * time.Millisecond) // the agent's threads wait for ntfs-3g now
	a.cmd.Process.Kill()
	disktest.NothingLeft(t, spec.RunDir, closeTime)
}

func TestKilledAgentWithoutKeeper(t *testing.T) {
	spec, key := newSpec(t)
	a := startAgent(t, spec, key, "")
	a.cmd.Process.Kill()
	a.cmd.Wait()
	time.Sleep(200 * time.Millisecond)
	if _, err := os.ReadFile(filepath.Join(a.dir, "secret")); err == nil {
		t.Error("the folder is readable")
	}
	if left := disktest.Left(t, spec.RunDir); len(left) == 0 {
		t.Error("nothing is left: the test of Cleanup tests nothing")
	}
	other := disktest.RunDir(t)
	if err := Cleanup(t.Context(), other); err != nil {
		t.Error(err)
	}
	if left := disktest.Left(t, spec.RunDir); len(left) == 0 {
		t.Error("Cleanup of another run directory undid ours")
	}
	if err := Cleanup(t.Context(), spec.RunDir); err != nil {
		t.Error(err)
	}
	disktest.NothingLeft(t, spec.RunDir, 0)
	if entries, _ := os.ReadDir(filepath.Join(spec.RunDir, "disks")); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
	m := &mountTest{spec: spec, key: key}
	m.mount(t)
	m.mustClose(t)
}

func TestCleanupOfNothing(t *testing.T) {
	if err := Cleanup(t.Context(), filepath.Join(t.TempDir(), "never")); err != nil {
		t.Error(err)
	}
}

// TestSyncedFilesSurviveKill kills an agent that writes, and expects every file
// that was synced before.
func TestSyncedFilesSurviveKill(t *testing.T) {
	spec, key := newSpec(t)
	synced := 0
	for round := range 3 {
		a := startAgent(t, spec, key, "keeper write")
		time.AfterFunc(time.Duration(700+200*round)*time.Millisecond, func() { a.cmd.Process.Kill() })
		var names []string
		for a.stdout.Scan() {
			names = append(names, strings.TrimPrefix(a.stdout.Text(), a.dir+"/"))
		}
		a.cmd.Wait()
		disktest.NothingLeft(t, spec.RunDir, closeTime)

		m := &mountTest{spec: spec, key: key}
		m.mount(t)
		for _, name := range names {
			got, err := os.ReadFile(m.path(name))
			if errors.Is(err, os.ErrNotExist) {
				got, err = os.ReadFile(m.path(name + moved))
			}
			if err != nil || !bytes.Equal(got, contentOf(filepath.Base(name))) {
				t.Errorf("round %d: %s: %d bytes, %v", round, name, len(got), err)
			}
		}
		synced += len(names)
		entries, err := os.ReadDir(m.dir)
		if err != nil {
			t.Error(err)
		}
		for _, entry := range entries {
			if err := os.RemoveAll(m.path(entry.Name())); err != nil {
				t.Errorf("round %d: the file system is inconsistent: %v", round, err)
			}
		}
		m.mustClose(t)
	}
	if synced < 10 {
		t.Errorf("only %d files were synced", synced)
	}
	t.Logf("%d synced files", synced)
}

func TestKeeperForgets(t *testing.T) {
	disktest.NeedPrograms(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	keeper, err := StartKeeper([]string{"/usr/bin/env", modeVariable + "=keeper", exe})
	if err != nil {
		t.Fatal(err)
	}
	kept, forgotten := filepath.Join(t.TempDir(), "kept"), filepath.Join(t.TempDir(), "forgotten")
	for _, dir := range []string{kept, forgotten} {
		if err := errors.Join(os.Mkdir(dir, 0o700), keeper.KeepDir(dir)); err != nil {
			t.Fatal(err)
		}
	}
	start := func() *Child {
		c, err := StartChild(exec.Command("sleep", "60"), keeper)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Kill(); <-c.Done() })
		return c
	}
	child := start()
	if err := keeper.ForgetDir(forgotten); err != nil {
		t.Fatal(err)
	}
	if err := keeper.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(kept); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was kept is there: %v", err)
	}
	if _, err := os.Stat(forgotten); err != nil {
		t.Errorf("what was forgotten: %v", err)
	}
	select {
	case <-child.Done():
	case <-time.After(time.Second):
		t.Error("the child lives")
	}
	if _, err := StartChild(exec.Command("sleep", "60"), keeper); err == nil {
		t.Error("a child was started without its keeper")
	}
}

func TestKeeperOfNothing(t *testing.T) {
	if _, err := StartKeeper([]string{"/nonexistent"}); err == nil {
		t.Error("started")
	}
	if _, err := StartKeeper([]string{"/bin/true"}); err == nil {
		t.Error("a program that is no keeper was taken for one")
	}
}

func TestKillProcessByStartTime(t *testing.T) {
	c, err := StartChild(exec.Command("sleep", "60"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Kill(); <-c.Done() })
	start := startTime(c.PID())
	if err := killProcess(c.PID(), start+1); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(c.PID(), 0); err != nil || startTime(c.PID()) == 0 {
		t.Error("another process was killed")
	}
	if err := killProcess(c.PID(), start); err != nil {
		t.Error(err)
	}
	<-c.Done()
}

// TestRepair damages what a crash can damage, so that ntfs-3g refuses to mount.
func TestRepair(t *testing.T) {
	m := mounted(t)
	writeSynced(t, m.path("file"), secret)
	m.mustClose(t)
	damage := func(change byte) {
		t.Helper()
		opened, err := Open(t.Context(), m.spec, m.key)
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close(t.Context())
		boot := make([]byte, 512)
		if _, err := opened.volume.ReadAt(boot, 0); err != nil {
			t.Fatal(err)
		}
		sector, cluster := int64(binary.LittleEndian.Uint16(boot[11:])), int64(boot[13])
		mirror := int64(binary.LittleEndian.Uint64(boot[0x38:])) * cluster * sector
		if _, err := opened.volume.WriteAt([]byte{change}, mirror+200); err != nil {
			t.Fatal(err)
		}
	}

	damage(0xA5)
	before := imageSum(t, m.spec.Image)
	m.spec.ReadOnly = true
	m.mount(t)
	if got, err := os.ReadFile(m.path("file")); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("read-only: %d bytes, %v", len(got), err)
	}
	m.mustClose(t)
	if imageSum(t, m.spec.Image) != before {
		t.Error("the image of a read-only disk has changed")
	}

	m.spec.ReadOnly = false
	m.mount(t)
	if got, err := os.ReadFile(m.path("file")); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("after repair: %d bytes, %v", len(got), err)
	}
	m.mustClose(t)
	checkNTFS(t, m)
}
