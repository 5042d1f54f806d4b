package orders_test

import (
	"context"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// fabrikam gives the other tenant a subscription.
func fabrikam(t *testing.T, w *orderstest.World) string {
	t.Helper()
	sub, err := w.Orders.CreateSubscription(t.Context(), orderstest.Admin, &lockboxv1.CreateSubscriptionRequest{Tenant: "fabrikam", SupportPlan: "Developer"})
	if err != nil {
		t.Fatal(err)
	}
	return sub.Id
}

func placeInto(t *testing.T, w *orderstest.World, who auth.Caller, subscription, account, endpoint string) error {
	t.Helper()
	_, err := w.Orders.PlaceOrder(t.Context(), who, &lockboxv1.PlaceOrderRequest{
		Subscription: subscription, Sku: "databox",
		Destinations: []*lockboxv1.Destination{{Account: account, Endpoint: endpoint, Shares: []string{account + "_BlockBlob"}}},
	})
	return err
}

func TestAStorageAccountBelongsToOneTenant(t *testing.T) {
	w := newWorld(t, 1)
	w.People()
	w.Enable()
	w.Place() // contosodata at file:///srv/blobs
	theirs := fabrikam(t, w)
	mallory, olga := orderstest.Mallory, orderstest.Olga
	if err := placeInto(t, w, olga, orderstest.Subscription, "contosoweb", "https://contosoweb.blob.core.windows.net"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		account, endpoint string
		want              protocol.Code
	}{
		{"contosodata", "file:///srv/blobs", protocol.CodeForbidden},
		{"contosodata", "file:///srv/blobs/", protocol.CodeForbidden},
		{"contosodata", "file:///srv//x/../blobs", protocol.CodeForbidden},
		{"contosodata", "file:///srv/%62lobs", protocol.CodeForbidden},
		{"inside", "file:///srv/blobs/contosodata", protocol.CodeForbidden},
		{"inside", "file:///srv/blobs/contosodata/deep", protocol.CodeForbidden},
		{"srv", "file:///", protocol.CodeForbidden},
		{"contosoweb", "https://contosoweb.blob.core.windows.net", protocol.CodeForbidden},
		{"contosoweb", "https://CONTOSOWEB.blob.core.windows.net.:443/", protocol.CodeForbidden},
		{"fabrikam", "https://contosoweb.blob.core.windows.net", protocol.CodeForbidden},
		{"fabrikam", "https://contosoweb.blob.core.windows.net/inside", protocol.CodeForbidden},
		// The control: places of their own, beside the others.
		{"fabrikam", "file:///srv/blobs", ""},
		{"contosodata", "file:///srv/blobs2", ""},
		{"fabrikam", "https://fabrikam.blob.core.windows.net", ""},
	} {
		err := placeInto(t, w, mallory, theirs, c.account, c.endpoint)
		if protocol.CodeOf(err) != c.want {
			t.Errorf("%s at %s: %v, want %q", c.account, c.endpoint, err, c.want)
		}
	}
	// The owner may order again, and once more under another spelling.
	for _, endpoint := range []string{"file:///srv/blobs", "file:///srv/blobs/"} {
		if err := placeInto(t, w, olga, orderstest.Subscription, "contosodata", endpoint); err != nil {
			t.Errorf("the owner's next order to %s: %v", endpoint, err)
		}
	}
	// An admin orders for a tenant, and is bound by the same.
	wantCode(t, placeInto(t, w, orderstest.Admin, theirs, "contosodata", "file:///srv/blobs"), protocol.CodeForbidden)
}

// Whatever ids customers choose, the next order without one gets its own.
func TestOneOrderHoldsUpNoOther(t *testing.T) {
	w := newWorld(t, 1)
	w.People()
	w.Enable()
	theirs := fabrikam(t, w)
	place := func(who auth.Caller, subscription, id, account string) (string, error) {
		o, err := w.Orders.PlaceOrder(t.Context(), who, &lockboxv1.PlaceOrderRequest{
			Id: id, Subscription: subscription, Sku: "databox",
			Destinations: []*lockboxv1.Destination{{Account: account, Endpoint: "file:///srv/blobs", Shares: []string{account + "_BlockBlob"}}},
		})
		return o.GetId(), err
	}
	seen := make(map[string]bool)
	for range 3 {
		id, err := place(orderstest.Olga, orderstest.Subscription, "", "contosodata")
		if err != nil || seen[id] {
			t.Fatalf("got order %q, %v", id, err)
		}
		seen[id] = true
		for _, taken := range []string{"ORD-1001", "ORD-1002", "ORD-1003", "ORD-1004", "ORD-1005", "ORD-9999999999999999999"} {
			_, err := place(orderstest.Mallory, theirs, taken, "fabrikam")
			if code := protocol.CodeOf(err); code != "" && code != protocol.CodeConflict {
				t.Errorf("%s: %v", taken, err)
			}
		}
		for _, ours := range []string{"ORD-A1002", "ORD-A1003", "ORD-A1004", "ORD-A9223372036854775806", "ORD-A9X"} {
			_, err := place(orderstest.Mallory, theirs, ours, "fabrikam")
			wantCode(t, err, protocol.CodeInvalid)
		}
	}
	if _, err := place(orderstest.Olga, orderstest.Subscription, "ORD-AZURE", "contosodata"); err != nil {
		t.Errorf("the control, an id of their own: %v", err)
	}
}

// A consent names no place of another tenant, whatever the order's row says.
func TestNoConsentForAnotherTenantsAccount(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	draft := func() error {
		_, err := w.Orders.DraftConsent(t.Context(), orderstest.Olga, &lockboxv1.DraftConsentRequest{Order: orderstest.Order})
		return err
	}
	if err := draft(); err != nil {
		t.Fatal(err)
	}
	if err := placeInto(t, w, orderstest.Mallory, fabrikam(t, w), "fabrikam", "file:///srv/blobs"); err != nil {
		t.Fatal(err)
	}
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		o, err := tx.Order(ctx, orderstest.Order)
		if err != nil {
			return err
		}
		o.Destinations[0].Account = "fabrikam"
		return tx.UpdateOrder(ctx, &o)
	})
	wantCode(t, draft(), protocol.CodeForbidden)
}
