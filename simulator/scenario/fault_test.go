package scenario

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// shortDeadMan is the dead-man time of worlds in which it runs out.
const shortDeadMan = 3 * time.Second

// What is broken on a device with an approved request, one fault after the
// other. After each the fault is repaired and the same approval opens: that is
// the control.
func TestFaults(t *testing.T) {
	t.Parallel()
	s := newStage(t, world.Config{Profile: smallProfile(t, "databox"), DeadMan: shortDeadMan}, func(w *world.World) {
		tmpfs(t, w.Device.Nodes[0].StateDir(), 48<<20)
		if err := leavesRoom(w.Device.Nodes[0]); err != nil {
			t.Fatal(err)
		}
		tmpfs(t, w.ControlDir(), 24<<20)
		if err := w.WriteControlConfig(0); err != nil {
			t.Fatal(err)
		}
	})
	s.toApproved()
	s.in("control plane away", (*stage).controlPlaneAway)
	s.in("agent killed for good", (*stage).agentKilledForGood)
	s.in("metadata", (*stage).metadataDamaged)
	s.in("image truncated", (*stage).imageTruncated)
	s.in("no room for the journal", (*stage).journalFull)
	s.in("no room for the store", (*stage).storeFull)
}

// leavesRoom has a node's agent keep no more room free for recordings than it must.
func leavesRoom(n world.Node) error {
	f, err := os.OpenFile(n.ConfigFile(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("recording:\n  min_free_mib: 16\n")
	return err
}

// tmpfs mounts a file system of that many bytes, for as long as the test runs.
func tmpfs(t *testing.T, dir string, size int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("cannot unmount %s: %v", dir, err)
		}
	})
}

// opens executes the approved request and waits until the shares are open.
func (s *Story) opens(ctx context.Context) {
	s.online(ctx, s.w.Device, protocol.Locked)
	s.ok(ctx, "erin", "request", "execute", s.number)
	s.online(ctx, s.w.Device, protocol.Unlocked)
}

// locksAgain has staff lock the node, which spends nothing.
func (s *Story) locksAgain(ctx context.Context) {
	c := s.agent(ctx, s.target(), "lock")
	s.hold(c.code == 0, "databox-agent lock: %s", c.err)
	s.nothingOpen()
}

// refusesAndLocks executes, which must be refused soon, with one of the codes,
// and leave everything locked. It returns what the engineer is told.
func (s *Story) refusesAndLocks(ctx context.Context, codes ...protocol.Code) string {
	s.online(ctx, s.w.Device, protocol.Locked)
	began := time.Now()
	c := s.lockbox(ctx, "erin", "request", "execute", s.number)
	took := time.Since(began)
	s.out.back(c.err)
	s.hold(c.code == 3, "execute exited with %d, want a refusal: %s", c.code, c.err)
	s.hold(took < 5*time.Second, "the refusal took %s", took)
	named := false
	for _, code := range codes {
		named = named || strings.Contains(c.err, "("+string(code)+")")
	}
	s.hold(named, "the refusal does not say one of %v: %s", codes, c.err)
	s.provesLocked(ctx)
	return c.err
}

// controlPlaneAway keeps the control plane away for longer than the dead-man
// time while the device is unlocked.
func (s *stage) controlPlaneAway() {
	s.do("the control plane stays away", func(ctx context.Context) {
		s.opens(ctx)
		s.must(s.procs.end(controlPlane, syscall.SIGKILL))
		began := time.Now()
		time.Sleep(shortDeadMan / 3)
		status, err := s.status(ctx, s.target())
		s.must(err)
		s.hold(status.State == string(protocol.Unlocked), "it is %s long before the dead-man time is over", status.State)
		for status.State != string(protocol.Locked) {
			s.hold(time.Since(began) < shortDeadMan+2*time.Second, "it is still %s after %s", status.State, time.Since(began))
			status, err = s.status(ctx, s.target())
			s.must(err)
		}
		s.out.held("locked after %s", time.Since(began))
		s.provesLocked(ctx)
		s.startControl(ctx)
		s.online(ctx, s.w.Device, protocol.Locked)
		s.until(ctx, "the reason is in the activity log", func() bool { return s.lockedBecause(ctx, "dead-man") })
	})
	s.do("it was not spent", func(ctx context.Context) {
		s.opens(ctx)
		s.locksAgain(ctx)
	})
}

