package custody_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/keyvault"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/keyvault/keyvaulttest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
)

// keyServices make each kind of key service.
var keyServices = map[string]func(*testing.T) custody.KeyService{
	"local": func(t *testing.T) custody.KeyService {
		return must(custody.OpenMasterKey(filepath.Join(t.TempDir(), "master.key"), true))(t)
	},
	"azure-key-vault": func(t *testing.T) custody.KeyService {
		s := keyvaulttest.New(t)
		id := s.AddKey("service", 2048)
		return must(keyvault.NewService(vaultClient(s), keyvaulttest.Address(id)))(t)
	},
}

// Whatever wraps the keys: they open, are bound to their order, move to another
// service and back, and are lost with it.
func TestEveryKeyService(t *testing.T) {
	for name, open := range keyServices {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			w.addOrders(3)
			first := w.custody.Keys
			// A control plane is told to use another service: what the first one
			// wrapped stays good, and moves when it is told to rotate.
			next := open(t)
			w.custody.Keys, w.custody.OlderKeys = next, nil
			if _, err := w.unlock(); err == nil && name != "local" {
				t.Fatal("it opens without the service that wrapped it")
			}
			w.custody.OlderKeys = []custody.KeyService{first}
			if name == "local" { // whose keys have the same names
				w.custody.Keys, w.custody.OlderKeys = first, nil
				next = first
			}
			w.works("before it moves")
			w.rotate()
			w.custody.OlderKeys = nil
			w.works("moved")
			if id := w.orderKey().Wrapper; id != current(t, next).ID() {
				t.Errorf("wrapped by %s, current is %s", id, current(t, next).ID())
			}
			mine := w.orderKey().Wrapped
			storetest.Exec(t, w.store, `UPDATE order_keys SET wrapped = (SELECT wrapped FROM order_keys WHERE order_id = 'ORD-B1') WHERE order_id = $1`, string(storetest.Order))
			if _, err := w.unlock(); err == nil || !strings.Contains(err.Error(), "cannot unwrap the key of order") {
				t.Errorf("another order's key: %v", err)
			}
			storetest.Exec(t, w.store, `UPDATE order_keys SET wrapped = $1 WHERE order_id = $2`, mine, string(storetest.Order))
			w.works("put back")
			w.rotate()
			w.works("rotated")
			status := must(w.custody.GetKeyStatus(t.Context(), admin, nil))(t)
			if len(status.Keys) != 1 || status.Keys[0].Orders != 4 || status.Rotation.Finished == 0 {
				t.Errorf("status %v", status)
			}
		})
	}
}
