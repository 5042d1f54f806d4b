package orders

import (
	"cmp"
	"context"
	"regexp"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// supportPlans are the support plans, lowest first.
var supportPlans = []string{"Basic", "Developer", "Standard", "ProfessionalDirect"}

// lowestPlan is the support plan that Lockbox needs at least.
const lowestPlan = "Developer"

var (
	tenantForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	guidForm   = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// What holds for a tenant while Lockbox is off.
const (
	Deny             = "deny"              // nobody gets in
	ProviderApproval = "provider-approval" // the provider, by two approvals of its own, where the device's trust policy allows it
)

const (
	maxName    = 128 // bytes of a name that people give
	maxAddress = 254 // bytes of a mail address
)

// How long requests wait, and accesses last, unless a tenant has set another
// time, and between what it may choose. Nobody waits longer than the four days
// that everyone knows; in less than an hour nobody could answer. An access
// shorter than a quarter of an hour repairs nothing, and one of more than a day
// is another request.
const (
	RequestExpiry = 4 * 24 * time.Hour
	MinExpiry     = time.Hour
	AccessTime    = 8 * time.Hour
	MinAccess     = 15 * time.Minute
	MaxAccess     = 24 * time.Hour
)

// TimesOf returns how long a tenant's requests wait to be decided, and how long
// its accesses last at most, and by default.
func TimesOf(t store.Tenant) (expiry, access time.Duration) {
	return cmp.Or(t.RequestExpiry, RequestExpiry), cmp.Or(t.AccessTime, AccessTime)
}

// CreateTenant makes a customer organisation, with Lockbox off.
func (s *Service) CreateTenant(ctx context.Context, caller auth.Caller, in *lockboxv1.CreateTenantRequest) (*lockboxv1.Tenant, error) {
	if !tenantForm.MatchString(in.Id) {
		return nil, invalid("%q is no tenant id: want 1 to 63 of a-z, 0-9 and dash", in.Id)
	}
	if in.Name == "" || len(in.Name) > maxName {
		return nil, invalid("a tenant's name has 1 to %d bytes", maxName)
	}
	t := store.Tenant{ID: protocol.TenantID(in.Id), Name: in.Name, WithoutLockbox: Deny, Created: s.now()}
	err := s.change(ctx, string(caller.Person), auditlog.OpCreateTenant, func(tx *store.Tx, rec *auditlog.Record) error {
		aboutTenant(rec, t)
		return tx.InsertTenant(ctx, &t)
	})
	if err != nil {
		return nil, err
	}
	return s.GetTenant(ctx, caller, &lockboxv1.GetTenantRequest{Id: in.Id})
}

// GetTenant shows one tenant.
func (s *Service) GetTenant(ctx context.Context, caller auth.Caller, in *lockboxv1.GetTenantRequest) (*lockboxv1.Tenant, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Tenant, error) {
		t, err := tenant(ctx, tx, caller, in.Id)
		if err != nil {
			return nil, err
		}
		return showTenant(ctx, tx, caller, t)
	})
}

// ListTenants shows the tenants that the caller may see.
func (s *Service) ListTenants(ctx context.Context, caller auth.Caller, _ *lockboxv1.ListTenantsRequest) (*lockboxv1.ListTenantsResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListTenantsResponse, error) {
		list, err := tx.Tenants(ctx)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListTenantsResponse{}
		for _, t := range list {
			if !caller.Sees(t.ID) {
				continue
			}
			shown, err := showTenant(ctx, tx, caller, t)
			if err != nil {
				return nil, err
			}
			out.Tenants = append(out.Tenants, shown)
		}
		return out, nil
	})
}

// CreateSubscription makes a subscription of a tenant.
func (s *Service) CreateSubscription(ctx context.Context, caller auth.Caller, in *lockboxv1.CreateSubscriptionRequest) (*lockboxv1.Subscription, error) {
	sub, err := s.newSubscription(in)
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, string(caller.Person), auditlog.OpCreateSubscription, func(tx *store.Tx, rec *auditlog.Record) error {
		t, err := tenant(ctx, tx, caller, in.Tenant)
		if err != nil {
			return err
		}
		aboutTenant(rec, t)
		rec.ResourceID = "/subscriptions/" + string(sub.ID)
		rec.Properties["supportPlan"] = sub.SupportPlan
		return tx.InsertSubscription(ctx, &sub)
	})
	if err != nil {
		return nil, err
	}
	return showSubscription(caller, sub), nil
}

