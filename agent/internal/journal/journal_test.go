package journal

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// childEnv names the directory of the journal that a child process fills.
const childEnv = "JOURNAL_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		appendForever(dir)
	}
	// No test cuts the power, so the thousands of files that are made durable may as
	// well lie in memory, where that takes no time.
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() && os.Getenv("TMPDIR") == "" {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	goleak.VerifyTestMain(m)
}

var (
	testNode = protocol.NodeID{Serial: "DBX0001", Node: 1}
	testKey  = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
)

func testRecord(n int) auditlog.Record {
	r := auditlog.NewRecord(time.UnixMilli(1_790_000_000_000+int64(n)), auditlog.OpLockVolume, auditlog.Success)
	r.Caller = testNode.URI().String()
	r.Properties = map[string]string{"n": strconv.Itoa(n)}
	return r
}

func open(t testing.TB, dir string) *Journal {
	t.Helper()
	j, err := New(dir, testNode, testKey)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.records.Close(); j.hashes.Close() })
	return j
}

func newDir(t testing.TB) string { return filepath.Join(t.TempDir(), "journal") }

// fill appends records up to number n, exclusive.
func fill(t testing.TB, j *Journal, n int) {
	t.Helper()
	for i := int(j.Size()); i < n; i++ {
		if got, err := j.Append(t.Context(), testRecord(i)); err != nil || got != int64(i) {
			t.Fatalf("append %d: %d, %v", i, got, err)
		}
	}
}

func closeJournal(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// all returns every record of the journal.
func all(t testing.TB, j *Journal) []Entry {
	t.Helper()
	var out []Entry
	for {
		entries, err := j.Read(int64(len(out)))
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			return out
		}
		out = append(out, entries...)
	}
}

// check reads the journal as an outsider would: the records in order, and a
// checkpoint that their tree has, signed by the node.
func check(t testing.TB, j *Journal, n int) {
	t.Helper()
	var tree auditlog.Tree
	entries := all(t, j)
	for i, e := range entries {
		r, err := auditlog.ParseRecord(e.Record)
		if err != nil || e.Index != int64(i) || r.Properties["n"] != strconv.Itoa(i) || r.Origin != testNode.String() {
			t.Fatalf("record %d is %d: %+v, %v", i, e.Index, r, err)
		}
		if _, err := tree.Append(e.Record); err != nil {
			t.Fatal(err)
		}
	}
	if len(entries) != n || j.Size() != int64(n) {
		t.Fatalf("%d records, size %d, want %d", len(entries), j.Size(), n)
	}
	signed, err := j.Checkpoint(int64(n))
	if err != nil {
		t.Fatal(err)
	}
	v, err := auditlog.NewVerifier(testNode.URI().String(), testKey.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	c, err := auditlog.OpenCheckpoint(signed, v)
	want, _ := auditlog.TreeHash(tree.Size(), &tree)
	if err != nil || c.Size != int64(n) || c.Hash != want {
		t.Fatalf("checkpoint %v, %v, want root %v", c, err, want)
	}
}

func TestAppendAndReopen(t *testing.T) {
	dir := newDir(t)
	for n := range 20 {
		j := open(t, dir)
		check(t, j, n)
		fill(t, j, n+1)
		check(t, j, n+1)
		closeJournal(t, j)
	}
}

func TestOldCheckpointsStayConsistent(t *testing.T) {
	j := open(t, newDir(t))
	fill(t, j, 13)
	v, _ := auditlog.NewVerifier(testNode.URI().String(), testKey.Public().(ed25519.PublicKey))
	at := func(n int64) auditlog.Checkpoint {
		signed, err := j.Checkpoint(n)
		if err != nil {
			t.Fatal(err)
		}
		c, err := auditlog.OpenCheckpoint(signed, v)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for n := range int64(14) {
		proof, err := auditlog.ProveConsistency(n, 13, j)
		if err != nil {
			t.Fatal(err)
		}
		if err := auditlog.CheckConsistency(proof, at(n), at(13)); err != nil {
			t.Errorf("from %d: %v", n, err)
		}
	}
	for _, n := range []int64{-1, 14} {
		if _, err := j.Checkpoint(n); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("checkpoint of %d: %v", n, err)
		}
	}
}

func TestAppendRefusals(t *testing.T) {
	j := open(t, newDir(t))
	if _, err := j.Append(t.Context(), auditlog.Record{}); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("an empty record: %v", err)
	}
	check(t, j, 0)
}

