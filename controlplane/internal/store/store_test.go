package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// at returns a time that survives storing: whole milliseconds, UTC.
func at(n int64) time.Time { return time.UnixMilli(1_790_000_000_000 + n).UTC() }

var node = protocol.NodeID{Serial: storetest.Serial, Node: 1}

// same inserts a row that has every field set, reads it back, and compares.
func same[T any](t *testing.T, s *store.Store, want T, insert func(context.Context, *store.Tx, *T) error, read func(context.Context, *store.Tx) (T, error)) {
	t.Helper()
	v := reflect.ValueOf(want)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && name != "Rev" && name != "Index" {
			t.Errorf("%T.%s is not set: the test would not see it mixed up", want, name)
		}
	}
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error { return insert(ctx, tx, &want) })
	var got T
	err := s.View(t.Context(), func(tx *store.Tx) (err error) { got, err = read(t.Context(), tx); return err })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%T came back changed (-want +got):\n%s", want, diff)
	}
}

func first[T any](list []T, err error) (T, error) {
	var zero T
	if err != nil || len(list) == 0 {
		return zero, errors.Join(err, fmt.Errorf("%d rows", len(list)))
	}
	return list[0], nil
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	s := storetest.New(t)
	storetest.Fill(t, s, at(0), 1)
	type ctx = context.Context
	type tx = *store.Tx

	same(t, s, store.Tenant{ID: "t", Name: "n", LockboxEnabled: true, WithoutLockbox: "deny", RequestExpiry: time.Hour, AccessTime: 2 * time.Hour, Created: at(1)},
		func(c ctx, x tx, r *store.Tenant) error { return x.InsertTenant(c, r) },
		func(c ctx, x tx) (store.Tenant, error) { return x.Tenant(c, "t") })
	same(t, s, store.Subscription{ID: "s", Tenant: "t", SupportPlan: "Standard", Notify: []string{"a@b", "c@d"}, Created: at(1)},
		func(c ctx, x tx, r *store.Subscription) error { return x.InsertSubscription(c, r) },
		func(c ctx, x tx) (store.Subscription, error) { return x.Subscription(c, "s") })
	same(t, s, store.Person{Name: "p", Role: "owner", Tenant: "t", Created: at(1), Removed: at(2), Groups: []string{"g", "h"}},
		func(c ctx, x tx, r *store.Person) error { return x.InsertPerson(c, r) },
		func(c ctx, x tx) (store.Person, error) { return x.Person(c, "p") })
	same(t, s, store.ContactRequest{ID: "c", Tenant: "t", Order: "o", Requester: "p", Reason: "r", State: "asked", Created: at(1), Expires: at(2), DecidedBy: "q", Decided: at(3), LastRead: at(4)},
		func(c ctx, x tx, r *store.ContactRequest) error { return x.InsertContactRequest(c, r) },
		func(c ctx, x tx) (store.ContactRequest, error) { return x.ContactRequest(c, "c") })
	same(t, s, store.JITPolicies{ID: 1, Digest: "sha256:x", Files: []byte(`{"a":"b"}`), Since: at(1)},
		func(c ctx, x tx, r *store.JITPolicies) error { return x.InsertJITPolicies(c, r) },
		func(c ctx, x tx) (store.JITPolicies, error) { return x.JITPolicies(c, "sha256:x") })
	same(t, s, store.PersonKey{Fingerprint: "SHA256:x", Tenant: "t", Person: "p", PublicKey: "ssh-ed25519 AAAA", Created: at(1)},
		func(c ctx, x tx, r *store.PersonKey) error { return x.InsertPersonKey(c, r) },
		func(c ctx, x tx) (store.PersonKey, error) { return first(x.PersonKeys(c, "p")) })
	same(t, s, store.LoginToken{ID: "l", Person: "p", SecretHash: []byte{1}, Created: at(1), Expires: at(2), Used: at(3), Failures: 4, LockedUntil: at(5)},
		func(c ctx, x tx, r *store.LoginToken) error { return x.InsertLoginToken(c, r) },
		func(c ctx, x tx) (store.LoginToken, error) { return x.LoginToken(c, "l") })
	same(t, s, store.Order{
		ID: "o", Subscription: "s", Tenant: "t", SKU: "databox", Stage: "DataCopy", Status: "Data copy halted", Serial: "DBX0009",
		Destinations:       []store.Destination{{Account: "a", Endpoint: "file:///x", Shares: []string{"a_BlockBlob"}}},
		TrustPolicyVersion: 1, TrustPolicyDigest: "sha256:p", Consent: "CON-1", ConsentDigest: "sha256:c", JobState: "halted",
		ErrorCodes: []string{"E1", "E2"}, FilesTotal: 2, FilesDone: 3, FilesErrored: 4, BytesDone: 5, Created: at(1), Updated: at(2),
	},
		func(c ctx, x tx, r *store.Order) error { return x.InsertOrder(c, r) },
		func(c ctx, x tx) (store.Order, error) { return x.OrderOfDevice(c, "DBX0009") })
	same(t, s, store.StorageAccount{Account: "a", Endpoint: "file:///x", Tenant: "t", Created: at(1)},
		func(c ctx, x tx, r *store.StorageAccount) error { return x.InsertStorageAccount(c, r) },
		func(c ctx, x tx) (store.StorageAccount, error) { return first(x.StorageAccounts(c)) })
	same(t, s, store.Node{
		ID: protocol.NodeID{Serial: "DBX0009", Node: 2}, Order: "o", KeyFingerprint: "sha256:k", SPKI: []byte{1}, CertSerial: "ab", CertExpires: at(1),
		SSHHostKey: []byte{2}, Enrolled: at(2), Revoked: at(3), LastSeen: at(4), Status: []byte{3}, LogSize: 5, ChainSize: 6, ChainCheckpoint: []byte{7},
	},
		func(c ctx, x tx, r *store.Node) error { return x.InsertNode(c, r) },
		func(c ctx, x tx) (store.Node, error) { return first(x.NodesOfOrder(c, "o")) })
	nine := protocol.NodeID{Serial: "DBX0009", Node: 2}
	same(t, s, store.Disk{Node: nine, ID: "disk1", Order: "o", VolumeGUID: "{g}", Created: at(1)},
		func(c ctx, x tx, r *store.Disk) error { return x.InsertDisk(c, r) },
		func(c ctx, x tx) (store.Disk, error) { return first(x.DisksOfNode(c, nine)) })
	same(t, s, store.DiskKey{Node: nine, Disk: "disk1", Kind: store.ExternalKey, Order: "o", Tenant: "t", Wrapper: "w", Wrapped: []byte{9}, Created: at(1)},
		func(c ctx, x tx, r *store.DiskKey) error { return x.InsertDiskKey(c, r) },
		func(c ctx, x tx) (store.DiskKey, error) { return x.DiskKey(c, nine, "disk1", store.ExternalKey) })
	same(t, s, store.OrderKey{Order: "o", Tenant: "t", Customer: true, Wrapper: "w", Wrapped: []byte{9}, Created: at(1)},
		func(c ctx, x tx, r *store.OrderKey) error { return x.InsertOrderKey(c, r) },
		func(c ctx, x tx) (store.OrderKey, error) { return x.OrderKey(c, "o") })
	same(t, s, store.DestinationAccess{
		Order: "o", Account: "a", Endpoint: "https://a", Tenant: "t", Kind: store.AccountKey, Detail: "d", Expires: at(1), Person: "p", Created: at(2), Wrapped: []byte{9},
	},
		func(c ctx, x tx, r *store.DestinationAccess) error { return x.InsertDestinationAccess(c, r) },
		func(c ctx, x tx) (store.DestinationAccess, error) { return first(x.DestinationAccess(c, "o")) })
	same(t, s, store.Erasure{Order: "o", Since: at(1)},
		func(c ctx, x tx, r *store.Erasure) error { return x.AddErasure(c, r.Order, r.Since) },
		func(c ctx, x tx) (store.Erasure, error) { return first(x.Erasures(c)) })
	same(t, s, store.KeyRotation{ID: 1, Target: "w", Person: "p", Total: 1, Done: 2, Problem: "x", Started: at(1), Finished: at(2)},
		func(c ctx, x tx, r *store.KeyRotation) error { return x.InsertKeyRotation(c, r) },
		func(c ctx, x tx) (store.KeyRotation, error) { return x.LastKeyRotation(c) })
	same(t, s, store.JoinToken{ID: "j", SecretHash: []byte{1}, Order: "o", Node: nine, Replaces: true, CreatedBy: "p", Created: at(1), Expires: at(2), Used: at(3), Failures: 4, LockedUntil: at(5), Refusals: 6},
		func(c ctx, x tx, r *store.JoinToken) error { return x.InsertJoinToken(c, r) },
		func(c ctx, x tx) (store.JoinToken, error) { return x.JoinToken(c, "j") })
	same(t, s, store.TrustPolicy{Order: "o", Version: 1, Digest: "sha256:p", Payload: []byte{1}, Envelope: []byte{2}, Created: at(1)},
		func(c ctx, x tx, r *store.TrustPolicy) error { return x.InsertTrustPolicy(c, r) },
		func(c ctx, x tx) (store.TrustPolicy, error) { return x.TrustPolicy(c, "o", "") })
	same(t, s, store.Consent{ID: "CON-1", Order: "o", Digest: "sha256:c", Payload: []byte{1}, Envelope: []byte{2}, Created: at(1), Expires: at(2), Signed: at(3), Revoked: at(4)},
		func(c ctx, x tx, r *store.Consent) error { return x.InsertConsent(c, r) },
		func(c ctx, x tx) (store.Consent, error) { return x.ConsentByDigest(c, "sha256:c") })
	same(t, s, store.Manifest{Serial: "DBX0009", Node: 2, Disk: "disk1", Share: "sh", Version: 1, Order: "o", BOM: []byte{1}, Digest: "d", PreviousDigest: "e", Difference: "f", Request: "r", Time: at(1)},
		func(c ctx, x tx, r *store.Manifest) error { return x.InsertManifest(c, r) },
		func(c ctx, x tx) (store.Manifest, error) { return first(x.Manifests(c, "o")) })
	same(t, s, store.ErasureCertificate{Order: "o", Node: 2, KeyFingerprint: "k", Digest: "sha256:d", Envelope: []byte{1}, Time: at(1)},
		func(c ctx, x tx, r *store.ErasureCertificate) error { return x.InsertErasureCertificate(c, r) },
		func(c ctx, x tx) (store.ErasureCertificate, error) { return first(x.ErasureCertificates(c, "o")) })
	same(t, s, store.CopyLog{Order: "o", Node: nine, State: "halted", Time: at(1), XML: []byte("<x/>")},
		func(c ctx, x tx, r *store.CopyLog) error { return x.PutCopyLog(c, r) },
		func(c ctx, x tx) (store.CopyLog, error) { return first(x.CopyLogs(c, "o")) })
	same(t, s, store.Ticket{ID: "SR-9", Order: "o", Tenant: "t", Title: "x", Origin: "customer", Owner: "p", EscalatedTo: []protocol.Person{"q"}, Created: at(1)},
		func(c ctx, x tx, r *store.Ticket) error { return x.InsertTicket(c, r) },
		func(c ctx, x tx) (store.Ticket, error) { return first(x.Tickets(c, "t", "o")) })
	same(t, s, store.Session{ID: "SES-1", Node: nine, Order: "o", Tenant: "t", Ticket: "SR-9", Engineer: "p", KeyFingerprint: "k", HostKey: []byte{1}, State: "enabled", Created: at(1), Expires: at(2), Ended: at(3), EndReason: "done"},
		func(c ctx, x tx, r *store.Session) error { return x.InsertSession(c, r) },
		func(c ctx, x tx) (store.Session, error) {
			return first(x.Sessions(c, store.SessionFilter{Tenant: "t", Serial: "DBX0009", Engineer: "p", State: "enabled"}))
		})
	same(t, s, store.Request{
		ID: "R", Number: 1, Action: "Unlock Databox", Status: "Pending", Tenant: "t", Subscription: "s", Order: "o", Ticket: "SR-9", Serial: "DBX0009",
		Disks: []string{"DBX0009/2 disk1"}, Engineer: "p", EngineerKey: "k", ReasonCode: "rc", Justification: "j", Access: "read-only", Purpose: protocol.SupportAccess,
		Duration: time.Hour, ResourceID: "/x", Evaluation: []byte{1}, Statement: []byte{2}, StatementDigest: "sha256:s", TrustPolicyDigest: "sha256:p",
		Notified: []string{"n"}, Created: at(1), Expires: at(2), AccessStart: at(3), AccessEnd: at(4), Executed: at(5), Closed: at(6), CloseReason: "c",
		Shares: []string{"a_BlockBlob"}, Extends: "R0", RaisedAgain: "R1", LockConfirmed: at(7), LocksBy: at(8),
	},
		func(c ctx, x tx, r *store.Request) error { return x.InsertRequest(c, r) },
		func(c ctx, x tx) (store.Request, error) { return x.RequestByDigest(c, "sha256:s") })
	same(t, s, store.RequestChanges{Request: "R", Node: 2, Begun: at(1), Stage: "relock", Part: 1, Digest: "sha256:d", Envelope: []byte{1}, Time: at(2)},
		func(c ctx, x tx, r *store.RequestChanges) error { return x.InsertRequestChanges(c, r) },
		func(c ctx, x tx) (store.RequestChanges, error) { return first(x.RequestChanges(c, "R", 0, 1)) })
	same(t, s, store.Recording{
		ID: "REC-1", Kind: "session", Node: nine, Tenant: "t", Order: "o", Session: "SES-1", Request: "R", Engineer: "p", Ticket: "SR-9", Began: at(1), Ended: at(2),
		Reason: "end", Size: 3, Digest: "sha256:r", NodeKey: "sha256:k", State: store.RecordingComplete, Problem: "x", Logged: true,
		Parts: store.Parts{Whole: "REC-0", Part: 2, Before: "REC-0", BeforeDigest: "sha256:b", Next: "REC-2"},
	},
		func(c ctx, x tx, r *store.Recording) error { return x.InsertRecording(c, r) },
		func(c ctx, x tx) (store.Recording, error) {
			return first(x.Recordings(c, store.RecordingFilter{Tenant: "t", Serial: "DBX0009", Session: "SES-1", Engineer: "p", State: store.RecordingComplete, Before: at(3), Limit: 1}))
		})
	same(t, s, store.RequestComment{Request: "R", Number: 1, ReplyTo: 2, Person: "p", Side: "customer", Question: true, Text: "t", Created: at(1)},
		func(c ctx, x tx, r *store.RequestComment) error { return x.InsertRequestComment(c, r) },
		func(c ctx, x tx) (store.RequestComment, error) { return first(x.RequestComments(c, "R")) })
	same(t, s, store.Decision{Request: "R", Role: "customer", Person: "p", Verdict: "approve", Reason: "r", KeyFingerprint: "k", MaxDuration: time.Hour, Time: at(1), Envelope: []byte{1}},
		func(c ctx, x tx, r *store.Decision) error { return x.InsertDecision(c, r) },
		func(c ctx, x tx) (store.Decision, error) { return first(x.Decisions(c, "R")) })
	same(t, s, store.Revocation{SubjectDigest: "sha256:s", Subject: "R", Person: "p", Reason: "r", Time: at(1), Envelope: []byte{1}},
		func(c ctx, x tx, r *store.Revocation) error { return x.InsertRevocation(c, r) },
		func(c ctx, x tx) (store.Revocation, error) { return first(x.Revocations(c, "sha256:s")) })
	same(t, s, store.Attempt{ID: "U", Order: "o", Tenant: "t", Subject: "R", SubjectDigest: "sha256:s", Purpose: protocol.DataCopy, Serial: "DBX0009", Nodes: []string{"DBX0009/2"}, State: store.AttemptOrdered, ErrorCode: protocol.CodeBusy, IntentIndex: 3, LeaseEnd: at(1), Started: at(2), Updated: at(3)},
		func(c ctx, x tx, r *store.Attempt) error { return x.InsertAttempt(c, r) },
		func(c ctx, x tx) (store.Attempt, error) { return first(x.OpenAttempts(c)) })
	same(t, s, store.AuditRow{Time: at(1), Operation: "op", Correlation: "c", Caller: "who", Serial: "DBX0009", Tenant: "t", Record: []byte("{}"), Pruned: true},
		func(c ctx, x tx, r *store.AuditRow) error { return x.InsertAuditRow(c, r, 0, [][]byte{{1}}) },
		func(c ctx, x tx) (store.AuditRow, error) {
			return first(x.AuditRows(c, store.AuditFilter{Operation: "op", Correlation: "c", Caller: "who", Serial: "DBX0009", Tenant: "t", Limit: 1, Pruned: true}))
		})
	same(t, s, store.Notice{ID: "N", Kind: "k", Tenant: "t", Audience: store.ToCustomer, Subject: "R", Number: 1, State: "s", Title: "t", Text: "x", HTML: "h", Link: "l", Created: at(1)},
		func(c ctx, x tx, r *store.Notice) error { return x.InsertNotice(c, r) },
		func(c ctx, x tx) (store.Notice, error) { return x.Notice(c, "N") })
	same(t, s, store.Delivery{ID: "D", Notice: "N", Channel: store.ByMail, Recipient: "a@b", State: store.DeliveryWaiting, Attempts: 3, NextAttempt: at(2), Sent: at(4), LastError: "e"},
		func(c ctx, x tx, r *store.Delivery) error { return x.InsertDelivery(c, r) },
		func(c ctx, x tx) (store.Delivery, error) { return first(x.DueDeliveries(c, store.ByMail, at(2), 1)) })
	same(t, s, store.Webhook{ID: "W", Tenant: "t", URL: "u", Secret: []byte{1}, CreatedBy: "p", Created: at(1), Removed: at(2)},
		func(c ctx, x tx, r *store.Webhook) error { return x.InsertWebhook(c, r) },
		func(c ctx, x tx) (store.Webhook, error) { return x.Webhook(c, "W") })
	same(t, s, store.LegalHold{ID: "h", Tenant: "t", Serial: "DBX0009", Correlation: "c", Reason: "r", PlacedBy: "p", Placed: at(1), ReleasedBy: "q", Released: at(2)},
		func(c ctx, x tx, r *store.LegalHold) error { return x.InsertLegalHold(c, r) },
		func(c ctx, x tx) (store.LegalHold, error) { return x.LegalHold(c, "h") })
}

