package lockbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// There are two ways to access without a decision of the customer's about the
// request. Both need what the customer has signed before, and the device verifies
// that itself:
//
//   - an exclusion, which the trust policy allows: two people of the provider at
//     least approve, and the customer is told when it is asked for, again when it
//     is granted, and each time before the device is opened;
//   - a standing consent, which decides for the customer once the provider's own
//     approvers have looked at the request.

// operationsOfExclusion name each exclusion in the activity log.
var operationsOfExclusion = map[approval.Exclusion]auditlog.Operation{
	approval.LockboxOff:          auditlog.OpWithoutLockbox,
	approval.BreakGlass:          auditlog.OpBreakGlass,
	approval.InadvertentExposure: auditlog.OpExposureAccess,
	approval.LegalDemand:         auditlog.OpLegalDemandAccess,
}

// exclusion is why the customer is not to be asked, "" if they are.
func (d *draft) exclusion() (approval.Exclusion, error) {
	asked := approval.Exclusion(d.in.Exclusion)
	switch t := d.tenant; {
	case asked != "":
		return asked, nil
	case t.LockboxEnabled:
		return "", nil
	case d.ofSubscription():
		return "", protocol.Errorf(protocol.CodeNotEnabled, "Lockbox is off for tenant %s, so nobody there is asked: have the tenant enable Lockbox", d.tenant.ID)
	case t.WithoutLockbox == orders.ProviderApproval:
		return approval.LockboxOff, nil
	}
	return "", protocol.Errorf(protocol.CodeNotEnabled, "Lockbox is off for tenant %s, and without it nobody gets access: have the tenant enable Lockbox", d.tenant.ID)
}

// checkExclusion refuses an exclusion that nobody can ask for, and a reason that
// says that the customer is not asked where they are.
func (d *draft) checkExclusion() error {
	explicit := []string{string(approval.BreakGlass), string(approval.InadvertentExposure), string(approval.LegalDemand)}
	switch {
	case d.in.Exclusion != "" && !slices.Contains(explicit, d.in.Exclusion):
		return invalid("exclusion %q is unknown: want one of %s", d.in.Exclusion, strings.Join(explicit, ", "))
	case d.in.Exclusion == "" && slices.Contains(explicit, d.in.ReasonCode):
		return invalid("%s is an exclusion, not a reason: ask for it as one", d.in.ReasonCode)
	}
	return nil
}

// allowed refuses what the device's trust policy does not allow, whoever approves.
func (d *draft) allowed(trust *approval.Policy, st approval.Statement) (approval.Rule, error) {
	rule, err := trust.RuleFor(st)
	if err != nil && st.Exclusion == approval.LockboxOff {
		err = protocol.Errorf(protocol.CodeNotEnabled, "Lockbox is off for tenant %s, but that lets nobody in: %v", d.tenant.ID, err)
	}
	return rule, err
}

// exclusionOf is why the customer was not asked about a request, "" if they were.
func exclusionOf(r store.Request) (approval.Exclusion, error) {
	st, err := approval.ParseStatement(r.Statement)
	return st.Exclusion, err
}

// tellExclusion tells the customer what happens without their approval, before it
// does, and records it under its own operation.
func (s *Service) tellExclusion(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request, x approval.Exclusion, result auditlog.Result, what string) error {
	err := s.record(ctx, tx, caller, operationsOfExclusion[x], result, r, map[string]string{
		auditlog.PropertyExclusion: string(x), "told": strings.Join(auth.MaskedAll(r.Notified), ", "), "what": what, "justification": r.Justification,
	})
	if err != nil {
		return err
	}
	if err := s.addHistory(ctx, tx, r, "Customer told", string(x)+": "+what); err != nil {
		return err
	}
	return s.tell(ctx, tx, notify.BreakGlass, r, true, r.Notified,
		fmt.Sprintf("Why you are not asked: %s. %s.\n\nTo stop it, type\n\n    lockbox request revoke %d", x, what, r.Number))
}

// askWithoutCustomer puts a request before the provider alone. The customer is
// told first.
func (s *Service) askWithoutCustomer(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request, x approval.Exclusion, demands []policy.Demand) error {
	to, err := s.customersOf(ctx, tx, r)
	if err != nil {
		return err
	}
	r.Notified = to
	if err := tx.UpdateRequest(ctx, &r); err != nil {
		return err
	}
	if err := s.tellExclusion(ctx, tx, caller, r, x, auditlog.Start, "An engineer asks for it, and the provider's people decide"); err != nil {
		return err
	}
	if err := s.addHistory(ctx, tx, r, Initializing.Shown(), demanded(demands)); err != nil {
		return err
	}
	return s.askProvider(ctx, tx, r, demands)
}

