package agent

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
)

func TestMountDisk(t *testing.T) {
	disktest.NeedMounts(t)
	path, key := disktest.Image(t)
	for _, readOnly := range []bool{false, true} {
		m, err := MountDisk(t.Context(), path, disktest.RunDir(t), key, readOnly)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(m.Files, "file")
		if !readOnly {
			if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
				t.Error(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != "content" {
			t.Errorf("read-only %t: file: %q, %v", readOnly, got, err)
		}
		boot := make([]byte, 512)
		volume, err := os.Open(m.Volume)
		if err == nil {
			_, err = io.ReadFull(volume, boot)
			volume.Close()
		}
		if err != nil || string(boot[3:11]) != "NTFS    " {
			t.Errorf("read-only %t: volume begins %q, %v", readOnly, boot[:16], err)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(m.Volume); err == nil {
			t.Error("the volume is there after Close")
		}
	}
}
