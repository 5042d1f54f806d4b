package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/protocol"
)

const redoTestSize = 256 << 10

var redoTestID = bitlocker.MustGUID("4967d63b-2e29-4ad8-8399-f6a339e3d001")

// redoTest is an image with a log, and what should be in it.
type redoTest struct {
	path  string
	redo  *redoImage
	model []byte // with what was not synced
}

func newRedoTest(t testing.TB) *redoTest {
	t.Helper()
	rt := &redoTest{path: filepath.Join(t.TempDir(), "image"), model: random(redoTestSize)}
	if err := os.WriteFile(rt.path, rt.model, 0o600); err != nil {
		t.Fatal(err)
	}
	image, err := os.OpenFile(rt.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	rt.model = bytes.Clone(rt.model)
	rt.redo = newRedoImage(image, redoTestID)
	t.Cleanup(func() { rt.redo.close(); image.Close() })
	return rt
}

func (rt *redoTest) write(t *testing.T) {
	t.Helper()
	off := rand.IntN(redoTestSize/redoSector) * redoSector
	data := random(min(redoTestSize-off, (1+rand.IntN(40))*redoSector))
	copy(rt.model[off:], data)
	if n, err := rt.redo.WriteAt(data, int64(off)); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
}

func (rt *redoTest) sync(t testing.TB) {
	t.Helper()
	if err := rt.redo.Sync(); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRedoReadsWhatWasWritten(t *testing.T) {
	rt := newRedoTest(t)
	for i := range 2000 {
		rt.write(t)
		if i%7 == 0 {
			rt.sync(t)
		}
		off := rand.IntN(redoTestSize)
		got := make([]byte, rand.IntN(redoTestSize-off))
		if _, err := rt.redo.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, rt.model[off:off+len(got)]) {
			t.Fatalf("read of %d at %d: %v", len(got), off, err)
		}
	}
	if err := rt.redo.finish(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, rt.path), rt.model) {
		t.Error("the image is not what was written")
	}
	if _, err := os.Stat(redoPath(rt.path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the log is still there: %v", err)
	}
}

func TestRedoWritesNothingBeforeSync(t *testing.T) {
	rt := newRedoTest(t)
	before := read(t, rt.path)
	for range 50 {
		rt.write(t)
	}
	if !bytes.Equal(read(t, rt.path), before) {
		t.Error("the image has changed before the sync")
	}
	rt.sync(t)
	if !bytes.Equal(read(t, rt.path), rt.model) {
		t.Error("the image is not what was synced")
	}
}

// TestRedoAfterCrash cuts the log off at every record and within them, with the
// image as it was before, after or in the midst of copying.
func TestRedoAfterCrash(t *testing.T) {
	rt := newRedoTest(t)
	states := [][]byte{bytes.Clone(rt.model)} // after each sync
	ends := []int64{redoHeader}               // of the log then
	var cuts []int64
	for range 5 {
		for range 4 {
			rt.write(t)
			cuts = append(cuts, rt.redo.end, rt.redo.end-int64(rand.IntN(600)+1))
		}
		rt.sync(t)
		cuts = append(cuts, rt.redo.end, rt.redo.end-1)
		states, ends = append(states, bytes.Clone(rt.model)), append(ends, rt.redo.end)
	}
	cuts = append(cuts, 0, redoHeader-1, redoHeader)
	whole := read(t, redoPath(rt.path))
	for _, cut := range cuts {
		want := 0 // the last sync whose mark is in the log
		for i, end := range ends {
			if end <= cut {
				want = i
			}
		}
		// The image has some of the batches, the last one in part.
		image := bytes.Clone(states[rand.IntN(want+1)])
		for off := range image[:rand.IntN(redoTestSize)] {
			image[off] = states[want][off]
		}
		if got := redone(t, image, whole[:cut], redoTestID); !bytes.Equal(got, states[want]) {
			t.Errorf("log cut off at %d: the image is not what was synced", cut)
		}
	}
}

// redone returns image as log makes it.
func redone(t *testing.T, image, log []byte, id bitlocker.GUID) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := redo(file, bytes.NewReader(log), id); err != nil {
		t.Fatal(err)
	}
	return read(t, path)
}

func TestRedoIgnoresWhatIsNotItsOwn(t *testing.T) {
	rt := newRedoTest(t)
	before := read(t, rt.path)
	rt.write(t)
	rt.sync(t)
	old := read(t, redoPath(rt.path))
	rt.redo.writing.Lock()
	err := rt.redo.checkpointLocked()
	rt.redo.writing.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	begun := read(t, redoPath(rt.path))

	flipped := bytes.Clone(old)
	flipped[len(flipped)/2] ^= 1
	stranger := bitlocker.MustGUID("92a84d3b-dd80-4d0e-9e4e-b1e3284eaed8")
	tests := map[string]struct {
		log []byte
		id  bitlocker.GUID
	}{
		"another volume":   {old, stranger},
		"a flipped bit":    {flipped, redoTestID},
		"an earlier epoch": {append(begun, old[redoHeader:]...), redoTestID},
		"noise":            {random(5000), redoTestID},
		"nothing":          {nil, redoTestID},
	}
	for name, tt := range tests {
		if !bytes.Equal(redone(t, before, tt.log, tt.id), before) {
			t.Errorf("%s changed the image", name)
		}
	}
	if !bytes.Equal(redone(t, before, old, redoTestID), rt.model) { // the control
		t.Error("the log itself did not bring the image up to date")
	}
}

