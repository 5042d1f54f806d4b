package lockbox_test

import (
	"bytes"
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// touched is what a node says of a request: one file of a size.
func (w *world) touched(n *orderstest.Node, request *lockboxv1.Request, begun, size int64) approval.Changes {
	return approval.Changes{
		Node: approval.NameOf(n.ID), NodeKey: n.Key.Public().(ed25519.PublicKey), RequestDigest: approval.Digest(request.Statement.Digest),
		Stage: approval.AtRelock, Begun: begun, Ended: begun + 60, MadeAt: begun + 60, Part: 1, Parts: 1, Added: 1,
		List: []approval.Change{{
			Kind: approval.Added, File: approval.NewFilePath("disk1", "contosodata_BlockBlob", "docs/new.txt"), After: &approval.FileState{Size: size},
		}},
	}
}

func (w *world) report(from *orderstest.Node, c approval.Changes, signer *orderstest.Node) error {
	w.t.Helper()
	envelope, err := approval.SignEd25519(c, signer.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.lockbox.ReportChanges(w.t.Context(), from.ID, &devicev1.ReportChangesRequest{Envelope: envelope})
	return err
}

func TestChangesAreTheNodesWord(t *testing.T) {
	w := halted(t, 2, time.Now)
	r := w.approved()
	one, two := w.Nodes[0], w.Nodes[1]
	said := w.touched(one, r, 1000, 5)
	for range 2 { // delivered again, because the answer was lost
		if err := w.report(one, said, one); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, w.report(two, said, one), protocol.CodeNode)
	wantCode(t, w.report(one, said, two), protocol.CodeSignatureInvalid)
	wantCode(t, w.report(one, w.touched(one, r, 1000, 6), one), protocol.CodeConflict)
	wantCode(t, w.report(one, func() approval.Changes {
		other := said
		other.RequestDigest = approval.DigestOf(nil)
		return other
	}(), one), protocol.CodeNotFound)
	if err := w.report(two, w.touched(two, r, 1000, 7), two); err != nil {
		t.Fatal(err)
	}

	resp, err := w.lockbox.GetChanges(t.Context(), w.as(orderstest.Olga), &lockboxv1.GetChangesRequest{Id: r.Id})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Parts) != 2 || resp.Next != 0 || resp.Parts[0].Node != 1 || !bytes.Contains(resp.Parts[0].Envelope, []byte("payload")) {
		t.Errorf("got %v", resp)
	}
	for who, code := range map[string]struct {
		caller auth.Caller
		code   protocol.Code
	}{
		"the engineer":         {orderstest.Erin, ""},
		"an approver":          {orderstest.Adam, ""},
		"an admin":             {orderstest.Admin, ""},
		"an internal approver": {orderstest.Ian, protocol.CodeForbidden},
		"another tenant": {auth.Caller{Person: "olga@fabrikam.example", Role: auth.Owner, Tenant: "fabrikam"},
			protocol.CodeNotFound},
		"another engineer": {auth.Caller{Person: "eve@provider.example", Role: auth.Engineer}, protocol.CodeForbidden},
	} {
		t.Run(who, func(t *testing.T) {
			_, err := w.lockbox.GetChanges(t.Context(), w.as(code.caller), &lockboxv1.GetChangesRequest{Id: r.Id})
			wantCode(t, err, code.code)
		})
	}

	records := w.Records(auditlog.OpReportChanges)
	if len(records) != 2 || records[0].CorrelationID != r.Id || !strings.HasPrefix(records[0].Properties["digest"], "sha256:") {
		t.Errorf("the log has %v", records)
	}
	if lines := w.get(r.Id).History; lines[len(lines)-1].What != "Changes Reported" {
		t.Errorf("the history ends with %v", lines[len(lines)-1])
	}
}

// TestChangesInManyParts reads more parts than one message carries.
func TestChangesInManyParts(t *testing.T) {
	w := halted(t, 1, time.Now)
	r, n := w.approved(), w.Nodes[0]
	const parts = 20
	for part := range parts {
		c := w.touched(n, r, 1000, int64(part))
		c.Part, c.Parts, c.Added = part+1, parts, parts
		if err := w.report(n, c, n); err != nil {
			t.Fatal(err)
		}
	}
	var got int
	for after := int64(0); ; {
		resp, err := w.lockbox.GetChanges(t.Context(), w.as(orderstest.Olga), &lockboxv1.GetChangesRequest{Id: r.Id, After: after})
		if err != nil {
			t.Fatal(err)
		}
		got += len(resp.Parts)
		if resp.Next == 0 {
			break
		}
		after = resp.Next
	}
	if got != parts {
		t.Errorf("got %d parts, want %d", got, parts)
	}
}
