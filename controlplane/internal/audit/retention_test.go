package audit_test

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// oldLog returns a log with a record per day of the last 120, numbered as their
// correlation says, and a clock.
func oldLog(t *testing.T, s *store.Store, retention time.Duration) (*audit.Service, *time.Time) {
	t.Helper()
	clock := now.Add(-120 * 24 * time.Hour)
	a, err := audit.New(t.Context(), audit.Config{Store: s, Key: key(1), Now: func() time.Time { return clock }, Retention: retention})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 120 {
		rec := intent(n)
		rec.Time = clock
		rec.Properties = map[string]string{audit.PropertyTenant: []string{"contoso", "fabrikam"}[n%2]}
		if _, err := a.RecordIntent(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(24 * time.Hour)
	}
	return a, &clock
}

func prune(t *testing.T, a *audit.Service, want int64) {
	t.Helper()
	if n, err := a.Prune(t.Context()); err != nil || n != want {
		t.Errorf("pruned %d, want %d: %v", n, want, err)
	}
}

func TestPrune(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := storetest.Open(t, path)
	a, clock := oldLog(t, s, 90*24*time.Hour)
	before, err := a.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	prune(t, a, 30)
	if got := list(t, a, &lockboxv1.ListRecordsRequest{}); len(got) != 91 || got[0].Index != 30 {
		t.Errorf("%d records are listed, from %d on", len(got), got[0].Index)
	}
	report := verify(t, a)
	if report.Pruned != 30 || report.Operations[auditlog.OpPruneLog] != 1 {
		t.Errorf("%+v", report)
	}
	if _, err := auditlog.Verify(bytes.NewReader(exported(t, a)), a.VerifierKey(), before); err != nil {
		t.Errorf("against the checkpoint from before: %v", err)
	}
	prune(t, a, 0)                                           // and says nothing
	if size := verify(t, a).Checkpoint.Size; size != 121+3 { // and three exports
		t.Errorf("the log has %d records", size)
	}
	*clock = clock.Add(200 * 24 * time.Hour)
	prune(t, a, 90+3) // the exports too; the announcement stays
	if report := verify(t, a); report.Operations[auditlog.OpPruneLog] != 2 {
		t.Errorf("%+v", report)
	}
}

// TestPrunedInSilence is the control of what Verify says of TestPrune.
func TestPrunedInSilence(t *testing.T) {
	s := storetest.New(t)
	a, _ := oldLog(t, s, 0)
	err := s.Tx(t.Context(), func(tx *store.Tx) error {
		_, err := tx.PruneAudit(t.Context(), 0, 3, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := auditlog.Verify(bytes.NewReader(exported(t, a)), a.VerifierKey(), nil); protocol.CodeOf(err) != protocol.CodeCheckpoint {
		t.Errorf("records that were pruned in silence: %v", err)
	}
}

// A device whose clock is far ahead, or that lies, keeps nothing from being pruned.
func TestPruneBehindARecordOfTheFuture(t *testing.T) {
	s := storetest.New(t)
	a, clock := oldLog(t, s, 90*24*time.Hour)
	c := device(t, s, 7)
	rec := auditlog.NewRecord(time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC), auditlog.OpLockVolume, auditlog.Success)
	rec.Origin = c.id.String()
	data, err := rec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.tree.Append(data); err != nil {
		t.Fatal(err)
	}
	records := []*devicev1.ChainRecord{{Record: data}}
	if _, err := a.AppendDeviceRecords(t.Context(), c.id, records, c.checkpoint()); err != nil {
		t.Fatal(err)
	}
	*clock = clock.Add(200 * 24 * time.Hour)
	prune(t, a, 121)
}

func TestLegalHold(t *testing.T) {
	s := storetest.New(t)
	a, _ := oldLog(t, s, 90*24*time.Hour)
	hold := func(in *lockboxv1.PlaceHoldRequest) *lockboxv1.LegalHold {
		in.Reason = "case 4711"
		out, err := a.PlaceHold(t.Context(), auditor, in)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	release := func(h *lockboxv1.LegalHold) error {
		_, err := a.ReleaseHold(t.Context(), auditor, &lockboxv1.ReleaseHoldRequest{Id: h.Id, Reason: "closed"})
		return err
	}
	all := hold(&lockboxv1.PlaceHoldRequest{})
	prune(t, a, 0)
	if err := release(all); err != nil {
		t.Fatal(err)
	}
	tenant := hold(&lockboxv1.PlaceHoldRequest{Tenant: "contoso"})
	hold(&lockboxv1.PlaceHoldRequest{Tenant: "fabrikam", CorrelationId: "1"})
	hold(&lockboxv1.PlaceHoldRequest{Tenant: "fabrikam", CorrelationId: "2"}) // contoso's: holds nothing
	prune(t, a, 14)                                                           // 15 of fabrikam's, less the held one
	if err := release(tenant); err != nil {
		t.Fatal(err)
	}
	prune(t, a, 15)
	if report := verify(t, a); report.Pruned != 29 || report.Operations[auditlog.OpPlaceHold] != 4 {
		t.Errorf("%+v", report)
	}
	if err := release(tenant); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("released twice: %v", err)
	}
	if _, err := a.PlaceHold(t.Context(), auditor, &lockboxv1.PlaceHoldRequest{}); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("without a reason: %v", err)
	}
	holds, err := a.ListHolds(t.Context(), auditor, nil)
	if err != nil || len(holds.Holds) != 4 || holds.RetentionSeconds != 90*24*3600 {
		t.Errorf("%v, %v", holds, err)
	}
}

// TestPruneIsRecordedFirst prunes with a log that cannot be written.
func TestPruneIsRecordedFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := storetest.Open(t, path)
	a, _ := oldLog(t, s, 90*24*time.Hour)
	other := storetest.Open(t, path)
	locked, unlock := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		done <- other.Tx(t.Context(), func(*store.Tx) error { close(locked); <-unlock; return nil })
	}()
	<-locked
	if n, err := a.Prune(t.Context()); protocol.CodeOf(err) != protocol.CodeNotRecorded || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
	close(unlock)
	<-done
	if report := verify(t, a); report.Pruned != 0 {
		t.Errorf("%d records are gone", report.Pruned)
	}
	prune(t, a, 30)
}

func TestListByTime(t *testing.T) {
	a, _ := oldLog(t, storetest.New(t), 0)
	day := func(n int) int64 { return now.Add(time.Duration(n-120) * 24 * time.Hour).Unix() }
	for _, tt := range []struct {
		since, until int64
		want         int
	}{{0, 0, 120}, {day(100), 0, 20}, {0, day(5), 5}, {day(10), day(13), 3}, {day(120), 0, 0}} {
		if got := list(t, a, &lockboxv1.ListRecordsRequest{Since: tt.since, Until: tt.until}); len(got) != tt.want {
			t.Errorf("%+v: %d records", tt, len(got))
		}
	}
	if _, err := a.ListRecords(t.Context(), auditor, &lockboxv1.ListRecordsRequest{Since: 2, Until: 2}); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("nothing between: %v", err)
	}
}

func list(t *testing.T, a *audit.Service, in *lockboxv1.ListRecordsRequest) []*lockboxv1.AuditRecord {
	t.Helper()
	out, err := a.ListRecords(t.Context(), auditor, in)
	if err != nil {
		t.Fatal(err)
	}
	return out.Records
}

func exported(t *testing.T, a *audit.Service) []byte {
	t.Helper()
	var out bytes.Buffer
	err := a.ExportLog(t.Context(), auditor, nil, func(p []byte) error { out.Write(p); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
