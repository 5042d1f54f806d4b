package state

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// reopen closes d and opens its directory again, as after a restart.
func reopen(t *testing.T, d *Dir) *Dir {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, d.Path())
}

func newDir(t *testing.T) *Dir {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "state"))
}

func certificate(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEmptyDirectory(t *testing.T) {
	d := newDir(t)
	if _, ok := d.Identity(); ok || d.TrustPolicy() != nil || d.Checkpoint() != nil || !d.HighWater().IsZero() {
		t.Error("a new directory knows something")
	}
	if _, ok := d.Spent("sha256:1"); ok {
		t.Error("something is spent")
	}
	info, err := os.Stat(d.Path())
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
}

func TestWiderPermissionsAreRefused(t *testing.T) {
	path := newDir(t).Path()
	for _, mode := range []os.FileMode{0o710, 0o701, 0o750, 0o777} {
		dir := filepath.Join(filepath.Dir(path), mode.String())
		must(t, os.Mkdir(dir, 0o700))
		must(t, os.Chmod(dir, mode))
		if d, err := Open(dir); err == nil || !strings.Contains(err.Error(), "0700") {
			t.Errorf("%v: %v, %v", mode, d, err)
		}
		must(t, os.Chmod(dir, 0o700))
		open(t, dir)
	}
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(t.TempDir(), link))
	if _, err := Open(link); err == nil {
		t.Error("a symbolic link is a state directory")
	}
}

func TestTwoAgentsCannotShare(t *testing.T) {
	d := newDir(t)
	if _, err := Open(d.Path()); protocol.CodeOf(err) != protocol.CodeBusy {
		t.Errorf("second agent: %v", err)
	}
	reopen(t, d)
}

func TestIdentity(t *testing.T) {
	d := newDir(t)
	key, err := d.NodeKey()
	must(t, err)
	id := Identity{
		Serial: "DBX0001", Node: 1, Chain: [][]byte{certificate(t, key)}, ServerRoots: [][]byte{{1}},
		TunnelAddress: "localhost:1", SSHHostCertificate: []byte{2}, Order: "ORD-1001",
	}
	must(t, d.SetIdentity(id))
	d = reopen(t, d)
	if got, ok := d.Identity(); !ok || !cmp.Equal(got, id) {
		t.Errorf("identity = %+v, %v", got, ok)
	}
	again, err := d.NodeKey()
	if err != nil || !key.Public().(ed25519.PublicKey).Equal(again.Public()) {
		t.Errorf("the node's key changed: %v", err)
	}
	host, err := d.HostKey()
	if err != nil || key.Public().(ed25519.PublicKey).Equal(host.Public()) {
		t.Errorf("the host key is the node's key: %v", err)
	}

	other := id
	other.Chain = [][]byte{certificate(t, host)}
	if err := d.SetIdentity(other); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("a certificate for another key: %v", err)
	}
	other = id
	other.Node = 2
	if err := d.SetIdentity(other); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("another node: %v", err)
	}
	other = id
	other.Chain = nil
	if err := d.SetIdentity(other); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("no certificate: %v", err)
	}
	if got, _ := d.Identity(); !cmp.Equal(got, id) {
		t.Error("a refused identity was taken")
	}
}

func TestKeyFiles(t *testing.T) {
	d := newDir(t)
	_, err := d.NodeKey()
	must(t, err)
	path := d.file(nodeKeyFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
	must(t, os.Chmod(path, 0o640))
	if _, err := d.NodeKey(); err == nil {
		t.Error("a key that others may read is used")
	}
	must(t, os.Chmod(path, 0o600))
	must(t, os.WriteFile(path, []byte("damaged"), 0o600))
	if _, err := d.NodeKey(); err == nil || strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged key is used, replaced, or shown: %v", err)
	}
}

