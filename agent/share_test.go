package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/agent/internal/journal"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// sharing returns what serves shares in tests, over NFS too.
func sharing(t *testing.T, change ...func(*Config)) (s shares, stateDir string) {
	t.Helper()
	cfg := DefaultConfig()
	for _, f := range change {
		f(&cfg)
	}
	cfg.RunDir = disktest.RunDir(t)
	cfg.Share.NFS.Enabled, cfg.Share.NFS.Port = true, 0
	cfg.Serial, cfg.StateDir = "DBX0001", t.TempDir()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	j := must(journal.New(journalDir(cfg), cfg.NodeID(), key))
	t.Cleanup(func() { j.Close() })
	a := &Agent{cfg: cfg, opts: Options{Clock: lock.SystemClock{}}, journal: j}
	self := must(os.Executable())
	return must(newShares(cfg, Options{NFS: []string{"/usr/bin/env", modeVariable + "=nfs", self}}, nil, must(a.newChanges(key)), must(a.newRecorder(key)))), cfg.StateDir
}

// recorded closes the recordings and says how each ended.
func (s shares) recorded(t *testing.T, dir string) (ends []recording.Reason) {
	t.Helper()
	if err := s.recorder.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range must(filepath.Glob(filepath.Join(dir, "recordings", "*.rec"))) {
		report, err := recording.Verify(bytes.NewReader(must(os.ReadFile(name))), recording.Expect{})
		if err != nil || report.Meta.Kind != recording.Shares || report.Meta.Engineer != "erin@provider.example" {
			t.Errorf("%v: %+v", err, report)
		}
		ends = append(ends, report.End.Reason)
	}
	return ends
}

// TestNFSOpensOnlyWhenApproved starts the shares of a lease whose approvers saw
// that NFS is on, and of one whose approvers did not.
func TestNFSOpensOnlyWhenApproved(t *testing.T) {
	disktest.NeedMounts(t)
	s, dir := sharing(t)
	folders := []lock.Folder{{Name: "contosodata_BlockBlob", Dir: t.TempDir()}}
	for _, protocols := range [][]approval.Protocol{nil, {"webdav"}, {approval.NFS}} {
		server, err := s.Start(t.Context(), lock.Lease{Access: approval.ReadOnly, Protocols: protocols, Engineer: approval.Engineer{Person: "erin@provider.example"}}, folders)
		if err != nil {
			t.Fatal(err)
		}
		services := server.Services()
		got := services[len(services)-1]
		if got.Protocol != share.ProtocolNFS {
			t.Fatalf("services: %v", services)
		}
		if protocols == nil || protocols[0] != approval.NFS {
			if got.Address != "" || !strings.Contains(got.Trouble, "approved request") {
				t.Errorf("approved %v: %+v", protocols, got)
			}
		} else if conn, err := net.Dial("tcp", got.Address); err != nil || got.Trouble != "" {
			t.Errorf("approved %v: %+v, %v", protocols, got, err)
		} else {
			conn.Close()
		}
		if err := server.Stop(context.Background(), lock.Revoked); err != nil {
			t.Error(err)
		}
		<-server.Done()
	}
	if got := s.recorded(t, dir); !slices.Equal(got, []recording.Reason{recording.EndRevoked, recording.EndRevoked, recording.EndRevoked}) {
		t.Errorf("the recordings ended with %q", got)
	}
	if got := s.Services(); got[len(got)-1].Trouble != "" {
		t.Errorf("while locked: %v", got)
	}
}

// tortureTime is how long clients write before the disk is relocked under them.
const tortureTime = 4 * time.Second

