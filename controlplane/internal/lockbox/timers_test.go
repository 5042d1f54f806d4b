package lockbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// wholeSecond moves the bubble's clock on to the next whole second.
func wholeSecond() {
	now := time.Now()
	time.Sleep(now.Truncate(time.Second).Add(time.Second).Sub(now))
}

func TestUnansweredRequestsExpireAtExactlyFourDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		w := halted(t, 1, time.Now)
		stop := w.run()
		defer stop()
		created := time.Now()
		early, late := w.create(), w.create()
		w.mustDecide(orderstest.Ian, late.Id, "approve")

		time.Sleep(lockbox.RequestExpiry - time.Since(created) - time.Millisecond)
		synctest.Wait()
		w.wantStatus(early.Id, lockbox.Initializing)
		w.wantStatus(late.Id, lockbox.Pending)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		w.wantStatus(early.Id, lockbox.Expired)
		w.wantStatus(late.Id, lockbox.Expired)
		records := w.Records(auditlog.OpRequestExpiry)
		if len(records) != 2 || !records[0].Time.Equal(created.Add(lockbox.RequestExpiry)) {
			t.Errorf("%d records of expiry, the first at %v, want %v", len(records), records[0].Time, created.Add(lockbox.RequestExpiry))
		}
		if _, err := w.decide(orderstest.Olga, late.Id, "approve"); protocol.CodeOf(err) != protocol.CodeConflict {
			t.Errorf("an expired request was decided on: %v", err)
		}
		w.deliver()
		subjects := strings.Join(w.mails(string(orderstest.Olga.Person)), "\n")
		for _, want := range []string{
			"Lockbox request 2: Unlock Databox on DBX0001 waits for your decision", "lockbox request show 2",
			"Lockbox request 2 is about to expire", "Lockbox request 2 has expired",
		} {
			if !strings.Contains(subjects, want) {
				t.Errorf("the customer was not told %q", want)
			}
		}
		if strings.Contains(subjects, "request 1 ") {
			t.Error("the customer was told of a request that never came to them")
		}
		if n := len(w.mails(string(orderstest.Erin.Person))); n != 4 {
			t.Errorf("the engineer was told %d times, want of two warnings and two expiries", n)
		}
		if n := len(w.mails("security@contoso.example")); n != 3 {
			t.Errorf("the alternate address was told %d times, want 3", n)
		}
	})
}

// What fell due while no daemon ran is done at the start, once, also by two.
func TestTimersFireOnceAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := halted(t, 1, time.Now)
		r := w.create()
		time.Sleep(lockbox.RequestExpiry + time.Hour)
		w.wantStatus(r.Id, lockbox.Initializing)

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		for range 3 {
			daemon := lockbox.New(w.config)
			go func() { done <- daemon.RunTimers(ctx) }()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		cancel()
		for range 3 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		w.wantStatus(r.Id, lockbox.Expired)
		if n := len(w.Records(auditlog.OpRequestExpiry)); n != 1 {
			t.Errorf("expired %d times", n)
		}
	})
}

// The timers of orders fire with those of requests.
func TestPendingErasureEndsByTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := halted(t, 1, time.Now)
		report := &devicev1.ReportJobRequest{Order: orderstest.Order, Event: "completed-with-errors", Job: &devicev1.JobStatus{FilesTotal: 1, FilesErrored: 1}}
		if _, err := w.Orders.ReportJob(t.Context(), w.Nodes[0].ID, report); err != nil {
			t.Fatal(err)
		}
		stop := w.run()
		defer stop()
		time.Sleep(14*24*time.Hour - time.Minute)
		synctest.Wait()
		if o := w.Order(); o.Status != orders.StatusPendingErasure {
			t.Errorf("before: %q", o.Status)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if o := w.Order(); o.Status != orders.StatusCompletedWithErrors {
			t.Errorf("after: %q", o.Status)
		}
	})
}

func TestAccessEndsWithItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		w := halted(t, 2, time.Now)
		stop := w.run()
		defer stop()
		r := w.approved()
		if err := w.execute(orderstest.Erin, r.Id); err != nil {
			t.Fatal(err)
		}
		end := time.Unix(r.AccessEnd, 0)
		time.Sleep(time.Until(end) - time.Millisecond)
		synctest.Wait()
		w.wantStatus(r.Id, lockbox.Approved)
		w.wantNodes(protocol.Unlocked)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		w.wantStatus(r.Id, lockbox.Completed)
		w.wantNodes(protocol.Locked)
		if !w.Nodes[0].Spent(r.Statement.Digest) {
			t.Error("the approval is not spent")
		}
		wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
	})
}

// An approved request that nobody executed ends with its window too, and a
// moment after the window nothing executes even if no timer has fired.
// A device that gives no answer holds up nothing that is due elsewhere.
func TestTimersDoNotWaitForADevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		w := halted(t, 1, time.Now)
		stop := w.run()
		defer stop()
		r := w.approved()
		if err := w.execute(orderstest.Erin, r.Id); err != nil {
			t.Fatal(err)
		}
		w.Nodes[0].Hang(true)
		end := time.Unix(r.AccessEnd, 0)
		storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
			return tx.SetTimer(ctx, "of another", "subject", end.Add(time.Second))
		})
		time.Sleep(time.Until(end) + 1500*time.Millisecond)
		synctest.Wait()
		w.wantStatus(r.Id, lockbox.Completing) // the device has not answered
		storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
			due, err := tx.DueTimers(ctx, time.Now(), 10)
			if len(due) > 0 {
				t.Errorf("%d timers wait for a device that does not answer", len(due))
			}
			return err
		})
	})
}

