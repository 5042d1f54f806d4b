package lockbox_test

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (w *world) set(expiry, access time.Duration) {
	w.t.Helper()
	_, err := w.Orders.SetTenant(w.t.Context(), orderstest.Olga, &lockboxv1.SetTenantRequest{
		Tenant: orderstest.Tenant, RequestExpirySeconds: int64(expiry / time.Second), AccessSeconds: int64(access / time.Second),
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// What a tenant has set holds from the next request on; the device's own maximum
// still rules.
func TestTimesOfATenant(t *testing.T) {
	w := halted(t, 1, time.Now)
	old := w.create()
	w.set(time.Hour, 30*time.Minute)
	r := w.create()
	if r.Expires-r.Created != 3600 || r.DurationSeconds != 1800 {
		t.Errorf("it waits %d s and lasts %d s", r.Expires-r.Created, r.DurationSeconds)
	}
	in := w.ask()
	in.DurationSeconds = 1801
	_, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	wantCode(t, err, protocol.CodeJITBlocked)
	if got := w.get(old.Id); got.Expires-got.Created != 4*24*3600 || got.DurationSeconds != 8*3600 {
		t.Errorf("the earlier request waits %d s and lasts %d s now", got.Expires-got.Created, got.DurationSeconds)
	}

	w.set(0, 24*time.Hour) // the trust policy gives eight hours
	if r := w.create(); r.DurationSeconds != 8*3600 || r.Expires-r.Created != 3600 {
		t.Errorf("it waits %d s and lasts %d s", r.Expires-r.Created, r.DurationSeconds)
	}
	in.DurationSeconds = 12 * 3600
	_, err = w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	wantCode(t, err, protocol.CodeInvalid)
	w.replacePolicy(&lockboxv1.DraftTrustPolicyRequest{MaxDurationSeconds: 24 * 3600})
	got, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), in)
	if err != nil || got.DurationSeconds != 12*3600 {
		t.Errorf("the control: %v, %v", got, err)
	}
}

// Both sides are warned before a request expires and before an access ends, once.
func TestWarnings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wholeSecond()
		w := halted(t, 1, time.Now, func(c *lockbox.Config) { c.Expiry = 24 * time.Hour })
		defer w.run()()
		count := func(who, title string) (n int) {
			for _, mail := range w.mails(who) {
				if strings.Contains(mail, title) {
					n++
				}
			}
			return n
		}
		want := func(title string, counts map[string]int) {
			t.Helper()
			synctest.Wait()
			w.deliver()
			for who, n := range counts {
				if got := count(who, title); got != n {
					t.Errorf("%s was told %d times that %q, want %d", who, got, title, n)
				}
			}
		}
		erin, ian, olga := string(orderstest.Erin.Person), string(orderstest.Ian.Person), string(orderstest.Olga.Person)
		w.create()
		w.mustDecide(orderstest.Ian, w.create().Id, "approve")
		last := w.approved()
		end := time.Unix(last.AccessEnd, 0)
		time.Sleep(time.Until(end.Add(-31*time.Minute)) - time.Second)
		want("ends soon", map[string]int{erin: 0, olga: 0}) // takes the minute
		time.Sleep(time.Second)
		want("ends soon", map[string]int{erin: 1, olga: 1, ian: 0})
		if count(erin, "lockbox request extend 3") != 1 {
			t.Error("the engineer is not told how to ask for more time")
		}

		time.Sleep(18*time.Hour - time.Since(time.Unix(last.Created, 0)) - time.Minute - time.Second)
		want("request 1 is about to expire", map[string]int{erin: 0, ian: 0, olga: 0})
		time.Sleep(time.Second)
		want("request 1 is about to expire", map[string]int{erin: 1, ian: 1, olga: 0})
		want("request 2 is about to expire", map[string]int{erin: 1, ian: 0, olga: 1})
		time.Sleep(24 * time.Hour)
		want("about to expire", map[string]int{erin: 2, ian: 1, olga: 1})
		want("ends soon", map[string]int{erin: 1, olga: 1})
	})
}