// TestSharesCloseWhenNothingCanBeRecorded uses a share until recordings have no
// room left.
func TestSharesCloseWhenNothingCanBeRecorded(t *testing.T) {
	disktest.NeedMounts(t)
	disktest.NeedPrograms(t, "smbd", "smbclient")
	s, dir := sharing(t, func(c *Config) { c.Recording.Quota = 1 })
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	running.Go(func() { s.recorder.Run(ctx) })
	defer running.Wait()
	defer cancel()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	lease := lock.Lease{Access: approval.ReadOnly, Engineer: approval.Engineer{Person: "erin@provider.example"}}
	server, err := s.Start(t.Context(), lease, []lock.Folder{{Name: tortureShare, Dir: folder}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop(context.Background(), lock.AgentStopped)
	user, password := server.Credentials()
	_, port, _ := net.SplitHostPort(server.Services()[0].Address)
	cmd := exec.CommandContext(t.Context(), "smbclient", "//127.0.0.1/"+tortureShare, "-p", port, "-s", "/dev/null",
		"-U", user+"%"+password, "-c", strings.Repeat("get file /dev/null;", 3000))
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("smbclient got all it wanted: %d bytes", len(out))
	}
	select {
	case <-server.Done():
	case <-time.After(2 * time.Second):
		t.Fatal("the shares stay open")
	}
	if err := server.Err(); err == nil || !strings.Contains(err.Error(), "recordings fill the 1 MiB") {
		t.Errorf("because: %v", err)
	}
	server.Stop(t.Context(), lock.ShareEnded)
	if ends := s.recorded(t, dir); !slices.Equal(ends, []recording.Reason{recording.EndFailed}) {
		t.Errorf("the recording ended with %v", ends)
	}
}

// TestTortureShares has clients write over SMB, NFS and the shell at once, read and
// move each other's files, and relocks the disk meanwhile: what was synced is there,
// and the file system is sound.
func TestTortureShares(t *testing.T) {
	disktest.NeedMounts(t)
	disktest.NeedPrograms(t, "smbd", "smbclient", "nfs-cp", "nfs-cat", "ntfsfix", "ntfsresize")
	image, key := disktest.Image(t)
	spec := disk.Spec{Disk: disk.Disk{ID: "disk1", Image: image}, RunDir: disktest.RunDir(t)}
	s := newTorture(t, spec, key)

	var clients sync.WaitGroup
	stop, cancel := context.WithCancel(t.Context())
	for i, put := range []func(context.Context, string, []byte) error{s.putSMB, s.putNFS, s.putShell, s.putNFS, s.putShell} {
		clients.Go(func() { s.work(stop, i, put) })
	}
	time.Sleep(tortureTime)
	began := time.Now()
	ctx, done := context.WithTimeout(t.Context(), 2*time.Second)
	defer done()
	s.relocking.Store(true)
	stopErr, closeErr := s.server.Stop(ctx), s.disk.Close(ctx)
	disktest.NothingLeft(t, spec.RunDir, time.Until(began.Add(2100*time.Millisecond)))
	t.Logf("relocked in %v: %v, %v", time.Since(began), stopErr, closeErr)
	cancel()
	clients.Wait()

	s.judge(t, image, key)
	s.compare(t, spec, key)
}

// torture is a shared disk and what should be on it.
type torture struct {
	t         *testing.T
	disk      *disk.Opened
	folder    string
	server    *share.Server
	shell     *files.System
	local     string
	relocking atomic.Bool

	mu     sync.Mutex
	synced map[string][sha256.Size]byte
}

func newTorture(t *testing.T, spec disk.Spec, key bitlocker.ExternalKey) *torture {
	t.Helper()
	opened := must(disk.Open(t.Context(), spec, key))
	t.Cleanup(func() { opened.Close(context.Background()) })
	s := &torture{t: t, disk: opened, local: t.TempDir(), synced: map[string][sha256.Size]byte{}}
	s.folder = filepath.Join(must(opened.Mount(t.Context())), tortureShare)
	must(0, os.MkdirAll(filepath.Join(s.folder, "moved"), 0o700))
	set, _ := sharing(t)
	s.server = must(set.Set.Start(t.Context(), []share.Share{{Name: tortureShare, Dir: s.folder}}, approval.Delete, s))
	t.Cleanup(func() { s.server.Stop(context.Background()) })
	s.shell = files.New(files.Config{
		Grant: func() (files.Grant, error) {
			return files.Grant{Access: approval.Delete, Shares: []files.Share{{Name: tortureShare, Dir: s.folder}}}, nil
		},
		Log: s, Via: recording.ViaShell, Client: "test",
	})
	return s
}

const tortureShare = "contosodata_BlockBlob"

// File implements [share.FileLog].
func (*torture) File(recording.FileEvent) error { return nil }

// Failed implements [share.FileLog].
func (*torture) Failed() <-chan struct{} { return nil }

// Err implements [share.FileLog].
func (*torture) Err() error { return nil }

// work writes files, each the next client's to read and maybe to move.
func (s *torture) work(ctx context.Context, client int, put func(context.Context, string, []byte) error) {
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("client%d-%d", client, i)
		data := make([]byte, mrand.IntN(100_000))
		rand.Read(data)
		err := put(ctx, name, data)
		if err == nil && i%3 == 0 {
			from := name
			name = "moved/" + name
			err = s.shell.Rename(files.Dir+"/"+tortureShare+"/"+from, files.Dir+"/"+tortureShare+"/"+name, false)
		}
		if err == nil {
			err = s.sync()
		}
		if err == nil {
			s.mu.Lock()
			s.synced[name] = sha256.Sum256(data)
			s.mu.Unlock()
			err = s.check(ctx, client+i, name, data)
		}
		if err != nil {
			if !s.relocking.Load() {
				s.t.Errorf("%s: %v", name, err)
			}
			return
		}
	}
}

