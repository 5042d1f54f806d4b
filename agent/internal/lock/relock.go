package lock

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Reason says why a node locked.
type Reason string

// The reasons. The control plane may give others, which are recorded as they
// stand.
const (
	SessionDisabled Reason = "session-disabled" // of the approved engineer
	SessionKilled   Reason = "session-killed"   // by an approver
	EngineerDone    Reason = "engineer-done"
	Revoked         Reason = "revoked"
	WindowOver      Reason = "window-over"
	Tamper          Reason = "tamper"
	DeadMan         Reason = "dead-man"      // no word of the control plane
	PeerLost        Reason = "peer-lost"     // no word of another node of the device
	ClockSet        Reason = "clock-set"     // the wall clock was set beyond the end
	Operator        Reason = "operator"      // the local lock command
	NotCommitted    Reason = "not-committed" // opened, and then nothing came
	UnlockFailed    Reason = "unlock-failed" // not all could be opened or shared
	JobHalted       Reason = "job-halted"
	JobCompleted    Reason = "job-completed"
	JobPaused       Reason = "job-paused"
	ShareEnded      Reason = "share-ended" // the share server ended by itself
	DiskEnded       Reason = "disk-ended"  // a disk became useless
	AgentStopped    Reason = "agent-stopped"
	Unspecified     Reason = "unspecified" // what was given is no reason
	// UnknownSession is why a node locks that was asked to disable a session of
	// which it cannot tell whether it is that of the approved engineer.
	UnknownSession Reason = "unknown-session-disabled"
)

// Recording returns how recordings end when a node locks for r.
func (r Reason) Recording() recording.Reason {
	switch r {
	case SessionKilled:
		return recording.EndKilled
	case SessionDisabled, UnknownSession:
		return recording.EndDisabled
	case Revoked:
		return recording.EndRevoked
	case DeadMan, PeerLost:
		return recording.EndDeadMan
	case EngineerDone, AgentStopped:
		return recording.EndDone
	}
	return recording.EndLease
}

// spends are the reasons after which an approval for support can never be used
// again. After any other it can be executed again, with a new challenge and the
// same end.
var spends = map[Reason]bool{SessionDisabled: true, SessionKilled: true, EngineerDone: true, Revoked: true, WindowOver: true, Tamper: true}

var reasonForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

// The timetable of locking, from its start.
const (
	hooksWithin = 300 * time.Millisecond // sessions and shares end
	wipeWithin  = 1500 * time.Millisecond
	closeWithin = 1900 * time.Millisecond // disks are closed
	lockWithin  = 2 * time.Second
	forever     = 10 * 365 * 24 * time.Hour
)

// ending is one way to Locked. Whoever comes later waits for the same.
type ending struct {
	done    chan struct{}
	trouble error // what went wrong on the way; set before done is closed
}

// outcome is what became of an ending.
type outcome struct {
	left    error // what could not be undone
	trouble error // what went wrong, as writes that were lost
}

// Lock locks the node, if subject is "" or that of what is open. With spend, or
// for a reason that spends it, the approval can never be used again; [Revoked]
// makes any subject unusable, whether it is open or not. This is durable when
// Lock returns nil.
//
// It needs no permission and waits for nobody. took is how long it was until
// nothing was open: at most 2 s. If something could not be undone by then, the
// keys are gone all the same, the node is Faulted, and Lock returns an error.
func (m *Machine) Lock(_ context.Context, reason Reason, subject approval.Digest, spend bool) (took time.Duration, err error) {
	if subject != "" && !subject.Valid() {
		return 0, protocol.Errorf(protocol.CodeInvalid, "%.100q is not a digest: want sha256: and 64 hexadecimal digits", subject)
	}
	if !reasonForm.MatchString(string(reason)) {
		reason = Unspecified
	}
	m.mu.Lock()
	if !m.running {
		defer m.mu.Unlock()
		return 0, m.refusalLocked()
	}
	m.tasks.Add(1)
	m.mu.Unlock()
	defer m.tasks.Done()
	return m.relock(reason, subject, spend, nil)
}

