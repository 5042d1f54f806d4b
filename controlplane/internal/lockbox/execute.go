package lockbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// ExecuteRequest unlocks the device under an approved request, while its window
// lasts. It may be executed again after a relock that did not spend it.
func (s *Service) ExecuteRequest(ctx context.Context, caller auth.Caller, in *lockboxv1.ExecuteRequestRequest, progress func(*lockboxv1.ProgressEvent)) error {
	r, first, err := s.beginExecution(ctx, caller, in.Id)
	if refusal, ok := errors.AsType[*refusedError](err); ok {
		return s.refused(ctx, caller, auditlog.OpExecuteRequest, refusal)
	}
	if err != nil {
		return err
	}
	out, err := s.cfg.Custody.Unlock(ctx, caller, custody.UnlockIn{Request: r.ID}, progress)
	if err != nil {
		return errors.Join(err, s.executionFailed(context.WithoutCancel(ctx), caller, r.ID, first, err))
	}
	if err := s.executed(context.WithoutCancel(ctx), caller, r.ID, out); err != nil {
		return err
	}
	progress(&lockboxv1.ProgressEvent{
		Time: s.now().Unix(), Node: string(r.Serial), Phase: "done", LeaseEnd: out.LeaseEnd.Unix(),
		Message: fmt.Sprintf("%s is unlocked until %s", r.Serial, out.LeaseEnd.UTC().Format(time.RFC3339)),
	})
	return nil
}

// beginExecution checks that caller may execute now, and writes down that they
// do: from here on, ending their session ends this access. first reports
// whether the request had never been executed.
func (s *Service) beginExecution(ctx context.Context, caller auth.Caller, name string) (r store.Request, first bool, err error) {
	type begun struct {
		request store.Request
		first   bool
	}
	var done begun
	err = s.change(ctx, func(tx *store.Tx) error {
		r, err := request(ctx, tx, caller, name)
		if err != nil {
			return err
		}
		if err := s.mayExecute(caller, r); err != nil {
			return &refusedError{err, r}
		}
		first := r.Executed.IsZero()
		if first {
			r.Executed = s.now()
		}
		if err := tx.UpdateRequest(ctx, &r); err != nil {
			return err
		}
		done = begun{r, first}
		return s.record(ctx, tx, caller, auditlog.OpExecuteRequest, auditlog.Start, r, nil)
	})
	if err != nil {
		return store.Request{}, false, err
	}
	return done.request, done.first, nil
}

func (s *Service) mayExecute(caller auth.Caller, r store.Request) error {
	missing := func(what string) error {
		return protocol.Errorf(protocol.CodeNotApproved, "request %d cannot be executed: %s", r.Number, what)
	}
	switch state := State(r.Status); {
	case caller.Person != r.Engineer || !caller.Is(auth.Engineer):
		return forbidden("request %d was made by %s: only they can execute it", r.Number, r.Engineer)
	case state == Initializing:
		return missing("the provider's own approval is missing, and then the customer's")
	case state == Pending:
		return missing("the customer has not approved it")
	case state == Approving:
		return missing("more of the customer's approvals are needed")
	case state != Approved:
		return missing("it is " + string(state))
	case !s.now().Before(r.AccessEnd):
		return missing("the access ended at " + r.AccessEnd.Format(time.RFC3339))
	}
	return nil
}

// executed writes down that an execution opened the device.
func (s *Service) executed(ctx context.Context, caller auth.Caller, id protocol.RequestID, out custody.UnlockOut) error {
	return s.change(ctx, func(tx *store.Tx) error {
		r, err := tx.Request(ctx, id)
		if err != nil {
			return err
		}
		end := out.LeaseEnd.UTC().Format(time.RFC3339)
		if err := s.addHistory(ctx, tx, r, "Executed", "disks unlocked until "+end); err != nil {
			return err
		}
		err = s.record(ctx, tx, caller, auditlog.OpExecuteRequest, auditlog.Success, r, map[string]string{"attempt": out.Attempt, "leaseEnd": end})
		if err != nil {
			return err
		}
		return s.tellBoth(ctx, tx, notify.RequestExecuted, r, "The disks are unlocked until "+end+".")
	})
}

