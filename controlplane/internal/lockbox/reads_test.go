package lockbox_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// The orders that nobody filed a ticket about: of the subscription, of another one
// of the tenant, and of another tenant.
const (
	nextOrder     = "ORD-3001"
	othersOrder   = "ORD-3002"
	strangerOrder = "ORD-3003"
)

// moreOrders adds them to the world's.
func (w *world) moreOrders() {
	w.t.Helper()
	storetest.Tx(w.t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		o, err := tx.Order(ctx, orderstest.Order)
		if err != nil {
			return err
		}
		for _, more := range []struct {
			id           protocol.OrderID
			tenant       protocol.TenantID
			subscription protocol.SubscriptionID
			serial       protocol.DeviceSerial
		}{
			{nextOrder, orderstest.Tenant, orderstest.Subscription, "DBX3001"},
			{othersOrder, orderstest.Tenant, "22222222-2222-3333-4444-555555555555", "DBX3002"},
			{strangerOrder, "fabrikam", "33333333-2222-3333-4444-555555555555", "DBX3003"},
		} {
			if more.subscription != orderstest.Subscription {
				if err := tx.InsertSubscription(ctx, &store.Subscription{ID: more.subscription, Tenant: more.tenant, Created: w.Now()}); err != nil {
					return err
				}
			}
			row := o
			row.ID, row.Tenant, row.Subscription, row.Serial, row.Rev = more.id, more.tenant, more.subscription, more.serial, 0
			if err := tx.InsertOrder(ctx, &row); err != nil {
				return err
			}
		}
		return nil
	})
}

// wantSight fails unless a caller sees an order whole, or in outline, whichever way
// they look.
func (w *world) wantSight(who auth.Caller, id string, whole bool) {
	w.t.Helper()
	ctx := w.t.Context()
	o, err := w.Orders.GetOrder(ctx, who, &lockboxv1.GetOrderRequest{Id: id})
	if err != nil {
		w.t.Fatal(err)
	}
	listed := &lockboxv1.Order{}
	list, err := w.Orders.ListOrders(ctx, who, &lockboxv1.ListOrdersRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, one := range list.Orders {
		if one.Id == id {
			listed = one
		}
	}
	d, err := w.Orders.GetDevice(ctx, who, &lockboxv1.GetDeviceRequest{Serial: o.Serial})
	if err != nil {
		w.t.Fatal(err)
	}
	devices, err := w.Orders.ListDevices(ctx, who, &lockboxv1.ListDevicesRequest{Order: id})
	if err != nil || len(devices.Devices) != 1 {
		w.t.Fatalf("%v: %v", devices, err)
	}
	for _, o := range []*lockboxv1.Order{o, listed} {
		if o.Id != id || o.Stage == "" || o.Sku == "" || o.Serial == "" || o.Outline == whole || (o.Status != "") != whole || (len(o.Destinations) > 0) != whole {
			w.t.Errorf("%s sees %v, want whole: %v", who.Person, o, whole)
		}
	}
	if d.Outline == whole || devices.Devices[0].Outline == whole {
		w.t.Errorf("%s sees the device %v, want whole: %v", who.Person, d, whole)
	}
	_, log := w.Orders.GetCopyLog(ctx, who, &lockboxv1.GetCopyLogRequest{Order: id})
	_, bom := w.Orders.GetManifest(ctx, who, &lockboxv1.GetManifestRequest{Order: id})
	for _, err := range []error{log, bom} {
		asks := protocol.CodeOf(err) == protocol.CodeForbidden && strings.Contains(err.Error(), "lockbox request create --action access-subscription --subscription ")
		if whole && err != nil || !whole && !asks {
			w.t.Errorf("%s asks for the files of %s: %v, want allowed: %v", who.Person, id, err, whole)
		}
	}
}

func TestAccessIsSight(t *testing.T) {
	c := &clock{time.Now()}
	w := halted(t, 1, c.Now)
	w.moreOrders()
	for _, who := range []auth.Caller{orderstest.Admin, orderstest.Staff, orderstest.Olga} {
		w.wantSight(who, nextOrder, true)
	}
	w.wantSight(orderstest.Erin, orderstest.Order, true) // by the ticket
	w.wantSight(orderstest.Erin, nextOrder, false)
	w.createAccess(w.askAccess())
	w.wantSight(orderstest.Erin, nextOrder, false) // asking is nothing
	r := w.granted()
	w.wantSight(orderstest.Erin, nextOrder, true)
	w.wantSight(orderstest.Erin, othersOrder, false)
	w.wantSight(orderstest.Erin, strangerOrder, false)
	w.wantSight(orderstest.Eve, nextOrder, false)
	if _, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: r.Id}); err != nil {
		t.Fatal(err)
	}
	w.wantSight(orderstest.Erin, nextOrder, false)
	w.granted()
	w.wantSight(orderstest.Erin, nextOrder, true)
	c.advance(8*time.Hour + time.Second) // and no timer fires
	w.wantSight(orderstest.Erin, nextOrder, false)
	w.wantSight(orderstest.Erin, orderstest.Order, true)
}

