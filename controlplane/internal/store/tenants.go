package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Tenant is a customer organisation.
type Tenant struct {
	ID             protocol.TenantID
	Name           string
	LockboxEnabled bool
	WithoutLockbox string        // deny | provider-approval: what happens while Lockbox is off
	RequestExpiry  time.Duration // of unanswered requests; 0: the default
	AccessTime     time.Duration // of an access that asks for no other, and the most one may ask for; 0: the default
	Created        time.Time
	Rev            int64
}

var tenants = table{"tenants", "tenant", 1, "id, name, lockbox_enabled, without_lockbox, request_expiry, access_time, created, rev"}

func (r *Tenant) fields() []any {
	return []any{&r.ID, &r.Name, &r.LockboxEnabled, &r.WithoutLockbox, msd{&r.RequestExpiry}, msd{&r.AccessTime}, ms{&r.Created}, &r.Rev}
}

// InsertTenant adds r.
func (tx *Tx) InsertTenant(ctx context.Context, r *Tenant) error {
	return insert(ctx, tx, tenants, r.fields())
}

// UpdateTenant writes r if nobody changed it since it was read.
func (tx *Tx) UpdateTenant(ctx context.Context, r *Tenant) error {
	return update(ctx, tx, tenants, &r.Rev, r.fields())
}

// Tenant reads one tenant.
func (tx *Tx) Tenant(ctx context.Context, id protocol.TenantID) (Tenant, error) {
	return get[Tenant](ctx, tx, tenants, `WHERE id = $1`, id)
}

// Tenants reads all tenants by id.
func (tx *Tx) Tenants(ctx context.Context) ([]Tenant, error) {
	return list[Tenant](ctx, tx, tenants, `ORDER BY id`)
}

// Subscription is what a tenant orders under.
type Subscription struct {
	ID          protocol.SubscriptionID
	Tenant      protocol.TenantID
	SupportPlan string   // Basic | Developer | Standard | ProfessionalDirect
	Notify      []string // alternate addresses
	Created     time.Time
	Rev         int64
}

var subscriptions = table{"subscriptions", "subscription", 1, "id, tenant, support_plan, notify, created, rev"}

func (r *Subscription) fields() []any {
	return []any{&r.ID, &r.Tenant, &r.SupportPlan, js[string]{&r.Notify}, ms{&r.Created}, &r.Rev}
}

// InsertSubscription adds r.
func (tx *Tx) InsertSubscription(ctx context.Context, r *Subscription) error {
	return insert(ctx, tx, subscriptions, r.fields())
}

// UpdateSubscription writes r if nobody changed it since it was read.
func (tx *Tx) UpdateSubscription(ctx context.Context, r *Subscription) error {
	return update(ctx, tx, subscriptions, &r.Rev, r.fields())
}

// Subscription reads one subscription.
func (tx *Tx) Subscription(ctx context.Context, id protocol.SubscriptionID) (Subscription, error) {
	return get[Subscription](ctx, tx, subscriptions, `WHERE id = $1`, id)
}

// Subscriptions reads a tenant's subscriptions by id.
func (tx *Tx) Subscriptions(ctx context.Context, tenant protocol.TenantID) ([]Subscription, error) {
	return list[Subscription](ctx, tx, subscriptions, `WHERE tenant = $1 ORDER BY id`, tenant)
}
