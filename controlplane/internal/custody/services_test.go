package custody_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/keyvault"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/keyvault/keyvaulttest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// withVault lets customers of a world bring keys, and makes one.
func (w *world) withVault() (*keyvaulttest.Server, string) {
	s := keyvaulttest.New(w.t)
	w.custody.CustomerKeys = vaultClient(s)
	return s, s.AddKey("orders", 2048)
}

func vaultClient(s *keyvaulttest.Server) *keyvault.Client {
	return keyvault.New(keyvault.Config{
		Authority: s.URL, Hosts: []string{s.Host()}, ClientID: keyvaulttest.ClientID,
		Secret:    func() ([]byte, error) { return []byte(keyvaulttest.Secret), nil },
		Transport: s.Transport(),
	})
}

func (w *world) setKey(caller auth.Caller, address string) (*lockboxv1.OrderKey, error) {
	return w.custody.SetOrderKey(w.t.Context(), caller, &lockboxv1.SetOrderKeyRequest{Order: string(storetest.Order), VaultKey: address})
}

func (w *world) orderKey() store.OrderKey {
	w.t.Helper()
	var k store.OrderKey
	if err := w.store.View(w.t.Context(), func(tx *store.Tx) (err error) { k, err = tx.OrderKey(w.t.Context(), storetest.Order); return err }); err != nil {
		w.t.Fatal(err)
	}
	return k
}

