package bitlocker

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// windowsFolder holds volumes made by Windows, beside the project.
const windowsFolder = "../../../shared/bitlocker-images"

// windowsRow is one row of the folder's index: a volume and a credential.
type windowsRow struct {
	file, state, kind, credential, sum string
}

// windowsRows skips the test where the folder is absent.
func windowsRows(t testing.TB) []windowsRow {
	t.Helper()
	index, err := os.ReadFile(filepath.Join(windowsFolder, "index.tsv"))
	if err != nil {
		t.Skipf("no volumes made by Windows at %s", windowsFolder)
	}
	var rows []windowsRow
	for line := range strings.Lines(string(index)) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if f[0] != "file" {
			rows = append(rows, windowsRow{f[0], f[4], f[9], f[10], f[11]})
		}
	}
	return rows
}

// windowsImage unpacks a volume.
func windowsImage(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(windowsFolder, name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (r windowsRow) cred(t testing.TB) Credential {
	t.Helper()
	var c Credential
	var err error
	switch r.kind {
	case "recovery":
		c, err = ParseRecoveryPassword(r.credential)
	case "passphrase":
		c, err = NewPassphrase(r.credential)
	case "bek":
		var b []byte
		if b, err = os.ReadFile(filepath.Join(windowsFolder, r.credential)); err == nil {
			var k BEK
			k, err = ParseBEK(b)
			c = k.Key
		}
	default:
		t.Fatalf("unknown kind of credential %q", r.kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWindowsVolumes(t *testing.T) {
	for _, row := range windowsRows(t) {
		t.Run(row.file+"/"+row.kind, func(t *testing.T) {
			t.Parallel()
			image := windowsImage(t, row.file)
			v, err := Open(bytes.NewReader(image), int64(len(image)))
			if row.sum == "" {
				if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "encrypt-on-write") {
					t.Fatalf("Open: %v, want a refusal that names encrypt-on-write", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			p, err := v.Unlock(row.cred(t))
			if err != nil {
				t.Fatal(err)
			}
			defer p.Wipe()
			h := sha256.New()
			if _, err := io.Copy(h, io.NewSectionReader(p, 0, p.Size())); err != nil {
				t.Fatal(err)
			}
			if sum := hex.EncodeToString(h.Sum(nil)); sum != row.sum {
				t.Errorf("decrypted view has SHA-256 %s, want %s", sum, row.sum)
			}
		})
	}
}