// executionFailed writes down why an execution did not open the device. If it
// was the first, the request is as if it had never been executed.
func (s *Service) executionFailed(ctx context.Context, caller auth.Caller, id protocol.RequestID, first bool, why error) error {
	return s.change(ctx, func(tx *store.Tx) error {
		r, err := tx.Request(ctx, id)
		if err != nil {
			return err
		}
		if first && State(r.Status) == Approved {
			r.Executed = time.Time{}
			if err := tx.UpdateRequest(ctx, &r); err != nil {
				return err
			}
		}
		if err := s.addHistory(ctx, tx, r, "Execution failed", why.Error()); err != nil {
			return err
		}
		return s.record(ctx, tx, caller, auditlog.OpExecuteRequest, auditlog.Failure, r, map[string]string{"code": string(protocol.CodeOf(why))})
	})
}

// CancelRequest withdraws a request that was not decided yet.
func (s *Service) CancelRequest(ctx context.Context, caller auth.Caller, in *lockboxv1.CancelRequestRequest) (*lockboxv1.Request, error) {
	if len(in.Reason) > maxText {
		return nil, invalid("a reason has at most %d bytes", maxText)
	}
	err := s.change(ctx, func(tx *store.Tx) error {
		r, err := request(ctx, tx, caller, in.Id)
		if err != nil {
			return err
		}
		if caller.Person != r.Engineer && !caller.Is(auth.Admin) {
			return forbidden("request %d was made by %s: they or an admin can cancel it", r.Number, r.Engineer)
		}
		return s.end(ctx, tx, caller, &r, Cancelled, "cancelled", in.Reason)
	})
	if err != nil {
		return nil, err
	}
	return s.GetRequest(ctx, caller, &lockboxv1.GetRequestRequest{Id: in.Id})
}

// RevokeRequest takes a request back, whatever was approved: it can never be
// executed again, sessions end and the device locks. Any approver may, and the
// engineer, for whom it means that the work is done.
func (s *Service) RevokeRequest(ctx context.Context, caller auth.Caller, in *lockboxv1.RevokeRequestRequest) (*lockboxv1.RevokeRequestResponse, error) {
	if len(in.Reason) > maxText {
		return nil, invalid("a reason has at most %d bytes", maxText)
	}
	var asked, ended store.Request
	err := s.change(ctx, func(tx *store.Tx) error {
		r, err := request(ctx, tx, caller, in.Id)
		if err != nil {
			return err
		}
		event, reason := TakenBack, "revoked"
		if caller.Person == r.Engineer && State(r.Status) == Approved {
			event, reason = Finished, "engineer-done"
		}
		if caller.Person != r.Engineer && !caller.Is(auth.Owner, auth.Approver, auth.InternalApprover, auth.Admin) {
			return forbidden("%s is %s: an approver, an admin or the engineer revokes a request", caller.Person, caller.Role)
		}
		asked = r
		asked.CloseReason = reason
		if err := s.end(ctx, tx, caller, &r, event, reason, in.Reason); err != nil {
			return err
		}
		ended = r
		return nil
	})
	if err != nil {
		return nil, s.lockAnyway(ctx, caller, asked, err)
	}
	relocked, err := s.relock(context.WithoutCancel(ctx), caller, ended)
	if err != nil {
		return nil, err
	}
	shown, err := s.GetRequest(ctx, caller, &lockboxv1.GetRequestRequest{Id: in.Id})
	if err != nil {
		return nil, err
	}
	return &lockboxv1.RevokeRequestResponse{Request: shown, Relocked: relocked}, nil
}

// lockAnyway locks the device of an access that was to end when that could not be
// written: locking waits for no disk. The device forgets the approval; here, the
// end has still to be written.
func (s *Service) lockAnyway(ctx context.Context, caller auth.Caller, r store.Request, why error) error {
	if State(r.Status) != Approved || !unwritten(why) {
		return why
	}
	lock, err := lockOf(caller, r)
	if err != nil {
		return err
	}
	for _, result := range s.cfg.Custody.Lock(ctx, lock) {
		if !result.Confirmed {
			return why
		}
	}
	return lockedUnwritten(why)
}

// unwritten reports whether a change failed for want of a store that takes it,
// not because it was refused.
func unwritten(err error) bool {
	switch protocol.CodeOf(err) {
	case protocol.CodeStorageFull, protocol.CodeNotRecorded, protocol.CodeTimeout, protocol.CodeUnavailable, protocol.CodeInternal:
		return true
	}
	return false
}

func lockedUnwritten(why error) error {
	text := why.Error()
	if e, ok := errors.AsType[*protocol.Error](why); ok {
		text = e.Message // the code is said once
	}
	return protocol.Errorf(protocol.CodeOf(why), "the device is locked, but that could not be written down, so do this again: %s", text)
}

