package lockbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// sideOf returns the role for which caller may decide.
func sideOf(caller auth.Caller) (approval.Role, error) {
	switch {
	case caller.Role.OfCustomer():
		return approval.Customer, nil
	case caller.Is(auth.InternalApprover):
		return approval.Provider, nil
	}
	return "", forbidden("%s is %s: only the customer's owners and approvers, and internal approvers, decide", caller.Person, caller.Role)
}

// DraftDecision makes the document that an approver signs.
func (s *Service) DraftDecision(ctx context.Context, caller auth.Caller, in *lockboxv1.DraftDecisionRequest) (*lockboxv1.Document, error) {
	draft, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Document, error) {
		j, err := s.judge(ctx, tx, caller, in.Id)
		if err != nil {
			return nil, err
		}
		d := approval.Decision{
			RequestDigest: approval.Digest(j.request.StatementDigest), Role: j.side, Verdict: approval.Verdict(in.Verdict),
			DecidedAt: s.now().Unix(), Reason: in.Reason,
		}
		if d.Signer, err = j.signer(caller, in.KeyFingerprint); err != nil {
			return nil, err
		}
		if d.Verdict == approval.Approve {
			d.MaxDuration = int64(j.request.Duration / time.Second)
			if in.MaxDurationSeconds != 0 {
				d.MaxDuration = min(d.MaxDuration, in.MaxDurationSeconds)
			}
		}
		payload, err := d.Encode()
		if err != nil {
			return nil, err
		}
		return &lockboxv1.Document{
			Kind: "decision", Payload: payload, PayloadType: string(d.Kind()), Digest: string(approval.DigestOf(payload)),
		}, nil
	})
	if found, ok := errors.AsType[*damagedError](err); ok {
		return nil, s.fail(ctx, found)
	}
	return draft, err
}

// judgement is a request and what a decision on it is measured by.
type judgement struct {
	request store.Request
	side    approval.Role
	trust   *approval.Policy
	rule    approval.Rule
	earlier []store.Decision
	unmet   []policy.Demand // of the JIT rules, once the decision at hand counts
}

// judge reads a request that caller may decide on now.
func (s *Service) judge(ctx context.Context, tx *store.Tx, caller auth.Caller, name string) (judgement, error) {
	var j judgement
	var err error
	if j.request, err = request(ctx, tx, caller, name); err != nil {
		return j, err
	}
	if caller.Person == j.request.Engineer {
		return j, protocol.Errorf(protocol.CodeSignerEngineer, "%s asked for request %d and cannot decide on it", caller.Person, j.request.Number)
	}
	if j.side, err = sideOf(caller); err != nil {
		return j, err
	}
	state := StateOf(j.request.Status)
	exclusion, _ := exclusionOf(j.request) // what cannot be read fails below
	switch {
	case exclusion != "" && j.side == approval.Customer && state.Open():
		return j, forbidden("the customer is not asked about request %d (%s): to stop it, revoke it", j.request.Number, exclusion)
	case !state.Open():
		return j, conflict("request %d is %s: there is nothing left to decide", j.request.Number, state)
	case !s.now().Before(j.request.Expires):
		return j, conflict("request %d expired at %s", j.request.Number, protocol.Stamp(j.request.Expires))
	case state == Initializing && j.side == approval.Customer:
		return j, conflict("request %d waits for the provider's own approvals: the customer decides after them", j.request.Number)
	}
	if err := checkRecord(j.request); err != nil {
		return j, &damagedError{err, j.request}
	}
	if err := heldRole(ctx, tx, caller, j.request); err != nil {
		return j, err
	}
	o, err := tx.Order(ctx, j.request.Order)
	if err != nil {
		return j, err
	}
	if j.trust, err = orders.TrustPolicy(ctx, tx, o); err != nil {
		return j, err
	}
	if string(j.trust.Digest()) != j.request.TrustPolicyDigest {
		return j, protocol.Errorf(protocol.CodePolicyDigest, "the trust policy has changed since request %d was made: cancel it and ask again", j.request.Number)
	}
	st, err := approval.ParseStatement(j.request.Statement)
	if err != nil {
		return j, err
	}
	if j.rule, err = j.trust.RuleFor(st); err != nil {
		return j, err
	}
	j.earlier, err = tx.Decisions(ctx, j.request.ID)
	return j, err
}

