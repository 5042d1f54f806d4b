package lockbox

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// readsEvery is how long one record of a read stands for the same read again: a
// log that says it each time would hide what else is in it.
const readsEvery = time.Hour

// Reach returns what an engineer may read in full now, because a request of theirs
// for access to it is approved and lasts. What they are about to read, the order or
// if it is nil a list, is on record when it returns: each hour once for each
// request, order and operation. For everybody else it is empty.
func (s *Service) Reach(ctx context.Context, caller auth.Caller, operation string, of *store.Order) (store.Reach, error) {
	if !caller.Is(auth.Engineer) {
		return store.Reach{}, nil
	}
	given, err := view(ctx, s.cfg.Store, func(tx *store.Tx) ([]store.Request, error) { return s.accesses(ctx, tx, caller, of) })
	if err != nil || len(given) == 0 {
		return store.Reach{}, err
	}
	var reach store.Reach
	err = s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		reach = store.Reach{}
		given, err := s.accesses(ctx, tx, caller, of) // as it is now
		if err != nil {
			return err
		}
		for _, r := range given {
			if err := s.noteRead(ctx, tx, caller, r, operation, of); err != nil {
				return err
			}
			reach = with(reach, r)
		}
		return nil
	})
	if err != nil {
		return store.Reach{}, err
	}
	return reach, nil
}

// accesses are the caller's accesses that last, and cover an order unless it is nil.
func (s *Service) accesses(ctx context.Context, tx *store.Tx, caller auth.Caller, of *store.Order) ([]store.Request, error) {
	rows, err := tx.Requests(ctx, store.RequestFilter{Engineer: caller.Person, Action: policy.ActionAccess, Statuses: []string{string(Approved)}})
	if err != nil {
		return nil, err
	}
	var given []store.Request
	for _, r := range rows {
		lasts := ofSubscription(r) && checkRecord(r) == nil && s.now().Before(r.AccessEnd)
		if lasts && (of == nil || with(store.Reach{}, r).Covers(*of)) {
			given = append(given, r)
		}
	}
	return given, nil
}

// with adds what r gives access to.
func with(reach store.Reach, r store.Request) store.Reach {
	switch scopeOf(r) {
	case approval.OfTenant:
		reach.Tenants = append(reach.Tenants, r.Tenant)
	case approval.OfSubscription:
		reach.Subscriptions = append(reach.Subscriptions, r.Subscription)
	}
	return reach
}

func (s *Service) noteRead(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request, operation string, of *store.Order) error {
	if of != nil {
		r.ResourceID = "/subscriptions/" + string(of.Subscription) + "/orders/" + string(of.ID)
	}
	fresh, err := tx.NoteRequestRead(ctx, store.RequestRead{Request: r.ID, Resource: r.ResourceID, Operation: operation, Time: s.now()}, s.now().Add(-readsEvery))
	if err != nil || !fresh {
		return err
	}
	return s.record(ctx, tx, caller, auditlog.OpReadUnderAccess, auditlog.Success, r, map[string]string{"read": operation})
}
