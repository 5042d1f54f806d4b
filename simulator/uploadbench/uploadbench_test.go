package uploadbench_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/databox-lockbox/lockbox/simulator/uploadbench"
)

func TestFigures(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	installed, err := filepath.Glob(filepath.Join(cache, "lockbox/azurite/*/installed"))
	if err != nil {
		t.Fatal(err)
	}
	if len(installed) == 0 && os.Getenv("CI") != "true" {
		t.Skip("the test needs Azurite: run 'make deps-azurite'")
	}
	if len(installed) == 0 {
		t.Fatal("the test needs Azurite: run 'make deps-azurite'")
	}
	var out bytes.Buffer
	dir := filepath.Join(t.TempDir(), "bench")
	err = uploadbench.Run(t.Context(), uploadbench.Config{
		Azurite: filepath.Dir(installed[0]), Dir: dir, Runs: 1, Files: 5, Size: 100, Large: 9 << 20, Parallel: 2, Out: &out, Note: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^figure=upload_small value=\S+ unit=files/s peer=sdk peer_value=\S+ ratio=\S+
figure=upload_1g value=\S+ unit=MB/s peer=sdk peer_value=\S+ ratio=\S+
$`)
	if !form.Match(out.Bytes()) {
		t.Errorf("got\n%s", out.Bytes())
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("files are left")
	}
}
