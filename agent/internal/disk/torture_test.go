package disk

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
)

// A torture has so many rounds, each of which the kill ends after that time or up
// to three times as much; were it not to, the limit would.
const (
	tortureRounds = 3
	tortureTime   = 300 * time.Millisecond
	tortureLimit  = 10 * time.Second
)

// torture takes steps until one fails, because the agent is killed meanwhile.
func torture(t *testing.T, a *agentProcess, step func() error) (err error) {
	t.Helper()
	kill := time.AfterFunc(tortureTime+mrand.N(2*tortureTime), func() { a.cmd.Process.Kill() })
	defer kill.Stop()
	for began := time.Now(); err == nil; err = step() {
		if time.Since(began) > tortureLimit {
			t.Fatal("the agent lives on")
		}
	}
	a.cmd.Wait()
	return err
}

// TestTortureVolume reads and writes the decrypted volume at random, aligned and
// not, and kills the agent meanwhile: the volume is as of the last sync, whole.
func TestTortureVolume(t *testing.T) {
	spec, key := smallSpec(t)
	model := readVolumeOf(t, spec, key)
	syncs := 0
	for round := range tortureRounds {
		a := startAgent(t, spec, key, "volume")
		v := &volumeTorture{file: openFile(t, a.dir), model: model, synced: bytes.Clone(model), usable: usable(model)}
		err := torture(t, a, func() error { return v.step(t) })
		v.file.Close()
		if err := Cleanup(t.Context(), spec.RunDir); err != nil {
			t.Error(err)
		}
		syncs += v.syncs

		got := readVolumeOf(t, spec, key)
		switch {
		case bytes.Equal(got, v.synced):
		case v.syncing && bytes.Equal(got, v.model): // the sync was as good as done
		default:
			t.Fatalf("round %d, ended by %v: the volume is neither as of the last sync nor as of the one that was cut off", round, err)
		}
		model = got
	}
	if syncs == 0 {
		t.Error("nothing was synced: the test tests nothing")
	}
	t.Logf("%d syncs", syncs)
}

// volumeTorture is a decrypted volume, and what should be in it.
type volumeTorture struct {
	file   *os.File
	usable [][2]int // ranges that take writes
	model  []byte
	synced []byte // the model at the last sync

	syncing bool // the sync that follows is under way, or was cut off
	syncs   int
}

func (v *volumeTorture) step(t *testing.T) error {
	switch mrand.IntN(40) { // rarely a sync, for most of the kills have to come between two
	case 0:
		v.syncing = true
		if err := v.file.Sync(); err != nil {
			return err
		}
		copy(v.synced, v.model)
		v.syncing = false
		v.syncs++
		return nil
	case 1, 2, 3, 4, 5, 6, 7, 8, 9:
		off, n := randomRange(0, len(v.model))
		got := make([]byte, n)
		if _, err := v.file.ReadAt(got, int64(off)); err != nil {
			return err
		}
		if !bytes.Equal(got, v.model[off:off+n]) {
			t.Errorf("%d bytes read at %d are not those written", n, off)
		}
		return nil
	}
	within := v.usable[mrand.IntN(len(v.usable))]
	off, n := randomRange(within[0], within[1])
	data := random(n)
	if _, err := v.file.WriteAt(data, int64(off)); err != nil {
		return err
	}
	copy(v.model[off:], data)
	return nil
}

// randomRange returns a range between start and end, short or long, on the
// boundaries of sectors or not.
func randomRange(start, end int) (off, n int) {
	off = start + mrand.IntN(end-start)
	n = mrand.IntN(min(end-off, 1<<(9+mrand.IntN(13)))) + 1
	if mrand.IntN(2) == 0 {
		off -= off % redoSector
		n += redoSector - n%redoSector
	}
	off = max(off, start)
	return off, min(n, end-off)
}

// The small volume: its content is random, but for what BitLocker keeps for itself.
const smallSize = 6 << 20

var smallAreas = [4]int64{1 << 20, 2 << 20, 3 << 20, 5 << 20}