func (s *Service) newSubscription(in *lockboxv1.CreateSubscriptionRequest) (store.Subscription, error) {
	sub := store.Subscription{
		ID: protocol.SubscriptionID(in.Id), Tenant: protocol.TenantID(in.Tenant),
		SupportPlan: in.SupportPlan, Notify: in.Notify, Created: s.now(),
	}
	if sub.ID == "" {
		sub.ID = protocol.SubscriptionID(newGUID())
	}
	switch {
	case !guidForm.MatchString(string(sub.ID)):
		return sub, invalid("%q is no subscription id: want a GUID in lower case, or leave it out", in.Id)
	case !slices.Contains(supportPlans, sub.SupportPlan):
		return sub, invalid("support plan %q is unknown: want one of %q", in.SupportPlan, supportPlans)
	case len(in.Notify) > 16:
		return sub, invalid("%d addresses to notify: at most 16 are allowed", len(in.Notify))
	case slices.ContainsFunc(in.Notify, func(a string) bool { return a == "" || len(a) > maxAddress }):
		return sub, invalid("an address to notify has 1 to %d bytes", maxAddress)
	}
	return sub, nil
}

// EnableLockbox turns Lockbox on for a tenant. It needs a subscription with a
// support plan of at least Developer, else [protocol.CodeSupportPlan].
func (s *Service) EnableLockbox(ctx context.Context, caller auth.Caller, in *lockboxv1.EnableLockboxRequest) (*lockboxv1.Tenant, error) {
	if err := s.mayEnable(ctx, caller, in.Tenant); err != nil {
		if protocol.CodeOf(err) != protocol.CodeSupportPlan {
			return nil, err
		}
		return nil, s.refused(ctx, string(caller.Person), auditlog.OpEnableLockbox, "/tenants/"+in.Tenant, map[string]string{audit.PropertyTenant: in.Tenant}, err)
	}
	return s.setLockbox(ctx, caller, auditlog.OpEnableLockbox, in.Tenant, true, "")
}

func (s *Service) mayEnable(ctx context.Context, caller auth.Caller, id string) error {
	return s.cfg.Store.View(ctx, func(tx *store.Tx) error {
		t, err := tenant(ctx, tx, caller, id)
		if err != nil {
			return err
		}
		subs, err := tx.Subscriptions(ctx, t.ID)
		if err != nil {
			return err
		}
		best := -1
		for _, sub := range subs {
			best = max(best, slices.Index(supportPlans, sub.SupportPlan))
		}
		switch {
		case best < 0:
			return protocol.Errorf(protocol.CodeSupportPlan, "tenant %s has no subscription: Lockbox needs one with support plan %s or higher", id, lowestPlan)
		case best < slices.Index(supportPlans, lowestPlan):
			return protocol.Errorf(protocol.CodeSupportPlan, "the support plan of tenant %s is %s: Lockbox needs %s or higher", id, supportPlans[best], lowestPlan)
		}
		return nil
	})
}

// DisableLockbox turns Lockbox off for a tenant. No device changes by that: what
// their trust policies ask for stays.
// What holds then is what the tenant has chosen: nobody gets in, or the provider
// by its own approvals, where the device's trust policy allows that.
func (s *Service) DisableLockbox(ctx context.Context, caller auth.Caller, in *lockboxv1.DisableLockboxRequest) (*lockboxv1.Tenant, error) {
	if !slices.Contains([]string{"", Deny, ProviderApproval}, in.WithoutLockbox) {
		return nil, invalid("without Lockbox %q: want %s or %s", in.WithoutLockbox, Deny, ProviderApproval)
	}
	return s.setLockbox(ctx, caller, auditlog.OpDisableLockbox, in.Tenant, false, in.WithoutLockbox)
}