// decidedBefore completes a request of which the provider has approved, if the
// customer need not be asked: it reports whether that was so.
func (s *Service) decidedBefore(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request) (bool, error) {
	st, err := approval.ParseStatement(r.Statement)
	if err != nil {
		return false, err
	}
	o, err := tx.Order(ctx, r.Order)
	if err != nil {
		return false, err
	}
	trust, err := orders.TrustPolicy(ctx, tx, o)
	if err != nil {
		return false, err
	}
	decisions, err := tx.Decisions(ctx, r.ID)
	if err != nil {
		return false, err
	}
	in := approval.Request{Statement: r.Statement, Now: s.now()}
	for _, d := range decisions {
		in.Decisions = append(in.Decisions, d.Envelope)
	}
	if st.Exclusion == "" {
		return s.decidedByStanding(ctx, tx, trust, r, st, in)
	}
	grant, err := trust.Authorize(in)
	if err != nil {
		return false, err
	}
	return true, s.excluded(ctx, tx, caller, r, st.Exclusion, grant)
}

// excluded opens the window of an access without the customer.
func (s *Service) excluded(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request, x approval.Exclusion, grant approval.Grant) error {
	if err := s.openWindow(ctx, tx, &r, grant, Granted); err != nil {
		return err
	}
	if err := s.tellExclusion(ctx, tx, caller, r, x, auditlog.Success, "The provider's people have approved it; access until "+protocol.Stamp(grant.End)); err != nil {
		return err
	}
	return s.tellEngineer(ctx, tx, notify.BreakGlass, r, useWith(r))
}

// standingFor returns a standing consent with that verdict that covers a request,
// and whether there is one.
func (s *Service) standingFor(ctx context.Context, tx *store.Tx, trust *approval.Policy, order protocol.OrderID, st approval.Statement, verdict approval.Verdict) (store.StandingConsent, approval.Standing, bool, error) {
	rows, err := tx.StandingConsents(ctx, order)
	if err != nil {
		return store.StandingConsent{}, approval.Standing{}, false, err
	}
	for _, row := range rows {
		if !row.Revoked.IsZero() || !s.now().Before(row.Expires) {
			continue
		}
		doc, err := trust.VerifyStanding(row.Envelope)
		if err == nil && doc.Verdict == verdict && doc.Covers(st) {
			return row, doc, true, nil
		}
	}
	return store.StandingConsent{}, approval.Standing{}, false, nil
}

// insertStanding lets a standing consent stand for the customer's decisions.
func (s *Service) insertStanding(ctx context.Context, tx *store.Tx, op auditlog.Operation, r store.Request, row store.StandingConsent, doc approval.Standing) error {
	err := tx.InsertDecision(ctx, &store.Decision{
		Request: r.ID, Role: string(approval.Customer), Person: protocol.Person(row.ID), Verdict: string(doc.Verdict),
		Reason: "standing consent", MaxDuration: time.Duration(doc.MaxDuration) * time.Second, Time: s.now(), Envelope: row.Envelope,
	})
	if err != nil {
		return err
	}
	if err := s.addHistory(ctx, tx, r, "customer decision", fmt.Sprintf("%s by standing consent %s", doc.Verdict, row.ID)); err != nil {
		return err
	}
	return s.record(ctx, tx, auth.SystemCaller(), op, auditlog.Success, r, map[string]string{
		auditlog.PropertyStanding: row.ID, "digest": row.Digest, "statement": r.StatementDigest,
	})
}

// decidedByStanding approves a request of which the provider has approved, if a
// standing consent covers it.
func (s *Service) decidedByStanding(ctx context.Context, tx *store.Tx, trust *approval.Policy, r store.Request, st approval.Statement, in approval.Request) (bool, error) {
	row, doc, ok, err := s.standingFor(ctx, tx, trust, r.Order, st, approval.Approve)
	if err != nil || !ok {
		return false, err
	}
	in.Decisions = append(in.Decisions, row.Envelope)
	grant, err := trust.Authorize(in)
	if protocol.CodeOf(err) == protocol.CodeWindow { // it began after the provider approved: the customer is asked
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := s.insertStanding(ctx, tx, auditlog.OpAutoApproveRequest, r, row, doc); err != nil {
		return false, err
	}
	if r.Notified, err = s.customersOf(ctx, tx, r); err != nil {
		return false, err
	}
	if err := s.openWindow(ctx, tx, &r, grant, Granted); err != nil {
		return false, err
	}
	return true, s.tellApproved(ctx, tx, r, "It was approved by your standing consent "+row.ID+".")
}

// deniedByStanding denies a request that was just made, if a standing consent
// does: it reports whether that was so. Nobody is asked.
func (s *Service) deniedByStanding(ctx context.Context, tx *store.Tx, trust *approval.Policy, r store.Request, st approval.Statement) (bool, error) {
	row, doc, ok, err := s.standingFor(ctx, tx, trust, r.Order, st, approval.Deny)
	if err != nil || !ok {
		return false, err
	}
	if err := s.insertStanding(ctx, tx, auditlog.OpAutoDenyRequest, r, row, doc); err != nil {
		return false, err
	}
	if r.Notified, err = s.customersOf(ctx, tx, r); err != nil {
		return false, err
	}
	return true, s.denied(ctx, tx, r)
}
