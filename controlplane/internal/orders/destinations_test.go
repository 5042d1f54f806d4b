package orders_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// An account in the cloud lets nobody in by itself: its owner hands over what does,
// before anything is copied, and it is gone when the order is completed.
func TestAccessToDestinations(t *testing.T) {
	const account, blobs = "contosoblobs", "https://contosoblobs.blob.core.windows.net"
	w := newWorld(t, 1)
	w.More = []*lockboxv1.Destination{{Account: account, Endpoint: blobs, Shares: []string{account + "_BlockBlob"}}}
	w.ToDatacenter()
	start := func() error {
		return w.Orders.StartJob(t.Context(), orderstest.Staff, &lockboxv1.StartJobRequest{Order: orderstest.Order}, silent)
	}
	set := func(caller auth.Caller, account, credential string) (*lockboxv1.Order, error) {
		text := []byte(credential)
		o, err := w.Orders.SetDestinationAccess(t.Context(), caller, &lockboxv1.SetDestinationAccessRequest{Order: orderstest.Order, Account: account, Credential: text})
		if len(bytes.Trim(text, "\x00")) > 0 {
			t.Error("what was handed over was not wiped")
		}
		return o, err
	}
	if err := start(); protocol.CodeOf(err) != protocol.CodeConflict || !strings.Contains(err.Error(), "order destination set-credential "+orderstest.Order+" "+account) {
		t.Fatalf("without a credential: %v", err)
	}
	const signature = "sv=2023-11-03&sp=rwc&sr=c&se=2050-01-01T00:00:00Z&sig=c2lnbmF0dXJl"
	foreigner := orderstest.Olga
	foreigner.Tenant = "fabrikam"
	for _, test := range []struct {
		who     auth.Caller
		account string
		code    protocol.Code
	}{
		{orderstest.Staff, account, protocol.CodeForbidden}, {foreigner, account, protocol.CodeNotFound},
		{orderstest.Olga, "contosodata", protocol.CodeInvalid}, // a folder
		{orderstest.Olga, "nobodys", protocol.CodeInvalid},
	} {
		_, err := set(test.who, test.account, signature)
		wantCode(t, err, test.code)
	}
	o, err := set(orderstest.Olga, account, signature)
	if err != nil {
		t.Fatal(err)
	}
	if d := o.Destinations[1]; d.Access == nil || d.Access.Kind != "SharedAccessSignature" || d.Access.Allows != "sp=rwc sr=c" || d.Access.Expires == 0 || strings.Contains(o.String(), "c2lnbmF0dXJl") {
		t.Errorf("the order shows %v", o.Destinations)
	}
	if o.Destinations[0].Access != nil {
		t.Errorf("a folder shows %v", o.Destinations[0].Access)
	}
	if o, err = w.Orders.RemoveDestinationAccess(t.Context(), orderstest.Olga, &lockboxv1.RemoveDestinationAccessRequest{Order: orderstest.Order, Account: account}); err != nil || o.Destinations[1].Access != nil {
		t.Errorf("removed: %v, %v", o.GetDestinations(), err)
	}
	wantCode(t, start(), protocol.CodeConflict)
	if _, err := set(orderstest.Olga, account, signature); err != nil {
		t.Fatal(err)
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	for _, event := range []string{"halted", "completed-with-warnings"} {
		_, err := w.Orders.ReportJob(t.Context(), w.Nodes[0].ID, &devicev1.ReportJobRequest{Order: orderstest.Order, Event: event, Job: &devicev1.JobStatus{FilesTotal: 1}})
		if err != nil {
			t.Fatal(err)
		}
		o, err := w.Orders.GetOrder(t.Context(), orderstest.Olga, &lockboxv1.GetOrderRequest{Id: orderstest.Order})
		if err != nil || (o.Destinations[1].Access != nil) != (event == "halted") {
			t.Errorf("%s: %v, %v", event, o.GetDestinations(), err)
		}
	}
	if gone := w.Records(auditlog.OpDeleteAccess); len(gone) != 2 || gone[1].Caller != string(auth.SystemCaller().Person) {
		t.Errorf("recorded: %+v", gone)
	}
	_, err = set(orderstest.Olga, account, signature)
	wantCode(t, err, protocol.CodeConflict)
}

// Nothing is uploaded to Azure Files: that is said when the order is placed.
func TestAzureFilesAreRefused(t *testing.T) {
	w := newWorld(t, 1)
	w.People()
	w.Enable()
	for _, test := range []struct {
		endpoint, share string
		ok              bool
	}{
		{"https://contosofiles.blob.core.windows.net", "contosofiles_AzFile", false},
		{"https://contosofiles.file.core.windows.net", "contosofiles_BlockBlob", false},
		{"https://contosofiles.blob.core.windows.net", "contosofiles_PageBlob", true},
		{"file:///srv/files", "contosofiles_AzFile", true},
	} {
		_, err := w.Orders.PlaceOrder(t.Context(), orderstest.Olga, &lockboxv1.PlaceOrderRequest{
			Subscription: orderstest.Subscription, Sku: "databox",
			Destinations: []*lockboxv1.Destination{{Account: "contosofiles", Endpoint: test.endpoint, Shares: []string{test.share}}},
		})
		if test.ok && err != nil || !test.ok && (protocol.CodeOf(err) != protocol.CodeInvalid || !strings.Contains(err.Error(), "Azure Files")) {
			t.Errorf("%s to %s: %v", test.share, test.endpoint, err)
		}
	}
}
