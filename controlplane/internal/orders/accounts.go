package orders

import (
	"context"
	"net/url"
	"path"
	"strings"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
)

// claim makes the order's tenant the owner of the storage accounts that the
// order names, where nobody is. What belongs to another tenant is refused, so
// that no customer has their disks copied over another customer's data.
func (s *Service) claim(ctx context.Context, tx *store.Tx, o store.Order) error {
	owned, err := tx.StorageAccounts(ctx)
	if err != nil {
		return err
	}
	for _, d := range o.Destinations {
		known, err := mayClaim(o.Tenant, d, owned)
		if err != nil {
			return err
		}
		if known {
			continue
		}
		row := store.StorageAccount{Account: d.Account, Endpoint: d.Endpoint, Tenant: o.Tenant, Created: s.now()}
		if err := tx.InsertStorageAccount(ctx, &row); err != nil {
			return err
		}
	}
	return nil
}

// mayClaim refuses a destination that overlaps with what another tenant owns,
// and reports whether it is known as this tenant's.
func mayClaim(tenant protocol.TenantID, d store.Destination, owned []store.StorageAccount) (known bool, err error) {
	place, err := placeOf(d.Account, d.Endpoint)
	if err != nil {
		return false, err
	}
	for _, a := range owned {
		theirs, err := placeOf(a.Account, a.Endpoint)
		if err != nil {
			return false, err
		}
		if a.Tenant != tenant && overlap(place, theirs) {
			return false, protocol.Errorf(protocol.CodeForbidden, "account %s at %s belongs to another customer: name an account of your own", d.Account, d.Endpoint)
		}
		known = known || a.Account == d.Account && a.Endpoint == d.Endpoint
	}
	return known, nil
}

// placeOf is where the data of an account goes, in one spelling. Below a folder
// each account has a folder of its own; an https endpoint is the account's alone.
func placeOf(account, endpoint string) (string, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return "", invalid("%q is no endpoint", endpoint)
	}
	if u.Scheme == "file" {
		return "file://" + path.Join("/", u.Path, account), nil
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if port := u.Port(); port != "" && port != "443" {
		host += ":" + port
	}
	return strings.TrimSuffix(u.Scheme+"://"+host+path.Join("/", u.Path), "/"), nil
}

// overlap reports whether one of two places is the other or lies within it.
func overlap(a, b string) bool {
	return a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")
}
