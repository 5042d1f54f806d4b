package lockbox

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// follow makes a request of the scope of an earlier one. What was decided about
// that one counts for nothing here: nobody's approval ever lasts longer than
// they said.
type follow struct {
	id            string // of the earlier request, or its number
	extend        bool   // go on with its access; else repeat it
	length        int64  // seconds; 0: as the earlier one
	justification string // "": that of the earlier one
	earlier       store.Request
}

// ExtendRequest asks to go on with an access: a new request of the same scope,
// which is approved and executed like any other. Executing it ends the first
// access, so that one approval at a time is in force.
func (s *Service) ExtendRequest(ctx context.Context, caller auth.Caller, in *lockboxv1.ExtendRequestRequest) (*lockboxv1.Request, error) {
	return s.raise(ctx, &draft{s: s, caller: caller, follow: &follow{
		id: in.Id, extend: true, length: in.DurationSeconds, justification: in.Justification,
	}})
}

// RaiseRequestAgain repeats a request that ended without anybody's refusal: it
// expired, was voided or withdrawn, or was completed. What was denied, or taken
// back by those who had approved it, stays so.
func (s *Service) RaiseRequestAgain(ctx context.Context, caller auth.Caller, in *lockboxv1.RaiseRequestAgainRequest) (*lockboxv1.Request, error) {
	return s.raise(ctx, &draft{s: s, caller: caller, follow: &follow{id: in.Id, justification: in.Justification}})
}

// adopt fills d from the earlier request.
func (f *follow) adopt(ctx context.Context, tx *store.Tx, d *draft) (err error) {
	if f.earlier, err = request(ctx, tx, d.caller, f.id); err != nil {
		return err
	}
	r := f.earlier
	if d.caller.Person != r.Engineer {
		return forbidden("request %d was made by %s: only they can raise it again", r.Number, r.Engineer)
	}
	if err := f.mayFollow(ctx, tx, d.s); err != nil {
		return err
	}
	d.in = &lockboxv1.CreateRequestRequest{
		Action: r.Action, Serial: string(r.Serial), Ticket: string(r.Ticket), ReasonCode: r.ReasonCode,
		Justification: cmp.Or(f.justification, r.Justification), Access: r.Access, DurationSeconds: f.length,
		SshKey: r.EngineerKey, Shares: r.Shares, Scope: string(scopeOf(r)),
	}
	if ofSubscription(r) {
		d.in.Subscription = string(r.Subscription)
	}
	if x, err := exclusionOf(r); err != nil {
		return err
	} else if x != approval.LockboxOff { // that is for the tenant to say, each time
		d.in.Exclusion = string(x)
	}
	for _, disk := range r.Disks { // "<serial>/<n> <disk>"
		_, name, _ := strings.Cut(disk, "/")
		d.in.Disks = append(d.in.Disks, strings.Replace(name, " ", "/", 1))
	}
	return nil
}

// mayFollow refuses what is not to be repeated, and what is asked for already.
func (f *follow) mayFollow(ctx context.Context, tx *store.Tx, s *Service) error {
	r := f.earlier
	switch state := StateOf(r.Status); {
	case f.extend && (state != Approved || !s.now().Before(r.AccessEnd)):
		return conflict("request %d is %s: only an access that lasts can be extended", r.Number, shownStatus(r))
	case f.extend:
	case state == Expired, state == Completed, state == Error:
	case state == Revoked && (r.CloseReason == cancelled || r.CloseReason == policyReplaced):
	default:
		return conflict("request %d is %s: only one that expired, was voided, withdrawn or completed is raised again", r.Number, shownStatus(r))
	}
	waiting, err := tx.Requests(ctx, store.RequestFilter{Serial: r.Serial, Engineer: r.Engineer, Statuses: texts(open)})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(waiting, func(w store.Request) bool { return w.Extends == r.ID || w.RaisedAgain == r.ID })
	if i >= 0 {
		return conflict("request %d asks for that already", waiting[i].Number)
	}
	return nil
}

// opened reports whether a device that says it is open for subject is open for
// the access that is to be extended. A nil follow extends none.
func (f *follow) opened(subject string) bool {
	return f != nil && f.extend && subject == f.earlier.StatementDigest
}

// usual is how long an access lasts if nothing else is asked for, 0 if f is nil.
func (f *follow) usual(longest time.Duration) time.Duration {
	if f == nil {
		return 0
	}
	return min(f.earlier.Duration, longest)
}

func (f *follow) link(r *store.Request) {
	if f.extend {
		r.Extends = f.earlier.ID
	} else {
		r.RaisedAgain = f.earlier.ID
	}
}

// handOver ends the access that r goes on with, if it still lasts: a device
// opens for one approval at a time.
func (s *Service) handOver(ctx context.Context, caller auth.Caller, r store.Request) error {
	if r.Extends == "" {
		return nil
	}
	var first store.Request
	err := s.change(ctx, func(tx *store.Tx) error {
		one, err := tx.Request(ctx, r.Extends)
		if err != nil || StateOf(one.Status) != Approved {
			return err
		}
		first = one
		return s.end(ctx, tx, caller, &first, Finished, extended, "by request "+string(r.ID))
	})
	if err != nil || first.ID == "" {
		return err
	}
	_, err = s.relock(context.WithoutCancel(ctx), caller, first)
	return err
}

// voidRequests ends, within the transaction that puts another trust policy in
// force, the requests of its order that were made under an earlier one and are
// not open at the device: no device would take them any more. An access that is
// open goes on under the policy that it was opened by.
//
// The function it returns tells the devices; it is to be called once the
// transaction is committed.
func (s *Service) voidRequests(ctx context.Context, tx *store.Tx, caller auth.Caller, order protocol.OrderID, policyDigest string) (tell func(context.Context), err error) {
	rows, err := tx.Requests(ctx, store.RequestFilter{Order: order, Statuses: append(texts(open), string(Approved))})
	if err != nil {
		return nil, err
	}
	var voided []store.Request
	for _, r := range rows {
		if r.TrustPolicyDigest == policyDigest || !r.Executed.IsZero() {
			continue
		}
		if err := s.end(ctx, tx, caller, &r, Voided, policyReplaced, "the trust policy "+r.TrustPolicyDigest+" was replaced"); err != nil {
			return nil, err
		}
		voided = append(voided, r)
	}
	return func(ctx context.Context) { s.tellOfEnd(context.WithoutCancel(ctx), caller, voided, nil) }, nil
}