// lockedBecause reports whether the node's last record of locking gives this
// reason.
func (s *Story) lockedBecause(ctx context.Context, reason string) bool {
	chain := s.replayed(s.exported(ctx), s.target())
	for i := len(chain) - 1; i >= 0; i-- {
		r, err := auditlog.ParseRecord([]byte(chain[i]))
		s.must(err)
		if r.Operation == auditlog.OpLockVolume {
			return r.Properties["reason"] == reason
		}
	}
	return false
}

// agentKilledForGood kills the agent while shares are open, and starts no other.
func (s *stage) agentKilledForGood() {
	s.do("the agent is killed and does not come back", func(ctx context.Context) {
		s.opens(ctx)
		n := s.target()
		status, err := s.status(ctx, n)
		s.must(err)
		s.hold(len(status.Disks[0].Mounts) == 1, "disk1 has these mounts: %v", status.Disks[0].Mounts)
		name := filepath.Join(status.Disks[0].Mounts[0], s.shareName(), "photos/2026/market.jpg")
		file, err := os.Open(name)
		s.must(err)
		defer file.Close()
		_, err = file.ReadAt(make([]byte, 512), 0)
		s.must(err)

		s.killAgents()
		took, left := goneWithin(n, 2*time.Second)
		s.hold(len(left) == 0, "%s after the agent was killed: %s", took, strings.Join(left, ", "))
		s.out.held("nothing is left after %s", took)
		_, err = os.ReadFile(name)
		s.hold(err != nil, "%s can still be read", name)
		_, err = file.ReadAt(make([]byte, 4096), 100<<10)
		s.hold(err != nil, "a file that was open can still be read")
		s.smbRefused(ctx, n)
		s.startAgents()
		s.opens(ctx)
		s.locksAgain(ctx)
	})
}

// patched changes a disk's image, runs part, and changes it back.
func (s *Story) patched(image string, offset int64, with []byte, part func()) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	s.must(err)
	defer f.Close()
	was := make([]byte, len(with))
	_, err = f.ReadAt(was, offset)
	s.must(err)
	_, err = f.WriteAt(with, offset)
	s.must(err)
	defer func() {
		_, err := f.WriteAt(was, offset)
		s.must(err)
	}()
	part()
}

// metadataAt returns where the copies of a volume's metadata are: the boot
// sector says so behind the GUID at byte 160.
func (s *Story) metadataAt(image string) (at [3]int64) {
	boot := make([]byte, 512)
	f, err := os.Open(image)
	s.must(err)
	defer f.Close()
	_, err = f.ReadAt(boot, 0)
	s.must(err)
	for i := range at {
		at[i] = int64(binary.LittleEndian.Uint64(boot[160+16+8*i:]))
	}
	return at
}

// metadataDamaged damages the metadata copies of a disk, each alone and then
// all of them.
func (s *stage) metadataDamaged() {
	image := s.target().Disks[0].Image
	at := s.metadataAt(image)
	junk := []byte(strings.Repeat("junk", 1024))
	for i, offset := range at {
		s.do(fmt.Sprintf("copy %d is damaged", i+1), func(ctx context.Context) {
			s.patched(image, offset, junk, func() {
				s.opens(ctx)
				s.locksAgain(ctx)
			})
		})
	}
	s.do("all copies are damaged", func(ctx context.Context) {
		s.patched(image, at[0], junk, func() {
			s.patched(image, at[1], junk, func() {
				s.patched(image, at[2], junk, func() {
					said := s.refusesAndLocks(ctx, protocol.CodeDisks)
					s.hold(strings.Contains(said, "disk1") && strings.Contains(said, "metadata"), "the refusal does not say what is wrong with which disk: %s", said)
				})
			})
		})
		s.opens(ctx)
		s.locksAgain(ctx)
	})
}

// imageTruncated cuts the end of a disk off.
func (s *stage) imageTruncated() {
	s.do("the second half of disk2 is missing", func(ctx context.Context) {
		image := s.target().Disks[1].Image
		whole, err := os.ReadFile(image)
		s.must(err)
		s.must(os.Truncate(image, int64(len(whole)/2)))
		said := s.refusesAndLocks(ctx, protocol.CodeDisks)
		s.hold(strings.Contains(said, "disk2"), "the refusal does not name the disk: %s", said)
		s.must(os.WriteFile(image, whole, 0o600))
		s.opens(ctx)
		s.locksAgain(ctx)
	})
}