// A clock that is set, forwards or back, has every timer fire once: forwards
// within ten seconds, back not again.
func TestClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var offset atomic.Int64
		now := func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) }
		w := halted(t, 1, now)
		defer w.run()()
		r := w.create()
		time.Sleep(time.Hour)
		offset.Store(int64(-30 * 24 * time.Hour))
		time.Sleep(time.Hour)
		synctest.Wait()
		w.wantStatus(r.Id, lockbox.Initializing)
		offset.Store(int64(lockbox.RequestExpiry))
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		w.wantStatus(r.Id, lockbox.Expired)
		offset.Store(0) // before the expiry again
		time.Sleep(lockbox.RequestExpiry + time.Hour)
		synctest.Wait()
		w.wantStatus(r.Id, lockbox.Expired)
		if n := len(w.Records(auditlog.OpRequestExpiry)); n != 1 {
			t.Errorf("expired %d times", n)
		}
	})
}

// Whatever became of its timer, no request stays in a state that does not last:
// each is left, by the time that it promises, after a restart.
func TestEveryTransientStateHasAWayOut(t *testing.T) {
	for _, test := range []struct {
		state, final lockbox.State
		wait         time.Duration
	}{
		{lockbox.Initializing, lockbox.Expired, time.Hour},
		{lockbox.Pending, lockbox.Expired, time.Hour},
		{lockbox.Approving, lockbox.Expired, time.Hour},
		{lockbox.Denying, lockbox.Denied, time.Minute},
		{lockbox.Approved, lockbox.Completed, lockbox.DefaultDuration},
		{lockbox.Revoking, lockbox.Revoked, time.Minute},
		{lockbox.Completing, lockbox.Completed, time.Minute},
	} {
		for _, offline := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, offline %v", test.state, offline), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := halted(t, 1, time.Now, func(c *lockbox.Config) { c.Expiry = time.Hour })
					r := w.approved()
					storetest.Exec(t, w.Store, `UPDATE requests SET status = $1 WHERE id = $2`, string(test.state), r.Id)
					storetest.Exec(t, w.Store, `DELETE FROM timers`)
					w.Nodes[0].SetOffline(offline)
					defer w.run()()
					time.Sleep(test.wait)
					synctest.Wait()
					time.Sleep(time.Second)
					synctest.Wait()
					w.wantStatus(r.Id, test.final)
				})
			})
		}
	}
}

