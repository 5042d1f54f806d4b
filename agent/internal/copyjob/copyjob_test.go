package copyjob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is one disk with shares, and a blob root with a job over it.
type world struct {
	disk, blobs string
	job         *Job
	to          []Target
}

func newWorld(t *testing.T, files map[string]string) *world {
	w := &world{disk: t.TempDir(), blobs: t.TempDir()}
	w.job = New(Config{BlobRoots: []string{w.blobs}, Parallel: 3, Dir: t.TempDir()})
	w.to = []Target{{Destination: approval.Destination{Account: "contosodata", Endpoint: "file://" + w.blobs + "/store"}}}
	for name, content := range files {
		w.write(t, name, content)
	}
	return w
}

func (w *world) write(t *testing.T, name, content string) {
	t.Helper()
	path := filepath.Join(w.disk, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func (w *world) shares(t *testing.T) []Share {
	t.Helper()
	shares, err := Shares("disk1", w.disk)
	if err != nil {
		t.Fatal(err)
	}
	return shares
}

func (w *world) ship(t *testing.T) []Manifest {
	t.Helper()
	list, err := PrepareToShip(t.Context(), w.shares(t))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (w *world) run(t *testing.T) Result {
	t.Helper()
	result, err := w.job.Run(t.Context(), "ORD-1001", w.shares(t), w.to, func(Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// stored returns what is in the blob store, by path below it.
func (w *world) stored(t *testing.T) map[string]string {
	t.Helper()
	got := make(map[string]string)
	root := filepath.Join(w.blobs, "store")
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		got[strings.TrimPrefix(path, root+"/")] = string(data)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return got
}

func codesOf(t *testing.T, r Result) map[string][]manifest.ErrorCode {
	t.Helper()
	log, err := manifest.ParseCopyLog(r.CopyLog)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]manifest.ErrorCode)
	for _, e := range log.Errored {
		got[e.Path] = e.Codes
	}
	return got
}

// The story: misplaced files halt the job, are moved, and the job completes.
func TestHaltRepairComplete(t *testing.T) {
	w := newWorld(t, map[string]string{
		"contosodata_BlockBlob/photos/2024/a.jpg":  "aaa",
		"contosodata_BlockBlob/photos/b.jpg":       strings.Repeat("b", 100_000),
		"contosodata_BlockBlob/Wrong_Folder/c.jpg": "ccc",
		"contosodata_BlockBlob/stray.txt":          "s",
		"System Volume Information/x":              "not a share",
	})
	first := w.ship(t)
	if len(first) != 1 || first[0].Previous != "" || len(first[0].Difference.Added) != 4 {
		t.Fatalf("first manifests: %+v", first)
	}

	r := w.run(t)
	want := map[string][]manifest.ErrorCode{
		"contosodata_BlockBlob/Wrong_Folder/c.jpg": {manifest.NameAlphaNumeric},
		"contosodata_BlockBlob/stray.txt":          {manifest.NameLength},
	}
	if diff := cmp.Diff(want, codesOf(t, r)); r.State != Halted || diff != "" {
		t.Errorf("first run: %s (-want +got):\n%s", r.State, diff)
	}
	if want := (Progress{FilesTotal: 4, FilesDone: 2, FilesErrored: 2, BytesTotal: 100_003, BytesDone: 100_003}); r.Progress != want {
		t.Errorf("progress %+v, want %+v", r.Progress, want)
	}
	good := map[string]string{
		"contosodata/photos/2024/a.jpg": "aaa",
		"contosodata/photos/b.jpg":      strings.Repeat("b", 100_000),
	}
	if diff := cmp.Diff(good, w.stored(t)); diff != "" {
		t.Errorf("blob store (-want +got):\n%s", diff)
	}

	share := filepath.Join(w.disk, "contosodata_BlockBlob")
	for from, to := range map[string]string{"Wrong_Folder/c.jpg": "photos/c.jpg", "stray.txt": "photos/stray.txt"} {
		if err := os.Rename(filepath.Join(share, from), filepath.Join(share, to)); err != nil {
			t.Fatal(err)
		}
	}
	// Moved, but prepare-to-ship was not run: what was listed is gone, and what
	// is there is not listed.
	r = w.run(t)
	if codes := codesOf(t, r); r.State != Halted || len(codes) != 4 || !slices.Equal(r.Codes, []manifest.ErrorCode{NotAsShipped}) {
		t.Errorf("without prepare-to-ship: %s %v", r.State, codes)
	}

	second := w.ship(t)
	if second[0].Previous != first[0].Digest || len(second[0].Difference.Moved) != 2 {
		t.Errorf("second manifest: previous %q, difference\n%s", second[0].Previous, second[0].Difference)
	}
	r = w.run(t)
	if r.State != Completed || len(r.Codes) != 0 {
		t.Errorf("last run: %s %v", r.State, codesOf(t, r))
	}
	good["contosodata/photos/c.jpg"], good["contosodata/photos/stray.txt"] = "ccc", "s"
	if diff := cmp.Diff(good, w.stored(t)); diff != "" {
		t.Errorf("blob store (-want +got):\n%s", diff)
	}
	old, err := os.ReadFile(filepath.Join(w.disk, ManifestDir, "contosodata_BlockBlob-BOM.1.xml"))
	if err != nil || manifest.Digest(old) != first[0].Digest {
		t.Errorf("the first bill was not kept: %v", err)
	}
}

func TestCodesOfFiles(t *testing.T) {
	w := newWorld(t, map[string]string{
		"contosodata_PageBlob/disks/odd.vhd":     "511",
		"contosodata_PageBlob/disks/good.vhd":    strings.Repeat("x", 512),
		"contosodata_BlockBlob/photos/truth.jpg": "as shipped",
		"contosodata_BlockBlob/photos/later.jpg": "x",
		"contosodata_BlockBlob/disks/good.vhd":   "same destination as the page blob",
	})
	w.ship(t)
	w.write(t, "contosodata_BlockBlob/photos/truth.jpg", "as changed") // same size
	w.write(t, "contosodata_BlockBlob/photos/new.jpg", "after the bill")
	if err := os.Remove(filepath.Join(w.disk, "contosodata_BlockBlob/photos/later.jpg")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(w.disk, "contosodata_BlockBlob/photos/link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(w.disk, "contosodata_BlockBlob/photos/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := w.run(t)
	want := map[string][]manifest.ErrorCode{
		"contosodata_PageBlob/disks/odd.vhd":     {manifest.SizeAlignment},
		"contosodata_PageBlob/disks/good.vhd":    {DuplicateName},
		"contosodata_BlockBlob/photos/truth.jpg": {NotAsShipped},
		"contosodata_BlockBlob/photos/later.jpg": {NotAsShipped},
		"contosodata_BlockBlob/photos/new.jpg":   {NotAsShipped},
		"contosodata_BlockBlob/photos/link":      {manifest.TypeUnsupported},
		"contosodata_BlockBlob/photos/pipe":      {manifest.TypeUnsupported},
	}
	if diff := cmp.Diff(want, codesOf(t, r)); r.State != Halted || diff != "" {
		t.Errorf("%s (-want +got):\n%s", r.State, diff)
	}
	if got := slices.Sorted(maps.Keys(w.stored(t))); !slices.Equal(got, []string{"contosodata/disks/good.vhd"}) {
		t.Errorf("stored %q", got)
	}
}

func TestLongCopyLogIsCut(t *testing.T) {
	long := strings.Repeat("x", 4000)
	var r run
	for range 1000 {
		r.files = append(r.files, &file{path: long, codes: []manifest.ErrorCode{manifest.NameLength}})
	}
	r.files = append(r.files, &file{path: "last", codes: []manifest.ErrorCode{ReadFailed}})
	got, err := r.result()
	if err != nil || len(got.CopyLog) > maxCopyLog || 2*maxCopyLog > rpc.MaxMessage {
		t.Errorf("%d bytes, %v", len(got.CopyLog), err)
	}
	log, err := manifest.ParseCopyLog(got.CopyLog)
	if err != nil || int64(len(log.Errored))+log.Unlisted != 1001 || log.Unlisted == 0 {
		t.Errorf("%d listed and %d not, %v", len(log.Errored), log.Unlisted, err)
	}
	if !slices.Equal(got.Codes, []manifest.ErrorCode{manifest.NameLength, ReadFailed}) {
		t.Errorf("codes: %v", got.Codes)
	}
}

func TestNoBillNoUpload(t *testing.T) {
	w := newWorld(t, map[string]string{"contosodata_BlockBlob/photos/a.jpg": "aaa"})
	for _, bom := range []string{"", "this is no bill of materials"} {
		if bom != "" {
			w.write(t, ManifestDir+"/contosodata_BlockBlob-BOM.xml", bom)
		}
		if r := w.run(t); r.State != Halted || !slices.Equal(r.Codes, []manifest.ErrorCode{NotAsShipped}) || len(w.stored(t)) != 0 {
			t.Errorf("with bill %q: %s %v, stored %v", bom, r.State, r.Codes, w.stored(t))
		}
	}
}

// What cannot be read stays an error; what was repaired does not hide it.
func TestUnreadableFileIsAnErrorThatStays(t *testing.T) {
	f := &file{codes: []manifest.ErrorCode{ReadFailed}, path: "photos/a", share: Share{Share: manifest.Share{Account: "contosodata", Kind: manifest.BlockBlob}}}
	r := &run{files: []*file{f}}
	if got, err := r.result(); err != nil || got.State != CompletedWithErrors {
		t.Errorf("an unreadable file alone: %s, %v", got.State, err)
	}
	g := &file{codes: []manifest.ErrorCode{manifest.NameLength}, path: "b", share: f.share}
	r = &run{files: []*file{f, g}}
	if got, err := r.result(); err != nil || got.State != Halted {
		t.Errorf("with a repairable one: %s, %v", got.State, err)
	}
}

// countingStore counts the questions and uploads that go through it.
type countingStore struct {
	ObjectStore
	finds, puts atomic.Int64
	fail        error
	after       func() // an upload
}

func (c *countingStore) Find(ctx context.Context, o Object) (bool, error) {
	c.finds.Add(1)
	return c.ObjectStore.Find(ctx, o)
}

func (c *countingStore) Put(ctx context.Context, o Object, r io.Reader, sent func(int64)) error {
	c.puts.Add(1)
	if c.fail != nil {
		return c.fail
	}
	err := c.ObjectStore.Put(ctx, o, r, sent)
	if c.after != nil {
		c.after()
	}
	return err
}

// Check and Open make the store the one of every https:// endpoint.
func (c *countingStore) Check(approval.Destination) error { return nil }
func (c *countingStore) Open(Target) (ObjectStore, error) { return c, nil }
func (c *countingStore) Close() error                     { return nil }

// into makes the job upload to a folder through a countingStore.
func (w *world) into(t *testing.T) *countingStore {
	t.Helper()
	folder, err := OpenFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { folder.Close() })
	store := &countingStore{ObjectStore: folder}
	w.job.cfg.Blobs = store
	w.to[0].Endpoint = "https://contosodata.blob.core.windows.net"
	return store
}

func TestResumesWithoutUploadingAgain(t *testing.T) {
	files := make(map[string]string)
	for _, c := range "abcdefghijklmnop" {
		files["contosodata_BlockBlob/photos/"+string(c)] = strings.Repeat(string(c), 1000)
	}
	w := newWorld(t, files)
	w.ship(t)
	store := w.into(t)
	ctx, cancel := context.WithCancel(t.Context())
	store.after = func() {
		if store.puts.Load() >= 5 { // several at once may have counted before this is asked
			cancel()
		}
	}
	r, err := w.job.Run(ctx, "ORD-1001", w.shares(t), w.to, func(Progress) {})
	done := r.Progress.FilesDone
	if err != nil || r.State != Paused || done == 0 || done == 16 || r.Progress.FilesErrored != 0 {
		t.Fatalf("interrupted: %s %+v, %v", r.State, r.Progress, err)
	}
	store.after = nil
	store.puts.Store(0)
	r = w.run(t)
	if r.State != Completed || r.Progress.FilesDone != 16 || r.Progress.BytesDone != 16_000 {
		t.Errorf("resumed: %s %+v", r.State, r.Progress)
	}
	if puts, finds := store.puts.Load(), store.finds.Load(); puts != 16-done || finds != 16-done {
		t.Errorf("resumed after %d of 16: %d uploads, %d questions", done, puts, finds)
	}
	if left, _ := os.ReadDir(w.job.cfg.Dir); len(left) != 0 {
		t.Errorf("the ledger of a completed job stays: %v", left)
	}
}

// A ledger whose end was torn off, or that is gone, costs questions, not uploads.
func TestTornLedger(t *testing.T) {
	w := newWorld(t, map[string]string{"contosodata_BlockBlob/photos/a": "a", "contosodata_BlockBlob/photos/b": "b", "contosodata_BlockBlob/UP/c": "c"})
	w.ship(t)
	store := w.into(t)
	w.run(t) // halts on c
	ledgers, err := filepath.Glob(filepath.Join(w.job.cfg.Dir, "*"))
	if err != nil || len(ledgers) != 1 {
		t.Fatalf("%q, %v", ledgers, err)
	}
	for _, step := range []struct{ size, finds int64 }{{32, 0}, {31, 1}, {16, 1}, {3, 2}, {0, 2}} {
		if err := os.Truncate(ledgers[0], step.size); err != nil {
			t.Fatal(err)
		}
		store.finds.Store(0)
		store.puts.Store(0)
		r := w.run(t)
		if r.Progress.FilesDone != 2 || store.puts.Load() != 0 || store.finds.Load() != step.finds {
			t.Errorf("cut to %d bytes: %+v, %d uploads, %d questions, want %d", step.size, r.Progress, store.puts.Load(), store.finds.Load(), step.finds)
		}
		if info, err := os.Stat(ledgers[0]); err != nil || info.Size() != 32 {
			t.Errorf("cut to %d bytes: it was not mended", step.size)
		}
	}
	if _, err := w.job.Run(t.Context(), "ORD-1002", w.shares(t), w.to, func(Progress) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ledgers[0]); err == nil {
		t.Error("the ledger of an order before stays")
	}
}

// What is at the destination is never overwritten.
func TestNothingIsOverwritten(t *testing.T) {
	w := newWorld(t, map[string]string{"contosodata_BlockBlob/photos/same": "same", "contosodata_BlockBlob/photos/other": "ours!"})
	w.ship(t)
	for name, content := range map[string]string{"same": "same", "other": "their"} {
		name = filepath.Join(w.blobs, "store/contosodata/photos", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, run := range []string{"first", "second"} { // only the second asks beforehand
		r := w.run(t)
		want := map[string][]manifest.ErrorCode{
			"contosodata_BlockBlob/photos/other": {AlreadyExists},
			"contosodata_BlockBlob/photos/same":  {TimeNotKept}, // it is there since another time
		}
		if diff := cmp.Diff(want, codesOf(t, r)); r.State != Halted || r.Progress.FilesDone != 1 || diff != "" {
			t.Errorf("%s run: %s %+v (-want +got):\n%s", run, r.State, r.Progress, diff)
		}
	}
	if got := w.stored(t)["contosodata/photos/other"]; got != "their" {
		t.Errorf("it was overwritten: %q", got)
	}
}

// The time of modification goes along; where it cannot, that is a warning.
func TestTimeIsKept(t *testing.T) {
	w := newWorld(t, map[string]string{"contosodata_BlockBlob/photos/a": "a"})
	then := time.Date(2019, 5, 4, 3, 2, 1, 7000, time.UTC)
	if err := os.Chtimes(filepath.Join(w.disk, "contosodata_BlockBlob/photos/a"), then, then); err != nil {
		t.Fatal(err)
	}
	w.ship(t)
	if r := w.run(t); r.State != Completed {
		t.Fatal(r.State)
	}
	info, err := os.Stat(filepath.Join(w.blobs, "store/contosodata/photos/a"))
	if err != nil || !info.ModTime().Equal(then) {
		t.Errorf("modified %v, %v", info, err)
	}
	store := w.into(t)
	store.fail = fmt.Errorf("%w: too long ago", ErrNotKept)
	r := w.run(t)
	if r.State != CompletedWithWarnings || r.Progress.FilesErrored != 0 || r.Progress.FilesDone != 1 || !slices.Equal(r.Codes, []manifest.ErrorCode{TimeNotKept}) {
		t.Errorf("%s %v %+v", r.State, r.Codes, r.Progress)
	}
}

// A time that cannot be kept is foretold by prepare-to-ship, and is a warning of
// the copy job, also if the job is resumed.
func TestTimeIsNotKept(t *testing.T) {
	w := newWorld(t, nil)
	disk, err := os.MkdirTemp("/dev/shm", "lockbox-copyjob-") // few file systems know such times
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(disk) })
	w.disk = disk
	w.write(t, "contosodata_BlockBlob/photos/late", "late")
	w.write(t, "contosodata_BlockBlob/photos/now", "now")
	late := time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)
	name := filepath.Join(disk, "contosodata_BlockBlob/photos/late")
	when := unix.Timespec{Sec: late.Unix()}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{when, when}, 0); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(name); err != nil || !info.ModTime().Equal(late) {
		t.Fatalf("this file system cannot keep it either: %v, %v", info.ModTime(), err)
	}
	for _, m := range w.ship(t) {
		if !slices.Equal(m.Timeless, []string{"photos/late"}) || len(m.Left) > 0 {
			t.Errorf("prepare-to-ship foretells %q, %q", m.Timeless, m.Left)
		}
	}
	for range 2 { // the second one finds it there
		r := w.run(t)
		log, err := manifest.ParseCopyLog(r.CopyLog)
		if err != nil {
			t.Fatal(err)
		}
		want := []manifest.ErroredEntity{{Path: "contosodata_BlockBlob/photos/late", Codes: []manifest.ErrorCode{TimeNotKept}}}
		if r.State != CompletedWithWarnings || r.Progress.FilesDone != 2 || log.Status != manifest.CompletedWithWarnings || !cmp.Equal(want, log.Errored) {
			t.Errorf("%s %+v %+v", r.State, r.Progress, log)
		}
	}
}

// Nobody knocks a thousand times at a door that does not open.
func TestClosedAccountIsLeftAlone(t *testing.T) {
	files := make(map[string]string)
	for i := range 50 {
		files[fmt.Sprintf("contosodata_BlockBlob/photos/%d", i)] = "x"
	}
	w := newWorld(t, files)
	w.ship(t)
	store := w.into(t)
	for fail, code := range map[error]manifest.ErrorCode{ErrDenied: AccessDenied, ErrUnavailable: Unavailable} {
		store.fail = fail
		store.puts.Store(0)
		r := w.run(t)
		if r.State != Halted || r.Progress.FilesErrored != 50 || !slices.Equal(r.Codes, []manifest.ErrorCode{code}) || store.puts.Load() > 3 {
			t.Errorf("%v: %s %v, %d errored, %d uploads", fail, r.State, r.Codes, r.Progress.FilesErrored, store.puts.Load())
		}
	}
}

func TestDestinationFailureHalts(t *testing.T) {
	w := newWorld(t, map[string]string{"contosodata_BlockBlob/photos/a": "a"})
	w.ship(t)
	w.into(t).fail = errors.New("full")
	if r := w.run(t); r.State != Halted || !slices.Equal(r.Codes, []manifest.ErrorCode{UploadFailed}) {
		t.Errorf("%s %v", r.State, r.Codes)
	}
}

func TestDestinations(t *testing.T) {
	root := t.TempDir()
	if err := os.Symlink("/", filepath.Join(root, "out")); err != nil {
		t.Fatal(err)
	}
	job := New(Config{BlobRoots: []string{root}})
	for endpoint, ok := range map[string]bool{
		"file://" + root:                true,
		"file://" + root + "/a/b":       true,
		"file://" + root + "/../x":      false,
		"file://" + root + "x":          false,
		"file:///etc":                   false,
		"file://host" + root:            false,
		"file://" + root + "?x=1":       false,
		"https://contoso.blob.example/": false,
		root:                            false,
		"":                              false,
	} {
		err := job.Check([]approval.Destination{{Account: "contosodata", Endpoint: endpoint}})
		if ok != (err == nil) || !ok && protocol.CodeOf(err) != protocol.CodeAction {
			t.Errorf("endpoint %q: %v", endpoint, err)
		}
	}
	// Below the root by its name, but a link leads out.
	if _, err := job.open(Target{Destination: approval.Destination{Account: "contosodata", Endpoint: "file://" + root + "/out/tmp"}}); err == nil {
		t.Error("a link led out of the blob root")
	}
	w := newWorld(t, map[string]string{"otheraccount_BlockBlob/photos/a": "a"})
	if _, err := w.job.Run(t.Context(), "ORD-1001", w.shares(t), w.to, func(Progress) {}); protocol.CodeOf(err) != protocol.CodeAction {
		t.Errorf("a share of an account that the consent does not name: %v", err)
	}
}

func TestFolderStore(t *testing.T) {
	dir := t.TempDir()
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := []byte("content")
	crc := manifest.ChecksumCRC64(data)
	now := time.Now()
	object := func(name string, size int64, crc uint64) Object {
		return Object{Account: "contosodata", Container: "photos", Name: name, Size: size, CRC64: crc, Modified: now}
	}
	put := func(o Object) error { return f.Put(t.Context(), o, bytes.NewReader(data), func(int64) {}) }
	for name, err := range map[string]error{
		"wrong crc":    put(object("a", 7, crc+1)),
		"too short":    put(object("a", 8, crc)),
		"too long":     put(object("a", 6, crc)),
		"leads out":    put(object("../../../x", 7, crc)),
		"not clean":    put(object("a//b", 7, crc)),
		"is absolute?": put(Object{Name: "x", Size: 7, CRC64: crc}),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if ok, err := f.Find(t.Context(), object("a", 7, crc)); ok || err != nil {
		t.Errorf("a refused object is there: %v, %v", ok, err)
	}
	left, err := os.ReadDir(filepath.Join(dir, incoming))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := put(object("a/b", 7, crc)); err != nil {
		t.Fatal(err)
	}
	if ok, err := f.Find(t.Context(), object("a/b", 7, crc)); !ok || err != nil {
		t.Errorf("Find() = %v, %v", ok, err)
	}
	for _, other := range []Object{object("a/b", 7, crc+1), object("a/b", 6, crc), object("a", 7, crc)} {
		if ok, err := f.Find(t.Context(), other); ok || !errors.Is(err, ErrExists) {
			t.Errorf("Find(%+v) = %v, %v", other, ok, err)
		}
	}
	if err := os.Symlink("/tmp", filepath.Join(dir, "evil")); err != nil {
		t.Fatal(err)
	}
	if err := put(Object{Account: "evil", Container: "photos", Name: "a", Size: 7, CRC64: crc}); err == nil {
		t.Error("a link led out of the store")
	}
}

// A link planted where the bill is to be written leads nowhere.
func TestPrepareToShipStaysOnTheDisk(t *testing.T) {
	w := newWorld(t, map[string]string{"contosodata_BlockBlob/photos/a": "a"})
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(w.disk, ManifestDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := PrepareToShip(t.Context(), w.shares(t)); err == nil {
		t.Error("the bill was written through a link")
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("outside: %v", left)
	}
}
