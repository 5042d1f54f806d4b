package image

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/simulator/simtest"
)

const childVariable = "IMAGE_TEST_CHILD"

// TestMain also is the child of TestKilled, which makes an image and never ends.
func TestMain(m *testing.M) {
	if path := os.Getenv(childVariable); path != "" {
		_, err := Create(context.Background(), Spec{Path: path, SizeBytes: MinSize, Source: blockingFS{content()}})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// needs skips the test where it cannot run: without root, fuse or a tool. On the
// continuous-integration machine that is a failure.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	simtest.Need(t, append(tools, "/dev/fuse")...)
}

// content is what most tests copy in.
func content() fstest.MapFS {
	return fstest.MapFS{
		"contoso_BlockBlob/photos/a.txt":  {Data: []byte("hello, disk")},
		"contoso_BlockBlob/photos/b.bin":  {Data: []byte(strings.Repeat("0123456789abcdef", 70_000))},
		"contoso_AzFile/deep/er/file.dat": {Data: []byte{}},
	}
}

// blocks returns how many bytes a file takes on disk.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