// wrappings reads everything that is wrapped for an order.
func (w *world) wrappings() (all [][]byte) {
	w.t.Helper()
	all = append(all, w.orderKey().Wrapped)
	err := w.store.View(w.t.Context(), func(tx *store.Tx) error {
		rows, err := tx.DiskKeys(w.t.Context(), storetest.Order)
		for _, r := range rows {
			all = append(all, r.Wrapped)
		}
		if err != nil {
			return err
		}
		access, err := tx.DestinationAccess(w.t.Context(), storetest.Order)
		for _, r := range access {
			all = append(all, r.Wrapped)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// filesWith names the store's files that hold a piece of any of the values. They
// are read as another process: closing one in this would give SQLite's locks
// away.
func (w *world) filesWith(values [][]byte) (names []string) {
	w.t.Helper()
	for _, of := range []string{"", "-wal", "-shm"} {
		data, err := exec.Command("cat", w.store.Path()+of).Output()
		if err != nil {
			w.t.Fatal(err)
		}
		for _, v := range values {
			for piece := range slices.Chunk(v[:len(v)/16*16], 16) {
				if bytes.Contains(data, piece) {
					names = append(names, "store"+of)
				}
			}
		}
	}
	return names
}

func (w *world) export() error {
	w.t.Helper()
	resp, err := w.custody.ExportRecoveryPassword(w.t.Context(), admin, &lockboxv1.ExportRecoveryPasswordRequest{
		Serial: string(storetest.Serial), Node: 1, Disk: "disk1", Reason: "a test",
	})
	if err == nil && resp.RecoveryPassword != password {
		w.t.Errorf("the export gave %q", resp.RecoveryPassword)
	}
	return err
}

// works makes sure that everything opens, and locks again.
func (w *world) works(when string) {
	w.t.Helper()
	out, err := w.unlock()
	if err != nil {
		w.t.Fatalf("%s: %v", when, err)
	}
	w.custody.Lock(w.t.Context(), custody.LockIn{Caller: owner, Nodes: out.Nodes, Reason: "a test"})
	if err := w.export(); err != nil {
		w.t.Errorf("%s: %v", when, err)
	}
}

func TestMoveToTheCustomersKeyLeavesNothingOfTheOld(t *testing.T) {
	w := newWorld(t, 2)
	_, id := w.withVault()
	w.works("before")
	old := w.wrappings()
	if len(w.filesWith(old)) == 0 {
		t.Fatal("the search does not find what is there")
	}
	k, err := w.setKey(owner, id)
	if err != nil {
		t.Fatal(err)
	}
	if k.KekType != custody.CustomerManaged || k.Key != id || !k.OldDestroyed {
		t.Errorf("got %v", k)
	}
	if where := w.filesWith(old); len(where) > 0 {
		t.Errorf("old wrappings are still in %v", where)
	}
	if len(w.filesWith(w.wrappings())) == 0 {
		t.Error("the search does not find the new ones")
	}
	w.works("after")
	if keys := must(w.custody.ListKeys(t.Context(), admin, &lockboxv1.ListKeysRequest{Order: string(storetest.Order)}))(t).Keys; keys[0].WrappedBy != id {
		t.Errorf("keys are said to be wrapped by %s", keys[0].WrappedBy)
	}
	ops := w.operations()
	if n := len(slices.DeleteFunc(ops, func(o auditlog.Operation) bool { return o != auditlog.OpMoveToCustomerKey })); n != 2 {
		t.Errorf("%d records of the move, want its start and its end", n)
	}
}

func TestMoveIsOneWay(t *testing.T) {
	w := newWorld(t, 1)
	vault, id := w.withVault()
	if _, err := w.setKey(owner, id); err != nil {
		t.Fatal(err)
	}
	back := func() error {
		_, err := w.custody.SetOrderKey(t.Context(), owner, &lockboxv1.SetOrderKeyRequest{Order: string(storetest.Order), ServiceManaged: true})
		return err
	}
	if err := back(); protocol.CodeOf(err) != protocol.CodeForbidden {
		t.Errorf("back: %v", err)
	}
	if _, err := w.setKey(owner, id); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("to the same key: %v", err)
	}
	// To another version of theirs they may always go, and then lose the first.
	newer := vault.AddKey("orders", 2048)
	if k, err := w.setKey(owner, keyvaulttest.Address(id)); err != nil || k.Key != newer {
		t.Fatalf("%v, %v", k, err)
	}
	vault.Change(id, func(k *keyvaulttest.Key) { k.Deleted = true })
	w.works("with the newer version")
	w.custody.AllowReturn = true
	old := w.wrappings()
	if err := back(); err != nil {
		t.Fatal(err)
	}
	vault.Close()
	w.works("back at the service's key")
	if where := w.filesWith(old); len(where) > 0 {
		t.Errorf("the customer's wrappings are still in %v", where)
	}
	if err := back(); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("back twice: %v", err)
	}
}

func TestWhoMovesAnOrder(t *testing.T) {
	w := newWorld(t, 1)
	_, id := w.withVault()
	for _, c := range []struct {
		caller auth.Caller
		want   protocol.Code
	}{
		{admin, protocol.CodeForbidden}, {engineer, protocol.CodeForbidden}, {stranger, protocol.CodeNotFound},
		{auth.Caller{Person: "amy@contoso.example", Role: auth.Approver, Tenant: storetest.Tenant}, protocol.CodeForbidden},
	} {
		if _, err := w.setKey(c.caller, id); protocol.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", c.caller.Person, err, c.want)
		}
	}
	for _, in := range []*lockboxv1.SetOrderKeyRequest{
		{Order: string(storetest.Order)}, {Order: string(storetest.Order), VaultKey: id, ServiceManaged: true},
	} {
		if _, err := w.custody.SetOrderKey(t.Context(), owner, in); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%v: %v", in, err)
		}
	}
	if _, err := w.custody.GetOrderKey(t.Context(), stranger, &lockboxv1.GetOrderKeyRequest{Order: string(storetest.Order)}); protocol.CodeOf(err) != protocol.CodeNotFound {
		t.Errorf("a stranger looks: %v", err)
	}
	if k := w.orderKey(); k.Customer || slices.Contains(w.operations(), auditlog.OpMoveToCustomerKey) {
		t.Errorf("the order was moved, or its move recorded: %v", k)
	}
	w.custody.CustomerKeys = nil
	if _, err := w.setKey(owner, id); protocol.CodeOf(err) != protocol.CodeKeyService {
		t.Errorf("without an identity: %v", err)
	}
}

