package custody_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

const signature = "sv=2023-11-03&sp=rwc&sr=c&se=2050-01-01T00:00:00Z&sig=c2lnbmF0dXJlLXRoYXQtbm9ib2R5LXNlZXM%3D"

// consented is the destination of the consent of a world.
var consented = store.Destination{Account: "a", Endpoint: "file:///srv/blobs"}

func (w *world) theOrder() store.Order {
	w.t.Helper()
	var o store.Order
	if err := w.store.View(w.t.Context(), func(tx *store.Tx) (err error) { o, err = tx.Order(w.t.Context(), storetest.Order); return err }); err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *world) putAccess(d store.Destination, credential string) (store.DestinationAccess, error) {
	w.t.Helper()
	text := []byte(credential)
	row, err := w.custody.PutAccess(w.t.Context(), owner, w.theOrder(), d, text, func(*store.Tx) error { return nil })
	if len(bytes.Trim(text, "\x00")) > 0 {
		w.t.Error("what was handed over was not wiped")
	}
	return row, err
}

// copies unlocks for copying, locks again, and returns what came to each node.
func (w *world) copies(in custody.UnlockIn) (got []map[string]string) {
	w.t.Helper()
	out, err := w.custody.Unlock(w.t.Context(), admin, in, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range w.nodes {
		got = append(got, n.access)
	}
	w.custody.Lock(w.t.Context(), custody.LockIn{Caller: owner, Nodes: out.Nodes, Reason: "a test"})
	return got
}

func TestAccessGoesWithTheConsentOnly(t *testing.T) {
	w := newWorld(t, 2)
	elsewhere := store.Destination{Account: "a", Endpoint: "https://a.example"}
	foreign := store.Destination{Account: "foreign", Endpoint: consented.Endpoint}
	for _, d := range []store.Destination{elsewhere, foreign} {
		if _, err := w.putAccess(d, signature); err != nil {
			t.Fatal(err)
		}
		for _, got := range w.copies(custody.UnlockIn{Consent: consentID}) {
			if len(got) > 0 {
				t.Errorf("%v, which the consent does not name, goes to the device: %v", d, got)
			}
		}
	}
	if _, err := w.putAccess(consented, "SharedAccessSignature=?"+signature+"\n"); err != nil {
		t.Fatal(err)
	}
	for _, got := range w.copies(custody.UnlockIn{Request: requestID}) {
		if len(got) > 0 {
			t.Errorf("support gets %v", got)
		}
	}
	for _, got := range w.copies(custody.UnlockIn{Consent: consentID}) {
		if len(got) != 1 || got["a"] != signature {
			t.Errorf("a node got %v", got)
		}
	}
	intents := w.records(auditlog.OpUnlockIntent)
	if last := intents[len(intents)-1]; last.Properties["access"] != "a" {
		t.Errorf("the intent says %v", last.Properties)
	}
}

// The key of an account stays: what goes is a signature that ends with the lease.
func TestTheKeyOfAnAccountStays(t *testing.T) {
	w := newWorld(t, 1)
	key := bytes.Repeat([]byte("k"), 64)
	encoded := base64.StdEncoding.EncodeToString(key)
	if row, err := w.putAccess(consented, "AccountKey="+encoded); err != nil || row.Kind != store.AccountKey || !row.Expires.IsZero() {
		t.Fatalf("%+v, %v", row, err)
	}
	got := w.copies(custody.UnlockIn{Consent: consentID})[0]["a"]
	q, err := url.ParseQuery(got)
	if err != nil || strings.Contains(got, encoded) || strings.Contains(got, string(key)) {
		t.Fatalf("the node got %s, %v", got, err)
	}
	end, err := time.Parse(time.RFC3339, q.Get("se"))
	if left := time.Until(end); err != nil || left < 8*time.Hour || left > 8*time.Hour+10*time.Minute {
		t.Errorf("it ends at %s: the lease lasts 8 h", q.Get("se"))
	}
	if q.Get("sp") != "rwdc" || q.Get("ss") != "b" || q.Get("srt") != "co" || q.Get("spr") != "https" || len(q.Get("sig")) != 44 {
		t.Errorf("it is %s", got)
	}
}

func TestAccessIsKeptLikeKeys(t *testing.T) {
	w := newWorld(t, 1)
	_, vaultKey := w.withVault()
	if _, err := w.putAccess(consented, signature); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	if err := w.store.BackupTo(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	data := must(os.ReadFile(copied))(t)
	if bytes.Contains(data, []byte("c2lnbmF0dXJl")) || !bytes.Contains(data, []byte("sp=rwc sr=c")) {
		t.Error("it is in the store in clear, or the search does not find what is there")
	}
	works := func(when, want string) {
		t.Helper()
		if got := w.copies(custody.UnlockIn{Consent: consentID})[0]["a"]; got != want {
			t.Errorf("%s: the node got %q", when, got)
		}
	}
	works("before", signature)

	old := w.wrappings()
	must(w.setKey(owner, vaultKey))(t)
	if where := w.filesWith(old); len(where) > 0 {
		t.Errorf("after a move to the customer's key, old wrappings are in %v", where)
	}
	works("under the customer's key", signature)

	old = w.access()
	other := strings.Replace(signature, "sig=", "sig=b3RoZXI", 1)
	if _, err := w.putAccess(consented, other); err != nil {
		t.Fatal(err)
	}
	if where := w.filesWith(old); len(where) > 0 {
		t.Errorf("after it was replaced, it is in %v", where)
	}
	works("replaced", other)

	old = w.access()
	if err := w.custody.RemoveAccess(t.Context(), owner, w.theOrder(), "a"); err != nil {
		t.Fatal(err)
	}
	if where := w.filesWith(old); len(where) > 0 {
		t.Errorf("after it was removed, it is in %v", where)
	}
	works("removed", "")
	if err := w.custody.RemoveAccess(t.Context(), owner, w.theOrder(), "a"); protocol.CodeOf(err) != protocol.CodeNotFound {
		t.Errorf("removing it again: %v", err)
	}

	if _, err := w.putAccess(consented, signature); err != nil {
		t.Fatal(err)
	}
	old = w.wrappings()
	if err := w.custody.DestroyKeys(t.Context(), admin, w.theOrder()); err != nil {
		t.Fatal(err)
	}
	if where := w.filesWith(old); len(where) > 0 || len(w.access()) > 0 {
		t.Errorf("after the order's keys were destroyed, %d are left, and in %v", len(w.access()), where)
	}
	for _, rec := range append(w.records(auditlog.OpStoreAccess), w.records(auditlog.OpDeleteAccess)...) {
		if rec.Properties["account"] != "a" || rec.Properties["kind"] != "SharedAccessSignature" || strings.Contains(rec.Properties["allows"], "sig") {
			t.Errorf("recorded: %v", rec.Properties)
		}
	}
}

func (w *world) records(op auditlog.Operation) (out []auditlog.Record) {
	w.t.Helper()
	storetest.Tx(w.t, w.store, func(ctx context.Context, tx *store.Tx) error {
		rows, err := tx.AuditRows(ctx, store.AuditFilter{Operation: string(op), Limit: 1000})
		out = nil
		for _, row := range rows {
			rec, err := auditlog.ParseRecord(row.Record)
			if err != nil {
				return err
			}
			out = append(out, rec)
		}
		return err
	})
	return out
}

// access returns how what lets into accounts is stored.
func (w *world) access() (wrapped [][]byte) {
	w.t.Helper()
	storetest.Tx(w.t, w.store, func(ctx context.Context, tx *store.Tx) error {
		rows, err := tx.DestinationAccess(ctx, storetest.Order)
		wrapped = nil
		for _, r := range rows {
			wrapped = append(wrapped, r.Wrapped)
		}
		return err
	})
	return wrapped
}

// What is dropped with a transaction that fails is still there.
func TestAccessIsDroppedWithItsOrder(t *testing.T) {
	w := newWorld(t, 1)
	if _, err := w.putAccess(consented, signature); err != nil {
		t.Fatal(err)
	}
	old, o := w.access(), w.theOrder()
	err := w.store.Tx(t.Context(), func(tx *store.Tx) error {
		if _, err := w.custody.DropAccess(t.Context(), tx, owner, o); err != nil {
			return err
		}
		return context.Canceled
	})
	if err == nil || len(w.access()) != 1 {
		t.Fatalf("%v, %d left", err, len(w.access()))
	}
	var erase func()
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) (err error) {
		erase, err = w.custody.DropAccess(ctx, tx, owner, o)
		return err
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.custody.Run(ctx) }()
	erase()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && len(w.filesWith(old)) > 0; time.Sleep(20 * time.Millisecond) {
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if where := w.filesWith(old); len(where) > 0 || len(w.access()) != 0 {
		t.Errorf("%d left, and in %v", len(w.access()), where)
	}
}

// Owners who have several removed at once all find them erased, and nothing breaks.
func TestAccessIsErasedSideBySide(t *testing.T) {
	w := newWorld(t, 1)
	accounts := strings.Fields("a b c d e f")
	for _, account := range accounts {
		if _, err := w.putAccess(store.Destination{Account: account, Endpoint: consented.Endpoint}, signature); err != nil {
			t.Fatal(err)
		}
	}
	old, o := w.access(), w.theOrder()
	var all sync.WaitGroup
	for _, account := range accounts {
		all.Go(func() {
			if err := w.custody.RemoveAccess(t.Context(), owner, o, account); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if where := w.filesWith(old); len(where) > 0 || len(w.access()) != 0 {
		t.Errorf("%d left, and in %v", len(w.access()), where)
	}
}

func TestBadAccessIsRefused(t *testing.T) {
	w := newWorld(t, 1)
	for name, text := range map[string]string{
		"nothing": "", "no signature": "sv=1&sp=r&secret=c2VjcmV0", "two lines": signature + "\nHost: evil", "a space": "sig=c2VjcmV0 x",
		"too long": "sig=c2VjcmV0" + strings.Repeat("x", 2048), "no base64": "AccountKey=c2VjcmV0!", "a short key": "AccountKey=c2VjcmV0",
		"a long key": "AccountKey=" + strings.Repeat("c2VjcmV0", 400),
		"over":       "sv=1&sp=rwc&se=2020-01-01&sig=c2VjcmV0",
	} {
		if _, err := w.putAccess(consented, text); protocol.CodeOf(err) != protocol.CodeInvalid || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(w.access()) > 0 {
		t.Error("something was kept")
	}
}
