package scenario

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// playDisturbed plays the whole story and disturbs it after every step.
func playDisturbed(t *testing.T, disturb func(s *Story, ctx context.Context, step string)) {
	needWorld(t)
	t.Parallel()
	told := &tale{}
	err := Play(t.Context(), Config{Bin: programs, Dir: t.TempDir(), Profile: smallProfile(t, "databox"), Out: told, After: func(ctx context.Context, s *Story, number string) error {
		return s.playStep(ctx, step{number + "!", "the test disturbs", func(s *Story, ctx context.Context) { disturb(s, ctx, number) }})
	}})
	if err != nil {
		t.Fatalf("%v\nthe end of the story:\n%s", err, told.end())
	}
}

// unlockedAfter are the steps after which the device is unlocked.
var unlockedAfter = []string{"10", "8c", "11"}

// The agent is killed after every step, in the middle of a copy job and in the
// middle of an unlock. It comes back locked, with every record, and the story
// goes on to its end.
func TestKillAgentAfterEveryStep(t *testing.T) {
	playDisturbed(t, func(s *Story, ctx context.Context, step string) {
		if s.procs.get(agentName(s.target())) == nil {
			return // not enrolled yet
		}
		switch step {
		case "4":
			s.killInCopyJob(ctx)
		case "9":
			s.killAgentInUnlock(ctx, protocol.Opening)
			s.killAgentInUnlock(ctx, protocol.Opened)
		}
		s.killAgent(ctx)
		// The approval is not spent, and the session is still there. After the
		// last of these steps the session is disabled on the locked device.
		if slices.Contains(unlockedAfter, step) && step != "11" {
			s.execute(ctx)
		}
	})
}

// killAgent kills the agent, starts it again and looks what became of it.
func (s *Story) killAgent(ctx context.Context) {
	before, chain := s.exported(ctx), s.chain(s.target())
	s.out.tried("kill -9 of the agent, and start it again")
	s.killAgents()
	s.comesBackLocked(ctx, before, chain)
}

func (s *Story) comesBackLocked(ctx context.Context, before []string, chain [][]byte) {
	s.startAgents()
	s.online(ctx, s.w.Device, protocol.Locked)
	s.nothingOpen()
	s.chainKept(s.target(), chain)
	s.nothingLost(ctx, before)
}

// killInCopyJob starts the copy job and kills the agent while it runs.
func (s *Story) killInCopyJob(ctx context.Context) {
	before, chain := s.exported(ctx), s.chain(s.target())
	s.out.tried("kill -9 of the agent in the middle of the copy job")
	start := s.background(ctx, "sam", "order", "start-job", string(s.w.Device.Order))
	s.awaitCopyJob(ctx)
	s.killAgents()
	start.wait()
	s.comesBackLocked(ctx, before, chain)
}

// killAgentInUnlock kills the agent as soon as an execution has brought it to a
// state.
func (s *Story) killAgentInUnlock(ctx context.Context, state protocol.LockState) {
	before, chain := s.exported(ctx), s.chain(s.target())
	s.out.tried("kill -9 of the agent in the middle of an unlock: once it is %s", state)
	execution := s.executeTo(ctx, state)
	s.killAgents()
	c := execution.wait()
	s.out.back(c.err)
	s.hold(c.code != 0, "the execution succeeded without an agent")
	s.comesBackLocked(ctx, before, chain)
	s.hold(s.request(ctx, s.number).Status == "Approved", "the request is %s", s.request(ctx, s.number).Status)
}