func TestAMoveThatFailsChangesNothing(t *testing.T) {
	w := newWorld(t, 1)
	vault, id := w.withVault()
	before := w.wrappings()
	vault.Change(id, func(k *keyvaulttest.Key) { k.RecoveryLevel = "Recoverable+Purgeable" })
	_, err := w.setKey(owner, id)
	if protocol.CodeOf(err) != protocol.CodeCustomerKey || !strings.HasPrefix(err.Error(), "SsemUserErrorSoftDeleteAndPurgeProtectionNotEnabled: ") {
		t.Errorf("a key that can be purged: %v", err)
	}
	vault.Change(id, func(k *keyvaulttest.Key) { k.RecoveryLevel = "Recoverable" })
	// It wraps and cannot unwrap: moving would lose the keys.
	vault.Fault(func(rw http.ResponseWriter, r *http.Request) bool {
		refuse := strings.HasSuffix(r.URL.Path, "/unwrapkey")
		if refuse {
			rw.WriteHeader(http.StatusForbidden)
		}
		return refuse
	})
	_, err = w.setKey(owner, id)
	if protocol.CodeOf(err) != protocol.CodeCustomerKey || !strings.HasPrefix(err.Error(), "SsemUserErrorKeyVaultBadRequestException: ") {
		t.Errorf("a key that does not unwrap: %v", err)
	}
	if !slices.EqualFunc(before, w.wrappings(), bytes.Equal) {
		t.Error("the wrappings changed")
	}
	w.works("after failed moves")
	vault.Fault(nil)
	if _, err := w.setKey(owner, id); err != nil {
		t.Error(err)
	}
}

func TestWhatTheCustomerTakesBackStaysShut(t *testing.T) {
	w := newWorld(t, 2)
	vault, id := w.withVault()
	if _, err := w.setKey(owner, id); err != nil {
		t.Fatal(err)
	}
	w.works("given")
	for name, take := range map[string]func(bool){
		"SsemUserErrorEncryptionKeyDisabled":       func(on bool) { vault.Change(id, func(k *keyvaulttest.Key) { k.Enabled = !on }) },
		"SsemUserErrorKeyDetailsNotFound":          func(on bool) { vault.Change(id, func(k *keyvaulttest.Key) { k.Deleted = on }) },
		"SsemUserErrorKeyVaultBadRequestException": vault.Deny,
		"SsemUserErrorEncryptionKeyExpired": func(on bool) {
			vault.Change(id, func(k *keyvaulttest.Key) {
				k.Expires = time.Time{}
				if on {
					k.Expires = time.Now().Add(-time.Minute)
				}
			})
		},
	} {
		take(true)
		_, support := w.unlock()
		_, copying := w.custody.Unlock(t.Context(), engineer, custody.UnlockIn{Consent: consentID}, nil)
		for what, err := range map[string]error{"unlock": support, "copy": copying, "export": w.export()} {
			if protocol.CodeOf(err) != protocol.CodeCustomerKey || !strings.HasPrefix(err.Error(), name+": ") {
				t.Errorf("%s: %v, want %s", what, err, name)
			}
		}
		w.allAre(protocol.Locked)
		take(false)
		w.works("given back after " + name)
	}
}

// hanging is a key service that answers nothing.
type hanging struct{}

func (hanging) Current(ctx context.Context) (custody.KeyWrapper, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (hanging) Key(ctx context.Context, _ string) (custody.KeyWrapper, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestALostKeyServiceMeansARefusal(t *testing.T) {
	w := newWorld(t, 1)
	keys := w.custody.Keys
	gone := must(custody.OpenMasterKey(filepath.Join(t.TempDir(), "other.key"), true))(t)
	for what, lost := range map[string]custody.KeyService{"hangs": hanging{}, "another master key": gone} {
		t.Run(what, func(t *testing.T) {
			w.custody.Keys = lost
			begin := time.Now()
			_, err := w.unlock()
			if took := time.Since(begin); err == nil || took > 6*time.Second {
				t.Errorf("%v after %s", err, took)
			}
			if what == "hangs" && protocol.CodeOf(err) != protocol.CodeKeyService {
				t.Errorf("got %v, want %s", err, protocol.CodeKeyService)
			}
			if err := w.export(); err == nil {
				t.Error("a password was exported")
			}
			w.allAre(protocol.Locked)
		})
	}
	w.custody.Keys = hanging{}
	held := make(chan error, 1)
	go func() { _, err := w.custody.OpenOrderKey(t.Context(), storetest.Order); held <- err }()
	begin := time.Now() // while a key service hangs, the store serves others
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
		return tx.DeleteErasure(ctx, store.Erasure{Order: storetest.Order})
	})
	if took := time.Since(begin); took > 3*time.Second { // it hangs for 5
		t.Errorf("a writer waited %s for the key service", took)
	}
	if err := <-held; protocol.CodeOf(err) != protocol.CodeKeyService {
		t.Errorf("a deposit: %v", err)
	}
	w.custody.Keys = keys
	w.works("the service is back")
}