// Two services with stores of their own over one file fire each timer once.
func TestTwoDaemonsOnOneStore(t *testing.T) {
	c := &clock{time.Now().Truncate(time.Second)}
	w := halted(t, 1, c.Now)
	const requests = 20
	for range requests {
		w.create()
	}
	w.approved()
	later := c.now.Add(lockbox.RequestExpiry)
	var all sync.WaitGroup
	for range 2 {
		cfg := w.config
		cfg.Store, cfg.Now = storetest.Open(t, w.Store.Path()), func() time.Time { return later }
		cfg.Notify = must(notify.New(notify.Config{Store: cfg.Store, Dir: t.TempDir(), Now: cfg.Now, Logger: zerolog.Nop()}))(t)
		all.Go(func() {
			if err := lockbox.New(cfg).FireDue(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	w.wantFiredOnce(requests)
}

// wantFiredOnce fails unless so many requests have expired, and the access of one
// more has ended, each once.
func (w *world) wantFiredOnce(requests int) {
	w.t.Helper()
	expired := map[string]int{}
	for _, rec := range w.Records(auditlog.OpRequestExpiry) {
		expired[rec.CorrelationID]++
	}
	for id, n := range expired {
		if n != 1 {
			w.t.Errorf("request %s expired %d times", id, n)
		}
		w.wantStatus(id, lockbox.Expired)
	}
	if len(expired) != requests || len(w.Records(auditlog.OpCompleteRequest)) != 1 {
		w.t.Errorf("%d requests expired and %d accesses ended, want %d and 1", len(expired), len(w.Records(auditlog.OpCompleteRequest)), requests)
	}
}

// timerStore is the variable that names the store to a process that only fires
// its timers.
const timerStore = "LOCKBOX_TEST_TIMERS_OF"

// logKey is the key of the log of a store that several processes open.
var logKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// timersOf is a service on a store that can do what timers ask of the store.
func timersOf(t *testing.T, s *store.Store) (*lockbox.Service, *audit.Service) {
	t.Helper()
	log := must(audit.New(t.Context(), audit.Config{Store: s, Key: logKey}))(t)
	outbox := must(notify.New(notify.Config{Store: s, Dir: t.TempDir(), Logger: zerolog.Nop()}))(t)
	return lockbox.New(lockbox.Config{Store: s, Audit: log, Notify: outbox, Logger: zerolog.Nop()}), log
}

// TestTimerProcess is one of the processes of [TestTwoProcessesOnOneStore].
func TestTimerProcess(t *testing.T) {
	path := os.Getenv(timerStore)
	if path == "" {
		return
	}
	s, _ := timersOf(t, storetest.Open(t, path))
	if err := os.WriteFile(fmt.Sprintf("%s.ready-%d", path, os.Getpid()), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, path+".ready-*", 2) // both begin at once
	if err := s.FireDue(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// waitFor waits until so many files match.
func waitFor(t *testing.T, pattern string, n int) {
	t.Helper()
	for range 10_000 {
		if files, err := filepath.Glob(pattern); err != nil || len(files) == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the other process did not begin")
}

// Two processes over one file fire each timer once.
func TestTwoProcessesOnOneStore(t *testing.T) {
	const requests = 100
	s := storetest.New(t)
	storetest.Fill(t, s, time.Now(), 1)
	_, log := timersOf(t, s)
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
		for n := range int64(requests) {
			id := protocol.RequestID(fmt.Sprintf("LockboxRequest_%d", n))
			r := store.Request{
				ID: id, Number: n + 1, Status: string(lockbox.Pending), Tenant: storetest.Tenant, Subscription: storetest.Subscription,
				Order: storetest.Order, Ticket: storetest.Ticket, Serial: storetest.Serial, Engineer: storetest.Engineer,
				Statement: []byte("{}"), StatementDigest: string(id), Created: time.Now(), Expires: time.Now().Add(time.Hour),
			}
			timer := "request-expiry"
			if n%2 == 0 {
				timer = "request-warning" // which leaves the request as it is
			}
			if err := errors.Join(tx.InsertRequest(ctx, &r), tx.SetTimer(ctx, timer, string(id), r.Created)); err != nil {
				return err
			}
		}
		return nil
	})
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTimerProcess$", "-test.v")
			cmd.Env = append(os.Environ(), timerStore+"="+s.Path())
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
	expired := map[string]int{}
	err := s.View(t.Context(), func(tx *store.Tx) error {
		rows, err := tx.AuditRows(t.Context(), store.AuditFilter{Operation: string(auditlog.OpRequestExpiry), Limit: 10_000})
		for _, row := range rows {
			expired[row.Correlation]++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, n := range expired {
		if n != 1 {
			t.Errorf("request %s expired %d times", id, n)
		}
	}
	if len(expired) != requests/2 {
		t.Errorf("%d requests expired, want %d", len(expired), requests/2)
	}
	if n := countNotices(t, s, string(notify.ExpiryWarning)); n != requests/2 {
		t.Errorf("%d warnings, want %d", n, requests/2)
	}
	if _, err := log.Checkpoint(t.Context()); err != nil { // the log of both is one
		t.Error(err)
	}
}

// countNotices counts what the engineer was told, as somebody who reads the file.
func countNotices(t *testing.T, s *store.Store, kind string) (n int) {
	t.Helper()
	db := must(sql.Open("sqlite", "file:"+s.Path()))(t)
	defer db.Close()
	if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM notices WHERE kind = $1`, kind).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