func TestSecondWriterGetsConflict(t *testing.T) {
	s := storetest.New(t)
	storetest.Fill(t, s, at(0), 1)
	var one, two store.Order
	err := s.View(t.Context(), func(tx *store.Tx) (err error) {
		one, err = tx.Order(t.Context(), storetest.Order)
		two = one
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	one.Stage, two.Stage = "Completed", "Aborted"
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.UpdateOrder(ctx, &one) })
	err = s.Tx(t.Context(), func(tx *store.Tx) error { return tx.UpdateOrder(t.Context(), &two) })
	if !errors.Is(err, store.ErrConflict) || protocol.CodeOf(err) != protocol.CodeConflict {
		t.Fatalf("second writer got %v, want a conflict", err)
	}
	// Control: with the revision it has now, the same change is taken.
	two.Rev = one.Rev
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.UpdateOrder(ctx, &two) })
}

func TestOneAttemptPerDevice(t *testing.T) {
	s := storetest.New(t)
	storetest.Fill(t, s, at(0), 1)
	attempt := func(id, state string) *store.Attempt {
		return &store.Attempt{ID: id, Order: storetest.Order, Tenant: storetest.Tenant, Serial: storetest.Serial, State: state}
	}
	insert := func(a *store.Attempt) error {
		return s.Tx(t.Context(), func(tx *store.Tx) error { return tx.InsertAttempt(t.Context(), a) })
	}
	one := attempt("one", store.AttemptOrdered)
	if err := insert(one); err != nil {
		t.Fatal(err)
	}
	if err := insert(attempt("two", store.AttemptChallenging)); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("a second attempt got %v, want a conflict", err)
	}
	one.State = store.AttemptFailed
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.UpdateAttempt(ctx, one) })
	if err := insert(attempt("two", store.AttemptChallenging)); err != nil {
		t.Fatal(err)
	}
}