// operationsOfEnd name the ways in which a request ends without a decision.
var operationsOfEnd = map[Event]auditlog.Operation{
	Cancelled: auditlog.OpCancelRequest, TakenBack: auditlog.OpRevokeRequest,
	Finished: auditlog.OpCompleteRequest, Lapsed: auditlog.OpRequestExpiry,
}

// end ends a request within tx. If it was approved, the row that makes custody
// refuse it from now on is written with it, and a timer that sees to the relock
// should this process not.
func (s *Service) end(ctx context.Context, tx *store.Tx, caller auth.Caller, r *store.Request, e Event, reason, detail string) error {
	was := State(r.Status)
	r.CloseReason = reason
	if err := s.move(ctx, tx, r, e); err != nil {
		return err
	}
	if err := s.stopWaiting(ctx, tx, *r); err != nil {
		return err
	}
	err := s.record(ctx, tx, caller, operationsOfEnd[e], auditlog.Success, *r, map[string]string{"reason": reason, "detail": detail})
	if err != nil {
		return err
	}
	if err := s.addHistory(ctx, tx, *r, r.Status, fmt.Sprintf("%s by %s: %s", reason, caller.Person, detail)); err != nil {
		return err
	}
	if err := s.tellBoth(ctx, tx, noticeOf(*r), *r, "It ended because: "+reason+"."); err != nil {
		return err
	}
	if was != Approved {
		return nil
	}
	err = tx.InsertRevocation(ctx, &store.Revocation{
		SubjectDigest: r.StatementDigest, Subject: string(r.ID), Person: caller.Person, Reason: reason, Time: s.now(),
	})
	if err != nil {
		return err
	}
	if err := tx.CancelTimer(ctx, timerAccessEnd, string(r.ID)); err != nil {
		return err
	}
	return tx.SetTimer(ctx, timerRelock, string(r.ID), s.now().Add(relockLease))
}

// relock tells the device to lock and to forget the approval, and finishes the
// request. A node that does not confirm locks by itself; it is told again when
// it is back, until the window is over.
func (s *Service) relock(ctx context.Context, caller auth.Caller, r store.Request) ([]*lockboxv1.RelockResult, error) {
	if state := State(r.Status); state.Terminal() && r.AccessEnd.IsZero() {
		return nil, nil
	}
	lock, err := lockOf(caller, r)
	if err != nil {
		return nil, err
	}
	results := s.cfg.Custody.Lock(ctx, lock)
	confirmed := true
	for _, result := range results {
		confirmed = confirmed && result.Confirmed
	}
	err = s.change(ctx, func(tx *store.Tx) error { return s.relocked(ctx, tx, r.ID, confirmed) })
	return results, err
}

func lockOf(caller auth.Caller, r store.Request) (custody.LockIn, error) {
	st, err := approval.ParseStatement(r.Statement)
	if err != nil {
		return custody.LockIn{}, err
	}
	in := custody.LockIn{
		Caller: caller, Reason: r.CloseReason, Subject: approval.Digest(r.StatementDigest), Spend: true,
		Tenant: r.Tenant, Correlation: string(r.ID),
	}
	for _, n := range st.Nodes {
		in.Nodes = append(in.Nodes, n.ID())
	}
	return in, nil
}

// relocked finishes a request whose device was told to lock.
func (s *Service) relocked(ctx context.Context, tx *store.Tx, id protocol.RequestID, confirmed bool) error {
	r, err := tx.Request(ctx, id)
	if err != nil {
		return err
	}
	if !State(r.Status).Terminal() {
		if err := s.move(ctx, tx, &r, Relocked); err != nil {
			return err
		}
		if err := s.addHistory(ctx, tx, r, r.Status, "the device was told to lock"); err != nil {
			return err
		}
	}
	if confirmed {
		if err := s.tellRelocked(ctx, tx, r); err != nil {
			return err
		}
	}
	if confirmed || !s.now().Before(r.AccessEnd) {
		return tx.CancelTimer(ctx, timerRelock, string(id))
	}
	return tx.SetTimer(ctx, timerRelock, string(id), s.now().Add(again(s.now(), r.Closed)))
}

// again returns when to tell a device once more what it has not confirmed: ever
// less often, so that the log does not fill with it.
func again(now, since time.Time) time.Duration { return max(relockLease, now.Sub(since)) }
