package nfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gonfs "github.com/willscott/go-nfs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

const modeVariable = "NFS_TEST_MODE"

func TestMain(m *testing.M) {
	if os.Getenv(modeVariable) == "server" {
		fmt.Fprintln(os.Stderr, Main())
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

const shareName = "contosodata_BlockBlob"

// journal keeps events, until it fails.
type journal struct {
	mu     sync.Mutex
	events []recording.FileEvent
	err    error
}

func (r *journal) File(e recording.FileEvent) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	return r.err
}

func (r *journal) Failed() <-chan struct{} { return nil }

func (r *journal) Err() error { return nil }

func (r *journal) fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.New("no space for the record")
}

func (r *journal) find(op recording.Op, path string) []recording.FileEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []recording.FileEvent
	for _, e := range r.events {
		if e.Op == op && e.Path == path {
			found = append(found, e)
		}
	}
	return found
}

// shareTest is a server over a folder.
type shareTest struct {
	folder  string
	server  *Server
	journal *journal
}

func started(t testing.TB, access approval.Access) *shareTest {
	t.Helper()
	disktest.NeedMounts(t)
	return startedAt(t, t.TempDir(), access, Config{})
}

func startedAt(t testing.TB, folder string, access approval.Access, cfg Config) *shareTest {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	st := &shareTest{folder: folder, journal: new(journal)}
	cfg.Self = []string{"/usr/bin/env", modeVariable + "=server", exe}
	began := time.Now()
	st.server, err = start(t.Context(), New(cfg).cfg, []share.Share{{Name: shareName, Dir: folder}}, access, st.journal)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v", time.Since(began))
	t.Cleanup(func() { st.server.Stop(context.Background()) })
	return st
}

func (st *shareTest) url(path string) string {
	host, port, _ := net.SplitHostPort(st.server.Address())
	return fmt.Sprintf("nfs://%s/%s%s?nfsport=%s&mountport=%s&version=3", host, shareName, path, port, port)
}

func (st *shareTest) path(elem ...string) string {
	return filepath.Join(append([]string{st.folder}, elem...)...)
}

