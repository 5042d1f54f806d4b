package lock

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// makeShare makes a folder that looks like a mounted disk with one share.
func makeShare(t testing.TB, root string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, "contosodata_BlockBlob", "photos"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// anyHPKEKey returns a public key whose private key nobody has.
func anyHPKEKey() []byte { return must(sealing.GenerateKey()).Public() }
