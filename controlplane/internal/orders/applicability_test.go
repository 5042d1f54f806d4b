package orders_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// applicability returns "type: on" or "type: off: reason" of each resource.
func applicability(t *testing.T, w *orderstest.World, caller auth.Caller) []string {
	t.Helper()
	resp, err := w.Orders.ReportApplicability(t.Context(), caller, &lockboxv1.ReportApplicabilityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range resp.Resources {
		state := "on"
		if !r.On {
			state = "off: " + r.Reason
		}
		out = append(out, fmt.Sprintf("%s: %s", r.Type, state))
	}
	return out
}

func TestApplicability(t *testing.T) {
	w := newWorld(t, 2)
	// wantParts fails unless each line holds the text that stands in its place.
	wantParts := func(what string, parts ...string) {
		t.Helper()
		got := applicability(t, w, orderstest.Olga)
		if !slices.EqualFunc(got, parts, strings.Contains) {
			t.Errorf("%s: %q", what, got)
		}
	}
	w.ToDatacenter()
	if _, err := w.Orders.CreateSubscription(t.Context(), orderstest.Admin, &lockboxv1.CreateSubscriptionRequest{
		Tenant: orderstest.Tenant, SupportPlan: "Basic", Id: "00000000-0000-0000-0000-00000000ba51",
	}); err != nil {
		t.Fatal(err)
	}
	// says makes a node report that it holds a trust policy.
	says := func(node int, digest string) {
		t.Helper()
		report := w.Nodes[node].Report()
		report.Status.TrustPolicyDigest = digest
		if _, err := w.Orders.Heartbeat(t.Context(), w.Nodes[node].ID, report); err != nil {
			t.Fatal(err)
		}
	}
	says(0, w.Order().TrustPolicyDigest)
	says(1, w.Order().TrustPolicyDigest)
	small := "subscription: off: its support plan is Basic"
	wantParts("everything in place", small, "subscription: on", "order: on", "node: on", "node: on")

	if _, err := w.Orders.RevokeDevice(t.Context(), orderstest.Admin, &lockboxv1.RevokeDeviceRequest{Serial: orderstest.Serial, Node: 1, Reason: "lost"}); err != nil {
		t.Fatal(err)
	}
	says(1, "sha256:other")
	wantParts("a revoked node and one with another policy", small, "subscription: on", "order: on",
		"node: off: its certificate was ended", "node: off: it holds trust policy version")

	if _, err := w.Orders.DisableLockbox(t.Context(), orderstest.Olga, &lockboxv1.DisableLockboxRequest{Tenant: orderstest.Tenant}); err != nil {
		t.Fatal(err)
	}
	off := `off: Lockbox is off for the tenant`
	wantParts("Lockbox off", small, off, off, off, off)

	if got := applicability(t, w, orderstest.Mallory); len(got) != 0 {
		t.Errorf("a stranger sees %q", got)
	}
	_, err := w.Orders.ReportApplicability(t.Context(), orderstest.Mallory, &lockboxv1.ReportApplicabilityRequest{Tenant: orderstest.Tenant})
	wantCode(t, err, protocol.CodeNotFound)
}
