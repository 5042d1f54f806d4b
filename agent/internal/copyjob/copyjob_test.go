package copyjob

import (
	"bytes"
	"context"
	"errors"
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

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

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
	to          []approval.Destination
}

func newWorld(t *testing.T, files map[string]string) *world {
	w := &world{disk: t.TempDir(), blobs: t.TempDir()}
	w.job = New(Config{BlobRoots: []string{w.blobs}, Parallel: 3})
	w.to = []approval.Destination{{Account: "contosodata", Endpoint: "file://" + w.blobs + "/store"}}
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
	result, err := w.job.Run(t.Context(), w.shares(t), w.to, func(Progress) {})
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
	if want := (Progress{4, 2, 2, 100_003}); r.Progress != want {
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
	r := run{tell: func(Progress) {}}
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

// countingStore counts the uploads that go through it.
type countingStore struct {
	ObjectStore
	puts atomic.Int64
	fail error
}

func (c *countingStore) Put(ctx context.Context, account, container, blob string, r io.Reader, size int64, crc uint64) error {
	c.puts.Add(1)
	if c.fail != nil {
		return c.fail
	}
	return c.ObjectStore.Put(ctx, account, container, blob, r, size, crc)
}

func (w *world) runWith(t *testing.T, ctx context.Context, store ObjectStore, tell func(Progress)) Result {
	t.Helper()
	files, err := plan(ctx, w.shares(t))
	if err != nil {
		t.Fatal(err)
	}
	r := &run{files: files, tell: tell, count: Progress{FilesTotal: int64(len(files))}}
	r.upload(ctx, map[string]ObjectStore{"contosodata": store}, 2)
	if ctx.Err() != nil {
		return Result{State: Paused, Progress: r.count}
	}
	result, err := r.result()
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestResumesWithoutUploadingAgain(t *testing.T) {
	files := make(map[string]string)
	for _, c := range "abcdefghijklmnop" {
		files["contosodata_BlockBlob/photos/"+string(c)] = strings.Repeat(string(c), 1000)
	}
	w := newWorld(t, files)
	w.ship(t)
	folder, err := OpenFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	store := &countingStore{ObjectStore: folder}

	ctx, cancel := context.WithCancel(t.Context())
	r := w.runWith(t, ctx, store, func(Progress) { cancel() }) // after the first file
	if r.State != Paused || store.puts.Load() == 0 || r.Progress.FilesErrored != 0 {
		t.Fatalf("interrupted: %s %+v after %d uploads", r.State, r.Progress, store.puts.Load())
	}
	done := r.Progress.FilesDone
	store.puts.Store(0)
	r = w.runWith(t, t.Context(), store, func(Progress) {})
	if r.State != Completed || r.Progress.FilesDone != 16 {
		t.Errorf("resumed: %s %+v", r.State, r.Progress)
	}
	if got := store.puts.Load(); got > 16-done {
		t.Errorf("%d uploads after %d of 16 files were there", got, done)
	}
	store.puts.Store(0)
	w.runWith(t, t.Context(), store, func(Progress) {})
	if got := store.puts.Load(); got != 0 {
		t.Errorf("%d uploads though everything was there", got)
	}
}

func TestDestinationFailureHalts(t *testing.T) {
	w := newWorld(t, map[string]string{"contosodata_BlockBlob/photos/a": "a"})
	w.ship(t)
	folder, err := OpenFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	r := w.runWith(t, t.Context(), &countingStore{ObjectStore: folder, fail: errors.New("full")}, func(Progress) {})
	if r.State != Halted || !slices.Equal(r.Codes, []manifest.ErrorCode{UploadFailed}) {
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
	if _, err := job.open(approval.Destination{Account: "contosodata", Endpoint: "file://" + root + "/out/tmp"}); err == nil {
		t.Error("a link led out of the blob root")
	}
	w := newWorld(t, map[string]string{"otheraccount_BlockBlob/photos/a": "a"})
	if _, err := w.job.Run(t.Context(), w.shares(t), w.to, func(Progress) {}); protocol.CodeOf(err) != protocol.CodeAction {
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
	put := func(name string, size int64, crc uint64) error {
		return f.Put(t.Context(), "contosodata", "photos", name, bytes.NewReader(data), size, crc)
	}
	for name, err := range map[string]error{
		"wrong crc":    put("a", 7, crc+1),
		"too short":    put("a", 8, crc),
		"too long":     put("a", 6, crc),
		"leads out":    put("../../../x", 7, crc),
		"not clean":    put("a//b", 7, crc),
		"is absolute?": f.Put(t.Context(), "", "", "x", bytes.NewReader(data), 7, crc),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, ok, err := f.Stat(t.Context(), "contosodata", "photos", "a"); ok || err != nil {
		t.Errorf("a refused object is there: %v, %v", ok, err)
	}
	left, err := os.ReadDir(filepath.Join(dir, incoming))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := put("a/b", 7, crc); err != nil {
		t.Fatal(err)
	}
	if size, got, ok, err := f.Stat(t.Context(), "contosodata", "photos", "a/b"); size != 7 || got != crc || !ok || err != nil {
		t.Errorf("Stat() = %d, %x, %v, %v", size, got, ok, err)
	}
	if err := os.Symlink("/tmp", filepath.Join(dir, "evil")); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(t.Context(), "evil", "photos", "a", bytes.NewReader(data), 7, crc); err == nil {
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
