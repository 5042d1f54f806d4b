// Package simtest tells tests of the simulator what the machine they run on can do.
package simtest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Need skips the test if it does not run as root, or if one of the devices
// ("/dev/fuse") or programs is missing; under CI=true it fails instead.
func Need(t testing.TB, names ...string) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, name := range names {
		if !there(name) {
			missing = name
		}
	}
	switch {
	case missing == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("this test needs %s", missing)
	default:
		t.Skipf("this test needs %s", missing)
	}
}

func there(name string) bool {
	if strings.HasPrefix(name, "/dev/") {
		_, err := os.Stat(name)
		return err == nil
	}
	_, err := exec.LookPath(name)
	return err == nil
}