func TestWrappingsAreBoundToTheirOrder(t *testing.T) {
	w := newWorld(t, 1)
	w.addOrders(1)
	for _, customer := range []bool{false, true} {
		if customer {
			_, id := w.withVault()
			if _, err := w.setKey(owner, id); err != nil {
				t.Fatal(err)
			}
			w.moveOther(id)
		}
		mine := w.orderKey().Wrapped
		w.works("before")
		storetest.Exec(t, w.store, `UPDATE order_keys SET wrapped = (SELECT wrapped FROM order_keys WHERE order_id = 'ORD-B1') WHERE order_id = $1`, string(storetest.Order))
		if _, err := w.unlock(); err == nil || !strings.Contains(err.Error(), "cannot unwrap the key of order") {
			t.Errorf("customer %v: another order's key: %v", customer, err)
		}
		w.allAre(protocol.Locked)
		storetest.Exec(t, w.store, `UPDATE order_keys SET wrapped = $1 WHERE order_id = $2`, mine, string(storetest.Order))
		w.works("put back")
		// The password of a disk in the place of its key, and another disk's.
		for _, from := range []string{`disk = 'disk1' AND kind = 'recovery-password'`, `disk = 'disk2' AND kind = 'external-key'`} {
			storetest.Exec(t, w.store, `CREATE TABLE kept AS SELECT wrapped FROM disk_keys WHERE disk = 'disk1' AND kind = 'external-key'`)
			storetest.Exec(t, w.store, `UPDATE disk_keys SET wrapped = (SELECT wrapped FROM disk_keys WHERE `+from+`) WHERE disk = 'disk1' AND kind = 'external-key'`)
			if _, err := w.unlock(); err == nil || !strings.Contains(err.Error(), "cannot unwrap") {
				t.Errorf("customer %v, swapped with %s: %v", customer, from, err)
			}
			storetest.Exec(t, w.store, `UPDATE disk_keys SET wrapped = (SELECT wrapped FROM kept) WHERE disk = 'disk1' AND kind = 'external-key'`)
			storetest.Exec(t, w.store, `DROP TABLE kept`)
		}
		w.works("all put back")
	}
}