// executeTo has the engineer execute, and returns once that has brought the node
// under attack to a state, or beyond it. While an unlock that was cut before still
// comes to its end, another is refused as busy: that is tried again.
func (s *Story) executeTo(ctx context.Context, state protocol.LockState) *task {
	order := []protocol.LockState{protocol.Challenged, protocol.Opening, protocol.Opened, protocol.Unlocked}
	enough := order[slices.Index(order, state):]
	execution := s.background(ctx, "erin", "request", "execute", s.number)
	for deadline := time.Now().Add(patience); ; {
		over := execution.isOver()
		status, err := s.status(ctx, s.target())
		if err == nil && slices.Contains(enough, protocol.LockState(status.State)) {
			s.out.held("the node is %s", status.State)
			return execution
		}
		s.hold(time.Now().Before(deadline), "%s never became %s", s.target().ID, state)
		if !over {
			continue
		}
		c := execution.wait()
		s.hold(strings.Contains(c.err, "("+string(protocol.CodeBusy)+")"), "%s never became %s: execute exited with %d: %s", s.target().ID, state, c.code, c.err)
		execution = s.background(ctx, "erin", "request", "execute", s.number)
	}
}

// awaitCopyJob waits until the first copy job runs, or has: it is short.
func (s *Story) awaitCopyJob(ctx context.Context) {
	for deadline := time.Now().Add(patience); ; {
		status, err := s.status(ctx, s.target())
		if err == nil && (protocol.LockState(status.State) == protocol.Unlocked || status.Job.GetState() != "") {
			s.out.held("the node is %s, its job %q", status.State, status.Job.GetState())
			return
		}
		s.hold(time.Now().Before(deadline), "the copy job of %s never began", s.target().ID)
	}
}

// The control plane is killed after every step, in the middle of an unlock and
// while the copy job runs. It comes back with every record, an unlock that was
// not committed is undone, and the story goes on to its end.
func TestKillControlPlaneAfterEveryStep(t *testing.T) {
	playDisturbed(t, func(s *Story, ctx context.Context, step string) {
		switch step {
		case "4":
			s.killControlInCopyJob(ctx)
		case "9":
			s.killControlInUnlock(ctx, protocol.Challenged)
			s.killControlInUnlock(ctx, protocol.Opening)
			s.killControlInUnlock(ctx, protocol.Opened)
		}
		want := protocol.Locked
		if slices.Contains(unlockedAfter, step) {
			want = protocol.Unlocked
		}
		s.killControl(ctx)
		if s.procs.get(agentName(s.target())) != nil {
			s.online(ctx, s.w.Device, want)
		}
	})
}

func (s *Story) killControl(ctx context.Context) {
	before := s.exported(ctx)
	s.out.tried("kill -9 of lockboxd, and start it again")
	s.must(s.procs.end(controlPlane, syscall.SIGKILL))
	s.startControl(ctx)
	s.nothingLost(ctx, before)
}

func (s *Story) killControlInCopyJob(ctx context.Context) {
	before := s.exported(ctx)
	s.out.tried("kill -9 of lockboxd while the copy job runs")
	start := s.background(ctx, "sam", "order", "start-job", string(s.w.Device.Order))
	s.awaitCopyJob(ctx)
	s.must(s.procs.end(controlPlane, syscall.SIGKILL))
	start.wait()
	s.startControl(ctx)
	s.online(ctx, s.w.Device, protocol.Locked)
	s.nothingLost(ctx, before)
}

// killControlInUnlock kills lockboxd as soon as an execution has brought the
// node to a state. What it left half open gets locked; only if it has answered
// that the unlock is committed, it stays.
func (s *Story) killControlInUnlock(ctx context.Context, state protocol.LockState) {
	before := s.exported(ctx)
	s.out.tried("kill -9 of lockboxd in the middle of an unlock: once the node is %s", state)
	execution := s.executeTo(ctx, state)
	s.must(s.procs.end(controlPlane, syscall.SIGKILL))
	c := execution.wait()
	s.out.back(c.err)
	s.startControl(ctx)
	if c.code == 0 {
		s.online(ctx, s.w.Device, protocol.Unlocked)
		s.locksAgain(ctx)
	}
	s.online(ctx, s.w.Device, protocol.Locked)
	s.nothingOpen()
	s.nothingLost(ctx, before)
	s.hold(s.request(ctx, s.number).Status == "Approved", "the request is %s", s.request(ctx, s.number).Status)
}
