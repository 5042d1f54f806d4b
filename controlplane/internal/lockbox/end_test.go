package lockbox_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Devices are told of a denial: approvals of the same request that somebody keeps
// back must open nothing. What another request has open stays open.
func TestDevicesAreToldOfADenial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		w := halted(t, 2, time.Now)
		defer w.run()()
		other := w.approved()
		denied, away := w.create(), w.create()
		if err := w.execute(orderstest.Erin, other.Id); err != nil {
			t.Fatal(err)
		}
		w.mustDecide(orderstest.Ian, denied.Id, "deny")
		w.wantStatus(denied.Id, lockbox.Denied)
		w.wantNodes(protocol.Unlocked)
		for _, n := range w.Nodes {
			if !n.Spent(denied.Statement.Digest) || n.Spent(other.Statement.Digest) {
				t.Errorf("node %s: spent %v, the other %v", n.ID, n.Spent(denied.Statement.Digest), n.Spent(other.Statement.Digest))
			}
		}
		w.Nodes[1].SetOffline(true)
		w.mustDecide(orderstest.Ian, away.Id, "deny")
		w.wantStatus(away.Id, lockbox.Denied) // it waits for no device
		w.Nodes[1].SetOffline(false)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if !w.Nodes[1].Spent(away.Statement.Digest) {
			t.Error("the device was not told when it was back")
		}
	})
}

// Somebody who can write to the store changes what a request asks for: nothing is
// decided or executed on it any more, and what it opened is locked.
func TestDamagedRecords(t *testing.T) {
	w := halted(t, 1, time.Now)
	approved := w.approved()
	for name, change := range map[string]string{
		"access":    `UPDATE requests SET access = 'delete' WHERE id = $1`,
		"disks":     `UPDATE requests SET disks = '["DBX0001/1 disk1"]' WHERE id = $1`,
		"shares":    `UPDATE requests SET shares = '["contosodata_AzFile"]' WHERE id = $1`,
		"engineer":  `UPDATE requests SET engineer_key = 'SHA256:other' WHERE id = $1`,
		"duration":  `UPDATE requests SET duration = duration * 2 WHERE id = $1`,
		"expiry":    `UPDATE requests SET expires = expires + 86400000 WHERE id = $1`,
		"statement": `UPDATE requests SET statement = X'7b7d' WHERE id = $1`,
	} {
		r := w.create()
		doc, err := w.lockbox.DraftDecision(t.Context(), w.as(orderstest.Ian), &lockboxv1.DraftDecisionRequest{Id: r.Id, Verdict: "approve"})
		if err != nil {
			t.Fatal(err)
		}
		storetest.Exec(t, w.Store, change, r.Id)
		_, err = w.lockbox.Decide(t.Context(), w.as(orderstest.Ian), &lockboxv1.DecideRequest{Id: r.Id, Envelope: w.Sign(orderstest.Ian, doc)})
		if protocol.CodeOf(err) != protocol.CodeInternal || w.get(r.Id).Status != string(lockbox.Error) {
			t.Errorf("%s: %v, the request is %s", name, err, w.get(r.Id).Status)
		}
	}
	if err := w.execute(orderstest.Erin, approved.Id); err != nil {
		t.Fatal(err)
	}
	storetest.Exec(t, w.Store, `UPDATE requests SET access = 'delete' WHERE id = $1`, approved.Id)
	wantCode(t, w.execute(orderstest.Erin, approved.Id), protocol.CodeInternal)
	w.wantStatus(approved.Id, lockbox.Error)
	w.wantNodes(protocol.Locked)
	wantCode(t, w.unlock(approved.Id), protocol.CodeRevoked)
	for op, want := range map[auditlog.Operation]int{auditlog.OpCancelRequest: 7, auditlog.OpRevokeRequest: 1} {
		found := 0
		for _, rec := range w.Records(op) {
			if rec.Result == auditlog.Failure && rec.Properties["reason"] == "record-damaged" {
				found++
			}
		}
		if found != want {
			t.Errorf("%d records of %s, want %d", found, op, want)
		}
	}
}

// A record that does not even say which disks it is about is locked and ended all
// the same.
func TestRevokingNeedsNoRecordOfDisks(t *testing.T) {
	for _, disks := range []string{`[]`, `["nonsense"]`, `["DBX0009/1 disk1"]`} {
		w := halted(t, 2, time.Now)
		r := w.approved()
		if err := w.execute(orderstest.Erin, r.Id); err != nil {
			t.Fatal(err)
		}
		storetest.Exec(t, w.Store, `UPDATE requests SET disks = $1 WHERE id = $2`, disks, r.Id)
		resp, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: r.Id})
		if err != nil || resp.Request.Status != string(lockbox.Revoked) {
			t.Errorf("%s: %v, %v", disks, resp, err)
		}
		w.wantNodes(protocol.Locked)
	}
}

// A state of another version is shown as Unknown, and nothing is done with it.
func TestUnknownStatesAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := halted(t, 1, time.Now, func(c *lockbox.Config) { c.Expiry = time.Hour })
		defer w.run()()
		r := w.approved()
		storetest.Exec(t, w.Store, `UPDATE requests SET status = 'Escalated' WHERE id = $1`, r.Id)
		w.wantStatus(r.Id, lockbox.Unknown)
		wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
		_, err := w.decide(orderstest.Adam, r.Id, "deny")
		wantCode(t, err, protocol.CodeConflict)
		_, err = w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: r.Id})
		wantCode(t, err, protocol.CodeConflict)
		time.Sleep(lockbox.DefaultDuration + time.Hour)
		synctest.Wait()
		w.wantStatus(r.Id, lockbox.Unknown)
	})
}