// relock is [Machine.Lock]. If only is set, nothing but that lease ends.
func (m *Machine) relock(reason Reason, subject approval.Digest, spend bool, only *lease) (time.Duration, error) {
	start := time.Now()
	p := m.beginDrop(reason, subject, spend, only)
	if p.drop != nil {
		p.drop(start)
	}
	if p.ending != nil {
		<-p.ending.done
	}
	took := time.Since(start)
	if only != nil && p.drop == nil {
		return took, nil // somebody else ended it, for another reason
	}
	err := m.remember(p, reason)
	if p.drop != nil {
		m.recordLocked(p.lease, reason, took, p.ending.trouble)
	}
	return took, errors.Join(m.faulted(), err)
}

// plan is what locking amounts to.
type plan struct {
	lease  *lease                // that is concerned; nil if there is none
	ending *ending               // to wait for; nil if nothing is open
	drop   func(start time.Time) // leads there; nil if another is at it already
	spend  approval.Digest       // what can never be used again; "" if nothing
	proven bool                  // an approval of it was verified
	until  time.Time             // until when that matters
}

// beginDrop leads towards Locked. What is spent counts as spent from here on, so
// that an unlock under way cannot slip through before it is durable.
func (m *Machine) beginDrop(reason Reason, subject approval.Digest, spend bool, only *lease) plan {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lease
	if only != nil && l != only || subject != "" && !m.holdsLocked(subject) {
		return m.spendLocked(plan{}, reason, subject, spend && only == nil)
	}
	switch {
	case m.state == protocol.Locking:
		return m.spendLocked(plan{lease: l, ending: m.ending}, reason, subject, spend)
	case m.state == protocol.Locked || m.state == protocol.Challenged:
		m.discardChallengeLocked()
		m.moveLocked(dropping)
		return m.spendLocked(plan{}, reason, subject, spend)
	case l != nil:
		l.end()
	}
	m.moveLocked(dropping)
	e := &ending{done: make(chan struct{})}
	m.ending = e
	p := plan{lease: l, ending: e, drop: func(start time.Time) { m.drop(l, e, reason, start) }}
	return m.spendLocked(p, reason, subject, spend)
}

// spendLocked adds to a plan what is spent by it.
func (m *Machine) spendLocked(p plan, reason Reason, subject approval.Digest, spend bool) plan {
	p.until = m.cfg.Clock.Now().Add(forever)
	spend = spend || reason == Revoked
	if l := p.lease; l != nil {
		subject, spend, p.proven = l.subject, spend || l.spentBy(reason), !l.wall.IsZero()
		if !l.expires.IsZero() {
			p.until = l.expires
		}
	}
	if spend && subject != "" {
		p.spend = subject
		if p.proven || len(m.used) < maxUsed { // nobody fills memory with what was never approved
			m.used[subject] = reason
		}
	}
	return p
}

// holdsLocked reports whether the lease or the challenge is for subject.
func (m *Machine) holdsLocked(subject approval.Digest) bool {
	return m.lease != nil && m.lease.subject == subject || m.challenge != nil && m.challenge.subject == subject
}

// drop undoes a lease, or tries once more to undo what is left if l is nil, and
// leads to Locked or Faulted. It returns at most [lockWithin] after start.
func (m *Machine) drop(l *lease, e *ending, reason Reason, start time.Time) {
	result := make(chan outcome, 1)
	m.tasks.Go(func() { result <- m.undo(l, reason, start) })
	select {
	case out := <-result:
		m.endDrop(e, reason, out)
	case <-time.After(time.Until(start.Add(lockWithin))):
		m.endDrop(e, reason, outcome{left: errors.New("undoing it takes too long")})
		m.tasks.Go(func() { m.endLate(e, (<-result).left) })
	}
}

func (m *Machine) endDrop(e *ending, reason Reason, out outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastReason, m.lastDetail = reason, ""
	if m.lease != nil {
		m.lastDetail = m.lease.detail
	}
	m.lease, m.ending = nil, nil
	m.lastEnding = e
	e.trouble = out.trouble
	if out.left != nil {
		m.faultLocked("locked, but not all could be undone: " + out.left.Error())
	} else {
		m.moveLocked(dropped)
	}
	close(e.done)
}

// endLate takes the outcome of an ending that took too long.
func (m *Machine) endLate(e *ending, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.state != protocol.Faulted || m.lastEnding != e:
	case err != nil:
		m.fault = "locked, but not all could be undone: " + err.Error()
		m.noticeLocked()
	default:
		m.moveLocked(dropped)
	}
}

