package image

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
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
	path string
	keys Keys
}

func makeVolume(t *testing.T, s Spec) volume {
	t.Helper()
	s.Path = filepath.Join(t.TempDir(), "disk.img")
	if s.SizeBytes == 0 {
		s.SizeBytes = MinSize + sizeUnit // no multiple of anything larger
	}
	s.Label, s.Source = "DISK1", content()
	keys, err := Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return volume{s.Path, keys}
}

// opener is a credential as the judges want it.
type opener struct {
	kind bitlocker.ProtectorKind
	text string // what to type, or the path of the .BEK file
	own  bitlocker.Credential
}

func (v volume) bek(t *testing.T) opener { return bekOpener(t, v.keys.BEK) }

func bekOpener(t *testing.T, bek bitlocker.BEK) opener {
	t.Helper()
	path := filepath.Join(t.TempDir(), bek.FileName())
	if err := os.WriteFile(path, bek.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	return opener{bitlocker.ExternalKeyProtector, path, bek.Key}
}

func (v volume) recovery() opener { return recoveryOpener(v.keys.RecoveryPassword) }

func recoveryOpener(p bitlocker.RecoveryPassword) opener {
	return opener{bitlocker.RecoveryPasswordProtector, p.Reveal(), p}
}

func passphraseOpener(t *testing.T, text string) opener {
	t.Helper()
	p, err := bitlocker.NewPassphrase(text)
	if err != nil {
		t.Fatal(err)
	}
	return opener{bitlocker.PassphraseProtector, text, p}
}

// locked opens the volume with our own reader, to be written as well.
func (v volume) locked(t *testing.T) *bitlocker.Volume {
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
	return locked
}

// open unlocks the volume.
func (v volume) open(t *testing.T, c bitlocker.Credential) *bitlocker.Plaintext {
	t.Helper()
	p, err := v.locked(t).Unlock(c)
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

// judge opens a volume, and shows its decrypted view as another tool sees it.
type judge struct {
	name string
	tool string
	view func(t *testing.T, path string, key opener) ([]byte, error) // nil: it only opens
	not  func(m bitlocker.Method, kind bitlocker.ProtectorKind) string
}

var judges = []judge{
	{"dislocker", "dislocker-file", dislockerFile, func(bitlocker.Method, bitlocker.ProtectorKind) string { return "" }},
	{"libbde", "bdemount", bdemount, func(m bitlocker.Method, _ bitlocker.ProtectorKind) string {
		if m == bitlocker.AES256XTS {
			return "this release of libbde cannot do AES-XTS-256"
		}
		return ""
	}},
	{"cryptsetup", "cryptsetup", cryptsetupTest, func(_ bitlocker.Method, kind bitlocker.ProtectorKind) string {
		if kind == bitlocker.ClearKeyProtector {
			return "this release of cryptsetup opens no suspended volume"
		}
		return ""
	}},
}

// dislockerFile decrypts the whole volume into a file. Its tool works in pieces of
// 16 sectors, so that the file may be longer than the volume.
func dislockerFile(t *testing.T, path string, key opener) ([]byte, error) {
	return dislocker(t, path, key)
}

func dislocker(t *testing.T, path string, key opener, more ...string) ([]byte, error) {
	out := filepath.Join(t.TempDir(), "plain.img")
	flag := map[bitlocker.ProtectorKind]string{
		bitlocker.ExternalKeyProtector: "-f", bitlocker.RecoveryPasswordProtector: "-p",
		bitlocker.PassphraseProtector: "-u", bitlocker.ClearKeyProtector: "-c",
	}[key.kind]
	args := append([]string{"-q", "-V", path, flag + key.text}, more...)
	if _, err := ask(t, "", "dislocker-file", append(args, "--", out)...); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	info, err := Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	return b[:min(info.Size, int64(len(b)))], nil
}

// bdemount shows the decrypted volume as a file, through FUSE.
func bdemount(t *testing.T, path string, key opener) ([]byte, error) {
	dir := t.TempDir()
	flag := map[bitlocker.ProtectorKind]string{
		bitlocker.ExternalKeyProtector: "-s", bitlocker.RecoveryPasswordProtector: "-r", bitlocker.PassphraseProtector: "-p",
	}[key.kind]
	args := []string{flag, key.text, path, dir}
	if flag == "" {
		args = args[2:]
	}
	if _, err := ask(t, "", "bdemount", args...); err != nil {
		return nil, err
	}
	defer func() {
		for err := error(syscall.EBUSY); errors.Is(err, syscall.EBUSY); time.Sleep(10 * time.Millisecond) {
			err = syscall.Unmount(dir, 0)
		}
	}()
	return os.ReadFile(filepath.Join(dir, "bde1"))
}

// cryptsetupTest cannot decrypt without the device mapper's help, but it checks the
// metadata, and the key against them.
func cryptsetupTest(t *testing.T, path string, key opener) ([]byte, error) {
	dump, err := ask(t, "", "cryptsetup", "bitlkDump", path)
	if err != nil {
		return nil, err
	}
	info, err := Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(info.Protectors, bitlocker.Protector{ID: info.ID}) {
		if !strings.Contains(strings.ToUpper(dump), p.ID.String()) {
			t.Errorf("bitlkDump does not show %v:\n%s", p.ID, dump)
		}
	}
	args := []string{"open", "--type", "bitlk", "--test-passphrase", "--readonly", path}
	if key.kind == bitlocker.ExternalKeyProtector {
		_, err = ask(t, "", "cryptsetup", append(args, "--key-file", key.text)...)
	} else {
		_, err = ask(t, key.text, "cryptsetup", args...)
	}
	return nil, err
}

// ask runs a judge's tool.
func ask(t *testing.T, stdin, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return string(out), err
}

// judged runs a tool that must succeed, and returns its output.
func judged(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	out, err := ask(t, stdin, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// allAgree has every judge open the volume with every key, and compares all that
// they see with what we see.
func allAgree(t *testing.T, v volume, keys ...opener) {
	t.Helper()
	info, err := Inspect(v.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		ours := readAll(t, v.open(t, key.own))
		for _, j := range judges {
			t.Run(fmt.Sprintf("%s by %v", j.name, key.kind), func(t *testing.T) {
				needs(t, j.tool)
				if why := j.not(info.Method, key.kind); why != "" {
					t.Skip(why)
				}
				theirs, err := j.view(t, v.path, key)
				if err != nil {
					t.Fatalf("refuses the volume: %v", err)
				}
				if theirs != nil && !bytes.Equal(theirs, ours) {
					t.Errorf("sees %d bytes that differ from our %d", len(theirs), len(ours))
				}
			})
		}
	}
}

// TestJudges has others open our volumes, in every method and sector size.
func TestJudges(t *testing.T) {
	for method := bitlocker.AES128Elephant; method <= bitlocker.AES256XTS; method++ {
		for _, sectorSize := range []int{512, 4096} {
			t.Run(fmt.Sprintf("%v/%d", method, sectorSize), func(t *testing.T) {
				needs(t)
				v := makeVolume(t, Spec{Method: method, SectorSize: sectorSize, NoRecoveryPassword: true})
				allAgree(t, v, v.bek(t))
			})
		}
	}
}

// change changes the protectors of the volume.
func (v volume) change(t *testing.T, key opener, c bitlocker.ProtectorChange) {
	t.Helper()
	c.Rand, c.Now = rand.Reader, time.Now()
	if err := v.locked(t).ChangeProtectors(key.own, c); err != nil {
		t.Fatal(err)
	}
}

// TestChangedJudges changes the protectors of a volume step by step. After each,
// every judge opens it with the keys that it then has, from any of the metadata
// copies, and not with those that it had.
func TestChangedJudges(t *testing.T) {
	needs(t)
	v := makeVolume(t, Spec{})
	old, gone := v.recovery(), v.bek(t)
	phrase := passphraseOpener(t, "correct horse battery staple")
	clearKey := opener{kind: bitlocker.ClearKeyProtector, own: bitlocker.ClearKey{}}
	t.Run("as made", func(t *testing.T) { allAgree(t, v, gone, old) })

	v.change(t, gone, bitlocker.ProtectorChange{Add: []bitlocker.ProtectorKey{{ID: newID(t), Key: phrase.own}}})
	t.Run("passphrase added", func(t *testing.T) { allAgree(t, v, gone, phrase) })

	next, err := bitlocker.GenerateRecoveryPassword(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v.change(t, old, bitlocker.ProtectorChange{
		Remove: []bitlocker.GUID{v.protector(t, bitlocker.RecoveryPasswordProtector)},
		Add:    []bitlocker.ProtectorKey{{ID: newID(t), Key: next}},
	})
	t.Run("recovery password rotated", func(t *testing.T) {
		allAgree(t, v, recoveryOpener(next))
		allRefuse(t, v, old)
	})

	suspended := newID(t)
	v.change(t, phrase, bitlocker.ProtectorChange{
		Remove: []bitlocker.GUID{v.keys.BEK.ID},
		Add:    []bitlocker.ProtectorKey{{ID: suspended, Key: bitlocker.ClearKey{}}},
	})
	t.Run("external key removed, protection suspended", func(t *testing.T) { allAgree(t, v, clearKey) })

	key, err := bitlocker.GenerateExternalKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	bek := bitlocker.NewBEK(newID(t), key, time.Now())
	v.change(t, clearKey, bitlocker.ProtectorChange{
		Remove: []bitlocker.GUID{suspended},
		Add:    []bitlocker.ProtectorKey{{ID: bek.ID, Key: key}},
	})
	t.Run("resumed with another external key", func(t *testing.T) {
		other := bekOpener(t, bek)
		allAgree(t, v, other)
		allRefuse(t, v, gone, clearKey)
		for n := range 3 {
			if _, err := dislocker(t, v.path, other, fmt.Sprintf("-F%d", n+1)); err != nil {
				t.Errorf("dislocker does not take metadata copy %d: %v", n+1, err)
			}
		}
	})
}

// TestErasedJudges erases a volume: no judge opens it with any of its keys, and
// none finds as much as a protector.
func TestErasedJudges(t *testing.T) {
	needs(t, "cryptsetup")
	v := makeVolume(t, Spec{})
	keys := []opener{v.bek(t), v.recovery()}
	t.Run("as made", func(t *testing.T) { allAgree(t, v, keys...) })
	f, err := os.OpenFile(v.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := bitlocker.Erase(f, info.Size()); err != nil {
		t.Fatal(err)
	}
	t.Run("erased", func(t *testing.T) { allRefuse(t, v, keys...) })
	if out, err := ask(t, "", "cryptsetup", "bitlkDump", v.path); err == nil {
		t.Errorf("cryptsetup finds %s", out)
	}
}

// windowsVolume was made by Windows; two of its metadata copies were damaged since.
const windowsVolume = "../../../shared/bitlocker-images/bitlk-aes-xts-128-crc.img.gz"

// TestWindowsJudges gives a volume made by Windows another key: all judges take it,
// also those that only read the copies that were damaged.
func TestWindowsJudges(t *testing.T) {
	needs(t)
	packed, err := os.Open(windowsVolume)
	if err != nil {
		t.Skipf("no volume made by Windows at %s", windowsVolume)
	}
	defer packed.Close()
	unpacked, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	v := volume{path: filepath.Join(t.TempDir(), "disk.img")}
	image, err := os.Create(v.path)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if _, err := io.Copy(image, unpacked); err != nil {
		t.Fatal(err)
	}
	phrase := passphraseOpener(t, "anaconda")
	ours := readAll(t, v.open(t, phrase.own))
	key, err := bitlocker.GenerateExternalKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	bek := bitlocker.NewBEK(newID(t), key, time.Now())
	v.change(t, phrase, bitlocker.ProtectorChange{Add: []bitlocker.ProtectorKey{{ID: bek.ID, Key: key}}})
	if !bytes.Equal(readAll(t, v.open(t, key)), ours) {
		t.Error("another key shows other data")
	}
	allAgree(t, v, bekOpener(t, bek))
}

// protector returns the volume's protector of a kind.
func (v volume) protector(t *testing.T, kind bitlocker.ProtectorKind) bitlocker.GUID {
	t.Helper()
	info, err := Inspect(v.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range info.Protectors {
		if p.Kind == kind {
			return p.ID
		}
	}
	t.Fatalf("no %v on the volume", kind)
	return bitlocker.GUID{}
}

func newID(t *testing.T) bitlocker.GUID {
	t.Helper()
	id, err := bitlocker.NewGUID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// allRefuse makes sure that no judge opens the volume with keys that are not its
// own: the judges do judge.
func allRefuse(t *testing.T, v volume, keys ...opener) {
	t.Helper()
	for _, key := range keys {
		for _, j := range judges {
			t.Run(fmt.Sprintf("%s by another %v", j.name, key.kind), func(t *testing.T) {
				needs(t, j.tool)
				if view, err := j.view(t, v.path, key); err == nil {
					t.Errorf("opens the volume, and sees %d bytes", len(view))
				}
			})
		}
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
		if got := judged(t, "", "ntfscat", plain, name); got != string(make([]byte, MetadataSize)) {
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
		view, err := dislockerFile(t, v.path, v.bek(t))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(view[off:][:len(want)], want) {
			t.Errorf("dislocker does not see what was written at %d", off)
		}
		if !bytes.Equal(view, readAll(t, p)) {
			t.Errorf("after a write at %d, dislocker sees something else than we do", off)
		}
	}
}