// signer returns the id of the key that caller signs with: the one with that
// fingerprint, or the first of theirs that the trust policy names.
func (j judgement) signer(caller auth.Caller, fingerprint string) (string, error) {
	for _, k := range j.trust.Document().Keys {
		if k.Person == caller.Person && (fingerprint == "" || k.Fingerprint() == fingerprint) && j.names(k.ID) {
			return k.ID, nil
		}
	}
	return "", protocol.Errorf(protocol.CodeSignerUnknown, "the trust policy names no such key of %s as %s's approver", caller.Person, j.side)
}

// names reports whether the rule asks this side for decisions by a key.
func (j judgement) names(keyID string) bool {
	return slices.ContainsFunc(j.groups(j.side), func(g approval.Group) bool { return slices.Contains(g.Keys, keyID) })
}

func (j judgement) groups(side approval.Role) []approval.Group {
	if side == approval.Customer {
		return j.rule.CustomerGroups
	}
	return j.rule.ProviderGroups
}

// Decide takes a signed decision: the provider's first, then the customer's. It
// is verified as the device will verify it.
func (s *Service) Decide(ctx context.Context, caller auth.Caller, in *lockboxv1.DecideRequest) (*lockboxv1.Request, error) {
	envelope, err := approval.ParseEnvelope(in.Envelope)
	if err != nil {
		return nil, err
	}
	if envelope.PayloadType != approval.KindDecision {
		return nil, invalid("the envelope holds %s: want a decision", envelope.PayloadType)
	}
	decision, err := approval.ParseDecision(envelope.Payload)
	if err != nil {
		return nil, err
	}
	var denied protocol.RequestID
	err = s.change(ctx, func(tx *store.Tx) error {
		j, err := s.judge(ctx, tx, caller, in.Id)
		if err == nil {
			err = s.decide(ctx, tx, caller, j, decision, in.Envelope)
		}
		if err == nil && decision.Verdict == approval.Deny {
			denied = j.request.ID
		}
		if err != nil && j.request.ID != "" {
			return &refusedError{err, j.request}
		}
		return err
	})
	if found, ok := errors.AsType[*damagedError](err); ok {
		return nil, s.fail(ctx, found)
	}
	if refusal, ok := errors.AsType[*refusedError](err); ok {
		return nil, s.refused(ctx, caller, operationOf(decision), refusal)
	}
	if err != nil {
		return nil, err
	}
	if denied != "" {
		if err := s.tellDenied(context.WithoutCancel(ctx), caller, denied); err != nil {
			return nil, err
		}
	}
	return s.GetRequest(ctx, caller, &lockboxv1.GetRequestRequest{Id: in.Id})
}

// tellDenied tells the devices that a request was denied.
func (s *Service) tellDenied(ctx context.Context, caller auth.Caller, id protocol.RequestID) error {
	r, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Request, error) { return tx.Request(ctx, id) })
	if err != nil {
		return err
	}
	_, err = s.relock(ctx, caller, r)
	return err
}

// operationOf names a decision in the activity log.
func operationOf(d approval.Decision) auditlog.Operation {
	switch {
	case d.Role == approval.Provider && d.Verdict == approval.Approve:
		return auditlog.OpInternalApprove
	case d.Role == approval.Provider:
		return auditlog.OpInternalDeny
	case d.Verdict == approval.Approve:
		return auditlog.OpApproveRequest
	}
	return auditlog.OpDenyRequest
}

func (s *Service) decide(ctx context.Context, tx *store.Tx, caller auth.Caller, j judgement, d approval.Decision, envelope []byte) error {
	if err := j.checkDecision(caller, d, s.now()); err != nil {
		return err
	}
	if err := j.holdsKey(ctx, tx, d); err != nil {
		return err
	}
	all := [][]byte{}
	for _, e := range j.earlier {
		all = append(all, e.Envelope)
	}
	grant, verdict := authorize(j.trust, j.request, approval.Request{Statement: j.request.Statement, Decisions: append(all, envelope), Now: s.now()})
	if d.Role == approval.Provider {
		var err error
		if j.unmet, err = j.demandsUnmet(ctx, tx, caller); err != nil {
			return err
		}
	}
	event, err := j.event(d, verdict)
	if err != nil {
		return err
	}
	err = tx.InsertDecision(ctx, &store.Decision{
		Request: j.request.ID, Role: string(d.Role), Person: caller.Person, Verdict: string(d.Verdict), Reason: d.Reason,
		KeyFingerprint: j.fingerprint(d.Signer), MaxDuration: time.Duration(d.MaxDuration) * time.Second,
		Time: time.Unix(d.DecidedAt, 0).UTC(), Envelope: envelope,
	})
	if err != nil {
		return err
	}
	if err := s.stillAsked(ctx, tx, j, event); err != nil {
		return err
	}
	return s.decided(ctx, tx, caller, j.request, d, event, grant)
}

