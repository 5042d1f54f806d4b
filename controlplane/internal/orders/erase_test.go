package orders_test

import (
	"context"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// wrapped is all that is stored of the keys of the order.
func wrapped(t *testing.T, w *orderstest.World) (values [][]byte) {
	t.Helper()
	err := w.Store.View(t.Context(), func(tx *store.Tx) error {
		list, err := tx.DiskKeys(context.Background(), orderstest.Order)
		for _, k := range list {
			values = append(values, k.Wrapped)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// TestErasureIsPending completes an order with errors: for 14 days nobody erases
// what was not copied.
func TestErasureIsPending(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	w.Halt()
	n := w.Nodes[0]
	if _, err := w.Orders.ReportJob(t.Context(), n.ID, &devicev1.ReportJobRequest{Order: orderstest.Order, Event: "completed-with-errors"}); err != nil {
		t.Fatal(err)
	}
	_, err := w.Orders.EraseOrder(t.Context(), orderstest.Staff, &lockboxv1.EraseOrderRequest{Order: orderstest.Order})
	wantCode(t, err, protocol.CodeConflict)
	if len(wrapped(t, w)) == 0 {
		t.Error("the keys are gone")
	}
}

// TestEraseOrder erases the disks of both nodes of an order. Whatever goes wrong
// before both have certified leaves the keys in custody.
func TestEraseOrder(t *testing.T) {
	w := newWorld(t, 2)
	w.ToDatacenter()
	w.Halt()
	erase := func() error {
		_, err := w.Orders.EraseOrder(t.Context(), orderstest.Staff, &lockboxv1.EraseOrderRequest{Order: orderstest.Order})
		return err
	}
	wantCode(t, erase(), protocol.CodeConflict) // not completed
	for _, n := range w.Nodes {
		if _, err := w.Orders.ReportJob(t.Context(), n.ID, &devicev1.ReportJobRequest{Order: orderstest.Order, Event: "completed"}); err != nil {
			t.Fatal(err)
		}
	}
	hold, err := w.Audit.PlaceHold(t.Context(), orderstest.Admin, &lockboxv1.PlaceHoldRequest{Serial: orderstest.Serial, Reason: "a lawsuit"})
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, erase(), protocol.CodeConflict)
	if _, err := w.Audit.ReleaseHold(t.Context(), orderstest.Admin, &lockboxv1.ReleaseHoldRequest{Id: hold.Id, Reason: "over"}); err != nil {
		t.Fatal(err)
	}
	for _, fault := range []string{"erase", "erase-less", "erase-forged"} {
		w.Nodes[1].Break(fault)
		if erase() == nil {
			t.Errorf("%s: erased", fault)
		}
	}
	before := wrapped(t, w)
	if len(before) != 8 {
		t.Fatalf("%d keys are kept", len(before))
	}
	w.Nodes[1].Break("")
	for range 2 { // the second time there is nothing left to do
		if err := erase(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(wrapped(t, w)); n != 0 {
		t.Errorf("%d keys are kept", n)
	}
	if err := w.Store.Purge(t.Context(), before...); err != nil {
		t.Errorf("the keys are in the store's files: %v", err)
	}

	resp, err := w.Orders.GetErasure(t.Context(), orderstest.Olga, &lockboxv1.GetErasureRequest{Order: orderstest.Order})
	if err != nil || len(resp.Certificates) != 2 || !resp.KeysDestroyed {
		t.Fatalf("got %v, %v", resp, err)
	}
	for i, c := range resp.Certificates {
		node := approval.NodeRef{Serial: orderstest.Serial, Node: int(c.Node), KeyFingerprint: approval.Digest(c.KeyFingerprint)}
		if got, err := approval.VerifyErasure(c.Envelope, node, orderstest.Order); err != nil || len(got.Media) != 2 || got.OrderedBy != orderstest.Staff.Person {
			t.Errorf("certificate %d: %v %v", i, got, err)
		}
	}
	_, err = w.Orders.GetErasure(t.Context(), auth.Caller{Person: "f", Role: auth.Owner, Tenant: "fabrikam"}, &lockboxv1.GetErasureRequest{Order: orderstest.Order})
	wantCode(t, err, protocol.CodeNotFound)
	lines := 0
	for _, line := range histories(t, w) {
		if line == "SecureErase" {
			lines++
		}
	}
	deleted := w.Records(auditlog.OpDeleteDiskKeys)
	if lines != 2 || len(w.Records(auditlog.OpSanitizeDisk)) < 3 || len(deleted) != 2 || deleted[0].Result != auditlog.Start {
		t.Errorf("%d lines of history, %d deletions on record", lines, len(deleted))
	}
}
