package orders_test

import (
	"slices"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// begun is a world whose copy job runs on both nodes of a device.
func begun(t *testing.T) *orderstest.World {
	t.Helper()
	w := newWorld(t, 2)
	w.ToDatacenter()
	if err := w.Orders.StartJob(t.Context(), orderstest.Staff, &lockboxv1.StartJobRequest{Order: orderstest.Order}, silent); err != nil {
		t.Fatal(err)
	}
	return w
}

func report(t *testing.T, w *orderstest.World, node int, event string, job *devicev1.JobStatus, codes ...string) {
	t.Helper()
	in := &devicev1.ReportJobRequest{Order: orderstest.Order, Event: event, Job: job, ErrorCodes: codes}
	if _, err := w.Orders.ReportJob(t.Context(), w.Nodes[node].ID, in); err != nil {
		t.Fatal(err)
	}
}

// The order tells how far the job is on all nodes together, and how fast it goes
// on those where it runs.
func TestProgressOfAllNodes(t *testing.T) {
	w := begun(t)
	for i := range w.Nodes {
		report(t, w, i, "progress", &devicev1.JobStatus{FilesTotal: 10, FilesDone: 4, BytesDone: 400, BytesTotal: 1000, BytesPerSecond: 30})
	}
	report(t, w, 1, "halted", &devicev1.JobStatus{FilesTotal: 10, FilesDone: 9, FilesErrored: 1, BytesDone: 900, BytesTotal: 1000, BytesPerSecond: 30}, "E")
	o, err := w.Orders.GetOrder(t.Context(), orderstest.Olga, &lockboxv1.GetOrderRequest{Id: orderstest.Order})
	if err != nil || o.BytesDone != 1300 || o.BytesTotal != 2000 || o.BytesPerSecond != 30 || o.FilesDone != 13 {
		t.Errorf("%v, %v", o, err)
	}
}

// The worst end of any node's job is that of the order.
func TestEndsOfJobs(t *testing.T) {
	for _, test := range []struct{ first, second, stage, status, history string }{
		{"completed", "completed", "Completed", "Completed", "DataCopy Completed"},
		{"completed", "completed-with-warnings", "CompletedWithWarnings", "Completed with warnings", "DataCopy Completed"},
		{"completed-with-errors", "completed-with-warnings", "CompletedWithErrors", "Data copy completed with errors. Device pending data erasure", "DataCopy Completed"},
		{"completed-with-errors", "halted", "DataCopy", "Data copy halted", "Data copy halted"},
	} {
		w := begun(t)
		report(t, w, 0, test.first, &devicev1.JobStatus{FilesTotal: 1})
		report(t, w, 1, test.second, &devicev1.JobStatus{FilesTotal: 1})
		o := w.Order()
		if o.Stage != test.stage || o.Status != test.status || !slices.Contains(histories(t, w), test.history) {
			t.Errorf("%s and %s: %s, %q, %q", test.first, test.second, o.Stage, o.Status, histories(t, w))
		}
		if orders.Finished(o) != (test.stage != "DataCopy") {
			t.Errorf("%s and %s: whether it is finished is wrong", test.first, test.second)
		}
	}
}

// Nobody who objects within 14 days keeps the device waiting for longer.
func TestPendingErasureEnds(t *testing.T) {
	w := begun(t)
	for i := range w.Nodes {
		report(t, w, i, "completed-with-errors", &devicev1.JobStatus{FilesTotal: 1, FilesErrored: 1}, "ERROR_SOURCE_READ_FAILED")
	}
	due := w.Timers(w.Now().Add(14 * 24 * time.Hour))
	if len(due) != 1 || due[0].Kind != orders.TimerPendingErasure || len(w.Timers(w.Now().Add(14*24*time.Hour-time.Minute))) != 0 {
		t.Fatalf("timers: %+v", due)
	}
	if err := w.Orders.EndPendingErasure(t.Context(), due[0]); err != nil {
		t.Fatal(err)
	}
	if err := w.Orders.EndPendingErasure(t.Context(), due[0]); err == nil {
		t.Error("it ended twice")
	}
	if o := w.Order(); o.Stage != "CompletedWithErrors" || o.Status != "Completed with errors" || !slices.Contains(histories(t, w), "Completed with errors") {
		t.Errorf("%+v, %q", o, histories(t, w))
	}
}