func TestConcurrentAppends(t *testing.T) {
	j := open(t, newDir(t))
	var mu sync.Mutex
	seen := make(map[int64]bool)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				n, err := j.Append(t.Context(), testRecord(0))
				mu.Lock()
				if err != nil || seen[n] {
					t.Errorf("append: %d again: %v, %v", n, seen[n], err)
				}
				seen[n] = true
				mu.Unlock()
				if _, err := j.Unacked(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	closeJournal(t, j)
	if j := open(t, j.dir); j.Size() != 80 {
		t.Errorf("%d records", j.Size())
	}
}

// image is the bytes of a journal's two files.
type image struct{ records, hashes []byte }

func (im image) write(t testing.TB) string {
	t.Helper()
	dir := newDir(t)
	for name, data := range map[string][]byte{recordsFile: im.records, hashesFile: im.hashes} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func snapshot(t testing.TB, dir string) image {
	t.Helper()
	var im image
	for name, to := range map[string]*[]byte{recordsFile: &im.records, hashesFile: &im.hashes} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		*to = data
	}
	return im
}

// images returns the files with n records and with n+1.
func images(t testing.TB, n int) (before, after image) {
	t.Helper()
	j := open(t, newDir(t))
	fill(t, j, n)
	before = snapshot(t, j.dir)
	fill(t, j, n+1)
	return before, snapshot(t, j.dir)
}

// TestCrashAtEveryByte stops the writing of a record at every byte of both
// files (of the first record, at every seventh). No record from before is lost,
// the journal opens, and goes on.
func TestCrashAtEveryByte(t *testing.T) {
	for n, step := range map[int]int{0: 7, 3: 1} {
		before, after := images(t, n)
		try := func(im image, want int) {
			t.Helper()
			j := open(t, im.write(t))
			check(t, j, want)
			if _, end := j.head(); int64(len(snapshot(t, j.dir).records)) != end {
				t.Errorf("something is left behind record %d", want)
			}
			fill(t, j, want+1)
			closeJournal(t, j)
			j = open(t, j.dir)
			check(t, j, want+1)
			closeJournal(t, j)
		}
		for cut := len(before.records); cut < len(after.records); cut += step {
			try(image{after.records[:cut], before.hashes}, n)
			if cut%7 > 0 {
				continue
			}
			zeros := make([]byte, len(after.records)-cut)
			try(image{append(bytes.Clone(after.records[:cut]), zeros...), before.hashes}, n)
		}
		for cut := len(before.hashes); cut <= len(after.hashes); cut += step {
			try(image{after.records, after.hashes[:cut]}, n+1)
			zeros := make([]byte, len(after.hashes)-cut)
			try(image{after.records, append(bytes.Clone(after.hashes[:cut]), zeros...)}, n+1)
		}
	}
}

// TestDamageIsRefused makes what no crash can make: acknowledged records that
// are cut off or changed, hashes that do not fit.
func TestDamageIsRefused(t *testing.T) {
	_, good := images(t, 3)
	refused := func(what string, im image) {
		t.Helper()
		dir := im.write(t)
		if j, err := New(dir, testNode, testKey); protocol.CodeOf(err) != protocol.CodeFaulted {
			t.Errorf("%s: %v, %v", what, j, err)
		}
		if after := snapshot(t, dir); !bytes.Equal(after.records, im.records) || !bytes.Equal(after.hashes, im.hashes) {
			t.Errorf("%s: the evidence was changed", what)
		}
	}
	for cut := 0; cut < len(good.records); cut += 3 {
		refused(fmt.Sprintf("records cut at %d", cut), image{good.records[:cut], good.hashes})
	}
	for i := 0; i < len(good.records); i += 3 {
		bad := bytes.Clone(good.records)
		bad[i] ^= 1
		refused(fmt.Sprintf("record byte %d changed", i), image{bad, good.hashes})
	}
	for i := range good.hashes {
		bad := bytes.Clone(good.hashes)
		bad[i] ^= 1
		refused(fmt.Sprintf("hash byte %d changed", i), image{good.records, bad})
	}
	refused("one hash too many", image{good.records, append(bytes.Clone(good.hashes), make([]byte, 32)...)})
	closeJournal(t, open(t, good.write(t)))
}

func TestJournalOfAnotherNodeIsRefused(t *testing.T) {
	_, good := images(t, 1)
	dir := good.write(t)
	other := protocol.NodeID{Serial: "DBX0001", Node: 2}
	if _, err := New(dir, other, testKey); protocol.CodeOf(err) != protocol.CodeFaulted {
		t.Error(err)
	}
}

func TestRollbackIsRefused(t *testing.T) {
	before, after := images(t, 3)
	for _, c := range []struct {
		im   image
		code protocol.Code
	}{{before, protocol.CodeFaulted}, {after, ""}} {
		dir := c.im.write(t)
		if err := os.WriteFile(filepath.Join(dir, ackedFile), []byte("4"), 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := New(dir, testNode, testKey)
		if protocol.CodeOf(err) != c.code {
			t.Error(err)
		}
		if j != nil {
			closeJournal(t, j)
		}
	}
}

// breaking is a file whose nth change from now on fails, after some of it was
// done. left is shared by the files of a journal; below zero nothing breaks.
type breaking struct {
	file
	left *int
	done float64 // how much of the failing write lands, 0 to 1
	dead bool    // everything after the first failure fails as well
}

var errBroken = errors.New("input/output error")

func (b breaking) breaks() bool {
	*b.left--
	return *b.left == 0 || b.dead && *b.left < 0
}

func (b breaking) WriteAt(p []byte, at int64) (int, error) {
	if b.breaks() {
		n, _ := b.file.WriteAt(p[:int(float64(len(p))*b.done)], at)
		return n, errBroken
	}
	return b.file.WriteAt(p, at)
}

func (b breaking) Sync() error {
	if b.breaks() {
		return errBroken
	}
	return b.file.Sync()
}

func (b breaking) Truncate(size int64) error {
	if b.breaks() {
		if b.done == 1 {
			_ = b.file.Truncate(size)
		}
		return errBroken
	}
	return b.file.Truncate(size)
}

// TestBreakAndLanded fails every step of an append, with nothing, half or all
// of it landed, once or for good; then the agent goes on, and restarts. What
// was acknowledged is there, in its place, and what was refused may be.
func TestBreakAndLanded(t *testing.T) {
	for step := 1; step <= 10; step++ {
		for _, done := range []float64{0, 0.5, 1} {
			for _, dead := range []bool{false, true} {
				name := fmt.Sprintf("step %d, %.1f landed, dead %v", step, done, dead)
				breakAt(t, name, step, done, dead)
			}
		}
	}
}

func breakAt(t *testing.T, name string, step int, done float64, dead bool) {
	t.Helper()
	j := open(t, newDir(t))
	fill(t, j, 3)
	left := step
	j.records, j.hashes = breaking{j.records, &left, done, dead}, breaking{j.hashes, &left, done, dead}
	acked := make(map[int64]string)
	for i := range 4 {
		r := testRecord(100 + i)
		if n, err := j.Append(t.Context(), r); err == nil {
			acked[n] = r.Properties["n"]
		} else if protocol.CodeOf(err) != protocol.CodeNotRecorded {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if !dead && len(acked) < 2 {
		t.Errorf("%s: the journal did not recover: %v", name, acked)
	}
	closeJournal(t, j)
	j = open(t, j.dir)
	entries := all(t, j)
	for n, want := range acked {
		r, err := auditlog.ParseRecord(entries[n].Record)
		if err != nil || r.Properties["n"] != want {
			t.Errorf("%s: record %d is %+v, %v, want %s", name, n, r, err, want)
		}
	}
	if len(entries) < 3+len(acked) {
		t.Errorf("%s: %d records, %d acknowledged", name, len(entries), 3+len(acked))
	}
	closeJournal(t, j)
}

// smallDisk mounts a file system of 64 KiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("lockbox-test", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("cannot mount a tmpfs: %v", err)
		}
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDisk(t *testing.T) {
	j := open(t, smallDisk(t))
	n := 0
	var err error
	for ; err == nil; n++ {
		start := time.Now()
		_, err = j.Append(t.Context(), testRecord(n))
		if took := time.Since(start); took > 5*time.Second {
			t.Fatalf("append took %v", took)
		}
	}
	n--
	if protocol.CodeOf(err) != protocol.CodeStorageFull {
		t.Fatalf("full disk: %v", err)
	}
	for range 3 {
		if _, err := j.Append(t.Context(), testRecord(n)); protocol.CodeOf(err) != protocol.CodeStorageFull {
			t.Fatalf("still full: %v", err)
		}
	}
	check(t, j, n)
	closeJournal(t, j)
	j = open(t, j.dir)
	check(t, j, n)
	if err := unix.Mount("lockbox-test", j.dir, "tmpfs", unix.MS_REMOUNT, "size=128k"); err != nil {
		t.Fatal(err)
	}
	fill(t, j, n+1)
	check(t, j, n+1)
	closeJournal(t, j)
}

// appendForever is the child of TestKill: it appends until it is killed, and
// prints the number of each record when it is acknowledged.
func appendForever(dir string) {
	j, err := New(dir, testNode, testKey)
	for err == nil {
		var n int64
		n, err = j.Append(context.Background(), testRecord(int(j.Size())))
		fmt.Println(n)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKill kills the writer with SIGKILL again and again. Every record that it
// was told is recorded is there.
func TestKill(t *testing.T) {
	dir := newDir(t)
	last := int64(-1)
	for range 8 {
		last = max(last, runAndKill(t, dir))
		j := open(t, dir)
		check(t, j, int(j.Size()))
		if j.Size() <= last {
			t.Fatalf("record %d was acknowledged, and there are %d", last, j.Size())
		}
		closeJournal(t, j)
	}
	if last < 8 {
		t.Errorf("only %d records were written", last)
	}
}

// runAndKill returns the last number that the child printed.
func runAndKill(t *testing.T, dir string) int64 {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last, lines := int64(-1), bufio.NewScanner(out)
	for stop := 5 + rand.IntN(30); lines.Scan(); stop-- {
		n, err := strconv.ParseInt(strings.TrimSpace(lines.Text()), 10, 64)
		if err != nil {
			t.Fatalf("%q, %s", lines.Text(), stderr.String())
		}
		last = n
		if stop == 0 {
			_ = cmd.Process.Signal(syscall.SIGKILL)
		}
	}
	_ = cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatal(stderr.String())
	}
	return last
}
