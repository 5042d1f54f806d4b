package bitlocker

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// TestArm64UnderEmulation builds this package's tests for arm64 and runs those of the
// ciphers under qemu, in the kernel in assembly.
func TestArm64UnderEmulation(t *testing.T) {
	if runtime.GOARCH == "arm64" {
		t.Skip("this is arm64: the tests themselves say it")
	}
	if testing.Short() {
		t.Skip("builds a program and emulates a processor")
	}
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("no emulator: ", err)
	}
	if err != nil {
		t.Skip("needs the Debian package qemu-user-static")
	}
	program := filepath.Join(t.TempDir(), "bitlocker.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := exec.CommandContext(t.Context(), qemu, program, "-test.v", "-test.short",
		"-test.run", "^(TestKernels|TestEncryptNumbers|TestNewSectorCipher|TestAES|TestXTS|TestCBC|TestCCM|TestWipeKey|FuzzSectorCiphers)$")
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"on this processor: [arm64 generic]", "--- PASS: TestKernels/AES-XTS-128/4096"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the output lacks %q: %s", want, out)
		}
	}
}