// run runs a program of libnfs-utils, or another client.
func run(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func random(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestListGetPut(t *testing.T) {
	disktest.NeedPrograms(t, "nfs-ls", "nfs-cp", "nfs-cat")
	st := started(t, approval.ReadWrite)
	big := random(t, 8<<20+17)
	if err := os.Mkdir(st.path("container"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, st.path("container", "down"), big)
	local := t.TempDir()
	writeFile(t, filepath.Join(local, "up"), big)

	if out, err := run(t, "nfs-ls", st.url("/container")); err != nil || !strings.Contains(out, "down") {
		t.Fatalf("nfs-ls: %v: %s", err, out)
	}
	if out, err := run(t, "nfs-cp", st.url("/container/down"), filepath.Join(local, "down")); err != nil {
		t.Fatalf("nfs-cp down: %v: %s", err, out)
	}
	if got, _ := os.ReadFile(filepath.Join(local, "down")); !bytes.Equal(got, big) {
		t.Errorf("down: %d bytes, other ones", len(got))
	}
	if out, err := run(t, "nfs-cp", filepath.Join(local, "up"), st.url("/container/up")); err != nil {
		t.Fatalf("nfs-cp up: %v: %s", err, out)
	}
	if got, _ := os.ReadFile(st.path("container", "up")); !bytes.Equal(got, big) {
		t.Errorf("up: %d bytes, other ones", len(got))
	}
	if out, err := run(t, "nfs-cat", st.url("/container/up")); err != nil || out != string(big) {
		t.Errorf("nfs-cat: %v, %d bytes", err, len(out))
	}
}

func TestRecord(t *testing.T) {
	disktest.NeedPrograms(t, "nfs-cat")
	st := started(t, approval.Delete)
	data := random(t, 3<<20+5)
	writeFile(t, st.path("file"), data)
	if out, err := run(t, "nfs-cat", st.url("/file")); err != nil {
		t.Fatalf("nfs-cat: %v: %s", err, out)
	}
	c := st.dial(t)
	top := c.top()
	file, _ := c.create(top, "new", guarded, noAttributes)
	c.write(file, 0, "content", unstable)
	c.status(gonfs.NFSProcedureMkDir, top, "folder", noAttributes...)
	c.status(gonfs.NFSProcedureRmDir, top, "folder")
	c.status(gonfs.NFSProcedureRmDir, top, "folder")
	c.nfs(gonfs.NFSProcedureRename, encode(nil, top, "new", top, "old"))
	c.status(gonfs.NFSProcedureRemove, top, "old")

	waitFor(t, func() bool { return len(st.journal.find(recording.OpRead, "file")) > 0 })
	sum := sha256.Sum256(data)
	var read int64
	reads := st.journal.find(recording.OpRead, "file")
	for _, e := range reads {
		read += e.Size
	}
	if last := reads[len(reads)-1]; read != int64(len(data)) || last.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("recorded of %d bytes read: %+v", len(data), reads)
	}
	for _, op := range []struct {
		op   recording.Op
		path string
		n    int
	}{
		{recording.OpOpen, "file", 1}, {recording.OpConnect, "", 2}, {recording.OpCreate, "new", 1}, {recording.OpWrite, "new", 2},
		{recording.OpMkdir, "folder", 1}, {recording.OpRmdir, "folder", 2}, {recording.OpRename, "new", 1}, {recording.OpRemove, "old", 1},
	} {
		if got := st.journal.find(op.op, op.path); len(got) != op.n || got[0].Error != "" || !strings.HasPrefix(got[0].Client, "127.0.0.1:") || got[0].Via != recording.ViaNFS || got[0].Share != shareName {
			t.Errorf("%s of %q: %+v", op.op, op.path, got)
		}
	}
	if got := st.journal.find(recording.OpRmdir, "folder"); got[1].Error != "no such file or directory" {
		t.Errorf("a failure is recorded as %+v", got[1])
	}
	if got := st.journal.find(recording.OpRename, "new"); got[0].To != shareName+"/old" {
		t.Errorf("renamed to %q", got[0].To)
	}
	if got := st.journal.find(recording.OpWrite, "new"); len(got) != 2 || got[0].Size != -1 || got[1].Size != 7 {
		t.Errorf("written: %+v", got)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// TestStopRecords ends the server while files are open.
func TestStopRecords(t *testing.T) {
	st := started(t, approval.ReadOnly)
	writeFile(t, st.path("file"), []byte("content"))
	c := st.dial(t)
	c.read(c.must(c.top(), "file"), 0, 100)
	if err := st.server.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if got := st.journal.find(recording.OpRead, "file"); len(got) != 1 || got[0].Size != 7 || got[0].SHA256 == "" {
		t.Errorf("recorded: %+v", got)
	}
}

// TestRecordStops ends the record: nothing is answered any more.
func TestRecordStops(t *testing.T) {
	st := started(t, approval.ReadOnly)
	writeFile(t, st.path("file"), []byte("content"))
	c := st.dial(t)
	file := c.must(c.top(), "file")
	st.journal.fail()
	c.send(programNFS, uint32(gonfs.NFSProcedureRead), encode(nil, file, uint64(0), uint32(7)))
	if reply, err := c.receive(); err == nil {
		t.Errorf("answered with % x", reply)
	}
	select {
	case <-st.server.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on without a record")
	}
	waitFor(t, func() bool { return strings.Contains(st.server.Err().Error(), "no space for the record") })
	if conn, err := net.Dial("tcp", st.server.Address()); err == nil {
		conn.Close()
		t.Error("it still answers")
	}
}

func TestAccess(t *testing.T) {
	for _, access := range []approval.Access{approval.ReadOnly, approval.ReadWrite, approval.Delete} {
		t.Run(string(access), func(t *testing.T) {
			st := started(t, access)
			writeFile(t, st.path("file"), []byte("content"))
			writeFile(t, st.path("doomed"), nil)
			c := st.dial(t)
			top := c.top()
			file := c.must(top, "file")
			write, remove := gonfs.NFSStatusOk, gonfs.NFSStatusOk
			switch access {
			case approval.ReadOnly:
				write, remove = gonfs.NFSStatusROFS, gonfs.NFSStatusROFS
			case approval.ReadWrite:
				remove = gonfs.NFSStatusAccess
			}
			size := encode(nil, uint32(0), uint32(0), uint32(0), uint32(1), uint64(3), uint32(0), uint32(0))
			_, create := c.create(top, "new", unchecked, noAttributes)
			_, written := c.write(file, 0, "C", unstable)
			longer := encode(nil, uint32(0), uint32(0), uint32(0), uint32(1), uint64(9), uint32(0), uint32(0), uint32(0))
			grow, _ := c.nfs(gonfs.NFSProcedureSetAttr, append(encode(nil, file), longer...))
			setattr, _ := c.nfs(gonfs.NFSProcedureSetAttr, append(encode(nil, file), append(size, 0, 0, 0, 0)...))
			rename, _ := c.nfs(gonfs.NFSProcedureRename, encode(nil, top, "file", top, "file2"))
			writeFile(t, st.path("victim"), nil)
			over, _ := c.nfs(gonfs.NFSProcedureRename, encode(nil, top, "new", top, "victim"))
			for name, got := range map[string][2]gonfs.NFSStatus{
				"create": {create, write}, "write": {written, write}, "grow": {grow, write}, "cut short": {setattr, remove}, "commit": {c.commit(file), write},
				"mkdir":  {c.status(gonfs.NFSProcedureMkDir, top, "folder", noAttributes...), write},
				"rename": {rename, write}, "rename over": {over, remove}, "remove": {c.status(gonfs.NFSProcedureRemove, top, "doomed"), remove},
			} {
				if got[0] != got[1] {
					t.Errorf("%s: %v, want %v", name, got[0], got[1])
				}
			}
			if got, status := c.read(file, 0, 100); status != gonfs.NFSStatusOk || len(got) == 0 { // the handle moved with its file
				t.Errorf("reading: %v, %q", status, got)
			}
			names, _ := os.ReadDir(st.folder)
			if changed := !slices.ContainsFunc(names, func(e os.DirEntry) bool { return e.Name() == "file" }); changed != (access != approval.ReadOnly) {
				t.Errorf("in the folder: %v", names)
			}
		})
	}
}

// TestKinds mixes up files and folders.
func TestKinds(t *testing.T) {
	st := started(t, approval.Delete)
	writeFile(t, st.path("file"), nil)
	if err := os.MkdirAll(st.path("folder", "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := st.dial(t)
	top := c.top()
	for name, got := range map[string][2]gonfs.NFSStatus{
		"rmdir of a file":    {c.status(gonfs.NFSProcedureRmDir, top, "file"), gonfs.NFSStatusNotDir},
		"remove of a folder": {c.status(gonfs.NFSProcedureRemove, top, "folder"), gonfs.NFSStatusIsDir},
		"rmdir of a full":    {c.status(gonfs.NFSProcedureRmDir, top, "folder"), gonfs.NFSStatusNotEmpty},
		"rmdir of none":      {c.status(gonfs.NFSProcedureRmDir, top, "none"), gonfs.NFSStatusNoEnt},
		"mkdir again":        {c.status(gonfs.NFSProcedureMkDir, top, "folder", noAttributes...), gonfs.NFSStatusExist},
		"link":               {c.status(gonfs.NFSProcedureLink, top, "file"), gonfs.NFSStatusNotSupp},
		"symlink":            {c.status(gonfs.NFSProcedureSymlink, top, "link", encode(nil, "/etc")...), gonfs.NFSStatusNotSupp},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %v, want %v", name, got[0], got[1])
		}
	}
	if _, status := c.read(c.must(top, "folder"), 0, 1); status != gonfs.NFSStatusIsDir {
		t.Errorf("reading a folder: %v", status)
	}
	file, status := c.create(top, "exclusive", exclusive, encode(nil, uint64(77)))
	again, statusAgain := c.create(top, "exclusive", exclusive, encode(nil, uint64(77)))
	if status != gonfs.NFSStatusOk || statusAgain != gonfs.NFSStatusOk || file != again {
		t.Errorf("exclusive create, sent twice: %v, %v", status, statusAgain)
	}
	if _, status := c.create(top, "exclusive", exclusive, encode(nil, uint64(99))); status != gonfs.NFSStatusExist {
		t.Errorf("exclusive create by another: %v", status)
	}
	writeFile(t, st.path("file"), []byte("content"))
	if _, status := c.create(top, "file", unchecked, noAttributes); status != gonfs.NFSStatusOk {
		t.Errorf("unchecked create: %v", status)
	}
	if got, _ := os.ReadFile(st.path("file")); string(got) != "content" {
		t.Errorf("unchecked create left %q", got)
	}
}

// TestNothingGetsOut tries names and links that lead elsewhere.
func TestNothingGetsOut(t *testing.T) {
	st := started(t, approval.Delete)
	outside := filepath.Join(filepath.Dir(st.folder), "secret")
	writeFile(t, outside, []byte("secret"))
	writeFile(t, st.path("file"), []byte("content"))
	for name, target := range map[string]string{"up": "../secret", "absolute": outside, "dir": "..", "inside": "file", "root": "/"} {
		if err := os.Symlink(target, st.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	c := st.dial(t)
	top := c.top()
	for _, name := range []string{"", ".", "..", "a/b", "../secret", outside, "file\x00", strings.Repeat("x", 256), strings.Repeat("x", 300)} {
		for _, proc := range []gonfs.NFSProcedure{gonfs.NFSProcedureLookup, gonfs.NFSProcedureCreate, gonfs.NFSProcedureMkDir, gonfs.NFSProcedureRemove, gonfs.NFSProcedureRmDir} {
			if proc == gonfs.NFSProcedureLookup && name == "." {
				continue
			}
			if status := c.status(proc, top, name, append([]byte{0, 0, 0, 0}, noAttributes...)...); status == gonfs.NFSStatusOk {
				t.Errorf("%v of %q is allowed", proc, name)
			}
		}
		for _, args := range [][]byte{encode(nil, top, name, top, "new"), encode(nil, top, "file", top, name)} {
			if status, _ := c.nfs(gonfs.NFSProcedureRename, args); status == gonfs.NFSStatusOk {
				t.Errorf("renaming %q is allowed", name)
			}
		}
	}
	for _, link := range []string{"up", "absolute", "dir", "inside", "root"} {
		handle := c.must(top, link)
		if got, status := c.read(handle, 0, 100); status == gonfs.NFSStatusOk {
			t.Errorf("through the link %s is read %q", link, got)
		}
		if _, status := c.write(handle, 0, "x", fileSync); status == gonfs.NFSStatusOk {
			t.Errorf("through the link %s is written", link)
		}
		if _, status := c.lookup(handle, "secret"); status == gonfs.NFSStatusOk {
			t.Errorf("through the link %s is looked up", link)
		}
		if status, _ := c.nfs(gonfs.NFSProcedureReadlink, encode(nil, handle)); status == gonfs.NFSStatusOk {
			t.Errorf("the link %s is shown", link)
		}
		if status, _ := c.nfs(gonfs.NFSProcedureSetAttr, append(encode(nil, handle), encode(nil, uint32(0), uint32(0), uint32(0), uint32(1), uint64(0), uint32(0), uint32(0), uint32(0))...)); status == gonfs.NFSStatusOk {
			t.Errorf("through the link %s is truncated", link)
		}
		if _, status := c.mount("/" + shareName + "/" + link); status == gonfs.MountStatusOk {
			t.Errorf("the link %s is mounted", link)
		}
	}
	for _, path := range []string{"/", "", "/etc", "/" + shareName + "/../etc", "/" + shareName + "/file", "/" + shareName + "/none", "/shares", "\x00"} {
		if _, status := c.mount(path); status == gonfs.MountStatusOk {
			t.Errorf("%q is mounted", path)
		}
	}
	for _, handle := range []string{"", "x", strings.Repeat("x", 16), strings.Repeat("x", 64), top[:15] + "\xff", "\x00" + top[1:]} {
		if status, _ := c.nfs(gonfs.NFSProcedureGetAttr, encode(nil, handle)); status != gonfs.NFSStatusStale {
			t.Errorf("the handle %x: %v", handle, status)
		}
	}
	if got, status := c.read(c.must(top, "file"), 0, 100); got != "content" { // the control
		t.Errorf("the file: %v, %q", status, got)
	}
	if got, _ := os.ReadFile(outside); string(got) != "secret" {
		t.Errorf("outside is now %q", got)
	}
}

// TestRenameRace exchanges a folder for a link that leads out, again and again,
// while a client works below.
func TestRenameRace(t *testing.T) {
	st := started(t, approval.Delete)
	outside := t.TempDir()
	writeFile(t, filepath.Join(outside, "file"), []byte("secret"))
	if err := os.Mkdir(st.path("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, st.path("folder", "file"), []byte("content"))
	c := st.dial(t)
	folder := c.must(c.top(), "folder")
	file := c.must(folder, "file")
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.Rename(st.path("folder"), st.path("aside"))
			os.Symlink(outside, st.path("folder"))
			time.Sleep(time.Millisecond)
			os.Remove(st.path("folder"))
			os.Rename(st.path("aside"), st.path("folder"))
			time.Sleep(time.Millisecond)
		}
	})
	seen := map[string]int{}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		got, _ := c.read(file, 0, 100)
		seen[got]++
		c.write(file, 0, "content", unstable)
		c.create(folder, "new", unchecked, noAttributes)
		c.status(gonfs.NFSProcedureRemove, folder, "new")
	}
	close(stop)
	swapping.Wait()
	if seen["content"] == 0 || seen[""] == 0 || len(seen) != 2 {
		t.Errorf("read: %v", seen)
	}
	if got, _ := os.ReadFile(filepath.Join(outside, "file")); string(got) != "secret" {
		t.Errorf("outside is now %q", got)
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Errorf("outside are now %v", left)
	}
}

func TestManyFiles(t *testing.T) {
	disktest.NeedPrograms(t, "nfs-ls")
	st := started(t, approval.Delete)
	const n = 2000 // several answers long
	for i := range n {
		writeFile(t, st.path(fmt.Sprintf("file-%04d", i)), nil)
	}
	out, err := run(t, "nfs-ls", st.url(""))
	if err != nil {
		t.Fatalf("nfs-ls: %v: %s", err, out)
	}
	if got := strings.Count(out, "file-"); got != n {
		t.Errorf("nfs-ls shows %d files", got)
	}
	c := st.dial(t)
	top := c.top()
	removed := 0
	names := c.list(top, func() { // what is listed stays so while it is listed
		os.Remove(st.path(fmt.Sprintf("file-%04d", removed)))
		removed++
	})
	slices.Sort(names)
	if unique := slices.Compact(slices.Clone(names)); len(names) != n+2 || len(unique) != n+2 {
		t.Errorf("listed %d names, %d different ones", len(names), len(unique))
	}
	if names := c.list(top, func() {}); len(names) != n+2-removed {
		t.Errorf("listed afterwards: %d names, %d were removed", len(names), removed)
	}
}

func TestExports(t *testing.T) {
	st := started(t, approval.ReadOnly)
	c := st.dial(t)
	d := c.call(programMount, uint32(gonfs.MountProcExport), nil)
	if d.uint32() != 1 || string(d.opaque(gonfs.MntPathLen)) != "/"+shareName || d.uint32() != 0 || d.uint32() != 0 || len(d.rest) != 0 || d.err != nil {
		t.Errorf("exports: %v, % x left", d.err, d.rest)
	}
}

// TestFullDisk fills a small file system.
func TestFullDisk(t *testing.T) {
	disktest.NeedMounts(t)
	folder := t.TempDir()
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size=1m,nr_inodes=4"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(folder, unix.MNT_DETACH) })
	st := startedAt(t, folder, approval.ReadWrite, Config{})
	c := st.dial(t)
	top := c.top()
	file, _ := c.create(top, "file", guarded, noAttributes)
	if _, status := c.write(file, 0, strings.Repeat("x", maxData), unstable); status != gonfs.NFSStatusOk {
		t.Errorf("what fits: %v", status)
	}
	if _, status := c.write(file, maxData, "more", unstable); status != gonfs.NFSStatusNoSPC {
		t.Errorf("writing to a full disk: %v", status)
	}
	var status gonfs.NFSStatus
	for i := 0; status == gonfs.NFSStatusOk && i < 10; i++ {
		_, status = c.create(top, fmt.Sprint("file", i), guarded, noAttributes)
	}
	if status != gonfs.NFSStatusNoSPC {
		t.Errorf("creating on a full disk: %v", status)
	}
	if status := c.status(gonfs.NFSProcedureMkDir, top, "folder", noAttributes...); status != gonfs.NFSStatusNoSPC {
		t.Errorf("making a folder on a full disk: %v", status)
	}
}

// TestConfined looks at the process from outside.
func TestConfined(t *testing.T) {
	st := started(t, approval.ReadOnly)
	proc := fmt.Sprintf("/proc/%d/", st.server.child.PID())
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want+"\n") {
			t.Errorf("not %q: %s", want, status)
		}
	}
	for _, kind := range []string{"pid", "mnt", "net", "ipc", "uts"} {
		theirs, err := os.Readlink(proc + "ns/" + kind)
		ours, _ := os.Readlink("/proc/self/ns/" + kind)
		if err != nil || theirs == ours {
			t.Errorf("its %s namespace is %s, ours %s: %v", kind, theirs, ours, err)
		}
	}
	entries, err := os.ReadDir(proc + "root")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"agent", "shares", "lib", "lib64", "usr"}, e.Name()) {
			t.Errorf("it sees /%s", e.Name())
		}
	}
	mounts, err := os.ReadFile(proc + "mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if options := strings.Split(fields[5], ","); !slices.Contains(options, "ro") || !slices.Contains(options, "nosuid") || !slices.Contains(options, "nodev") {
			t.Errorf("it can do too much with %s: %s", fields[4], fields[5])
		}
	}
}

