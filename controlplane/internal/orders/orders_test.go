package orders_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newWorld(t *testing.T, nodes int) *orderstest.World {
	t.Helper()
	return orderstest.New(t, nodes, keys{}, time.Now)
}

// wantCode fails unless err carries code.
func wantCode(t *testing.T, err error, code protocol.Code) {
	t.Helper()
	if protocol.CodeOf(err) != code {
		t.Errorf("got %v, want code %q", err, code)
	}
}

func silent(*lockboxv1.ProgressEvent) {}

func histories(t *testing.T, w *orderstest.World) []string {
	t.Helper()
	o, err := w.Orders.GetOrder(t.Context(), orderstest.Olga, &lockboxv1.GetOrderRequest{Id: orderstest.Order})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range o.History {
		out = append(out, l.What)
	}
	return out
}

func TestLockboxNeedsASupportPlan(t *testing.T) {
	w := newWorld(t, 1)
	w.People()
	ctx, enable := t.Context(), &lockboxv1.EnableLockboxRequest{Tenant: orderstest.Tenant}
	_, err := w.Orders.EnableLockbox(ctx, orderstest.Olga, enable)
	wantCode(t, err, protocol.CodeSupportPlan)
	_, err = w.Orders.CreateSubscription(ctx, orderstest.Admin, &lockboxv1.CreateSubscriptionRequest{Tenant: orderstest.Tenant, SupportPlan: "Basic"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Orders.EnableLockbox(ctx, orderstest.Olga, enable)
	wantCode(t, err, protocol.CodeSupportPlan)
	if err == nil || !strings.Contains(err.Error(), "Basic") || !strings.Contains(err.Error(), "Developer") {
		t.Errorf("the refusal does not say why: %v", err)
	}
	if n := len(w.Records(auditlog.OpEnableLockbox)); n != 2 {
		t.Errorf("%d refusals recorded, want 2", n)
	}

	w.Enable() // with a Developer plan beside it
	tenant, err := w.Orders.GetTenant(ctx, orderstest.Olga, &lockboxv1.GetTenantRequest{Id: orderstest.Tenant})
	if err != nil || !tenant.LockboxEnabled || tenant.WithoutLockbox != "deny" {
		t.Errorf("%v, %v", tenant, err)
	}
	if _, err := w.Orders.DisableLockbox(ctx, orderstest.Olga, &lockboxv1.DisableLockboxRequest{Tenant: orderstest.Tenant}); err != nil {
		t.Fatal(err)
	}
	if n := len(w.Records(auditlog.OpDisableLockbox)); n != 1 {
		t.Errorf("%d records of disabling", n)
	}
	_, err = w.Orders.EnableLockbox(ctx, orderstest.Mallory, enable)
	wantCode(t, err, protocol.CodeNotFound)
}

func TestStoryOfAnOrder(t *testing.T) {
	for nodes := 1; nodes <= 2; nodes++ {
		w := newWorld(t, nodes)
		w.ToDatacenter()
		w.Halt()
		o := w.Order()
		if o.Stage != "DataCopy" || o.Status != "Data copy halted" || o.FilesErrored != int64(nodes) || !slices.Equal(o.ErrorCodes, []string{string(manifest.NameAlphaNumeric)}) {
			t.Fatalf("halted: %+v", o)
		}
		logs, err := w.Orders.GetCopyLog(t.Context(), orderstest.Olga, &lockboxv1.GetCopyLogRequest{Order: orderstest.Order})
		if err != nil || len(logs.CopyLogs) != nodes {
			t.Fatalf("%d copy logs, %v", len(logs.GetCopyLogs()), err)
		}

		start := &lockboxv1.StartJobRequest{Order: orderstest.Order}
		if err := w.Orders.StartJob(t.Context(), orderstest.Staff, start, silent); err != nil {
			t.Fatal(err)
		}
		if o := w.Order(); o.Status != "Data copy error resolved" || o.JobState != orders.JobRunning || len(o.ErrorCodes) != 0 {
			t.Fatalf("resumed: %+v", o)
		}
		for i, n := range w.Nodes {
			if n.State() != protocol.Unlocked || n.Opened() != 2 {
				t.Errorf("node %s is %s, opened %d times", n.ID, n.State(), n.Opened())
			}
			done := &devicev1.ReportJobRequest{Order: orderstest.Order, Event: "completed", Job: &devicev1.JobStatus{FilesTotal: 2, FilesDone: 2}}
			for range 2 { // a report may come twice
				if _, err := w.Orders.ReportJob(t.Context(), n.ID, done); err != nil {
					t.Fatal(err)
				}
			}
			if got, all := w.Order().Stage, i == nodes-1; (got == "Completed") != all {
				t.Errorf("after node %d of %d the order is %s", i+1, nodes, got)
			}
		}
		want := slices.Concat([]string{
			"OrderCreated", "DevicePrepared", "TrustPolicySigned", "ShippingToCustomer", "Delivered", "ShippingToDataCenter", "PhysicalVerification",
		}, slices.Repeat([]string{"DeviceBoot", "AnomalyDetection"}, nodes), []string{
			"ConsentSigned", "DataCopy Started", "Data copy halted", "DataCopy Resumed", "Data copy error resolved", "DataCopy Completed",
		})
		got := slices.Compact(histories(t, w))
		if !slices.Equal(got, want) {
			t.Errorf("history %q\nwant    %q", got, want)
		}
		if n := len(w.Records(auditlog.OpDataCopyCompleted)); n != nodes {
			t.Errorf("%d records of completion for %d nodes", n, nodes)
		}
		if o := w.Order(); o.FilesDone != int64(2*nodes) || o.FilesErrored != 0 {
			t.Errorf("counts: %+v", o)
		}
	}
}

// A job may end before StartJob has written that it runs.
func TestShortJobReportsBeforeStartReturns(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	report := func(e *lockboxv1.ProgressEvent) {
		if e.Phase != "running" {
			return
		}
		_, err := w.Orders.ReportJob(context.Background(), w.Nodes[0].ID, &devicev1.ReportJobRequest{Event: "completed", Job: &devicev1.JobStatus{FilesTotal: 2, FilesDone: 2}})
		if err != nil {
			t.Error(err)
		}
	}
	if err := w.Orders.StartJob(t.Context(), orderstest.Staff, &lockboxv1.StartJobRequest{Order: orderstest.Order}, report); err != nil {
		t.Fatal(err)
	}
	if o := w.Order(); o.Stage != "Completed" || o.JobState != orders.JobCompleted {
		t.Errorf("%+v", o)
	}
}

func TestJobNeedsConsentAndStage(t *testing.T) {
	w := newWorld(t, 1)
	w.People()
	w.Enable()
	w.Place()
	w.Trust(&lockboxv1.DraftTrustPolicyRequest{}, orderstest.Olga)
	start := &lockboxv1.StartJobRequest{Order: orderstest.Order}
	wantCode(t, w.Orders.StartJob(t.Context(), orderstest.Staff, start, silent), protocol.CodeConflict)
	w.Arrive()
	w.Enrol()
	wantCode(t, w.Orders.StartJob(t.Context(), orderstest.Staff, start, silent), protocol.CodeNotApproved)
	w.Consent(orderstest.Olga)
	w.Nodes[0].SetOffline(true)
	wantCode(t, w.Orders.StartJob(t.Context(), orderstest.Staff, start, silent), protocol.CodeOffline)
	if o := w.Order(); o.Stage != "AtAzureDC" || o.JobState != "" {
		t.Errorf("a failed start changed the order: %+v", o)
	}
	w.Nodes[0].SetOffline(false)
	if err := w.Orders.StartJob(t.Context(), orderstest.Staff, start, silent); err != nil {
		t.Fatal(err)
	}

	// Starting it again is refused and takes nothing away.
	wantCode(t, w.Orders.StartJob(t.Context(), orderstest.Staff, start, silent), protocol.CodeBusy)
	if w.Nodes[0].State() != protocol.Unlocked || w.Order().JobState != orders.JobRunning {
		t.Errorf("node is %s, job %s after a second start", w.Nodes[0].State(), w.Order().JobState)
	}

	// Revoking ends it at the device, and for good.
	if _, err := w.Orders.RevokeConsent(t.Context(), orderstest.Olga, &lockboxv1.RevokeConsentRequest{Order: orderstest.Order, Reason: "changed my mind"}); err != nil {
		t.Fatal(err)
	}
	if w.Nodes[0].State() != protocol.Locked {
		t.Errorf("node is %s after the consent was revoked", w.Nodes[0].State())
	}
	wantCode(t, w.Orders.StartJob(t.Context(), orderstest.Staff, start, silent), protocol.CodeNotApproved)
	_, err := w.Orders.RevokeConsent(t.Context(), orderstest.Olga, &lockboxv1.RevokeConsentRequest{Order: orderstest.Order})
	wantCode(t, err, protocol.CodeConflict)
}

func TestStagesGoForwardOneAtATime(t *testing.T) {
	w := newWorld(t, 1)
	w.People()
	w.Enable()
	w.Place()
	stages := []string{"DeviceOrdered", "DevicePrepared", "Dispatched", "Delivered", "PickedUp", "AtAzureDC", "DataCopy", "Completed", "nonsense"}
	for at := 1; at < 5; at++ {
		for _, to := range stages {
			if to == stages[at+1] {
				continue
			}
			if _, err := w.Orders.AdvanceOrder(t.Context(), orderstest.Staff, &lockboxv1.AdvanceOrderRequest{Order: orderstest.Order, Stage: to}); err == nil {
				t.Fatalf("went from %s to %s", stages[at], to)
			}
		}
		if _, err := w.Orders.AdvanceOrder(t.Context(), orderstest.Staff, &lockboxv1.AdvanceOrderRequest{Order: orderstest.Order, Stage: stages[at+1]}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := w.Orders.PrepareDevice(t.Context(), orderstest.Staff, w.Prepared())
	wantCode(t, err, protocol.CodeConflict)
}

func TestPrepareDeviceRefusesNonsense(t *testing.T) {
	w := newWorld(t, 2)
	w.People()
	w.Enable()
	_, err := w.Orders.PlaceOrder(t.Context(), orderstest.Olga, &lockboxv1.PlaceOrderRequest{
		Id: orderstest.Order, Subscription: orderstest.Subscription, Sku: "databox-heavy",
		Destinations: []*lockboxv1.Destination{{Account: "contosodata", Endpoint: orderstest.Endpoint, Shares: []string{orderstest.Share}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*lockboxv1.PrepareDeviceRequest){
		"one node without disks": func(in *lockboxv1.PrepareDeviceRequest) { in.Disks = in.Disks[:2] },
		"no disks":               func(in *lockboxv1.PrepareDeviceRequest) { in.Disks = nil },
		"node 3":                 func(in *lockboxv1.PrepareDeviceRequest) { in.Disks[0].Node = 3 },
		"a disk twice":           func(in *lockboxv1.PrepareDeviceRequest) { in.Disks[1].Disk = in.Disks[0].Disk },
		"short key":              func(in *lockboxv1.PrepareDeviceRequest) { in.Disks[0].ExternalKey = []byte("short") },
		"bad password":           func(in *lockboxv1.PrepareDeviceRequest) { in.Disks[0].RecoveryPassword = "1234" },
		"bad serial":             func(in *lockboxv1.PrepareDeviceRequest) { in.Serial = "../etc" },
		"bad manifest":           func(in *lockboxv1.PrepareDeviceRequest) { in.Disks[0].Manifests[0].Bom = []byte("<x/>") },
		"manifest of another share": func(in *lockboxv1.PrepareDeviceRequest) {
			in.Disks[0].Manifests[0].Share = "other_BlockBlob"
		},
	} {
		in := w.Prepared()
		change(in)
		_, err := w.Orders.PrepareDevice(t.Context(), orderstest.Staff, in)
		if protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
		for _, d := range in.Disks {
			if slices.ContainsFunc(d.ExternalKey, func(b byte) bool { return b != 0 }) {
				t.Errorf("%s: a key was not wiped", name)
			}
		}
	}
	if o := w.Order(); o.Stage != "DeviceOrdered" || o.Serial != "" {
		t.Errorf("a refused preparation left something behind: %+v", o)
	}
	if _, err := w.Orders.PrepareDevice(t.Context(), orderstest.Staff, w.Prepared()); err != nil {
		t.Errorf("the control: %v", err)
	}
}

func TestJoinTokens(t *testing.T) {
	now := time.Now()
	w := orderstest.New(t, 2, keys{}, func() time.Time { return now })
	w.People()
	w.Enable()
	w.Place()
	w.Trust(&lockboxv1.DraftTrustPolicyRequest{}, orderstest.Olga)
	enrol := func(in *devicev1.EnrolRequest) error {
		_, err := w.Orders.Enrol(t.Context(), in)
		return err
	}
	first, second := w.Nodes[0], w.Nodes[1]

	token := w.Token(first)
	wantCode(t, enrol(w.EnrolRequest(second, token)), protocol.CodeTokenSerial)
	other := w.EnrolRequest(first, token)
	other.Serial = "DBX0002"
	wantCode(t, enrol(other), protocol.CodeTokenSerial)
	wrong := w.EnrolRequest(first, token)
	wrong.TrustPolicyDigest = string(approval.DigestOf([]byte("another")))
	wantCode(t, enrol(wrong), protocol.CodePolicyDigest)
	missing := w.EnrolRequest(first, token)
	missing.Disks = missing.Disks[:1]
	wantCode(t, enrol(missing), protocol.CodeDisks)
	secret := strings.Split(token, ".")
	secret[2] = strings.Repeat("0", len(secret[2]))
	wantCode(t, enrol(w.EnrolRequest(first, strings.Join(secret, "."))), protocol.CodeUnauthenticated)
	wantCode(t, enrol(w.EnrolRequest(first, "nonsense")), protocol.CodeUnauthenticated)
	if err := enrol(w.EnrolRequest(first, token)); err != nil {
		t.Fatalf("the control: %v", err)
	}
	wantCode(t, enrol(w.EnrolRequest(first, token)), protocol.CodeTokenUsed)

	late := w.Token(second)
	now = now.Add(orders.JoinTokenTTL)
	wantCode(t, enrol(w.EnrolRequest(second, late)), protocol.CodeTokenExpired)
	late = w.Token(second)
	now = now.Add(orders.JoinTokenTTL - time.Millisecond)
	if err := enrol(w.EnrolRequest(second, late)); err != nil {
		t.Fatalf("the control: %v", err)
	}

	// 5 refusals of the first token, 1 of it used, 1 expired; garbage leaves no
	// record.
	if n := len(w.Records(auditlog.OpRefuseEnrolment)); n != 7 {
		t.Errorf("%d refusals recorded, want 7", n)
	}
	if n := len(w.Records(auditlog.OpEnrolDevice)); n != 2 {
		t.Errorf("%d enrolments recorded, want 2", n)
	}
}

// A node whose disks hold other volumes than they were prepared with is not the
// device that was sent.
func TestExchangedDisksAreFound(t *testing.T) {
	w := newWorld(t, 1)
	w.People()
	w.Enable()
	w.Place()
	w.Trust(&lockboxv1.DraftTrustPolicyRequest{}, orderstest.Olga)
	in := w.EnrolRequest(w.Nodes[0], w.Token(w.Nodes[0]))
	prepared := make(map[string]string)
	for _, d := range w.Prepared().Disks {
		prepared[d.Disk] = d.VolumeGuid
	}
	for _, d := range in.Disks {
		d.VolumeGuid = strings.ToLower(prepared[d.Disk])
	}
	in.Disks[0].VolumeGuid = "00000000-0000-0000-0000-000000000000"
	_, err := w.Orders.Enrol(t.Context(), in)
	wantCode(t, err, protocol.CodeDisks)
	in.Disks[0].VolumeGuid = prepared[in.Disks[0].Disk]
	if _, err := w.Orders.Enrol(t.Context(), in); err != nil {
		t.Fatalf("the control: %v", err)
	}
	if lines := histories(t, w); !slices.Equal(lines[len(lines)-2:], []string{"DeviceBoot", "AnomalyDetection"}) {
		t.Errorf("history: %q", lines)
	}
}

func TestGuessingAJoinTokenLocksIt(t *testing.T) {
	now := time.Now()
	w := orderstest.New(t, 1, keys{}, func() time.Time { return now })
	w.People()
	w.Enable()
	w.Place()
	w.Trust(&lockboxv1.DraftTrustPolicyRequest{}, orderstest.Olga)
	enrol := func(token string) error {
		_, err := w.Orders.Enrol(t.Context(), w.EnrolRequest(w.Nodes[0], token))
		return err
	}
	token, other := w.Token(w.Nodes[0]), w.Token(w.Nodes[0])
	guess := strings.Split(token, ".")
	guess[2] = strings.Repeat("0", len(guess[2]))
	for range auth.MaxFailures {
		wantCode(t, enrol(strings.Join(guess, ".")), protocol.CodeUnauthenticated)
	}
	for range 50 {
		wantCode(t, enrol(strings.Join(guess, ".")), protocol.CodeLimit)
	}
	wantCode(t, enrol(token), protocol.CodeLimit)
	if n := len(w.Records(auditlog.OpRefuseEnrolment)); n != auth.MaxFailures {
		t.Errorf("%d refusals recorded, want %d", n, auth.MaxFailures)
	}
	now = now.Add(auth.LockOut)
	wantCode(t, enrol(token), protocol.CodeTokenExpired)
	now = now.Add(-time.Second)
	if err := enrol(other); err != nil {
		t.Errorf("the control, another token: %v", err)
	}
}

// Who has a token, even a used one, cannot fill the log with it.
func TestRefusalsOfAJoinTokenAreRecordedSoOften(t *testing.T) {
	w := newWorld(t, 1)
	w.People()
	w.Enable()
	w.Place()
	w.Trust(&lockboxv1.DraftTrustPolicyRequest{}, orderstest.Olga)
	token := w.Token(w.Nodes[0])
	if _, err := w.Orders.Enrol(t.Context(), w.EnrolRequest(w.Nodes[0], token)); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		_, err := w.Orders.Enrol(t.Context(), w.EnrolRequest(w.Nodes[0], token))
		wantCode(t, err, protocol.CodeTokenUsed)
	}
	if n := len(w.Records(auditlog.OpRefuseEnrolment)); n == 0 || n > 20 {
		t.Errorf("%d refusals recorded, want some and at most 20", n)
	}
}

func TestSecondEnrolmentNeedsAnAdmin(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	node := w.Nodes[0]
	again := &lockboxv1.CreateJoinTokenRequest{Order: orderstest.Order, Serial: orderstest.Serial, Node: 1}
	_, err := w.Orders.CreateJoinToken(t.Context(), orderstest.Admin, again)
	wantCode(t, err, protocol.CodeConflict)
	again.Replace = true
	_, err = w.Orders.CreateJoinToken(t.Context(), orderstest.Staff, again)
	wantCode(t, err, protocol.CodeForbidden)
	token, err := w.Orders.CreateJoinToken(t.Context(), orderstest.Admin, again)
	if err != nil {
		t.Fatal(err)
	}
	first, renewed := certOf(t, w), renew(t, w)
	if first == renewed {
		t.Fatal("renewing gave the same certificate")
	}
	if _, err := w.Orders.Enrol(t.Context(), w.EnrolRequest(node, token.Token)); err != nil {
		t.Fatal(err)
	}
	for _, serial := range []string{first, renewed} {
		if !revoked(t, w, serial) {
			t.Errorf("certificate %s still counts after the node enrolled again", serial)
		}
	}
	if current := certOf(t, w); revoked(t, w, current) {
		t.Error("the new certificate is revoked")
	}
	if !slices.Contains(w.Disconnected(), node.ID) {
		t.Error("the tunnel of the first enrolment stays")
	}
}

func TestRevokeDevice(t *testing.T) {
	w := newWorld(t, 2)
	w.ToDatacenter()
	_, err := w.Orders.RevokeDevice(t.Context(), orderstest.Admin, &lockboxv1.RevokeDeviceRequest{Serial: orderstest.Serial, Node: 3})
	wantCode(t, err, protocol.CodeNotFound)
	d, err := w.Orders.RevokeDevice(t.Context(), orderstest.Admin, &lockboxv1.RevokeDeviceRequest{Serial: orderstest.Serial, Node: 1, Reason: "lost"})
	if err != nil || !d.Nodes[0].Revoked || d.Nodes[1].Revoked {
		t.Fatalf("%v, %v", d, err)
	}
	if !revoked(t, w, certOf(t, w)) || !slices.Equal(w.Disconnected(), []protocol.NodeID{w.Nodes[0].ID}) {
		t.Errorf("revoked %v, disconnected %v", revoked(t, w, certOf(t, w)), w.Disconnected())
	}
	_, err = w.Orders.Heartbeat(t.Context(), w.Nodes[0].ID, w.Nodes[0].Report())
	wantCode(t, err, protocol.CodeForbidden)
	if _, err := w.Orders.Heartbeat(t.Context(), w.Nodes[1].ID, w.Nodes[1].Report()); err != nil {
		t.Errorf("the control: %v", err)
	}
	_, err = w.Orders.DraftConsent(t.Context(), orderstest.Olga, &lockboxv1.DraftConsentRequest{Order: orderstest.Order})
	wantCode(t, err, protocol.CodeConflict)
}

func TestHeartbeats(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	w := orderstest.New(t, 2, keys{}, func() time.Time { return now })
	w.ToDatacenter()
	report := w.Nodes[0].Report()
	report.Opened = []byte("proof of node 1")
	if _, err := w.Orders.Heartbeat(t.Context(), w.Nodes[0].ID, report); err != nil {
		t.Fatal(err)
	}
	resp, err := w.Orders.Heartbeat(t.Context(), w.Nodes[1].ID, w.Nodes[1].Report())
	if err != nil || len(resp.PeersOpened) != 1 || string(resp.PeersOpened[0]) != "proof of node 1" || resp.Time != now.Unix() {
		t.Errorf("%v, %v", resp, err)
	}
	_, err = w.Orders.Heartbeat(t.Context(), w.Nodes[1].ID, w.Nodes[0].Report())
	wantCode(t, err, protocol.CodeInvalid)

	// Without news nothing is written, and still people see the node.
	rev := w.Order().Rev
	now = now.Add(time.Minute)
	w.Heartbeat()
	d, err := w.Orders.GetDevice(t.Context(), orderstest.Olga, &lockboxv1.GetDeviceRequest{Serial: orderstest.Serial})
	if err != nil || d.Nodes[0].LastSeen != now.Unix() || !d.Nodes[0].Online || d.Nodes[0].State != string(protocol.Locked) || len(d.Nodes[0].Disks) != 2 {
		t.Errorf("%v, %v", d, err)
	}
	if w.Order().Rev != rev {
		t.Error("a heartbeat changed the order")
	}
}

func TestManifestsContinueEachOther(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	first := w.BOM("", "Wrong_Folder/a.bin")
	second := w.BOM(manifest.Digest(first), "right-folder/a.bin")
	send := func(previous string, bom []byte, share string) error {
		_, err := w.Orders.ReportManifest(t.Context(), w.Nodes[0].ID, &devicev1.ReportManifestRequest{
			Order: orderstest.Order, State: "Succeeded",
			Manifests: []*devicev1.Manifest{{Disk: "disk1", Share: share, Bom: bom, Digest: manifest.Digest(bom), PreviousDigest: previous, Difference: "nothing to see"}},
		})
		return err
	}
	wantCode(t, send("", w.BOM("", "x/a.bin"), orderstest.Share), protocol.CodeConflict)
	wantCode(t, send(manifest.Digest(first), second, "other_BlockBlob"), protocol.CodeInvalid)
	for range 2 { // sent twice, kept once
		if err := send(manifest.Digest(first), second, orderstest.Share); err != nil {
			t.Fatal(err)
		}
	}
	all, err := w.Orders.GetManifest(t.Context(), orderstest.Olga, &lockboxv1.GetManifestRequest{Order: orderstest.Order})
	if err != nil || len(all.Manifests) != 3 { // disk1 twice, disk2 once
		t.Fatalf("%d manifests, %v", len(all.GetManifests()), err)
	}
	newest := all.Manifests[1]
	if newest.Version != 2 || newest.PreviousDigest != manifest.Digest(first) || !strings.Contains(newest.Difference, "right-folder/a.bin") {
		t.Errorf("%+v", newest)
	}
}

func TestTrustPolicies(t *testing.T) {
	w := newWorld(t, 1)
	w.People()
	w.Enable()
	w.Place()
	ctx := t.Context()
	draft := func(in *lockboxv1.DraftTrustPolicyRequest) *lockboxv1.Document {
		t.Helper()
		in.Order, in.NoRecovery = orderstest.Order, true
		doc, err := w.Orders.DraftTrustPolicy(ctx, orderstest.Olga, in)
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	submit := func(envelope []byte) error {
		_, err := w.Orders.SubmitTrustPolicy(ctx, orderstest.Olga, &lockboxv1.SubmitTrustPolicyRequest{Order: orderstest.Order, Envelope: envelope})
		return err
	}
	twoGroups := &lockboxv1.DraftTrustPolicyRequest{CustomerGroups: []*lockboxv1.PolicyGroup{
		{Name: "owners", Threshold: 1, People: []string{string(orderstest.Olga.Person)}},
		{Name: "security", Threshold: 1, People: []string{string(orderstest.Adam.Person)}},
	}}
	doc := draft(twoGroups)
	wantCode(t, submit(w.Sign(orderstest.Mallory, doc)), protocol.CodeSignerUnknown)
	wantCode(t, submit(w.Sign(orderstest.Ian, doc)), protocol.CodeSignerUnknown)
	// A foreign service key would give disks to somebody else, a foreign log
	// would hide it, and a policy of another order is not this one's.
	_, foreignLog, err := note.GenerateKey(nil, "elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*approval.TrustPolicy){
		"service key": func(p *approval.TrustPolicy) { p.ServiceKeys = [][]byte{make([]byte, 32)} },
		"log":         func(p *approval.TrustPolicy) { p.LogKey = foreignLog },
		"order":       func(p *approval.TrustPolicy) { p.OrderID = "ORD-9999" },
	} {
		policy, err := approval.ParseTrustPolicy(draft(twoGroups).Payload)
		if err != nil {
			t.Fatal(err)
		}
		change(&policy)
		payload, err := policy.Encode()
		if err != nil {
			t.Fatal(err)
		}
		foreign := &lockboxv1.Document{Payload: payload, PayloadType: string(approval.KindPolicy)}
		if err := submit(w.SignAll(foreign, orderstest.Olga, orderstest.Adam)); protocol.CodeOf(err) != protocol.CodePolicyDigest {
			t.Errorf("foreign %s: %v", name, err)
		}
	}

	if err := submit(w.SignAll(doc, orderstest.Olga, orderstest.Adam)); err != nil {
		t.Fatal(err)
	}
	for name, people := range map[string][]string{
		"an engineer": {string(orderstest.Erin.Person)}, "another customer": {string(orderstest.Mallory.Person)}, "nobody": {"nobody@contoso.example"},
	} {
		in := &lockboxv1.DraftTrustPolicyRequest{Order: orderstest.Order, CustomerGroups: []*lockboxv1.PolicyGroup{{Name: "g", Threshold: 1, People: people}}}
		if _, err := w.Orders.DraftTrustPolicy(ctx, orderstest.Olga, in); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%s in a customer group: %v", name, err)
		}
	}

	// Version 2 has to be signed by the customers of version 1.
	two := draft(&lockboxv1.DraftTrustPolicyRequest{})
	if err := submit(w.Sign(orderstest.Olga, two)); err != nil || w.Order().TrustPolicyVersion != 1 {
		t.Fatalf("one of two signatures: %v, version %d", err, w.Order().TrustPolicyVersion)
	}
	if err := submit(w.SignAll(two, orderstest.Olga, orderstest.Adam)); err != nil {
		t.Fatal(err)
	}
	if o := w.Order(); o.TrustPolicyVersion != 2 || o.TrustPolicyDigest != two.Digest {
		t.Errorf("%+v", o)
	}
}

func TestConsentIsOnlyWhatWasDrafted(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	ctx := t.Context()
	doc, err := w.Orders.DraftConsent(ctx, orderstest.Olga, &lockboxv1.DraftConsentRequest{Order: orderstest.Order})
	if err != nil {
		t.Fatal(err)
	}
	submit := func(envelope []byte) error {
		_, err := w.Orders.SubmitConsent(ctx, orderstest.Olga, &lockboxv1.SubmitConsentRequest{Order: orderstest.Order, Envelope: envelope})
		return err
	}
	c, err := approval.ParseConsent(doc.Payload)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Disks) != 2 || len(c.Nodes) != 1 || c.Destinations[0].Endpoint != orderstest.Endpoint {
		t.Errorf("%+v", c)
	}
	c.Destinations[0].Endpoint = "file:///elsewhere"
	payload, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	other := &lockboxv1.Document{Payload: payload, PayloadType: string(approval.KindConsent)}
	wantCode(t, submit(w.Sign(orderstest.Olga, other)), protocol.CodeInvalid)
	wantCode(t, submit(w.Sign(orderstest.Ian, doc)), protocol.CodeSignerUnknown)
	if err := submit(w.Sign(orderstest.Adam, doc)); err != nil {
		t.Errorf("the control: %v", err)
	}
	wantCode(t, submit(w.Sign(orderstest.Adam, doc)), protocol.CodeConflict)
}

func TestTickets(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	ctx := t.Context()
	id := w.Ticket()
	found, err := w.Orders.FileTicket(ctx, orderstest.Staff, &lockboxv1.FileTicketRequest{Order: orderstest.Order, Title: "upload fails"})
	if err != nil || found.Origin != "provider-detected" || found.Id == id {
		t.Errorf("%v, %v", found, err)
	}
	_, err = w.Orders.FileTicket(ctx, orderstest.Olga, &lockboxv1.FileTicketRequest{Order: orderstest.Order, Title: "x", Origin: "provider-detected"})
	wantCode(t, err, protocol.CodeInvalid)
	_, err = w.Orders.AssignTicket(ctx, orderstest.Staff, &lockboxv1.AssignTicketRequest{Id: id, Engineer: string(orderstest.Olga.Person)})
	wantCode(t, err, protocol.CodeInvalid)
	for range 2 {
		if _, err = w.Orders.AssignTicket(ctx, orderstest.Staff, &lockboxv1.AssignTicketRequest{Id: id, Engineer: string(orderstest.Eve.Person), Escalate: true}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Orders.CommentTicket(ctx, orderstest.Olga, &lockboxv1.CommentTicketRequest{Id: id, Text: "hurry"}); err != nil {
		t.Fatal(err)
	}
	got, err := w.Orders.GetTicket(ctx, orderstest.Olga, &lockboxv1.GetTicketRequest{Id: id})
	if err != nil || got.Origin != "customer" || got.Owner != string(orderstest.Erin.Person) || !slices.Equal(got.EscalatedTo, []string{string(orderstest.Eve.Person)}) || len(got.History) != 5 {
		t.Errorf("%v, %v", got, err)
	}
}

// The names of a customer's files are for those who work for that customer.
func TestWhoMayReadTheNamesOfFiles(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	w.Halt()
	read := func(c auth.Caller, want protocol.Code) {
		t.Helper()
		_, err := w.Orders.GetManifest(t.Context(), c, &lockboxv1.GetManifestRequest{Order: orderstest.Order})
		wantCode(t, err, want)
		_, err = w.Orders.GetCopyLog(t.Context(), c, &lockboxv1.GetCopyLogRequest{Order: orderstest.Order})
		wantCode(t, err, want)
	}
	read(orderstest.Erin, protocol.CodeForbidden)
	id := w.Ticket() // Erin's
	for _, c := range []auth.Caller{orderstest.Admin, orderstest.Staff, orderstest.Olga, orderstest.Adam, orderstest.Erin} {
		read(c, "")
	}
	read(orderstest.Mallory, protocol.CodeNotFound)
	for _, c := range []auth.Caller{orderstest.Eve, orderstest.Ian, {Person: "aude@provider.example", Role: auth.Auditor}} {
		read(c, protocol.CodeForbidden)
	}
	_, err := w.Orders.AssignTicket(t.Context(), orderstest.Staff, &lockboxv1.AssignTicketRequest{Id: id, Engineer: string(orderstest.Eve.Person), Escalate: true})
	if err != nil {
		t.Fatal(err)
	}
	read(orderstest.Eve, "")
}

// Nobody but staff gives work to an engineer, above all no engineer to themself.
func TestOnlyStaffSayWhoWorksOnATicket(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	file := func(c auth.Caller, owner, origin string) (*lockboxv1.Ticket, error) {
		return w.Orders.FileTicket(t.Context(), c, &lockboxv1.FileTicketRequest{Order: orderstest.Order, Title: "x", Owner: owner, Origin: origin})
	}
	for _, c := range []auth.Caller{orderstest.Olga, orderstest.Adam, orderstest.Eve} {
		_, err := file(c, string(orderstest.Eve.Person), "")
		wantCode(t, err, protocol.CodeForbidden)
	}
	_, err := file(orderstest.Eve, "", orders.FromCustomer)
	wantCode(t, err, protocol.CodeInvalid)
	own, err := file(orderstest.Eve, "", "")
	if err != nil || own.Owner != "" || own.Origin != orders.ProviderDetected {
		t.Errorf("an engineer's ticket: %v, %v", own, err)
	}
	for _, c := range []auth.Caller{orderstest.Staff, orderstest.Admin} {
		given, err := file(c, string(orderstest.Eve.Person), orders.FromCustomer)
		if err != nil || given.Owner != string(orderstest.Eve.Person) {
			t.Errorf("the control, by %s: %v, %v", c.Role, given, err)
		}
	}
}

// Whatever belongs to a tenant is not found by another customer.
func TestForeignThingsAreNotFound(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	w.Halt()
	ticket := w.Ticket()
	ctx, s, order := t.Context(), w.Orders, orderstest.Order
	calls := map[string]func(auth.Caller) error{
		"GetTenant": func(c auth.Caller) error {
			_, err := s.GetTenant(ctx, c, &lockboxv1.GetTenantRequest{Id: orderstest.Tenant})
			return err
		},
		"CreateSubscription": func(c auth.Caller) error {
			_, err := s.CreateSubscription(ctx, c, &lockboxv1.CreateSubscriptionRequest{Tenant: orderstest.Tenant, SupportPlan: "Basic"})
			return err
		},
		"PlaceOrder": func(c auth.Caller) error {
			_, err := s.PlaceOrder(ctx, c, &lockboxv1.PlaceOrderRequest{
				Subscription: orderstest.Subscription, Sku: "databox",
				Destinations: []*lockboxv1.Destination{{Account: "contosodata", Endpoint: orderstest.Endpoint, Shares: []string{orderstest.Share}}},
			})
			return err
		},
		"GetOrder": func(c auth.Caller) error {
			_, err := s.GetOrder(ctx, c, &lockboxv1.GetOrderRequest{Id: order})
			return err
		},
		"DraftTrustPolicy": func(c auth.Caller) error {
			_, err := s.DraftTrustPolicy(ctx, c, &lockboxv1.DraftTrustPolicyRequest{Order: order})
			return err
		},
		"GetTrustPolicy": func(c auth.Caller) error {
			_, err := s.GetTrustPolicy(ctx, c, &lockboxv1.GetTrustPolicyRequest{Order: order})
			return err
		},
		"DraftConsent": func(c auth.Caller) error {
			_, err := s.DraftConsent(ctx, c, &lockboxv1.DraftConsentRequest{Order: order})
			return err
		},
		"GetCopyLog": func(c auth.Caller) error {
			_, err := s.GetCopyLog(ctx, c, &lockboxv1.GetCopyLogRequest{Order: order})
			return err
		},
		"GetManifest": func(c auth.Caller) error {
			_, err := s.GetManifest(ctx, c, &lockboxv1.GetManifestRequest{Order: order})
			return err
		},
		"StartJob": func(c auth.Caller) error {
			err := s.StartJob(ctx, c, &lockboxv1.StartJobRequest{Order: order}, silent)
			w.Nodes[0].Relock()
			return err
		},
		"GetDevice": func(c auth.Caller) error {
			_, err := s.GetDevice(ctx, c, &lockboxv1.GetDeviceRequest{Serial: orderstest.Serial})
			return err
		},
		"GetTicket": func(c auth.Caller) error {
			_, err := s.GetTicket(ctx, c, &lockboxv1.GetTicketRequest{Id: ticket})
			return err
		},
		"FileTicket": func(c auth.Caller) error {
			_, err := s.FileTicket(ctx, c, &lockboxv1.FileTicketRequest{Order: order, Title: "x"})
			return err
		},
		"CommentTicket": func(c auth.Caller) error {
			_, err := s.CommentTicket(ctx, c, &lockboxv1.CommentTicketRequest{Id: ticket, Text: "x"})
			return err
		},
		"RevokeConsent": func(c auth.Caller) error {
			_, err := s.RevokeConsent(ctx, c, &lockboxv1.RevokeConsentRequest{Order: order})
			return err
		},
	}
	for name, call := range calls {
		if err := call(orderstest.Mallory); protocol.CodeOf(err) != protocol.CodeNotFound {
			t.Errorf("%s by another customer: %v", name, err)
		}
	}
	for name, call := range calls {
		if err := call(orderstest.Olga); err != nil && name != "StartJob" {
			t.Errorf("%s by the customer: %v", name, err)
		}
	}
	lists := map[string]int{}
	if l, err := s.ListOrders(ctx, orderstest.Mallory, &lockboxv1.ListOrdersRequest{Tenant: orderstest.Tenant}); err == nil {
		lists["orders"] = len(l.Orders)
	}
	if l, err := s.ListDevices(ctx, orderstest.Mallory, &lockboxv1.ListDevicesRequest{}); err == nil {
		lists["devices"] = len(l.Devices)
	}
	if l, err := s.ListTickets(ctx, orderstest.Mallory, &lockboxv1.ListTicketsRequest{}); err == nil {
		lists["tickets"] = len(l.Tickets)
	}
	if l, err := s.ListTenants(ctx, orderstest.Mallory, &lockboxv1.ListTenantsRequest{}); err == nil {
		lists["tenants but their own"] = len(l.Tenants) - 1
	}
	for name, n := range lists {
		if n != 0 {
			t.Errorf("another customer sees %d %s", n, name)
		}
	}
	if len(lists) != 4 {
		t.Errorf("lists failed: %v", lists)
	}
}

// A node speaks for its own order only.
func TestReportsOfForeignOrdersAreRefused(t *testing.T) {
	w := newWorld(t, 1)
	w.ToDatacenter()
	node := w.Nodes[0].ID
	_, err := w.Orders.ReportJob(t.Context(), node, &devicev1.ReportJobRequest{Order: "ORD-9999", Event: "completed"})
	wantCode(t, err, protocol.CodeForbidden)
	_, err = w.Orders.ReportManifest(t.Context(), node, &devicev1.ReportManifestRequest{Order: "ORD-9999", State: "Succeeded"})
	wantCode(t, err, protocol.CodeForbidden)
	for name, in := range map[string]*devicev1.ReportJobRequest{
		"unknown event":  {Event: "exploded"},
		"code with junk": {Event: "halted", ErrorCodes: []string{"<script>"}},
		"junk log":       {Event: "halted", CopyLog: []byte("junk")},
	} {
		if _, err := w.Orders.ReportJob(t.Context(), node, in); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if o := w.Order(); o.Stage != "AtAzureDC" {
		t.Errorf("%+v", o)
	}
}
