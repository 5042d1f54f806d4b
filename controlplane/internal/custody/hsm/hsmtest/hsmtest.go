// Package hsmtest gives tests a token of SoftHSM2 of their own.
package hsmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm"
)

// PIN is the user's PIN of the tokens.
const PIN = "4711-0815"

// modules are where distributions put SoftHSM2.
var modules = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"}

// New makes a token and returns how to use it, but for the helper. A test skips
// where there is no SoftHSM2, and fails there under CI.
func New(t testing.TB) hsm.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := hsm.Config{Token: "lockbox test", Label: "lockbox-master", PINFile: filepath.Join(dir, "pin"), Create: true}
	for _, path := range modules {
		if _, err := os.Stat(path); err == nil {
			cfg.Module = path
		}
	}
	if cfg.Module == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("the test needs SoftHSM2")
		}
		t.Skip("the test needs SoftHSM2")
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	write(t, conf, fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", dir))
	write(t, cfg.PINFile, PIN+"\n")
	t.Setenv("SOFTHSM2_CONF", conf)
	out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", cfg.Token, "--so-pin", "so-"+PIN, "--pin", PIN).CombinedOutput()
	if err != nil {
		t.Fatalf("softhsm2-util: %v: %s", err, out)
	}
	return cfg
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
