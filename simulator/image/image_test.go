package image

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// needs skips the test where it cannot run: without root, fuse or a tool. On the
// continuous-integration machine that is a failure.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		missing = "/dev/fuse"
	}
	for _, name := range tools {
		if _, err := exec.LookPath(name); err != nil {
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

// content is what most tests copy in.
func content() fstest.MapFS {
	return fstest.MapFS{
		"contoso_BlockBlob/photos/a.txt":  {Data: []byte("hello, disk")},
		"contoso_BlockBlob/photos/b.bin":  {Data: []byte(strings.Repeat("0123456789abcdef", 70_000))},
		"contoso_AzFile/deep/er/file.dat": {Data: []byte{}},
	}
}