// undo ends sessions and shares, closes the disks, and returns what is left. The
// lease has ended: nothing is added to it any more.
func (m *Machine) undo(l *lease, reason Reason, start time.Time) outcome {
	if l == nil {
		return outcome{left: m.cleanAgain()}
	}
	ctx, cancel := context.WithDeadline(context.Background(), start.Add(closeWithin))
	defer cancel()
	stopped := m.endUsers(ctx, l, reason)
	closed := make(chan error, 1)
	m.tasks.Go(func() { closed <- m.closeDisks(ctx, l) })
	var closeErr error
	select {
	case closeErr = <-closed:
	case <-time.After(time.Until(start.Add(wipeWithin))):
		m.wipe(l)
		closeErr = <-closed
	}
	l.work.Wait()
	stopErr := <-stopped
	out := outcome{trouble: errors.Join(closeErr, stopErr)}
	if gone := m.awaitGone(start.Add(closeWithin)); stopErr != nil || gone != nil {
		out.left = m.cleanAgain()
	}
	return out
}

// cleanAgain tries to undo what an ordinary end has left.
func (m *Machine) cleanAgain() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanWithin)
	defer cancel()
	return m.clean(ctx)
}

// endUsers ends the sessions and the share server, side by side, and waits for
// them a little. The channel yields the share server's end.
func (m *Machine) endUsers(ctx context.Context, l *lease, reason Reason) (stopped <-chan error) {
	limit := time.After(hooksWithin)
	sessions := make(chan struct{})
	m.tasks.Go(func() {
		defer close(sessions)
		if m.cfg.EndSessions != nil {
			m.cfg.EndSessions(reason)
		}
	})
	server := make(chan struct{})
	result := make(chan error, 1)
	m.tasks.Go(func() {
		defer close(server)
		if l.server == nil {
			result <- nil
			return
		}
		result <- l.server.Stop(ctx, reason)
	})
	for _, done := range []chan struct{}{sessions, server} {
		select {
		case <-done:
		case <-limit:
			return result
		}
	}
	return result
}

// closeDisks closes all disks side by side.
func (m *Machine) closeDisks(ctx context.Context, l *lease) error {
	errs := make([]error, len(l.disks))
	var all sync.WaitGroup
	for i, d := range l.disks {
		all.Go(func() { errs[i] = d.Close(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// wipe ends all access to the disks, whatever else hangs.
func (m *Machine) wipe(l *lease) {
	for _, d := range l.disks {
		m.tasks.Go(d.Wipe)
	}
}

// faulted returns an error if the node is.
func (m *Machine) faulted() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != protocol.Faulted {
		return nil
	}
	return protocol.Errorf(protocol.CodeFaulted, "node %s is faulted: %s", m.cfg.Node, m.fault)
}

// remember makes durable what locking says about the approval, and how late it
// is.
func (m *Machine) remember(p plan, reason Reason) error {
	if l := p.lease; l != nil && !l.wall.IsZero() {
		m.writer.try(func() error { return m.cfg.State.RaiseHighWater(l.wallAt(m.cfg.Clock.Boot())) })
	}
	if p.spend == "" {
		return nil
	}
	known := false
	err := m.writer.do(recordWithin, func() error {
		_, known = m.cfg.State.Spent(string(p.spend))
		if p.proven {
			return m.cfg.State.Spend(string(p.spend), string(reason), p.until)
		}
		return m.cfg.State.SpendUnknown(string(p.spend), string(reason), p.until)
	})
	if err != nil {
		return fmt.Errorf("locked, but that the approval is used up could not be made durable: %w", err)
	}
	if known {
		return nil // it is on record
	}
	m.recordAfter(m.record(scope{subject: p.spend}, auditlog.OpSpendApproval, auditlog.Success, "reason", string(reason)))
	return nil
}

// recordLocked records that something was locked.
func (m *Machine) recordLocked(l *lease, reason Reason, took time.Duration, trouble error) {
	var s scope
	detail := ""
	if l != nil {
		s, detail = l.scope, l.detail
	}
	result, fault := auditlog.Success, m.faulted()
	if fault != nil {
		result = auditlog.Failure
	}
	m.recordAfter(m.record(s, auditlog.OpLockVolume, result,
		"reason", string(reason), "tookMs", strconv.FormatInt(took.Milliseconds(), 10),
		"disks", diskList(s.diskIDs), "detail", detail, "trouble", text(trouble)))
	if fault != nil {
		m.recordAfter(m.record(s, auditlog.OpFaultNode, auditlog.Failure, "fault", text(fault)))
	}
}