func TestOnlyFromAllowedAddresses(t *testing.T) {
	disktest.NeedMounts(t)
	st := startedAt(t, t.TempDir(), approval.ReadOnly, Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}})
	for from, want := range map[string]bool{"127.0.0.1": false, "127.0.0.2": true, "127.0.0.3": false} {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := dialer.Dial("tcp", st.server.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := &client{t: t, conn: conn}
		c.send(programNFS, 0, nil)
		if _, err := c.receive(); (err == nil) != want {
			t.Errorf("from %s: %v", from, err)
		}
	}
}

func TestManyConnections(t *testing.T) {
	st := started(t, approval.ReadOnly)
	var clients []*client
	for range maxConns {
		c := st.dial(t)
		c.top()
		clients = append(clients, c)
	}
	answers := func() bool {
		c := st.dial(t)
		defer c.conn.Close()
		c.send(programNFS, 0, nil)
		_, err := c.receive()
		return err == nil
	}
	if answers() {
		t.Error("one more is served")
	}
	clients[0].conn.Close()
	waitFor(t, answers)
}

// TestDisk serves a real disk, syncs, and takes it away while a client writes.
func TestDisk(t *testing.T) {
	disktest.NeedMounts(t)
	image, key := disktest.Image(t)
	spec := disk.Spec{Disk: disk.Disk{ID: "disk1", Image: image}, RunDir: disktest.RunDir(t)}
	folder := func(opened *disk.Opened) string {
		dir, err := opened.Mount(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, shareName), 0o700); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, shareName)
	}
	opened, err := disk.Open(t.Context(), spec, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close(context.Background()) })
	st := startedAt(t, folder(opened), approval.Delete, Config{})
	c := st.dial(t)
	top := c.top()
	want := map[string]string{}
	for i := range 20 {
		name, data := fmt.Sprintf("synced-%d", i), string(random(t, 10_000+i))
		file, status := c.create(top, name, guarded, noAttributes)
		committed, written := c.write(file, 0, data, uint32(i%2)*fileSync)
		if status != gonfs.NFSStatusOk || written != gonfs.NFSStatusOk || committed != uint32(i%2)*fileSync {
			t.Fatalf("%s: %v, %v, stable %d", name, status, written, committed)
		}
		if committed == unstable {
			if status := c.commit(file); status != gonfs.NFSStatusOk {
				t.Fatalf("%s: %v", name, status)
			}
		}
		want[name] = data
	}
	opened.Wipe() // nothing more reaches the image
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := st.server.Stop(ctx); err != nil {
		t.Error(err)
	}
	opened.Close(ctx) // says that the last writes are lost
	disktest.NothingLeft(t, spec.RunDir, time.Until(began.Add(2*time.Second)))

	if opened, err = disk.Open(t.Context(), spec, key); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close(context.Background()) })
	dir := folder(opened)
	for name, data := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != data {
			t.Errorf("%s was synced: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestFrozenDisk closes the share of a disk that hangs under a client.
func TestFrozenDisk(t *testing.T) {
	disktest.NeedMounts(t)
	image, key := disktest.Image(t)
	runDir := disktest.RunDir(t)
	opened, err := disk.Open(t.Context(), disk.Spec{Disk: disk.Disk{ID: "disk1", Image: image}, RunDir: runDir}, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close(context.Background()) })
	dir, err := opened.Mount(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st := startedAt(t, dir, approval.Delete, Config{})
	c := st.dial(t)
	top := c.top()
	for _, left := range disktest.Left(t, runDir) {
		var pid int
		if _, err := fmt.Sscanf(left, "/proc/%d/cmdline", &pid); err == nil && strings.Contains(left, "ntfs-3g") {
			unix.Kill(pid, unix.SIGSTOP)
		}
	}
	c.send(programNFS, uint32(gonfs.NFSProcedureCreate), append(encode(nil, top, "new", uint32(guarded)), noAttributes...))
	time.Sleep(200 * time.Millisecond)

	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	t.Log(st.server.Stop(ctx))
	t.Log(opened.Close(ctx))
	disktest.NothingLeft(t, runDir, time.Until(began.Add(2100*time.Millisecond)))
	select {
	case <-st.server.Done():
	case <-time.After(10 * time.Second):
		t.Error("the server is still there")
	}
}

// TestCrash kills the server: that is the end of the share, and said so.
func TestCrash(t *testing.T) {
	st := started(t, approval.ReadOnly)
	c := st.dial(t)
	c.top()
	unix.Kill(st.server.child.PID(), unix.SIGABRT) // as a panic ends, with its goroutines on standard error
	select {
	case <-st.server.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	if err := st.server.Err(); !strings.Contains(err.Error(), "the NFS server ended") || !strings.Contains(err.Error(), "goroutine") {
		t.Errorf("it ended with %v", err)
	}
	if _, err := c.receive(); err == nil {
		t.Error("the connection goes on")
	}
}

func TestStartFails(t *testing.T) {
	disktest.NeedMounts(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	self := []string{"/usr/bin/env", modeVariable + "=server", exe}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, cfg := range map[string]Config{
		"another program": {Self: []string{"/bin/true"}},
		"no program":      {Self: []string{"/none"}},
		"a taken port":    {Self: self, Port: taken.Addr().(*net.TCPAddr).Port},
		"no folder":       {Self: self, Address: "127.0.0.1"},
	} {
		dir := t.TempDir()
		if name == "no folder" {
			dir = filepath.Join(dir, "none")
		}
		if s, err := New(cfg).Start(t.Context(), []share.Share{{Name: shareName, Dir: dir}}, approval.ReadOnly, new(journal)); err == nil {
			s.Stop(context.Background())
			t.Errorf("with %s it starts", name)
		} else {
			t.Log(err)
		}
	}
}