func TestTrustPolicyIsInstalledOnce(t *testing.T) {
	d := newDir(t)
	one, two := []byte("policy 1"), []byte("policy 2")
	if err := d.InstallTrustPolicy(nil); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("an empty policy: %v", err)
	}
	if err := d.ReplaceTrustPolicy(nil, one); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("the first policy replaces nothing: %v", err)
	}
	must(t, d.InstallTrustPolicy(one))
	must(t, d.InstallTrustPolicy(one))
	for range 2 {
		if err := d.InstallTrustPolicy(two); protocol.CodeOf(err) != protocol.CodeConflict {
			t.Errorf("another policy: %v", err)
		}
		if err := d.ReplaceTrustPolicy(two, one); protocol.CodeOf(err) != protocol.CodeConflict {
			t.Errorf("replacing what is not installed: %v", err)
		}
		if got := d.TrustPolicy(); !bytes.Equal(got, one) {
			t.Errorf("policy = %q", got)
		}
		d = reopen(t, d)
	}
	must(t, d.ReplaceTrustPolicy(one, two))
	if got := reopen(t, d).TrustPolicy(); !bytes.Equal(got, two) {
		t.Errorf("policy = %q", got)
	}
}

func TestSpentSurvives(t *testing.T) {
	d := newDir(t)
	end := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	must(t, d.Spend("sha256:a", "revoked", end))
	must(t, d.Spend("sha256:b", "engineer-done", end))
	must(t, d.Spend("sha256:a", "window over", end.Add(-time.Hour)))
	d = reopen(t, d)
	if reason, ok := d.Spent("sha256:a"); !ok || reason != "revoked" {
		t.Errorf("a: %q, %v", reason, ok)
	}
	if d.spent["sha256:a"].Until != end {
		t.Error("spending again made the memory shorter")
	}
	if _, ok := d.Spent("sha256:c"); ok {
		t.Error("c is spent")
	}
	if err := d.Spend("", "x", end); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("empty digest: %v", err)
	}
}

// TestSpentIsForgottenByTheHighWaterMark: only a time that the clock can never
// fall below again lets an entry go.
func TestSpentIsForgottenByTheHighWaterMark(t *testing.T) {
	d := newDir(t)
	end := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	must(t, d.Spend("old", "revoked", end))
	must(t, d.Spend("new", "revoked", end.Add(time.Second)))
	must(t, d.RaiseHighWater(end.Add(spentMargin)))
	must(t, d.Spend("x", "revoked", end.AddDate(1, 0, 0)))
	if _, ok := d.Spent("old"); !ok {
		t.Error("forgotten within the margin")
	}
	must(t, d.RaiseHighWater(end.Add(spentMargin+time.Millisecond)))
	must(t, d.Spend("x", "revoked", end.AddDate(1, 0, 0)))
	d = reopen(t, d)
	if _, ok := d.Spent("old"); ok {
		t.Error("never forgotten")
	}
	if _, ok := d.Spent("new"); !ok {
		t.Error("forgotten too early")
	}
}

func TestUnknownSpendsAreBounded(t *testing.T) {
	d := newDir(t)
	now := time.Now()
	d.spent = make(map[string]spent)
	for i := range maxUnknown - 1 {
		d.spent[fmt.Sprintf("sha256:%064x", i)] = spent{"revoked", now.Add(time.Hour), true}
	}
	must(t, d.SpendUnknown("last", "revoked", now.Add(time.Hour)))
	must(t, d.SpendUnknown("last", "revoked", now.Add(2*time.Hour))) // known already
	for range 2 {
		if err := d.SpendUnknown("more", "revoked", now.Add(time.Hour)); protocol.CodeOf(err) != protocol.CodeLimit {
			t.Errorf("one more: %v", err)
		}
		if _, ok := d.Spent("more"); ok {
			t.Error("it was refused, and remembered")
		}
		if _, ok := d.Spent("last"); !ok {
			t.Error("another one was forgotten for it")
		}
		d = reopen(t, d)
	}
	must(t, d.Spend("real", "engineer-done", now.Add(time.Hour))) // whatever anybody made up
	must(t, d.Spend("last", "session-disabled", now.Add(time.Hour)))
	must(t, d.SpendUnknown("more", "revoked", now.Add(time.Hour))) // for last is a real one now
	must(t, d.RaiseHighWater(now.AddDate(1, 0, 0)))
	must(t, d.SpendUnknown("much later", "revoked", now.AddDate(1, 0, 0)))
	if n := len(d.spent); n != 1 {
		t.Errorf("%d are remembered, want 1", n)
	}
}