// setLockbox turns Lockbox on or off. without is what holds while it is off; "" is
// what did before.
func (s *Service) setLockbox(ctx context.Context, caller auth.Caller, op auditlog.Operation, id string, on bool, without string) (*lockboxv1.Tenant, error) {
	err := s.change(ctx, string(caller.Person), op, func(tx *store.Tx, rec *auditlog.Record) error {
		t, err := tenant(ctx, tx, caller, id)
		if err != nil {
			return err
		}
		aboutTenant(rec, t)
		t.LockboxEnabled, t.WithoutLockbox = on, cmp.Or(without, t.WithoutLockbox)
		rec.Properties["withoutLockbox"] = t.WithoutLockbox
		return tx.UpdateTenant(ctx, &t)
	})
	if err != nil {
		return nil, err
	}
	return s.GetTenant(ctx, caller, &lockboxv1.GetTenantRequest{Id: id})
}

// SetTenant changes how long a tenant's requests wait and its accesses last, from
// the next request on.
func (s *Service) SetTenant(ctx context.Context, caller auth.Caller, in *lockboxv1.SetTenantRequest) (*lockboxv1.Tenant, error) {
	expiry, err := timeBetween("a request waits", in.RequestExpirySeconds, MinExpiry, RequestExpiry)
	if err != nil {
		return nil, err
	}
	access, err := timeBetween("an access lasts", in.AccessSeconds, MinAccess, MaxAccess)
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, string(caller.Person), auditlog.OpUpdateTenant, func(tx *store.Tx, rec *auditlog.Record) error {
		t, err := tenant(ctx, tx, caller, in.Tenant)
		if err != nil {
			return err
		}
		aboutTenant(rec, t)
		t.RequestExpiry, t.AccessTime = cmp.Or(expiry, t.RequestExpiry), cmp.Or(access, t.AccessTime)
		expiry, access := TimesOf(t)
		rec.Properties["requestExpiry"], rec.Properties["accessTime"] = expiry.String(), access.String()
		return tx.UpdateTenant(ctx, &t)
	})
	if err != nil {
		return nil, err
	}
	return s.GetTenant(ctx, caller, &lockboxv1.GetTenantRequest{Id: in.Tenant})
}

// timeBetween reads a time that was set, 0 if none was.
func timeBetween(what string, seconds int64, least, most time.Duration) (time.Duration, error) {
	if seconds != 0 && (seconds < int64(least/time.Second) || seconds > int64(most/time.Second)) {
		return 0, invalid("%s %s to %s", what, least, most)
	}
	return time.Duration(seconds) * time.Second, nil
}

// tenant reads a tenant that caller may see.
func tenant(ctx context.Context, tx *store.Tx, caller auth.Caller, id string) (store.Tenant, error) {
	t, err := tx.Tenant(ctx, protocol.TenantID(id))
	if err == nil && !caller.Sees(t.ID) {
		err = notFound("tenant", id)
	}
	return t, err
}

func aboutTenant(rec *auditlog.Record, t store.Tenant) {
	rec.ResourceID = "/tenants/" + string(t.ID)
	rec.Properties[audit.PropertyTenant] = string(t.ID)
}

func showTenant(ctx context.Context, tx *store.Tx, caller auth.Caller, t store.Tenant) (*lockboxv1.Tenant, error) {
	subs, err := tx.Subscriptions(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	expiry, access := TimesOf(t)
	out := &lockboxv1.Tenant{
		Id: string(t.ID), Name: t.Name, LockboxEnabled: t.LockboxEnabled, WithoutLockbox: t.WithoutLockbox,
		RequestExpirySeconds: int64(expiry / time.Second), AccessSeconds: int64(access / time.Second),
	}
	for _, sub := range subs {
		out.Subscriptions = append(out.Subscriptions, showSubscription(caller, sub))
	}
	return out, nil
}

func showSubscription(caller auth.Caller, s store.Subscription) *lockboxv1.Subscription {
	return &lockboxv1.Subscription{
		Id: string(s.ID), Tenant: string(s.Tenant), SupportPlan: s.SupportPlan, Notify: auth.MaskedFor(caller, s.Notify),
	}
}