// TestRedoTakesLittleMemory replays one batch that is longer than memory is given to.
func TestRedoTakesLittleMemory(t *testing.T) {
	rt := newRedoTest(t)
	for range 40 {
		if _, err := rt.redo.WriteAt(random(redoTestSize), 0); err != nil {
			t.Fatal(err)
		}
	}
	rt.sync(t)
	log, err := os.Open(redoPath(rt.path))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	want := read(t, rt.path)
	if err := rt.redo.image.Truncate(0); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := redo(rt.redo.image, log, redoTestID); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 5*redoMaxWrite {
		t.Errorf("replaying %d bytes took %d bytes of memory", rt.redo.end, used)
	}
	if !bytes.Equal(read(t, rt.path), want) {
		t.Error("the image is not what was synced")
	}
}

// TestRedoReadsDuringSync reads while others write and sync: each sector, filled
// with one number, is as written last, or the time before.
func TestRedoReadsDuringSync(t *testing.T) {
	rt := newRedoTest(t)
	var readers sync.WaitGroup
	var ended atomic.Bool
	var written atomic.Uint32 // the last number that is everywhere
	write := func(number uint32) {
		data := bytes.Repeat(binary.LittleEndian.AppendUint32(nil, number), redoTestSize/4)
		if _, err := rt.redo.WriteAt(data, 0); err != nil {
			t.Error(err)
		}
		written.Store(number)
	}
	write(1)
	for range 3 {
		readers.Go(func() {
			b := make([]byte, redoTestSize)
			for !ended.Load() {
				oldest := written.Load()
				if _, err := rt.redo.ReadAt(b, 0); err != nil {
					t.Error(err)
					return
				}
				for i := 0; i < len(b); i += redoSector {
					first := b[i : i+4]
					if number := binary.LittleEndian.Uint32(first); number < oldest || !bytes.Equal(b[i:i+redoSector], bytes.Repeat(first, redoSector/4)) {
						t.Errorf("sector %d has number %d after %d, or parts of two", i/redoSector, number, oldest)
						return
					}
				}
			}
		})
	}
	for number := range uint32(50) {
		write(2 + number)
		rt.sync(t)
	}
	ended.Store(true)
	readers.Wait()
}

func FuzzRedo(f *testing.F) {
	rt := newRedoTest(f)
	if _, err := rt.redo.WriteAt(random(redoSector), 0); err != nil {
		f.Fatal(err)
	}
	rt.sync(f)
	f.Add([]byte(redoMagic))
	f.Add(read(f, redoPath(rt.path)))
	image, err := os.OpenFile(filepath.Join(f.TempDir(), "image"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		f.Fatal(err)
	}
	defer image.Close()
	f.Fuzz(func(t *testing.T, log []byte) {
		if err := redo(image, bytes.NewReader(log), redoTestID); err != nil {
			t.Error(err)
		}
	})
}

func TestRecover(t *testing.T) {
	m := mounted(t)
	writeSynced(t, m.path("file"), secret)
	if err := m.spec.Recover(); protocol.CodeOf(err) != protocol.CodeBusy {
		t.Errorf("Recover of an open disk: %v", err)
	}
	log := read(t, redoPath(m.spec.Image))
	m.mustClose(t)
	if _, err := os.Stat(redoPath(m.spec.Image)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a log is left: %v", err)
	}
	if err := os.WriteFile(redoPath(m.spec.Image), log, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.spec.Recover(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(redoPath(m.spec.Image)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the log was not used up: %v", err)
	}
}

// A sync that failed may have lost something, and the next one would not know: the
// disk is given up, and what was synced is found when it is next opened.
func TestFailedSyncIsRemembered(t *testing.T) {
	rt := newRedoTest(t)
	rt.write(t)
	rt.redo.image.Close() // the log is durable, the image cannot be written
	first := rt.redo.Sync()
	if first == nil {
		t.Fatal("a sync without an image succeeded")
	}
	if err := rt.redo.Sync(); !errors.Is(err, first) {
		t.Errorf("the next sync says %v, want %v", err, first)
	}
	if _, err := rt.redo.WriteAt(random(redoSector), 0); !errors.Is(err, first) {
		t.Errorf("a write after it says %v, want %v", err, first)
	}
	if got := redone(t, read(t, rt.path), read(t, redoPath(rt.path)), redoTestID); !bytes.Equal(got, rt.model) {
		t.Error("what was in the log is not in the image that it is replayed to")
	}
}

// TestFullHost fills the host's file system while the disk is written.
func TestFullHost(t *testing.T) {
	spec, key := newSpec(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=130m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	image := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(image, read(t, spec.Image), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Image = image
	m := &mountTest{spec: spec, key: key}
	m.mount(t)
	writeSynced(t, m.path("before"), secret)
	var err error
	for i := 0; err == nil && i < 40; i++ {
		err = writeFile(m.path("big"+string(rune('a'+i))), random(10<<20))
	}
	if err == nil {
		t.Fatal("the host did not fill up: the test tests nothing")
	}
	if err := m.close(t); err == nil {
		t.Error("Close did not say that writes are lost")
	}
	m.mount(t)
	if got, err := os.ReadFile(m.path("before")); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("synced before: %d bytes, %v", len(got), err)
	}
	m.mustClose(t)
	checkNTFS(t, m)
}
