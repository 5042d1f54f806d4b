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
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// ExecuteRequest unlocks the device under an approved request, while its window
// lasts. It may be executed again after a relock that did not spend it.
func (s *Service) ExecuteRequest(ctx context.Context, caller auth.Caller, in *lockboxv1.ExecuteRequestRequest, progress func(*lockboxv1.ProgressEvent)) error {
	r, first, err := s.beginExecution(ctx, caller, in.Id)
	if found, ok := errors.AsType[*damagedError](err); ok {
		return s.fail(ctx, found)
	}
	if refusal, ok := errors.AsType[*refusedError](err); ok {
		return s.refused(ctx, caller, auditlog.OpExecuteRequest, refusal)
	}
	if err != nil {
		return err
	}
	if err := s.handOver(ctx, caller, r); err != nil {
		return errors.Join(err, s.executionFailed(context.WithoutCancel(ctx), caller, r.ID, first, err))
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
		Message: fmt.Sprintf("%s is unlocked", r.Serial),
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
		if err := checkRecord(r); err != nil {
			return &damagedError{err, r}
		}
		first := r.Executed.IsZero()
		if first {
			r.Executed = s.now()
		}
		if err := tx.UpdateRequest(ctx, &r); err != nil {
			return err
		}
		done = begun{r, first}
		x, err := exclusionOf(r)
		if err == nil && x != "" {
			err = s.tellExclusion(ctx, tx, caller, r, x, auditlog.Start, "The device is about to be opened")
		}
		if err != nil {
			return err
		}
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
	switch state := StateOf(r.Status); {
	case caller.Person != r.Engineer || !caller.Is(auth.Engineer):
		return forbidden("request %d was made by %s: only they can execute it", r.Number, r.Engineer)
	case ofSubscription(r):
		return protocol.Errorf(protocol.CodeAction, "request %d is for access to %s: there is nothing to execute, it opens no device", r.Number, place(r))
	case state == Initializing:
		return missing("the provider's own approval is missing, and then the customer's")
	case state == Pending:
		return missing("the customer has not approved it")
	case state == Approving:
		return missing("more of the customer's approvals are needed")
	case state != Approved:
		return missing("it is " + string(state))
	case !s.now().Before(r.AccessEnd):
		return missing("the access ended at " + protocol.Stamp(r.AccessEnd))
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
		end := out.LeaseEnd.UTC()
		if err := s.addHistory(ctx, tx, r, "Executed", "disks unlocked until "+protocol.Stamp(end)); err != nil {
			return err
		}
		err = s.record(ctx, tx, caller, auditlog.OpExecuteRequest, auditlog.Success, r, map[string]string{"attempt": out.Attempt, "leaseEnd": end.Format(time.RFC3339)})
		if err != nil {
			return err
		}
		return s.tellBoth(ctx, tx, notify.RequestExecuted, r, "The disks are unlocked until "+protocol.Stamp(end)+".")
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
		if first && StateOf(r.Status) == Approved {
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
