package erasure

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// scene is a node with two real volumes.
type scene struct {
	cfg     Config
	ref     approval.NodeRef
	key     bitlocker.ExternalKey
	locked  bool
	records []auditlog.Record
	refuse  error // what the journal says
}

func (s *scene) Append(_ context.Context, r auditlog.Record) (int64, error) {
	if s.refuse != nil {
		return 0, s.refuse
	}
	s.records = append(s.records, r)
	return 0, nil
}

func newScene(t *testing.T) *scene {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{locked: true, ref: approval.NodeRef{Serial: "DBX0001", Node: 1, KeyFingerprint: approval.KeyFingerprint(pub)}}
	if s.key, err = bitlocker.GenerateExternalKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	s.cfg = Config{
		Dir: filepath.Join(t.TempDir(), "erasure"), Node: s.ref.ID(), Key: key, Tool: "databox-agent", Version: "0", Journal: s, Now: time.Now,
		Locked: func() bool { return s.locked },
	}
	for _, id := range []protocol.DiskID{"disk1", "disk2"} {
		s.cfg.Disks = append(s.cfg.Disks, disk.Disk{ID: id, Image: s.volume(t)})
	}
	return s
}

func (s *scene) volume(t *testing.T) string {
	t.Helper()
	const size = 8 << 20
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id, err := bitlocker.NewGUID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(f.Truncate(size), bitlocker.Format(f, size, bitlocker.FormatOptions{
		ID: id, Protectors: []bitlocker.ProtectorKey{{ID: id, Key: s.key}},
		Metadata: [3]int64{1 << 20, 2 << 20, 3 << 20}, HeaderCopy: 4 << 20, HeaderOnly: true, Rand: rand.Reader, Now: time.Now(),
	}))
	if err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// opens reports whether a disk opens with its key.
func (s *scene) opens(t *testing.T, d disk.Disk) bool {
	t.Helper()
	f, err := os.Open(d.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v, err := bitlocker.Open(f, 8<<20)
	if err != nil {
		return false
	}
	p, err := v.Unlock(s.key)
	if err != nil {
		return false
	}
	p.Wipe()
	return true
}

func (s *scene) eraser(t *testing.T) *Eraser {
	t.Helper()
	e, err := New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (s *scene) ids() (list []protocol.DiskID) {
	for _, d := range s.cfg.Disks {
		list = append(list, d.ID)
	}
	return list
}

// want fails unless so many disks open.
func (s *scene) want(t *testing.T, open int) {
	t.Helper()
	for _, d := range s.cfg.Disks {
		if s.opens(t, d) {
			open--
		}
	}
	if open != 0 {
		t.Errorf("%d disks fewer open than should", open)
	}
}

func wantCode(t *testing.T, err error, code protocol.Code) {
	t.Helper()
	if protocol.CodeOf(err) != code {
		t.Errorf("got %v, want code %q", err, code)
	}
}

func TestErase(t *testing.T) {
	s := newScene(t)
	e := s.eraser(t)
	_, err := e.Erase(t.Context(), "ORD-1001", "sam")
	wantCode(t, err, protocol.CodeForbidden) // the control plane says that it is completed, the device does not
	if err := e.Completed("ORD-1001", s.ids(), true); err != nil {
		t.Fatal(err)
	}
	_, err = e.Erase(t.Context(), "ORD-1002", "sam")
	wantCode(t, err, protocol.CodeForbidden)
	s.locked = false
	_, err = e.Erase(t.Context(), "ORD-1001", "sam")
	wantCode(t, err, protocol.CodeBusy)
	s.locked, s.refuse = true, errors.New("full")
	_, err = e.Erase(t.Context(), "ORD-1001", "sam")
	wantCode(t, err, protocol.CodeNotRecorded)
	s.refuse = nil
	_, err = e.Erase(t.Context(), "ORD-1001", "")
	wantCode(t, err, protocol.CodeInvalid) // could not be certified
	s.want(t, 2)

	log := s.cfg.Disks[1].Image + ".redo"
	if err := os.WriteFile(log, []byte("a batch"), 0o600); err != nil {
		t.Fatal(err)
	}
	envelope, err := e.Erase(t.Context(), "ORD-1001", "sam")
	if err != nil {
		t.Fatal(err)
	}
	s.want(t, 0)
	if _, err := os.Lstat(log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log is left: %v", err)
	}
	c, err := approval.VerifyErasure(envelope, s.ref, "ORD-1001")
	if err != nil || len(c.Media) != 2 || c.Media[1].VolumeGUID == "" || c.Method != "Purge" {
		t.Errorf("certified %+v, %v", c, err)
	}
	again, err := s.eraser(t).Erase(t.Context(), "ORD-1001", "somebody")
	if err != nil || string(again) != string(envelope) {
		t.Errorf("another certificate: %v", err)
	}
	_, err = e.Erase(t.Context(), "ORD-1002", "sam")
	wantCode(t, err, protocol.CodeConflict)
	if n := len(s.records); n != 2 || s.records[0].Result != auditlog.Start || s.records[1].Properties["digest"] == "" {
		t.Errorf("on record: %v", s.records)
	}
}

// TestOnlyWhatWasCopied has a control plane order, of an order that the copy job has
// completed, what no copy job went through.
func TestOnlyWhatWasCopied(t *testing.T) {
	s := newScene(t)
	e := s.eraser(t)
	refused := func() {
		t.Helper()
		_, err := s.eraser(t).Erase(t.Context(), "ORD-1001", "sam")
		wantCode(t, err, protocol.CodeForbidden)
		s.want(t, 2)
	}
	completed := func(whole bool, disks ...protocol.DiskID) {
		t.Helper()
		if err := e.Completed("ORD-1001", disks, whole); err != nil {
			t.Fatal(err)
		}
	}
	completed(true, "disk1")
	refused() // a consent for one disk of two
	completed(true, "disk2")
	was := s.cfg.Disks[1].Image
	s.cfg.Disks[1].Image = s.volume(t)
	refused() // the disk was prepared anew
	s.cfg.Disks[1].Image = was
	completed(false, "disk2")
	refused() // something on it is nowhere else
	now := time.Now().Add(approval.UncopiedKept)
	s.cfg.Now = func() time.Time { return now.Add(-time.Minute) }
	refused()
	s.cfg.Now = func() time.Time { return now.Add(time.Minute) }
	if _, err := s.eraser(t).Erase(t.Context(), "ORD-1001", "sam"); err != nil {
		t.Error(err)
	}
	s.want(t, 0)
}

// TestPowerCut loses power after each step: there is no certificate without an
// erasure, and what was begun is finished at the next start.
func TestPowerCut(t *testing.T) {
	for erased := range 3 {
		s := newScene(t)
		e := s.eraser(t)
		if err := e.Completed("ORD-1001", s.ids(), true); err != nil {
			t.Fatal(err)
		}
		if _, err := e.begin(t.Context(), "ORD-1001", "sam"); err != nil {
			t.Fatal(err)
		}
		for _, d := range s.cfg.Disks[:erased] {
			if err := d.Erase(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(e.path(certificateFile)); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("there is a certificate: %v", err)
		}
		again := s.eraser(t)
		if err := again.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.want(t, 0)
		envelope, err := again.Erase(t.Context(), "ORD-1001", "sam")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := approval.VerifyErasure(envelope, s.ref, "ORD-1001"); err != nil {
			t.Error(err)
		}
	}
}

// TestDiskThatFails cannot erase one disk: nothing is certified until it can.
func TestDiskThatFails(t *testing.T) {
	s := newScene(t)
	e := s.eraser(t)
	if err := e.Completed("ORD-1001", s.ids(), true); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(s.cfg.Disks[1].Image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.begin(t.Context(), "ORD-1001", "sam"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.cfg.Disks[1].Image, 0); err != nil {
		t.Fatal(err)
	}
	if envelope, err := e.Erase(t.Context(), "ORD-1001", "sam"); err == nil || envelope != nil {
		t.Errorf("certified %s", envelope)
	}
	if err := state.WriteFile(s.cfg.Disks[1].Image, image); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Erase(t.Context(), "ORD-1001", "sam"); err != nil {
		t.Error(err)
	}
	s.want(t, 0)
}

// TestNothingToResume starts on a node that erases nothing.
func TestNothingToResume(t *testing.T) {
	s := newScene(t)
	if err := s.eraser(t).Resume(t.Context()); err != nil {
		t.Error(err)
	}
	s.want(t, 2)
}
