// Package storetest gives tests a real store in a directory of their own, and
// rows to put into it.
package storetest

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
)

// New opens an empty store that is closed when the test ends.
func New(t testing.TB) *store.Store {
	t.Helper()
	return Open(t, filepath.Join(inMemory(t), "store.db"))
}

// inMemory returns a folder that is removed when the test ends, in memory where
// there is such a place: a test cuts no power, so it need not wait for a disk at
// every transaction.
func inMemory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lockbox-store-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Open opens the store at path, an empty one if there is none, and closes it when
// the test ends.
func Open(t testing.TB, path string) *store.Store {
	t.Helper()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := Lay(path); err != nil {
			t.Fatal(err)
		}
	}
	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Lay puts an empty store at path, for [store.Open] to open. That one would make the
// same itself, but takes half a second for it with the race detector on.
func Lay(path string) error {
	data, err := empty()
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// empty is the file of a store in which there is nothing yet, made by [store.Open].
var empty = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "lockbox-store-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "store.db")
	s, err := store.Open(context.Background(), path)
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// Tx runs f in a transaction that must succeed. f must not end the test.
func Tx(t testing.TB, s *store.Store, f func(context.Context, *store.Tx) error) {
	t.Helper()
	if err := s.Tx(t.Context(), func(tx *store.Tx) error { return f(t.Context(), tx) }); err != nil {
		t.Fatal(err)
	}
}

// Names of what [Fill] makes.
const (
	Tenant       = protocol.TenantID("contoso")
	Subscription = protocol.SubscriptionID("6a0e3c1e-9b0b-4c8e-8d3a-0c6a4a7d9f01")
	Order        = protocol.OrderID("ORD-1001")
	Serial       = protocol.DeviceSerial("DBX0001")
	Ticket       = protocol.TicketID("SR-2001")
	Engineer     = protocol.Person("erin@provider.example")
)

// Fill puts a tenant, a subscription, an engineer, an order with a device of so
// many nodes, and a ticket into s. The nodes are not enrolled.
func Fill(t testing.TB, s *store.Store, now time.Time, nodes int) {
	t.Helper()
	Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
		steps := []func() error{
			func() error {
				return tx.InsertTenant(ctx, &store.Tenant{ID: Tenant, Name: "Contoso", LockboxEnabled: true, WithoutLockbox: "deny", Created: now})
			},
			func() error {
				return tx.InsertSubscription(ctx, &store.Subscription{ID: Subscription, Tenant: Tenant, SupportPlan: "Developer", Created: now})
			},
			func() error {
				return tx.InsertPerson(ctx, &store.Person{Name: Engineer, Role: "engineer", Created: now})
			},
			func() error {
				return tx.InsertOrder(ctx, &store.Order{
					ID: Order, Subscription: Subscription, Tenant: Tenant, SKU: "databox", Stage: "DataCopy",
					Serial: Serial, Created: now, Updated: now,
				})
			},
			func() error {
				return tx.InsertTicket(ctx, &store.Ticket{ID: Ticket, Order: Order, Tenant: Tenant, Title: "upload halted", Origin: "customer", Owner: Engineer, Created: now})
			},
		}
		for n := 1; n <= nodes; n++ {
			steps = append(steps, func() error {
				return tx.InsertNode(ctx, &store.Node{ID: protocol.NodeID{Serial: Serial, Node: n}, Order: Order})
			})
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Exec runs a statement on the database behind the store's back, as somebody
// who has the file could.
func Exec(t testing.TB, s *store.Store, query string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+s.Path()+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

// Hold keeps every writer of s out until release is called, as a disk that hangs
// would.
func Hold(t testing.TB, s *store.Store) (release func()) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+s.Path()+"?_pragma=busy_timeout(5000)&_txlock=immediate")
	if err != nil {
		t.Error(err)
		return func() {}
	}
	tx, err := db.BeginTx(context.Background(), nil)
	if err != nil {
		t.Error(err)
	}
	return func() {
		if tx != nil {
			tx.Rollback()
		}
		db.Close()
	}
}
