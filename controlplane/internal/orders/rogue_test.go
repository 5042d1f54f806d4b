package orders_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// A node that reports without end replaces its own copy logs: they do not pile
// up.
func TestCopyLogsDoNotPileUp(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	for i := range 20 {
		for _, event := range []string{"halted", "started"} {
			_, err := w.Orders.ReportJob(t.Context(), w.Nodes[0].ID, &devicev1.ReportJobRequest{
				Order: orderstest.Order, Event: event, Job: &devicev1.JobStatus{FilesTotal: 2, FilesDone: int64(i)}, CopyLog: w.CopyLog(),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	rows := 0
	for ; rows < 10; rows++ {
		var left []store.CopyLog
		storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) (err error) {
			left, err = tx.CopyLogs(ctx, orderstest.Order)
			return err
		})
		if len(left) == 0 {
			break
		}
		storetest.Exec(t, w.Store, `DELETE FROM copy_logs WHERE id = (SELECT MAX(id) FROM copy_logs)`)
	}
	if rows != 2 {
		t.Errorf("%d copy logs after 40 reports, want one of each state", rows)
	}
}

func TestBillsOfMaterialsDoNotPileUp(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	previous := manifest.Digest(w.BOM("", "Wrong_Folder/a.bin"))
	var err error
	versions := 1
	for ; err == nil && versions < 200; versions++ {
		bom := w.BOM(previous, fmt.Sprintf("Wrong_Folder/%d.bin", versions))
		_, err = w.Orders.ReportManifest(t.Context(), w.Nodes[0].ID, &devicev1.ReportManifestRequest{
			Order: orderstest.Order, State: "Succeeded",
			Manifests: []*devicev1.Manifest{{Disk: "disk1", Share: orderstest.Share, Bom: bom, Digest: manifest.Digest(bom), PreviousDigest: previous}},
		})
		previous = manifest.Digest(bom)
	}
	// The node drops what is refused as a conflict: it holds up nothing else.
	wantCode(t, err, protocol.CodeConflict)
	if versions != 101 {
		t.Errorf("refused version %d", versions)
	}
}

// A heartbeat that says nothing new but the time is kept in memory only.
func TestAnIdleNodeWritesNothing(t *testing.T) {
	now := time.Now()
	w := orderstest.New(t, 1, keys{}, func() time.Time { return now })
	w.ToDatacenter()
	seen := func() (n store.Node) {
		storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) (err error) {
			n, err = tx.Node(ctx, w.Nodes[0].ID)
			return err
		})
		return n
	}
	before := seen().LastSeen
	for range 10 {
		now = now.Add(15 * time.Second)
		w.Heartbeat()
	}
	if got := seen().LastSeen; !got.Equal(before) {
		t.Errorf("written again after %s", got.Sub(before))
	}
	now = now.Add(5 * time.Minute)
	w.Heartbeat()
	if got := seen().LastSeen; got.Equal(before) {
		t.Error("the control: never written again")
	}
}

func TestAStatusHasALimit(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	report := w.Nodes[0].Report()
	report.Status.Fault = string(make([]byte, 1<<20))
	_, err := w.Orders.Heartbeat(t.Context(), w.Nodes[0].ID, report)
	wantCode(t, err, protocol.CodeInvalid)
}