func TestAccessToTenantIsSight(t *testing.T) {
	w := administered(t)
	w.moreOrders()
	in := w.askAccess()
	in.Scope = "tenant"
	r := w.createAccess(in)
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.mustDecide(tara, r.Id, "approve")
	w.wantSight(orderstest.Erin, nextOrder, true)
	w.wantSight(orderstest.Erin, othersOrder, true)
	w.wantSight(orderstest.Erin, strangerOrder, false)
}

// TestReadsAreRecorded counts the records: one an hour of each order and operation.
func TestReadsAreRecorded(t *testing.T) {
	c := &clock{time.Now()}
	w := halted(t, 1, c.Now)
	w.moreOrders()
	r := w.granted()
	reads := func() map[string]int {
		t.Helper()
		list, err := w.Audit.ListRecords(t.Context(), orderstest.Admin, &lockboxv1.ListRecordsRequest{Operation: string(auditlog.OpReadUnderAccess)})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]int{}
		for _, one := range list.Records {
			rec, err := auditlog.ParseRecord(one.Record)
			if err != nil {
				t.Fatal(err)
			}
			if rec.Caller != string(orderstest.Erin.Person) || rec.CorrelationID != r.Id {
				t.Errorf("recorded as %v", rec)
			}
			out[rec.Properties["read"]]++
		}
		return out
	}
	if got := reads(); len(got) > 0 {
		t.Errorf("recorded before anything was read: %v", got)
	}
	for hour := range 2 {
		for range 3 {
			w.wantSight(orderstest.Erin, nextOrder, true)
			w.wantSight(orderstest.Erin, orderstest.Order, true) // by the ticket, not by the access
		}
		got := reads()
		for _, read := range []string{"order", "orders", "device", "devices", "copy log", "manifest"} {
			if got[read] != hour+1 {
				t.Errorf("hour %d: %d records of %q, want %d", hour, got[read], read, hour+1)
			}
		}
		c.advance(time.Hour)
	}
}

func TestChangesUnderAccess(t *testing.T) {
	w := halted(t, 1, (&clock{time.Now()}).Now)
	unlock := w.approved()
	eve := w.as(orderstest.Eve)
	ask := func() error {
		_, err := w.lockbox.GetChanges(t.Context(), eve, &lockboxv1.GetChangesRequest{Id: unlock.Id})
		return err
	}
	wantCode(t, ask(), protocol.CodeForbidden)
	if _, err := w.Orders.AssignTicket(t.Context(), orderstest.Staff, &lockboxv1.AssignTicketRequest{Id: w.ticket, Engineer: string(eve.Person), Escalate: true}); err != nil {
		t.Fatal(err)
	}
	r, err := w.lockbox.CreateRequest(t.Context(), eve, w.askAccess())
	if err != nil {
		t.Fatal(err)
	}
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.mustDecide(orderstest.Olga, r.Id, "approve")
	if err := ask(); err != nil {
		t.Error(err)
	}
}
