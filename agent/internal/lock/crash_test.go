package lock

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/journal"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// crashDir is the variable that makes this test program be the agent that is
// killed.
const crashDir = "LOCK_TEST_CRASH_DIR"

// What Lock has reported survives kill -9: the approval is spent, the clock
// cannot go back, the log cannot either, and the records are there.
func TestKilledAfterLocking(t *testing.T) {
	if os.Getenv(crashDir) != "" {
		crash(t)
		return
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledAfterLocking$", "-test.v")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	digests := make(map[string]string)
	for lines := bufio.NewScanner(out); len(digests) < 2 && lines.Scan(); {
		if what, digest, ok := strings.Cut(lines.Text(), "="); ok && strings.HasPrefix(digest, "sha256:") {
			digests[what] = digest
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()

	st, err := state.Open(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for what, reason := range map[string]Reason{"disabled": SessionDisabled, "revoked": Revoked} {
		if got, ok := st.Spent(digests[what]); !ok || got != string(reason) {
			t.Errorf("%s approval %q: spent %v, for %q", what, digests[what], ok, got)
		}
	}
	if high := st.HighWater(); time.Since(high).Abs() > time.Minute {
		t.Errorf("the high-water mark is %v", high)
	}
	if len(st.Checkpoint()) == 0 {
		t.Error("the checkpoint is gone")
	}
	j, err := journal.New(filepath.Join(dir, "state", "journal"), protocol.NodeID{Serial: "DBX0001", Node: 1}, key("node 1"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	want := map[auditlog.Operation]int{auditlog.OpUnlockIntent: 1, auditlog.OpLockVolume: 1, auditlog.OpSpendApproval: 2}
	for _, e := range must(j.Read(0)) {
		want[must(auditlog.ParseRecord(e.Record)).Operation]--
	}
	for op, missing := range want {
		if (op == auditlog.OpUnlockIntent || op == auditlog.OpLockVolume || op == auditlog.OpSpendApproval) && missing != 0 {
			t.Errorf("%d records %q are missing", missing, op)
		}
	}
}

// crash is the agent that is killed.
func crash(t *testing.T) {
	s := newScene(t, func(s *scene) {
		s.state.Close()
		s.dir = os.Getenv(crashDir)
		s.state = must(state.Open(filepath.Join(s.dir, "state")))
		s.journal.Journal = must(journal.New(filepath.Join(s.dir, "state", "journal"), s.nodes[0], key("node 1")))
		s.cfg.State = s.state
		for _, id := range s.disks.ids {
			makeShare(t, s.disks.root(id))
		}
	})
	a := s.open(protocol.SupportAccess)
	must(s.Lock(context.Background(), SessionDisabled, a.subject, false))
	other := s.newAttempt(protocol.SupportAccess)
	other.sign()
	must(s.Lock(context.Background(), Revoked, other.subject, false))
	fmt.Printf("\ndisabled=%s\nrevoked=%s\n", a.subject, other.subject)
	select {} // until killed
}