func TestWindowHoldsWithoutTimers(t *testing.T) {
	c := &clock{time.Now().Truncate(time.Second)}
	w := halted(t, 1, c.Now)
	r := w.approved()
	c.now = time.Unix(r.AccessEnd, 0)
	wantCode(t, w.execute(orderstest.Erin, r.Id), protocol.CodeNotApproved)
	c.advance(-time.Second)
	if err := w.execute(orderstest.Erin, r.Id); err != nil {
		t.Errorf("the control: %v", err)
	}
}

func TestSessionsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		w := halted(t, 1, time.Now)
		stop := w.run()
		defer stop()
		r := w.approved()
		s := w.session()
		if err := w.execute(orderstest.Erin, r.Id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(time.Unix(s.Expires, 0)) - time.Second)
		synctest.Wait()
		w.wantNodes(protocol.Unlocked)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		got, err := w.lockbox.GetSession(t.Context(), w.as(orderstest.Erin), &lockboxv1.GetSessionRequest{Id: s.Id})
		if err != nil || got.State != "expired" || len(w.Nodes[0].Sessions()) != 0 {
			t.Errorf("%v, %v, node has %v", got, err, w.Nodes[0].Sessions())
		}
		w.wantNodes(protocol.Locked)
		w.wantStatus(r.Id, lockbox.Completed)
	})
}

// A device that is away when access ends is told when it is back.
func TestDeviceIsToldWhenItIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		w := halted(t, 1, time.Now)
		stop := w.run()
		defer stop()
		r := w.approved()
		s := w.session()
		if err := w.execute(orderstest.Erin, r.Id); err != nil {
			t.Fatal(err)
		}
		w.Nodes[0].SetOffline(true)
		before := time.Now()
		resp, err := w.lockbox.RevokeRequest(t.Context(), w.as(orderstest.Olga), &lockboxv1.RevokeRequestRequest{Id: r.Id})
		if err != nil || resp.Relocked[0].Confirmed || resp.Relocked[0].LocksBy != before.Add(time.Minute).Unix() {
			t.Fatalf("%v, %v", resp, err)
		}
		w.wantStatus(r.Id, lockbox.Revoked) // no transient state waits for a device
		w.wantSession(s.Id, lockbox.SessionDisabled)
		if got := w.get(r.Id); got.LockConfirmed != 0 || got.LocksBy != resp.Relocked[0].LocksBy {
			t.Errorf("shown as locked at %d, by itself at %d", got.LockConfirmed, got.LocksBy)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := len(w.Records(auditlog.OpLockVolume)); n > 10 {
			t.Errorf("%d records about a device that is away for ten minutes", n)
		}
		w.wantNodes(protocol.Unlocked)
		w.Nodes[0].SetOffline(false)
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		w.wantNodes(protocol.Locked)
		if !w.Nodes[0].Spent(r.Statement.Digest) || len(w.Nodes[0].Sessions()) != 0 {
			t.Errorf("spent %v, sessions %v", w.Nodes[0].Spent(r.Statement.Digest), w.Nodes[0].Sessions())
		}
		w.wantStatus(r.Id, lockbox.Revoked)
		if got := w.get(r.Id); got.LockConfirmed == 0 || got.LocksBy != 0 {
			t.Errorf("shown as locked at %d, by itself at %d", got.LockConfirmed, got.LocksBy)
		}
		told := len(w.Nodes[0].Locks())
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if n := len(w.Nodes[0].Locks()); n != told {
			t.Errorf("the node was told %d times more after it had confirmed", n-told)
		}
	})
}

// A daemon that died between the store and the device is made up for.
func TestTransientStatesEnd(t *testing.T) {
	for transient, final := range map[lockbox.State]lockbox.State{lockbox.Revoking: lockbox.Revoked, lockbox.Completing: lockbox.Completed} {
		synctest.Test(t, func(t *testing.T) {
			w := halted(t, 1, time.Now)
			r := w.approved()
			if err := w.execute(orderstest.Erin, r.Id); err != nil {
				t.Fatal(err)
			}
			storetest.Exec(t, w.Store, `UPDATE requests SET status = $1 WHERE id = $2`, string(transient), r.Id)
			storetest.Exec(t, w.Store, `INSERT INTO timers (kind, subject, due, done) VALUES ('request-relock', $1, $2, 0)`, r.Id, time.Now().Add(30*time.Second).UnixMilli())
			stop := w.run()
			time.Sleep(time.Minute)
			synctest.Wait()
			stop()
			w.wantStatus(r.Id, final)
			w.wantNodes(protocol.Locked)
		})
	}
}

// Demonstrations expire after seconds, if so configured.
func TestConfiguredExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		w := halted(t, 1, time.Now, func(c *lockbox.Config) { c.Expiry = 5 * time.Second })
		stop := w.run()
		defer stop()
		r := w.create()
		time.Sleep(5*time.Second - time.Millisecond)
		synctest.Wait()
		w.wantStatus(r.Id, lockbox.Initializing)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		w.wantStatus(r.Id, lockbox.Expired)
	})
}