// addOrders adds orders of the customer, ORD-B1 and so on, each with a key.
func (w *world) addOrders(n int) {
	w.t.Helper()
	var ids []protocol.OrderID
	storetest.Tx(w.t, w.store, func(ctx context.Context, tx *store.Tx) error {
		for i := range n {
			ids = append(ids, protocol.OrderID(fmt.Sprintf("ORD-B%d", i+1)))
			if err := tx.InsertOrder(ctx, placed(ids[i])); err != nil {
				return err
			}
		}
		return nil
	})
	var keys []*custody.OrderKey
	for _, id := range ids {
		keys = append(keys, must(w.custody.OpenOrderKey(w.t.Context(), id))(w.t))
	}
	storetest.Tx(w.t, w.store, func(ctx context.Context, tx *store.Tx) error {
		for _, k := range keys {
			defer k.Wipe()
			if err := w.custody.Deposit(ctx, tx, admin, k, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// placed is an order of the customer without a device.
func placed(id protocol.OrderID) *store.Order {
	return &store.Order{
		ID: id, Subscription: storetest.Subscription, Tenant: storetest.Tenant, SKU: "databox", Stage: "DeviceOrdered", Created: time.Now(), Updated: time.Now(),
	}
}

// moveOther moves the order ORD-B1 to the customer's key.
func (w *world) moveOther(id string) {
	w.t.Helper()
	if _, err := w.custody.SetOrderKey(w.t.Context(), owner, &lockboxv1.SetOrderKeyRequest{Order: "ORD-B1", VaultKey: id}); err != nil {
		w.t.Fatal(err)
	}
}

func TestACustomersKeyBeforeTheDevice(t *testing.T) {
	w := newWorld(t, 1)
	_, id := w.withVault()
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
		return tx.InsertOrder(ctx, placed("ORD-B1"))
	})
	k := must(w.custody.GetOrderKey(t.Context(), owner, &lockboxv1.GetOrderKeyRequest{Order: "ORD-B1"}))(t)
	if k.KekType != custody.MicrosoftManaged || k.Key != "" {
		t.Errorf("at first %v", k)
	}
	w.moveOther(id)
	w.custody.Keys = hanging{} // the service's own key is not needed
	key := must(w.custody.OpenOrderKey(t.Context(), "ORD-B1"))(t)
	defer key.Wipe()
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error { return w.custody.Deposit(ctx, tx, admin, key, nil) })
	k = must(w.custody.GetOrderKey(t.Context(), owner, &lockboxv1.GetOrderKeyRequest{Order: "ORD-B1"}))(t)
	if k.KekType != custody.CustomerManaged || k.Key != id {
		t.Errorf("then %v", k)
	}
}

// legacy puts the keys of the world's disks back to how they were stored before
// orders had keys: wrapped directly.
func (w *world) legacy() {
	w.t.Helper()
	master := must(w.custody.Keys.Key(w.t.Context(), custody.ServiceKey))(w.t)
	for _, n := range w.nodes {
		for disk, key := range n.disks {
			for kind, value := range map[string][]byte{store.ExternalKey: key, store.RecoveryPassword: []byte(password)} {
				aad := custody.AssociatedData(store.DiskKey{
					Tenant: storetest.Tenant, Order: storetest.Order, Node: n.id, Disk: disk, Kind: kind, Wrapper: custody.ServiceKey,
				})
				wrapped := must(master.Wrap(w.t.Context(), value, aad))(w.t)
				storetest.Exec(w.t, w.store, `UPDATE disk_keys SET wrapper = 'service-key', wrapped = $1 WHERE serial = $2 AND node = $3 AND disk = $4 AND kind = $5`,
					wrapped, n.id.Serial, n.id.Node, disk, kind)
			}
		}
	}
	storetest.Exec(w.t, w.store, `DELETE FROM order_keys`)
}

func TestKeysOfBeforeOrdersHadKeysStillOpenAndMove(t *testing.T) {
	w := newWorld(t, 2)
	w.legacy()
	w.works("as they were")
	status := must(w.custody.GetKeyStatus(t.Context(), admin, nil))(t)
	if len(status.Keys) != 1 || status.Keys[0].Id != custody.ServiceKey || status.Keys[0].Orders != 1 {
		t.Errorf("status %v", status)
	}
	w.rotate()
	w.works("rotated")
	if k := w.orderKey(); k.Wrapper != custody.MasterKeyID(2) {
		t.Errorf("wrapped by %s", k.Wrapper)
	}
	w.legacyKeysAreGone()
}

func (w *world) legacyKeysAreGone() {
	w.t.Helper()
	err := w.store.View(w.t.Context(), func(tx *store.Tx) error {
		rows, err := tx.DiskKeys(w.t.Context(), storetest.Order)
		for _, r := range rows {
			if r.Wrapper == custody.ServiceKey {
				w.t.Errorf("%s of %s %s is wrapped directly", r.Kind, r.Node, r.Disk)
			}
		}
		return err
	})
	if err != nil {
		w.t.Error(err)
	}
}

// rotate rotates to the end.
func (w *world) rotate() {
	w.t.Helper()
	if _, err := w.custody.RotateKey(w.t.Context(), admin, nil); err != nil {
		w.t.Fatal(err)
	}
	if err := w.custody.ContinueRotation(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func TestRotation(t *testing.T) {
	w := newWorld(t, 1)
	_, id := w.withVault()
	w.addOrders(110)
	w.moveOther(id) // the customer's is none of the service's business
	for _, caller := range []auth.Caller{owner, engineer} {
		if _, err := w.custody.RotateKey(t.Context(), caller, nil); protocol.CodeOf(err) != protocol.CodeForbidden {
			t.Errorf("%s: %v", caller.Role, err)
		}
	}
	old := must(os.ReadFile(w.master))(t)
	status := must(w.custody.RotateKey(t.Context(), admin, nil))(t)
	if r := status.Rotation; status.Current != custody.MasterKeyID(2) || r.Target != status.Current || r.Orders != 110 || r.Done != 0 || r.Finished != 0 {
		t.Errorf("begun: %v", status)
	}
	w.works("while it goes on")
	if _, err := w.custody.RotateKey(t.Context(), admin, nil); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("a second one: %v", err)
	}
	if ids := must(custody.MasterKeyIDs(w.master))(t); len(ids) != 2 {
		t.Errorf("the file holds %v", ids)
	}
	// By itself.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.custody.Run(ctx) }()
	w.until("the rotation ends", func() bool {
		status = must(w.custody.GetKeyStatus(t.Context(), admin, nil))(t)
		return status.Rotation.Finished != 0
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if r := status.Rotation; r.Done != 110 || r.Problem != "" || len(status.Keys) != 2 || status.Keys[0].Orders != 110 {
		t.Errorf("ended: %v", status)
	}
	w.works("after it")
	if ids := must(custody.MasterKeyIDs(w.master))(t); !slices.Equal(ids, []string{custody.MasterKeyID(2)}) {
		t.Errorf("the file holds %v", ids)
	}
	if now := must(os.ReadFile(w.master))(t); bytes.Contains(now, old) || bytes.Contains(now, []byte(hexOf(old))) {
		t.Error("the old master key is still in the file")
	}
	again := must(custody.OpenMasterKey(w.master, false))(t) // as after a restart
	w.custody.Keys = again
	w.works("after a restart")
	if ops := w.operations(); !slices.Contains(ops, auditlog.OpRotateMasterKey) {
		t.Error("it is not recorded")
	}
}

func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: not in time", what)
		}
	}
}

// A key that was wrapped before a rotation and stored after it began would be
// lost with the old master key.
func TestADepositAcrossARotationIsRefused(t *testing.T) {
	w := newWorld(t, 1)
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
		return tx.InsertOrder(ctx, placed("ORD-B1"))
	})
	fresh := must(w.custody.OpenOrderKey(t.Context(), "ORD-B1"))(t)
	stored := must(w.custody.OpenOrderKey(t.Context(), storetest.Order))(t)
	w.rotate()
	for what, k := range map[string]*custody.OrderKey{"fresh": fresh, "stored": stored} {
		err := w.store.Tx(t.Context(), func(tx *store.Tx) error { return w.custody.Deposit(t.Context(), tx, admin, k, nil) })
		if protocol.CodeOf(err) != protocol.CodeConflict {
			t.Errorf("%s: %v", what, err)
		}
		k.Wipe()
	}
	fresh = must(w.custody.OpenOrderKey(t.Context(), "ORD-B1"))(t) // the control
	defer fresh.Wipe()
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error { return w.custody.Deposit(ctx, tx, admin, fresh, nil) })
}