// sync makes what was answered durable, as the agent does every second.
func (s *torture) sync() error {
	dir, err := os.Open(s.folder)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// check reads a file another way.
func (s *torture) check(ctx context.Context, way int, name string, want []byte) error {
	var got []byte
	var err error
	switch way % 3 {
	case 0:
		if got, err = s.run(ctx, "nfs-cat", s.url(name)); err != nil {
			err = fmt.Errorf("%w: %.200s", err, got)
		}
	case 1:
		to := filepath.Join(s.local, strings.ReplaceAll(name, "/", "-")+".down")
		if err = s.smbclient(ctx, fmt.Sprintf("get %s %s", strings.ReplaceAll(name, "/", `\`), to)); err == nil {
			got, err = os.ReadFile(to)
			os.Remove(to)
		}
	case 2:
		var f *files.File
		if f, err = s.shell.Open(files.Dir + "/" + tortureShare + "/" + name); err == nil {
			got, err = io.ReadAll(f)
			f.Close()
		}
	}
	if err == nil && !bytes.Equal(got, want) {
		return fmt.Errorf("read in way %d: %d bytes that are not the %d written", way%3, len(got), len(want))
	}
	return err
}

func (s *torture) putShell(_ context.Context, name string, data []byte) error {
	f, err := s.shell.Create(files.Dir + "/" + tortureShare + "/" + name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func (s *torture) putSMB(ctx context.Context, name string, data []byte) error {
	return s.put(name, data, func(local string) error { return s.smbclient(ctx, "put "+local+" "+name) })
}

func (s *torture) putNFS(ctx context.Context, name string, data []byte) error {
	return s.put(name, data, func(local string) error {
		out, err := s.run(ctx, "nfs-cp", local, s.url(name))
		if err != nil {
			return fmt.Errorf("nfs-cp: %w: %s", err, out)
		}
		return nil
	})
}

// put copies data from a file of its own.
func (s *torture) put(name string, data []byte, copy func(local string) error) error {
	local := filepath.Join(s.local, name)
	defer os.Remove(local)
	return errors.Join(os.WriteFile(local, data, 0o600), copy(local))
}

func (s *torture) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	return cmd.CombinedOutput()
}

func (s *torture) smbclient(ctx context.Context, commands string) error {
	user, password := s.server.Credentials()
	_, port := must2(net.SplitHostPort(s.server.Services()[0].Address))
	out, err := s.run(ctx, "smbclient", "//127.0.0.1/"+tortureShare, "-p", port, "-s", "/dev/null", "-U", user+"%"+password, "-c", commands)
	if err != nil || bytes.Contains(out, []byte("NT_STATUS")) {
		return fmt.Errorf("smbclient: %s: %v: %s", commands, err, out)
	}
	return nil
}

func (s *torture) url(name string) string {
	host, port := must2(net.SplitHostPort(s.server.Services()[1].Address))
	return fmt.Sprintf("nfs://%s/%s/%s?nfsport=%s&mountport=%s&version=3", host, tortureShare, name, port, port)
}

func must2[A, B any](a A, b B, err error) (A, B) {
	if err != nil {
		panic(err)
	}
	return a, b
}

// judge lets the tools of ntfs-3g look at the file system in the image.
func (s *torture) judge(t *testing.T, image string, key bitlocker.ExternalKey) {
	t.Helper()
	f := must(os.Open(image))
	defer f.Close()
	volume := must(bitlocker.Open(f, must(f.Stat()).Size()))
	plain := make([]byte, disktest.NTFSSize)
	must(must(volume.Unlock(key)).ReadAt(plain, 0))
	path := filepath.Join(t.TempDir(), "plain.img")
	if err := os.WriteFile(path, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, judge := range [][]string{{"ntfsfix", "-n", path}, {"ntfsresize", "-i", "-f", path}} {
		if out, err := exec.Command(judge[0], judge[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", judge, err, out)
		}
	}
}

// compare opens the disk again and looks for what was synced.
func (s *torture) compare(t *testing.T, spec disk.Spec, key bitlocker.ExternalKey) {
	t.Helper()
	opened := must(disk.Open(t.Context(), spec, key))
	defer opened.Close(context.Background())
	dir := filepath.Join(must(opened.Mount(t.Context())), tortureShare)
	by := map[string]int{}
	for name, want := range s.synced {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || sha256.Sum256(got) != want {
			t.Errorf("%s was synced: %d other bytes, %v", name, len(got), err)
		}
		client, _, _ := strings.Cut(filepath.Base(name), "-")
		by[client]++
	}
	if len(by) != 5 {
		t.Errorf("not every client wrote: %v", by)
	}
	t.Logf("files synced: %v", by)
}
