package lockbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

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
		return s.end(ctx, tx, caller, &r, Cancelled, cancelled, in.Reason)
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
	var closed []store.Session
	err := s.change(ctx, func(tx *store.Tx) error {
		r, err := request(ctx, tx, caller, in.Id)
		if err != nil {
			return err
		}
		event, reason := TakenBack, "revoked"
		if caller.Person == r.Engineer && StateOf(r.Status) == Approved {
			event, reason = Finished, "engineer-done"
		}
		if caller.Person != r.Engineer && !caller.Is(auth.TenantAdmin, auth.Owner, auth.Approver, auth.InternalApprover, auth.Admin) {
			return forbidden("%s is %s: an approver, an admin or the engineer revokes a request", caller.Person, caller.Role)
		}
		asked = r
		asked.CloseReason = reason
		if err := s.end(ctx, tx, caller, &r, event, reason, in.Reason); err != nil {
			return err
		}
		ended = r
		if r.AccessEnd.IsZero() || ofSubscription(r) {
			return nil
		}
		closed, err = s.closeSessions(ctx, tx, caller, store.SessionFilter{Serial: r.Serial, Engineer: r.Engineer}, reason)
		return err
	})
	if err != nil {
		return nil, s.lockAnyway(ctx, caller, asked, err)
	}
	relocked, err := s.relock(context.WithoutCancel(ctx), caller, ended)
	s.sessionsOff(context.WithoutCancel(ctx), closed)
	if err != nil {
		return nil, err
	}
	shown, err := s.GetRequest(ctx, caller, &lockboxv1.GetRequestRequest{Id: in.Id})
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.RevokeRequestResponse{Request: shown, Relocked: relocked}
	for _, row := range closed {
		out.Sessions = append(out.Sessions, showSession(row))
	}
	return out, nil
}

