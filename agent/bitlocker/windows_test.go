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
	"strconv"
	"strings"
	"testing"
)

// windowsFolder holds volumes made by Windows, beside the project.
const windowsFolder = "../../../shared/bitlocker-images"

// windowsRow is one row of the folder's index: a volume and a credential.
type windowsRow struct {
	file                  string
	size                  int64
	method, form          string // form: normal or EOW
	sectorSize            string
	protectors            string // their kinds, with commas between
	kind, credential, sum string // no sum: to be refused
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
		if f[0] == "file" {
			continue
		}
		size, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, windowsRow{
			file: f[0], size: size, method: f[2], sectorSize: f[3], form: f[4], protectors: f[8],
			kind: f[9], credential: f[10], sum: f[11],
		})
	}
	return rows
}

// windowsImage unpacks the first n bytes of a volume.
func windowsImage(t testing.TB, name string, n int64) []byte {
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
	b := make([]byte, n)
	if _, err := io.ReadFull(z, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// windowsStarts returns the first n bytes of each volume, and none where the folder
// is absent.
func windowsStarts(t testing.TB, n int64) map[string][]byte {
	t.Helper()
	starts := map[string][]byte{}
	if _, err := os.Stat(windowsFolder); err != nil {
		return starts
	}
	for _, row := range windowsRows(t) {
		if starts[row.file] == nil {
			starts[row.file] = windowsImage(t, row.file, n)
		}
	}
	return starts
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

// TestWindowsVolumes opens each volume with each of its credentials.
func TestWindowsVolumes(t *testing.T) {
	byFile := map[string][]windowsRow{}
	for _, row := range windowsRows(t) {
		byFile[row.file] = append(byFile[row.file], row)
	}
	for file, rows := range byFile {
		t.Run(file, func(t *testing.T) {
			image := windowsImage(t, file, rows[0].size)
			checkInfo(t, image, rows[0])
			v, err := Open(bytes.NewReader(image), rows[0].size)
			if rows[0].sum == "" {
				if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "encrypt-on-write") {
					t.Fatalf("Open: %v, want a refusal that names encrypt-on-write", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range rows {
				checkSum(t, v, row)
			}
		})
	}
}

// windowsKinds are the names that the index has for protectors.
var windowsKinds = map[ProtectorKind]string{
	PassphraseProtector: "passphrase", RecoveryPasswordProtector: "recovery", ExternalKeyProtector: "startup-key",
	ClearKeyProtector: "clearkey", PublicKeyProtector: "smart-card",
}

// checkInfo compares what a volume tells without a key with the index.
func checkInfo(t *testing.T, image []byte, row windowsRow) {
	t.Helper()
	info, err := Inspect(bytes.NewReader(image), row.size)
	if err != nil {
		t.Fatal(err)
	}
	var protectors []string
	for _, p := range info.Protectors {
		protectors = append(protectors, windowsKinds[p.Kind])
	}
	got := windowsRow{
		file: row.file, size: info.EncryptedSize, method: info.Method.String(), sectorSize: strconv.Itoa(info.SectorSize),
		protectors: strings.Join(protectors, ","), form: "normal", kind: row.kind, credential: row.credential, sum: row.sum,
	}
	if info.Refused != nil && info.Refused.Kind == RefusedEncryptOnWrite {
		got.form = "EOW"
	}
	if got != row {
		t.Errorf("the volume tells %+v, want %+v", got, row)
	}
	if toGo := strings.Contains(row.file, "togo"); info.ToGo != toGo {
		t.Errorf("To Go: %v, want %v", info.ToGo, toGo)
	}
}

// TestWindowsChange changes the protectors of each volume, of which some have
// damaged copies, and looks at all of its data with the new keys.
func TestWindowsChange(t *testing.T) {
	done := map[string]bool{}
	for _, row := range windowsRows(t) {
		if row.sum == "" || done[row.file] {
			continue
		}
		done[row.file] = true
		t.Run(row.file, func(t *testing.T) {
			m := &memory{b: windowsImage(t, row.file, row.size)}
			v, err := Open(m, row.size)
			if err != nil {
				t.Fatal(err)
			}
			before := v.Info()
			key, err := GenerateExternalKey(testRand(1))
			if err != nil {
				t.Fatal(err)
			}
			change := ProtectorChange{Add: []ProtectorKey{{GUID{1}, key}}, Rand: testRand(2), Now: testNow}
			for _, p := range before.Protectors {
				if p.Kind == RecoveryPasswordProtector {
					change.Remove = append(change.Remove, p.ID)
				}
			}
			if err := v.ChangeProtectors(row.cred(t), change); err != nil {
				t.Fatal(err)
			}
			if v, err = Open(m, row.size); err != nil {
				t.Fatal(err)
			}
			info := v.Info()
			if info.Damage != ([3]string{}) || info.Description != before.Description || info.ID != before.ID ||
				len(info.Protectors) != len(before.Protectors) || info.NextNonce <= before.NextNonce {
				t.Errorf("%+v becomes %+v", before, info)
			}
			checkView(t, v, key, row)
		})
	}
}

func checkSum(t *testing.T, v *Volume, row windowsRow) {
	t.Helper()
	checkView(t, v, row.cred(t), row)
}

// checkView compares the whole decrypted view, and the protector that gave it.
func checkView(t *testing.T, v *Volume, c Credential, row windowsRow) {
	t.Helper()
	p, err := v.Unlock(c)
	if err != nil {
		t.Errorf("with the %s: %v", row.kind, err)
		return
	}
	defer p.Wipe()
	if p.Protector().Kind != c.protects() || p.Protector().ID == (GUID{}) {
		t.Errorf("opened by %v", p.Protector())
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(p, 0, p.Size())); err != nil {
		t.Fatal(err)
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != row.sum {
		t.Errorf("with the %s, the decrypted view has SHA-256 %s, want %s", row.kind, sum, row.sum)
	}
}
