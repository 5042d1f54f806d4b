package image

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

// The judges are other people's readers of BitLocker volumes.

// volume is an image to be judged.
type volume struct {
	path    string
	keys    Keys
	bekFile string
}

func makeVolume(t *testing.T, s Spec) volume {
	t.Helper()
	dir := t.TempDir()
	s.Path = filepath.Join(dir, "disk.img")
	if s.SizeBytes == 0 {
		s.SizeBytes = MinSize + sizeUnit // no multiple of anything larger
	}
	s.Label, s.Source = "DISK1", content()
	keys, err := Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	bek := filepath.Join(dir, keys.BEK.FileName())
	if err := os.WriteFile(bek, keys.BEK.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	return volume{s.Path, keys, bek}
}

// open unlocks the volume with our own reader.
func (v volume) open(t *testing.T, c bitlocker.Credential) *bitlocker.Plaintext {
	t.Helper()
	f, err := os.OpenFile(v.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	locked, err := bitlocker.Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	p, err := locked.Unlock(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Wipe)
	return p
}

func readAll(t *testing.T, p *bitlocker.Plaintext) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(p, 0, p.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// judge shows the decrypted view of a volume as another tool sees it.
type judge struct {
	name  string
	tools []string
	view  func(t *testing.T, v volume, useBEK bool) []byte
}

var judges = []judge{
	{"dislocker-file", []string{"dislocker-file"}, dislockerFile},
	{"bdemount", []string{"bdemount"}, bdemount},
	{"cryptsetup", []string{"cryptsetup"}, cryptsetupDump},
}

// dislockerFile decrypts the whole volume into a file. Its tool works in pieces of
// 16 sectors, so that the file may be longer than the volume.
func dislockerFile(t *testing.T, v volume, useBEK bool) []byte {
	out := filepath.Join(t.TempDir(), "plain.img")
	key := "-p" + v.keys.RecoveryPassword.Reveal()
	if useBEK {
		key = "-f" + v.bekFile
	}
	judged(t, "", "dislocker-file", "-q", "-V", v.path, key, "--", out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	info, err := Inspect(v.path)
	if err != nil {
		t.Fatal(err)
	}
	return b[:min(info.Size, int64(len(b)))]
}

// bdemount shows the decrypted volume as a file, through FUSE.
func bdemount(t *testing.T, v volume, useBEK bool) []byte {
	dir := t.TempDir()
	args := []string{"-r", v.keys.RecoveryPassword.Reveal()}
	if useBEK {
		args = []string{"-s", v.bekFile}
	}
	judged(t, "", "bdemount", append(args, v.path, dir)...)
	defer func() {
		for err := error(syscall.EBUSY); errors.Is(err, syscall.EBUSY); time.Sleep(10 * time.Millisecond) {
			err = syscall.Unmount(dir, 0)
		}
	}()
	b, err := os.ReadFile(filepath.Join(dir, "bde1"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// cryptsetupDump cannot decrypt without the device mapper's help, but it checks
// the metadata, and the recovery password or key file against them.
func cryptsetupDump(t *testing.T, v volume, useBEK bool) []byte {
	dump := judged(t, "", "cryptsetup", "bitlkDump", v.path)
	info, err := Inspect(v.path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.ToUpper(dump), info.ID.String()) {
		t.Errorf("bitlkDump does not show the volume's GUID %v:\n%s", info.ID, dump)
	}
	args := []string{"open", "--type", "bitlk", "--test-passphrase", "--readonly", v.path}
	if useBEK {
		judged(t, "", "cryptsetup", append(args, "--key-file", v.bekFile)...)
	} else {
		judged(t, v.keys.RecoveryPassword.Reveal(), "cryptsetup", args...)
	}
	return nil
}

// judged runs a judge's tool, which must succeed, and returns its output.
func judged(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s refuses the volume: %v\n%s", name, err, out)
	}
	return string(out)
}

// TestJudges has others open our volumes, in every method, and compares all that
// they see with what we see.
func TestJudges(t *testing.T) {
	for _, s := range []Spec{
		{Method: bitlocker.AES128XTS, SectorSize: 512},
		{Method: bitlocker.AES128XTS, SectorSize: 4096},
		{Method: bitlocker.AES256XTS, SectorSize: 512},
		{Method: bitlocker.AES128CBC, SectorSize: 4096},
		{Method: bitlocker.AES256CBC, SectorSize: 512},
	} {
		name := s.Method.String() + map[int]string{512: "/512", 4096: "/4096"}[s.SectorSize]
		t.Run(name, func(t *testing.T) {
			needs(t)
			v := makeVolume(t, s)
			ours := readAll(t, v.open(t, v.keys.ExternalKey))
			for _, j := range judges {
				t.Run(j.name, func(t *testing.T) {
					needs(t, j.tools...)
					if j.name == "bdemount" && s.Method == bitlocker.AES256XTS {
						t.Skip("this release of libbde cannot do AES-XTS-256")
					}
					keys := []bool{true}
					if s.Method == bitlocker.AES128XTS {
						keys = append(keys, false) // the judges take seconds to stretch a password
					}
					for _, useBEK := range keys {
						if theirs := j.view(t, v, useBEK); theirs != nil && !bytes.Equal(theirs, ours) {
							t.Errorf("with BEK %v, %s sees %d bytes that differ from our %d", useBEK, j.name, len(theirs), len(ours))
						}
					}
				})
			}
		})
	}
}

// TestContent looks at the file system with ntfs-3g's own tools, through our
// decryption: it is clean, spans the volume, and holds what was copied in.
func TestContent(t *testing.T) {
	needs(t, "ntfsfix", "ntfscat")
	v := makeVolume(t, Spec{})
	view := readAll(t, v.open(t, v.keys.RecoveryPassword))
	plain := filepath.Join(t.TempDir(), "plain.img")
	if err := os.WriteFile(plain, view, 0o600); err != nil {
		t.Fatal(err)
	}
	judged(t, "", "ntfsfix", "--no-action", plain)
	if sectors := binary.LittleEndian.Uint64(view[40:]); int64(sectors) != int64(len(view))/512-1 {
		t.Errorf("the file system has %d sectors in a volume of %d bytes", sectors, len(view))
	}
	for name, file := range content() {
		if got := judged(t, "", "ntfscat", plain, name); got != string(file.Data) {
			t.Errorf("%s has %d bytes that differ from the %d copied in", name, len(got), len(file.Data))
		}
	}
	for n := range 3 {
		name := areaFolder + "/" + metadataFile + strconv.Itoa(n+1)
		if got := judged(t, "", "ntfscat", plain, name); got != string(make([]byte, metadataSize)) {
			t.Errorf("%s does not show zeros", name)
		}
	}
}

// TestWritten writes through our encryption, and has dislocker see it.
func TestWritten(t *testing.T) {
	needs(t, "dislocker-file")
	v := makeVolume(t, Spec{})
	p := v.open(t, v.keys.ExternalKey)
	want := bytes.Repeat([]byte("written through the agent "), 1000)
	for _, off := range []int64{100, 8000, p.Size() - int64(len(want))} {
		if _, err := p.WriteAt(want, off); err != nil {
			t.Fatal(err)
		}
		view := dislockerFile(t, v, true)
		if !bytes.Equal(view[off:][:len(want)], want) {
			t.Errorf("dislocker does not see what was written at %d", off)
		}
		if !bytes.Equal(view, readAll(t, p)) {
			t.Errorf("after a write at %d, dislocker sees something else than we do", off)
		}
	}
}

// TestWrongCredentials makes sure that the judges do judge.
func TestWrongCredentials(t *testing.T) {
	needs(t, "dislocker-file", "cryptsetup")
	v := makeVolume(t, Spec{})
	other, err := bitlocker.GenerateRecoveryPassword(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "dislocker-file", "-q", "-V", v.path, "-p"+other.Reveal(), "--", filepath.Join(t.TempDir(), "plain"))
	if cmd.Run() == nil {
		t.Error("dislocker opens the volume with another recovery password")
	}
	cmd = exec.CommandContext(t.Context(), "cryptsetup", "open", "--type", "bitlk", "--test-passphrase", v.path)
	cmd.Stdin = strings.NewReader(other.Reveal())
	if cmd.Run() == nil {
		t.Error("cryptsetup accepts another recovery password")
	}
}