// checkDecision refuses a decision that is not caller's own, for their side,
// made while the request was open.
func (j judgement) checkDecision(caller auth.Caller, d approval.Decision, now time.Time) error {
	keys := j.trust.Document().Keys
	i := slices.IndexFunc(keys, func(k approval.Key) bool { return k.ID == d.Signer })
	at := time.Unix(d.DecidedAt, 0)
	switch {
	case i < 0 || !j.names(d.Signer):
		return protocol.Errorf(protocol.CodeSignerUnknown, "key %q is none that the trust policy names for a decision by the %s", d.Signer, j.side)
	case keys[i].Person != caller.Person:
		return forbidden("key %q belongs to %s: everyone submits their own decision", d.Signer, keys[i].Person)
	case slices.ContainsFunc(j.earlier, func(e store.Decision) bool { return e.Person == caller.Person }):
		return conflict("%s has decided on request %d already", caller.Person, j.request.Number)
	case d.Role != j.side:
		return forbidden("the decision is made as %s, %s decides as %s", d.Role, caller.Person, j.side)
	case at.Before(j.request.Created.Add(-approval.Skew)) || at.After(j.request.Expires) || at.After(now.Add(approval.Skew)):
		return protocol.Errorf(protocol.CodeWindow, "the decision is dated %s, the request is open from %s to %s and now is %s: check the clock",
			protocol.Stamp(at), protocol.Stamp(j.request.Created), protocol.Stamp(j.request.Expires), protocol.Stamp(now))
	}
	return nil
}

// event says what a verified decision does to the request, "" if more of the
// provider's are needed. verdict is what the trust policy says of all decisions
// together.
func (j judgement) event(d approval.Decision, verdict error) (Event, error) {
	state, code := StateOf(j.request.Status), protocol.CodeOf(verdict)
	switch {
	case code == protocol.CodeDenied && d.Verdict == approval.Deny:
		return Refused, nil
	case code != "" && code != protocol.CodeDecisionMissing:
		return "", verdict
	case d.Role == approval.Provider && state != Initializing:
		return "", conflict("request %d has the provider's approvals already", j.request.Number)
	case d.Role == approval.Provider && len(j.unmet) == 0 && j.complete(approval.Provider, d):
		return ProviderApproved, nil
	case d.Role == approval.Provider:
		return "", nil
	case code == "":
		return CustomerApproved, nil
	}
	return CustomerAgreed, nil
}

// complete reports whether every group of a side has its threshold, d counted.
func (j judgement) complete(side approval.Role, d approval.Decision) bool {
	keyOwner := make(map[string]protocol.Person)
	for _, k := range j.trust.Document().Keys {
		keyOwner[k.ID] = k.Person
	}
	approved := map[protocol.Person]bool{keyOwner[d.Signer]: true}
	for _, e := range j.earlier {
		if approval.Role(e.Role) == side {
			approved[e.Person] = true
		}
	}
	for _, g := range j.groups(side) {
		people := make(map[protocol.Person]bool)
		for _, id := range g.Keys {
			people[keyOwner[id]] = approved[keyOwner[id]]
		}
		n := 0
		for _, yes := range people {
			if yes {
				n++
			}
		}
		if n < g.Threshold {
			return false
		}
	}
	return true
}

func (j judgement) fingerprint(keyID string) string {
	for _, k := range j.trust.Document().Keys {
		if k.ID == keyID {
			return k.Fingerprint()
		}
	}
	return ""
}