// lockAnyway locks the device of an access that was to end when that could not be
// written: locking waits for no disk. The device forgets the approval; here, the
// end has still to be written.
func (s *Service) lockAnyway(ctx context.Context, caller auth.Caller, r store.Request, why error) error {
	if StateOf(r.Status) != Approved || ofSubscription(r) || !unwritten(why) {
		return why
	}
	for _, result := range s.cfg.Custody.Lock(ctx, lockOf(caller, r)) {
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

// Why a request ended, where that decides what follows.
const (
	cancelled      = "cancelled"       // by the engineer, before it was approved
	policyReplaced = "policy-replaced" // the trust policy it was made under
	extended       = "extended"        // the access goes on under another request
	damaged        = "record-damaged"
)

// operationOfEnd names the way in which a request ends without a decision.
func operationOfEnd(was State, e Event) auditlog.Operation {
	switch {
	case e == Lapsed:
		return auditlog.OpRequestExpiry
	case e == Finished:
		return auditlog.OpCompleteRequest
	case was.Open() && e != TakenBack:
		return auditlog.OpCancelRequest
	}
	return auditlog.OpRevokeRequest
}

// end ends a request within tx. If it was approved, the row that makes custody
// refuse it from now on is written with it, and a timer that sees to the relock
// should this process not.
func (s *Service) end(ctx context.Context, tx *store.Tx, caller auth.Caller, r *store.Request, e Event, reason, detail string) error {
	was := StateOf(r.Status)
	r.CloseReason = reason
	if err := s.move(ctx, tx, r, e); err != nil {
		return err
	}
	if err := s.stopWaiting(ctx, tx, *r); err != nil {
		return err
	}
	result := auditlog.Success
	if e == Failed {
		result = auditlog.Failure
	}
	err := s.record(ctx, tx, caller, operationOfEnd(was, e), result, *r, map[string]string{"reason": reason, "detail": detail})
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
	return tx.SetTimer(ctx, timerRelock, string(r.ID), s.now().Add(relockLease))
}

// tellsDevice reports whether the device has to hear of a request's end: it may
// be open under it, or have been shown approvals of it.
func tellsDevice(r store.Request) bool {
	state := StateOf(r.Status)
	return !r.AccessEnd.IsZero() || state == Denying || state == Denied
}

// relock tells the device to lock and to forget the approval, and finishes the
// request. A node that does not confirm locks by itself; it is told again when
// it is back, until nobody could use the approval anyway.
func (s *Service) relock(ctx context.Context, caller auth.Caller, r store.Request) ([]*lockboxv1.RelockResult, error) {
	if !tellsDevice(r) {
		return nil, nil
	}
	if ofSubscription(r) {
		return nil, s.accessOver(ctx, r.ID)
	}
	results := s.cfg.Custody.Lock(ctx, lockOf(caller, r))
	err := s.change(ctx, func(tx *store.Tx) error { return s.relocked(ctx, tx, r.ID, results) })
	return results, err
}

func lockOf(caller auth.Caller, r store.Request) custody.LockIn {
	return custody.LockIn{
		Caller: caller, Nodes: nodesOf(r), Reason: r.CloseReason, Subject: approval.Digest(r.StatementDigest), Spend: true,
		Tenant: r.Tenant, Correlation: string(r.ID),
	}
}

// nodesOf returns the nodes of a request's device: it has disks of each. Where its
// record does not say, they are all that a device can have; locking one that does
// not exist is no harm.
func nodesOf(r store.Request) []protocol.NodeID {
	var nodes []protocol.NodeID
	for _, disk := range r.Disks { // "<serial>/<n> <disk>"
		name, _, _ := strings.Cut(disk, " ")
		id, err := protocol.ParseNodeID(name)
		if err != nil || id.Serial != r.Serial {
			nodes = nil
			break
		}
		if !slices.Contains(nodes, id) {
			nodes = append(nodes, id)
		}
	}
	if nodes == nil {
		return []protocol.NodeID{{Serial: r.Serial, Node: 1}, {Serial: r.Serial, Node: 2}}
	}
	return nodes
}

// relocked finishes a request whose device was told to lock, and writes down
// what it answered.
func (s *Service) relocked(ctx context.Context, tx *store.Tx, id protocol.RequestID, results []*lockboxv1.RelockResult) error {
	r, err := tx.Request(ctx, id)
	if err != nil {
		return err
	}
	if !StateOf(r.Status).Terminal() {
		if err := s.move(ctx, tx, &r, Relocked); err != nil {
			return err
		}
	}
	if err := s.answered(ctx, tx, &r, results); err != nil {
		return err
	}
	if !r.LockConfirmed.IsZero() || !s.now().Before(usableUntil(r)) {
		return tx.CancelTimer(ctx, timerRelock, string(id))
	}
	return tx.SetTimer(ctx, timerRelock, string(id), s.now().Add(again(s.now(), r.Closed)))
}

// answered notes whether the whole device has confirmed, or when what could not
// be reached locks by itself: a node that hears nothing does so within its
// dead-man time, counted from the first time that it could not be told.
func (s *Service) answered(ctx context.Context, tx *store.Tx, r *store.Request, results []*lockboxv1.RelockResult) error {
	var locksBy time.Time
	for _, result := range results {
		if !result.Confirmed {
			locksBy = later(locksBy, time.Unix(result.LocksBy, 0).UTC())
		}
	}
	confirmed := locksBy.IsZero()
	if !r.AccessEnd.IsZero() && locksBy.After(r.AccessEnd) {
		locksBy = r.AccessEnd
	}
	what := "the device confirmed that it is locked"
	switch {
	case confirmed && r.LockConfirmed.IsZero():
		r.LockConfirmed, r.LocksBy = s.now(), time.Time{}
	case !confirmed && r.LocksBy.IsZero():
		r.LocksBy = locksBy
		what = "the device could not be reached: it locks by itself at " + protocol.Stamp(locksBy)
	default:
		return nil
	}
	if err := tx.UpdateRequest(ctx, r); err != nil {
		return err
	}
	if err := s.addHistory(ctx, tx, *r, r.Status, what); err != nil || !confirmed || r.AccessEnd.IsZero() {
		return err
	}
	return s.tellRelocked(ctx, tx, *r)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// usableUntil is from when on no device would take the approvals of r, whatever
// it was told.
func usableUntil(r store.Request) time.Time {
	if r.AccessEnd.IsZero() {
		return r.Expires.Add(r.Duration)
	}
	return r.AccessEnd
}

// checkRecord compares a request's statement, which is what people sign, with
// what is stored beside it. Where they differ, somebody wrote to the store.
func checkRecord(r store.Request) error {
	wrong := func(format string, args ...any) error {
		return protocol.Errorf(protocol.CodeInternal, "the record of request %d was damaged: %s", r.Number, fmt.Sprintf(format, args...))
	}
	st, err := approval.ParseStatement(r.Statement)
	if err != nil {
		return wrong("%v", err)
	}
	var disks []string
	for _, d := range st.Disks {
		disks = append(disks, string(d.Node)+" "+string(d.Disk))
	}
	switch {
	case string(approval.DigestOf(r.Statement)) != r.StatementDigest:
		return wrong("its statement has another digest")
	case st.RequestID != r.ID || st.OrderID != r.Order || st.TenantID != r.Tenant || string(st.PolicyDigest) != r.TrustPolicyDigest:
		return wrong("its statement is of another request")
	case st.Engineer.Person != r.Engineer || st.Engineer.SSHKey != r.EngineerKey:
		return wrong("its statement is of another engineer")
	case actions[st.Action] != r.Action || st.SubscriptionID != r.Subscription:
		return wrong("its statement is about something else")
	case string(st.Access) != r.Access || !slices.Equal(disks, r.Disks) || !slices.Equal(st.Shares, r.Shares):
		return wrong("its statement asks for something else")
	case st.Expires != r.Expires.Unix() || st.MaxDuration != int64(r.Duration/time.Second):
		return wrong("its statement asks for another time")
	}
	return nil
}

// fail ends a request whose record was damaged: nobody can say what was decided.
func (s *Service) fail(ctx context.Context, found *damagedError) error {
	r, why := found.request, found.why
	err := s.change(ctx, func(tx *store.Tx) error {
		return s.end(ctx, tx, auth.SystemCaller(), &r, Failed, damaged, why.Error())
	})
	if err != nil {
		return errors.Join(why, err)
	}
	_, err = s.relock(context.WithoutCancel(ctx), auth.SystemCaller(), r)
	return errors.Join(why, err)
}

// again returns when to tell a device once more what it has not confirmed: ever
// less often, so that the log does not fill with it.
func again(now, since time.Time) time.Duration { return max(relockLease, now.Sub(since)) }