// One order that cannot be wrapped anew keeps neither the others waiting nor the
// old key from being there for it.
func TestARotationWaitsForWhatItCannotMove(t *testing.T) {
	w := newWorld(t, 1)
	w.addOrders(3)
	kept := w.wrappings()[0]
	storetest.Exec(t, w.store, `UPDATE order_keys SET wrapped = zeroblob(60) WHERE order_id = $1`, string(storetest.Order))
	if _, err := w.custody.RotateKey(t.Context(), admin, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.custody.ContinueRotation(t.Context()); err == nil {
		t.Error("it ended")
	}
	r := must(w.custody.GetKeyStatus(t.Context(), admin, nil))(t).Rotation
	if r.Finished != 0 || r.Done != 3 || !strings.Contains(r.Problem, string(storetest.Order)) {
		t.Errorf("got %v", r)
	}
	if ids := must(custody.MasterKeyIDs(w.master))(t); len(ids) != 2 {
		t.Errorf("the old key is gone: %v", ids)
	}
	storetest.Exec(t, w.store, `UPDATE order_keys SET wrapped = $1 WHERE order_id = $2`, kept, string(storetest.Order))
	if err := w.custody.ContinueRotation(t.Context()); err != nil {
		t.Error(err)
	}
	w.works("mended")
}

// An unlock that read a wrapping just before a rotation replaced it reads again.
func TestAnUnlockAcrossARotation(t *testing.T) {
	w := newWorld(t, 1)
	keys := w.custody.Keys
	var once sync.Once
	w.custody.Keys = looked{keys, func() { once.Do(func() { w.custody.Keys = keys; w.rotate() }) }}
	w.works("across")
}

// looked calls before a key is looked up.
type looked struct {
	custody.KeyService
	before func()
}

func (l looked) Key(ctx context.Context, id string) (custody.KeyWrapper, error) {
	l.before()
	return l.KeyService.Key(ctx, id)
}

// keyPlan is what a child needs that changes keys until it is killed.
type keyPlan struct {
	Store, Master string
	LogKey        []byte
}

// rotateChild makes this test binary rotate.
const rotateChild = "LOCKBOX_TEST_ROTATE_CHILD"

func rotateUntilKilled(file string) {
	ctx := context.Background()
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	data, err := os.ReadFile(file)
	check(err)
	var p keyPlan
	check(json.Unmarshal(data, &p))
	s, err := store.Open(ctx, p.Store)
	check(err)
	log, err := audit.New(ctx, audit.Config{Store: s, Key: ed25519.PrivateKey(p.LogKey)})
	check(err)
	keys, err := custody.OpenMasterKey(p.Master, false)
	check(err)
	c := custody.New(custody.Config{Store: s, Audit: log, Keys: keys, DeadMan: deadMan, Logger: zerolog.Nop()})
	for {
		_, err := c.RotateKey(ctx, admin, nil)
		if protocol.CodeOf(err) != protocol.CodeConflict {
			check(err)
		}
		check(c.ContinueRotation(ctx))
	}
}

// Killed at any moment of a rotation, everything opens with what is on disk, and
// the next process finishes it.
func TestKillInARotation(t *testing.T) {
	w := newWorld(t, 1)
	w.addOrders(20)
	file := filepath.Join(t.TempDir(), "plan.json")
	data := must(json.Marshal(keyPlan{Store: w.store.Path(), Master: w.master, LogKey: w.logKey}))(t)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	halfway := 0
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), rotateChild+"="+file)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(150+37*round) * time.Millisecond)
		if err := cmd.Process.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child ended by itself: %v", err)
		}
		keys := must(custody.OpenMasterKey(w.master, false))(t)
		w.custody.Keys = keys
		w.works(fmt.Sprintf("after kill %d", round))
		status := must(w.custody.GetKeyStatus(t.Context(), admin, nil))(t)
		if status.Rotation != nil && status.Rotation.Finished == 0 {
			halfway++
			if err := w.custody.ContinueRotation(t.Context()); err != nil {
				t.Fatalf("after kill %d: %v", round, err)
			}
		}
		status = must(w.custody.GetKeyStatus(t.Context(), admin, nil))(t)
		if len(status.Keys) != 1 && status.Rotation != nil {
			t.Errorf("after kill %d and its repair: %v", round, status)
		}
		w.works(fmt.Sprintf("after kill %d and its repair", round))
	}
	if halfway == 0 {
		t.Error("no kill hit a rotation: the test tests nothing")
	}
}