func TestMissingIsNotFound(t *testing.T) {
	s := storetest.New(t)
	err := s.View(t.Context(), func(tx *store.Tx) error { _, err := tx.Order(t.Context(), "ORD-404"); return err })
	if !errors.Is(err, store.ErrNotFound) || protocol.CodeOf(err) != protocol.CodeNotFound {
		t.Fatalf("got %v, want not found", err)
	}
	if got, want := err.Error(), "order ORD-404 not found (not-found)"; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
}

func TestErrorRollsBack(t *testing.T) {
	s := storetest.New(t)
	boom := errors.New("boom")
	err := s.Tx(t.Context(), func(tx *store.Tx) error {
		if err := tx.SetMeta(t.Context(), "k", "v"); err != nil {
			return err
		}
		return boom
	})
	if err != boom {
		t.Fatalf("got %v, want the error as it was", err)
	}
	var v string
	if err := s.View(t.Context(), func(tx *store.Tx) (err error) { v, err = tx.Meta(t.Context(), "k"); return err }); err != nil || v != "" {
		t.Fatalf("meta is %q, %v: it was not rolled back", v, err)
	}
}

func TestViewCannotWrite(t *testing.T) {
	s := storetest.New(t)
	err := s.View(t.Context(), func(tx *store.Tx) error { return tx.SetMeta(t.Context(), "k", "v") })
	if err == nil {
		var v string
		err = s.View(t.Context(), func(tx *store.Tx) (err error) { v, err = tx.Meta(t.Context(), "k"); return err })
		if err != nil || v != "" {
			t.Fatalf("a view wrote %q, %v", v, err)
		}
	}
}

