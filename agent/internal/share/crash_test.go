package share

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// openDisk mounts a real disk with one share on it.
func openDisk(ctx context.Context, image, runDir string, key bitlocker.ExternalKey, keeper *disk.Keeper) (opened *disk.Opened, folder string, err error) {
	opened, err = disk.Open(ctx, disk.Spec{Disk: disk.Disk{ID: "disk1", Image: image}, RunDir: runDir, Keeper: keeper}, key)
	if err != nil {
		return nil, "", err
	}
	dir, err := opened.Mount(ctx)
	if err != nil {
		return nil, "", err
	}
	folder = filepath.Join(dir, shareName)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, "", err
	}
	return opened, folder, os.WriteFile(filepath.Join(folder, "file"), []byte("content"), 0o600)
}

// TestFrozenDisk relocks a disk that hangs while a client reads from it.
func TestFrozenDisk(t *testing.T) {
	disktest.NeedMounts(t)
	st := newShare(t)
	image, key := disktest.Image(t)
	opened, folder, err := openDisk(t.Context(), image, st.cfg.RunDir, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close(context.Background()) })
	st.start(t, folder, approval.Delete)
	if out, err := st.client("ls; get file /dev/null"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, left := range disktest.Left(t, st.cfg.RunDir) {
		var pid int
		if _, err := fmt.Sscanf(left, "/proc/%d/cmdline", &pid); err == nil && strings.Contains(left, "ntfs-3g") {
			syscall.Kill(pid, syscall.SIGSTOP)
		}
	}
	client := make(chan struct{})
	go func() {
		defer close(client)
		st.client("put /etc/hostname new") // hangs, and with it a process of the server
	}()
	time.Sleep(300 * time.Millisecond)

	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	t.Log(st.server.Stop(ctx))
	t.Log(opened.Close(ctx))
	disktest.NothingLeft(t, st.cfg.RunDir, time.Until(began.Add(2100*time.Millisecond)))
	<-client
}

// playAgent holds a disk and shares it until it is killed.
func playAgent() {
	text, err := io.ReadAll(os.Stdin)
	must(err)
	raw, err := hex.DecodeString(string(text))
	must(err)
	key, err := bitlocker.NewExternalKey(raw)
	must(err)
	var cfg SMBConfig
	cfg.RunDir = os.Getenv("RUNDIR")
	fmt.Sscan(os.Getenv("PORT"), &cfg.Port)
	if os.Getenv("KEEPER") != "" {
		exe, err := os.Executable()
		must(err)
		cfg.Keeper, err = disk.StartKeeper([]string{"/usr/bin/env", modeVariable + "=keeper", exe})
		must(err)
	}
	_, folder, err := openDisk(context.Background(), os.Getenv("IMAGE"), cfg.RunDir, key, cfg.Keeper)
	must(err)
	server, err := startSMB(context.Background(), cfg, []Share{{Name: shareName, Dir: folder}}, approval.Delete, &keptLog{})
	must(err)
	user, password := server.Credentials()
	fmt.Println(user, password)
	select {}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runAgent starts an agent in a process of its own and kills it, while a client
// is connected.
func runAgent(t *testing.T, st *shareTest, keeper string) (user, password string) {
	t.Helper()
	image, key := disktest.Image(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), modeVariable+"=agent", "IMAGE="+image, "RUNDIR="+st.cfg.RunDir, fmt.Sprint("PORT=", st.cfg.Port), "KEEPER="+keeper)
	cmd.Stdin = strings.NewReader(hex.EncodeToString(key.Bytes()))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatal("the agent did not share")
	}
	fmt.Sscan(line, &user, &password)
	if out, err := smbclient(st.cfg.Port, user, password, "get file /dev/null"); err != nil {
		t.Errorf("while shared: %v: %s", err, out)
	}
	client := make(chan struct{})
	go func() {
		defer close(client)
		smbclient(st.cfg.Port, user, password, strings.Repeat("put /bin/bash new; ", 1000))
	}()
	t.Cleanup(func() { <-client })
	time.Sleep(500 * time.Millisecond)
	cmd.Process.Kill()
	t.Cleanup(func() { cmd.Wait() })
	return user, password
}

func TestKilledAgentSharesNothing(t *testing.T) {
	disktest.NeedMounts(t)
	st := newShare(t)
	user, password := runAgent(t, st, "yes")
	disktest.NothingLeft(t, st.cfg.RunDir, 2*time.Second)
	if out, err := smbclient(st.cfg.Port, user, password, "ls"); err == nil {
		t.Errorf("still shared: %s", out)
	}
	waitFor(t, func() bool { left, _ := filepath.Glob(st.cfg.RunDir + "/smb-*"); return len(left) == 0 })
}

func TestCleanup(t *testing.T) {
	disktest.NeedMounts(t)
	st := newShare(t)
	user, password := runAgent(t, st, "")
	waitFor(t, func() bool { // without a keeper
		_, err := smbclient(st.cfg.Port, user, password, "ls")
		return err != nil
	})
	if left, _ := filepath.Glob(st.cfg.RunDir + "/smb-*"); len(left) == 0 {
		t.Error("nothing is left: the test tests nothing")
	}
	if err := NewSMB(SMBConfig{RunDir: st.cfg.RunDir}).Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(st.cfg.RunDir + "/smb-*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := disk.Cleanup(t.Context(), st.cfg.RunDir); err != nil {
		t.Error(err)
	}
	disktest.NothingLeft(t, st.cfg.RunDir, 0)
}

func TestCleanupOfServer(t *testing.T) {
	st := started(t, approval.ReadOnly)
	if err := NewSMB(SMBConfig{RunDir: t.TempDir()}).Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case <-st.server.Done():
		t.Fatal("the cleanup of another run directory ended the server")
	case <-time.After(100 * time.Millisecond):
	}
	if err := NewSMB(SMBConfig{RunDir: st.cfg.RunDir}).Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	disktest.NothingLeft(t, st.cfg.RunDir, 10*time.Second)
}
