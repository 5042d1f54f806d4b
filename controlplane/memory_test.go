package controlplane_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// The daemon leaves no core file, in which all keys would be, and the system
// hides its memory from others of its user: then its files below /proc are
// root's.
func TestTheDaemonLeavesNoCore(t *testing.T) {
	port := freePort(t)
	dir := filepath.Join(t.TempDir(), "data")
	d := lockboxd(t, "--config", writeConfig(t, fmt.Sprintf("data_dir: %s\napi:\n  address: %s\ntunnel:\n  address: 127.0.0.1:0\n", dir, port)), "serve")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("tcp", port); err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			d.cmd.Process.Kill()
			t.Fatal("it does not start")
		}
	}
	proc := fmt.Sprintf("/proc/%d", d.cmd.Process.Pid)
	limits, err := os.ReadFile(proc + "/limits")
	if err != nil {
		t.Error(err)
	}
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("its limits are\n%s", limits)
	}
	info, err := os.Stat(proc + "/environ")
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("its files below /proc are of another than root: %v, %v", info, err)
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	if code, out := d.wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
}