// What a crash left between a move and its erasure is erased by the next start.
func TestAnErasureThatWasCutOffIsDone(t *testing.T) {
	w := newWorld(t, 1)
	_, id := w.withVault()
	old := w.wrappings()
	reading, done := make(chan struct{}), make(chan struct{})
	view := make(chan error, 1)
	go func() { // a reader keeps the log from being emptied
		view <- w.store.View(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Order(t.Context(), storetest.Order)
			close(reading)
			<-done
			return err
		})
	}()
	<-reading
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	moved := make(chan error, 1)
	go func() {
		_, err := w.custody.SetOrderKey(ctx, owner, &lockboxv1.SetOrderKeyRequest{Order: string(storetest.Order), VaultKey: id})
		moved <- err
	}()
	w.until("the move is committed", func() bool { return w.orderKey().Customer })
	k := must(w.custody.GetOrderKey(t.Context(), owner, &lockboxv1.GetOrderKeyRequest{Order: string(storetest.Order)}))(t)
	if k.OldDestroyed || len(w.filesWith(old)) == 0 {
		t.Errorf("said to be destroyed: %v", k.OldDestroyed)
	}
	again := custody.New(w.custody.Config) // the next process
	run, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- again.Run(run) }()
	close(done)
	if err := <-view; err != nil {
		t.Error(err)
	}
	w.until("it is erased", func() bool {
		return must(again.GetOrderKey(t.Context(), owner, &lockboxv1.GetOrderKeyRequest{Order: string(storetest.Order)}))(t).OldDestroyed
	})
	<-moved
	stop()
	<-ended
	if where := w.filesWith(old); len(where) > 0 {
		t.Errorf("old wrappings are still in %v", where)
	}
	w.works("after all")
}
