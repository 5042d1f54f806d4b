package lockbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// customersOf returns who is told of a request: the tenant's owners and
// approvers, and the alternate addresses of the subscription. Being told gives
// no right.
func (s *Service) customersOf(ctx context.Context, tx *store.Tx, r store.Request) ([]string, error) {
	var to []string
	for _, role := range []auth.Role{auth.Owner, auth.Approver} {
		people, err := tx.People(ctx, r.Tenant, string(role))
		if err != nil {
			return nil, err
		}
		for _, p := range people {
			to = append(to, string(p.Name))
		}
	}
	sub, err := tx.Subscription(ctx, r.Subscription)
	if err != nil {
		return nil, err
	}
	to = append(to, sub.Notify...)
	slices.Sort(to)
	return slices.Compact(to), nil
}

// askProvider tells the provider's own approvers.
func (s *Service) askProvider(ctx context.Context, tx *store.Tx, r store.Request, groups []string) error {
	people, err := tx.People(ctx, "", string(auth.InternalApprover))
	if err != nil {
		return err
	}
	var to []string
	for _, p := range people {
		to = append(to, string(p.Name))
	}
	return s.cfg.Notify.Enqueue(ctx, tx, notify.Notice{
		Kind: "internal-approval", Subject: string(r.ID), To: to,
		Title: fmt.Sprintf("Request %d awaits internal approval: %s on %s", r.Number, r.Action, r.Serial),
		Body:  summary(r) + "To be decided by: " + strings.Join(groups, ", ") + "\n\n" + seeIt(r),
	})
}

// askCustomer tells the customer, and records whom.
func (s *Service) askCustomer(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request) error {
	err := s.record(ctx, tx, caller, auditlog.OpNotifyApprovers, auditlog.Success, r, map[string]string{"recipients": strings.Join(r.Notified, ", ")})
	if err != nil {
		return err
	}
	return s.cfg.Notify.Enqueue(ctx, tx, notify.Notice{
		Kind: "customer-notified", Subject: string(r.ID), To: r.Notified,
		Title: fmt.Sprintf("Lockbox request %d: %s on %s waits for your decision", r.Number, r.Action, r.Serial),
		Body: summary(r) + "Unanswered, the request expires at " + r.Expires.Format(time.RFC3339) +
			", and nobody gets access.\n\n" + seeIt(r),
	})
}

// warnCustomer tells the customer that a request is about to expire.
func (s *Service) warnCustomer(ctx context.Context, tx *store.Tx, r store.Request) error {
	return s.cfg.Notify.Enqueue(ctx, tx, notify.Notice{
		Kind: "expiry-warning", Subject: string(r.ID), To: r.Notified,
		Title: fmt.Sprintf("Lockbox request %d expires at %s", r.Number, r.Expires.Format(time.RFC3339)),
		Body:  summary(r) + seeIt(r),
	})
}

// tellEngineer tells the requester what became of the request.
func (s *Service) tellEngineer(ctx context.Context, tx *store.Tx, r store.Request, what, body string) error {
	return s.cfg.Notify.Enqueue(ctx, tx, notify.Notice{
		Kind: "request-" + strings.ToLower(r.Status), Subject: string(r.ID), To: []string{string(r.Engineer)},
		Title: fmt.Sprintf("Lockbox request %d %s", r.Number, what),
		Body:  summary(r) + body + "\n" + seeIt(r),
	})
}

// tellCustomer tells those who were asked that the access is over.
func (s *Service) tellCustomer(ctx context.Context, tx *store.Tx, r store.Request, what string) error {
	return s.cfg.Notify.Enqueue(ctx, tx, notify.Notice{
		Kind: "request-" + strings.ToLower(r.Status), Subject: string(r.ID), To: r.Notified,
		Title: fmt.Sprintf("Lockbox request %d %s", r.Number, what),
		Body:  summary(r) + seeIt(r),
	})
}

func summary(r store.Request) string {
	return fmt.Sprintf("Action:        %s\nDevice:        %s, order %s\nEngineer:      %s\nTicket:        %s\nReason:        %s\nJustification: %s\nAccess:        %s for %s\n\n",
		r.Action, r.Serial, r.Order, r.Engineer, r.Ticket, r.ReasonCode, r.Justification, r.Access, r.Duration)
}

// seeIt names the one command with which to go on.
func seeIt(r store.Request) string {
	return fmt.Sprintf("To see it, type\n\n    lockbox request show %d\n", r.Number)
}