func smallSpec(t *testing.T) (Spec, bitlocker.ExternalKey) {
	t.Helper()
	disktest.NeedMounts(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, random(smallSize), 0o600); err != nil {
		t.Fatal(err)
	}
	image := openFile(t, path)
	defer image.Close()
	key, err := bitlocker.GenerateExternalKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	err = bitlocker.Format(image, smallSize, bitlocker.FormatOptions{
		Metadata: [3]int64(smallAreas[:3]), HeaderCopy: smallAreas[3], ID: redoTestID, Description: "TORTURE",
		Protectors: []bitlocker.ProtectorKey{{ID: redoTestID, Key: key}}, Rand: rand.Reader, Now: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return Spec{Disk: Disk{ID: "disk1", Image: path}, RunDir: disktest.RunDir(t)}, key
}

// usable returns the ranges between the areas, which the view shows as zeros.
func usable(view []byte) (ranges [][2]int) {
	start := 0
	for _, area := range smallAreas {
		end := int(area)
		ranges = append(ranges, [2]int{start, end})
		for start = end; bytes.Equal(view[start:start+redoSector], make([]byte, redoSector)); start += redoSector {
		}
	}
	return append(ranges, [2]int{start, len(view)})
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// readVolumeOf returns the whole decrypted volume.
func readVolumeOf(t *testing.T, spec Spec, key bitlocker.ExternalKey) []byte {
	t.Helper()
	opened, err := Open(t.Context(), spec, key)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close(t.Context())
	b, err := io.ReadAll(io.NewSectionReader(opened.volume, 0, opened.volume.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTortureFiles reads, writes, cuts, renames and removes files at random, and
// kills the agent meanwhile: files are as of their last sync, and the file system
// is sound.
func TestTortureFiles(t *testing.T) {
	m := &mountTest{}
	m.spec, m.key = newSpec(t)
	disktest.NeedPrograms(t, "ntfsfix", "ntfsresize")
	checked := 0
	for round := range tortureRounds {
		a := startAgent(t, m.spec, m.key, "keeper")
		f := &filesTorture{dir: filepath.Join(a.dir, fmt.Sprint("round", round)), model: map[string][]byte{}, synced: map[string][]byte{}}
		if err := os.Mkdir(f.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		err := torture(t, a, func() error { return f.step(t) })
		disktest.NothingLeft(t, m.spec.RunDir, closeTime)

		if err := m.spec.Recover(); err != nil {
			t.Fatal(err)
		}
		checkNTFS(t, m)
		m.mount(t)
		for name, want := range f.synced {
			got, err := os.ReadFile(m.path(filepath.Join(filepath.Base(f.dir), name)))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("round %d: %s: %d bytes, %v, want %d", round, name, len(got), err, len(want))
			}
		}
		checked += len(f.synced)
		if err := os.RemoveAll(m.path(filepath.Base(f.dir))); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		m.mustClose(t)
		t.Logf("round %d: %d files synced, ended by %v", round, len(f.synced), err)
	}
	if checked == 0 {
		t.Error("nothing was synced: the test tests nothing")
	}
}

// filesTorture is a folder with files, and what should be in them.
type filesTorture struct {
	dir    string
	model  map[string][]byte
	synced map[string][]byte // those not touched since they were synced
}

// Bounds of the folder, so that the disk is never full.
const (
	tortureFiles = 12
	tortureFile  = 2 << 20
)

func (f *filesTorture) step(t *testing.T) error {
	name := fmt.Sprint("file", mrand.IntN(tortureFiles))
	content, exists := f.model[name]
	what := mrand.IntN(20)
	if !exists || what < 12 {
		return f.write(name, content)
	}
	path := filepath.Join(f.dir, name)
	switch what {
	case 12, 13:
		return f.sync(name)
	case 14:
		n := mrand.IntN(len(content) + 1)
		delete(f.synced, name)
		f.model[name] = content[:n]
		return os.Truncate(path, int64(n))
	case 15:
		delete(f.synced, name)
		delete(f.model, name)
		return os.Remove(path)
	case 16:
		return f.rename(name)
	}
	got, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(got, content) {
		t.Errorf("%s: read %d bytes that are not those written", name, len(got))
	}
	return err
}

// write writes a part of the file, which it makes if need be.
func (f *filesTorture) write(name string, content []byte) error {
	off, n := randomRange(0, tortureFile)
	off, data := min(off, len(content)), random(n/8+1)
	delete(f.synced, name)
	content = slices.Concat(content[:off], data, content[min(len(content), off+len(data)):])
	f.model[name] = content
	file, err := os.OpenFile(filepath.Join(f.dir, name), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, int64(off))
	return errors.Join(err, file.Close())
}

func (f *filesTorture) sync(name string) error {
	file, err := os.Open(filepath.Join(f.dir, name))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return err
	}
	f.synced[name] = f.model[name]
	return nil
}

// rename gives the file a new name, maybe that of another, and syncs it.
func (f *filesTorture) rename(name string) error {
	to := fmt.Sprint("file", mrand.IntN(tortureFiles))
	delete(f.synced, name)
	delete(f.synced, to)
	if err := os.Rename(filepath.Join(f.dir, name), filepath.Join(f.dir, to)); err != nil || name == to {
		return err
	}
	f.model[to] = f.model[name]
	delete(f.model, name)
	return f.sync(to)
}