// decided moves the request on after a verified decision, and records it.
func (s *Service) decided(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request, d approval.Decision, event Event, grant approval.Grant) error {
	detail := fmt.Sprintf("%s by %s", d.Verdict, caller.Person)
	if d.Reason != "" {
		detail += ": " + d.Reason
	}
	if err := s.addHistory(ctx, tx, r, fmt.Sprintf("%s decision", d.Role), detail); err != nil {
		return err
	}
	err := s.record(ctx, tx, caller, operationOf(d), auditlog.Success, r, map[string]string{
		"role": string(d.Role), "signer": d.Signer, "reason": d.Reason, "statement": r.StatementDigest,
		"leadsTo": string(event), "maxDuration": (time.Duration(d.MaxDuration) * time.Second).String(),
	})
	if err != nil {
		return err
	}
	switch event {
	case ProviderApproved:
		return s.providerDone(ctx, tx, caller, r)
	case CustomerApproved:
		return s.approved(ctx, tx, r, grant)
	case CustomerAgreed:
		return s.move(ctx, tx, &r, CustomerAgreed)
	case Refused:
		return s.denied(ctx, tx, r)
	}
	return nil
}

// move changes a request's state by the table.
func (s *Service) move(ctx context.Context, tx *store.Tx, r *store.Request, e Event) error {
	next, err := StateOf(r.Status).Next(e)
	if err != nil {
		return err
	}
	r.Status = string(next)
	if next.Terminal() {
		r.Closed = s.now()
	}
	if err := tx.UpdateRequest(ctx, r); err != nil || slices.Contains(ending, next) {
		return err
	}
	return s.addTicketLine(ctx, tx, r.Ticket, "Request", fmt.Sprintf("%d is %s", r.Number, shownStatus(*r)))
}

// providerDone puts a request before the customer, unless they have decided
// before: they are notified in the same transaction.
func (s *Service) providerDone(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request) error {
	if done, err := s.decidedBefore(ctx, tx, caller, r); done || err != nil {
		return err
	}
	to, err := s.customersOf(ctx, tx, r)
	if err != nil {
		return err
	}
	r.Notified = to
	if err := s.move(ctx, tx, &r, ProviderApproved); err != nil {
		return err
	}
	if err := s.addHistory(ctx, tx, r, Pending.Shown(), fmt.Sprintf("%d people", len(to))); err != nil {
		return err
	}
	return s.askCustomer(ctx, tx, caller, r)
}

// approved opens the window of access to which the customer agreed.
func (s *Service) approved(ctx context.Context, tx *store.Tx, r store.Request, grant approval.Grant) error {
	if err := s.openWindow(ctx, tx, &r, grant, CustomerApproved); err != nil {
		return err
	}
	return s.tellApproved(ctx, tx, r, "")
}

func (s *Service) tellApproved(ctx context.Context, tx *store.Tx, r store.Request, how string) error {
	if err := s.tellCustomer(ctx, tx, notify.RequestApproved, r, how); err != nil {
		return err
	}
	return s.tellEngineer(ctx, tx, notify.RequestApproved, r, useWith(r))
}

// openWindow opens the window of access.
func (s *Service) openWindow(ctx context.Context, tx *store.Tx, r *store.Request, grant approval.Grant, e Event) error {
	r.AccessStart, r.AccessEnd = grant.Start, grant.End
	if err := s.move(ctx, tx, r, e); err != nil {
		return err
	}
	if err := s.stopWaiting(ctx, tx, *r); err != nil {
		return err
	}
	if err := tx.SetTimer(ctx, timerAccessEnd, string(r.ID), r.AccessEnd); err != nil {
		return err
	}
	if err := tx.SetTimer(ctx, timerAccessWarning, string(r.ID), before(r.AccessStart, r.AccessEnd, warnAccess)); err != nil {
		return err
	}
	return s.addHistory(ctx, tx, *r, string(Approved), "access until "+protocol.Stamp(r.AccessEnd))
}

// denied ends a request for good. The devices are told too: approvals that were
// given, or will be, must open nothing, whoever brings them.
func (s *Service) denied(ctx context.Context, tx *store.Tx, r store.Request) error {
	r.CloseReason = "denied"
	if err := s.move(ctx, tx, &r, Refused); err != nil {
		return err
	}
	if err := s.stopWaiting(ctx, tx, r); err != nil {
		return err
	}
	if err := tx.SetTimer(ctx, timerRelock, string(r.ID), s.now().Add(relockLease)); err != nil {
		return err
	}
	return s.tellBoth(ctx, tx, notify.RequestDenied, r, "")
}

// stopWaiting removes the timers of a request that was answered, or ended.
func (s *Service) stopWaiting(ctx context.Context, tx *store.Tx, r store.Request) error {
	for _, kind := range []string{timerExpiry, timerWarning, timerAccessEnd, timerAccessWarning} {
		if err := tx.CancelTimer(ctx, kind, string(r.ID)); err != nil {
			return err
		}
	}
	return nil
}
