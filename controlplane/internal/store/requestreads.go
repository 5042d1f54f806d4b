package store

import (
	"context"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Reach is what somebody was given access to: whole tenants, and subscriptions.
type Reach struct {
	Tenants       []protocol.TenantID
	Subscriptions []protocol.SubscriptionID
}

// Covers reports whether an order lies within r.
func (r Reach) Covers(o Order) bool {
	return slices.Contains(r.Tenants, o.Tenant) || slices.Contains(r.Subscriptions, o.Subscription)
}

// args are the tenants and then the subscriptions.
func (r Reach) args() (list []any) {
	for _, t := range r.Tenants {
		list = append(list, t)
	}
	for _, s := range r.Subscriptions {
		list = append(list, s)
	}
	return list
}

// RequestRead is one kind of thing that was read under a request.
type RequestRead struct {
	Request   protocol.RequestID
	Resource  string
	Operation string
	Time      time.Time
}

// NoteRequestRead notes r, and reports whether that had not been noted since the
// time given.
func (tx *Tx) NoteRequestRead(ctx context.Context, r RequestRead, since time.Time) (bool, error) {
	n, err := exec(ctx, tx, `INSERT INTO request_reads (request, resource, operation, time) VALUES ($1, $2, $3, $4)
		ON CONFLICT (request, resource, operation) DO UPDATE SET time = excluded.time WHERE request_reads.time <= $5`,
		r.Request, r.Resource, r.Operation, ms{&r.Time}, ms{&since})
	return n > 0, err
}