func TestHighWaterNeverFalls(t *testing.T) {
	d := newDir(t)
	now := time.UnixMilli(1_790_000_000_123)
	must(t, d.RaiseHighWater(now.Add(456*time.Microsecond)))
	must(t, d.RaiseHighWater(now.Add(-time.Hour)))
	if got := d.HighWater(); !got.Equal(now) {
		t.Errorf("high water = %v", got)
	}
	if got := reopen(t, d).HighWater(); !got.Equal(now) {
		t.Errorf("after a restart: %v", got)
	}
}

func TestCheckpoint(t *testing.T) {
	d := newDir(t)
	must(t, d.SetCheckpoint([]byte("one")))
	must(t, d.SetCheckpoint([]byte("two")))
	if got := reopen(t, d).Checkpoint(); string(got) != "two" {
		t.Errorf("checkpoint = %q", got)
	}
}

func TestWhatIsReturnedIsACopy(t *testing.T) {
	d := newDir(t)
	policy := []byte("policy")
	must(t, d.InstallTrustPolicy(policy))
	policy[0] = 'X'
	d.TrustPolicy()[1] = 'X'
	if got := d.TrustPolicy(); string(got) != "policy" {
		t.Errorf("policy = %q", got)
	}
}

func TestDamagedFilesAreRefused(t *testing.T) {
	for _, name := range []string{identityFile, spentFile, clockFile} {
		d := newDir(t)
		must(t, d.Close())
		must(t, os.WriteFile(d.file(name), []byte("{"), 0o600))
		if _, err := Open(d.Path()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, os.Remove(d.file(name)))
		open(t, d.Path())
	}
}

func TestLeftoversAreRemoved(t *testing.T) {
	d := newDir(t)
	left := d.file(".spent.json123")
	must(t, os.WriteFile(left, nil, 0o600))
	reopen(t, d)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the leftover is still there: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	d := newDir(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 5 {
				now := time.UnixMilli(int64(1_790_000_000_000 + i*100 + k))
				if err := errors.Join(d.RaiseHighWater(now), d.Spend(now.String(), "x", now), d.SetCheckpoint([]byte{byte(i)})); err != nil {
					t.Error(err)
				}
				d.Spent("x")
			}
		})
	}
	wg.Wait()
	d = reopen(t, d)
	if got := d.HighWater().UnixMilli(); got != 1_790_000_000_704 || len(d.spent) != 40 {
		t.Errorf("high water %d, %d spent", got, len(d.spent))
	}
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
	d := open(t, smallDisk(t))
	must(t, d.SetCheckpoint([]byte("one")))
	filler := filepath.Join(d.Path(), "filler")
	fill(t, filler)
	if err := d.SetCheckpoint(bytes.Repeat([]byte("two"), 3000)); protocol.CodeOf(err) != protocol.CodeStorageFull {
		t.Errorf("full disk: %v", err)
	}
	if err := d.Spend("sha256:a", "revoked", time.Now()); protocol.CodeOf(err) != protocol.CodeStorageFull {
		t.Errorf("full disk: %v", err)
	}
	if _, ok := d.Spent("sha256:a"); !ok {
		t.Error("what cannot be written does not count as spent")
	}
	if string(d.Checkpoint()) != "one" {
		t.Error("a checkpoint that was not written is remembered")
	}
	must(t, os.Remove(filler))
	must(t, d.Spend("sha256:b", "revoked", time.Now()))
	d = reopen(t, d)
	if _, ok := d.Spent("sha256:a"); !ok {
		t.Error("the next Spend did not write the one that failed")
	}
	if string(d.Checkpoint()) != "one" {
		t.Error("the old checkpoint is lost")
	}
}

// fill writes path until the file system is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}