func TestConcurrentWriters(t *testing.T) {
	s := storetest.New(t)
	storetest.Fill(t, s, at(0), 1)
	const writers = 64
	var all sync.WaitGroup
	errs := make(chan error, writers)
	for i := range writers {
		all.Go(func() {
			errs <- s.Tx(t.Context(), func(tx *store.Tx) error {
				o, err := tx.Order(t.Context(), storetest.Order)
				if err != nil {
					return err
				}
				o.FilesDone++
				if err := tx.AddHistory(t.Context(), store.OrderHistory, string(o.ID), store.HistoryLine{Time: at(int64(i)), What: "x"}); err != nil {
					return err
				}
				return tx.UpdateOrder(t.Context(), &o)
			})
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	err := s.View(t.Context(), func(tx *store.Tx) error {
		o, err := tx.Order(t.Context(), storetest.Order)
		if err == nil && o.FilesDone != writers {
			err = fmt.Errorf("%d of %d increments survived", o.FilesDone, writers)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestTimers(t *testing.T) {
	s := storetest.New(t)
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
		return errors.Join(
			tx.SetTimer(ctx, "expire", "R1", at(10)),
			tx.SetTimer(ctx, "expire", "R2", at(5)),
			tx.SetTimer(ctx, "expire", "R1", at(20)), // moves it
			tx.SetTimer(ctx, "warn", "R1", at(1)),
			tx.CancelTimer(ctx, "warn", "R1"),
		)
	})
	var due []store.Timer
	var next time.Time
	err := s.View(t.Context(), func(tx *store.Tx) (err error) {
		if next, err = tx.NextTimer(t.Context()); err != nil {
			return err
		}
		due, err = tx.DueTimers(t.Context(), at(10), 10)
		return err
	})
	if err != nil || !next.Equal(at(5)) || len(due) != 1 || due[0].Subject != "R2" {
		t.Fatalf("next %v, due %v, %v", next, due, err)
	}
	moved := due[0]
	moved.Due = at(4)
	if err := s.Tx(t.Context(), func(tx *store.Tx) error { return tx.FinishTimer(t.Context(), moved) }); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("finished a timer that was moved: %v", err)
	}
	finish := func() error {
		return s.Tx(t.Context(), func(tx *store.Tx) error { return tx.FinishTimer(t.Context(), due[0]) })
	}
	if err := finish(); err != nil {
		t.Fatal(err)
	}
	if err := finish(); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("finished twice: %v", err)
	}
}

func TestNodeSeenNeverShrinksLog(t *testing.T) {
	s := storetest.New(t)
	storetest.Fill(t, s, at(0), 1)
	for _, size := range []int64{7, 3} {
		storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.NodeSeen(ctx, node, at(1), []byte{1}, size) })
	}
	var n store.Node
	err := s.View(t.Context(), func(tx *store.Tx) (err error) { n, err = tx.Node(t.Context(), node); return err })
	if err != nil || n.LogSize != 7 || !n.LastSeen.Equal(at(1)) {
		t.Fatalf("log size %d, last seen %v, %v", n.LogSize, n.LastSeen, err)
	}
}

func TestBackup(t *testing.T) {
	s := storetest.New(t)
	storetest.Fill(t, s, at(0), 1)
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := s.BackupTo(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v: want 0600", info.Mode(), err)
	}
	copied := storetest.Open(t, path)
	err = copied.View(t.Context(), func(tx *store.Tx) error { _, err := tx.Order(t.Context(), storetest.Order); return err })
	if err != nil {
		t.Error(err)
	}
	if err := s.BackupTo(t.Context(), path); err == nil {
		t.Error("an existing file was written over")
	}
}

func TestClosedStoreRefuses(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err = s.View(t.Context(), func(*store.Tx) error { return nil })
	if protocol.CodeOf(err) != protocol.CodeUnavailable {
		t.Fatalf("got %v, want unavailable", err)
	}
}

func TestStoreFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := storetest.Open(t, path)
	storetest.Fill(t, s, at(0), 1)
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v: want 0600", name, info.Mode(), err)
		}
	}
}