// fill leaves no room in the file system of dir until the returned function is
// called.
func (s *Story) fill(dir string) (free func()) {
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	s.must(err)
	defer f.Close()
	for size := 1 << 20; size > 0; {
		n, err := f.Write(make([]byte, size))
		if errors.Is(err, syscall.ENOSPC) {
			size /= 2
			continue
		}
		s.must(err)
		s.hold(n > 0, "wrote nothing")
	}
	return func() { s.must(os.Remove(name)) }
}

// journalFull leaves no room for the device's own records: nothing opens, and
// what is open still locks.
func (s *stage) journalFull() {
	s.do("the journal's disk is full", func(ctx context.Context) {
		s.online(ctx, s.w.Device, protocol.Locked)
		free := s.fill(s.target().StateDir())
		s.refusesAndLocks(ctx, protocol.CodeStorageFull, protocol.CodeNotRecorded)
		free()
		s.opens(ctx)
	})
	s.do("it is full while unlocked", func(ctx context.Context) {
		free := s.fill(s.target().StateDir())
		defer free()
		began := time.Now()
		s.agent(ctx, s.target(), "lock")
		for left := s.mountsOf(s.target()); len(left) > 0; left = s.mountsOf(s.target()) {
			s.hold(time.Since(began) < 2*time.Second, "with no room to record it, this was not locked: %s", strings.Join(left, ", "))
		}
		s.provesLocked(ctx)
	})
	s.do("there is room again", func(ctx context.Context) {
		s.opens(ctx)
		s.locksAgain(ctx)
		s.nothingLost(ctx, nil)
	})
}

// exhaust writes until the store takes no more: its write-ahead log may have some
// room that it got before the disk was full.
func (s *Story) exhaust(ctx context.Context) {
	s.out.tried("lockbox ticket file, until there is no room")
	for range 500 {
		began := time.Now()
		c := s.quietly(ctx, "olga", "ticket", "file", string(s.w.Device.Order), "--title", strings.Repeat("fill it up ", 40))
		s.hold(time.Since(began) < 5*time.Second, "an answer took %s", time.Since(began))
		if c.code != 0 {
			s.out.back(c.err)
			s.hold(c.code == 3 && strings.Contains(c.err, "("+string(protocol.CodeStorageFull)+")"), "exit %d: %s", c.code, c.err)
			return
		}
	}
	s.fail("the store goes on with a full disk")
}

// storeFull leaves no room for the control plane's store and activity log.
func (s *stage) storeFull() {
	var before []string
	s.do("the store's disk is full", func(ctx context.Context) {
		s.online(ctx, s.w.Device, protocol.Locked)
		before = s.exported(ctx)
		free := s.fill(s.w.ControlDir())
		defer free()
		s.exhaust(ctx)
		s.refusesAndLocks(ctx, protocol.CodeStorageFull, protocol.CodeNotRecorded)
		s.hold(s.request(ctx, s.number).Status == "Approved", "the request is lost")
	})
	s.do("there is room again", func(ctx context.Context) {
		s.opens(ctx)
		s.locksAgain(ctx)
		s.nothingLost(ctx, before)
	})
	s.locksWithoutRoom("revoke", func(ctx context.Context) command {
		return s.lockbox(ctx, "olga", "request", "revoke", s.number)
	})
	s.play("6", "7", "9") // the revocation has closed the session, too
	s.locksWithoutRoom("disable the session", func(ctx context.Context) command {
		return s.lockbox(ctx, "erin", "session", "disable", s.session)
	})
}

// locksWithoutRoom ends an access that cannot be written down: the device locks
// at once all the same, and people are told to do it again. Then it is written.
func (s *stage) locksWithoutRoom(what string, end func(context.Context) command) {
	s.do(what+" without room", func(ctx context.Context) {
		s.opens(ctx)
		free := s.fill(s.w.ControlDir())
		s.exhaust(ctx)
		began := time.Now()
		c := end(ctx)
		s.out.back(c.err)
		s.hold(time.Since(began) < 5*time.Second, "it took %s", time.Since(began))
		s.hold(c.code == 3 && strings.Contains(c.err, "("+string(protocol.CodeStorageFull)+")"), "exit %d: %s", c.code, c.err)
		s.provesLocked(ctx)
		free()
		c = end(ctx)
		s.hold(c.code == 0, "once there is room: %s", c.err)
		status := s.request(ctx, s.number).Status
		s.hold(status == "Revoked" || status == "Completed", "the request is %s", status)
	})
}
